//! The origin's key: what signs tree heads and segment headers, and what readers trust.
//!
//! Signing and checking only; where a key is stored is the origin's business (`origin::state`).

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use thiserror::Error;

/// Length of a signature in bytes.
pub const SIGNATURE: usize = 64;

/// The secret half, held by an origin.
pub struct OriginKey(SigningKey);

impl OriginKey {
    pub fn from_seed(seed: &[u8; 32]) -> OriginKey {
        OriginKey(SigningKey::from_bytes(seed))
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    pub fn sign(&self, bytes: &[u8]) -> [u8; SIGNATURE] {
        self.0.sign(bytes).to_bytes()
    }
}

impl fmt::Debug for OriginKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OriginKey(of {})", self.public())
    }
}

/// The public half: 32 bytes, written as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(VerifyingKey);

#[derive(Debug, Error, PartialEq, Eq)]
#[error("not a public key: expected 64 hex digits, as `swarmfs serve` prints them")]
pub struct NotAKey;

impl PublicKey {
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<PublicKey, NotAKey> {
        VerifyingKey::from_bytes(bytes).map(PublicKey).map_err(|_| NotAKey)
    }

    pub fn to_bytes(self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Strict verification: no signature has a second form that is accepted too.
    pub fn verifies(&self, bytes: &[u8], signature: &[u8; SIGNATURE]) -> bool {
        self.0.verify_strict(bytes, &Signature::from_bytes(signature)).is_ok()
    }

    /// A short form for people to compare: the first 16 hex digits of the key's BLAKE3, in groups of four.
    pub fn fingerprint(&self) -> String {
        let hash = blake3::derive_key("swarmfs 1 key fingerprint", &self.to_bytes());
        let groups: Vec<String> = hash[..8].chunks(2).map(|pair| format!("{:02x}{:02x}", pair[0], pair[1])).collect();
        groups.join("-")
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.to_bytes() {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.fingerprint())
    }
}

impl FromStr for PublicKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<PublicKey, NotAKey> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NotAKey);
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| NotAKey)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| NotAKey)?;
        }
        PublicKey::from_bytes(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text_and_checks_what_its_secret_signed() {
        let secret = OriginKey::from_seed(&[7; 32]);
        let public: PublicKey = secret.public().to_string().parse().unwrap();
        assert_eq!(public, secret.public());
        let signature = secret.sign(b"head");
        assert!(public.verifies(b"head", &signature));
        assert!(!public.verifies(b"heaD", &signature));
        assert!(!OriginKey::from_seed(&[8; 32]).public().verifies(b"head", &signature));
    }

    #[test]
    fn text_that_is_no_key_is_refused() {
        for text in ["", "zz", &"+1".repeat(32), &"é".repeat(32), &"0".repeat(63)] {
            assert_eq!(text.parse::<PublicKey>(), Err(NotAKey), "{text}");
        }
    }
}
