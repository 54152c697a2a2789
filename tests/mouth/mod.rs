//! The other side of a link, for peers that mean ill: it speaks with the crate's own wire types, and says whatever it likes.

#![allow(dead_code, reason = "each test takes what it needs of it")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use swarmfs::chunk::Run;
use swarmfs::wire::deframe::{Deframer, Piece};
use swarmfs::wire::frame::{DataHeader, Frame, Hello, State, data_header};

pub mod ill;

/// A connection whose other end is a node.
pub struct Mouth {
    stream: TcpStream,
    deframer: Deframer,
    open: bool,
}

pub fn connect(to: SocketAddr, first: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let _ = stream.write_all(first);
    stream
}

pub fn encoded(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

/// A transfer that a peer is to send now.
pub fn asked(frame: &Frame) -> Option<(u32, Run)> {
    match frame {
        Frame::Want { transfer, run, .. } => Some((*transfer, *run)),
        Frame::Accept { id, run } => Some((*id, *run)),
        _ => None,
    }
}

/// Whether the other side ends a connection in time; whatever it says before is thrown away.
pub fn ends(stream: &mut TcpStream, limit: Duration) -> bool {
    let begin = Instant::now();
    let mut buffer = [0; 4096];
    loop {
        let left = limit.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return false;
        }
        stream.set_read_timeout(Some(left)).unwrap();
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return !matches!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
}

impl Mouth {
    /// The same where nobody may listen.
    pub fn reach(to: SocketAddr, hello: Hello) -> std::io::Result<Mouth> {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(1))?;
        stream.set_write_timeout(Some(Duration::from_millis(200)))?;
        let mut mouth = Mouth { stream, deframer: Deframer::default(), open: true };
        mouth.say(&Frame::Hello(hello));
        Ok(mouth)
    }

    /// A connection that has greeted.
    pub fn greet(to: SocketAddr, hello: Hello) -> Mouth {
        let mut mouth = Mouth { stream: connect(to, &[]), deframer: Deframer::default(), open: true };
        mouth.say(&Frame::Hello(hello));
        mouth
    }

    pub fn address(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    pub fn is_open(&self) -> bool {
        self.open
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        use std::io::ErrorKind::{TimedOut, WouldBlock};
        if let Err(error) = self.stream.write_all(bytes) {
            self.open &= matches!(error.kind(), WouldBlock | TimedOut);
        }
    }

    /// Writes to somebody who reads late, and hears him meanwhile.
    pub fn pour(&mut self, mut bytes: &[u8], stop: &AtomicBool) {
        use std::io::ErrorKind::{TimedOut, WouldBlock};
        while !bytes.is_empty() && self.open && !stop.load(Ordering::Relaxed) {
            match self.stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) => self.open = matches!(error.kind(), WouldBlock | TimedOut),
            }
            self.hear(Duration::ZERO);
        }
    }

    pub fn say(&mut self, frame: &Frame) {
        self.raw(&encoded(frame));
    }

    pub fn data(&mut self, transfer: u32, block: u32, offset: u16, bytes: &[u8]) {
        let header = DataHeader { transfer, block, offset, len: bytes.len() as u16 };
        self.raw(&[&data_header(header), bytes].concat());
    }

    /// What comes within a time.
    pub fn hear(&mut self, within: Duration) -> Vec<Frame> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        self.stream.set_read_timeout(Some(within.max(Duration::from_millis(1)))).unwrap();
        match self.stream.read(&mut buffer) {
            Ok(0) => self.open = false,
            Ok(len) => {
                let fed = self.deframer.feed(&buffer[..len], |piece| {
                    if let Piece::Frame(frame) = piece {
                        frames.push(frame);
                    }
                });
                fed.expect("nodes speak the protocol");
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => self.open = false,
        }
        frames
    }

    pub fn closes(&mut self, limit: Duration) -> bool {
        let begin = Instant::now();
        while self.open && begin.elapsed() < limit {
            self.hear(Duration::from_millis(50));
        }
        !self.open
    }
}

/// A peer that lives: it hears, acts, and says now and then that it is there.
pub struct Talker {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    pub beside: Option<Box<Talker>>,
}

impl Talker {
    pub fn start(mut mouth: Mouth, mut act: impl FnMut(&mut Mouth, Frame) + Send + 'static, idle: State) -> Talker {
        let (address, stop) = (mouth.address(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut told = Instant::now();
            while mouth.is_open() && !stopped.load(Ordering::Relaxed) {
                for frame in mouth.hear(Duration::from_millis(20)) {
                    act(&mut mouth, frame);
                }
                if told.elapsed() > Duration::from_millis(100) {
                    told = Instant::now();
                    mouth.say(&Frame::State(idle.clone()));
                }
            }
        });
        Talker { address, stop, thread: Some(thread), beside: None }
    }

    /// The other side has ended it.
    pub fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }
}

impl std::fmt::Display for Talker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.address.fmt(f)
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().is_none_or(|thread| thread.join().is_ok());
        assert!(ended || std::thread::panicking(), "a liar's own thread panicked");
    }
}
