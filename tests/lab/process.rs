//! A program that was started in the lab: waited for with a limit, signalled, and killed when dropped.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output};
use std::time::{Duration, Instant};

pub struct Running {
    child: Child,
    what: String,
    log: Option<PathBuf>,
}

impl Running {
    pub fn start(mut command: Command, what: String, log: Option<PathBuf>) -> Running {
        let child = command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
        Running { child, what, log }
    }

    /// What the program has printed to its log so far.
    pub fn log(&self) -> String {
        let path = self.log.as_ref().expect("only programs of `Host::spawn` have a log");
        String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
    }

    /// The program's number in the test's own process namespace.
    pub fn pid(&self) -> u32 {
        // It is the only child of the `nsenter` that brought it into its host.
        let id = self.child.id();
        let children = format!("/proc/{id}/task/{id}/children");
        wait_until(Duration::from_secs(10), &format!("{} starts", self.what), || {
            fs::read_to_string(&children).ok()?.split_whitespace().next()?.parse().ok()
        })
    }

    /// Sends the program a signal by name, as in `TERM`.
    pub fn signal(&self, name: &str) {
        let mut command = Command::new("kill");
        command.arg(format!("-{name}")).arg(self.pid().to_string());
        if name == "CONT" {
            // Its `nsenter` stopped itself when it did.
            command.arg(self.child.id().to_string());
        }
        let status = command.status();
        assert!(status.expect("kill(1) is installed").success(), "{} is no more", self.what);
    }

    /// The program goes first, and its locks and ports with it: `nsenter` ends when that has ended.
    pub fn kill(&mut self) {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        if !children.trim().is_empty() && matches!(self.child.try_wait(), Ok(None)) {
            let signal = |name: &str, pids: &str| Command::new("kill").arg(name).args(pids.split_whitespace()).output();
            let _ = signal("-KILL", &children);
            // It stopped itself if the program was stopped.
            let _ = signal("-CONT", &id.to_string());
            let mut patience = Patience::new(Duration::from_secs(10));
            while matches!(self.child.try_wait(), Ok(None)) && !patience.has_ended() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for the program's end, which must come within `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("{} ends", self.what);
        wait_until(limit, &what, || self.child.try_wait().expect("a child can be waited for"))
    }

    /// Waits for the end of a program whose output is piped, and gives all it printed.
    pub fn output(mut self, limit: Duration) -> Output {
        let drain = |pipe: Option<Box<dyn Read + Send>>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                if let Some(mut pipe) = pipe {
                    let _ = pipe.read_to_end(&mut bytes);
                }
                bytes
            })
        };
        let stdout = drain(self.child.stdout.take().map(|pipe| Box::new(pipe) as _));
        let stderr = drain(self.child.stderr.take().map(|pipe| Box::new(pipe) as _));
        let status = self.wait(limit);
        let join = |thread: std::thread::JoinHandle<Vec<u8>>| thread.join().expect("reading a pipe does not panic");
        Output { status, stdout: join(stdout), stderr: join(stderr) }
    }

    /// Its name, arguments and host.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The program's standard input, if it was piped and nobody took it before.
    pub fn stdin(&mut self) -> std::process::ChildStdin {
        self.child.stdin.take().expect("the input was piped and not taken")
    }

    /// The program's standard output, if it was piped and nobody took it before.
    pub fn stdout(&mut self) -> std::process::ChildStdout {
        self.child.stdout.take().expect("the output was piped and not taken")
    }

    /// The same of its standard error.
    pub fn stderr(&mut self) -> std::process::ChildStderr {
        self.child.stderr.take().expect("standard error was piped and not taken")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How long something is waited for. While the machine itself stands still, suspended or frozen, nothing can happen: such
/// a gap between two looks counts as a second.
pub struct Patience {
    left: Duration,
    last: Instant,
}

impl Patience {
    const GAP: Duration = Duration::from_secs(1);

    pub fn new(limit: Duration) -> Patience {
        Patience { left: limit, last: Instant::now() }
    }

    /// To be asked several times a second.
    pub fn has_ended(&mut self) -> bool {
        let now = Instant::now();
        self.left = self.left.saturating_sub((now - self.last).min(Patience::GAP));
        self.last = now;
        self.left.is_zero()
    }
}

/// Asks `found` again and again until it has something, for states of the kernel that nothing announces.
pub fn wait_until<T>(limit: Duration, what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let mut patience = Patience::new(limit);
    loop {
        if let Some(result) = found() {
            return result;
        }
        assert!(!patience.has_ended(), "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn name_of(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned())
}
