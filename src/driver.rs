//! The one event loop: it translates between the swarm's decisions and sockets, disk and waiting readers.
//!
//! Fronts hold a `Client`. None of its calls waits: what is in memory is answered at once, for anything else a closure
//! is kept and called, from the event loop's thread, when the bytes are there or will never be.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::cache::Slice;
use crate::catalogue::Page;
use crate::chunk::ObjectId;
use crate::keys::PublicKey;
use crate::settings::{CacheSettings, NetSettings};
use crate::wire::head::{PageHash, TreeHead, TreeName};

/// A running node, as fronts see it. Cloning gives another handle to the same node.
#[derive(Clone)]
pub struct Client {}

/// One open file, or whatever else reads in an order of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReaderId(pub u64);

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

/// An origin of a tree, as it answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    pub host: SocketAddr,
    pub tree: TreeName,
    pub key: PublicKey,
}

/// The tree that was asked for, and who offers it.
pub struct Found {
    pub head: Arc<TreeHead>,
    pub offers: Vec<Offer>,
}

/// Why no tree was found.
#[derive(Debug, Error)]
pub enum DiscoverError {
    #[error("no origin answered")]
    NoOrigin { tried: Vec<(String, IpAddr)> },
    #[error("several trees are offered")]
    SeveralTrees(Vec<Offer>),
    #[error("origins with different keys offer the tree")]
    SeveralKeys(Vec<Offer>),
    #[error("the tree is offered with another key than the one given")]
    WrongKey(Vec<Offer>),
    #[error("the tree is not offered")]
    TreeMissing { trees: Vec<Offer> },
    #[error("cannot use the network: {0}")]
    Network(std::io::Error),
}

/// What a node can say of itself at this moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub port: u16,
    pub peers: Vec<Neighbour>,
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

/// Asks the network for the tree, or for the one tree that there is.
pub fn discover(_net: &NetSettings, _tree: Option<&TreeName>, _patience: Duration) -> Result<Found, DiscoverError> {
    unimplemented!()
}

/// Joins the swarm of the tree found.
pub fn join(_found: Found, _net: &NetSettings, _cache: &CacheSettings) -> std::io::Result<Client> {
    unimplemented!()
}

/// Offers a tree.
pub fn serve(_tree: Arc<crate::origin::Tree>, _net: &NetSettings, _cache: &CacheSettings) -> std::io::Result<Client> {
    unimplemented!()
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

impl Client {
    /// What the node is doing.
    pub fn snapshot(&self) -> Snapshot {
        unimplemented!()
    }

    /// The newest head of the tree that this node has accepted.
    pub fn head(&self) -> Arc<TreeHead> {
        unimplemented!()
    }

    /// A catalogue page, if it is in memory.
    pub fn page(&self, _hash: &PageHash) -> Option<Arc<Page>> {
        unimplemented!()
    }

    /// Calls `done` with the page as soon as it is here. Without a deadline it waits for the origin's return.
    pub fn fetch_page(&self, _hash: PageHash, _deadline: Option<std::time::Instant>, _done: PageDone) -> Ticket {
        unimplemented!()
    }

    /// A reader that nothing is known of yet.
    pub fn new_reader(&self) -> ReaderId {
        unimplemented!()
    }

    /// Bytes `offset .. offset + len` of an object of `size` bytes, cut at its end, if all are in memory. An empty
    /// range gives no slices.
    pub fn read_now(&self, _object: ObjectId, _size: u64, _offset: u64, _len: u32) -> Option<Slices> {
        unimplemented!()
    }

    /// Calls `done` with the same bytes as soon as they are here; these blocks are fetched before any window's.
    #[allow(clippy::too_many_arguments)]
    pub fn read(
        &self,
        _reader: ReaderId,
        _object: ObjectId,
        _size: u64,
        _offset: u64,
        _len: u32,
        _deadline: Option<std::time::Instant>,
        _done: ReadDone,
    ) -> Ticket {
        unimplemented!()
    }

    /// Ends a parked request at once: its closure is called with `Stopped` unless it was called before.
    pub fn cancel(&self, _ticket: Ticket) {
        unimplemented!()
    }

    /// Replaces what this reader will want next, nearest first. An empty list means nothing beyond its reads.
    pub fn set_window(&self, _reader: ReaderId, _window: Vec<Wanted>) {
        unimplemented!()
    }

    /// The reader is gone: its window with it.
    pub fn close_reader(&self, _reader: ReaderId) {
        unimplemented!()
    }

    /// Ends the node: every parked request is answered with `Stopped`, the event loop's thread ends.
    pub fn stop(&self) {
        unimplemented!()
    }
}
