//! How many neighbours have or await each block of the chunks that they tell of.
//!
//! A peer tells of thousands of chunks in one frame, so all blocks of a chunk are counted at once: of each count, the
//! bits of one value lie together as one set.

use std::collections::BTreeMap;

use super::Table;
use super::bits::Bits;
use crate::chunk::ChunkId;

/// Chunks whose copies are counted. A peer can name as many as it likes; those beyond count as if nobody had them.
const MAX_CHUNKS: usize = 8192;
/// Sets of bits for them, 2 MiB: four for each are enough for 15 neighbours that have all of them.
const MAX_PLANES: usize = 4 * MAX_CHUNKS;

#[derive(Default)]
pub struct Copies {
    /// The counts' bits, those that count one first. The last set of each is not empty.
    chunks: BTreeMap<ChunkId, Vec<Bits>>,
    planes: usize,
}

impl Copies {
    pub fn tables(&self) -> [Table; 2] {
        [
            Table::new("chunks counted", self.chunks.len(), MAX_CHUNKS),
            Table::new("sets of counts", self.planes, MAX_PLANES),
        ]
    }

    /// One neighbour more has these blocks, unless there is no room to count that.
    pub fn count(&mut self, chunk: ChunkId, bits: Bits) {
        let full = self.planes >= MAX_PLANES;
        if bits.is_empty() || ((full || self.chunks.len() >= MAX_CHUNKS) && !self.chunks.contains_key(&chunk)) {
            return;
        }
        let planes = self.chunks.entry(chunk).or_default();
        if full && !planes.iter().fold(bits, |carry, plane| carry.and(plane)).is_empty() {
            return;
        }
        let mut carry = bits;
        for plane in planes.iter_mut() {
            (*plane, carry) = (plane.xor(&carry), plane.and(&carry));
            if carry.is_empty() {
                return;
            }
        }
        planes.push(carry);
        self.planes += 1;
    }

    /// One neighbour less has them. What was not counted when there was no room is not missed now: a count is never too
    /// high.
    pub fn uncount(&mut self, chunk: ChunkId, bits: Bits) {
        let Some(planes) = self.chunks.get_mut(&chunk) else { return };
        let mut borrow = bits.and(&any(planes));
        for plane in planes.iter_mut() {
            if borrow.is_empty() {
                return;
            }
            (*plane, borrow) = (plane.xor(&borrow), borrow.minus(plane));
        }
        while planes.last().is_some_and(Bits::is_empty) {
            planes.pop();
            self.planes -= 1;
        }
        if planes.is_empty() {
            self.chunks.remove(&chunk);
        }
    }

    pub fn uncount_all(&mut self, taken: &BTreeMap<ChunkId, Bits>) {
        taken.iter().for_each(|(chunk, bits)| self.uncount(*chunk, *bits));
    }

    /// The blocks of a chunk that any neighbour has or awaits.
    pub fn any(&self, chunk: ChunkId) -> Bits {
        self.chunks.get(&chunk).map_or(Bits::EMPTY, |planes| any(planes))
    }

    /// Neighbours that have or await a block.
    pub fn of(&self, chunk: ChunkId, block: u32) -> u32 {
        let Some(planes) = self.chunks.get(&chunk) else { return 0 };
        planes.iter().rev().fold(0, |count, plane| count << 1 | u32::from(plane.get(block)))
    }
}

fn any(planes: &[Bits]) -> Bits {
    planes.iter().fold(Bits::EMPTY, |any, plane| any.or(plane))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chunk::{BLOCKS_PER_CHUNK, ObjectId};

    fn chunk(index: u32) -> ChunkId {
        ChunkId { object: ObjectId([1; 16]), index }
    }

    proptest! {
        #[test]
        fn counts_are_those_of_each_block_counted_by_itself(
            steps in prop::collection::vec((prop::bool::ANY, 0u32..3, 0u32..500, 1u32..300), 0..60),
        ) {
            let mut copies = Copies::default();
            let mut plain = vec![[0u32; BLOCKS_PER_CHUNK as usize]; 3];
            for (more, index, first, count) in steps {
                let end = (first + count).min(BLOCKS_PER_CHUNK);
                let bits = Bits::range(first, end);
                if more { copies.count(chunk(index), bits) } else { copies.uncount(chunk(index), bits) }
                for count in &mut plain[index as usize][first as usize..end as usize] {
                    *count = if more { *count + 1 } else { count.saturating_sub(1) };
                }
            }
            for (index, plain) in (0..).zip(&plain) {
                for (block, count) in (0..).zip(plain) {
                    prop_assert_eq!(copies.of(chunk(index), block), *count);
                    prop_assert_eq!(copies.any(chunk(index)).get(block), *count > 0);
                }
            }
            prop_assert_eq!(copies.chunks.values().map(Vec::len).sum::<usize>(), copies.planes);
            prop_assert!(copies.chunks.values().all(|planes| planes.last().is_some_and(|last| !last.is_empty())));
        }
    }

    #[test]
    fn what_is_too_much_to_count_is_at_nobody_and_takes_nothing_from_the_rest() {
        let mut copies = Copies::default();
        for index in 0..MAX_CHUNKS as u32 + 100 {
            for neighbours in 0..40 {
                copies.count(chunk(index), Bits::range(0, 1 + neighbours));
            }
        }
        assert!(copies.tables().iter().all(|table| table.len <= table.most), "{:?}", copies.tables());
        let beyond = chunk(MAX_CHUNKS as u32 + 1);
        assert_eq!((copies.of(beyond, 0), copies.of(chunk(0), 0), copies.of(chunk(0), 39)), (0, 40, 1));
        copies.uncount(beyond, Bits::range(0, 1));
        for index in 0..MAX_CHUNKS as u32 + 100 {
            for neighbours in 0..40 {
                copies.uncount(chunk(index), Bits::range(0, 1 + neighbours));
            }
        }
        assert_eq!(copies.tables().map(|table| table.len), [0, 0]);
    }
}
