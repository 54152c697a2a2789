//! A connection to the kernel that somebody else opened and mounted, handed over as `/dev/fd/N`.
//!
//! mount.fuse3 does so for `drop_privileges`, and Kubernetes' CSI drivers do: who serves such a mount need not be allowed
//! to mount, and cannot unmount. Where the mount is can be unknown here, in a mount namespace of its own.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, fstat, major, minor};

use super::mount::{Attached, MountError};
use super::mountinfo::{self, Device, Mount};

/// The device number of /dev/fuse (Documentation/admin-guide/devices.txt).
const FUSE: (u32, u32) = (10, 229);

/// The descriptor's number, if `point` names one.
pub fn number(point: &Path) -> Option<i32> {
    let digits = std::str::from_utf8(point.as_os_str().as_bytes().strip_prefix(b"/dev/fd/")?).ok()?;
    digits.parse().ok().filter(|number| *number >= 0)
}

/// Takes the connection over.
pub fn take(number: i32) -> Result<Attached, MountError> {
    // SAFETY: duplicating touches no memory, whatever the number; a number that is not open is an error.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(MountError::NotHanded(number, io::Error::last_os_error()));
    }
    // SAFETY: the duplicate was made just above and has no other owner.
    let connection = unsafe { OwnedFd::from_raw_fd(copy) };
    let stat = fstat(&connection).map_err(|errno| MountError::NotHanded(number, errno.into()))?;
    let is_fuse = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (major(stat.st_rdev), minor(stat.st_rdev)) == FUSE;
    if !is_fuse {
        return Err(MountError::NotHanded(number, io::Error::other("it is something else")));
    }
    let file = File::from(connection);
    let mount = mount_of(&file);
    let (point, device) = match mount {
        Some(Mount { point, device, .. }) => (point, Some(device)),
        None => (format!("/dev/fd/{number}").into(), None),
    };
    Ok(Attached { connection: file.into(), point, device, handed: true })
}

/// The mount that the connection serves, where the kernel tells and this namespace has it.
fn mount_of(connection: &File) -> Option<Mount> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", connection.as_raw_fd())).ok()?;
    let minor = info.lines().find_map(|line| line.strip_prefix("fuse_connection:")?.trim().parse().ok())?;
    // A filesystem without a block device has a number of major 0.
    let device = Device { major: 0, minor };
    mountinfo::mounts().ok()?.into_iter().find(|mount| mount.device == device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_known_by_its_path_and_must_be_a_connection() {
        assert_eq!(number(Path::new("/dev/fd/7")), Some(7));
        for other in ["/dev/fd/", "/dev/fd/x", "/dev/fd/-1", "/dev/fd/7/a", "/mnt/dev/fd/7"] {
            assert_eq!(number(Path::new(other)), None, "{other}");
        }
        assert!(matches!(take(1 << 20), Err(MountError::NotHanded(..))));
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(take(file.as_raw_fd()), Err(MountError::NotHanded(..))));
    }
}
