//! Sequences of inputs into one `Node`, as a driver gives them, with whatever peers may say in between.
//!
//! The driver's side of the contract is kept (blocks come of transfers that are expected, headers were signed), and what
//! peers say has passed the frame parser. Checked after each step: the budget, every table's limit, and that each output
//! can be carried out: nothing is sent that is not here, to nobody who is not there, and nothing is awaited twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use arbitrary::{Result, Unstructured};
use swarmfs::chunk::{
    BLOCK, BLOCKS_PER_CHUNK, BLOCKS_PER_SEGMENT, BlockId, MAX_OBJECT, ObjectId, Run, SEGMENT, SEGMENTS_PER_CHUNK,
    SegmentId, block_len, blocks_of, segment_len,
};
use swarmfs::keys::OriginKey;
use swarmfs::swarm::{Input, LinkId, Node, Output, Policy, PrepareError, ReaderId, Subnet, Time, Wanted};
use swarmfs::wire::datagram::{Datagram, Join, MAX_DATAGRAM, Peer, Welcome};
use swarmfs::wire::deframe::{Deframer, Piece};
use swarmfs::wire::frame::{Frame, GoneReason, Hello, MAX_OFFER, MAX_RUN, NodeId, Refusal, State, WANTED};
use swarmfs::wire::head::{PageHash, Totals, TreeHead};

/// Longer sequences find nothing that shorter ones do not, but take longer.
const MOST_STEPS: usize = 400;
/// Outputs that one batch may give rise to.
const MOST_OUTPUTS: usize = 30_000;
const SIZES: [u64; 6] = [1, 3 * BLOCK as u64 + 5, 2 * SEGMENT as u64, 40 << 20, MAX_OBJECT, (64 << 30) + 1];

pub fn node(data: &[u8]) {
    let mut from = Unstructured::new(data);
    // The bytes are at their end: so is the sequence.
    let _ = play(&mut from);
}

fn play(from: &mut Unstructured) -> Result<()> {
    let mut play = Play::new(from.arbitrary()?, from.arbitrary()?);
    for _ in 0..MOST_STEPS {
        if from.is_empty() {
            break;
        }
        // Several inputs may be one batch.
        for _ in 0..from.int_in_range(1..=4)? {
            play.step(from)?;
        }
        play.settle();
        play.check();
    }
    Ok(())
}

#[derive(Default, Clone, Copy)]
struct Held {
    zero: u64,
    have: u64,
}

struct Play {
    node: Node,
    policy: Policy,
    origin: bool,
    now: u64,
    links: BTreeMap<LinkId, Vec<(u32, Vec<Run>)>>,
    connecting: VecDeque<LinkId>,
    /// What a driver expects: of each transfer its run and the object's size.
    expected: BTreeMap<(LinkId, u32), (Run, u64)>,
    cache: BTreeMap<SegmentId, Held>,
    preparing: VecDeque<SegmentId>,
    asked_pages: VecDeque<(LinkId, PageHash)>,
    sequence: u64,
}

impl Play {
    fn new(origin: bool, seed: u64) -> Play {
        let policy = Policy::with_budget(32 << 20);
        let me = hello(1, origin);
        let node = Node::new(policy.clone(), me, seed, Time(0));
        Play {
            node,
            policy,
            origin,
            now: 1,
            links: BTreeMap::new(),
            connecting: VecDeque::new(),
            expected: BTreeMap::new(),
            cache: BTreeMap::new(),
            preparing: VecDeque::new(),
            asked_pages: VecDeque::new(),
            sequence: 1,
        }
    }

    fn give(&mut self, input: Input) {
        self.node.handle(input, Time(self.now));
    }

    fn step(&mut self, from: &mut Unstructured) -> Result<()> {
        match from.int_in_range(0..=15)? {
            0 => self.meet(from)?,
            1..=6 => {
                let frame = self.frame(from)?;
                if let (Some(link), Some(frame)) = (self.link(from)?, frame) {
                    self.say(link, &frame);
                }
            }
            7 | 8 => self.bytes_arrive(from)?,
            9 => self.header_arrives(from)?,
            10 => self.reader_acts(from)?,
            11 => self.page_arrives(from)?,
            12 => self.disk_answers(from)?,
            13 => self.fault(from)?,
            14 => self.transmit(from)?,
            _ => self.wait(*from.choose(&[1, 1_000, 5_000, 50_000, 400_000, 2_000_000, 40_000_000])?),
        }
        Ok(())
    }

    // ---- peers

    fn meet(&mut self, from: &mut Unstructured) -> Result<()> {
        match from.int_in_range(0..=5)? {
            0..=2 => {
                let link = match self.connecting.pop_front() {
                    Some(link) if self.links.contains_key(&link) => {
                        // Half of the addresses below are in it.
                        let subnet = Subnet { address: [10, 0, 0, 1].into(), mask: [255, 255, 255, 248].into() };
                        self.give(Input::Connected { link, subnet: Some(subnet) });
                        link
                    }
                    _ => match self.node.accept(address(from)?, Time(self.now)) {
                        Some(link) => {
                            assert!(self.links.insert(link, Vec::new()).is_none(), "a link's name is taken");
                            link
                        }
                        None => return Ok(()),
                    },
                };
                if from.ratio(7, 8)? {
                    self.say(link, &Frame::Hello(hello(from.int_in_range(1..=40)?, from.ratio(1, 4)?)));
                }
            }
            3 => {
                if let Some(link) = self.connecting.pop_front() {
                    self.links.remove(&link);
                    self.give(Input::Closed { link });
                }
            }
            4 => {
                let name = hello(2, false).tree;
                let tree = from.ratio(2, 3)?.then_some(name);
                let join = Join {
                    node: NodeId(from.int_in_range(1..=40)?),
                    port: from.arbitrary()?,
                    sequence: from.arbitrary()?,
                    position: number(from)?,
                    tree,
                };
                self.give(Input::Join { from: address(from)?, join });
            }
            _ => {
                let welcome = Box::new(Welcome {
                    node: NodeId(from.int_in_range(1..=40)?),
                    port: from.arbitrary()?,
                    origin: from.arbitrary()?,
                    head: head(from.int_in_range(0..=9)?),
                    peers: peers(from)?,
                });
                self.give(Input::Welcome { from: address(from)?, welcome });
            }
        }
        Ok(())
    }

    fn link(&self, from: &mut Unstructured) -> Result<Option<LinkId>> {
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        if links.is_empty() { Ok(None) } else { from.choose(&links).copied().map(Some) }
    }

    /// What a peer says, as far as it passes the parser.
    fn say(&mut self, link: LinkId, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let mut parsed = None;
        let taken = Deframer::default().feed(&bytes, |piece| {
            if let Piece::Frame(frame) = piece {
                parsed = Some(frame);
            }
        });
        match (taken, parsed) {
            (Ok(()), Some(frame)) => self.give(Input::Frame { link, frame }),
            _ => self.give(Input::BadFrame { link }),
        }
    }

    fn frame(&mut self, from: &mut Unstructured) -> Result<Option<Frame>> {
        Ok(Some(match from.int_in_range(0..=15)? {
            0..=2 => Frame::State(State {
                full: from.ratio(1, 3)?,
                sequence: from.int_in_range(0..=20)?,
                position: number(from)?,
                room: *from.choose(&[128, 1, 0, -1, i16::MAX, i16::MIN])?,
                rate: *from.choose(&[0, 1, 3_000, 100_000, u32::MAX])?,
                dropped: *from.choose(&[0, 1, 2, 256, u16::MAX])?,
                front: number(from)? as u32,
                added: runs(from, 5)?,
                taken: runs(from, 12)?,
                lost: runs(from, 5)?,
            }),
            3 | 4 => Frame::Offer { id: self.transfer(from)? & !WANTED, runs: runs(from, MAX_OFFER)? },
            5 => {
                // Mostly an offer that was made.
                let made: Vec<&(u32, Vec<Run>)> = self.links.values().flatten().collect();
                match made.is_empty() || from.ratio(1, 8)? {
                    true => Frame::Accept { id: self.transfer(from)? & !WANTED, run: run(from)? },
                    false => {
                        let (id, runs) = from.choose(&made)?;
                        let run = *from.choose(runs)?;
                        Frame::Accept { id: *id, run: Run { count: from.int_in_range(1..=run.count)?, ..run } }
                    }
                }
            }
            6 => Frame::Decline {
                id: self.transfer(from)? & !WANTED,
                reason: *from.choose(&[Refusal::NoRoom, Refusal::NotNeeded])?,
            },
            7 => Frame::Abort { transfer: self.transfer(from)? },
            8 => Frame::Cancel { transfer: self.transfer(from)? },
            9 | 10 => Frame::Want {
                transfer: WANTED | from.int_in_range(0u32..=9)?,
                starving: from.arbitrary()?,
                run: run(from)?,
            },
            11 => Frame::GetHeader(segment(from)?),
            12 => Frame::NoHeader(segment(from)?),
            13 if from.ratio(1, 4)? => Frame::Prove { nonce: [0; 32] },
            13 => match from.arbitrary()? {
                true => Frame::GetPage(page(from)?),
                false => Frame::NoPage(page(from)?),
            },
            14 => match from.arbitrary()? {
                true => Frame::Ask { count: from.arbitrary()? },
                false => Frame::Peers(peers(from)?),
            },
            _ => Frame::Gone {
                object: object(from)?,
                reason: *from.choose(&[GoneReason::Replaced, GoneReason::Unreadable])?,
            },
        }))
    }

    /// A transfer's number: mostly one that means something here.
    fn transfer(&self, from: &mut Unstructured) -> Result<u32> {
        let mut known: Vec<u32> = self.expected.keys().map(|(_, transfer)| *transfer).collect();
        known.extend(self.links.values().flatten().map(|(offer, _)| *offer));
        if known.is_empty() || from.ratio(1, 3)? {
            return from.int_in_range(0..=30);
        }
        from.choose(&known).copied()
    }

    fn fault(&mut self, from: &mut Unstructured) -> Result<()> {
        let Some(link) = self.link(from)? else { return Ok(()) };
        match from.int_in_range(0..=5)? {
            0 => self.give(Input::BadFrame { link }),
            1 if self.node.proof_asked(link).is_some() => {
                self.give(Input::Proof { link, good: from.ratio(3, 4)? });
            }
            1 => self.give(Input::BadHeader { link }),
            2 => self.give(Input::Unread { link }),
            3 => {
                self.sequence += from.int_in_range(0..=2)?;
                let sequence = self.sequence;
                self.give(Input::Head { sequence });
            }
            _ => {
                self.forget(link);
                self.give(Input::Closed { link });
            }
        }
        Ok(())
    }

    fn forget(&mut self, link: LinkId) {
        self.links.remove(&link);
        self.expected.retain(|(of, _), _| *of != link);
        self.asked_pages.retain(|(of, _)| *of != link);
    }

    // ---- what arrives

    fn bytes_arrive(&mut self, from: &mut Unstructured) -> Result<()> {
        let known: Vec<(LinkId, u32)> = self.expected.keys().copied().collect();
        if known.is_empty() {
            return Ok(());
        }
        let (link, transfer) = *from.choose(&known)?;
        let (run, size) = self.expected[&(link, transfer)];
        let index = run.first + from.int_in_range(0..=run.count - 1)?;
        let block = BlockId { object: run.object, index };
        if !self.node.has_link(link) {
            return Ok(());
        }
        self.give(Input::Progress { link, transfer, bytes: block_len(size, index) });
        let (whole, good) = (from.ratio(7, 8)?, from.ratio(15, 16)?);
        let kept = whole && self.node.has_room_for(block);
        if let Some(held) = self.cache.get_mut(&block.segment()).filter(|_| kept) {
            if good {
                held.have |= 1 << (index % BLOCKS_PER_SEGMENT);
            }
            self.give(Input::Block { link, transfer, block, good });
        }
        Ok(())
    }

    fn header_arrives(&mut self, from: &mut Unstructured) -> Result<()> {
        let mut wanted: Vec<SegmentId> =
            self.expected.values().map(|(run, _)| BlockId { object: run.object, index: run.first }.segment()).collect();
        wanted.push(segment(from)?);
        let segment = *from.choose(&wanted)?;
        let Some(size) = self.node.expects_header(segment) else { return Ok(()) };
        let zero = zero_of(segment, size);
        // As the driver does before it admits one.
        self.drain();
        self.cache.entry(segment).or_insert(Held { zero, have: zero });
        self.give(Input::Header { segment, zero });
        Ok(())
    }

    fn page_arrives(&mut self, from: &mut Unstructured) -> Result<()> {
        let hash = page(from)?;
        match from.int_in_range(0..=5)? {
            0 => self.give(Input::WantPage { hash }),
            1 => self.give(Input::PageAhead { hash }),
            2 => self.give(Input::BadPage { hash }),
            _ => {
                let Some((link, hash)) = self.asked_pages.pop_front() else { return Ok(()) };
                if self.node.page_answered(link, &hash) && self.node.wants_page(&hash) {
                    self.give(Input::Page { hash, len: from.int_in_range(1..=60_000)? });
                }
            }
        }
        Ok(())
    }

    // ---- this side

    fn reader_acts(&mut self, from: &mut Unstructured) -> Result<()> {
        let reader = ReaderId(from.int_in_range(0..=3)?);
        match from.int_in_range(0..=7)? {
            0..=3 => {
                let mut window = Vec::new();
                for _ in 0..from.int_in_range(1..=6)? {
                    window.extend(wanted(from)?);
                }
                self.give(Input::Window { reader, window });
            }
            4 | 5 => {
                if let Some(wanted) = wanted(from)?.filter(|_| self.node.takes_demands()) {
                    let wanted = Wanted { run: Run { count: wanted.run.count.min(64), ..wanted.run }, ..wanted };
                    self.give(Input::Demand { wanted });
                }
            }
            6 => {
                if let Some(wanted) = wanted(from)? {
                    self.give(Input::Undemand { run: wanted.run });
                }
            }
            _ => self.give(Input::CloseReader { reader }),
        }
        Ok(())
    }

    fn disk_answers(&mut self, from: &mut Unstructured) -> Result<()> {
        let Some(segment) = self.preparing.pop_front() else { return Ok(()) };
        if from.ratio(1, 6)? {
            let reason = match from.arbitrary()? {
                true => PrepareError::Later { after_us: from.int_in_range(0..=1_000_000)? },
                false => PrepareError::Gone(GoneReason::Unreadable),
            };
            self.give(Input::PrepareFailed { segment, reason });
            return Ok(());
        }
        let size = size_of(segment.object).unwrap_or(0);
        let (len, zero) = (segment_len(size, segment.index), zero_of(segment, size));
        self.cache.insert(segment, Held { zero, have: u64::MAX >> (64 - len.div_ceil(BLOCK).max(1)) });
        self.give(Input::Prepared { segment, zero });
        Ok(())
    }

    fn transmit(&mut self, from: &mut Unstructured) -> Result<()> {
        let Some(link) = self.link(from)? else { return Ok(()) };
        for _ in 0..from.int_in_range(1..=64)? {
            let Some(frame) = self.node.transmit(link) else { break };
            let held = self.cache.get(&frame.block.segment()).copied().unwrap_or_default();
            let bit = frame.block.index % BLOCKS_PER_SEGMENT;
            assert!(held.have >> bit & 1 == 1, "{frame:?} is to be sent and not here");
            assert!(held.zero >> bit & 1 == 0, "{frame:?} holds zeros, which do not travel");
            let size = size_of(frame.block.object).unwrap_or(0);
            assert!(frame.len > 0 && frame.offset + frame.len <= block_len(size, frame.block.index), "{frame:?}");
        }
        Ok(())
    }

    fn wait(&mut self, us: u64) {
        let end = self.now + us;
        for _ in 0..100 {
            let next = self.node.next_tick();
            if next.0 > end {
                break;
            }
            self.now = self.now.max(next.0);
            self.give(Input::Tick);
            self.settle();
            assert!(self.node.next_tick().0 > self.now, "a tick that is due again at once");
        }
        self.now = self.now.max(end);
    }

    // ---- what the node decided

    fn settle(&mut self) {
        self.node.settle();
        self.drain();
    }

    fn drain(&mut self) {
        let mut count = 0;
        while let Some(output) = self.node.poll_output() {
            self.carry_out(output);
            count += 1;
            assert!(count < MOST_OUTPUTS, "one batch gives rise to {count} outputs");
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Connect { link, .. } => {
                assert!(self.links.insert(link, Vec::new()).is_none(), "{link:?} is there already");
                self.connecting.push_back(link);
            }
            Output::Close { link } => self.forget(link),
            Output::Send { link, frame } => self.sent(link, frame),
            Output::SendHeader { segment, .. } => {
                assert!(self.cache.contains_key(&segment), "{segment:?}'s header is to be sent and not here");
            }
            Output::Prove { .. } => assert!(self.origin, "who is no origin is to prove it"),
            Output::SendPage { .. } | Output::Join { .. } | Output::PageGone { .. } | Output::Gone { .. } => {}
            Output::Welcome { peers, .. } => {
                let port = 19024;
                let welcome = Welcome { node: NodeId(1), port, origin: self.origin, head: head(1), peers };
                assert!(Datagram::Peers(Box::new(welcome)).encode().len() <= MAX_DATAGRAM);
            }
            Output::Receive { link, transfer, run, size } => {
                let segment = run.first / BLOCKS_PER_SEGMENT;
                assert!(run.count > 0 && (run.end() - 1) / BLOCKS_PER_SEGMENT == segment, "{run:?} is in two segments");
                assert!(run.end() <= blocks_of(size), "{run:?} of {size} bytes");
                if self.links.contains_key(&link) {
                    let before = self.expected.insert((link, transfer), (run, size));
                    assert!(before.is_none(), "transfer {transfer:x} is two at once");
                }
            }
            Output::Ignore { link, transfer } => {
                self.expected.remove(&(link, transfer));
            }
            Output::Ready { .. } => {}
            Output::Prepare { segment } => {
                assert!(self.origin && !self.preparing.contains(&segment), "{segment:?} is read twice");
                self.preparing.push_back(segment);
            }
            Output::Resolve { object } => self.give(Input::Resolved { object, size: size_of(object) }),
            Output::Drop { chunk } => {
                for index in 0..SEGMENTS_PER_CHUNK {
                    let index = chunk.index * SEGMENTS_PER_CHUNK + index;
                    self.cache.remove(&SegmentId { object: chunk.object, index });
                }
            }
            Output::DropPage { .. } => {}
        }
    }

    fn sent(&mut self, link: LinkId, frame: Frame) {
        // A link that ended in the same batch takes nothing any more; that is the driver's to see.
        let Some(offers) = self.links.get_mut(&link) else { return };
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let mut came = Vec::new();
        let taken = Deframer::default().feed(&bytes, |piece| came.push(piece_of(piece)));
        assert!(taken.is_ok() && came == [Some(frame.clone())], "{frame:?} is refused by its own parser: {taken:?}");
        match frame {
            Frame::Offer { id, runs } => {
                for run in &runs {
                    let size = size_of(run.object).unwrap_or(0);
                    assert!(run.end() <= blocks_of(size), "{run:?} of {size} bytes is offered");
                }
                offers.push((id, runs));
                if offers.len() > 32 {
                    offers.remove(0);
                }
            }
            Frame::GetPage(hash) => {
                self.asked_pages.push_back((link, hash));
                if self.asked_pages.len() > 32 {
                    self.asked_pages.pop_front();
                }
            }
            _ => {}
        }
    }

    fn check(&self) {
        let (reserved, budget) = (self.node.reserved_blocks(), self.policy.budget_blocks);
        assert!(reserved <= budget, "{reserved} of {budget} blocks are reserved");
        let solid: u32 = self.cache.values().map(|held| (held.have & !held.zero).count_ones()).sum();
        assert!(solid <= reserved, "{solid} blocks are here, {reserved} are reserved: {:?}", self.unknown());
        for table in self.node.tables() {
            assert!(table.len <= table.most, "{table:?} is over its limit");
        }
        let links: BTreeSet<LinkId> = self.links.keys().copied().collect();
        assert!(links.iter().all(|link| self.node.has_link(*link)), "a driver keeps a link that the node ended");
        for (segment, held) in &self.cache {
            for bit in [0, 1, 31, 63] {
                let block = BlockId { object: segment.object, index: segment.first_block() + bit };
                let here = held.have >> bit & 1 == 1;
                assert!(here || !self.node.has_block(block), "the node has {block:?}, which is not here");
            }
        }
    }
}

impl Play {
    /// Blocks that are here and that the node does not know of.
    fn unknown(&self) -> Vec<BlockId> {
        let blocks = |(segment, held): (&SegmentId, &Held)| {
            let (segment, solid) = (*segment, held.have & !held.zero);
            let bits = (0..BLOCKS_PER_SEGMENT).filter(move |bit| solid >> bit & 1 == 1);
            bits.map(move |bit| BlockId { object: segment.object, index: segment.first_block() + bit })
        };
        self.cache.iter().flat_map(blocks).filter(|block| !self.node.has_block(*block)).collect()
    }
}

fn piece_of(piece: Piece) -> Option<Frame> {
    match piece {
        Piece::Frame(frame) => Some(frame),
        Piece::Data(..) => None,
    }
}

// ---- what is said

fn hello(node: u64, origin: bool) -> Hello {
    Hello { node: NodeId(node), origin, port: 19024, sequence: 1, key: key().public(), tree: name() }
}

fn name() -> swarmfs::wire::head::TreeName {
    "images".parse().expect("a plain name")
}

fn key() -> &'static OriginKey {
    static KEY: std::sync::OnceLock<OriginKey> = std::sync::OnceLock::new();
    KEY.get_or_init(|| OriginKey::from_seed(&[7; 32]))
}

fn head(sequence: u64) -> TreeHead {
    static HEADS: std::sync::OnceLock<Vec<TreeHead>> = std::sync::OnceLock::new();
    let sign = |sequence| TreeHead::sign(name(), sequence, PageHash([0; 32]), 0, Totals::default(), key());
    HEADS.get_or_init(|| (0..10).map(sign).collect())[sequence as usize].clone()
}

fn address(from: &mut Unstructured) -> Result<SocketAddr> {
    Ok(([10, 0, 0, from.int_in_range(1..=12)?], from.int_in_range(19024..=19030)?).into())
}

fn peers(from: &mut Unstructured) -> Result<Vec<Peer>> {
    let mut peers = Vec::new();
    for _ in 0..from.int_in_range(0..=12)? {
        peers.push(Peer { node: NodeId(from.int_in_range(1..=60)?), addr: address(from)? });
    }
    Ok(peers)
}

/// The first are the tree's, the others nobody's.
fn object(from: &mut Unstructured) -> Result<ObjectId> {
    Ok(ObjectId([from.int_in_range(0..=7)?; 16]))
}

fn size_of(object: ObjectId) -> Option<u64> {
    SIZES.get(object.0[0] as usize).copied()
}

/// Bit i: block i of a segment holds zeros. Some segments are holes, some have some, most have none.
fn zero_of(segment: SegmentId, size: u64) -> u64 {
    let blocks = segment_len(size, segment.index).div_ceil(BLOCK).max(1);
    let pattern = match (segment.index + segment.object.0[0] as u32) % 5 {
        1 => u64::MAX,
        2 => 0xf0f0_00ff_0000_ff01,
        _ => 0,
    };
    pattern & (u64::MAX >> (64 - blocks))
}

fn page(from: &mut Unstructured) -> Result<PageHash> {
    Ok(PageHash([from.int_in_range(0..=20)?; 32]))
}

/// Numbers around which something ends.
fn number(from: &mut Unstructured) -> Result<u64> {
    Ok(match from.int_in_range(0..=9)? {
        0..=2 => from.int_in_range(0..=8)?,
        3 => 62 + from.int_in_range(0..=4)?,
        4 => 510 + from.int_in_range(0..=4)?,
        5 => 1278 + from.int_in_range(0..=4)?,
        6 => u32::MAX as u64 - from.int_in_range(0..=130)?,
        7 => u64::MAX - from.int_in_range(0..=2)?,
        8 => from.int_in_range(0..=4_000)?,
        _ => from.arbitrary()?,
    })
}

fn run(from: &mut Unstructured) -> Result<Run> {
    let count = *from.choose(&[1, 1, 2, 4, 32, 63, 64, 65, BLOCKS_PER_CHUNK, MAX_RUN, MAX_RUN + 1])?;
    let first = number(from)? as u32;
    let cut = from.ratio(3, 4)?;
    // Mostly what the parser takes: inside one segment.
    let count = if cut { count.min(BLOCKS_PER_SEGMENT - first % BLOCKS_PER_SEGMENT) } else { count };
    Ok(Run { object: object(from)?, first, count })
}

fn runs(from: &mut Unstructured, most: usize) -> Result<Vec<Run>> {
    let count = from.int_in_range(0..=most)?;
    (0..count).map(|_| run(from)).collect()
}

fn segment(from: &mut Unstructured) -> Result<SegmentId> {
    Ok(SegmentId { object: object(from)?, index: (number(from)? as u32) / BLOCKS_PER_SEGMENT })
}

/// What a reader of this node may want: it lies in its object.
fn wanted(from: &mut Unstructured) -> Result<Option<Wanted>> {
    let object = object(from)?;
    let Some(size) = size_of(object) else { return Ok(None) };
    let first = number(from)? as u32 % blocks_of(size);
    let count = from.int_in_range(1..=2_000)?.min(blocks_of(size) - first);
    Ok(Some(Wanted { run: Run { object, first, count }, size, position: number(from)? >> 8 }))
}
