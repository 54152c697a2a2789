//! The thread beside a session: looks after requests that wait, and after the mount itself.
//!
//! It is needed for no answer, so it alone may notify the kernel. Five times a second it looks for killed callers and
//! for a newer version of the tree; the kernel wakes it when mounts change, and once its own is gone nobody waits on.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::mountinfo::{self, Device, MOUNTINFO};
use super::signals;
use crate::fs::{Fs, ROOT, Supply};

/// A killed caller is gone after `AGE` and at most this.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// Requests younger than this are left alone: most are answered by then.
const AGE: Duration = Duration::from_millis(250);
/// FUSE_NOTIFY_INC_EPOCH (linux/fuse.h): all names are to be looked up again. It never blocks.
const INC_EPOCH: u32 = 8;

/// What the thread looks after.
pub struct Watch<S: Supply> {
    pub fs: Arc<Fs<S>>,
    /// Without it only the session itself learns of the mount's end.
    pub device: Option<Device>,
    pub notifier: Notifier,
    /// Another handle of the session's connection, for what fuser has no call for.
    pub connection: OwnedFd,
}

impl<S: Supply> Watch<S> {
    /// Returns when the mount is gone, or when `stopped` says that the session is over.
    pub fn run(self, stopped: impl Fn() -> bool) {
        let mountinfo = match File::open(MOUNTINFO) {
            Ok(file) => Some(file),
            Err(error) => {
                tracing::warn!(%error, "cannot watch the mounts: `umount -l` will not end this one");
                None
            }
        };
        let mut moved = true;
        while !stopped() {
            if moved && !self.is_mounted() {
                tracing::info!("the mount is gone");
                return self.fs.end();
            }
            self.interrupt_killed();
            if self.fs.tick() {
                self.forget_names();
            }
            moved = self.sleep(mountinfo.as_ref());
        }
    }

    /// Until the next tick, or until something was mounted or unmounted: true if so. The table is long where much is
    /// mounted, and to read it with each tick was 2 % of what 32 nodes on a machine did.
    fn sleep(&self, mountinfo: Option<&File>) -> bool {
        let mut files: Vec<PollFd<'_>> =
            mountinfo.into_iter().map(|file| PollFd::from_borrowed_fd(file.as_fd(), PollFlags::PRI)).collect();
        // Interrupted is as good as a tick.
        poll(&mut files, Some(&TICK)).is_err() || files.iter().any(|file| !file.revents().is_empty())
    }

    fn is_mounted(&self) -> bool {
        let Some(device) = self.device else { return true };
        mountinfo::mounts().map_or(true, |mounts| mounts.iter().any(|mount| mount.device == device))
    }

    fn interrupt_killed(&self) {
        for call in self.fs.waiting_for(AGE) {
            if call.thread() != 0 && signals::is_killed(call.thread()) {
                tracing::debug!(thread = call.thread(), "its caller was killed: answered");
                self.fs.interrupt(&call);
            }
        }
    }

    /// A newer version: names are looked up again, the root's attributes too. What the kernel holds of files stays,
    /// since each version has its own number.
    fn forget_names(&self) {
        // unique 0 makes it a notification, with its code in the place of an error.
        let mut message = [0; 16];
        message[..4].copy_from_slice(&16u32.to_ne_bytes());
        message[4..8].copy_from_slice(&INC_EPOCH.to_ne_bytes());
        let epoch = self.connection.try_clone().and_then(|connection| File::from(connection).write_all(&message));
        // Offset -1: attributes only, which never blocks.
        let root = self.notifier.inval_inode(INodeNo(ROOT), -1, 0);
        for error in [epoch.err(), root.err()].into_iter().flatten() {
            tracing::debug!(%error, "the kernel was not told of a newer version");
        }
    }
}
