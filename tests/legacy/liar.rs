//! Whoever answers every request at once, and wrongly.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{PORT, hear};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lie {
    /// Three bytes whose sum is another.
    WrongSum,
    /// More bytes than a chunk has, and they do not end.
    TooLong,
    /// A whole chunk of bytes whose sum is another.
    Endless,
    /// A whole chunk, a byte at a time.
    Trickle,
    /// A whole chunk, and nothing after the header.
    NoBody,
    /// Bytes that are no header.
    NoHeader,
    /// A connection and nothing else.
    Silence,
    /// A chunk of no bytes, as after a file's end: nothing is wrong with it in itself.
    Empty,
    /// Five bytes, with the right sum.
    Short,
}

impl Lie {
    /// Whether an answer is right in itself: it is found out only if somebody else answers soon.
    pub fn is_whole(self) -> bool {
        matches!(self, Lie::Empty | Lie::Short)
    }

    pub const ALL: [Lie; 9] = [
        Lie::WrongSum,
        Lie::TooLong,
        Lie::Endless,
        Lie::Trickle,
        Lie::NoBody,
        Lie::NoHeader,
        Lie::Silence,
        Lie::Empty,
        Lie::Short,
    ];

    /// What is said to whoever asks; an error is the other's end of it.
    fn tell(self, stream: &mut TcpStream, request: &str) -> std::io::Result<()> {
        let (header, then): (&str, fn(&mut TcpStream) -> std::io::Result<()>) = match self {
            Lie::WrongSum => ("0000000100000003abc", |_| Ok(())),
            Lie::TooLong => ("00000000FFFFFFFF", endless),
            Lie::Endless => ("0000000001000000", endless),
            Lie::Trickle => ("0000000001000000", trickle),
            Lie::NoBody => ("0000000001000000", |_| Ok(())),
            Lie::NoHeader => return endless(stream),
            Lie::Silence => return stream.read(&mut [0]).map(drop),
            Lie::Empty => ("0000000000000000", |_| Ok(())),
            Lie::Short => ("0000000F00000005\x01\x02\x03\x04\x05", |_| Ok(())),
        };
        stream.write_all(format!("{request}@{header}").as_bytes())?;
        then(stream)
    }
}

fn endless(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    loop {
        stream.write_all(&[7; 65536])?;
    }
}

fn trickle(stream: &mut TcpStream) -> std::io::Result<()> {
    loop {
        stream.write_all(&[7])?;
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub struct Liar {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<usize>>,
}

impl Liar {
    /// In the network that the calling thread is in. It answers these requests.
    pub fn start(lie: Lie, answers: impl Fn(&str) -> bool + Send + 'static) -> Liar {
        let socket = hear();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut told = 0;
            while !stopped.load(Ordering::SeqCst) {
                let mut buffer = [0; 4096];
                let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
                let request = String::from_utf8_lossy(&buffer[..len]).into_owned();
                if answers(&request) {
                    told += usize::from(call(from.ip(), lie, request));
                }
            }
            told
        });
        Liar { stop, thread: Some(thread) }
    }

    /// Ends it; how many it has told.
    pub fn stop(mut self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn call(whom: IpAddr, lie: Lie, request: String) -> bool {
    let connected = TcpStream::connect_timeout(&(whom, PORT).into(), Duration::from_millis(200));
    let Ok(mut stream) = connected else { return false };
    std::thread::spawn(move || {
        // Whatever becomes of it.
        let _ = lie.tell(&mut stream, &request);
    });
    true
}
