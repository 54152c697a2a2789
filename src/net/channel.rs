//! Encrypted links: Noise (NNpsk0) between two nodes with one secret, on bytes alone; whose they are is for the driver.
//!
//! ```text
//! who calls   version 1, 2; suites offered 1 (bit 0: AES, bit 1: ChaCha, always); Noise's first message 48 for each suite
//! is called   version 1, 2; suite chosen 1 (its bit); Noise's second message 48
//! who calls   a transport message without content: proves that it has just done the above, so that a recorded call ends here
//! both        transport messages
//!
//! message     length of the rest 2, at most 33,808; content, encrypted 1 or more; tag 16
//! ```
//!
//! Whoever is called knows by the first message whether the secret is right, before any costly step. The two suites are
//! equally good: AES where both processors have it, else ChaCha, which is faster without. Which were offered is part of
//! what both ends prove, so nobody between them can choose. Frames (wire/frame.rs) are cut into messages anyhow. After
//! every 65,536 messages, 2 GiB at most, a direction takes its next key: far from what either suite bears, and from a
//! link's last nonce; and the keys of what was sent before are gone.

use std::cell::RefCell;
use std::rc::Rc;

use snow::{Builder, HandshakeState, TransportState};
use thiserror::Error;

use crate::secret::{SECRET, Secret};
use crate::wire::codec::Malformed;

/// No frame begins like this, so that a node without a secret sees what it was called by.
const VERSION: u8 = 2;
/// Length of either message of the handshake: a Curve25519 key and a tag.
const STEP: usize = 48;
pub const CALL_HEAD: usize = 2;
pub const ANSWER: usize = 2 + STEP;
pub const PROOF: usize = LENGTH + TAG;
const TAG: usize = 16;
/// Bytes before a message.
const LENGTH: usize = 2;
/// The longest content: a block with its header is one message.
const MOST: usize = 33 * 1024;
const REKEY: u64 = 1 << 16;

/// Why there is no channel.
#[derive(Debug, Error, PartialEq, Eq, Clone, Copy)]
pub enum Refused {
    #[error("it does not begin as links of a swarm with a secret do")]
    NoCall,
    #[error("it has another secret")]
    Secret,
    #[error("the system's random source failed")]
    System,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suite {
    Aes = 1,
    ChaCha = 2,
}

/// The suites that a node speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Suites {
    aes: bool,
}

impl Suites {
    /// AES only where the processor does it: in software it would be slow, or tell of its key by its timing.
    pub fn of_this_machine() -> Suites {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        let aes = std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
        #[cfg(target_arch = "aarch64")]
        let aes = std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
        #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
        let aes = false;
        Suites { aes }
    }

    pub fn without_aes() -> Suites {
        Suites { aes: false }
    }

    pub fn has_aes(self) -> bool {
        self.aes
    }

    fn offered(self) -> impl Iterator<Item = Suite> {
        self.aes.then_some(Suite::Aes).into_iter().chain([Suite::ChaCha])
    }

    fn bits(self) -> u8 {
        self.offered().map(|suite| suite as u8).sum()
    }

    fn parse(bits: u8) -> Option<Suites> {
        [true, false].map(|aes| Suites { aes }).into_iter().find(|suites| suites.bits() == bits)
    }

    fn begin(self, suite: Suite, key: &[u8; SECRET], calls: bool) -> Result<HandshakeState, Refused> {
        let name = match suite {
            Suite::Aes => "Noise_NNpsk0_25519_AESGCM_SHA256",
            Suite::ChaCha => "Noise_NNpsk0_25519_ChaChaPoly_SHA256",
        };
        let prologue = [b"swarmfs link", &[VERSION, self.bits()][..]].concat();
        let begin = || {
            let builder = Builder::new(name.parse()?).psk(0, key)?.prologue(&prologue)?;
            if calls { builder.build_initiator() } else { builder.build_responder() }
        };
        // The name and the key's length are right, so only random bytes can be missing.
        begin().map_err(|_| Refused::System)
    }
}

/// A call that waits for its answer.
pub struct Call(Vec<(Suite, HandshakeState)>);

impl Call {
    /// What to send first.
    pub fn begin(secret: &Secret, suites: Suites) -> Result<(Call, Vec<u8>), Refused> {
        let mut bytes = vec![VERSION, suites.bits()];
        let mut begun = Vec::new();
        for suite in suites.offered() {
            let mut handshake = suites.begin(suite, &secret.link_key(), true)?;
            let mut step = [0; STEP];
            handshake.write_message(&[], &mut step).map_err(|_| Refused::System)?;
            bytes.extend_from_slice(&step);
            begun.push((suite, handshake));
        }
        Ok((Call(begun), bytes))
    }

    /// The channel, and what to send before all else.
    pub fn finish(self, answer: &[u8; ANSWER]) -> Result<(Channel, Vec<u8>), Refused> {
        let [version, chosen, step @ ..] = answer;
        let begun = self.0.into_iter().find(|(suite, _)| *suite as u8 == *chosen && *version == VERSION);
        let (suite, mut handshake) = begun.ok_or(Refused::NoCall)?;
        handshake.read_message(step, &mut []).map_err(|_| Refused::Secret)?;
        let mut channel = Channel::new(suite, handshake)?;
        let mut proof = Vec::new();
        channel.sealer.message(&[], &mut proof).map_err(|_| Refused::System)?;
        Ok((channel, proof))
    }
}

/// How many bytes of a call follow its first ones.
pub fn call_len(head: [u8; CALL_HEAD]) -> Result<usize, Refused> {
    let [version, offered] = head;
    let suites = Suites::parse(offered).filter(|_| version == VERSION).ok_or(Refused::NoCall)?;
    Ok(suites.offered().count() * STEP)
}

/// Answers a call. The channel is good once `Channel::prove` took the proof.
pub fn answer(
    secret: &Secret,
    suites: Suites,
    head: [u8; CALL_HEAD],
    steps: &[u8],
) -> Result<(Channel, [u8; ANSWER]), Refused> {
    let offered = Suites::parse(head[1]).ok_or(Refused::NoCall)?;
    let suite = if offered.aes && suites.aes { Suite::Aes } else { Suite::ChaCha };
    let mut both = offered.offered().zip(steps.chunks_exact(STEP));
    let (_, step) = both.find(|(each, _)| *each == suite).ok_or(Refused::NoCall)?;
    let mut handshake = offered.begin(suite, &secret.link_key(), false)?;
    handshake.read_message(step, &mut []).map_err(|_| Refused::Secret)?;
    let mut answer = [0; ANSWER];
    (answer[0], answer[1]) = (VERSION, suite as u8);
    handshake.write_message(&[], &mut answer[2..]).map_err(|_| Refused::System)?;
    Ok((Channel::new(suite, handshake)?, answer))
}

/// Both directions of an encrypted link, to be split between who writes and who reads.
pub struct Channel {
    pub suite: Suite,
    pub sealer: Sealer,
    pub opener: Opener,
}

impl Channel {
    fn new(suite: Suite, handshake: HandshakeState) -> Result<Channel, Refused> {
        let state = Rc::new(RefCell::new(handshake.into_transport_mode().map_err(|_| Refused::System)?));
        let opener = Opener { state: state.clone(), partial: Vec::new() };
        Ok(Channel { suite, sealer: Sealer { state }, opener })
    }

    /// Whether whoever called is there and has the secret.
    pub fn prove(&mut self, proof: &[u8; PROOF]) -> Result<(), Refused> {
        let (length, message) = proof.split_at(LENGTH);
        if length != (TAG as u16).to_le_bytes() {
            return Err(Refused::NoCall);
        }
        self.opener.state.borrow_mut().read_message(message, &mut []).map(drop).map_err(|_| Refused::Secret)
    }
}

/// Encrypts what is written to a link.
pub struct Sealer {
    state: Rc<RefCell<TransportState>>,
}

/// The buffers of one event loop, which its links use in turn.
#[derive(Default)]
pub struct Room {
    /// Content, before it is encrypted or after it was decrypted.
    plain: Vec<u8>,
    /// Messages to be written or not yet whole, for reuse.
    spare: Vec<Vec<u8>>,
}

/// Message buffers kept for reuse.
const SPARE: usize = 8;

impl Room {
    /// An empty buffer for messages.
    pub fn take(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    pub fn give_back(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < SPARE {
            buffer.clear();
            self.spare.push(buffer);
        }
    }
}

impl Sealer {
    /// Appends the beginning of `first` and `second` to `out` as one message, and cuts it off.
    pub fn seal<'a>(
        &mut self,
        room: &mut Room,
        first: &mut &'a [u8],
        second: &mut &'a [u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Malformed> {
        let begin = first.split_off(..first.len().min(MOST)).unwrap_or_default();
        let rest = second.split_off(..second.len().min(MOST - begin.len())).unwrap_or_default();
        if rest.is_empty() {
            return self.message(begin, out);
        }
        room.plain.clear();
        room.plain.extend_from_slice(begin);
        room.plain.extend_from_slice(rest);
        self.message(&room.plain, out)
    }

    fn message(&mut self, content: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
        let mut state = self.state.borrow_mut();
        let at = out.len();
        out.extend_from_slice(&((content.len() + TAG) as u16).to_le_bytes());
        out.resize(at + LENGTH + content.len() + TAG, 0);
        state.write_message(content, &mut out[at + LENGTH..]).map_err(|_| Malformed::Bound("link's nonces"))?;
        if state.sending_nonce().is_multiple_of(REKEY) {
            state.rekey_outgoing();
        }
        Ok(())
    }
}

/// Decrypts what is read from a link. Holds at most one message.
pub struct Opener {
    state: Rc<RefCell<TransportState>>,
    /// The beginning of a message whose rest has not come.
    partial: Vec<u8>,
}

impl Opener {
    /// Hands over the content of each message that `bytes` complete. After an error the link must be closed.
    pub fn feed(
        &mut self,
        room: &mut Room,
        mut bytes: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            if self.partial.is_empty()
                && let Some(len) = whole(bytes)?
                && let Some((message, rest)) = bytes.split_at_checked(len)
            {
                take(self.open(room, message)?)?;
                bytes = rest;
                continue;
            }
            if self.partial.capacity() == 0 {
                self.partial = room.take();
            }
            let need = whole(&self.partial)?.unwrap_or(LENGTH);
            let (now, rest) = bytes.split_at(bytes.len().min(need - self.partial.len()));
            self.partial.extend_from_slice(now);
            bytes = rest;
            if whole(&self.partial)? == Some(self.partial.len()) {
                let message = std::mem::take(&mut self.partial);
                take(self.open(room, &message)?)?;
                room.give_back(message);
            }
        }
        Ok(())
    }

    fn open<'a>(&mut self, room: &'a mut Room, message: &[u8]) -> Result<&'a [u8], Malformed> {
        let mut state = self.state.borrow_mut();
        room.plain.resize(MOST + TAG, 0);
        let message = &message[LENGTH..];
        let len = state.read_message(message, &mut room.plain).map_err(|_| Malformed::Seal)?;
        if state.receiving_nonce().is_multiple_of(REKEY) {
            state.rekey_incoming();
        }
        Ok(&room.plain[..len])
    }
}

/// Length of the message that begins so, its own included, as soon as it can be told.
fn whole(begins: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some(length) = begins.first_chunk() else { return Ok(None) };
    let length = u16::from_le_bytes(*length) as usize;
    // One without content would be a way to keep a link busy with nothing.
    if (TAG + 1..=TAG + MOST).contains(&length) {
        Ok(Some(LENGTH + length))
    } else {
        Err(Malformed::Bound("message length"))
    }
}

#[cfg(test)]
mod tests;
