//! The inode table: which numbers the kernel knows, and the row behind each.
//!
//! A number is a function of the tree, the same on every node and after a remount: a file's comes from the id of its
//! version, so that two versions never share a number (the kernel caches pages by it) and hard links do; any other
//! row's from its path and kind. All are below 2^62, as overlayfs wants them. Two rows whose numbers collide are never
//! mixed: the second one is refused. An entry is dropped when the kernel has forgotten it as often as it looked it up.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::{Arc, RwLock};

use crate::catalogue::{Entry, Kind, Row};

/// The root's number, as FUSE has it.
pub const ROOT: u64 = 1;
const BITS: u64 = (1 << 62) - 1;

/// What a number stands for.
#[derive(Clone)]
pub struct Inode {
    pub entry: Arc<Entry>,
    /// The newest version of the tree in which this row was seen.
    pub version: u64,
    /// The version of the tree whose listing of this directory the kernel may have kept.
    pub listed: Option<u64>,
    lookups: u64,
}

/// The numbers that the kernel knows.
pub struct Inodes {
    /// Path of the directory that is shown as the root.
    root: Box<[u8]>,
    table: RwLock<HashMap<u64, Inode>>,
}

/// Two different rows have the same number.
#[derive(Debug, PartialEq, Eq)]
pub struct Collision;

impl Inodes {
    /// A table that knows its root only.
    pub fn new(root: Entry, version: u64) -> Inodes {
        let path = root.row.path().into();
        let inode = Inode { entry: Arc::new(root), version, listed: None, lookups: 1 };
        Inodes { root: path, table: RwLock::new(HashMap::from([(ROOT, inode)])) }
    }

    /// The number of a row. It need not be in the table.
    pub fn number(&self, row: &Row) -> u64 {
        if let Some(object) = row.object() {
            let low = u64::from_le_bytes(object.0[..8].try_into().expect("an object id has 16 bytes"));
            return reserve(low);
        }
        let path = row.path();
        if path == *self.root { ROOT } else { number_of(&path, row.kind()) }
    }

    /// The number of the directory with this path.
    pub fn number_of_directory(&self, path: &[u8]) -> u64 {
        if path == &*self.root { ROOT } else { number_of(path, &Kind::Directory) }
    }

    pub fn get(&self, number: u64) -> Option<Inode> {
        self.table.read().expect("no holder of this lock panics").get(&number).cloned()
    }

    /// Counts one look-up of a row that was seen in a version of the tree, and gives its number.
    pub fn remember(&self, entry: &Arc<Entry>, version: u64) -> Result<u64, Collision> {
        let number = self.number(&entry.row);
        match self.table.write().expect("no holder of this lock panics").entry(number) {
            Slot::Vacant(slot) => {
                slot.insert(Inode { entry: entry.clone(), version, listed: None, lookups: 1 });
            }
            Slot::Occupied(mut slot) => {
                let inode = slot.get_mut();
                if !is_same(&inode.entry.row, &entry.row, number) {
                    tracing::error!(
                        number,
                        one = %inode.entry.row.path().escape_ascii(),
                        other = %entry.row.path().escape_ascii(),
                        "two files have the same inode number; the second one is not shown"
                    );
                    return Err(Collision);
                }
                inode.lookups = inode.lookups.saturating_add(1);
                renew(inode, entry, version);
            }
        }
        Ok(number)
    }

    /// Takes note that a row was seen in a newer version of the tree, if its number is known.
    pub fn renew(&self, entry: &Arc<Entry>, version: u64) {
        let number = self.number(&entry.row);
        if let Some(inode) = self.table.write().expect("no holder of this lock panics").get_mut(&number)
            && is_same(&inode.entry.row, &entry.row, number)
        {
            renew(inode, entry, version);
        }
    }

    /// Takes note that the kernel may keep a directory's listing of this version; says whether it has that one already.
    pub fn list(&self, number: u64, version: u64) -> bool {
        let mut table = self.table.write().expect("no holder of this lock panics");
        table.get_mut(&number).is_some_and(|inode| inode.listed.replace(version) == Some(version))
    }

    /// The kernel no longer knows a number from `lookups` of its look-ups.
    pub fn forget(&self, number: u64, lookups: u64) {
        if number == ROOT {
            return;
        }
        if let Slot::Occupied(mut slot) = self.table.write().expect("no holder of this lock panics").entry(number) {
            let left = slot.get().lookups.saturating_sub(lookups);
            slot.get_mut().lookups = left;
            if left == 0 {
                slot.remove();
            }
        }
    }

    /// How many numbers the kernel knows.
    pub fn len(&self) -> usize {
        self.table.read().expect("no holder of this lock panics").len()
    }
}

/// A version seen again is not overwritten by an older one that was looked up for longer.
fn renew(inode: &mut Inode, entry: &Arc<Entry>, version: u64) {
    if version >= inode.version {
        inode.entry = entry.clone();
        inode.version = version;
    }
}

fn is_same(one: &Row, other: &Row, number: u64) -> bool {
    match (one.object(), other.object()) {
        (Some(one), Some(other)) => one == other,
        (None, None) => number == ROOT || (one.path() == other.path() && mark(one.kind()) == mark(other.kind())),
        _ => false,
    }
}

fn number_of(path: &[u8], kind: &Kind) -> u64 {
    let mut hash = blake3::Hasher::new_derive_key("swarmfs 1 inode number");
    hash.update(&(path.len() as u64).to_le_bytes());
    hash.update(path);
    let (letter, target) = mark(kind);
    hash.update(&[letter]);
    // The kernel caches where a link leads by its number, so a link that leads elsewhere has another.
    hash.update(target);
    let hash = hash.finalize();
    reserve(u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a BLAKE3 hash has 32 bytes")))
}

fn mark(kind: &Kind) -> (u8, &[u8]) {
    match kind {
        Kind::File { .. } => (b'f', b""),
        Kind::Directory => (b'd', b""),
        Kind::Symlink { target } => (b'l', target),
        Kind::Fifo => (b'p', b""),
        Kind::Socket => (b's', b""),
        Kind::CharDevice { .. } => (b'c', b""),
        Kind::BlockDevice { .. } => (b'b', b""),
    }
}

/// 0 is no inode and 1 is the root's.
fn reserve(number: u64) -> u64 {
    let number = number & BITS;
    if number <= ROOT { number + 2 } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Attributes;
    use crate::chunk::ObjectId;

    fn entry(dir: &str, name: &str, kind: Kind) -> Arc<Entry> {
        let row = Row::new(dir.as_bytes(), name.as_bytes(), kind, Attributes::default(), Vec::new()).unwrap();
        Arc::new(Entry { row, ordinal: 0, rank: 1 })
    }

    fn file(name: &str, id: [u8; 16]) -> Arc<Entry> {
        entry("", name, Kind::File { object: ObjectId(id) })
    }

    fn inodes() -> Inodes {
        Inodes::new((*entry("", "", Kind::Directory)).clone(), 1)
    }

    #[test]
    fn a_number_is_known_until_it_was_forgotten_as_often_as_it_was_looked_up() {
        let inodes = inodes();
        let one = file("a", [7; 16]);
        let number = inodes.remember(&one, 1).unwrap();
        assert_eq!(inodes.remember(&one, 1), Ok(number));
        inodes.forget(number, 1);
        assert!(inodes.get(number).is_some());
        inodes.forget(number, 1);
        assert!(inodes.get(number).is_none());
        inodes.forget(number, 5);
        inodes.forget(ROOT, u64::MAX);
        assert!(inodes.get(ROOT).is_some());
        assert_eq!(inodes.len(), 1);
    }

    #[test]
    fn hard_links_share_a_number_and_versions_do_not() {
        let inodes = inodes();
        let number = inodes.remember(&file("a", [7; 16]), 1).unwrap();
        assert_eq!(inodes.remember(&file("b", [7; 16]), 1), Ok(number));
        assert_ne!(inodes.remember(&file("a", [8; 16]), 2), Ok(number));
    }

    #[test]
    fn a_number_is_within_62_bits_and_never_the_roots() {
        let inodes = inodes();
        for id in [[0; 16], [255; 16], {
            let mut id = [0; 16];
            id[0] = 1;
            id
        }] {
            let number = inodes.number(&file("a", id).row);
            assert!(number > ROOT && number < 1 << 62, "{number}");
        }
        assert_eq!(inodes.number(&entry("", "", Kind::Directory).row), ROOT);
        let directory = entry("x", "y", Kind::Directory);
        assert_eq!(inodes.number(&directory.row), inodes.number_of_directory(b"x/y"));
        assert_ne!(inodes.number(&directory.row), inodes.number(&entry("x", "y", Kind::Fifo).row));
        let link = |target: &[u8]| inodes.number(&entry("", "l", Kind::Symlink { target: target.into() }).row);
        assert_ne!(link(b"a"), link(b"b"));
    }

    #[test]
    fn two_objects_with_one_number_are_not_mixed() {
        let inodes = inodes();
        let mut other = [7; 16];
        other[15] = 8;
        let number = inodes.remember(&file("a", [7; 16]), 1).unwrap();
        assert_eq!(inodes.remember(&file("b", other), 1), Err(Collision));
        assert_eq!(inodes.get(number).unwrap().entry.row.name(), b"a");
    }

    #[test]
    fn a_slow_look_up_in_an_old_version_does_not_undo_a_newer_one() {
        let inodes = inodes();
        let old = entry("", "d", Kind::Directory);
        let new = Arc::new(Entry { rank: 9, ..(*old).clone() });
        let number = inodes.remember(&new, 2).unwrap();
        inodes.remember(&old, 1).unwrap();
        assert_eq!(inodes.get(number).unwrap().entry.rank, 9);
        assert!(!inodes.list(number, 2));
        assert!(inodes.list(number, 2));
        assert!(!inodes.list(number, 3));
    }
}
