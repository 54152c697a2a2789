//! Whether somebody has a file open for writing.
//!
//! The kernel grants a lease for reading only where nobody has. It is given back at once; whoever opens the file for
//! writing within those microseconds waits for them.

use std::fs::File;
use std::os::fd::AsRawFd;

/// Which signal tells that a lease is asked back (linux/fcntl.h; libc lacks the name).
const F_SETSIG: libc::c_int = 10;

/// None where it cannot be known: the file is somebody else's and this process has no right to a lease, or its
/// filesystem has none.
pub(super) fn is_open_for_writing(file: &File) -> Option<bool> {
    // Whoever is not to be ended by the signal asks for one that is ignored by default.
    if control(file, F_SETSIG, libc::SIGURG).is_err() {
        return None;
    }
    let lease = control(file, libc::F_SETLEASE, libc::F_RDLCK as libc::c_int);
    match lease {
        Ok(()) => {
            // Closing the file would give it back, too.
            let _ = control(file, libc::F_SETLEASE, libc::F_UNLCK as libc::c_int);
            Some(false)
        }
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Some(true),
        Err(_) => None,
    }
}

fn control(file: &File, command: libc::c_int, value: libc::c_int) -> std::io::Result<()> {
    // SAFETY: these commands take a number and touch no memory of this process; the descriptor is open.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, value) } {
        0.. => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_to_be_open_for_writing_until_it_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        let Some(open) = is_open_for_writing(&reader) else { return };
        assert!(open);
        drop(writer);
        assert_eq!(is_open_for_writing(&reader), Some(false));
        // The lease was given back: this does not wait.
        drop(File::options().write(true).open(&path).unwrap());
    }
}
