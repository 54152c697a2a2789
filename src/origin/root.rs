//! The served directory: opening what lies beneath it, and never anything else.
//!
//! No symbolic link is followed, neither last nor on the way, so nothing outside the tree is ever opened, whatever is
//! moved about meanwhile. The kernel sees to it (`openat2`); where it cannot, each directory on the way is opened by
//! itself.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat};
use rustix::io::{Errno, Result};

use crate::catalogue::{Attributes, Time};

/// Longest path that one system call takes, without its final NUL.
const PATH_MAX: usize = 4095;

pub(super) struct Root {
    directory: OwnedFd,
    /// False once the kernel, or a sandbox around us, has refused `openat2` as such.
    has_openat2: AtomicBool,
}

impl Root {
    /// Links in `dir` itself are followed: it is what the user named.
    pub fn open(dir: &Path) -> Result<Root> {
        let directory = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Root { directory, has_openat2: AtomicBool::new(true) })
    }

    /// As if the kernel had no `openat2`.
    #[cfg(test)]
    pub fn forget_openat2(&self) {
        self.has_openat2.store(false, Ordering::Relaxed);
    }

    /// Whether this is the directory that is at `dir` now.
    pub fn is_at(&self, dir: &Path) -> Result<bool> {
        let (here, there) = (self.stat()?, rustix::fs::stat(dir)?);
        Ok((here.st_dev, here.st_ino) == (there.st_dev, there.st_ino))
    }

    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    pub fn stat(&self) -> Result<Stat> {
        rustix::fs::statat(&self.directory, c".", AtFlags::empty())
    }

    /// Opens a directory by its path below the root, to be listed; the root's path is empty.
    pub fn directory(&self, path: &[u8]) -> Result<OwnedFd> {
        self.beneath(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC)
    }

    /// Opens a regular file by its path below the root. Whatever else is there is looked at and not opened (a device may
    /// do something when it is, a fifo may wait): that is `NXIO`.
    pub fn file(&self, path: &[u8]) -> Result<File> {
        let found = self.beneath(path, OFlags::PATH | OFlags::CLOEXEC)?;
        match FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) {
            FileType::RegularFile => {}
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        // That very file, whatever is at its path by now.
        match rustix::fs::open(format!("/proc/self/fd/{}", found.as_raw_fd()), flags, Mode::empty()) {
            // Without /proc it is looked up once more.
            Err(Errno::NOENT | Errno::NOTDIR) => self.beneath(path, flags).map(File::from),
            opened => opened.map(File::from),
        }
    }

    fn beneath(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        if path.is_empty() {
            return rustix::fs::openat(&self.directory, c".", flags, Mode::empty());
        }
        if path.len() > PATH_MAX || !self.has_openat2.load(Ordering::Relaxed) {
            return self.beneath_step_by_step(path, flags);
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let opened = rustix::fs::openat2(&self.directory, path, flags | OFlags::NOFOLLOW, Mode::empty(), resolve);
            match opened {
                // Opening to read is never forbidden by EPERM; a sandbox that does not know the call says it.
                Err(Errno::NOSYS | Errno::PERM) => {
                    self.has_openat2.store(false, Ordering::Relaxed);
                    return self.beneath_step_by_step(path, flags);
                }
                // Something was renamed on the way while the kernel looked.
                Err(Errno::AGAIN) if attempts < 4 => {}
                other => return other,
            }
        }
    }

    fn beneath_step_by_step(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        let (way, last) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut here: Option<OwnedFd> = None;
        for component in way.split(|byte| *byte == b'/').filter(|component| !component.is_empty()) {
            let from = here.as_ref().unwrap_or(&self.directory);
            here = Some(rustix::fs::openat(from, component, step, Mode::empty())?);
        }
        let from = here.as_ref().unwrap_or(&self.directory);
        rustix::fs::openat(from, last, flags | OFlags::NOFOLLOW, Mode::empty())
    }
}

/// What of a file's attributes identifies its content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    pub regular: bool,
    /// Device and inode.
    pub inode: (u64, u64),
    pub size: u64,
    pub mtime: Time,
    /// Moves with every change of content or attributes; no program can set it.
    pub ctime: Time,
}

impl Stamp {
    #[allow(clippy::unnecessary_cast)]
    pub fn of(file: &File) -> Result<Stamp> {
        let stat = rustix::fs::fstat(file)?;
        let attributes = attributes_of(&stat);
        Ok(Stamp {
            regular: is_regular(&stat),
            inode: (stat.st_dev as u64, stat.st_ino as u64),
            size: attributes.size,
            mtime: attributes.mtime,
            ctime: ctime_of(&stat),
        })
    }
}

fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

// The fields' types differ from one architecture to the next.
#[allow(clippy::unnecessary_cast)]
pub(super) fn attributes_of(stat: &Stat) -> Attributes {
    Attributes {
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Time { sec: stat.st_mtime as i64, nsec: stat.st_mtime_nsec as u32 },
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
    }
}

#[allow(clippy::unnecessary_cast)]
fn ctime_of(stat: &Stat) -> Time {
    Time { sec: stat.st_ctime as i64, nsec: stat.st_ctime_nsec as u32 }
}

/// Fills `into` with what the file has from `start`. Holes are skipped, not read, and what lies beyond its end is zeros:
/// whether the file still has the size it had, the caller looks afterwards.
pub(super) fn read_at(file: &File, start: u64, into: &mut [u8]) -> Result<()> {
    into.fill(0);
    let end = start + into.len() as u64;
    let mut at = start;
    while at < end {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.clamp(at, end),
            // Nothing but a hole up to the file's end.
            Err(Errno::NXIO) => end,
            // A filesystem that does not tell.
            Err(_) => at,
        };
        if data == end {
            break;
        }
        let hole = match rustix::fs::seek(file, SeekFrom::Hole(data)) {
            Ok(hole) if hole > data => hole.min(end),
            _ => end,
        };
        read_data(file, data, &mut into[(data - start) as usize..(hole - start) as usize])?;
        at = hole;
    }
    Ok(())
}

fn read_data(file: &File, start: u64, into: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < into.len() {
        match rustix::io::pread(file.as_fd(), &mut into[done..], start + done as u64) {
            Ok(0) => break,
            Ok(more) => done += more,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, symlink};

    use super::*;

    #[test]
    fn nothing_outside_is_opened_whether_the_kernel_helps_or_not() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        let inside = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(inside.path().join("a/b")).unwrap();
        std::fs::write(inside.path().join("a/b/file"), "y").unwrap();
        symlink(outside.path(), inside.path().join("out")).unwrap();
        symlink(outside.path().join("secret"), inside.path().join("link")).unwrap();
        symlink("a", inside.path().join("within")).unwrap();
        for has_openat2 in [true, false] {
            let root = Root::open(inside.path()).unwrap();
            root.has_openat2.store(has_openat2, Ordering::Relaxed);
            assert!(root.file(b"a/b/file").is_ok());
            assert!(root.directory(b"a/b").is_ok());
            for path in [&b"out/secret"[..], b"link", b"within/b/file"] {
                let error = root.file(path).map(drop).unwrap_err();
                assert!([Errno::LOOP, Errno::NOTDIR].contains(&error), "{error:?}");
            }
            assert!(root.directory(b"out").is_err());
        }
    }

    #[test]
    fn a_path_longer_than_a_system_call_takes_is_opened() {
        let inside = tempfile::tempdir().unwrap();
        let root = Root::open(inside.path()).unwrap();
        let name = "n".repeat(250);
        let mut path = Vec::new();
        let mut here = root.directory(b"").unwrap();
        for _ in 0..17 {
            rustix::fs::mkdirat(&here, &*name, Mode::RWXU).unwrap();
            path.extend_from_slice(name.as_bytes());
            here = root.directory(&path).unwrap();
            path.push(b'/');
        }
        assert!(path.len() > PATH_MAX);
    }

    #[test]
    fn holes_read_as_zeros_between_data() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 << 20).unwrap();
        file.write_all_at(&[7; 10], (1 << 20) + 5).unwrap();
        let mut bytes = vec![1; 2 << 20];
        read_at(&file, 10, &mut bytes).unwrap();
        let at = (1 << 20) + 5 - 10;
        assert_eq!(bytes[at..at + 10], [7; 10]);
        assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 10);
        let mut whole = vec![1; 100];
        read_at(&file, (3 << 20) - 100, &mut whole).unwrap();
        assert_eq!(whole, [0; 100]);
    }

    #[test]
    fn what_lies_beyond_the_end_is_zeros() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 10], 0).unwrap();
        let mut bytes = [1; 12];
        read_at(&file, 8, &mut bytes).unwrap();
        assert_eq!(bytes, [7, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(read_at(&std::fs::File::open("/").unwrap(), 0, &mut bytes), Err(Errno::ISDIR));
    }
}
