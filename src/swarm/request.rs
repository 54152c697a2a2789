//! What this node wants, and from whom it takes it.
//!
//! Readers hand down windows; neighbours offer out of them and this node accepts. Only what no offer will bring soon is
//! pulled: a random reader's block, the very first block, and blocks that every neighbour lacks.

use std::collections::{BTreeMap, VecDeque};

use super::bits::Bits;
use super::keep::Chunk;
use super::link::by_chunk;
use super::policy::WHOLE;
use super::{LinkId, Node, Output, Policy, ReaderId, Table, Time, Wanted};
use crate::chunk::{BLOCKS_PER_CHUNK, BLOCKS_PER_SEGMENT, BlockId, ChunkId, Run, SegmentId, blocks_of};
use crate::wire::frame::{Frame, Refusal, WANTED};

mod arrive;
mod pull;
mod window;

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
    sure: Sure,
    /// How many downloads began before it.
    number: u64,
}

/// When a transfer is counted on, and told and offered on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sure {
    /// When it was accepted: whoever offered it is known to bring what it promises.
    Accepted,
    /// When its first bytes came: it was asked for without an answer, or a stranger promised it.
    Begun,
    /// When who promised it brought a good block: it is a stranger, and this node is wary of them.
    Vouched,
}

impl Download {
    fn is_uncertain(&self) -> bool {
        match self.sure {
            Sure::Accepted => false,
            Sure::Begun => !self.started,
            Sure::Vouched => true,
        }
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
    /// Pieces at no neighbour that an origin was asked for since this node last looked whether its neighbours are of use.
    pub(super) left_out: u32,
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
        let downloads = policy.most_accepted() * WHOLE + 2 * policy.pulls;
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

    /// Blocks of a chunk that may not come although they are awaited: they were asked for without an answer yet, promised
    /// by a stranger among liars, or lost before. They must not be told or offered to others: if all who ask for a block
    /// say that it comes, everybody thinks that the others have it, and its source sends it to nobody.
    pub fn uncertain(&self, chunk: ChunkId) -> Bits {
        let asked = self.downloads.iter().filter(|d| d.is_uncertain());
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
            brings && !d.is_uncertain() && (d.number < begun || trusted(d.link))
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
    pub(super) fn on_offer(&mut self, id: LinkId, offer: u32, runs: Vec<Run>) {
        // The number of a transfer that is under way would be two transfers at once.
        if self.requests.downloads.iter().any(|download| download.link == id && download.transfer == offer) {
            return self.refuse_peer(id);
        }
        let most = self.policy.accepted(self.gossip.best_rate());
        // A stranger may offer and never send: it holds one place, not all of them.
        let owed = self.requests.downloads.iter().filter(|d| d.link == id && d.transfer & WANTED == 0).count();
        if self.links.get(&id).is_some_and(|link| owed >= link.allowance()) {
            return self.send(id, Frame::Decline { id: offer, reason: Refusal::NotNeeded });
        }
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
            let rank = if urgent { 0 } else { 1 + self.provide.copies.of(chunk, first) };
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
        let unknown = self.links.get(&link).is_none_or(|link| link.is_unknown());
        let sure = match unknown {
            true if self.is_wary() => Sure::Vouched,
            false if transfer & WANTED == 0 => Sure::Accepted,
            _ => Sure::Begun,
        };
        if sure == Sure::Accepted {
            self.tell_awaited(run);
        }
        let now = self.now;
        let number = self.requests.begun;
        self.requests.begun += 1;
        let weight = self.weight(run);
        let (began, last, advanced, started) = (now, now, now, false);
        let download = Download { link, transfer, run, weight, began, last, advanced, started, sure, number };
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
}
