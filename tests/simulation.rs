//! The swarm's decisions, driven by a simulated network: many of the product's own nodes, faults, and figures.

mod sim;

use sim::conduct::Conduct;
use sim::host::{Order, Plan, Setup};
use sim::*;
use swarmfs::chunk::BLOCKS_PER_CHUNK;
use swarmfs::swarm::Policy;
use swarmfs::wire::head::PageHash;

fn policy(mib: u64) -> Policy {
    Policy::with_budget(mib * MIB)
}

fn setup(rate: u64, readers: Vec<Plan>) -> Setup {
    Setup { rate, policy: policy(160), conduct: Conduct::Honest, readers, start: 0, leaves: false }
}

fn through(files: Vec<usize>) -> Vec<Plan> {
    vec![Plan { files, order: Order::Through, rate: UNBOUND }]
}

/// Seconds that a file needs on a link when nothing is lost: its bytes and their segments' headers.
fn ideal(bytes: u64, rate: u64) -> f64 {
    bytes as f64 * 1.0456 / rate as f64
}

fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

/// An origin and readers of one file, all from the start.
fn crowd(seed: u64, readers: usize, size: u64, rate: u64) -> World {
    crowd_with(policy(160), seed, readers, size, rate)
}

fn crowd_with(policy: Policy, seed: u64, readers: usize, size: u64, rate: u64) -> World {
    let mut world = World::new(seed, Network::default());
    let file = world.tree.add(size, 0);
    world.origin(Setup { policy: policy.clone(), ..setup(rate, vec![]) });
    for _ in 0..readers {
        world.reader(Setup { policy: policy.clone(), ..setup(rate, through(vec![file])) });
    }
    world
}

/// Bytes of blocks that left the origin, in copies of `bytes`.
fn copies(world: &World, bytes: u64) -> f64 {
    world.hosts[0].count.data_sent as f64 / bytes as f64
}

/// How late STATEs were at all readers.
fn state_ages(world: &World) -> host::Ages {
    let mut ages = host::Ages::default();
    world.hosts[1..].iter().for_each(|host| ages.add(&host.count.state_ages));
    ages
}

/// When the last reader of all was done, in seconds.
fn last(world: &World) -> f64 {
    world.hosts.iter().flat_map(|host| &host.finishes).max().map_or(0.0, |time| *time as f64 / 1e9)
}

/// Whoever got bytes got them right: nothing wrong was kept (the world checks that), and it was noticed.
fn assert_all_read(world: &World, bytes: u64) {
    for (index, host) in world.hosts.iter().enumerate().filter(|(_, host)| !host.origin) {
        for reader in &host.readers {
            assert_eq!(reader.bytes, bytes, "host {index}");
        }
    }
}

/// What the policy costs: each row is compared to a file that is checked in, so that a change shows what it does.
#[test]
fn the_mesh_is_as_fast_as_expected() {
    let rows = [
        (1, 64, 100),
        (3, 64, 100),
        (8, 64, 100),
        (8, 256, 100),
        (32, 16, 25),
        (32, 64, 25),
        (32, 64, 100),
        (32, 64, 300),
        (100, 32, 25),
        (8, 256, 1000),
        (32, 256, 1000),
        (128, 128, 1000),
    ];
    let expected = include_str!("sim/expected.txt");
    let (mut table, mut differs) = (String::new(), false);
    for (readers, mib, rate) in rows {
        let size = mib * MIB;
        let mut world = crowd(seed(1), readers, size, mbit(rate));
        world.run(nanos(ideal(size, mbit(rate)) * 3.0 + 5.0));
        assert_all_read(&world, size);
        let time = last(&world) / ideal(size, mbit(rate));
        let name = format!("{readers} x {mib} MiB at {rate} Mbit/s");
        table += &format!("{name}: {time:.3} x ideal, {:.3} copies\n", copies(&world, size));
        let row = expected.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        let number = |text: Option<&str>| text.and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
        let (old_time, old_copies) = (number(row), number(row.and_then(|row| row.split(", ").nth(1))));
        let near = |old: Option<f64>, new: f64, within: f64| old.is_some_and(|old| (old - new).abs() <= within);
        differs |= !near(old_time, time, 0.02) || !near(old_copies, copies(&world, size), 0.02);
    }
    assert!(!differs, "tests/sim/expected.txt says:\n{expected}\nnow it is:\n{table}");
}

/// The prototype on a network, with the same files: an offer's answer came after 51 ms (8 readers, 100 Mbit/s) and 167 ms (32 at 25). One way
/// must take about half of that here, or the simulator says nothing of herding.
#[test]
fn control_is_as_late_as_on_a_network() {
    for (readers, mib, rate, least, most) in [(8, 256, 100, 15, 40), (32, 64, 25, 45, 120)] {
        let mut world = crowd(seed(1), readers, mib * MIB, mbit(rate));
        world.run(60 * SECOND);
        let median = state_ages(&world).percentile(50);
        assert!((least..=most).contains(&median), "{readers} readers: a STATE takes {median} ms");
    }
}

/// The prototype took 1.148 x ideal on a network before its senders chose as they do now. The product takes 1.5 there if it
/// chooses so, most of its readers 1.2. Else the simulator would say nothing of what the choice is worth.
#[test]
fn senders_that_offer_the_laggard_its_first_piece_herd() {
    for seed in seeds(1..=2) {
        let (size, rate) = (64 * MIB, mbit(25));
        let took = |policy: Policy| {
            let mut world = crowd_with(policy, seed, 32, size, rate);
            world.run(nanos(ideal(size, rate) * 3.0));
            last(&world) / ideal(size, rate)
        };
        let herd = took(Policy { herd: true, alternatives: 1, ..policy(160) });
        let choice = took(policy(160));
        assert!(herd > 1.12 && choice < 1.08, "{herd:.3} where all push at one, {choice:.3} where they do not");
    }
}

#[test]
fn three_readers_take_little_more_than_one() {
    for seed in seeds(1..=3) {
        let (size, rate) = (64 * MIB, mbit(100));
        let mut world = crowd(seed, 3, size, rate);
        world.run(nanos(ideal(size, rate) * 1.3));
        assert!(copies(&world, size) <= 1.5, "{} copies", copies(&world, size));
    }
}

#[test]
fn nodes_that_send_to_one_other_at_a_time_all_finish() {
    for seed in seeds(1..=8) {
        let (size, rate) = (32 * MIB, mbit(100));
        let mut world = World::new(seed, Network::default());
        let file = world.tree.add(size, 0);
        let mut one = policy(64);
        one.limit_uploads(None, Some(1));
        world.origin(Setup { policy: one.clone(), ..setup(rate, vec![]) });
        for _ in 0..6 {
            world.reader(Setup { policy: one.clone(), ..setup(rate, through(vec![file])) });
        }
        world.run(nanos(ideal(size, rate) * 3.0));
        assert_all_read(&world, size);
    }
}

#[test]
fn a_hundred_nodes_find_each_other_through_loss() {
    let rate = mbit(1000);
    let mut world =
        World::new(seed(1), Network { lost_datagrams: 300, datagram_jitter: 200 * MS, ..Network::default() });
    let common = world.tree.add(4 * MIB, 0);
    world.origin(setup(rate, vec![]));
    for _ in 0..100 {
        let own = world.tree.add(300_000, 0);
        world.reader(setup(rate, through(vec![common, own])));
    }
    world.run(15 * SECOND);
    assert_all_read(&world, 4 * MIB + 300_000);
    let all = 4 * MIB + 100 * 300_000;
    assert!(copies(&world, all) < 1.2, "{} copies", copies(&world, all));
}

#[test]
fn who_sends_wrong_blocks_is_dropped_and_harms_nobody() {
    let (size, rate) = (32 * MIB, mbit(100));
    let mut world = World::new(seed(1), Network::default());
    let file = world.tree.add(size, 0);
    world.origin(setup(rate, vec![]));
    world.reader(Setup { conduct: Conduct::Liar, ..setup(rate, through(vec![file])) });
    for _ in 0..7 {
        world.reader(setup(rate, through(vec![file])));
    }
    world.run(nanos(ideal(size, rate) * 3.0));
    assert_all_read(&world, size);
    let honest = world.hosts[2..].iter().flat_map(|host| &host.finishes).max().map_or(0.0, |time| *time as f64 / 1e9);
    assert!(honest < ideal(size, rate) * 1.4, "the honest ones took {honest:.3} s");
    let noticed: u64 = world.hosts.iter().map(|host| host.count.wrong).sum();
    assert!((1..=7 * 8).contains(&noticed), "{noticed} wrong blocks came to somebody");
    let honest = world.hosts[2..].iter().filter_map(|host| host.node.as_ref());
    for node in honest {
        assert!(node.neighbours().all(|(addr, ..)| addr != world.hosts[1].addr), "a neighbour still talks to it");
    }
}

#[test]
fn a_fifth_of_the_readers_lose_power_and_the_others_go_on() {
    let (size, rate) = (64 * MIB, mbit(100));
    let mut world = crowd(seed(1), 20, size, rate);
    for victim in [3, 7, 11, 15] {
        world.at(2 * SECOND + victim as u64 * 10 * MS, Fault::Crash(victim));
    }
    world.run(nanos(ideal(size, rate) * 1.5));
    assert_eq!(world.hosts.iter().map(|host| host.finishes.len()).sum::<usize>(), 16);
    assert!(copies(&world, size) < 1.2, "{} copies", copies(&world, size));
    assert!(last(&world) < ideal(size, rate) * 1.15, "{:.3} s", last(&world));
}

#[test]
fn readers_wait_for_an_origin_that_lost_power_and_go_on() {
    let (size, rate) = (64 * MIB, mbit(100));
    let mut world = crowd(seed(1), 5, size, rate);
    world.at(2 * SECOND, Fault::Crash(0));
    world.at(12 * SECOND, Fault::Return(0));
    world.run(12 * SECOND + nanos(ideal(size, rate) + 2.0));
    assert_all_read(&world, size);
    assert!(copies(&world, size) < 1.3, "{} copies", copies(&world, size));
    // Found again within two seconds, it takes what was left and little more.
    assert!(last(&world) < 12.0 + 2.0 + ideal(size, rate) - 1.5, "{:.3} s", last(&world));
}

#[test]
fn a_slow_reader_holds_nobody_back() {
    let (size, rate) = (64 * MIB, mbit(100));
    let mut world = World::new(seed(1), Network::default());
    let file = world.tree.add(size, 0);
    world.origin(setup(rate, vec![]));
    let mut slow = through(vec![file]);
    slow[0].rate = rate / 10;
    world.reader(setup(rate, slow));
    for _ in 0..7 {
        world.reader(setup(rate, through(vec![file])));
    }
    world.run(nanos(size as f64 / (rate as f64 / 10.0) * 1.1));
    let fast = world.hosts[2..].iter().flat_map(|host| &host.finishes).max().map_or(0.0, |time| *time as f64 / 1e9);
    assert!(fast < ideal(size, rate) * 1.06, "the fast ones took {fast:.3} s");
    assert!(copies(&world, size) < 1.05, "{} copies", copies(&world, size));
}

#[test]
fn a_slow_link_holds_nobody_back() {
    let (size, rate) = (64 * MIB, mbit(100));
    let mut world = World::new(seed(1), Network::default());
    let file = world.tree.add(size, 0);
    world.origin(setup(rate, vec![]));
    world.reader(setup(rate / 10, through(vec![file])));
    for _ in 0..7 {
        world.reader(setup(rate, through(vec![file])));
    }
    world.run(nanos(ideal(size, rate / 10) * 1.2));
    let fast = world.hosts[2..].iter().flat_map(|host| &host.finishes).max().map_or(0.0, |time| *time as f64 / 1e9);
    assert!(fast < ideal(size, rate) * 1.1, "the fast ones took {fast:.3} s");
}

/// Their neighbours have read to the end, and have dropped nearly all: a few slow readers share what comes again. (Measured:
/// 1.01 - 1.03 x ideal and 1.6 - 2.0 copies; 1.5 - 2.1 and 2.0 - 4.0 where they keep their neighbours.)
#[test]
fn slow_readers_whom_the_fast_have_left_find_each_other() {
    let (size, rate) = (192 * MIB, mbit(100));
    let mut world = World::new(seed(1), Network::default());
    let file = world.tree.add(size, 0);
    let small = |rate, readers| Setup { policy: policy(48), ..setup(rate, readers) };
    world.origin(setup(10 * rate, vec![]));
    for index in 0..60 {
        let rate = if index % 5 == 0 { rate } else { 10 * rate };
        world.reader(small(rate, through(vec![file])));
    }
    world.run(nanos(ideal(size, rate) * 5.0));
    assert!(last(&world) < ideal(size, rate) * 1.1, "{:.3} s", last(&world));
    assert!(copies(&world, size) < 2.5, "{} copies", copies(&world, size));
}

#[test]
fn who_is_cut_off_or_stopped_for_a_while_catches_up() {
    let (size, rate) = (64 * MIB, mbit(100));
    let mut world = crowd(seed(1), 8, size, rate);
    world.at(2 * SECOND, Fault::Cut(3));
    world.at(2 * SECOND, Fault::Pause(4));
    world.at(8 * SECOND, Fault::Resume(4));
    world.at(9 * SECOND, Fault::Join(3));
    world.run(9 * SECOND + nanos(ideal(size, rate) + 4.0));
    assert_all_read(&world, size);
    let others = world.hosts.iter().enumerate().filter(|(index, _)| ![3, 4].contains(index));
    let others = others.flat_map(|(_, host)| &host.finishes).max().map_or(0.0, |time| *time as f64 / 1e9);
    assert!(others < ideal(size, rate) * 1.1, "the others took {others:.3} s");
}

#[test]
fn random_readers_get_a_block_at_once_and_nothing_else() {
    let rate = mbit(100);
    let mut world = World::new(seed(1), Network::default());
    let file = world.tree.add(1024 * MIB, 0);
    world.origin(setup(rate, vec![]));
    let reads = 200;
    for _ in 0..4 {
        world.reader(setup(rate, vec![Plan { files: vec![file], order: Order::Random(reads), rate: UNBOUND }]));
    }
    // A segment must be read and hashed first (3 ms), its header and the block travel (3 ms).
    world.run(reads as u64 * 25 * MS + SECOND);
    for host in &world.hosts[1..] {
        let blocks = host.count.data_received / 32768;
        assert!(blocks <= reads as u64, "{blocks} blocks for {reads} reads");
    }
}

#[test]
fn zeros_cost_nothing() {
    let (size, rate) = (256 * MIB, mbit(100));
    let mut world = World::new(seed(1), Network::default());
    let file = world.tree.add(size, 75);
    world.origin(setup(rate, vec![]));
    for _ in 0..3 {
        world.reader(setup(rate, through(vec![file])));
    }
    let solid = world.tree.solid(file);
    world.run(nanos(ideal(size, rate) * 0.3));
    assert_all_read(&world, size);
    assert!(copies(&world, solid) < 1.05, "{} copies of what is not zero", copies(&world, solid));
    assert!(last(&world) < ideal(solid, rate) * 1.15, "{:.3} s", last(&world));
}

#[test]
fn a_late_starter_gets_from_the_origin_what_nobody_kept() {
    let (size, rate) = (256 * MIB, mbit(100));
    let mut world = World::new(seed(1), Network::default());
    let file = world.tree.add(size, 0);
    world.origin(setup(rate, vec![]));
    let small = Setup { policy: policy(64), ..setup(rate, through(vec![file])) };
    for _ in 0..3 {
        world.reader(small.clone());
    }
    let start = 30.0;
    world.reader(Setup { start: nanos(start), ..small });
    world.run(nanos(start + ideal(size, rate) * 1.2));
    let took = last(&world) - start;
    assert!(took < ideal(size, rate) * 1.05, "{took:.3} s");
    assert!(copies(&world, size) < 2.0, "{} copies", copies(&world, size));
}

#[test]
fn readers_a_few_seconds_apart_are_served_by_those_ahead() {
    let (size, rate) = (128 * MIB, mbit(100));
    let mut world = World::new(seed(1), Network::default());
    let file = world.tree.add(size, 0);
    world.origin(setup(rate, vec![]));
    for index in 0..8 {
        world.reader(Setup { start: index * 700 * MS, ..setup(rate, through(vec![file])) });
    }
    world.run(nanos(7.0 * 0.7 + ideal(size, rate) * 1.3));
    assert!(copies(&world, size) < 1.1, "{} copies", copies(&world, size));
}

/// The last four come when all others are past the beginning, which a few keep for such as them. (They took 1.65 of their
/// cards' time: those few were full of links to others who had read to the end, and each piece was starved for in turn.)
#[test]
fn whoever_starts_when_is_done_as_soon_as_its_card() {
    let (size, rate, card) = (256 * MIB, mbit(1000), 40_000_000);
    for seed in seeds(3..=3) {
        let mut world = World::new(seed, Network::default());
        let file = world.tree.add(size, 0);
        let policy = Policy { budget_blocks: 8 * BLOCKS_PER_CHUNK, ..policy(160) };
        let setup = |readers, start| Setup { start, policy: policy.clone(), ..setup(rate, readers) };
        world.origin(setup(vec![], 0));
        let mut starts = fastrand::Rng::with_seed(seed);
        for _ in 0..50 {
            let reader = Plan { files: vec![file], order: Order::Through, rate: card };
            world.reader(setup(vec![reader], starts.u64(0..30 * SECOND)));
        }
        world.run(60 * SECOND);
        let took = world.hosts[1..].iter().map(|host| host.finishes[0] - host.setup.start).max().unwrap_or(0);
        let took = took as f64 / 1e9 / (size as f64 / card as f64);
        assert!(took < 1.1, "{took:.3} of the time that its card takes");
        assert!(copies(&world, size) < 2.0, "{} copies", copies(&world, size));
    }
}

/// Two racks, each behind a link that carries four of its fourteen readers. (Measured over forty seeds: 7.2 copies crossed,
/// give or take 0.5, and 10.2 if nobody asked for racks.)
#[test]
fn most_of_what_a_rack_needs_it_gets_inside() {
    let (size, rate) = (32 * MIB, mbit(100));
    let crossed = |seed: u64, outside: usize| {
        let racks = Some(Racks { readers: 14, uplink: mbit(400) });
        let mut world = World::new(seed, Network { racks, ..Network::default() });
        let file = world.tree.add(size, 0);
        world.origin(setup(rate, vec![]));
        for _ in 0..28 {
            let policy = Policy { outside, ..policy(160) };
            world.reader(Setup { policy, ..setup(rate, through(vec![file])) });
        }
        world.run(nanos(ideal(size, rate) * 1.5));
        assert_all_read(&world, size);
        world.crossed as f64 / size as f64
    };
    let (mut known, mut unknown, mut runs) = (0.0, 0.0, 0.0);
    for seed in seeds(1..=4) {
        known += crossed(seed, policy(160).outside);
        unknown += crossed(seed, policy(160).links);
        runs += 1.0;
    }
    let (known, unknown) = (known / runs, unknown / runs);
    assert!(known < unknown * 0.77, "{known:.1} of 28 copies crossed, and {unknown:.1} if nobody asks for racks");
}

#[test]
fn two_readers_on_each_node_read_two_files() {
    let (size, rate) = (32 * MIB, mbit(100));
    let mut world = World::new(seed(1), Network::default());
    let files = [world.tree.add(size, 0), world.tree.add(size, 0)];
    world.origin(setup(rate, vec![]));
    for _ in 0..6 {
        let readers = files.iter().flat_map(|file| through(vec![*file])).collect();
        world.reader(setup(rate, readers));
    }
    world.run(nanos(ideal(2 * size, rate) * 1.2));
    assert_all_read(&world, size);
    assert!(copies(&world, 2 * size) < 1.05, "{} copies", copies(&world, 2 * size));
}

/// Every reader keeps the chunk that it is in, and what it read of that: with more readers than chunks in memory all of it
/// was kept for somebody, nothing could go, and everybody waited for ever.
#[test]
fn more_readers_than_the_memory_has_chunks_all_finish() {
    let (size, rate) = (32 * MIB, mbit(1000));
    let mut world = World::new(seed(1), Network::default());
    let files: Vec<usize> = (0..8).map(|_| world.tree.add(size, 0)).collect();
    world.origin(setup(rate, vec![]));
    // As fast as the flash cards that they write, so that all are at the same place.
    let pace = 10_000_000;
    let readers: Vec<Plan> =
        files.iter().map(|file| Plan { files: vec![*file], order: Order::Through, rate: pace }).collect();
    let total = readers.len() as u64 * size;
    world.reader(Setup { policy: policy(64), ..setup(rate, readers) });
    world.run(nanos(size as f64 / pace as f64 * 2.0));
    assert_all_read(&world, size);
    assert!(copies(&world, total) < 1.5, "{} copies", copies(&world, total));
}

#[test]
fn small_caches_beside_large_ones() {
    let (size, rate) = (128 * MIB, mbit(100));
    let mut world = World::new(seed(1), Network::default());
    let file = world.tree.add(size, 0);
    world.origin(setup(rate, vec![]));
    for index in 0..8 {
        world.reader(Setup { policy: policy([32, 256][index % 2]), ..setup(rate, through(vec![file])) });
    }
    world.run(nanos(ideal(size, rate) * 1.2));
    assert_all_read(&world, size);
    assert!(copies(&world, size) < 1.1, "{} copies", copies(&world, size));
}

#[test]
fn a_walk_over_hundreds_of_small_files_is_one_long_read() {
    let rate = mbit(100);
    let mut world = World::new(seed(1), Network::default());
    let files: Vec<usize> = (0..400u64).map(|index| world.tree.add(20_000 + index * 7919 % 400_000, 0)).collect();
    let bytes: u64 = files.iter().map(|file| world.tree.object(*file).size).sum();
    world.origin(setup(rate, vec![]));
    for _ in 0..8 {
        world.reader(setup(rate, through(files.clone())));
    }
    world.run(nanos(ideal(bytes, rate) * 1.5));
    assert_all_read(&world, bytes);
    assert!(copies(&world, bytes) < 1.1, "{} copies", copies(&world, bytes));
    assert!(world.broadcasts <= 3 * 8, "{} broadcasts", world.broadcasts);
}

#[test]
fn who_leaves_is_missed_by_nobody() {
    let (size, rate) = (64 * MIB, mbit(100));
    let mut world = World::new(seed(1), Network::default());
    let file = world.tree.add(size, 0);
    world.origin(setup(rate, vec![]));
    for index in 0..8 {
        world.reader(Setup { leaves: true, start: index * 100 * MS, ..setup(rate, through(vec![file])) });
    }
    world.at(2 * SECOND, Fault::Exit(2));
    world.at(3 * SECOND, Fault::Exit(5));
    world.run(nanos(0.8 + ideal(size, rate) * 1.2));
    assert_eq!(world.hosts.iter().map(|host| host.finishes.len()).sum::<usize>(), 6);
    assert!(copies(&world, size) < 1.1, "{} copies", copies(&world, size));
}

#[test]
fn pages_come_from_neighbours_first() {
    let mut world = World::new(seed(1), Network::default());
    world.origin(setup(mbit(100), vec![]));
    for _ in 0..8 {
        world.reader(setup(mbit(100), vec![]));
    }
    world.run_until(SECOND);
    let pages: Vec<PageHash> = (0..20).map(|number| PageHash([number; 32])).collect();
    for host in 1..=8 {
        pages.iter().for_each(|page| world.want_page(host, *page));
        world.run_until(world.now + 300 * MS);
        assert_eq!(world.hosts[host].pages.len(), pages.len(), "host {host}");
    }
    let from_origin = world.hosts[0].count.pages_sent;
    assert!(from_origin <= 4 * 20, "the origin sent {from_origin} pages of 160");
}

/// Faults of all kinds at random, on readers and origin: after the last everybody finishes.
#[test]
fn everybody_finishes_after_any_faults() {
    for seed in seeds(1..=12) {
        let (size, rate) = (32 * MIB, mbit(100));
        let lossy = Network { lost_pieces: 5, lost_datagrams: 200, ..Network::default() };
        let mut world = World::new(seed, lossy);
        let mut rng = fastrand::Rng::with_seed(world.seed);
        let files = vec![world.tree.add(size, 30), world.tree.add(3 * MIB + 5, 0)];
        world.origin(setup(rate, vec![]));
        for index in 0..10 {
            let start = rng.u64(0..SECOND);
            let conduct = if index == 9 && seed % 2 == 0 { Conduct::Liar } else { Conduct::Honest };
            let policy = policy([32, 64, 160][index % 3]);
            world.reader(Setup { start, conduct, policy, ..setup(rate, through(files.clone())) });
        }
        let mut victims: Vec<usize> = (0..10).collect();
        rng.shuffle(&mut victims);
        for victim in &victims[..6] {
            let begin = SECOND + rng.u64(0..3 * SECOND);
            let end = begin + rng.u64(10 * MS..4 * SECOND);
            let (fault, mended) = match rng.u32(0..3) {
                0 => (Fault::Crash(*victim), Fault::Return(*victim)),
                1 => (Fault::Cut(*victim), Fault::Join(*victim)),
                _ => (Fault::Pause(*victim), Fault::Resume(*victim)),
            };
            world.at(begin, fault);
            world.at(end, mended);
        }
        world.run(8 * SECOND + nanos(ideal(size, rate) * 3.0 + 5.0));
        assert_all_read(&world, size + 3 * MIB + 5);
    }
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
        let ages = state_ages(&world);
        println!(
            "T {last:.3} s, {:.3} x ideal, mean {:.3}; egress {:.3} copies, {:.3} with headers; first {:.0} ms; links {:.1}, state {}, offer {} accept {} decline {} abort {} want {} stalled {} starved {}; control {:.2} %, wire {:.3}, wasted {:.4}, lost {:.1}; STATE late by {:?} ms (10, 50, 90, 99 %); {:.1} s of clock",
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
            [10, 50, 90, 99].map(|part| ages.percentile(part)),
            clock.elapsed().as_secs_f64()
        );
    }
}
