//! The asking end of control sockets: blocking, for commands that do one thing.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

use super::protocol::{FRAME_HEAD, Frame, MAX_BODY, Request, failure_of};
use super::{Entry, Failure, Status};
use crate::wire::codec::Malformed;

/// How long a node may take to say what it is doing: it answers from memory.
const STATUS_PATIENCE: Duration = Duration::from_secs(3);
/// The longest status taken: 256 peers are 25 KiB.
const MAX_STATUS: usize = 1 << 20;

#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens there: the node is gone.
    #[error("no node listens on {path:?}: {reason}")]
    NoNode { path: PathBuf, reason: io::Error },
    #[error("{0}")]
    Refused(Failure),
    #[error("the node went away before it was done")]
    CutShort,
    #[error("the node does not answer")]
    Silent,
    #[error("the node's answer was not understood ({0}); is it of another version than this program?")]
    Malformed(String),
    #[error("the node cannot be reached: {0}")]
    Socket(io::Error),
    /// What came could not be passed on.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
}

/// A socket that a node of this host may listen on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeSocket {
    path: PathBuf,
}

/// The nodes whose sockets are in `dir`, by name. Sockets that nobody listens on any more are removed.
pub fn nodes_in(dir: &Path) -> io::Result<Vec<NodeSocket>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut nodes = Vec::new();
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        // One that vanishes while the directory is listed belongs to a node that has just ended.
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        if !is_socket || path.extension() != Some(OsStr::new("sock")) {
            continue;
        }
        let socket = NodeSocket { path };
        if socket.is_dead() {
            let _ = std::fs::remove_file(&socket.path);
        } else {
            nodes.push(socket);
        }
    }
    nodes.sort();
    Ok(nodes)
}

impl NodeSocket {
    pub fn at(path: &Path) -> NodeSocket {
        NodeSocket { path: path.to_owned() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nobody listens any more. A node renames its socket to this name only when it listens.
    pub fn is_dead(&self) -> bool {
        matches!(self.connect(), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
    }

    pub fn status(&self) -> Result<Status, ClientError> {
        let mut stream = self.ask(&Request::Status)?;
        stream.set_read_timeout(Some(STATUS_PATIENCE)).map_err(ClientError::Socket)?;
        let mut text = Vec::new();
        each_body(&mut stream, &mut |body| {
            if text.len() + body.len() > MAX_STATUS {
                return Err(ClientError::Malformed("status too long".to_owned()));
            }
            text.extend_from_slice(body);
            Ok(())
        })?;
        serde_json::from_slice(&text).map_err(|error| ClientError::Malformed(error.to_string()))
    }

    /// Calls `each` with every entry as it comes; its error ends the listing.
    pub fn list(&self, path: &Path, each: &mut dyn FnMut(Entry) -> io::Result<()>) -> Result<(), ClientError> {
        let mut stream = self.ask(&Request::List(path.to_owned()))?;
        each_body(&mut stream, &mut |body| each(Entry::decode(body)?).map_err(ClientError::Output))
    }

    /// Writes the file's bytes to `out` as they come.
    pub fn cat(&self, path: &Path, out: &mut dyn Write) -> Result<(), ClientError> {
        let mut stream = self.ask(&Request::Cat(path.to_owned()))?;
        each_body(&mut stream, &mut |body| out.write_all(body).map_err(ClientError::Output))
    }

    /// Never waits: a node that stands still accepts nobody, and its queue gets full of those who asked before.
    fn connect(&self) -> io::Result<UnixStream> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(&self.path)?)?;
        socket.set_nonblocking(false)?;
        Ok(OwnedFd::from(socket).into())
    }

    fn ask(&self, request: &Request) -> Result<UnixStream, ClientError> {
        let mut stream = self.connect().map_err(|reason| ClientError::NoNode { path: self.path.clone(), reason })?;
        // A node that is busy says so without reading the request; its answer is there to be read all the same.
        match stream.write_all(&request.encode()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(ClientError::Socket(error)),
            _ => Ok(stream),
        }
    }
}

impl From<Malformed> for ClientError {
    fn from(malformed: Malformed) -> ClientError {
        ClientError::Malformed(malformed.to_string())
    }
}

/// Calls `take` with the body of each data frame until the end marker.
fn each_body(
    stream: &mut UnixStream,
    take: &mut dyn FnMut(&[u8]) -> Result<(), ClientError>,
) -> Result<(), ClientError> {
    let mut body = vec![0; MAX_BODY];
    loop {
        let mut head = [0; FRAME_HEAD];
        read(stream, &mut head)?;
        match Frame::decode(&head)? {
            Frame::Data(len) => {
                read(stream, &mut body[..len])?;
                take(&body[..len])?;
            }
            Frame::End => return Ok(()),
            Frame::Failure => {
                read(stream, &mut body[..1])?;
                return Err(ClientError::Refused(failure_of(body[0])?));
            }
        }
    }
}

fn read(stream: &mut UnixStream, into: &mut [u8]) -> Result<(), ClientError> {
    stream.read_exact(into).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => ClientError::CutShort,
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Silent,
        _ => ClientError::Socket(error),
    })
}
