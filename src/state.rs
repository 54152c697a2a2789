//! The state directory: what a host remembers, of its own key and of each tree.
//!
//! ```text
//! origin.key              one per host, mode 0600: "swarmfs-key-1 SEED CRC", hex
//! trees/NAME/             what an origin remembers of the tree, see `origin::state`, and readers, see `known`
//! ```
//!
//! Whatever is whole is replaced as a whole (written beside it, flushed, renamed), so a crash leaves the old or the new.
//! What is damaged is put aside or begun anew with a warning: losing it costs reading and hashing again, and, for the
//! key, readers that pinned it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::wire::head::TreeName;

mod key;
mod known;
mod lock;

pub use key::{Exported, Imported, KeyText};
pub use known::Known;
pub use lock::Lock;

/// Longest of the small text files read here.
const MAX_TEXT: u64 = 256;

/// Where a host keeps what must survive its nodes.
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
    #[error("this host has another origin key, {0}; --force puts it aside and takes the new one")]
    OtherKey(String),
    #[error("{0:?} exists and is not this key; name another file, or overwrite it with --force")]
    Exists(PathBuf),
    #[error("{path:?}: {reason}; expected a file that `swarmfs key --export` wrote")]
    NotExported { path: PathBuf, reason: &'static str },
    #[error("{path:?}: {source}")]
    File { path: PathBuf, source: io::Error },
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

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of what is kept about one tree, made if it is missing.
    pub fn of_tree(&self, name: &TreeName) -> Result<PathBuf, StateError> {
        let dir = self.trees_path().join(name.as_str());
        make_dir(&dir)?;
        Ok(dir)
    }

    fn trees_path(&self) -> PathBuf {
        self.path.join("trees")
    }
}

pub fn unusable(path: &Path, source: io::Error) -> StateError {
    StateError::Unusable { path: path.to_owned(), source }
}

pub fn flush_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn make_dir(path: &Path) -> Result<(), StateError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| unusable(path, source))
}

/// Puts a whole text in a file's place; a crash leaves the old one or the new one.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    let fresh = beside(path);
    write_flushed(&fresh, text)?;
    std::fs::rename(&fresh, path)?;
    flush_dir(parent(path))
}

/// Puts a whole text where no file may be yet; `AlreadyExists` where there is one.
pub fn put_new(path: &Path, text: &str) -> io::Result<()> {
    let fresh = beside(path);
    write_flushed(&fresh, text)?;
    let linked = std::fs::hard_link(&fresh, path);
    std::fs::remove_file(&fresh)?;
    linked?;
    flush_dir(parent(path))
}

/// A name of this process's own in the same directory.
fn beside(path: &Path) -> PathBuf {
    parent(path).join(format!(".new.{}", std::process::id()))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
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
pub fn read_text(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    text_of(file).map(Some)
}

fn text_of(from: impl Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    from.take(MAX_TEXT + 1).read_to_end(&mut bytes)?;
    let fits = bytes.len() as u64 <= MAX_TEXT;
    Ok(String::from_utf8(bytes).ok().filter(|_| fits).unwrap_or_default())
}

/// A line with its checksum at the end.
pub fn checked(line: String) -> String {
    let sum = crc32fast::hash(line.as_bytes());
    format!("{line} {sum:08x}\n")
}

/// The line, if its checksum fits.
pub fn unchecked(text: &str) -> Option<&str> {
    let (line, sum) = text.strip_suffix('\n')?.rsplit_once(' ')?;
    (format!("{:08x}", crc32fast::hash(line.as_bytes())) == sum).then_some(line)
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}
