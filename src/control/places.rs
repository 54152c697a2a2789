//! Where control sockets are.
//!
//! The environment is handed in, so that what it says can be tested.

use std::ffi::OsString;
use std::path::PathBuf;

use thiserror::Error;

/// What is asked of the environment.
pub struct Environment<'a> {
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// Whether the process runs as root.
    pub root: bool,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlaceError {
    #[error("no directory for control sockets: expected XDG_RUNTIME_DIR or RUNTIME_DIRECTORY to name one")]
    Runtime,
}

impl Environment<'_> {
    /// `$RUNTIME_DIRECTORY` as systemd sets it, else /run/swarmfs as root, else in the user's own runtime directory.
    pub fn runtime_dir(&self) -> Result<PathBuf, PlaceError> {
        if let Some(dir) = self.named_by_service("RUNTIME_DIRECTORY") {
            return Ok(dir);
        }
        if self.root {
            return Ok(PathBuf::from("/run/swarmfs"));
        }
        self.absolute("XDG_RUNTIME_DIR").map(|dir| dir.join("swarmfs")).ok_or(PlaceError::Runtime)
    }

    /// The first of the directories that systemd names, separated by colons.
    fn named_by_service(&self, name: &str) -> Option<PathBuf> {
        let value = (self.variable)(name)?;
        std::env::split_paths(&value).next().filter(|dir| dir.is_absolute())
    }

    /// The XDG base directory specification has relative paths ignored.
    fn absolute(&self, name: &str) -> Option<PathBuf> {
        (self.variable)(name).map(PathBuf::from).filter(|dir| dir.is_absolute())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(variables: &[(&str, &str)], root: bool) -> Result<PathBuf, PlaceError> {
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
        Environment { variable: &variable, root }.runtime_dir()
    }

    #[test]
    fn a_service_is_told_its_directory() {
        let variables = [("RUNTIME_DIRECTORY", "/run/a:/run/b"), ("XDG_RUNTIME_DIR", "/run/user/7")];
        for root in [true, false] {
            assert_eq!(place(&variables, root), Ok("/run/a".into()));
        }
    }

    #[test]
    fn root_and_users_have_places_of_their_own() {
        let variables = [("XDG_RUNTIME_DIR", "/run/user/7")];
        assert_eq!(place(&variables, true), Ok("/run/swarmfs".into()));
        assert_eq!(place(&variables, false), Ok("/run/user/7/swarmfs".into()));
    }

    #[test]
    fn nothing_and_relative_paths_name_no_place() {
        assert_eq!(place(&[], false), Err(PlaceError::Runtime));
        assert_eq!(place(&[("XDG_RUNTIME_DIR", "run"), ("RUNTIME_DIRECTORY", "a")], false), Err(PlaceError::Runtime));
    }
}
