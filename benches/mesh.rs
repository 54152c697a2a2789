//! The mesh at 1 Gbit/s in virtual time: what a crowd costs beside one reader, each figure beside its goal, and what each
//! part of the policy buys.
//!
//! `cargo bench --bench mesh` runs the small rows, shortened; `-- 8 32 128 1000 10000 crash slow-disks slow-links late
//! racks` those named, in full; `-- ablation` one change of the policy after the other beside the policy as it is (`ablation crash`: in that row).
//! `--only TEXT`, as often as you like, leaves the changes that hold it in their names.
//! `--seeds N`, `--seed FIRST`, `--readers N`, `--mib N` and `--rate MBIT` change any of them; `--trace MS` shows how one
//! run goes. Rows with slow readers end, and count copies, when the fast ones are done; `--slow` shows how long the slow ones
//! read on, ten times as long at least. A row that falls short says so and fails nothing: figures are for people,
//! `tests/sim/expected.txt` is for machines.

// The simulator has more than these rows need.
#[allow(dead_code)]
#[path = "../tests/sim/mod.rs"]
mod sim;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use sim::conduct::Conduct;
use sim::host::{Order, Plan, Setup};
use sim::{Fault, MIB, MS, Network, Racks, SECOND, UNBOUND, World, mbit};
use swarmfs::chunk::BLOCKS_PER_CHUNK;
use swarmfs::swarm::Policy;

/// Chunks in a node's cache.
const CACHE: u32 = 8;
/// Bytes a second of a reader that writes to a flash card.
const CARD: u64 = 40_000_000;
/// Seconds over which late readers start.
const SPREAD: u64 = 30;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Common,
    /// One in twenty loses power at some time.
    Crash,
    /// One in ten reads, or is linked, at a tenth of the rate.
    SlowDisks,
    SlowLinks,
    /// Starts over half a minute, readers slower than the link.
    Late,
    /// Fourteen to a switch behind 4 Gbit/s.
    Racks,
}

/// What a row may cost at most; none where nothing was said.
#[derive(Clone, Copy, Default)]
struct Goal {
    time: Option<f64>,
    /// Seconds more than one reader takes.
    late: Option<f64>,
    copies: Option<f64>,
    first: Option<f64>,
}

#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    kind: Kind,
    readers: usize,
    mib: u64,
    seeds: u64,
    /// The first of the seeds.
    seed: u64,
    rate: u64,
    /// Milliseconds between two lines of a trace; none at 0.
    trace: u64,
    /// The slow readers read on when the fast ones are done.
    slow: bool,
    goal: Goal,
}

/// The rows of the goals: those up to 128 readers, then a thousand, then ten thousand.
fn rows() -> Vec<Row> {
    let goal = |time, copies, first| Goal { time: Some(time), copies: Some(copies), first: Some(first), late: None };
    let row = |name, kind, readers, mib, goal| Row {
        name,
        kind,
        readers,
        mib,
        seeds: 3,
        seed: 1,
        rate: mbit(1000),
        trace: 0,
        slow: false,
        goal,
    };
    let egress = Goal { copies: Some(1.05), first: Some(100.0), ..Goal::default() };
    let huge = Goal { late: Some(1.5), copies: Some(1.20), first: Some(300.0), time: None };
    let only = |time| Goal { time: Some(time), ..Goal::default() };
    vec![
        row("8", Kind::Common, 8, 4096, goal(1.03, 1.02, 60.0)),
        row("32", Kind::Common, 32, 4096, goal(1.03, 1.02, 60.0)),
        row("128", Kind::Common, 128, 4096, goal(1.03, 1.02, 60.0)),
        row("1000", Kind::Common, 1000, 1024, goal(1.06, 1.05, 100.0)),
        row("crash", Kind::Crash, 1000, 1024, only(1.08)),
        row("slow-disks", Kind::SlowDisks, 1000, 1024, only(1.08)),
        row("slow-links", Kind::SlowLinks, 1000, 1024, only(1.08)),
        row("late", Kind::Late, 1000, 1024, egress),
        row("racks", Kind::Racks, 50, 1024, Goal::default()),
        Row { seeds: 1, ..row("10000", Kind::Common, 10_000, 1024, huge) },
    ]
}

/// What the plain command runs: the first rows of all, shortened so that it ends within two minutes.
fn short_rows() -> Vec<Row> {
    let sizes = [1024, 1024, 256];
    let mut rows = rows();
    rows.truncate(sizes.len());
    rows.iter_mut().zip(sizes).for_each(|(row, mib)| row.mib = mib);
    rows
}

type Change = fn(&mut Policy);

/// Changes of the policy, each alone; the first is none. One that costs nothing names a part that buys nothing.
const CHANGES: [(&str, Change); 59] = [
    ("as it is", |_| ()),
    ("lowest position first", |p| p.herd = true),
    ("1 run an offer", |p| p.alternatives = 1),
    ("1 run, lowest first", |p| (p.herd, p.alternatives) = (true, 1)),
    ("2 runs an offer", |p| p.alternatives = 2),
    ("racks are not known", |p| p.outside = p.links),
    ("crossing costs nothing", |p| p.crossing = 0),
    ("1 link outside", |p| p.outside = 1),
    ("6 links outside", |p| p.outside = 6),
    ("nothing pinned", |p| p.pinned = 0),
    ("pieces of 256 KiB", |p| p.most_piece = 8),
    ("pieces of 512 KiB", |p| p.most_piece = 16),
    ("pieces of 2 MiB", |p| p.most_piece = 64),
    ("2 uploads", |p| p.uploads = 2),
    ("3 uploads", |p| p.uploads = 3),
    ("8 uploads", |p| p.uploads = 8),
    ("4 ahead", |p| p.uploads_ahead = [4; 3]),
    ("12 ahead", |p| p.uploads_ahead = [12; 3]),
    ("16 ahead", |p| p.uploads_ahead = [16; 3]),
    ("1 per link", |p| p.per_link = [1; 3]),
    ("nobody is behind", |p| p.behind = [None; 3]),
    ("no links to catch up", |p| p.links_to_catch_up = 0),
    ("nobody regroups", |p| p.look = None),
    ("2 per link", |p| p.per_link = [2; 3]),
    ("4 per link", |p| p.per_link = [4; 3]),
    ("1 + 3 of the origin", |p| p.origin_uploads = [1; 3]),
    ("2 + 3 of the origin", |p| p.origin_uploads = [2; 3]),
    ("8 + 3 of the origin", |p| p.origin_uploads = [8; 3]),
    ("4 + 8 of the origin", |p| p.origin_ahead = 8),
    ("8 downloads", |p| p.downloads = [8; 3]),
    ("32 downloads", |p| p.downloads = [32; 3]),
    ("no extra download", |p| p.downloads_extra = [0; 3]),
    ("4 extra downloads", |p| p.downloads_extra = [4; 3]),
    ("4 links", |p| p.links = 4),
    ("8 links", |p| p.links = 8),
    ("32 links", |p| p.links = 32),
    ("nothing urgent", |p| p.urgent = 0),
    ("2 urgent", |p| p.urgent = 2),
    ("16 urgent", |p| p.urgent = 16),
    ("window of 16 MiB", |p| p.window_blocks = BLOCKS_PER_CHUNK),
    ("window of 32 MiB", |p| p.window_blocks = 2 * BLOCKS_PER_CHUNK),
    ("window of 96 MiB", |p| p.window_blocks = 6 * BLOCKS_PER_CHUNK),
    ("cache of 4 chunks", |p| (p.budget_blocks, p.window_blocks) = (4 * BLOCKS_PER_CHUNK, 1228)),
    ("strangers are trusted", |p| p.trusts = [true; 3]),
    ("strangers are not trusted", |p| p.trusts = [false; 3]),
    ("silence is not noticed", |p| p.hush = [p.silence; 3]),
    ("noticed after 0.15 s", |p| p.hush = [150_000; 3]),
    ("noticed after 0.4 s", |p| p.hush = [400_000; 3]),
    ("16 KiB unsent", |p| p.unsent = [16 << 10; 2]),
    ("64 KiB unsent", |p| p.unsent = [64 << 10; 2]),
    ("256 KiB unsent", |p| p.unsent = [256 << 10; 2]),
    ("512 KiB unsent", |p| p.unsent = [512 << 10; 2]),
    ("STATE every 2 ms", |p| p.coalesce = [2_000; 3]),
    ("STATE every 5 ms", |p| p.coalesce = [5_000; 3]),
    ("STATE every 10 ms", |p| p.coalesce = [10_000; 3]),
    ("STATE every 20 ms", |p| p.coalesce = [20_000; 3]),
    ("STATE every 40 ms", |p| p.coalesce = [40_000; 3]),
    ("a look every 2 ms", |p| p.tick = [2_000; 3]),
    ("a look every 20 ms", |p| p.tick = [20_000; 3]),
];

/// A row, its seed and what is changed for it.
type Job = (Row, u64, Change);

/// What a run came to.
#[derive(Clone, Copy, Default)]
struct Figures {
    /// Of one reader's time: the last reader's, or the mean of the fast ones'.
    time: f64,
    /// Seconds that one reader takes.
    alone: f64,
    copies: f64,
    /// Of a slow reader's time, the last one's; and copies until then.
    slow: Option<(f64, f64)>,
    /// Milliseconds until the last reader's first block.
    first: f64,
    /// Bytes of control frames that a reader sent, of the file's.
    control: f64,
    dropped: f64,
    /// Seconds that this took to compute.
    clock: f64,
}

fn policy(change: Change) -> Policy {
    let mut policy = Policy::with_budget(160 * MIB);
    policy.budget_blocks = CACHE * BLOCKS_PER_CHUNK;
    change(&mut policy);
    policy
}

fn run(row: &Row, seed: u64, change: Change) -> Figures {
    let clock = Instant::now();
    let alone = time_alone(row, change);
    let size = row.mib * MIB;
    let racks = (row.kind == Kind::Racks).then_some(Racks { readers: 14, uplink: mbit(4000) });
    let mut world = World::new(seed, Network { racks, ..Network::default() });
    let file = world.tree.add(size, 0);
    let setup = |rate, pace, start| {
        let readers = vec![Plan { files: vec![file], order: Order::Through, rate: pace }];
        Setup { rate, policy: policy(change), conduct: Conduct::Honest, readers, start, leaves: false }
    };
    world.origin(Setup { readers: Vec::new(), ..setup(row.rate, UNBOUND, 0) });
    let mut rng = fastrand::Rng::with_seed(seed);
    for index in 0..row.readers {
        let slow = index % 10 == 0;
        world.reader(match row.kind {
            Kind::SlowDisks if slow => setup(row.rate, row.rate / 10, 0),
            Kind::SlowLinks if slow => setup(row.rate / 10, UNBOUND, 0),
            Kind::Late => setup(row.rate, CARD, rng.u64(0..SPREAD * SECOND)),
            _ => setup(row.rate, UNBOUND, 0),
        });
    }
    if row.kind == Kind::Crash {
        for victim in (1..=row.readers).step_by(20) {
            world.at((rng.f64() * alone * 1e9) as u64, Fault::Crash(victim));
        }
    }
    let has_slow = matches!(row.kind, Kind::SlowDisks | Kind::SlowLinks);
    let is_slow = |index: usize| has_slow && (index - 1).is_multiple_of(10);
    let bound = SPREAD as f64 + 60.0 + alone * 20.0;
    let copies = |world: &World| world.hosts[0].count.data_sent as f64 / size as f64;
    let mut copies_by_then = None;
    let finished = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        if row.trace > 0 {
            trace(&mut world, row.trace * MS, (alone * 2e9) as u64);
        }
        while has_slow && (1..=row.readers).any(|index| !is_slow(index) && !world.hosts[index].done()) {
            assert!(world.now < (bound * 1e9) as u64, "the fast readers are done in time");
            world.run_until(world.now + 10 * MS);
        }
        copies_by_then = has_slow.then(|| copies(&world));
        if !has_slow || row.slow {
            world.run((bound * 1e9) as u64);
        }
    }))
    .is_ok();
    if !finished && copies_by_then.is_none() {
        return Figures { time: f64::INFINITY, clock: clock.elapsed().as_secs_f64(), ..Figures::default() };
    }
    let slow = (1..=row.readers)
        .filter(|index| row.slow && is_slow(*index))
        .map(|index| world.hosts[index].finishes.first().map_or(f64::INFINITY, |finish| *finish as f64 / 1e10 / alone));
    let slow = Some((slow.fold(0.0, f64::max), copies(&world))).filter(|_| row.slow);
    let fast = || world.hosts.iter().enumerate().skip(1).filter(|(index, _)| !is_slow(*index)).map(|(_, host)| host);
    let times: Vec<f64> =
        fast().filter_map(|host| Some((host.finishes.first()? - host.setup.start) as f64 / 1e9)).collect();
    let took = if has_slow {
        times.iter().sum::<f64>() / times.len() as f64
    } else {
        times.iter().copied().fold(0.0, f64::max)
    };
    let firsts = fast().flat_map(|host| {
        host.readers.iter().filter_map(|reader| Some((reader.first? - host.setup.start) as f64 / 1e6))
    });
    let control: u64 = world.hosts[1..].iter().map(|host| host.count.control_bytes).sum();
    Figures {
        time: took / alone,
        alone,
        copies: copies_by_then.unwrap_or_else(|| copies(&world)),
        slow,
        first: firsts.fold(0.0, f64::max),
        control: control as f64 / row.readers as f64 / size as f64,
        dropped: world.hosts.iter().map(|host| host.count.dropped_pieces).sum::<u64>() as f64 / row.readers as f64,
        clock: clock.elapsed().as_secs_f64(),
    }
}

/// Prints what came to the readers in each stretch of time, in thousandths of their links.
fn trace(world: &mut World, step: u64, end: u64) {
    let received = |world: &World| world.hosts.iter().map(|host| host.count.data_received).collect::<Vec<_>>();
    // What an origin's link carries beside blocks: headers, ACKs, control.
    let else_sent = |world: &World| {
        let count = &world.hosts[0].count;
        count.wire_sent.saturating_sub(count.data_sent)
    };
    let mut before = (received(world), 0, 0);
    while world.now < end && !world.all_done() {
        world.run_until(world.now + step);
        let now = (received(world), world.hosts[0].count.data_sent, else_sent(world));
        let full = |host: usize| world.hosts[host].setup.rate * step / SECOND;
        let mut rates: Vec<u64> = (1..now.0.len())
            .filter(|host| world.hosts[*host].node.is_some() && !world.hosts[*host].done())
            .map(|host| (now.0[host] - before.0[host]) * 1000 / full(host))
            .collect();
        rates.sort_unstable();
        let mut done: Vec<u64> = now.0[1..].iter().map(|bytes| bytes >> 20).collect();
        done.sort_unstable();
        println!(
            "{:8.3} s, origin {:4} and {:3} else; {} read {:?}, mean {}; {} .. {} MiB; dropped {}, broadcasts {}",
            world.now as f64 / 1e9,
            (now.1 - before.1) * 1000 / full(0),
            now.2.saturating_sub(before.2) * 1000 / full(0),
            rates.len(),
            [0, 10, 50, 90, 100]
                .map(|part| rates.get(rates.len().saturating_sub(1) * part / 100).copied().unwrap_or(0)),
            rates.iter().sum::<u64>() / rates.len().max(1) as u64,
            done[0],
            done[done.len() - 1],
            world.hosts.iter().map(|host| host.count.dropped_pieces).sum::<u64>(),
            world.broadcasts,
        );
        before = now;
    }
}

/// Seconds that one reader takes with an origin to itself.
fn time_alone(row: &Row, change: Change) -> f64 {
    let mut world = World::new(1, Network::default());
    let file = world.tree.add(row.mib * MIB, 0);
    let pace = if row.kind == Kind::Late { CARD } else { UNBOUND };
    let readers = vec![Plan { files: vec![file], order: Order::Through, rate: pace }];
    let setup =
        Setup { rate: row.rate, policy: policy(change), conduct: Conduct::Honest, readers, start: 0, leaves: false };
    world.origin(Setup { readers: Vec::new(), ..setup.clone() });
    world.reader(setup);
    world.run(SECOND * 3600);
    world.hosts[1].finishes[0] as f64 / 1e9
}

/// Runs jobs on all cores; `done` hears in order of each group of jobs: its number and its figures.
fn run_all(jobs: &[Job], mut done: impl FnMut(usize, &[Figures]) + Send, group: &[usize]) {
    let next = AtomicUsize::new(0);
    let finished = Mutex::new((vec![None; jobs.len()], 0, &mut done));
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| {
        for _ in 0..cores.min(jobs.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some((row, seed, change)) = jobs.get(index) else { return };
                    let figures = run(row, *seed, *change);
                    let mut finished = finished.lock().expect("a run's panic was caught");
                    finished.0[index] = Some(figures);
                    let (results, told, done) = &mut *finished;
                    while let Some(count) = group.get(*told) {
                        let start: usize = group[..*told].iter().sum();
                        let Some(ready) = results[start..start + count].iter().copied().collect::<Option<Vec<_>>>()
                        else {
                            break;
                        };
                        done(*told, &ready);
                        *told += 1;
                    }
                }
            });
        }
    });
}

/// The worst and the median of a figure over seeds.
fn spread(runs: &[Figures], figure: impl Fn(&Figures) -> f64) -> (f64, f64) {
    let mut all: Vec<f64> = runs.iter().map(figure).collect();
    all.sort_by(f64::total_cmp);
    (all[all.len() - 1], all[all.len() / 2])
}

fn print_goals(rows: &[Row]) {
    println!(
        "{:<11}{:>16}  {:<36}{:>10}  {:<36}{:<22}{:>8}",
        "row", "readers x MiB", "T / T(1), worst and median", "s later", "copies", "first block, ms", "clock s"
    );
    let rows_in_full = self::rows();
    let group: Vec<usize> = rows.iter().map(|row| row.seeds as usize).collect();
    let jobs: Vec<Job> =
        rows.iter().flat_map(|row| (0..row.seeds).map(|seed| (*row, row.seed + seed, CHANGES[0].1))).collect();
    let print = |index: usize, runs: &[Figures]| {
        let Row { name, readers, mib, goal, .. } = rows[index];
        // What it takes to begin and to end weighs more in a shortened row.
        let full = rows_in_full.iter().any(|row| row.name == name && (row.readers, row.mib) == (readers, mib));
        let cell = |(worst, median): (f64, f64), goal: Option<f64>, digits: usize| {
            let told = match goal {
                Some(goal) if !full => format!("(goal in full {goal:.*})", digits.min(2)),
                Some(goal) if worst > goal => format!("(SHORT of {goal:.*})", digits.min(2)),
                Some(goal) => format!("(goal {goal:.*})", digits.min(2)),
                None => String::new(),
            };
            match digits {
                0 => format!("{worst:.0} {told}"),
                _ => format!("{worst:.digits$}, {median:.digits$} {told}"),
            }
        };
        let alone = spread(runs, |run| run.alone).1;
        let time = goal.time.or(goal.late.map(|late| 1.0 + late / alone));
        println!(
            "{name:<11}{:>16}  {:<36}{:>10.2}  {:<36}{:<22}{:>8.1}",
            format!("{readers} x {mib}"),
            cell(spread(runs, |run| run.time), time, 3),
            spread(runs, |run| (run.time - 1.0) * run.alone).0,
            cell(spread(runs, |run| run.copies), goal.copies, 3),
            cell(spread(runs, |run| run.first), goal.first, 0),
            runs.iter().map(|run| run.clock).sum::<f64>(),
        );
        for (time, copies) in runs.iter().filter_map(|run| run.slow) {
            println!("{:<29}{time:.3} of a slow one's time the last of those, {copies:.3} copies until then", "");
        }
    };
    run_all(&jobs, print, &group);
}

/// The changes whose names hold one of those asked for; all if none was.
fn print_ablation(row: Row, only: &[String]) {
    let named = |change: &&(&str, Change)| only.is_empty() || only.iter().any(|part| change.0.contains(part.as_str()));
    println!(
        "{}: {} readers, {} MiB, {} Mbit/s, worst and median of {} seeds",
        row.name,
        row.readers,
        row.mib,
        row.rate / 125_000,
        row.seeds
    );
    println!(
        "{:<22}{:>16}{:>10}{:>9}{:>10}{:>11}{:>9}",
        "change", "T / T(1)", "against", "copies", "first ms", "control %", "dropped"
    );
    let chosen: Vec<(&str, Change)> = CHANGES[..1].iter().chain(CHANGES[1..].iter().filter(named)).copied().collect();
    let jobs: Vec<Job> =
        chosen.iter().flat_map(|(_, change)| (0..row.seeds).map(|seed| (row, row.seed + seed, *change))).collect();
    let mut base = None;
    let print = |index: usize, runs: &[Figures]| {
        let (worst, median) = spread(runs, |run| run.time);
        let base = *base.get_or_insert(median);
        println!(
            "{:<22}{:>16}{:>+10.3}{:>9.3}{:>10.0}{:>11.2}{:>9.0}",
            chosen[index].0,
            format!("{worst:.3}, {median:.3}"),
            median - base,
            spread(runs, |run| run.copies).0,
            spread(runs, |run| run.first).0,
            100.0 * spread(runs, |run| run.control).1,
            spread(runs, |run| run.dropped).1,
        );
    };
    run_all(&jobs, print, &vec![row.seeds as usize; chosen.len()]);
}

fn main() {
    let (mut names, mut options, mut only) = (Vec::new(), Vec::new(), Vec::new());
    let (mut args, mut benched, mut slow) = (std::env::args().skip(1), false, false);
    while let Some(arg) = args.next() {
        match arg.strip_prefix("--") {
            Some("only") => only.extend(args.next()),
            Some("slow") => slow = true,
            Some(option @ ("seeds" | "seed" | "readers" | "mib" | "rate" | "trace")) => {
                let Some(value) = args.next().and_then(|text| text.parse::<u64>().ok()).filter(|value| *value > 0)
                else {
                    eprintln!("--{option} takes a number");
                    std::process::exit(2);
                };
                options.push((option.to_owned(), value));
            }
            // What cargo passes to harnesses of all kinds.
            Some(other) => benched |= other == "bench",
            None => names.push(arg),
        }
    }
    let adjust = |mut row: Row| {
        row.slow = slow && matches!(row.kind, Kind::SlowDisks | Kind::SlowLinks);
        for (option, value) in &options {
            match option.as_str() {
                "seeds" => row.seeds = *value,
                "seed" => row.seed = *value,
                "trace" => row.trace = *value,
                "readers" => row.readers = *value as usize,
                "mib" => row.mib = *value,
                _ => row.rate = mbit(*value),
            }
        }
        row
    };
    let all = rows();
    let known = |name: &String| name == "ablation" || all.iter().any(|row| row.name == name);
    if let Some(stranger) = names.iter().find(|name| !known(name)) {
        let rows: Vec<&str> = all.iter().map(|row| row.name).collect();
        return println!("no row is named {stranger}; there are {} ablation", rows.join(" "));
    }
    if names.is_empty() {
        // Without `--bench` it is a test run: that it works is enough.
        let short = if benched { short_rows() } else { vec![Row { mib: 64, seeds: 1, ..all[0] }] };
        return print_goals(&short.into_iter().map(adjust).collect::<Vec<_>>());
    }
    let named: Vec<Row> =
        all.iter().filter(|row| names.iter().any(|name| name == row.name)).copied().map(adjust).collect();
    if !names.iter().any(|name| name == "ablation") {
        return print_goals(&named);
    }
    let of = if named.is_empty() { vec![all[1]] } else { named };
    for row in of {
        print_ablation(adjust(Row { readers: row.readers.min(50), mib: 256, ..row }), &only);
    }
}
