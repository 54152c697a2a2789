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
#[ignore = "prints figures of one run: N, MIB, RATE in the environment"]
fn probe() {
    let var = |name: &str, default: u64| std::env::var(name).ok().and_then(|t| t.parse().ok()).unwrap_or(default);
    let (n, mib, rate) = (var("N", 1), var("MIB", 16), mbit(var("RATE", 100)));
    let mut world = World::new(seed(1), Network::default());
    let file = world.tree.add(mib * MIB, 0);
    world.origin(setup(rate, vec![]));
    for _ in 0..n {
        world.reader(setup(rate, through(vec![file])));
    }
    let ideal = (mib * MIB) as f64 * 1.0456 / rate as f64;
    let clock = std::time::Instant::now();
    world.run(((ideal * 6.0 + 10.0) * 1e9) as u64);
    let t = world.hosts.iter().flat_map(|host| &host.finishes).max().copied().unwrap_or(0) as f64 / 1e9;
    println!(
        "T {t:.3} s, {:.3} x ideal; egress {:.3} copies, {:.3} with headers; {:.1} s of clock",
        t / ideal,
        world.hosts[0].count.data_sent as f64 / (mib * MIB) as f64,
        world.hosts[0].count.wire_sent as f64 / (mib * MIB) as f64,
        clock.elapsed().as_secs_f64()
    );
    for host in world.hosts.iter().take(4) {
        println!("{:?} {:?}", host.node.as_ref().map(|node| node.counters().clone()), host.count);
    }
}
