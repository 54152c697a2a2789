//! What the kernel says of changes in the tree: a watch (inotify) on each directory.
//!
//! A directory is watched before it is listed, by the descriptor that it is listed through, so that nothing slips between
//! the two and nothing outside the tree is watched. Where the kernel cannot tell of all changes (too many directories, a
//! filesystem of the network that others change) that is said once, and `is_blind` has the tree listed again and again.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tracing::{debug, warn};

use super::changes::{Changes, Depth};

/// Bytes of events taken from the kernel at once: some hundreds.
const BUFFER: usize = 64 * 1024;
/// Filesystems that others change: what a kernel tells is what was done through it. (linux/magic.h, and CIFS's own.)
const REMOTE: [(u32, &str); 9] = [
    (0x6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x517b, "smb"),
    (0x6573_5546, "fuse"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "ceph"),
    (0x5346_414f, "afs"),
    (0x7461_636f, "ocfs2"),
];

pub(super) struct Watch {
    inotify: Option<OwnedFd>,
    /// Path of each watched directory, by its watch.
    dirs: Mutex<HashMap<i32, Arc<[u8]>>>,
    blind: AtomicBool,
}

impl Watch {
    pub fn new() -> Watch {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
        let watch = Watch { inotify: None, dirs: Mutex::default(), blind: AtomicBool::new(false) };
        match inotify {
            Ok(fd) => Watch { inotify: Some(fd), ..watch },
            Err(error) => {
                watch.turn_blind(&format!("{error}; raise the sysctl fs.inotify.max_user_instances"));
                watch
            }
        }
    }

    /// One that hears nothing.
    #[cfg(test)]
    pub fn broken() -> Watch {
        let watch = Watch { inotify: None, dirs: Mutex::default(), blind: AtomicBool::new(false) };
        watch.turn_blind("a test wants it so");
        watch
    }

    /// What is readable when there is something to drain.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(AsFd::as_fd)
    }

    /// Whether changes may go untold.
    pub fn is_blind(&self) -> bool {
        self.blind.load(Ordering::Relaxed)
    }

    /// Watches a directory that is about to be listed. Watching it again costs little.
    pub fn add(&self, path: &Arc<[u8]>, dir: BorrowedFd) {
        let Some(fd) = &self.inotify else { return };
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR
            | WatchFlags::EXCL_UNLINK;
        match inotify::add_watch(fd, format!("/proc/self/fd/{}", dir.as_raw_fd()), flags) {
            Ok(number) => {
                self.dirs().insert(number, path.clone());
            }
            Err(Errno::NOSPC) => self.turn_blind(&format!(
                "there are more directories than fs.inotify.max_user_watches lets one user watch ({}); raise that sysctl",
                limit().as_deref().unwrap_or("unknown").trim()
            )),
            Err(error) => self.turn_blind(&format!("{}: {error}", path.escape_ascii())),
        }
    }

    /// Looks at the filesystem that the tree is on.
    pub fn consider(&self, root: BorrowedFd) {
        let kind = rustix::fs::fstatfs(root).map_or(0, |stat| stat.f_type as u32);
        if let Some((_, name)) = REMOTE.iter().find(|(magic, _)| *magic == kind) {
            self.turn_blind(&format!("it is on {name}, where others' changes are not told"));
        }
    }

    /// Notes what was told since the last time. True if there was anything.
    pub fn drain(&self, changes: &mut Changes, now: Instant) -> bool {
        let Some(fd) = &self.inotify else { return false };
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = inotify::Reader::new(fd, &mut buffer);
        let (mut any, mut moved) = (false, Vec::new());
        loop {
            match reader.next() {
                Ok(event) => {
                    any = true;
                    let name = event.file_name().map_or(&b""[..], |name| name.to_bytes());
                    self.tell(changes, event.wd(), event.events(), name, &mut moved, now);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => {
                    self.turn_blind(&error.to_string());
                    break;
                }
            }
        }
        self.forget(fd, &moved);
        any
    }

    fn tell(
        &self,
        changes: &mut Changes,
        number: i32,
        event: ReadFlags,
        name: &[u8],
        moved: &mut Vec<Vec<u8>>,
        now: Instant,
    ) {
        if event.contains(ReadFlags::QUEUE_OVERFLOW) {
            debug!("changes came faster than the kernel keeps them: all of the tree is listed again");
            return changes.everything(now);
        }
        if event.contains(ReadFlags::IGNORED) {
            self.dirs().remove(&number);
            return;
        }
        let Some(dir) = self.dirs().get(&number).cloned() else { return };
        if event.contains(ReadFlags::UNMOUNT) {
            return changes.note(&dir, Depth::Tree, now);
        }
        if name.is_empty() {
            return changes.note(&dir, Depth::Row, now);
        }
        let path = if dir.is_empty() { name.to_vec() } else { [&dir, &b"/"[..], name].concat() };
        let goes = event.intersects(ReadFlags::MOVED_FROM | ReadFlags::DELETE);
        let comes = event.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
        if goes || comes {
            // Its times, and how many links it has.
            changes.note(&dir, Depth::Row, now);
        }
        if event.contains(ReadFlags::ISDIR) {
            if goes {
                changes.gone_below(&path);
                moved.push(path.clone());
            }
            let depth = if goes || comes { Depth::Tree } else { Depth::Row };
            return changes.note(&path, depth, now);
        }
        if goes || event.contains(ReadFlags::CLOSE_WRITE) {
            changes.closed(&path, now);
        } else if event.contains(ReadFlags::CREATE) {
            changes.created(&path, now);
        } else if event.contains(ReadFlags::MODIFY) {
            changes.written(&path, now);
        } else if event.contains(ReadFlags::MOVED_TO) {
            changes.note(&path, Depth::Content, now);
        } else {
            changes.note(&path, Depth::Row, now);
        }
    }

    /// Stops watching directories that went, and what is below them: they may be outside the tree now.
    fn forget(&self, fd: &OwnedFd, gone: &[Vec<u8>]) {
        if gone.is_empty() {
            return;
        }
        let gone: std::collections::HashSet<&[u8]> = gone.iter().map(Vec::as_slice).collect();
        let is_gone = |path: &[u8]| {
            gone.contains(path) || path.iter().enumerate().any(|(at, byte)| *byte == b'/' && gone.contains(&path[..at]))
        };
        self.dirs().retain(|number, path| {
            let stays = !is_gone(path);
            if !stays {
                // It may be gone by itself.
                let _ = inotify::remove_watch(fd, *number);
            }
            stays
        });
    }

    fn turn_blind(&self, why: &str) {
        if !self.blind.swap(true, Ordering::Relaxed) {
            warn!("not all changes of the tree are told by the kernel: {why}; it is listed again every few seconds");
        }
    }

    fn dirs(&self) -> std::sync::MutexGuard<'_, HashMap<i32, Arc<[u8]>>> {
        self.dirs.lock().expect("no holder of this lock panics")
    }
}

fn limit() -> Option<String> {
    std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").ok()
}
