//! Rows become pages.
//!
//! A page ends after a row whose name's hash says so, once it has a least size, and before a row that would make it too
//! large; upper pages end alike. So one row more or less moves the cuts around it and no others.

use std::collections::HashMap;

use bytes::Bytes;
use thiserror::Error;

use super::page::{Child, Draft, MAX_PAGE, sum, write_child, write_row};
use super::revise::Leaf;
use super::row::{Key, Row};
use crate::wire::head::{PageHash, Totals};

/// A whole catalogue.
pub struct Built {
    pub root: PageHash,
    /// Level of the root page, 0 for a leaf.
    pub root_level: u8,
    pub totals: Totals,
    pub pages: HashMap<PageHash, Bytes>,
}

/// Why rows are no tree.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum NotATree {
    #[error("the first row is not the root's own")]
    NoRoot,
    #[error("{} is not after the row before it", .0.escape_ascii())]
    Order(Vec<u8>),
    #[error("sizes of all files add up to more than 64 bits hold")]
    Overflow,
}

/// Sorts rows and builds the catalogue of them. Who has them in order already saves memory with a `Builder`.
pub fn build(rows: impl IntoIterator<Item = Row>) -> Result<Built, NotATree> {
    let mut rows: Vec<Row> = rows.into_iter().collect();
    rows.sort_unstable_by(|a, b| a.key().cmp(&b.key()));
    let mut builder = Builder::default();
    for row in &rows {
        builder.push(row)?;
    }
    builder.finish()
}

/// Builds a catalogue of rows that come in its order; it holds only pages, not rows.
#[derive(Default)]
pub struct Builder {
    cuts: Cuts,
    /// The page being written on each level, leaves first.
    open: Vec<Open>,
    last: Option<OwnKey>,
    totals: Totals,
    pages: HashMap<PageHash, Bytes>,
}

/// Where pages end.
#[derive(Clone, Copy)]
struct Cuts {
    /// Bytes below which a page does not end by itself. Two items with the longest names have more, so that each level
    /// has fewer pages than the one below.
    least: usize,
    /// One item in so many ends its page.
    one_in: u32,
    greatest: usize,
}

impl Default for Cuts {
    /// A row takes about 100 bytes: pages of some 14 KiB or 140 rows, of which one in a hundred grows to a block.
    fn default() -> Cuts {
        Cuts { least: 8 * 1024, one_in: 64, greatest: MAX_PAGE }
    }
}

struct Open {
    draft: Draft,
    /// Of the first row in it or below it.
    first: OwnKey,
    totals: Totals,
    /// The last page put in, for an upper page.
    child: Option<PageHash>,
}

#[derive(Clone)]
pub(super) struct OwnKey {
    dir: Box<[u8]>,
    directory: bool,
    name: Box<[u8]>,
}

impl OwnKey {
    pub fn of(key: Key) -> OwnKey {
        OwnKey { dir: key.dir.into(), directory: key.directory, name: key.name.into() }
    }

    pub fn key(&self) -> Key<'_> {
        Key { dir: &self.dir, directory: self.directory, name: &self.name }
    }
}

impl Builder {
    /// Adds the next row; the root's own is the first.
    pub fn push(&mut self, row: &Row) -> Result<(), NotATree> {
        let key = row.key();
        match &self.last {
            None if !key.name.is_empty() => return Err(NotATree::NoRoot),
            Some(last) if last.key() >= key => return Err(NotATree::Order(row.path())),
            _ => {}
        }
        let totals = row.totals();
        self.totals = sum(self.totals, totals).ok_or(NotATree::Overflow)?;
        self.append(0, key, &write_row(row), totals, None);
        self.last = Some(OwnKey::of(key));
        Ok(())
    }

    /// Whether the next row begins a page.
    pub(super) fn is_between_pages(&self) -> bool {
        self.open.first().is_none_or(|leaf| leaf.draft.items() == 0)
    }

    /// Adds a leaf of another catalogue whose rows come next, and would be cut as they are there. Between pages only.
    pub(super) fn take_over(&mut self, leaf: &Leaf, bytes: Bytes) -> Result<(), NotATree> {
        if self.open.is_empty() {
            self.open.push(Open::new(0));
        }
        self.totals = sum(self.totals, leaf.totals).ok_or(NotATree::Overflow)?;
        self.pages.insert(leaf.hash, bytes);
        self.last = Some(leaf.first.clone());
        let child = Child { key: leaf.first.key(), hash: leaf.hash, totals: leaf.totals };
        self.append(1, child.key, &write_child(&child), child.totals, Some(leaf.hash));
        Ok(())
    }

    /// Writes the last pages, up to the root.
    pub fn finish(mut self) -> Result<Built, NotATree> {
        if self.last.is_none() {
            return Err(NotATree::NoRoot);
        }
        let mut level = 0;
        let root = loop {
            let is_top = level + 1 == self.open.len();
            let open = &self.open[level];
            match open.child {
                // A page with one page below tells nothing: that one is the root.
                Some(child) if is_top && open.draft.items() == 1 => {
                    level -= 1;
                    break child;
                }
                _ if is_top => {
                    let draft = std::mem::replace(&mut self.open[level].draft, Draft::new(0));
                    break self.keep(draft);
                }
                _ if open.draft.items() > 0 => self.flush(level),
                _ => {}
            }
            level += 1;
        };
        Ok(Built { root, root_level: level as u8, totals: self.totals, pages: self.pages })
    }

    fn append(&mut self, level: usize, key: Key, item: &[u8], totals: Totals, child: Option<PageHash>) {
        if self.open.get(level).is_some_and(|open| open.draft.len_with(key.dir, item) > self.cuts.greatest) {
            self.flush(level);
        }
        if level == self.open.len() {
            self.open.push(Open::new(level));
        }
        let open = &mut self.open[level];
        if open.draft.items() == 0 {
            open.first = OwnKey::of(key);
        }
        open.draft.push(key.dir, item);
        open.totals = sum(open.totals, totals).expect("part of the sum that was checked as the row came");
        open.child = child;
        if open.draft.len() >= self.cuts.least && ends_page(level, key, self.cuts.one_in) {
            self.flush(level);
        }
    }

    /// Ends the page being written on a level and enters it one level up.
    fn flush(&mut self, level: usize) {
        let open = std::mem::replace(&mut self.open[level], Open::new(level));
        let hash = self.keep(open.draft);
        let child = Child { key: open.first.key(), hash, totals: open.totals };
        self.append(level + 1, child.key, &write_child(&child), child.totals, Some(hash));
    }

    fn keep(&mut self, draft: Draft) -> PageHash {
        let bytes = draft.finish();
        let hash = PageHash::of(&bytes);
        self.pages.insert(hash, bytes);
        hash
    }
}

impl Open {
    fn new(level: usize) -> Open {
        let level = u8::try_from(level).expect("each level has at most half the pages of the one below");
        let first = OwnKey { dir: Box::default(), directory: false, name: Box::default() };
        Open { draft: Draft::new(level), first, totals: Totals::default(), child: None }
    }
}

/// Whether a page ends after this row or page. Attributes and contents have no say: they change more often than names.
fn ends_page(level: usize, key: Key, one_in: u32) -> bool {
    let mut hash = blake3::Hasher::new();
    hash.update(&[level as u8]).update(key.dir).update(b"\0").update(key.name);
    let [a, b, c, d, ..] = *hash.finalize().as_bytes();
    u32::from_le_bytes([a, b, c, d]).is_multiple_of(one_in)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::catalogue::{Attributes, Kind, Page};
    use crate::chunk::ObjectId;

    /// Makes pages so small that a few rows make a tree of many levels.
    pub fn small() -> Builder {
        Builder { cuts: Cuts { least: 180, one_in: 3, greatest: 1000 }, ..Builder::default() }
    }

    pub fn build_small(rows: &[Row]) -> Built {
        let mut builder = small();
        for row in rows {
            builder.push(row).unwrap();
        }
        builder.finish().unwrap()
    }

    fn directory(dir: &str, name: &str) -> Row {
        Row::new(dir.as_bytes(), name.as_bytes(), Kind::Directory, Attributes::default(), Vec::new()).unwrap()
    }

    fn file(dir: &str, name: &str, size: u64) -> Row {
        let object = ObjectId::of_version(name.as_bytes(), size, 0, 0);
        let attributes = Attributes { size, ..Attributes::default() };
        Row::new(dir.as_bytes(), name.as_bytes(), Kind::File { object }, attributes, Vec::new()).unwrap()
    }

    fn wide(files: usize) -> Vec<Row> {
        let mut rows = vec![directory("", "")];
        for index in 0..files {
            let dir = format!("dir{:03}", index / 100);
            if index % 100 == 0 {
                rows.push(directory("", &dir));
            }
            rows.push(file(&dir, &format!("file {index}"), index as u64));
        }
        rows
    }

    #[test]
    fn one_more_file_among_20000_changes_only_the_pages_on_its_way() {
        let before = build(wide(20_000)).unwrap();
        assert!(before.pages.len() > 100);
        for (dir, name) in [("", "a"), ("dir000", "zzz"), ("dir042", "middle"), ("dir199", "zzz")] {
            let mut rows = wide(20_000);
            rows.push(file(dir, name, 1));
            let after = build(rows).unwrap();
            let fresh = after.pages.keys().filter(|hash| !before.pages.contains_key(*hash)).count();
            assert!((2..=8).contains(&fresh), "{dir}/{name}: {fresh} of {} pages", after.pages.len());
            assert_eq!(after.totals.rows, before.totals.rows + 1);
        }
    }

    #[test]
    fn the_order_that_rows_come_in_does_not_matter() {
        let mut rows = wide(3000);
        let forward = build(rows.clone()).unwrap();
        rows.reverse();
        let backward = build(rows).unwrap();
        assert_eq!(forward.root, backward.root);
        assert_eq!(forward.pages, backward.pages);
    }

    #[test]
    fn every_page_parses_and_fits_a_block() {
        let mut rows = wide(5000);
        // The largest rows there are, which push each other out of their page.
        let deep = vec![vec![b'd'; 255]; 15].join(&b'/');
        for letter in b'a'..b'k' {
            let mut name = vec![letter; 255];
            name[0] = b'n';
            let target = vec![b't'; 4095];
            let attributes = Attributes::default();
            let xattr = crate::catalogue::Xattr { name: (*b"u").into(), value: vec![1; 8191].into() };
            let kind = Kind::Symlink { target: target.into() };
            rows.push(Row::new(&deep[..], name, kind, attributes, vec![xattr]).unwrap());
        }
        let built = build(rows).unwrap();
        let sizes: Vec<usize> = built.pages.values().map(|bytes| bytes.len()).collect();
        for bytes in built.pages.values() {
            Page::parse(bytes.clone()).unwrap();
        }
        assert!(sizes.iter().all(|size| *size <= MAX_PAGE), "{sizes:?}");
    }

    #[test]
    fn a_root_alone_is_one_leaf() {
        let built = build([directory("", "")]).unwrap();
        assert_eq!((built.root_level, built.pages.len()), (0, 1));
        assert_eq!(built.totals, Totals { rows: 1, bytes: 0, chunks: 0 });
    }

    #[test]
    fn rows_that_are_no_tree_are_refused() {
        assert_eq!(build([]).err(), Some(NotATree::NoRoot));
        assert_eq!(build([file("", "a", 1)]).err(), Some(NotATree::NoRoot));
        let twice = [directory("", ""), file("d", "a", 1), file("d", "a", 2)];
        assert_eq!(build(twice).err(), Some(NotATree::Order(b"d/a".to_vec())));
        let huge = (0..=1 << 17).map(|index| file("", &index.to_string(), crate::chunk::MAX_OBJECT));
        let rows = std::iter::once(directory("", "")).chain(huge);
        assert_eq!(build(rows).err(), Some(NotATree::Overflow));
    }
}
