//! What is mounted where, as `/proc/self/mountinfo` tells it (proc_pid_mountinfo(5)).
//!
//! Reads the list and finds lines in it; never follows a path itself, so no mounted filesystem can make it wait.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

pub const MOUNTINFO: &str = "/proc/self/mountinfo";

/// The device number that a mounted filesystem's inodes have: one per filesystem, however often it is mounted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Device {
    pub major: u32,
    pub minor: u32,
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// One mount of this process's namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    pub id: u64,
    pub parent: u64,
    pub device: Device,
    pub point: PathBuf,
    /// With its subtype: `fuse.swarmfs`.
    pub kind: OsString,
    pub source: OsString,
}

/// All mounts of this process's namespace.
pub fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read(MOUNTINFO)?))
}

/// The mount that a walk to `path` ends on, if one is mounted exactly there: of those stacked on one path, the one
/// that nothing lies on.
pub fn topmost<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let here = || mounts.iter().filter(|mount| mount.point == path);
    here().find(|mount| !here().any(|above| above.parent == mount.id && above.id != mount.id))
}

/// Which mount an open file lies on; opened with O_PATH it need not answer for that.
pub fn mount_id(file: &File) -> io::Result<u64> {
    use std::os::fd::AsRawFd;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::Error::other("no mnt_id in /proc/self/fdinfo"))
}

/// Lines that are not as proc_pid_mountinfo(5) draws them are left out.
fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /point opts optional:1 - type source superopts`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u64>().ok();
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let device = Device { major: major.parse().ok()?, minor: minor.parse().ok()? };
    let point = PathBuf::from(unescape(fields.nth(1)?));
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    Some(Mount { id, parent, device, point, kind: unescape(fields.next()?), source: unescape(fields.next()?) })
}

/// Blank, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let octal =
            tail.get(..3).filter(|digits| byte == b'\\' && digits.iter().all(|digit| (b'0'..b'8').contains(digit)));
        match octal {
            Some(digits) => {
                out.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = &tail[3..];
            }
            None => out.push(byte),
        }
    }
    OsString::from_vec(out)
}

/// The path that an open file has in this namespace.
pub fn path_of(file: &File) -> io::Result<PathBuf> {
    use std::os::fd::AsRawFd;
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    if path.as_os_str().as_bytes().starts_with(b"/") { Ok(path) } else { Err(io::ErrorKind::NotFound.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        40 22 0:50 / /mnt/a\\040b ro,nosuid shared:2 master:1 - fuse.swarmfs images:/sub ro,user_id=0\n\
        41 40 0:51 / /mnt/a\\040b rw - tmpfs none rw\n\
        nonsense\n\
        42 22 0:52 / /mnt/c\\134d rw - fuse.swarmfs back\\134slash ro\n";

    #[test]
    fn a_line_gives_its_mount_and_nonsense_none() {
        let mounts = parse(TEXT);
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[1].point, Path::new("/mnt/a b"));
        assert_eq!(mounts[1].kind, "fuse.swarmfs");
        assert_eq!(mounts[1].source, "images:/sub");
        assert_eq!(mounts[1].device, Device { major: 0, minor: 50 });
        assert_eq!(mounts[3].point, Path::new("/mnt/c\\d"));
        assert_eq!(mounts[3].source, "back\\slash");
    }

    #[test]
    fn of_stacked_mounts_the_one_that_nothing_lies_on_is_found() {
        let mut mounts = parse(TEXT);
        assert_eq!(topmost(&mounts, Path::new("/mnt/a b")).unwrap().id, 41);
        mounts.reverse();
        assert_eq!(topmost(&mounts, Path::new("/mnt/a b")).unwrap().id, 41, "whatever the order");
        assert_eq!(topmost(&mounts, Path::new("/mnt")), None);
    }

    #[test]
    fn the_root_is_listed_by_the_kernel() {
        let mounts = mounts().unwrap();
        let root = topmost(&mounts, Path::new("/")).unwrap();
        let file = File::open("/").unwrap();
        assert_eq!(mount_id(&file).unwrap(), root.id);
        assert_eq!(path_of(&file).unwrap(), Path::new("/"));
    }
}
