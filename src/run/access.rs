//! How `ls` and `cat` reach a tree: through this host's node where there is one, else by a node of their own.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::{RunError, find, live, ram_bytes, runtime_dir, secret};
use crate::cli::{FileSettings, NodeArgs, PinArgs};
use crate::control::client::{ClientError, NodeSocket, nodes_in};
use crate::control::server::failure_in;
use crate::control::{Entry, Node, Status};
use crate::settings::{NetSettings, RETRY_BY_HAND};
use crate::wire::head::TreeName;

/// Entries of a directory that wait to be printed.
const LISTED_AHEAD: usize = 256;
/// Bytes handed on at once: two blocks, as a node's socket does.
const PIECE: usize = 64 * 1024;

/// A tree within reach.
pub enum Access {
    /// A node of this host answers for it.
    Through(NodeSocket),
    /// A node of this process.
    Own { runtime: Runtime, node: Arc<dyn Node> },
}

impl Access {
    /// Finds a node of this host that has the tree, or starts one. What says where to look on the network (interface,
    /// port, broadcast, peer) says that this host's nodes are not meant.
    pub fn to(tree: Option<&TreeName>, pin: PinArgs, args: NodeArgs, file: &FileSettings) -> Result<Access, RunError> {
        let anywhere = args.says_nowhere();
        let (mut net, cache) = args.with(file).settings(ram_bytes());
        net.head = pin.head;
        if anywhere && let Some(socket) = node_of_this_host(tree, &net)? {
            return Ok(Access::Through(socket));
        }
        // Not before it is needed: whoever may ask this host's nodes need not be able to read it.
        secret::read(&mut net)?;
        let runtime = live::runtime()?;
        let found = find::find(&net, tree, RETRY_BY_HAND)?;
        let node = live::join(found, &net, &cache)?;
        runtime.block_on(node.reached(&net))?;
        let node = Arc::new(node);
        Ok(Access::Own { runtime, node })
    }

    pub fn list(&self, path: &Path, each: &mut dyn FnMut(Entry) -> io::Result<()>) -> Result<(), ClientError> {
        match self {
            Access::Through(socket) => socket.list(path, each),
            Access::Own { runtime, node } => runtime.block_on(list(&**node, path, each)),
        }
    }

    pub fn cat(&self, path: &Path, out: &mut dyn Write) -> Result<(), ClientError> {
        match self {
            Access::Through(socket) => socket.cat(path, out),
            Access::Own { runtime, node } => runtime.block_on(cat(&**node, path, out)),
        }
    }
}

async fn list(node: &dyn Node, path: &Path, each: &mut dyn FnMut(Entry) -> io::Result<()>) -> Result<(), ClientError> {
    let (sender, mut entries) = mpsc::channel(LISTED_AHEAD);
    // It owns the receiver, whose end ends the listing: also where an entry cannot be printed.
    let print = async move {
        while let Some(entry) = entries.recv().await {
            each(entry)?;
        }
        io::Result::Ok(())
    };
    let (listed, printed) = tokio::join!(node.list(path, sender), print);
    printed.map_err(ClientError::Output)?;
    Ok(listed?)
}

async fn cat(node: &dyn Node, path: &Path, out: &mut dyn Write) -> Result<(), ClientError> {
    let mut file = node.open(path).await?;
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece).await {
            Ok(0) => return Ok(()),
            Ok(len) => out.write_all(&piece[..len]).map_err(ClientError::Output)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failure_in(&error).into()),
        }
    }
}

/// The socket of a node that has the tree, or, with none named, the one tree that this host's nodes have.
fn node_of_this_host(tree: Option<&TreeName>, net: &NetSettings) -> Result<Option<NodeSocket>, RunError> {
    // Without a place for sockets, or with one that others keep to themselves, there is no node to go through.
    let sockets = runtime_dir().ok().and_then(|dir| nodes_in(&dir).ok()).unwrap_or_default();
    let nodes: Vec<(NodeSocket, Status)> =
        sockets.into_iter().filter_map(|socket| socket.status().ok().map(|status| (socket, status))).collect();
    choose(nodes, tree, net)
}

fn choose(
    nodes: Vec<(NodeSocket, Status)>,
    tree: Option<&TreeName>,
    net: &NetSettings,
) -> Result<Option<NodeSocket>, RunError> {
    let key = net.key.map(|key| key.to_string());
    let fits = |status: &Status| {
        // One that still looks for its tree cannot answer for it.
        status.waits.is_none()
            && tree.is_none_or(|tree| tree.as_str() == status.tree)
            // A tree that anybody could have made up is not what was asked for.
            && (status.private || net.secret_file.is_none())
            && net.head.is_none_or(|head| head.to_string() == status.head)
            && key.as_ref().is_none_or(|key| *key == status.key)
    };
    let mut nodes = nodes.into_iter().filter(|(_, status)| fits(status));
    let Some((first, is)) = nodes.next() else { return Ok(None) };
    let others: Vec<Status> =
        nodes.map(|(_, status)| status).filter(|other| (&other.tree, &other.key) != (&is.tree, &is.key)).collect();
    if others.is_empty() {
        return Ok(Some(first));
    }
    let mut lines: Vec<String> = others
        .iter()
        .chain([&is])
        .map(|status| format!("{}: with key {} (--key {})", status.tree, status.key_fingerprint, status.key))
        .collect();
    lines.sort();
    lines.dedup();
    Err(RunError::SeveralHere(lines))
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, ReadBuf};

    use super::*;
    use crate::control::{Answer, Failure};
    use crate::keys::OriginKey;

    fn node(name: &str, tree: &str, seed: u8) -> (NodeSocket, Status) {
        let key = OriginKey::from_seed(&[seed; 32]).public();
        let status = Status { tree: tree.to_owned(), key: key.to_string(), ..Status::default() };
        (NodeSocket::at(Path::new(name)), status)
    }

    fn chosen(
        nodes: &[(NodeSocket, Status)],
        tree: Option<&str>,
        seed: Option<u8>,
    ) -> Result<Option<String>, Vec<String>> {
        let tree: Option<TreeName> = tree.map(|tree| tree.parse().unwrap());
        let key = seed.map(|seed| OriginKey::from_seed(&[seed; 32]).public());
        let net = NetSettings { key, ..NetSettings::default() };
        match choose(nodes.to_vec(), tree.as_ref(), &net) {
            Ok(socket) => Ok(socket.map(|socket| socket.path().display().to_string())),
            Err(RunError::SeveralHere(lines)) => Err(lines),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_node_of_the_tree_asked_for_is_taken_and_of_several_trees_one_must_be_named() {
        let nodes = [node("a", "images", 1), node("b", "images", 1), node("c", "models", 1)];
        assert_eq!(chosen(&nodes, Some("images"), None), Ok(Some("a".to_owned())));
        assert_eq!(chosen(&nodes, Some("models"), None), Ok(Some("c".to_owned())));
        assert_eq!(chosen(&nodes, Some("other"), None), Ok(None));
        assert_eq!(chosen(&nodes[..2], None, None), Ok(Some("a".to_owned())));
        assert_eq!(chosen(&nodes, None, None).unwrap_err().len(), 2);
        assert_eq!(chosen(&[], None, None), Ok(None));
        let (socket, status) = node("d", "late", 1);
        let late = (socket, Status { waits: Some("nobody answers".to_owned()), ..status });
        assert_eq!(chosen(&[late], Some("late"), None), Ok(None), "it cannot answer for its tree yet");
    }

    #[test]
    fn with_a_secret_a_node_that_has_none_is_not_meant() {
        let (socket, status) = node("a", "images", 1);
        let private = Status { private: true, ..status.clone() };
        let net = NetSettings { secret_file: Some("/etc/secret".into()), ..NetSettings::default() };
        let has = |status| choose(vec![(socket.clone(), status)], None, &net).unwrap().is_some();
        assert_eq!((has(status), has(private)), (false, true));
    }

    #[test]
    fn of_two_keys_of_one_tree_the_trusted_one_is_taken() {
        let nodes = [node("a", "images", 1), node("b", "images", 2)];
        assert_eq!(chosen(&nodes, Some("images"), None).unwrap_err().len(), 2);
        assert_eq!(chosen(&nodes, Some("images"), Some(2)), Ok(Some("b".to_owned())));
        assert_eq!(chosen(&nodes, Some("images"), Some(3)), Ok(None));
    }

    /// A directory that never ends, and a file that breaks off.
    struct Endless;

    impl Node for Endless {
        fn status(&self) -> Status {
            Status::default()
        }

        fn list<'a>(&'a self, _: &'a Path, entries: mpsc::Sender<Entry>) -> Answer<'a, ()> {
            let (mode, nlink, uid, gid, size, mtime_s, rdev) = (0o100644, 1, 0, 0, 0, 0, 0);
            let entry = Entry { name: "a".into(), mode, nlink, uid, gid, size, mtime_s, rdev, target: None };
            Box::pin(async move {
                while entries.send(entry.clone()).await.is_ok() {}
                Err(Failure::Stopped)
            })
        }

        fn open<'a>(&'a self, _: &'a Path) -> Answer<'a, Box<dyn AsyncRead + Send + Unpin>> {
            struct Gone;
            impl AsyncRead for Gone {
                fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                    Poll::Ready(Err(io::Error::other(Failure::Gone)))
                }
            }
            let file = AsyncReadExt::chain(&b"begins"[..], Gone);
            Box::pin(async { Ok(Box::new(file) as Box<dyn AsyncRead + Send + Unpin>) })
        }
    }

    #[test]
    fn a_listing_ends_when_it_cannot_be_printed() {
        let way = Access::Own { runtime: live::runtime().unwrap(), node: Arc::new(Endless) };
        let mut left = 1000;
        let listed = way.list(Path::new(""), &mut |_| {
            left -= 1;
            if left == 0 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
        });
        assert!(matches!(listed, Err(ClientError::Output(_))), "{listed:?}");
    }

    #[test]
    fn a_file_that_breaks_off_is_an_error_after_the_bytes_that_came() {
        let way = Access::Own { runtime: live::runtime().unwrap(), node: Arc::new(Endless) };
        let mut out = Vec::new();
        let written = way.cat(Path::new("a"), &mut out);
        assert!(matches!(written, Err(ClientError::Refused(Failure::Gone))), "{written:?}");
        assert_eq!(out, b"begins");
    }
}
