//! The host's origin key: made at first use, taken to other hosts and taken from them.

use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::{StateDir, StateError, checked, hex, put_new, read_text, replace, text_of, unchecked, unhex, unusable};
use crate::keys::{OriginKey, PublicKey};

/// The secret key as it is written to a file and read from one.
pub struct KeyText([u8; 32]);

/// What came of taking a key from elsewhere.
#[derive(Debug, PartialEq, Eq)]
pub enum Imported {
    /// It was this host's already.
    Same,
    New,
    /// The one before, told by its fingerprint unless it was damaged, is in this file.
    Replaced {
        before: Option<String>,
        aside: PathBuf,
    },
}

/// What came of writing the key to a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Exported {
    /// The file had it already.
    Same,
    Written,
}

impl KeyText {
    /// Reads an exported key; `path` is what the error names.
    pub fn read(from: impl Read, path: &Path) -> Result<KeyText, StateError> {
        let text = text_of(from).map_err(|source| StateError::File { path: path.to_owned(), source })?;
        let refused = |reason| StateError::NotExported { path: path.to_owned(), reason };
        if text.is_empty() {
            return Err(refused("no key is in it"));
        }
        parse(&text).map(KeyText).ok_or(refused("it is no key, or damaged"))
    }

    pub fn public(&self) -> PublicKey {
        OriginKey::from_seed(&self.0).public()
    }

    pub fn text(&self) -> String {
        text(&self.0)
    }

    /// Writes it to a file that nobody else can read; over another file only if forced to.
    pub fn export(&self, path: &Path, force: bool) -> Result<Exported, StateError> {
        let failed = |source| StateError::File { path: path.to_owned(), source };
        if read_text(path).map_err(failed)?.as_ref() == Some(&self.text()) {
            keep_secret(path);
            return Ok(Exported::Same);
        }
        let put = if force { replace } else { put_new };
        match put(path, &self.text()) {
            Ok(()) => Ok(Exported::Written),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(StateError::Exists(path.to_owned())),
            Err(error) => Err(failed(error)),
        }
    }
}

impl StateDir {
    /// This host's secret key; made at first use.
    pub fn key(&self) -> Result<OriginKey, StateError> {
        self.key_text().map(|key| OriginKey::from_seed(&key.0))
    }

    /// The same, to be taken to another host.
    pub fn key_text(&self) -> Result<KeyText, StateError> {
        let path = self.key_path();
        if let Some(found) = read_text(&path).map_err(|source| unusable(&path, source))? {
            if let Some(seed) = parse(&found) {
                keep_secret(&path);
                return Ok(KeyText(seed));
            }
            let aside = path.with_extension("key.damaged");
            warn!(path = %path.display(), aside = %aside.display(),
                "the key is damaged; it is put aside and a new one made: readers that pinned it will refuse");
            std::fs::rename(&path, &aside).map_err(|source| unusable(&path, source))?;
        }
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| unusable(&path, io::Error::other(error.to_string())))?;
        match put_new(&path, &text(&seed)) {
            Ok(()) => Ok(KeyText(seed)),
            // Another process was faster: its key is the host's.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let found = read_text(&path).map_err(|source| unusable(&path, source))?;
                found.and_then(|text| parse(&text)).map(KeyText).ok_or_else(|| unusable(&path, error))
            }
            Err(source) => Err(unusable(&path, source)),
        }
    }

    /// Makes another host's key this one's. A key that was here before is put aside, and only if forced to: readers that
    /// trust it will refuse.
    pub fn import_key(&self, key: &KeyText, force: bool) -> Result<Imported, StateError> {
        let path = self.key_path();
        let fail = |source| unusable(&path, source);
        let Some(found) = read_text(&path).map_err(fail)? else {
            return match put_new(&path, &key.text()) {
                Ok(()) => Ok(Imported::New),
                Err(source) => Err(fail(source)),
            };
        };
        let is = parse(&found).map(|seed| OriginKey::from_seed(&seed).public());
        if is == Some(key.public()) {
            keep_secret(&path);
            return Ok(Imported::Same);
        }
        let before = is.map(|key| key.fingerprint());
        if !force {
            return Err(StateError::OtherKey(before.unwrap_or_else(|| "which is damaged".to_owned())));
        }
        let aside = path.with_extension(format!("key.{}", before.as_deref().unwrap_or("damaged")));
        replace(&aside, &found).map_err(fail)?;
        replace(&path, &key.text()).map_err(fail)?;
        Ok(Imported::Replaced { before, aside })
    }

    fn key_path(&self) -> PathBuf {
        self.path.join("origin.key")
    }
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

fn text(seed: &[u8; 32]) -> String {
    checked(format!("swarmfs-key-1 {}", hex(seed)))
}

fn parse(text: &str) -> Option<[u8; 32]> {
    unhex(unchecked(text)?.strip_prefix("swarmfs-key-1 ")?)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        put_new(&state.key_path(), &text(&[1; 32])).unwrap();
        let late = put_new(&state.key_path(), &text(&[2; 32])).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(state.key().unwrap().public(), OriginKey::from_seed(&[1; 32]).public());
    }

    #[test]
    fn an_exported_key_is_another_hosts_after_import_and_closed_on_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| StateDir::at(dir.path().join(name)).unwrap());
        let file = dir.path().join("secret");
        let key = a.key_text().unwrap();
        assert_eq!(key.export(&file, false).unwrap(), Exported::Written);
        assert_eq!(key.export(&file, false).unwrap(), Exported::Same);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let carried = KeyText::read(std::fs::File::open(&file).unwrap(), &file).unwrap();
        assert_eq!(b.import_key(&carried, false).unwrap(), Imported::New);
        assert_eq!(b.import_key(&carried, false).unwrap(), Imported::Same);
        assert_eq!(b.key().unwrap().public(), a.key().unwrap().public());
    }

    #[test]
    fn another_key_is_overwritten_only_by_force_and_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path().join("state")).unwrap();
        let old = state.key_text().unwrap();
        let new = KeyText([9; 32]);
        assert!(
            matches!(state.import_key(&new, false), Err(StateError::OtherKey(is)) if is == old.public().fingerprint())
        );
        assert_eq!(state.key().unwrap().public(), old.public());
        let Imported::Replaced { before, aside } = state.import_key(&new, true).unwrap() else { panic!() };
        assert_eq!(before, Some(old.public().fingerprint()));
        assert_eq!(state.key().unwrap().public(), new.public());
        assert_eq!(std::fs::read_to_string(&aside).unwrap(), old.text());
        let file = dir.path().join("file");
        std::fs::write(&file, "a letter").unwrap();
        assert!(matches!(new.export(&file, false), Err(StateError::Exists(_))));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "a letter");
        assert_eq!(new.export(&file, true).unwrap(), Exported::Written);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_exported_key_is_refused() {
        let whole = text(&[3; 32]);
        let refused = |bytes: &[u8]| KeyText::read(bytes, Path::new("x")).is_err();
        assert!(!refused(whole.as_bytes()));
        for len in 0..whole.len() {
            assert!(refused(&whole.as_bytes()[..len]), "{len} bytes");
        }
        assert!(refused(&[whole.as_bytes(), b"more"].concat()));
        assert!(refused(&[b'x'; 100_000]) && refused(b"\xff"));
    }
}
