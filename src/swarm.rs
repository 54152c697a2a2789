//! What the swarm decides: one state machine, `Node`, with no socket, clock, file, thread or random source of its own.
//!
//! The contract: call `handle` with what happened and the time it happened at, as often as there is news; then `settle`
//! once, then take every `Output` with `poll_output` and carry it out; call `transmit` whenever a link can take bytes,
//! and `handle(Input::Tick)` when `next_tick` is reached. Times never go back. It holds numbers of blocks, never their
//! bytes: the driver keeps those, in the cache, exactly as long as this says.
//!
//! The parts: `keep` what is held and dropped, `request` what is wanted and from whom, `provide` what is sent to whom,
//! `copies` how many have what, `rear` who has fallen behind, `prepare` what an origin reads for that, `replica` what one
//! of several asks before, `gossip` what nodes tell each other and how they meet, `trust` whom they go on dealing with,
//! `pages` the catalogue's way through the swarm.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use crate::chunk::{BlockId, ChunkId, ObjectId, Run, SEGMENTS_PER_CHUNK, SegmentId};
use crate::wire::datagram::{Join, Peer, Welcome};
use crate::wire::frame::{Frame, GoneReason, Hello, NodeId};
use crate::wire::head::PageHash;

mod bits;
mod copies;
mod gossip;
mod keep;
mod limits;
mod link;
mod pages;
mod policy;
mod prepare;
mod provide;
mod rear;
mod replica;
mod request;
#[cfg(test)]
mod tests;
mod trust;

pub use gossip::Subnet;
pub use limits::Table;
pub use policy::Policy;

use bits::Bits;
use keep::Store;
use link::Link;
use pages::PageDesk;
use replica::Replica;
use request::Requests;
use trust::Trust;

/// A neighbour that was sent blocks within this is being sent to.
const LATELY: u64 = 500_000;

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
    /// A connection that `Output::Connect` asked for is there, from an address of this network, if that is known.
    Connected {
        link: LinkId,
        subnet: Option<Subnet>,
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
    /// The header that a replica asked for was checked and is remembered.
    HeaderKnown {
        segment: SegmentId,
    },
    /// What a peer sent as a header was none.
    BadHeader {
        link: LinkId,
    },
    /// A page whose name is right cannot be read: nobody will have a better one.
    BadPage {
        hash: PageHash,
    },
    /// What a peer sent as the proof asked for (`proof_asked`) was checked.
    Proof {
        link: LinkId,
        good: bool,
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
    /// Sign that this node is an origin, for the peer that sent this nonce.
    Prove {
        link: LinkId,
        nonce: [u8; 32],
        peer: NodeId,
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
    /// Peers that said they were an origin and did not prove it.
    pub false_origins: u64,
    /// Connections of addresses that had enough of them.
    pub crowded_connections: u64,
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
    /// Chunks of all neighbours that are kept track of.
    tracked: usize,
    /// None unless this is an origin beside another that signs the heads.
    replica: Option<Replica>,
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
        let mut rng = fastrand::Rng::with_seed(seed);
        Node {
            gossip: gossip::Gossip::new(now, &mut rng),
            rng,
            now,
            store,
            sizes: BTreeMap::new(),
            sizes_used: 0,
            links: BTreeMap::new(),
            next_link: 0,
            requests: Requests::default(),
            provide: provide::Provide::default(),
            pages: PageDesk::new(policy.page_budget),
            trust: Trust::default(),
            tracked: 0,
            replica: None,
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
        // One address does not take all the places: not even all those of one host's nodes.
        let crowd = self.policy.most_of_an_address(self.gossip.rate(), self.me.origin);
        let same = |link: &&Link| !link.opened_by_me && link.addr.ip() == from.ip();
        let many = !from.ip().is_loopback() && self.links.values().filter(same).count() >= crowd;
        let crowded = many || self.comes_too_often(from.ip());
        if crowded || (full && !self.close_a_silent_stranger() && !self.close_a_useless_link()) {
            self.counters.crowded_connections += u64::from(crowded);
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
            Input::Connected { link, subnet } => {
                self.note_own_subnet(subnet);
                self.greet(link);
            }
            Input::Closed { link } => self.forget_link(link),
            Input::Frame { link, frame } => self.on_frame(link, frame),
            Input::Progress { link, transfer, bytes } => self.on_progress(link, transfer, bytes),
            Input::Block { link, transfer, block, good } => self.on_block(link, transfer, block, good),
            Input::Header { segment, zero } => self.on_header(segment, zero),
            Input::HeaderKnown { segment } => self.on_header_known(segment),
            Input::BadHeader { link } => {
                self.counters.wrong_headers += 1;
                self.refuse_peer(link);
            }
            Input::BadPage { hash } => self.give_page_up(hash),
            Input::BadFrame { link } => self.refuse_peer(link),
            Input::Proof { link, good } => self.on_proof(link, good),
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
        let pause = if idle { self.policy.idle_tick } else { self.policy.tick(self.gossip.best_rate()) };
        let mut tick = self.gossip.last_tick.plus(pause);
        if !self.me.origin && !self.has_origin() {
            tick = tick.min(self.gossip.next_look());
        }
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

    /// Whether an origin is linked and speaks.
    pub fn hears_origin(&self) -> bool {
        self.links.values().any(|link| link.greeted && link.origin && !link.hushed)
    }

    /// Blocks held or awaited, times their size; never above the budget.
    pub fn reserved_blocks(&self) -> u32 {
        self.store.reserved()
    }

    /// Chunks of which something is held.
    pub fn chunks_held(&self) -> usize {
        self.store.chunks()
    }

    /// Whether the network was seen to bring a whole segment in little time.
    pub fn is_fast(&self) -> bool {
        self.policy.is_fast(self.gossip.rate())
    }

    /// Whether the whole of a segment is on its way.
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

    /// Whether there is memory for a block. Without it a block that was checked must not be kept: its transfer was given up
    /// in this very batch, and nothing counts what it takes.
    pub fn has_room_for(&self, block: BlockId) -> bool {
        self.store.is_taken(block)
    }

    /// How many neighbours other than origins have or await all of a chunk's blocks, whether any was sent to lately, and
    /// the bytes a second that links carry.
    pub fn standing(&self, chunk: ChunkId, blocks: u32, now: Time) -> (usize, bool, u64) {
        let all = Bits::range(0, blocks);
        let holds = |link: &&Link| !link.origin && !link.hushed && all.minus(&link.taken(chunk)).is_empty();
        let holders = self.links.values().filter(holds).count();
        let sending = self.links.values().any(|link| link.last_served.is_some_and(|at| now.since(at) < LATELY));
        (holders, sending, self.gossip.best_rate())
    }

    pub fn has_block(&self, block: BlockId) -> bool {
        self.store.has(block)
    }

    fn tick(&mut self) {
        self.gossip.last_tick = self.now;
        self.check_links();
        self.check_proofs();
        self.check_transfers();
        self.check_offers();
        self.forget_failures();
        self.measure();
        self.report_if_owed();
        self.meet();
        self.ask_for_head();
        self.check_replica();
        self.check_pages();
        self.pull();
        self.refill = true;
    }

    fn on_frame(&mut self, id: LinkId, frame: Frame) {
        self.heard(id);
        let Some(link) = self.links.get(&id) else { return };
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
            Frame::Header(_) | Frame::Page(_) | Frame::Proof { .. } => {}
            Frame::Prove { nonce } => self.on_prove(id, nonce),
            Frame::NoHeader(segment) => self.on_no_header(id, segment),
            Frame::GetPage(hash) => self.on_get_page(id, hash),
            Frame::NoPage(hash) => self.on_no_page(id, hash),
            Frame::Ask { count } => self.on_ask(id, count),
            Frame::Peers(peers) => self.on_peers(id, peers),
            Frame::Gone { object, reason } => self.on_gone(id, object, reason),
        }
    }

    fn send(&mut self, link: LinkId, frame: Frame) {
        self.out.push_back(Output::Send { link, frame });
    }
}
