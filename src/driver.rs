//! The one event loop: it translates between the swarm's decisions and sockets, disk and waiting readers.
//!
//! Fronts hold a `Client`. None of its calls waits: what is in memory is answered at once, for anything else a closure
//! is kept and called, from the event loop's thread, when the bytes are there or will never be. The parts: `core` holds
//! the node and carries out what it decides, `arrive` checks what comes in, `greet` lets in who has the swarm's secret,
//! `links` moves bytes between a connection and the core, `upload` limits how many, `tasks` waits for everything else,
//! `waiting` keeps who waits for what.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::mpsc;

use crate::cache::{Cache, Slice};
use crate::catalogue::Page;
use crate::chunk::{ChunkId, ObjectId, SEGMENT, SegmentId};
use crate::keys::PublicKey;
use crate::net::sockets::Sockets;
use crate::origin::{Following, Tree};
use crate::settings::{CacheSettings, NetSettings};
use crate::wire::frame::NodeId;
use crate::wire::head::{PageHash, TreeHead};

mod arrive;
mod core;
mod greet;
mod links;
mod meter;
mod rivals;
mod tasks;
mod upload;
mod waiting;

pub use crate::net::discover::{DiscoverError, Found, Offer, discover, discover_known};
pub use crate::swarm::ReaderId;

/// How long work on other threads is waited for when the node ends.
const STOP: Duration = Duration::from_secs(1);

/// A running node, as fronts see it. Cloning gives another handle to the same node.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

/// A parked read or page, for `Client::cancel`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// Why bytes will not come.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum Unavailable {
    /// The origin no longer has this version: it was rewritten in place or removed.
    #[error("the origin no longer has this version")]
    Gone,
    /// The origin has it and cannot read it.
    #[error("the origin cannot read it")]
    Unreadable,
    /// Nobody answered within the deadline given.
    #[error("nobody answered in time")]
    TimedOut,
    /// The node is stopping, or the request was cancelled.
    #[error("the node is stopping")]
    Stopped,
}

/// Verified bytes, in order; a read that crosses segments has several slices.
pub type Slices = Vec<Slice>;
pub type ReadDone = Box<dyn FnOnce(Result<Slices, Unavailable>) + Send>;
pub type PageDone = Box<dyn FnOnce(Result<Arc<Page>, Unavailable>) + Send>;

/// Bytes `offset .. offset + len` of one object, cut at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadRange {
    pub object: ObjectId,
    /// Bytes in the whole object.
    pub size: u64,
    pub offset: u64,
    pub len: u32,
}

/// A stretch of an object that a reader will want, in the order handed down.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    pub object: ObjectId,
    /// Bytes in the whole object, from its catalogue row.
    pub size: u64,
    pub blocks: Range<u32>,
    /// Ordinal of the object's first chunk on the tree's number line.
    pub ordinal: u64,
}

/// What a node knows of a chunk's other holders, and what it is doing itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// Neighbours other than origins that have or await the whole chunk.
    pub holders: u32,
    /// Whether neighbours are being sent to.
    pub sending: bool,
    /// Bytes a second that the node's links carry, as far as it was seen; 0 if it was not.
    pub rate: u64,
}

pub type StandingDone = Box<dyn FnOnce(Standing) + Send>;

/// What a node can say of itself at this moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub port: u16,
    /// Whether the swarm has a secret.
    pub private: bool,
    pub peers: Vec<Neighbour>,
    /// For how long no origin was heard; None where one is.
    pub origin_away: Option<Duration>,
    /// Who offered the tree with another key lately.
    pub rival: Option<(IpAddr, PublicKey)>,
    pub chunks_held: u64,
    pub cache_used: u64,
    pub cache_budget: u64,
    pub from_origin: u64,
    pub from_peers: u64,
    pub to_peers: u64,
    pub counters: Vec<(&'static str, u64)>,
}

#[derive(Clone, Debug)]
pub struct Neighbour {
    pub address: SocketAddr,
    pub origin: bool,
    pub position: Option<u64>,
}

/// What the event loop and its clients share.
struct Shared {
    cache: Cache,
    head: RwLock<Arc<TreeHead>>,
    pages: RwLock<HashMap<PageHash, Arc<Page>>>,
    commands: mpsc::UnboundedSender<Command>,
    tickets: AtomicU64,
    readers: AtomicU64,
    snapshot: Mutex<Snapshot>,
    /// The event loop's thread, until somebody waits for its end.
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Keeps an origin's listing what the disk is.
    following: Mutex<Option<Following>>,
}

/// What a client tells the event loop. The queue has no cap of its own: the kernel bounds the requests that a mount can
/// have under way, and a command is smaller than the request it came from.
enum Command {
    Read {
        ticket: Ticket,
        read: Read,
        done: ReadDone,
    },
    Page {
        ticket: Ticket,
        hash: PageHash,
        deadline: Option<Instant>,
        done: PageDone,
    },
    Cancel(Ticket),
    Window {
        reader: ReaderId,
        window: Vec<Wanted>,
    },
    CloseReader(ReaderId),
    Standing {
        chunk: ChunkId,
        blocks: u32,
        done: StandingDone,
    },
    Sent(usize),
    /// An origin's tree was listed again, and there is a new head.
    TreeChanged,
    Stop,
}

#[derive(Clone, Copy)]
struct Read {
    range: ReadRange,
    deadline: Option<Instant>,
}

/// Joins the swarm of the tree found.
pub fn join(found: Found, net: &NetSettings, cache: &CacheSettings) -> std::io::Result<Client> {
    let sockets = Sockets::open(net)?;
    let head = found.head.clone();
    start(head, sockets, net, cache, core::Role::Reader { answers: found.answers })
}

/// Offers a tree.
pub fn serve(tree: Arc<Tree>, net: &NetSettings, cache: &CacheSettings) -> std::io::Result<Client> {
    let sockets = Sockets::open(net)?;
    let client = start(Arc::new(tree.head()), sockets, net, cache, core::Role::Origin { tree: tree.clone() })?;
    follow(&tree, client)
}

/// From now on the event loop hears of changes on the disk.
fn follow(tree: &Arc<Tree>, client: Client) -> std::io::Result<Client> {
    let commands = client.shared.commands.clone();
    let following = tree.follow(move || {
        // Nobody hears of it any more where the node ends.
        let _ = commands.send(Command::TreeChanged);
    })?;
    *client.shared.following.lock().expect("no holder of this lock panics") = Some(following);
    Ok(client)
}

/// Offers a copy of the tree that was found, under the head that another origin signs.
pub fn serve_replica(
    tree: Arc<Tree>,
    found: Found,
    net: &NetSettings,
    cache: &CacheSettings,
) -> std::io::Result<Client> {
    let sockets = Sockets::open(net)?;
    let head = found.head.clone();
    let role = core::Role::Replica { tree: tree.clone(), answers: found.answers };
    follow(&tree, start(head, sockets, net, cache, role)?)
}

fn start(
    head: Arc<TreeHead>,
    sockets: Sockets,
    net: &NetSettings,
    cache: &CacheSettings,
    role: core::Role,
) -> std::io::Result<Client> {
    let (commands, orders) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared {
        cache: Cache::default(),
        head: RwLock::new(head),
        pages: RwLock::default(),
        commands,
        tickets: AtomicU64::new(0),
        readers: AtomicU64::new(0),
        snapshot: Mutex::new(Snapshot { port: sockets.port, private: net.secret.is_some(), ..Snapshot::default() }),
        thread: Mutex::new(None),
        following: Mutex::new(None),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let parts = core::Parts {
        shared: shared.clone(),
        net: net.clone(),
        budget: cache.budget_bytes,
        role,
        port: sockets.port,
        me: NodeId(getrandom::u64()?),
        seed: getrandom::u64()?,
    };
    let thread = std::thread::Builder::new().name("swarmfs-net".to_owned()).spawn(move || {
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, tasks::run(parts, sockets, orders));
        drop(local);
        // A disk that hangs or a silent name server must not hold up whoever waits for the end.
        runtime.shutdown_timeout(STOP);
    })?;
    *shared.thread.lock().expect("no holder of this lock panics") = Some(thread);
    Ok(Client { shared })
}

impl Client {
    /// The newest head of the tree that this node has accepted.
    pub fn head(&self) -> Arc<TreeHead> {
        self.shared.head.read().expect("no holder of this lock panics").clone()
    }

    /// What the node is doing, as of at most a quarter of a second ago.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.snapshot.lock().expect("no holder of this lock panics").clone()
    }

    /// A catalogue page, if it is in memory.
    pub fn page(&self, hash: &PageHash) -> Option<Arc<Page>> {
        self.shared.page(hash)
    }

    /// Calls `done` with the page as soon as it is here. Without a deadline it waits for the origin's return.
    pub fn fetch_page(&self, hash: PageHash, deadline: Option<Instant>, done: PageDone) -> Ticket {
        let ticket = self.shared.ticket();
        self.order(Command::Page { ticket, hash, deadline, done });
        ticket
    }

    /// A reader that nothing is known of yet.
    pub fn new_reader(&self) -> ReaderId {
        ReaderId(self.shared.readers.fetch_add(1, Ordering::Relaxed))
    }

    /// The bytes of a range, if all are in memory. An empty one gives no slices.
    pub fn read_now(&self, range: ReadRange) -> Option<Slices> {
        self.shared.read_now(range)
    }

    /// Calls `done` with the same bytes as soon as they are here; these blocks are fetched before any window's.
    pub fn read(&self, range: ReadRange, deadline: Option<Instant>, done: ReadDone) -> Ticket {
        let ticket = self.shared.ticket();
        self.order(Command::Read { ticket, read: Read { range, deadline }, done });
        ticket
    }

    /// Ends a parked request at once: its closure is called with `Stopped` unless it was called before.
    pub fn cancel(&self, ticket: Ticket) {
        self.order(Command::Cancel(ticket));
    }

    /// Replaces what this reader will want next, nearest first. An empty list means nothing beyond its reads.
    pub fn set_window(&self, reader: ReaderId, window: Vec<Wanted>) {
        self.order(Command::Window { reader, window });
    }

    /// The reader is gone: its window with it.
    pub fn close_reader(&self, reader: ReaderId) {
        self.order(Command::CloseReader(reader));
    }

    /// Calls `done` with how a chunk of so many blocks stands; not at all where the node has ended.
    pub fn standing(&self, chunk: ChunkId, blocks: u32, done: StandingDone) {
        self.order(Command::Standing { chunk, blocks, done });
    }

    /// Bytes went out by another way than a link; the limit of what the node sends holds for both together.
    pub fn count_sent(&self, bytes: usize) {
        self.order(Command::Sent(bytes));
    }

    /// Ends the node: every parked request is answered with `Stopped`, and the event loop's thread ends. Returns when
    /// it has. Must not be called from a closure that the event loop calls.
    pub fn stop(&self) {
        let following = self.shared.following.lock().expect("no holder of this lock panics").take();
        drop(following);
        self.order(Command::Stop);
        let thread = self.shared.thread.lock().expect("no holder of this lock panics").take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the event loop's thread panicked");
        }
    }

    fn order(&self, command: Command) {
        // After the loop has ended nobody will answer any more, so whoever waits is answered here.
        if let Err(mpsc::error::SendError(command)) = self.shared.commands.send(command) {
            match command {
                Command::Read { done, .. } => done(Err(Unavailable::Stopped)),
                Command::Page { done, .. } => done(Err(Unavailable::Stopped)),
                _ => {}
            }
        }
    }
}

impl Shared {
    fn ticket(&self) -> Ticket {
        Ticket(self.tickets.fetch_add(1, Ordering::Relaxed))
    }

    fn page(&self, hash: &PageHash) -> Option<Arc<Page>> {
        self.pages.read().expect("no holder of this lock panics").get(hash).cloned()
    }

    fn read_now(&self, range: ReadRange) -> Option<Slices> {
        let mut slices = Slices::new();
        for (id, range) in range.parts() {
            slices.push(self.cache.read(id, range)?);
        }
        Some(slices)
    }
}

impl ReadRange {
    /// The segments it touches and the bytes of each.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (SegmentId, Range<u32>)> {
        let segment = SEGMENT as u64;
        let (start, end) = (self.offset, self.offset.saturating_add(self.len as u64).min(self.size));
        let segments = if start < end { start / segment..end.div_ceil(segment) } else { 0..0 };
        let object = self.object;
        segments.map(move |index| {
            let base = index * segment;
            let range = (start.max(base) - base) as u32..(end - base).min(segment) as u32;
            (SegmentId { object, index: index as u32 }, range)
        })
    }
}

/// A page's bytes, for whoever asks over the network.
fn page_bytes(shared: &Shared, tree: Option<&Tree>, hash: &PageHash) -> Option<Bytes> {
    tree.and_then(|tree| tree.page(hash)).or_else(|| shared.page(hash).map(|page| page.bytes().clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_cut_at_segments_and_at_the_end() {
        let object = ObjectId([1; 16]);
        let parts = |size, offset, len| {
            let range = ReadRange { object, size, offset, len };
            range.parts().map(|(id, range)| (id.index, range)).collect::<Vec<_>>()
        };
        let segment = SEGMENT as u64;
        assert_eq!(parts(3 * segment, segment - 1, 2), [(0, SEGMENT - 1..SEGMENT), (1, 0..1)]);
        assert_eq!(parts(segment + 5, segment, SEGMENT), [(1, 0..5)]);
        assert_eq!(parts(segment, segment, 1), []);
        assert_eq!(parts(0, 0, 10), []);
    }
}
