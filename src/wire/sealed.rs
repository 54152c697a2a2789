//! Sealed datagrams: what a swarm with a secret sends instead of the plain ones.
//!
//! ```text
//! offset  bytes  field
//! 0       4      "swfs"
//! 4       1      version, 2: sealed
//! 5       1      0
//! 6       2      port at which whoever cannot read it may say so (REFUSAL); 0: nowhere
//! 8       24     nonce, random
//! 32      1152   sealed by XChaCha20-Poly1305:
//!         0      16     beginning of the nonce of the question that this answers; zeros if it answers none
//!         16     2      length n
//!         18     n      a plain datagram (wire/datagram.rs) without a question's padding
//!                       zeros
//! 1184    16     tag, over the first 8 bytes as well
//! ```
//!
//! All have one length, so that not even a name's length is told, and no answer is larger than its question. There is no
//! time in it: boards start in 1970. What an old one can still do is said in `net/mail.rs`.

use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};

use super::codec::{Malformed, Reader, Writer};
use super::datagram::{MAGIC, MAX_DATAGRAM};
use crate::secret::Secret;

const VERSION: u8 = 2;
const CLEAR: usize = 8;
pub const NONCE: usize = 24;
const TOKEN: usize = 16;
const TAG: usize = 16;
const BODY: usize = CLEAR + NONCE;
/// Bytes that a datagram is longer by for being sealed.
pub const SEALING: usize = BODY + TOKEN + 2 + TAG;

/// Tells a question from all others: what answers it repeats this.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Token([u8; TOKEN]);

/// What is in a sealed datagram.
#[derive(PartialEq, Eq, Debug)]
pub struct Opened {
    /// Of this datagram, if it is a question.
    pub token: Token,
    /// Of the question that it answers.
    pub answers: Token,
    pub datagram: Vec<u8>,
}

/// Seals and opens with a swarm's key.
pub struct Envelope(XChaCha20Poly1305);

/// Whether it is sealed, whoever can read it; and where a stranger may say that it cannot.
pub fn is_sealed(bytes: &[u8]) -> Option<u16> {
    let mut from = Reader::new(bytes);
    let sealed = bytes.len() == MAX_DATAGRAM && from.array().ok()? == *MAGIC && from.array().ok()? == [VERSION, 0];
    if sealed { from.u16().ok() } else { None }
}

impl Envelope {
    pub fn new(secret: &Secret) -> Envelope {
        Envelope(XChaCha20Poly1305::new(&secret.datagram_key().into()))
    }

    /// Seals a bare datagram of at most `MAX_BARE` bytes. No nonce may be used twice: `nonce` is 24 random bytes.
    pub fn seal(&self, nonce: [u8; NONCE], refusals_at: u16, answers: Token, bare: &[u8]) -> (Vec<u8>, Token) {
        let mut out = Writer::new();
        out.bytes(MAGIC).u8(VERSION).u8(0).u16(refusals_at).bytes(&nonce);
        out.bytes(&answers.0).string(bare);
        let mut bytes = out.finish();
        assert!(bytes.len() <= MAX_DATAGRAM - TAG, "a bare datagram has at most MAX_BARE bytes");
        bytes.resize(MAX_DATAGRAM - TAG, 0);
        let (clear, sealed) = bytes.split_at_mut(BODY);
        let tag = self.0.encrypt_in_place_detached(&XNonce::from(nonce), &clear[..CLEAR], sealed);
        bytes.extend_from_slice(&tag.expect("1,152 bytes are fewer than the cipher's limit"));
        (bytes, Token::of(&nonce))
    }

    /// None if it was not sealed with this key, or changed since.
    pub fn open(&self, bytes: &[u8]) -> Option<Opened> {
        is_sealed(bytes)?;
        let (body, tag) = bytes.split_last_chunk::<TAG>()?;
        let (clear, sealed) = body.split_at_checked(BODY)?;
        let nonce: [u8; NONCE] = *clear.last_chunk()?;
        let mut plain = sealed.to_vec();
        let aside = &clear[..CLEAR];
        self.0.decrypt_in_place_detached(&XNonce::from(nonce), aside, &mut plain, &Tag::from(*tag)).ok()?;
        let (answers, datagram) = Envelope::parse(&plain).ok()?;
        Some(Opened { token: Token::of(&nonce), answers, datagram })
    }

    fn parse(plain: &[u8]) -> Result<(Token, Vec<u8>), Malformed> {
        let mut from = Reader::new(plain);
        let answers = Token(from.array()?);
        Ok((answers, from.string(MAX_DATAGRAM, "datagram")?.to_vec()))
    }
}

impl Token {
    fn of(nonce: &[u8; NONCE]) -> Token {
        Token(*nonce.first_chunk().expect("a nonce is longer than a token"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::datagram::MAX_BARE;

    fn envelope(byte: u8) -> Envelope {
        Envelope::new(&Secret::from_bytes([byte; 32]))
    }

    #[test]
    fn it_is_laid_out_as_drawn() {
        let (bytes, token) = envelope(1).seal([7; NONCE], 0x4a51, Token([9; TOKEN]), b"datagram");
        assert_eq!(bytes.len(), MAX_DATAGRAM);
        assert_eq!(bytes[..8], *b"swfs\x02\0\x51\x4a");
        assert_eq!(bytes[8..32], [7; NONCE]);
        assert_eq!(token, Token([7; TOKEN]));
        assert_eq!(is_sealed(&bytes), Some(0x4a51));
        // What another implementation makes of the same.
        let mut first = [0; 8];
        first.copy_from_slice(&bytes[32..40]);
        let mut expected = *b"\x09\x09\x09\x09\x09\x09\x09\x09";
        let key = XChaCha20Poly1305::new(&blake3::derive_key("swarmfs 1 sealed datagrams", &[1; 32]).into());
        let tag = key.encrypt_in_place_detached(&XNonce::from([7; NONCE]), b"", &mut expected);
        assert!(tag.is_ok());
        assert_eq!(first, expected);
    }

    #[test]
    fn any_changed_bit_any_missing_byte_and_any_other_secret_is_noticed() {
        let (bytes, _) = envelope(1).seal([7; NONCE], 19025, Token::default(), &[5; MAX_BARE]);
        assert!(envelope(1).open(&bytes).is_some());
        assert_eq!(envelope(2).open(&bytes), None);
        for position in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[position] ^= 1 << (position % 8);
            assert_eq!(envelope(1).open(&wrong), None, "byte {position}");
            assert_eq!(envelope(1).open(&bytes[..position]), None, "{position} bytes");
        }
        assert_eq!(envelope(1).open(&[&bytes[..], &[0]].concat()), None);
    }

    proptest! {
        #[test]
        fn what_was_sealed_is_opened(
            nonce in any::<[u8; NONCE]>(),
            port in any::<u16>(),
            answers in any::<[u8; TOKEN]>(),
            bare in prop::collection::vec(any::<u8>(), 0..MAX_BARE + 1),
        ) {
            let (bytes, token) = envelope(3).seal(nonce, port, Token(answers), &bare);
            let opened = envelope(3).open(&bytes);
            prop_assert_eq!(opened, Some(Opened { token, answers: Token(answers), datagram: bare }));
        }

        #[test]
        fn any_bytes_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..1300)) {
            prop_assert_eq!(envelope(1).open(&bytes), None);
            bytes.resize(MAX_DATAGRAM, 0);
            bytes[..6].copy_from_slice(b"swfs\x02\0");
            prop_assert_eq!(envelope(1).open(&bytes), None);
        }
    }
}
