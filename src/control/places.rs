//! Where a node's files are: sockets in the runtime directory, keys and headers in the state directory.
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
    #[error("no directory for state: expected HOME, XDG_STATE_HOME or STATE_DIRECTORY to name one")]
    State,
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

    /// `$STATE_DIRECTORY` as systemd sets it, else /var/lib/swarmfs as root, else in the user's state directory.
    pub fn state_dir(&self) -> Result<PathBuf, PlaceError> {
        if let Some(dir) = self.named_by_service("STATE_DIRECTORY") {
            return Ok(dir);
        }
        if self.root {
            return Ok(PathBuf::from("/var/lib/swarmfs"));
        }
        let home = || self.absolute("HOME").map(|home| home.join(".local/state"));
        self.absolute("XDG_STATE_HOME").or_else(home).map(|dir| dir.join("swarmfs")).ok_or(PlaceError::State)
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

    fn places(variables: &[(&str, &str)], root: bool) -> (Result<PathBuf, PlaceError>, Result<PathBuf, PlaceError>) {
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
        let environment = Environment { variable: &variable, root };
        (environment.runtime_dir(), environment.state_dir())
    }

    #[test]
    fn a_service_is_told_its_directories() {
        let variables = [("RUNTIME_DIRECTORY", "/run/a:/run/b"), ("STATE_DIRECTORY", "/var/lib/a"), ("HOME", "/h")];
        for root in [true, false] {
            assert_eq!(places(&variables, root), (Ok("/run/a".into()), Ok("/var/lib/a".into())));
        }
    }

    #[test]
    fn root_and_users_have_places_of_their_own() {
        let variables = [("XDG_RUNTIME_DIR", "/run/user/7"), ("HOME", "/home/a")];
        assert_eq!(places(&variables, true), (Ok("/run/swarmfs".into()), Ok("/var/lib/swarmfs".into())));
        let (runtime, state) = places(&variables, false);
        assert_eq!(runtime, Ok("/run/user/7/swarmfs".into()));
        assert_eq!(state, Ok("/home/a/.local/state/swarmfs".into()));
        let (_, state) = places(&[("XDG_STATE_HOME", "/s"), ("HOME", "/home/a")], false);
        assert_eq!(state, Ok("/s/swarmfs".into()));
    }

    #[test]
    fn nothing_and_relative_paths_name_no_place() {
        let nowhere = (Err(PlaceError::Runtime), Err(PlaceError::State));
        assert_eq!(places(&[], false), nowhere);
        assert_eq!(places(&[("XDG_RUNTIME_DIR", "run"), ("HOME", ""), ("STATE_DIRECTORY", "a")], false), nowhere);
    }
}
