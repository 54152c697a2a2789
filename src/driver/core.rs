//! The core of the event loop: the node, and how its decisions are carried out.
//!
//! Everything here runs on one thread; a `Handle` is shared by the loop's tasks and borrowed only between waits. After
//! every batch of events `settle` lets the node draw its consequences and carries them out.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc};

use super::links::{self, LinkIo, Owed};
use super::waiting::Waiting;
use super::{Command, Neighbour, Read, Shared, Snapshot, Ticket, Unavailable, page_bytes};
use crate::catalogue::Page;
use crate::chunk::{BLOCK, Run, SegmentId, blocks_in, segment_len};
use crate::net::sockets::{self, Sockets};
use crate::origin::{SegmentError, Tree};
use crate::settings::NetSettings;
use crate::swarm::{Input, JoinAim, LinkId, Node, Output, Policy, PrepareError, Time, Wanted};
use crate::wire::codec::Malformed;
use crate::wire::datagram::{Datagram, Join, MAX_DATAGRAM, Welcome};
use crate::wire::frame::{Frame, GoneReason, Hello, NodeId};
use crate::wire::head::{PageHash, TreeHead};
use crate::wire::header::SegmentHeader;

/// How often deadlines are looked at and the snapshot is renewed.
const HOUSEKEEPING: Duration = Duration::from_millis(100);
/// Bytes that a row takes in a page, roughly: whether a catalogue is small enough to be fetched whole.
const ROW_BYTES: u64 = 150;
/// How often an origin closes files that nobody asks for any more.
const TIDY: Duration = Duration::from_secs(60);
/// How often an origin lists its tree again, at most, because a reader found a file changed.
const RESCAN: Duration = Duration::from_secs(1);

pub enum Role {
    Origin { tree: Arc<Tree> },
    Reader { answers: Vec<(SocketAddr, Welcome)> },
}

pub struct Core {
    pub node: Node,
    pub shared: Arc<Shared>,
    pub links: HashMap<LinkId, LinkIo>,
    pub statistics: Statistics,
    /// What links read into, in turn: nothing of it is kept between two events.
    pub scratch: Vec<u8>,
    waiting: Waiting,
    /// Parked reads that the node was not told of yet.
    undemanded: VecDeque<Ticket>,
    tree: Option<Arc<Tree>>,
    net: NetSettings,
    me: NodeId,
    port: u16,
    budget: u64,
    /// An origin's listing is under way, or ended so shortly ago that the next must wait.
    rescanning: bool,
    /// Fetch the whole catalogue: it fits an eighth of the budget.
    prefetch: bool,
    began: Instant,
    /// The timer sleeps until then; a nearer time must wake it.
    armed: Time,
    rearm: Rc<Notify>,
    /// The node's own socket, once the loop runs.
    socket: Option<Rc<UdpSocket>>,
    /// Work that waits, which a batch of events gave rise to.
    errands: Vec<Errand>,
}

/// What takes time, and is done by a task of its own.
enum Errand {
    Connect(LinkId, SocketAddr),
    Prepare(SegmentId),
    Datagram(SocketAddr, Vec<u8>),
    Broadcast(Vec<u8>),
    Rescan,
}

#[derive(Default)]
pub struct Statistics {
    pub from_origin: u64,
    pub from_peers: u64,
    pub to_peers: u64,
    pub malformed: u64,
    pub malformed_frames: u64,
    pub unexpected: u64,
}

pub type Handle = Rc<RefCell<Core>>;

/// What a core is made of, on the thread that it will run on.
pub struct Parts {
    pub shared: Arc<Shared>,
    pub net: NetSettings,
    /// Bytes that may be held and in flight together.
    pub budget: u64,
    pub role: Role,
    pub port: u16,
    pub me: NodeId,
    /// Decides all the node's chances.
    pub seed: u64,
}

impl Core {
    fn new(parts: Parts) -> Core {
        let Parts { shared, net, budget, role, port, me, seed } = parts;
        let head = shared.head.read().expect("no holder of this lock panics").clone();
        let (tree, answers) = match role {
            Role::Origin { tree } => (Some(tree), Vec::new()),
            Role::Reader { answers } => (None, answers),
        };
        let hello = Hello {
            node: me,
            origin: tree.is_some(),
            port,
            sequence: head.sequence,
            key: head.key,
            tree: head.name.clone(),
        };
        let policy = Policy::with_budget(budget);
        let prefetch = tree.is_none() && head.totals.rows.saturating_mul(ROW_BYTES) < policy.page_budget;
        let mut node = Node::new(policy, hello, seed, Time(0));
        for (from, welcome) in answers {
            node.handle(Input::Welcome { from, welcome: Box::new(welcome) }, Time(0));
        }
        if prefetch {
            node.handle(Input::PageAhead { hash: head.root }, Time(0));
        }
        Core {
            node,
            shared,
            links: HashMap::new(),
            statistics: Statistics::default(),
            scratch: vec![0; 256 * 1024],
            waiting: Waiting::default(),
            undemanded: VecDeque::new(),
            tree,
            net,
            me,
            port,
            budget,
            rescanning: false,
            prefetch,
            began: Instant::now(),
            armed: Time(0),
            rearm: Rc::new(Notify::new()),
            errands: Vec::new(),
            socket: None,
        }
    }

    pub fn now(&self) -> Time {
        Time(self.began.elapsed().as_micros() as u64)
    }

    pub fn handle(&mut self, input: Input) {
        let now = self.now();
        tracing::trace!(?input);
        self.node.handle(input, now);
    }

    fn head(&self) -> Arc<TreeHead> {
        self.shared.head.read().expect("no holder of this lock panics").clone()
    }

    // ---- what the node decided

    /// Ends a batch of events.
    pub fn settle(&mut self) {
        self.node.settle();
        self.carry_all_out();
        let next = self.node.next_tick();
        if next < self.armed {
            self.rearm.notify_one();
        }
    }

    fn carry_all_out(&mut self) {
        while let Some(output) = self.node.poll_output() {
            self.carry_out(output);
        }
    }

    fn carry_out(&mut self, output: Output) {
        tracing::trace!(?output);
        match output {
            Output::Connect { link, addr } => self.errands.push(Errand::Connect(link, addr)),
            Output::Close { link } => {
                if let Some(io) = self.links.remove(&link) {
                    tracing::debug!(peer = %io.addr, "link ended from this side");
                }
            }
            Output::Send { link, frame } => self.queue(link, &frame),
            Output::SendHeader { link, segment } => {
                self.owe(link, Owed::Header(segment));
            }
            Output::SendPage { link, hash } => self.owe(link, Owed::Page(hash)),
            Output::Join { join } => {
                let head = self.head();
                let join_text = Join {
                    node: self.me,
                    port: self.port,
                    sequence: head.sequence,
                    position: 0,
                    tree: Some(head.name.clone()),
                };
                let bytes = Datagram::Join(join_text).encode();
                match join {
                    JoinAim::Broadcast => self.errands.push(Errand::Broadcast(bytes)),
                    JoinAim::Unicast(addr) => self.errands.push(Errand::Datagram(addr, bytes)),
                }
            }
            Output::Welcome { to, peers } => {
                let head = (*self.head()).clone();
                let welcome = Welcome { node: self.me, port: self.port, origin: self.tree.is_some(), head, peers };
                self.errands.push(Errand::Datagram(to, Datagram::Peers(Box::new(welcome)).encode()));
            }
            Output::Receive { link, transfer, run, size } => {
                if let Some(io) = self.links.get_mut(&link) {
                    io.expect(transfer, run, size);
                }
            }
            Output::Ignore { link, transfer } => {
                if let Some(io) = self.links.get_mut(&link) {
                    io.ignore(transfer);
                }
            }
            Output::Ready { link } => {
                if let Some(io) = self.links.get(&link) {
                    io.wake();
                }
            }
            Output::Prepare { segment } => self.errands.push(Errand::Prepare(segment)),
            Output::Resolve { object } => {
                let row = self.tree.as_ref().and_then(|tree| tree.object(&object));
                self.handle(Input::Resolved { object, size: row.map(|row| row.attributes().size) });
            }
            Output::Drop { chunk } => self.shared.cache.drop_chunk(chunk),
            Output::DropPage { hash } => {
                self.shared.pages.write().expect("no holder of this lock panics").remove(&hash);
            }
            Output::PageGone { hash } => self.waiting.fail_page(hash, Unavailable::Gone),
            Output::Gone { object, reason } => {
                let why = match reason {
                    GoneReason::Replaced => Unavailable::Gone,
                    GoneReason::Unreadable => Unavailable::Unreadable,
                };
                self.waiting.fail_object(object, why);
            }
        }
    }

    fn queue(&mut self, link: LinkId, frame: &Frame) {
        let Some(io) = self.links.get_mut(&link) else { return };
        if !io.queue(frame) {
            self.on_unread(link);
        }
    }

    fn owe(&mut self, link: LinkId, owed: Owed) {
        let Some(io) = self.links.get_mut(&link) else { return };
        if !io.owe(owed) {
            self.on_unread(link);
        }
    }

    /// Makes the frame of what is owed, when the link can take it.
    pub fn pay(&self, owed: Owed) -> Frame {
        match owed {
            Owed::Header(segment) => match self.shared.cache.segment(segment) {
                Some(held) => {
                    let mut out = crate::wire::codec::Writer::new();
                    held.header().encode(&mut out);
                    Frame::Header(out.finish().into())
                }
                None => Frame::NoHeader(segment),
            },
            Owed::Page(hash) => match page_bytes(&self.shared, self.tree.as_deref(), &hash) {
                Some(bytes) => Frame::Page(bytes),
                None => Frame::NoPage(hash),
            },
        }
    }

    /// A peer asks or is told more than it takes.
    pub fn on_unread(&mut self, link: LinkId) {
        if self.node.has_link(link) {
            tracing::warn!(peer = %self.peer(link), "a peer does not read what it is sent; dropped and avoided");
            self.handle(Input::Unread { link });
        }
    }

    /// A peer's bytes are no frames.
    pub fn on_malformed(&mut self, link: LinkId, error: Malformed) {
        self.statistics.malformed_frames += 1;
        if self.node.is_greeted(link) {
            tracing::warn!(peer = %self.peer(link), %error, "a peer sent a malformed frame; dropped and avoided");
        } else {
            // Whatever knocks at a port; it was never a peer.
            tracing::debug!(from = %self.peer(link), %error, "malformed greeting; closed");
        }
        self.handle(Input::BadFrame { link });
    }

    /// The other end of a link, for people.
    fn peer(&self, link: LinkId) -> String {
        self.links.get(&link).map_or_else(|| format!("{link:?}"), |io| io.addr.to_string())
    }

    /// A connection ended, or must.
    pub fn end_link(&mut self, link: LinkId) {
        self.links.remove(&link);
        self.handle(Input::Closed { link });
    }

    // ---- what arrives over links

    /// Some bytes of a block. They are kept only until the block is whole and checked.
    pub fn on_data(&mut self, link: LinkId, data: crate::wire::frame::DataHeader, bytes: &[u8]) {
        if !self.node.has_link(link) {
            return;
        }
        let origin = self.node.is_origin(link);
        let Some(io) = self.links.get_mut(&link) else { return };
        let Some(whole) = io.take(data, bytes) else {
            self.statistics.unexpected += 1;
            return;
        };
        let received = if origin { &mut self.statistics.from_origin } else { &mut self.statistics.from_peers };
        *received += bytes.len() as u64;
        self.handle(Input::Progress { link, transfer: data.transfer, bytes: bytes.len() as u32 });
        if let Some((run, block)) = whole {
            self.check_block(link, data.transfer, run, data.block, block);
        }
    }

    /// Checks a whole block against its header, or keeps it until the header comes.
    fn check_block(&mut self, link: LinkId, transfer: u32, run: Run, index: u32, bytes: Vec<u8>) {
        let block = crate::chunk::BlockId { object: run.object, index };
        let Some(segment) = self.shared.cache.segment(block.segment()) else {
            if let Some(io) = self.links.get_mut(&link) {
                io.hold(transfer, index, bytes);
            }
            return;
        };
        let good = match segment.fill(index - block.segment().first_block(), &bytes) {
            Ok(good) => good,
            Err(error) => {
                // Without memory the block is as good as not sent: the transfer stalls and is asked for again.
                tracing::error!(%error, "no memory for a block");
                return;
            }
        };
        if !good {
            tracing::warn!(peer = %self.peer(link), "a peer sent a wrong block; dropped and avoided");
        }
        self.handle(Input::Block { link, transfer, block, good });
        if good {
            self.waiting.wake(block.segment(), &self.shared);
        }
        if let Some(io) = self.links.get_mut(&link) {
            io.recycle(bytes);
        }
    }

    pub fn on_frame(&mut self, link: LinkId, frame: Frame) {
        // The rest of what a peer sent before it was dropped concerns nobody; nor does what is said before a greeting.
        match frame {
            _ if !self.node.has_link(link) => {}
            Frame::Header(_) | Frame::Page(_) if !self.node.is_greeted(link) => self.handle(Input::BadFrame { link }),
            Frame::Header(bytes) => self.on_header(link, &bytes),
            Frame::Page(bytes) => self.on_page(link, bytes),
            frame => self.handle(Input::Frame { link, frame }),
        }
    }

    fn on_header(&mut self, link: LinkId, bytes: &[u8]) {
        let Ok(header) = SegmentHeader::open(bytes, &self.head().key) else {
            return self.on_wrong_header(link);
        };
        let id = header.segment();
        // Late ones are no fault: their chunk was dropped, or another neighbour was faster.
        let Some(size) = self.node.expects_header(id) else { return };
        if header.len() != segment_len(size, id.index) {
            return self.on_wrong_header(link);
        }
        let zero = header.zero();
        // A chunk that was dropped and begun anew in this batch must be out of the cache before.
        self.carry_all_out();
        self.shared.cache.admit(header, self.node.wants_whole(id));
        self.handle(Input::Header { segment: id, zero });
        self.waiting.wake(id, &self.shared);
        let held: Vec<_> =
            self.links.iter_mut().flat_map(|(link, io)| io.release(id).into_iter().map(|held| (*link, held))).collect();
        for (link, (transfer, run, index, bytes)) in held {
            // One wrong block says enough of a peer.
            if self.node.has_link(link) {
                self.check_block(link, transfer, run, index, bytes);
            }
        }
    }

    fn on_wrong_header(&mut self, link: LinkId) {
        tracing::warn!(peer = %self.peer(link), "a peer sent a wrong segment header; dropped and avoided");
        self.handle(Input::BadHeader { link });
    }

    fn on_page(&mut self, link: LinkId, bytes: Bytes) {
        let hash = PageHash::of(&bytes);
        if !self.node.page_answered(link, &hash) {
            tracing::warn!(peer = %self.peer(link), "a peer sent a page that was not asked for; dropped and avoided");
            return self.handle(Input::BadFrame { link });
        }
        if !self.node.wants_page(&hash) {
            // The second of two answers; it is no fault, however late it comes.
            self.statistics.unexpected += 1;
            return;
        }
        match Page::parse(bytes) {
            Ok(page) => self.keep_page(hash, Arc::new(page)),
            Err(error) => {
                // Its name is right, so the origin itself signed it: nobody else will have a better one.
                tracing::error!(%error, ?hash, "the origin's catalogue has a malformed page");
                self.waiting.fail_page(hash, Unavailable::Unreadable);
                self.handle(Input::BadPage { hash });
            }
        }
    }

    fn keep_page(&mut self, hash: PageHash, page: Arc<Page>) {
        self.shared.pages.write().expect("no holder of this lock panics").insert(hash, page.clone());
        self.handle(Input::Page { hash, len: page.cost() as u32 });
        self.waiting.page(&hash, &page);
        if self.prefetch {
            for child in page.children() {
                if self.shared.page(&child).is_none() {
                    self.handle(Input::PageAhead { hash: child });
                }
            }
        }
    }

    // ---- what clients order

    fn obey(&mut self, command: Command) {
        match command {
            Command::Read { ticket, read, done } => match self.shared.read_now(&read) {
                Some(slices) => done(Ok(slices)),
                None => {
                    self.waiting.park_read(ticket, read, done);
                    self.undemanded.push_back(ticket);
                    self.demand_parked();
                }
            },
            Command::Page { ticket, hash, deadline, done } => {
                if let Some(page) = self.shared.page(&hash) {
                    return done(Ok(page));
                }
                self.waiting.park_page(ticket, hash, deadline, done);
                match self.tree.as_ref().map(|tree| tree.page(&hash)) {
                    None => self.handle(Input::WantPage { hash }),
                    Some(bytes) => match bytes.and_then(|bytes| Page::parse(bytes).ok()) {
                        Some(page) => self.keep_page(hash, Arc::new(page)),
                        None => self.waiting.cancel(ticket),
                    },
                }
            }
            Command::Cancel(ticket) => {
                self.waiting.cancel(ticket);
                self.undemand();
            }
            Command::Window { reader, window } => {
                let wanted = |wanted: &super::Wanted| Wanted {
                    run: Run {
                        object: wanted.object,
                        first: wanted.blocks.start,
                        count: wanted.blocks.end - wanted.blocks.start,
                    },
                    size: wanted.size,
                    position: wanted.ordinal * crate::chunk::BLOCKS_PER_CHUNK as u64 + wanted.blocks.start as u64,
                };
                let window = window.iter().filter(|wanted| !wanted.blocks.is_empty()).map(wanted).collect();
                self.handle(Input::Window { reader, window });
            }
            Command::CloseReader(reader) => self.handle(Input::CloseReader { reader }),
            Command::Stop => {}
        }
    }

    /// Demands what parked reads lack, as far as the node takes demands.
    fn demand_parked(&mut self) {
        while self.node.takes_demands()
            && let Some(ticket) = self.undemanded.pop_front()
        {
            let Some(read) = self.waiting.parked(ticket) else { continue };
            if let Some(run) = run_of(&read) {
                self.handle(Input::demand(run, read.size));
            }
        }
    }

    /// Takes back the demands of reads that were given up.
    fn undemand(&mut self) {
        for read in self.waiting.take_given_up() {
            if let Some(run) = run_of(&read) {
                self.handle(Input::Undemand { run });
            }
        }
    }

    // ---- datagrams

    fn on_datagram(&mut self, from: SocketAddr, bytes: &[u8]) {
        match Datagram::parse(bytes) {
            Ok(Datagram::Join(join)) => self.handle(Input::Join { from, join }),
            Ok(Datagram::Peers(welcome)) => self.on_welcome(from, welcome),
            Err(error) => {
                self.statistics.malformed += 1;
                tracing::trace!(%from, %error, "datagram dropped");
            }
        }
    }

    fn on_welcome(&mut self, from: SocketAddr, welcome: Box<Welcome>) {
        let head = self.head();
        if welcome.node == self.me || welcome.head.name != head.name {
            return;
        }
        if welcome.head.key != head.key {
            tracing::warn!(%from, key = welcome.head.key.fingerprint(), "another origin offers this tree with another key; ignored");
            return;
        }
        if welcome.head.sequence > head.sequence && self.tree.is_none() {
            self.adopt(welcome.head.clone());
        }
        self.handle(Input::Welcome { from, welcome });
    }

    /// From now on the tree is what this head says.
    fn adopt(&mut self, head: TreeHead) {
        let (sequence, root) = (head.sequence, head.root);
        tracing::info!(sequence, "the tree changed");
        *self.shared.head.write().expect("no holder of this lock panics") = Arc::new(head);
        self.handle(Input::Head { sequence });
        if self.prefetch && self.shared.page(&root).is_none() {
            self.handle(Input::WantPage { hash: root });
        }
    }

    // ---- an origin's disk

    fn prepared(&mut self, segment: SegmentId, result: Result<(SegmentHeader, Vec<u8>), SegmentError>) {
        match result {
            Ok((header, bytes)) => {
                let zero = header.zero();
                let held = self.shared.cache.admit(header, true);
                if let Err(error) = held.fill_own(&bytes) {
                    tracing::error!(%error, "no memory for a segment");
                    let reason = PrepareError::Later { after_us: 1_000_000 };
                    return self.handle(Input::PrepareFailed { segment, reason });
                }
                self.handle(Input::Prepared { segment, zero });
                self.waiting.wake(segment, &self.shared);
            }
            Err(error) => {
                // Its file is another one now, which only a new listing can show.
                if matches!(error, SegmentError::Gone | SegmentError::Unknown) {
                    self.errands.push(Errand::Rescan);
                }
                let reason = match error {
                    SegmentError::Gone | SegmentError::Unknown => PrepareError::Gone(GoneReason::Replaced),
                    SegmentError::Unreadable => PrepareError::Gone(GoneReason::Unreadable),
                    SegmentError::Unsettled { ready_in } => {
                        PrepareError::Later { after_us: ready_in.as_micros() as u64 }
                    }
                };
                self.handle(Input::PrepareFailed { segment, reason });
            }
        }
    }

    fn housekeeping(&mut self) {
        self.waiting.expire(Instant::now());
        self.undemand();
        self.demand_parked();
        let neighbours = self.node.neighbours().map(|(address, origin, position)| Neighbour {
            address,
            origin,
            position: (!origin).then_some(position),
        });
        let counters = self.node.counters();
        let (pages, page_bytes) = self.node.pages_held();
        let snapshot = Snapshot {
            port: self.port,
            peers: neighbours.collect(),
            chunks_held: self.node.chunks_held() as u64,
            cache_used: self.node.reserved_blocks() as u64 * BLOCK as u64 + page_bytes,
            cache_budget: self.budget,
            from_origin: self.statistics.from_origin,
            from_peers: self.statistics.from_peers,
            to_peers: self.statistics.to_peers,
            counters: vec![
                ("wrong_blocks", counters.wrong_blocks),
                ("wrong_headers", counters.wrong_headers),
                ("refused_peers", counters.refused_peers),
                ("stalled_transfers", counters.stalled_transfers),
                ("starved", counters.starved),
                ("joins", counters.joins),
                ("malformed_datagrams", self.statistics.malformed),
                ("malformed_frames", self.statistics.malformed_frames),
                ("unexpected_data", self.statistics.unexpected),
                ("pages_held", pages as u64),
            ],
        };
        *self.shared.snapshot.lock().expect("no holder of this lock panics") = snapshot;
    }
}

/// The blocks that a read is about; none if it is empty.
fn run_of(read: &Read) -> Option<Run> {
    let blocks = blocks_in(read.size, read.offset, read.len as u64);
    (!blocks.is_empty()).then(|| Run { object: read.object, first: blocks.start, count: blocks.end - blocks.start })
}

/// Lets a batch of events take effect and starts what it gave rise to.
pub fn settle(core: &Handle) {
    let errands = {
        let mut core = core.borrow_mut();
        core.settle();
        std::mem::take(&mut core.errands)
    };
    for errand in errands {
        tokio::task::spawn_local(run_errand(core.clone(), errand));
    }
}

async fn run_errand(core: Handle, errand: Errand) {
    match errand {
        Errand::Connect(link, addr) => links::connect(core, link, addr).await,
        Errand::Prepare(segment) => {
            let Some(tree) = core.borrow().tree.clone() else { return };
            let read = move || {
                let mut bytes = Vec::new();
                tree.segment(segment, &mut bytes).map(|header| (header, bytes))
            };
            let result = tokio::task::spawn_blocking(read).await.unwrap_or(Err(SegmentError::Unreadable));
            core.borrow_mut().prepared(segment, result);
            settle(&core);
        }
        Errand::Rescan => rescan(core).await,
        Errand::Datagram(to, bytes) => {
            let socket = core.borrow().socket.clone();
            if let Some(socket) = socket
                && let Err(error) = socket.send_to(&bytes, to).await
            {
                tracing::debug!(%to, %error, "datagram not sent");
            }
        }
        Errand::Broadcast(bytes) => {
            let net = core.borrow().net.clone();
            // Names of peers are resolved here, which may wait for a name server.
            let sent = tokio::task::spawn_blocking(move || {
                // First what needs no name server.
                let sent = sockets::broadcast(&bytes, &net);
                let peers = sockets::resolve(&net.peers);
                sent.map(|_| (bytes, peers))
            });
            match sent.await {
                Ok(Ok((bytes, peers))) => {
                    for peer in peers {
                        Box::pin(run_errand(core.clone(), Errand::Datagram(peer, bytes.clone()))).await;
                    }
                }
                Ok(Err(error)) => tracing::warn!(%error, "cannot broadcast"),
                Err(error) => tracing::error!(%error, "broadcast failed"),
            }
        }
    }
}

/// Lists an origin's tree again. A request that comes while that goes on is met by it or by the pause after it: the next
/// reader that finds a file changed asks again.
async fn rescan(core: Handle) {
    let tree = {
        let mut core = core.borrow_mut();
        let Some(tree) = core.tree.clone() else { return };
        if std::mem::replace(&mut core.rescanning, true) {
            return;
        }
        tree
    };
    let listed = tree.clone();
    match tokio::task::spawn_blocking(move || listed.rescan()).await {
        Ok(Ok(true)) => core.borrow_mut().adopt(tree.head()),
        Ok(Ok(false)) => {}
        Ok(Err(error)) => tracing::error!(%error, "the tree cannot be listed again; its last listing is served"),
        Err(error) => tracing::error!(%error, "listing the tree failed"),
    }
    settle(&core);
    tokio::time::sleep(RESCAN).await;
    core.borrow_mut().rescanning = false;
}

/// The event loop, until a client stops it.
pub async fn run(parts: Parts, sockets: Sockets, mut orders: mpsc::UnboundedReceiver<Command>) {
    let core: Handle = Rc::new(RefCell::new(Core::new(parts)));
    if let Err(error) = listen(&core, sockets) {
        tracing::error!(%error, "cannot use the sockets");
    }
    tokio::task::spawn_local(keep_time(core.clone()));
    tokio::task::spawn_local(keep_house(core.clone()));
    settle(&core);
    while let Some(command) = orders.recv().await {
        let stop = matches!(command, Command::Stop);
        core.borrow_mut().obey(command);
        // What came meanwhile belongs to the same batch.
        let mut stopped = stop;
        while let Ok(command) = orders.try_recv() {
            stopped |= matches!(command, Command::Stop);
            core.borrow_mut().obey(command);
        }
        if stopped {
            break;
        }
        settle(&core);
    }
    orders.close();
    while let Ok(command) = orders.try_recv() {
        core.borrow_mut().obey(command);
    }
    let mut core = core.borrow_mut();
    core.waiting.fail_all();
    core.links.clear();
}

fn listen(core: &Handle, sockets: Sockets) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(sockets.tcp)?;
    let own = Rc::new(UdpSocket::from_std(sockets.udp)?);
    core.borrow_mut().socket = Some(own.clone());
    tokio::task::spawn_local(hear(core.clone(), own));
    for socket in sockets.heard {
        tokio::task::spawn_local(hear(core.clone(), Rc::new(UdpSocket::from_std(socket)?)));
    }
    tokio::task::spawn_local(links::accept(core.clone(), listener));
    Ok(())
}

async fn hear(core: Handle, socket: Rc<UdpSocket>) {
    let mut buffer = [0; MAX_DATAGRAM + 1];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((len, from)) => {
                core.borrow_mut().on_datagram(from, &buffer[..len]);
                settle(&core);
            }
            // An ICMP error to something that was sent; the socket is still good.
            Err(error) => tracing::debug!(%error, "datagram not received"),
        }
    }
}

/// Ticks when the node wants to be woken.
async fn keep_time(core: Handle) {
    let (began, rearm) = {
        let core = core.borrow();
        (core.began, core.rearm.clone())
    };
    loop {
        let next = {
            let mut core = core.borrow_mut();
            core.armed = core.node.next_tick();
            core.armed
        };
        let at = tokio::time::Instant::from_std(began + Duration::from_micros(next.0));
        tokio::select! {
            () = tokio::time::sleep_until(at) => {
                core.borrow_mut().handle(Input::Tick);
                settle(&core);
            }
            () = rearm.notified() => {}
        }
    }
}

async fn keep_house(core: Handle) {
    let mut timer = tokio::time::interval(HOUSEKEEPING);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut tidied = Instant::now();
    loop {
        timer.tick().await;
        core.borrow_mut().housekeeping();
        let tree = core.borrow().tree.clone();
        if let Some(tree) = tree
            && tidied.elapsed() > TIDY
        {
            tidied = Instant::now();
            tokio::task::spawn_blocking(move || tree.tidy());
        }
    }
}
