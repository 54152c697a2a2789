//! An original's client: it asks, takes one answer after the other, and helps out with the last chunks meanwhile.

use std::collections::VecDeque;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::lab::Patience;

use super::{CHUNK, HEADER, Life, PORT, TRANSFER, header, hear, next, on_the_port, send};

/// Chunks that it helps out with.
const KEPT: usize = 6;
const REPEAT: Duration = Duration::from_millis(100);

type Kept = Arc<Mutex<VecDeque<(String, Vec<u8>)>>>;

pub struct Client {
    life: Arc<Life>,
    kept: Kept,
    helper: Option<JoinHandle<()>>,
}

/// Why an answer was none.
enum Miss {
    /// It is for another request, or ends early: usual.
    Usual,
    Death(String),
}

impl Client {
    /// In the network that the calling thread is in. With the `defect`, what it helps out with is a header alone.
    pub fn start(defect: bool) -> Client {
        let (life, kept, socket) = (Life::new(), Kept::default(), hear());
        let (shared, held) = (life.clone(), kept.clone());
        let helper = std::thread::spawn(move || {
            while !shared.has_ended() {
                let Some((datagram, from)) = next(&socket, &shared) else { continue };
                let Ok(text) = std::str::from_utf8(&datagram) else {
                    shared.die(format!("a datagram from {from} that is no UTF-8"));
                    continue;
                };
                let found = held.lock().unwrap().iter().find(|(request, _)| request == text).cloned();
                if let Some((request, body)) = found {
                    // One at a time, and whoever went away asks again.
                    let _ = send(from, &header(&request, &body), if defect { b"" } else { &body });
                }
            }
        });
        Client { life, kept, helper: Some(helper) }
    }

    /// Gets a file; `each` sees its bytes. An error is what it died of.
    pub fn get(&self, path: &str, limit: Duration, mut each: impl FnMut(&[u8])) -> Result<u64, String> {
        let (mut patience, mut bytes) = (Patience::new(limit), 0);
        for number in 0u64.. {
            let request = format!("{path}@{number}");
            let body = self.chunk(&request, &mut patience)?;
            each(&body);
            bytes += body.len() as u64;
            let last = body.len() < CHUNK;
            let mut kept = self.kept.lock().unwrap();
            kept.push_back((request, body));
            if kept.len() > KEPT {
                kept.pop_front();
            }
            if last {
                break;
            }
        }
        Ok(bytes)
    }

    fn chunk(&self, request: &str, patience: &mut Patience) -> Result<Vec<u8>, String> {
        let asking = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        asking.set_broadcast(true).unwrap();
        'again: loop {
            let listener = listen();
            let mut asked: Option<Instant> = None;
            loop {
                if let Some(death) = self.life.death() {
                    return Err(death);
                }
                if patience.has_ended() {
                    return Err(format!("not within the test's limit: {request}"));
                }
                if asked.is_none_or(|at| at.elapsed() >= REPEAT) {
                    // A network that is down is asked again.
                    let _ = asking.send_to(request.as_bytes(), (Ipv4Addr::BROADCAST, PORT));
                    asked = Some(Instant::now());
                }
                let Ok((stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                match take(stream, request, listener.try_clone().unwrap()) {
                    Ok(body) => return Ok(body),
                    Err(Miss::Usual) => {
                        drop(listener);
                        continue 'again;
                    }
                    Err(Miss::Death(of)) => {
                        self.life.die(of.clone());
                        return Err(of);
                    }
                }
            }
        }
    }

    /// Ends it; what killed it before, if anything did.
    pub fn stop(mut self) -> Option<String> {
        self.life.end();
        self.helper.take().unwrap().join().unwrap();
        self.life.death()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.life.end();
    }
}

fn listen() -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    // As the original's own Lisp does for listeners.
    socket.set_reuse_address(true).unwrap();
    on_the_port(|| socket.bind(&std::net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)).into()));
    socket.listen(1).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

/// One connection. The listener is closed when the header is right.
fn take(mut stream: TcpStream, request: &str, listener: TcpListener) -> Result<Vec<u8>, Miss> {
    let began = Instant::now();
    stream.set_nonblocking(false).unwrap();
    let mut head = vec![0; request.len() + 17];
    read(&mut stream, &mut head, began + HEADER, "header")?;
    let echo = format!("{request}@");
    let Some(numbers) = head.strip_prefix(echo.as_bytes()) else { return Err(Miss::Usual) };
    drop(listener);
    let number = |digits: &[u8]| {
        let text = std::str::from_utf8(digits).ok()?.trim_start().to_owned();
        u64::from_str_radix(&text, 16).ok()
    };
    let (Some(sum), Some(len)) = (number(&numbers[..8]), number(&numbers[8..])) else { return Err(Miss::Usual) };
    if len > CHUNK as u64 {
        return Err(Miss::Death(format!("it was told of {len} bytes and believed it")));
    }
    let mut body = vec![0; len as usize];
    read(&mut stream, &mut body, began + TRANSFER, "body")?;
    match body.iter().map(|byte| u64::from(*byte)).sum::<u64>() == sum {
        true => Ok(body),
        false => Err(Miss::Usual),
    }
}

fn read(stream: &mut TcpStream, mut into: &mut [u8], end: Instant, what: &str) -> Result<(), Miss> {
    while !into.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Miss::Death(format!("no {what} in time from {:?}", stream.peer_addr())));
        }
        stream.set_read_timeout(Some(left)).unwrap();
        match stream.read(into) {
            Ok(0) => return Err(Miss::Usual),
            Ok(count) => into = &mut into[count..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(Miss::Usual),
        }
    }
    Ok(())
}
