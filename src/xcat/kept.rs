//! What a legacy client keeps of what it got, to help others with: the last few chunks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use super::{Body, Found, Shelf};
use crate::chunk::{CHUNK, ChunkId, ObjectId};
use crate::driver::{ReadRange, Standing};
use crate::wire::xcat::Request;

/// As many as an original keeps: more would seldom be asked for.
const MOST: usize = 6;

/// The chunks kept. Cloning gives another handle to the same ones.
#[derive(Clone)]
pub struct Kept {
    chunks: Arc<Mutex<VecDeque<(ChunkId, Bytes)>>>,
    most: usize,
}

impl Kept {
    /// Within so many bytes, but always one.
    pub fn within(bytes: u64) -> Kept {
        let most = (bytes / u64::from(CHUNK)).clamp(1, MOST as u64) as usize;
        Kept { chunks: Arc::default(), most }
    }

    pub fn keep(&self, path: &str, chunk: u32, body: Bytes) {
        let mut chunks = self.chunks();
        if chunks.len() >= self.most {
            chunks.pop_front();
        }
        chunks.push_back((name(path, chunk), body));
    }

    fn get(&self, chunk: ChunkId) -> Option<Bytes> {
        self.chunks().iter().find(|(kept, _)| *kept == chunk).map(|(_, body)| body.clone())
    }

    fn chunks(&self) -> MutexGuard<'_, VecDeque<(ChunkId, Bytes)>> {
        self.chunks.lock().expect("no holder of this lock panics")
    }
}

/// Of a path there is one version, as far as this protocol goes.
fn name(path: &str, index: u32) -> ChunkId {
    ChunkId { object: ObjectId::of_version(path.as_bytes(), 0, 0, 0), index }
}

impl Shelf for Kept {
    async fn find(&self, request: &Request) -> Option<Found> {
        let chunk = name(&request.path(), request.chunk());
        let len = self.get(chunk)?.len() as u32;
        Some(Found { chunk, range: ReadRange { object: chunk.object, size: u64::from(len), offset: 0, len } })
    }

    fn is_at_hand(&self, _found: &Found) -> bool {
        true
    }

    async fn body(&self, found: &Found) -> Option<Body> {
        self.get(found.chunk).map(|body| vec![body])
    }

    async fn standing(&self, _found: &Found) -> Standing {
        Standing::default()
    }

    fn count(&self, _bytes: usize) {}
}
