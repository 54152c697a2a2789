//! The commands: settings in, an exit status out.
//!
//! Called as `mount.swarmfs` it is mount(8)'s helper (`helper`). Wiring only: it starts nodes, sessions and sockets and waits for what ends them. The invariants: a command that fails
//! says so in one message on standard error that names the thing and what to do; nothing is written to standard output
//! but what was asked for; standard output that is closed early ends a command without a word, as it ends any filter.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use thiserror::Error;

use crate::cli::{
    Cli, Command, CompletionsArgs, FileError, HelperArgs, OptionError, Shell, StatusArgs, UmountArgs, XcatArgs,
};
use crate::control::client::{ClientError, nodes_in};
use crate::control::places::{Environment, PlaceError};
use crate::control::{Failure, Status};
use crate::driver::DiscoverError;
use crate::fuse::{MountError, UnmountError};
use crate::origin::OriginError;
use crate::settings::NetSettings;
use crate::state::StateError;
use crate::wire::head::TreeName;
use crate::wire::xcat::Refusal;
use log::Talk;
use secret::SecretError;

mod access;
mod config;
mod find;
mod helper;
mod key;
mod legacy;
mod list;
mod live;
mod log;
mod mount;
mod privileges;
mod search;
mod secret;
mod serve;
mod service;
mod show;
mod trust;
mod xcat;

/// Exit statuses; the first three are mount(8)'s. `cat` and `ls` end with `PIPE`, as a filter that SIGPIPE ended, where their
/// reader went away.
mod status {
    pub const DONE: u8 = 0;
    pub const USAGE: u8 = 1;
    pub const SYSTEM: u8 = 2;
    pub const PIPE: u8 = 128 + 13;
}

/// The program's other name, as a word.
const HELPER: &str = "mount.swarmfs";

/// Why a command failed.
#[derive(Debug, Error)]
pub enum RunError {
    #[error(transparent)]
    Option(#[from] OptionError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("{path:?}: {reason}; expected a configuration file")]
    Unreadable { path: PathBuf, reason: io::Error },
    #[error("{}, {error}", .path.display())]
    Config { path: PathBuf, error: Box<FileError> },
    #[error("cannot log to {path:?}: {reason}; name a file in a directory that can be written")]
    LogFile { path: PathBuf, reason: io::Error },
    #[error("cannot enter the mount namespace {path:?}: {reason}")]
    Namespace { path: PathBuf, reason: io::Error },
    #[error("{}", find::explain(.error, .net, .tree.as_ref(), *.waited))]
    Discover { error: DiscoverError, net: Box<NetSettings>, tree: Option<TreeName>, waited: Duration },
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
    #[error(transparent)]
    State(#[from] StateError),
    #[error(
        "cannot be a replica of the tree {:?}: it is signed with the key {theirs}, and this host has {mine}; `swarmfs key \
         --export` there writes the key, `--import` here takes it", .tree.as_str()
    )]
    ReplicaKey { tree: TreeName, mine: String, theirs: String },
    #[error("no key is remembered for the tree {:?}; this host trusts:{}", .tree.as_str(), match .known.is_empty() {
        true => " none".to_owned(),
        false => show::indented(.known),
    })]
    NothingKnown { tree: TreeName, known: Vec<String> },
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
    #[error("cannot write to {path:?}: {reason}; name a file that can be written")]
    File { path: PathBuf, reason: io::Error },
    #[error("{path:?} cannot be asked for by the legacy protocol: {reason}")]
    Legacy { path: PathBuf, reason: Refusal },
    #[error(
        "nobody answers by the legacy protocol for {}; is the server of the network running, does it have these paths, and \
         do the firewalls of both hosts let UDP and TCP port 19023 in?", .0.join(", ")
    )]
    NoLegacy(Vec<String>),
    #[error("cannot ask by the legacy protocol: {0}; are UDP and TCP port 19023 of this host free to use?")]
    Asking(io::Error),
}

impl RunError {
    fn status(&self) -> u8 {
        match self {
            RunError::Option(_)
            | RunError::Config { .. }
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

/// Runs the program with these arguments, the first of which is the name that it is called by.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    // A script that cannot choose the name it calls by says the helper's name first.
    if arguments.get(1).is_some_and(|name| name == HELPER) {
        arguments.remove(0);
    }
    if arguments.first().is_some_and(|name| HelperArgs::is_called(name)) {
        return ExitCode::from(helper::main(arguments));
    }
    if arguments.first().is_some_and(|name| XcatArgs::is_called(name)) {
        arguments.insert(1, "xcat".into());
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(usage(&error)),
    };
    let talk = match cli.command {
        Command::Serve(_) | Command::Mount(_) => Talk::Much,
        _ => Talk::Little,
    };
    log::start(cli.verbose, talk);
    allow_many_files();
    ExitCode::from(run(cli).unwrap_or_else(|error| report(Err(error))))
}

fn run(cli: Cli) -> Result<u8, RunError> {
    let file = || config::read(cli.config.as_deref());
    let done = match cli.command {
        Command::Serve(args) => serve::serve(args, &file()?),
        Command::Mount(args) => {
            let mut request = args.settings(&file()?, ram_bytes(), is_root())?;
            secret::read(&mut request.net)?;
            let outcome = mount::mount(&request, &RunError::status)?;
            if !outcome.message.is_empty() {
                say(&outcome.message);
            }
            return Ok(outcome.status);
        }
        Command::Umount(UmountArgs { dir }) => crate::fuse::unmount(&dir, false).map_err(RunError::from),
        Command::Ls(args) => list::ls(args, &file()?),
        Command::Cat(args) => list::cat(args, &file()?),
        Command::Status(args) => show_status(&args),
        Command::Xcat(args) => xcat::xcat(args, &file()?),
        Command::Key(args) => key::key(args),
        Command::Completions(CompletionsArgs { shell }) => completions(shell),
    };
    Ok(report(done))
}

/// What a shell needs to complete the command line.
fn completions(shell: Shell) -> Result<(), RunError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "swarmfs", &mut script);
    let mut out = io::stdout().lock();
    out.write_all(&script).and_then(|()| out.flush()).map_err(RunError::Output)
}

/// Sends the log to this file, if there is one.
fn log_to(file: Option<&Path>) -> Result<(), RunError> {
    let Some(path) = file else { return Ok(()) };
    log::to_file(path).map_err(|reason| RunError::LogFile { path: path.to_owned(), reason })
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

    use super::{MountError, RunError};

    #[test]
    fn a_mount_that_fails_ends_with_2_and_a_wrong_command_line_with_1() {
        let missing = RunError::Mount(MountError::Missing("/mnt/x".into()));
        assert_eq!(missing.status(), 2);
        assert_eq!(RunError::SeveralHere(Vec::new()).status(), 1);
    }

    #[test]
    fn as_many_files_may_be_open_as_the_system_allows() {
        let before = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(512), maximum: before.maximum }).unwrap();
        super::allow_many_files();
        let after = getrlimit(Resource::Nofile);
        assert_eq!((after.current, after.maximum), (before.maximum, before.maximum));
    }
}
