//! Eight nodes read a tree that changes, while nodes and the origin are killed, cables pulled, packets lost, programs
//! stopped, mounts taken away and made again: no reader gets a byte that is not of one version, nothing hangs, and
//! nothing piles up.
//!
//! It goes on for `SWARMFS_SOAK` seconds (`make soak`: twenty minutes), in rounds: unrest, everything mended, everything
//! compared. A failure prints the seed of the faults with the one command that repeats them; what they meet differs from
//! run to run.

use std::fs;
use std::time::{Duration, Instant};

mod lab;
mod unrest;

use lab::{Lab, Link};
use unrest::faults::World;
use unrest::leaks::{Before, Held};
use unrest::reader::{self, Reader, Tally};
use unrest::tree::Tree;
use unrest::{Calm, CalmAtLast, Life};

const NODES: usize = 8;
/// Things that happen in one round: ten seconds' worth.
const STEPS: usize = 28;
/// Unless `SWARMFS_SOAK` says otherwise.
const SHORT: Duration = Duration::from_secs(20);

#[test]
fn eight_nodes_in_unrest_show_no_wrong_byte_and_neither_hang_nor_leak() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let seed = number("SWARMFS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let length = number("SWARMFS_SOAK").map_or(SHORT, Duration::from_secs);
    let _seed = SeedOnPanic(seed, length);
    let Some(lab) = Lab::shared(1 + NODES, Link::mbit(100)) else { return };
    let namespaces = lab.namespaces();

    soak(&lab, seed, length);

    drop(lab);
    let left: Vec<u32> = processes().filter(|pid| !lab::namespaces_of(*pid).is_disjoint(&namespaces)).collect();
    assert!(left.is_empty(), "these still live in the lab's namespaces: {left:?}");
}

fn soak(lab: &Lab, seed: u64, length: Duration) {
    let mut random = fastrand::Rng::with_seed(seed);
    let tree = Tree::new(lab.scratch(), &mut random);
    let lives: [Life; NODES] = Default::default();
    let tally = Tally::default();
    let hosts = lab.nodes().iter().zip(&lives);
    let mut readers: Vec<_> =
        hosts.map(|(host, life)| Reader::new(host, life, &tree, &tally, random.u64(..))).collect();
    let before = Before::of(lab.hosts());
    let mut world = World::new(lab, &tree, &lives);

    let start = Instant::now();
    let mut rounds: Vec<Vec<Held>> = Vec::new();
    while start.elapsed() < length || rounds.is_empty() {
        unrest(&mut world, &mut random, &mut readers);
        calm(&mut readers);
        rounds.push(before.compare(&world));
        world.veterans_must_not_grow(&rounds);
        println!("{:8.2} so far {tally:?}", start.elapsed().as_secs_f64());
    }
    world.end();
    before.must_be_all(lab.hosts());
    tally.must_show_something();
}

/// Things happen while everybody reads. Ends when all is mended and whoever read has come to an end.
fn unrest(world: &mut World, random: &mut fastrand::Rng, readers: &mut [Reader]) {
    let calm = Calm::default();
    std::thread::scope(|threads| {
        let _end = CalmAtLast(&calm);
        for reader in readers {
            let (host, life) = (reader.host, reader.life);
            threads.spawn(|| reader.roam(&calm));
            threads.spawn(|| reader::probe(host, life, &calm));
        }
        for _ in 0..STEPS {
            world.step(random);
        }
        world.mend();
    });
    world.await_the_leaving();
}

/// Everybody sees what is there now.
fn calm(readers: &mut [Reader]) {
    std::thread::scope(|threads| {
        for reader in readers {
            threads.spawn(|| reader.verify());
        }
    });
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

struct SeedOnPanic(u64, Duration);

impl Drop for SeedOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let SeedOnPanic(seed, length) = self;
            eprintln!("repeat with: SWARMFS_SEED={seed} SWARMFS_SOAK={} cargo test --test soak", length.as_secs());
        }
    }
}
