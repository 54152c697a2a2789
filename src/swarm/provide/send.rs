//! Uploads under way: whose turn it is, and the next frame.

use super::{FOR_STARVING, LONG_FRAME, MOST_FOR_STARVING, SHORT_FRAME};
use crate::chunk::{BLOCKS_PER_CHUNK, BlockId, ChunkId, Run, SegmentId, block_len};
use crate::swarm::bits::Bits;
use crate::swarm::link::by_chunk;
use crate::swarm::{LinkId, Node, Transmit};
use crate::wire::frame::{Frame, WANTED};

impl Node {
    /// Something of a chunk came in: whoever is to get some of it may go on.
    pub(in crate::swarm) fn wake_uploads(&mut self, chunk: ChunkId) {
        for (id, link) in &self.links {
            if link.uploads.iter().any(|upload| by_chunk(upload.run).any(|(other, _)| other == chunk)) {
                self.ready.insert(*id);
            }
        }
    }

    pub(in crate::swarm) fn wake_block(&mut self, block: BlockId) {
        for (id, link) in &self.links {
            if link.uploads.iter().any(|upload| upload.run.object == block.object && upload.next == block.index) {
                self.ready.insert(*id);
            }
        }
    }

    /// Uploads of blocks that are neither here nor awaited any more end.
    pub(in crate::swarm) fn abort_uploads_without_source(&mut self) {
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
    pub(in crate::swarm) fn free_slot(&mut self, id: LinkId) {
        if self.provide.sending.remove(&id) {
            self.ready.append(&mut self.provide.waiting);
            self.refill = true;
        }
        self.provide.waiting.remove(&id);
    }

    /// Of a link's first transfer that has a block here, so that one which waits for its own source does not hold up the
    /// others.
    pub(super) fn next_frame(&mut self, id: LinkId) -> Option<Transmit> {
        let frame = if self.is_fast() { LONG_FRAME } else { SHORT_FRAME };
        let origin = self.me.origin;
        let mut found = None;
        let (mut ended, mut whole) = (0, false);
        let mut zeros: Vec<SegmentId> = Vec::new();
        let link = self.links.get_mut(&id)?;
        let mut index = 0;
        while let Some(upload) = link.uploads.get_mut(index) {
            let at = |next: u32| BlockId { object: upload.run.object, index: next };
            let begun = upload.has_begun();
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
                    whole = true;
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
                if upload.transfer & WANTED != 0 && !begun {
                    // Nothing but zeros, which the header tells: who asks for it with the first bytes would wait for ever.
                    zeros.push(at(upload.run.first).segment());
                }
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
            if origin && whole {
                let block = transmit.block.index % BLOCKS_PER_CHUNK;
                self.provide.note_out(transmit.block.chunk(), Bits::range(block, block + 1));
            }
            if origin && transmit.transfer & WANTED == 0 {
                for (left, part) in self.provide.for_starving.iter_mut().zip(FOR_STARVING) {
                    *left = (*left + i64::from(transmit.len) / part).min(MOST_FOR_STARVING);
                }
            }
            self.gossip.count_sent(transmit.len as u64);
        }
        for segment in zeros {
            self.send_header(id, segment);
        }
        found
    }
}
