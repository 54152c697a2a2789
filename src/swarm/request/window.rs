//! What readers want: their windows woven into one, and what they wait for now.

use std::collections::BTreeSet;

use super::{Demand, Download, MAX_DEMANDS};
use crate::chunk::{BLOCKS_PER_SEGMENT, BlockId, ChunkId, ObjectId, Run};
use crate::swarm::link::by_chunk;
use crate::swarm::provide::MAX_SIZES;
use crate::swarm::{Input, LinkId, Node, Output, ReaderId, Wanted};
use crate::wire::frame::{GoneReason, MAX_WINDOW};

impl Node {
    pub(in crate::swarm) fn on_window(&mut self, reader: ReaderId, window: Vec<Wanted>) {
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
    pub(in crate::swarm) fn forget_sizes(&mut self) {
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
    pub(super) fn rebuild_window(&mut self) {
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
    pub(super) fn trim_window(&mut self) {
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

    pub(in crate::swarm) fn on_demand(&mut self, wanted: Wanted) {
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
    pub(in crate::swarm) fn on_undemand(&mut self, run: Run) {
        if let Some(index) = self.requests.demands.iter().position(|demand| demand.run == run) {
            self.requests.demands.remove(index);
        }
    }

    /// Only an origin can say that nobody will have an object again.
    pub(in crate::swarm) fn on_gone(&mut self, id: LinkId, object: ObjectId, reason: GoneReason) {
        if !self.is_proven(id) {
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

    /// Demands on an object that will never come.
    pub(in crate::swarm) fn forget_demands(&mut self, object: ObjectId) {
        self.requests.demands.retain(|demand| demand.run.object != object);
    }
}

impl Input {
    /// A demand for one run, for callers that have it in parts.
    pub fn demand(run: Run, size: u64) -> Input {
        Input::Demand { wanted: Wanted { run, size, position: 0 } }
    }
}
