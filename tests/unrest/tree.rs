//! A tree that changes while it is served, and the memory of every version that each of its files ever had.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::lab::samples::{self, Digest};

/// Names and about how large each is. The sum is above a node's cache, two are above a chunk, and the smallest are what
/// packs are made of.
const FILES: [(&str, usize); 8] = [
    ("image", 18 << 20),
    ("boards/image", 17 << 20),
    ("boards/root.tar", 6 << 20),
    ("boards/a/boot", 1 << 20),
    ("boards/a/dtb", 70_000),
    ("boards/b/dtb", 30_000),
    ("etc/one", 900),
    ("etc/two", 100),
];

pub struct Tree {
    pub dir: PathBuf,
    /// Where new files are made; on the same filesystem.
    yard: PathBuf,
    files: Mutex<BTreeMap<&'static str, Vec<Version>>>,
}

/// None where the file was removed.
type Version = Option<Digest>;

impl Tree {
    pub fn new(scratch: &Path, random: &mut fastrand::Rng) -> Tree {
        let tree = Tree { dir: scratch.join("tree"), yard: scratch.join("yard"), files: Mutex::default() };
        fs::create_dir(&tree.yard).unwrap();
        for (name, size) in FILES {
            fs::create_dir_all(tree.dir.join(name).parent().unwrap()).unwrap();
            tree.replace(name, &content(size, random));
        }
        tree
    }

    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        FILES.into_iter().map(|(name, _)| name)
    }

    pub fn any_name(&self, random: &mut fastrand::Rng) -> &'static str {
        FILES[random.usize(..FILES.len())].0
    }

    /// What the file holds now.
    pub fn now(&self, name: &str) -> Version {
        *self.files.lock().unwrap()[name].last().expect("a file begins with a version")
    }

    /// The place in the file's history of what was read; none if it never was that. Of equal ones the last counts.
    pub fn place(&self, name: &str, read: Version) -> Option<usize> {
        self.files.lock().unwrap()[name].iter().rposition(|version| *version == read)
    }

    /// How many versions the file has had.
    pub fn versions(&self, name: &str) -> usize {
        self.files.lock().unwrap()[name].len()
    }

    /// Changes one file in one of the ways in which people do, and says how.
    pub fn change(&self, random: &mut fastrand::Rng) -> String {
        let (name, size) = FILES[random.usize(..FILES.len())];
        let Some(before) = self.now(name) else {
            self.replace(name, &content(size, random));
            return format!("{name} comes back");
        };
        match random.u32(..10) {
            0..4 => {
                self.replace(name, &content(size * random.usize(8..13) / 10, random));
                format!("{name} is replaced")
            }
            4 | 5 => {
                self.rewrite(name, &content(before.len as usize, random), false);
                format!("{name} is rewritten in place")
            }
            6 => {
                let mut bytes = fs::read(self.dir.join(name)).unwrap();
                bytes.truncate(bytes.len() - bytes.len() / random.usize(3..9));
                self.rewrite(name, &bytes, true);
                format!("{name} is cut")
            }
            7 => {
                self.append(name, &content(random.usize(1..100_000), random));
                format!("{name} grows")
            }
            8 => {
                self.note(name, None);
                fs::remove_file(self.dir.join(name)).unwrap();
                format!("{name} goes")
            }
            _ => {
                let mode = if random.bool() { 0o644 } else { 0o444 };
                fs::set_permissions(self.dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
                format!("{name} has mode {mode:o}")
            }
        }
    }

    /// Remembered before it is so: nobody can read it earlier than that.
    fn note(&self, name: &'static str, version: Version) {
        self.files.lock().unwrap().entry(name).or_default().push(version);
    }

    fn replace(&self, name: &'static str, bytes: &[u8]) {
        let new = self.yard.join("new");
        fs::write(&new, bytes).unwrap();
        self.note(name, Some(samples::digest(bytes).unwrap()));
        fs::rename(new, self.dir.join(name)).unwrap();
    }

    /// In one write, so that there is no version between the two that somebody could rightly be shown.
    fn rewrite(&self, name: &'static str, bytes: &[u8], cut: bool) {
        self.note(name, Some(samples::digest(bytes).unwrap()));
        let mut file = File::options().write(true).open(self.dir.join(name)).unwrap();
        if cut {
            file.set_len(bytes.len() as u64).unwrap();
        } else {
            file.write_all(bytes).unwrap();
        }
    }

    fn append(&self, name: &'static str, more: &[u8]) {
        let path = self.dir.join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend_from_slice(more);
        self.note(name, Some(samples::digest(&*bytes).unwrap()));
        File::options().append(true).open(path).unwrap().write_all(more).unwrap();
    }
}

/// Bytes that no other version has, here and there with zeros, which do not travel.
fn content(size: usize, random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = vec![0; size];
    random.fill(&mut bytes);
    if random.u32(..3) == 0 {
        let start = random.usize(..size);
        let end = random.usize(start..size);
        bytes[start..end].fill(0);
    }
    bytes
}
