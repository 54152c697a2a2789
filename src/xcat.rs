//! The legacy protocol's two sides, on UDP and TCP port 19023.
//!
//! `server` answers requests out of a `Shelf`: what a node has in memory, an origin's tree, or what a legacy client keeps.
//! `client` asks for one chunk at a time, and `tree` makes a filesystem's supply of that. Who is answered and when is
//! decided in `legacy`; what the text means is in `wire::xcat`.
//!
//! The invariants: nothing but requests in UTF-8 is ever sent to port 19023; header and body of an answer are in memory
//! before anybody is connected to; what came by this protocol is not signed, and no node of the native swarm sees it.

use std::future::Future;

use bytes::Bytes;

use crate::chunk::ChunkId;
use crate::driver::{ReadRange, Standing};
use crate::wire::xcat::Request;

pub mod client;
mod kept;
mod node;
pub mod server;
pub mod tree;

pub use kept::Kept;
pub use node::NodeShelf;
pub use server::Server;

pub use crate::wire::xcat::PORT;

/// A chunk's bytes, in parts.
pub type Body = Vec<Bytes>;

/// Where answers come from.
pub trait Shelf: Send + 'static {
    /// Looks up what is asked for. Nothing, where it is unknown here, is no regular file, or is out of this node's reach.
    fn find(&self, request: &Request) -> impl Future<Output = Option<Found>>;

    /// Whether the bytes are in memory.
    fn is_at_hand(&self, found: &Found) -> bool;

    /// The bytes. Only of an origin are those asked for that are not in memory.
    fn body(&self, found: &Found) -> impl Future<Output = Option<Body>>;

    fn standing(&self, found: &Found) -> impl Future<Output = Standing>;

    /// So many bytes of an answer went out.
    fn count(&self, bytes: usize);
}

/// A chunk that was asked for, and where it lies. Beyond the end of a file lies an empty one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    pub chunk: ChunkId,
    pub range: ReadRange,
}

impl Found {
    /// Bytes that an answer has.
    fn len(&self) -> u32 {
        let ReadRange { size, offset, len, .. } = self.range;
        u64::from(len).min(size.saturating_sub(offset)) as u32
    }
}
