//! The walk: a directory tree, or a part of one, becomes rows, in catalogue order, by `lstat` alone.
//!
//! It reads no file's content and follows no link. What it cannot list it shows as far as it can and says so: one
//! unreadable directory is no reason not to serve the rest. The files of a directory come before its subdirectories, so
//! rows are made in the order the catalogue wants, and the first path of a hard-linked file is the first one met.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, Dir, FileType, Stat};
use rustix::io::Errno;

use super::root::{Root, attributes_of};
use crate::catalogue::{Kind, MAX_DIR, MAX_XATTRS, NotATree, Row, Time, Xattr};
use crate::chunk::ObjectId;

/// Warnings kept with their text; the rest are only counted.
const MAX_WARNINGS: usize = 100;
/// Bytes in the longest list of attribute names and the longest value that Linux has.
const XATTR_LIMIT: usize = 64 * 1024;

/// What a walk met that a user wants to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The first hundred things that could not be listed.
    pub warnings: Vec<Warning>,
    /// All of them.
    pub warned: u64,
    /// Directories and files on which another filesystem is mounted; they are served like the rest.
    pub mounts: u64,
}

impl Report {
    /// Both together.
    pub(super) fn and(mut self, more: Report) -> Report {
        self.warned += more.warned;
        self.mounts += more.mounts;
        self.warnings.extend(more.warnings);
        self.warnings.truncate(MAX_WARNINGS);
        self
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    pub path: Vec<u8>,
    pub why: String,
}

/// What a walk asks of its tree.
pub(super) trait Known {
    /// Which generation of a version is current, given the id of its generation 0.
    fn generation(&self, base: &ObjectId) -> u64;
    /// A directory is about to be listed.
    fn entering(&self, path: &Arc<[u8]>, dir: BorrowedFd);
    /// The row to show instead of a regular file that is being written: the one before, or none. `age` is since it was
    /// last written.
    fn standing(&self, path: &[u8], age: Duration) -> Option<Option<Row>>;
    /// Nobody wants the walk to go on.
    fn is_over(&self) -> bool;
}

/// One walk, of all or of parts.
pub(super) struct Walk<'a, K> {
    root: &'a Root,
    known: &'a K,
    /// Regular files with more than one link, by device and inode: the object of their first path, and what it was made of.
    links: HashMap<(u64, u64), (ObjectId, u64, Time)>,
    met_links: bool,
    report: Report,
    buffer: Vec<u8>,
}

/// Takes rows as they are made, in catalogue order.
type Sink<'a> = dyn FnMut(Row) -> Result<(), NotATree> + 'a;

impl<'a, K: Known> Walk<'a, K> {
    pub fn new(root: &'a Root, known: &'a K) -> Walk<'a, K> {
        Walk {
            root,
            known,
            links: HashMap::new(),
            met_links: false,
            report: Report::default(),
            buffer: vec![0; XATTR_LIMIT],
        }
    }

    /// Whether anything that was met, but for directories, has more than one link.
    pub fn met_links(&self) -> bool {
        self.met_links
    }

    pub fn finish(self) -> Report {
        self.report
    }

    /// Makes the rows of a whole tree.
    pub fn tree(&mut self, sink: &mut Sink) -> Result<(), NotATree> {
        self.subtree(b"", sink)
    }

    /// Makes the rows of all that is below a directory; the root's own row, too.
    pub fn subtree(&mut self, top: &[u8], sink: &mut Sink) -> Result<(), NotATree> {
        // Directories still to be listed, the next one last.
        let mut ahead: Vec<Arc<[u8]>> = vec![top.into()];
        while let Some(path) = ahead.pop() {
            if self.known.is_over() {
                return Ok(());
            }
            let listed = self.root.directory(&path).and_then(|fd| {
                let stat = if path.is_empty() { self.root.stat()? } else { rustix::fs::fstat(&fd)? };
                self.known.entering(&path, fd.as_fd());
                Ok((Dir::new(fd)?, stat))
            });
            match listed {
                Ok((mut dir, stat)) => {
                    if path.is_empty() {
                        sink(self.root_row(dir.fd().ok(), &stat)?)?;
                    }
                    self.directory(&path, &mut dir, &stat, &mut ahead, sink)?;
                }
                Err(error) => {
                    if path.is_empty() {
                        // Shown empty, like any other directory that cannot be listed.
                        let stat = self.root.stat().map_err(|_| NotATree::NoRoot)?;
                        sink(self.root_row(None, &stat)?)?;
                    }
                    // Unless it went meanwhile, which is told by itself.
                    if path.len() == top.len() || error != Errno::NOENT {
                        self.warn(&path, format!("it is shown empty: {error}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes the row of one path, if there is something that can be shown.
    pub fn name(&mut self, path: &[u8]) -> Result<Option<Row>, NotATree> {
        let (dir, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        let Ok(fd) = self.root.directory(dir) else { return Ok(None) };
        if path.is_empty() {
            let stat = self.root.stat().map_err(|_| NotATree::NoRoot)?;
            return self.root_row(Some(fd.as_fd()), &stat).map(Some);
        }
        let Ok(parent) = rustix::fs::fstat(&fd) else { return Ok(None) };
        Ok(self.row(&dir.into(), fd.as_fd(), name, &parent))
    }

    fn root_row(&mut self, fd: Option<BorrowedFd>, stat: &Stat) -> Result<Row, NotATree> {
        let xattrs = fd.map(|fd| self.xattrs(fd, b"", b".")).unwrap_or_default();
        Row::new(*b"", *b"", Kind::Directory, attributes_of(stat), xattrs).map_err(|_| NotATree::NoRoot)
    }

    /// Makes the rows of one directory, and adds its subdirectories to what lies ahead.
    fn directory(
        &mut self,
        path: &Arc<[u8]>,
        dir: &mut Dir,
        stat: &Stat,
        ahead: &mut Vec<Arc<[u8]>>,
        sink: &mut Sink,
    ) -> Result<(), NotATree> {
        let mut names: Vec<Box<[u8]>> = Vec::new();
        while let Some(entry) = dir.read() {
            match entry {
                Ok(entry) => names.push(entry.file_name().to_bytes().into()),
                Err(error) => {
                    self.warn(path, format!("it is shown in part: {error}"));
                    break;
                }
            }
        }
        // A directory that changes while it is listed may tell a name twice.
        names.sort_unstable();
        names.dedup();
        let Ok(fd) = dir.fd() else { return Ok(()) };
        let mut files = Vec::new();
        let mut directories = Vec::new();
        for name in names.iter().filter(|name| !matches!(&***name, b"." | b"..")) {
            match self.row(path, fd, name, stat) {
                Some(row) if *row.kind() == Kind::Directory => directories.push(row),
                Some(row) => files.push(row),
                None => {}
            }
        }
        let below: Vec<Vec<u8>> = directories.iter().map(Row::path).collect();
        for row in files.into_iter().chain(directories) {
            sink(row)?;
        }
        for path in below.into_iter().rev() {
            if path.len() <= MAX_DIR {
                ahead.push(path.into());
            } else {
                self.warn(&path, "it is shown empty: its path is longer than 4095 bytes".to_owned());
            }
        }
        Ok(())
    }

    fn row(&mut self, dir: &Arc<[u8]>, fd: BorrowedFd, name: &[u8], parent: &Stat) -> Option<Row> {
        let path = || [dir, &b"/"[..], name].concat();
        let stat = match rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) {
            Ok(stat) => stat,
            // Removed since the directory was read.
            Err(Errno::NOENT) => return None,
            Err(error) => {
                self.warn(&path(), format!("it is not shown: {error}"));
                return None;
            }
        };
        if stat.st_dev != parent.st_dev {
            self.report.mounts += 1;
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        self.met_links |= kind != FileType::Directory && stat.st_nlink > 1;
        if kind == FileType::RegularFile
            && let Some(standing) = self.known.standing(&join(dir, name), age(attributes_of(&stat).mtime))
        {
            return standing;
        }
        let kind = match self.kind(dir, fd, name, &stat) {
            Ok(kind) => kind,
            Err(why) => {
                self.warn(&path(), format!("it is not shown: {why}"));
                return None;
            }
        };
        let xattrs = if matches!(kind, Kind::Symlink { .. }) { Vec::new() } else { self.xattrs(fd, dir, name) };
        match Row::new(dir.clone(), name, kind, attributes_of(&stat), xattrs) {
            Ok(row) => Some(row),
            Err(why) => {
                self.warn(&path(), format!("it is not shown: {why}"));
                None
            }
        }
    }

    #[allow(clippy::unnecessary_cast)]
    fn kind(&mut self, dir: &[u8], fd: BorrowedFd, name: &[u8], stat: &Stat) -> Result<Kind, String> {
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File { object: self.object(dir, name, stat) },
            FileType::Directory => Kind::Directory,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(fd, name, Vec::new()).map_err(|error| error.to_string())?;
                Kind::Symlink { target: target.into_bytes().into() }
            }
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::CharacterDevice => Kind::CharDevice { rdev: stat.st_rdev as u64 },
            FileType::BlockDevice => Kind::BlockDevice { rdev: stat.st_rdev as u64 },
            FileType::Unknown => return Err("its type is unknown".to_owned()),
        })
    }

    #[allow(clippy::unnecessary_cast)]
    fn object(&mut self, dir: &[u8], name: &[u8], stat: &Stat) -> ObjectId {
        let (size, mtime) = (stat.st_size as u64, attributes_of(stat).mtime);
        let path = join(dir, name);
        let made = |generation| ObjectId::of_version(&path, size, mtime.as_ns(), generation);
        let current = || match self.known.generation(&made(0)) {
            0 => made(0),
            generation => made(generation),
        };
        if stat.st_nlink < 2 {
            return current();
        }
        let file = (stat.st_dev as u64, stat.st_ino as u64);
        match self.links.get(&file) {
            // Unless it changed between the two looks: an object has one size.
            Some((object, first_size, first_mtime)) if (*first_size, *first_mtime) == (size, mtime) => *object,
            _ => {
                let object = current();
                self.links.insert(file, (object, size, mtime));
                object
            }
        }
    }

    /// The extended attributes that mean the same on another host: `user.*`, file capabilities, POSIX ACLs. They are
    /// read through /proc, since no system call takes a directory and a name; without /proc there are none.
    fn xattrs(&mut self, fd: BorrowedFd, dir: &[u8], name: &[u8]) -> Vec<Xattr> {
        let path = [format!("/proc/self/fd/{}/", fd.as_fd().as_raw_fd()).as_bytes(), name].concat();
        let Ok(len) = rustix::fs::llistxattr(&*path, &mut self.buffer[..]) else { return Vec::new() };
        if len == 0 {
            return Vec::new();
        }
        let mut names: Vec<Box<[u8]>> = self.buffer[..len]
            .split(|byte| *byte == 0)
            .filter(|name| name.starts_with(b"user.") || PERMISSIONS.contains(name))
            .map(Box::from)
            .collect();
        // What grants or denies goes first: the rest may have to give way.
        names.sort_unstable_by_key(|name| (name.starts_with(b"user."), name.clone()));
        let mut xattrs: Vec<Xattr> = Vec::new();
        let mut total = 0;
        let mut left_out = 0;
        for name in names {
            let Ok(len) = rustix::fs::lgetxattr(&*path, &*name, &mut self.buffer[..]) else { continue };
            if total + name.len() + len > MAX_XATTRS || xattrs.len() == u8::MAX as usize {
                left_out += 1;
                continue;
            }
            total += name.len() + len;
            xattrs.push(Xattr { name, value: self.buffer[..len].into() });
        }
        if left_out > 0 {
            let path = [dir, &b"/"[..], name].concat();
            self.warn(&path, format!("{left_out} of its extended attributes are not shown: more than 8 KiB"));
        }
        xattrs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        xattrs
    }

    fn warn(&mut self, path: &[u8], why: String) {
        self.report.warned += 1;
        if self.report.warnings.len() < MAX_WARNINGS {
            let path = path.strip_prefix(b"/").unwrap_or(path).to_vec();
            self.report.warnings.push(Warning { path, why });
        }
    }
}

/// How long ago a moment was; a time to come is as good as now.
fn age(time: Time) -> Duration {
    let age = i128::from(super::wall_clock_ns()) - time.as_ns();
    Duration::from_nanos(u64::try_from(age.max(0)).unwrap_or(u64::MAX))
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

const PERMISSIONS: [&[u8]; 3] = [b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"];
