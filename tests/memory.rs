//! A small board's promise: `--cache 64M` bounds what the node holds in memory, whatever is read through it. And how that
//! memory is taken.

use std::time::Duration;

mod lab;

use lab::{Lab, Link, samples, swarm};
use swarmfs::cache::{Cache, Filling};
use swarmfs::chunk::{BLOCK, ObjectId, SEGMENT, SegmentId};
use swarmfs::keys::OriginKey;
use swarmfs::wire::header::SegmentHeader;

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

/// What the kernel was told of the memory at an address.
fn flags_at(address: usize) -> String {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let holds = |line: &str| {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let number = |text| usize::from_str_radix(text, 16).ok();
        range.and_then(|(from, to)| Some(number(from)? <= address && address < number(to)?)) == Some(true)
    };
    let mapping = maps.lines().skip_while(|line| !holds(line));
    mapping.into_iter().find(|line| line.starts_with("VmFlags:")).expect("each mapping has them").to_owned()
}

/// A node that clears 2 MiB at once does nothing else meanwhile, and what comes over a slow link comes block by block.
#[test]
fn only_a_segment_that_comes_at_once_is_a_huge_page() {
    let bytes = vec![1; SEGMENT as usize];
    for (filling, flag) in [(Filling::Part, " nh"), (Filling::Whole, " nh"), (Filling::AtOnce, " hg")] {
        let id = SegmentId { object: ObjectId([1; 16]), index: 0 };
        let cache = Cache::default();
        let header = SegmentHeader::sign(id, &bytes, &OriginKey::from_seed(&[1; 32]));
        assert!(cache.admit(header, filling).fill(0, &bytes[..BLOCK as usize]).unwrap());
        let block = cache.read(id, 0..BLOCK).expect("it was filled");
        let flags = flags_at(block.as_ptr() as usize);
        assert!(flags.contains(flag), "{filling:?}: {flags}");
    }
}
