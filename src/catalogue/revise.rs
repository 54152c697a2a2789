//! A catalogue with some rows changed: the same pages as building it anew would give, at the cost of what changed.
//!
//! A leaf that begins where a page begins in the new catalogue, and whose rows and next row are as they were, is taken
//! over unread. Upper pages are written anew: of a million rows they are fifty.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::build::{Builder, Built, NotATree, OwnKey};
use super::page::Page;
use super::row::{Key, Row, by_component};
use crate::wire::head::{PageHash, Totals};

const BUILT_HERE: &str = "pages built here are whole and are pages";

/// What becomes of some of a tree's rows. The contract: no row in `rows` has a path of which the old row stays.
#[derive(Default, Debug)]
pub struct Revision {
    /// Paths whose row goes, whatever it is.
    pub names: BTreeSet<Vec<u8>>,
    /// Directories whose content goes, to its depth. Their own rows are other rows.
    pub subtrees: BTreeSet<Vec<u8>>,
    /// New rows, in any order.
    pub rows: Vec<Row>,
}

/// Where a catalogue's pages are.
pub type PageBytes = HashMap<PageHash, Bytes>;

/// A leaf as its parent tells of it.
pub(super) struct Leaf {
    pub first: OwnKey,
    pub hash: PageHash,
    pub totals: Totals,
}

/// The catalogue with this root, revised. All its pages are there.
pub fn revise(root: PageHash, pages: &PageBytes, revision: Revision) -> Result<Built, NotATree> {
    let cuts = Builder::default();
    revise_into(cuts, root, pages, revision)
}

pub(super) fn revise_into(
    mut builder: Builder,
    root: PageHash,
    pages: &PageBytes,
    mut revision: Revision,
) -> Result<Built, NotATree> {
    let leaves = leaf_list(root, pages);
    revision.rows.sort_unstable_by(|a, b| a.key().cmp(&b.key()));
    let changes = Changes::new(&revision);
    let touched: Vec<bool> = leaves
        .iter()
        .enumerate()
        .map(|(index, leaf)| changes.touch(&leaf.first, leaves.get(index + 1).map(|next| &next.first)))
        .collect();
    let mut fresh = revision.rows.iter().peekable();
    for (index, leaf) in leaves.iter().enumerate() {
        // Whether the next row fits decides where a page ends, too.
        let stays = !touched[index] && !touched.get(index + 1).is_some_and(|next| *next);
        if stays && builder.is_between_pages() {
            builder.take_over(leaf, pages[&leaf.hash].clone())?;
            continue;
        }
        let page = parse(&pages[&leaf.hash]);
        let mut dir: Option<Arc<[u8]>> = None;
        for at in 0..page.len() {
            let row = page.row(at, dir.take());
            dir = Some(row.shared_dir());
            if touched[index] && changes.remove(&row) {
                continue;
            }
            while let Some(earlier) = fresh.next_if(|fresh| fresh.key() < row.key()) {
                builder.push(earlier)?;
            }
            builder.push(&row)?;
        }
        let next = leaves.get(index + 1).map(|next| next.first.key());
        while let Some(row) = fresh.next_if(|fresh| next.is_none_or(|next| fresh.key() < next)) {
            builder.push(row)?;
        }
    }
    builder.finish()
}

/// The leaves of a catalogue in order. All its upper pages are there.
pub fn leaves(root: PageHash, pages: &PageBytes) -> Vec<PageHash> {
    leaf_list(root, pages).into_iter().map(|leaf| leaf.hash).collect()
}

fn leaf_list(root: PageHash, pages: &PageBytes) -> Vec<Leaf> {
    let page = parse(&pages[&root]);
    if page.level() == 0 {
        return vec![Leaf { first: OwnKey::of(page.key(0)), hash: root, totals: page.totals() }];
    }
    let mut leaves = Vec::new();
    below(&page, pages, &mut leaves);
    leaves
}

fn below(page: &Page, pages: &PageBytes, leaves: &mut Vec<Leaf>) {
    for index in 0..page.len() {
        let child = page.child(index);
        if page.level() == 1 {
            leaves.push(Leaf { first: OwnKey::of(child.key), hash: child.hash, totals: child.totals });
        } else {
            below(&parse(&pages[&child.hash]), pages, leaves);
        }
    }
}

fn parse(bytes: &Bytes) -> Page {
    Page::parse(bytes.clone()).expect(BUILT_HERE)
}

/// A revision, arranged to be asked about leaves and rows.
struct Changes<'a> {
    revision: &'a Revision,
    /// Places where a row comes or goes, or a subtree that goes begins; in order.
    places: Vec<OwnKey>,
    /// Directories whose content goes, in the order of their components, none below another.
    subtrees: Vec<&'a [u8]>,
}

impl<'a> Changes<'a> {
    fn new(revision: &'a Revision) -> Changes<'a> {
        let mut places: Vec<OwnKey> = revision.rows.iter().map(|row| OwnKey::of(row.key())).collect();
        for path in &revision.names {
            let (dir, name) = split(path);
            let both = [false, true].map(|directory| OwnKey::of(Key { dir, directory, name }));
            places.extend(both);
        }
        for dir in &revision.subtrees {
            places.push(OwnKey::of(Key { dir, directory: false, name: b"" }));
        }
        places.sort_unstable_by(|a, b| a.key().cmp(&b.key()));
        let mut subtrees: Vec<&[u8]> = revision.subtrees.iter().map(Vec::as_slice).collect();
        subtrees.sort_unstable_by(|a, b| by_component(a, b));
        subtrees.dedup_by(|later, kept| is_in(later, kept));
        Changes { revision, places, subtrees }
    }

    /// Whether a leaf that begins with `first`, before the one that begins with `next`, is not as it was.
    fn touch(&self, first: &OwnKey, next: Option<&OwnKey>) -> bool {
        let at = self.places.partition_point(|place| place.key() < first.key());
        let place = self.places.get(at).is_some_and(|place| next.is_none_or(|next| place.key() < next.key()));
        place || self.removes_content(first.key().dir)
    }

    fn remove(&self, row: &Row) -> bool {
        self.revision.names.contains(&row.path()) || (!row.name().is_empty() && self.removes_content(row.dir()))
    }

    fn removes_content(&self, dir: &[u8]) -> bool {
        let after = self.subtrees.partition_point(|subtree| by_component(subtree, dir).is_le());
        after.checked_sub(1).is_some_and(|last| is_in(dir, self.subtrees[last]))
    }
}

/// Whether a directory is this one or below it.
fn is_in(dir: &[u8], other: &[u8]) -> bool {
    other.is_empty() || dir.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::catalogue::build::tests::{build_small, small};
    use crate::catalogue::{Attributes, Kind};
    use crate::chunk::ObjectId;

    fn row(path: &str, kind: Kind, size: u64) -> Row {
        let (dir, name) = split(path.as_bytes());
        Row::new(dir, name, kind, Attributes { size, ..Attributes::default() }, Vec::new()).unwrap()
    }

    /// A tree as a map from path to whether it is a directory, and its size.
    type Tree = BTreeMap<String, (bool, u64)>;

    fn rows(tree: &Tree) -> Vec<Row> {
        let mut rows: Vec<Row> = tree.iter().map(|(path, (directory, size))| row_of(path, *directory, *size)).collect();
        rows.sort_unstable_by(|a, b| a.key().cmp(&b.key()));
        rows
    }

    fn row_of(path: &str, directory: bool, size: u64) -> Row {
        let kind = if directory { Kind::Directory } else { Kind::File { object: ObjectId([size as u8; 16]) } };
        row(path, kind, size)
    }

    fn random_tree(random: &mut fastrand::Rng) -> Tree {
        let mut tree = Tree::from([(String::new(), (true, 0))]);
        let mut dirs = vec![String::new()];
        for _ in 0..random.usize(1..120) {
            let dir = dirs[random.usize(..dirs.len())].clone();
            let path = format!("{dir}/{}", random.u8(..40)).trim_start_matches('/').to_owned();
            let directory = random.u8(..4) == 0;
            if tree.insert(path.clone(), (directory, random.u64(..200))).is_none() && directory {
                dirs.push(path);
            }
        }
        // A file in a directory's place has nothing below it.
        let whole = tree.clone();
        let is_dir = |path: &str| whole.get(path).is_some_and(|(directory, _)| *directory);
        tree.retain(|path, _| {
            let ancestors = path.match_indices('/').map(|(at, _)| &path[..at]);
            ancestors.clone().all(is_dir)
        });
        tree
    }

    /// Some random changes, and the tree after them.
    fn change(tree: &Tree, random: &mut fastrand::Rng) -> (Tree, Revision) {
        let mut after = tree.clone();
        let mut revision = Revision::default();
        for _ in 0..random.usize(1..6) {
            let paths: Vec<String> = after.keys().cloned().collect();
            let path = paths[random.usize(..paths.len())].clone();
            let (directory, _) = after[&path];
            match random.u8(..4) {
                // Its content goes, and something else comes in its place.
                0 if directory => {
                    let below = if path.is_empty() { String::new() } else { format!("{path}/") };
                    after.retain(|other, _| other.is_empty() || *other == path || !other.starts_with(&below));
                    revision.subtrees.insert(path.clone().into_bytes());
                    after.insert(format!("{below}fresh"), (false, random.u64(..200)));
                    revision.names.insert(format!("{below}fresh").into_bytes());
                }
                1 if directory => {
                    let child = format!("{path}/new{}", random.u8(..9)).trim_start_matches('/').to_owned();
                    if after.insert(child.clone(), (false, random.u64(..200))).is_none_or(|(was, _)| !was) {
                        revision.names.insert(child.into_bytes());
                    }
                }
                2 if !directory => {
                    after.remove(&path);
                    revision.names.insert(path.into_bytes());
                }
                _ => {
                    after.insert(path.clone(), (directory, random.u64(..200)));
                    revision.names.insert(path.into_bytes());
                }
            }
        }
        let comes = |path: &str| {
            let bytes = path.as_bytes();
            let below = |dir: &Vec<u8>| !path.is_empty() && is_in(split(bytes).0, dir);
            revision.names.contains(bytes) || revision.subtrees.iter().any(below)
        };
        let fresh = after
            .iter()
            .filter(|(path, _)| comes(path))
            .map(|(path, (directory, size))| row_of(path, *directory, *size));
        revision.rows = fresh.collect();
        (after, revision)
    }

    #[test]
    fn a_revised_catalogue_is_the_one_that_building_it_anew_gives() {
        for seed in 0..2_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut tree = random_tree(&mut random);
            let mut built = build_small(&rows(&tree));
            for _ in 0..3 {
                let (after, revision) = change(&tree, &mut random);
                let revised = revise_into(small(), built.root, &built.pages, revision).unwrap();
                let anew = build_small(&rows(&after));
                assert_eq!(revised.root, anew.root, "seed {seed}");
                assert_eq!((revised.root_level, revised.totals), (anew.root_level, anew.totals), "seed {seed}");
                assert_eq!(revised.pages, anew.pages, "seed {seed}");
                (tree, built) = (after, revised);
            }
        }
    }

    #[test]
    fn what_was_not_touched_is_not_read() {
        let mut tree = Tree::from([(String::new(), (true, 0))]);
        tree.extend((0..2_000).map(|index| (format!("file {index:05}"), (false, index))));
        let built = build_small(&rows(&tree));
        let mut pages = built.pages.clone();
        let leaves = leaves(built.root, &pages);
        // Whoever reads one of these leaves panics. (A directory of that name would lie in the last.)
        for leaf in leaves[10..].iter().rev().skip(2) {
            pages.insert(*leaf, Bytes::from_static(b"no page"));
        }
        let path = "file 00001";
        let revision = Revision {
            names: BTreeSet::from([path.as_bytes().to_vec()]),
            rows: vec![row_of(path, false, 7)],
            ..Revision::default()
        };
        assert_ne!(revise_into(small(), built.root, &pages, revision).unwrap().root, built.root);
    }
}
