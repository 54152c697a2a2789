//! An origin puts each piece in once: the lowest that nobody has or awaits.

use std::collections::BTreeMap;

use super::PREPARING;
use crate::chunk::{BLOCKS_PER_CHUNK, BLOCKS_PER_SEGMENT, BlockId, ChunkId, Run, SegmentId, blocks_of};
use crate::swarm::bits::Bits;
use crate::swarm::link::{Link, by_chunk};
use crate::swarm::{LinkId, Node};

/// What an origin gave to neighbours and did not send yet.
#[derive(Default)]
pub(super) struct Given {
    blocks: BTreeMap<ChunkId, Bits>,
    /// Another origin sends, too: neighbours may have what this one never sent.
    by_others: bool,
}

impl Node {
    /// What readers receive.
    pub(super) fn median_rate(&self) -> u64 {
        self.median(|link| link.rate)
    }

    /// An origin's choice: the lowest blocks that nobody has or awaits, to the neighbour with the fewest transfers.
    pub(super) fn pick_first_copy(&mut self, per_link: usize) -> Option<(LinkId, Vec<Run>)> {
        let piece = self.policy.piece(self.policy.upload_rate(self.gossip.rate()));
        let median = self.median_rate();
        let mut best: Option<(u64, usize, u32, LinkId, Run)> = None;
        let mut unread: Option<(u64, SegmentId)> = None;
        let given = self.given();
        for (id, link) in &self.links {
            let open = link.greeted && link.known && !link.origin && !link.is_deaf(self.now) && link.room > 0;
            if !open || link.offered() >= per_link {
                continue;
            }
            // First copies go to who can pass them on: not to one at under half of what the others do.
            if link.is_slow(median) {
                continue;
            }
            let Some((distance, run)) = self.first_unsent(link, piece, &given) else { continue };
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
    pub(super) fn first_unsent(&self, link: &Link, piece: u32, given: &Given) -> Option<(u64, Run)> {
        let mut distance = 0;
        for run in &link.window {
            let Some(blocks) = self.sizes.get(&run.object).map(|size| blocks_of(*size)) else {
                distance += run.count as u64;
                continue;
            };
            for (chunk, range) in by_chunk(*run) {
                let start = chunk.first_block();
                let mine = range.minus(&link.taken(chunk)).and(&Bits::range(0, blocks.saturating_sub(start)));
                let unsent = mine.minus(&self.provide.copies.any(chunk).and(&self.may_be_held(chunk, given)));
                if let Some(block) = unsent.first_from(0) {
                    // Zeros cost nothing to send: the piece grows over them, to the segment's end.
                    let segment_end = (block / BLOCKS_PER_SEGMENT + 1) * BLOCKS_PER_SEGMENT;
                    let held = self.store.get(chunk);
                    let (mut end, mut sent) = (block, 0);
                    while end < segment_end && unsent.get(end) && sent < piece {
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

    /// What neighbours were offered or are being sent.
    pub(super) fn given(&self) -> Given {
        let by_others = self.links.keys().any(|id| self.is_proven(*id));
        let mut given = Given { by_others, ..Given::default() };
        for link in self.links.values() {
            let offered = link.offers.iter().flat_map(|offer| offer.runs.iter());
            for run in offered.chain(link.uploads.iter().map(|upload| &upload.run)) {
                for (chunk, bits) in by_chunk(*run) {
                    let all = given.blocks.entry(chunk).or_default();
                    *all = all.or(&bits);
                }
            }
        }
        given
    }

    /// What somebody can have of a chunk: what left this origin, or is about to. Whoever claims more has it from an earlier
    /// life of this origin, or lies; that is sent once more rather than believed.
    pub(super) fn may_be_held(&self, chunk: ChunkId, given: &Given) -> Bits {
        if given.by_others {
            return Bits::range(0, BLOCKS_PER_CHUNK);
        }
        self.provide.out(chunk).or(&given.blocks.get(&chunk).copied().unwrap_or_default())
    }

    /// Has the segments after a run read before they are due.
    pub(super) fn read_ahead(&mut self, id: LinkId, run: Run) {
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
}
