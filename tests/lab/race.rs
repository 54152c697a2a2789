//! Readers that wait at a gate until all are there and then start at one moment. Each one's bytes are summed as they
//! come, by CRC-32, which costs next to nothing beside what is measured, and the sum is compared with the file's when
//! all is over: also of one that was cut short, as far as it came.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Host, Running};

/// As much as a pipe holds: more than a link brings within `PAUSE`.
const PIPE: usize = 1 << 20;
/// The last byte may be noticed so much too late: 0.04 % of the shortest row.
const PAUSE: Duration = Duration::from_millis(10);
/// Summed at a time afterwards; stays in a core's cache.
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
    taker: JoinHandle<std::io::Result<u32>>,
    whole: PathBuf,
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
    let (pace, shared) = (check.pace, seen.clone());
    let taker = std::thread::spawn(move || take(pipe, pace, &shared));
    Racer { program, gate: Some(gate), seen, taker, whole: check.file.clone() }
}

/// Takes what has come every `PAUSE`, so that neither it nor who writes is woken for each packet.
fn take(mut from: impl Read, pace: Option<f64>, seen: &Seen) -> std::io::Result<u32> {
    let mut buffer = vec![0; PIPE];
    let (mut hasher, mut at, mut began, mut last) = (crc32fast::Hasher::new(), 0, None, None);
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            // The end of a pipe may come long after its last byte: in a chain, when the last host has it all.
            last.map(|last| seen.last.set(last));
            return Ok(hasher.finalize());
        }
        let now = *last.insert(Instant::now());
        hasher.update(&buffer[..count]);
        at += count as u64;
        seen.bytes.store(at, Ordering::Relaxed);
        let due = *began.get_or_insert(now) + Duration::from_secs_f64(pace.map_or(0.0, |pace| at as f64 / pace));
        std::thread::sleep(due.saturating_duration_since(now).max(PAUSE));
    }
}

/// The sum of a file's first bytes.
fn sum(file: &Path, bytes: u64) -> u32 {
    let mut from = File::open(file).expect("the sample is there").take(bytes);
    let (mut hasher, mut buffer) = (crc32fast::Hasher::new(), vec![0; PIECE]);
    loop {
        match from.read(&mut buffer).expect("the sample can be read") {
            0 => return hasher.finalize(),
            count => hasher.update(&buffer[..count]),
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
    /// When its bytes are not those that the file begins with.
    pub fn finish(mut self) -> Arrival {
        let ended = self.program.has_ended();
        self.program.kill();
        let log = self.program.log();
        let got = self.taker.join().expect("summing does not panic").expect("a pipe can be read");
        let bytes = self.seen.bytes.load(Ordering::Relaxed);
        assert_eq!(got, sum(&self.whole, bytes), "{}: other bytes than the origin's\n{log}", self.program.what());
        let at = ended.and_then(|status| self.seen.last.get().copied().filter(|_| status.success()));
        Arrival { bytes, at, log }
    }
}
