//! What `mount -o xcat` mounts: a tree by the legacy protocol alone, with no node of the native swarm.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tracing::warn;

use super::live::{self, Signals};
use super::{RunError, service};
use crate::control::{Answer, Bytes, Entry, Node, Role, Status};
use crate::settings::{CacheSettings, MountSettings, NetSettings};
use crate::stream::Embedded;
use crate::wire::head::TreeName;
use crate::xcat::tree::{Settings, Tree, TreeShelf};
use crate::xcat::{PORT, Server};

/// What such a tree is called that was given no name.
const NAME: &str = "xcat";

/// The tree, and who else is helped with it. It ends when this is dropped.
pub struct Legacy {
    tree: Tree,
    files: Embedded<Tree>,
    name: TreeName,
    point: PathBuf,
    budget: u64,
    helping: Option<Server>,
}

impl Drop for Legacy {
    fn drop(&mut self) {
        drop(self.helping.take());
        self.tree.end();
    }
}

impl Legacy {
    /// Looks for the paths that were given. Where somebody answers for none of them there is nothing to mount.
    pub fn start(
        settings: &MountSettings,
        paths: &[String],
        point: &Path,
        net: &NetSettings,
        cache: &CacheSettings,
    ) -> Result<Legacy, RunError> {
        let name = settings.tree.clone().unwrap_or_else(|| NAME.parse().expect("it is a tree's name"));
        let below = settings.subdir.to_string_lossy().into_owned();
        let shown = Settings { name: name.clone(), below, paths: paths.to_vec() };
        let tree = Tree::start(shown, net, cache).map_err(RunError::Start)?;
        let helping = live::answer_legacy(TreeShelf::new(&tree), net, cache, false);
        let files = Embedded::new(tree.clone());
        let budget = cache.budget_bytes;
        let legacy = Legacy { tree, files, name, point: point.to_owned(), budget, helping };
        warn!("what is read comes by the legacy protocol: sums are checked, and nobody has signed it");
        let missing = legacy.tree.find(settings.retry);
        if !paths.is_empty() && missing.len() == paths.len() {
            return Err(RunError::NoLegacy(missing));
        }
        for path in missing {
            warn!(path, "nobody answers for this path; it is asked for again when it is looked up");
        }
        Ok(legacy)
    }

    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    pub fn name(&self) -> &TreeName {
        &self.name
    }

    pub async fn attend(self: Arc<Self>, signals: Signals, end: impl Future<Output = ()>) {
        service::ready("mounted by the legacy protocol, unsigned");
        let name = self.name.clone();
        live::attend(self, name, signals, end).await;
    }
}

impl Node for Legacy {
    fn status(&self) -> Status {
        let figures = self.tree.figures();
        let counters = self.helping.as_ref().map(Server::counters);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            role: Role::Mount,
            tree: self.name.to_string(),
            unsigned: true,
            port: PORT,
            mountpoint: Some(self.point.to_string_lossy().into_owned()),
            chunks_held: figures.chunks,
            bytes: Bytes {
                cache_used: figures.chunks * u64::from(crate::chunk::CHUNK),
                cache_budget: self.budget,
                from_peers: figures.received,
                ..Bytes::default()
            },
            counters: counters.into_iter().flatten().map(|(name, count)| (name.to_owned(), count)).collect(),
            ..Status::default()
        }
    }

    fn list<'a>(&'a self, path: &'a Path, entries: mpsc::Sender<Entry>) -> Answer<'a, ()> {
        Box::pin(live::list_in(&self.files, path, entries))
    }

    fn open<'a>(&'a self, path: &'a Path) -> Answer<'a, Box<dyn AsyncRead + Send + Unpin>> {
        Box::pin(live::open_in(&self.files, path))
    }
}
