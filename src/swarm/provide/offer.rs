//! Offers to neighbours: to whom, and which runs.

use crate::chunk::{BLOCK, BLOCKS_PER_CHUNK, BlockId, ChunkId, Run};
use crate::swarm::bits::Bits;
use crate::swarm::link::{Link, Offer};
use crate::swarm::policy::WHOLE;
use crate::swarm::{LinkId, Node};
use crate::wire::frame::{Frame, WANTED};

impl Node {
    /// Makes offers as long as slots are free and somebody wants what is here.
    pub(in crate::swarm) fn fill(&mut self) {
        if self.me.origin {
            self.prepare_owed();
        }
        let limit = if self.me.origin {
            self.policy.origin_uploads(self.gossip.rate()) + self.policy.origin_ahead
        } else {
            self.policy.uploads + self.policy.ahead(self.gossip.rate())
        };
        let limit = self.policy.most_queued(limit) * WHOLE;
        loop {
            let now = self.now;
            let open = |link: &Link| {
                link.greeted && link.known && !link.origin && !link.window.is_empty() && !link.is_deaf(now)
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
            let per_link = (self.policy.per_link(self.gossip.rate()) * WHOLE).max(limit.div_ceil(takers));
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
    pub(in crate::swarm) fn weight(&self, run: Run) -> usize {
        let size = self.sizes.get(&run.object).copied().unwrap_or(u64::MAX);
        let start = run.first as u64 * BLOCK as u64;
        let bytes = size.saturating_sub(start).min(run.count as u64 * BLOCK as u64);
        self.policy.weight(bytes, self.policy.upload_rate(self.gossip.rate()))
    }

    /// The neighbour that has least, and what to offer it: what it misses first, then some of the rest at random.
    pub(super) fn pick(&mut self, per_link: usize) -> Option<(LinkId, Vec<Run>)> {
        let mut best: Option<(u64, u32, LinkId)> = None;
        let rear = self.rear();
        for (id, link) in &self.links {
            let is_behind = rear.is_some_and(|rear| link.progress() < rear);
            let per_link = if is_behind { per_link + WHOLE } else { per_link };
            let open = link.greeted && link.known && !link.origin && link.room > 0 && !link.is_deaf(self.now);
            if !open || link.queue() >= per_link || link.window.is_empty() {
                continue;
            }
            // In steps of 256 KiB, ties at random: maps are late, and all would push at the same laggard.
            let progress = if self.policy.herd { link.position } else { link.progress() / 8 };
            let progress = if self.is_outside(link.addr) { progress + self.policy.crossing } else { progress };
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
    pub(in crate::swarm) fn offerable(&self, chunk: ChunkId) -> Bits {
        self.store.taken(chunk).minus(&self.requests.uncertain(chunk))
    }

    pub(super) fn candidates(&mut self, id: LinkId) -> Vec<Run> {
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
        let sample = self.policy.alternatives.min(rest.len());
        for index in 0..sample {
            let other = self.rng.usize(index..rest.len());
            rest.swap(index, other);
        }
        let mut sampled: Vec<(u32, Run)> = rest[..sample]
            .iter()
            .map(|run| {
                let block = BlockId { object: run.object, index: run.first };
                let copies = self.provide.copies.of(block.chunk(), block.index % BLOCKS_PER_CHUNK);
                // Of two equally rare, the one that is here goes before the one still arriving.
                (copies * 4 + !self.store.has(block) as u32, *run)
            })
            .collect();
        sampled.sort_by_key(|(rank, _)| *rank);
        urgent.extend(sampled.into_iter().map(|(_, run)| run));
        urgent.truncate(self.policy.alternatives);
        urgent
    }
}
