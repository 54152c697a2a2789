//! The state directory: the host's secret key, and for each tree its last head and its segment headers.
//!
//! ```text
//! origin.key              one per host, mode 0600: "swarmfs-key-1 SEED CRC", hex
//! trees/NAME/lock         held while the tree is served
//! trees/NAME/head         "swarmfs-head-1 SEQUENCE ROOT CRC": the newest head given out
//! trees/NAME/headers      see `headers`
//! ```
//!
//! Whatever is whole is replaced as a whole (written beside it, flushed, renamed), so a crash leaves the old or the new.
//! What is damaged is put aside or begun anew with a warning: losing it costs reading and hashing again, and, for the
//! key, readers that pinned it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;
use tracing::warn;

use crate::keys::OriginKey;
use crate::wire::head::{PageHash, TreeName};

/// Longest of the small text files read here.
const MAX_TEXT: u64 = 256;

/// Where an origin keeps what must survive it.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
}

#[derive(Debug, Error)]
pub enum StateError {
    #[error("no state directory: set STATE_DIRECTORY, XDG_STATE_HOME or HOME")]
    Nowhere,
    #[error("cannot use the state directory's {path}: {source}; set STATE_DIRECTORY to a writable directory")]
    Unusable { path: PathBuf, source: io::Error },
    #[error("the tree {0:?} is already served by another process of this host; give this one another --name")]
    InUse(TreeName),
}

impl StateDir {
    /// The directory that the environment names: a service manager's, root's, or the user's own.
    pub fn locate() -> Result<StateDir, StateError> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        if let Some(value) = variable("STATE_DIRECTORY") {
            // systemd lists several, separated by colons; ours is the first.
            let first = std::env::split_paths(&value).next().ok_or(StateError::Nowhere)?;
            return StateDir::at(first);
        }
        if rustix::process::geteuid().is_root() {
            return StateDir::at("/var/lib/swarmfs");
        }
        let state = variable("XDG_STATE_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
            .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".local/state")))
            .ok_or(StateError::Nowhere)?;
        StateDir::at(state.join("swarmfs"))
    }

    /// The directory given, made if it is missing.
    pub fn at(path: impl Into<PathBuf>) -> Result<StateDir, StateError> {
        let path = path.into();
        make_dir(&path)?;
        Ok(StateDir { path })
    }

    /// This host's secret key; made at first use.
    pub fn key(&self) -> Result<OriginKey, StateError> {
        let path = self.path.join("origin.key");
        if let Some(text) = read_text(&path).map_err(|source| unusable(&path, source))? {
            if let Some(seed) = parse_key(&text) {
                keep_secret(&path);
                return Ok(OriginKey::from_seed(&seed));
            }
            let aside = path.with_extension("key.damaged");
            warn!(path = %path.display(), aside = %aside.display(),
                "the key is damaged; it is put aside and a new one made: readers that pinned it will refuse");
            std::fs::rename(&path, &aside).map_err(|source| unusable(&path, source))?;
        }
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| unusable(&path, io::Error::other(error.to_string())))?;
        match self.put_key(&path, &seed) {
            Ok(()) => Ok(OriginKey::from_seed(&seed)),
            // Another process was faster: its key is the host's.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let text = read_text(&path).map_err(|source| unusable(&path, source))?;
                let seed = text.and_then(|text| parse_key(&text));
                seed.map(|seed| OriginKey::from_seed(&seed)).ok_or_else(|| unusable(&path, error))
            }
            Err(source) => Err(unusable(&path, source)),
        }
    }

    /// What is kept about one tree, and the right to serve it from this host.
    pub(super) fn tree(&self, name: &TreeName) -> Result<TreeState, StateError> {
        let dir = self.path.join("trees").join(name.as_str());
        make_dir(&dir)?;
        let path = dir.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| unusable(&path, source))?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(TreeState { dir, _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::InUse(name.clone())),
            Err(error) => Err(unusable(&path, error.into())),
        }
    }

    /// Puts a new key in its place unless there is one.
    fn put_key(&self, path: &Path, seed: &[u8; 32]) -> io::Result<()> {
        let fresh = self.path.join(format!(".origin.key.{}", std::process::id()));
        write_flushed(&fresh, &key_text(seed))?;
        let linked = std::fs::hard_link(&fresh, path);
        std::fs::remove_file(&fresh)?;
        linked?;
        flush_dir(&self.path)
    }
}

/// What is kept about one tree while it is served.
pub(super) struct TreeState {
    dir: PathBuf,
    _lock: File,
}

impl TreeState {
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
        let fresh = self.dir.join(".head.new");
        let text = checked(format!("swarmfs-head-1 {sequence} {}", hex(&root.0)));
        write_flushed(&fresh, &text)
            .and_then(|()| std::fs::rename(&fresh, &path))
            .and_then(|()| flush_dir(&self.dir))
            .map_err(|source| unusable(&path, source))
    }

    pub fn headers_path(&self) -> PathBuf {
        self.dir.join("headers")
    }
}

pub(super) fn unusable(path: &Path, source: io::Error) -> StateError {
    StateError::Unusable { path: path.to_owned(), source }
}

pub(super) fn flush_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn make_dir(path: &Path) -> Result<(), StateError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| unusable(path, source))
}

fn write_flushed(path: &Path, text: &str) -> io::Result<()> {
    // One left by a crash may be there; its mode may not be ours.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// A small text file, if it is there; one that is too long or no text reads as empty, which no parser takes.
fn read_text(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_TEXT).read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8(bytes).unwrap_or_default()))
}

/// Others on this host could have read it; who runs this decides what that means.
fn keep_secret(path: &Path) {
    let Ok(metadata) = std::fs::metadata(path) else { return };
    if metadata.permissions().mode() & 0o077 != 0 {
        warn!(path = %path.display(), "the secret key was open to other users; its mode is now 0600");
        if let Err(error) = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)) {
            warn!(path = %path.display(), %error, "the secret key's mode cannot be changed");
        }
    }
}

fn key_text(seed: &[u8; 32]) -> String {
    checked(format!("swarmfs-key-1 {}", hex(seed)))
}

fn parse_key(text: &str) -> Option<[u8; 32]> {
    unhex(unchecked(text)?.strip_prefix("swarmfs-key-1 ")?)
}

fn parse_head(text: &str) -> Option<(u64, PageHash)> {
    let (sequence, root) = unchecked(text)?.strip_prefix("swarmfs-head-1 ")?.split_once(' ')?;
    Some((sequence.parse().ok()?, PageHash(unhex(root)?)))
}

/// A line with its checksum at the end.
fn checked(line: String) -> String {
    let sum = crc32fast::hash(line.as_bytes());
    format!("{line} {sum:08x}\n")
}

fn unchecked(text: &str) -> Option<&str> {
    let (line, sum) = text.strip_suffix('\n')?.rsplit_once(' ')?;
    (format!("{:08x}", crc32fast::hash(line.as_bytes())) == sum).then_some(line)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> TreeName {
        "images".parse().unwrap()
    }

    #[test]
    fn the_key_is_made_once_and_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = StateDir::at(&path).unwrap().key().unwrap().public();
        assert_eq!(StateDir::at(&path).unwrap().key().unwrap().public(), first);
        let key = path.join("origin.key");
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(StateDir::at(&path).unwrap().key().unwrap().public(), first);
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_damaged_key_is_put_aside_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path()).unwrap();
        let first = state.key().unwrap().public();
        let path = dir.path().join("origin.key");
        let mut text = std::fs::read(&path).unwrap();
        text[20] ^= 1;
        std::fs::write(&path, &text).unwrap();
        let second = state.key().unwrap().public();
        assert_ne!(first, second);
        assert_eq!(state.key().unwrap().public(), second);
        assert_eq!(std::fs::read(dir.path().join("origin.key.damaged")).unwrap(), text);
    }

    #[test]
    fn processes_that_start_at_once_agree_on_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path()).unwrap();
        state.put_key(&dir.path().join("origin.key"), &[1; 32]).unwrap();
        let late = state.put_key(&dir.path().join("origin.key"), &[2; 32]).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(state.key().unwrap().public(), OriginKey::from_seed(&[1; 32]).public());
    }

    #[test]
    fn the_last_head_survives_and_a_damaged_one_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path()).unwrap();
        let tree = state.tree(&name()).unwrap();
        assert_eq!(tree.last_head(), None);
        tree.save_head(5, &PageHash([1; 32])).unwrap();
        tree.save_head(u64::MAX, &PageHash([2; 32])).unwrap();
        drop(tree);
        let tree = state.tree(&name()).unwrap();
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
        let tree = state.tree(&name()).unwrap();
        assert!(matches!(state.tree(&name()), Err(StateError::InUse(_))));
        assert!(state.tree(&"other".parse().unwrap()).is_ok());
        drop(tree);
        assert!(state.tree(&name()).is_ok());
    }
}
