//! The tree on disk.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::keys::OriginKey;
use crate::wire::head::TreeName;

#[derive(Debug, Error)]
pub enum StateError {
    #[error("no directory for state")]
    Nowhere,
}

#[derive(Debug, Error)]
pub enum OriginError {
    #[error("cannot serve {path}: {source}; give a directory that this user can list")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    State(#[from] StateError),
}

pub struct StateDir {}

impl StateDir {
    pub fn locate() -> Result<StateDir, StateError> {
        unimplemented!()
    }

    pub fn key(&self) -> Result<OriginKey, StateError> {
        unimplemented!()
    }
}

pub struct Tree {}

impl Tree {
    pub fn open(_dir: &Path, _name: TreeName, _state: &StateDir, _key: OriginKey) -> Result<Tree, OriginError> {
        unimplemented!()
    }
}
