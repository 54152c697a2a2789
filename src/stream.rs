//! Reading the tree from within a program: no mount, no root, the same swarm.
//!
//! `Embedded::open` gives a file as tokio's `AsyncRead` and `AsyncSeek`; `cat` is a copy of it. Paths are walked inside
//! the tree only: a symbolic link that starts with `/` starts at the tree's root, and `..` never leaves that.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, SeekFrom};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{mpsc, oneshot};

use crate::cache::Slice;
use crate::catalogue::{Entry, Kind, Lookup, View};
use crate::driver::{Client, ReadRange, ReaderId, Slices};
use crate::fs::{self, Advice, Call, Calls, FilePlace, Held, Readahead, Supply, look, resolve, window};

/// Bytes demanded at once: eight blocks, so that the first are handed on while the next ones travel.
const PIECE: u32 = 256 * 1024;
/// Rows asked of the catalogue at once.
const ROWS: usize = 128;

/// A tree, for programs that run a node of their own. Cloning gives another handle.
pub struct Embedded<S: Supply = Client> {
    supply: Arc<S>,
    calls: Arc<Calls>,
    patience: Option<Duration>,
}

/// Why a path could not be opened.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum StreamError {
    #[error("{path:?}: {reason}")]
    Path { path: String, reason: fs::Error },
    #[error("{0:?} is a directory; name a file in it")]
    IsADirectory(String),
}

/// One version of one file, from its beginning.
pub struct Stream<S: Supply = Client> {
    supply: Arc<S>,
    calls: Arc<Calls>,
    patience: Option<Duration>,
    entry: Entry,
    place: FilePlace,
    view: View,
    reader: ReaderId,
    ahead: Readahead,
    position: u64,
    /// Bytes from `position` on, the first of them so far into the first slice.
    here: VecDeque<Slice>,
    taken: usize,
    waiting: Option<Waiting<S, Slices>>,
}

/// An answer to come. Dropping it gives the request up.
struct Waiting<S: Supply, T> {
    supply: Arc<S>,
    call: Arc<Call>,
    answer: oneshot::Receiver<Result<T, fs::Error>>,
}

impl<S: Supply> Clone for Embedded<S> {
    fn clone(&self) -> Self {
        Embedded { supply: self.supply.clone(), calls: self.calls.clone(), patience: self.patience }
    }
}

impl<S: Supply> Embedded<S> {
    pub fn new(supply: S) -> Embedded<S> {
        Embedded { supply: Arc::new(supply), calls: Arc::default(), patience: None }
    }

    /// Gives up what nobody answered for so long. Without it, an origin that is away is waited for.
    pub fn with_patience(self, patience: Duration) -> Embedded<S> {
        Embedded { patience: Some(patience), ..self }
    }

    /// Opens a regular file of the newest version of the tree, following symbolic links.
    pub async fn open(&self, path: impl AsRef<[u8]>) -> Result<Stream<S>, StreamError> {
        let path = path.as_ref();
        let view = self.view();
        let entry = self.find(view, path, true).await?;
        let object = match entry.row.kind() {
            Kind::File { object } => *object,
            Kind::Directory => return Err(StreamError::IsADirectory(shown(path))),
            _ => return Err(StreamError::Path { path: shown(path), reason: fs::Error::NotAFile }),
        };
        let place = FilePlace { object, size: entry.row.attributes().size, ordinal: entry.ordinal };
        Ok(Stream {
            supply: self.supply.clone(),
            calls: self.calls.clone(),
            patience: self.patience,
            entry,
            place,
            view,
            reader: self.supply.new_reader(),
            ahead: Readahead::default(),
            position: 0,
            here: VecDeque::new(),
            taken: 0,
            waiting: None,
        })
    }

    /// What lies at a path; a symbolic link at its end is followed only if `follow`.
    pub async fn entry(&self, path: impl AsRef<[u8]>, follow: bool) -> Result<Entry, StreamError> {
        self.find(self.view(), path.as_ref(), follow).await
    }

    /// What a directory holds, in the order of the catalogue, handed to `each` part by part.
    pub async fn list(&self, path: impl AsRef<[u8]>, mut each: impl FnMut(Vec<Entry>)) -> Result<(), StreamError> {
        let (parts, mut arriving) = mpsc::channel(1);
        let taking = async move {
            while let Some(part) = arriving.recv().await {
                each(part);
            }
        };
        tokio::join!(self.list_into(path, parts), taking).0
    }

    /// What a directory holds, part by part: the next part is fetched when there is room for it, and none when nobody
    /// takes them any more.
    pub async fn list_into(&self, path: impl AsRef<[u8]>, parts: mpsc::Sender<Vec<Entry>>) -> Result<(), StreamError> {
        let path = path.as_ref();
        let view = self.view();
        let directory = self.find(view, path, true).await?;
        if *directory.row.kind() != Kind::Directory {
            return Err(StreamError::Path { path: shown(path), reason: fs::Error::NotADirectory });
        }
        let dir: Arc<[u8]> = directory.row.path().into();
        let mut from = None;
        loop {
            let dir = dir.clone();
            let part = self.look(view, move |view, pages| view.entries(pages, &dir, from, ROWS)).await;
            let part = part.map_err(|reason| StreamError::Path { path: shown(path), reason })?;
            let is_last = part.len() < ROWS;
            from = part.last().map(|entry| entry.rank + 1);
            if parts.send(part).await.is_err() || is_last {
                return Ok(());
            }
        }
    }

    /// Copies a file to `out` and says how many bytes that were.
    pub async fn cat(&self, path: impl AsRef<[u8]>, out: &mut (impl AsyncWrite + Unpin)) -> io::Result<u64> {
        let mut stream = self.open(path).await.map_err(io::Error::other)?;
        let mut bytes = 0;
        while let Some(slice) = stream.next().await? {
            out.write_all(&slice).await?;
            bytes += slice.len() as u64;
        }
        out.flush().await?;
        Ok(bytes)
    }

    fn view(&self) -> View {
        let head = self.supply.head();
        View::new(head.root, head.root_level)
    }

    async fn find(&self, view: View, path: &[u8], follow: bool) -> Result<Entry, StreamError> {
        let walked = path.to_vec();
        let found = self.look(view, move |view, pages| resolve(view, pages, &walked, follow)).await;
        found.and_then(|entry| entry).map_err(|reason| StreamError::Path { path: shown(path), reason })
    }

    async fn look<T: Send + 'static>(
        &self,
        view: View,
        step: impl Fn(&View, &Held<S>) -> Result<T, Lookup> + Send + 'static,
    ) -> Result<T, fs::Error> {
        let (tell, answer) = oneshot::channel();
        let call = self.calls.begin(0, self.patience);
        let waiting = Waiting { supply: self.supply.clone(), call: call.clone(), answer };
        look(self.supply.clone(), call, view, step, move |found| {
            // Nobody waits any more: then nobody needs it.
            let _ = tell.send(found);
        });
        waiting.await
    }
}

impl<S: Supply> Stream<S> {
    /// The row that was opened.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Bytes in the file.
    pub fn size(&self) -> u64 {
        self.place.size
    }

    /// The next bytes without a copy; nothing at the end. Only for a stream that is read in no other way.
    async fn next(&mut self) -> io::Result<Option<Slice>> {
        if !std::future::poll_fn(|context| self.poll_here(context)).await? {
            return Ok(None);
        }
        let slice = self.here.pop_front();
        self.position += slice.as_ref().map_or(0, |slice| slice.len() as u64);
        Ok(slice)
    }

    /// Ready when there are bytes at `position`: true, or false at the end.
    fn poll_here(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            if !self.here.is_empty() {
                return Poll::Ready(Ok(true));
            }
            if self.position >= self.place.size {
                return Poll::Ready(Ok(false));
            }
            match &mut self.waiting {
                None => self.ask(),
                Some(waiting) => {
                    let slices = ready!(Pin::new(waiting).poll(context));
                    self.waiting = None;
                    self.here = slices.map_err(into_io)?.into();
                }
            }
        }
    }

    fn ask(&mut self) {
        let FilePlace { object, size, .. } = self.place;
        let len = PIECE.min((size - self.position).try_into().unwrap_or(PIECE));
        let range = ReadRange { object, size, offset: self.position, len };
        if let Some(slices) = self.supply.read_now(range) {
            self.here = slices.into();
        } else {
            let (tell, answer) = oneshot::channel();
            let call = self.calls.begin(0, self.patience);
            let supply = self.supply.clone();
            self.waiting = Some(Waiting { supply: supply.clone(), call: call.clone(), answer });
            call.park(&*supply, |deadline| {
                let done = move |slices: Result<Slices, _>| {
                    let _ = tell.send(slices.map_err(fs::Error::from));
                };
                supply.read(range, deadline, Box::new(done))
            });
        }
        let beyond = match self.ahead.read(size, self.position, len as u64) {
            Advice::Keep => return,
            Advice::Nothing => Ok(Vec::new()),
            // One file is read: nothing says that others follow, so no page is needed.
            Advice::Window { from, here, .. } => {
                window(&self.view, &Held::new(self.supply.clone()), self.place, from, here, 0)
            }
        };
        if let Ok(beyond) = beyond {
            self.supply.set_window(self.reader, beyond);
        }
    }
}

impl<S: Supply> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buffer.remaining() == 0 || !ready!(this.poll_here(context))? {
            return Poll::Ready(Ok(()));
        }
        while let Some(slice) = this.here.front().filter(|_| buffer.remaining() > 0) {
            let taken = buffer.remaining().min(slice.len() - this.taken);
            buffer.put_slice(&slice[this.taken..this.taken + taken]);
            this.taken += taken;
            this.position += taken as u64;
            if this.taken == slice.len() {
                this.here.pop_front();
                this.taken = 0;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Supply> AsyncSeek for Stream<S> {
    fn start_seek(mut self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
            SeekFrom::End(distance) => self.place.size.checked_add_signed(distance),
        };
        let before = || io::Error::new(io::ErrorKind::InvalidInput, "a position before the file's beginning");
        let position = position.ok_or_else(before)?;
        if position != self.position {
            self.position = position;
            self.here.clear();
            self.taken = 0;
            self.waiting = None;
        }
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(self.position))
    }
}

impl<S: Supply> Drop for Stream<S> {
    fn drop(&mut self) {
        self.supply.close_reader(self.reader);
    }
}

impl<S: Supply, T> Future for Waiting<S, T> {
    type Output = Result<T, fs::Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|answer| answer.unwrap_or(Err(fs::Error::Ended)))
    }
}

impl<S: Supply, T> Drop for Waiting<S, T> {
    fn drop(&mut self) {
        self.call.give_up(&*self.supply, fs::Error::Ended);
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn into_io(error: fs::Error) -> io::Error {
    let kind = match error {
        fs::Error::Stale => io::ErrorKind::StaleNetworkFileHandle,
        fs::Error::TimedOut => io::ErrorKind::TimedOut,
        fs::Error::Ended => io::ErrorKind::NotConnected,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
