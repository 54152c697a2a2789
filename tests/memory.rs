//! A small board's promise: `--cache 64M` bounds what the node holds in memory, whatever is read through it.

use std::time::Duration;

mod lab;

use lab::{Lab, Link, samples, swarm};

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(180);

#[test]
fn a_node_with_a_cache_of_64_mib_stays_under_88_through_a_gigabyte_while_serving_two_peers() {
    // A gigabit, so that the origin alone cannot satisfy three readers and the node is asked too.
    let Some(lab) = Lab::timed(4, Link::mbit(1000)) else { return };
    let tree = lab.scratch().join("tree");
    std::fs::create_dir(&tree).unwrap();
    samples::random_file(&tree.join("random"), 1024 * MIB, 6);
    let expected = samples::digest_of(&tree.join("random"));
    let _origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    let mounts: Vec<_> = lab.nodes().iter().map(|host| swarm::mount(host, "images", &["--cache", "64M"])).collect();

    let before: Vec<u64> = lab.nodes().iter().map(|host| lab.sent_by(host)).collect();
    let readings: Vec<_> = lab.nodes().iter().map(|host| swarm::read(host, "random", &[])).collect();
    for reading in readings {
        reading.finish(LIMIT).must_be(expected);
    }

    for ((host, mount), before) in lab.nodes().iter().zip(&mounts).zip(before) {
        let (peak, served) = (swarm::memory(mount.pid(), "VmHWM"), lab.sent_by(host) - before);
        let anonymous = swarm::memory(mount.pid(), "RssAnon");
        println!(
            "{}: peak {} MiB, anonymous {} MiB, served {} MiB",
            host.name,
            peak / MIB,
            anonymous / MIB,
            served / MIB
        );
        assert!(peak < (64 + 24) * MIB, "{}: resident memory reached {} MiB", host.name, peak / MIB);
        assert!(served > 64 * MIB, "{} served peers only {} MiB, so this run shows nothing", host.name, served / MIB);
    }
}
