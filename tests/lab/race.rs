//! Readers that wait at a gate until all are there and then start at one moment. Each one's bytes are compared with a
//! file as they come, so one that was cut short is checked as far as it came.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Host, Running};

/// As much as a pipe holds: few switches between a reader and its checker.
const PIPE: usize = 1 << 20;
/// Compared at a time; with the file's own it stays in a core's cache.
const PIECE: usize = 256 << 10;

/// What a reader's bytes are compared with, and how fast they are taken.
#[derive(Clone)]
pub struct Check {
    pub file: PathBuf,
    /// Bytes a second, as from a slow disk; none takes them as they come.
    pub pace: Option<f64>,
}

impl Check {
    pub fn against(file: &Path) -> Check {
        Check { file: file.to_owned(), pace: None }
    }
}

/// A shell script on a host whose standard output is compared.
pub struct Racer {
    program: Running,
    gate: Option<ChildStdin>,
    seen: Arc<Seen>,
    checker: JoinHandle<Result<(), String>>,
}

#[derive(Default)]
struct Seen {
    bytes: AtomicU64,
    last: OnceLock<Instant>,
}

/// How far a reader came.
pub struct Arrival {
    pub bytes: u64,
    /// When its last byte came; none if the program had to be stopped.
    pub at: Option<Instant>,
    /// What it printed on standard error.
    pub log: String,
}

/// Readies `script`; `gated` ones start with `Racer::go`, others at once.
pub fn ready(host: &Host, script: &str, gated: bool, check: &Check) -> Racer {
    let script = if gated { format!("read -r go; {script}") } else { script.to_owned() };
    let (log, stderr) = host.log("race");
    let mut command = host.command("sh");
    command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
    let mut program = Running::start(command, format!("{script} on {}", host.name), Some(log));
    let gate = program.stdin();
    let pipe = program.stdout();
    // A machine may grant less.
    let _ = rustix::pipe::fcntl_setpipe_size(&pipe, PIPE);
    let seen = Arc::new(Seen::default());
    let (file, pace, shared) = (File::open(&check.file).expect("the sample is there"), check.pace, seen.clone());
    let checker = std::thread::spawn(move || compare(pipe, &file, pace, &shared));
    Racer { program, gate: Some(gate), seen, checker }
}

fn compare(mut from: impl Read, with: &File, pace: Option<f64>, seen: &Seen) -> Result<(), String> {
    let (mut got, mut expected) = (vec![0; PIECE], vec![0; PIECE]);
    let (mut at, mut began, mut last) = (0, None, None);
    loop {
        let count = from.read(&mut got).map_err(|error| format!("its pipe: {error}"))?;
        if count == 0 {
            // The end of a pipe may come long after its last byte: in a chain, when the last host has it all.
            last.map(|last| seen.last.set(last));
            return Ok(());
        }
        let now = *last.insert(Instant::now());
        with.read_exact_at(&mut expected[..count], at).map_err(|error| format!("beyond byte {at}: {error}"))?;
        if got[..count] != expected[..count] {
            let wrong = got.iter().zip(&expected).position(|(got, expected)| got != expected).unwrap_or(0);
            return Err(format!("byte {} is not the origin's", at + wrong as u64));
        }
        at += count as u64;
        seen.bytes.store(at, Ordering::Relaxed);
        if let Some(pace) = pace {
            let due = *began.get_or_insert(now) + Duration::from_secs_f64(at as f64 / pace);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
}

impl Racer {
    pub fn go(&mut self) {
        if let Some(mut gate) = self.gate.take() {
            gate.write_all(b"go\n").expect("the program waits at its gate");
        }
    }

    pub fn bytes(&self) -> u64 {
        self.seen.bytes.load(Ordering::Relaxed)
    }

    pub fn has_ended(&mut self) -> bool {
        self.program.has_ended().is_some()
    }

    /// Stops it if it still runs. What else has its pipe open must have ended.
    ///
    /// # Panics
    /// When a byte was not the origin's.
    pub fn finish(mut self) -> Arrival {
        let ended = self.program.has_ended();
        self.program.kill();
        let log = self.program.log();
        let right = self.checker.join().expect("comparing does not panic");
        assert!(right.is_ok(), "{}: {right:?}\n{log}", self.program.what());
        let at = ended.and_then(|status| self.seen.last.get().copied().filter(|_| status.success()));
        Arrival { bytes: self.seen.bytes.load(Ordering::Relaxed), at, log }
    }
}
