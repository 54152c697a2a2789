//! Looking things up in one version of a tree, page by page.
//!
//! The calling contract: every look-up works on the pages that are here, and answers `Lookup::Missing` with the one it
//! lacks. The caller fetches that page and asks again; after at most as many rounds as the tree has levels, per page
//! that its answer spans, it is answered. Nothing is kept between calls.
//!
//! A page is trusted as far as its own bytes go (`Page::parse`, and its hash). Whether it fits its place (level, range
//! of names, counts that its parent states) is checked on the way down, each time, so that a catalogue that contradicts
//! itself is refused as `Lookup::Malformed` and never walked in circles.

use std::collections::HashMap;
use std::sync::Arc;

use thiserror::Error;

use super::page::{MAX_LEVEL, Page};
use super::row::{Key, Row};
use crate::wire::head::{PageHash, Totals};

/// The pages that are here.
pub trait Pages {
    fn page(&self, hash: &PageHash) -> Option<Arc<Page>>;
}

impl Pages for HashMap<PageHash, Arc<Page>> {
    fn page(&self, hash: &PageHash) -> Option<Arc<Page>> {
        self.get(hash).cloned()
    }
}

/// Why a look-up has no answer yet, or never will.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    #[error("page {0:?} is not here")]
    Missing(PageHash),
    #[error("the catalogue contradicts itself")]
    Malformed,
}

/// A row and its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub row: Row,
    /// Chunks of the tree before this row: the number of its first chunk, if it has any.
    pub ordinal: u64,
    /// Rows of the tree before this one; 0 only for the root. `rank + 1` is where a directory's listing goes on after
    /// it: a position that stays right as long as this version of the tree is looked at.
    pub rank: u64,
}

/// One version of a tree: what its head names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct View {
    root: PageHash,
    root_level: u8,
}

impl View {
    pub fn new(root: PageHash, root_level: u8) -> View {
        View { root, root_level }
    }

    /// The root directory's own row.
    pub fn root(&self, pages: &(impl Pages + ?Sized)) -> Result<Row, Lookup> {
        match self.row(pages, b"", b"")? {
            Some(entry) => Ok(entry.row),
            None => Err(Lookup::Malformed),
        }
    }

    /// The row `name` in the directory with path `dir`; the root's with both empty.
    pub fn row(&self, pages: &(impl Pages + ?Sized), dir: &[u8], name: &[u8]) -> Result<Option<Entry>, Lookup> {
        // A name is looked for where files lie and, unless found, where directories lie: mostly the same page.
        for directory in [false, true] {
            let key = Key { dir, directory, name };
            let mut walk = Walk::new(pages, self)?;
            if walk.seek(&Target::Key(key))? && walk.key() == key {
                return Ok(Some(walk.entry(None)));
            }
        }
        Ok(None)
    }

    /// The row with so many rows before it.
    pub fn at(&self, pages: &(impl Pages + ?Sized), rank: u64) -> Result<Option<Entry>, Lookup> {
        let mut walk = Walk::new(pages, self)?;
        let found = walk.seek(&Target::Rank(rank))?;
        Ok(found.then(|| walk.entry(None)))
    }

    /// Up to `max` rows of a directory in order: from its first, or from the rank that the last part ended before.
    /// Fewer than `max` means that the directory ends there.
    pub fn entries(
        &self,
        pages: &(impl Pages + ?Sized),
        dir: &[u8],
        from: Option<u64>,
        max: usize,
    ) -> Result<Vec<Entry>, Lookup> {
        let target = match from {
            Some(rank) => Target::Rank(rank),
            None => Target::Key(Key { dir, directory: false, name: b"" }),
        };
        let mut walk = Walk::new(pages, self)?;
        let mut here = walk.seek(&target)?;
        let mut found: Vec<Entry> = Vec::new();
        while here && found.len() < max && walk.key().dir == dir {
            // The root's own row is in no directory.
            if !walk.key().name.is_empty() {
                let entry = walk.entry(found.last());
                found.push(entry);
            }
            here = walk.next(|_| true)?;
        }
        Ok(found)
    }

    /// The regular files that follow in catalogue order: those whose first chunk's number is `ordinal` or more. It ends
    /// with `max_rows`, or with the file that makes up `max_bytes`. Empty files have no chunk and are left out.
    pub fn next_files(
        &self,
        pages: &(impl Pages + ?Sized),
        ordinal: u64,
        max_rows: usize,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, Lookup> {
        let mut walk = Walk::new(pages, self)?;
        let mut here = walk.seek(&Target::Ordinal(ordinal))?;
        let mut found: Vec<Entry> = Vec::new();
        let mut bytes = 0u64;
        while here && found.len() < max_rows && bytes < max_bytes {
            let entry = walk.entry(found.last());
            bytes = bytes.saturating_add(entry.row.attributes().size);
            found.push(entry);
            here = walk.next(|totals| totals.chunks > 0)?;
        }
        Ok(found)
    }
}

enum Target<'a> {
    /// The first row that is not before this key.
    Key(Key<'a>),
    /// The row with so many before it.
    Rank(u64),
    /// The first row with chunks whose first has this number or more.
    Ordinal(u64),
}

/// A path from the root page down to a row.
struct Walk<'a, P: ?Sized> {
    pages: &'a P,
    /// From the root page to a leaf; never empty.
    path: Vec<Step>,
}

struct Step {
    page: Arc<Page>,
    index: usize,
    /// What lies before item `index` in the whole tree.
    before: Totals,
}

impl<'a, P: Pages + ?Sized> Walk<'a, P> {
    fn new(pages: &'a P, view: &View) -> Result<Walk<'a, P>, Lookup> {
        let page = pages.page(&view.root).ok_or(Lookup::Missing(view.root))?;
        if page.level() != view.root_level || page.level() > MAX_LEVEL {
            return Err(Lookup::Malformed);
        }
        Ok(Walk { pages, path: vec![Step { page, index: 0, before: Totals::default() }] })
    }

    /// Goes to the target, from a walk that just began; false if the tree ends before it.
    fn seek(&mut self, target: &Target) -> Result<bool, Lookup> {
        loop {
            let step = self.path.last_mut().expect("a walk starts with the root page");
            let is_leaf = step.page.level() == 0;
            step.advance_to(target);
            if is_leaf && step.index < step.page.len() {
                return Ok(true);
            }
            if step.index == step.page.len() {
                // What is looked for begins the next page, if anything follows.
                return self.next(|totals| !matches!(target, Target::Ordinal(_)) || totals.chunks > 0);
            }
            self.descend()?;
        }
    }

    /// Goes to the next row for which `wanted` holds of it and of each page above it; false at the tree's end.
    fn next(&mut self, wanted: impl Fn(&Totals) -> bool) -> Result<bool, Lookup> {
        loop {
            let step = self.path.last_mut().expect("the loop ends when the root page does");
            if step.index < step.page.len() {
                step.advance();
            }
            while step.index < step.page.len() && !wanted(&step.page.item_totals(step.index)) {
                step.advance();
            }
            if step.index == step.page.len() {
                if self.path.len() == 1 {
                    return Ok(false);
                }
                self.path.pop();
                continue;
            }
            if self.settle(&wanted)? {
                return Ok(true);
            }
        }
    }

    /// From a wanted item down to the first wanted row in it; false if it has none, against its count.
    fn settle(&mut self, wanted: &impl Fn(&Totals) -> bool) -> Result<bool, Lookup> {
        loop {
            let step = self.path.last_mut().expect("a walk starts with the root page");
            while step.index < step.page.len() && !wanted(&step.page.item_totals(step.index)) {
                step.advance();
            }
            if step.index == step.page.len() {
                return Ok(false);
            }
            if step.page.level() == 0 {
                return Ok(true);
            }
            self.descend()?;
        }
    }

    /// Enters the page below the current item, if it is the one that its parent tells of.
    fn descend(&mut self) -> Result<(), Lookup> {
        let step = self.path.last().expect("a walk starts with the root page");
        let child = step.page.child(step.index);
        let page = self.pages.page(&child.hash).ok_or(Lookup::Missing(child.hash))?;
        let fits = page.level() + 1 == step.page.level()
            && page.totals() == child.totals
            && page.key(0) == child.key
            && self.end().is_none_or(|end| page.key(page.len() - 1) < end);
        if !fits {
            return Err(Lookup::Malformed);
        }
        let before = step.before;
        self.path.push(Step { page, index: 0, before });
        Ok(())
    }

    /// The key that everything below the current item lies before: that of the next item, here or further up.
    fn end(&self) -> Option<Key<'_>> {
        let step = self.path.iter().rev().find(|step| step.index + 1 < step.page.len())?;
        Some(step.page.key(step.index + 1))
    }

    fn leaf(&self) -> &Step {
        self.path.last().expect("a walk starts with the root page")
    }

    /// Key of the row that was gone to.
    fn key(&self) -> Key<'_> {
        self.leaf().page.key(self.leaf().index)
    }

    /// The row that was gone to; it shares its directory's path with the one before it.
    fn entry(&self, last: Option<&Entry>) -> Entry {
        let step = self.leaf();
        let row = step.page.row(step.index, last.map(|entry| entry.row.shared_dir()));
        Entry { row, ordinal: step.before.chunks, rank: step.before.rows }
    }
}

impl Step {
    /// Steps over what lies before the target: to the page that it is in or the row that it is; to the end if it is
    /// neither.
    fn advance_to(&mut self, target: &Target) {
        let leaf = self.page.level() == 0;
        match target {
            Target::Key(key) => {
                let first_not_before = self.page.lower_bound(key);
                // A page holds the key unless the next one begins at or before it.
                let goal = match first_not_before {
                    index if leaf => index,
                    index if index < self.page.len() && self.page.key(index) == *key => index,
                    index => index.saturating_sub(1),
                };
                while self.index < goal {
                    self.advance();
                }
            }
            Target::Rank(rank) => self.advance_while(|before, item| before.rows + item.rows <= *rank),
            Target::Ordinal(ordinal) if leaf => {
                self.advance_while(|before, item| item.chunks == 0 || before.chunks < *ordinal);
            }
            Target::Ordinal(ordinal) => {
                self.advance_while(|before, item| item.chunks == 0 || before.chunks + item.chunks <= *ordinal);
            }
        }
    }

    fn advance_while(&mut self, skip: impl Fn(&Totals, &Totals) -> bool) {
        while self.index < self.page.len() && skip(&self.before, &self.page.item_totals(self.index)) {
            self.advance();
        }
    }

    /// Steps over the current item. The sums cannot overflow: every page checks the sum of its items, and was checked
    /// to be what its parent counted.
    fn advance(&mut self) {
        let totals = self.page.item_totals(self.index);
        self.before.rows += totals.rows;
        self.before.bytes += totals.bytes;
        self.before.chunks += totals.chunks;
        self.index += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::catalogue::build::tests::build_small;
    use crate::catalogue::page::{Child, Draft, write_child, write_row};
    use crate::catalogue::{Attributes, Built, Kind, build};
    use crate::chunk::{CHUNK, ObjectId};

    fn parsed(built: &Built) -> HashMap<PageHash, Arc<Page>> {
        built.pages.iter().map(|(hash, bytes)| (*hash, Arc::new(Page::parse(bytes.clone()).unwrap()))).collect()
    }

    fn row(dir: &[u8], name: &[u8], kind: Kind, size: u64) -> Row {
        Row::new(dir, name, kind, Attributes { size, ..Attributes::default() }, Vec::new()).unwrap()
    }

    /// Names in bytes around '/', so that comparing whole paths and comparing components differ.
    fn name() -> impl Strategy<Value = Vec<u8>> {
        vec(prop::sample::select(&b"ab!.\xff"[..]), 1..4).prop_filter("no name", |name| name != b"." && name != b"..")
    }

    /// Rows of a random tree in catalogue order.
    fn tree() -> impl Strategy<Value = Vec<Row>> {
        let size = prop::sample::select(vec![0, 1, CHUNK as u64, CHUNK as u64 + 1, 5 * CHUNK as u64]);
        vec((vec(name(), 1..5), any::<bool>(), size), 0..120).prop_map(|paths| {
            // Path to size, or to nothing for a directory. What once is a directory stays one.
            let mut nodes: BTreeMap<Vec<Vec<u8>>, Option<u64>> = BTreeMap::new();
            for (path, is_file, size) in paths {
                let ancestors: Vec<_> = (1..path.len()).map(|len| path[..len].to_vec()).collect();
                if ancestors.iter().any(|dir| matches!(nodes.get(dir), Some(Some(_)))) {
                    continue;
                }
                nodes.extend(ancestors.into_iter().map(|dir| (dir, None)));
                nodes.entry(path).or_insert(is_file.then_some(size));
            }
            let mut rows = vec![row(b"", b"", Kind::Directory, 0)];
            for (path, size) in nodes {
                let (name, dir) = path.split_last().unwrap();
                let kind = match size {
                    Some(_) => Kind::File { object: ObjectId([rows.len() as u8; 16]) },
                    None => Kind::Directory,
                };
                rows.push(row(&dir.join(&b'/'), name, kind, size.unwrap_or(0)));
            }
            rows.sort_by(|a, b| a.key().cmp(&b.key()));
            rows
        })
    }

    /// What every look-up is compared with: all rows with their places.
    fn model(rows: &[Row]) -> Vec<Entry> {
        let mut ordinal = 0;
        let entry = |(rank, row): (usize, &Row)| {
            let entry = Entry { row: row.clone(), ordinal, rank: rank as u64 };
            ordinal += row.totals().chunks;
            entry
        };
        rows.iter().enumerate().map(entry).collect()
    }

    proptest! {
        #[test]
        fn look_ups_find_what_a_plain_list_has(rows in tree(), absent in name(), max in 1usize..9) {
            let built = build_small(&rows);
            let pages = parsed(&built);
            let view = View::new(built.root, built.root_level);
            let model = model(&rows);
            prop_assert_eq!(view.root(&pages), Ok(rows[0].clone()));
            for entry in &model {
                let found = view.row(&pages, entry.row.dir(), entry.row.name());
                prop_assert_eq!(found, Ok(Some(entry.clone())));
                prop_assert_eq!(view.at(&pages, entry.rank), Ok(Some(entry.clone())));
                let has = model.iter().any(|other| other.row.dir() == entry.row.dir() && *other.row.name() == *absent);
                prop_assert_eq!(view.row(&pages, entry.row.dir(), &absent).unwrap().is_some(), has);
            }
            prop_assert_eq!(view.at(&pages, rows.len() as u64), Ok(None));
            for dir in rows.iter().filter(|row| *row.kind() == Kind::Directory).map(Row::path) {
                let expected: Vec<_> = model.iter().filter(|e| e.row.dir() == dir && e.rank > 0).cloned().collect();
                let mut listed: Vec<Entry> = Vec::new();
                loop {
                    let from = listed.last().map(|entry| entry.rank + 1);
                    let part = view.entries(&pages, &dir, from, max).unwrap();
                    let ended = part.len() < max;
                    listed.extend(part);
                    if ended {
                        break;
                    }
                }
                prop_assert_eq!(listed, expected);
            }
            for ordinal in 0..built.totals.chunks + 2 {
                let files: Vec<_> = model
                    .iter()
                    .filter(|entry| entry.ordinal >= ordinal && entry.row.totals().chunks > 0)
                    .take(max)
                    .cloned()
                    .collect();
                prop_assert_eq!(view.next_files(&pages, ordinal, max, u64::MAX), Ok(files));
            }
        }

        #[test]
        fn pages_of_a_tree_are_parsed_to_its_rows(rows in tree()) {
            let built = build(rows.clone()).unwrap();
            let pages = parsed(&built);
            let total = rows.iter().fold((0, 0), |sum, row| (sum.0 + row.totals().bytes, sum.1 + row.totals().chunks));
            prop_assert_eq!((built.totals.bytes, built.totals.chunks), total);
            prop_assert_eq!(built.totals.rows, rows.len() as u64);
            let leaf_rows: usize = pages.values().filter(|page| page.level() == 0).map(|page| page.len()).sum();
            prop_assert_eq!(leaf_rows, rows.len());
            for (hash, page) in &pages {
                let mut draft = Draft::new(page.level());
                for index in 0..page.len() {
                    let dir = page.key(index).dir;
                    match page.level() {
                        0 => draft.push(dir, &write_row(&page.row(index, None))),
                        _ => draft.push(dir, &write_child(&page.child(index))),
                    }
                }
                prop_assert_eq!(PageHash::of(&draft.finish()), *hash);
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..600), level in 0u8..3) {
            let _ = Page::parse(bytes.clone());
            let _ = Page::parse([&[1, level][..], &bytes].concat());
        }

        /// Pages are put in places of others and changed: whoever lies about a page's bytes is found out by its hash,
        /// but an origin can sign anything.
        #[test]
        fn a_catalogue_that_lies_is_refused_or_answered_but_never_walked_in_circles(
            rows in tree(),
            changes in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..4),
            swaps in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..3),
        ) {
            let built = build_small(&rows);
            let mut pages = parsed(&built);
            let mut hashes: Vec<PageHash> = pages.keys().copied().collect();
            hashes.sort();
            for (page, at, value) in changes {
                let hash = *page.get(&hashes);
                let mut bytes = built.pages[&hash].to_vec();
                let at = at.index(bytes.len());
                bytes[at] ^= value;
                if let Ok(page) = Page::parse(bytes) {
                    pages.insert(hash, Arc::new(page));
                }
            }
            for (one, other) in swaps {
                let page = pages[one.get(&hashes)].clone();
                pages.insert(*other.get(&hashes), page);
            }
            let view = View::new(built.root, built.root_level);
            let _ = view.root(&pages);
            for row in &rows {
                let _ = view.row(&pages, row.dir(), row.name());
                let _ = view.entries(&pages, &row.path(), None, 1000);
            }
            for number in 0..200 {
                let _ = view.at(&pages, number);
                let _ = view.next_files(&pages, number, 1000, u64::MAX);
            }
        }
    }

    fn files(count: usize) -> Vec<Row> {
        let file =
            |index: usize| row(b"", format!("{index:05}").as_bytes(), Kind::File { object: ObjectId([1; 16]) }, 100);
        std::iter::once(row(b"", b"", Kind::Directory, 0)).chain((0..count).map(file)).collect()
    }

    #[test]
    fn each_missing_page_is_named_once_until_the_answer_is_there() {
        struct Slow<'a> {
            here: RefCell<HashMap<PageHash, Arc<Page>>>,
            all: &'a HashMap<PageHash, Bytes>,
        }
        impl Pages for Slow<'_> {
            fn page(&self, hash: &PageHash) -> Option<Arc<Page>> {
                self.here.borrow().get(hash).cloned()
            }
        }
        let built = build_small(&files(200));
        assert!(built.root_level >= 2);
        let view = View::new(built.root, built.root_level);
        let slow = Slow { here: RefCell::default(), all: &built.pages };
        let mut rounds = 0;
        let found = loop {
            match view.row(&slow, b"", b"00150") {
                Ok(found) => break found.unwrap(),
                Err(Lookup::Missing(hash)) => {
                    rounds += 1;
                    let page = Page::parse(slow.all[&hash].clone()).unwrap();
                    assert!(slow.here.borrow_mut().insert(hash, Arc::new(page)).is_none(), "asked for twice");
                }
                Err(Lookup::Malformed) => panic!("refused"),
            }
        };
        assert_eq!(found.rank, 151);
        assert_eq!(rounds, built.root_level as usize + 1);
    }

    #[test]
    fn a_listing_goes_on_where_it_ended_and_a_position_elsewhere_lists_nothing() {
        let mut rows = files(50);
        rows.push(row(b"", b"d", Kind::Directory, 0));
        rows.push(row(b"d", b"x", Kind::Fifo, 0));
        let built = build_small(&rows);
        let (pages, view) = (parsed(&built), View::new(built.root, built.root_level));
        assert_eq!(view.entries(&pages, b"", Some(49), 10).unwrap().len(), 3);
        assert_eq!(view.entries(&pages, b"d", Some(3), 10), Ok(Vec::new()));
        assert_eq!(view.entries(&pages, b"", Some(u64::MAX), 10), Ok(Vec::new()));
        assert_eq!(view.entries(&pages, b"nowhere", None, 10), Ok(Vec::new()));
        assert_eq!(view.next_files(&pages, 10, 100, 250).unwrap().len(), 3, "the third makes up the bytes");
    }

    #[test]
    fn a_page_in_the_wrong_place_is_refused() {
        let built = build(files(2000)).unwrap();
        assert_eq!(built.root_level, 1);
        let pages = parsed(&built);
        let root = &pages[&built.root];
        let first = &pages[&root.child(0).hash];
        let between = [first.key(first.len() - 1).name, b"~"].concat();
        let children: Vec<Child> = (0..root.len()).map(|index| root.child(index)).collect();
        assert!(children.len() >= 3);
        let refused = |children: &[Child], level: u8| {
            let mut draft = Draft::new(level);
            for child in children {
                draft.push(child.key.dir, &write_child(child));
            }
            let hash = PageHash([9; 32]);
            let mut pages = pages.clone();
            pages.insert(hash, Arc::new(Page::parse(draft.finish()).unwrap()));
            let listed = View::new(hash, level).entries(&pages, b"", None, 5000);
            match listed {
                Ok(listed) => assert_eq!(listed.len(), 2000),
                Err(Lookup::Missing(_)) => panic!("all pages are here"),
                Err(Lookup::Malformed) => return true,
            }
            false
        };
        assert!(!refused(&children, 1));
        assert!(refused(&children, 2), "a level was skipped");
        let changed = |index: usize, change: &dyn Fn(&mut Child)| {
            let mut children = children.clone();
            change(&mut children[index]);
            children
        };
        assert!(refused(&changed(1, &|child| child.totals.rows += 1), 1));
        assert!(refused(&changed(1, &|child| child.totals.chunks -= 1), 1));
        assert!(refused(&changed(1, &|child| child.totals.bytes -= 1), 1));
        assert!(refused(&changed(1, &|child| child.hash = children[2].hash), 1));
        let view = View::new(built.root, 0);
        assert_eq!(view.row(&pages, b"", b"00001"), Err(Lookup::Malformed), "the head states another level");
        // The second page begins after what its parent says, which is still after the first page's last row.
        let mut moved = children.clone();
        moved[1].key = Key { dir: b"", directory: false, name: &between };
        assert!(refused(&moved, 1));
        // The first page ends after the second begins: found out by who enters the first alone.
        let inner = pages[&children[0].hash].key(5);
        let mut draft = Draft::new(1);
        for child in [children[0], Child { key: inner, ..children[1] }] {
            draft.push(child.key.dir, &write_child(&child));
        }
        let mut overlapping = pages.clone();
        let hash = PageHash([9; 32]);
        overlapping.insert(hash, Arc::new(Page::parse(draft.finish()).unwrap()));
        assert_eq!(View::new(hash, 1).at(&overlapping, 1), Err(Lookup::Malformed));
        // A page that is its own child.
        let own = Child { hash: PageHash([9; 32]), ..children[0] };
        assert!(refused(&[own], 1));
    }
}
