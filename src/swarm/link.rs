//! What a node knows of one neighbour: its window, what it has or awaits, what is under way between the two.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use super::bits::Bits;
use super::gossip::{FIRST_JOIN, MAX_ORIGINS};
use super::trust::{Proof, Record};
use super::{LinkId, Node, Output, Time};
use crate::chunk::{BLOCKS_PER_CHUNK, BlockId, ChunkId, Run, SegmentId};
use crate::wire::frame::{Hello, MAX_RUN, MAX_WINDOW, NodeId, State, WANTED};

/// Chunks of one neighbour that are kept track of: 64 GiB. Of a larger cache the rest is as if it were not there.
pub const MAX_CHUNKS: usize = 4096;
/// Chunks of all neighbours together; and of each so many whatever others claim, a GiB. A reader has few neighbours and may be a
/// small board; an origin has all.
const MAX_TRACKED: [usize; 2] = [32_768, 262_144];
const SHARE: usize = 64;
/// A link that spoke within this has not lost its other end: quiet ones do every ten seconds.
const ALIVE: u64 = 12_000_000;

/// Blocks on their way to a neighbour.
#[derive(Clone, Copy, Debug)]
pub struct Upload {
    pub transfer: u32,
    pub run: Run,
    /// The block being sent, and how much of it was.
    pub next: u32,
    pub offset: u32,
    /// In eighths of a piece.
    pub weight: usize,
}

impl Upload {
    pub fn has_begun(&self) -> bool {
        self.offset > 0 || self.next > self.run.first
    }
}

#[derive(Clone, Debug)]
pub struct Offer {
    pub id: u32,
    pub runs: Vec<Run>,
    /// Of its heaviest run, in eighths of a piece.
    pub weight: usize,
    /// How many downloads this node had begun when it made the offer.
    pub begun: u64,
    pub made: Time,
}

pub struct Link {
    pub addr: SocketAddr,
    pub opened_by_me: bool,
    pub greeted: bool,
    /// Who is at the other end; meaningless before it is greeted.
    pub peer: NodeId,
    pub origin: bool,
    /// Of the newest head that it has.
    pub sequence: u64,
    /// A STATE came: it is known what it wants.
    pub known: bool,
    /// What it wants, nearest first.
    pub window: VecDeque<Run>,
    /// What it has or awaits.
    taken: BTreeMap<ChunkId, Bits>,
    /// How far it is, as long as neither of the two has changed: every free slot asks for it.
    progress: Cell<Option<u64>>,
    pub position: u64,
    /// Transfers, in eighths of a piece, that it would accept beyond the offers it has not answered.
    pub room: i32,
    /// Bytes a second that it says it receives.
    pub rate: u64,
    pub uploads: VecDeque<Upload>,
    pub offers: Vec<Offer>,
    /// Segments whose header it waits for, which is not here yet.
    pub header_waits: Vec<SegmentId>,
    pub born: Time,
    pub last_heard: Time,
    /// When bytes of blocks last came, whatever the transfer.
    pub last_data: Time,
    pub last_told: Time,
    /// It was told everything once.
    pub told: bool,
    /// Whether either side wants something, and since when.
    pub active: bool,
    pub active_since: Time,
    /// It has been silent for so long that what it has does not count until it speaks.
    pub hushed: bool,
    /// When it was last sent bytes of blocks.
    pub last_served: Option<Time>,
    pub record: Record,
    pub proof: Proof,
    /// It was given this node's own proof.
    pub proved: bool,
    /// Blocks that it was told to wait for, the newest in front, and since when.
    pub put_off: VecDeque<(BlockId, Time)>,
}

impl Link {
    fn new(addr: SocketAddr, opened_by_me: bool, now: Time) -> Link {
        Link {
            addr,
            opened_by_me,
            greeted: false,
            peer: NodeId(0),
            origin: false,
            sequence: 0,
            known: false,
            window: VecDeque::new(),
            taken: BTreeMap::new(),
            progress: Cell::new(None),
            position: 0,
            room: 0,
            rate: 0,
            uploads: VecDeque::new(),
            offers: Vec::new(),
            header_waits: Vec::new(),
            born: now,
            last_heard: now,
            last_data: now,
            last_told: now,
            told: false,
            active: false,
            active_since: now,
            hushed: false,
            last_served: None,
            record: Record::default(),
            proof: Proof::None,
            proved: false,
            put_off: VecDeque::new(),
        }
    }

    /// How many chunks are kept track of.
    pub fn chunks(&self) -> usize {
        self.taken.len()
    }

    pub fn taken(&self, chunk: ChunkId) -> Bits {
        self.taken.get(&chunk).copied().unwrap_or_default()
    }

    pub fn has_taken(&self, chunk: ChunkId, block: u32) -> bool {
        self.taken.get(&chunk).is_some_and(|bits| bits.get(block))
    }

    /// The weight of uploads and unanswered offers.
    pub fn queue(&self) -> usize {
        self.uploads.iter().map(|upload| upload.weight).sum::<usize>() + self.offers_weight()
    }

    /// The same without what it pulled.
    pub fn offered(&self) -> usize {
        let uploads = self.uploads.iter().filter(|upload| upload.transfer & WANTED == 0);
        uploads.map(|upload| upload.weight).sum::<usize>() + self.offers_weight()
    }

    fn offers_weight(&self) -> usize {
        self.offers.iter().map(|offer| offer.weight).sum()
    }

    /// It receives at under half of what the others do.
    pub fn is_slow(&self, median: u64) -> bool {
        self.rate > 0 && self.rate * 2 < median
    }

    /// Bytes of blocks came within a time.
    pub fn has_sent_within(&self, time: u64, now: Time) -> bool {
        self.last_data > self.born && now.since(self.last_data) < time
    }

    pub fn is_idle(&self) -> bool {
        self.greeted && self.window.is_empty() && self.uploads.is_empty() && self.offers.is_empty()
    }

    /// Its window by chunks: the chunk and the blocks of it that it wants.
    pub fn wants(&self) -> impl Iterator<Item = (ChunkId, Bits)> + '_ {
        self.window.iter().flat_map(|run| by_chunk(*run))
    }

    /// How far it is: blocks that it has or awaits, counted from the number line's start.
    pub fn progress(&self) -> u64 {
        let count = || self.wants().map(|(chunk, range)| self.taken(chunk).and(&range).count() as u64).sum::<u64>();
        let progress = self.progress.get().unwrap_or_else(|| self.position.saturating_add(count()));
        self.progress.set(Some(progress));
        progress
    }
}

/// A run cut at chunk borders.
pub fn by_chunk(run: Run) -> impl Iterator<Item = (ChunkId, Bits)> {
    let (first, last) = (run.first / BLOCKS_PER_CHUNK, (run.end() - 1) / BLOCKS_PER_CHUNK);
    (first..=last).map(move |index| {
        let start = index * BLOCKS_PER_CHUNK;
        let range = Bits::range(run.first.saturating_sub(start), run.end() - start);
        (ChunkId { object: run.object, index }, range)
    })
}

/// Chunks that may be kept track of with so many links.
pub fn most_tracked(origin: bool, links: usize) -> usize {
    MAX_TRACKED[usize::from(origin)] + links * SHARE
}

impl Node {
    pub(super) fn new_link(&mut self, addr: SocketAddr, opened_by_me: bool) -> LinkId {
        self.next_link = self.next_link.wrapping_add(1);
        let id = LinkId(self.next_link);
        self.links.insert(id, Link::new(addr, opened_by_me, self.now));
        id
    }

    /// Ends a link from this side.
    pub(super) fn close_link(&mut self, id: LinkId) {
        if self.links.contains_key(&id) {
            self.out.push_back(Output::Close { link: id });
            self.forget_link(id);
        }
    }

    /// A link is gone: what it held, owed and was owed is free again.
    pub(super) fn forget_link(&mut self, id: LinkId) {
        let Some(link) = self.links.remove(&id) else { return };
        self.tracked -= link.taken.len();
        if !link.hushed {
            self.provide.copies.uncount_all(&link.taken);
        }
        self.ready.remove(&id);
        self.no_headers_from(id);
        self.free_slot(id);
        self.drop_downloads_of(id);
        self.pages.forget_link(id);
        if link.origin {
            let look = self.now.plus(self.rng.u64(0..FIRST_JOIN));
            self.gossip.origin_lost(look);
        }
        self.refill = true;
    }

    /// Notes what a neighbour has or awaits.
    pub(super) fn note_taken(&mut self, id: LinkId, run: Run) {
        for (chunk, bits) in by_chunk(run) {
            self.note_taken_bits(id, chunk, bits);
        }
    }

    pub(super) fn note_taken_bits(&mut self, id: LinkId, chunk: ChunkId, bits: Bits) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let (own, most) = (link.taken.len(), MAX_TRACKED[usize::from(self.me.origin)]);
        if !link.taken.contains_key(&chunk) {
            if own >= MAX_CHUNKS || (own >= SHARE && self.tracked >= most) {
                return;
            }
            self.tracked += 1;
        }
        let known = link.taken.entry(chunk).or_default();
        let fresh = bits.minus(known);
        link.progress.set(None);
        *known = known.or(&bits);
        if !link.hushed {
            self.provide.copies.count(chunk, fresh);
        }
    }

    pub(super) fn note_lost(&mut self, id: LinkId, run: Run) {
        for (chunk, bits) in by_chunk(run) {
            self.note_lost_bits(id, chunk, bits);
        }
    }

    fn note_lost_bits(&mut self, id: LinkId, chunk: ChunkId, bits: Bits) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(known) = link.taken.get_mut(&chunk) else { return };
        let gone = known.and(&bits);
        link.progress.set(None);
        *known = known.minus(&bits);
        if known.is_empty() {
            link.taken.remove(&chunk);
            self.tracked -= 1;
        }
        if !link.hushed {
            self.provide.copies.uncount(chunk, gone);
        }
    }

    /// Nothing was heard of a neighbour for longer than it may be silent. It may have lost its power: what it owes is asked
    /// for elsewhere, what it was offered is free, and what only it had is nobody's. The link stays: if it speaks again,
    /// little is lost.
    pub(super) fn hush_link(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.hushed = true;
        let offers = std::mem::take(&mut link.offers);
        self.provide.copies.uncount_all(&link.taken);
        if self.me.origin {
            for run in offers.into_iter().flat_map(|offer| offer.runs) {
                self.note_lost(id, run);
            }
        }
        self.give_downloads_up(id);
        self.no_headers_from(id);
        self.refill = true;
    }

    /// Something came over a link.
    pub(super) fn heard(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.last_heard = self.now;
        if std::mem::take(&mut link.hushed) {
            for (chunk, bits) in &link.taken {
                self.provide.copies.count(*chunk, *bits);
            }
        }
    }

    pub(super) fn on_hello(&mut self, id: LinkId, hello: Hello) {
        if hello.key != self.me.key || hello.tree != self.me.tree || hello.node == self.me.node {
            return self.close_link(id);
        }
        let from = self.links.get(&id).map(|link| link.addr.ip());
        if from.is_some_and(|ip| self.is_avoided(hello.node, ip)) {
            self.counters.refused_peers += 1;
            return self.close_link(id);
        }
        // When both sides opened, the link of the lower id stays: both decide alike. Whoever opens a second one has lost
        // the first, which may look alive here for long: its address changed, or its cable was out.
        let twin = self.links.iter().find(|(other, link)| **other != id && link.greeted && link.peer == hello.node);
        if let Some((&twin, other)) = twin {
            // Nor may another host end a link that lives by calling itself what its other end is called.
            let elsewhere = from.is_some_and(|ip| ip != other.addr.ip());
            let works = other.opened_by_me == self.links[&id].opened_by_me || other.record.good > 0;
            if elsewhere && works && self.now.since(other.last_heard) < ALIVE {
                self.counters.refused_peers += 1;
                return self.close_link(id);
            }
            let mine_stays = self.me.node < hello.node;
            let this_is_mine = self.links[&id].opened_by_me;
            if other.opened_by_me == this_is_mine || this_is_mine == mine_stays {
                self.close_link(twin);
            } else {
                return self.close_link(id);
            }
        }
        if hello.origin && self.links.values().filter(|link| link.greeted && link.origin).count() >= MAX_ORIGINS {
            return self.close_link(id);
        }
        let Some(link) = self.links.get_mut(&id) else { return };
        link.greeted = true;
        link.peer = hello.node;
        link.origin = hello.origin;
        link.sequence = hello.sequence;
        // What an inbound connection comes from is not where it can be reached.
        link.addr.set_port(hello.port);
        let addr = link.addr;
        self.forget_namesakes(hello.node, addr);
        self.learn_peer(hello.node, addr, hello.origin);
        self.compare_sequence(id, hello.sequence);
        self.introduce(id);
        if hello.origin {
            self.ask_for_proof(id);
        }
        self.begin_telling(id);
        self.refill = true;
    }

    pub(super) fn on_state(&mut self, id: LinkId, state: State) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.progress.set(None);
        if state.full {
            link.window.clear();
            self.tracked -= link.taken.len();
            let before = std::mem::take(&mut link.taken);
            if !link.hushed {
                self.provide.copies.uncount_all(&before);
            }
        }
        let Some(link) = self.links.get_mut(&id) else { return };
        for _ in 0..state.dropped {
            link.window.pop_front();
        }
        if let Some(front) = link.window.front_mut()
            && (front.first..front.end()).contains(&state.front)
        {
            *front = Run { first: state.front, count: front.end() - state.front, ..*front };
        }
        let mut wanted: u32 = link.window.iter().map(|run| run.count).sum();
        for run in state.added {
            wanted += run.count;
            if link.window.len() >= MAX_WINDOW || wanted > MAX_RUN {
                break;
            }
            match link.window.back_mut() {
                Some(back) if back.object == run.object && back.end() == run.first => back.count += run.count,
                _ => link.window.push_back(run),
            }
        }
        link.known = true;
        let sequence = state.sequence;
        link.sequence = state.sequence;
        // Places are added up: none is near the end of the numbers.
        link.position = state.position.min(u64::MAX / 4);
        link.rate = state.rate as u64 * 1024;
        link.room = state.room as i32 - link.offers_weight() as i32;
        let window: Vec<Run> = link.window.iter().copied().collect();
        // A full report was written before it saw my latest answers: what I send or have offered it stays noted.
        let mut mine: Vec<Run> = Vec::new();
        if state.full {
            mine.extend(link.uploads.iter().map(|upload| upload.run));
            if self.me.origin {
                mine.extend(link.offers.iter().flat_map(|offer| offer.runs.iter().copied()));
            }
        }
        for run in state.taken {
            self.note_taken(id, run);
        }
        for run in state.lost {
            self.note_lost(id, run);
        }
        for run in mine {
            self.note_taken(id, run);
        }
        self.compare_sequence(id, sequence);
        if self.me.origin {
            self.resolve(&window);
        }
        self.refill = true;
    }
}
