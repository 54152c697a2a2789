//! The original's programs, as far as the wire shows them, for tests: written from what was observed of them and from
//! nothing in `src`. They run as threads of whatever network the calling thread is in.
//!
//! What kills an original ends these too, and is kept for the test to see.

// Each test file compiles its own copy of this module and uses its own part of it.
#![allow(dead_code)]

use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::lab::swarm::{SOON, wait_until};

pub mod client;
pub mod liar;
pub mod server;
pub mod watch;

pub const PORT: u16 = 19023;
pub const CHUNK: usize = 16_777_216;
/// How long an original lets a transfer take, and how long it waits for a header.
const TRANSFER: Duration = Duration::from_secs(16);
const HEADER: Duration = Duration::from_secs(3);

/// A thread that can be asked to end, and what it died of.
struct Life {
    ended: AtomicBool,
    death: Mutex<Option<String>>,
}

impl Life {
    fn new() -> Arc<Life> {
        Arc::new(Life { ended: AtomicBool::new(false), death: Mutex::new(None) })
    }

    fn die(&self, of: String) {
        self.death.lock().unwrap().get_or_insert(of);
        self.end();
    }

    fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    fn death(&self) -> Option<String> {
        self.death.lock().unwrap().clone()
    }
}

/// A socket on the originals' port. One that this process closed may live on for a moment: a program that another test is
/// just starting has a copy of it until it runs.
pub fn on_the_port<T>(bind: impl Fn() -> std::io::Result<T>) -> T {
    let in_use = |error: &std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
    let bound = || Some(bind()).filter(|result| !result.as_ref().is_err_and(in_use));
    wait_until(SOON, "the originals' port is free", bound).unwrap()
}

/// The port where everybody hears requests, shared with nobody.
fn hear() -> UdpSocket {
    let socket = on_the_port(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)));
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    socket
}

/// The next datagram; none if none came within a moment.
fn next(socket: &UdpSocket, life: &Life) -> Option<(Vec<u8>, Ipv4Addr)> {
    let mut buffer = [0; 65536];
    let (len, from) = socket.recv_from(&mut buffer).ok()?;
    if len == 0 {
        life.die(format!("an empty datagram from {from}"));
        return None;
    }
    let SocketAddr::V4(from) = from else { unreachable!("the socket is of IPv4") };
    Some((buffer[..len].to_vec(), *from.ip()))
}

fn header(request: &str, body: &[u8]) -> Vec<u8> {
    let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
    format!("{request}@{sum:08X}{:08X}", body.len()).into_bytes()
}

/// Connects and sends, within the time that an original allows itself.
fn send(to: Ipv4Addr, header: &[u8], body: &[u8]) -> std::io::Result<()> {
    let began = Instant::now();
    let to = SocketAddr::V4(SocketAddrV4::new(to, PORT));
    let mut stream = TcpStream::connect_timeout(&to, TRANSFER)?;
    for bytes in std::iter::once(header).chain(body.chunks(64 * 1024)) {
        let left = TRANSFER.checked_sub(began.elapsed()).filter(|left| !left.is_zero());
        stream.set_write_timeout(Some(left.ok_or(std::io::ErrorKind::TimedOut)?))?;
        stream.write_all(bytes)?;
    }
    stream.shutdown(Shutdown::Write)
}
