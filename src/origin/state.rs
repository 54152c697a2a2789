//! What an origin remembers of a tree: its last head, and where its segment headers are.
//!
//! ```text
//! trees/NAME/lock         held while the tree is served
//! trees/NAME/head         "swarmfs-head-1 SEQUENCE ROOT CRC": the newest head given out
//! trees/NAME/headers      see `headers`
//! ```

use std::path::PathBuf;

use tracing::warn;

use crate::state::{Lock, StateDir, StateError, checked, hex, read_text, replace, unchecked, unhex, unusable};
use crate::wire::head::{PageHash, TreeName};

/// What is kept about one tree while it is served.
pub struct TreeState {
    dir: PathBuf,
    _lock: Lock,
}

impl TreeState {
    /// What is kept about one tree, and the right to serve it from this host.
    pub fn open(state: &StateDir, name: &TreeName) -> Result<TreeState, StateError> {
        let dir = state.of_tree(name)?;
        let path = dir.join("lock");
        match Lock::take(&path).map_err(|source| unusable(&path, source))? {
            Some(lock) => Ok(TreeState { dir, _lock: lock }),
            None => Err(StateError::InUse(name.clone())),
        }
    }

    /// Sequence and root page of the newest head that was given out, as far as is known.
    pub fn last_head(&self) -> Option<(u64, PageHash)> {
        let path = self.dir.join("head");
        let text = read_text(&path).ok()??;
        let parsed = parse_head(&text);
        if parsed.is_none() {
            warn!(path = %path.display(), "the saved head is damaged; the sequence goes on from the clock");
        }
        parsed
    }

    /// Called before a head is given out, so that no later one is ever below it.
    pub fn save_head(&self, sequence: u64, root: &PageHash) -> Result<(), StateError> {
        let path = self.dir.join("head");
        let text = checked(format!("swarmfs-head-1 {sequence} {}", hex(&root.0)));
        replace(&path, &text).map_err(|source| unusable(&path, source))
    }

    pub fn headers_path(&self) -> PathBuf {
        self.dir.join("headers")
    }
}

fn parse_head(text: &str) -> Option<(u64, PageHash)> {
    let (sequence, root) = unchecked(text)?.strip_prefix("swarmfs-head-1 ")?.split_once(' ')?;
    Some((sequence.parse().ok()?, PageHash(unhex(root)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> TreeName {
        "images".parse().unwrap()
    }

    #[test]
    fn the_last_head_survives_and_a_damaged_one_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path()).unwrap();
        let tree = TreeState::open(&state, &name()).unwrap();
        assert_eq!(tree.last_head(), None);
        tree.save_head(5, &PageHash([1; 32])).unwrap();
        tree.save_head(u64::MAX, &PageHash([2; 32])).unwrap();
        drop(tree);
        let tree = TreeState::open(&state, &name()).unwrap();
        assert_eq!(tree.last_head(), Some((u64::MAX, PageHash([2; 32]))));
        let path = dir.path().join("trees/images/head");
        let text = std::fs::read(&path).unwrap();
        for len in 0..text.len() {
            std::fs::write(&path, &text[..len]).unwrap();
            assert_eq!(tree.last_head(), None, "{len} bytes");
        }
    }

    #[test]
    fn a_tree_is_served_by_one_process_of_a_host() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path()).unwrap();
        let tree = TreeState::open(&state, &name()).unwrap();
        assert!(matches!(TreeState::open(&state, &name()), Err(StateError::InUse(_))));
        assert!(TreeState::open(&state, &"other".parse().unwrap()).is_ok());
        drop(tree);
        assert!(TreeState::open(&state, &name()).is_ok());
    }
}
