//! The keys that this host's readers trust, by tree: the first one seen of each is remembered.
//!
//! ```text
//! trees/NAME/trusted      "swarmfs-trusted-1 KEY SECONDS CRC": the public key, and when it was first seen
//! ```

use std::io;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::warn;

use super::{StateDir, StateError, checked, flush_dir, put_new, read_text, unchecked, unusable};
use crate::keys::PublicKey;
use crate::wire::head::TreeName;

/// A tree's key as this host remembers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    pub key: PublicKey,
    /// When it was first seen, in seconds since 1970.
    pub since_s: i64,
}

impl StateDir {
    /// The key remembered for a tree. What is damaged counts as never seen, with a warning: it cannot be told from it.
    pub fn known(&self, tree: &TreeName) -> Result<Option<Known>, StateError> {
        let path = self.known_path(tree);
        let Some(text) = read_text(&path).map_err(|source| unusable(&path, source))? else { return Ok(None) };
        let known = parse(&text);
        if known.is_none() {
            warn!(path = %path.display(), "the key remembered for this tree is damaged: the next one seen is trusted");
            std::fs::remove_file(&path).map_err(|source| unusable(&path, source))?;
        }
        Ok(known)
    }

    /// Remembers the first key seen of a tree. What was remembered before stays, and is returned.
    pub fn remember(&self, tree: &TreeName, key: PublicKey) -> Result<Known, StateError> {
        if let Some(known) = self.known(tree)? {
            return Ok(known);
        }
        self.of_tree(tree)?;
        let path = self.known_path(tree);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let fresh = Known { key, since_s: since.as_secs() as i64 };
        match put_new(&path, &text(&fresh)) {
            Ok(()) => Ok(fresh),
            // Another process saw one at the same moment.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(self.known(tree)?.unwrap_or(fresh)),
            Err(source) => Err(unusable(&path, source)),
        }
    }

    /// Takes back the trust in a tree's key; the one that it was.
    pub fn forget(&self, tree: &TreeName) -> Result<Option<Known>, StateError> {
        let Some(known) = self.known(tree)? else { return Ok(None) };
        let path = self.known_path(tree);
        let dir = path.parent().expect("the path was put together from a directory and a name");
        std::fs::remove_file(&path).and_then(|()| flush_dir(dir)).map_err(|source| unusable(&path, source))?;
        Ok(Some(known))
    }

    /// All trees whose key is remembered, by name.
    pub fn all_known(&self) -> Result<Vec<(TreeName, Known)>, StateError> {
        let path = self.trees_path();
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(unusable(&path, source)),
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<TreeName>().ok());
        let mut known = Vec::new();
        for name in names {
            known.extend(self.known(&name)?.map(|key| (name, key)));
        }
        known.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(known)
    }

    fn known_path(&self, tree: &TreeName) -> PathBuf {
        self.trees_path().join(tree.as_str()).join("trusted")
    }
}

fn text(known: &Known) -> String {
    checked(format!("swarmfs-trusted-1 {} {}", known.key, known.since_s))
}

fn parse(text: &str) -> Option<Known> {
    let (key, since) = unchecked(text)?.strip_prefix("swarmfs-trusted-1 ")?.split_once(' ')?;
    Some(Known { key: key.parse().ok()?, since_s: since.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::keys::OriginKey;

    fn key(seed: u8) -> PublicKey {
        OriginKey::from_seed(&[seed; 32]).public()
    }

    #[test]
    fn the_first_key_of_a_tree_is_remembered_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path()).unwrap();
        let [a, b] = ["images", "größe 1"].map(|name| name.parse::<TreeName>().unwrap());
        assert_eq!((state.known(&a).unwrap(), state.all_known().unwrap()), (None, vec![]));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a question leaves nothing behind");
        let first = state.remember(&a, key(1)).unwrap();
        assert_eq!(first.key, key(1));
        assert_eq!(state.remember(&a, key(2)).unwrap(), first);
        state.remember(&b, key(2)).unwrap();
        let again = StateDir::at(dir.path()).unwrap();
        assert_eq!(again.known(&a).unwrap(), Some(first));
        assert_eq!(again.all_known().unwrap().len(), 2);
        assert_eq!(again.forget(&a).unwrap(), Some(first));
        assert_eq!(again.forget(&a).unwrap(), None);
        assert_eq!(again.remember(&a, key(3)).unwrap().key, key(3));
    }

    #[test]
    fn a_memory_that_is_cut_or_changed_anywhere_is_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path()).unwrap();
        let tree: TreeName = "images".parse().unwrap();
        state.remember(&tree, key(1)).unwrap();
        let path = state.known_path(&tree);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            for wrong in [&whole[..at], &flipped] {
                std::fs::write(&path, wrong).unwrap();
                assert_eq!(state.known(&tree).unwrap(), None, "byte {at}");
            }
        }
        assert_eq!(state.remember(&tree, key(2)).unwrap().key, key(2));
    }

    #[test]
    fn a_place_that_cannot_be_written_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path()).unwrap();
        std::fs::write(dir.path().join("trees"), "no directory").unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o500)).unwrap();
        assert!(state.remember(&"images".parse().unwrap(), key(1)).is_err());
    }
}
