//! The asking side: one request, repeated until somebody has sent the chunk.
//!
//! A host asks for one chunk at a time: whoever listens on the TCP port has the turn. An answer counts when its header
//! echoes the request and its body has the announced length and sum; more the protocol cannot say. Answers to earlier
//! requests, and headers without a body, are usual; who sent one is passed over for a while if others answer.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, info, warn};

use crate::net::{interfaces, sockets};
use crate::settings::NetSettings;
use crate::wire::xcat::{Header, PORT, Request};

/// Between two repetitions of a request, as the original does it.
const REPEAT: Duration = Duration::from_millis(100);
/// How long a header may take once there is a connection.
const HEADER: Duration = Duration::from_secs(3);
/// How long a body may take, and how long it may bring nothing.
const BODY: Duration = Duration::from_secs(16);
const STALL: Duration = Duration::from_secs(2);
/// What must be here after `SLOW`: a fifteenth of what would be in time. Whoever trickles is left.
const SLOW: Duration = Duration::from_secs(4);
const SLOW_BYTES: usize = 1 << 20;
/// Connections whose headers are read at once.
const CALLERS: usize = 16;
/// How long others are waited for before somebody is believed who failed a moment ago.
const PASSED_OVER: Duration = Duration::from_millis(500);
/// How long a failure is remembered.
const AVOIDED: Duration = Duration::from_secs(30);
/// Between two tries to get the port.
const TURN: Duration = Duration::from_millis(50);
/// How long it is waited for before that is told, and the same for an answer.
const TELL: Duration = Duration::from_secs(5);

/// Asks for chunks, one after the other.
pub struct Asker {
    net: NetSettings,
    avoided: HashMap<IpAddr, Instant>,
}

/// What is wanted of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    Body,
    /// Its length; the body only if it is at most so long.
    Length(u32),
}

/// A chunk as it was sent.
#[derive(Clone, Debug)]
pub struct Answer {
    pub header: Header,
    /// Without it, a length that nobody can check.
    pub body: Option<Bytes>,
}

impl Asker {
    pub fn new(net: NetSettings) -> Asker {
        Asker { net, avoided: HashMap::new() }
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
        self.avoided.retain(|_, since| since.elapsed() < AVOIDED);
        loop {
            let listener = listen().await?;
            let caller = timeout(patience, self.header(&asking, listener, request)).await;
            let Ok((stream, from, header)) = caller else { return Ok(None) };
            if let Want::Length(most) = want
                && header.len > most
            {
                return Ok(Some(Answer { header, body: None }));
            }
            match timeout(BODY, body(stream, header)).await.unwrap_or(Err(Defect::Slow)) {
                Ok(body) => return Ok(Some(Answer { header, body: Some(body) })),
                Err(defect) => {
                    info!(%from, request = request.text(), %defect, "a legacy answer is of no use; asking again");
                    self.avoided.insert(from, Instant::now());
                }
            }
        }
    }

    /// Asks until somebody has sent a header that answers. The listener ends with it: nobody else need come.
    async fn header(&self, asking: &Asking, listener: TcpListener, request: &Request) -> Caller {
        let mut repeat = interval(REPEAT);
        repeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (began, mut told) = (Instant::now(), false);
        let mut callers: JoinSet<Option<Caller>> = JoinSet::new();
        let mut reserve: Option<Caller> = None;
        loop {
            tokio::select! {
                _ = repeat.tick() => {
                    if let Some(caller) = reserve.take_if(|_| began.elapsed() > PASSED_OVER) {
                        return caller;
                    }
                    asking.send(request).await;
                    if !told && began.elapsed() > TELL {
                        told = true;
                        warn!(path = request.path(), "nobody has answered by the legacy protocol for {} s, which may \
                            mean that there is no such file; still asking", TELL.as_secs());
                    }
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, from)) if callers.len() < CALLERS => {
                        callers.spawn(read_header(stream, from.ip(), request.clone()));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        debug!(%error, "connection not accepted");
                        sleep(TURN).await;
                    }
                },
                Some(Ok(Some(caller))) = callers.join_next() => {
                    if !self.avoided.contains_key(&caller.1) {
                        return caller;
                    }
                    reserve.get_or_insert(caller);
                }
            }
        }
    }
}

type Caller = (TcpStream, IpAddr, Header);

/// None for what is no answer to this request.
async fn read_header(mut stream: TcpStream, from: IpAddr, request: Request) -> Option<Caller> {
    let mut text = vec![0; request.header_len()];
    let read = timeout(HEADER, stream.read_exact(&mut text)).await;
    let parsed = match read {
        Ok(Ok(_)) => Header::parse(&request, &text).map_err(|error| error.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no header in time".to_owned()),
    };
    match parsed {
        Ok(header) => Some((stream, from, header)),
        Err(reason) => {
            debug!(%from, request = request.text(), reason, "a connection without an answer");
            None
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
