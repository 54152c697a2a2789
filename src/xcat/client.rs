//! The asking side: one request, repeated until somebody has sent the chunk.
//!
//! A host asks for one chunk at a time: whoever listens on the TCP port has the turn. An answer counts when its header
//! echoes the request and its body has the announced length and sum; more the protocol cannot say. Answers to earlier
//! requests, and headers without a body, are usual; who sent one is passed over for a while if others answer.
//!
//! That a file ends is said by a chunk that is not full, which costs a liar nothing. So others have a moment to say
//! otherwise: what most say is believed, and of claims that as many make the one to the most bytes, which must be sent.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::net::{interfaces, sockets};
use crate::settings::NetSettings;
use crate::wire::xcat::{Header, PORT, Request};

mod calls;

use calls::{CALLERS, Caller, Calls};

/// Between two repetitions of a request, as the original does it.
const REPEAT: Duration = Duration::from_millis(100);
/// How long a body may take, and how long it may bring nothing.
const BODY: Duration = Duration::from_secs(16);
const STALL: Duration = Duration::from_secs(2);
/// What must be here after `SLOW`: a fifteenth of what would be in time. Whoever trickles is left.
const SLOW: Duration = Duration::from_secs(4);
const SLOW_BYTES: usize = 1 << 20;
/// How long others are waited for before somebody is believed who failed a moment ago, or who says where a file ends: an
/// original sums 16 MiB meanwhile, and an origin leaves an answer to others for 300 ms.
const OTHERS: Duration = Duration::from_millis(500);
/// How often that time is taken although everybody known has spoken, since others may have come; and how long somebody is
/// known.
const ANEW: Duration = Duration::from_secs(30);
/// Addresses known to answer.
const KNOWN: usize = 64;
/// How long a failure is remembered, and of how many.
const AVOIDED: Duration = Duration::from_secs(30);
const AVOIDED_MOST: usize = 1024;
/// Between two tries to get the port.
const TURN: Duration = Duration::from_millis(50);
/// How long it is waited for before that is told, and the same for an answer.
const TELL: Duration = Duration::from_secs(5);

/// Asks for chunks, one after the other.
pub struct Asker {
    net: NetSettings,
    avoided: HashMap<IpAddr, Instant>,
    /// Who has answered of late, and when others were last waited for.
    known: HashMap<IpAddr, Instant>,
    waited: Option<Instant>,
}

/// What is wanted of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    Body,
    /// Whether the file goes on after it; the body too if not.
    Length,
    /// The same, when others have had time to say that it does not.
    Settled,
}

/// A chunk as it was sent.
#[derive(Clone, Debug)]
pub struct Answer {
    pub header: Header,
    /// None of a full chunk whose length was wanted and that nobody contradicted: a claim that cost nothing.
    pub body: Option<Bytes>,
    pub from: IpAddr,
}

impl Asker {
    pub fn new(net: NetSettings) -> Asker {
        Asker { net, avoided: HashMap::new(), known: HashMap::new(), waited: None }
    }

    /// Asks until there is an answer: that nobody has it, nobody says. Dropping it gives up.
    pub async fn ask(&mut self, request: &Request, want: Want) -> io::Result<Answer> {
        loop {
            if let Some(answer) = self.ask_for(request, want, Duration::MAX).await? {
                return Ok(answer);
            }
        }
    }

    /// The same, but silence for so long is an answer too. What was begun is taken to its end.
    pub async fn ask_for(&mut self, request: &Request, want: Want, patience: Duration) -> io::Result<Option<Answer>> {
        let asking = Asking::open(&self.net)?;
        loop {
            self.avoided.retain(|_, since| since.elapsed() < AVOIDED);
            let listener = listen().await?;
            let Ok(callers) = timeout(patience, self.callers(&asking, listener, request, want)).await else {
                return Ok(None);
            };
            let contested = callers.iter().any(|caller| caller.header != callers[0].header);
            let began = Instant::now();
            for Caller { stream, from, header } in callers {
                if want != Want::Body && header.is_full() && !contested {
                    return Ok(Some(Answer { header, body: None, from }));
                }
                match timeout(BODY, body(stream, header)).await.unwrap_or(Err(Defect::Slow)) {
                    Ok(body) => return Ok(Some(Answer { header, body: Some(body), from })),
                    Err(defect) => {
                        info!(%from, request = request.text(), %defect, "a legacy answer is of no use; asking again");
                        self.avoid(from);
                    }
                }
                // The others may have given up meanwhile, and are not to blame for it.
                if began.elapsed() > OTHERS {
                    break;
                }
            }
        }
    }

    /// From now on somebody is believed only if others do not answer.
    pub fn avoid(&mut self, from: IpAddr) {
        if self.avoided.len() < AVOIDED_MOST {
            self.avoided.insert(from, Instant::now());
        }
    }

    /// Asks until somebody has sent a header that answers: one who has a full chunk, or all who answered in time. The most
    /// credible is the first. The listener ends with it: nobody else need come.
    async fn callers(&mut self, asking: &Asking, listener: TcpListener, request: &Request, want: Want) -> Vec<Caller> {
        let mut repeat = interval(REPEAT);
        repeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (began, mut told) = (tokio::time::Instant::now(), false);
        let mut calls = Calls::default();
        self.known.retain(|_, spoke| spoke.elapsed() < ANEW);
        loop {
            tokio::select! {
                _ = repeat.tick() => {
                    asking.send(request).await;
                    if !told && began.elapsed() > TELL {
                        told = true;
                        warn!(path = request.path(), "nobody has answered by the legacy protocol for {} s, which may \
                            mean that there is no such file; still asking", TELL.as_secs());
                    }
                }
                () = sleep_until(began + OTHERS), if calls.any() => {
                    self.waited = Some(Instant::now());
                    return calls.best(request);
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, from)) => calls.take(stream, from.ip(), request),
                    Err(error) => {
                        debug!(%error, "connection not accepted");
                        sleep(TURN).await;
                    }
                },
                Some(Ok((from, read))) = calls.reading.join_next() => {
                    let Some(caller) = calls.hear(from, read) else { continue };
                    if self.known.len() < KNOWN {
                        self.known.insert(from, Instant::now());
                    }
                    if self.avoided.contains_key(&from) {
                        calls.avoided.push(caller);
                    } else if caller.header.is_full() && calls.heard.is_empty() && want != Want::Settled {
                        return vec![caller];
                    } else {
                        calls.heard.push(caller);
                    }
                    let soon = self.waited.is_some_and(|at| at.elapsed() < ANEW);
                    if soon && !calls.heard.is_empty() && self.known.keys().all(|known| calls.has_spoken(*known)) {
                        return calls.best(request);
                    }
                }
            }
        }
    }
}

/// Why a body is of no use.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum Defect {
    #[error("it ends early")]
    Short,
    #[error("it comes too slowly")]
    Slow,
    #[error("its sum differs from what its header says")]
    Sum,
}

async fn body(mut stream: TcpStream, header: Header) -> Result<Bytes, Defect> {
    let (began, len) = (Instant::now(), header.len as usize);
    let mut body = Vec::with_capacity(len);
    while body.len() < len {
        let mut rest = (&mut stream).take((len - body.len()) as u64);
        match timeout(STALL, rest.read_buf(&mut body)).await {
            Ok(Ok(1..)) => {}
            Ok(_) => return Err(Defect::Short),
            Err(_) => return Err(Defect::Slow),
        }
        if began.elapsed() > SLOW && body.len() < SLOW_BYTES.min(len) {
            return Err(Defect::Slow);
        }
    }
    if Header::of([&body[..]]) == header { Ok(body.into()) } else { Err(Defect::Sum) }
}

/// Takes the turn of asking on this host.
async fn listen() -> io::Result<TcpListener> {
    let (began, mut told) = (Instant::now(), false);
    loop {
        match try_listen() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if !told && began.elapsed() > TELL {
                    told = true;
                    warn!(
                        "another program has TCP port {PORT} of this host, where legacy answers come in; waiting for it"
                    );
                }
                sleep(TURN).await;
            }
            other => return other,
        }
    }
}

fn try_listen() -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    // Only against connections that linger; two listeners are still refused.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT).into())?;
    socket.listen(CALLERS as i32)?;
    TcpListener::from_std(socket.into())
}

/// The sockets that one request is sent from: always the same ones, as askers are told apart by them.
struct Asking {
    sockets: Vec<(UdpSocket, Vec<SocketAddr>)>,
}

impl Asking {
    fn open(net: &NetSettings) -> io::Result<Asking> {
        let mut found = interfaces::usable(&net.interfaces)?;
        // A network reaches this host's own nodes too.
        if found.iter().any(|interface| !interface.loopback) {
            found.retain(|interface| !interface.loopback);
        }
        let mut sockets = Vec::new();
        for interface in found {
            let to = SocketAddr::from((interface.broadcast, PORT));
            sockets.push((socket(interface.address)?, vec![to]));
        }
        let named = net.broadcast.iter().map(|address| SocketAddr::from((*address, PORT)));
        let peers: Vec<(String, u16)> = net.peers.iter().map(|(host, _)| (host.clone(), PORT)).collect();
        let named: Vec<SocketAddr> = named.chain(sockets::resolve(&peers)).collect();
        if !named.is_empty() {
            sockets.push((socket(Ipv4Addr::UNSPECIFIED)?, named));
        }
        Ok(Asking { sockets })
    }

    async fn send(&self, request: &Request) {
        for (socket, aims) in &self.sockets {
            for to in aims {
                if let Err(error) = socket.send_to(request.text().as_bytes(), to).await {
                    debug!(%to, %error, "request not sent");
                }
            }
        }
    }
}

fn socket(from: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddrV4::new(from, 0).into())?;
    UdpSocket::from_std(socket.into())
}
