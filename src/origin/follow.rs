//! The thread that keeps a served tree's listing what the disk is.
//!
//! It waits for the kernel to tell of changes, gathers them (`Changes`), and has the tree look at what changed. Where the
//! kernel cannot tell of all, everything is listed again from time to time. However much changes, looking takes no more
//! than a share of one processor's time.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use tracing::{error, info, warn};

use super::Tree;
use super::changes::{Batch, Changes, Depth};
use super::lease;
use super::root::Root;
use super::update::Update;

/// Between two looks at what changed: so often do all nodes take note of another version at most.
const PAUSE: Duration = Duration::from_millis(250);
/// A look is followed by a pause of so many times what it took: a tree that changes all the time takes a tenth of a
/// processor. One that was listed whole waits less, since that is rare, and needed.
const SHARE: u32 = 9;
const SHARE_WHOLE: u32 = 2;
/// How often everything is listed where not all changes are told: at least, and by what it takes.
const BLIND: Duration = Duration::from_secs(5);
const SHARE_BLIND: u32 = 20;
/// How often it is asked whether the directory served is still the one at its path.
const ROOT: Duration = Duration::from_secs(1);
/// Events are gathered in the kernel for so long while they keep coming.
const STORM: Duration = Duration::from_millis(10);
/// Paths asked for and not looked at yet; of more, everything is listed.
const MAX_ASKED: usize = 4096;

/// What readers met and others ask to be looked at, and what wakes the thread.
pub(super) struct Asked {
    paths: Mutex<Vec<Vec<u8>>>,
    everything: AtomicBool,
    over: AtomicBool,
    wake: Option<OwnedFd>,
}

impl Asked {
    pub fn new() -> Asked {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok();
        Asked { paths: Mutex::default(), everything: AtomicBool::new(false), over: AtomicBool::new(false), wake }
    }

    /// A reader found another file at this path than was listed.
    pub fn path(&self, path: Vec<u8>) {
        let mut paths = self.paths.lock().expect("no holder of this lock panics");
        if paths.len() < MAX_ASKED {
            paths.push(path);
        } else {
            self.everything.store(true, Ordering::SeqCst);
        }
        drop(paths);
        self.wake();
    }

    pub fn everything(&self) {
        self.everything.store(true, Ordering::SeqCst);
        self.wake();
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn wake(&self) {
        // A counter that is full has woken it already.
        let _ = self.wake.as_ref().map(|wake| rustix::io::write(wake, &1u64.to_ne_bytes()));
    }
}

/// Follows a tree's changes until it is dropped.
pub struct Following {
    tree: Arc<Tree>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.tree.asked.over.store(true, Ordering::SeqCst);
        self.tree.asked.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the thread that follows the tree's changes panicked");
        }
        self.tree.asked.over.store(false, Ordering::SeqCst);
    }
}

impl Tree {
    /// From now on the tree is listed again when it changes; `changed` is called, from another thread, after each new
    /// head.
    pub fn follow(self: &Arc<Tree>, changed: impl Fn() + Send + 'static) -> std::io::Result<Following> {
        let now = Instant::now();
        let mut follower = Follower {
            tree: self.clone(),
            changes: Changes::default(),
            not_before: now,
            list_at: None,
            root_at: now,
            complained: false,
        };
        let thread =
            std::thread::Builder::new().name("swarmfs-tree".to_owned()).spawn(move || follower.run(changed))?;
        Ok(Following { tree: self.clone(), thread: Some(thread) })
    }
}

struct Follower {
    tree: Arc<Tree>,
    changes: Changes,
    /// The next look.
    not_before: Instant,
    /// When everything is listed though nothing was told.
    list_at: Option<Instant>,
    root_at: Instant,
    /// The directory's path leads nowhere, and that was said.
    complained: bool,
}

impl Follower {
    fn run(&mut self, changed: impl Fn()) {
        self.plan(Instant::now(), Duration::ZERO);
        while !self.tree.asked.is_over() {
            let told = self.gather(Instant::now());
            let now = Instant::now();
            if now >= self.not_before
                && let Some(batch) = self.changes.take(now)
            {
                self.look(&batch, now, &changed);
            }
            self.sleep(told);
        }
    }

    fn look(&mut self, batch: &Batch, now: Instant, changed: &impl Fn()) {
        let update = self.tree.update(batch, &|path| self.changes.is_written(path));
        if self.tree.asked.is_over() {
            return;
        }
        let took = now.elapsed();
        let Update { changed: is_new, whole } = update.unwrap_or_else(|error| {
            error!(%error, "the tree cannot be listed again; its last listing is served");
            Update { changed: false, whole: true }
        });
        if is_new {
            changed();
        }
        let share = took * if whole { SHARE_WHOLE } else { SHARE };
        self.not_before = Instant::now() + if is_new || whole { share.max(PAUSE) } else { share };
        self.plan(Instant::now(), if whole { took } else { Duration::ZERO });
    }

    /// Takes in what was told, asked for, or is due.
    fn gather(&mut self, now: Instant) -> bool {
        let told = self.tree.watch.drain(&mut self.changes, now);
        let asked = &self.tree.asked;
        for path in std::mem::take(&mut *asked.paths.lock().expect("no holder of this lock panics")) {
            self.changes.note(&path, Depth::Content, now);
        }
        if asked.everything.swap(false, Ordering::SeqCst) || self.list_at.is_some_and(|at| at <= now) {
            self.list_at = None;
            self.changes.everything(now);
        }
        if self.root_at <= now {
            self.root_at = now + ROOT;
            self.look_at_root(now);
        }
        for path in self.changes.resting(now) {
            let open = self.is_written(&path);
            self.changes.answer(&path, open, now);
        }
        told
    }

    fn is_written(&self, path: &[u8]) -> Option<bool> {
        match self.tree.root().file(path) {
            Ok(file) => lease::is_open_for_writing(&file),
            // It is no file, or is gone.
            Err(Errno::NXIO | Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NODEV) => Some(false),
            Err(_) => None,
        }
    }

    /// The directory served may have been replaced by another one, or be out of reach.
    fn look_at_root(&mut self, now: Instant) {
        let path = &self.tree.path;
        match self.tree.root().is_at(path) {
            Ok(true) => self.complained = false,
            Ok(false) => match Root::open(path) {
                Ok(root) => {
                    info!(path = %path.display(), "another directory is in its place: that one is served now");
                    self.tree.replace_root(root);
                    self.changes.everything(now);
                }
                Err(error) => self.complain(&error.to_string()),
            },
            Err(error) => self.complain(&error.to_string()),
        }
    }

    fn complain(&mut self, why: &str) {
        if !std::mem::replace(&mut self.complained, true) {
            let path = self.tree.path.display();
            warn!(%path, why, "the directory is no longer at its path; what was served of it goes on");
        }
    }

    /// Where changes may go untold, says when everything is listed next.
    fn plan(&mut self, now: Instant, took: Duration) {
        if self.tree.watch.is_blind() && self.list_at.is_none() {
            self.list_at = Some(now + BLIND.max(took * SHARE_BLIND));
        }
    }

    /// Until something is told or due.
    fn sleep(&self, told: bool) {
        let now = Instant::now();
        let look = self.changes.due().map(|due| due.max(self.not_before));
        let next = [look, self.list_at, Some(self.root_at)].into_iter().flatten().min().unwrap_or(now);
        let mut wait = next.saturating_duration_since(now);
        let asked = self.tree.asked.wake.as_ref().map(AsFd::as_fd);
        let mut heard = self.tree.watch.descriptor();
        if told {
            wait = wait.min(STORM);
            heard = None;
        }
        let mut files: Vec<PollFd> =
            [asked, heard].into_iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
        // Interrupted is as good as woken.
        let _ = poll(&mut files, Some(&wait));
        if let Some(wake) = &self.tree.asked.wake {
            let _ = rustix::io::read(wake, &mut [0u8; 8]);
        }
    }
}
