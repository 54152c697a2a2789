//! The node's end of its control socket.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufWriter};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tracing::{debug, warn};

use super::protocol::{FRAME_HEAD, Frame, MAX_BODY, REQUEST_HEAD, Request, failure_code};
use super::{Entry, Failure, Node};
use crate::fs;

/// Entries that may wait for a client: little more than one page's rows, so a listing is never held whole.
const LISTED_AHEAD: usize = 256;
/// Characters of the tree's name that a socket's name shows: a socket's whole path has at most 107 bytes.
const SHOWN_NAME: usize = 24;
/// Nodes of one tree in one process that get sockets.
const SAME_NAME: u32 = 64;
/// How long to wait when the process has no descriptor left for the next client.
const PAUSE: Duration = Duration::from_millis(100);

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many at once; more than people and scripts of one host ask at a time.
    pub connections: usize,
    /// How long a client may take to say what it wants. One that was answered may read as slowly as it likes: a `cat`
    /// into a pager is a pause, not a fault.
    pub request: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { connections: 32, request: Duration::from_secs(5) }
    }
}

#[derive(Debug, Error)]
pub enum BindError {
    #[error("cannot make the directory {path:?} for control sockets: {reason}")]
    Directory { path: PathBuf, reason: io::Error },
    #[error("cannot make the control socket {path:?}: {reason}")]
    Socket { path: PathBuf, reason: io::Error },
}

/// A bound control socket; its file goes when this is dropped.
pub struct Server {
    listener: UnixListener,
    file: SocketFile,
    limits: Limits,
}

struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whatever is wrong, the next to list the directory recognises a socket that nobody listens on.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Server {
    /// Makes a socket for a node of `tree` in `dir`, which is made too. Call it inside a tokio runtime.
    ///
    /// The socket is bound under a name that nobody looks at and renamed once it can be connected to: whoever finds one
    /// that refuses a connection may take its node for dead.
    pub fn bind(dir: &Path, tree: &str, limits: Limits) -> Result<Server, BindError> {
        // 0700 also for the parents it makes: none of them is anybody else's business.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|reason| BindError::Directory { path: dir.to_owned(), reason })?;
        // A host whose nodes are killed again and again, and that nobody asks for their status, gathers no sockets either.
        let _ = super::client::nodes_in(dir);
        let pid = std::process::id();
        let shown = shown_name(tree);
        let path = (0..SAME_NAME)
            .map(|count| match count {
                0 => dir.join(format!("{shown}-{pid}.sock")),
                count => dir.join(format!("{shown}-{pid}.{count}.sock")),
            })
            .find(|path| !path.exists() || super::client::NodeSocket::at(path).is_dead())
            .ok_or_else(|| BindError::Socket { path: dir.to_owned(), reason: io::ErrorKind::AddrInUse.into() })?;
        let hidden = path.with_extension("new");
        let failed = |reason| BindError::Socket { path: path.clone(), reason };
        match std::fs::remove_file(&hidden) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&hidden).map_err(failed)?;
        let mut file = SocketFile(hidden);
        std::fs::set_permissions(&file.0, Permissions::from_mode(0o600)).map_err(failed)?;
        std::fs::rename(&file.0, &path).map_err(failed)?;
        file.0 = path;
        Ok(Server { listener, file, limits })
    }

    pub fn path(&self) -> &Path {
        &self.file.0
    }

    /// Answers clients for as long as it is polled.
    pub async fn run(self, node: Arc<dyn Node>) {
        let free = Arc::new(Semaphore::new(self.limits.connections));
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "control socket: cannot accept a client");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            if !is_allowed(&stream) {
                debug!("control socket: a client of another user was dropped");
                continue;
            }
            let Ok(permit) = free.clone().try_acquire_owned() else {
                refuse_busy(&stream);
                continue;
            };
            let (node, patience) = (node.clone(), self.limits.request);
            tokio::spawn(async move {
                if let Err(error) = serve(stream, &*node, patience).await {
                    debug!(%error, "control socket: a client left");
                }
                drop(permit);
            });
        }
    }
}

/// The tree's name as far as it is safe and short enough for a file's name. It is for people; nobody parses it.
fn shown_name(tree: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' };
    tree.chars().take(SHOWN_NAME).map(plain).collect()
}

/// The node's own user and root may ask. The file's mode says so already; this holds even if somebody changes it.
fn is_allowed(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

/// A fresh socket's buffer takes these few bytes; a client that they do not fit sees the end instead.
fn refuse_busy(stream: &UnixStream) {
    let mut answer = Frame::Failure.head().to_vec();
    answer.push(failure_code(Failure::Busy));
    let _ = stream.try_write(&answer);
}

async fn serve(mut stream: UnixStream, node: &dyn Node, patience: Duration) -> io::Result<()> {
    let request = tokio::time::timeout(patience, read_request(&mut stream)).await;
    let request = request.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let (mut from, to) = stream.split();
    let mut to = BufWriter::with_capacity(FRAME_HEAD + MAX_BODY, to);
    let answer = async {
        let result = match request {
            Some(Request::Status) => send_status(node, &mut to).await?,
            Some(Request::List(path)) => send_list(node, &path, &mut to).await?,
            Some(Request::Cat(path)) => send_file(node, &path, &mut to).await?,
            None => Err(Failure::BadRequest),
        };
        match result {
            Ok(()) => to.write_all(&Frame::End.head()).await?,
            Err(failure) => {
                to.write_all(&Frame::Failure.head()).await?;
                to.write_u8(failure_code(failure)).await?;
            }
        }
        to.flush().await
    };
    // A client that goes away while the answer waits for the network must not keep its place.
    let gone = async {
        let mut byte = [0];
        while from.read(&mut byte).await.is_ok_and(|len| len > 0) {}
    };
    tokio::select! {
        answered = answer => answered,
        () = gone => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// None for bytes that are no request.
async fn read_request(stream: &mut UnixStream) -> io::Result<Option<Request>> {
    let mut head = [0; REQUEST_HEAD];
    stream.read_exact(&mut head).await?;
    let Ok(len) = Request::path_len(&head) else { return Ok(None) };
    let mut path = vec![0; len];
    stream.read_exact(&mut path).await?;
    Ok(Request::decode(&head, path).ok())
}

type Answered = io::Result<Result<(), Failure>>;

async fn send_status<W: AsyncWriteExt + Unpin>(node: &dyn Node, to: &mut W) -> Answered {
    let text = serde_json::to_vec(&node.status()).map_err(io::Error::other)?;
    for part in text.chunks(MAX_BODY) {
        send_data(part, to).await?;
    }
    Ok(Ok(()))
}

async fn send_list<W: AsyncWriteExt + Unpin>(node: &dyn Node, path: &Path, to: &mut W) -> Answered {
    let (sender, mut entries) = mpsc::channel::<Entry>(LISTED_AHEAD);
    // It owns the receiver, whose end ends the listing: also where the client is gone.
    let send = async move {
        while let Some(entry) = entries.recv().await {
            send_data(&entry.encode(), to).await?;
        }
        io::Result::Ok(())
    };
    // The sender goes when the listing is done, and that ends the other half.
    let (listed, sent) = tokio::join!(node.list(path, sender), send);
    sent?;
    Ok(listed)
}

async fn send_file<W: AsyncWriteExt + Unpin>(node: &dyn Node, path: &Path, to: &mut W) -> Answered {
    let mut file = match node.open(path).await {
        Ok(file) => file,
        Err(failure) => return Ok(Err(failure)),
    };
    let mut buffer = vec![0; MAX_BODY];
    loop {
        match read_some(&mut file, &mut buffer).await {
            Ok(0) => return Ok(Ok(())),
            Ok(len) => {
                send_data(&buffer[..len], to).await?;
                // What waits in a buffer while the next bytes wait for the network would look like a stall.
                to.flush().await?;
            }
            Err(error) => return Ok(Err(failure_in(&error))),
        }
    }
}

async fn read_some(file: &mut (dyn AsyncRead + Send + Unpin), buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(buffer).await {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Readers put what happened into the error; anything else means that the bytes are out of reach.
pub fn failure_in(error: &io::Error) -> Failure {
    let inner = error.get_ref();
    let failure = inner.and_then(|inner| inner.downcast_ref::<Failure>()).copied();
    let of_fs = || inner.and_then(|inner| inner.downcast_ref::<fs::Error>()).map(|error| Failure::from(*error));
    failure.or_else(of_fs).unwrap_or(Failure::Unreadable)
}

async fn send_data<W: AsyncWriteExt + Unpin>(body: &[u8], to: &mut W) -> io::Result<()> {
    to.write_all(&Frame::Data(body.len()).head()).await?;
    to.write_all(body).await
}
