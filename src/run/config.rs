//! The configuration file, read where there is one. Nothing needs it.

use std::io;
use std::path::{Path, PathBuf};

use super::RunError;
use crate::cli::FileSettings;

const PATH: &str = "/etc/swarmfs/swarmfs.conf";

/// What the file says that was named, which must exist, or the usual one, which need not.
pub fn read(named: Option<&Path>) -> Result<FileSettings, RunError> {
    let path: PathBuf = named.unwrap_or(Path::new(PATH)).into();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => return Ok(FileSettings::default()),
        Err(reason) => return Err(RunError::Unreadable { path, reason }),
    };
    FileSettings::parse(&text).map_err(|error| RunError::Config { path, error: Box::new(error) })
}
