//! The file that a swarm's secret is in: read where one is named, made by `swarmfs key --new-secret`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;
use tracing::warn;

use crate::secret::{NotASecret, SECRET, Secret};
use crate::settings::NetSettings;

/// More is no secret, whatever it is.
const MOST: u64 = 4096;

#[derive(Debug, Error)]
pub enum SecretError {
    #[error("cannot read the secret file {path:?}: {reason}; `swarmfs key --new-secret FILE` makes one")]
    Unreadable { path: PathBuf, reason: io::Error },
    #[error("{path:?}: {reason}")]
    Malformed { path: PathBuf, reason: NotASecret },
    #[error("{0:?} is there already; name a new file, since nodes that have the old secret would be shut out")]
    Exists(PathBuf),
    #[error("cannot write the secret file {path:?}: {reason}")]
    Unwritable { path: PathBuf, reason: io::Error },
    #[error("the system has no random bytes: {0}")]
    NotRandom(io::Error),
}

/// Reads the secret where a file is named.
pub fn read(net: &mut NetSettings) -> Result<(), SecretError> {
    if let Some(path) = &net.secret_file {
        net.secret = Some(read_from(path)?);
    }
    Ok(())
}

/// One that others can read is said and taken: a board's boot partition knows no permissions, and a service manager's
/// credentials are its own business. A node that refused it would stop a line for a fault that leaks nothing by itself.
fn read_from(path: &Path) -> Result<Secret, SecretError> {
    let unreadable = |reason| SecretError::Unreadable { path: path.to_owned(), reason };
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.is_file() && metadata.mode() & 0o007 != 0 {
        warn!("{path:?} can be read or changed by every user of this host; `chmod o= {}` ends that", path.display());
    }
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes).map_err(unreadable)?;
    let text = String::from_utf8_lossy(&bytes);
    text.parse().map_err(|reason| SecretError::Malformed { path: path.to_owned(), reason })
}

/// A secret that nobody had before.
pub fn draw() -> Result<Secret, SecretError> {
    let mut random = [0; SECRET];
    getrandom::fill(&mut random).map_err(|error| SecretError::NotRandom(error.into()))?;
    Ok(Secret::from_bytes(random))
}

/// A new secret in a new file that only its user can read.
pub fn make(path: &Path) -> Result<(), SecretError> {
    let unwritable = |reason| SecretError::Unwritable { path: path.to_owned(), reason };
    let secret = draw()?;
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(SecretError::Exists(path.to_owned()));
        }
        Err(error) => return Err(unwritable(error)),
    };
    let text = format!("{}\n", secret.reveal());
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(unwritable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_back(path: &Path) -> Result<Secret, SecretError> {
        let mut net = NetSettings { secret_file: Some(path.to_owned()), ..NetSettings::default() };
        read(&mut net).map(|()| net.secret.expect("it was read"))
    }

    #[test]
    fn a_new_secret_is_its_users_own_and_replaces_none() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
        for path in [&one, &other] {
            make(path).unwrap();
            assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
            assert_eq!(path.metadata().unwrap().len(), 65);
        }
        assert_ne!(read_back(&one).unwrap(), read_back(&other).unwrap());
        assert!(matches!(make(&one), Err(SecretError::Exists(_))));
        assert!(matches!(make(&dir.path().join("no/where")), Err(SecretError::Unwritable { .. })));
    }

    #[test]
    fn what_is_no_secret_is_refused_by_name_and_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        assert!(read_back(&path).unwrap_err().to_string().contains("swarmfs key --new-secret"));
        for (text, found) in [("", "0 characters"), ("hunter2\n", "7 characters"), (&*"z".repeat(64), "other")] {
            std::fs::write(&path, text).unwrap();
            let error = read_back(&path).unwrap_err().to_string();
            assert!(error.contains("64 hex digits") && error.contains(found), "{error}");
            assert!(text.is_empty() || !error.contains(text.trim()), "{error}");
        }
        std::fs::write(&path, vec![b'0'; 1 << 20]).unwrap();
        assert!(matches!(read_back(&path), Err(SecretError::Malformed { .. })));
    }

    #[test]
    fn without_a_file_there_is_no_secret() {
        let mut net = NetSettings::default();
        read(&mut net).unwrap();
        assert_eq!(net, NetSettings::default());
    }
}
