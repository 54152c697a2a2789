//! Sets of a chunk's blocks: 512 bits.

use crate::chunk::{BLOCKS_PER_CHUNK, BLOCKS_PER_SEGMENT};

const WORDS: usize = (BLOCKS_PER_CHUNK / 64) as usize;

/// A set of blocks of one chunk, numbered from the chunk's start. One word is one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bits([u64; WORDS]);

const _: () = assert!(BLOCKS_PER_SEGMENT == 64, "one word of a set is one segment");

impl Bits {
    pub const EMPTY: Bits = Bits([0; WORDS]);

    /// Blocks `first .. end`; both are cut to the chunk.
    pub fn range(first: u32, end: u32) -> Bits {
        let mut bits = Bits::EMPTY;
        for (index, word) in bits.0.iter_mut().enumerate() {
            let start = index as u32 * 64;
            let low = first.clamp(start, start + 64) - start;
            let high = end.clamp(start, start + 64) - start;
            if low < high {
                *word = (u64::MAX << low) & (u64::MAX >> (64 - high));
            }
        }
        bits
    }

    pub fn get(&self, block: u32) -> bool {
        self.0[(block / 64) as usize] >> (block % 64) & 1 == 1
    }

    pub fn insert(&mut self, block: u32) {
        self.0[(block / 64) as usize] |= 1 << (block % 64);
    }

    /// The blocks of one segment of the chunk.
    pub fn segment(&self, segment: u32) -> u64 {
        self.0[segment as usize]
    }

    pub fn set_segment(&mut self, segment: u32, bits: u64) {
        self.0[segment as usize] = bits;
    }

    pub fn and(mut self, other: &Bits) -> Bits {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a &= b);
        self
    }

    pub fn or(mut self, other: &Bits) -> Bits {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a |= b);
        self
    }

    pub fn xor(mut self, other: &Bits) -> Bits {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a ^= b);
        self
    }

    pub fn minus(mut self, other: &Bits) -> Bits {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a &= !b);
        self
    }

    pub fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }

    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The lowest block in the set at or after `from`.
    pub fn first_from(&self, from: u32) -> Option<u32> {
        let mut index = (from / 64) as usize;
        let mut word = *self.0.get(index)? & (u64::MAX << (from % 64));
        loop {
            if word != 0 {
                return Some(index as u32 * 64 + word.trailing_zeros());
            }
            index += 1;
            word = *self.0.get(index)?;
        }
    }

    /// One past the last block of the unbroken run in the set that begins at `first`.
    pub fn run_end(&self, first: u32) -> u32 {
        let mut block = first;
        while let Some(word) = self.0.get((block / 64) as usize) {
            let ones = (word >> (block % 64)).trailing_ones();
            block += ones;
            if ones == 0 || !block.is_multiple_of(64) {
                break;
            }
        }
        block
    }

    /// The unbroken runs in the set: first and one past the last.
    pub fn runs(&self) -> impl Iterator<Item = (u32, u32)> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let first = self.first_from(from)?;
            from = self.run_end(first);
            Some((first, from))
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = u32> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let block = self.first_from(from)?;
            from = block + 1;
            Some(block)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set() -> impl Strategy<Value = BTreeSet<u32>> {
        prop::collection::vec((0u32..512, 1u32..100), 0..6)
            .prop_map(|runs| runs.into_iter().flat_map(|(first, count)| first..(first + count).min(512)).collect())
    }

    fn bits(set: &BTreeSet<u32>) -> Bits {
        let mut bits = Bits::EMPTY;
        set.iter().for_each(|block| bits.insert(*block));
        bits
    }

    proptest! {
        #[test]
        fn bits_are_a_set(a in set(), b in set(), from in 0u32..600, first in 0u32..600, end in 0u32..600) {
            let (x, y) = (bits(&a), bits(&b));
            prop_assert_eq!(x.iter().collect::<BTreeSet<_>>(), a.clone());
            prop_assert_eq!(x.and(&y), bits(&a.intersection(&b).copied().collect()));
            prop_assert_eq!(x.or(&y), bits(&a.union(&b).copied().collect()));
            prop_assert_eq!(x.xor(&y), bits(&a.symmetric_difference(&b).copied().collect()));
            prop_assert_eq!(x.minus(&y), bits(&a.difference(&b).copied().collect()));
            prop_assert_eq!(x.count() as usize, a.len());
            prop_assert_eq!(x.first_from(from), a.range(from..).next().copied());
            prop_assert_eq!(x.runs().flat_map(|(first, end)| first..end).collect::<BTreeSet<_>>(), a);
            prop_assert!(x.runs().zip(x.runs().skip(1)).all(|((_, end), (next, _))| end < next));
            prop_assert_eq!(Bits::range(first, end), bits(&(first..end.max(first)).filter(|b| *b < 512).collect()));
        }
    }
}
