//! The paths that are known by now, and the catalogue of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::catalogue::{Attributes, Kind, Page, Row, Time, build};
use crate::chunk::ObjectId;
use crate::keys::OriginKey;
use crate::wire::head::{PageHash, TreeHead, TreeName};

/// How long a name that nobody answered for stays a directory while no file was found below it.
const GUESSED: Duration = Duration::from_secs(10);
/// Files and directories known: a program that tries names at random must not fill the memory.
const MOST: usize = 65_536;

/// A head and its pages.
pub struct Shown {
    pub head: Arc<TreeHead>,
    pub pages: HashMap<PageHash, Arc<Page>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct File {
    pub object: ObjectId,
    pub size: u64,
    found: Time,
}

#[derive(Default)]
pub struct Names {
    files: BTreeMap<String, File>,
    objects: HashMap<ObjectId, String>,
    /// Names taken for directories, and since when.
    guessed: BTreeMap<String, Instant>,
    changes: u64,
}

impl Names {
    pub fn file(&self, path: &str) -> Option<File> {
        self.files.get(path).copied()
    }

    pub fn path(&self, object: &ObjectId) -> Option<&str> {
        self.objects.get(object).map(String::as_str)
    }

    /// Whether something is shown at this path.
    pub fn has(&self, path: &str) -> bool {
        let below = format!("{path}/");
        let mut after = self.files.range(below.clone()..);
        self.files.contains_key(path)
            || self.guessed.contains_key(path)
            || after.next().is_some_and(|(file, _)| file.starts_with(&below))
    }

    /// A file of this size was found, or found again as another one. None where it cannot be shown.
    pub fn add(&mut self, path: &str, size: u64) -> Option<File> {
        if self.files.len() >= MOST {
            return None;
        }
        self.remove(path);
        self.guessed.remove(path);
        self.changes += 1;
        // What cannot be known stands for when it was found, so that a file found anew is another object.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let found = Time { sec: since.as_secs() as i64, nsec: since.subsec_nanos() };
        let object = ObjectId::of_version(path.as_bytes(), size, found.as_ns(), self.changes);
        let file = File { object, size, found };
        regular(path, &file)?;
        // One that cannot be shown would hide all others.
        path.match_indices('/').map(|(slash, _)| directory(&path[..slash])).collect::<Option<Vec<_>>>()?;
        self.files.insert(path.to_owned(), file);
        self.objects.insert(object, path.to_owned());
        Some(file)
    }

    /// A file is not what it was.
    pub fn remove(&mut self, path: &str) {
        if let Some(file) = self.files.remove(path) {
            self.objects.remove(&file.object);
            self.changes += 1;
        }
    }

    /// Nobody answers for this name: perhaps it is a directory.
    pub fn guess(&mut self, path: &str, now: Instant) -> bool {
        let room = self.guessed.len() < MOST;
        if room {
            self.guessed.insert(path.to_owned(), now);
            self.changes += 1;
        }
        room
    }

    /// Forgets guesses that came to nothing; whether any was.
    pub fn forget_guesses(&mut self, now: Instant) -> bool {
        let before = self.guessed.len();
        self.guessed.retain(|_, since| now.saturating_duration_since(*since) < GUESSED);
        let changed = self.guessed.len() != before;
        self.changes += u64::from(changed);
        changed
    }

    /// The catalogue of what is known.
    pub fn shown(&self, name: &TreeName, key: &OriginKey) -> Result<Shown, String> {
        let refused = |path: &str| format!("{path:?} cannot be shown");
        let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
        rows.insert("", directory("").ok_or("no root")?);
        let guessed = self.guessed.keys().map(|path| (path, None));
        for (path, file) in self.files.iter().map(|(path, file)| (path, Some(file))).chain(guessed) {
            for (slash, _) in path.match_indices('/') {
                let above = &path[..slash];
                // A file that others lie below of was one once.
                rows.insert(above, directory(above).ok_or_else(|| refused(above))?);
            }
            let row = match file {
                Some(file) => regular(path, file),
                None => directory(path),
            };
            rows.entry(path).or_insert(row.ok_or_else(|| refused(path))?);
        }
        let built = build(rows.into_values()).map_err(|error| error.to_string())?;
        let page = |bytes| Page::parse(bytes).map(Arc::new).map_err(|error| error.to_string());
        let pages: Result<_, String> = built.pages.into_iter().map(|(hash, bytes)| Ok((hash, page(bytes)?))).collect();
        let head = TreeHead::sign(name.clone(), self.changes, built.root, built.root_level, built.totals, key);
        Ok(Shown { head: Arc::new(head), pages: pages? })
    }
}

fn directory(path: &str) -> Option<Row> {
    let (dir, name) = split(path);
    let attributes = Attributes { mode: 0o755, nlink: 2, ..Attributes::default() };
    Row::new(dir, name, Kind::Directory, attributes, Vec::new()).ok()
}

fn regular(path: &str, file: &File) -> Option<Row> {
    let (dir, name) = split(path);
    let File { object, size, found } = *file;
    let blocks = size.div_ceil(512);
    let attributes = Attributes { mode: 0o444, nlink: 1, size, blocks, mtime: found, ..Attributes::default() };
    Row::new(dir, name, Kind::File { object }, attributes, Vec::new()).ok()
}

fn split(path: &str) -> (&[u8], &[u8]) {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    (dir.as_bytes(), name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{Pages, View};

    impl Pages for Shown {
        fn page(&self, hash: &PageHash) -> Option<Arc<Page>> {
            self.pages.get(hash).cloned()
        }
    }

    fn listed(names: &Names, dir: &str) -> Vec<String> {
        let shown = names.shown(&"images".parse().unwrap(), &OriginKey::from_seed(&[1; 32])).unwrap();
        let view = View::new(shown.head.root, shown.head.root_level);
        let entries = view.entries(&shown, dir.as_bytes(), None, 100).unwrap();
        entries.iter().map(|entry| String::from_utf8(entry.row.name().to_vec()).unwrap()).collect()
    }

    #[test]
    fn a_file_shows_with_the_directories_above_it_and_a_guess_until_it_is_old() {
        let (mut names, now) = (Names::default(), Instant::now());
        assert_eq!(listed(&names, ""), [""; 0]);
        names.guess("a", now);
        names.guess("typo", now);
        assert_eq!(listed(&names, ""), ["a", "typo"]);
        names.add("a/b/c.img", 7).unwrap();
        assert_eq!(listed(&names, "a/b"), ["c.img"]);
        assert!(names.has("a") && names.has("a/b") && names.has("a/b/c.img") && !names.has("a/b/c"));
        assert!(!names.forget_guesses(now) && names.forget_guesses(now + GUESSED));
        assert_eq!(listed(&names, ""), ["a"]);
        names.remove("a/b/c.img");
        assert_eq!(listed(&names, ""), [""; 0]);
    }

    #[test]
    fn a_file_that_is_found_anew_is_another_object() {
        let mut names = Names::default();
        let first = names.add("a", 7).unwrap();
        let second = names.add("a", 7).unwrap();
        assert_ne!(first.object, second.object);
        assert_eq!((names.path(&first.object), names.path(&second.object)), (None, Some("a")));
    }
}
