//! The commands: settings in, an exit status out.
//!
//! Wiring only: it starts nodes, sessions and sockets and waits for what ends them. The invariants: a command that fails
//! says so in one message on standard error that names the thing and what to do; nothing is written to standard output
//! but what was asked for; standard output that is closed early ends a command without a word, as it ends any filter.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use thiserror::Error;

use crate::cli::{Cli, Command, OptionError, StatusArgs, UmountArgs};
use crate::control::client::{ClientError, nodes_in};
use crate::control::places::{Environment, PlaceError};
use crate::control::{Failure, Status};
use crate::driver::DiscoverError;
use crate::fuse::{MountError, UnmountError};
use crate::origin::OriginError;
use crate::settings::NetSettings;
use crate::wire::head::TreeName;

mod access;
mod list;
mod live;
mod log;
mod mount;
mod serve;
mod show;

/// Exit statuses; the first three are mount(8)'s. `cat` and `ls` end with `PIPE`, as a filter that SIGPIPE ended, where their
/// reader went away.
mod status {
    pub const DONE: u8 = 0;
    pub const USAGE: u8 = 1;
    pub const SYSTEM: u8 = 2;
    pub const PIPE: u8 = 128 + 13;
}

/// Why a command failed.
#[derive(Debug, Error)]
pub enum RunError {
    #[error(transparent)]
    Option(#[from] OptionError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("{}", live::explain(.error, .net, .tree.as_ref()))]
    Discover { error: DiscoverError, net: Box<NetSettings>, tree: Option<TreeName> },
    /// Nodes of this host have different trees, and none was named.
    #[error("this host's nodes have several trees; name one of them:{}", show::indented(.0))]
    SeveralHere(Vec<String>),
    #[error("cannot serve {dir:?}: {reason}; name a directory that can be read")]
    Directory { dir: PathBuf, reason: io::Error },
    #[error(
        "cannot call a tree {name:?}, as its directory is called; give it a name with --name, for example --name images"
    )]
    Unnamed { name: OsString },
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error("cannot start the node: {0}")]
    Start(io::Error),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Unmount(#[from] UnmountError),
    /// Datagrams pass and connections do not, most likely.
    #[error(
        "found the tree {:?}, but for {} s got nothing from those who have it; do firewalls let TCP ports {first} to \
         {last} through?",
        .tree.as_str(), .waited.as_secs()
    )]
    Unreached { tree: TreeName, waited: Duration, first: u16, last: u16 },
    #[error("cannot show {:?} of the tree: {reason}", .subdir)]
    Root { subdir: PathBuf, reason: Failure },
    #[error("cannot go into the background: {0}")]
    Background(io::Error),
    #[error("cannot list {dir:?}: {reason}")]
    Sockets { dir: PathBuf, reason: io::Error },
    #[error("{}: {error}", .path.to_string_lossy())]
    Path { path: OsString, error: ClientError },
    /// Each was named when it happened.
    #[error("not everything that was asked for could be read")]
    Reported,
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
}

impl RunError {
    fn status(&self) -> u8 {
        match self {
            RunError::Option(_)
            | RunError::SeveralHere(_)
            | RunError::Unnamed { .. }
            | RunError::Discover { error: DiscoverError::SeveralTrees(_), .. } => status::USAGE,
            RunError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => status::PIPE,
            _ => status::SYSTEM,
        }
    }

    /// Whether the message was said, or is better not said.
    fn is_quiet(&self) -> bool {
        matches!(self, RunError::Reported) || self.status() == status::PIPE
    }

    /// Of a path's errors only those of output end the command; the others end this path.
    fn of_path(path: &OsString, error: ClientError) -> RunError {
        match error {
            ClientError::Output(error) => RunError::Output(error),
            error => RunError::Path { path: path.clone(), error },
        }
    }
}

impl From<Failure> for ClientError {
    fn from(failure: Failure) -> ClientError {
        ClientError::Refused(failure)
    }
}

/// Runs the program with these arguments.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(usage(&error)),
    };
    let talkative = matches!(cli.command, Command::Serve(_) | Command::Mount(_));
    log::start(cli.verbose, talkative);
    allow_many_files();
    let result = match cli.command {
        Command::Serve(args) => serve::serve(args),
        Command::Mount(args) => return ExitCode::from(mount::mount(args)),
        Command::Umount(UmountArgs { dir }) => crate::fuse::unmount(&dir, false).map_err(RunError::from),
        Command::Ls(args) => list::ls(args),
        Command::Cat(args) => list::cat(args),
        Command::Status(args) => show_status(&args),
    };
    ExitCode::from(report(result))
}

/// Help and version go to standard output, refusals to standard error.
fn usage(error: &clap::Error) -> u8 {
    let text = error.render().to_string();
    if error.use_stderr() {
        say(text.strip_prefix("error: ").unwrap_or(&text).trim_end());
        return status::USAGE;
    }
    let mut out = io::stdout().lock();
    report(out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(RunError::Output))
}

fn report(result: Result<(), RunError>) -> u8 {
    let Err(error) = result else { return status::DONE };
    if !error.is_quiet() {
        say(&error.to_string());
    }
    error.status()
}

/// One message on standard error. Where that is closed, there is nobody to tell.
fn say(message: &str) {
    let _ = writeln!(io::stderr(), "swarmfs: {message}");
}

/// A link takes a descriptor, and an origin has a link to every reader. The soft limit, mostly 1,024, is for programs
/// that call select(2); with it the readers beyond would wait for ever.
fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Bytes of memory that this host has.
fn ram_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(info.mem_unit.into())
}

fn runtime_dir() -> Result<PathBuf, PlaceError> {
    Environment { variable: &|name| std::env::var_os(name), root: is_root() }.runtime_dir()
}

/// What every node of this host says of itself; one that does not answer is named on standard error.
fn show_status(args: &StatusArgs) -> Result<(), RunError> {
    let dir = runtime_dir()?;
    let nodes = nodes_in(&dir).map_err(|reason| RunError::Sockets { dir: dir.clone(), reason })?;
    let mut silent = false;
    let mut statuses: Vec<Status> = Vec::new();
    for node in &nodes {
        match node.status() {
            Ok(status) => statuses.push(status),
            Err(ClientError::NoNode { reason, .. }) if reason.kind() == io::ErrorKind::PermissionDenied => {
                say(&format!("{:?} is another user's node; ask as that user, or as root", node.path()));
                silent = true;
            }
            // It ended between the two questions.
            Err(ClientError::NoNode { .. } | ClientError::CutShort) => {}
            Err(error) => {
                say(&format!("{:?}: {error}", node.path()));
                silent = true;
            }
        }
    }
    let mut out = io::stdout().lock();
    let text = match args.json {
        true => show::json(&statuses),
        false if silent && statuses.is_empty() => String::new(),
        false => show::table(&statuses, &dir),
    };
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(RunError::Output)?;
    if silent { Err(RunError::Reported) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    #[test]
    fn as_many_files_may_be_open_as_the_system_allows() {
        let before = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(512), maximum: before.maximum }).unwrap();
        super::allow_many_files();
        let after = getrlimit(Resource::Nofile);
        assert_eq!((after.current, after.maximum), (before.maximum, before.maximum));
    }
}
