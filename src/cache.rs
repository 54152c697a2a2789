//! The chunk cache: verified blocks in memory, shared between the event loop that fills it and the threads that read.
//!
//! It holds what it is told to hold and drops what it is told to drop: which chunks those are, and that their sum stays
//! inside the byte budget, the swarm's `Node` decides. The invariant kept here: a byte can be read only after its block
//! was checked against a header that the origin signed.

use std::collections::HashMap;
use std::ops::{Deref, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, RwLock};

use crate::chunk::{BLOCK, BLOCKS_PER_SEGMENT, ChunkId, SEGMENT, SEGMENTS_PER_CHUNK, SegmentId};
use crate::wire::header::SegmentHeader;

mod extent;

pub use extent::Filling;
use extent::{Extent, Pool};

/// All segments that a node has something of.
#[derive(Default)]
pub struct Cache {
    segments: RwLock<HashMap<SegmentId, Arc<Segment>>>,
    pool: Arc<Pool>,
}

/// One segment: its header and those of its blocks that are here.
pub struct Segment {
    header: SegmentHeader,
    /// Absent while only zero blocks are here: they take no memory.
    extent: OnceLock<Extent>,
    /// Bit i: block i may be read. Set with release order after its bytes were written and checked.
    readable: AtomicU64,
    filling: Filling,
    pool: Arc<Pool>,
}

/// Verified bytes of one segment, which stay in memory while this is held.
pub struct Slice {
    segment: Arc<Segment>,
    range: Range<usize>,
}

/// What a segment without memory reads as; never written, so it takes none itself.
static ZEROS: [u8; SEGMENT as usize] = [0; SEGMENT as usize];

impl Cache {
    /// Makes room for a segment whose header was opened with the tree's key; one already here stays as it is. Its zero
    /// blocks can be read at once. `filling` says how its other blocks will come.
    pub fn admit(&self, header: SegmentHeader, filling: Filling) -> Arc<Segment> {
        let mut segments = self.segments.write().expect("no holder of this lock panics");
        let entry = segments.entry(header.segment());
        entry.or_insert_with(|| Arc::new(Segment::new(header, filling, self.pool.clone()))).clone()
    }

    pub fn segment(&self, id: SegmentId) -> Option<Arc<Segment>> {
        self.segments.read().expect("no holder of this lock panics").get(&id).cloned()
    }

    /// Forgets a chunk. Slices of it that are still held keep their memory until they are dropped.
    pub fn drop_chunk(&self, chunk: ChunkId) {
        let mut segments = self.segments.write().expect("no holder of this lock panics");
        for index in 0..SEGMENTS_PER_CHUNK {
            segments.remove(&SegmentId { object: chunk.object, index: chunk.index * SEGMENTS_PER_CHUNK + index });
        }
    }

    /// Bytes `range` of segment `id`, if all their blocks are here. Never waits.
    pub fn read(&self, id: SegmentId, range: Range<u32>) -> Option<Slice> {
        let segment = self.segment(id)?;
        let readable = segment.can_read(&range);
        readable.then(|| Slice { segment, range: range.start as usize..range.end as usize })
    }
}

impl Segment {
    fn new(header: SegmentHeader, filling: Filling, pool: Arc<Pool>) -> Segment {
        let readable = AtomicU64::new(header.zero());
        let full = header.zero() == 0 && header.blocks() == BLOCKS_PER_SEGMENT;
        let filling = if full { filling } else { Filling::Part };
        Segment { header, extent: OnceLock::new(), readable, filling, pool }
    }

    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Bit i: block i may be read.
    pub fn readable(&self) -> u64 {
        self.readable.load(Ordering::Acquire)
    }

    fn can_read(&self, range: &Range<u32>) -> bool {
        if range.start >= range.end || range.end > self.header.len() {
            return false;
        }
        let (first, last) = (range.start / BLOCK, (range.end - 1) / BLOCK);
        let mask = (u64::MAX << first) & (u64::MAX >> (BLOCKS_PER_SEGMENT - 1 - last));
        self.readable() & mask == mask
    }

    /// Takes a whole block, and says whether it is what the origin signed. A block that is here already stays. Only the event loop calls this, so no block is ever written by two at once.
    pub fn fill(&self, block: u32, bytes: &[u8]) -> std::io::Result<bool> {
        if self.readable() >> block & 1 == 1 {
            return Ok(true);
        }
        if !self.header.matches(block, bytes) {
            return Ok(false);
        }
        self.keep(block, bytes)?;
        Ok(true)
    }

    /// Takes the bytes that the header was made of, or that were compared with it: an origin's own, hashed already.
    pub fn fill_own(&self, bytes: &[u8]) -> std::io::Result<()> {
        assert_eq!(bytes.len() as u32, self.header.len(), "the bytes that the header was made of");
        for (block, bytes) in bytes.chunks(BLOCK as usize).enumerate() {
            if self.readable() >> block & 1 == 0 {
                self.keep(block as u32, bytes)?;
            }
        }
        Ok(())
    }

    /// Copies a checked block that is not readable yet, and lets it be read.
    fn keep(&self, block: u32, bytes: &[u8]) -> std::io::Result<()> {
        let extent = match self.extent.get() {
            Some(extent) => extent,
            None => {
                let fresh = self.pool.take(self.filling)?;
                self.extent.get_or_init(|| fresh)
            }
        };
        // SAFETY: the block is not readable yet, so no slice of it exists, and the event loop is the only writer.
        unsafe { extent.write((block * BLOCK) as usize, bytes) };
        self.readable.fetch_or(1 << block, Ordering::Release);
        Ok(())
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self.segment.extent.get() {
            // SAFETY: `Cache::read` saw the blocks of this range readable, and a readable block is never written again.
            Some(extent) => unsafe { extent.slice(self.range.start, self.range.len()) },
            None => &ZEROS[..self.range.len()],
        }
    }
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ObjectId;
    use crate::keys::OriginKey;

    fn segment_of(bytes: &[u8]) -> SegmentHeader {
        let id = SegmentId { object: ObjectId([1; 16]), index: 0 };
        SegmentHeader::sign(id, bytes, &OriginKey::from_seed(&[1; 32]))
    }

    /// Two blocks of ones around a block of zeros.
    fn bytes() -> Vec<u8> {
        let mut bytes = vec![1; 3 * BLOCK as usize];
        bytes[BLOCK as usize..2 * BLOCK as usize].fill(0);
        bytes
    }

    #[test]
    fn only_what_was_verified_can_be_read() {
        let bytes = bytes();
        let cache = Cache::default();
        let header = segment_of(&bytes);
        let id = header.segment();
        let segment = cache.admit(header, Filling::Whole);
        let zeros = cache.read(id, BLOCK..2 * BLOCK).expect("zero blocks are here with the header");
        assert!(cache.read(id, 0..1).is_none());
        assert!(!segment.fill(0, &bytes[BLOCK as usize..2 * BLOCK as usize]).unwrap());
        assert!(cache.read(id, 0..1).is_none(), "a wrong block is not kept");
        assert!(segment.fill(0, &bytes[..BLOCK as usize]).unwrap());
        assert_eq!(&*cache.read(id, 10..2 * BLOCK).unwrap(), &bytes[10..2 * BLOCK as usize]);
        assert!(cache.read(id, 10..2 * BLOCK + 1).is_none());
        assert!(cache.read(id, 0..3 * BLOCK + 1).is_none(), "nothing lies beyond the end");
        assert!(zeros.iter().all(|byte| *byte == 0), "a slice taken before there was memory stays right");
    }

    #[test]
    fn a_slice_outlives_its_chunk() {
        let bytes = vec![7; SEGMENT as usize];
        let cache = Cache::default();
        let header = segment_of(&bytes);
        let id = header.segment();
        let segment = cache.admit(header, Filling::Whole);
        for (index, block) in bytes.chunks(BLOCK as usize).enumerate() {
            assert!(segment.fill(index as u32, block).unwrap());
        }
        drop(segment);
        let slice = cache.read(id, 0..SEGMENT).unwrap();
        cache.drop_chunk(id.chunk());
        assert!(cache.segment(id).is_none());
        assert_eq!(&*slice, &bytes[..]);
    }
}
