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

/// Where a broadcast went: the interface's name and the address.
pub type Tried = Vec<(String, Ipv4Addr)>;

/// Sends a datagram to everybody. Interfaces are looked up each time, since they come and go.
pub fn broadcast(datagram: &[u8], settings: &NetSettings) -> Result<Tried> {
    let mut tried = Tried::new();
    let port = settings.base_port();
    for interface in interfaces::usable(&settings.interfaces)? {
        let sent = udp(SocketAddrV4::new(interface.address, 0))
            .and_then(|socket| socket.send_to(datagram, (interface.broadcast, port)));
        match sent {
            Ok(_) => tried.push((interface.name, interface.broadcast)),
            Err(error) => tracing::debug!(interface = interface.name, %error, "broadcast not sent"),
        }
    }
    for address in &settings.broadcast {
        let sent = udp(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))
            .and_then(|socket| socket.send_to(datagram, (*address, port)));
        match sent {
            Ok(_) => tried.push(("--broadcast".to_owned(), *address)),
            Err(error) => tracing::debug!(%address, %error, "broadcast not sent"),
        }
    }
    Ok(tried)
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
