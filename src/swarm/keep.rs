//! What is held, what is awaited, and what goes to make room: whole chunks, the longest unused first.
//!
//! The invariant: `reserved` counts every block that is or may come to be in memory, and never exceeds the budget.
//! Blocks of zeros count nothing once their segment's header is here.

use lru::LruCache;

use super::bits::Bits;
use crate::chunk::{BLOCKS_PER_CHUNK, BLOCKS_PER_SEGMENT, BlockId, ChunkId, SEGMENTS_PER_CHUNK, SegmentId};

/// What is known of one chunk here.
#[derive(Clone, Debug, Default)]
pub struct Chunk {
    /// Blocks that can be read, zeros among them.
    pub have: Bits,
    /// Those, and the ones on their way.
    pub taken: Bits,
    zero: Bits,
    /// Bit i: the header of segment i is here.
    headers: u8,
    /// Blocks reserved for each segment.
    reserved: [u8; SEGMENTS_PER_CHUNK as usize],
    /// Bit i: all of segment i was reserved at once.
    whole: u8,
}

pub struct Store {
    chunks: LruCache<ChunkId, Chunk>,
    reserved: u32,
    budget: u32,
}

impl Store {
    pub fn new(budget: u32) -> Store {
        Store { chunks: LruCache::unbounded(), reserved: 0, budget }
    }

    pub fn reserved(&self) -> u32 {
        self.reserved
    }

    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    pub fn get(&self, chunk: ChunkId) -> Option<&Chunk> {
        self.chunks.peek(&chunk)
    }

    pub fn taken(&self, chunk: ChunkId) -> Bits {
        self.get(chunk).map_or(Bits::EMPTY, |held| held.taken)
    }

    pub fn has(&self, block: BlockId) -> bool {
        self.get(block.chunk()).is_some_and(|held| held.have.get(block.index % BLOCKS_PER_CHUNK))
    }

    pub fn is_taken(&self, block: BlockId) -> bool {
        self.get(block.chunk()).is_some_and(|held| held.taken.get(block.index % BLOCKS_PER_CHUNK))
    }

    pub fn is_zero(&self, block: BlockId) -> bool {
        self.get(block.chunk()).is_some_and(|held| held.zero.get(block.index % BLOCKS_PER_CHUNK))
    }

    pub fn has_header(&self, segment: SegmentId) -> bool {
        self.get(segment.chunk()).is_some_and(|held| held.headers >> (segment.index % SEGMENTS_PER_CHUNK) & 1 == 1)
    }

    pub fn is_whole(&self, segment: SegmentId) -> bool {
        self.get(segment.chunk()).is_some_and(|held| held.whole >> (segment.index % SEGMENTS_PER_CHUNK) & 1 == 1)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ChunkId, &Chunk)> {
        self.chunks.iter()
    }

    /// The chunk is of use: it moves to the end of the queue of those that may go.
    pub fn touch(&mut self, chunk: ChunkId) {
        self.chunks.promote(&chunk);
    }

    /// Reserves memory for blocks of one segment (bit i of `blocks`, none of them taken) and marks them as awaited. If
    /// the segment is `whole`, of so many blocks, all of it is reserved at once. False, and nothing changed, if there is
    /// no room even after `evict` was asked for chunks to drop.
    pub fn reserve(
        &mut self,
        segment: SegmentId,
        blocks: u64,
        whole: Option<u32>,
        mut may_go: impl FnMut(&ChunkId) -> bool,
        dropped: &mut Vec<(ChunkId, Chunk)>,
    ) -> bool {
        let (id, index) = (segment.chunk(), segment.index % SEGMENTS_PER_CHUNK);
        let (zero, taken, before) = match self.get(id) {
            Some(held) => (held.zero.segment(index), held.taken.segment(index), held.reserved[index as usize]),
            None => (0, 0, 0),
        };
        let all = whole.map_or(0, |count| u64::MAX >> (BLOCKS_PER_SEGMENT - count.clamp(1, BLOCKS_PER_SEGMENT)));
        let need = ((taken | blocks | all) & !zero).count_ones() as u8;
        let more = need.saturating_sub(before) as u32;
        // A chunk of zeros takes no block, but it takes a place: else a hole of any size would be remembered whole.
        let new = usize::from(!self.chunks.contains(&id));
        while self.reserved + more > self.budget || self.chunks.len() + new > self.budget as usize {
            let Some(oldest) = self.chunks.iter().rev().map(|(old, _)| *old).find(|old| *old != id && may_go(old))
            else {
                return false;
            };
            dropped.extend(self.remove(oldest).map(|chunk| (oldest, chunk)));
        }
        self.reserved += more;
        let held = self.chunks.get_or_insert_mut(id, Chunk::default);
        held.reserved[index as usize] = before.max(need);
        held.whole |= (whole.is_some() as u8) << index;
        held.taken.set_segment(index, taken | blocks);
        true
    }

    /// Blocks of a segment will not come after all.
    pub fn release(&mut self, segment: SegmentId, blocks: u64) {
        let index = segment.index % SEGMENTS_PER_CHUNK;
        if let Some(held) = self.chunks.peek_mut(&segment.chunk()) {
            let keep = held.taken.segment(index) & !(blocks & !held.have.segment(index));
            held.taken.set_segment(index, keep);
            let need = (keep & !held.zero.segment(index)).count_ones() as u8;
            let reserved = &mut held.reserved[index as usize];
            // What was reserved whole may be one huge page already: it is freed with its chunk.
            if held.whole >> index & 1 == 0 {
                self.reserved -= reserved.saturating_sub(need) as u32;
                *reserved = need.min(*reserved);
            }
        }
    }

    /// A block is here. False if nothing was reserved for it: then it must not be kept.
    pub fn fill(&mut self, block: BlockId) -> bool {
        let index = block.index % BLOCKS_PER_CHUNK;
        match self.chunks.peek_mut(&block.chunk()) {
            Some(held) if held.taken.get(index) => {
                held.have.insert(index);
                true
            }
            _ => false,
        }
    }

    /// A header is here: its zero blocks are, too, and need no memory. The blocks that became taken by it, or none if
    /// the chunk was dropped meanwhile.
    pub fn header(&mut self, segment: SegmentId, zero: u64) -> Option<u64> {
        let index = segment.index % SEGMENTS_PER_CHUNK;
        let held = self.chunks.peek_mut(&segment.chunk())?;
        if held.headers >> index & 1 == 1 {
            // Two neighbours answered: its zeros gave their memory back already.
            return Some(0);
        }
        held.headers |= 1 << index;
        held.zero.set_segment(index, zero);
        let taken = held.taken.segment(index);
        held.taken.set_segment(index, taken | zero);
        held.have.set_segment(index, held.have.segment(index) | zero);
        let reserved = &mut held.reserved[index as usize];
        let spare = if held.whole >> index & 1 == 1 { zero.count_ones() } else { (taken & zero).count_ones() };
        let spare = spare.min(*reserved as u32);
        *reserved -= spare as u8;
        self.reserved -= spare;
        Some(zero & !taken)
    }

    pub fn remove(&mut self, chunk: ChunkId) -> Option<Chunk> {
        let held = self.chunks.pop(&chunk)?;
        self.reserved -= held.reserved.iter().map(|blocks| *blocks as u32).sum::<u32>();
        Some(held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chunk::ObjectId;

    fn segment(index: u32) -> SegmentId {
        SegmentId { object: ObjectId([1; 16]), index }
    }

    #[test]
    fn the_longest_unused_chunk_goes_first_and_protected_ones_stay() {
        let mut store = Store::new(128);
        let mut dropped = Vec::new();
        assert!(store.reserve(segment(0), u64::MAX, None, |_| true, &mut dropped));
        assert!(store.reserve(segment(8), u64::MAX, None, |_| true, &mut dropped));
        store.touch(segment(0).chunk());
        assert!(!store.reserve(segment(16), 1, None, |_| false, &mut dropped));
        assert!(dropped.is_empty());
        assert!(store.reserve(segment(16), 1, None, |_| true, &mut dropped));
        assert_eq!(dropped.iter().map(|(id, _)| id.index).collect::<Vec<_>>(), [1]);
        assert_eq!(store.reserved(), 65);
    }

    #[test]
    fn zero_blocks_take_no_memory() {
        let mut store = Store::new(128);
        let mut dropped = Vec::new();
        assert!(store.reserve(segment(0), 0b1111, Some(64), |_| true, &mut dropped));
        assert_eq!(store.reserved(), 64);
        assert_eq!(store.header(segment(0), !0b11), Some(!0b1111));
        assert_eq!(store.reserved(), 2);
        assert_eq!(store.header(segment(0), !0b11), Some(0), "a second answer changes nothing");
        assert_eq!(store.reserved(), 2);
        assert!(store.has(BlockId { object: ObjectId([1; 16]), index: 63 }));
        assert!(!store.has(BlockId { object: ObjectId([1; 16]), index: 0 }));
    }

    #[test]
    fn chunks_of_zeros_are_no_more_than_the_budget_has_blocks() {
        let mut store = Store::new(128);
        for chunk in 0..1000 {
            let id = segment(chunk * SEGMENTS_PER_CHUNK);
            assert!(store.reserve(id, 1, None, |_| true, &mut Vec::new()));
            store.header(id, u64::MAX);
        }
        assert_eq!((store.reserved(), store.chunks()), (0, 128));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Reserve(u32, u64, bool),
        Release(u32, u64),
        Header(u32, u64),
        Remove(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        let segment = 0u32..32;
        prop_oneof![
            (segment.clone(), any::<u64>(), any::<bool>()).prop_map(|(s, b, w)| Step::Reserve(s, b, w)),
            (segment.clone(), any::<u64>()).prop_map(|(s, b)| Step::Release(s, b)),
            (segment.clone(), any::<u64>()).prop_map(|(s, z)| Step::Header(s, z)),
            segment.prop_map(Step::Remove),
        ]
    }

    proptest! {
        #[test]
        fn the_sum_is_right_and_inside_the_budget(steps in prop::collection::vec(step(), 0..80)) {
            let mut store = Store::new(300);
            for step in steps {
                match step {
                    Step::Reserve(s, blocks, whole) => {
                        let whole = whole.then_some(64);
                        store.reserve(segment(s), blocks, whole, |_| true, &mut Vec::new());
                    }
                    Step::Release(s, blocks) => store.release(segment(s), blocks),
                    Step::Header(s, zero) => drop(store.header(segment(s), zero)),
                    Step::Remove(s) => drop(store.remove(segment(s).chunk())),
                }
                let (mut sum, mut least) = (0, 0);
                for (_, chunk) in store.iter() {
                    sum += chunk.reserved.iter().map(|r| *r as u32).sum::<u32>();
                    least += chunk.taken.minus(&chunk.zero).count();
                }
                prop_assert_eq!(sum, store.reserved());
                prop_assert!(least <= sum && sum <= 300, "{least} taken, {sum} reserved");
            }
        }
    }
}
