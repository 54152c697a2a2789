//! Frames: what two neighbours say to each other on their one TCP link.
//!
//! ```text
//! offset  bytes  field
//! 0       1      version, 1
//! 1       1      kind, below
//! 2       2      length of the body in bytes
//! 4       4      CRC-32 of bytes 0-3 and the body; of a DATA body only of its first 12 bytes
//! 8       n      body
//!
//! kind          body
//! 1  HELLO      node id 8, flags 1 (bit 0: origin), own port 2, head's sequence 8, origin's key 32, tree name 2 + n
//! 2  STATE      flags 1 (bit 0: full), sequence 8, position 8, room 2 (signed), rate 4 (KiB/s),
//!               window: entries dropped from its front 2, first block now wanted of its front entry 4, groups added,
//!               then groups taken, then groups lost
//! 3  OFFER      offer 4, groups: at most 8 runs, in the sender's order
//! 4  ACCEPT     offer 4, object 16, first 4, count 4
//! 5  DECLINE    offer 4, reason 1 (0: no room, 1: nothing needed)
//! 6  DATA       transfer 4, block 4, offset in it 2, encoding 1 (0: plain), 0 1, bytes
//! 7  ABORT      transfer 4: its rest will not come
//! 8  CANCEL     transfer 4: its rest is no longer wanted
//! 9  WANT       transfer 4, flags 1 (bit 0: starving), object 16, first 4, count 4
//! 10 GETHEADER  object 16, segment 4
//! 11 HEADER     a segment header (wire/header.rs)
//! 12 NOHEADER   object 16, segment 4
//! 13 GETPAGE    page hash 32
//! 14 PAGE       the page's bytes
//! 15 NOPAGE     page hash 32
//! 16 ASK        count 1: as many neighbours as this, please
//! 17 PEERS      count 1, peers (wire/datagram.rs)
//! 18 GONE       object 16, reason 1 (0: rewritten or removed, 1: unreadable)
//! 19 PROVE      nonce 32: show that you have the origin's key
//! 20 PROOF      its signature, 64, over "swarmfs 1 origin", the nonce, the origin's node id 8 and the asker's 8
//! groups        count 2, then for each: object 16, runs 2, then for each: first 4, count 4
//! ```
//!
//! A transfer's number is that of the OFFER it came from, or, with the top bit set, the asker's own in WANT.

use bytes::Bytes;

use super::codec::{Malformed, Reader, Writer};
use super::datagram::{Peer, read_peers, write_peers};
use super::head::{PageHash, TreeName};
use super::header::MAX_HEADER;
use crate::chunk::{BLOCK, BLOCKS_PER_CHUNK, BLOCKS_PER_SEGMENT, MAX_BLOCKS, ObjectId, Run, SegmentId};
use crate::keys::{PublicKey, SIGNATURE};

/// Bytes before every body.
pub const FRAME_HEADER: usize = 8;
/// Bytes of a DATA body before the block's own.
pub const DATA_HEADER: usize = 12;
/// The longest body: a length is 16 bits.
pub const MAX_BODY: usize = u16::MAX as usize;
/// Runs in one offer.
pub const MAX_OFFER: usize = 8;
/// Entries in a window.
pub const MAX_WINDOW: usize = 256;
/// Runs of blocks taken, and of blocks lost, in one STATE: so many, each in a group of its own, fit a frame.
pub const MAX_STATE_RUNS: usize = 2000;
/// Blocks in one run: half a GiB, beyond any window; a longer one would only cost whoever looks at it.
pub const MAX_RUN: u32 = 16 * 1024;
/// The number of the last segment whose blocks all have one.
const MAX_SEGMENT: u32 = MAX_BLOCKS / BLOCKS_PER_SEGMENT - 1;
/// The top bit of a transfer's number: it was asked for by WANT.
pub const WANTED: u32 = 1 << 31;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub u64);

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    pub node: NodeId,
    pub origin: bool,
    pub port: u16,
    pub sequence: u64,
    pub key: PublicKey,
    pub tree: TreeName,
}

/// What a node tells its neighbours of itself: a change, or, if full, everything.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    pub full: bool,
    pub sequence: u64,
    /// Where its reader is on the tree's number line, in blocks.
    pub position: u64,
    /// How many more transfers it would accept; below zero when it has promised more than it wanted to.
    pub room: i16,
    /// KiB/s that it receives.
    pub rate: u32,
    /// Entries that left the window's front.
    pub dropped: u16,
    /// First block now wanted of the entry at the front, if there is one.
    pub front: u32,
    /// Entries added at the window's end.
    pub added: Vec<Run>,
    pub taken: Vec<Run>,
    pub lost: Vec<Run>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    NoRoom,
    NotNeeded,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GoneReason {
    Replaced,
    Unreadable,
}

/// All frames but DATA, which `data_header` writes and `DataHeader` reads, since its bytes need not be copied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    Hello(Hello),
    State(State),
    Offer { id: u32, runs: Vec<Run> },
    Accept { id: u32, run: Run },
    Decline { id: u32, reason: Refusal },
    Abort { transfer: u32 },
    Cancel { transfer: u32 },
    Want { transfer: u32, starving: bool, run: Run },
    GetHeader(SegmentId),
    Header(Bytes),
    NoHeader(SegmentId),
    GetPage(PageHash),
    Page(Bytes),
    NoPage(PageHash),
    Ask { count: u8 },
    Peers(Vec<Peer>),
    Gone { object: ObjectId, reason: GoneReason },
    Prove { nonce: [u8; 32] },
    Proof { signature: [u8; SIGNATURE] },
}

/// What an origin signs to show a peer that it has the key.
pub fn proof_text(nonce: &[u8; 32], origin: NodeId, asker: NodeId) -> Vec<u8> {
    let mut out = Writer::new();
    out.bytes(b"swarmfs 1 origin").bytes(nonce).u64(origin.0).u64(asker.0);
    out.finish()
}

/// What stands before the bytes of a DATA frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataHeader {
    pub transfer: u32,
    pub block: u32,
    /// Bytes of the block before these.
    pub offset: u16,
    /// Bytes that follow.
    pub len: u16,
}

/// The first bytes of any frame, checked as far as they go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix {
    pub kind: u8,
    pub len: u16,
    crc: u32,
}

const DATA: u8 = 6;

impl Prefix {
    pub fn parse(bytes: &[u8; FRAME_HEADER]) -> Result<Prefix, Malformed> {
        let mut from = Reader::new(bytes);
        let version = from.u8()?;
        if version != 1 {
            return Err(Malformed::Version(version));
        }
        let prefix = Prefix { kind: from.u8()?, len: from.u16()?, crc: from.u32()? };
        if prefix.is_data() && (prefix.len as usize) < DATA_HEADER + 1 {
            return Err(Malformed::Short);
        }
        Ok(prefix)
    }

    pub fn is_data(&self) -> bool {
        self.kind == DATA
    }

    fn checksum(&self, covered: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        let [low, high] = self.len.to_le_bytes();
        crc.update(&[1, self.kind, low, high]);
        crc.update(covered);
        crc.finalize()
    }

    /// The 12 bytes after the prefix of a DATA frame.
    pub fn data(&self, bytes: &[u8; DATA_HEADER]) -> Result<DataHeader, Malformed> {
        if self.checksum(bytes) != self.crc {
            return Err(Malformed::Checksum);
        }
        let mut from = Reader::new(bytes);
        let header = DataHeader {
            transfer: from.u32()?,
            block: from.u32()?,
            offset: from.u16()?,
            len: self.len - DATA_HEADER as u16,
        };
        let encoding = from.u8()?;
        if encoding != 0 {
            return Err(Malformed::Bound("encoding"));
        }
        if header.offset as u32 + header.len as u32 > BLOCK {
            return Err(Malformed::Bound("data beyond its block"));
        }
        Ok(header)
    }

    /// The body of any other frame.
    pub fn frame(&self, body: &[u8]) -> Result<Frame, Malformed> {
        if self.checksum(body) != self.crc {
            return Err(Malformed::Checksum);
        }
        Frame::parse(self.kind, body)
    }
}

/// What to send before `len` bytes of a block.
pub fn data_header(header: DataHeader) -> [u8; FRAME_HEADER + DATA_HEADER] {
    let mut out = Writer::new();
    out.u32(header.transfer).u32(header.block).u16(header.offset).u8(0).u8(0);
    let mut prefix = Prefix { kind: DATA, len: header.len + DATA_HEADER as u16, crc: 0 };
    prefix.crc = prefix.checksum(out.as_slice());
    let mut bytes = [0; FRAME_HEADER + DATA_HEADER];
    bytes[..FRAME_HEADER].copy_from_slice(&prefix.bytes());
    bytes[FRAME_HEADER..].copy_from_slice(out.as_slice());
    bytes
}

impl Prefix {
    fn bytes(&self) -> [u8; FRAME_HEADER] {
        let mut bytes = [1, self.kind, 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&self.len.to_le_bytes());
        bytes[4..].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }
}

impl Frame {
    /// Appends the whole frame.
    ///
    /// # Panics
    /// When the body is longer than 64 KiB: whoever makes a frame keeps its lists short.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Writer::new();
        let kind = self.body(&mut body);
        let len = u16::try_from(body.len()).expect("frames are bounded where they are made");
        let mut prefix = Prefix { kind, len, crc: 0 };
        prefix.crc = prefix.checksum(body.as_slice());
        out.extend_from_slice(&prefix.bytes());
        out.extend_from_slice(body.as_slice());
    }

    fn body(&self, out: &mut Writer) -> u8 {
        match self {
            Frame::Hello(hello) => {
                out.u64(hello.node.0).u8(hello.origin as u8).u16(hello.port).u64(hello.sequence);
                out.bytes(&hello.key.to_bytes()).string(hello.tree.as_str().as_bytes());
                1
            }
            Frame::State(state) => {
                out.u8(state.full as u8).u64(state.sequence).u64(state.position).u16(state.room as u16).u32(state.rate);
                out.u16(state.dropped).u32(state.front);
                for runs in [&state.added, &state.taken, &state.lost] {
                    write_groups(out, runs);
                }
                2
            }
            Frame::Offer { id, runs } => {
                out.u32(*id);
                write_groups(out, runs);
                3
            }
            Frame::Accept { id, run } => {
                out.u32(*id);
                write_run(out, run);
                4
            }
            Frame::Decline { id, reason } => {
                out.u32(*id).u8(match reason {
                    Refusal::NoRoom => 0,
                    Refusal::NotNeeded => 1,
                });
                5
            }
            Frame::Abort { transfer } => {
                out.u32(*transfer);
                7
            }
            Frame::Cancel { transfer } => {
                out.u32(*transfer);
                8
            }
            Frame::Want { transfer, starving, run } => {
                out.u32(*transfer).u8(*starving as u8);
                write_run(out, run);
                9
            }
            Frame::GetHeader(segment) => {
                write_segment(out, segment);
                10
            }
            Frame::Header(bytes) => {
                out.bytes(bytes);
                11
            }
            Frame::NoHeader(segment) => {
                write_segment(out, segment);
                12
            }
            Frame::GetPage(hash) => {
                out.bytes(&hash.0);
                13
            }
            Frame::Page(bytes) => {
                out.bytes(bytes);
                14
            }
            Frame::NoPage(hash) => {
                out.bytes(&hash.0);
                15
            }
            Frame::Ask { count } => {
                out.u8(*count);
                16
            }
            Frame::Peers(peers) => {
                write_peers(out, peers);
                17
            }
            Frame::Gone { object, reason } => {
                out.bytes(&object.0).u8(match reason {
                    GoneReason::Replaced => 0,
                    GoneReason::Unreadable => 1,
                });
                18
            }
            Frame::Prove { nonce } => {
                out.bytes(nonce);
                19
            }
            Frame::Proof { signature } => {
                out.bytes(signature);
                20
            }
        }
    }

    fn parse(kind: u8, body: &[u8]) -> Result<Frame, Malformed> {
        let mut from = Reader::new(body);
        let frame = match kind {
            1 => Frame::Hello(Hello {
                node: NodeId(from.u64()?),
                origin: flag(from.u8()?)?,
                port: from.u16()?,
                sequence: from.u64()?,
                key: PublicKey::from_bytes(&from.array()?).map_err(|_| Malformed::Bound("key"))?,
                tree: std::str::from_utf8(from.string(255, "tree name")?)
                    .ok()
                    .and_then(|name| name.parse().ok())
                    .ok_or(Malformed::Bound("tree name"))?,
            }),
            2 => Frame::State(State {
                full: flag(from.u8()?)?,
                sequence: from.u64()?,
                position: from.u64()?,
                room: from.u16()? as i16,
                rate: from.u32()?,
                dropped: from.u16()?,
                front: from.u32()?,
                added: read_groups(&mut from, MAX_WINDOW)?,
                taken: read_held(&mut from)?,
                lost: read_held(&mut from)?,
            }),
            3 => Frame::Offer { id: offer(from.u32()?)?, runs: read_offer(&mut from)? },
            4 => Frame::Accept { id: offer(from.u32()?)?, run: transfer_run(read_run(&mut from)?)? },
            5 => Frame::Decline {
                id: offer(from.u32()?)?,
                reason: match from.u8()? {
                    0 => Refusal::NoRoom,
                    1 => Refusal::NotNeeded,
                    _ => return Err(Malformed::Bound("refusal")),
                },
            },
            7 => Frame::Abort { transfer: from.u32()? },
            8 => Frame::Cancel { transfer: from.u32()? },
            9 => Frame::Want {
                transfer: from.u32()?,
                starving: flag(from.u8()?)?,
                run: transfer_run(read_run(&mut from)?)?,
            },
            10 => Frame::GetHeader(read_segment(&mut from)?),
            11 => Frame::Header(rest(&mut from, MAX_HEADER, "segment header")?),
            12 => Frame::NoHeader(read_segment(&mut from)?),
            13 => Frame::GetPage(PageHash(from.array()?)),
            14 => Frame::Page(rest(&mut from, BLOCK as usize, "page")?),
            15 => Frame::NoPage(PageHash(from.array()?)),
            16 => Frame::Ask { count: from.u8()? },
            17 => Frame::Peers(read_peers(&mut from)?),
            18 => Frame::Gone {
                object: ObjectId(from.array()?),
                reason: match from.u8()? {
                    0 => GoneReason::Replaced,
                    1 => GoneReason::Unreadable,
                    _ => return Err(Malformed::Bound("reason")),
                },
            },
            19 => Frame::Prove { nonce: from.array()? },
            20 => Frame::Proof { signature: from.array()? },
            _ => return Err(Malformed::Kind(kind)),
        };
        from.end()?;
        Ok(frame)
    }
}

fn flag(byte: u8) -> Result<bool, Malformed> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed::Bound("flags")),
    }
}

/// Offers are numbered below the bit that tells a wanted transfer.
fn offer(id: u32) -> Result<u32, Malformed> {
    if id & WANTED == 0 { Ok(id) } else { Err(Malformed::Bound("offer")) }
}

/// A transfer stays inside one segment, so that one header certifies it.
fn transfer_run(run: Run) -> Result<Run, Malformed> {
    if run.first / BLOCKS_PER_SEGMENT == (run.end() - 1) / BLOCKS_PER_SEGMENT {
        Ok(run)
    } else {
        Err(Malformed::Bound("run across segments"))
    }
}

fn rest(from: &mut Reader, max: usize, what: &'static str) -> Result<Bytes, Malformed> {
    let len = from.remaining();
    if len > max {
        return Err(Malformed::Bound(what));
    }
    Ok(Bytes::copy_from_slice(from.bytes(len)?))
}

fn write_segment(out: &mut Writer, segment: &SegmentId) {
    out.bytes(&segment.object.0).u32(segment.index);
}

/// A segment's blocks are numbered in 32 bits.
fn read_segment(from: &mut Reader) -> Result<SegmentId, Malformed> {
    let segment = SegmentId { object: ObjectId(from.array()?), index: from.u32()? };
    if segment.index > MAX_SEGMENT {
        return Err(Malformed::Bound("segment"));
    }
    Ok(segment)
}

fn write_run(out: &mut Writer, run: &Run) {
    out.bytes(&run.object.0).u32(run.first).u32(run.count);
}

fn read_run(from: &mut Reader) -> Result<Run, Malformed> {
    let object = ObjectId(from.array()?);
    blocks(object, from)
}

/// A run is never empty and never ends beyond what an object can have.
fn blocks(object: ObjectId, from: &mut Reader) -> Result<Run, Malformed> {
    let (first, count) = (from.u32()?, from.u32()?);
    if count == 0 || count > MAX_RUN || first.checked_add(count).is_none_or(|end| end > MAX_BLOCKS) {
        return Err(Malformed::Bound("run"));
    }
    Ok(Run { object, first, count })
}

/// Bytes that `write_groups` takes for `runs`, for whoever must keep a frame short.
pub fn groups_len(runs: &[Run]) -> usize {
    2 + runs.chunk_by(|a, b| a.object == b.object).map(|group| 18 + 8 * group.len()).sum::<usize>()
}

fn write_groups(out: &mut Writer, runs: &[Run]) {
    let groups: Vec<&[Run]> = runs.chunk_by(|a, b| a.object == b.object).collect();
    out.u16(groups.len() as u16);
    for group in groups {
        out.bytes(&group[0].object.0).u16(group.len() as u16);
        for run in group {
            out.u32(run.first).u32(run.count);
        }
    }
}

fn read_groups(from: &mut Reader, max: usize) -> Result<Vec<Run>, Malformed> {
    let mut runs = Vec::new();
    for _ in 0..from.u16()? {
        let object = ObjectId(from.array()?);
        for _ in 0..from.u16()? {
            if runs.len() >= max {
                return Err(Malformed::Bound("runs"));
            }
            runs.push(blocks(object, from)?);
        }
    }
    Ok(runs)
}

/// What a node has or lost is told by chunk: a run across several would make its reader look at more than was sent.
fn read_held(from: &mut Reader) -> Result<Vec<Run>, Malformed> {
    let runs = read_groups(from, MAX_STATE_RUNS)?;
    let inside = |run: &Run| run.first / BLOCKS_PER_CHUNK == (run.end() - 1) / BLOCKS_PER_CHUNK;
    if runs.iter().all(inside) { Ok(runs) } else { Err(Malformed::Bound("run across chunks")) }
}

fn read_offer(from: &mut Reader) -> Result<Vec<Run>, Malformed> {
    read_groups(from, MAX_OFFER)?.into_iter().map(transfer_run).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keys::OriginKey;

    fn decode(bytes: &[u8]) -> Result<Frame, Malformed> {
        let (prefix, body) = bytes.split_first_chunk::<FRAME_HEADER>().ok_or(Malformed::Short)?;
        let prefix = Prefix::parse(prefix)?;
        if body.len() != prefix.len as usize {
            return Err(Malformed::Short);
        }
        prefix.frame(body)
    }

    fn object() -> impl Strategy<Value = ObjectId> {
        (0u8..3).prop_map(|byte| ObjectId([byte; 16]))
    }

    fn run() -> impl Strategy<Value = Run> {
        (object(), 0u32..1000, 1u32..64).prop_map(|(object, segment, count)| Run {
            object,
            first: segment * BLOCKS_PER_SEGMENT,
            count,
        })
    }

    fn segment() -> impl Strategy<Value = SegmentId> {
        (object(), 0..=MAX_SEGMENT).prop_map(|(object, index)| SegmentId { object, index })
    }

    fn runs(max: usize) -> impl Strategy<Value = Vec<Run>> {
        prop::collection::vec(run(), 0..max)
    }

    fn peer() -> impl Strategy<Value = Peer> {
        (any::<u64>(), any::<[u8; 4]>(), any::<u16>())
            .prop_map(|(node, ip, port)| Peer { node: NodeId(node), addr: (ip, port).into() })
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let hello =
            (any::<u64>(), any::<bool>(), any::<u16>(), any::<u64>()).prop_map(|(node, origin, port, sequence)| {
                let key = OriginKey::from_seed(&[3; 32]).public();
                Frame::Hello(Hello { node: NodeId(node), origin, port, sequence, key, tree: "images".parse().unwrap() })
            });
        let state = (any::<(bool, u64, u64, i16, u32, u16, u32)>(), runs(20), runs(99), runs(99)).prop_map(
            |((full, sequence, position, room, rate, dropped, front), added, taken, lost)| {
                Frame::State(State { full, sequence, position, room, rate, dropped, front, added, taken, lost })
            },
        );
        let bytes = prop::collection::vec(any::<u8>(), 0..MAX_HEADER).prop_map(Bytes::from);
        prop_oneof![
            hello,
            state,
            (0..WANTED, runs(MAX_OFFER)).prop_map(|(id, runs)| Frame::Offer { id, runs }),
            (0..WANTED, run()).prop_map(|(id, run)| Frame::Accept { id, run }),
            (0..WANTED, any::<bool>()).prop_map(|(id, room)| Frame::Decline {
                id,
                reason: if room { Refusal::NoRoom } else { Refusal::NotNeeded }
            }),
            any::<u32>().prop_map(|transfer| Frame::Abort { transfer }),
            any::<u32>().prop_map(|transfer| Frame::Cancel { transfer }),
            (any::<u32>(), any::<bool>(), run()).prop_map(|(transfer, starving, run)| Frame::Want {
                transfer,
                starving,
                run
            }),
            segment().prop_map(Frame::GetHeader),
            bytes.clone().prop_map(Frame::Header),
            segment().prop_map(Frame::NoHeader),
            any::<[u8; 32]>().prop_map(|hash| Frame::GetPage(PageHash(hash))),
            bytes.prop_map(Frame::Page),
            any::<[u8; 32]>().prop_map(|hash| Frame::NoPage(PageHash(hash))),
            any::<u8>().prop_map(|count| Frame::Ask { count }),
            prop::collection::vec(peer(), 0..40).prop_map(Frame::Peers),
            any::<[u8; 32]>().prop_map(|nonce| Frame::Prove { nonce }),
            any::<[u8; 32]>().prop_map(|half| {
                let mut signature = [0; SIGNATURE];
                signature[..32].copy_from_slice(&half);
                Frame::Proof { signature }
            }),
            (object(), any::<bool>()).prop_map(|(object, replaced)| Frame::Gone {
                object,
                reason: if replaced { GoneReason::Replaced } else { GoneReason::Unreadable }
            }),
        ]
    }

    proptest! {
        #[test]
        fn every_frame_survives_its_bytes(frame in frame()) {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            prop_assert_eq!(decode(&bytes), Ok(frame));
        }

        #[test]
        fn a_changed_byte_is_noticed(frame in frame(), position in any::<prop::sample::Index>(), by in 1u8..) {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            let position = position.index(bytes.len());
            bytes[position] ^= by;
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn any_body_is_parsed_or_refused(kind in 0u8..20, body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Frame::parse(kind, &body);
        }

        #[test]
        fn a_data_header_survives_its_bytes(transfer: u32, block: u32, offset in 0u16..16384, len in 1u16..16384) {
            let header = DataHeader { transfer, block, offset, len };
            let bytes = data_header(header);
            let prefix = Prefix::parse(bytes.first_chunk().unwrap()).unwrap();
            prop_assert_eq!(prefix.data(bytes.last_chunk().unwrap()), Ok(header));
        }
    }

    #[test]
    fn an_accept_is_laid_out_as_drawn() {
        let mut bytes = Vec::new();
        let run = Run { object: ObjectId([0xaa; 16]), first: 64, count: 4 };
        Frame::Accept { id: 7, run }.encode(&mut bytes);
        let mut expected = vec![1, 4, 28, 0, 0, 0, 0, 0, 7, 0, 0, 0];
        expected.extend([0xaa; 16]);
        expected.extend([64, 0, 0, 0, 4, 0, 0, 0]);
        let crc = crc32fast::hash(&[&expected[..4], &expected[8..]].concat());
        expected[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(bytes, expected);
    }

    /// The first block of such a segment had a number beyond 32 bits: asking an origin for its header was an overflow, or
    /// ended in another segment.
    #[test]
    fn a_segment_beyond_any_object_is_refused() {
        for index in [u32::MAX / BLOCKS_PER_SEGMENT, 1 << 26, u32::MAX] {
            let mut bytes = Vec::new();
            Frame::GetHeader(SegmentId { object: ObjectId([0; 16]), index }).encode(&mut bytes);
            assert!(decode(&bytes).is_err(), "{index}");
        }
    }

    #[test]
    fn a_state_that_names_more_than_its_bytes_pay_for_is_refused() {
        let run = |first, count| Run { object: ObjectId([0; 16]), first, count };
        for (taken, good) in [
            (vec![run(512, 512)], true),
            (vec![run(511, 2)], false),
            (vec![run(0, 1); MAX_STATE_RUNS], true),
            (vec![run(0, 1); MAX_STATE_RUNS + 1], false),
        ] {
            let mut bytes = Vec::new();
            Frame::State(State { taken, ..State::default() }).encode(&mut bytes);
            assert_eq!(decode(&bytes).is_ok(), good);
        }
    }

    #[test]
    fn a_run_across_segments_or_of_nothing_is_refused() {
        for (first, count) in [(63, 2), (0, 0), (u32::MAX, 1), (MAX_BLOCKS, 1), (0, MAX_RUN + 1)] {
            let mut bytes = Vec::new();
            Frame::Accept { id: 0, run: Run { object: ObjectId([0; 16]), first, count } }.encode(&mut bytes);
            assert!(decode(&bytes).is_err(), "{first} {count}");
        }
    }

    /// Its first block's number was computed past 32 bits, and an origin took a segment that no object has for one that
    /// its file lost.
    #[test]
    fn a_segment_whose_blocks_have_no_numbers_is_refused() {
        for (index, good) in [(MAX_SEGMENT, true), (MAX_SEGMENT + 1, false), (u32::MAX, false)] {
            let segment = SegmentId { object: ObjectId([1; 16]), index };
            let mut bytes = Vec::new();
            Frame::GetHeader(segment).encode(&mut bytes);
            assert_eq!(decode(&bytes).is_ok(), good, "{index}");
        }
    }
}
