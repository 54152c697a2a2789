//! What is sent to whom: offers, uploads, and an origin's first copies.
//!
//! The sender proposes, the receiver takes or declines. A block may be offered as soon as its own reception was accepted;
//! possession is looked at again when the offer is accepted and before each frame. An origin puts each piece in once:
//! what no neighbour of its has or awaits, the lowest first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::bits::Bits;
use super::copies::Copies;
use super::{LinkId, Table, Time};
use crate::chunk::{ChunkId, ObjectId, Run, SegmentId};
use crate::wire::frame::GoneReason;

mod answer;
mod first;
mod header;
mod offer;
mod send;

/// Bytes of a block in one DATA frame where a whole one would hold up control, and where it does not. (Half as many cost
/// the last of 32 readers at 25 Mbit/s 1 %, and a wake-up more for each 16 KiB; twice as many 0.3 % and late first blocks.)
const SHORT_FRAME: u32 = 16 * 1024;
const LONG_FRAME: u32 = crate::chunk::BLOCK;
/// The part of an origin's first copies that it sends beside them to who keeps up and waits for what others have, and to who
/// is slow; and bytes that are saved up of each. (With 16 and 16 the origin of 32 readers at 25 Mbit/s, on a machine that
/// they kept busy, sent 1.10 copies instead of 1.08.)
const FOR_STARVING: [i64; 2] = [64, 16];
const MOST_FOR_STARVING: i64 = 1 << 20;
/// Segments that an origin reads at once: one is hashed while the next is read.
pub const PREPARING: usize = 4;
/// Transfers that one neighbour may pull at once.
pub const PULLED: usize = 32;
/// Transfers to all neighbours at once, beyond which nothing can be pulled.
const MOST_UPLOADS: usize = 96;
/// Headers that one neighbour may wait for.
pub const HEADER_WAITS: usize = 64;
/// Runs remembered as sent lately: half a second of single blocks at 10 Gbit/s is more, but then they are pulled faster
/// than anybody could pass them on.
const MAX_SENT: usize = 4096;
/// Pulls that wait for an object's size, which the tree says in the same batch.
const MAX_PARKED: usize = 1024;
/// Chunks of which an origin remembers what it sent: a TiB.
const MAX_OUT: usize = 1 << 16;
/// Objects, and segments, that could not be read and are remembered as such.
pub const MAX_FAILED: usize = 4096;
/// An offer not answered for so long is withdrawn.
const UNANSWERED: u64 = 3_000_000;
/// The same to a neighbour that never answered one.
const UNANSWERED_STRANGER: u64 = 1_000_000;
/// How long it is believed that an object cannot be read: a disk recovers, a file is put back.
pub const FAILED: u64 = 5_000_000;
/// Objects whose size an origin remembers for its neighbours' windows.
pub const MAX_SIZES: usize = 1 << 17;

#[derive(Default)]
pub struct Provide {
    pub(super) copies: Copies,
    next_offer: u32,
    pub(super) preparing: BTreeSet<SegmentId>,
    /// Segments not to be tried before.
    pub(super) later: BTreeMap<SegmentId, Time>,
    /// Objects that could not be read, and when.
    pub(super) failed: BTreeMap<ObjectId, (GoneReason, Time)>,
    pub(super) resolving: BTreeSet<ObjectId>,
    /// Pulls of objects whose size is being asked for.
    pub(super) parked: Vec<(LinkId, u32, bool, Run)>,
    /// Neighbours that are in the middle of a transfer, where only so many may be, and who has data and waits for that.
    sending: BTreeSet<LinkId>,
    waiting: BTreeSet<LinkId>,
    /// What an origin began to send lately, the oldest in front.
    sent: VecDeque<(Time, Run)>,
    /// Bytes that it may send once more to who waits for what others have: to who keeps up, and to who is slow.
    for_starving: [i64; 2],
    /// What it ever sent, and the zeros that it told of.
    out: BTreeMap<ChunkId, Bits>,
}

impl Provide {
    pub fn is_idle(&self) -> bool {
        self.preparing.is_empty()
    }

    /// Whether some of a chunk is being read from disk: then its place in the store must stay.
    pub fn is_prepared(&self, chunk: ChunkId) -> bool {
        self.preparing.iter().any(|segment| segment.chunk() == chunk)
    }

    pub fn tables(&self) -> [Table; 6] {
        [
            Table::new("segments being read", self.preparing.len(), PREPARING),
            Table::new("segments to be read later", self.later.len(), MAX_FAILED),
            Table::new("objects that failed", self.failed.len(), MAX_FAILED),
            Table::new("pulls parked", self.parked.len(), MAX_PARKED),
            Table::new("runs sent lately", self.sent.len(), MAX_SENT),
            Table::new("chunks sent of", self.out.len(), MAX_OUT),
        ]
    }

    /// Takes a slot for a neighbour, if there is one.
    fn may_send(&mut self, id: LinkId, slots: Option<usize>) -> bool {
        let Some(slots) = slots else { return true };
        let may = self.sending.contains(&id) || self.sending.len() < slots;
        let list = if may { &mut self.sending } else { &mut self.waiting };
        list.insert(id);
        may
    }

    fn note_sent(&mut self, run: Run, now: Time, fresh: u64) {
        let old = |sent: &(Time, Run)| now.since(sent.0) >= fresh;
        while self.sent.len() >= MAX_SENT || self.sent.front().is_some_and(old) {
            self.sent.pop_front();
        }
        self.sent.push_back((now, run));
    }

    /// A block left this origin: from now on others may have it.
    fn note_out(&mut self, chunk: ChunkId, bits: Bits) {
        if self.out.len() >= MAX_OUT && !self.out.contains_key(&chunk) {
            // What is forgotten is sent again if nobody who was given it passes it on.
            self.out.pop_first();
        }
        let out = self.out.entry(chunk).or_default();
        *out = out.or(&bits);
    }

    /// What left this origin of a chunk.
    fn out(&self, chunk: ChunkId) -> Bits {
        self.out.get(&chunk).copied().unwrap_or_default()
    }

    /// Whether some of a run was sent within `fresh`.
    fn was_sent(&self, run: Run, now: Time, fresh: u64) -> bool {
        self.sent.iter().any(|(at, sent)| now.since(*at) < fresh && sent.overlaps(run))
    }
}
