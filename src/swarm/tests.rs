//! One node among links that the test plays: what it answers to what it is told.

use super::*;
use crate::keys::OriginKey;
use crate::wire::frame::{NodeId, State, WANTED};

mod crowd;
mod liars;
mod meeting;
mod racks;
mod rear;
mod replica;
mod slow;
mod stray;

const SIZE: u64 = 64 << 20;

fn run(first: u32, count: u32) -> Run {
    Run { object: ObjectId([1; 16]), first, count }
}

fn hello(node: u64, origin: bool) -> Hello {
    let key = OriginKey::from_seed(&[1; 32]).public();
    let tree = "tree".parse().expect("a plain name");
    Hello { node: NodeId(node), origin, port: 19024, sequence: 1, key, tree }
}

/// A node, and what it puts out.
struct Bench {
    node: Node,
    now: u64,
}

impl Bench {
    fn new() -> Bench {
        let policy = Policy::with_budget(160 << 20);
        let mut bench = Bench { node: Node::new(policy, hello(1, false), 1, Time(0)), now: 0 };
        bench.give(Input::Tick);
        bench
    }

    fn give(&mut self, input: Input) -> Vec<Output> {
        self.now += 1_000;
        self.node.handle(input, Time(self.now));
        self.drain()
    }

    fn drain(&mut self) -> Vec<Output> {
        self.node.settle();
        std::iter::from_fn(|| self.node.poll_output()).collect()
    }

    fn frame(&mut self, link: LinkId, frame: Frame) -> Vec<Output> {
        self.give(Input::Frame { link, frame })
    }

    /// Time passes, with ticks as they fall due and neighbours that are not silent.
    fn wait(&mut self, us: u64) -> Vec<Output> {
        let (end, mut all) = (self.now + us, Vec::new());
        while self.now < end {
            all.extend(self.give(Input::Tick));
        }
        all
    }

    /// A neighbour, known by its hello and by what it wants.
    fn link(&mut self, node: u64, origin: bool, window: Vec<Run>) -> LinkId {
        let addr = ([10, 0, 0, node as u8], 40_000).into();
        let link = self.node.accept(addr, Time(self.now)).expect("there is room");
        self.frame(link, Frame::Hello(hello(node, origin)));
        if origin {
            self.give(Input::Proof { link, good: true });
        }
        self.frame(link, Frame::State(State { full: true, room: 16, added: window, ..State::default() }));
        link
    }

    fn read_on(&mut self) {
        let window = vec![Wanted { run: run(0, 1024), size: SIZE, position: 0 }];
        self.give(Input::Window { reader: ReaderId(1), window });
    }
}

/// What a node tells a neighbour that it has or awaits.
fn told(outputs: &[Output], to: LinkId) -> Vec<Run> {
    let states = outputs.iter().filter_map(|output| match output {
        Output::Send { link, frame: Frame::State(state) } if *link == to => Some(&state.taken),
        _ => None,
    });
    states.flatten().copied().collect()
}

/// 32 readers began at once; each pulled the first blocks from the origin and told the others that they were coming.
/// Everybody waited for somebody else, and the origin sent them to nobody.
#[test]
fn a_pull_is_not_told_before_it_is_answered() {
    let mut bench = Bench::new();
    let origin = bench.link(2, true, vec![]);
    let neighbour = bench.link(3, false, vec![run(0, 1024)]);
    let mut outputs = bench.give(Input::demand(run(0, 4), SIZE));
    let transfer = pulled(&outputs, origin).expect("the origin is asked for a block that a reader jumps to");
    outputs.extend(bench.wait(100_000));
    assert_eq!(told(&outputs, neighbour), []);
    let offered = |output: &Output| matches!(output, Output::Send { frame: Frame::Offer { .. }, .. });
    assert!(!outputs.iter().any(offered), "nor is it offered");
    let mut outputs = bench.give(Input::Progress { link: origin, transfer, bytes: 100 });
    outputs.extend(bench.wait(100_000));
    assert_eq!(told(&outputs, neighbour), [run(0, 4)]);
}

/// Of three nodes each had accepted a block from the one before, since its own source had failed and another had come
/// while an offer travelled: a ring in which nobody ever gets the block.
#[test]
fn a_block_lost_and_awaited_anew_is_not_passed_on_by_the_old_offer() {
    for lost in [false, true] {
        let mut bench = Bench::new();
        let first = bench.link(2, false, vec![]);
        let second = bench.link(3, false, vec![]);
        let child = bench.link(4, false, vec![run(0, 1024)]);
        [first, second].into_iter().for_each(|source| bench.node.note_good_block(source));
        bench.read_on();
        let outputs = bench.frame(first, Frame::Offer { id: 7, runs: vec![run(0, 2)] });
        let id = offer_to(&outputs, child).expect("what is awaited is offered on");
        if lost {
            bench.frame(first, Frame::Abort { transfer: 7 });
            bench.frame(second, Frame::Offer { id: 9, runs: vec![run(0, 2)] });
        }
        let outputs = bench.frame(child, Frame::Accept { id, run: run(0, 2) });
        let abort = Output::Send { link: child, frame: Frame::Abort { transfer: id } };
        assert_eq!(outputs.contains(&abort), lost, "{outputs:?}");
    }
}

/// The first offer to a neighbour.
fn offer_to(outputs: &[Output], to: LinkId) -> Option<u32> {
    outputs.iter().find_map(|output| match output {
        Output::Send { link, frame: Frame::Offer { id, .. } } if *link == to => Some(*id),
        _ => None,
    })
}

/// Runs offered to a neighbour.
fn offered(outputs: &[Output], to: LinkId) -> Vec<Run> {
    let offers = outputs.iter().filter_map(|output| match output {
        Output::Send { link, frame: Frame::Offer { runs, .. } } if *link == to => Some(runs),
        _ => None,
    });
    offers.flatten().copied().collect()
}

/// A node died with the only copy of a block. Those who had waited for it accepted each other's offers of it, in turn and
/// for seconds: each passed on that it was coming.
#[test]
fn a_block_that_did_not_come_is_not_passed_on_before_it_is_here() {
    let mut bench = Bench::new();
    let first = bench.link(2, false, vec![]);
    let second = bench.link(3, false, vec![]);
    let child = bench.link(4, false, vec![run(0, 1024)]);
    [first, second].into_iter().for_each(|source| bench.node.note_good_block(source));
    bench.read_on();
    let outputs = bench.frame(first, Frame::Offer { id: 7, runs: vec![run(0, 2)] });
    assert!(offered(&outputs, child).contains(&run(0, 2)), "{outputs:?}");
    bench.frame(first, Frame::Abort { transfer: 7 });
    for id in outputs.iter().filter_map(|output| match output {
        Output::Send { frame: Frame::Offer { id, .. }, .. } => Some(*id),
        _ => None,
    }) {
        bench.frame(child, Frame::Decline { id, reason: crate::wire::frame::Refusal::NotNeeded });
    }
    bench.frame(child, Frame::State(State { room: 64, ..State::default() }));
    let mut outputs = bench.frame(second, Frame::Offer { id: 9, runs: vec![run(0, 2)] });
    let accept = Output::Send { link: second, frame: Frame::Accept { id: 9, run: run(0, 2) } };
    assert!(outputs.contains(&accept), "{outputs:?}");
    outputs.extend(bench.wait(30_000));
    assert_eq!((offered(&outputs, child), told(&outputs, child)), (vec![], vec![]));
    let segment = SegmentId { object: ObjectId([1; 16]), index: 0 };
    bench.give(Input::Header { segment, zero: 0 });
    let block = BlockId { object: segment.object, index: 0 };
    let mut outputs = bench.give(Input::Block { link: second, transfer: 9, block, good: true });
    outputs.extend(bench.wait(30_000));
    assert_eq!((offered(&outputs, child).first(), told(&outputs, child)), (Some(&run(0, 1)), vec![run(0, 1)]));
}

/// A window is read in less time than it takes to call a neighbour dead; what it owed stopped everybody.
#[test]
fn what_a_silent_neighbour_owes_is_taken_from_another_and_the_link_stays() {
    let mut bench = Bench::new();
    let silent = bench.link(2, false, vec![]);
    let other = bench.link(3, false, vec![]);
    bench.node.note_good_block(silent);
    bench.read_on();
    bench.frame(silent, Frame::Offer { id: 7, runs: vec![run(0, 2)] });
    let mut outputs = Vec::new();
    for _ in 0..7 {
        outputs.extend(bench.wait(100_000));
        outputs.extend(bench.frame(other, Frame::State(State::default())));
    }
    let cancel = Output::Send { link: silent, frame: Frame::Cancel { transfer: 7 } };
    assert!(outputs.contains(&cancel), "{outputs:?}");
    let outputs = bench.frame(other, Frame::Offer { id: 9, runs: vec![run(0, 2)] });
    let accept = Output::Send { link: other, frame: Frame::Accept { id: 9, run: run(0, 2) } };
    assert!(outputs.contains(&accept), "{outputs:?}");
    let outputs = bench.frame(silent, Frame::Offer { id: 8, runs: vec![run(64, 2)] });
    let accept = Output::Send { link: silent, frame: Frame::Accept { id: 8, run: run(64, 2) } };
    assert!(outputs.contains(&accept), "it speaks again: {outputs:?}");
}

fn hash(number: u16) -> PageHash {
    let mut hash = [0; 32];
    hash[..2].copy_from_slice(&number.to_le_bytes());
    PageHash(hash)
}

fn asked_pages(outputs: &[Output]) -> Vec<PageHash> {
    let asked = outputs.iter().filter_map(|output| match output {
        Output::Send { frame: Frame::GetPage(hash), .. } => Some(*hash),
        _ => None,
    });
    asked.collect()
}

/// A root page named 500 others, which were all asked for at once: their answers passed what a link may have unsent,
/// the origin took the reader for dead, and it began again for ever.
#[test]
fn a_large_catalogue_is_fetched_a_little_at_a_time_and_what_is_waited_for_first() {
    let mut bench = Bench::new();
    bench.link(2, true, vec![]);
    let mut asked = Vec::new();
    for number in 0..500 {
        asked.extend(asked_pages(&bench.give(Input::PageAhead { hash: hash(number) })));
    }
    assert_eq!(asked.len(), 32);
    assert_eq!(asked_pages(&bench.give(Input::WantPage { hash: hash(900) })), [hash(900)]);
    assert_eq!(asked_pages(&bench.give(Input::WantPage { hash: hash(400) })), [hash(400)], "it was in the queue");
    let mut next = 0;
    while next < asked.len() {
        asked.extend(asked_pages(&bench.give(Input::Page { hash: asked[next], len: 100 })));
        next += 1;
    }
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked.len(), 499, "all but the one that somebody waits for");
}

/// A look-up in a version that the origin no longer had, since the tree changed while it was away, waited for ever.
#[test]
fn a_page_that_the_origin_has_no_more_is_given_up_once_its_newer_head_is_known() {
    let mut bench = Bench::new();
    let newer = Hello { sequence: 2, ..hello(2, true) };
    let addr: SocketAddr = ([10, 0, 0, 2], 19024).into();
    let origin = bench.node.accept(addr, Time(bench.now)).expect("there is room");
    let outputs = bench.frame(origin, Frame::Hello(newer));
    assert!(outputs.contains(&Output::Join { join: JoinAim::Unicast(addr) }), "its head is asked for: {outputs:?}");
    bench.give(Input::Proof { link: origin, good: true });
    bench.give(Input::WantPage { hash: hash(1) });
    let outputs = bench.frame(origin, Frame::NoPage(hash(1)));
    assert!(!outputs.contains(&Output::PageGone { hash: hash(1) }));
    let key = OriginKey::from_seed(&[1; 32]);
    let totals = crate::wire::head::Totals::default();
    let head = crate::wire::head::TreeHead::sign(hello(1, false).tree, 2, hash(7), 0, totals, &key);
    let welcome = Welcome { node: NodeId(2), port: 19024, origin: true, head, peers: vec![] };
    bench.give(Input::Welcome { from: addr, welcome: Box::new(welcome) });
    assert_eq!(asked_pages(&bench.wait(300_000)), [hash(1)]);
    let outputs = bench.frame(origin, Frame::NoPage(hash(1)));
    assert!(outputs.contains(&Output::PageGone { hash: hash(1) }), "{outputs:?}");
}

/// Whoever read at random took neighbours for dead that had nothing to say, all of them once a second.
#[test]
fn a_neighbour_that_has_no_reason_to_speak_is_not_taken_for_dead() {
    let mut bench = Bench::new();
    let neighbour = bench.link(3, false, vec![]);
    bench.give(Input::demand(run(0, 4), SIZE));
    let outputs = bench.wait(3_000_000);
    assert!(!outputs.contains(&Output::Close { link: neighbour }));
    bench.read_on();
    let outputs = bench.wait(3_000_000);
    assert!(outputs.contains(&Output::Close { link: neighbour }), "one that was told a window answers");
}

/// A reader whose address had changed was refused by its origin for half a minute, for the link that it had lost. One that
/// spoke a moment ago is not lost: anybody could call itself what its other end is called.
#[test]
fn whoever_opens_a_second_link_has_lost_the_first() {
    let mut bench = Bench::new();
    let lost = bench.link(3, false, vec![]);
    let link = bench.node.accept(([10, 0, 0, 9], 40_000).into(), Time(bench.now)).expect("there is room");
    bench.frame(link, Frame::Hello(hello(3, false)));
    assert!(bench.node.has_link(lost) && !bench.node.has_link(link));
    bench.wait(13_000_000);
    let link = bench.node.accept(([10, 0, 0, 9], 40_000).into(), Time(bench.now)).expect("there is room");
    bench.frame(link, Frame::Hello(hello(3, false)));
    assert!(!bench.node.has_link(lost) && bench.node.has_link(link));
}

#[test]
fn a_demand_that_was_given_up_is_asked_of_nobody() {
    let mut bench = Bench::new();
    bench.give(Input::demand(run(0, 4), SIZE));
    bench.give(Input::demand(run(64, 4), SIZE));
    bench.give(Input::Undemand { run: run(0, 4) });
    let mut outputs = bench.drain();
    bench.link(2, true, vec![]);
    outputs.extend(bench.wait(50_000));
    let wanted: Vec<Run> = wanted(outputs).into_iter().map(|(_, run)| run).collect();
    assert_eq!(wanted, [run(64, 4)]);
}

#[test]
fn peers_are_remembered_by_address_and_room_is_made_for_new_ones() {
    let mut bench = Bench::new();
    let key = OriginKey::from_seed(&[1; 32]);
    let totals = crate::wire::head::Totals::default();
    let head = crate::wire::head::TreeHead::sign(hello(1, false).tree, 1, hash(7), 0, totals, &key);
    // An origin that starts again and again, each time with another id: one is dialled.
    for node in 100..200 {
        let welcome = Welcome { node: NodeId(node), port: 19024, origin: true, head: head.clone(), peers: vec![] };
        let from = ([10, 0, 0, 2], 19024).into();
        bench.node.handle(Input::Welcome { from, welcome: Box::new(welcome) }, Time(bench.now));
    }
    let dialled =
        |outputs: Vec<Output>| outputs.into_iter().filter(|output| matches!(output, Output::Connect { .. })).count();
    assert_eq!(dialled(bench.wait(50_000)), 1);
    for node in 0..5000u32 {
        let addr = (std::net::Ipv4Addr::from(0x0b00_0000 + node), 19024).into();
        bench.node.learn_peer(NodeId(1000 + node as u64), addr, false);
    }
    let known: Vec<NodeId> = bench.node.known_peers().collect();
    assert!(known.contains(&NodeId(5999)), "the last one, too");
    assert_eq!(known.len(), 2048);
}

#[test]
fn nobody_is_sent_to_its_own_loopback() {
    let mut bench = Bench::new();
    let local = bench.node.accept(([127, 0, 0, 1], 40_000).into(), Time(bench.now)).expect("there is room");
    bench.frame(local, Frame::Hello(hello(3, false)));
    let remote = bench.link(4, false, vec![]);
    let named = |outputs: Vec<Output>| {
        outputs.into_iter().find_map(|output| match output {
            Output::Send { frame: Frame::Peers(peers), .. } => Some(peers.len()),
            _ => None,
        })
    };
    assert_eq!(named(bench.frame(remote, Frame::Ask { count: 8 })), Some(0));
    assert_eq!(named(bench.frame(local, Frame::Ask { count: 8 })), Some(1));
}

/// An origin with a tree of two objects; what it is asked for first.
fn origin_with(wanted: Run) -> (Bench, LinkId, Vec<Output>) {
    let mut node = Node::new(Policy::with_budget(160 << 20), hello(1, true), 1, Time(0));
    node.handle(Input::Tick, Time(0));
    let mut bench = Bench { node, now: 0 };
    let reader = bench.link(2, false, vec![wanted]);
    let outputs = bench.give(Input::Resolved { object: wanted.object, size: Some(SIZE) });
    (bench, reader, outputs)
}

fn prepared(outputs: &[Output]) -> bool {
    outputs.iter().any(|output| matches!(output, Output::Prepare { .. }))
}

/// A file that could not be read once, for want of descriptors or of a disk that answers, was refused until the origin
/// was started again.
#[test]
fn an_origin_tries_again_what_it_could_not_read() {
    let (mut bench, reader, outputs) = origin_with(run(0, 64));
    assert!(prepared(&outputs));
    let segment = SegmentId { object: ObjectId([1; 16]), index: 0 };
    bench.frame(reader, Frame::GetHeader(segment));
    let reason = PrepareError::Gone(GoneReason::Unreadable);
    let outputs = bench.give(Input::PrepareFailed { segment, reason });
    assert!(outputs.contains(&Output::Send { link: reader, frame: Frame::NoHeader(segment) }), "{outputs:?}");
    let mut waited = 0;
    let again = loop {
        let state = State { full: true, room: 16, added: vec![run(0, 64)], ..State::default() };
        let mut outputs = bench.frame(reader, Frame::State(state));
        outputs.extend(bench.wait(500_000));
        waited += 500;
        if prepared(&outputs) || waited > 10_000 {
            break waited;
        }
    };
    assert!((4_000..=6_000).contains(&again), "tried again after {again} ms");
}

/// Sizes were all forgotten at a bound, also that of a segment being read: its blocks never counted as here, and it was
/// never read again.
#[test]
fn a_segment_read_while_a_walk_passes_many_objects_is_sent() {
    let (mut bench, reader, outputs) = origin_with(run(0, 64));
    assert!(prepared(&outputs));
    for number in 0..provide::MAX_SIZES as u64 + 10 {
        let mut object = [2; 16];
        object[..8].copy_from_slice(&number.to_le_bytes());
        bench.node.handle(Input::Resolved { object: ObjectId(object), size: Some(1) }, Time(bench.now));
    }
    bench.link(3, false, vec![run(64, 64)]);
    let segment = SegmentId { object: ObjectId([1; 16]), index: 0 };
    let outputs = bench.give(Input::Prepared { segment, zero: 0 });
    let offered =
        |output: &Output| matches!(output, Output::Send { link, frame: Frame::Offer { .. } } if *link == reader);
    assert!(outputs.iter().any(offered));
    assert!(bench.node.has_block(BlockId { object: segment.object, index: 63 }));
}

/// The pull that a node sends over a link.
fn pulled(outputs: &[Output], from: LinkId) -> Option<u32> {
    outputs.iter().find_map(|output| match output {
        Output::Send { link, frame: Frame::Want { transfer, .. } } if *link == from => Some(*transfer),
        _ => None,
    })
}

/// What is asked for, with the transfers that are to bring it.
fn wanted(outputs: Vec<Output>) -> Vec<(u32, Run)> {
    let wanted = outputs.into_iter().filter_map(|output| match output {
        Output::Send { frame: Frame::Want { transfer, run, .. }, .. } => Some((transfer, run)),
        _ => None,
    });
    wanted.collect()
}

/// Time passes, and a neighbour says all along that it is there.
fn wait_heard(bench: &mut Bench, heard: &[LinkId], us: u64) -> Vec<Output> {
    let mut all = Vec::new();
    for _ in 0..us / 100_000 {
        for link in heard {
            all.extend(bench.frame(*link, Frame::State(State::default())));
        }
        all.extend(bench.wait(100_000));
    }
    all
}

fn holder(bench: &mut Bench, node: u64) -> LinkId {
    let link = bench.link(node, false, vec![]);
    bench.frame(link, Frame::State(State { taken: vec![run(0, 512)], ..State::default() }));
    link
}

#[test]
fn who_never_sends_is_left_alone_for_a_while_and_avoided_the_second_time() {
    let mut bench = Bench::new();
    let origin = bench.link(2, true, vec![]);
    let idler = holder(&mut bench, 3);
    let outputs = bench.give(Input::demand(run(0, 4), SIZE));
    assert!(pulled(&outputs, idler).is_some(), "a neighbour that has it goes before the origin");
    let outputs = wait_heard(&mut bench, &[origin, idler], 3_000_000);
    assert!(pulled(&outputs, origin).is_some() && pulled(&outputs, idler).is_none());
    let outputs = bench.give(Input::demand(run(64, 4), SIZE));
    assert!(pulled(&outputs, idler).is_none(), "it is asked nothing while it is doubted");
    let outputs = wait_heard(&mut bench, &[origin, idler], 25_000_000);
    assert!(pulled(&outputs, idler).is_some(), "it gets another chance");
    assert!(outputs.contains(&Output::Close { link: idler }));
    assert!(!outputs.contains(&Output::Close { link: origin }), "the only origin is borne with");
    let back = bench.node.accept(([10, 0, 0, 3], 40_001).into(), Time(bench.now)).expect("there is room");
    assert!(bench.frame(back, Frame::Hello(hello(3, false))).contains(&Output::Close { link: back }));
    let other = bench.node.accept(([10, 0, 0, 4], 40_001).into(), Time(bench.now)).expect("there is room");
    let outputs = bench.frame(other, Frame::Hello(hello(3, false)));
    assert!(!outputs.contains(&Output::Close { link: other }), "a name alone condemns nobody");
}

/// A byte now and then, of a block begun again and again, was progress for ever.
#[test]
fn bytes_that_never_make_a_block_are_no_progress() {
    let mut bench = Bench::new();
    let origin = bench.link(2, true, vec![]);
    let idler = holder(&mut bench, 3);
    let outputs = bench.give(Input::demand(run(0, 4), SIZE));
    let transfer = pulled(&outputs, idler).expect("a neighbour that has it is asked");
    let mut outputs = Vec::new();
    for _ in 0..120 {
        outputs.extend(bench.give(Input::Progress { link: idler, transfer, bytes: 1 }));
        outputs.extend(wait_heard(&mut bench, &[origin], 100_000));
    }
    assert!(outputs.contains(&Output::Send { link: idler, frame: Frame::Cancel { transfer } }));
    assert!(pulled(&outputs, origin).is_some(), "and the origin is asked instead");
}

#[test]
fn an_offer_that_nobody_answers_is_withdrawn_and_its_late_acceptance_aborted() {
    let mut bench = Bench::new();
    let source = bench.link(2, false, vec![]);
    let idler = bench.link(3, false, vec![run(0, 1024)]);
    bench.node.note_good_block(source);
    bench.read_on();
    let outputs = bench.frame(source, Frame::Offer { id: 7, runs: vec![run(0, 2)] });
    let id = offer_to(&outputs, idler).expect("what is awaited is offered on");
    for _ in 0..40 {
        bench.give(Input::Progress { link: source, transfer: 7, bytes: 1 });
        wait_heard(&mut bench, &[source, idler], 100_000);
    }
    let outputs = bench.frame(idler, Frame::Accept { id, run: run(0, 2) });
    assert!(outputs.contains(&Output::Send { link: idler, frame: Frame::Abort { transfer: id } }), "{outputs:?}");
}

#[test]
fn strangers_that_say_nothing_make_room_for_others() {
    let mut bench = Bench::new();
    let stranger = |bench: &mut Bench, host| bench.node.accept(([10, 0, 0, host], 9).into(), Time(bench.now));
    let mut first = None;
    let mut hosts = 9..;
    while let Some(link) = stranger(&mut bench, hosts.next().expect("there is less room than addresses")) {
        first = first.or(Some(link));
    }
    bench.wait(300_000);
    assert!(stranger(&mut bench, 8).is_some(), "whoever was silent longest goes");
    let first = first.expect("there was room for some");
    assert!(bench.drain().contains(&Output::Close { link: first }));
}

// ---- who means ill

/// A host called itself what another was called, and the other's link was closed for a second one of the same node.
#[test]
fn a_stolen_name_ends_nobodys_link() {
    let mut bench = Bench::new();
    let link = bench.link(2, false, vec![]);
    let thief = bench.node.accept(([10, 0, 0, 9], 40_000).into(), Time(bench.now)).expect("there is room");
    let outputs = bench.frame(thief, Frame::Hello(hello(2, false)));
    assert!(outputs.contains(&Output::Close { link: thief }) && bench.node.has_link(link));
}

#[test]
fn one_address_does_not_take_all_the_places() {
    let mut bench = Bench::new();
    let mut accept = |address: u8| bench.node.accept(([10, 0, 0, address], 40_000).into(), Time(bench.now));
    let crowd = (0..100).filter_map(|_| accept(9)).count();
    assert!((1..=8).contains(&crowd), "{crowd}");
    assert!(accept(10).is_some());
    assert_eq!(bench.node.counters().crowded_connections, 100 - crowd as u64);
}

/// Thrown out, a flooder was back at once under another name, thousands of times.
#[test]
fn who_returns_under_ever_new_names_is_let_in_once_a_second_and_keeps_nobody_out() {
    let mut bench = Bench::new();
    let mut let_in = 0;
    for name in 0..10_000u64 {
        let from = ([10, 0, 0, 9], 40_000).into();
        if let Some(link) = bench.node.accept(from, Time(bench.now)) {
            let_in += 1;
            bench.frame(link, Frame::Hello(hello(100 + name, false)));
            bench.give(Input::BadFrame { link });
        } else {
            bench.wait(1_000);
        }
    }
    assert!((5..=18).contains(&let_in), "{let_in} times in {} s", bench.now / 1_000_000);
    assert!(bench.node.accept(([10, 0, 0, 10], 40_000).into(), Time(bench.now)).is_some());
}

/// A peer that offers all the time and never sends filled every place, and honest neighbours' offers were declined.
#[test]
fn a_strangers_offers_are_taken_one_at_a_time_until_it_brings_a_block() {
    let mut bench = Bench::new();
    let stranger = bench.link(2, false, vec![]);
    bench.read_on();
    let offer = |bench: &mut Bench, id: u32, first: u32| {
        let outputs = bench.frame(stranger, Frame::Offer { id, runs: vec![run(first, 2)] });
        outputs.iter().any(|output| matches!(output, Output::Send { frame: Frame::Accept { .. }, .. }))
    };
    assert!(offer(&mut bench, 1, 0));
    assert!(!offer(&mut bench, 2, 2));
    let segment = BlockId { object: run(0, 1).object, index: 0 }.segment();
    bench.give(Input::Header { segment, zero: 0 });
    for index in 0..2 {
        let block = BlockId { object: segment.object, index };
        bench.give(Input::Progress { link: stranger, transfer: 1, bytes: 32768 });
        bench.give(Input::Block { link: stranger, transfer: 1, block, good: true });
    }
    assert!(offer(&mut bench, 3, 2) && offer(&mut bench, 4, 4), "it has shown that it sends");
}

/// A peer that told the origin it had everything kept it from offering anything to anybody.
#[test]
fn an_origin_counts_no_copy_of_what_it_never_sent() {
    let mut bench = Bench { node: Node::new(Policy::with_budget(160 << 20), hello(1, true), 1, Time(0)), now: 0 };
    let liar = bench.link(2, false, vec![]);
    let everything = (0..4).map(|chunk| run(chunk * 512, 512)).collect();
    bench.frame(liar, Frame::State(State { full: true, taken: everything, ..State::default() }));
    let reader = bench.link(3, false, vec![run(0, 1024)]);
    bench.give(Input::Resolved { object: run(0, 1).object, size: Some(SIZE) });
    let mut outputs = bench.wait(10_000);
    let segment = BlockId { object: run(0, 1).object, index: 0 }.segment();
    outputs.extend(bench.give(Input::Prepared { segment, zero: 0 }));
    outputs.extend(bench.wait(10_000));
    assert!(!offered(&outputs, reader).is_empty(), "{outputs:?}");
}

/// A peer had two blocks sent to it without end, and a reader that asked for both in turn was told each time that the
/// other one was on its way.
#[test]
fn whoever_takes_the_same_blocks_again_and_again_keeps_them_from_nobody() {
    let mut bench = Bench { node: Node::new(Policy::with_budget(160 << 20), hello(1, true), 1, Time(0)), now: 0 };
    let greedy = bench.link(2, false, vec![]);
    let reader = bench.link(3, false, vec![]);
    let (object, blocks) = (run(0, 1).object, [0, 64]);
    bench.give(Input::Resolved { object, size: Some(SIZE) });
    let mut transfer = WANTED;
    let mut ask = |bench: &mut Bench, link: LinkId, block: u32| {
        transfer += 1;
        let outputs = bench.frame(link, Frame::Want { transfer, starving: true, run: run(block, 1) });
        !outputs.contains(&Output::Send { link, frame: Frame::Abort { transfer } })
    };
    let mut wanted = Vec::from(blocks);
    for _ in 0..40 {
        for block in blocks {
            ask(&mut bench, greedy, block);
            bench.give(Input::Prepared { segment: BlockId { object, index: block }.segment(), zero: 0 });
        }
        while bench.node.transmit(greedy).is_some() {}
        wanted.retain(|block| !ask(&mut bench, reader, *block));
        wait_heard(&mut bench, &[greedy, reader], 100_000);
    }
    assert!(wanted.is_empty(), "told to wait in vain for {wanted:?}");
}

/// Whoever called itself an origin was believed that a file is gone.
#[test]
fn gone_is_believed_of_who_has_the_origins_key() {
    let object = run(0, 1).object;
    let gone = Frame::Gone { object, reason: GoneReason::Replaced };
    let told = |outputs: &[Output]| outputs.iter().any(|output| matches!(output, Output::Gone { .. }));
    for proven in [false, true] {
        let mut bench = Bench::new();
        let link = bench.node.accept(([10, 0, 0, 2], 40_000).into(), Time(0)).expect("there is room");
        let outputs = bench.frame(link, Frame::Hello(hello(2, true)));
        let asked = |output: &Output| matches!(output, Output::Send { frame: Frame::Prove { .. }, .. });
        assert!(outputs.iter().any(asked) && bench.node.proof_asked(link).is_some());
        if proven {
            bench.give(Input::Proof { link, good: true });
        }
        bench.read_on();
        assert_eq!(told(&bench.frame(link, gone.clone())), proven);
        let outputs = wait_heard(&mut bench, &[link], 4_000_000);
        let closed = outputs.contains(&Output::Close { link });
        assert_eq!((closed && bench.node.counters().false_origins == 1, bench.node.has_link(link)), (!proven, proven));
    }
}
