//! The program as mount(8) calls it: mount(8)'s arguments and exit statuses.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use clap::Parser;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::log::{self, Talk};
use super::{RunError, config, is_root, mount, ram_bytes, say, secret, usage};
use crate::cli::HelperArgs;
use crate::driver::DiscoverError;
use crate::fuse::{Death, MountError, Outcome};

/// What mount(8) says that its exit statuses mean.
mod status {
    pub const DONE: u8 = 0;
    /// Incorrect invocation or permissions.
    pub const USAGE: u8 = 1;
    /// The system failed: out of memory, cannot fork, no device.
    pub const SYSTEM: u8 = 2;
    /// A bug.
    pub const BUG: u8 = 4;
    pub const INTERRUPTED: u8 = 8;
    /// The table of mounts.
    pub const TABLE: u8 = 16;
    pub const FAILED: u8 = 32;
}

/// Runs the helper and gives its exit status.
pub fn main(arguments: Vec<OsString>) -> u8 {
    let args = match HelperArgs::try_parse_from(arguments) {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    log::start(args.verbose, Talk::Later);
    super::allow_many_files();
    run(args).unwrap_or_else(|error| {
        say(&error.to_string());
        status_of(&error)
    })
}

fn run(args: HelperArgs) -> Result<u8, RunError> {
    let file = config::read(None)?;
    let (fake, namespace) = (args.fake, args.namespace.clone());
    let mut request = args.settings(&file, ram_bytes(), is_root())?;
    if fake {
        return Ok(status::DONE);
    }
    // Its path is one of whoever calls, as all others are.
    secret::read(&mut request.net)?;
    if let Some(namespace) = namespace {
        enter(&namespace).map_err(|reason| RunError::Namespace { path: namespace, reason })?;
    }
    mount::mount(&request, &|error| status_of(error)).map(|outcome| {
        if !outcome.message.is_empty() {
            say(&outcome.message);
        }
        status_after(&outcome)
    })
}

fn enter(namespace: &Path) -> std::io::Result<()> {
    let namespace = File::open(namespace)?;
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?)
}

fn status_after(outcome: &Outcome) -> u8 {
    match outcome.death {
        None => outcome.status,
        Some(Death::Asked) => status::INTERRUPTED,
        Some(Death::Crashed) => status::BUG,
    }
}

fn status_of(error: &RunError) -> u8 {
    match error {
        RunError::Option(_)
        | RunError::Config { .. }
        | RunError::Unreadable { .. }
        | RunError::Secret(_)
        | RunError::Discover { error: DiscoverError::SeveralTrees(_), .. }
        | RunError::Mount(MountError::NotPermitted(_) | MountError::DeviceClosed | MountError::NoHelper) => {
            status::USAGE
        }
        RunError::Place(_)
        | RunError::Start(_)
        | RunError::Background(_)
        | RunError::LogFile { .. }
        | RunError::Namespace { .. }
        | RunError::Mount(MountError::NoDevice | MountError::NoFuse | MountError::System(..)) => status::SYSTEM,
        RunError::Mount(MountError::NoTable(_)) => status::TABLE,
        _ => status::FAILED,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::cli::OptionError;

    #[test]
    fn exit_statuses_are_those_of_mount_8() {
        let mount = RunError::Mount;
        for (error, expected) in [
            (RunError::Option(OptionError::ReadWrite), 1),
            (mount(MountError::NotPermitted("/mnt".into())), 1),
            (mount(MountError::NoDevice), 2),
            (RunError::Start(io::ErrorKind::OutOfMemory.into()), 2),
            (mount(MountError::NoTable(io::ErrorKind::NotFound.into())), 16),
            (mount(MountError::Missing("/mnt".into())), 32),
        ] {
            assert_eq!(status_of(&error), expected, "{error}");
        }
        let ended = |death| status_after(&Outcome { status: 2, message: String::new(), death });
        assert_eq!([ended(None), ended(Some(Death::Crashed)), ended(Some(Death::Asked))], [2, 4, 8]);
    }
}
