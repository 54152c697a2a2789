//! The one place where an error becomes an errno.

use fuser::Errno;

use crate::fs::Error;

/// What the kernel is told, and through it the program that asked.
pub fn errno(error: Error) -> Errno {
    match error {
        Error::NotFound | Error::Unanswered => Errno::ENOENT,
        Error::NotADirectory => Errno::ENOTDIR,
        Error::NotAFile | Error::NotALink => Errno::EINVAL,
        Error::Loop => Errno::ELOOP,
        Error::NameTooLong => Errno::ENAMETOOLONG,
        Error::NoAttribute => Errno::ENODATA,
        Error::BeyondEnd => Errno::ENXIO,
        Error::BadHandle => Errno::EBADF,
        // The kernel looks the name up again by itself when an open is answered with it.
        Error::Stale => Errno::ESTALE,
        Error::Unreadable | Error::TimedOut | Error::Malformed | Error::Collision => Errno::EIO,
        // Only ever told to a thread that is about to die of its signal.
        Error::Interrupted => Errno::EINTR,
        // What the kernel itself says of a mount without a server.
        Error::Ended => Errno::ENOTCONN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_of_a_lost_version_is_stale_and_of_an_unreadable_file_an_io_error() {
        assert_eq!(i32::from(errno(Error::Stale)), libc::ESTALE);
        assert_eq!(i32::from(errno(Error::Unreadable)), libc::EIO);
        assert_eq!(i32::from(errno(Error::TimedOut)), libc::EIO);
        assert_eq!(i32::from(errno(Error::Ended)), libc::ENOTCONN);
    }
}
