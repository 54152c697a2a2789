//! What the swarm decides: one state machine, `Node`, with no socket, clock, file, thread or random source of its own.
//!
//! The contract: call `handle` with what happened and the time it happened at, as often as there is news; then `settle`
//! once, then take every `Output` with `poll_output` and carry it out; call `transmit` whenever a link can take bytes,
//! and `handle(Input::Tick)` when `next_tick` is reached. Times never go back. It holds numbers of blocks, never their
//! bytes: the driver keeps those, in the cache, exactly as long as this says.
//!
//! The parts: `keep` what is held and dropped, `request` what is wanted and from whom, `provide` what is sent to whom,
//! `gossip` what nodes tell each other and how they meet, `trust` whom they go on dealing with, `pages` the catalogue's
//! way through the swarm.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use crate::chunk::{BlockId, ChunkId, ObjectId, Run, SEGMENTS_PER_CHUNK, SegmentId};
use crate::wire::datagram::{Join, Peer, Welcome};
use crate::wire::frame::{Frame, GoneReason, Hello};
use crate::wire::head::PageHash;

mod bits;
mod gossip;
mod keep;
mod link;
mod pages;
mod policy;
mod provide;
mod request;
mod trust;

pub use policy::Policy;

use keep::Store;
use link::Link;
use pages::PageDesk;
use request::Requests;
use trust::Trust;

/// Microseconds since some start that the driver chose.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time(pub u64);

impl Time {
    pub fn since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    pub fn plus(self, us: u64) -> Time {
        Time(self.0.saturating_add(us))
    }
}

/// One TCP connection to a neighbour, opened or being opened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkId(pub u32);

/// One open file, or whatever else reads in an order of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReaderId(pub u64);

/// A stretch of an object that a reader will want.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    pub run: Run,
    /// Bytes in the whole object.
    pub size: u64,
    /// Where the stretch begins on the tree's number line, in blocks.
    pub position: u64,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// Somebody looks for neighbours of this tree.
    Join {
        from: SocketAddr,
        join: Join,
    },
    /// Somebody answered; the head's key is the one this node trusts.
    Welcome {
        from: SocketAddr,
        welcome: Box<Welcome>,
    },
    /// A connection that `Output::Connect` asked for is there.
    Connected {
        link: LinkId,
    },
    /// A connection ended, or could not be made.
    Closed {
        link: LinkId,
    },
    Frame {
        link: LinkId,
        frame: Frame,
    },
    /// Bytes of a transfer came in.
    Progress {
        link: LinkId,
        transfer: u32,
        bytes: u32,
    },
    /// A whole block of a transfer came in and was checked.
    Block {
        link: LinkId,
        transfer: u32,
        block: BlockId,
        good: bool,
    },
    /// A signed header was admitted to the cache: bit i of `zero`, block i needs no transfer.
    Header {
        segment: SegmentId,
        zero: u64,
    },
    /// What a peer sent as a header was none.
    BadHeader {
        link: LinkId,
    },
    /// A page whose name is right cannot be read: nobody will have a better one.
    BadPage {
        hash: PageHash,
    },
    /// What a peer sent was no frame.
    BadFrame {
        link: LinkId,
    },
    /// A peer takes nothing of what it is sent.
    Unread {
        link: LinkId,
    },
    /// A page was checked and kept.
    Page {
        hash: PageHash,
        len: u32,
    },
    /// Replaces what a reader will want next, nearest first.
    Window {
        reader: ReaderId,
        window: Vec<Wanted>,
    },
    /// A reader waits for these blocks now. Look at `takes_demands` before.
    Demand {
        wanted: Wanted,
    },
    /// A reader that waited for these blocks was answered otherwise.
    Undemand {
        run: Run,
    },
    /// Somebody waits for this page now.
    WantPage {
        hash: PageHash,
    },
    /// A page may be of use: it is fetched when there is nothing better to do.
    PageAhead {
        hash: PageHash,
    },
    CloseReader {
        reader: ReaderId,
    },
    /// A newer head of the tree is the one that counts from now on.
    Head {
        sequence: u64,
    },
    /// The answer to `Output::Resolve`: the object's size if the tree has it.
    Resolved {
        object: ObjectId,
        size: Option<u64>,
    },
    /// The answer to `Output::Prepare`: the segment is read, signed and in the cache.
    Prepared {
        segment: SegmentId,
        zero: u64,
    },
    PrepareFailed {
        segment: SegmentId,
        reason: PrepareError,
    },
    Tick,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PrepareError {
    /// It will never be readable again in this version.
    Gone(GoneReason),
    /// Worth another try after this many microseconds.
    Later { after_us: u64 },
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    Connect {
        link: LinkId,
        addr: SocketAddr,
    },
    Close {
        link: LinkId,
    },
    Send {
        link: LinkId,
        frame: Frame,
    },
    /// Send a segment header from the cache.
    SendHeader {
        link: LinkId,
        segment: SegmentId,
    },
    /// Send a page, or NOPAGE if it is not there.
    SendPage {
        link: LinkId,
        hash: PageHash,
    },
    /// Look for neighbours: by broadcast, and by unicast to those known.
    Join {
        join: JoinAim,
    },
    Welcome {
        to: SocketAddr,
        peers: Vec<Peer>,
    },
    /// DATA of this transfer will come over this link.
    Receive {
        link: LinkId,
        transfer: u32,
        run: Run,
        size: u64,
    },
    /// DATA of this transfer, if any still comes, is to be thrown away.
    Ignore {
        link: LinkId,
        transfer: u32,
    },
    /// `transmit` has something for this link.
    Ready {
        link: LinkId,
    },
    /// Read, hash and sign this segment of the tree, and put it into the cache.
    Prepare {
        segment: SegmentId,
    },
    Resolve {
        object: ObjectId,
    },
    /// Take the chunk out of the cache.
    Drop {
        chunk: ChunkId,
    },
    DropPage {
        hash: PageHash,
    },
    /// Fail whoever waits for this page: no version of the tree that can be had has it.
    PageGone {
        hash: PageHash,
    },
    /// Nobody will ever have this object again: fail whoever waits for it.
    Gone {
        object: ObjectId,
        reason: GoneReason,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JoinAim {
    Broadcast,
    Unicast(SocketAddr),
}

/// Bytes to send as one DATA frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transmit {
    pub transfer: u32,
    pub block: BlockId,
    pub offset: u32,
    pub len: u32,
}

/// What `status` shows of the swarm.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    pub wrong_blocks: u64,
    pub wrong_headers: u64,
    pub refused_peers: u64,
    pub stalled_transfers: u64,
    pub starved: u64,
    pub joins: u64,
}

/// A node of the swarm: a reader, or an origin, which is the same machine with a full store and a directory.
pub struct Node {
    policy: Policy,
    me: Hello,
    rng: fastrand::Rng,
    now: Time,
    started: Time,
    store: Store,
    /// Sizes of the objects that this node's readers, or as an origin its tree, told of.
    sizes: BTreeMap<ObjectId, u64>,
    /// How many of them were in use when the others were last forgotten.
    sizes_used: usize,
    links: BTreeMap<LinkId, Link>,
    next_link: u32,
    requests: Requests,
    gossip: gossip::Gossip,
    provide: provide::Provide,
    pages: PageDesk,
    trust: Trust,
    counters: Counters,
    /// Something changed that may let an offer be made.
    refill: bool,
    ready: BTreeSet<LinkId>,
    out: VecDeque<Output>,
}

impl Node {
    /// `me` is what this node says of itself; `seed` decides all its chances.
    pub fn new(policy: Policy, me: Hello, seed: u64, now: Time) -> Node {
        let store = Store::new(policy.budget_blocks);
        Node {
            rng: fastrand::Rng::with_seed(seed),
            now,
            started: now,
            store,
            sizes: BTreeMap::new(),
            sizes_used: 0,
            links: BTreeMap::new(),
            next_link: 0,
            requests: Requests::default(),
            gossip: gossip::Gossip::new(now),
            provide: provide::Provide::default(),
            pages: PageDesk::new(policy.page_budget),
            trust: Trust::default(),
            counters: Counters::default(),
            refill: false,
            ready: BTreeSet::new(),
            out: VecDeque::new(),
            policy,
            me,
        }
    }

    /// A connection came in; none if there is no room for another.
    pub fn accept(&mut self, from: SocketAddr, now: Time) -> Option<LinkId> {
        self.now = now.max(self.now);
        let full = self.links.len() >= self.policy.most_links(self.gossip.rate(), self.me.origin);
        if full && !self.close_a_silent_stranger() {
            return None;
        }
        let link = self.new_link(from, false);
        self.greet(link);
        Some(link)
    }

    pub fn handle(&mut self, input: Input, now: Time) {
        self.now = now.max(self.now);
        match input {
            Input::Join { from, join } => self.on_join(from, join),
            Input::Welcome { from, welcome } => self.on_welcome(from, *welcome),
            Input::Connected { link } => self.greet(link),
            Input::Closed { link } => self.forget_link(link),
            Input::Frame { link, frame } => self.on_frame(link, frame),
            Input::Progress { link, transfer, bytes } => self.on_progress(link, transfer, bytes),
            Input::Block { link, transfer, block, good } => self.on_block(link, transfer, block, good),
            Input::Header { segment, zero } => self.on_header(segment, zero),
            Input::BadHeader { link } => {
                self.counters.wrong_headers += 1;
                self.refuse_peer(link);
            }
            Input::BadPage { hash } => self.give_page_up(hash),
            Input::BadFrame { link } => self.refuse_peer(link),
            Input::Unread { link } => self.on_unread(link),
            Input::Page { hash, len } => self.on_page(hash, len),
            Input::Window { reader, window } => self.on_window(reader, window),
            Input::Demand { wanted } => self.on_demand(wanted),
            Input::Undemand { run } => self.on_undemand(run),
            Input::WantPage { hash } => self.want_page(hash, true),
            Input::PageAhead { hash } => self.want_page(hash, false),
            Input::CloseReader { reader } => self.on_window(reader, Vec::new()),
            Input::Head { sequence } => self.on_head(sequence),
            Input::Resolved { object, size } => self.on_resolved(object, size),
            Input::Prepared { segment, zero } => self.on_prepared(segment, zero),
            Input::PrepareFailed { segment, reason } => self.on_prepare_failed(segment, reason),
            Input::Tick => self.tick(),
        }
    }

    /// Draws the consequences of everything handled since the last call: offers, state, who may send.
    pub fn settle(&mut self) {
        if self.refill {
            self.refill = false;
            self.fill();
        }
        self.publish_if_due();
        for link in std::mem::take(&mut self.ready) {
            self.out.push_back(Output::Ready { link });
        }
    }

    /// Whether something came up in `transmit` that `settle` would act on.
    pub fn wants_settling(&self) -> bool {
        self.refill
    }

    /// Bytes that a link's kernel queue may hold unsent at the rate that this node moves them.
    pub fn unsent(&self) -> u32 {
        self.policy.unsent(self.gossip.rate())
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When `Input::Tick` is due.
    pub fn next_tick(&self) -> Time {
        let idle = self.requests.is_idle() && self.provide.is_idle() && self.links.values().all(|link| link.is_idle());
        let tick = self.gossip.last_tick.plus(if idle { self.policy.idle_tick } else { self.policy.tick });
        if self.gossip.dirty() { tick.min(self.gossip.publish_due()) } else { tick }
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Neighbours whose link is greeted: address, whether an origin, its position.
    pub fn neighbours(&self) -> impl Iterator<Item = (SocketAddr, bool, u64)> + '_ {
        self.links.values().filter(|link| link.greeted).map(|link| (link.addr, link.origin, link.position))
    }

    /// Whether a link that can be sent to leads to an origin.
    pub fn has_origin(&self) -> bool {
        self.links.values().any(|link| link.greeted && link.origin)
    }

    /// Blocks held or awaited, times their size; never above the budget.
    pub fn reserved_blocks(&self) -> u32 {
        self.store.reserved()
    }

    /// Chunks of which something is held.
    pub fn chunks_held(&self) -> usize {
        self.store.chunks()
    }

    /// Whether the whole of a segment is on its way, so that it deserves a huge page.
    pub fn wants_whole(&self, segment: SegmentId) -> bool {
        self.store.is_whole(segment)
    }

    /// The size of the object whose segment's header is of use now, if it is.
    pub fn expects_header(&self, segment: SegmentId) -> Option<u64> {
        let index = segment.index % SEGMENTS_PER_CHUNK;
        let awaited = self.store.taken(segment.chunk()).segment(index) != 0 && !self.store.has_header(segment);
        awaited.then(|| self.sizes.get(&segment.object).copied()).flatten()
    }

    /// Whether a link leads to an origin.
    pub fn is_origin(&self, link: LinkId) -> bool {
        self.links.get(&link).is_some_and(|link| link.origin)
    }

    /// Whether the node still deals with a link.
    pub fn has_link(&self, link: LinkId) -> bool {
        self.links.contains_key(&link)
    }

    pub fn is_greeted(&self, link: LinkId) -> bool {
        self.links.get(&link).is_some_and(|link| link.greeted)
    }

    pub fn has_block(&self, block: BlockId) -> bool {
        self.store.has(block)
    }

    fn tick(&mut self) {
        self.gossip.last_tick = self.now;
        self.check_links();
        self.check_transfers();
        self.check_offers();
        self.forget_failures();
        self.measure();
        self.report_if_owed();
        self.meet();
        self.check_pages();
        self.pull();
        self.refill = true;
    }

    fn on_frame(&mut self, id: LinkId, frame: Frame) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.last_heard = self.now;
        if !link.greeted {
            // Whoever speaks before saying who it is is none of ours.
            return match frame {
                Frame::Hello(hello) => self.on_hello(id, hello),
                _ => self.close_link(id),
            };
        }
        match frame {
            Frame::Hello(_) => self.refuse_peer(id),
            Frame::State(state) => self.on_state(id, state),
            Frame::Offer { id: offer, runs } => self.on_offer(id, offer, runs),
            Frame::Accept { id: offer, run } => self.on_accept(id, offer, run),
            Frame::Decline { id: offer, reason } => self.on_decline(id, offer, reason),
            Frame::Abort { transfer } => self.on_abort(id, transfer),
            Frame::Cancel { transfer } => self.on_cancel(id, transfer),
            Frame::Want { transfer, starving, run } => self.on_want(id, transfer, starving, run),
            Frame::GetHeader(segment) => self.on_get_header(id, segment),
            // The driver opens headers and pages itself, since they must be checked before anything is decided.
            Frame::Header(_) | Frame::Page(_) => {}
            Frame::NoHeader(segment) => self.on_no_header(id, segment),
            Frame::GetPage(hash) => self.on_get_page(id, hash),
            Frame::NoPage(hash) => self.on_no_page(id, hash),
            Frame::Ask { count } => self.on_ask(id, count),
            Frame::Peers(peers) => self.learn_peers(peers),
            Frame::Gone { object, reason } => self.on_gone(id, object, reason),
        }
    }

    fn send(&mut self, link: LinkId, frame: Frame) {
        self.out.push_back(Output::Send { link, frame });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::OriginKey;
    use crate::wire::frame::{NodeId, State};

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
        let pulled = outputs.iter().find_map(|output| match output {
            Output::Send { link, frame: Frame::Want { transfer, .. } } if *link == origin => Some(*transfer),
            _ => None,
        });
        let transfer = pulled.expect("the origin is asked for a block that a reader jumps to");
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
            bench.read_on();
            let outputs = bench.frame(first, Frame::Offer { id: 7, runs: vec![run(0, 2)] });
            let offered = outputs.iter().find_map(|output| match output {
                Output::Send { link, frame: Frame::Offer { id, .. } } if *link == child => Some(*id),
                _ => None,
            });
            let id = offered.expect("what is awaited is offered on");
            if lost {
                bench.frame(first, Frame::Abort { transfer: 7 });
                bench.frame(second, Frame::Offer { id: 9, runs: vec![run(0, 2)] });
            }
            let outputs = bench.frame(child, Frame::Accept { id, run: run(0, 2) });
            let abort = Output::Send { link: child, frame: Frame::Abort { transfer: id } };
            assert_eq!(outputs.contains(&abort), lost, "{outputs:?}");
        }
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

    /// A reader whose address had changed was refused by its origin for half a minute, for the link that it had lost.
    #[test]
    fn whoever_opens_a_second_link_has_lost_the_first() {
        let mut bench = Bench::new();
        let lost = bench.link(3, false, vec![]);
        let link = bench.node.accept(([10, 0, 0, 9], 40_000).into(), Time(bench.now)).expect("there is room");
        let outputs = bench.frame(link, Frame::Hello(hello(3, false)));
        assert!(outputs.contains(&Output::Close { link: lost }) && !outputs.contains(&Output::Close { link }));
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
        let wanted = outputs.iter().filter_map(|output| match output {
            Output::Send { frame: Frame::Want { run, .. }, .. } => Some(*run),
            _ => None,
        });
        assert_eq!(wanted.collect::<Vec<_>>(), [run(64, 4)]);
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
        let dialled = |outputs: Vec<Output>| {
            outputs.into_iter().filter(|output| matches!(output, Output::Connect { .. })).count()
        };
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
        wait_heard(&mut bench, &[origin, idler], 5_000_000);
        let outputs = bench.give(Input::demand(run(128, 4), SIZE));
        assert!(pulled(&outputs, idler).is_some(), "it gets another chance");
        let outputs = wait_heard(&mut bench, &[origin, idler], 3_000_000);
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
        bench.read_on();
        let outputs = bench.frame(source, Frame::Offer { id: 7, runs: vec![run(0, 2)] });
        let offered = outputs.iter().find_map(|output| match output {
            Output::Send { link, frame: Frame::Offer { id, .. } } if *link == idler => Some(*id),
            _ => None,
        });
        let id = offered.expect("what is awaited is offered on");
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
        let stranger = |bench: &mut Bench| bench.node.accept(([10, 0, 0, 9], 9).into(), Time(bench.now));
        let mut first = None;
        while let Some(link) = stranger(&mut bench) {
            first = first.or(Some(link));
        }
        bench.wait(300_000);
        assert!(stranger(&mut bench).is_some(), "whoever was silent longest goes");
        let first = first.expect("there was room for some");
        assert!(bench.drain().contains(&Output::Close { link: first }));
    }
}
