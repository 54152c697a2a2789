//! Reading and writing of fixed layouts: little-endian numbers, byte strings, bounds checked before every step.
//!
//! A `Reader` never panics and never allocates more than the bytes it was given; a `Writer` emits exactly what the
//! matching reads take. Every format of the project is parsed and emitted through these two.

use thiserror::Error;

/// Why bytes were refused.
#[derive(Debug, Error, PartialEq, Eq, Clone, Copy)]
pub enum Malformed {
    #[error("cut short")]
    Short,
    #[error("{0} bytes follow the end")]
    Trailing(usize),
    #[error("version {0}, expected 1")]
    Version(u8),
    #[error("unknown kind {0}")]
    Kind(u8),
    #[error("checksum differs")]
    Checksum,
    #[error("{0} out of bounds")]
    Bound(&'static str),
    #[error("signature does not fit the key")]
    Signature,
    #[error("not encrypted with this link's key, or changed on its way")]
    Seal,
}

/// Takes a layout apart from the front.
#[derive(Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(Malformed::Short)?;
        self.rest = rest;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed::Short)?;
        self.rest = rest;
        Ok(*head)
    }

    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A byte string preceded by its length in 16 bits, refused above `max`.
    pub fn string(&mut self, max: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let len = self.u16()? as usize;
        if len > max {
            return Err(Malformed::Bound(what));
        }
        self.bytes(len)
    }

    /// Nothing may follow.
    pub fn end(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed::Trailing(self.rest.len())) }
    }
}

/// Puts a layout together.
#[derive(Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub fn new() -> Writer {
        Writer::default()
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Writer {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub fn u8(&mut self, value: u8) -> &mut Writer {
        self.bytes(&[value])
    }

    pub fn u16(&mut self, value: u16) -> &mut Writer {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u32(&mut self, value: u32) -> &mut Writer {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Writer {
        self.bytes(&value.to_le_bytes())
    }

    /// A byte string preceded by its length in 16 bits; the caller keeps it that short.
    pub fn string(&mut self, bytes: &[u8]) -> &mut Writer {
        let len = u16::try_from(bytes.len()).expect("strings on the wire are bounded where they enter");
        self.u16(len).bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_nothing_more() {
        let mut writer = Writer::new();
        writer.u8(1).u16(2).u32(3).u64(4).string(b"five");
        let bytes = writer.finish();
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.u8(), Ok(1));
        assert_eq!(reader.u16(), Ok(2));
        assert_eq!(reader.u32(), Ok(3));
        assert_eq!(reader.u64(), Ok(4));
        assert_eq!(reader.clone().string(3, "name"), Err(Malformed::Bound("name")));
        assert_eq!(reader.clone().end(), Err(Malformed::Trailing(6)));
        assert_eq!(reader.string(4, "name"), Ok(&b"five"[..]));
        assert_eq!(reader.clone().end(), Ok(()));
        assert_eq!(reader.u8(), Err(Malformed::Short));
    }
}
