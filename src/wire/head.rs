//! The tree head: the signed record that says which tree, in which state, from whom.
//!
//! ```text
//! offset      bytes  field
//! 0           1      version, 1
//! 1           2 + n  tree name, UTF-8, 1 to 255 bytes, no '/', ':' or control character
//! 3 + n       8      sequence: grows with every change, starts at the wall clock in ns
//! 11 + n      32     BLAKE3 of the catalogue's root page
//! 43 + n      1      level of the root page, 0 for a leaf
//! 44 + n      8      rows in the catalogue (files, directories, links, ...)
//! 52 + n      8      bytes in all regular files
//! 60 + n      8      chunks on the number line
//! 68 + n      32     the origin's public key
//! 100 + n     64     its signature over "swarmfs 1 tree head" and all of the above
//! ```

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::codec::{Malformed, Reader, Writer};
use crate::keys::{OriginKey, PublicKey, SIGNATURE};

/// The longest head in bytes, with a name of 255 bytes: small enough for one datagram.
pub const MAX_HEAD: usize = 164 + MAX_NAME;
const MAX_NAME: usize = 255;
const DOMAIN: &[u8] = b"swarmfs 1 tree head";

/// Names a page of the catalogue by the BLAKE3 of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageHash(pub [u8; 32]);

impl PageHash {
    pub fn of(bytes: &[u8]) -> PageHash {
        PageHash(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for PageHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[derive(Debug, Error, PartialEq, Eq, Clone)]
#[error("expected the 64 hex digits that `swarmfs status` shows as the tree's head")]
pub struct NotAHash;

impl FromStr for PageHash {
    type Err = NotAHash;

    fn from_str(text: &str) -> Result<PageHash, NotAHash> {
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8).ok_or(NotAHash);
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let bytes: Result<Vec<u8>, NotAHash> = pairs.iter().map(|[a, b]| Ok(digit(*a)? << 4 | digit(*b)?)).collect();
        let bytes = bytes?.try_into().map_err(|_| NotAHash)?;
        if rest.is_empty() { Ok(PageHash(bytes)) } else { Err(NotAHash) }
    }
}

impl fmt::Debug for PageHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0[..6] {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// A tree's name: what the command line and fstab call it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeName(String);

#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is no tree name: expected 1 to 255 bytes without '/', ':' and control characters")]
pub struct NotATreeName(String);

impl TreeName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TreeName {
    type Err = NotATreeName;

    fn from_str(text: &str) -> Result<TreeName, NotATreeName> {
        let fits = (1..=MAX_NAME).contains(&text.len())
            && text != "."
            && text != ".."
            && !text.chars().any(|c| c == '/' || c == ':' || c.is_control());
        if fits { Ok(TreeName(text.to_owned())) } else { Err(NotATreeName(text.to_owned())) }
    }
}

impl fmt::Display for TreeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TreeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// What a catalogue adds up to; also what `statfs` answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    pub rows: u64,
    pub bytes: u64,
    pub chunks: u64,
}

/// A tree head whose signature fits the key that it carries. Whether that key is trusted is the reader's question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TreeHead {
    pub name: TreeName,
    pub sequence: u64,
    pub root: PageHash,
    pub root_level: u8,
    pub totals: Totals,
    pub key: PublicKey,
    signature: [u8; SIGNATURE],
}

impl TreeHead {
    pub fn sign(
        name: TreeName,
        sequence: u64,
        root: PageHash,
        root_level: u8,
        totals: Totals,
        key: &OriginKey,
    ) -> TreeHead {
        let mut head =
            TreeHead { name, sequence, root, root_level, totals, key: key.public(), signature: [0; SIGNATURE] };
        head.signature = key.sign(&head.signed_bytes());
        head
    }

    pub fn encode(&self, out: &mut Writer) {
        self.encode_body(out);
        out.bytes(&self.signature);
    }

    /// Takes a head from the front of `from`; refuses one that is malformed or not signed by its own key.
    pub fn decode(from: &mut Reader) -> Result<TreeHead, Malformed> {
        let version = from.u8()?;
        if version != 1 {
            return Err(Malformed::Version(version));
        }
        let name = std::str::from_utf8(from.string(MAX_NAME, "tree name")?)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or(Malformed::Bound("tree name"))?;
        let head = TreeHead {
            name,
            sequence: from.u64()?,
            root: PageHash(from.array()?),
            root_level: from.u8()?,
            totals: Totals { rows: from.u64()?, bytes: from.u64()?, chunks: from.u64()? },
            key: PublicKey::from_bytes(&from.array()?).map_err(|_| Malformed::Signature)?,
            signature: from.array()?,
        };
        if !head.key.verifies(&head.signed_bytes(), &head.signature) {
            return Err(Malformed::Signature);
        }
        Ok(head)
    }

    fn encode_body(&self, out: &mut Writer) {
        out.u8(1)
            .string(self.name.as_str().as_bytes())
            .u64(self.sequence)
            .bytes(&self.root.0)
            .u8(self.root_level)
            .u64(self.totals.rows)
            .u64(self.totals.bytes)
            .u64(self.totals.chunks)
            .bytes(&self.key.to_bytes());
    }

    fn signed_bytes(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.bytes(DOMAIN);
        self.encode_body(&mut out);
        out.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> TreeHead {
        let totals = Totals { rows: 3, bytes: 5, chunks: 1 };
        let key = OriginKey::from_seed(&[1; 32]);
        TreeHead::sign("images".parse().unwrap(), 9, PageHash([2; 32]), 0, totals, &key)
    }

    #[test]
    fn a_head_survives_its_bytes_and_any_changed_bit_is_refused() {
        let mut out = Writer::new();
        head().encode(&mut out);
        let bytes = out.finish();
        assert_eq!(TreeHead::decode(&mut Reader::new(&bytes)), Ok(head()));
        for position in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[position] ^= 1;
            assert!(TreeHead::decode(&mut Reader::new(&wrong)).is_err(), "byte {position}");
        }
    }

    #[test]
    fn a_head_begins_as_drawn() {
        let mut out = Writer::new();
        head().encode(&mut out);
        assert_eq!(out.as_slice()[..17], *b"\x01\x06\x00images\x09\0\0\0\0\0\0\0");
        assert_eq!(out.len(), 164 + 6);
    }

    #[test]
    fn a_page_hash_survives_its_text() {
        let hash = PageHash(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(hash.to_string().parse(), Ok(hash));
        for text in ["", "0", &"0".repeat(63), &"0".repeat(65), &"0".repeat(66), &"zz".repeat(32), &"+1".repeat(32)] {
            assert_eq!(text.parse::<PageHash>(), Err(NotAHash), "{text}");
        }
    }

    #[test]
    fn names_that_would_confuse_a_spec_are_refused() {
        for name in ["", ".", "..", "a/b", "a:b", "a\nb", &"x".repeat(256)] {
            assert!(name.parse::<TreeName>().is_err(), "{name:?}");
        }
        assert!("größe 1".parse::<TreeName>().is_ok());
    }
}
