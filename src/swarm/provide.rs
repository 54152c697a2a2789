//! What is sent to whom: offers, uploads, and an origin's first copies.
//!
//! The sender proposes, the receiver takes or declines. A block may be offered as soon as its own reception was accepted;
//! possession is looked at again when the offer is accepted and before each frame. An origin puts each piece in once:
//! what no neighbour of its has or awaits, the lowest first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::bits::Bits;
use super::link::{Offer, Upload, by_chunk};
use super::policy::WHOLE;
use super::{LinkId, Node, Output, Table, Time, Transmit};
use crate::chunk::{
    BLOCK, BLOCKS_PER_CHUNK, BLOCKS_PER_SEGMENT, BlockId, ChunkId, ObjectId, Run, SEGMENTS_PER_CHUNK, SegmentId,
    block_len, blocks_of,
};
use crate::wire::frame::{Frame, GoneReason, MAX_OFFER, Refusal, WANTED};

/// Bytes of a block in one DATA frame where a whole one would hold up control, and where it does not.
const SHORT_FRAME: u32 = 8 * 1024;
const LONG_FRAME: u32 = crate::chunk::BLOCK;
const FAST: u64 = 60_000_000;
/// Segments that an origin reads at once: one is hashed while the next is read.
pub const PREPARING: usize = 4;
/// Transfers that one neighbour may pull at once.
pub const PULLED: usize = 32;
/// Transfers to all neighbours at once, beyond which nothing can be pulled.
const MOST_UPLOADS: usize = 96;
/// Headers that one neighbour may wait for.
pub const HEADER_WAITS: usize = 64;
/// Runs remembered as sent lately: half a second of single blocks at 10 Gbit/s is more, but then they are pulled faster
/// than anybody could pass them on.
const MAX_SENT: usize = 4096;
/// Chunks whose copies are counted. A peer can name as many as it likes; those beyond count as if nobody had them.
const MAX_COPIES: usize = 8192;
/// Pulls that wait for an object's size, which the tree says in the same batch.
const MAX_PARKED: usize = 1024;
/// Objects, and segments, that could not be read and are remembered as such.
pub const MAX_FAILED: usize = 4096;
/// An offer not answered for so long is withdrawn.
const UNANSWERED: u64 = 3_000_000;
/// How long it is believed that an object cannot be read: a disk recovers, a file is put back.
pub const FAILED: u64 = 5_000_000;
/// Objects whose size an origin remembers for its neighbours' windows.
pub const MAX_SIZES: usize = 1 << 17;

/// How many neighbours have or await each block of a chunk.
struct Copies {
    each: Box<[u16; BLOCKS_PER_CHUNK as usize]>,
    total: u64,
}

#[derive(Default)]
pub struct Provide {
    copies: BTreeMap<ChunkId, Copies>,
    next_offer: u32,
    pub(super) preparing: BTreeSet<SegmentId>,
    /// Segments not to be tried before.
    pub(super) later: BTreeMap<SegmentId, Time>,
    /// Objects that could not be read, and when.
    pub(super) failed: BTreeMap<ObjectId, (GoneReason, Time)>,
    pub(super) resolving: BTreeSet<ObjectId>,
    /// Pulls of objects whose size is being asked for.
    pub(super) parked: Vec<(LinkId, u32, bool, Run)>,
    /// Neighbours that are in the middle of a transfer, where only so many may be, and who has data and waits for that.
    sending: BTreeSet<LinkId>,
    waiting: BTreeSet<LinkId>,
    /// What an origin began to send lately, the oldest in front.
    sent: VecDeque<(Time, Run)>,
}

impl Provide {
    pub fn is_idle(&self) -> bool {
        self.preparing.is_empty()
    }

    /// Whether some of a chunk is being read from disk: then its place in the store must stay.
    pub fn is_prepared(&self, chunk: ChunkId) -> bool {
        self.preparing.iter().any(|segment| segment.chunk() == chunk)
    }

    pub fn tables(&self) -> [Table; 6] {
        [
            Table::new("chunks counted", self.copies.len(), MAX_COPIES),
            Table::new("segments being read", self.preparing.len(), PREPARING),
            Table::new("segments to be read later", self.later.len(), MAX_FAILED),
            Table::new("objects that failed", self.failed.len(), MAX_FAILED),
            Table::new("pulls parked", self.parked.len(), MAX_PARKED),
            Table::new("runs sent lately", self.sent.len(), MAX_SENT),
        ]
    }

    pub fn count(&mut self, chunk: ChunkId, bits: Bits) {
        if bits.is_empty() || (self.copies.len() >= MAX_COPIES && !self.copies.contains_key(&chunk)) {
            return;
        }
        let copies = self
            .copies
            .entry(chunk)
            .or_insert_with(|| Copies { each: Box::new([0; BLOCKS_PER_CHUNK as usize]), total: 0 });
        for block in bits.iter() {
            copies.each[block as usize] += 1;
            copies.total += 1;
        }
    }

    pub fn uncount(&mut self, chunk: ChunkId, bits: Bits) {
        let Some(copies) = self.copies.get_mut(&chunk) else { return };
        // What was not counted when there was no room is not missed now: a count is never too high.
        for block in bits.iter() {
            let count = &mut copies.each[block as usize];
            copies.total -= (*count > 0) as u64;
            *count = count.saturating_sub(1);
        }
        if copies.total == 0 {
            self.copies.remove(&chunk);
        }
    }

    pub fn uncount_all(&mut self, taken: &BTreeMap<ChunkId, Bits>) {
        taken.iter().for_each(|(chunk, bits)| self.uncount(*chunk, *bits));
    }

    /// Takes a slot for a neighbour, if there is one.
    fn may_send(&mut self, id: LinkId, slots: Option<usize>) -> bool {
        let Some(slots) = slots else { return true };
        let may = self.sending.contains(&id) || self.sending.len() < slots;
        let list = if may { &mut self.sending } else { &mut self.waiting };
        list.insert(id);
        may
    }

    fn note_sent(&mut self, run: Run, now: Time, fresh: u64) {
        let old = |sent: &(Time, Run)| now.since(sent.0) >= fresh;
        while self.sent.len() >= MAX_SENT || self.sent.front().is_some_and(old) {
            self.sent.pop_front();
        }
        self.sent.push_back((now, run));
    }

    /// Whether some of a run was sent within `fresh`.
    fn was_sent(&self, run: Run, now: Time, fresh: u64) -> bool {
        let overlaps = |sent: &Run| sent.object == run.object && sent.first < run.end() && run.first < sent.end();
        self.sent.iter().any(|(at, sent)| now.since(*at) < fresh && overlaps(sent))
    }

    /// Neighbours that have or await a block.
    pub fn copies(&self, chunk: ChunkId, block: u32) -> u16 {
        self.copies.get(&chunk).map_or(0, |copies| copies.each[block as usize])
    }
}

impl Node {
    // ---- offering

    /// Makes offers as long as slots are free and somebody wants what is here.
    pub(super) fn fill(&mut self) {
        if self.me.origin {
            self.prepare_owed();
        }
        let limit = if self.me.origin {
            self.policy.origin_uploads + self.policy.origin_ahead
        } else {
            self.policy.uploads + self.policy.ahead(self.gossip.rate())
        };
        let limit = self.policy.most_queued(limit) * WHOLE;
        loop {
            let now = self.now;
            let open = |link: &super::Link| {
                link.greeted && link.known && !link.origin && !link.window.is_empty() && !link.is_doubted(now)
            };
            let (mut queued, mut takers) = (0, 0usize);
            for link in self.links.values().filter(|link| !link.hushed) {
                // An origin's first copies do not wait for pulls: each link's share of its uplink is TCP's to decide.
                queued += if self.me.origin { link.offered() } else { link.queue() };
                takers += open(link) as usize;
            }
            if queued >= limit || takers == 0 {
                return;
            }
            let per_link = (self.policy.per_link * WHOLE).max(limit.div_ceil(takers));
            let pick = if self.me.origin { self.pick_first_copy(per_link) } else { self.pick(per_link) };
            let Some((id, runs)) = pick else { return };
            if self.me.origin {
                for run in &runs {
                    self.note_taken(id, *run);
                }
            }
            let offer = self.provide.next_offer;
            self.provide.next_offer = (offer + 1) & !WANTED;
            let weight = runs.iter().map(|run| self.weight(*run)).max().unwrap_or(WHOLE);
            if let Some(link) = self.links.get_mut(&id) {
                link.room -= weight as i32;
                let begun = self.requests.begun();
                link.offers.push(Offer { id: offer, runs: runs.clone(), weight, begun, made: self.now });
            }
            self.send(id, Frame::Offer { id: offer, runs });
        }
    }

    /// What a transfer of a run counts, in eighths of a piece.
    pub(super) fn weight(&self, run: Run) -> usize {
        let size = self.sizes.get(&run.object).copied().unwrap_or(u64::MAX);
        let start = run.first as u64 * BLOCK as u64;
        let bytes = size.saturating_sub(start).min(run.count as u64 * BLOCK as u64);
        self.policy.weight(bytes, self.policy.upload_rate(self.gossip.rate()))
    }

    /// The neighbour that has least, and what to offer it: what it misses first, then what is rarest.
    fn pick(&mut self, per_link: usize) -> Option<(LinkId, Vec<Run>)> {
        let mut best: Option<(u64, u32, LinkId)> = None;
        for (id, link) in &self.links {
            let open = link.greeted && link.known && !link.origin && link.room > 0 && !link.is_doubted(self.now);
            if !open || link.queue() >= per_link || link.window.is_empty() {
                continue;
            }
            // In steps of 256 KiB, ties at random: maps are late, and all would push at the same laggard.
            let progress = if self.policy.herd { link.position } else { link.progress() / 8 };
            if best.is_some_and(|(least, ..)| progress > least) {
                continue;
            }
            let tie = self.rng.u32(..);
            if best.is_some_and(|(least, other, _)| (least, other) < (progress, tie)) {
                continue;
            }
            let useful = link
                .wants()
                .any(|(chunk, range)| !range.and(&self.offerable(chunk)).minus(&link.taken(chunk)).is_empty());
            if useful {
                best = Some((progress, tie, *id));
            }
        }
        let (_, _, id) = best?;
        let runs = self.candidates(id);
        (!runs.is_empty()).then_some((id, runs))
    }

    /// Blocks of a chunk that are here or will surely come.
    pub(super) fn offerable(&self, chunk: ChunkId) -> Bits {
        self.store.taken(chunk).minus(&self.requests.uncertain(chunk))
    }

    fn candidates(&mut self, id: LinkId) -> Vec<Run> {
        let piece = self.policy.piece(self.policy.upload_rate(self.gossip.rate()));
        let link = &self.links[&id];
        let Some(front) = link.window.front() else { return Vec::new() };
        let urgent_end = (front.object, front.first.saturating_add(self.policy.urgent * piece));
        let mut urgent: Vec<Run> = Vec::new();
        let mut rest: Vec<Run> = Vec::new();
        for (chunk, range) in link.wants() {
            let useful = range.and(&self.offerable(chunk)).minus(&link.taken(chunk));
            let start = chunk.first_block();
            for (mut first, end) in useful.runs() {
                // Pieces are cut at multiples of their length, so that different senders' pieces fall together.
                while first < end {
                    let stop = end.min((first / piece + 1) * piece);
                    let run = Run { object: chunk.object, first: start + first, count: stop - first };
                    if run.object == urgent_end.0 && run.first < urgent_end.1 {
                        urgent.push(run);
                    } else {
                        rest.push(run);
                    }
                    first = stop;
                }
            }
        }
        let sample = (MAX_OFFER * self.policy.sample).min(rest.len());
        for index in 0..sample {
            let other = self.rng.usize(index..rest.len());
            rest.swap(index, other);
        }
        let mut sampled: Vec<(u32, Run)> = rest[..sample]
            .iter()
            .map(|run| {
                let block = BlockId { object: run.object, index: run.first };
                let copies = self.provide.copies(block.chunk(), block.index % BLOCKS_PER_CHUNK) as u32;
                // Of two equally rare, the one that is here goes before the one still arriving.
                (copies * 4 + !self.store.has(block) as u32, *run)
            })
            .collect();
        sampled.sort_by_key(|(rank, _)| *rank);
        urgent.extend(sampled.into_iter().map(|(_, run)| run));
        urgent.truncate(MAX_OFFER);
        urgent
    }

    /// An origin's choice: the lowest blocks that nobody has or awaits, to the neighbour with the fewest transfers.
    fn pick_first_copy(&mut self, per_link: usize) -> Option<(LinkId, Vec<Run>)> {
        let piece = self.policy.piece(self.policy.upload_rate(self.gossip.rate()));
        let mut rates: Vec<u64> =
            self.links.values().filter(|l| l.greeted && l.known && !l.window.is_empty()).map(|l| l.rate).collect();
        rates.sort_unstable();
        // The lower one of two: what a single peer says of itself must not shut the other out.
        let median = rates.get(rates.len().saturating_sub(1) / 2).copied().unwrap_or(0);
        let mut best: Option<(u64, usize, u32, LinkId, Run)> = None;
        let mut unread: Option<(u64, SegmentId)> = None;
        for (id, link) in &self.links {
            let open = link.greeted
                && link.known
                && !link.origin
                && !link.is_doubted(self.now)
                && link.room > -((self.policy.downloads_origin * WHOLE) as i32);
            if !open || link.offered() >= per_link {
                continue;
            }
            // First copies go to who can pass them on: not to one at under half of what the others do.
            if link.rate > 0 && link.rate * 2 < median {
                continue;
            }
            let Some((distance, run)) = self.first_unsent(link, piece) else { continue };
            let position = link.position.saturating_add(distance);
            let segment = BlockId { object: run.object, index: run.first }.segment();
            if !self.store.has_header(segment) {
                if unread.is_none_or(|(least, _)| position < least) {
                    unread = Some((position, segment));
                }
                continue;
            }
            let key = (position, link.queue(), self.rng.u32(..), *id, run);
            if best.as_ref().is_none_or(|b| (key.0, key.1, key.2) < (b.0, b.1, b.2)) {
                best = Some(key);
            }
        }
        if let Some((_, segment)) = unread {
            self.prepare(segment);
        }
        let (_, _, _, id, run) = best?;
        self.read_ahead(id, run);
        self.provide.note_sent(run, self.now, self.fresh());
        Some((id, vec![run]))
    }

    /// The first blocks in a neighbour's window that nobody has or awaits, and how far into the window they lie.
    fn first_unsent(&self, link: &super::Link, piece: u32) -> Option<(u64, Run)> {
        let mut distance = 0;
        for run in &link.window {
            let Some(blocks) = self.sizes.get(&run.object).map(|size| blocks_of(*size)) else {
                distance += run.count as u64;
                continue;
            };
            for (chunk, range) in by_chunk(*run) {
                let start = chunk.first_block();
                let mine = range.minus(&link.taken(chunk)).and(&Bits::range(0, blocks.saturating_sub(start)));
                for block in mine.iter() {
                    if self.provide.copies(chunk, block) > 0 {
                        continue;
                    }
                    // Zeros cost nothing to send: the piece grows over them, to the segment's end.
                    let segment_end = (block / BLOCKS_PER_SEGMENT + 1) * BLOCKS_PER_SEGMENT;
                    let held = self.store.get(chunk);
                    let (mut end, mut sent) = (block, 0);
                    while end < segment_end && mine.get(end) && self.provide.copies(chunk, end) == 0 && sent < piece {
                        let zero =
                            held.is_some() && self.store.is_zero(BlockId { object: chunk.object, index: start + end });
                        sent += !zero as u32;
                        end += 1;
                    }
                    let first = start + block;
                    let found = Run { object: chunk.object, first, count: end - block };
                    return Some((distance + (first - run.first) as u64, found));
                }
            }
            distance += run.count as u64;
        }
        None
    }

    /// Has the segments after a run read before they are due.
    fn read_ahead(&mut self, id: LinkId, run: Run) {
        let segment = BlockId { object: run.object, index: run.first }.segment();
        let mut next: Vec<SegmentId> = Vec::new();
        if let Some(link) = self.links.get(&id) {
            let later = link.window.iter().skip_while(|entry| entry.object != run.object);
            'window: for entry in later {
                let (first, last) = (entry.first / BLOCKS_PER_SEGMENT, (entry.end() - 1) / BLOCKS_PER_SEGMENT);
                for index in first..=last {
                    let ahead = SegmentId { object: entry.object, index };
                    if ahead.object == segment.object && index <= segment.index {
                        continue;
                    }
                    next.push(ahead);
                    if next.len() == PREPARING {
                        break 'window;
                    }
                }
            }
        }
        for segment in next {
            self.prepare(segment);
        }
    }

    // ---- answers to offers

    pub(super) fn on_accept(&mut self, id: LinkId, offer: u32, run: Run) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(index) = link.offers.iter().position(|made| made.id == offer) else {
            // Withdrawn while the answer travelled: who accepted it must not wait.
            if link.uploads.iter().all(|upload| upload.transfer != offer) {
                self.send(id, Frame::Abort { transfer: offer });
            }
            return;
        };
        let made = link.offers.swap_remove(index);
        let inside =
            |offered: &Run| offered.object == run.object && offered.first <= run.first && run.end() <= offered.end();
        if !made.runs.iter().any(inside) {
            return self.refuse_peer(id);
        }
        self.refill = true;
        // What was offered may have been dropped, or its source may have failed, while the answer travelled.
        if self.can_source(run, made.begun) {
            self.begin_upload(id, offer, run, false);
        } else {
            self.send(id, Frame::Abort { transfer: offer });
            self.note_lost(id, run);
        }
    }

    pub(super) fn on_decline(&mut self, id: LinkId, offer: u32, reason: Refusal) {
        let origin = self.me.origin;
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(index) = link.offers.iter().position(|made| made.id == offer) else { return };
        let made = link.offers.swap_remove(index);
        self.refill = true;
        match (reason, origin) {
            (Refusal::NoRoom, _) => {
                // Nothing more until it shows room again.
                link.room = link.room.min(if origin { -(64 * WHOLE as i32) } else { 0 });
                if origin {
                    for run in made.runs {
                        self.note_lost(id, run);
                    }
                }
            }
            // Its map was late; one offer less until the next comes.
            (Refusal::NotNeeded, false) => link.room -= made.weight as i32,
            (Refusal::NotNeeded, true) => {}
        }
    }

    /// Withdraws offers that nobody answers: they hold slots that others could use, and an origin's first copies.
    pub(super) fn check_offers(&mut self) {
        let (now, mut withdrawn) = (self.now, Vec::new());
        for (id, link) in &mut self.links {
            for made in link.offers.extract_if(.., |made| now.since(made.made) > UNANSWERED) {
                withdrawn.push((*id, made));
            }
        }
        for (id, made) in withdrawn {
            if self.me.origin {
                for run in made.runs {
                    self.note_lost(id, run);
                }
            }
            self.break_promise(id);
            self.refill = true;
        }
    }

    /// Whether a run is here, or will come by a download older than what is to pass it on (one of the first `begun`) or
    /// from an origin. So every transfer is younger than the one that feeds it, and no ring of nodes can wait for each
    /// other; a block lost and awaited anew since it was offered could close one.
    fn can_source(&self, run: Run, begun: u64) -> bool {
        if self.me.origin {
            return self.sizes.get(&run.object).is_some_and(|size| run.end() <= blocks_of(*size))
                && !self.provide.failed.contains_key(&run.object);
        }
        let from_origin = |id: LinkId| self.links.get(&id).is_some_and(|link| link.origin);
        run.blocks().all(|block| self.store.has(block) || self.requests.awaits(block, begun, from_origin))
    }

    fn begin_upload(&mut self, id: LinkId, transfer: u32, run: Run, first: bool) {
        self.note_taken(id, run);
        let weight = self.weight(run);
        if let Some(link) = self.links.get_mut(&id) {
            let upload = Upload { transfer, run, next: run.first, offset: 0, weight };
            // Pulls go before offers, but not before one that has begun or another pull.
            let pulls = link.uploads.iter().take_while(|u| u.transfer & WANTED != 0 || u.has_begun()).count();
            let at = if first { pulls } else { link.uploads.len() };
            link.uploads.insert(at, upload);
            self.ready.insert(id);
        }
        let segment = BlockId { object: run.object, index: run.first }.segment();
        self.store.touch(segment.chunk());
        if self.me.origin {
            self.prepare(segment);
        }
    }

    /// Somebody asks for blocks by itself: a random reader, a first block, or one whose neighbours all lack it.
    pub(super) fn on_want(&mut self, id: LinkId, transfer: u32, starving: bool, run: Run) {
        let Some(link) = self.links.get(&id) else { return };
        if transfer & WANTED == 0 {
            return self.refuse_peer(id);
        }
        if self.me.origin && !self.sizes.contains_key(&run.object) && self.provide.parked.len() < MAX_PARKED {
            self.provide.parked.push((id, transfer, starving, run));
            return match self.provide.failed.get(&run.object) {
                Some(_) => self.on_resolved(run.object, None),
                None => self.resolve_object(run.object),
            };
        }
        let queued: usize = self.links.values().map(|link| link.uploads.len()).sum();
        let full = link.uploads.len() >= PULLED || queued >= MOST_UPLOADS;
        if full || !self.can_source(run, 0) || (self.me.origin && self.comes_from_others(id, run, starving)) {
            if let Some((reason, _)) = self.provide.failed.get(&run.object).copied() {
                self.send(id, Frame::Gone { object: run.object, reason });
            }
            return self.send(id, Frame::Abort { transfer });
        }
        if self.me.origin {
            self.provide.note_sent(run, self.now, self.fresh());
        }
        self.begin_upload(id, transfer, run, true);
    }

    fn fresh(&self) -> u64 {
        self.policy.fresh(self.gossip.best_rate())
    }

    /// Whether an asker will get a run from neighbours: then a second copy out of the origin would be too many.
    fn comes_from_others(&self, id: LinkId, run: Run, starving: bool) -> bool {
        // The asker's own report may already count what it awaits from this very answer.
        let own = |chunk, block| self.links.get(&id).is_some_and(|link| link.has_taken(chunk, block)) as u16;
        let copied = by_chunk(run)
            .any(|(chunk, range)| range.iter().any(|block| self.provide.copies(chunk, block) > own(chunk, block)));
        copied && (!starving || self.provide.was_sent(run, self.now, self.fresh()))
    }

    pub(super) fn on_cancel(&mut self, id: LinkId, transfer: u32) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(index) = link.uploads.iter().position(|upload| upload.transfer == transfer) else { return };
        if let Some(upload) = link.uploads.remove(index) {
            let rest = Run { first: upload.next, count: upload.run.end() - upload.next, ..upload.run };
            if rest.count > 0 {
                self.note_lost(id, rest);
            }
        }
        // It may hold a slot.
        self.ready.insert(id);
        self.refill = true;
    }

    // ---- headers

    pub(super) fn on_get_header(&mut self, id: LinkId, segment: SegmentId) {
        if self.store.has_header(segment) {
            return self.send_header(id, segment);
        }
        let index = segment.index % SEGMENTS_PER_CHUNK;
        let coming = self.store.taken(segment.chunk()).segment(index) != 0;
        let readable = self.me.origin && !self.provide.failed.contains_key(&segment.object);
        let Some(link) = self.links.get_mut(&id) else { return };
        if (coming || readable) && link.header_waits.len() < HEADER_WAITS {
            if !link.header_waits.contains(&segment) {
                link.header_waits.push(segment);
            }
            if self.me.origin {
                self.resolve_object(segment.object);
                self.prepare(segment);
            }
        } else {
            self.send(id, Frame::NoHeader(segment));
        }
    }

    /// Tells those who wait for a header that it will not come from here.
    pub(super) fn refuse_header_waits(&mut self, gone: impl Fn(SegmentId) -> bool) {
        let mut refused = Vec::new();
        for (id, link) in &mut self.links {
            refused.extend(link.header_waits.extract_if(.., |segment| gone(*segment)).map(|segment| (*id, segment)));
        }
        for (id, segment) in refused {
            self.send(id, Frame::NoHeader(segment));
        }
    }

    /// Whether anything of a segment is here or awaited.
    pub(super) fn has_some(&self, segment: SegmentId) -> bool {
        self.store.taken(segment.chunk()).segment(segment.index % SEGMENTS_PER_CHUNK) != 0
    }

    fn send_header(&mut self, id: LinkId, segment: SegmentId) {
        self.out.push_back(Output::SendHeader { link: id, segment });
        // With its header the other side has the segment's zeros.
        let index = segment.index % SEGMENTS_PER_CHUNK;
        let zero = (0..BLOCKS_PER_SEGMENT)
            .filter(|block| {
                self.store.is_zero(BlockId { object: segment.object, index: segment.first_block() + block })
            })
            .fold(0u64, |bits, block| bits | 1 << block);
        let mut bits = Bits::EMPTY;
        bits.set_segment(index, zero);
        self.note_taken_bits(id, segment.chunk(), bits);
    }

    pub(super) fn answer_header_waits(&mut self, segment: SegmentId) {
        let waiting: Vec<LinkId> =
            self.links.iter().filter(|(_, link)| link.header_waits.contains(&segment)).map(|(id, _)| *id).collect();
        for id in waiting {
            if let Some(link) = self.links.get_mut(&id) {
                link.header_waits.retain(|waits| *waits != segment);
            }
            self.send_header(id, segment);
        }
    }

    // ---- sending

    /// Something of a chunk came in: whoever is to get some of it may go on.
    pub(super) fn wake_uploads(&mut self, chunk: ChunkId) {
        for (id, link) in &self.links {
            if link.uploads.iter().any(|upload| by_chunk(upload.run).any(|(other, _)| other == chunk)) {
                self.ready.insert(*id);
            }
        }
    }

    pub(super) fn wake_block(&mut self, block: BlockId) {
        for (id, link) in &self.links {
            if link.uploads.iter().any(|upload| upload.run.object == block.object && upload.next == block.index) {
                self.ready.insert(*id);
            }
        }
    }

    /// Uploads of blocks that are neither here nor awaited any more end.
    pub(super) fn abort_uploads_without_source(&mut self) {
        if self.me.origin {
            return;
        }
        let mut aborted = Vec::new();
        for (id, link) in &mut self.links {
            let store = &self.store;
            link.uploads.retain(|upload| {
                let mut rest = upload.next..upload.run.end();
                let lost = rest.any(|index| !store.is_taken(BlockId { object: upload.run.object, index }));
                if lost {
                    aborted.push((*id, *upload));
                }
                !lost
            });
        }
        for (id, upload) in aborted {
            self.send(id, Frame::Abort { transfer: upload.transfer });
            self.ready.insert(id);
            self.note_lost(id, Run { first: upload.next, count: upload.run.end() - upload.next, ..upload.run });
        }
    }

    /// The next DATA frame for a link, if there is one and the link has a slot.
    pub fn transmit(&mut self, id: LinkId) -> Option<Transmit> {
        if !self.provide.may_send(id, self.policy.slots) {
            return None;
        }
        let found = self.next_frame(id);
        let between = self.links.get(&id).is_none_or(|link| link.uploads.iter().all(|upload| !upload.has_begun()));
        if found.is_none() || between {
            self.free_slot(id);
        }
        found
    }

    /// A neighbour is between two transfers, or has nothing to send: others may be sent to.
    pub(super) fn free_slot(&mut self, id: LinkId) {
        if self.provide.sending.remove(&id) {
            self.ready.append(&mut self.provide.waiting);
            self.refill = true;
        }
        self.provide.waiting.remove(&id);
    }

    /// Of a link's first transfer that has a block here, so that one which waits for its own source does not hold up the
    /// others.
    fn next_frame(&mut self, id: LinkId) -> Option<Transmit> {
        let frame = if self.gossip.rate() > FAST { LONG_FRAME } else { SHORT_FRAME };
        let origin = self.me.origin;
        let mut found = None;
        let mut ended = 0;
        let link = self.links.get_mut(&id)?;
        let mut index = 0;
        while let Some(upload) = link.uploads.get_mut(index) {
            let at = |next: u32| BlockId { object: upload.run.object, index: next };
            while upload.next < upload.run.end() && self.store.is_zero(at(upload.next)) {
                upload.next += 1;
            }
            let block = at(upload.next);
            let over = upload.next >= upload.run.end();
            if !over && found.is_none() && self.store.has(block) {
                let size = *self.sizes.get(&upload.run.object)?;
                let len = frame.min(block_len(size, upload.next) - upload.offset);
                found = Some(Transmit { transfer: upload.transfer, block, offset: upload.offset, len });
                upload.offset += len;
                if upload.offset >= block_len(size, upload.next) {
                    upload.next += 1;
                    upload.offset = 0;
                }
                if upload.next < upload.run.end() {
                    break;
                }
                ended += upload.weight;
                link.uploads.remove(index);
                break;
            }
            if over {
                ended += upload.weight;
                link.uploads.remove(index);
            } else {
                index += 1;
            }
        }
        if ended > 0 {
            self.refill = true;
            if origin {
                // It has room again; its report says so only later.
                link.room += ended as i32;
            }
        }
        if let Some(transmit) = &found {
            link.last_served = Some(self.now);
            self.gossip.count_sent(transmit.len as u64);
        }
        found
    }
}
