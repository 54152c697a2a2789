//! The filesystem behind a FUSE mount: one session, the thread beside it, and the mount as a handle.
//!
//! It knows the filesystem (`fs`) and the kernel, never the swarm. A mount is made and ended by this module's own
//! mount(2); whatever ends it (`unmount`, umount(8), `fusermount3 -u`, a signal), every request that waits is answered.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use fuser::{Session, SessionACL};

use crate::fs::{Fs, Supply};

mod adapter;
pub mod daemon;
mod errno;
mod handed;
pub mod mount;
pub mod mountinfo;
mod signals;
mod watch;

pub use daemon::{Death, Outcome, Readiness, Role, daemonize};
pub use handed::number as handed_descriptor;
pub use mount::{MountError, Settings, UnmountError, unmount};

/// Threads that take the kernel's requests: a second one keeps a large copy from holding up a small answer.
const THREADS: usize = 2;
/// What the kernel reads ahead in its own cache, of all sizes the fastest for whole files. fuser refuses more than
/// 128 KiB in INIT, so it is set afterwards.
const READ_AHEAD_KIB: u32 = 2048;
/// How long a session whose mount is gone may still answer programs that hold files open.
const GRACE: Duration = Duration::from_secs(1);

/// A mounted filesystem. Dropping it unmounts.
pub struct Mounted {
    point: PathBuf,
    device: Option<mountinfo::Device>,
    handed: bool,
    ending: Arc<Ending>,
}

#[derive(Default)]
struct Ending {
    state: Mutex<EndingState>,
    changed: Condvar,
}

#[derive(Default)]
struct EndingState {
    session_over: bool,
    gone_since: Option<Instant>,
}

/// Mounts a filesystem. It answers when this returns.
pub fn mount<S: Supply>(fs: Arc<Fs<S>>, settings: &Settings) -> Result<Mounted, MountError> {
    let attached = mount::attach(settings)?;
    let ending = Arc::new(Ending::default());
    // From here on an error must not leave a mount without a server.
    let mount::Attached { connection, point, device, handed } = attached;
    let mounted = Mounted { point, device, handed, ending: ending.clone() };
    let mut config = fuser::Config::default();
    config.n_threads = Some(THREADS);
    let session =
        Session::from_fd(adapter::Adapter::new(fs.clone(), settings.shown), connection, SessionACL::All, config)
            .map_err(|error| MountError::System("agree with the kernel on FUSE's version", error))?;
    mounted.device.into_iter().for_each(read_ahead);
    warn_of_timeout();
    let connection = session
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| MountError::System("duplicate the connection to the kernel", error))?;
    let watch = watch::Watch { fs: fs.clone(), device: mounted.device, notifier: session.notifier(), connection };
    let session_ending = ending.clone();
    spawn("swarmfs-session", move || {
        if let Err(error) = session.run() {
            tracing::error!(%error, "the connection to the kernel failed");
        }
        fs.end();
        session_ending.note(|state| state.session_over = true);
    })?;
    spawn("swarmfs-watch", move || {
        watch.run(|| ending.state().session_over);
        ending.note(|state| state.gone_since = Some(Instant::now()));
    })?;
    Ok(mounted)
}

impl Mounted {
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Returns when the mount is gone, whoever ended it. What programs still hold open is answered with an error
    /// from then on.
    pub fn wait(&self) {
        let mut state = self.ending.state();
        while !state.session_over {
            let left = state.gone_since.map(|since| GRACE.saturating_sub(since.elapsed()));
            state = match left {
                Some(Duration::ZERO) => return,
                Some(left) => self.ending.changed.wait_timeout(state, left).expect("no holder of this lock panics").0,
                None => self.ending.changed.wait(state).expect("no holder of this lock panics"),
            };
        }
    }

    /// Whether somebody else made the mount: it is dead, and not gone, when this process ends.
    pub fn is_handed(&self) -> bool {
        self.handed
    }

    /// Ends the mount; if programs still use it, detaches it from under them.
    pub fn unmount(&self) -> Result<(), UnmountError> {
        if self.handed || !self.is_topmost() {
            return Ok(());
        }
        match unmount(&self.point, false) {
            Err(UnmountError::Busy(_)) => unmount(&self.point, true),
            // Somebody else was faster.
            Err(UnmountError::NotMounted(_)) => Ok(()),
            done => done,
        }
    }

    /// Whether this mount, and not another one over it or in its place, is what lies on the mount point.
    fn is_topmost(&self) -> bool {
        mountinfo::mounts().is_ok_and(|mounts| {
            mountinfo::topmost(&mounts, &self.point).is_some_and(|mount| Some(mount.device) == self.device)
        })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            tracing::warn!(%error, "the mount stays, without a server");
        }
    }
}

impl Ending {
    fn state(&self) -> std::sync::MutexGuard<'_, EndingState> {
        self.state.lock().expect("no holder of this lock panics")
    }

    fn note(&self, change: impl FnOnce(&mut EndingState)) {
        change(&mut self.state());
        self.changed.notify_all();
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), MountError> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    thread.map(drop).map_err(|error| MountError::System("start a thread", error))
}

/// Only root may; without it, cached reads reach two thirds of their speed.
fn read_ahead(device: mountinfo::Device) {
    let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&file, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(file, %error, "the kernel's read-ahead stays at its default");
    }
}

/// The kernel can be told to abort connections whose requests take long; a `hard` mount has such requests.
fn warn_of_timeout() {
    let file = "/proc/sys/fs/fuse/default_request_timeout";
    match std::fs::read_to_string(file) {
        Ok(seconds) if seconds.trim() != "0" => {
            tracing::warn!(
                seconds = seconds.trim(),
                "{file} makes the kernel end mounts that wait longer; set it to 0"
            );
        }
        _ => {}
    }
}
