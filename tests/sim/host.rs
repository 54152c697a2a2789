//! A simulated host: a node of the product, what its driver would keep, and those who read on it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;

use swarmfs::chunk::{BlockId, Run, SegmentId};
use swarmfs::swarm::{Input, LinkId, Node, Policy, Wanted};
use swarmfs::wire::frame::NodeId;
use swarmfs::wire::head::PageHash;

use super::conduct::Conduct;
use super::net::Wire;
use super::tree::Tree;

/// What a host is given.
#[derive(Clone)]
pub struct Setup {
    /// Bytes a second of its link, both ways.
    pub rate: u64,
    pub policy: Policy,
    pub conduct: Conduct,
    pub readers: Vec<Plan>,
    /// Nanoseconds until it begins.
    pub start: u64,
    /// Ends, closing its links, as soon as its readers are done.
    pub leaves: bool,
}

/// What somebody on a host reads.
#[derive(Clone)]
pub struct Plan {
    pub files: Vec<usize>,
    pub order: Order,
    /// Bytes a second that the reader can use.
    pub rate: u64,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Order {
    /// The files one after the other, each through to its end, with the ones that follow in the window.
    Through,
    /// So many reads of 16 KiB at random places of the first file; no window.
    Random(u32),
}

/// Blocks in one read of a sequential reader: 128 KiB, as the kernel does.
const READ: u32 = 4;
/// Blocks that the kernel reads ahead at a time, 2 MiB; when a reader comes to such a stretch the next one is read.
const READ_AHEAD: u32 = 64;
/// Blocks ahead that a reader hands down: the swarm cuts them to what it can hold.
const AHEAD: u32 = 8 * 512;
/// The window is handed down again when the reader has moved on by this many blocks.
const STEP: u32 = 32;

pub struct Reader {
    pub plan: Plan,
    /// The file being read, and the block due in it.
    file: usize,
    block: u32,
    told: Option<(usize, u32)>,
    /// The kernel has read the file up to here, or waits for what of it is missing.
    read: (usize, u32),
    /// The read that waits for its blocks.
    pub waiting: Option<Run>,
    /// Blocks of the read under way, in random order.
    target: Option<Run>,
    random_left: u32,
    pub finished: Option<u64>,
    pub first: Option<u64>,
    pub bytes: u64,
    /// When it reads on; a read planned for another time is void.
    pub due: Option<u64>,
}

impl Reader {
    pub fn new(plan: Plan) -> Reader {
        let random_left = match plan.order {
            Order::Through => 0,
            Order::Random(count) => count,
        };
        Reader {
            plan,
            file: 0,
            block: 0,
            told: None,
            read: (0, 0),
            waiting: None,
            target: None,
            random_left,
            finished: None,
            first: None,
            bytes: 0,
            due: None,
        }
    }

    /// The blocks that the next read is about; none when everything was read.
    pub fn next(&mut self, tree: &Tree, rng: &mut fastrand::Rng) -> Option<Run> {
        match self.plan.order {
            Order::Through => loop {
                let object = tree.object(*self.plan.files.get(self.file)?);
                let left = swarmfs::chunk::blocks_of(object.size) - self.block;
                if left > 0 {
                    return Some(Run { object: object.id, first: self.block, count: left.min(READ) });
                }
                self.file += 1;
                self.block = 0;
            },
            Order::Random(_) => {
                if self.random_left == 0 {
                    return None;
                }
                let object = tree.object(self.plan.files[0]);
                let blocks = swarmfs::chunk::blocks_of(object.size);
                Some(*self.target.get_or_insert_with(|| Run { object: object.id, first: rng.u32(0..blocks), count: 1 }))
            }
        }
    }

    /// What the kernel begins to read now: for who reads through, everything up to the end of the next stretch.
    pub fn reads(&mut self, tree: &Tree, run: Run) -> Vec<Run> {
        if self.plan.order != Order::Through {
            return if self.waiting.is_none() { vec![run] } else { vec![] };
        }
        let blocks = tree.find(run.object).map_or(0, |object| swarmfs::chunk::blocks_of(object.size));
        let end = ((self.block / READ_AHEAD + 2) * READ_AHEAD).min(blocks);
        let begin = if self.read.0 == self.file { self.read.1.max(self.block) } else { self.block };
        self.read = (self.file, end);
        let cut = |first: u32| Run { first, count: READ.min(end - first), ..run };
        (begin..end).step_by(READ as usize).map(cut).collect()
    }

    pub fn advance(&mut self, run: Run) {
        self.waiting = None;
        match self.plan.order {
            Order::Through => self.block += run.count,
            Order::Random(_) => {
                self.target = None;
                self.random_left -= 1;
            }
        }
    }

    /// What to hand down to the swarm now, if it is time to.
    pub fn window(&mut self, tree: &Tree) -> Option<Vec<Wanted>> {
        if self.plan.order != Order::Through {
            return None;
        }
        let due = match self.told {
            Some((file, block)) => file != self.file || self.block >= block + STEP,
            None => true,
        };
        if !due {
            return None;
        }
        self.told = Some((self.file, self.block));
        let (mut window, mut left) = (Vec::new(), AHEAD);
        for (index, file) in self.plan.files.iter().enumerate().skip(self.file) {
            let object = tree.object(*file);
            let first = if index == self.file { self.block } else { 0 };
            let count = (swarmfs::chunk::blocks_of(object.size) - first).min(left);
            if count > 0 {
                let run = Run { object: object.id, first, count };
                window.push(Wanted { run, size: object.size, position: object.position + first as u64 });
            }
            left -= count;
            if left == 0 || window.len() >= 256 {
                break;
            }
        }
        Some(window)
    }
}

/// Hashes the numbers of segments and transfers: nobody chooses them to collide here.
#[derive(Default)]
pub struct Plain(u64);

impl Hasher for Plain {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word as u64);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

/// A segment as the driver's cache has it.
#[derive(Default, Clone, Copy)]
pub struct Held {
    pub header: bool,
    /// Blocks that can be read, zeros among them.
    pub have: u64,
    pub zero: u64,
}

/// A transfer that DATA is expected of.
pub struct Incoming {
    pub run: Run,
    /// The block that arrives, how much of it did, and whether any of it was wrong.
    pub part: Option<(BlockId, u32, bool)>,
}

pub struct Host {
    pub setup: Setup,
    pub addr: SocketAddr,
    pub origin: bool,
    pub node: Option<Node>,
    /// How often it was started; what belongs to an earlier life is void.
    pub life: u32,
    pub id: Option<NodeId>,
    /// It ended by itself: whoever still sends is told so.
    pub exited: bool,
    pub paused: bool,
    /// What came in while it was paused.
    pub backlog: VecDeque<Backlog>,
    pub wire: Wire,
    pub links: BTreeMap<LinkId, (usize, usize)>,
    pub cache: HashMap<SegmentId, Held, BuildHasherDefault<Plain>>,
    /// Blocks in the cache that take memory.
    pub solid: u32,
    pub incoming: HashMap<(LinkId, u32), Incoming, BuildHasherDefault<Plain>>,
    /// Transfers that it has promised and keeps others waiting for.
    pub owing: Vec<(LinkId, u32)>,
    /// Whole blocks whose segment's header is not here yet.
    pub unchecked: BTreeMap<SegmentId, Vec<(LinkId, u32, BlockId, bool)>>,
    /// Blocks kept that the node did not take: it gave their transfers up, and that was not carried out yet.
    pub untaken: Vec<(LinkId, u32, BlockId)>,
    pub pages: BTreeSet<PageHash>,
    pub readers: Vec<Reader>,
    pub wake_at: Option<u64>,
    pub tick_at: Option<u64>,
    pub disk_free: u64,
    /// Something arrived that a waiting reader may want.
    pub fresh: bool,
    pub count: Count,
    /// When each of its readers was done, over all its lives.
    pub finishes: Vec<u64>,
}

/// What happened at a host, for reports.
#[derive(Default, Clone, Debug)]
pub struct Count {
    /// Bytes of blocks sent and received in DATA frames.
    pub data_sent: u64,
    pub data_received: u64,
    /// Everything that its link carried outwards, with headers and ACKs.
    pub wire_sent: u64,
    /// Bytes of DATA that were thrown away: already here, or not expected any more.
    pub wasted: u64,
    pub control_frames: BTreeMap<u8, u64>,
    pub control_bytes: u64,
    pub state_ages: Ages,
    pub dropped_pieces: u64,
    pub gone: u64,
    pub pages_sent: u64,
    pub wrong: u64,
}

/// How long each STATE was under way when it was read here: counts by the millisecond, the last for all that were later.
#[derive(Clone, Debug)]
pub struct Ages(Box<[u32; 1000]>);

impl Default for Ages {
    fn default() -> Ages {
        Ages(Box::new([0; 1000]))
    }
}

impl Ages {
    pub fn note(&mut self, nanos: u64) {
        self.0[((nanos / super::MS) as usize).min(self.0.len() - 1)] += 1;
    }

    pub fn add(&mut self, other: &Ages) {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(sum, count)| *sum += count);
    }

    /// Milliseconds that so many of a hundred took at the most.
    pub fn percentile(&self, part: u64) -> u64 {
        let all: u64 = self.0.iter().map(|count| *count as u64).sum();
        let mut left = all * part / 100;
        let reached = |count: &u32| {
            let here = *count as u64 > left;
            left = left.saturating_sub(*count as u64);
            here
        };
        self.0.iter().position(reached).unwrap_or(0) as u64
    }
}

/// What a paused process finds when it goes on.
pub enum Backlog {
    Input(Box<Input>),
    Messages { connection: usize, side: usize, messages: Vec<super::net::Message>, bytes: u32 },
    Closed { connection: usize, side: usize },
}

impl Host {
    pub fn new(setup: Setup, addr: SocketAddr, origin: bool) -> Host {
        Host {
            wire: Wire::new(setup.rate),
            readers: Vec::new(),
            setup,
            addr,
            origin,
            node: None,
            life: 0,
            id: None,
            exited: false,
            paused: false,
            backlog: VecDeque::new(),
            links: BTreeMap::new(),
            cache: HashMap::default(),
            solid: 0,
            incoming: HashMap::default(),
            owing: Vec::new(),
            unchecked: BTreeMap::new(),
            untaken: Vec::new(),
            pages: BTreeSet::new(),
            wake_at: None,
            tick_at: None,
            disk_free: 0,
            fresh: false,
            count: Count::default(),
            finishes: Vec::new(),
        }
    }

    /// Power is gone: nothing of a life stays but what was counted.
    pub fn clear(&mut self) {
        self.node = None;
        self.life += 1;
        self.paused = false;
        self.backlog.clear();
        self.links.clear();
        self.cache.clear();
        self.solid = 0;
        self.incoming.clear();
        self.owing.clear();
        self.unchecked.clear();
        self.untaken.clear();
        self.pages.clear();
        self.readers.clear();
        (self.wake_at, self.tick_at) = (None, None);
        self.wire.turns.clear();
    }

    pub fn has(&self, block: BlockId) -> bool {
        let bit = block.index % swarmfs::chunk::BLOCKS_PER_SEGMENT;
        self.cache.get(&block.segment()).is_some_and(|held| held.have >> bit & 1 == 1)
    }

    /// Keeps a block whose header is here. False if it was here already.
    pub fn keep(&mut self, block: BlockId) -> bool {
        let bit = 1u64 << (block.index % swarmfs::chunk::BLOCKS_PER_SEGMENT);
        let held = self.cache.get_mut(&block.segment()).expect("blocks are kept after their header");
        let fresh = held.have & bit == 0;
        held.have |= bit;
        self.solid += fresh as u32;
        fresh
    }

    pub fn admit(&mut self, segment: SegmentId, zero: u64) {
        let held = self.cache.entry(segment).or_default();
        if !held.header {
            *held = Held { header: true, have: zero, zero };
        }
    }

    pub fn forget(&mut self, segment: SegmentId) {
        self.unchecked.remove(&segment);
        if let Some(held) = self.cache.remove(&segment) {
            self.solid -= (held.have & !held.zero).count_ones();
        }
    }

    pub fn done(&self) -> bool {
        self.readers.len() == self.setup.readers.len() && self.readers.iter().all(|reader| reader.finished.is_some())
    }
}
