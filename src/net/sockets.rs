//! A node's sockets: an own port for everything unicast, and the shared one where all hear broadcasts.

use std::io::{Error, ErrorKind, Result};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use super::interfaces;
use crate::settings::NetSettings;

/// Connections that wait to be accepted: hundreds of boards are switched on at once.
const BACKLOG: i32 = 1024;

pub struct Sockets {
    pub port: u16,
    pub tcp: TcpListener,
    pub udp: UdpSocket,
    /// Bound to broadcast addresses: what is sent to them, every node of the host hears.
    pub heard: Vec<UdpSocket>,
}

impl Sockets {
    /// Takes the first port of the range that is free.
    pub fn open(settings: &NetSettings) -> Result<Sockets> {
        let missing = interfaces::missing(&settings.interfaces)?;
        if let Some(name) = missing.first() {
            let text = format!("no interface {name}: expected one of those that `ip link` lists");
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        for port in settings.ports() {
            // The TCP port cannot be shared, so whoever has it has the UDP port of the same number.
            let Some(tcp) = listen(port)? else { continue };
            let udp = udp(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
            let mut heard = Vec::new();
            let own = [Ipv4Addr::BROADCAST, Ipv4Addr::new(127, 255, 255, 255)];
            for address in own.iter().chain(&settings.broadcast) {
                heard.push(self::udp(SocketAddrV4::new(*address, settings.base_port()))?);
            }
            return Ok(Sockets { port, tcp, udp, heard });
        }
        let (first, last) = settings.ports().into_inner();
        let text = format!(
            "TCP ports {first} to {last} are all taken: expected a free one; end a node of this host, or name another \
             range with --port"
        );
        Err(Error::new(ErrorKind::AddrInUse, text))
    }
}

fn listen(port: u16) -> Result<Option<TcpListener>> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    // Only against connections of an earlier node that linger; two listeners are still refused.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    let address = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
    match socket.bind(&address.into()).and_then(|()| socket.listen(BACKLOG)) {
        Ok(()) => Ok(Some(socket.into())),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error),
    }
}

fn udp(address: SocketAddrV4) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// A port to be answered at while there is no node yet. Its socket waits for what it receives.
///
/// A firewall that follows connections sees none in an answer to a broadcast, which comes from another address: the port
/// is one of those that are open for nodes. The last free one, so that a node still takes the first. Where none is free
/// it is any.
pub struct Asking {
    pub udp: UdpSocket,
    /// Whoever has the TCP port has the UDP port of the same number. Nobody listens: who connects is refused.
    _tcp: Option<Socket>,
}

impl Asking {
    pub fn open(settings: &NetSettings) -> Result<Asking> {
        let at = |port| SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        let claim = |port| {
            let tcp = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            tcp.bind(&at(port).into())?;
            Ok::<_, Error>((udp(at(port))?, Some(tcp)))
        };
        // The first is where everybody of this host hears broadcasts.
        let (udp, tcp) = match settings.ports().skip(1).rev().find_map(|port| claim(port).ok()) {
            Some(claimed) => claimed,
            None => (udp(at(0))?, None),
        };
        udp.set_nonblocking(false)?;
        Ok(Asking { udp, _tcp: tcp })
    }
}

/// A datagram to everybody, as it went out by one interface or to one address.
pub struct Sent {
    /// The interface's name, or the option that named the address.
    pub by: String,
    pub to: Ipv4Addr,
    pub result: Result<usize>,
}

/// Sends a datagram to everybody. Interfaces are looked up each time, since they come and go.
pub fn broadcast(datagram: &[u8], settings: &NetSettings) -> Result<Vec<Sent>> {
    let interfaces = interfaces::usable(&settings.interfaces)?.into_iter();
    let aims = interfaces.map(|interface| (interface.name, interface.address, interface.broadcast));
    let named = settings.broadcast.iter().map(|to| ("--broadcast".to_owned(), Ipv4Addr::UNSPECIFIED, *to));
    let send = |(by, from, to): (String, Ipv4Addr, Ipv4Addr)| {
        let result =
            udp(SocketAddrV4::new(from, 0)).and_then(|socket| socket.send_to(datagram, (to, settings.base_port())));
        if let Err(error) = &result {
            tracing::debug!(by, %to, %error, "broadcast not sent");
        }
        Sent { by, to, result }
    };
    Ok(aims.chain(named).map(send).collect())
}

/// The addresses of peers that were named; a name that cannot be resolved now is left out.
pub fn resolve(peers: &[(String, u16)]) -> Vec<SocketAddr> {
    use std::net::ToSocketAddrs;
    let mut found = Vec::new();
    for (host, port) in peers {
        match (host.as_str(), *port).to_socket_addrs() {
            Ok(addresses) => {
                let before = found.len();
                found.extend(addresses.filter(SocketAddr::is_ipv4));
                if found.len() == before {
                    tracing::warn!(host, "peer has no IPv4 address, and swarmfs speaks no IPv6");
                }
            }
            Err(error) => tracing::warn!(host, %error, "peer's name not resolved"),
        }
    }
    found
}

/// What every link's connection is set to.
pub fn tune(stream: &tokio::net::TcpStream) -> Result<()> {
    stream.set_nodelay(true)
}

/// How many bytes not yet sent the kernel takes from a link.
pub fn limit_unsent(stream: &tokio::net::TcpStream, bytes: u32) -> Result<()> {
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(bytes)
}
