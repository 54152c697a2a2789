//! The kernel's side of a mount.

use crate::driver::Client;
use crate::settings::MountSettings;

pub mod daemon {
    //! Into the background.

    use std::io;

    pub enum Role {
        Parent(Outcome),
        Child(Readiness),
    }

    #[derive(Clone, PartialEq, Eq, Debug)]
    pub struct Outcome {
        pub status: u8,
        pub message: String,
    }

    pub struct Readiness {}

    pub fn daemonize(_foreground: bool) -> io::Result<Role> {
        unimplemented!()
    }

    impl Readiness {
        pub fn ready(self) -> io::Result<()> {
            unimplemented!()
        }

        pub fn failed(self, _status: u8, _message: &str) -> Outcome {
            unimplemented!()
        }

        pub fn is_foreground(&self) -> bool {
            unimplemented!()
        }
    }
}

pub mod mount {
    //! Mounting and unmounting.

    use std::io;
    use std::path::{Path, PathBuf};

    use thiserror::Error;

    #[derive(Debug, Error)]
    pub enum MountError {
        #[error("mount point {0:?} does not exist; create it with `mkdir -p`")]
        Missing(PathBuf),
        #[error("mount point {0:?} is not a directory; name an empty directory")]
        NotADirectory(PathBuf),
        #[error("mount point {0:?} cannot be reached: {1}")]
        Unreachable(PathBuf, io::Error),
    }

    #[derive(Debug, Error)]
    pub enum UnmountError {
        #[error("nothing is mounted on {0:?}; `findmnt -t fuse.swarmfs` lists the mounts of swarmfs")]
        NotMounted(PathBuf),
    }

    pub fn unmount(_point: &Path, _lazy: bool) -> Result<(), UnmountError> {
        unimplemented!()
    }
}

/// A mount that answers.
pub struct Session {}

/// Mounts what the node reads, and returns when the mount answers.
pub fn start(_client: &Client, _settings: &MountSettings) -> Result<Session, mount::MountError> {
    unimplemented!()
}

impl Session {
    /// Done when the mount is gone, whoever took it away.
    pub async fn ended(&self) {
        unimplemented!()
    }

    /// Takes the mount away if it is still there; every waiting request is answered.
    pub fn unmount(self) -> Result<(), mount::UnmountError> {
        unimplemented!()
    }
}
