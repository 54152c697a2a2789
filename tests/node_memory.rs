//! What a node remembers of its neighbours: a small board can know a thousand of them. Every allocation is counted, so
//! this is the only test of its process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use swarmfs::chunk::{BLOCKS_PER_CHUNK, ObjectId, Run};
use swarmfs::keys::OriginKey;
use swarmfs::swarm::{Input, LinkId, Node, Policy, ReaderId, Time, Wanted};
use swarmfs::wire::datagram::Peer;
use swarmfs::wire::frame::{Frame, Hello, NodeId, State};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MIB: usize = 1 << 20;
/// Blocks in the file that all of them read: 4 GiB.
const BLOCKS: u32 = 256 * BLOCKS_PER_CHUNK;
const LINKS: u64 = 32;

fn hello(node: u64) -> Hello {
    let key = OriginKey::from_seed(&[1; 32]).public();
    let tree = "tree".parse().expect("a plain name");
    Hello { node: NodeId(node), origin: false, port: 19024, sequence: 1, key, tree }
}

fn run(first: u32, count: u32) -> Run {
    Run { object: ObjectId([1; 16]), first, count }
}

/// Every second block of a chunk, as ragged as a map can be.
fn ragged(chunk: u32) -> impl Iterator<Item = Run> {
    (0..BLOCKS_PER_CHUNK).step_by(2).map(move |block| run(chunk * BLOCKS_PER_CHUNK + block, 1))
}

#[test]
fn a_thousand_neighbours_known_and_32_linked_take_less_than_4_mib() {
    let before = HELD.load(Ordering::Relaxed);
    let mut node = Node::new(Policy::with_budget(128 * MIB as u64), hello(1), 1, Time(0));
    let mut now = 0;
    let give = |node: &mut Node, now: &mut u64, input: Input| {
        *now += 100;
        node.handle(input, Time(*now));
        node.settle();
        while node.poll_output().is_some() {}
    };
    let wanted = Wanted { run: run(0, BLOCKS), size: BLOCKS as u64 * 32768, position: 0 };
    give(&mut node, &mut now, Input::Window { reader: ReaderId(0), window: vec![wanted] });
    for number in 0..LINKS {
        if number == 1 {
            // Only one that is fast keeps so many links.
            give(&mut node, &mut now, Input::Progress { link: LinkId(1), transfer: 0, bytes: 100_000_000 });
            now += 400_000;
            node.handle(Input::Tick, Time(now));
        }
        let addr: SocketAddr = ([10, 0, 0, number as u8 + 2], 40_000).into();
        let link = node.accept(addr, Time(0)).expect("there is room for as many links as a node opens itself");
        give(&mut node, &mut now, Input::Frame { link, frame: Frame::Hello(hello(number + 2)) });
        // Each has a cache of 512 MiB, none of them the same.
        let state = State { full: true, sequence: 1, room: 128, rate: 100_000, ..State::default() };
        give(
            &mut node,
            &mut now,
            Input::Frame { link, frame: Frame::State(State { added: vec![run(0, 1536)], ..state.clone() }) },
        );
        for chunk in (0..32).map(|chunk| (chunk * 5 + number as u32) % 256) {
            let part = State { full: false, taken: ragged(chunk).collect(), ..state.clone() };
            give(&mut node, &mut now, Input::Frame { link, frame: Frame::State(part) });
        }
    }
    for number in 0..LINKS {
        let peers = (0..32).map(|index| {
            let number = 1000 + number * 32 + index;
            Peer { node: NodeId(number), addr: ([10, 1, (number / 250) as u8, (number % 250) as u8], 19024).into() }
        });
        let link = LinkId(number as u32 + 1);
        give(&mut node, &mut now, Input::Frame { link, frame: Frame::Peers(peers.collect()) });
    }
    assert_eq!(node.neighbours().count(), LINKS as usize);
    let held = HELD.load(Ordering::Relaxed) - before;
    assert!(held < 4 * MIB, "{held} bytes");
    assert!(held > 100_000, "{held} bytes are too few for what it was told");
}
