//! Nodes that die and cables that are pulled while others read.

use std::path::PathBuf;
use std::time::{Duration, Instant};

mod lab;

use lab::samples::{self, Digest};
use lab::{Lab, Link, swarm};

const MIB: u64 = 1 << 20;
const MINUTE: Duration = Duration::from_secs(60);

/// A directory with one file `random` of `len` bytes.
fn tree_with_one_file(lab: &Lab, len: u64) -> (PathBuf, Digest) {
    let tree = lab.scratch().join("tree");
    std::fs::create_dir(&tree).unwrap();
    samples::random_file(&tree.join("random"), len, 5);
    let digest = samples::digest_of(&tree.join("random"));
    (tree, digest)
}

#[test]
fn reads_wait_for_a_killed_origin_and_go_on_by_themselves() {
    let Some(lab) = Lab::timed(3, Link::mbit(100)) else { return };
    let (tree, expected) = tree_with_one_file(&lab, 64 * MIB);
    let mut origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    let _mounts: Vec<_> = lab.nodes().iter().map(|host| swarm::mount(host, "images", &[])).collect();
    let mut readings: Vec<_> = lab.nodes().iter().map(|host| swarm::read(host, "random", &[])).collect();
    for reading in &mut readings {
        reading.reaches(20 * MIB, MINUTE);
    }
    origin.kill();
    for reading in &mut readings {
        reading.stalls(MINUTE);
        assert!(reading.is_running(), "a read failed instead of waiting");
        assert!(reading.got() < 64 * MIB, "the origin was killed too late to show anything");
    }
    let _origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    for reading in readings {
        reading.finish(MINUTE).must_be(expected);
    }
}

#[test]
fn peers_serve_what_they_hold_while_the_origin_is_dead() {
    let Some(lab) = Lab::shared(3, Link::unlimited()) else { return };
    let (tree, _) = tree_with_one_file(&lab, 64 * MIB);
    let start = swarm::digest_of_start(&tree.join("random"), 32 * MIB);
    let mut origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    let (first, second) = (lab.host(1), lab.host(2));
    let _mounts = [first, second].map(|host| swarm::mount(host, "images", &[]));
    // Both know the name, so that only bytes are missing later.
    second.sh(MINUTE, &format!("stat {}/random", swarm::MOUNT));
    swarm::read(first, "random", &["count=32"]).finish(MINUTE).must_be(start);
    origin.kill();
    swarm::read(second, "random", &["count=32"]).finish(MINUTE).must_be(start);
}

#[test]
fn a_killed_reader_harms_nobody() {
    let link = Link::mbit(100);
    let Some(lab) = Lab::timed(4, link) else { return };
    let (tree, expected) = tree_with_one_file(&lab, 64 * MIB);
    let _origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    let mut mounts: Vec<_> = lab.nodes().iter().map(|host| swarm::mount(host, "images", &[])).collect();
    let mut readings: Vec<_> = lab.nodes().iter().map(|host| swarm::read(host, "random", &[])).collect();
    readings[1].reaches(24 * MIB, MINUTE);
    mounts[1].kill();
    let killed = readings.remove(1);
    for reading in readings {
        let read = reading.finish(MINUTE);
        read.must_be(expected);
        let ratio = read.took.as_secs_f64() / link.ideal(expected.len).as_secs_f64();
        println!("{ratio:.3} x ideal");
        assert!(ratio < 2.0, "{ratio:.2} x ideal: the others waited for the dead");
    }
    assert!(!killed.finish(MINUTE).status.success(), "a dead mount cannot serve its reader");
}

#[test]
fn a_peer_whose_cable_is_pulled_harms_nobody() {
    let Some(lab) = Lab::timed(4, Link::mbit(100)) else { return };
    let (tree, expected) = tree_with_one_file(&lab, 64 * MIB);
    let _origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    let _mounts: Vec<_> = lab.nodes().iter().map(|host| swarm::mount(host, "images", &[])).collect();
    let mut readings: Vec<_> = lab.nodes().iter().map(|host| swarm::read(host, "random", &[])).collect();
    readings[1].reaches(24 * MIB, MINUTE);
    lab.cut(lab.host(2));
    let mut cut_off = readings.remove(1);
    for reading in readings {
        reading.finish(MINUTE).must_be(expected);
    }
    assert!(cut_off.is_running(), "the reader that is cut off waits");
    lab.mend(lab.host(2));
    cut_off.finish(MINUTE).must_be(expected);
}

#[test]
fn a_killed_dd_is_gone_within_a_second_with_everything_cut_off() {
    for flags in [&[][..], &["iflag=direct"]] {
        let Some(lab) = Lab::timed(2, Link::mbit(100)) else { return };
        let (tree, _) = tree_with_one_file(&lab, 64 * MIB);
        let _origin = swarm::serve(lab.origin(), &tree, "images", &[]);
        let _mount = swarm::mount(lab.host(1), "images", &[]);
        let mut reading = swarm::read(lab.host(1), "random", flags);
        reading.reaches(8 * MIB, MINUTE);
        lab.cut(lab.host(0));
        lab.cut(lab.host(1));
        reading.stalls(MINUTE);
        assert!(reading.is_running(), "the read waits for the network {flags:?}");
        let killed = Instant::now();
        reading.signal("KILL");
        reading.finish(Duration::from_secs(10));
        let took = killed.elapsed();
        assert!(took < Duration::from_secs(1), "it took {took:?} to be gone {flags:?}");
    }
}
