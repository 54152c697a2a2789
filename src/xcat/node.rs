//! What a native node answers legacy requests from: its tree as every reader sees it, out of its cache.
//!
//! Paths are walked inside the tree as `stream` does: no link and no `..` leads out of it. A node that is no origin
//! answers from memory alone, names too: a stranger's request makes it ask nobody.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Body, Found, Shelf};
use crate::catalogue::{Entry, Kind, View};
use crate::chunk::{CHUNK, ChunkId, blocks_of};
use crate::driver::{Client, ReadRange, Slices, Standing};
use crate::fs::{Held, resolve};
use crate::stream::Embedded;
use crate::wire::xcat::Request;

/// How long an origin's own disk may take for a page or a chunk before the request is left to its repetition.
const PATIENCE: Duration = Duration::from_secs(3);

pub struct NodeShelf {
    client: Arc<Client>,
    files: Embedded,
    origin: bool,
    /// Whether what is sent counts towards a limit.
    limited: bool,
}

impl NodeShelf {
    pub fn new(client: &Client, origin: bool, limited: bool) -> NodeShelf {
        let files = Embedded::new(client.clone()).with_patience(PATIENCE);
        NodeShelf { client: Arc::new(client.clone()), files, origin, limited }
    }

    async fn entry(&self, path: &str) -> Option<Entry> {
        let head = self.client.head();
        let view = View::new(head.root, head.root_level);
        match resolve(&view, &Held::new(self.client.clone()), path.as_bytes(), true) {
            Ok(found) => found.ok(),
            // A page is not in memory; an origin has it all the same.
            Err(_) if self.origin => self.files.entry(path, true).await.ok(),
            Err(_) => None,
        }
    }
}

impl Shelf for NodeShelf {
    async fn find(&self, request: &Request) -> Option<Found> {
        let entry = self.entry(&request.path()).await?;
        let Kind::File { object } = entry.row.kind() else { return None };
        let chunk = ChunkId { object: *object, index: request.chunk() };
        let offset = u64::from(request.chunk()) * u64::from(CHUNK);
        Some(Found {
            chunk,
            range: ReadRange { object: *object, size: entry.row.attributes().size, offset, len: CHUNK },
        })
    }

    fn is_at_hand(&self, found: &Found) -> bool {
        self.client.read_now(found.range).is_some()
    }

    async fn body(&self, found: &Found) -> Option<Body> {
        if let Some(slices) = self.client.read_now(found.range) {
            return Some(parts(slices));
        }
        if !self.origin {
            return None;
        }
        let (tell, answer) = oneshot::channel();
        let done = move |slices| {
            // Nobody waits any more where the node is stopping.
            let _ = tell.send(slices);
        };
        self.client.read(found.range, Some(Instant::now() + PATIENCE), Box::new(done));
        answer.await.ok()?.ok().map(parts)
    }

    async fn standing(&self, found: &Found) -> Standing {
        let (tell, answer) = oneshot::channel();
        let done = move |standing| {
            let _ = tell.send(standing);
        };
        self.client.standing(found.chunk, blocks_of(u64::from(found.len())), Box::new(done));
        answer.await.unwrap_or_default()
    }

    fn count(&self, bytes: usize) {
        if self.limited {
            self.client.count_sent(bytes);
        }
    }
}

fn parts(slices: Slices) -> Body {
    slices.into_iter().map(Bytes::from_owner).collect()
}
