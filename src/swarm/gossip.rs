//! What nodes tell each other of themselves, and how they meet.
//!
//! A JOIN is broadcast until an origin answers; everything after that is unicast. STATE carries changes only, gathered
//! for some milliseconds; an origin gets a full report instead, less often, since its uplink bounds everybody.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use indexmap::IndexMap;

use super::bits::Bits;
use super::link::by_chunk;
use super::policy::WHOLE;
use super::{LinkId, Node, Policy, Table, Time};
use crate::chunk::{BLOCKS_PER_CHUNK, ChunkId, Run};
use crate::wire::datagram::MAX_PEERS;
use crate::wire::frame::{Frame, Hello, MAX_STATE_RUNS, NodeId, State};

mod alive;
mod known;
mod meet;
mod rack;
mod slide;
mod stray;

pub use rack::Subnet;
use slide::slide;

/// Peers remembered; beyond, of a few at random the one that failed most often is forgotten. A rack row is a thousand.
const MAX_KNOWN: usize = 2048;
/// Of how many of them one goes when another is to be remembered: to look through all for each who asks would be work
/// that a stranger can have done.
const COMPARED: usize = 8;
/// Of how many neighbours those are chosen that are named to somebody, and by how many of the chunks that it wants next: who
/// asks often must not keep an origin busy.
const RANKED: usize = 256;
const RANKED_BY: usize = 4;
/// Blocks between two positions that let one serve the other: half a cache of eight chunks.
const NEAR: u64 = 4 * BLOCKS_PER_CHUNK as u64;
pub const FIRST_JOIN: u64 = 100_000;
/// The first waits for up to this: those of a thousand that start together would fill every switch port's queue.
const SCATTER: u64 = 20_000;
const LAST_JOIN: u64 = 2_000_000;
/// Chunks of which everything is told in each report, and how often it is told of more: a cache full of small files has
/// thousands.
const SHORT_REPORT: usize = 64;
const FULL_REPORT: u64 = 2_000_000;
/// How often an origin is asked for the head that it named: the answer may be lost, or be older than the question.
const HEAD_PAUSE: u64 = 100_000;
const LAST_HEAD: u64 = 10_000_000;
/// Origins remembered beside them: whoever claims to be one is dialled whatever the number of links.
pub const MAX_ORIGINS: usize = 32;
/// How often rates are measured; and how soon, if more than so many bytes a second come, which on slower links is too
/// little to tell.
const MEASURED: u64 = 300_000;
const RISING: u64 = 50_000;
const FAST: u64 = 5_000_000;
/// What an origin sent within this may be nobody else's yet: whoever got it says more often that it lives.
const SERVED: u64 = 1_000_000;
/// A connection that is not greeted by then is given up.
const GREETING: u64 = 3_000_000;
/// A greeting needs no longer than this, even through the queue of a busy switch port.
const PROMPT: u64 = 250_000;

struct Known {
    addr: SocketAddr,
    origin: bool,
    /// Worth a link whatever their number, as long as no origin is linked.
    perhaps_origin: bool,
    /// When it may be tried, after `tries` in a row that failed.
    next_try: Time,
    tries: u32,
}

/// What one kind of links was told.
#[derive(Default)]
struct Told {
    window: Vec<Run>,
    /// Taken and lost blocks that they do not know of yet.
    changed: BTreeMap<ChunkId, (Bits, Bits)>,
}

impl Told {
    fn note_taken(&mut self, chunk: ChunkId, bits: Bits) {
        let (taken, lost) = self.changed.entry(chunk).or_default();
        *taken = taken.or(&bits);
        *lost = lost.minus(&bits);
    }

    fn note_lost(&mut self, chunk: ChunkId, bits: Bits) {
        let (taken, lost) = self.changed.entry(chunk).or_default();
        *lost = lost.or(&bits);
        *taken = taken.minus(&bits);
    }

    /// The first block now wanted, as they know it.
    fn front(&self) -> u32 {
        self.window.first().map_or(0, |run| run.first)
    }

    /// Puts all that changed into `state`; from then on they know it. False if that is too much for one frame.
    fn tell(&mut self, window: &[Run], state: &mut State) -> bool {
        let changed = std::mem::take(&mut self.changed);
        let before = std::mem::replace(&mut self.window, window.to_vec());
        (state.dropped, state.front, state.added) = slide(&before, window);
        state.taken = changed.iter().flat_map(|(chunk, (taken, _))| runs(*chunk, taken)).collect();
        state.lost = changed.iter().flat_map(|(chunk, (_, lost))| runs(*chunk, lost)).collect();
        state.taken.len() + state.lost.len() <= MAX_STATE_RUNS
    }
}

pub struct Gossip {
    pub last_tick: Time,
    began: Time,
    /// The network that this node's last connection was made from.
    subnet: Option<Subnet>,
    known: IndexMap<NodeId, Known>,
    /// How many of them have an address: of a thousand who are heard hardly one has another's.
    at: IndexMap<SocketAddr, u32>,
    /// What neighbours were told last and what changed since; the same of origins, which are told less often.
    neighbours: Told,
    origins: Told,
    /// Blocks of the window that were missing when origins were told of it, and when they were last told everything.
    reported_blocks: u32,
    last_report: Time,
    last_full: Time,
    dirty: bool,
    /// Origins were not told of the last change yet: they are told less often.
    report_owed: bool,
    last_publish: Time,
    coalesce: u64,
    /// When the next JOIN goes out while no origin is linked, and the pause after it.
    next_join: Time,
    join_pause: u64,
    asks: u32,
    next_ask: Time,
    next_meet: Time,
    /// When this node looks next at whether its neighbours are of use, and the pause after it. If they are not, those whom
    /// an origin has named since.
    next_look: Time,
    look_pause: u64,
    leads: Option<Vec<NodeId>>,
    next_head: Time,
    /// The newest head that came. This node has that one, or is pinned to an older one.
    newest: u64,
    /// The newest that was asked for, and the pause until it is asked for again.
    asked_head: u64,
    head_pause: u64,
    /// Bytes received and sent since the last measurement.
    received: u64,
    sent: u64,
    measured: Time,
    receive_rate: u64,
    send_rate: u64,
    best_rate: u64,
}

impl Gossip {
    pub fn new(now: Time, rng: &mut fastrand::Rng) -> Gossip {
        let first_join = now.plus(rng.u64(0..SCATTER));
        Gossip {
            last_tick: now,
            began: now,
            subnet: None,
            known: IndexMap::new(),
            at: IndexMap::new(),
            neighbours: Told::default(),
            origins: Told::default(),
            reported_blocks: 0,
            last_report: now,
            last_full: now,
            dirty: false,
            report_owed: false,
            last_publish: now,
            coalesce: 10_000,
            next_join: first_join,
            join_pause: FIRST_JOIN,
            asks: 0,
            next_ask: now.plus(250_000),
            next_meet: first_join,
            next_look: now,
            look_pause: 0,
            leads: None,
            next_head: now,
            newest: 0,
            asked_head: 0,
            head_pause: HEAD_PAUSE,
            received: 0,
            sent: 0,
            measured: now,
            receive_rate: 0,
            send_rate: 0,
            best_rate: 0,
        }
    }

    pub fn tables(&self, policy: &Policy) -> [Table; 4] {
        // Of a chunk that is held, or was dropped since.
        let most = 2 * policy.budget_blocks as usize;
        [
            Table::new("peers known", self.known.len(), MAX_KNOWN),
            Table::new("peers named to a stray", self.leads.as_ref().map_or(0, Vec::len), MAX_PEERS),
            Table::new("changes untold to neighbours", self.neighbours.changed.len(), most),
            Table::new("changes untold to origins", self.origins.changed.len(), most),
        ]
    }

    pub fn dirty(&self) -> bool {
        self.dirty
    }

    pub fn mark_dirty(&mut self) {
        self.dirty = true;
    }

    /// Changes are told at once if this node begins to want something: nobody offers before.
    pub fn hurry(&mut self, begins: bool) {
        if begins {
            self.coalesce = 0;
        }
    }

    pub fn publish_due(&self) -> Time {
        self.last_publish.plus(self.coalesce)
    }

    /// When an origin is looked for again.
    pub fn next_look(&self) -> Time {
        self.next_join.max(self.next_meet)
    }

    /// An origin is lost; all who had it notice that together, and look for it each at a moment of its own.
    pub fn origin_lost(&mut self, look: Time) {
        self.next_join = look;
        self.join_pause = FIRST_JOIN;
    }

    pub fn count_received(&mut self, bytes: u64) {
        self.received += bytes;
    }

    pub fn count_sent(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    pub fn receive_rate(&self) -> u64 {
        self.receive_rate
    }

    /// Bytes a second that this node moves, in the busier direction; 0 before it was measured.
    pub fn rate(&self) -> u64 {
        self.receive_rate.max(self.send_rate)
    }

    /// The best rate so far: what the network can do, also while everybody waits.
    pub fn best_rate(&self) -> u64 {
        self.best_rate
    }

    pub fn note_taken(&mut self, chunk: ChunkId, bits: Bits) {
        self.neighbours.note_taken(chunk, bits);
        self.origins.note_taken(chunk, bits);
        self.dirty = true;
    }

    pub fn note_lost(&mut self, chunk: ChunkId, bits: Bits) {
        self.neighbours.note_lost(chunk, bits);
        self.origins.note_lost(chunk, bits);
        self.dirty = true;
    }
}

fn runs(chunk: ChunkId, bits: &Bits) -> impl Iterator<Item = Run> {
    let start = chunk.first_block();
    bits.runs().map(move |(first, end)| Run { object: chunk.object, first: start + first, count: end - first })
}

impl Node {
    fn room(&self) -> i16 {
        let room = (self.policy.downloads(self.gossip.best_rate) * WHOLE) as i64 - self.requests.weight() as i64;
        room.clamp(i16::MIN as i64, i16::MAX as i64) as i16
    }

    fn blank_state(&self, full: bool) -> State {
        State {
            full,
            sequence: self.spoken_sequence(),
            position: self.requests.position(),
            room: self.room(),
            rate: (self.gossip.receive_rate / 1024).min(u32::MAX as u64) as u32,
            ..State::default()
        }
    }

    /// All that a new neighbour must know, in as many frames as it takes.
    fn tell_everything(&mut self, id: LinkId) {
        let mut held: Vec<Run> = Vec::new();
        if !self.me.origin {
            let mut chunks: Vec<(ChunkId, Bits)> =
                self.store.iter().map(|(id, _)| (*id, self.offerable(*id))).collect();
            chunks.sort_unstable_by_key(|(id, _)| *id);
            held.extend(chunks.iter().flat_map(|(chunk, bits)| runs(*chunk, bits)));
        }
        let mut state = self.blank_state(true);
        let told = if self.is_origin(id) { &self.gossip.origins } else { &self.gossip.neighbours };
        (state.added, state.front) = (told.window.clone(), told.front());
        let front = state.front;
        let mut parts = held.chunks(MAX_STATE_RUNS);
        state.taken = parts.next().unwrap_or_default().to_vec();
        self.send(id, Frame::State(state));
        for part in parts {
            let mut more = self.blank_state(false);
            more.front = front;
            more.taken = part.to_vec();
            self.send(id, Frame::State(more));
        }
        self.told(id);
    }

    pub(super) fn publish_if_due(&mut self) {
        if !self.gossip.dirty || self.now < self.gossip.publish_due() {
            return;
        }
        self.gossip.dirty = false;
        self.gossip.last_publish = self.now;
        self.gossip.coalesce = self.policy.coalesce(self.gossip.receive_rate);
        if self.me.origin {
            // An origin has everything: nobody needs to be told block by block.
            (self.gossip.neighbours, self.gossip.origins) = (Told::default(), Told::default());
            return;
        }
        let mut state = self.blank_state(false);
        let said = self.gossip.neighbours.tell(self.requests.window(), &mut state);
        for id in self.told_links(false) {
            if said {
                self.send(id, Frame::State(state.clone()));
                self.told(id);
            } else {
                self.tell_everything(id);
            }
        }
        self.report();
    }

    /// The links that know everything up to some change: those to origins, or the others.
    fn told_links(&self, origins: bool) -> Vec<LinkId> {
        self.links.iter().filter(|(_, link)| link.told && link.origin == origins).map(|(id, _)| *id).collect()
    }

    fn told(&mut self, id: LinkId) {
        if let Some(link) = self.links.get_mut(&id) {
            link.last_told = self.now;
        }
    }

    /// Origins are told less often, unless this node begins or ends to want something, but everything, where that is not
    /// much: they note what they offered before it is accepted, and must not be wrong about it for long. (With changes
    /// alone 32 readers of 16 MiB took 1.20 instead of 1.14 x ideal.)
    fn report(&mut self) {
        if self.told_links(true).is_empty() {
            // Whoever comes is told everything; until then changes would pile up.
            self.gossip.origins.changed.clear();
            return;
        }
        let known = &self.gossip.origins.window;
        let urgent = known.is_empty() != self.requests.window().is_empty();
        // A reader so fast that it runs through its window between two reports makes them more often: an origin offers
        // nothing beyond the window that it knows. Not one of a crowd that lives by others: so often from ten thousand, their
        // acknowledgements alone take a tenth of an origin's link.
        let served = self.links.values().any(|link| link.origin && link.has_sent_within(SERVED, self.now));
        let left = self.missing_in(known);
        let ends = served && left < self.gossip.reported_blocks / 2 && left < self.missing_in(self.requests.window());
        if !urgent && !ends && self.now.since(self.gossip.last_report) < self.policy.report {
            self.gossip.report_owed = true;
            return;
        }
        self.report_now(false);
    }

    fn report_now(&mut self, full: bool) {
        self.gossip.last_report = self.now;
        self.gossip.reported_blocks = self.missing_in(self.requests.window());
        let mut state = self.blank_state(false);
        let said = self.gossip.origins.tell(self.requests.window(), &mut state);
        let short = self.store.chunks() <= SHORT_REPORT;
        let full = full || !said || short || self.now.since(self.gossip.last_full) >= FULL_REPORT;
        if full {
            self.gossip.last_full = self.now;
        }
        for id in self.told_links(true) {
            if full {
                self.tell_everything(id);
            } else {
                self.send(id, Frame::State(state.clone()));
                self.told(id);
            }
        }
    }

    /// Tells a neighbour that was just greeted what it must know.
    pub(super) fn begin_telling(&mut self, id: LinkId) {
        if let Some(link) = self.links.get_mut(&id) {
            link.told = true;
        }
        if self.is_origin(id) {
            // The window of this moment, which the others then know, too.
            self.report_now(true);
        } else {
            self.tell_everything(id);
        }
    }

    /// Blocks of a window that are neither here nor awaited.
    fn missing_in(&self, window: &[Run]) -> u32 {
        let chunks = window.iter().flat_map(|run| by_chunk(*run));
        chunks.map(|(chunk, range)| range.minus(&self.store.taken(chunk)).count()).sum()
    }

    /// Reports what origins were not told when it happened.
    pub(super) fn report_if_owed(&mut self) {
        if std::mem::take(&mut self.gossip.report_owed) {
            self.report();
        }
    }

    pub(super) fn greet(&mut self, id: LinkId) {
        let hello = Hello { sequence: self.spoken_sequence(), ..self.me.clone() };
        self.send(id, Frame::Hello(hello));
    }

    /// What a dropped chunk means to neighbours.
    pub(super) fn tell_lost(&mut self, chunk: ChunkId, bits: Bits) {
        self.gossip.note_lost(chunk, bits);
    }

    pub(super) fn tell_taken(&mut self, run: Run) {
        for (chunk, bits) in by_chunk(run) {
            self.gossip.note_taken(chunk, bits);
        }
    }
}
