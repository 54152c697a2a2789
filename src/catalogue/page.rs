//! A page: rows, or the pages below and what they add up to.
//!
//! ```text
//! offset   bytes   field
//! 0        1       version, 1
//! 1        1       level: 0 for a leaf, which holds rows; else one more than that of the pages below
//! 2                groups up to the end, at least one, their directories strictly ascending
//!
//! group
//! 0        2 + d   path of the directory, 0 to 4095 bytes
//! 2 + d    2       items that follow, at least one, strictly ascending
//!
//! item of a leaf: a row
//! 0        1       kind: 0 file, 1 symbolic link, 2 fifo, 3 socket, 4 character device, 5 block device, 6 directory
//! 1        1 + n   name, 1 to 255 bytes; none for the root's own row
//! 2 + n    2       permission bits
//! 4 + n    4       owner
//! 8 + n    4       group
//! 12 + n   8       modification time, seconds since 1970 (two's complement)
//! 20 + n   4       and nanoseconds
//! 24 + n   8       size
//! 32 + n   8       units of 512 bytes allocated
//! 40 + n   4       links
//! 44 + n   k       file: object, 16; link: 2 + its target; device: number, 8; else nothing
//! .. + k   1       extended attributes, ascending; for each 1 + name, 2 + value
//!
//! item of an upper page: a page below
//! 0        1       1 if its first row is a directory's (0 for the root's own), else 0
//! 1        1 + n   name of its first row
//! 2 + n    32      its hash
//! 34 + n   8       rows in it and below it
//! 42 + n   8       bytes of their files
//! 50 + n   8       chunks of their files
//! ```
//!
//! There is one way to write a set of rows, so a page that parses is written again as the same bytes.

use std::sync::Arc;

use bytes::Bytes;

use super::row::{self, Attributes, Key, Kind, Row, Time, Xattr};
use crate::chunk::{BLOCK, ObjectId};
use crate::wire::codec::{Malformed, Reader, Writer};
use crate::wire::head::{PageHash, Totals};

/// Bytes in the largest page: one block.
pub const MAX_PAGE: usize = BLOCK as usize;
/// Highest level. Each level has at most half the pages of the one below, so no memory holds a higher tree.
pub(super) const MAX_LEVEL: u8 = 31;
const VERSION: u8 = 1;
const CHECKED: &str = "items are read once by Page::parse, which refuses what this would trip over";

/// A parsed page. It keeps the bytes it came from and little more.
#[derive(Debug)]
pub struct Page {
    bytes: Bytes,
    level: u8,
    totals: Totals,
    dirs: Box<[Span]>,
    items: Box<[Item]>,
}

/// A directory's path within the page's bytes. A page is shorter than 64 KiB.
#[derive(Clone, Copy, Debug)]
struct Span {
    at: u16,
    len: u16,
}

/// Where an item begins, and which group it is in.
#[derive(Clone, Copy, Debug)]
struct Item {
    at: u16,
    group: u16,
}

/// A page below, as its parent tells of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Child<'a> {
    pub key: Key<'a>,
    pub hash: PageHash,
    pub totals: Totals,
}

impl Page {
    /// Refuses whatever is not a page that `build` could have made of some tree's rows.
    pub fn parse(bytes: impl Into<Bytes>) -> Result<Page, Malformed> {
        let bytes = bytes.into();
        if bytes.len() > MAX_PAGE {
            return Err(Malformed::Bound("page length"));
        }
        let mut from = Reader::new(&bytes);
        let version = from.u8()?;
        if version != VERSION {
            return Err(Malformed::Version(version));
        }
        let level = from.u8()?;
        if level > MAX_LEVEL {
            return Err(Malformed::Bound("page level"));
        }
        let (mut dirs, mut items) = (Vec::new(), Vec::new());
        let mut totals = Totals::default();
        let mut last: Option<Key> = None;
        while from.remaining() > 0 || items.is_empty() {
            let dir = from.string(row::MAX_DIR, "directory path")?;
            row::check_dir(dir).map_err(|_| Malformed::Bound("directory path"))?;
            if last.is_some_and(|last| row::by_component(last.dir, dir).is_ge()) {
                return Err(Malformed::Bound("order of directories"));
            }
            let at = bytes.len() - from.remaining() - dir.len();
            let group = dirs.len() as u16;
            dirs.push(Span { at: at as u16, len: dir.len() as u16 });
            let count = from.u16()?;
            if count == 0 {
                return Err(Malformed::Bound("items of a directory"));
            }
            for _ in 0..count {
                items.push(Item { at: (bytes.len() - from.remaining()) as u16, group });
                let (key, more) = if level == 0 {
                    let row = RawRow::read(&mut from, dir)?;
                    (row.key(), row.totals())
                } else {
                    let child = read_child(&mut from, dir)?;
                    (child.key, child.totals)
                };
                if last.is_some_and(|last| last >= key) {
                    return Err(Malformed::Bound("order of items"));
                }
                last = Some(key);
                totals = sum(totals, more).ok_or(Malformed::Bound("counts"))?;
            }
        }
        Ok(Page { level, totals, dirs: dirs.into(), items: items.into(), bytes })
    }

    /// The bytes it was parsed from, which its hash names.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Bytes of memory that it takes.
    pub fn cost(&self) -> usize {
        size_of::<Page>() + self.bytes.len() + size_of_val(&*self.items) + size_of_val(&*self.dirs)
    }

    /// 0 for a leaf.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// What is in it and below it.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The pages right below, in order; none for a leaf. Who wants the whole catalogue fetches these, and theirs.
    pub fn children(&self) -> impl Iterator<Item = PageHash> {
        let below = if self.level == 0 { 0 } else { self.len() };
        (0..below).map(|index| self.child(index).hash)
    }

    /// The objects that a leaf's rows name, in their order; none for an upper page.
    pub fn objects(&self) -> impl Iterator<Item = ObjectId> {
        let rows = if self.level == 0 { self.len() } else { 0 };
        (0..rows).map(|index| self.raw(index)).filter(|row| row.kind == FILE).map(|row| row.object)
    }

    /// A leaf's first row that names an object.
    pub fn row_of(&self, object: &ObjectId) -> Option<Row> {
        let rows = if self.level == 0 { self.len() } else { 0 };
        let names =
            |index: &usize| matches!(self.raw(*index), RawRow { kind: FILE, object: named, .. } if named == *object);
        (0..rows).find(names).map(|index| self.row(index, None))
    }

    /// Rows or pages right in it; at least one.
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn key(&self, index: usize) -> Key<'_> {
        let item = self.items[index];
        read_key(&mut Reader::new(&self.bytes[item.at as usize..]), self.dir(item), self.level).expect(CHECKED)
    }

    /// How many items lie before the first that is not below `key`.
    pub(super) fn lower_bound(&self, key: &Key) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = (low + high) / 2;
            if self.key(middle) < *key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// What item `index` adds, a row or a page below.
    pub(super) fn item_totals(&self, index: usize) -> Totals {
        let item = self.items[index];
        read_totals(&mut Reader::new(&self.bytes[item.at as usize..]), self.level).expect(CHECKED)
    }

    /// A page below, of an upper page.
    pub(super) fn child(&self, index: usize) -> Child<'_> {
        let item = self.items[index];
        read_child(&mut Reader::new(&self.bytes[item.at as usize..]), self.dir(item)).expect(CHECKED)
    }

    /// A row of a leaf. Rows of one directory share its path if the last one's is handed in.
    pub(super) fn row(&self, index: usize, dir: Option<Arc<[u8]>>) -> Row {
        let raw = self.raw(index);
        let dir = dir.filter(|dir| **dir == *raw.dir).unwrap_or_else(|| raw.dir.into());
        raw.to_row(dir)
    }

    fn raw(&self, index: usize) -> RawRow<'_> {
        let item = self.items[index];
        RawRow::read(&mut Reader::new(&self.bytes[item.at as usize..]), self.dir(item)).expect(CHECKED)
    }

    fn dir(&self, item: Item) -> &[u8] {
        let span = self.dirs[item.group as usize];
        &self.bytes[span.at as usize..][..span.len as usize]
    }
}

/// Both added up, unless a count would overflow.
pub(super) fn sum(one: Totals, other: Totals) -> Option<Totals> {
    Some(Totals {
        rows: one.rows.checked_add(other.rows)?,
        bytes: one.bytes.checked_add(other.bytes)?,
        chunks: one.chunks.checked_add(other.chunks)?,
    })
}

/// A page that is being written, item by item.
#[derive(Default)]
pub(super) struct Draft {
    bytes: Vec<u8>,
    /// The group being written: where its directory's path lies and how many items it has.
    dir: std::ops::Range<usize>,
    group_items: u16,
    items: usize,
}

impl Draft {
    pub fn new(level: u8) -> Draft {
        Draft { bytes: vec![VERSION, level], ..Draft::default() }
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn items(&self) -> usize {
        self.items
    }

    /// How long the page would be with this item too.
    pub fn len_with(&self, dir: &[u8], item: &[u8]) -> usize {
        let group = if self.continues(dir) { 0 } else { 4 + dir.len() };
        self.bytes.len() + group + item.len()
    }

    /// Adds an item, which the caller keeps in order and within the page's length.
    pub fn push(&mut self, dir: &[u8], item: &[u8]) {
        if !self.continues(dir) {
            let len = u16::try_from(dir.len()).expect("a row's path is bounded where it is made");
            self.bytes.extend_from_slice(&len.to_le_bytes());
            self.dir = self.bytes.len()..self.bytes.len() + dir.len();
            self.bytes.extend_from_slice(dir);
            self.bytes.extend_from_slice(&[0; 2]);
            self.group_items = 0;
        }
        self.group_items += 1;
        self.items += 1;
        self.bytes[self.dir.end..][..2].copy_from_slice(&self.group_items.to_le_bytes());
        self.bytes.extend_from_slice(item);
    }

    pub fn finish(self) -> Bytes {
        self.bytes.into()
    }

    fn continues(&self, dir: &[u8]) -> bool {
        self.group_items > 0 && self.bytes[self.dir.clone()] == *dir
    }
}

/// A row as an item of a leaf.
pub(super) fn write_row(row: &Row) -> Vec<u8> {
    let attributes = row.attributes();
    let mut out = Writer::new();
    out.u8(kind_byte(row.kind()));
    write_name(&mut out, row.name());
    out.u16(attributes.mode)
        .u32(attributes.uid)
        .u32(attributes.gid)
        .u64(attributes.mtime.sec as u64)
        .u32(attributes.mtime.nsec)
        .u64(attributes.size)
        .u64(attributes.blocks)
        .u32(attributes.nlink);
    match row.kind() {
        Kind::File { object } => out.bytes(&object.0),
        Kind::Symlink { target } => out.string(target),
        Kind::CharDevice { rdev } | Kind::BlockDevice { rdev } => out.u64(*rdev),
        Kind::Directory | Kind::Fifo | Kind::Socket => &mut out,
    };
    out.u8(row.xattrs().len() as u8);
    for xattr in row.xattrs() {
        write_name(&mut out, &xattr.name);
        out.string(&xattr.value);
    }
    out.finish()
}

/// A page below as an item of an upper page.
pub(super) fn write_child(child: &Child) -> Vec<u8> {
    let mut out = Writer::new();
    out.u8(child.key.directory as u8);
    write_name(&mut out, child.key.name);
    out.bytes(&child.hash.0).u64(child.totals.rows).u64(child.totals.bytes).u64(child.totals.chunks);
    out.finish()
}

fn write_name(out: &mut Writer, name: &[u8]) {
    out.u8(name.len() as u8).bytes(name);
}

fn kind_byte(kind: &Kind) -> u8 {
    match kind {
        Kind::File { .. } => FILE,
        Kind::Symlink { .. } => 1,
        Kind::Fifo => 2,
        Kind::Socket => 3,
        Kind::CharDevice { .. } => 4,
        Kind::BlockDevice { .. } => 5,
        Kind::Directory => DIRECTORY,
    }
}

const FILE: u8 = 0;
const DIRECTORY: u8 = 6;

/// A row that was checked but not copied.
struct RawRow<'a> {
    dir: &'a [u8],
    name: &'a [u8],
    kind: u8,
    attributes: Attributes,
    object: ObjectId,
    target: &'a [u8],
    rdev: u64,
    xattr_count: u8,
    xattrs: Reader<'a>,
}

impl<'a> RawRow<'a> {
    fn read(from: &mut Reader<'a>, dir: &'a [u8]) -> Result<RawRow<'a>, Malformed> {
        let kind = from.u8()?;
        let name = read_name(from)?;
        if !(name.is_empty() && dir.is_empty() && kind == DIRECTORY) {
            row::check_name(name).map_err(|_| Malformed::Bound("name"))?;
        }
        let attributes = Attributes {
            mode: from.u16()?,
            uid: from.u32()?,
            gid: from.u32()?,
            mtime: Time { sec: from.u64()? as i64, nsec: from.u32()? },
            size: from.u64()?,
            blocks: from.u64()?,
            nlink: from.u32()?,
        };
        if attributes.mode > 0o7777 {
            return Err(Malformed::Bound("permission bits"));
        }
        if attributes.mtime.nsec >= 1_000_000_000 {
            return Err(Malformed::Bound("nanoseconds"));
        }
        let (mut object, mut target, mut rdev) = (ObjectId([0; 16]), &b""[..], 0);
        match kind {
            0 if attributes.size > crate::chunk::MAX_OBJECT => return Err(Malformed::Bound("file size")),
            0 => object = ObjectId(from.array()?),
            1 => {
                target = from.string(row::MAX_TARGET, "link target")?;
                row::check_target(target).map_err(|_| Malformed::Bound("link target"))?;
            }
            4 | 5 => rdev = from.u64()?,
            2 | 3 | DIRECTORY => {}
            _ => return Err(Malformed::Kind(kind)),
        }
        let xattr_count = from.u8()?;
        let xattrs = from.clone();
        let mut pairs = Vec::with_capacity(xattr_count as usize);
        for _ in 0..xattr_count {
            pairs.push(read_xattr(from)?);
        }
        row::check_xattrs(pairs.into_iter()).map_err(|_| Malformed::Bound("extended attributes"))?;
        Ok(RawRow { dir, name, kind, attributes, object, target, rdev, xattr_count, xattrs })
    }

    fn key(&self) -> Key<'a> {
        Key { dir: self.dir, directory: self.kind == DIRECTORY && !self.name.is_empty(), name: self.name }
    }

    fn totals(&self) -> Totals {
        row::totals_of(self.kind == 0, self.attributes.size)
    }

    fn to_row(&self, dir: Arc<[u8]>) -> Row {
        let kind = match self.kind {
            0 => Kind::File { object: self.object },
            1 => Kind::Symlink { target: self.target.into() },
            2 => Kind::Fifo,
            3 => Kind::Socket,
            4 => Kind::CharDevice { rdev: self.rdev },
            5 => Kind::BlockDevice { rdev: self.rdev },
            _ => Kind::Directory,
        };
        let mut from = self.xattrs.clone();
        let xattrs = (0..self.xattr_count).map(|_| {
            let (name, value) = read_xattr(&mut from).expect(CHECKED);
            Xattr { name: name.into(), value: value.into() }
        });
        Row::new(dir, self.name, kind, self.attributes, xattrs.collect()).expect(CHECKED)
    }
}

fn read_xattr<'a>(from: &mut Reader<'a>) -> Result<(&'a [u8], &'a [u8]), Malformed> {
    let name = read_name(from)?;
    Ok((name, from.string(row::MAX_XATTRS, "extended attribute")?))
}

fn read_key<'a>(from: &mut Reader<'a>, dir: &'a [u8], level: u8) -> Result<Key<'a>, Malformed> {
    let kind = from.u8()?;
    let name = read_name(from)?;
    let directory = if level == 0 { kind == DIRECTORY && !name.is_empty() } else { kind == 1 };
    Ok(Key { dir, directory, name })
}

/// What an item adds, without a look at the rest of it: look-ups add many of these up.
fn read_totals(from: &mut Reader, level: u8) -> Result<Totals, Malformed> {
    let kind = from.u8()?;
    let name = from.u8()?;
    from.bytes(name as usize + if level == 0 { 22 } else { 32 })?;
    if level == 0 {
        return Ok(row::totals_of(kind == 0, from.u64()?));
    }
    Ok(Totals { rows: from.u64()?, bytes: from.u64()?, chunks: from.u64()? })
}

fn read_child<'a>(from: &mut Reader<'a>, dir: &'a [u8]) -> Result<Child<'a>, Malformed> {
    let directory = match from.u8()? {
        0 => false,
        1 => true,
        kind => return Err(Malformed::Kind(kind)),
    };
    let name = read_name(from)?;
    if !(name.is_empty() && dir.is_empty() && !directory) {
        row::check_name(name).map_err(|_| Malformed::Bound("name"))?;
    }
    let hash = PageHash(from.array()?);
    let totals = Totals { rows: from.u64()?, bytes: from.u64()?, chunks: from.u64()? };
    if totals.rows == 0 {
        return Err(Malformed::Bound("counts"));
    }
    Ok(Child { key: Key { dir, directory, name }, hash, totals })
}

fn read_name<'a>(from: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let len = from.u8()?;
    from.bytes(len as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Builder;

    fn small() -> Bytes {
        let mut builder = Builder::default();
        let attributes = Attributes { mode: 0o755, nlink: 2, ..Attributes::default() };
        builder.push(&Row::new(*b"", *b"", Kind::Directory, attributes, Vec::new()).unwrap()).unwrap();
        let attributes =
            Attributes { mode: 0o4644, uid: 1, gid: 2, mtime: Time { sec: -1, nsec: 5 }, size: 3, blocks: 8, nlink: 1 };
        let xattr = Xattr { name: (*b"user.k").into(), value: (*b"v").into() };
        let kind = Kind::File { object: ObjectId([0xaa; 16]) };
        builder.push(&Row::new(*b"", *b"f", kind, attributes, vec![xattr]).unwrap()).unwrap();
        let link = Kind::Symlink { target: (*b"/x").into() };
        builder.push(&Row::new(*b"d", *b"\xff", link, Attributes::default(), Vec::new()).unwrap()).unwrap();
        let built = builder.finish().unwrap();
        assert_eq!(built.root_level, 0);
        built.pages[&built.root].clone()
    }

    #[test]
    fn a_page_is_written_as_drawn() {
        let hex: String = small().iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = [
            "0100",
            "00000200", // the root directory: no path, two rows
            "0600",
            "ed010000000000000000",
            "000000000000000000000000",
            "00000000000000000000000000000000",
            "02000000",
            "00",
            "000166",
            "a4090100000002000000",
            "ffffffffffffffff05000000",
            "03000000000000000800000000000000",
            "01000000",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "0106757365722e6b010076",
            "0100640100", // the directory d: one row
            "0101ff",
            "00000000000000000000",
            "000000000000000000000000",
            "00000000000000000000000000000000",
            "00000000",
            "02002f78",
            "00",
        ];
        assert_eq!(hex, expected.concat());
    }

    #[test]
    fn a_page_that_is_cut_or_continued_is_refused() {
        let bytes = small();
        for len in 0..bytes.len() {
            // The root directory's group alone is a page too.
            let group_end = bytes.len() - 55;
            assert_eq!(Page::parse(bytes.slice(..len)).is_ok(), len == group_end, "{len} bytes");
        }
        assert!(Page::parse([&bytes[..], b"\0"].concat()).is_err());
        assert_eq!(Page::parse(vec![1; MAX_PAGE + 1]).unwrap_err(), Malformed::Bound("page length"));
    }

    #[test]
    fn a_page_out_of_order_is_refused() {
        let row = |dir: &str, name: &str| {
            write_row(
                &Row::new(dir.as_bytes(), name.as_bytes(), Kind::Fifo, Attributes::default(), Vec::new()).unwrap(),
            )
        };
        let page = |rows: &[(&str, &str)]| {
            let mut draft = Draft::new(0);
            for (dir, name) in rows {
                draft.push(dir.as_bytes(), &row(dir, name));
            }
            Page::parse(draft.finish()).map(|page| page.len())
        };
        assert_eq!(page(&[("", "a"), ("", "b"), ("d", "a")]), Ok(3));
        assert_eq!(page(&[("", "b"), ("", "a")]), Err(Malformed::Bound("order of items")));
        assert_eq!(page(&[("", "a"), ("", "a")]), Err(Malformed::Bound("order of items")));
        assert_eq!(page(&[("d", "a"), ("", "b")]), Err(Malformed::Bound("order of directories")));
        assert_eq!(page(&[]), Err(Malformed::Short));
    }

    #[test]
    fn counts_that_overflow_are_refused() {
        let child = |name: &'static [u8], rows| Child {
            key: Key { dir: b"", directory: false, name },
            hash: PageHash([0; 32]),
            totals: Totals { rows, bytes: 0, chunks: 0 },
        };
        let page = |children: &[Child]| {
            let mut draft = Draft::new(1);
            for child in children {
                draft.push(child.key.dir, &write_child(child));
            }
            Page::parse(draft.finish()).map(|page| page.totals().rows)
        };
        assert_eq!(page(&[child(b"a", 1), child(b"b", u64::MAX - 1)]), Ok(u64::MAX));
        assert_eq!(page(&[child(b"a", 1), child(b"b", u64::MAX)]), Err(Malformed::Bound("counts")));
        assert_eq!(page(&[child(b"a", 0)]), Err(Malformed::Bound("counts")));
    }
}
