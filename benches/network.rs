//! The product on a network, beside what one makes by hand: swarmfs through real mounts and a chain of `nc` and `tee`,
//! one after the other between the same hosts (`tests/lab`: namespaces on a switch, links with a rate), each figure
//! beside its goal.
//!
//! `cargo bench --bench network` runs every row, `-- 8 32 ...` those named; `--runs N` repeats each, `--only swarmfs`
//! or `--only chain` leaves the other out, `--mib N`, `--readers N` and `--rate MBIT` change any row, `--kind NAME` takes
//! some peers that mean ill alone. A row that falls short says so and fails nothing; wrong bytes do. It needs root, or
//! `unshare -Ur`.
//!
//! T is the time from the common start (else a reader's own) until the last reader has its last byte, over the file
//! through one link at its payload rate. Copies are bytes on the origin's link with all headers, over the file: one copy is 1.046. Where the
//! machine's own processors are hardly ever idle, a row tells of them and not of the network.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

// Tests use more of the lab than a bench does.
#[path = "../tests/lab/mod.rs"]
mod lab;
#[path = "network/liars.rs"]
mod liars;
#[path = "../tests/mouth/mod.rs"]
mod mouth;

use lab::chain::{self, Chain};
use lab::race::{self, Arrival, Check, Racer};
use lab::{Lab, Link, Running, samples, swarm};

const MIB: u64 = 1 << 20;
/// Where the origin keeps what it serves: in memory, so that no disk is measured.
const SERVED: &str = "/run/images";
const SEED: u64 = 4;
/// A run that takes this many ideal times has failed.
const HOPELESS: f64 = 4.0;
/// A chain that stands still is watched for so many ideal times.
const PATIENCE: f64 = 1.5;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    /// All start together, nothing happens.
    Common,
    /// The network of one is cut when it has half the file; compared with a run in which it is not.
    CutOff,
    /// One packet in a hundred is lost; compared with a run in which none is.
    Loss,
    /// Starts over five seconds at random.
    Late,
    /// One takes its bytes, or is linked, at a tenth of the rate.
    SlowDisk,
    SlowLink,
    /// `tar` of a directory instead of `dd` of a file.
    Tar,
    /// A quarter of all hosts mean ill, in each way in turn; compared with a run in which none does.
    Liars,
}

/// What a row may cost at most; none where nothing was said.
#[derive(Clone, Copy, Default)]
struct Goal {
    time: Option<f64>,
    /// Time over that of the run it is compared with.
    later: Option<f64>,
    copies: Option<f64>,
    broadcasts: Option<f64>,
}

#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    kind: Kind,
    readers: usize,
    mib: u64,
    mbit: u32,
    goal: Goal,
}

fn rows() -> Vec<Row> {
    let time = |time| Goal { time: Some(time), copies: Some(1.09), ..Goal::default() };
    let later = |later| Goal { later: Some(later), copies: Some(1.09), ..Goal::default() };
    let row = |name, kind, readers, mib, mbit, goal| Row { name, kind, readers, mib, mbit, goal };
    vec![
        row("8", Kind::Common, 8, 256, 100, time(1.03)),
        row("32", Kind::Common, 32, 64, 25, time(1.06)),
        row("1", Kind::Common, 1, 256, 100, time(1.01)),
        row("cut", Kind::CutOff, 8, 256, 100, later(1.03)),
        row("loss", Kind::Loss, 8, 64, 25, later(1.05)),
        row("late", Kind::Late, 8, 256, 100, Goal { copies: Some(1.10), ..Goal::default() }),
        row("slow-disk", Kind::SlowDisk, 8, 256, 100, Goal { time: Some(1.03), ..Goal::default() }),
        row("slow-link", Kind::SlowLink, 8, 256, 100, Goal { time: Some(1.08), ..Goal::default() }),
        row("tar", Kind::Tar, 8, 1024, 100, Goal { broadcasts: Some(40.0), copies: Some(1.08), ..time(1.05) }),
        row("liars", Kind::Liars, 8, 64, 100, later(1.10)),
    ]
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum By {
    Swarmfs,
    Chain,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            By::Swarmfs => "swarmfs",
            By::Chain => "nc, tee",
        }
    }
}

/// What a run came to. Processor time is in seconds per GB (10^9 bytes) that a reader got.
#[derive(Clone, Default)]
struct Figures {
    /// Most seconds that one of those that count took, from its own start; infinite if one was never done.
    took: f64,
    /// The same of the run that this is compared with.
    without: Option<f64>,
    /// How much of the file the one who came least far had, of those that count.
    least: f64,
    copies: f64,
    broadcasts: f64,
    node_cpu: Option<f64>,
    origin_cpu: Option<f64>,
    /// Most memory that a node took, MiB.
    memory: f64,
    /// How much of the machine was idle, was taken from it by the machine it runs on, went into comparing bytes.
    idle: f64,
    stolen: f64,
    checking: f64,
}

/// What is served and what each reader is to get of it.
struct Sample {
    /// A shell command that prints it at the root of the tree.
    command: &'static str,
    /// What feeds it to the shell command behind.
    feed: String,
    /// What that prints, as this process reaches it.
    whole: PathBuf,
    /// Bytes of the files in it.
    bytes: u64,
}

fn make_sample(lab: &Lab, row: &Row) -> Sample {
    let served = lab.origin().path(SERVED);
    std::fs::create_dir(&served).expect("the origin's memory can be written");
    let bytes = row.mib * MIB;
    if row.kind != Kind::Tar {
        samples::random_file(&served.join("sample"), bytes, SEED);
        let (command, feed) = ("dd if=sample bs=1M status=none", "< sample".to_owned());
        return Sample { command, feed, whole: served.join("sample"), bytes };
    }
    for (index, len) in file_sizes(bytes).into_iter().enumerate() {
        let dir = served.join(format!("part{:02}", index / 20));
        std::fs::create_dir_all(&dir).expect("the origin's memory can be written");
        samples::random_file(&dir.join(format!("file{index:03}")), len, SEED + index as u64);
    }
    let command = "tar --format=gnu --sort=name -cf - .";
    let whole = lab.origin().path("/run/whole.tar");
    lab.origin().sh(Duration::from_secs(60), &format!("cd {SERVED}; {command} > /run/whole.tar"));
    Sample { command, feed: format!("{command} |"), whole, bytes }
}

/// 400 sizes of 0.2 to 20 MB in the proportions of the gigabyte, `bytes` in all: many small ones, few large.
fn file_sizes(bytes: u64) -> Vec<u64> {
    const FILES: usize = 400;
    let (least, most) = (0.2e6, 20e6);
    let mut rng = fastrand::Rng::with_seed(SEED);
    let draws: Vec<f64> = (0..FILES).map(|_| rng.f64()).collect();
    let size = |draw: f64, bend: f64| least * f64::powf(most / least, draw.powf(bend));
    let sum = |bend: f64| draws.iter().map(|draw| size(*draw, bend)).sum::<f64>();
    let gigabyte = (1u64 << 30) as f64;
    // The more bend, the smaller the sum.
    let (mut low, mut high) = (0.1, 10.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        *(if sum(middle) > gigabyte { &mut low } else { &mut high }) = middle;
    }
    draws.iter().map(|draw| (size(*draw, low) * bytes as f64 / gigabyte) as u64).collect()
}

/// What brings the bytes.
enum Team<'a> {
    Swarm { origin: Running, mounts: Vec<Running> },
    Chain(Chain<'a>),
}

impl<'a> Team<'a> {
    /// Everything is in place when this returns; readers wait for `Team::start`.
    fn gather(by: By, lab: &'a Lab, sample: &Sample, checks: &[Check]) -> (Team<'a>, Vec<Racer>) {
        if by == By::Chain {
            let feed = format!("cd {SERVED}; {}", sample.feed);
            let (chain, racers) = Chain::through(lab, &feed, &sample.whole, checks);
            return (Team::Chain(chain), racers);
        }
        let origin = swarm::serve(lab.origin(), Path::new(SERVED), "images", &[]);
        let mounts = lab.nodes().iter().map(|host| swarm::mount(host, "images", &[])).collect();
        let script = format!("cd {}; exec {}", swarm::MOUNT, sample.command);
        let racers = lab.nodes().iter().zip(checks).map(|(host, check)| race::ready(host, &script, true, check));
        (Team::Swarm { origin, mounts }, racers.collect())
    }

    /// Seconds of processor time: the origin's, and all nodes' together.
    fn time_used(&self) -> (f64, f64) {
        match self {
            Team::Swarm { origin, mounts } => {
                (used_by(origin.pid()), mounts.iter().map(|mount| used_by(mount.pid())).sum())
            }
            // Its programs tell when they end.
            Team::Chain(_) => (0.0, 0.0),
        }
    }

    fn memory(&self, lab: &Lab) -> u64 {
        match self {
            Team::Swarm { mounts, .. } => {
                mounts.iter().map(|mount| swarm::memory(mount.pid(), "VmHWM")).max().unwrap_or(0)
            }
            Team::Chain(chain) => chain.memory(&lab.nodes()[0]),
        }
    }
}

/// Seconds that a process has taken, in user and kernel mode.
fn used_by(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("its name is in brackets").1.split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<u64>().expect("the kernel writes numbers");
    (ticks(11) + ticks(12)) as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// What the whole machine has done since it started, in ticks of all processors: all, idle, taken by its host.
fn machine() -> (u64, u64, u64) {
    let stat = std::fs::read_to_string("/proc/stat").expect("/proc is mounted");
    let line = stat.lines().next().expect("the kernel sums its processors first");
    let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).filter_map(|ticks| ticks.parse().ok()).collect();
    (ticks.iter().sum(), ticks[3] + ticks[4], ticks[7])
}

/// The reader that something happens to, where something does.
fn victim(row: &Row) -> Option<usize> {
    let one = matches!(row.kind, Kind::CutOff | Kind::SlowDisk | Kind::SlowLink);
    one.then_some(row.readers / 2)
}

fn race(lab: &Lab, row: &Row, by: By, sample: &Sample, disturbed: bool) -> Figures {
    let ideal = lab.link.ideal(sample.bytes);
    let victim = victim(row);
    let mut checks = vec![Check::against(&sample.whole); row.readers];
    if row.kind == Kind::SlowDisk {
        checks[row.readers / 2].pace = Some(sample.bytes as f64 / ideal.as_secs_f64() / 10.0);
    }
    let slow = &lab.nodes()[row.readers / 2];
    if row.kind == Kind::SlowLink {
        lab.change_link(slow, Link::mbit(row.mbit / 10));
    }
    for host in lab.hosts() {
        // Every run is the first. A neighbour that was out of reach would be for another second or two.
        host.sh(swarm::SOON, "rm -rf /run/state/*; ip neigh flush dev eth0");
    }
    let broadcasts_before: Vec<u64> = lab.nodes().iter().map(|host| lab.broadcasts_of(host)).collect();
    let (mut team, mut racers) = Team::gather(by, lab, sample, &checks);
    if row.kind == Kind::Loss && disturbed {
        lab.lose(0.01);
    }

    let (used_before, sent_before) = (team.time_used(), lab.sent_by(lab.origin()));
    let (machine_before, own_before) = (machine(), used_by(std::process::id()));
    let mut rng = fastrand::Rng::with_seed(SEED);
    let spread = if row.kind == Kind::Late { 5.0 } else { 0.0 };
    let mut starts: Vec<Duration> = racers.iter().map(|_| Duration::from_secs_f64(rng.f64() * spread)).collect();
    // The clock runs from the first start.
    let first = starts.iter().min().copied().unwrap_or_default();
    starts.iter_mut().for_each(|start| *start -= first);
    // In a chain nobody can be sent anything before the last is there.
    let last_start = starts.iter().max().copied().unwrap_or_default();
    let stands_still = by == By::Chain && victim.is_some() && disturbed;
    let limit = ideal.mul_f64(if stands_still { PATIENCE } else { HOPELESS });
    let counts = |index: &usize| Some(*index) != victim;

    let start = Instant::now();
    let (mut half, mut memory) = (false, 0);
    loop {
        match &mut team {
            Team::Chain(chain) if start.elapsed() >= last_start => chain.start(),
            Team::Chain(_) => (),
            Team::Swarm { .. } => {
                let due = racers.iter_mut().zip(&starts).filter(|(_, at)| start.elapsed() >= **at);
                due.for_each(|(racer, _)| racer.go());
            }
        }
        if memory == 0 && racers[0].bytes() >= sample.bytes / 20 {
            memory = team.memory(lab);
        }
        if !half && racers[row.readers / 2].bytes() >= sample.bytes / 2 {
            half = true;
            if row.kind == Kind::CutOff && disturbed {
                lab.cut(slow);
            }
        }
        let all = racers.iter_mut().enumerate().filter(|(index, _)| counts(index)).all(|(_, racer)| racer.has_ended());
        if all || start.elapsed() > limit + Duration::from_secs_f64(spread) {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let (used_after, machine_after, own_after) = (team.time_used(), machine(), used_by(std::process::id()));
    let copies = (lab.sent_by(lab.origin()) - sent_before) as f64 / sample.bytes as f64;
    let broadcasts = lab.nodes().iter().zip(broadcasts_before).map(|(host, before)| lab.broadcasts_of(host) - before);
    let broadcasts = broadcasts.max().unwrap_or(0) as f64;
    if by == By::Swarmfs {
        memory = team.memory(lab);
    }

    let origin_log = match team {
        Team::Chain(chain) => Some(chain.stop()),
        Team::Swarm { .. } => None,
    };
    let arrivals: Vec<Arrival> = racers.into_iter().map(Racer::finish).collect();
    lab.lose(0.0);
    if row.kind == Kind::CutOff {
        lab.mend(slow);
    }
    if row.kind == Kind::SlowLink {
        lab.change_link(slow, lab.link);
    }

    let got = arrivals.iter().map(|arrival| arrival.bytes).sum::<u64>() as f64 / 1e9;
    let (origin_cpu, node_cpu) = match origin_log {
        Some(log) => {
            let nodes = arrivals.iter().map(|arrival| chain::time_of_children(&arrival.log)).sum::<Option<Duration>>();
            (chain::time_of_children(&log), nodes)
        }
        None => {
            let since = |after: f64, before: f64| Some(Duration::from_secs_f64(after - before));
            (since(used_after.0, used_before.0), since(used_after.1, used_before.1))
        }
    };
    let expected = std::fs::metadata(&sample.whole).expect("the sample is there").len();
    let counted = || arrivals.iter().enumerate().filter(|(index, _)| counts(index)).map(|(_, arrival)| arrival);
    let begun = |index: usize| start + if by == By::Chain { last_start } else { starts[index] };
    let times = arrivals.iter().enumerate().filter(|(index, _)| counts(index)).map(|(index, arrival)| {
        let at = arrival.at.filter(|_| arrival.bytes == expected)?;
        Some(at.saturating_duration_since(begun(index)))
    });
    let last = times.collect::<Option<Vec<Duration>>>().and_then(|times| times.into_iter().max());
    if last.is_none() && !stands_still {
        for (host, arrival) in lab.nodes().iter().zip(&arrivals) {
            let done = if arrival.at.is_some() { "ended" } else { "stopped" };
            eprintln!("{}: {done} at {} of {expected} bytes\n{}", host.name, arrival.bytes, arrival.log);
        }
    }
    let ticks = (machine_after.0 - machine_before.0) as f64;
    Figures {
        took: last.map_or(f64::INFINITY, |last| last.as_secs_f64()),
        without: None,
        least: counted().map(|arrival| arrival.bytes as f64 / expected as f64).fold(1.0, f64::min),
        copies,
        broadcasts,
        node_cpu: node_cpu.map(|time| time.as_secs_f64() / got),
        origin_cpu: origin_cpu.map(|time| time.as_secs_f64() / (sample.bytes as f64 / 1e9)),
        memory: memory as f64 / MIB as f64,
        idle: (machine_after.1 - machine_before.1) as f64 / ticks,
        stolen: (machine_after.2 - machine_before.2) as f64 / ticks,
        checking: (own_after - own_before) * rustix::param::clock_ticks_per_second() as f64 / ticks,
    }
}

/// The run of a row, after the run that it is compared with if there is one.
fn run(lab: &Lab, row: &Row, by: By, sample: &Sample) -> Figures {
    let compared = matches!(row.kind, Kind::CutOff | Kind::Loss);
    let without = compared.then(|| race(lab, row, by, sample, false).took);
    Figures { without, ..race(lab, row, by, sample, true) }
}

fn print_head() {
    println!(
        "{:<10}{:<18}{:<9}{:<30}{:<30}{:<30}{:<20}{:>9}{:>9}{:>8}{:>7}{:>7}{:>7}",
        "row",
        "readers x MiB",
        "by",
        "T / ideal",
        "T / T undisturbed",
        "copies",
        "broadcasts a node",
        "node",
        "origin",
        "peak",
        "idle",
        "stolen",
        "check"
    );
    println!(
        "{:<10}{:<18}{:<9}{:<30}{:<30}{:<30}{:<20}{:>9}{:>9}{:>8}{:>7}{:>7}{:>7}",
        "", "", "", "", "", "", "", "s/GB", "s/GB", "MiB", "%", "%", "%"
    );
}

fn print_row(row: &Row, by: By, runs: &[Figures], ideal: f64) {
    let spread = |figure: &dyn Fn(&Figures) -> Option<f64>| {
        let mut all: Vec<f64> = runs.iter().filter_map(figure).collect();
        all.sort_by(f64::total_cmp);
        (all.len() == runs.len()).then(|| (all[all.len() - 1], all[all.len() / 2]))
    };
    // A goal is the product's, and stands for the worst run.
    let cell = |figures: Option<(f64, f64)>, goal: Option<f64>, digits: usize| {
        let Some((worst, median)) = figures else { return String::new() };
        let figure = match runs.len() {
            1 => format!("{worst:.digits$}"),
            _ => format!("{worst:.digits$}, {median:.digits$}"),
        };
        let goal_digits = digits.min(2);
        match goal.filter(|_| by == By::Swarmfs) {
            Some(goal) if worst > goal => format!("{figure} (SHORT of {goal:.goal_digits$})"),
            Some(goal) => format!("{figure} (goal {goal:.goal_digits$})"),
            None => figure,
        }
    };
    let number = |figure: &dyn Fn(&Figures) -> Option<f64>, digits: usize| {
        spread(figure).map_or("-".to_owned(), |(_, median)| format!("{median:.digits$}"))
    };
    let least = runs.iter().map(|run| run.least).fold(1.0, f64::min);
    let time = match spread(&|run| Some(run.took / ideal)) {
        Some((worst, _)) if worst.is_infinite() => format!("not all: one has {:.0} %", least * 100.0),
        figures => cell(figures, row.goal.time, 3),
    };
    let later = spread(&|run| Some(run.took / run.without?).filter(|later| later.is_finite()));
    println!(
        "{:<10}{:<18}{:<9}{time:<30}{:<30}{:<30}{:<20}{:>9}{:>9}{:>8}{:>7}{:>7}{:>7}",
        row.name,
        format!("{} x {}, {} M", row.readers, row.mib, row.mbit),
        by.name(),
        cell(later, row.goal.later, 3),
        cell(spread(&|run| Some(run.copies)), row.goal.copies, 3),
        cell(spread(&|run| Some(run.broadcasts)), row.goal.broadcasts, 0),
        number(&|run| run.node_cpu, 2),
        number(&|run| run.origin_cpu, 2),
        number(&|run| Some(run.memory), 0),
        number(&|run| Some(run.idle * 100.0), 0),
        number(&|run| Some(run.stolen * 100.0), 0),
        number(&|run| Some(run.checking * 100.0), 1),
    );
}

fn main() {
    let (mut names, mut runs, mut only) = (Vec::new(), 1, None);
    let (mut readers, mut mib, mut mbit, mut kinds) = (None, None, None, Vec::new());
    let (mut args, mut benched) = (std::env::args().skip(1), false);
    while let Some(arg) = args.next() {
        let mut number = |option: &str| match args.next().and_then(|text| text.parse::<u64>().ok()) {
            Some(number @ 1..=10_000) => number,
            _ => refuse(&format!("--{option} takes a number from 1 to 10000")),
        };
        match arg.strip_prefix("--") {
            Some("runs") => runs = number("runs"),
            Some("readers") => readers = Some(number("readers") as usize),
            Some("mib") => mib = Some(number("mib")),
            Some("rate") => mbit = Some(number("rate") as u32),
            Some("kind") => {
                let kind = args.next().unwrap_or_default();
                let known = liars::names();
                if !known.iter().any(|name| name.starts_with(&kind)) {
                    refuse(&format!("--kind takes one of {}", known.join(", ")));
                }
                kinds.push(kind);
            }
            Some("only") => {
                only = match args.next().as_deref() {
                    Some("swarmfs") => Some(By::Swarmfs),
                    Some("chain") => Some(By::Chain),
                    _ => refuse("--only takes swarmfs or chain"),
                }
            }
            // What cargo passes to harnesses of all kinds.
            Some(other) => benched |= other == "bench",
            None => names.push(arg),
        }
    }
    let all = rows();
    if let Some(stranger) = names.iter().find(|name| all.iter().all(|row| row.name != **name)) {
        let known: Vec<&str> = all.iter().map(|row| row.name).collect();
        refuse(&format!("no row is named {stranger}; there are {}", known.join(" ")));
    }
    // Without `--bench` it is a test run: that it works is enough.
    let mut chosen: Vec<Row> = match benched {
        true => all.into_iter().filter(|row| names.is_empty() || names.iter().any(|name| name == row.name)).collect(),
        false => vec![Row { readers: 2, mib: 8, ..all[0] }],
    };
    for row in &mut chosen {
        row.readers = readers.unwrap_or(row.readers);
        row.mib = mib.unwrap_or(row.mib);
        row.mbit = mbit.unwrap_or(row.mbit);
    }
    let chained = chosen.iter().any(|row| row.kind != Kind::Liars);
    if chained && only != Some(By::Swarmfs) && !chain::is_possible() {
        refuse("nc is not installed (netcat-openbsd); `--only swarmfs` goes without the chain");
    }
    let (ill, chosen): (Vec<Row>, Vec<Row>) = chosen.into_iter().partition(|row| row.kind == Kind::Liars);
    if !chosen.is_empty() {
        print_head();
    }
    for row in &chosen {
        let Some(lab) = Lab::timed(1 + row.readers, Link::mbit(row.mbit)) else { return };
        let sample = make_sample(&lab, row);
        for by in [By::Swarmfs, By::Chain].into_iter().filter(|by| only.is_none_or(|only| only == *by)) {
            let figures: Vec<Figures> = (0..runs).map(|_| run(&lab, row, by, &sample)).collect();
            print_row(row, by, &figures, lab.link.ideal(sample.bytes).as_secs_f64());
        }
    }
    for row in ill.iter().filter(|_| only != Some(By::Chain)) {
        liars::run(row, runs, &kinds);
    }
}

fn refuse(why: &str) -> ! {
    eprintln!("network: {why}");
    std::process::exit(2)
}
