//! What this node wants, and from whom it takes it.
//!
//! Readers hand down windows; neighbours offer out of them and this node accepts. Only what no offer will bring soon is
//! pulled: a random reader's block, the very first block, and blocks that every neighbour lacks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::bits::Bits;
use super::keep::Chunk;
use super::link::by_chunk;
use super::policy::WHOLE;
use super::provide::MAX_SIZES;
use super::{Input, LinkId, Node, Output, Policy, ReaderId, Table, Time, Wanted};
use crate::chunk::{BLOCKS_PER_CHUNK, BLOCKS_PER_SEGMENT, BlockId, ChunkId, ObjectId, Run, SegmentId, blocks_of};
use crate::wire::frame::{Frame, GoneReason, MAX_WINDOW, Refusal, WANTED};

/// Demands that are waited for at once. What is parked beyond waits for its turn with the driver.
const MAX_DEMANDS: usize = 4096;
/// How long somebody who refused a pull is not asked for the same segment.
const REFUSED: u64 = 200_000;
/// Such refusals: all pulls of all links, a few times in that time.
const MAX_REFUSED: usize = 4096;
/// A header that was asked for and has not come is asked for elsewhere: before blocks that wait for it count as stalled,
/// so that whoever sends wrong ones and keeps the header back is found out.
const HEADER_PATIENCE: u64 = 500_000;
/// A transfer that has begun brings a block within this: 26 kbit/s.
const CRAWL: u64 = 10_000_000;

#[derive(Clone, Copy, Debug)]
struct Download {
    link: LinkId,
    transfer: u32,
    run: Run,
    /// In eighths of a piece.
    weight: usize,
    began: Time,
    last: Time,
    /// When it last brought a block that was missing, or else began to bring bytes.
    advanced: Time,
    started: bool,
    /// How many downloads began before it.
    number: u64,
}

impl Download {
    /// It was asked for, and nobody said yet that it comes.
    fn unanswered(&self) -> bool {
        self.transfer & WANTED != 0 && !self.started
    }
}

#[derive(Clone, Copy, Debug)]
struct Demand {
    run: Run,
    since: Time,
}

#[derive(Default)]
pub struct Requests {
    readers: BTreeMap<ReaderId, Vec<Wanted>>,
    /// All readers' windows in turn, cut to what memory allows and without what is already here in front.
    window: Vec<Run>,
    /// Chunks of the windows before that trimming: what must not be dropped.
    kept: Vec<ChunkId>,
    /// One of them was dropped for a demand: what the window left out as being here may be missing again.
    window_lost: bool,
    /// Where the window's entries begin on the number line.
    positions: Vec<u64>,
    position: u64,
    demands: Vec<Demand>,
    downloads: Vec<Download>,
    /// Blocks that were awaited in vain and are not here yet. They are neither told nor offered before they are: else, when
    /// a source is lost, those who waited for it take each other's word for having another, and pass that on for ever.
    lost: BTreeMap<ChunkId, Bits>,
    /// Chunks that this node keeps longer than others, so that together its likes have all of a file for who is late.
    pinned: VecDeque<ChunkId>,
    headers: BTreeMap<SegmentId, (LinkId, Time)>,
    refused: BTreeMap<(LinkId, SegmentId), Time>,
    next_want: u32,
    /// How many downloads ever began.
    begun: u64,
    /// The first missing block, if no neighbour has or awaits it, and since when.
    orphan: Option<(BlockId, Time)>,
    /// The last such block had to be pulled: the next is pulled at once.
    starving: bool,
}

impl Requests {
    pub fn window(&self) -> &[Run] {
        &self.window
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn tables(&self, policy: &Policy) -> [Table; 6] {
        // The least transfers weigh an eighth; pulls are not weighed.
        let downloads =
            (policy.downloads + policy.downloads_extra + policy.downloads_origin) * WHOLE + 2 * policy.pulls;
        [
            Table::new("transfers awaited", self.downloads.len(), downloads),
            Table::new("demands", self.demands.len(), MAX_DEMANDS),
            Table::new("headers awaited", self.headers.len(), 2 * downloads),
            Table::new("chunks with losses", self.lost.len(), policy.budget_blocks as usize),
            Table::new("refusals", self.refused.len(), MAX_REFUSED),
            Table::new("chunks kept for others", self.pinned.len(), policy.pinned),
        ]
    }

    /// What is under way, in eighths of a piece.
    pub fn weight(&self) -> usize {
        self.downloads.iter().map(|download| download.weight).sum()
    }

    /// Nothing is wanted that is not here.
    pub fn is_idle(&self) -> bool {
        self.downloads.is_empty() && self.demands.is_empty() && self.window.is_empty()
    }

    /// The blocks of a chunk that lie in the window.
    fn in_window(&self, chunk: ChunkId) -> Bits {
        let start = chunk.first_block();
        let runs = self.window.iter().filter(|run| run.object == chunk.object && run.end() > start);
        runs.fold(Bits::EMPTY, |bits, run| {
            bits.or(&Bits::range(run.first.saturating_sub(start), run.end().saturating_sub(start)))
        })
    }

    /// Blocks of a chunk that may not come although they are awaited: they were asked for without an answer yet, or lost
    /// before. They must not be told or offered to others: if all who ask for a block say that it comes, everybody thinks
    /// that the others have it, and its source sends it to nobody.
    pub fn uncertain(&self, chunk: ChunkId) -> Bits {
        let asked = self.downloads.iter().filter(|d| d.unanswered());
        let lost = self.lost.get(&chunk).copied().unwrap_or_default();
        asked.flat_map(|d| by_chunk(d.run)).filter(|(of, _)| *of == chunk).fold(lost, |all, (_, bits)| all.or(&bits))
    }

    /// A block is here that may have been lost before; whether it was.
    fn found(&mut self, block: BlockId) -> bool {
        let chunk = block.chunk();
        let Some(lost) = self.lost.get_mut(&chunk) else { return false };
        let found = lost.get(block.index % BLOCKS_PER_CHUNK);
        *lost = lost.minus(&Bits::range(block.index % BLOCKS_PER_CHUNK, block.index % BLOCKS_PER_CHUNK + 1));
        if lost.is_empty() {
            self.lost.remove(&chunk);
        }
        found
    }

    /// How many downloads ever began.
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// Whether one of the first `begun` downloads is to bring a block, or one from a link that `trusted` names.
    pub fn awaits(&self, block: BlockId, begun: u64, trusted: impl Fn(LinkId) -> bool) -> bool {
        self.downloads.iter().any(|d| {
            let brings = d.run.object == block.object && (d.run.first..d.run.end()).contains(&block.index);
            brings && !d.unanswered() && (d.number < begun || trusted(d.link))
        })
    }

    /// Whether a link owes anything.
    pub fn is_served_by(&self, id: LinkId) -> bool {
        self.downloads.iter().any(|download| download.link == id)
    }

    fn is_transferred(&self, chunk: ChunkId) -> bool {
        self.downloads.iter().any(|d| BlockId { object: d.run.object, index: d.run.first }.chunk() == chunk)
    }
}

fn segment_of(run: Run) -> SegmentId {
    BlockId { object: run.object, index: run.first }.segment()
}

/// A run inside one segment as bits of that segment.
fn segment_bits(run: Run) -> u64 {
    let low = run.first % BLOCKS_PER_SEGMENT;
    (u64::MAX >> (BLOCKS_PER_SEGMENT - run.count)) << low
}

impl Node {
    // ---- what readers want

    pub(super) fn on_window(&mut self, reader: ReaderId, window: Vec<Wanted>) {
        self.forget_sizes();
        for wanted in &window {
            self.sizes.insert(wanted.run.object, wanted.size);
        }
        if window.is_empty() {
            self.requests.readers.remove(&reader);
        } else {
            self.requests.readers.insert(reader, window);
        }
        self.rebuild_window();
        self.pull();
    }

    /// A walk over a large tree passes more objects than need be remembered: those of which nothing is held or wanted go.
    pub(super) fn forget_sizes(&mut self) {
        if self.sizes.len() <= MAX_SIZES.max(2 * self.sizes_used) {
            return;
        }
        let held = self.store.iter().map(|(chunk, _)| chunk.object);
        let wanted = self.requests.readers.values().flatten().map(|wanted| wanted.run.object);
        let demanded = self.requests.demands.iter().map(|demand| demand.run.object);
        let mut used: BTreeSet<ObjectId> = held.chain(wanted).chain(demanded).collect();
        for link in self.links.values() {
            used.extend(link.uploads.iter().map(|upload| upload.run.object));
            used.extend(link.header_waits.iter().map(|segment| segment.object));
            used.extend(link.window.iter().filter(|_| self.me.origin).map(|run| run.object));
        }
        self.sizes.retain(|object, _| used.contains(object));
        self.sizes_used = self.sizes.len();
    }

    /// Weaves the readers' windows into one: a stretch of each in turn, until memory for them ends.
    fn rebuild_window(&mut self) {
        let mut left = self.policy.window_blocks;
        let mut woven: Vec<(Run, u64)> = Vec::new();
        let mut queues: Vec<std::vec::IntoIter<Wanted>> =
            self.requests.readers.values().map(|window| window.clone().into_iter()).collect();
        // With several readers a stretch is a segment at the most, so that none of them waits for all of another's; cut
        // where segments end, so that the cuts stay when a reader moves on.
        let several = queues.len() > 1;
        let mut rest: Vec<Option<Wanted>> = queues.iter_mut().map(Iterator::next).collect();
        while left > 0 && woven.len() < MAX_WINDOW && rest.iter().any(Option::is_some) {
            for (slot, queue) in rest.iter_mut().zip(&mut queues) {
                let Some(wanted) = slot else { continue };
                let longest = BLOCKS_PER_SEGMENT - wanted.run.first % BLOCKS_PER_SEGMENT;
                let count = wanted.run.count.min(if several { longest } else { u32::MAX }).min(left);
                left -= count;
                if count > 0 {
                    let run = Run { count, ..wanted.run };
                    match woven.last_mut() {
                        Some((last, _)) if last.object == run.object && last.end() == run.first => last.count += count,
                        _ => woven.push((run, wanted.position)),
                    }
                }
                wanted.run.first += count;
                wanted.run.count -= count;
                wanted.position += count as u64;
                if wanted.run.count == 0 {
                    *slot = queue.next();
                }
            }
        }
        woven.truncate(MAX_WINDOW);
        let mut kept: Vec<ChunkId> = woven.iter().flat_map(|(run, _)| by_chunk(*run)).map(|(chunk, _)| chunk).collect();
        kept.sort_unstable();
        kept.dedup();
        self.requests.kept = kept;
        let before = std::mem::take(&mut self.requests.window);
        (self.requests.window, self.requests.positions) = woven.into_iter().unzip();
        self.trim_window();
        if self.requests.window != before {
            self.gossip.mark_dirty();
            self.gossip.hurry(before.is_empty());
        }
    }

    /// Takes what is here off the window's front, so that its front is what is missed first.
    fn trim_window(&mut self) {
        let (mut whole, mut moved) = (0, false);
        for (run, position) in self.requests.window.iter_mut().zip(&mut self.requests.positions) {
            let first = run.first;
            while run.count > 0 && self.store.has(BlockId { object: run.object, index: run.first }) {
                run.first += 1;
                run.count -= 1;
            }
            moved |= run.first != first;
            *position += (run.first - first) as u64;
            self.requests.position = *position;
            if run.count > 0 {
                break;
            }
            whole += 1;
        }
        self.requests.window.drain(..whole);
        self.requests.positions.drain(..whole);
        if moved {
            self.gossip.mark_dirty();
        }
    }

    pub(super) fn on_demand(&mut self, wanted: Wanted) {
        self.sizes.insert(wanted.run.object, wanted.size);
        if self.takes_demands() {
            self.requests.demands.push(Demand { run: wanted.run, since: self.now });
        }
        self.pull();
    }

    /// Whether another demand is taken; if not, it must be made again later.
    pub fn takes_demands(&self) -> bool {
        self.requests.demands.len() < MAX_DEMANDS
    }

    /// One of those who demanded this gave up.
    pub(super) fn on_undemand(&mut self, run: Run) {
        if let Some(index) = self.requests.demands.iter().position(|demand| demand.run == run) {
            self.requests.demands.remove(index);
        }
    }

    // ---- taking what is offered

    pub(super) fn on_offer(&mut self, id: LinkId, offer: u32, runs: Vec<Run>) {
        // The number of a transfer that is under way would be two transfers at once.
        if self.requests.downloads.iter().any(|download| download.link == id && download.transfer == offer) {
            return self.refuse_peer(id);
        }
        let from_origin = self.links.get(&id).is_some_and(|link| link.origin);
        let most = self.policy.downloads
            + self.policy.downloads_extra
            + if from_origin { self.policy.downloads_origin } else { 0 };
        let doubted = self.links.get(&id).is_none_or(|link| link.is_doubted(self.now));
        if doubted || self.requests.weight() >= most * WHOLE {
            return self.send(id, Frame::Decline { id: offer, reason: Refusal::NoRoom });
        }
        let piece = self.policy.piece(self.gossip.rate());
        let urgent_end =
            self.requests.window.first().map(|run| (run.object, run.first.saturating_add(self.policy.urgent * piece)));
        // Whoever receives slowly takes no more at once than is soon there: others wait for it, too.
        let longest = self.policy.piece(self.gossip.receive_rate());
        let mut best: Option<(u32, Run)> = None;
        for run in runs {
            let chunk = BlockId { object: run.object, index: run.first }.chunk();
            let start = chunk.first_block();
            let needed = self.requests.in_window(chunk).minus(&self.store.taken(chunk));
            let Some(first) = needed.first_from(run.first - start).filter(|first| start + first < run.end()) else {
                continue;
            };
            let end = needed.run_end(first).min(run.end() - start);
            let end = end.min((first / longest + 1) * longest);
            let run = Run { object: run.object, first: start + first, count: end - first };
            let urgent = urgent_end.is_some_and(|(object, end)| object == run.object && run.first < end);
            let rank = if urgent { 0 } else { 1 + self.provide.copies(chunk, first) as u32 };
            if best.as_ref().is_none_or(|(least, _)| rank < *least) {
                best = Some((rank, run));
            }
        }
        let Some((_, run)) = best else {
            return self.send(id, Frame::Decline { id: offer, reason: Refusal::NotNeeded });
        };
        if !self.begin_download(id, offer, run, None) {
            return self.send(id, Frame::Decline { id: offer, reason: Refusal::NoRoom });
        }
        if self.requests.orphan.is_some_and(|(head, _)| run.blocks().any(|block| block == head)) {
            self.requests.starving = false;
        }
        self.send(id, Frame::Accept { id: offer, run });
        self.ask_header(id, segment_of(run));
        self.refill = true;
    }

    /// Keeps a chunk for whoever comes late, if it is one of this node's: some of a file's chunks, chosen by its name.
    fn pin(&mut self, chunk: ChunkId, blocks: u32) {
        let most = self.policy.pinned as u32;
        let room = self.policy.budget_blocks >= self.policy.window_blocks + (2 + most) * BLOCKS_PER_CHUNK;
        let every = blocks.div_ceil(BLOCKS_PER_CHUNK).div_ceil(most.max(1)).max(1);
        let mine = chunk.index % every == (self.me.node.0 % every as u64) as u32;
        if !room || !mine || most == 0 || self.requests.pinned.contains(&chunk) {
            return;
        }
        self.requests.pinned.push_back(chunk);
        if self.requests.pinned.len() > self.policy.pinned {
            self.requests.pinned.pop_front();
        }
    }

    /// Reserves memory for a run inside one segment, for one of the demands or for a window, and expects it. False if
    /// there is no room.
    fn begin_download(&mut self, link: LinkId, transfer: u32, run: Run, demand: Option<usize>) -> bool {
        let segment = segment_of(run);
        let size = self.sizes.get(&run.object).copied().unwrap_or(0);
        let blocks = blocks_of(size);
        let last = (segment.first_block() + BLOCKS_PER_SEGMENT).min(blocks);
        if run.end() > last {
            return false;
        }
        let in_window = self.requests.in_window(segment.chunk()).get((last - 1) % BLOCKS_PER_CHUNK);
        let whole = in_window.then_some(last - segment.first_block());
        if !self.reserve(segment, segment_bits(run), whole, demand) {
            return false;
        }
        self.pin(segment.chunk(), blocks);
        if transfer & WANTED == 0 {
            self.tell_awaited(run);
        }
        let now = self.now;
        let number = self.requests.begun;
        self.requests.begun += 1;
        let weight = self.weight(run);
        let download =
            Download { link, transfer, run, weight, began: now, last: now, advanced: now, started: false, number };
        self.requests.downloads.push(download);
        self.out.push_back(Output::Receive { link, transfer, run, size });
        true
    }

    /// Makes room in the store, dropping what nobody here reads, awaits or is being sent. For a demand, what is kept only
    /// for windows and for younger demands goes, too: with more readers than chunks in memory each would keep the chunk
    /// that it is in, and wait for room for ever. The oldest demand always finds some.
    pub(super) fn reserve(&mut self, segment: SegmentId, bits: u64, whole: Option<u32>, demand: Option<usize>) -> bool {
        let mut dropped: Vec<(ChunkId, Chunk)> = Vec::new();
        let (requests, links, provide) = (&self.requests, &self.links, &self.provide);
        let touches = |chunk: &ChunkId, run: &Run| by_chunk(*run).any(|(other, _)| other == *chunk);
        let is_free = |chunk: &ChunkId, demands: &[Demand]| {
            !requests.is_transferred(*chunk)
                && !provide.is_prepared(*chunk)
                && !demands.iter().any(|demand| touches(chunk, &demand.run))
                && !links.values().any(|link| link.uploads.iter().any(|upload| touches(chunk, &upload.run)))
        };
        let unkept = |chunk: &ChunkId| requests.kept.binary_search(chunk).is_err() && is_free(chunk, &requests.demands);
        let unpinned = |chunk: &ChunkId| !requests.pinned.contains(chunk) && unkept(chunk);
        let mut reserved = self.store.reserve(segment, bits, whole, unpinned, &mut dropped)
            || self.store.reserve(segment, bits, whole, unkept, &mut dropped);
        if let (false, Some(demand)) = (reserved, demand) {
            let older = &requests.demands[..requests.demands.len().min(demand + 1)];
            reserved = self.store.reserve(segment, bits, whole, |chunk| is_free(chunk, older), &mut dropped);
        }
        for (chunk, held) in dropped {
            self.requests.lost.remove(&chunk);
            self.requests.pinned.retain(|pinned| *pinned != chunk);
            self.requests.headers.retain(|segment, _| segment.chunk() != chunk);
            self.refuse_header_waits(|segment| segment.chunk() == chunk);
            self.requests.window_lost |= self.requests.kept.binary_search(&chunk).is_ok();
            self.tell_lost(chunk, held.taken);
            self.out.push_back(Output::Drop { chunk });
        }
        reserved
    }

    /// Asks for a header that is needed and neither here nor on its way.
    fn ask_header(&mut self, id: LinkId, segment: SegmentId) {
        if self.store.has_header(segment) || self.requests.headers.contains_key(&segment) {
            return;
        }
        self.requests.headers.insert(segment, (id, self.now));
        self.send(id, Frame::GetHeader(segment));
    }

    pub(super) fn on_no_header(&mut self, id: LinkId, segment: SegmentId) {
        if self.requests.headers.get(&segment).is_some_and(|(asked, _)| *asked == id) {
            self.ask_header_elsewhere(id, segment);
        }
    }

    fn ask_header_elsewhere(&mut self, not: LinkId, segment: SegmentId) {
        self.requests.headers.remove(&segment);
        if self.store.has_header(segment) || !self.requests.downloads.iter().any(|d| segment_of(d.run) == segment) {
            return;
        }
        let index = segment.index % crate::chunk::SEGMENTS_PER_CHUNK;
        let holders = self.links.iter().filter(|(id, link)| {
            **id != not
                && link.greeted
                && !link.origin
                && !link.is_doubted(self.now)
                && link.taken(segment.chunk()).segment(index) != 0
        });
        let holders: Vec<LinkId> = holders.map(|(id, _)| *id).collect();
        let origin = self.links.iter().find(|(_, link)| link.greeted && link.origin).map(|(id, _)| *id);
        if let Some(id) = self.rng.choice(holders).or(origin) {
            self.ask_header(id, segment);
        }
    }

    pub(super) fn on_header(&mut self, segment: SegmentId, zero: u64) {
        self.requests.headers.remove(&segment);
        let Some(fresh) = self.store.header(segment, zero) else {
            // Dropped while its header was on the way.
            return self.out.push_back(Output::Drop { chunk: segment.chunk() });
        };
        let index = segment.index % crate::chunk::SEGMENTS_PER_CHUNK;
        let mut bits = Bits::EMPTY;
        bits.set_segment(index, fresh);
        if let Some(lost) = self.requests.lost.get_mut(&segment.chunk()) {
            let mut zeros = Bits::EMPTY;
            zeros.set_segment(index, zero);
            bits = bits.or(&lost.and(&zeros));
            *lost = lost.minus(&zeros);
        }
        if !bits.is_empty() {
            self.gossip.note_taken(segment.chunk(), bits);
        }
        self.finish_downloads(|run| segment_of(*run) == segment);
        self.answer_header_waits(segment);
        self.wake_uploads(segment.chunk());
        self.trim_window();
        self.refill = true;
    }

    // ---- what arrives

    pub(super) fn on_progress(&mut self, id: LinkId, transfer: u32, bytes: u32) {
        self.gossip.count_received(bytes as u64);
        self.heard(id);
        let now = self.now;
        if let Some(link) = self.links.get_mut(&id) {
            link.last_data = now;
        }
        if let Some(download) = self.requests.downloads.iter_mut().find(|d| d.link == id && d.transfer == transfer) {
            let answered = download.unanswered();
            download.last = now;
            if !download.started {
                download.advanced = now;
            }
            download.started = true;
            let run = download.run;
            if answered {
                self.tell_awaited(run);
            }
        }
    }

    pub(super) fn on_block(&mut self, id: LinkId, transfer: u32, block: BlockId, good: bool) {
        if !good {
            self.counters.wrong_blocks += 1;
            return self.refuse_peer(id);
        }
        let fresh = !self.store.has(block);
        if !self.store.fill(block) {
            return;
        }
        self.store.touch(block.chunk());
        if fresh {
            self.note_good_block(id);
            if self.requests.found(block) {
                self.tell_taken(Run { object: block.object, first: block.index, count: 1 });
            }
            let same = |d: &&mut Download| d.link == id && d.transfer == transfer;
            if let Some(download) = self.requests.downloads.iter_mut().find(same) {
                download.advanced = self.now;
            }
        }
        self.finish_downloads(|run| run.object == block.object && (run.first..run.end()).contains(&block.index));
        self.wake_block(block);
        if self.requests.window.first().is_some_and(|front| front.object == block.object && front.first == block.index)
        {
            self.trim_window();
        }
    }

    /// Ends the downloads among those asked for whose blocks are all here.
    fn finish_downloads(&mut self, of: impl Fn(&Run) -> bool) {
        let store = &self.store;
        let mut done = Vec::new();
        self.requests.downloads.retain(|download| {
            let ended = of(&download.run) && download.run.blocks().all(|block| store.has(block));
            if ended {
                done.push((download.link, download.transfer));
            }
            !ended
        });
        for (link, transfer) in done {
            self.out.push_back(Output::Ignore { link, transfer });
            self.gossip.mark_dirty();
            self.refill = true;
        }
    }

    pub(super) fn on_abort(&mut self, id: LinkId, transfer: u32) {
        let Some(index) = self.requests.downloads.iter().position(|d| d.link == id && d.transfer == transfer) else {
            return;
        };
        let download = self.requests.downloads.swap_remove(index);
        if transfer & WANTED != 0 {
            self.requests.refused.insert((id, segment_of(download.run)), self.now);
        }
        self.drop_download(download, false);
        self.note_aborted(id);
    }

    /// Blocks that a download will not bring: free again, and whoever was to get them from here is told.
    fn drop_download(&mut self, download: Download, tell: bool) {
        let Download { link, transfer, run, .. } = download;
        self.out.push_back(Output::Ignore { link, transfer });
        if tell {
            self.send(link, Frame::Cancel { transfer });
        }
        for (chunk, range) in by_chunk(run) {
            let missing = range.minus(&self.store.get(chunk).map_or(Bits::EMPTY, |held| held.have));
            self.tell_lost(chunk, missing);
            let lost = self.requests.lost.entry(chunk).or_default();
            *lost = lost.or(&missing);
        }
        self.store.release(segment_of(run), segment_bits(run));
        let segment = segment_of(run);
        if !self.has_some(segment) {
            self.refuse_header_waits(|waits| waits == segment);
        }
        self.abort_uploads_without_source();
        self.gossip.mark_dirty();
        self.refill = true;
    }

    /// A link has ended.
    pub(super) fn drop_downloads_of(&mut self, id: LinkId) {
        self.drop_downloads(id, false);
    }

    /// A link is silent: if it still lives, it is to stop what nobody waits for any more.
    pub(super) fn give_downloads_up(&mut self, id: LinkId) {
        self.drop_downloads(id, true);
    }

    /// Tells of what was just begun to be awaited, but for what was lost once.
    fn tell_awaited(&mut self, run: Run) {
        for (chunk, bits) in by_chunk(run) {
            let lost = self.requests.lost.get(&chunk).copied().unwrap_or_default();
            self.gossip.note_taken(chunk, bits.minus(&lost));
        }
    }

    fn drop_downloads(&mut self, id: LinkId, tell: bool) {
        let (gone, kept) = self.requests.downloads.drain(..).partition(|download| download.link == id);
        self.requests.downloads = kept;
        let gone: Vec<Download> = gone;
        for download in gone {
            self.drop_download(download, tell);
        }
        let lost: Vec<SegmentId> =
            self.requests.headers.iter().filter(|(_, (link, _))| *link == id).map(|(segment, _)| *segment).collect();
        for segment in lost {
            self.ask_header_elsewhere(id, segment);
        }
    }

    /// Gives up transfers without progress, and asks elsewhere for headers that do not come.
    pub(super) fn check_transfers(&mut self) {
        let now = self.now;
        let mut stalled = Vec::new();
        for download in &self.requests.downloads {
            let limit = self.policy.silence;
            let (since, limit) = if download.started {
                (download.last, limit)
            } else {
                // It may queue behind others as long as those move, but not for ever. Only an origin that reads its disk
                // may just talk meanwhile.
                let moved = |link: &super::Link| if link.origin { link.last_heard } else { link.last_data };
                let moved = self.links.get(&download.link).map_or(Time(0), moved);
                (download.began.max(moved.min(download.began.plus(3 * limit))), 2 * limit)
            };
            // Bytes that never make a block are no progress either.
            let crawls = download.started && now.since(download.advanced) > CRAWL;
            if crawls || now.since(since) > limit {
                stalled.push((download.link, download.transfer));
            }
        }
        for (link, transfer) in stalled {
            self.counters.stalled_transfers += 1;
            if let Some(index) = self.requests.downloads.iter().position(|d| d.link == link && d.transfer == transfer) {
                let download = self.requests.downloads.swap_remove(index);
                self.requests.refused.insert((link, segment_of(download.run)), now);
                self.drop_download(download, true);
            }
            self.break_promise(link);
        }
        let late = self.requests.headers.iter().filter(|(_, (_, since))| now.since(*since) > HEADER_PATIENCE);
        let late: Vec<(SegmentId, LinkId)> = late.map(|(segment, (link, _))| (*segment, *link)).collect();
        for (segment, link) in late {
            self.ask_header_elsewhere(link, segment);
        }
        self.requests.refused.retain(|_, since| now.since(*since) < REFUSED);
    }

    // ---- pulling

    /// Asks for what no offer will bring soon.
    pub(super) fn pull(&mut self) {
        let store = &self.store;
        self.requests.demands.retain(|demand| !demand.run.blocks().all(|block| store.has(block)));
        if self.me.origin {
            return self.prepare_demands();
        }
        let mut room = self.policy.pulls.saturating_sub(self.pulls_under_way());
        for (index, demand) in self.requests.demands.clone().into_iter().enumerate() {
            for run in self.missing(demand.run) {
                if room == 0 {
                    return;
                }
                let chunk = BlockId { object: run.object, index: run.first }.chunk();
                let offered = self.requests.in_window(chunk).get(run.first - chunk.first_block());
                let waited = self.now.since(demand.since);
                let idle = self.requests.downloads.is_empty();
                // Whoever jumps about is in no herd that a copy would serve.
                let starving = !offered || waited >= self.patience(idle);
                // Inside a window neighbours and origin offer by themselves; a pull would bring a copy too many.
                // Asking is cheap, since the origin refuses what comes from others: so it is asked as early as anywhere.
                if offered && waited < self.policy.patience(0, idle) {
                    continue;
                }
                if self.want(run, starving, Some(index)) {
                    room -= 1;
                }
            }
        }
        if std::mem::take(&mut self.requests.window_lost) {
            self.rebuild_window();
        }
        self.pull_orphans(room);
    }

    /// The window's head may be at no neighbour: then, after a while, the origin is asked for it and what follows.
    fn pull_orphans(&mut self, mut room: usize) {
        let piece = self.policy.piece(self.gossip.rate());
        let window = self.requests.window.clone();
        let pulled = self.pulls_under_way();
        if self.requests.downloads.len() > pulled {
            // Offers come: only what they leave out is pulled, a little at a time, since the origin is everybody's.
            room = room.min((self.policy.urgent as usize).saturating_sub(pulled));
        }
        let mut head = true;
        for run in window {
            for missing in self.missing(run) {
                let block = BlockId { object: missing.object, index: missing.first };
                let at_neighbour = self.links.values().any(|link| {
                    !link.origin
                        && !link.is_doubted(self.now)
                        && link.has_taken(block.chunk(), block.index % BLOCKS_PER_CHUNK)
                });
                if head {
                    head = false;
                    if at_neighbour {
                        (self.requests.orphan, self.requests.starving) = (None, false);
                        return;
                    }
                    // Offers move the head on; only a block that stays at the head that long is nobody's.
                    let since = match self.requests.orphan {
                        Some((same, since)) if same == block => since,
                        _ => self.now,
                    };
                    self.requests.orphan = Some((block, since));
                    let idle = self.requests.downloads.is_empty();
                    let patience = self.patience(idle);
                    // Whoever lives by pulls alone does not wait for each.
                    let pulls_on = self.requests.starving && self.requests.downloads.len() == pulled;
                    if !pulls_on && self.now.since(since) < patience {
                        return;
                    }
                    self.counters.starved += 1;
                }
                if room == 0 {
                    return;
                }
                if !at_neighbour && self.want(Run { count: missing.count.min(piece), ..missing }, true, None) {
                    self.requests.starving = true;
                    room -= 1;
                }
            }
        }
        if head {
            (self.requests.orphan, self.requests.starving) = (None, false);
        }
    }

    /// How long what is at no neighbour is left to them: whoever has none has nothing to wait for.
    fn patience(&self, idle: bool) -> u64 {
        let alone = !self.links.values().any(|link| link.greeted && !link.origin && !link.is_doubted(self.now));
        self.policy.patience(if alone { 0 } else { self.gossip.best_rate() }, idle)
    }

    /// The stretches of a run that are neither here nor awaited, each inside one segment.
    fn missing(&self, run: Run) -> Vec<Run> {
        let mut stretches = Vec::new();
        for (chunk, range) in by_chunk(run) {
            let start = chunk.first_block();
            for (mut first, end) in range.minus(&self.store.taken(chunk)).runs() {
                while first < end {
                    let stop = end.min((first / BLOCKS_PER_SEGMENT + 1) * BLOCKS_PER_SEGMENT);
                    stretches.push(Run { object: chunk.object, first: start + first, count: stop - first });
                    first = stop;
                }
            }
        }
        stretches
    }

    fn pulls_under_way(&self) -> usize {
        self.requests.downloads.iter().filter(|d| d.transfer & WANTED != 0).count()
    }

    /// Asks one neighbour, or else an origin, for a run. False if nobody can be asked now.
    fn want(&mut self, run: Run, starving: bool, demand: Option<usize>) -> bool {
        let segment = segment_of(run);
        let (chunk, block) = (segment.chunk(), run.first % BLOCKS_PER_CHUNK);
        let busy = |id: LinkId| self.requests.downloads.iter().filter(|d| d.link == id).count();
        let free = |id: LinkId| !self.requests.refused.contains_key(&(id, segment));
        let mut holders: Vec<(usize, LinkId)> = self
            .links
            .iter()
            .filter(|(id, link)| {
                link.greeted && !link.origin && !link.is_doubted(self.now) && link.has_taken(chunk, block) && free(**id)
            })
            .map(|(id, _)| (busy(*id), *id))
            .collect();
        let least = holders.iter().map(|(busy, _)| *busy).min();
        holders.retain(|(busy, _)| Some(*busy) == least);
        let origins = self.links.iter().filter(|(id, link)| link.greeted && link.origin && free(**id));
        let origin = origins.min_by_key(|(_, link)| link.record.broken).map(|(id, _)| *id);
        let Some(id) = self.rng.choice(holders).map(|(_, id)| id).or(origin) else { return false };
        let transfer = WANTED | self.requests.next_want;
        if !self.begin_download(id, transfer, run, demand) {
            return false;
        }
        self.requests.next_want = (self.requests.next_want + 1) & !WANTED;
        self.send(id, Frame::Want { transfer, starving, run });
        self.ask_header(id, segment);
        true
    }

    /// Only an origin can say that nobody will have an object again.
    pub(super) fn on_gone(&mut self, id: LinkId, object: ObjectId, reason: GoneReason) {
        if !self.links.get(&id).is_some_and(|link| link.origin) {
            return;
        }
        for window in self.requests.readers.values_mut() {
            window.retain(|wanted| wanted.run.object != object);
        }
        self.requests.readers.retain(|_, window| !window.is_empty());
        self.requests.demands.retain(|demand| demand.run.object != object);
        let (gone, kept) = self.requests.downloads.drain(..).partition(|d| d.link == id && d.run.object == object);
        self.requests.downloads = kept;
        let gone: Vec<Download> = gone;
        for download in gone {
            self.drop_download(download, false);
        }
        self.rebuild_window();
        self.out.push_back(Output::Gone { object, reason });
    }

    // ---- an origin's own readers

    fn prepare_demands(&mut self) {
        let mut segments: Vec<(SegmentId, usize)> = Vec::new();
        for (index, demand) in self.requests.demands.iter().enumerate() {
            for run in self.missing(demand.run) {
                segments.push((segment_of(run), index));
            }
        }
        segments.dedup_by_key(|(segment, _)| *segment);
        for (segment, demand) in segments {
            self.prepare_for(segment, Some(demand));
        }
    }

    /// Demands on an object that will never come.
    pub(super) fn forget_demands(&mut self, object: ObjectId) {
        self.requests.demands.retain(|demand| demand.run.object != object);
    }
}

impl Input {
    /// A demand for one run, for callers that have it in parts.
    pub fn demand(run: Run, size: u64) -> Input {
        Input::Demand { wanted: Wanted { run, size, position: 0 } }
    }
}
