//! The core of the event loop: the node, and how its decisions are carried out.
//!
//! Everything here runs on one thread; a `Handle` is shared by the loop's tasks and borrowed only between waits. After
//! every batch of events `settle` lets the node draw its consequences and carries them out.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::UdpSocket;
use tokio::sync::Notify;

use super::links::{LinkIo, Owed};
use super::meter::Datagrams;
use super::rivals::Rivals;
use super::upload::Upload;
use super::waiting::Waiting;
use super::{Command, Neighbour, ReadRange, Shared, Snapshot, Standing, Ticket, Unavailable, page_bytes};
use crate::cache::Filling;
use crate::catalogue::Page;
use crate::chunk::{BLOCK, Run, SegmentId, blocks_in};
use crate::net::channel::{Room, Suites};
use crate::net::mail::Mail;
use crate::origin::{SegmentError, Tree};
use crate::settings::NetSettings;
use crate::swarm::{Input, JoinAim, LinkId, Node, Output, Policy, PrepareError, Time, Wanted};
use crate::wire::codec::Malformed;
use crate::wire::datagram::{Datagram, Join, Peer, Welcome};
use crate::wire::frame::{Frame, GoneReason, Hello, NodeId, proof_text};
use crate::wire::head::TreeHead;
use crate::wire::header::SegmentHeader;

/// Bytes that a row takes in a page, roughly: whether a catalogue is small enough to be fetched whole.
const ROW_BYTES: u64 = 150;

pub enum Role {
    Origin { tree: Arc<Tree> },
    Replica { tree: Arc<Tree>, answers: Vec<(SocketAddr, Welcome)> },
    Reader { answers: Vec<(SocketAddr, Welcome)> },
}

pub struct Core {
    pub node: Node,
    pub shared: Arc<Shared>,
    pub links: HashMap<LinkId, LinkIo>,
    pub statistics: Statistics,
    pub rivals: Rivals,
    /// Since when no origin is heard.
    origin_away: Option<Instant>,
    /// Of the newest head that was not adopted, since another one is pinned.
    pub passed_over: u64,
    pub upload: Upload,
    pub datagrams: Datagrams,
    /// What links read into, in turn: nothing of it is kept between two events.
    pub scratch: Vec<u8>,
    /// What encrypted links use in turn.
    pub room: Room,
    pub suites: Suites,
    pub mail: Mail,
    pub waiting: Waiting,
    /// Parked reads that the node was not told of yet.
    undemanded: VecDeque<Ticket>,
    pub tree: Option<Arc<Tree>>,
    /// The tree is a copy: its heads are another origin's.
    pub replica: bool,
    pub net: NetSettings,
    pub me: NodeId,
    port: u16,
    budget: u64,
    /// Fetch the whole catalogue: it fits an eighth of the budget.
    pub prefetch: bool,
    pub began: Instant,
    /// The timer sleeps until then; a nearer time must wake it.
    pub armed: Time,
    pub rearm: Rc<Notify>,
    /// The node's own socket, once the loop runs.
    pub socket: Option<Rc<UdpSocket>>,
    /// Work that waits, which a batch of events gave rise to.
    pub errands: Vec<Errand>,
}

/// What takes time, and is done by a task of its own.
pub enum Errand {
    Connect(LinkId, SocketAddr),
    Prepare(SegmentId),
    Datagram(SocketAddr, Vec<u8>),
    Broadcast(Vec<u8>),
    /// The head with this sequence is new.
    Announce(u64),
}

#[derive(Default)]
pub struct Statistics {
    pub from_origin: u64,
    pub from_peers: u64,
    pub to_peers: u64,
    pub malformed: u64,
    pub malformed_frames: u64,
    pub unexpected: u64,
    /// Heads older than the one that counts, rightly signed: of a node that is behind, or replayed.
    pub old_heads: u64,
    /// Datagrams beyond what an address, or all of them, may send.
    pub flooded: u64,
    /// How often a link said so much that it was read later.
    pub throttled: u64,
    /// Datagrams of nodes with another secret, or with none where this one has one.
    pub foreign: u64,
    /// Sealed datagrams that came again.
    pub repeated: u64,
    /// Connections by others than the swarm's nodes.
    pub strangers: u64,
    /// Whether the log was told of nodes with another secret, of nodes without one, of strangers' connections.
    pub told: [bool; 3],
    pub contradictions: u64,
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
    pub fn new(parts: Parts) -> Core {
        let Parts { shared, net, budget, role, port, me, seed } = parts;
        let head = shared.head.read().expect("no holder of this lock panics").clone();
        let replica = matches!(role, Role::Replica { .. });
        let (tree, answers) = match role {
            Role::Origin { tree } => (Some(tree), Vec::new()),
            Role::Replica { tree, answers } => (Some(tree), answers),
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
        let mut policy = Policy::with_budget(budget);
        policy.limit_uploads(net.upload, net.upload_slots);
        let began = Instant::now();
        let prefetch = tree.is_none() && head.totals.rows.saturating_mul(ROW_BYTES) < policy.page_budget;
        let mut node = Node::new(policy, hello, seed, Time(0));
        if replica {
            node.become_replica();
            node.set_complete(tree.as_ref().is_some_and(|tree| tree.head().root == head.root));
        }
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
            rivals: Rivals::default(),
            origin_away: None,
            passed_over: 0,
            upload: Upload::new(net.upload, began),
            datagrams: Datagrams::new(began),
            scratch: vec![0; 256 * 1024],
            room: Room::default(),
            suites: if net.without_aes { Suites::without_aes() } else { Suites::of_this_machine() },
            mail: Mail::new(net.secret.as_ref(), began),
            waiting: Waiting::default(),
            undemanded: VecDeque::new(),
            tree,
            replica,
            net,
            me,
            port,
            budget,
            prefetch,
            began,
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

    pub fn head(&self) -> Arc<TreeHead> {
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

    pub fn carry_all_out(&mut self) {
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
            Output::Prove { link, nonce, peer } => {
                let Some(tree) = self.tree.clone() else { return };
                let signature = tree.prove(&proof_text(&nonce, self.me, peer));
                self.queue(link, &Frame::Proof { signature });
            }
            Output::SendPage { link, hash } => self.owe(link, Owed::Page(hash)),
            Output::Join { join } => {
                let Some(bytes) = self.question() else { return };
                match join {
                    JoinAim::Broadcast => self.errands.push(Errand::Broadcast(bytes)),
                    JoinAim::Unicast(addr) => self.errands.push(Errand::Datagram(addr, bytes)),
                }
            }
            Output::Welcome { to, peers } => {
                let welcome = self.welcome(peers);
                match self.mail.answer(to, &welcome) {
                    Ok(bytes) => self.errands.push(Errand::Datagram(to, bytes)),
                    Err(error) => tracing::error!(%error, "no random bytes for an answer"),
                }
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
                // At once: a caller that asks again makes a demand of the same run, which must stay.
                self.undemand();
            }
        }
    }

    /// Who has this tree?
    pub fn question(&mut self) -> Option<Vec<u8>> {
        let head = self.head();
        let tree = Some(head.name.clone());
        let join = Join { node: self.me, port: self.port, sequence: head.sequence, position: 0, tree };
        let question = self.mail.question(&Datagram::Join(join), 0);
        question.inspect_err(|error| tracing::error!(%error, "no random bytes for a question")).ok()
    }

    /// There is another head. Nobody asked.
    pub fn news(&mut self) -> Option<Vec<u8>> {
        let welcome = self.welcome(Vec::new());
        let news = self.mail.news(&welcome);
        news.inspect_err(|error| tracing::error!(%error, "no random bytes for a new head")).ok()
    }

    /// Who this node is, which head it has, and who else there is.
    fn welcome(&self, peers: Vec<Peer>) -> Datagram {
        let head = (*self.head()).clone();
        let origin = self.tree.is_some();
        Datagram::Peers(Box::new(Welcome { node: self.me, port: self.port, origin, head, peers }))
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
    pub fn peer(&self, link: LinkId) -> String {
        self.links.get(&link).map_or_else(|| format!("{link:?}"), |io| io.addr.to_string())
    }

    /// A connection ended, or must.
    pub fn end_link(&mut self, link: LinkId) {
        self.links.remove(&link);
        self.handle(Input::Closed { link });
    }

    // ---- what clients order

    pub fn obey(&mut self, command: Command) {
        match command {
            Command::Read { ticket, read, done } => match self.shared.read_now(read.range) {
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
                    Some(None) if self.replica => self.handle(Input::WantPage { hash }),
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
            Command::Standing { chunk, blocks, done } => {
                let (holders, sending, rate) = self.node.standing(chunk, blocks, self.now());
                done(Standing { holders: holders as u32, sending, rate });
            }
            Command::Sent(bytes) => self.upload.count(bytes, Instant::now()),
            Command::TreeChanged => self.listed_anew(),
            Command::Stop => {}
        }
    }

    /// Demands what parked reads lack, as far as the node takes demands.
    pub fn demand_parked(&mut self) {
        while self.node.takes_demands()
            && let Some(ticket) = self.undemanded.pop_front()
        {
            let Some(read) = self.waiting.parked(ticket) else { continue };
            if let Some(run) = run_of(read.range) {
                self.handle(Input::demand(run, read.range.size));
            }
        }
    }

    /// Takes back the demands of reads that were given up, and of no others: demands are known by their run alone.
    pub fn undemand(&mut self) {
        for (ticket, read) in self.waiting.take_given_up() {
            if let Some(index) = self.undemanded.iter().position(|other| *other == ticket) {
                self.undemanded.remove(index);
            } else if let Some(run) = run_of(read.range) {
                self.handle(Input::Undemand { run });
            }
        }
    }

    // ---- an origin's disk

    pub fn prepared(&mut self, segment: SegmentId, result: Result<(SegmentHeader, Vec<u8>), SegmentError>) {
        match result {
            Ok((header, bytes)) => {
                let zero = header.zero();
                let held = self.shared.cache.admit(header, Filling::AtOnce);
                if let Err(error) = held.fill_own(&bytes) {
                    tracing::error!(%error, "no memory for a segment");
                    let reason = PrepareError::Later { after_us: 1_000_000 };
                    return self.handle(Input::PrepareFailed { segment, reason });
                }
                self.handle(Input::Prepared { segment, zero });
                self.waiting.wake(segment, &self.shared);
            }
            Err(error) => {
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

    pub fn housekeeping(&mut self) {
        self.waiting.expire(Instant::now());
        self.undemand();
        self.demand_parked();
        let neighbours = self.node.neighbours().map(|(address, origin, position)| Neighbour {
            address,
            origin,
            position: (!origin).then_some(position),
        });
        let now = Instant::now();
        let away = self.tree.is_none() && !self.node.hears_origin();
        self.origin_away = away.then(|| self.origin_away.unwrap_or(now));
        let counters = self.node.counters();
        let (pages, page_bytes) = self.node.pages_held();
        let snapshot = Snapshot {
            port: self.port,
            private: self.net.secret.is_some(),
            peers: neighbours.collect(),
            origin_away: self.origin_away.map(|since| now.saturating_duration_since(since)),
            rival: self.rivals.lately(now),
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
                ("false_origins", counters.false_origins),
                ("crowded_connections", counters.crowded_connections),
                ("stalled_transfers", counters.stalled_transfers),
                ("starved", counters.starved),
                ("joins", counters.joins),
                ("malformed_datagrams", self.statistics.malformed),
                ("malformed_frames", self.statistics.malformed_frames),
                ("contradicting_headers", self.statistics.contradictions),
                ("rival_heads", self.rivals.heard),
                ("unexpected_data", self.statistics.unexpected),
                ("old_heads", self.statistics.old_heads),
                ("flooded_datagrams", self.statistics.flooded),
                ("throttled_links", self.statistics.throttled),
                ("foreign_datagrams", self.statistics.foreign),
                ("repeated_datagrams", self.statistics.repeated),
                ("strangers", self.statistics.strangers),
                ("pages_held", pages as u64),
            ],
        };
        *self.shared.snapshot.lock().expect("no holder of this lock panics") = snapshot;
    }
}

/// The blocks that a read is about; none if it is empty.
fn run_of(range: ReadRange) -> Option<Run> {
    let blocks = blocks_in(range.size, range.offset, range.len as u64);
    (!blocks.is_empty()).then(|| Run { object: range.object, first: blocks.start, count: blocks.end - blocks.start })
}

#[cfg(test)]
mod tests;
