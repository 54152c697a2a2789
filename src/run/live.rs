//! A running node as the commands hold it: how it is found and started, what it says of itself, what ends it.
//!
//! The one file of the command line that names the event loop and the reading of files through it.

use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncRead;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::{RunError, runtime_dir};
use crate::catalogue::{self, Kind, Row};
use crate::chunk::{BLOCKS_PER_CHUNK, ObjectId};
use crate::control::server::{self, Server};
use crate::control::{Answer, Bytes, Entry, Failure, Node, Peer, Role, Status};
use crate::driver::{self, Client, DiscoverError, Found, Offer, ReadRange};
use crate::fs::Supply;
use crate::legacy::Limits;
use crate::net::discover::Tried;
use crate::origin::{OriginError, StateDir, Tree};
use crate::settings::{CacheSettings, NetSettings};
use crate::stream::{Embedded, StreamError};
use crate::wire::head::TreeName;
use crate::xcat;

/// How long one round of questions takes where nobody answers: several times what an origin takes to answer three lost
/// datagrams.
const ROUND: Duration = Duration::from_secs(5);
/// Between rounds that end at once because there is no network to ask yet.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the root of a tree that was found may take to arrive, also where reads will wait for ever: somebody has just
/// answered for the tree, so a node that gets nothing is not waiting for an origin's return.
pub const FIRST_PAGE: Duration = Duration::from_secs(30);

/// Of this many bytes of cache one legacy transfer may be under way, up to so many: what they pin is a quarter more.
const LEGACY_SLOT: u64 = 64 << 20;
const LEGACY_SLOTS: u64 = 8;

/// A node of this process; it stops when this is dropped.
pub struct Live {
    client: Client,
    files: Embedded,
    role: Role,
    directory: Option<PathBuf>,
    mountpoint: Option<PathBuf>,
    legacy: Option<xcat::Server>,
}

impl Drop for Live {
    fn drop(&mut self) {
        drop(self.legacy.take());
        self.client.stop();
    }
}

/// The thread's own runtime, for sockets and signals; the node's event loop has a thread of its own.
pub fn runtime() -> Result<Runtime, RunError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Start)
}

/// Asks the network for the tree, or for the one tree that there is. While nobody answers it goes on asking for as long as
/// `patience` says; an origin's answer is final, whatever it says.
pub fn find(net: &NetSettings, tree: Option<&TreeName>, patience: Duration) -> Result<Found, RunError> {
    let begin = Instant::now();
    let mut told = false;
    let found = loop {
        let left = patience.saturating_sub(begin.elapsed());
        match driver::discover(net, tree, left.min(ROUND)) {
            Ok(found) => break found,
            Err(error) if is_final(&error) || begin.elapsed() + PAUSE >= patience => {
                let (net, tree) = (Box::new(net.clone()), tree.cloned());
                return Err(RunError::Discover { error, net, tree, waited: patience });
            }
            Err(error) => {
                if !told {
                    told = true;
                    let text = explain(&error, net, tree, begin.elapsed());
                    warn!("{text}; trying on for {} s", patience.as_secs());
                }
                if matches!(error, DiscoverError::Network(_)) {
                    std::thread::sleep(PAUSE);
                }
            }
        }
    };
    let head = &found.head;
    match net.key {
        Some(_) => info!(tree = %head.name, key = head.key.fingerprint(), "found the tree, signed with the key given"),
        None => info!(
            tree = %head.name, key = head.key.fingerprint(),
            "found the tree; its key is trusted as the first one seen, pin it with --key {}", head.key
        ),
    }
    Ok(found)
}

/// Whether asking again is no use: an origin has spoken.
fn is_final(error: &DiscoverError) -> bool {
    match error {
        // The network may be late, or its interface.
        DiscoverError::NoOrigin(_) | DiscoverError::Network(_) => false,
        // Nodes that mounted another tree speak for that one only; the origin of this one may be booting.
        DiscoverError::TreeMissing { trees } => trees.iter().any(|offer| offer.origin),
        _ => true,
    }
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

impl Live {
    fn new(client: Client, role: Role, directory: Option<PathBuf>) -> Live {
        let files = Embedded::new(client.clone());
        Live { client, files, role, directory, mountpoint: None, legacy: None }
    }

    /// Answers legacy requests too: an origin out of its tree, any other out of its cache. Where another program has the
    /// port the node does without.
    pub fn with_legacy(mut self, net: &NetSettings, cache: &CacheSettings) -> Live {
        let origin = self.role == Role::Origin;
        let shelf = xcat::NodeShelf::new(&self.client, origin, net.upload.is_some());
        self.legacy = answer_legacy(shelf, net, cache, origin);
        self
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
}

/// Answers on the node's control socket until `end`, or until a signal asks for the end.
pub async fn attend(node: Arc<dyn Node>, tree: TreeName, mut signals: Signals, end: impl Future<Output = ()>) {
    tokio::select! {
        () = answer(node, tree) => {}
        () = end => {}
        () = signals.asked() => {}
    }
}

/// Answers on a control socket for as long as it is polled. Without a place for the socket the node works all the same,
/// and `status` does not see it.
pub async fn answer(node: Arc<dyn Node>, tree: TreeName) {
    let server = runtime_dir().map_err(|error| error.to_string()).and_then(|dir| {
        Server::bind(&dir, tree.as_str(), server::Limits::default()).map_err(|error| error.to_string())
    });
    match server {
        Ok(server) => server.run(node).await,
        Err(reason) => {
            warn!(reason, "no control socket: status, ls and cat do not see this node");
            std::future::pending().await
        }
    }
}

/// Answers legacy requests from a shelf, unless told not to. That the port is taken is told once.
pub fn answer_legacy(
    shelf: impl xcat::Shelf,
    net: &NetSettings,
    cache: &CacheSettings,
    origin: bool,
) -> Option<xcat::Server> {
    if net.no_xcat {
        return None;
    }
    // A chunk that is being sent stays in memory when the cache lets go of it.
    let slots = (cache.budget_bytes / LEGACY_SLOT).clamp(1, LEGACY_SLOTS);
    let slots = net.upload_slots.map_or(slots, |most| slots.min(most.into())) as usize;
    match xcat::Server::start(shelf, Limits { slots, rate: net.upload, origin }) {
        Ok(server) => Some(server),
        Err(error) => {
            warn!("legacy requests are not answered: UDP port {}: {error}", xcat::PORT);
            None
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
            key: head.key.to_string(),
            key_fingerprint: head.key.fingerprint(),
            unsigned: false,
            port: now.port,
            directory: self.directory.as_ref().map(text),
            mountpoint: self.mountpoint.as_ref().map(text),
            waits: None,
            peers: now.peers.into_iter().map(peer).collect(),
            chunks_held: now.chunks_held,
            bytes: Bytes {
                cache_used: now.cache_used,
                cache_budget: now.cache_budget,
                from_origin: now.from_origin,
                from_peers: now.from_peers,
                to_peers: now.to_peers,
            },
            counters: {
                let legacy = self.legacy.as_ref().map(xcat::Server::counters);
                let counters = now.counters.into_iter().chain(legacy.into_iter().flatten());
                counters.map(|(name, count)| (name.to_owned(), count)).collect()
            },
        }
    }

    fn list<'a>(&'a self, path: &'a Path, entries: mpsc::Sender<Entry>) -> Answer<'a, ()> {
        Box::pin(list_in(&self.files, path, entries))
    }

    fn open<'a>(&'a self, path: &'a Path) -> Answer<'a, Box<dyn AsyncRead + Send + Unpin>> {
        Box::pin(open_in(&self.files, path))
    }
}

/// Sends what is at a path of a tree: a directory's entries, or the one entry that anything else is.
pub async fn list_in<S: Supply>(files: &Embedded<S>, path: &Path, entries: mpsc::Sender<Entry>) -> Result<(), Failure> {
    let path = path.as_os_str().as_bytes();
    let found = files.entry(path, false).await.map_err(failure)?;
    // A link to a directory is listed as that directory; any other, and a broken one, is shown as it is.
    let is_directory = match found.row.kind() {
        Kind::Directory => true,
        Kind::Symlink { .. } => {
            let target = files.entry(path, true).await;
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
    tokio::join!(files.list_into(path, parts), pass).0.map_err(failure)
}

/// Opens a regular file of a tree.
pub async fn open_in<S: Supply>(
    files: &Embedded<S>,
    path: &Path,
) -> Result<Box<dyn AsyncRead + Send + Unpin>, Failure> {
    let file = files.open(path.as_os_str().as_bytes()).await.map_err(failure)?;
    Ok(Box::new(file))
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

/// What a person does about a tree that was not found.
pub fn explain(error: &DiscoverError, net: &NetSettings, tree: Option<&TreeName>, waited: Duration) -> String {
    let wanted = tree.map_or("any tree".to_owned(), |tree| format!("the tree {:?}", tree.as_str()));
    match error {
        DiscoverError::NoOrigin(tried) => format!("nobody offers {wanted}: {}", silence(tried, net, waited)),
        DiscoverError::SeveralTrees(offers) => {
            format!("the network has several trees; name one of them:{}", lines(offers, false))
        }
        DiscoverError::SeveralKeys(offers) => format!(
            "origins with different keys offer {wanted}; say with --key which one is trusted:{}",
            lines(offers, true)
        ),
        DiscoverError::WrongKey(offers) => format!(
            "{} offered with another key than the one given with --key; compare with what `swarmfs serve` printed at its \
             origin:{}",
            tree.map_or("the network's trees are".to_owned(), |_| format!("{wanted} is")),
            lines(offers, true)
        ),
        DiscoverError::TreeMissing { trees } => {
            format!("nobody offers {wanted}; the network has:{}", lines(trees, false))
        }
        DiscoverError::Network(reason) => format!("cannot use the network: {reason}"),
    }
}

/// Whom nobody answered for, and what may be in the way.
fn silence(tried: &Tried, net: &NetSettings, waited: Duration) -> String {
    let (first, last) = net.ports().into_inner();
    // What was asked because it was named is said as it was named.
    let aim = |by: &String, to: &IpAddr| match net.peers.iter().any(|(host, _)| host == by) {
        true if *by == to.to_string() => by.clone(),
        true => format!("{by} ({to})"),
        false => format!("{to} on {by}"),
    };
    // Not what loopback refused, where a network is missing as well.
    let refused = tried.refused.iter().filter(|(_, to, _)| !to.is_loopback());
    let refused: Vec<String> = refused.map(|(by, to, reason)| format!("{} ({reason})", aim(by, to))).collect();
    let refused = refused.join(", ");
    // Loopback is always asked: a node of this host would have answered. It is no network.
    let only_loopback = tried.asked.iter().all(|(_, to)| to.is_loopback());
    let denied = tried.refused.iter().any(|(.., reason)| reason.kind() == io::ErrorKind::PermissionDenied);
    if only_loopback && denied && !refused.is_empty() {
        return format!(
            "this host may not ask {refused}; does its own firewall let UDP and TCP ports {first} to {last} out?"
        );
    }
    if only_loopback && !refused.is_empty() {
        return format!("this host cannot ask {refused}; `ip addr` and `ip route` show how its network is set up");
    }
    if only_loopback && net.interfaces.is_empty() && net.peers.is_empty() {
        return "there is no network to ask, since no interface but loopback is up, has carrier and broadcasts; name \
                one with --interface, or an origin with --peer"
            .to_owned();
    }
    let asked = tried.asked.iter().filter(|(_, to)| only_loopback || !to.is_loopback());
    let asked: Vec<String> = asked.map(|(by, to)| aim(by, to)).collect();
    let not_asked = if refused.is_empty() { refused } else { format!(", and cannot ask {refused}") };
    format!(
        "asked {} for {} s without an answer{not_asked}; is `swarmfs serve` running, and do the firewalls of both hosts \
         let UDP and TCP ports {first} to {last} in? Where broadcast does not reach, use --peer",
        asked.join(", "),
        waited.as_secs()
    )
}

fn lines(offers: &[Offer], keys: bool) -> String {
    let mut lines: Vec<String> = offers
        .iter()
        .map(|Offer { host, tree, key, .. }| match keys {
            false => format!("{tree} (from {}, key {})", host.ip(), key.fingerprint()),
            true => format!("{}: {} (--key {key})", host.ip(), key.fingerprint()),
        })
        .collect();
    lines.sort();
    lines.dedup();
    super::show::indented(&lines)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::catalogue::Attributes;
    use crate::keys::OriginKey;

    fn offer(tree: &str, seed: u8) -> Offer {
        let key = OriginKey::from_seed(&[seed; 32]).public();
        Offer { host: ([10, 0, 0, seed], 19024).into(), tree: tree.parse().unwrap(), key, origin: true }
    }

    fn message(error: &DiscoverError) -> String {
        explain(error, &NetSettings::default(), Some(&"images".parse().unwrap()), ROUND)
    }

    #[test]
    fn silence_names_what_was_tried_and_what_may_be_in_the_way() {
        let to = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 255));
        let asked = |asked| DiscoverError::NoOrigin(Tried { asked, ..Tried::default() });
        let text = message(&asked(vec![("eth0".to_owned(), to)]));
        assert!(text.starts_with("nobody offers the tree \"images\": asked 10.0.0.255 on eth0 for 5 s"), "{text}");
        assert!(text.contains("19024 to 19039") && text.contains("--peer"), "{text}");
        let text = message(&asked(Vec::new()));
        assert!(text.contains("no network to ask") && text.contains("--interface"), "{text}");
        let [loopback, far] = [[127, 255, 255, 255], [10, 9, 0, 1]].map(IpAddr::from);
        let tried = vec![("lo".to_owned(), loopback), ("far.example".to_owned(), far)];
        let net = NetSettings { peers: vec![("far.example".to_owned(), 19024)], ..NetSettings::default() };
        let text = explain(&asked(tried), &net, None, ROUND);
        assert!(text.contains("asked far.example (10.9.0.1) for 5 s"), "{text}");
        let net = NetSettings { interfaces: vec!["lo".to_owned()], ..NetSettings::default() };
        let text = explain(&asked(vec![("lo".to_owned(), loopback)]), &net, None, ROUND);
        assert!(text.contains("asked 127.255.255.255 on lo for 5 s"), "{text}");
    }

    #[test]
    fn what_this_host_does_not_send_is_named_with_its_reason() {
        let to = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 255));
        let silence = |asked: &[&str], reason: io::ErrorKind| {
            let asked = asked.iter().map(|name| ((*name).to_owned(), to)).collect();
            let refused = vec![("eth0".to_owned(), to, reason.into())];
            message(&DiscoverError::NoOrigin(Tried { asked, refused }))
        };
        let text = silence(&[], io::ErrorKind::PermissionDenied);
        assert!(
            text.contains("this host may not ask 10.0.0.255 on eth0 (permission denied); does its own fire"),
            "{text}"
        );
        let text = silence(&[], io::ErrorKind::NetworkUnreachable);
        assert!(
            text.contains("cannot ask 10.0.0.255 on eth0 (network unreachable)") && text.contains("ip route"),
            "{text}"
        );
        let text = silence(&["eth1"], io::ErrorKind::NetworkUnreachable);
        assert!(
            text.contains("asked 10.0.0.255 on eth1 for 5 s without an answer, and cannot ask 10.0.0.255 on"),
            "{text}"
        );
    }

    #[test]
    fn an_origins_word_is_final_and_silence_is_not() {
        assert!(!is_final(&DiscoverError::NoOrigin(Tried::default())));
        assert!(is_final(&DiscoverError::TreeMissing { trees: vec![offer("other", 1)] }));
        let peer = Offer { origin: false, ..offer("other", 1) };
        assert!(!is_final(&DiscoverError::TreeMissing { trees: vec![peer] }));
        assert!(is_final(&DiscoverError::SeveralKeys(Vec::new())));
    }

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

    #[test]
    fn choices_are_listed_once_each() {
        let text = message(&DiscoverError::SeveralTrees(vec![offer("b", 1), offer("a", 2), offer("b", 1)]));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[1].starts_with("  a (from 10.0.0.2, key "), "{text}");
        let text = message(&DiscoverError::SeveralKeys(vec![offer("images", 1), offer("images", 2)]));
        for offer in [offer("images", 1), offer("images", 2)] {
            let line = format!("  {}: {} (--key {})", offer.host.ip(), offer.key.fingerprint(), offer.key);
            assert!(text.lines().any(|said| said == line), "{text}");
        }
        let text = message(&DiscoverError::TreeMissing { trees: vec![offer("a", 1)] });
        assert!(text.starts_with("nobody offers the tree \"images\"; the network has:\n  a (from"), "{text}");
    }
}
