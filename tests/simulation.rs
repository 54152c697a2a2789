//! The swarm's decisions, driven by a simulated network: many of the product's own nodes, faults, and figures.

mod sim;

use sim::host::{Order, Plan, Setup};
use sim::*;
use swarmfs::swarm::Policy;

fn policy(mib: u64) -> Policy {
    Policy::with_budget(mib * MIB)
}

fn setup(rate: u64, readers: Vec<Plan>) -> Setup {
    Setup { rate, policy: policy(160), liar: false, readers, start: 0, leaves: false }
}

fn through(files: Vec<usize>) -> Vec<Plan> {
    vec![Plan { files, order: Order::Through, rate: UNBOUND }]
}

#[test]
fn three_readers_share_one_copy() {
    let (size, rate) = (64 * MIB, mbit(100));
    let mut world = World::new(seed(1), Network::default());
    let file = world.tree.add(size, 0);
    world.origin(setup(rate, vec![]));
    for _ in 0..3 {
        world.reader(setup(rate, through(vec![file])));
    }
    let ideal = size as f64 * 1.0456 / rate as f64;
    world.run((ideal * 1.3 * 1e9) as u64);
    assert!(world.hosts[0].count.data_sent * 2 <= 3 * size, "{} bytes left the origin", world.hosts[0].count.data_sent);
}

#[test]
#[ignore = "prints figures: N, MIB, RATE, SEEDS in the environment"]
fn probe() {
    let var = |name: &str, default: u64| std::env::var(name).ok().and_then(|t| t.parse().ok()).unwrap_or(default);
    let (n, mib, rate) = (var("N", 1), var("MIB", 16), mbit(var("RATE", 100)));
    for seed in 1..=var("SEEDS", 1) {
        let mut world = World::new(seed, Network::default());
        let file = world.tree.add(mib * MIB, 0);
        world.origin(setup(rate, vec![]));
        for _ in 0..n {
            world.reader(setup(rate, through(vec![file])));
        }
        let ideal = (mib * MIB) as f64 * 1.0456 / rate as f64;
        let clock = std::time::Instant::now();
        world.run(((ideal * 6.0 + 10.0) * 1e9) as u64);
        let finishes: Vec<f64> = world.hosts.iter().flat_map(|h| &h.finishes).map(|t| *t as f64 / 1e9).collect();
        let last = finishes.iter().copied().fold(0.0, f64::max);
        let mean = finishes.iter().sum::<f64>() / finishes.len() as f64;
        let count = |kind: u8| {
            world.hosts[1..].iter().map(|h| h.count.control_frames.get(&kind).copied().unwrap_or(0)).sum::<u64>() / n
        };
        let sum =
            |f: fn(&host::Count) -> u64| world.hosts[1..].iter().map(|h| f(&h.count)).sum::<u64>() as f64 / n as f64;
        let counters: Vec<_> =
            world.hosts.iter().filter_map(|h| h.node.as_ref()).map(|n| n.counters().clone()).collect();
        println!(
            "T {last:.3} s, {:.3} x ideal, mean {:.3}; egress {:.3} copies, {:.3} with headers; first {:.0} ms; links {:.1}, state {}, offer {} accept {} decline {} abort {} want {} stalled {} starved {}; control {:.2} %, wire {:.3}, wasted {:.4}, lost {:.1}; {:.1} s of clock",
            last / ideal,
            mean / ideal,
            world.hosts[0].count.data_sent as f64 / (mib * MIB) as f64,
            world.hosts[0].count.wire_sent as f64 / (mib * MIB) as f64,
            world.hosts[1..].iter().map(|h| h.readers[0].first.unwrap_or(0)).max().unwrap_or(0) as f64 / 1e6,
            world.hosts[1..].iter().map(|h| h.links.len()).sum::<usize>() as f64 / n as f64,
            count(2),
            count(3),
            count(4),
            count(5),
            count(7),
            count(9),
            counters.iter().map(|c| c.stalled_transfers).sum::<u64>(),
            counters.iter().map(|c| c.starved).sum::<u64>(),
            100.0 * sum(|c| c.control_bytes) / (mib * MIB) as f64,
            sum(|c| c.wire_sent) / (mib * MIB) as f64,
            sum(|c| c.wasted) / (mib * MIB) as f64,
            sum(|c| c.dropped_pieces),
            clock.elapsed().as_secs_f64()
        );
    }
}
