//! The answering side: hears requests, and sends chunks to those whom `legacy::Desk` grants them.
//!
//! It has a thread of its own, so that summing and copying a chunk delays nobody. It ends with its handle.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{debug, info, trace, warn};

use super::{Found, Shelf};
use crate::driver::Standing;
use crate::legacy::{Case, Desk, Grant, Limits};
use crate::net::sockets;
use crate::swarm::Time;
use crate::wire::xcat::{Header, MAX_REQUEST, PORT, Request};

/// Requests that are being looked up at once; what comes beyond is repeated.
const LOOKUPS: usize = 64;
/// How long a connection may take to be made: some round trips. Whoever is slower asks again.
const CONNECT: Duration = Duration::from_millis(500);
/// How long an asker may take nothing.
const STALL: Duration = Duration::from_secs(2);
/// How long it may take to take the last bytes, and to close.
const TAKEN: Duration = Duration::from_secs(5);
/// An original gives up after 16 s, and ends if nobody did so before; an early end it takes as any other.
const FINISH: Duration = Duration::from_secs(15);
/// Bytes written at once.
const PIECE: usize = 64 * 1024;
/// Bytes that the kernel holds unsent: what was written is then on its way, and the rate seen is the network's.
const UNSENT: u32 = 256 * 1024;

/// A running server. Dropping it ends it.
pub struct Server {
    counts: Arc<Counts>,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

/// What it has done so far.
#[derive(Default)]
pub struct Counts {
    answers: AtomicU64,
    bytes: AtomicU64,
    refused: AtomicU64,
}

impl Server {
    /// Hears requests from now on. Where the port is taken the error says so.
    pub fn start(shelf: impl Shelf, limits: Limits) -> io::Result<Server> {
        let socket = hear()?;
        let seed = getrandom::u64()?;
        let (counts, stop) = (Arc::new(Counts::default()), Arc::new(Notify::new()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (counted, stopped) = (counts.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("swarmfs-xcat".to_owned()).spawn(move || {
            let serve = async move {
                let socket = UdpSocket::from_std(socket)?;
                let desk = RefCell::new(Desk::new(limits, seed));
                let calling = Cell::new(0);
                let shop = Rc::new(Shop { shelf, desk, began: Instant::now(), counts: counted, calling });
                tokio::select! {
                    () = shop.clone().serve(socket) => {}
                    () = stopped.notified() => {}
                }
                // A connection that ends before its header came ends an original.
                while shop.calling.get() > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Ok(())
            };
            let served: io::Result<()> = tokio::task::LocalSet::new().block_on(&runtime, serve);
            if let Err(error) = served {
                warn!(%error, "legacy requests are not answered");
            }
        })?;
        Ok(Server { counts, stop, thread: Some(thread) })
    }

    /// Chunks and bytes that were sent, and requests that were none.
    pub fn counters(&self) -> [(&'static str, u64); 3] {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        [
            ("legacy_answers", read(&self.counts.answers)),
            ("legacy_bytes", read(&self.counts.bytes)),
            ("legacy_refused", read(&self.counts.refused)),
        ]
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the legacy protocol's thread panicked");
        }
    }
}

/// The port where everybody's requests are heard. All nodes of a host share it, but not with an original program, which
/// shares it with nobody.
fn hear() -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT).into())?;
    Ok(socket.into())
}

/// A connection over which the header is on its way.
async fn call(to: Ipv4Addr, header: &[u8]) -> io::Result<TcpStream> {
    let mut stream = timeout(CONNECT, TcpStream::connect((to, PORT))).await??;
    sockets::tune(&stream)?;
    sockets::limit_unsent(&stream, UNSENT)?;
    timeout(STALL, stream.write_all(header)).await??;
    Ok(stream)
}

/// What the server's tasks share.
struct Shop<S> {
    shelf: S,
    desk: RefCell<Desk>,
    began: Instant,
    counts: Arc<Counts>,
    /// Connections whose header is not written yet.
    calling: Cell<usize>,
}

impl<S: Shelf> Shop<S> {
    fn now(&self) -> Time {
        Time(self.began.elapsed().as_micros() as u64)
    }

    async fn serve(self: Rc<Self>, socket: UdpSocket) {
        let mut buffer = [0; MAX_REQUEST + 64];
        let lookups = Arc::new(Semaphore::new(LOOKUPS));
        loop {
            let (len, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    debug!(%error, "request not received");
                    continue;
                }
            };
            let Some((from, request)) = self.consider(from, &buffer[..len]) else { continue };
            let Ok(turn) = lookups.clone().try_acquire_owned() else { continue };
            let shop = self.clone();
            tokio::task::spawn_local(async move {
                let decided = shop.decide(from, &request).await;
                drop(turn);
                if let Some((found, grant)) = decided {
                    shop.answer(from, &request, &found, grant).await;
                }
            });
        }
    }

    /// What is to be looked up for whom.
    fn consider(&self, from: SocketAddr, datagram: &[u8]) -> Option<(Ipv4Addr, Request)> {
        let SocketAddr::V4(from) = from else { return None };
        let from = *from.ip();
        if from.is_unspecified() || from.is_broadcast() || from.is_multicast() {
            return None;
        }
        let request = match Request::parse(datagram) {
            Ok(request) => request,
            Err(refusal) => {
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
                info!(%from, %refusal, "a legacy request is left without an answer");
                return None;
            }
        };
        match self.desk.borrow_mut().consider(from, request.text(), self.now()) {
            Ok(()) => Some((from, request)),
            Err(silence) => {
                trace!(%from, request = request.text(), ?silence, "no answer now");
                None
            }
        }
    }

    async fn decide(&self, from: Ipv4Addr, request: &Request) -> Option<(Found, Grant)> {
        let found = self.shelf.find(request).await?;
        let at_hand = self.shelf.is_at_hand(&found);
        let Standing { holders, sending, rate } = self.shelf.standing(&found).await;
        let case = Case { chunk: found.chunk, len: found.len(), at_hand, holders, sending, rate };
        let now = self.now();
        match self.desk.borrow_mut().decide(from, case, now) {
            Ok(grant) => Some((found, grant)),
            Err(silence) => {
                debug!(%from, request = request.text(), ?silence, "no answer now");
                None
            }
        }
    }

    async fn answer(&self, from: Ipv4Addr, request: &Request, found: &Found, grant: Grant) {
        sleep(Duration::from_micros(grant.delay)).await;
        let mut left = u64::from(found.len());
        let sent = match self.shelf.body(found).await {
            Some(body) => timeout(FINISH, self.deliver(from, request, &body, grant.rate, &mut left)).await,
            None => Ok(Err(io::Error::new(io::ErrorKind::NotFound, "no longer in memory"))),
        };
        let whole = match sent {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                debug!(%from, request = request.text(), %error, "a legacy answer was not taken");
                false
            }
            Err(_) => {
                warn!(%from, request = request.text(), "a legacy answer took too long and was broken off");
                false
            }
        };
        if whole {
            debug!(%from, request = request.text(), "a legacy request was answered");
            self.counts.answers.fetch_add(1, Ordering::Relaxed);
        }
        self.desk.borrow_mut().ended(from, left, whole, self.now());
    }

    /// Sends header and body, and waits until the other side has taken all of it.
    async fn deliver(
        &self,
        to: Ipv4Addr,
        request: &Request,
        body: &[Bytes],
        rate: Option<u64>,
        left: &mut u64,
    ) -> io::Result<()> {
        let header = Header::of(body.iter().map(|part| &part[..])).encode(request);
        self.calling.update(|calling| calling + 1);
        let called = call(to, &header).await;
        self.calling.update(|calling| calling - 1);
        let mut stream = called?;
        let begin = tokio::time::Instant::now();
        let mut written = 0;
        for piece in body.iter().flat_map(|part| part.chunks(PIECE)) {
            if let Some(rate) = rate {
                sleep_until(begin + Duration::from_micros(written * 1_000_000 / rate.max(1))).await;
            }
            timeout(STALL, stream.write_all(piece)).await??;
            written += piece.len() as u64;
            *left -= piece.len() as u64;
            self.desk.borrow_mut().sent(piece.len() as u64, self.now());
            self.shelf.count(piece.len());
            self.counts.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        stream.shutdown().await?;
        // It sends nothing, and closes when it has everything; bytes that it left unread would end in a reset.
        match timeout(TAKEN, stream.read(&mut [0])).await?? {
            0 => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the asker talks")),
        }
    }
}
