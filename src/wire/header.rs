//! The segment header: what makes the blocks of a segment self-certifying.
//!
//! ```text
//! offset      bytes    field
//! 0           1        version, 1
//! 1           16       object id
//! 17          4        segment number
//! 21          4        length of the segment in bytes, 1 to 2 MiB
//! 25          8        bit i set: block i holds zeros only, and never travels
//! 33          32 x n   BLAKE3 of each other block, in order
//! 33 + 32 n   64       the origin's signature over "swarmfs 1 segment" and all of the above
//! ```

use super::codec::{Malformed, Reader, Writer};
use crate::chunk::{BLOCK, ObjectId, SEGMENT, SegmentId};
use crate::keys::{OriginKey, PublicKey, SIGNATURE};

/// The longest header in bytes: a full segment without a zero block.
pub const MAX_HEADER: usize = 33 + 64 * 32 + SIGNATURE;
const DOMAIN: &[u8] = b"swarmfs 1 segment";

/// A segment's header, signed by the key it was opened with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    segment: SegmentId,
    len: u32,
    zero: u64,
    /// One per block that is not zero, in order.
    hashes: Vec<[u8; 32]>,
    signature: [u8; SIGNATURE],
}

impl SegmentHeader {
    /// Hashes the bytes of a whole segment and signs what was found.
    ///
    /// # Panics
    /// When `bytes` is empty or longer than a segment: the caller cuts them.
    pub fn sign(segment: SegmentId, bytes: &[u8], key: &OriginKey) -> SegmentHeader {
        assert!((1..=SEGMENT as usize).contains(&bytes.len()), "a segment has 1 to {SEGMENT} bytes");
        let mut header =
            SegmentHeader { segment, len: bytes.len() as u32, zero: 0, hashes: Vec::new(), signature: [0; SIGNATURE] };
        for (index, block) in bytes.chunks(BLOCK as usize).enumerate() {
            if is_zero(block) {
                header.zero |= 1 << index;
            } else {
                header.hashes.push(*blake3::hash(block).as_bytes());
            }
        }
        header.signature = key.sign(&header.signed_bytes());
        header
    }

    pub fn segment(&self) -> SegmentId {
        self.segment
    }

    /// Bytes in the segment.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// A segment has at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// How many blocks the segment has.
    pub fn blocks(&self) -> u32 {
        self.len.div_ceil(BLOCK)
    }

    /// Bit i: block i holds zeros only.
    pub fn zero(&self) -> u64 {
        self.zero
    }

    /// Whether `bytes` are block `index` of this segment.
    pub fn matches(&self, index: u32, bytes: &[u8]) -> bool {
        if index >= self.blocks() || bytes.len() as u32 != BLOCK.min(self.len - index * BLOCK) {
            return false;
        }
        if self.zero >> index & 1 == 1 {
            return is_zero(bytes);
        }
        let zeros_before = (self.zero & ((1u64 << index) - 1)).count_ones();
        blake3::hash(bytes).as_bytes() == &self.hashes[(index - zeros_before) as usize]
    }

    pub fn encode(&self, out: &mut Writer) {
        self.encode_body(out);
        out.bytes(&self.signature);
    }

    /// Which segment the bytes of a header are about, unchecked.
    pub fn names(bytes: &[u8]) -> Option<SegmentId> {
        let mut from = Reader::new(bytes);
        from.u8().ok()?;
        Some(SegmentId { object: ObjectId(from.array().ok()?), index: from.u32().ok()? })
    }

    /// Whether these bytes are this header.
    pub fn is(&self, bytes: &[u8]) -> bool {
        let mut own = Writer::new();
        self.encode(&mut own);
        own.as_slice() == bytes
    }

    /// Parses a whole header and checks its signature against `key`.
    pub fn open(bytes: &[u8], key: &PublicKey) -> Result<SegmentHeader, Malformed> {
        let mut from = Reader::new(bytes);
        let version = from.u8()?;
        if version != 1 {
            return Err(Malformed::Version(version));
        }
        let segment = SegmentId { object: ObjectId(from.array()?), index: from.u32()? };
        let len = from.u32()?;
        if !(1..=SEGMENT).contains(&len) {
            return Err(Malformed::Bound("segment length"));
        }
        let blocks = len.div_ceil(BLOCK);
        let zero = from.u64()?;
        if blocks < 64 && zero >> blocks != 0 {
            return Err(Malformed::Bound("zero blocks"));
        }
        let hashes = (0..blocks - zero.count_ones()).map(|_| from.array()).collect::<Result<_, _>>()?;
        let header = SegmentHeader { segment, len, zero, hashes, signature: from.array()? };
        from.end()?;
        if !key.verifies(&header.signed_bytes(), &header.signature) {
            return Err(Malformed::Signature);
        }
        Ok(header)
    }

    fn encode_body(&self, out: &mut Writer) {
        out.u8(1).bytes(&self.segment.object.0).u32(self.segment.index).u32(self.len).u64(self.zero);
        for hash in &self.hashes {
            out.bytes(hash);
        }
    }

    fn signed_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.bytes(DOMAIN);
        self.encode_body(&mut out);
        out.finish()
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, tail) = bytes.as_chunks::<64>();
    words.iter().all(|word| *word == [0; 64]) && tail.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment() -> SegmentId {
        SegmentId { object: ObjectId([3; 16]), index: 2 }
    }

    fn bytes() -> Vec<u8> {
        let mut bytes = vec![0; 3 * BLOCK as usize + 100];
        bytes[0] = 1;
        bytes[3 * BLOCK as usize + 99] = 1;
        bytes
    }

    #[test]
    fn a_header_marks_zeros_and_certifies_the_rest() {
        let key = OriginKey::from_seed(&[1; 32]);
        let bytes = bytes();
        let header = SegmentHeader::sign(segment(), &bytes, &key);
        assert_eq!(header.zero(), 0b0110);
        let mut out = Writer::new();
        header.encode(&mut out);
        assert_eq!(out.len(), 33 + 2 * 32 + 64);
        let read = SegmentHeader::open(out.as_slice(), &key.public()).unwrap();
        assert_eq!(read, header);
        for (index, block) in bytes.chunks(BLOCK as usize).enumerate() {
            assert!(read.matches(index as u32, block));
            let mut wrong = block.to_vec();
            wrong[50] ^= 1;
            assert!(!read.matches(index as u32, &wrong));
        }
        assert!(!read.matches(4, &[]));
        assert!(!read.matches(3, &bytes[..BLOCK as usize]));
    }

    #[test]
    fn a_header_of_another_key_or_with_a_changed_byte_is_refused() {
        let key = OriginKey::from_seed(&[1; 32]);
        let mut out = Writer::new();
        SegmentHeader::sign(segment(), &bytes(), &key).encode(&mut out);
        let encoded = out.finish();
        let other = OriginKey::from_seed(&[2; 32]).public();
        assert_eq!(SegmentHeader::open(&encoded, &other), Err(Malformed::Signature));
        for position in 0..encoded.len() {
            let mut wrong = encoded.clone();
            wrong[position] ^= 1;
            assert!(SegmentHeader::open(&wrong, &key.public()).is_err(), "byte {position}");
        }
    }
}
