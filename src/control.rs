//! A node's control socket: `status`, `ls` and `cat` ask the running node of this host instead of joining a swarm.
//!
//! One Unix socket per node, in a directory that only its user writes to. The server knows nothing of the swarm: it asks
//! whatever is behind the `Node` trait, and so can be tested without a network. The invariants: whoever is neither the
//! node's user nor root gets nothing; what a client may send, how many may be there and how long one may be silent are
//! bounded; an answer that is not followed by its end marker is not complete, and the client says so.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use crate::fs;

pub mod client;
pub mod places;
mod protocol;
pub mod server;

/// What the control socket asks of its node.
pub trait Node: Send + Sync + 'static {
    fn status(&self) -> Status;

    /// Sends what is at `path` below the tree's root: a directory's entries in the tree's order, or the one entry that
    /// anything else is.
    fn list<'a>(&'a self, path: &'a Path, entries: mpsc::Sender<Entry>) -> Answer<'a, ()>;

    /// Opens the regular file at `path`, following links that stay in the tree.
    fn open<'a>(&'a self, path: &'a Path) -> Answer<'a, Box<dyn AsyncRead + Send + Unpin>>;
}

pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'a>>;

/// What a node says of itself. Field names are those of `status --json`; they are added to, not changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub role: Role,
    pub tree: String,
    /// Which version of the tree: grows with every change.
    pub sequence: u64,
    /// The catalogue's root page by its hash: what `--head` pins.
    #[serde(default)]
    pub head: String,
    /// The origin's public key, 64 hex digits.
    pub key: String,
    /// Its short form, for people to compare.
    pub key_fingerprint: String,
    /// The UDP and TCP port that peers reach this node at.
    pub port: u16,
    /// Whether only nodes with its secret can join the swarm, and what they send is encrypted.
    #[serde(default)]
    pub private: bool,
    /// The directory that an origin serves.
    pub directory: Option<PathText>,
    /// Where the tree is mounted.
    pub mountpoint: Option<PathText>,
    /// Why a mount that was made before its tree was found still looks for it; the rest is empty meanwhile.
    pub waits: Option<String>,
    /// For how long no origin was heard, in seconds; None where one is, and at an origin.
    pub origin_away_s: Option<u64>,
    /// Who offered the tree with another key lately, and which; it is not trusted.
    pub rival: Option<String>,
    pub peers: Vec<Peer>,
    /// Chunks of which anything is held.
    pub chunks_held: u64,
    pub bytes: Bytes,
    /// What else was counted, by name: wrong blocks, malformed datagrams.
    pub counters: BTreeMap<String, u64>,
}

/// Paths in JSON are text; bytes that are none are shown as U+FFFD.
pub type PathText = String;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Origin,
    #[default]
    Mount,
    /// Here for one `ls` or `cat`, or embedded in another program.
    Stream,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub address: String,
    pub origin: bool,
    /// Where it reads, as a chunk's place in the tree's order; None before it said so.
    pub position: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// Memory that chunks take, what is in flight included.
    pub cache_used: u64,
    pub cache_budget: u64,
    /// Read from the origin, from peers, and sent to peers since the node started.
    pub from_origin: u64,
    pub from_peers: u64,
    pub to_peers: u64,
}

/// One line of `ls`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: OsString,
    /// Type and permissions as in `st_mode`.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Seconds since 1970.
    pub mtime_s: i64,
    /// The device's number as in `st_rdev`; 0 for what is no device.
    pub rdev: u64,
    /// Where a symbolic link points.
    pub target: Option<PathBuf>,
}

/// Why a node did not do what was asked.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    #[error("no such file or directory")]
    NotFound,
    #[error("not a directory")]
    NotADirectory,
    #[error("is a directory; `swarmfs ls` lists it")]
    IsADirectory,
    #[error("not a regular file")]
    NotAFile,
    #[error("too many levels of symbolic links")]
    LinkLoop,
    #[error("the file was changed or removed at the origin since it was listed; read it again")]
    Gone,
    #[error("the origin cannot read it; its log says why")]
    Unreadable,
    #[error("nobody who has it answered in time; is the origin running?")]
    TimedOut,
    #[error("the node is stopping")]
    Stopped,
    #[error("the request was not understood; is the node of another version than this program?")]
    BadRequest,
    #[error("the node serves as many clients as it can")]
    Busy,
}

impl From<fs::Error> for Failure {
    fn from(error: fs::Error) -> Failure {
        match error {
            fs::Error::NotFound | fs::Error::NameTooLong => Failure::NotFound,
            fs::Error::NotADirectory => Failure::NotADirectory,
            fs::Error::NotAFile | fs::Error::NotALink => Failure::NotAFile,
            fs::Error::Loop => Failure::LinkLoop,
            fs::Error::Stale => Failure::Gone,
            fs::Error::TimedOut => Failure::TimedOut,
            fs::Error::Ended | fs::Error::Interrupted => Failure::Stopped,
            _ => Failure::Unreadable,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::io::AsyncReadExt;

    use super::client::{ClientError, NodeSocket, nodes_in};
    use super::server::{Limits, Server};
    use super::*;

    /// Long enough that a cat crosses many frames, with a pattern that shows an exchanged one.
    fn contents() -> Vec<u8> {
        (0..3_000_001u32).map(|i| (i / 7) as u8).collect()
    }

    struct Fixture;

    impl Node for Fixture {
        fn status(&self) -> Status {
            Status {
                pid: std::process::id(),
                tree: "images".to_owned(),
                sequence: u64::MAX,
                head: "5a".repeat(32),
                peers: (0..300).map(|n| Peer { address: format!("10.0.0.{n}:19024"), ..Peer::default() }).collect(),
                ..Status::default()
            }
        }

        fn list<'a>(&'a self, path: &'a Path, entries: mpsc::Sender<Entry>) -> Answer<'a, ()> {
            Box::pin(async move {
                if path != Path::new("boards") {
                    return Err(Failure::NotFound);
                }
                for entry in listing() {
                    entries.send(entry).await.map_err(|_| Failure::Stopped)?;
                }
                Ok(())
            })
        }

        fn open<'a>(&'a self, path: &'a Path) -> Answer<'a, Box<dyn AsyncRead + Send + Unpin>> {
            Box::pin(async move {
                let whole = std::io::Cursor::new(contents());
                let file: Box<dyn AsyncRead + Send + Unpin> = match path.to_str() {
                    Some("file") => Box::new(whole),
                    Some("fails-midway") => Box::new(AsyncReadExt::chain(AsyncReadExt::take(whole, 100_000), Failing)),
                    Some("never-ends") => Box::new(tokio::io::repeat(1)),
                    _ => return Err(Failure::IsADirectory),
                };
                Ok(file)
            })
        }
    }

    struct Failing;

    impl AsyncRead for Failing {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Err(std::io::Error::other(Failure::Gone)))
        }
    }

    fn listing() -> Vec<Entry> {
        let entry = |name: &[u8], mode| Entry {
            name: OsString::from_vec(name.to_vec()),
            mode,
            nlink: 1,
            uid: 1000,
            gid: u32::MAX,
            size: 1 << 40,
            mtime_s: -1,
            rdev: 0x801,
            target: None,
        };
        let mut link = entry(b"link", 0o120777);
        link.target = Some(PathBuf::from("../a\nb"));
        vec![entry(b"not \xff utf8", 0o100644), link, entry(&[b'x'; 255], 0o40755)]
    }

    /// A server on a directory and a thread of its own, which end with it.
    struct Running {
        dir: tempfile::TempDir,
        socket: NodeSocket,
        stop: Option<tokio::sync::oneshot::Sender<()>>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Drop for Running {
        fn drop(&mut self) {
            drop(self.stop.take());
            let ended = self.thread.take().map(std::thread::JoinHandle::join);
            assert!(matches!(ended, Some(Ok(()))) || std::thread::panicking(), "the server panicked");
        }
    }

    fn running(limits: Limits) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let server = {
            let _guard = runtime.enter();
            Server::bind(dir.path(), "images", limits).unwrap()
        };
        let socket = NodeSocket::at(server.path());
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = server.run(Arc::new(Fixture)) => {}
                    _ = stopped => {}
                }
            });
        });
        Running { dir, socket, stop: Some(stop), thread: Some(thread) }
    }

    #[test]
    fn a_node_says_what_it_is_doing() {
        let node = running(Limits::default());
        assert_eq!(nodes_in(node.dir.path()).unwrap(), std::slice::from_ref(&node.socket));
        assert_eq!(node.socket.status().unwrap(), Fixture.status());
    }

    #[test]
    fn a_listing_arrives_whole_with_any_name() {
        let node = running(Limits::default());
        let mut seen = Vec::new();
        let listed = node.socket.list(Path::new("boards"), &mut |entry| {
            seen.push(entry);
            Ok(())
        });
        listed.unwrap();
        assert_eq!(seen, listing());
        let missing = node.socket.list(Path::new("nowhere"), &mut |_| Ok(()));
        assert!(matches!(missing, Err(ClientError::Refused(Failure::NotFound))));
    }

    #[test]
    fn a_file_arrives_whole() {
        let node = running(Limits::default());
        let mut out = Vec::new();
        node.socket.cat(Path::new("file"), &mut out).unwrap();
        assert!(out == contents());
    }

    #[test]
    fn a_file_that_fails_midway_is_an_error_after_the_bytes_that_came() {
        let node = running(Limits::default());
        let mut out = Vec::new();
        let result = node.socket.cat(Path::new("fails-midway"), &mut out);
        assert!(matches!(result, Err(ClientError::Refused(Failure::Gone))), "{result:?}");
        assert!(out == contents()[..100_000]);
        let result = node.socket.cat(Path::new("directory"), &mut out);
        assert!(matches!(result, Err(ClientError::Refused(Failure::IsADirectory))), "{result:?}");
    }

    #[test]
    fn output_that_cannot_be_written_ends_a_cat_that_would_never_end() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let node = running(Limits { connections: 1, ..Limits::default() });
        let result = node.socket.cat(Path::new("never-ends"), &mut Full);
        assert!(matches!(result, Err(ClientError::Output(_))), "{result:?}");
        // The only connection allowed is free again as soon as the server sees its client gone.
        while node.socket.status().is_err() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_client_that_says_nothing_is_dropped() {
        let node = running(Limits { request: Duration::from_millis(50), ..Limits::default() });
        let mut silent = UnixStream::connect(node.socket.path()).unwrap();
        silent.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(silent.read(&mut [0; 16]).unwrap(), 0, "the server closes");
    }

    #[test]
    fn any_bytes_are_answered_or_dropped_and_harm_no_one() {
        let node = running(Limits::default());
        for bytes in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0xff; 8], &[1, 9, 0, 0], &[1, 2, 0xff, 0xff], &[1, 3, 1, 0, 0]]
        {
            let mut stream = UnixStream::connect(node.socket.path()).unwrap();
            stream.write_all(bytes).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut answer = Vec::new();
            // A reset is as good as an end: bytes beyond the request were never read.
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.len() < 64, "{bytes:?}");
        }
        assert!(node.socket.status().is_ok());
    }

    #[test]
    fn more_clients_than_allowed_are_told_so() {
        let node = running(Limits { connections: 1, ..Limits::default() });
        let mut first = UnixStream::connect(node.socket.path()).unwrap();
        first.write_all(&protocol::Request::Cat(PathBuf::from("never-ends")).encode()).unwrap();
        first.read_exact(&mut [0; 100]).unwrap();
        assert!(matches!(node.socket.status(), Err(ClientError::Refused(Failure::Busy))));
    }

    #[test]
    fn sockets_are_for_their_user_and_vanish_with_their_server() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        let server = Server::bind(dir.path(), "images", Limits::default()).unwrap();
        let second = Server::bind(dir.path(), "images", Limits::default()).unwrap();
        assert_ne!(server.path(), second.path(), "two nodes of one tree in one process");
        let metadata = std::fs::metadata(server.path()).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        drop((server, second));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn sockets_of_dead_nodes_are_removed_and_other_files_are_left() {
        let node = running(Limits::default());
        let dead = node.dir.path().join("images-1.sock");
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        let other = node.dir.path().join("notes.txt");
        std::fs::write(&other, "mine").unwrap();
        assert_eq!(nodes_in(node.dir.path()).unwrap(), std::slice::from_ref(&node.socket));
        assert!(!dead.exists());
        assert!(other.exists());
    }

    #[test]
    fn a_node_that_starts_clears_sockets_of_dead_ones() {
        let dir = tempfile::tempdir().unwrap();
        drop(std::os::unix::net::UnixListener::bind(dir.path().join("images-1.sock")).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        let server = Server::bind(dir.path(), "images", Limits::default()).unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [server.path()]);
    }

    #[test]
    fn a_node_that_stands_still_is_neither_dead_nor_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("images-1.sock");
        let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        listener.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(0).unwrap();
        let _first = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let node = NodeSocket::at(&path);
        assert!(matches!(node.status(), Err(ClientError::NoNode { .. })), "its queue is full");
        assert_eq!(nodes_in(dir.path()).unwrap(), [node]);
    }

    #[test]
    fn a_directory_that_is_not_there_has_no_nodes() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(nodes_in(&dir.path().join("missing")).unwrap(), []);
    }

    #[test]
    fn an_answer_cut_short_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("images-1.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 8]).unwrap();
            stream.write_all(&[1, 3, 0, 0, 0, b'a', b'b', b'c']).unwrap();
        });
        let mut out = Vec::new();
        let result = NodeSocket::at(&path).cat(Path::new("file"), &mut out);
        server.join().unwrap();
        assert!(matches!(result, Err(ClientError::CutShort)), "{result:?}");
        assert_eq!(out, b"abc");
    }
}
