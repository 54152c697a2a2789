//! Mounts on a network with a host that means ill: it keeps a connection for each way of lying to the origin and to every
//! reader, and floods both with datagrams. What is read is right, in time, in the memory that was given.

mod lab;
mod mouth;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lab::{Lab, Link, samples, swarm};
use mouth::{Mouth, Talker, asked};
use swarmfs::catalogue::Kind;
use swarmfs::chunk::{BLOCK, BLOCKS_PER_CHUNK, BLOCKS_PER_SEGMENT, ObjectId, Run, blocks_of};
use swarmfs::driver::{self, discover};
use swarmfs::settings::{CacheSettings, NetSettings};
use swarmfs::stream::Embedded;
use swarmfs::wire::frame::{Frame, GoneReason, Hello, NodeId, State};
use swarmfs::wire::head::TreeHead;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 48 * MIB;
const LONG: Duration = Duration::from_secs(60);
/// What a reader's process may take beside its cache.
const PROGRAM: u64 = 48 * MIB;

#[test]
fn a_host_that_lies_in_every_way_harms_no_mount() {
    let Some(lab) = Lab::shared(5, Link::mbit(100)) else { return };
    let tree = lab.scratch().join("tree");
    std::fs::create_dir(&tree).unwrap();
    samples::random_file(&tree.join("random"), SIZE, 11);
    let expected = samples::digest_of(&tree.join("random"));
    let origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    let mounts: Vec<_> = (1..4).map(|host| swarm::mount(lab.host(host), "images", &["--cache=32M"])).collect();
    let victims: Vec<SocketAddr> = (0..4).map(|host| (lab.host(host).address(), 19024).into()).collect();
    let (stop, ready) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| lab.host(4).inside(|| lie(&victims, &ready, &stop)));
        let _stop = SetWhenDropped(&stop);
        swarm::wait_until(LONG, "the liars have greeted", || ready.load(Ordering::Relaxed).then_some(()));
        let reading: Vec<_> = (1..4).map(|host| swarm::read(lab.host(host), "random", &[])).collect();
        for read in reading {
            read.finish(LONG).must_be(expected);
        }
    });
    for node in mounts.iter().chain([&origin]) {
        assert!(!node.log().contains("panicked"), "{}", node.log());
        let peak = swarm::memory(node.pid(), "VmHWM");
        let budget = if std::ptr::eq(node, &origin) { 256 * MIB } else { 32 * MIB };
        assert!(peak < budget + PROGRAM, "{} MiB at most", peak / MIB);
    }
    let status = swarm::swarmfs(lab.host(1), &["status", "--json"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    for name in ["refused_peers", "false_origins", "stalled_transfers"] {
        let count = status.split(&format!("\"{name}\":")).nth(1).and_then(|rest| rest.trim().split([',', '}']).next());
        let count = count.and_then(|count| count.trim().parse::<u64>().ok());
        assert!(count.is_some_and(|count| count > 0), "{name} is not counted: {status}");
    }
}

struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Finds the tree as anybody would, and lies to everybody until it is over.
fn lie(victims: &[SocketAddr], ready: &AtomicBool, stop: &AtomicBool) {
    let net = NetSettings::default();
    let found = discover(&net, None, LONG).unwrap();
    let node = driver::join(found, &net, &CacheSettings { budget_bytes: 32 << 20 }).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let entry = runtime.block_on(Embedded::new(node.clone()).entry("random", true)).unwrap();
    let Kind::File { object } = *entry.row.kind() else { panic!("it is a file") };
    let head = node.head();
    node.stop();
    let all: Arc<Vec<Run>> = Arc::new(everything(object));
    let mut liars = Vec::new();
    for (index, victim) in victims.iter().enumerate() {
        // A reader takes four connections of one address: the last way of lying is one too many.
        for kind in [4, 0, 1, 2, 3] {
            liars.push(liar(kind, *victim, &head, index as u64 * 10 + kind, all.clone()));
        }
    }
    ready.store(true, Ordering::Relaxed);
    let mouth = UdpSocket::bind("0.0.0.0:0").unwrap();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        for victim in victims {
            let _ = mouth.send_to(&[n as u8; 1200], victim);
        }
        // Who comes and goes.
        if n % 50 == 0 {
            let mut guest = Mouth::greet(victims[n / 50 % victims.len()], hello(&head, 10_000 + n as u64, false));
            guest.hear(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn everything(object: ObjectId) -> Vec<Run> {
    let blocks = blocks_of(SIZE);
    let starts = (0..blocks).step_by(BLOCKS_PER_CHUNK as usize);
    starts.map(|first| Run { object, first, count: BLOCKS_PER_CHUNK.min(blocks - first) }).collect()
}

fn hello(head: &TreeHead, node: u64, origin: bool) -> Hello {
    let tree = head.name.clone();
    Hello { node: NodeId(1000 + node), origin, port: 9, sequence: head.sequence, key: head.key, tree }
}

/// One connection that claims and offers everything, and then: sends wrong blocks, wrong headers, nothing, or a byte a
/// second; or says that it is the origin and that all is gone.
fn liar(kind: u64, victim: SocketAddr, head: &TreeHead, node: u64, all: Arc<Vec<Run>>) -> Talker {
    let object = all[0].object;
    let mut mouth = Mouth::greet(victim, hello(head, node, kind == 4));
    mouth.say(&Frame::State(State { full: true, rate: u32::MAX, taken: all.to_vec(), ..State::default() }));
    let (mut number, mut owed) = (0, Vec::new());
    let mut random = fastrand::Rng::with_seed(node);
    let act = move |mouth: &mut Mouth, frame: Frame| {
        match (&frame, kind) {
            (Frame::GetHeader(_), 1) => mouth.say(&Frame::Header(vec![7; 200].into())),
            (_, 4) => mouth.say(&Frame::Gone { object, reason: GoneReason::Replaced }),
            _ => {}
        }
        if let Some((transfer, run)) = asked(&frame) {
            match kind {
                0 => run.blocks().for_each(|block| mouth.data(transfer, block.index, 0, &[0xbd; BLOCK as usize])),
                3 => owed.push((transfer, run.first)),
                _ => {}
            }
        }
        if let (3, Some((transfer, first))) = (kind, owed.pop()) {
            mouth.data(transfer, first, 0, &[0xbd]);
        }
        number += 1;
        let blocks = blocks_of(SIZE);
        let runs = (0..8).map(|_| {
            let first = random.u32(0..blocks / BLOCKS_PER_SEGMENT) * BLOCKS_PER_SEGMENT;
            Run { object, first, count: 8 }
        });
        if kind < 4 && number % 3 == 0 {
            mouth.say(&Frame::Offer { id: number, runs: runs.collect() });
        }
    };
    Talker::start(mouth, act, State { rate: u32::MAX, ..State::default() })
}
