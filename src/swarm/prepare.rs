//! An origin's reading: which segments are read, hashed and signed, and when; what cannot be read; which objects the tree
//! has. A node that has no tree never prepares anything.

use super::provide::{FAILED, MAX_FAILED, PREPARING};
use super::{LinkId, Node, Output, PrepareError};
use crate::chunk::{BLOCKS_PER_SEGMENT, BlockId, ObjectId, Run, SEGMENTS_PER_CHUNK, SegmentId, blocks_of};
use crate::wire::frame::{Frame, GoneReason};

impl Node {
    /// Has a segment read, hashed and signed, unless it is here or being read.
    pub(super) fn prepare(&mut self, segment: SegmentId) {
        self.prepare_for(segment, None);
    }

    /// The same for one of this node's own demands.
    pub(super) fn prepare_for(&mut self, segment: SegmentId, demand: Option<usize>) {
        let known = self.store.has_header(segment)
            || self.provide.preparing.contains(&segment)
            || self.provide.failed.contains_key(&segment.object)
            || self.provide.later.get(&segment).is_some_and(|at| self.now < *at);
        if known || self.provide.preparing.len() >= PREPARING {
            return;
        }
        let Some(blocks) = self.sizes.get(&segment.object).map(|size| blocks_of(*size)) else { return };
        let count = blocks.saturating_sub(segment.first_block()).min(BLOCKS_PER_SEGMENT);
        if count == 0 {
            return;
        }
        let all = u64::MAX >> (BLOCKS_PER_SEGMENT - count);
        if self.reserve(
            segment,
            all & !self.store.taken(segment.chunk()).segment(segment.index % SEGMENTS_PER_CHUNK),
            Some(count),
            demand,
        ) {
            self.provide.later.remove(&segment);
            self.provide.preparing.insert(segment);
            self.read_segment(segment);
        }
    }

    /// Has read what was promised already: headers waited for, and uploads that were accepted or asked for.
    pub(super) fn prepare_owed(&mut self) {
        let mut owed: Vec<SegmentId> = Vec::new();
        for link in self.links.values() {
            owed.extend(&link.header_waits);
            let next = link.uploads.iter().map(|upload| BlockId { object: upload.run.object, index: upload.next });
            owed.extend(next.filter(|block| !self.store.has(*block)).map(BlockId::segment));
        }
        for segment in owed {
            if self.provide.preparing.len() >= PREPARING {
                return;
            }
            self.prepare(segment);
        }
    }

    pub(super) fn on_prepared(&mut self, segment: SegmentId, zero: u64) {
        self.provide.preparing.remove(&segment);
        if self.store.header(segment, zero).is_none() {
            return self.out.push_back(Output::Drop { chunk: segment.chunk() });
        }
        let blocks = self.sizes.get(&segment.object).map_or(0, |size| blocks_of(*size));
        for index in segment.first_block()..(segment.first_block() + BLOCKS_PER_SEGMENT).min(blocks) {
            self.store.fill(BlockId { object: segment.object, index });
        }
        self.answer_header_waits(segment);
        self.wake_uploads(segment.chunk());
        self.refill = true;
    }

    pub(super) fn on_prepare_failed(&mut self, segment: SegmentId, reason: PrepareError) {
        self.provide.preparing.remove(&segment);
        let index = segment.index % SEGMENTS_PER_CHUNK;
        let taken = self.store.taken(segment.chunk()).segment(index);
        self.store.release(segment, taken);
        match reason {
            PrepareError::Later { after_us } => {
                if self.provide.later.len() >= MAX_FAILED {
                    self.provide.later.pop_first();
                }
                self.provide.later.insert(segment, self.now.plus(after_us));
            }
            PrepareError::Gone(reason) => {
                if self.provide.failed.len() >= MAX_FAILED {
                    self.provide.failed.pop_first();
                }
                self.provide.failed.insert(segment.object, (reason, self.now));
                self.refuse_header_waits(|waits| waits.object == segment.object);
                self.forget_demands(segment.object);
                if self.replica.is_some() {
                    self.refuse_object(segment.object);
                }
                let ids: Vec<LinkId> = self.links.keys().copied().filter(|_| self.replica.is_none()).collect();
                for id in ids {
                    let Some(link) = self.links.get_mut(&id) else { continue };
                    let concerned = link.window.iter().any(|run| run.object == segment.object)
                        || link.uploads.iter().any(|upload| upload.run.object == segment.object);
                    link.window.retain(|run| run.object != segment.object);
                    link.uploads.retain(|upload| upload.run.object != segment.object);
                    link.offers.retain(|offer| offer.runs.iter().all(|run| run.object != segment.object));
                    if concerned {
                        self.send(id, Frame::Gone { object: segment.object, reason });
                    }
                }
                self.out.push_back(Output::Gone { object: segment.object, reason });
            }
        }
        self.refill = true;
    }

    /// Asks for the sizes of objects in a neighbour's window that are not known yet.
    pub(super) fn resolve(&mut self, window: &[Run]) {
        self.forget_sizes();
        for run in window {
            self.resolve_object(run.object);
        }
    }

    pub(super) fn resolve_object(&mut self, object: ObjectId) {
        let known = self.sizes.contains_key(&object) || self.provide.failed.contains_key(&object);
        if !known && self.provide.resolving.insert(object) {
            self.out.push_back(Output::Resolve { object });
        }
    }

    pub(super) fn on_resolved(&mut self, object: ObjectId, size: Option<u64>) {
        self.provide.resolving.remove(&object);
        match size {
            Some(size) => {
                self.sizes.insert(object, size);
                self.refill = true;
                self.prepare_owed();
            }
            None => {
                self.refuse_header_waits(|waits| waits.object == object);
                let gone = self.replica.is_none();
                let wanting = |link: &super::Link| gone && link.window.iter().any(|run| run.object == object);
                let ids: Vec<LinkId> = self.links.iter().filter(|(_, link)| wanting(link)).map(|(id, _)| *id).collect();
                for id in ids {
                    self.send(id, Frame::Gone { object, reason: GoneReason::Replaced });
                }
            }
        }
        let (now, later) =
            std::mem::take(&mut self.provide.parked).into_iter().partition(|(.., run)| run.object == object);
        self.provide.parked = later;
        let now: Vec<(LinkId, u32, bool, Run)> = now;
        for (id, transfer, starving, run) in now {
            match size {
                Some(_) => self.on_want(id, transfer, starving, run),
                None => {
                    self.send(id, Frame::Abort { transfer });
                    if self.replica.is_none() {
                        self.send(id, Frame::Gone { object, reason: GoneReason::Replaced });
                    }
                }
            }
        }
    }

    /// What could not be read may be tried again.
    pub(super) fn forget_failures(&mut self) {
        let now = self.now;
        self.provide.failed.retain(|_, (_, since)| now.since(*since) < FAILED);
        self.provide.later.retain(|_, at| now < *at);
    }
}
