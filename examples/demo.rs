//! The main job, shown: one origin, three nodes, every node reads the same image and the same tree at once.
//!
//! Each is a host of its own in the lab (`tests/lab`), on links of 100 Mbit/s, so that what one sees is what a rack of
//! boards would do. Run it with `make demo`, or `make demo DIR=...` to serve a directory of one's own.
//! Everything that it starts and mounts lives in namespaces that end with this process, however it ends.

use std::fs;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[path = "../tests/lab/mod.rs"]
mod lab;

use lab::{Host, Lab, Link, samples, swarm};

const NODES: usize = 3;
const MIB: u64 = 1 << 20;

fn main() -> ExitCode {
    let own = std::env::args_os().nth(1).filter(|argument| !argument.is_empty());
    let own = match own.map(|path| fs::canonicalize(&path).map_err(|error| (path, error))).transpose() {
        Ok(own) => own,
        Err((path, error)) => return refuse(&format!("{}: {error}", path.display())),
    };
    if own.as_ref().is_some_and(|path| path.starts_with("/run")) {
        return refuse("each host of the demo has a /run of its own, so it cannot serve a directory from there");
    }
    if let Err(why) = Lab::can_exist() {
        return refuse(&format!("namespaces cannot be made here ({why}); run it as root"));
    }
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/fuse") {
        return refuse(&format!("/dev/fuse: {error}; load the module (modprobe fuse) or run it as root"));
    }

    let link = Link::mbit(100);
    let lab = Lab::standalone(1 + NODES, link);
    end_when_interrupted(lab.scratch().to_owned());
    let (served, jobs) = match own {
        Some(own) => (own, vec![Job::tar(".")]),
        None => (make_samples(&lab), vec![Job::dd("disk.img"), Job::tar("tree")]),
    };
    println!("Serving {} on one host, mounting it on {NODES} others, links of 100 Mbit/s.", served.display());
    let _origin = swarm::serve(lab.origin(), &served, "images", &[]);
    let _mounts: Vec<_> = lab.nodes().iter().map(|host| swarm::mount(host, "images", &[])).collect();
    let wrong = jobs.iter().filter(|job| !job.run(&lab, &served)).count();
    if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn refuse(why: &str) -> ExitCode {
    eprintln!("demo: {why}");
    ExitCode::from(2)
}

/// A real image and a real tree in the origin's memory, so that they vanish with it.
fn make_samples(lab: &Lab) -> PathBuf {
    println!("Making a 256 MiB ext4 image and a directory tree from files of this machine ...");
    let origin = lab.origin();
    let (inside, served) = (PathBuf::from("/run/images"), origin.path("/run/images"));
    samples::machine_files(&served.join("tree"), 48 * MIB);
    let files = origin.path("/run/files");
    samples::machine_files(&files, 160 * MIB);
    samples::ext4_image(&served.join("disk.img"), 256, &files);
    fs::remove_dir_all(files).expect("what was just made can be removed");
    inside
}

/// What every node does at once: a command whose output is the same wherever the bytes come from.
struct Job {
    title: String,
    /// A shell command; `$1` is the root of the tree.
    command: String,
}

/// What one run of a job brought.
struct Outcome {
    sha256: String,
    bytes: u64,
    took: Duration,
}

impl Job {
    fn dd(file: &str) -> Job {
        Job { title: format!("dd if=.../{file}"), command: format!("dd if=\"$1/{file}\" bs=1M status=none") }
    }

    fn tar(directory: &str) -> Job {
        let command = format!("tar -C \"$1\" --format=gnu --sort=name -cf - '{directory}'");
        Job { title: format!("tar -C ... -c {directory}"), command }
    }

    /// Runs it on every node at once and says whether all got what the origin's own disk gives.
    fn run(&self, lab: &Lab, served: &Path) -> bool {
        println!("\n{} on {NODES} nodes at once", self.title);
        let expected = self.on(lab.origin(), served, &AtomicU64::new(0));
        let left_before = lab.sent_by(lab.origin());
        let counters: Vec<AtomicU64> = lab.nodes().iter().map(|_| AtomicU64::new(0)).collect();
        let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
            let start = |(host, counter)| scope.spawn(move || self.on(host, Path::new(swarm::MOUNT), counter));
            let running: Vec<_> = lab.nodes().iter().zip(&counters).map(start).collect();
            let mut screen = Screen::new(lab.nodes(), expected.bytes);
            while running.iter().any(|thread| !thread.is_finished()) {
                screen.show(&counters);
                std::thread::sleep(Duration::from_millis(100));
            }
            screen.finish(&counters);
            running.into_iter().map(|thread| thread.join().expect("a job reports by its outcome")).collect()
        });
        let copies = (lab.sent_by(lab.origin()) - left_before) as f64 / expected.bytes as f64;

        let mut all_right = true;
        for (host, outcome) in lab.nodes().iter().zip(&outcomes) {
            let right = outcome.sha256 == expected.sha256 && outcome.bytes == expected.bytes;
            all_right &= right;
            println!(
                "  {}: {:5.1} MB/s, SHA-256 {} {}",
                host.name,
                outcome.bytes as f64 / outcome.took.as_secs_f64() / 1e6,
                &outcome.sha256[..16.min(outcome.sha256.len())],
                if right { "as on the origin" } else { "DIFFERS from the origin's" }
            );
        }
        let last = outcomes.iter().map(|outcome| outcome.took).max().unwrap_or_default().as_secs_f64();
        println!(
            "  {copies:.2} copies left the origin; the last node was done after {last:.1} s ({:.2} x one copy over one link)",
            last / lab.link.ideal(expected.bytes).as_secs_f64()
        );
        all_right
    }

    /// Runs it on one host, counting bytes as they come.
    fn on(&self, host: &Host, root: &Path, counter: &AtomicU64) -> Outcome {
        let start = Instant::now();
        let mut source = host.command("sh");
        source.args(["-c", &self.command, "sh"]).arg(root).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut source = source.spawn().expect("util-linux is installed (.ci/need)");
        let mut sum = std::process::Command::new("sha256sum");
        let mut sum = sum.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("coreutils are installed");
        let mut from = source.stdout.take().expect("it was asked for");
        let mut to = sum.stdin.take().expect("it was asked for");
        let mut buffer = vec![0; MIB as usize];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            counter.fetch_add(count as u64, Ordering::Relaxed);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let took = start.elapsed();
        drop(to);
        let status = source.wait().expect("a child can be waited for");
        let printed = sum.wait_with_output().expect("a child can be waited for").stdout;
        let sha256 = match status.success() {
            true => String::from_utf8_lossy(&printed).split(' ').next().unwrap_or_default().to_owned(),
            false => format!("(none: {status})"),
        };
        Outcome { sha256, bytes: counter.load(Ordering::Relaxed), took }
    }
}

/// One line per node: rewritten in place on a terminal, else printed every two seconds.
struct Screen<'a> {
    hosts: &'a [Host],
    total: u64,
    start: Instant,
    in_place: bool,
    shown: Option<Instant>,
}

impl Screen<'_> {
    fn new(hosts: &[Host], total: u64) -> Screen<'_> {
        Screen { hosts, total, start: Instant::now(), in_place: std::io::stdout().is_terminal(), shown: None }
    }

    fn show(&mut self, counters: &[AtomicU64]) {
        let due = self.in_place || self.shown.is_none_or(|shown| shown.elapsed() >= Duration::from_secs(2));
        if due {
            self.print(counters);
        }
    }

    fn finish(&mut self, counters: &[AtomicU64]) {
        self.print(counters);
    }

    fn print(&mut self, counters: &[AtomicU64]) {
        let mut text = String::new();
        if self.in_place && self.shown.is_some() {
            text.push_str(&format!("\x1b[{}A", self.hosts.len()));
        }
        let elapsed = self.start.elapsed().as_secs_f64();
        for (host, counter) in self.hosts.iter().zip(counters) {
            let got = counter.load(Ordering::Relaxed);
            let share = got as f64 / self.total.max(1) as f64;
            let bar: String = (0..30).map(|step| if (step as f64) < share * 30.0 { '#' } else { '.' }).collect();
            let line = format!(
                "  {} [{bar}] {:3.0} % {:4} of {} MiB {:6.1} MB/s",
                host.name,
                share * 100.0,
                got / MIB,
                self.total / MIB,
                got as f64 / elapsed.max(0.001) / 1e6
            );
            text.push_str(&line);
            text.push_str(if self.in_place { "\x1b[K\n" } else { "\n" });
        }
        self.shown = Some(Instant::now());
        let mut stdout = std::io::stdout().lock();
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    }
}

/// Ctrl-C and SIGTERM: only the logs on disk need removing, the kernel takes the rest away with this process.
fn end_when_interrupted(scratch: PathBuf) {
    let wait = async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        let status = tokio::select! {
            _ = interrupt.recv() => 130,
            _ = terminate.recv() => 143,
        };
        let _ = fs::remove_dir_all(scratch);
        eprintln!("\ninterrupted; nothing is left behind");
        std::process::exit(status);
    };
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        if let Ok(runtime) = runtime {
            runtime.block_on(wait);
        }
    });
}
