//! Into the background: the command returns once the mount answers, or says why it never will.
//!
//! The fork comes before any thread, since a thread does not survive it: what started one (the event loop, the
//! session) would be dead in the child. The child tells the parent through a pipe; a child that dies without a word is
//! reported too. Leaving the session (`setsid`) comes after the mount: autofs answers only the process group that it
//! asked.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, waitpid};

/// What a process is after `daemonize`.
pub enum Role {
    /// The one that was started: it exits as the outcome says.
    Parent(Outcome),
    /// The one that goes on and does the work. In the foreground it is the one that was started.
    Child(Readiness),
}

/// How the start went, for the parent's exit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// 0, or what the child asked for.
    pub status: u8,
    /// For the person who started it; empty if all went well.
    pub message: String,
    /// How the child died, if it did so without a word.
    pub death: Option<Death>,
}

/// A child's end before it said how its start went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Death {
    /// By one of the signals by which people and service managers end programs.
    Asked,
    /// By a signal from the kernel or a panic.
    Crashed,
}

/// The child's word to its parent, said once.
pub struct Readiness {
    /// Absent in the foreground.
    pipe: Option<File>,
}

/// Status of a child that died before it said how its start went: a system error.
const DIED: u8 = 2;
/// The longest message that a parent reads.
const MAX_MESSAGE: u64 = 64 * 1024;

/// Forks unless `foreground`. The parent's call returns when the child has said how its start went. Call it before
/// any thread is started.
pub fn daemonize(foreground: bool) -> io::Result<Role> {
    if foreground {
        return Ok(Role::Child(Readiness { pipe: None }));
    }
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("cannot go into the background: threads were started already"));
    }
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: this is the only thread (looked up above), so the child finds every lock and allocator as it left them.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(read);
            // Who ends the command means the mount that it waits for.
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
            Ok(Role::Child(Readiness { pipe: Some(File::from(write)) }))
        }
        child => {
            drop(write);
            // SAFETY: to ignore a signal installs no handler. A terminal's ^C ends the child, and the parent says so.
            unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
            Ok(Role::Parent(hear(read, child)))
        }
    }
}

impl Readiness {
    /// The mount answers: leaves the terminal's session, its directory and its streams, and lets the parent exit
    /// with 0. In the foreground it does nothing.
    pub fn ready(self) -> io::Result<()> {
        let Some(mut pipe) = self.pipe else { return Ok(()) };
        rustix::process::set_parent_process_death_signal(None)?;
        // A process that leads its group already cannot leave it; then it has no terminal to leave either.
        let _ = rustix::process::setsid();
        std::env::set_current_dir("/")?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        // A parent that was killed meanwhile does not make the mount fail.
        let _ = pipe.write_all(&[0]);
        Ok(())
    }

    /// The start failed: the parent prints the message and exits with the status. In the foreground the caller does.
    pub fn failed(self, status: u8, message: &str) -> Outcome {
        let outcome = Outcome { status, message: message.to_owned(), death: None };
        if let Some(mut pipe) = self.pipe {
            let _ = pipe.write_all(&[status]).and_then(|()| pipe.write_all(message.as_bytes()));
        }
        outcome
    }

    pub fn is_foreground(&self) -> bool {
        self.pipe.is_none()
    }
}

/// Waits for the child's word. Its end of the pipe closes when it is done or dead.
fn hear(read: OwnedFd, child: libc::pid_t) -> Outcome {
    let mut said = Vec::new();
    // What was read before an error counts as what was said.
    let _ = File::from(read).take(MAX_MESSAGE).read_to_end(&mut said);
    match said.split_first() {
        Some((&status, message)) => {
            Outcome { status, message: String::from_utf8_lossy(message).into_owned(), death: None }
        }
        None => died(child),
    }
}

fn died(child: libc::pid_t) -> Outcome {
    let status = Pid::from_raw(child).and_then(|child| waitpid(Some(child), WaitOptions::empty()).ok().flatten());
    let status = status.map(|(_, status)| status);
    let how = status.map_or("it is not known how".to_owned(), describe);
    let message = format!("the background process ended before the mount answered ({how})");
    let asked = status.and_then(WaitStatus::terminating_signal).is_some_and(|signal| {
        [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGKILL].contains(&signal)
    });
    Outcome { status: DIED, message, death: Some(if asked { Death::Asked } else { Death::Crashed }) }
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "stopped".to_owned(),
    }
}
