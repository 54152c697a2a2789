//! What a legacy mount helps others with: the chunks in its memory, no better and no worse than they came.

use bytes::Bytes;

use super::Tree;
use crate::chunk::{CHUNK, ChunkId};
use crate::driver::{ReadRange, Standing};
use crate::wire::xcat::Request;
use crate::xcat::{Body, Found, Shelf};

pub struct TreeShelf(Tree);

impl TreeShelf {
    pub fn new(tree: &Tree) -> TreeShelf {
        TreeShelf(tree.clone())
    }
}

impl Shelf for TreeShelf {
    async fn find(&self, request: &Request) -> Option<Found> {
        let path = request.path();
        let below = &self.0.shared.settings.below;
        let path = match below.is_empty() {
            true => &path[..],
            false => path.strip_prefix(below.as_str())?.strip_prefix('/')?,
        };
        let state = self.0.shared.state();
        let file = state.names.file(path).filter(|_| state.doubted.as_deref() != Some(path))?;
        drop(state);
        let chunk = ChunkId { object: file.object, index: request.chunk() };
        let offset = u64::from(request.chunk()) * u64::from(CHUNK);
        let found = Found { chunk, range: ReadRange { object: file.object, size: file.size, offset, len: CHUNK } };
        // Nobody asks others on a stranger's behalf.
        self.is_at_hand(&found).then_some(found)
    }

    fn is_at_hand(&self, found: &Found) -> bool {
        self.0.shared.slices(found.range).is_some()
    }

    async fn body(&self, found: &Found) -> Option<Body> {
        Some(self.0.shared.slices(found.range)?.into_iter().map(Bytes::from_owner).collect())
    }

    async fn standing(&self, _found: &Found) -> Standing {
        Standing::default()
    }

    fn count(&self, _bytes: usize) {}
}
