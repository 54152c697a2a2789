//! What nodes tell each other of themselves, and how they meet.
//!
//! A JOIN is broadcast until an origin answers; everything after that is unicast. STATE carries changes only, gathered
//! for some milliseconds; an origin gets a full report instead, less often, since its uplink bounds everybody.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::bits::Bits;
use super::link::by_chunk;
use super::policy::WHOLE;
use super::{JoinAim, LinkId, Node, Output, Time};
use crate::chunk::{BLOCKS_PER_CHUNK, ChunkId, Run};
use crate::wire::datagram::{Join, MAX_PEERS, Peer, Welcome};
use crate::wire::frame::{Frame, MAX_STATE_RUNS, NodeId, State};

/// Peers remembered; beyond, the one that answered least is forgotten. A rack row is a thousand.
const MAX_KNOWN: usize = 2048;
/// Blocks between two positions that let one serve the other: half a cache of eight chunks.
const NEAR: u64 = 4 * BLOCKS_PER_CHUNK as u64;
const FIRST_JOIN: u64 = 100_000;
const LAST_JOIN: u64 = 2_000_000;
/// Chunks of which everything is told in each report, and how often it is told of more: a cache full of small files has
/// thousands.
const SHORT_REPORT: usize = 64;
const FULL_REPORT: u64 = 2_000_000;
/// How often an origin is asked for the head that it named: the answer may be lost, or be older than the question.
const HEAD_PAUSE: u64 = 100_000;
const LAST_HEAD: u64 = 10_000_000;
/// Origins remembered beside them: whoever claims to be one is dialled whatever the number of links.
const MAX_ORIGINS: usize = 32;
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
    known: BTreeMap<NodeId, Known>,
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
    next_head: Time,
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
    pub fn new(now: Time) -> Gossip {
        Gossip {
            last_tick: now,
            began: now,
            known: BTreeMap::new(),
            neighbours: Told::default(),
            origins: Told::default(),
            reported_blocks: 0,
            last_report: now,
            last_full: now,
            dirty: false,
            report_owed: false,
            last_publish: now,
            coalesce: 10_000,
            next_join: now,
            join_pause: FIRST_JOIN,
            asks: 0,
            next_ask: now.plus(250_000),
            next_meet: now,
            next_head: now,
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

    pub fn origin_lost(&mut self, now: Time) {
        self.next_join = now;
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
    // ---- telling

    fn room(&self) -> i16 {
        let room = (self.policy.downloads * WHOLE) as i64 - self.requests.weight() as i64;
        room.clamp(i16::MIN as i64, i16::MAX as i64) as i16
    }

    fn blank_state(&self, full: bool) -> State {
        State {
            full,
            sequence: self.me.sequence,
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
            return;
        }
        let known = &self.gossip.origins.window;
        let urgent = known.is_empty() != self.requests.window().is_empty();
        // A reader so fast that it runs through its window between two reports makes them more often: an origin offers
        // nothing beyond the window that it knows.
        let left = self.missing_in(known);
        let ends = left < self.gossip.reported_blocks / 2 && left < self.missing_in(self.requests.window());
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

    /// Measures rates, ends silent links, keeps quiet ones alive.
    pub(super) fn check_links(&mut self) {
        let ids: Vec<LinkId> = self.links.keys().copied().collect();
        // Neighbours know the rate that they were told, and speak as often as that wants it.
        let told_rate = if self.me.origin { self.gossip.rate() } else { self.gossip.receive_rate };
        let hush = self.policy.hush(told_rate);
        for id in ids {
            let Some(link) = self.links.get_mut(&id) else { continue };
            if !link.greeted {
                if self.now.since(link.born) > GREETING {
                    self.close_link(id);
                }
                continue;
            }
            // The other side must have a reason to speak: a window that it was told, or blocks that it owes. Whoever only
            // pulls a block now and then would take its quiet neighbours for dead.
            let told = if link.origin { &self.gossip.origins } else { &self.gossip.neighbours };
            let active = !told.window.is_empty() || self.requests.is_served_by(id) || !link.is_idle();
            if active && !link.active {
                link.active_since = self.now;
            }
            link.active = active;
            let (silence, keepalive) = if active {
                (self.policy.silence, self.policy.keepalive(self.gossip.rate().max(link.rate)))
            } else {
                (self.policy.silence_idle, self.policy.keepalive_idle)
            };
            let heard = if active { link.last_heard.max(link.active_since) } else { link.last_heard };
            let silent = self.now.since(heard);
            // A reader reports to an origin less often than it speaks to others, except while it gets blocks from it: only
            // those may be nobody else's yet.
            let lately = |at: Time| self.now.since(at) < SERVED;
            let rests = link.origin && !lately(link.last_data);
            let keepalive = if rests { keepalive.max(2 * self.policy.report) } else { keepalive };
            let served = link.last_served.is_some_and(lately);
            let ignores = link.offers.first().is_some_and(|offer| self.now.since(offer.made) > hush);
            let watched = !link.origin && (!self.me.origin || served || ignores);
            let hushes = active && watched && !link.hushed && silent > hush;
            let quiet = self.now.since(link.last_told) >= keepalive;
            if silent > silence {
                self.close_link(id);
                continue;
            }
            if hushes {
                self.hush_link(id);
            }
            if quiet {
                self.keep_alive(id);
            }
        }
    }

    /// Says that this node is there and which head it has, if nothing else.
    fn keep_alive(&mut self, id: LinkId) {
        let mut state = self.blank_state(false);
        state.front = if self.is_origin(id) { self.gossip.origins.front() } else { self.gossip.neighbours.front() };
        self.send(id, Frame::State(state));
        self.told(id);
    }

    /// Makes room for somebody who connects: whoever connected and has said nothing for longer than a greeting takes goes
    /// first. False if there is no such.
    pub(super) fn close_a_silent_stranger(&mut self) -> bool {
        let silent = |link: &super::link::Link| !link.greeted && !link.opened_by_me;
        let oldest = self.links.iter().filter(|(_, link)| silent(link)).min_by_key(|(_, link)| link.born);
        let Some((id, link)) = oldest else { return false };
        let (id, late) = (*id, self.now.since(link.born) > PROMPT);
        if late {
            self.close_link(id);
        }
        late
    }

    pub(super) fn measure(&mut self) {
        let elapsed = self.now.since(self.gossip.measured);
        if elapsed < RISING {
            return;
        }
        if elapsed < MEASURED {
            // Pieces are short until the rate is known: that it rises must be seen soon on a fast link. (What was sent may not
            // have left the kernel yet.)
            let received = self.gossip.received * 1_000_000 / elapsed;
            if received >= FAST && received > 2 * self.gossip.receive_rate {
                self.gossip.receive_rate = received;
            }
            return;
        }
        let smooth = |old: u64, bytes: u64| {
            let rate = bytes * 1_000_000 / elapsed;
            if old == 0 { rate } else { (old + rate) / 2 }
        };
        self.gossip.receive_rate = smooth(self.gossip.receive_rate, self.gossip.received);
        self.gossip.send_rate = smooth(self.gossip.send_rate, self.gossip.sent);
        self.gossip.best_rate = self.gossip.best_rate.max(self.gossip.rate());
        (self.gossip.received, self.gossip.sent) = (0, 0);
        self.gossip.measured = self.now;
    }

    // ---- meeting

    /// Looks for an origin while there is none, and for neighbours while there are too few.
    pub(super) fn meet(&mut self) {
        if self.me.origin || self.now < self.gossip.next_meet {
            return;
        }
        self.gossip.next_meet = self.now.plus(50_000);
        if !self.has_origin() && self.now >= self.gossip.next_join {
            self.gossip.next_join = self.now.plus(self.gossip.join_pause);
            self.gossip.join_pause = (self.gossip.join_pause * 2).min(LAST_JOIN);
            self.counters.joins += 1;
            self.out.push_back(Output::Join { join: JoinAim::Broadcast });
            let origins: Vec<SocketAddr> = self.gossip.known.values().filter(|k| k.origin).map(|k| k.addr).collect();
            for addr in origins {
                self.out.push_back(Output::Join { join: JoinAim::Unicast(addr) });
            }
        }
        let mut wanted = self.links_by_now().saturating_sub(self.neighbour_links());
        let mut candidates: Vec<(NodeId, SocketAddr)> = self
            .gossip
            .known
            .iter()
            .filter(|(node, known)| {
                let linked = self.links.values().any(|link| link.peer == **node || link.addr == known.addr);
                !linked && self.now >= known.next_try && !self.is_avoided(**node, known.addr.ip())
            })
            .map(|(node, known)| (*node, known.addr))
            .collect();
        self.rng.shuffle(&mut candidates);
        let mut dialling = self.links.values().filter(|link| link.opened_by_me && !link.greeted).count();
        for (node, addr) in candidates {
            // Whoever names a thousand peers that do not exist must not have a thousand connections tried at once.
            if dialling >= 2 * self.policy.links {
                break;
            }
            let known = &self.gossip.known[&node];
            let origin = known.origin || (known.perhaps_origin && !self.has_origin());
            if origin || wanted > 0 {
                wanted = if origin { wanted } else { wanted - 1 };
                dialling += 1;
                self.dial(node, addr);
            }
        }
        if wanted > 0 && self.now >= self.gossip.next_ask {
            let pauses = [350_000, 1_400_000];
            self.gossip.next_ask = self
                .now
                .plus(*pauses.get(self.gossip.asks as usize).unwrap_or(&(10_000_000 + self.rng.u64(0..2_000_000))));
            self.gossip.asks += 1;
            let mut targets: Vec<LinkId> =
                self.links.iter().filter(|(_, link)| link.greeted && link.origin).map(|(id, _)| *id).collect();
            if targets.is_empty() {
                targets = self.links.iter().filter(|(_, link)| link.greeted).map(|(id, _)| *id).collect();
            }
            if let Some(id) = self.rng.choice(targets) {
                self.send(id, Frame::Ask { count: wanted.min(MAX_PEERS) as u8 });
            }
        }
    }

    /// A few links at once, more when whoever started at the same moment is there too: if all filled up at once, they
    /// would all choose the first comers.
    fn links_by_now(&self) -> usize {
        let most = self.policy.links(self.gossip.rate());
        match self.now.since(self.gossip.began) {
            0..250_000 => most.div_ceil(4),
            250_000..600_000 => most.div_ceil(2),
            _ => most,
        }
    }

    fn neighbour_links(&self) -> usize {
        // Somebody who connected and said nothing yet may never do so.
        self.links.values().filter(|link| !link.origin && (link.greeted || link.opened_by_me)).count()
    }

    fn dial(&mut self, node: NodeId, addr: SocketAddr) {
        if let Some(known) = self.gossip.known.get_mut(&node) {
            known.tries += 1;
            known.perhaps_origin = false;
            known.next_try = self.now.plus(1_000_000u64.saturating_mul(1 << known.tries.min(6)));
        }
        let link = self.new_link(addr, true);
        self.out.push_back(Output::Connect { link, addr });
    }

    pub(super) fn greet(&mut self, id: LinkId) {
        let hello = self.me.clone();
        self.send(id, Frame::Hello(hello));
    }

    pub(super) fn learn_peer(&mut self, node: NodeId, addr: SocketAddr, origin: bool) {
        if node == self.me.node || addr.port() == 0 {
            return;
        }
        if origin && !self.gossip.known.get(&node).is_some_and(|known| known.origin) {
            self.forget_an_origin();
        }
        if let Some(known) = self.gossip.known.get_mut(&node) {
            known.addr = addr;
            known.origin |= origin;
            known.tries = 0;
            return;
        }
        if self.gossip.known.len() >= MAX_KNOWN {
            self.forget_worst_peer();
        }
        let (perhaps_origin, tries) = (false, 0);
        let known = Known { addr, origin, perhaps_origin, next_try: self.now, tries };
        self.gossip.known.insert(node, known);
    }

    /// A node that was heard itself has its address alone: one that was there before has ended, and started anew as this
    /// one. Else a long life would remember every start of every host.
    pub(super) fn forget_namesakes(&mut self, node: NodeId, addr: SocketAddr) {
        // Looking is far cheaper than retaining, and of a thousand JOINs hardly one finds a namesake.
        let stale = |other: &NodeId, known: &Known| *other != node && known.addr == addr;
        if self.gossip.known.iter().any(|(other, known)| stale(other, known)) {
            self.gossip.known.retain(|other, known| !stale(other, known));
        }
    }

    /// Makes room for another peer: the one that failed most often goes, of equals no origin.
    fn forget_worst_peer(&mut self) {
        let linked = |node: &NodeId| self.links.values().any(|link| link.greeted && link.peer == *node);
        let free = self.gossip.known.iter().filter(|(node, _)| !linked(node));
        let worst = free.max_by_key(|(_, known)| (known.tries, !known.origin)).map(|(node, _)| *node);
        if let Some(node) = worst {
            self.gossip.known.remove(&node);
        }
    }

    /// Whoever knows the origin names it first: one that has lost all answers to its JOINs finds it by its neighbours.
    pub(super) fn learn_peers(&mut self, peers: Vec<Peer>) {
        let seeking = !self.has_origin();
        for (index, peer) in peers.into_iter().enumerate() {
            if !self.gossip.known.contains_key(&peer.node) {
                self.learn_peer(peer.node, peer.addr, false);
            }
            if let Some(known) = self.gossip.known.get_mut(&peer.node)
                && seeking
                && index == 0
            {
                known.perhaps_origin = true;
            }
        }
        self.gossip.next_meet = self.now;
    }

    /// Makes room for another origin: of too many the one goes that is not linked and was tried in vain most often.
    fn forget_an_origin(&mut self) {
        let origins = self.gossip.known.iter().filter(|(_, known)| known.origin);
        if origins.clone().count() < MAX_ORIGINS {
            return;
        }
        let idle = origins.filter(|(node, _)| !self.links.values().any(|link| link.greeted && link.peer == **node));
        if let Some(node) = idle.max_by_key(|(_, known)| known.tries).map(|(node, _)| *node) {
            self.gossip.known.remove(&node);
        }
    }

    #[cfg(test)]
    pub(super) fn known_peers(&self) -> impl Iterator<Item = NodeId> {
        self.gossip.known.keys().copied()
    }

    /// Random neighbours of mine, for somebody who is new, those first that may have what it is
    /// at; and the origin, in case it has not found that by itself.
    fn some_peers(&mut self, not: NodeId, at: SocketAddr, position: u64, count: usize) -> Vec<Peer> {
        let peer = |link: &super::Link| Peer { node: link.peer, addr: link.addr };
        // Another host would find itself at this one's loopback.
        let of_use = |link: &&super::Link| {
            link.greeted && link.peer != not && (at.ip().is_loopback() || !link.addr.ip().is_loopback())
        };
        let origin = self.links.values().filter(of_use).find(|link| link.origin).map(peer);
        let count = count.saturating_sub(origin.is_some() as usize);
        let near = |link: &super::Link| link.position.abs_diff(position) <= NEAR;
        let peers = self.links.values().filter(of_use).filter(|link| !link.origin && !link.hushed);
        let (mut peers, mut far): (Vec<&super::Link>, Vec<&super::Link>) = peers.partition(|link| near(link));
        self.rng.shuffle(&mut peers);
        self.rng.shuffle(&mut far);
        origin.into_iter().chain(peers.into_iter().chain(far).take(count).map(peer)).collect()
    }

    /// An origin introduces whoever greets it to others.
    pub(super) fn introduce(&mut self, id: LinkId) {
        if self.me.origin {
            self.on_ask(id, self.policy.links.div_ceil(4) as u8);
        }
    }

    pub(super) fn on_ask(&mut self, id: LinkId, count: u8) {
        let Some(link) = self.links.get(&id) else { return };
        let (peer, addr) = (link.peer, link.addr);
        let position = link.position;
        let peers = self.some_peers(peer, addr, position, (count as usize).min(MAX_PEERS));
        self.send(id, Frame::Peers(peers));
    }

    pub(super) fn on_join(&mut self, from: SocketAddr, join: Join) {
        let mine = join.tree.as_ref().is_none_or(|tree| *tree == self.me.tree);
        if !mine || join.node == self.me.node || join.port == 0 {
            return;
        }
        // A broadcast reaches everybody: the origin answers, and about three of the others, in case it is away.
        let others = self.neighbour_links();
        if !self.me.origin && self.rng.usize(0..others.max(1)) >= 3 {
            return;
        }
        let mut to = from;
        to.set_port(join.port);
        let peers = self.some_peers(join.node, from, join.position, self.policy.links.min(MAX_PEERS));
        self.out.push_back(Output::Welcome { to, peers });
    }

    pub(super) fn on_welcome(&mut self, from: SocketAddr, welcome: Welcome) {
        let mut addr = from;
        addr.set_port(welcome.port);
        self.forget_namesakes(welcome.node, addr);
        self.learn_peer(welcome.node, addr, welcome.origin);
        if !self.me.origin {
            self.me.sequence = self.me.sequence.max(welcome.head.sequence);
        }
        if welcome.origin
            && let Some(known) = self.gossip.known.get_mut(&welcome.node)
        {
            // It is back: no reason to wait for the next try.
            known.next_try = self.now;
        }
        self.learn_peers(welcome.peers);
    }

    /// Neighbours are told that there is a newer head; who has an older one asks for it.
    pub(super) fn on_head(&mut self, sequence: u64) {
        self.me.sequence = sequence;
        // A file that was moved away and back is the same version again.
        self.provide.failed.clear();
        let ids: Vec<LinkId> = self.links.iter().filter(|(_, link)| link.told).map(|(id, _)| *id).collect();
        for id in ids {
            self.keep_alive(id);
        }
    }

    /// A neighbour named a sequence: an origin's newer head is asked for, by a question that proves this node's address.
    pub(super) fn compare_sequence(&mut self, id: LinkId, sequence: u64) {
        let Some(link) = self.links.get(&id) else { return };
        if link.origin && sequence > self.me.sequence && self.now >= self.gossip.next_head {
            if sequence != self.gossip.asked_head {
                (self.gossip.asked_head, self.gossip.head_pause) = (sequence, HEAD_PAUSE);
            }
            self.gossip.next_head = self.now.plus(self.gossip.head_pause);
            // Whoever names what it does not have is asked less and less.
            self.gossip.head_pause = (2 * self.gossip.head_pause).min(LAST_HEAD);
            self.out.push_back(Output::Join { join: JoinAim::Unicast(link.addr) });
        }
    }

    /// Asks once more for a head that an origin named and that has not come: question or answer was lost.
    pub(super) fn ask_for_head(&mut self) {
        if self.me.origin || self.now < self.gossip.next_head {
            return;
        }
        let named = self.links.iter().filter(|(_, link)| link.greeted && link.origin);
        if let Some((id, sequence)) = named.map(|(id, link)| (*id, link.sequence)).max_by_key(|(_, sequence)| *sequence)
        {
            self.compare_sequence(id, sequence);
        }
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

/// How a window became another: entries dropped in front, the front entry's first block, entries added.
fn slide(before: &[Run], after: &[Run]) -> (u16, u32, Vec<Run>) {
    let front = after.first().map_or(0, |run| run.first);
    let (dropped, added) = moved_on(before, after).unwrap_or((before.len(), after.to_vec()));
    (u16::try_from(dropped).expect("windows have at most 256 entries"), front, added)
}

/// Entries dropped and added if the window just moved on; then all others need not be said again.
fn moved_on(before: &[Run], after: &[Run]) -> Option<(usize, Vec<Run>)> {
    let front = after.first()?;
    let same = |old: &Run| old.object == front.object && old.first <= front.first && front.first < old.end();
    let dropped = before.iter().position(same)?;
    let kept = &before[dropped..];
    if after.len() < kept.len() {
        return None;
    }
    let mut added = Vec::new();
    for (index, run) in after.iter().enumerate() {
        let Some(old) = kept.get(index) else {
            added.push(*run);
            continue;
        };
        let first = if index == 0 { front.first } else { old.first };
        // Only the last entry known may have grown.
        let grown = index + 1 == kept.len() && run.end() > old.end();
        if run.object != old.object || run.first != first || (run.end() != old.end() && !grown) {
            return None;
        }
        if grown {
            added.push(Run { object: run.object, first: old.end(), count: run.end() - old.end() });
        }
    }
    Some((dropped, added))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ObjectId;

    fn run(object: u8, first: u32, end: u32) -> Run {
        Run { object: ObjectId([object; 16]), first, count: end - first }
    }

    #[test]
    fn a_window_that_moves_on_is_told_by_its_ends() {
        let before = [run(1, 0, 100), run(2, 0, 50)];
        assert_eq!(slide(&before, &[run(1, 10, 100), run(2, 0, 60)]), (0, 10, vec![run(2, 50, 60)]));
        assert_eq!(slide(&before, &[run(2, 5, 50), run(3, 0, 9)]), (1, 5, vec![run(3, 0, 9)]));
        assert_eq!(slide(&before, &[]), (2, 0, vec![]));
        assert_eq!(slide(&[], &before), (0, 0, before.to_vec()));
        assert_eq!(slide(&before, &before), (0, 0, vec![]));
    }

    #[test]
    fn a_window_that_jumps_is_told_anew() {
        let before = [run(1, 10, 100), run(2, 0, 50)];
        for (after, why) in [
            (vec![run(1, 0, 100), run(2, 0, 50)], "backwards"),
            (vec![run(1, 20, 90)], "shorter"),
            (vec![run(3, 0, 1)], "elsewhere"),
            (vec![run(1, 20, 100), run(3, 0, 50)], "another end"),
        ] {
            assert_eq!(slide(&before, &after), (2, after[0].first, after), "{why}");
        }
    }
}
