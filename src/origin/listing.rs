//! The walk: a directory tree becomes rows, in catalogue order, by `lstat` alone.
//!
//! It reads no file's content and follows no link. What it cannot list it shows as far as it can and says so: one
//! unreadable directory is no reason not to serve the rest. The files of a directory come before its subdirectories, so
//! rows are made in the order the catalogue wants, and the first path of a hard-linked file is the first one met.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Stat};
use rustix::io::Errno;

use super::root::{Root, attributes_of};
use crate::catalogue::{Builder, Built, Kind, MAX_DIR, MAX_XATTRS, NotATree, Row, Time, Xattr};
use crate::chunk::ObjectId;

/// Warnings kept with their text; the rest are only counted.
const MAX_WARNINGS: usize = 100;
/// Bytes in the longest list of attribute names and the longest value that Linux has.
const XATTR_LIMIT: usize = 64 * 1024;

/// A tree as it was when it was walked.
pub(super) struct Listing {
    pub built: Built,
    /// Rank of the first row that has the object.
    pub objects: HashMap<ObjectId, u64>,
    pub report: Report,
}

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

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    pub path: Vec<u8>,
    pub why: String,
}

/// Walks the tree. `generation` says which generation of a version is current, given the id of its generation 0.
pub(super) fn list(root: &Root, generation: impl Fn(&ObjectId) -> u64) -> Result<Listing, NotATree> {
    let mut walk = Walk {
        builder: Builder::default(),
        rows: 0,
        objects: HashMap::new(),
        links: HashMap::new(),
        report: Report::default(),
        generation,
        buffer: vec![0; XATTR_LIMIT],
    };
    // Directories still to be listed, the next one last.
    let mut ahead: Vec<Arc<[u8]>> = vec![Arc::default()];
    while let Some(path) = ahead.pop() {
        let listed = root.directory(&path).and_then(|fd| {
            let stat = if path.is_empty() { root.stat()? } else { rustix::fs::fstat(&fd)? };
            Ok((Dir::new(fd)?, stat))
        });
        match listed {
            Ok((mut dir, stat)) => {
                if path.is_empty() {
                    walk.root_row(dir.fd().ok(), &stat)?;
                }
                walk.directory(&path, &mut dir, &stat, &mut ahead)?;
            }
            Err(error) => {
                if path.is_empty() {
                    // Shown empty, like any other directory that cannot be listed.
                    let stat = root.stat().map_err(|_| NotATree::NoRoot)?;
                    walk.root_row(None, &stat)?;
                }
                walk.warn(&path, format!("it is shown empty: {error}"));
            }
        }
    }
    Ok(Listing { built: walk.builder.finish()?, objects: walk.objects, report: walk.report })
}

struct Walk<G> {
    builder: Builder,
    rows: u64,
    objects: HashMap<ObjectId, u64>,
    /// Files with more than one link, by device and inode: the object of their first path, and what it was made of.
    links: HashMap<(u64, u64), (ObjectId, u64, Time)>,
    report: Report,
    generation: G,
    buffer: Vec<u8>,
}

impl<G: Fn(&ObjectId) -> u64> Walk<G> {
    fn root_row(&mut self, fd: Option<BorrowedFd>, stat: &Stat) -> Result<(), NotATree> {
        let xattrs = fd.map(|fd| self.xattrs(fd, b"", b".")).unwrap_or_default();
        let row = Row::new(*b"", *b"", Kind::Directory, attributes_of(stat), xattrs);
        match row {
            Ok(row) => self.push(&row),
            Err(_) => Err(NotATree::NoRoot),
        }
    }

    /// Makes the rows of one directory, and adds its subdirectories to what lies ahead.
    fn directory(
        &mut self,
        path: &Arc<[u8]>,
        dir: &mut Dir,
        stat: &Stat,
        ahead: &mut Vec<Arc<[u8]>>,
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
        for row in files.iter().chain(&directories) {
            self.push(row)?;
        }
        for row in directories.iter().rev() {
            let path = row.path();
            if path.len() <= MAX_DIR {
                ahead.push(path.into());
            } else {
                self.warn(&path, "it is shown empty: its path is longer than 4095 bytes".to_owned());
            }
        }
        Ok(())
    }

    fn push(&mut self, row: &Row) -> Result<(), NotATree> {
        self.builder.push(row)?;
        if let Some(object) = row.object() {
            self.objects.entry(object).or_insert(self.rows);
        }
        self.rows += 1;
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
        let path = if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() };
        let made = |generation| ObjectId::of_version(&path, size, mtime.as_ns(), generation);
        let current = || match (self.generation)(&made(0)) {
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

const PERMISSIONS: [&[u8]; 3] = [b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"];
