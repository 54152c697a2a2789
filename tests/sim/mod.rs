//! The product's own `Node`s on a simulated network, in virtual time: an event queue, hosts, faults, and what must hold.
//!
//! Everything follows from the seed. Checked at every step: no reader gets a block that is not there and right, no node
//! reserves more than its budget or has more in memory than it reserved, what a node says it has its driver has. A run
//! that is not finished within its bound fails, and so does any panic in a node; both print how to repeat them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;

use swarmfs::chunk::{BLOCKS_PER_SEGMENT, BlockId, SEGMENTS_PER_CHUNK, SegmentId, blocks_of};
use swarmfs::keys::OriginKey;
use swarmfs::swarm::{Input, JoinAim, LinkId, Node, Output, ReaderId, Subnet, Time};
use swarmfs::wire::datagram::{Join, Welcome};
use swarmfs::wire::frame::{DATA_HEADER, FRAME_HEADER, Frame, Hello, NodeId, Prefix};
use swarmfs::wire::head::{PageHash, Totals, TreeHead, TreeName};

pub mod conduct;
pub mod host;
pub mod net;
mod queue;
pub mod tree;

use host::{Backlog, Host, Incoming, Reader, Setup};
use net::{ACK, Connection, End, Message, Piece, Wire};
use queue::Queue;
use tree::Tree;

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000 * MS;
pub const MIB: u64 = 1 << 20;

/// Bytes a second of a link named in Mbit/s.
pub const fn mbit(rate: u64) -> u64 {
    rate * 125_000
}

/// A reader that takes whatever is there.
pub const UNBOUND: u64 = 4_000_000_000;

/// What the network does to everybody.
#[derive(Clone)]
pub struct Network {
    pub latency: u64,
    /// A switch port's queue in bytes.
    pub port: u64,
    /// The most that a pipe has under way: TCP's receive window.
    pub window: u32,
    /// Of 1,000 pieces of a stream, and of 1,000 datagrams, so many are lost.
    pub lost_pieces: u32,
    pub lost_datagrams: u32,
    /// Datagrams come up to this much later, each by itself.
    pub datagram_jitter: u64,
    pub racks: Option<Racks>,
}

/// Readers behind switches of their own, in the order in which they are added; the origin is at the switch that joins
/// them.
#[derive(Clone, Copy)]
pub struct Racks {
    pub readers: usize,
    /// Bytes a second of the link between a rack's switch and the others, each way.
    pub uplink: u64,
}

impl Default for Network {
    fn default() -> Network {
        Network {
            latency: 100_000,
            port: 256 * 1024,
            window: 256 * 1024,
            lost_pieces: 0,
            lost_datagrams: 0,
            datagram_jitter: MS,
            racks: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Power loss.
    Crash(usize),
    /// Started again, with nothing remembered.
    Return(usize),
    Pause(usize),
    Resume(usize),
    /// The cable is pulled, and plugged in again.
    Cut(usize),
    Join(usize),
    /// The process ends and closes its links.
    Exit(usize),
}

impl Fault {
    fn host(self) -> usize {
        match self {
            Fault::Crash(host)
            | Fault::Return(host)
            | Fault::Pause(host)
            | Fault::Resume(host)
            | Fault::Cut(host)
            | Fault::Join(host)
            | Fault::Exit(host) => host,
        }
    }
}

enum Event {
    Start(usize),
    /// A link's sender has sent a piece.
    Sent {
        host: usize,
        connection: usize,
        side: usize,
        piece: Piece,
    },
    Arrived {
        connection: usize,
        side: usize,
        piece: Piece,
    },
    Acknowledged {
        connection: usize,
        side: usize,
        bytes: u32,
    },
    Lost {
        connection: usize,
        side: usize,
        piece: Piece,
        round_trip: u64,
    },
    Asked {
        connection: usize,
    },
    Connected {
        connection: usize,
    },
    /// The other end is closed or was never there.
    Reset {
        connection: usize,
        side: usize,
    },
    Datagram {
        host: usize,
        from: SocketAddr,
        datagram: Rc<Datagram>,
    },
    Wake(usize, u32),
    Tick(usize, u32),
    Read {
        host: usize,
        life: u32,
        reader: usize,
    },
    Prepared {
        host: usize,
        life: u32,
        segment: SegmentId,
    },
    Fault(Fault),
    Misbehave(usize, u32),
}

enum Datagram {
    Join(Join),
    Welcome(Box<Welcome>),
}

/// Bytes of one on the wire: all are padded to 1,200.
const DATAGRAM: u64 = 1_242;

pub struct World {
    pub seed: u64,
    pub now: u64,
    pub tree: Tree,
    pub hosts: Vec<Host>,
    addrs: BTreeMap<SocketAddr, usize>,
    /// Of each rack the way out and the way in.
    uplinks: Vec<[Wire; 2]>,
    /// Somebody who was not done when last looked at.
    laggard: Cell<usize>,
    network: Network,
    queue: Queue<Event>,
    connections: Vec<Connection>,
    /// Memory of pieces that were read.
    spare: Vec<Vec<Message>>,
    rng: fastrand::Rng,
    key: OriginKey,
    head: TreeHead,
    /// One of the tree as it was before, rightly signed.
    old_head: TreeHead,
    faults_left: usize,
    pub broadcasts: u64,
    /// Bytes that came into racks from elsewhere, with headers and ACKs.
    pub crossed: u64,
}

/// Says how to repeat a run that failed, whatever it was that panicked.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let test = std::thread::current().name().unwrap_or("").to_owned();
            eprintln!(
                "at {:.6} s of simulated time, seed {}; again by: SWARMFS_SIM_SEED={} cargo test --test simulation {test}",
                self.now as f64 / 1e9,
                self.seed,
                self.seed
            );
        }
    }
}

/// The seeds of a test: the one in the environment, or those given.
pub fn seeds(default: std::ops::RangeInclusive<u64>) -> std::ops::RangeInclusive<u64> {
    match std::env::var("SWARMFS_SIM_SEED").ok().and_then(|text| text.parse().ok()) {
        Some(seed) => seed..=seed,
        None => default,
    }
}

pub fn seed(default: u64) -> u64 {
    *seeds(default..=default).start()
}

impl World {
    pub fn new(seed: u64, network: Network) -> World {
        assert!(network.latency >= queue::LENGTH, "what one host does to another comes in a later stretch");
        let key = OriginKey::from_seed(&[7; 32]);
        let name: TreeName = "tree".parse().expect("a plain name");
        World {
            seed,
            now: 0,
            tree: Tree::default(),
            hosts: Vec::new(),
            addrs: BTreeMap::new(),
            uplinks: Vec::new(),
            laggard: Cell::new(0),
            network,
            queue: Queue::new(),
            connections: Vec::new(),
            spare: Vec::new(),
            rng: fastrand::Rng::with_seed(seed),
            old_head: TreeHead::sign(name.clone(), 0, PageHash([1; 32]), 0, Totals::default(), &key),
            head: TreeHead::sign(name, 1, PageHash([0; 32]), 0, Totals::default(), &key),
            key,
            faults_left: 0,
            broadcasts: 0,
            crossed: 0,
        }
    }

    pub fn origin(&mut self, setup: Setup) -> usize {
        self.add(setup, true)
    }

    pub fn reader(&mut self, setup: Setup) -> usize {
        self.add(setup, false)
    }

    fn add(&mut self, setup: Setup, origin: bool) -> usize {
        let index = self.hosts.len();
        let start = setup.start;
        let addr = match self.network.racks {
            // A rack has a prefix of its own.
            Some(racks) if !origin => {
                let (rack, place) = ((index - 1) / racks.readers, (index - 1) % racks.readers);
                if rack == self.uplinks.len() {
                    self.uplinks.push([Wire::new(racks.uplink), Wire::new(racks.uplink)]);
                }
                ([10, 1, rack as u8, place as u8 + 1], 19024).into()
            }
            _ => ([10, 0, (index / 250) as u8, (index % 250) as u8 + 1], 19024).into(),
        };
        self.addrs.insert(addr, index);
        self.hosts.push(Host::new(setup, addr, origin));
        self.after(start, index, Event::Start(index));
        index
    }

    /// A rack is a network; without racks all are in one.
    fn subnet_of(&self, host: usize) -> Option<Subnet> {
        let IpAddr::V4(address) = self.hosts[host].addr.ip() else { return None };
        Some(Subnet { address, mask: Ipv4Addr::new(255, 255, if self.network.racks.is_some() { 255 } else { 0 }, 0) })
    }

    pub fn at(&mut self, time: u64, fault: Fault) {
        self.faults_left += 1;
        self.after(time - self.now, fault.host(), Event::Fault(fault));
    }

    /// Somebody on a host waits for a page of the catalogue.
    pub fn want_page(&mut self, host: usize, hash: PageHash) {
        self.input(host, Input::WantPage { hash });
    }

    /// Runs until every reader is done.
    ///
    /// # Panics
    /// When that takes longer than `bound`, or anything that must hold does not.
    pub fn run(&mut self, bound: u64) {
        while self.faults_left > 0 || !self.all_done() {
            let Some((time, event)) = self.queue.pop() else { break };
            assert!(time + queue::LENGTH > self.now, "time goes back by no more than a turn");
            self.now = time;
            if self.now > bound {
                panic!("not finished within {:.1} s\n{}", bound as f64 / 1e9, self.unfinished());
            }
            self.happen(event);
        }
        assert!(self.all_done(), "nothing happens any more\n{}", self.unfinished());
    }

    /// Runs for a while, whoever is done; every stretch that has begun to its end.
    pub fn run_until(&mut self, time: u64) {
        while self.queue.next().is_some_and(|begins| begins <= time) {
            let Some((due, event)) = self.queue.pop() else { break };
            self.now = due;
            self.happen(event);
        }
        self.now = time;
    }

    /// The host at the other end of a connection.
    pub fn other(&self, connection: usize, side: usize) -> usize {
        self.connections[connection].ends[1 - side].host
    }

    pub fn all_done(&self) -> bool {
        let done = |host: &Host| {
            host.origin || !host.setup.conduct.is_waited_for() || (host.node.is_none() && host.life > 0) || host.done()
        };
        if self.hosts.get(self.laggard.get()).is_some_and(|host| !done(host)) {
            return false;
        }
        match self.hosts.iter().position(|host| !done(host)) {
            Some(laggard) => self.laggard.set(laggard),
            None => return true,
        }
        false
    }

    fn unfinished(&self) -> String {
        let mut text = String::new();
        for (index, host) in self.hosts.iter().enumerate().filter(|(_, host)| host.origin || !host.done()) {
            let node = host.node.as_ref();
            text += &format!(
                "host {index}: alive {}, links {}, transfers {}, reserved {:?}, {:?}\n",
                node.is_some(),
                host.links.len(),
                host.incoming.len(),
                node.map(Node::reserved_blocks),
                node.map(Node::counters)
            );
            for reader in host.readers.iter().filter(|reader| reader.finished.is_none()) {
                text += &format!("   read {} KiB, waits for {:?}\n", reader.bytes / 1024, reader.waiting);
            }
            for ((link, transfer), incoming) in host.incoming.iter().take(4) {
                text += &format!("   awaits {:?} by {transfer:x} over {link:?}\n", incoming.run);
            }
        }
        text
    }

    /// Something that a host will notice.
    fn after(&mut self, delay: u64, host: usize, event: Event) {
        self.queue.push(self.now + delay, host, event);
    }

    fn time(&self) -> Time {
        Time(self.now / 1000)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Start(host) => self.start(host),
            Event::Sent { host, connection, side, piece } => self.sent(host, connection, side, piece),
            Event::Arrived { connection, side, piece } => self.arrived(connection, side, piece),
            Event::Acknowledged { connection, side, bytes } => {
                if self.ours(connection, side) {
                    self.connections[connection].pipes[side].acknowledged(bytes);
                    self.take_turn(connection, side);
                }
            }
            Event::Lost { connection, side, piece, round_trip } => {
                if self.ours(connection, side) {
                    let now = self.now;
                    self.connections[connection].pipes[side].lost(piece, now, round_trip);
                    self.take_turn(connection, side);
                }
            }
            Event::Asked { connection } => self.asked(connection),
            Event::Connected { connection } => {
                if self.ours(connection, 0)
                    && let Some(link) = self.connections[connection].ends[0].link
                {
                    let host = self.connections[connection].ends[0].host;
                    let subnet = self.subnet_of(host);
                    self.input(host, Input::Connected { link, subnet });
                    self.pump(connection, 0);
                }
            }
            Event::Reset { connection, side } => self.reset(connection, side),
            Event::Datagram { host, from, datagram } => self.datagram(host, from, &datagram),
            Event::Wake(host, life) => {
                if self.hosts[host].life == life && self.hosts[host].wake_at == Some(self.now) {
                    self.wake(host);
                }
            }
            Event::Tick(host, life) => {
                if self.hosts[host].life == life && self.hosts[host].tick_at == Some(self.now) {
                    self.hosts[host].tick_at = None;
                    if !self.hosts[host].paused {
                        self.input(host, Input::Tick);
                    }
                }
            }
            Event::Read { host, life, reader } => {
                if self.hosts[host].life == life {
                    self.read(host, reader);
                }
            }
            Event::Prepared { host, life, segment } => {
                if self.hosts[host].life == life {
                    self.prepared(host, segment);
                }
            }
            Event::Fault(fault) => self.fault(fault),
            Event::Misbehave(host, life) => {
                if self.hosts[host].life == life && self.hosts[host].node.is_some() {
                    self.misbehave(host);
                }
            }
        }
    }

    // ---- hosts

    fn start(&mut self, index: usize) {
        let id = NodeId(self.rng.u64(1..));
        (self.hosts[index].id, self.hosts[index].exited) = (Some(id), false);
        let hello = Hello {
            node: id,
            origin: self.hosts[index].origin,
            port: self.hosts[index].addr.port(),
            sequence: 1,
            key: self.key.public(),
            tree: self.head.name.clone(),
        };
        let (seed, now) = (self.rng.u64(..), self.time());
        let host = &mut self.hosts[index];
        host.node = Some(Node::new(host.setup.policy.clone(), hello, seed, now));
        host.readers = host.setup.readers.iter().map(|plan| Reader::new(plan.clone())).collect();
        for reader in 0..self.hosts[index].readers.len() {
            self.read_in(index, reader, 0);
        }
        self.input(index, Input::Tick);
        self.misbehave_soon(index);
    }

    fn fault(&mut self, fault: Fault) {
        self.faults_left -= 1;
        match fault {
            Fault::Crash(host) => {
                for (connection, side) in std::mem::take(&mut self.hosts[host].links).into_values() {
                    self.connections[connection].ends[side].open = false;
                }
                self.hosts[host].clear();
            }
            Fault::Return(host) => self.start(host),
            Fault::Pause(host) => self.hosts[host].paused = true,
            Fault::Resume(host) => self.resume(host),
            Fault::Cut(host) => self.hosts[host].wire.cut = true,
            Fault::Join(host) => self.hosts[host].wire.cut = false,
            Fault::Exit(host) => self.exit(host),
        }
    }

    fn exit(&mut self, host: usize) {
        for (connection, side) in std::mem::take(&mut self.hosts[host].links).into_values() {
            self.close(connection, side);
        }
        self.hosts[host].clear();
        self.hosts[host].exited = true;
    }

    fn resume(&mut self, host: usize) {
        self.hosts[host].paused = false;
        while let Some(item) = self.hosts[host].backlog.pop_front() {
            match item {
                Backlog::Input(input) => self.input(host, *input),
                Backlog::Closed { connection, side } => self.reset(connection, side),
                Backlog::Messages { connection, side, messages, bytes } => {
                    self.receive(connection, side, messages, bytes);
                }
            }
        }
        self.input(host, Input::Tick);
        let links: Vec<(usize, usize)> = self.hosts[host].links.values().copied().collect();
        for (connection, side) in links {
            self.pump(connection, side);
        }
        for reader in 0..self.hosts[host].readers.len() {
            self.read_in(host, reader, 0);
        }
    }

    fn input(&mut self, host: usize, input: Input) {
        if self.hosts[host].paused {
            return self.hosts[host].backlog.push_back(Backlog::Input(Box::new(input)));
        }
        let now = self.time();
        if let Some(node) = &mut self.hosts[host].node {
            node.handle(input, now);
            self.wake_soon(host);
        }
    }

    /// A driver takes what has come in meanwhile in one go.
    fn wake_soon(&mut self, host: usize) {
        if self.hosts[host].wake_at.is_none() {
            self.hosts[host].wake_at = Some(self.now + 30_000);
            let life = self.hosts[host].life;
            self.after(30_000, host, Event::Wake(host, life));
        }
    }

    fn wake(&mut self, host: usize) {
        self.hosts[host].wake_at = None;
        if self.hosts[host].paused {
            return;
        }
        let Some(node) = &mut self.hosts[host].node else { return };
        node.settle();
        while let Some(output) = self.hosts[host].node.as_mut().and_then(Node::poll_output) {
            self.carry_out(host, output);
        }
        for (link, transfer, block) in std::mem::take(&mut self.hosts[host].untaken) {
            let expected = self.hosts[host].incoming.contains_key(&(link, transfer));
            assert!(!expected, "host {host} expected {block:?} and its node knows nothing of it");
        }
        self.check(host);
        if std::mem::take(&mut self.hosts[host].fresh) {
            for reader in 0..self.hosts[host].readers.len() {
                let waiting = self.hosts[host].readers[reader].waiting;
                if waiting.is_some_and(|run| run.blocks().all(|block| self.hosts[host].has(block))) {
                    self.hosts[host].readers[reader].waiting = None;
                    self.read_in(host, reader, 0);
                }
            }
        }
        let Some(node) = &self.hosts[host].node else { return };
        let due = (node.next_tick().0 * 1000).max(self.now);
        if self.hosts[host].tick_at.is_none_or(|at| due < at) {
            self.hosts[host].tick_at = Some(due);
            let life = self.hosts[host].life;
            self.after(due - self.now, host, Event::Tick(host, life));
        }
    }

    fn check(&self, index: usize) {
        let host = &self.hosts[index];
        let Some(node) = &host.node else { return };
        let (reserved, budget) = (node.reserved_blocks(), host.setup.policy.budget_blocks);
        assert!(reserved <= budget, "host {index} reserved {reserved} of {budget} blocks");
        assert!(host.solid <= reserved, "host {index} holds {} blocks, reserved {reserved}", host.solid);
    }

    fn carry_out(&mut self, host: usize, output: Output) {
        match output {
            Output::Connect { link, addr } => self.connect(host, link, addr),
            Output::Close { link } => {
                self.hosts[host].incoming.retain(|(of, _), _| *of != link);
                if let Some((connection, side)) = self.hosts[host].links.remove(&link) {
                    self.close(connection, side);
                }
            }
            Output::Send { link, frame } => {
                let Some(frame) = self.alter(host, frame) else { return };
                let mut bytes = Vec::with_capacity(128);
                frame.encode(&mut bytes);
                let len = bytes.len() as u32;
                let count = &mut self.hosts[host].count;
                *count.control_frames.entry(bytes[1]).or_default() += 1;
                count.control_bytes += len as u64;
                self.write(host, link, Message::Frame(bytes, self.now), len);
            }
            Output::SendHeader { link, segment } => {
                let held = self.hosts[host].cache.get(&segment).copied().unwrap_or_default();
                assert!(held.header, "host {host} is to send a header that it has not: {segment:?}");
                let size = self.tree.find(segment.object).map_or(0, |object| object.size);
                let blocks = blocks_of(size).saturating_sub(segment.first_block()).min(BLOCKS_PER_SEGMENT);
                let len = FRAME_HEADER as u32 + 97 + 32 * (blocks - held.zero.count_ones());
                self.write(host, link, Message::Header(segment), len);
            }
            // The world's origin signs with a 1, which nobody else can.
            Output::Prove { link, .. } => {
                let frame = Frame::Proof { signature: [1; 64] };
                self.carry_out(host, Output::Send { link, frame });
            }
            Output::SendPage { link, hash } => {
                if self.hosts[host].origin || self.hosts[host].pages.contains(&hash) {
                    self.hosts[host].count.pages_sent += 1;
                    self.write(host, link, Message::Page(hash), 30_000);
                } else {
                    self.carry_out(host, Output::Send { link, frame: Frame::NoPage(hash) });
                }
            }
            Output::Join { join } => self.join(host, join),
            Output::Welcome { to, peers } => {
                let from = self.hosts[host].addr;
                let node = self.id_of(host);
                let origin = self.hosts[host].origin;
                let welcome = Welcome { node, port: from.port(), origin, head: self.head.clone(), peers };
                if let Some(to) = self.addrs.get(&to).copied() {
                    self.throw(host, to, Rc::new(Datagram::Welcome(Box::new(welcome))));
                }
            }
            Output::Receive { link, transfer, run, .. } => {
                self.hosts[host].incoming.insert((link, transfer), Incoming { run, part: None });
            }
            Output::Ignore { link, transfer } => {
                self.hosts[host].incoming.remove(&(link, transfer));
            }
            Output::Ready { link } => {
                if let Some(&(connection, side)) = self.hosts[host].links.get(&link) {
                    self.pump(connection, side);
                }
            }
            Output::Prepare { segment } => self.prepare(host, segment),
            Output::Resolve { object } => {
                let size = self.tree.find(object).map(|object| object.size);
                self.input(host, Input::Resolved { object, size });
            }
            Output::Drop { chunk } => {
                for index in 0..SEGMENTS_PER_CHUNK {
                    let segment = SegmentId { object: chunk.object, index: chunk.index * SEGMENTS_PER_CHUNK + index };
                    self.hosts[host].forget(segment);
                }
            }
            Output::DropPage { hash } => {
                self.hosts[host].pages.remove(&hash);
            }
            Output::Gone { .. } | Output::PageGone { .. } => self.hosts[host].count.gone += 1,
        }
    }

    fn prepare(&mut self, index: usize, segment: SegmentId) {
        let size = self.tree.find(segment.object).map_or(0, |object| object.size);
        let len = swarmfs::chunk::segment_len(size, segment.index) as u64;
        let host = &mut self.hosts[index];
        // A disk and a hash of 1 GB/s, and a millisecond to begin.
        host.disk_free = host.disk_free.max(self.now) + MS + len;
        let (delay, life) = (host.disk_free - self.now, host.life);
        self.after(delay, index, Event::Prepared { host: index, life, segment });
    }

    fn prepared(&mut self, index: usize, segment: SegmentId) {
        let zero = self.tree.zero(segment);
        let size = self.tree.find(segment.object).map_or(0, |object| object.size);
        let blocks = blocks_of(size).saturating_sub(segment.first_block()).min(BLOCKS_PER_SEGMENT);
        self.hosts[index].admit(segment, zero);
        for block in 0..blocks {
            if zero >> block & 1 == 0 {
                self.hosts[index].keep(BlockId { object: segment.object, index: segment.first_block() + block });
            }
        }
        self.hosts[index].fresh = true;
        self.input(index, Input::Prepared { segment, zero });
    }

    // ---- readers

    fn read_in(&mut self, host: usize, reader: usize, delay: u64) {
        self.hosts[host].readers[reader].due = Some(self.now + delay);
        let life = self.hosts[host].life;
        self.after(delay, host, Event::Read { host, life, reader });
    }

    fn read(&mut self, index: usize, reader: usize) {
        let due = self.hosts[index].readers[reader].due == Some(self.now);
        if !due || self.hosts[index].paused || self.hosts[index].readers[reader].finished.is_some() {
            return;
        }
        let host = &mut self.hosts[index];
        let next = host.readers[reader].next(&self.tree, &mut self.rng);
        let Some(run) = next else {
            host.readers[reader].finished = Some(self.now);
            host.finishes.push(self.now);
            self.input(index, Input::CloseReader { reader: ReaderId(reader as u64) });
            if self.hosts[index].setup.leaves && self.hosts[index].done() {
                self.hosts[index].setup.readers.clear();
                self.exit(index);
            }
            return;
        };
        if let Some(window) = host.readers[reader].window(&self.tree) {
            self.input(index, Input::Window { reader: ReaderId(reader as u64), window });
        }
        let size = self.tree.find(run.object).map_or(0, |object| object.size);
        let host = &mut self.hosts[index];
        let reads = host.readers[reader].reads(&self.tree, run);
        let missing = reads.into_iter().filter(|run| !run.blocks().all(|block| host.has(block)));
        for run in missing.collect::<Vec<_>>() {
            self.input(index, Input::demand(run, size));
        }
        let host = &mut self.hosts[index];
        if run.blocks().all(|block| host.has(block)) {
            let node = host.node.as_ref().expect("only who lives reads");
            for block in run.blocks() {
                assert!(node.has_block(block), "host {index} reads {block:?}, which its node does not know of");
            }
            let bytes: u64 = run.blocks().map(|block| swarmfs::chunk::block_len(size, block.index) as u64).sum();
            let reader_ = &mut host.readers[reader];
            reader_.first.get_or_insert(self.now);
            reader_.bytes += bytes;
            reader_.advance(run);
            let delay = bytes * SECOND / reader_.plan.rate;
            self.read_in(index, reader, delay);
        } else if host.readers[reader].waiting.is_none() {
            host.readers[reader].waiting = Some(run);
        }
    }

    // ---- datagrams

    fn id_of(&self, host: usize) -> NodeId {
        self.hosts[host].id.expect("a running host has an id")
    }

    fn join(&mut self, host: usize, aim: JoinAim) {
        let port = self.hosts[host].addr.port();
        let join = Join { node: self.id_of(host), port, sequence: 1, position: 0, tree: Some(self.head.name.clone()) };
        match aim {
            JoinAim::Broadcast => {
                self.broadcasts += 1;
                let join = Rc::new(Datagram::Join(join));
                for to in 0..self.hosts.len() {
                    if to != host {
                        self.throw(host, to, join.clone());
                    }
                }
            }
            JoinAim::Unicast(addr) => {
                if let Some(to) = self.addrs.get(&addr).copied() {
                    self.throw(host, to, Rc::new(Datagram::Join(join)));
                }
            }
        }
    }

    fn throw(&mut self, from: usize, to: usize, datagram: Rc<Datagram>) {
        let lost = self.rng.u32(0..1000) < self.network.lost_datagrams;
        if lost || self.hosts[from].wire.cut || self.hosts[to].wire.cut {
            return;
        }
        let at = self.now + self.network.latency + self.rng.u64(0..=self.network.datagram_jitter);
        let port = &mut self.hosts[to].wire;
        if port.queued(self.now) + DATAGRAM > self.network.port {
            return;
        }
        let at = port.through_port(at.min(self.now + self.network.latency), DATAGRAM).max(at);
        let from = self.hosts[from].addr;
        self.after(at - self.now, to, Event::Datagram { host: to, from, datagram });
    }

    fn datagram(&mut self, host: usize, from: SocketAddr, datagram: &Datagram) {
        if self.hosts[host].node.is_none() || self.hosts[host].paused {
            return;
        }
        match datagram {
            Datagram::Join(join) => self.input(host, Input::Join { from, join: join.clone() }),
            Datagram::Welcome(welcome) => self.input(host, Input::Welcome { from, welcome: welcome.clone() }),
        }
    }
}

mod stream;
