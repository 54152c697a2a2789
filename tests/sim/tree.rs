//! What the simulated origin serves: objects without bytes. A block's content is its number and whether it is right.

use swarmfs::chunk::{BLOCK, BLOCKS_PER_CHUNK, BLOCKS_PER_SEGMENT, ObjectId, SegmentId, blocks_of};

/// Holes come in stretches of a MiB, as they do in file system images.
const STRETCH: u32 = 32;

#[derive(Clone, Copy)]
pub struct Object {
    pub id: ObjectId,
    pub size: u64,
    /// Where it begins on the number line, in blocks.
    pub position: u64,
    /// How many of 100 stretches are zeros.
    holes: u32,
}

#[derive(Default)]
pub struct Tree {
    objects: Vec<Object>,
}

impl Tree {
    /// Adds a file; files follow each other on the number line, each from a chunk of its own.
    pub fn add(&mut self, size: u64, holes: u32) -> usize {
        let position = self
            .objects
            .last()
            .map_or(0, |last| last.position + (blocks_of(last.size).next_multiple_of(BLOCKS_PER_CHUNK)) as u64);
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(self.objects.len() as u64 + 1).to_be_bytes());
        self.objects.push(Object { id: ObjectId(id), size, position, holes });
        self.objects.len() - 1
    }

    pub fn object(&self, index: usize) -> &Object {
        &self.objects[index]
    }

    pub fn find(&self, id: ObjectId) -> Option<&Object> {
        let number = u64::from_be_bytes(id.0[..8].try_into().expect("eight of sixteen bytes")) as usize;
        self.objects.get(number.checked_sub(1)?)
    }

    /// Bit i: block i of the segment holds zeros only.
    pub fn zero(&self, segment: SegmentId) -> u64 {
        let Some(object) = self.find(segment.object) else { return 0 };
        let blocks = blocks_of(object.size);
        (0..BLOCKS_PER_SEGMENT).filter(|block| segment.first_block() + block < blocks).fold(0, |bits, block| {
            let stretch = (segment.first_block() + block) / STRETCH;
            // A fixed scatter of the stretch's number.
            let scatter = (stretch as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
            bits | ((scatter % 100 < object.holes as u64) as u64) << block
        })
    }

    /// Bytes of a file that are not in zero blocks.
    pub fn solid(&self, index: usize) -> u64 {
        let object = &self.objects[index];
        let blocks = blocks_of(object.size);
        let zeros: u32 = (0..blocks.div_ceil(BLOCKS_PER_SEGMENT))
            .map(|segment| self.zero(SegmentId { object: object.id, index: segment }).count_ones())
            .sum();
        object.size - (zeros as u64 * BLOCK as u64).min(object.size)
    }
}
