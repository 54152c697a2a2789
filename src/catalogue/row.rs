//! A row: one name of the tree with what `lstat` says of it, and the order that rows are in.

use std::cmp::Ordering;
use std::sync::Arc;

use thiserror::Error;

use crate::chunk::{MAX_OBJECT, ObjectId, chunks_of};
use crate::wire::head::Totals;

/// Bytes in the longest name, as every Linux filesystem has it.
pub const MAX_NAME: usize = 255;
/// Bytes in the longest directory path: one less than PATH_MAX, which counts the final NUL.
pub const MAX_DIR: usize = 4095;
/// Bytes in the longest target of a symbolic link, for the same reason.
pub const MAX_TARGET: usize = 4095;
/// Bytes in all names and values of a row's extended attributes: with the longest path and target besides, a row takes
/// 18 KiB and still fits a page.
pub const MAX_XATTRS: usize = 8 * 1024;
/// One byte counts them.
const MAX_XATTR_COUNT: usize = 255;

/// One name of the tree. What it holds was checked when it was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    dir: Arc<[u8]>,
    name: Box<[u8]>,
    kind: Kind,
    attributes: Attributes,
    xattrs: Box<[Xattr]>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A regular file and the object that holds its bytes. Hard links of one file name the same object.
    File {
        object: ObjectId,
    },
    Directory,
    /// Shown with its target as it is; nobody here follows it.
    Symlink {
        target: Box<[u8]>,
    },
    Fifo,
    Socket,
    CharDevice {
        rdev: u64,
    },
    BlockDevice {
        rdev: u64,
    },
}

/// What `lstat` says, unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attributes {
    /// The permission bits, 07777.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    pub size: u64,
    /// Units of 512 bytes that the origin's disk holds: programs skip holes only where this is honest.
    pub blocks: u64,
    pub nlink: u32,
}

/// A moment: seconds since 1970, negative before, and nanoseconds after that second.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time {
    pub sec: i64,
    /// Below a thousand million.
    pub nsec: u32,
}

impl Time {
    pub fn as_ns(self) -> i128 {
        self.sec as i128 * 1_000_000_000 + self.nsec as i128
    }
}

/// An extended attribute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Xattr {
    pub name: Box<[u8]>,
    pub value: Box<[u8]>,
}

/// Why a row was refused.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum NotARow {
    #[error("its directory's path is longer than 4095 bytes or holds an empty, '.' or '..' component")]
    Dir,
    #[error("its name is not 1 to 255 bytes without '/' and NUL, or is '.' or '..'")]
    Name,
    #[error("its symbolic link's target is not 1 to 4095 bytes without NUL")]
    Target,
    #[error("its size is beyond the 128 TiB that an object can have")]
    Size,
    #[error("its attributes are out of bounds")]
    Attributes,
    #[error("its extended attributes are unsorted, unnamed or more than 8 KiB")]
    Xattrs,
}

impl Row {
    /// A row `name` in the directory `dir`, whose path has no leading or trailing '/' and is empty for the root. The
    /// root's own row has neither path nor name. Extended attributes are sorted by name.
    pub fn new(
        dir: impl Into<Arc<[u8]>>,
        name: impl Into<Box<[u8]>>,
        kind: Kind,
        attributes: Attributes,
        xattrs: Vec<Xattr>,
    ) -> Result<Row, NotARow> {
        let (dir, name) = (dir.into(), name.into());
        check_dir(&dir)?;
        let is_root = name.is_empty() && dir.is_empty() && kind == Kind::Directory;
        if !is_root {
            check_name(&name)?;
        }
        check_kind(&kind, attributes.size)?;
        if attributes.mode > 0o7777 || attributes.mtime.nsec >= 1_000_000_000 {
            return Err(NotARow::Attributes);
        }
        check_xattrs(xattrs.iter().map(|xattr| (&xattr.name[..], &xattr.value[..])))?;
        Ok(Row { dir, name, kind, attributes, xattrs: xattrs.into() })
    }

    /// The path of the directory it is in, below the tree's root.
    pub fn dir(&self) -> &[u8] {
        &self.dir
    }

    pub(super) fn shared_dir(&self) -> Arc<[u8]> {
        self.dir.clone()
    }

    /// Empty for the root.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Path below the tree's root; empty for the root.
    pub fn path(&self) -> Vec<u8> {
        join(&self.dir, &self.name)
    }

    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    pub fn attributes(&self) -> &Attributes {
        &self.attributes
    }

    /// Sorted by name.
    pub fn xattrs(&self) -> &[Xattr] {
        &self.xattrs
    }

    /// The device's number; 0 for what is no device.
    pub fn rdev(&self) -> u64 {
        match self.kind {
            Kind::CharDevice { rdev } | Kind::BlockDevice { rdev } => rdev,
            _ => 0,
        }
    }

    /// The object with its bytes, if it is a regular file.
    pub fn object(&self) -> Option<ObjectId> {
        match self.kind {
            Kind::File { object } => Some(object),
            _ => None,
        }
    }

    /// What the row adds to the catalogue. A further hard link counts its chunks again, so that its place on the
    /// number line is its own.
    pub fn totals(&self) -> Totals {
        totals_of(self.object().is_some(), self.attributes.size)
    }

    pub(super) fn key(&self) -> Key<'_> {
        let directory = self.kind == Kind::Directory && !self.name.is_empty();
        Key { dir: &self.dir, directory, name: &self.name }
    }
}

/// A row's place in the order: a tree never has the same name twice in a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key<'a> {
    pub dir: &'a [u8],
    /// False for the root's own row, which comes first.
    pub directory: bool,
    pub name: &'a [u8],
}

impl Ord for Key<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        by_component(self.dir, other.dir)
            .then_with(|| self.directory.cmp(&other.directory))
            .then_with(|| self.name.cmp(other.name))
    }
}

impl PartialOrd for Key<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Paths in the order of their components: no byte of a component sorts before the '/' that ends it.
pub(super) fn by_component(one: &[u8], other: &[u8]) -> Ordering {
    match one.iter().zip(other).find(|(a, b)| a != b) {
        Some((b'/', _)) => Ordering::Less,
        Some((_, b'/')) => Ordering::Greater,
        Some((a, b)) => a.cmp(b),
        None => one.len().cmp(&other.len()),
    }
}

pub(super) fn totals_of(is_file: bool, size: u64) -> Totals {
    if is_file {
        Totals { rows: 1, bytes: size, chunks: chunks_of(size) as u64 }
    } else {
        Totals { rows: 1, bytes: 0, chunks: 0 }
    }
}

pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

pub(super) fn check_dir(dir: &[u8]) -> Result<(), NotARow> {
    let fits = dir.len() <= MAX_DIR
        && (dir.is_empty() || dir.split(|byte| *byte == b'/').all(|component| check_name(component).is_ok()));
    if fits { Ok(()) } else { Err(NotARow::Dir) }
}

pub(super) fn check_name(name: &[u8]) -> Result<(), NotARow> {
    let fits = (1..=MAX_NAME).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
    if fits { Ok(()) } else { Err(NotARow::Name) }
}

fn check_kind(kind: &Kind, size: u64) -> Result<(), NotARow> {
    match kind {
        Kind::File { .. } if size > MAX_OBJECT => Err(NotARow::Size),
        Kind::Symlink { target } => check_target(target),
        _ => Ok(()),
    }
}

pub(super) fn check_target(target: &[u8]) -> Result<(), NotARow> {
    let fits = (1..=MAX_TARGET).contains(&target.len()) && !target.contains(&0);
    if fits { Ok(()) } else { Err(NotARow::Target) }
}

pub(super) fn check_xattrs<'a>(xattrs: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Result<(), NotARow> {
    let (mut count, mut total, mut last) = (0, 0, &b""[..]);
    for (name, value) in xattrs {
        count += 1;
        total += name.len() + value.len();
        // The first name is above the empty one, so none is empty.
        if name <= last || name.len() > MAX_NAME || name.contains(&0) || total > MAX_XATTRS || count > MAX_XATTR_COUNT {
            return Err(NotARow::Xattrs);
        }
        last = name;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(dir: &str, name: &[u8], kind: Kind) -> Result<Row, NotARow> {
        Row::new(dir.as_bytes(), name, kind, Attributes::default(), Vec::new())
    }

    #[test]
    fn a_directory_comes_before_what_is_in_it_and_its_files_before_its_directories() {
        let dir = |dir: &str, name: &str| row(dir, name.as_bytes(), Kind::Directory).unwrap();
        let file = |dir: &str, name: &str| row(dir, name.as_bytes(), Kind::Fifo).unwrap();
        let ordered = [
            dir("", ""),
            file("", "z"),
            dir("", "a"),
            dir("", "a!"),
            file("a", "f"),
            dir("a", "b"),
            file("a/b", "g"),
            file("a!", "h"),
        ];
        for pair in ordered.windows(2) {
            assert!(pair[0].key() < pair[1].key(), "{:?} {:?}", pair[0].path(), pair[1].path());
        }
    }

    proptest::proptest! {
        #[test]
        fn paths_sort_as_their_components_do(one in "[ab!/.]{0,8}", other in "[ab!/.]{0,8}") {
            let components = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
            proptest::prop_assert_eq!(
                by_component(one.as_bytes(), other.as_bytes()),
                components(&one).cmp(&components(&other))
            );
        }
    }

    #[test]
    fn what_no_tree_can_have_is_refused() {
        let long = [b'x'; 256];
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &long] {
            assert_eq!(row("d", name, Kind::Fifo), Err(NotARow::Name));
        }
        assert_eq!(row("", b"", Kind::Fifo), Err(NotARow::Name), "only a directory is the root");
        assert!(row("", b"\xff\xfe \n", Kind::Fifo).is_ok(), "a name need not be text");
        assert!(row("d", &long[..255], Kind::Fifo).is_ok());
        for dir in ["/", "a/", "/a", "a//b", "a/../b", "."] {
            assert_eq!(row(dir, b"f", Kind::Fifo), Err(NotARow::Dir), "{dir}");
        }
        for target in [&b""[..], b"a\0", &[b'x'; 4096]] {
            assert_eq!(row("", b"l", Kind::Symlink { target: target.into() }), Err(NotARow::Target));
        }
        let huge = Attributes { size: MAX_OBJECT + 1, ..Attributes::default() };
        let file = Kind::File { object: ObjectId([0; 16]) };
        assert_eq!(Row::new(*b"", *b"f", file, huge, Vec::new()), Err(NotARow::Size));
        assert!(Row::new(*b"", *b"d", Kind::Directory, huge, Vec::new()).is_ok());
    }

    #[test]
    fn extended_attributes_are_bounded_and_sorted() {
        let xattr = |name: &[u8], len: usize| Xattr { name: name.into(), value: vec![0; len].into() };
        let with = |xattrs| Row::new(*b"", *b"f", Kind::Fifo, Attributes::default(), xattrs);
        assert!(with(vec![xattr(b"user.a", 8 * 1024 - 6)]).is_ok());
        assert_eq!(with(vec![xattr(b"user.a", 8 * 1024 - 5)]), Err(NotARow::Xattrs));
        assert_eq!(with(vec![xattr(b"b", 1), xattr(b"a", 1)]), Err(NotARow::Xattrs));
        assert_eq!(with(vec![xattr(b"a", 1), xattr(b"a", 1)]), Err(NotARow::Xattrs));
        assert_eq!(with(vec![xattr(b"", 1)]), Err(NotARow::Xattrs));
    }

    #[test]
    fn a_moment_before_1970_counts_backwards() {
        assert_eq!(Time { sec: -1, nsec: 999_999_999 }.as_ns(), -1);
    }
}
