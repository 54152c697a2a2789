//! Sizes, ids and offset arithmetic: what a chunk, a segment and a block are.
//!
//! An object is an immutable run of bytes. It is kept and dropped by chunks of 16 MiB, read, hashed and signed by
//! segments of 2 MiB, and verified, relayed and handed to readers by blocks of 32 KiB. Each of the three is numbered
//! from the object's start; the last of each may be shorter. Nothing here allocates, reads or waits.

use std::fmt;
use std::ops::Range;

/// Bytes in a block: small enough that a relay adds little delay, large enough that its hash costs 0.1 %.
pub const BLOCK: u32 = 32 * 1024;
/// Bytes in a segment: whatever is signed must be read whole before its first byte leaves.
pub const SEGMENT: u32 = 2 * 1024 * 1024;
/// Bytes in a chunk.
pub const CHUNK: u32 = 16 * 1024 * 1024;
pub const BLOCKS_PER_SEGMENT: u32 = SEGMENT / BLOCK;
pub const BLOCKS_PER_CHUNK: u32 = CHUNK / BLOCK;
pub const SEGMENTS_PER_CHUNK: u32 = CHUNK / SEGMENT;
/// Blocks in the largest object: they are numbered in 32 bits, and so is the end of its last chunk.
pub const MAX_BLOCKS: u32 = u32::MAX / BLOCKS_PER_CHUNK * BLOCKS_PER_CHUNK;
/// Bytes in the largest object.
pub const MAX_OBJECT: u64 = MAX_BLOCKS as u64 * BLOCK as u64;

/// Names one version of one file (or, later, one pack of small files).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub [u8; 16]);

impl ObjectId {
    /// The id of a file's version: its path below the tree's root, size in bytes, modification time in nanoseconds
    /// since 1970 and generation. Equal on every host that has the same version.
    pub fn of_version(path: &[u8], size: u64, mtime_ns: i128, generation: u64) -> ObjectId {
        let mut hash = blake3::Hasher::new_derive_key("swarmfs 1 file version");
        hash.update(&(path.len() as u64).to_le_bytes());
        hash.update(path);
        hash.update(&size.to_le_bytes());
        hash.update(&mtime_ns.to_le_bytes());
        hash.update(&generation.to_le_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&hash.finalize().as_bytes()[..16]);
        ObjectId(id)
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0[..6] {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// One chunk of one object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChunkId {
    pub object: ObjectId,
    pub index: u32,
}

/// One segment of one object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SegmentId {
    pub object: ObjectId,
    pub index: u32,
}

/// One block of one object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockId {
    pub object: ObjectId,
    pub index: u32,
}

impl BlockId {
    pub fn chunk(self) -> ChunkId {
        ChunkId { object: self.object, index: self.index / BLOCKS_PER_CHUNK }
    }

    pub fn segment(self) -> SegmentId {
        SegmentId { object: self.object, index: self.index / BLOCKS_PER_SEGMENT }
    }
}

impl SegmentId {
    pub fn chunk(self) -> ChunkId {
        ChunkId { object: self.object, index: self.index / SEGMENTS_PER_CHUNK }
    }

    /// Number of the segment's first block within the object.
    pub fn first_block(self) -> u32 {
        self.index * BLOCKS_PER_SEGMENT
    }
}

impl ChunkId {
    /// Number of the chunk's first block within the object.
    pub fn first_block(self) -> u32 {
        self.index * BLOCKS_PER_CHUNK
    }
}

/// A run of blocks of one object.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Run {
    pub object: ObjectId,
    pub first: u32,
    pub count: u32,
}

impl Run {
    /// One past the last block's number. Runs from the network are checked where they are parsed, so this holds.
    pub fn end(self) -> u32 {
        self.first + self.count
    }

    pub fn overlaps(self, other: Run) -> bool {
        self.object == other.object && self.first < other.end() && other.first < self.end()
    }

    pub fn blocks(self) -> impl Iterator<Item = BlockId> {
        (self.first..self.end()).map(move |index| BlockId { object: self.object, index })
    }
}

/// How many chunks an object of `size` bytes has; an empty one has none.
pub fn chunks_of(size: u64) -> u32 {
    size.div_ceil(CHUNK as u64) as u32
}

/// How many segments an object of `size` bytes has.
pub fn segments_of(size: u64) -> u32 {
    size.div_ceil(SEGMENT as u64) as u32
}

/// How many blocks an object of `size` bytes has.
pub fn blocks_of(size: u64) -> u32 {
    size.div_ceil(BLOCK as u64) as u32
}

/// Bytes in segment `index` of an object of `size` bytes; 0 beyond its end.
pub fn segment_len(size: u64, index: u32) -> u32 {
    let start = index as u64 * SEGMENT as u64;
    size.saturating_sub(start).min(SEGMENT as u64) as u32
}

/// Bytes in block `index` of an object of `size` bytes; 0 beyond its end.
pub fn block_len(size: u64, index: u32) -> u32 {
    let start = index as u64 * BLOCK as u64;
    size.saturating_sub(start).min(BLOCK as u64) as u32
}

/// The blocks that bytes `offset .. offset + len` lie in, cut at the object's end.
pub fn blocks_in(size: u64, offset: u64, len: u64) -> Range<u32> {
    let end = offset.saturating_add(len).min(size);
    if offset >= end {
        return 0..0;
    }
    (offset / BLOCK as u64) as u32..end.div_ceil(BLOCK as u64) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_chunk_of_the_largest_object_ends_within_the_numbers() {
        let last = ChunkId { object: ObjectId([0; 16]), index: chunks_of(MAX_OBJECT) - 1 };
        assert_eq!(last.first_block().checked_add(BLOCKS_PER_CHUNK), Some(MAX_BLOCKS));
        assert_eq!(blocks_of(MAX_OBJECT), MAX_BLOCKS);
    }

    #[test]
    fn an_exact_multiple_has_no_empty_last_part() {
        assert_eq!(chunks_of(2 * CHUNK as u64), 2);
        assert_eq!(chunks_of(2 * CHUNK as u64 + 1), 3);
        assert_eq!(blocks_of(0), 0);
        assert_eq!(segment_len(SEGMENT as u64, 0), SEGMENT);
        assert_eq!(segment_len(SEGMENT as u64, 1), 0);
        assert_eq!(block_len(BLOCK as u64 + 5, 1), 5);
    }

    #[test]
    fn a_read_is_cut_at_the_end_and_touches_whole_blocks() {
        let block = BLOCK as u64;
        assert_eq!(blocks_in(10 * block, block - 1, 2), 0..2);
        assert_eq!(blocks_in(10 * block, 9 * block, u64::MAX), 9..10);
        assert_eq!(blocks_in(10 * block, 10 * block, 1), 0..0);
        assert_eq!(blocks_in(0, 0, 1), 0..0);
    }

    #[test]
    fn runs_overlap_that_share_a_block() {
        let run = |object, first, count| Run { object: ObjectId([object; 16]), first, count };
        let middle = run(1, 4, 2);
        for other in [run(1, 3, 2), run(1, 4, 1), run(1, 5, 9), run(1, 0, 64)] {
            assert!(middle.overlaps(other) && other.overlaps(middle), "{other:?}");
        }
        for other in [run(1, 2, 2), run(1, 6, 2), run(2, 4, 2)] {
            assert!(!middle.overlaps(other) && !other.overlaps(middle), "{other:?}");
        }
    }

    #[test]
    fn a_version_is_named_by_all_its_parts() {
        let id = ObjectId::of_version(b"a/b", 1, 2, 0);
        assert_eq!(id, ObjectId::of_version(b"a/b", 1, 2, 0));
        for other in [
            ObjectId::of_version(b"a/c", 1, 2, 0),
            ObjectId::of_version(b"a/b", 2, 2, 0),
            ObjectId::of_version(b"a/b", 1, 3, 0),
            ObjectId::of_version(b"a/b", 1, 2, 1),
        ] {
            assert_ne!(id, other);
        }
    }
}
