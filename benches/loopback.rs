//! What encryption costs: one reader and one origin on loopback, as fast as this machine is, without a secret, with one,
//! and with one as on boards whose processor has no AES, one after the other in turn; each ratio beside its goal.
//!
//! `cargo bench --bench loopback`; `-- --mib N --rounds N` change how much is read how often. No kernel reads along, so
//! nothing but the swarm's own work is in the figures. A figure is the median of its rounds. Short of a goal it says so
//! and fails nothing; wrong bytes do.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use swarmfs::driver::{self, discover};
use swarmfs::net::channel::Suites;
use swarmfs::origin::{StateDir, Tree};
use swarmfs::secret::Secret;
use swarmfs::settings::{CacheSettings, NetSettings};
use swarmfs::stream::Embedded;
use tokio::io::AsyncWrite;

/// The most by default.
const CACHE: CacheSettings = CacheSettings { budget_bytes: 256 << 20 };
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq)]
enum How {
    Plain,
    Aes,
    ChaCha,
}

impl How {
    fn name(self) -> &'static str {
        match self {
            How::Plain => "no secret",
            How::Aes => "AES",
            How::ChaCha => "ChaCha",
        }
    }

    /// Throughput over that without a secret.
    fn goal(self) -> f64 {
        match self {
            How::Plain => 1.0,
            How::Aes => 0.6,
            How::ChaCha => 0.4,
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut mib, mut rounds) = (512, 5);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse().ok()).expect("a number follows");
        match argument.as_str() {
            "--mib" => mib = number(),
            "--rounds" => rounds = number(),
            _ => {}
        }
    }
    // In memory, so that no disk is measured.
    let disk = tempfile::tempdir_in("/dev/shm").expect("there is memory");
    let bytes = sample(disk.path(), mib);
    let hows = match Suites::of_this_machine().has_aes() {
        true => vec![How::Plain, How::Aes, How::ChaCha],
        false => vec![How::Plain, How::ChaCha],
    };
    let mut rates = vec![Vec::new(); hows.len()];
    for round in 0..rounds {
        for (index, how) in hows.iter().enumerate() {
            let port = 21_000 + (round * hows.len() + index) as u16 * 16;
            rates[index].push(run(disk.path(), *how, port, &bytes));
        }
    }
    println!("{mib} MiB over loopback, median of {rounds}");
    println!("{:<12}{:>8}{:>8}{:>8}", "secret", "MB/s", "ratio", "goal");
    let medians: Vec<f64> = rates.iter_mut().map(|rates| median(rates)).collect();
    for (how, rate) in hows.iter().zip(&medians) {
        let (ratio, goal) = (rate / medians[0], how.goal());
        let short = if ratio < goal { "  short of it" } else { "" };
        println!("{:<12}{rate:>8.0}{ratio:>8.2}{goal:>8.1}{short}", how.name());
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A file that is at rest, and what is in it.
fn sample(dir: &Path, mib: usize) -> Vec<u8> {
    let tree = dir.join("tree");
    std::fs::create_dir(&tree).expect("there is memory");
    let mut bytes = vec![0; mib << 20];
    fastrand::Rng::with_seed(6).fill(&mut bytes);
    std::fs::write(tree.join("f"), &bytes).expect("there is memory");
    let old = SystemTime::now() - Duration::from_secs(60);
    let file = std::fs::File::options().write(true).open(tree.join("f")).expect("it was just written");
    file.set_modified(old).expect("it is this user's");
    bytes
}

/// Bytes a second, in millions, that a reader gets which has none yet, from an origin that has read and signed them all.
fn run(dir: &Path, how: How, port: u16, bytes: &[u8]) -> f64 {
    let net = NetSettings {
        port: Some(port),
        interfaces: vec!["lo".to_owned()],
        secret: (how != How::Plain).then(|| Secret::from_bytes([7; 32])),
        without_aes: how == How::ChaCha,
        ..NetSettings::default()
    };
    let state = StateDir::at(dir.join("state")).expect("there is memory");
    let key = state.key().expect("there is memory");
    let name = "images".parse().expect("it is a name");
    let tree = Tree::open(&dir.join("tree"), name, &state, key).expect("it was just made");
    let origin = driver::serve(Arc::new(tree), &net, &CACHE).expect("the port is free");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("the system has room");
    let timed = || {
        let found = discover(&net, None, PATIENCE).expect("the origin answers");
        let reader = driver::join(found, &net, &CACHE).expect("a port is free");
        let files = Embedded::new(reader.clone());
        let mut out = Compared { rest: bytes };
        let begin = Instant::now();
        runtime.block_on(files.cat("f", &mut out)).expect("the origin is there");
        let took = begin.elapsed();
        assert!(out.rest.is_empty(), "{} bytes are missing", out.rest.len());
        reader.stop();
        bytes.len() as f64 / took.as_secs_f64() / 1e6
    };
    // The first has the origin read and sign.
    timed();
    let rate = timed();
    origin.stop();
    rate
}

/// Takes what must come next.
struct Compared<'a> {
    rest: &'a [u8],
}

impl AsyncWrite for Compared<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.rest = self.rest.strip_prefix(bytes).expect("these are the origin's bytes");
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
