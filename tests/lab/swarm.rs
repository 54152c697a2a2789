//! swarmfs on the lab's hosts, driven by its command line alone.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use super::process::wait_until;
use super::samples::{self, Digest};
use super::{Host, Patience, Running};

/// Where `mount` mounts, on each host.
pub const MOUNT: &str = "/run/mnt";
/// More than any start or end of a program may take, on a busy machine too.
pub const SOON: Duration = Duration::from_secs(20);

/// The swarmfs that was built together with this test or example, or the one that `SWARMFS` names.
pub fn program() -> PathBuf {
    if let Some(other) = std::env::var_os("SWARMFS") {
        return PathBuf::from(other);
    }
    option_env!("CARGO_BIN_EXE_swarmfs").map(PathBuf::from).unwrap_or_else(|| {
        let example = std::env::current_exe().expect("Linux knows a program's path");
        let target = example.parent().and_then(Path::parent).expect("cargo builds examples two directories down");
        target.join("swarmfs")
    })
}

/// Runs one swarmfs command to its end.
pub fn swarmfs(host: &Host, args: &[&str]) -> Output {
    host.run(SOON, program().to_str().expect("build directories have plain names"), args)
}

/// What a command printed on standard error.
pub fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Starts a node without waiting for it.
pub fn start(host: &Host, args: &[&str]) -> Running {
    host.spawn(program().to_str().expect("build directories have plain names"), args)
}

/// An origin that serves `dir` as `name`. It answers when this returns.
pub fn serve(host: &Host, dir: &Path, name: &str, more: &[&str]) -> Running {
    let dir = dir.to_str().expect("samples are served from plain names");
    let mut args = vec!["serve", dir, "--name", name];
    args.extend(more);
    let mut origin = start(host, &args);
    wait_until(SOON, "the origin answers", || {
        assert!(origin.has_ended().is_none(), "the origin ended: {}", origin.log());
        swarmfs(host, &["ls", &format!("{name}:/")]).status.success().then_some(())
    });
    origin
}

/// A mount of the tree `name` at `MOUNT` by a node that stays in the foreground. It can be used when this returns.
pub fn mount(host: &Host, name: &str, more: &[&str]) -> Running {
    // A node that was killed leaves its mount behind, dead.
    if !host.mounts_on(MOUNT).is_empty() {
        host.sh(SOON, &format!("umount -l {MOUNT}"));
    }
    let mut args = vec!["mount", "-f", name, MOUNT];
    args.extend(more);
    let mut node = start(host, &args);
    wait_until(SOON, "the mount is there", || {
        assert!(node.has_ended().is_none(), "the mount ended: {}", node.log());
        (!host.mounts_on(MOUNT).is_empty()).then_some(())
    });
    node
}

/// A `dd` that reads one file of the mount, whose bytes are digested as they come.
pub struct Reading {
    program: Running,
    got: Arc<AtomicU64>,
    digester: JoinHandle<(Digest, Duration)>,
}

/// How a reading ended.
#[derive(Debug)]
pub struct Read {
    pub status: ExitStatus,
    pub digest: Digest,
    /// From the start of `dd` to its last byte.
    pub took: Duration,
}

/// Starts to read `file` of the mount; `more` are further operands of dd.
pub fn read(host: &Host, file: &str, more: &[&str]) -> Reading {
    let start = Instant::now();
    let mut command = host.command("dd");
    command.arg(format!("if={MOUNT}/{file}")).args(["bs=1M", "status=none"]).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut program = Running::start(command, format!("dd of {file} on {}", host.name), None);
    let got = Arc::new(AtomicU64::new(0));
    let counted = Counted { inner: program.stdout(), got: got.clone() };
    let digester = std::thread::spawn(move || {
        let digest = samples::digest(counted).expect("a pipe can be read");
        (digest, start.elapsed())
    });
    Reading { program, got, digester }
}

impl Reading {
    /// Bytes that have arrived so far.
    pub fn got(&self) -> u64 {
        self.got.load(Ordering::Relaxed)
    }

    /// Waits until that many bytes have arrived.
    pub fn reaches(&mut self, bytes: u64, limit: Duration) {
        let (got, program) = (&self.got, &mut self.program);
        wait_until(limit, &format!("{bytes} bytes are read"), || {
            let reached = got.load(Ordering::Relaxed) >= bytes;
            assert!(reached || program.has_ended().is_none(), "dd ended before {bytes} bytes");
            reached.then_some(())
        });
    }

    /// Waits until nothing has arrived for half a second.
    pub fn stalls(&self, limit: Duration) {
        let mut last = (self.got(), Instant::now());
        wait_until(limit, "the reader waits", || {
            if self.got() != last.0 {
                last = (self.got(), Instant::now());
            }
            (last.1.elapsed() > Duration::from_millis(500)).then_some(())
        });
    }

    pub fn is_running(&mut self) -> bool {
        self.program.has_ended().is_none()
    }

    pub fn signal(&self, name: &str) {
        self.program.signal(name);
    }

    /// Waits for the end of `dd`, which must come within `limit`.
    pub fn finish(mut self, limit: Duration) -> Read {
        let mut patience = Patience::new(limit);
        let status = loop {
            if let Some(status) = self.program.has_ended() {
                break status;
            }
            assert!(!patience.has_ended(), "not within {limit:?}: {} bytes are read so far", self.got());
            std::thread::sleep(Duration::from_millis(2));
        };
        let (digest, took) = self.digester.join().expect("digesting does not panic");
        Read { status, digest, took }
    }
}

impl Read {
    /// The read succeeded and brought exactly these bytes.
    pub fn must_be(&self, expected: Digest) {
        assert!(self.status.success(), "dd: {}", self.status);
        assert_eq!(self.digest, expected, "other bytes than the origin's");
    }
}

struct Counted<R> {
    inner: R,
    got: Arc<AtomicU64>,
}

impl<R: std::io::Read> std::io::Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.got.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// One number of /proc/PID/status, which are in KiB, in bytes.
pub fn memory(pid: u32, field: &str) -> u64 {
    try_memory(pid, field).unwrap_or_else(|| panic!("no {field} in /proc/{pid}/status"))
}

/// None if the process has ended.
pub fn try_memory(pid: u32, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib * 1024)
}

/// Digest of the first `bytes` of a file.
pub fn digest_of_start(path: &Path, bytes: u64) -> Digest {
    let file = File::open(path).expect("the sample is there");
    samples::digest(std::io::Read::take(file, bytes)).expect("the sample can be read")
}
