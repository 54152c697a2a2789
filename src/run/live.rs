//! A running node as the commands hold it: how it is started, what it says of itself, what ends it.
//!
//! With `find` the one that names the event loop and the reading of files through it.

use std::ffi::OsString;
use std::future::Future;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::{RunError, find, runtime_dir};
use crate::catalogue::{self, Kind, Row};
use crate::chunk::{BLOCKS_PER_CHUNK, ObjectId};
use crate::control::server::{Limits, Server};
use crate::control::{Answer, Bytes, Entry, Failure, Node, Peer, Role, Status};
use crate::driver::{self, Client, DiscoverError, Found, ReadRange};
use crate::origin::{OriginError, StateDir, Tree};
use crate::settings::{CacheSettings, NetSettings, RETRY_AT_BOOT, RETRY_BY_HAND};
use crate::stream::{Embedded, StreamError};
use crate::wire::head::TreeName;

/// How long the root of a tree that was found may take to arrive, also where reads will wait for ever: somebody has just
/// answered for the tree, so a node that gets nothing is not waiting for an origin's return.
pub const FIRST_PAGE: Duration = Duration::from_secs(30);

/// A node of this process; it stops when this is dropped.
pub struct Live {
    client: Client,
    files: Embedded,
    role: Role,
    directory: Option<PathBuf>,
    mountpoint: Option<PathBuf>,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.client.stop();
    }
}

/// The thread's own runtime, for sockets and signals; the node's event loop has a thread of its own.
pub fn runtime() -> Result<Runtime, RunError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Start)
}

/// A node that reads.
pub fn join(found: Found, net: &NetSettings, cache: &CacheSettings) -> Result<Live, RunError> {
    let client = driver::join(found, net, cache).map_err(RunError::Start)?;
    Ok(Live::new(client, Role::Stream, None))
}

/// A node with the tree on its disk.
pub fn serve(dir: &Path, name: TreeName, net: &NetSettings, cache: &CacheSettings) -> Result<Live, RunError> {
    let state = StateDir::locate().map_err(OriginError::from)?;
    let key = state.key().map_err(OriginError::from)?;
    let tree = Tree::open(dir, name, &state, key)?;
    let client = driver::serve(Arc::new(tree), net, cache).map_err(RunError::Start)?;
    Ok(Live::new(client, Role::Origin, Some(dir.to_owned())))
}

/// A node with a copy of a tree on its disk that another host, with the same key, serves. It waits until it has heard of
/// that tree.
pub fn serve_replica(dir: &Path, name: TreeName, net: &NetSettings, cache: &CacheSettings) -> Result<Live, RunError> {
    let state = StateDir::locate().map_err(OriginError::from)?;
    let key = state.key().map_err(OriginError::from)?;
    let trusted = NetSettings { key: Some(key.public()), ..net.clone() };
    super::service::ready("looks for the origin that it is a replica of");
    let mut patience = RETRY_BY_HAND;
    let found = loop {
        match find::find(&trusted, Some(&name), patience) {
            Ok(found) => break found,
            Err(RunError::Discover { error: DiscoverError::WrongKey(offers), .. }) => {
                let theirs = offers.first().map_or(String::new(), |offer| offer.key.fingerprint());
                return Err(RunError::ReplicaKey { tree: name, mine: key.public().fingerprint(), theirs });
            }
            // It may boot, or come back: it was the one that the readers had.
            Err(error) => warn!("{error}; the replica waits for it"),
        }
        patience = RETRY_AT_BOOT;
    };
    let tree = Tree::open(dir, name, &state, key)?;
    let client = driver::serve_replica(Arc::new(tree), found, net, cache).map_err(RunError::Start)?;
    Ok(Live::new(client, Role::Origin, Some(dir.to_owned())))
}

impl Live {
    fn new(client: Client, role: Role, directory: Option<PathBuf>) -> Live {
        let files = Embedded::new(client.clone());
        Live { client, files, role, directory, mountpoint: None }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Waits until the tree's root is here; what is wrong with it is for whoever asks for a path to say.
    pub async fn reached(&self, net: &NetSettings) -> Result<(), RunError> {
        let first = tokio::time::timeout(FIRST_PAGE, self.files.entry(b"", false)).await;
        first.map(drop).map_err(|_| self.unreached(net))
    }

    /// Returns when the event loop has answered: it does so at once, unless it no longer turns.
    pub async fn turns(&self) {
        let (tell, answered) = oneshot::channel();
        let nothing = ReadRange { object: ObjectId([0; 16]), size: 0, offset: 0, len: 0 };
        self.client.read(
            nothing,
            None,
            Box::new(move |_| {
                // Nobody waits any more where the node ends.
                let _ = tell.send(());
            }),
        );
        let _ = answered.await;
    }

    pub fn unreached(&self, net: &NetSettings) -> RunError {
        let (first, last) = net.ports().into_inner();
        RunError::Unreached { tree: self.client.head().name.clone(), waited: FIRST_PAGE, first, last }
    }

    /// The node is what a mount reads from.
    pub fn mounted_on(mut self, point: &Path) -> Live {
        (self.role, self.mountpoint) = (Role::Mount, Some(point.to_owned()));
        self
    }

    /// Answers on the node's control socket until `end`, or until a signal asks for the end.
    pub async fn attend(self: Arc<Self>, mut signals: Signals, end: impl Future<Output = ()>) {
        let tree = self.client.head().name.clone();
        tokio::select! {
            () = answer(self, tree) => {}
            () = end => {}
            () = signals.asked() => {}
        }
    }
}

/// Answers on a control socket for as long as it is polled. Without a place for the socket the node works all the same,
/// and `status` does not see it.
pub async fn answer(node: Arc<dyn Node>, tree: TreeName) {
    let server = runtime_dir()
        .map_err(|error| error.to_string())
        .and_then(|dir| Server::bind(&dir, tree.as_str(), Limits::default()).map_err(|error| error.to_string()));
    match server {
        Ok(server) => server.run(node).await,
        Err(reason) => {
            warn!(reason, "no control socket: status, ls and cat do not see this node");
            std::future::pending().await
        }
    }
}

/// The signals that end a node in good order. Made just before there is anything to put in order: while a node only
/// looks for others, a signal may end the process as it ends any other.
pub struct Signals([Signal; 3]);

impl Signals {
    /// Call it inside a runtime.
    pub fn new() -> Result<Signals, RunError> {
        let heard = |kind| signal(kind).map_err(RunError::Start);
        Ok(Signals([heard(SignalKind::terminate())?, heard(SignalKind::interrupt())?, heard(SignalKind::hangup())?]))
    }

    pub async fn asked(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

impl Node for Live {
    fn status(&self) -> Status {
        let head = self.client.head();
        let now = self.client.snapshot();
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let peer = |peer: driver::Neighbour| Peer {
            address: peer.address.to_string(),
            origin: peer.origin,
            // Nodes compare their places by blocks; people think of chunks.
            position: peer.position.map(|block| block / u64::from(BLOCKS_PER_CHUNK)),
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            role: self.role,
            tree: head.name.to_string(),
            sequence: head.sequence,
            head: head.root.to_string(),
            key: head.key.to_string(),
            key_fingerprint: head.key.fingerprint(),
            port: now.port,
            private: now.private,
            directory: self.directory.as_ref().map(text),
            mountpoint: self.mountpoint.as_ref().map(text),
            waits: None,
            origin_away_s: now.origin_away.map(|away| away.as_secs()),
            rival: now.rival.map(|(host, key)| format!("{host} with key {}", key.fingerprint())),
            peers: now.peers.into_iter().map(peer).collect(),
            chunks_held: now.chunks_held,
            bytes: Bytes {
                cache_used: now.cache_used,
                cache_budget: now.cache_budget,
                from_origin: now.from_origin,
                from_peers: now.from_peers,
                to_peers: now.to_peers,
            },
            counters: now.counters.into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
        }
    }

    fn list<'a>(&'a self, path: &'a Path, entries: mpsc::Sender<Entry>) -> Answer<'a, ()> {
        Box::pin(async move {
            let path = path.as_os_str().as_bytes();
            let found = self.files.entry(path, false).await.map_err(failure)?;
            // A link to a directory is listed as that directory; any other, and a broken one, is shown as it is.
            let is_directory = match found.row.kind() {
                Kind::Directory => true,
                Kind::Symlink { .. } => {
                    let target = self.files.entry(path, true).await;
                    target.is_ok_and(|target| *target.row.kind() == Kind::Directory)
                }
                _ => false,
            };
            if !is_directory {
                return entries.send(entry_of(&found.row)).await.map_err(|_| Failure::Stopped);
            }
            let (parts, mut arriving) = mpsc::channel::<Vec<catalogue::Entry>>(1);
            let pass = async move {
                while let Some(part) = arriving.recv().await {
                    for entry in part {
                        // Nobody reads on: the receiver goes, and the listing ends with it.
                        if entries.send(entry_of(&entry.row)).await.is_err() {
                            return;
                        }
                    }
                }
            };
            tokio::join!(self.files.list_into(path, parts), pass).0.map_err(failure)
        })
    }

    fn open<'a>(&'a self, path: &'a Path) -> Answer<'a, Box<dyn AsyncRead + Send + Unpin>> {
        Box::pin(async move {
            let file = self.files.open(path.as_os_str().as_bytes()).await.map_err(failure)?;
            Ok(Box::new(file) as Box<dyn AsyncRead + Send + Unpin>)
        })
    }
}

fn failure(error: StreamError) -> Failure {
    match error {
        StreamError::Path { reason, .. } => reason.into(),
        StreamError::IsADirectory(_) => Failure::IsADirectory,
    }
}

fn entry_of(row: &Row) -> Entry {
    let kind = match row.kind() {
        Kind::File { .. } => 0o100000,
        Kind::Directory => 0o040000,
        Kind::Symlink { .. } => 0o120000,
        Kind::Fifo => 0o010000,
        Kind::Socket => 0o140000,
        Kind::CharDevice { .. } => 0o020000,
        Kind::BlockDevice { .. } => 0o060000,
    };
    let target = match row.kind() {
        Kind::Symlink { target } => Some(PathBuf::from(OsString::from_vec(target.to_vec()))),
        _ => None,
    };
    let attributes = row.attributes();
    Entry {
        name: OsString::from_vec(row.name().to_vec()),
        mode: kind | u32::from(attributes.mode),
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        size: attributes.size,
        mtime_s: attributes.mtime.sec,
        rdev: row.rdev(),
        target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Attributes;

    #[test]
    fn a_row_is_listed_as_lstat_says() {
        let attributes = Attributes { mode: 0o777, uid: 1, gid: 2, nlink: 3, size: 4, ..Attributes::default() };
        let target: Box<[u8]> = b"../\xff".as_slice().into();
        let row = Row::new(*b"a", *b"\xfe", Kind::Symlink { target }, attributes, Vec::new()).unwrap();
        let entry = entry_of(&row);
        assert_eq!((entry.mode, entry.uid, entry.gid, entry.nlink, entry.size), (0o120777, 1, 2, 3, 4));
        assert_eq!(entry.name.as_bytes(), b"\xfe");
        assert_eq!(entry.target.unwrap().as_os_str().as_bytes(), b"../\xff");
        let device = Row::new(*b"", *b"d", Kind::BlockDevice { rdev: 0x801 }, Attributes::default(), Vec::new());
        let entry = entry_of(&device.unwrap());
        assert_eq!((entry.mode, entry.rdev), (0o060000, 0x801));
    }
}
