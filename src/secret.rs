//! A swarm's secret: what all its nodes have and strangers lack.
//!
//! Text, and the keys that are derived from it; where it is kept and how it is drawn is for others. The invariant: a
//! secret has 256 random bits, so nobody finds it by trying, and what is derived for one purpose says nothing of another.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Length of a secret, and of each key made of it, in bytes.
pub const SECRET: usize = 32;
const DIGITS: usize = 2 * SECRET;

#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; SECRET]);

/// Says nothing of the text itself: it may be a secret with a slip of the finger in it, or another file altogether.
#[derive(Debug, Error, PartialEq, Eq, Clone, Copy)]
pub enum NotASecret {
    #[error("expected a secret of 64 hex digits, as `swarmfs key --new-secret` makes one, and found {0} characters")]
    Length(usize),
    #[error("expected a secret of 64 hex digits, as `swarmfs key --new-secret` makes one, and found other characters")]
    Digits,
}

impl Secret {
    /// The bytes must be random ones, all of them.
    pub fn from_bytes(random: [u8; SECRET]) -> Secret {
        Secret(random)
    }

    /// The digits, for the file alone.
    pub fn reveal(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What datagrams are sealed with.
    pub fn datagram_key(&self) -> [u8; SECRET] {
        blake3::derive_key("swarmfs 1 sealed datagrams", &self.0)
    }

    /// What both ends of a link prove to each other.
    pub fn link_key(&self) -> [u8; SECRET] {
        blake3::derive_key("swarmfs 1 encrypted links", &self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl FromStr for Secret {
    type Err = NotASecret;

    /// White space around it is no part of it: editors end a file with a line's end.
    fn from_str(text: &str) -> Result<Secret, NotASecret> {
        let text = text.trim_ascii();
        if text.len() != DIGITS {
            return Err(NotASecret::Length(text.chars().count()));
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(NotASecret::Digits);
        let mut bytes = [0; SECRET];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Ok(Secret(bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_secret_survives_its_text_and_is_not_shown_by_accident() {
        let secret = Secret::from_bytes([0xa7; SECRET]);
        let text = secret.reveal();
        assert_eq!(text.len(), 64);
        assert_eq!(format!("\n {} \n", text.to_uppercase()).parse(), Ok(secret.clone()));
        assert_eq!(format!("{secret:?}"), "Secret");
    }

    #[test]
    fn what_is_short_or_malformed_is_refused_without_being_repeated() {
        let long = "0".repeat(65);
        for (text, expected) in [
            ("", NotASecret::Length(0)),
            ("correct horse", NotASecret::Length(13)),
            (&*"0".repeat(63), NotASecret::Length(63)),
            (&*long, NotASecret::Length(65)),
            (&*"xy".repeat(32), NotASecret::Digits),
            (&*"+1".repeat(32), NotASecret::Digits),
            (&*"é".repeat(32), NotASecret::Digits),
        ] {
            assert_eq!(text.parse::<Secret>(), Err(expected), "{text}");
            assert!(expected.to_string().contains("64 hex digits"));
        }
    }

    #[test]
    fn each_purpose_has_a_key_of_its_own() {
        let [one, other] = [1, 2].map(|byte| Secret::from_bytes([byte; SECRET]));
        let keys = [one.datagram_key(), one.link_key(), other.datagram_key(), other.link_key()];
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key));
        }
        // These are what nodes of different versions agree on.
        assert_eq!(keys[0], blake3::derive_key("swarmfs 1 sealed datagrams", &[1; 32]));
        assert_eq!(keys[1], blake3::derive_key("swarmfs 1 encrypted links", &[1; 32]));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = text.parse::<Secret>();
        }
    }
}
