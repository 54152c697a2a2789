//! What peers that mean ill cost readers: the same race without any, then with each kind of them in turn, of whom there
//! are a quarter of all hosts. Each acts from a host of its own against the origin and all readers, over real sockets, for
//! as long as they read.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use swarmfs::state::StateDir;

use super::lab::race::{self, Check, Racer};
use super::lab::{Host, Lab, Link, Running, samples, swarm};
use super::mouth::ill::{Ill, Scene};
use super::{HOPELESS, MIB, Row, SEED, SERVED, machine, used_by};

/// What readers and origin may hold, and what their programs may take beside.
const CACHE: u64 = 64 * MIB;
const PROGRAM: u64 = 48 * MIB;
/// Readers to each that means ill; with the origin a quarter of all hosts are such.
const HONEST: usize = 3;
/// Counters that say nothing of peers that mean ill.
const USUAL: [&str; 3] = ["joins", "pages_held", "starved"];

/// What is acted: by each such host all of these at once.
#[derive(Clone, Copy)]
struct Act {
    ills: &'static [Ill],
    /// They come back under other names.
    anew: bool,
}

/// What a race came to.
struct Figures {
    last: f64,
    mean: f64,
    /// Most memory of a reader, of the origin.
    memory: [u64; 2],
    /// Bytes a second that all that mean ill sent.
    sent: f64,
    copies: f64,
    idle: f64,
    /// How much of it those took that mean ill, and who compares bytes.
    own: f64,
    counted: String,
}

pub fn names() -> Vec<String> {
    acts().into_iter().map(|(name, _)| name).collect()
}

fn acts() -> Vec<(String, Act)> {
    let name = |ill: &Ill| {
        let name = format!("{ill:?}");
        let parts = name.char_indices().map(|(at, letter)| match letter.is_uppercase() && at > 0 {
            true => format!("-{}", letter.to_lowercase()),
            false => letter.to_lowercase().to_string(),
        });
        parts.collect::<String>()
    };
    let alone = Ill::ALL.iter().map(|ill| (name(ill), Act { ills: std::slice::from_ref(ill), anew: false }));
    let refused = Ill::ALL.iter().filter(|ill| ill.is_refused());
    let anew =
        refused.map(|ill| (format!("{}, new names", name(ill)), Act { ills: std::slice::from_ref(ill), anew: true }));
    let all = [("all of them".to_owned(), Act { ills: &Ill::ALL, anew: false })];
    alone.chain(anew).chain(all).collect()
}

/// All acts, or those whose names begin so.
pub fn run(row: &Row, runs: u64, chosen: &[String]) {
    let ill = (row.readers + 1).div_ceil(HONEST);
    let Some(lab) = Lab::timed(1 + row.readers + ill, Link::mbit(row.mbit)) else { return };
    let served = lab.origin().path(SERVED);
    std::fs::create_dir(&served).expect("the origin's memory can be written");
    samples::random_file(&served.join("sample"), row.mib * MIB, SEED);
    println!("{}: {} readers, {ill} hosts that mean ill, {} MiB, {} Mbit/s", row.name, row.readers, row.mib, row.mbit);
    println!(
        "{:<26}{:>7}{:>7}{:>8}{:>8}  {:<16}{:>7}{:>10}{:>10}{:>8}{:>7}{:>7}  counted",
        "", "last", "mean", "x last", "x mean", "", "copies", "reader", "origin", "sent", "idle", "own"
    );
    println!(
        "{:<26}{:>7}{:>7}{:>8}{:>8}  {:<16}{:>7}{:>10}{:>10}{:>8}{:>7}{:>7}",
        "", "s", "s", "", "", "", "", "MiB", "MiB", "Mbit/s", "%", "%"
    );
    for _ in 0..runs {
        let quiet = race(&lab, row, None);
        print_row(row, "nobody", &quiet, None);
        for (name, act) in acts() {
            if chosen.is_empty() || chosen.iter().any(|chosen| name.starts_with(chosen.as_str())) {
                print_row(row, &name, &race(&lab, row, Some(act)), Some(&quiet));
            }
        }
        print_row(row, "nobody", &race(&lab, row, None), Some(&quiet));
    }
}

fn print_row(row: &Row, name: &str, figures: &Figures, quiet: Option<&Figures>) {
    let ratio = |of: &dyn Fn(&Figures) -> f64| quiet.map_or(1.0, |quiet| of(figures) / of(quiet));
    let (last, mean) = (ratio(&|figures| figures.last), ratio(&|figures| figures.mean));
    let goal = row.goal.later.unwrap_or(f64::INFINITY);
    let verdict = if last > goal { format!("(SHORT of {goal:.2})") } else { format!("(goal {goal:.2})") };
    let memory = figures.memory.map(|bytes| {
        let over = if bytes > CACHE + PROGRAM { "!" } else { "" };
        format!("{over}{}/{}", bytes / MIB, (CACHE + PROGRAM) / MIB)
    });
    println!(
        "{name:<26}{:>7.2}{:>7.2}{last:>8.3}{mean:>8.3}  {verdict:<16}{:>7.3}{:>10}{:>10}{:>8.1}{:>7.0}{:>7.0}  {}",
        figures.last,
        figures.mean,
        figures.copies,
        memory[0],
        memory[1],
        figures.sent * 8.0 / 1e6,
        figures.idle * 100.0,
        figures.own * 100.0,
        figures.counted
    );
}

/// Ends what acts, also when a reader panics.
struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn race(lab: &Lab, row: &Row, act: Option<Act>) -> Figures {
    for host in lab.hosts() {
        host.sh(swarm::SOON, "rm -rf /run/state/*; ip neigh flush dev eth0");
    }
    let (good, ill) = lab.hosts().split_at(1 + row.readers);
    let budget = format!("--cache={CACHE}");
    let origin = swarm::serve(lab.origin(), Path::new(SERVED), "images", &[&budget]);
    let mounts: Vec<Running> = good[1..].iter().map(|host| swarm::mount(host, "images", &[&budget])).collect();
    let victims: Vec<SocketAddr> = good.iter().map(|host| (host.address(), 19024).into()).collect();
    let mut scene = ill[0].inside(|| Scene::scout(victims, "sample"));
    let state = StateDir::at(lab.origin().path("/run/state")).expect("the origin's state can be reached");
    scene.key = Some(state.key().expect("an origin has a key"));

    let (stop, ready) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _stop = SetWhenDropped(&stop);
        let (scene, ready, stop) = (&scene, &ready, &stop);
        let mut acting = 0;
        for (index, host) in ill.iter().enumerate() {
            for (nth, kind) in act.iter().flat_map(|act| act.ills).enumerate() {
                let names = ((1 + index as u64) << 40) + ((nth as u64) << 32);
                let anew = act.is_some_and(|act| act.anew);
                scope.spawn(move || host.inside(|| scene.act(*kind, anew, names, ready, stop)));
                acting += 1;
            }
        }
        swarm::wait_until(swarm::SOON, "all are met", || (ready.load(Ordering::Relaxed) == acting).then_some(()));
        let mut figures = read(lab, row, good, ill);
        figures.memory[0] = mounts.iter().map(|mount| swarm::memory(mount.pid(), "VmHWM")).max().unwrap_or(0);
        figures.memory[1] = swarm::memory(origin.pid(), "VmHWM");
        figures.counted = counted(good);
        for node in mounts.iter().chain([&origin]) {
            assert!(!node.log().contains("panicked"), "{}", node.log());
        }
        figures
    })
}

/// All readers start at one moment. Afterwards each one's file is summed again, by itself.
fn read(lab: &Lab, row: &Row, good: &[Host], ill: &[Host]) -> Figures {
    let whole: PathBuf = lab.origin().path(SERVED).join("sample");
    let bytes = row.mib * MIB;
    let script = format!("cd {}; exec dd if=sample bs=1M status=none", swarm::MOUNT);
    let ready = |host| race::ready(host, &script, true, &Check::against(&whole));
    let mut racers: Vec<Racer> = good[1..].iter().map(ready).collect();
    let sent = || ill.iter().map(|host| lab.sent_by(host)).sum::<u64>();
    let (sent_before, copies_before) = (sent(), lab.sent_by(lab.origin()));
    let (machine_before, own_before) = (machine(), used_by(std::process::id()));
    let start = Instant::now();
    racers.iter_mut().for_each(Racer::go);
    let limit = lab.link.ideal(bytes).mul_f64(HOPELESS);
    while !racers.iter_mut().all(Racer::has_ended) && start.elapsed() < limit {
        std::thread::sleep(Duration::from_millis(10));
    }
    let took = start.elapsed().as_secs_f64();
    let sent = (sent() - sent_before) as f64 / took;
    let (machine_after, own_after) = (machine(), used_by(std::process::id()));
    let ticks = (machine_after.0 - machine_before.0) as f64;
    let copies = (lab.sent_by(lab.origin()) - copies_before) as f64 / bytes as f64;
    let arrivals: Vec<_> = racers.into_iter().map(Racer::finish).collect();
    let times = arrivals.iter().map(|arrival| match arrival.at.filter(|_| arrival.bytes == bytes) {
        Some(at) => at.saturating_duration_since(start).as_secs_f64(),
        None => f64::INFINITY,
    });
    let times: Vec<f64> = times.collect();
    if times.iter().all(|time| time.is_finite()) {
        let sum = |host: &Host, file: &str| host.sh(swarm::SOON, &format!("sha256sum < {file}"));
        let right = sum(lab.origin(), &format!("{SERVED}/sample"));
        for host in &good[1..] {
            assert_eq!(sum(host, &format!("{}/sample", swarm::MOUNT)), right, "SHA-256 on {}", host.name);
        }
    }
    Figures {
        last: times.iter().copied().fold(0.0, f64::max),
        mean: times.iter().sum::<f64>() / times.len() as f64,
        memory: [0; 2],
        sent,
        copies,
        idle: (machine_after.1 - machine_before.1) as f64 / ticks,
        own: (own_after - own_before) * rustix::param::clock_ticks_per_second() as f64 / ticks,
        counted: String::new(),
    }
}

/// What all honest nodes counted together.
fn counted(good: &[Host]) -> String {
    let mut sums: std::collections::BTreeMap<String, u64> = Default::default();
    for host in good {
        let status = swarm::swarmfs(host, &["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("status prints JSON");
        let nodes = status.as_array().cloned().unwrap_or_else(|| vec![status]);
        for (name, count) in nodes.iter().filter_map(|node| node["counters"].as_object()).flatten() {
            *sums.entry(name.clone()).or_default() += count.as_u64().unwrap_or(0);
        }
    }
    let shown = sums.iter().filter(|(name, count)| **count > 0 && !USUAL.contains(&name.as_str()));
    shown.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}
