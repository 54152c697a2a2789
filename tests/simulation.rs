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
        if var("TRACE", 0) > 0 {
            let mut before: Vec<u64> = vec![0; world.hosts.len()];
            let full = rate as f64 / 1.0456 * var("TRACE", 0) as f64 / 1000.0;
            for step in 1..((ideal * 1.3 * 1000.0) as u64 / var("TRACE", 0)) {
                world.run_until(step * var("TRACE", 0) * MS);
                let got: Vec<u64> = world
                    .hosts
                    .iter()
                    .map(|h| h.count.data_received + if h.origin { h.count.data_sent } else { 0 })
                    .collect();
                let mut rates: Vec<u64> =
                    got.iter().zip(&before).skip(1).map(|(a, b)| ((a - b) as f64 / full * 1000.0) as u64).collect();
                rates.sort();
                let mut totals: Vec<u64> = got[1..].iter().map(|b| b / 1024).collect();
                totals.sort();
                let mean = rates.iter().sum::<u64>() / rates.len() as u64;
                println!(
                    "   {:.2} s origin {:.3} got mean {mean} min {} max {}; totals {} .. {} KiB; transfers {:?}",
                    world.now as f64 / 1e9,
                    (got[0] - before[0]) as f64 / full,
                    rates[0],
                    rates[rates.len() - 1],
                    totals[0],
                    totals[totals.len() - 1],
                    world.hosts[1..].iter().map(|h| h.incoming.len()).collect::<Vec<_>>()
                );
                before = got;
                if var("NODES", 0) == step {
                    for (index, h) in world.hosts.iter().enumerate() {
                        let links: Vec<usize> = h.links.values().map(|(c, side)| world.other(*c, *side)).collect();
                        println!(
                            "     node {index}: got {} KiB sent {} wire {} lost {}, decl/off/acc/state {:?}, links {} {links:?}",
                            h.count.data_received / 1024,
                            h.count.data_sent / 1024,
                            h.count.wire_sent / 1024,
                            h.count.dropped_pieces,
                            [5u8, 3, 4, 2].map(|k| h.count.control_frames.get(&k).copied().unwrap_or(0)),
                            links.len()
                        );
                    }
                }
            }
        }
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
