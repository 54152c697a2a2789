//! Segment headers on their way to neighbours.

use super::HEADER_WAITS;
use crate::chunk::{BLOCKS_PER_SEGMENT, BlockId, SEGMENTS_PER_CHUNK, SegmentId};
use crate::swarm::bits::Bits;
use crate::swarm::{LinkId, Node, Output};
use crate::wire::frame::Frame;

impl Node {
    pub(in crate::swarm) fn on_get_header(&mut self, id: LinkId, segment: SegmentId) {
        if self.store.has_header(segment) {
            return self.send_header(id, segment);
        }
        let index = segment.index % SEGMENTS_PER_CHUNK;
        let coming = self.store.taken(segment.chunk()).segment(index) != 0;
        let readable = self.me.origin && !self.provide.failed.contains_key(&segment.object);
        let signs = self.signs_heads();
        let Some(link) = self.links.get_mut(&id) else { return };
        // A replica asks before it reads. Only who signs may let it wait: another replica would ask it in turn, and a reader
        // may await the header from that very replica.
        let answers = signs || !link.origin;
        if (coming || readable) && answers && link.header_waits.len() < HEADER_WAITS {
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
    pub(in crate::swarm) fn refuse_header_waits(&mut self, gone: impl Fn(SegmentId) -> bool) {
        let mut refused = Vec::new();
        for (id, link) in &mut self.links {
            refused.extend(link.header_waits.extract_if(.., |segment| gone(*segment)).map(|segment| (*id, segment)));
        }
        for (id, segment) in refused {
            self.send(id, Frame::NoHeader(segment));
        }
    }

    /// Whether anything of a segment is here or awaited.
    pub(in crate::swarm) fn has_some(&self, segment: SegmentId) -> bool {
        self.store.taken(segment.chunk()).segment(segment.index % SEGMENTS_PER_CHUNK) != 0
    }

    pub(super) fn send_header(&mut self, id: LinkId, segment: SegmentId) {
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
        if self.me.origin {
            self.provide.note_out(segment.chunk(), bits);
        }
        self.note_taken_bits(id, segment.chunk(), bits);
    }

    pub(in crate::swarm) fn answer_header_waits(&mut self, segment: SegmentId) {
        let waiting: Vec<LinkId> =
            self.links.iter().filter(|(_, link)| link.header_waits.contains(&segment)).map(|(id, _)| *id).collect();
        for id in waiting {
            if let Some(link) = self.links.get_mut(&id) {
                link.header_waits.retain(|waits| *waits != segment);
            }
            self.send_header(id, segment);
        }
    }
}
