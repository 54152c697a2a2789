//! Watches a switch for whatever an original does not survive on port 19023.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::{CHUNK, HEADER, PORT, TRANSFER};

/// How long an original waits for a header, and for all of an answer.
#[derive(Clone, Copy)]
pub struct Limits {
    pub header: Duration,
    pub whole: Duration,
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
/// All Ethernet protocols.
const ALL: i32 = 3;

/// What passed while it watched.
#[derive(Debug, Default)]
pub struct Seen {
    /// What an original would have died of or been confused by.
    pub deadly: Vec<String>,
    pub requests: u64,
    /// Answers with as many bytes as their header said.
    pub answers: u64,
    /// When each address was connected to on the port.
    pub connections: BTreeMap<Ipv4Addr, Vec<Instant>>,
}

/// A connection to the port.
struct Flow {
    begun: Instant,
    first: u32,
    header: Option<(Instant, Result<u64, String>)>,
    /// How many bytes had been sent when the sender ended it, and when that was.
    ended: Option<(Instant, u64)>,
    /// When somebody did not want it any more.
    reset: Option<Instant>,
    accepted: bool,
}

impl Flow {
    fn end(&mut self, flags: u8, now: Instant) {
        if flags & RST != 0 {
            self.reset.get_or_insert(now);
        }
    }
}

pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

type Key = (Ipv4Addr, u16, Ipv4Addr);

impl Watch {
    /// In the network of the calling thread, which must be the switch's.
    pub fn start() -> Watch {
        Watch::with(Limits { header: HEADER, whole: TRANSFER })
    }

    /// As if originals waited for so long.
    pub fn with(limits: Limits) -> Watch {
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from((ALL as u16).to_be()))));
        let mut socket = socket.expect("whoever made the switch may watch it");
        socket.attach_filter(&filter()).unwrap();
        socket.set_recv_buffer_size(8 << 20).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut seen, mut flows) = (Seen::default(), BTreeMap::new());
            let mut frame = vec![0; 65536];
            loop {
                match socket.read(&mut frame) {
                    Ok(len) => note(&frame[..len], &mut seen, &mut flows),
                    Err(_) if stopped.load(Ordering::SeqCst) => break,
                    Err(_) => {}
                }
            }
            let now = Instant::now();
            flows.into_iter().for_each(|(key, flow)| judge(key, &flow, limits, now, &mut seen));
            seen
        });
        Watch { stop, thread }
    }

    pub fn stop(self) -> Seen {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

/// Lets through what has the port at either end: datagrams, and of connections what begins, ends or pushes.
fn filter() -> [SockFilter; 16] {
    let (half, byte, header, half_at, byte_at) = (0x28, 0x30, 0xb1, 0x48, 0x50);
    let (equal, any_bit, ret) = (0x15, 0x45, 0x06);
    let port = PORT.into();
    [
        SockFilter::new(half, 0, 0, 12),
        SockFilter::new(equal, 0, 12, 0x0800),
        SockFilter::new(half, 0, 0, 20),
        // No later fragment.
        SockFilter::new(any_bit, 10, 0, 0x1fff),
        SockFilter::new(header, 0, 0, 14),
        SockFilter::new(half_at, 0, 0, 14),
        SockFilter::new(equal, 2, 0, port),
        SockFilter::new(half_at, 0, 0, 16),
        SockFilter::new(equal, 0, 5, port),
        SockFilter::new(byte, 0, 0, 23),
        SockFilter::new(equal, 4, 0, 17),
        SockFilter::new(equal, 0, 2, 6),
        SockFilter::new(byte_at, 0, 0, 27),
        SockFilter::new(any_bit, 1, 0, 0x0f),
        SockFilter::new(ret, 0, 0, 0),
        SockFilter::new(ret, 0, 0, 0xffff),
    ]
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn note(frame: &[u8], seen: &mut Seen, flows: &mut BTreeMap<Key, Flow>) {
    let packet = &frame[14..];
    let head = usize::from(packet[0] & 0x0f) * 4;
    let packet = &packet[..(number(&packet[2..4]) as usize).clamp(head, packet.len())];
    let address = |at: usize| Ipv4Addr::from(number(&packet[at..at + 4]));
    let (from, to, rest) = (address(12), address(16), &packet[head..]);
    let (source, target) = (number(&rest[..2]) as u16, number(&rest[2..4]) as u16);
    if packet[9] == 17 {
        if target == PORT {
            datagram(from, &rest[8..(number(&rest[4..6]) as usize).clamp(8, rest.len())], seen);
        }
        return;
    }
    let (sequence, flags) = (number(&rest[4..8]), rest[13]);
    let payload = &rest[usize::from(rest[12] >> 4) * 4..];
    let now = Instant::now();
    if source == PORT {
        if let Some(flow) = flows.get_mut(&(to, target, from)) {
            flow.end(flags, now);
            flow.accepted |= flags & SYN != 0;
        }
        return;
    }
    let key = (from, source, to);
    if flags & SYN != 0 {
        flows.entry(key).or_insert_with(|| {
            seen.connections.entry(to).or_default().push(now);
            Flow {
                begun: now,
                first: sequence.wrapping_add(1),
                header: None,
                ended: None,
                reset: None,
                accepted: false,
            }
        });
        return;
    }
    let Some(flow) = flows.get_mut(&key) else { return };
    let before = u64::from(sequence.wrapping_sub(flow.first));
    if before == 0 && !payload.is_empty() {
        flow.header.get_or_insert_with(|| (now, announced(payload)));
    }
    if flags & FIN != 0 {
        flow.ended.get_or_insert((now, before + payload.len() as u64));
    }
    flow.end(flags, now);
}

fn datagram(from: Ipv4Addr, bytes: &[u8], seen: &mut Seen) {
    seen.requests += 1;
    match std::str::from_utf8(bytes) {
        Ok("") => seen.deadly.push(format!("an empty datagram from {from}")),
        Ok(text) if !text.contains('@') => seen.deadly.push(format!("no request from {from}: {text:?}")),
        Ok(_) => {}
        Err(_) => seen.deadly.push(format!("a datagram that is no UTF-8 from {from}: {}", bytes.escape_ascii())),
    }
}

/// Bytes that are to come in all, the header's included.
fn announced(payload: &[u8]) -> Result<u64, String> {
    let wrong = || format!("no header: {}", payload[..payload.len().min(80)].escape_ascii());
    let mut ats = payload.iter().enumerate().filter(|(_, byte)| **byte == b'@').map(|(at, _)| at);
    let numbers = ats.nth(1).ok_or_else(wrong)? + 1;
    let digits = payload.get(numbers + 8..numbers + 16).and_then(|digits| std::str::from_utf8(digits).ok());
    let len = digits.and_then(|digits| u64::from_str_radix(digits.trim_start(), 16).ok()).ok_or_else(wrong)?;
    if len > CHUNK as u64 {
        return Err(format!("{len} bytes announced"));
    }
    Ok(numbers as u64 + 16 + len)
}

/// Late is what comes late, and what is given up late: an original that is gone by then resets the connection.
fn judge((from, _, to): Key, flow: &Flow, limits: Limits, now: Instant, seen: &mut Seen) {
    if !flow.accepted {
        return;
    }
    let mut deadly = |what: String| seen.deadly.push(format!("{from} to {to}: {what}"));
    let end = flow.ended.map(|(at, _)| at).or(flow.reset).unwrap_or(now);
    let header_came = flow.header.as_ref().map_or(end, |(at, _)| *at);
    if header_came - flow.begun > limits.header {
        return deadly("a late header".to_owned());
    }
    if end - flow.begun > limits.whole {
        return deadly("a late end".to_owned());
    }
    match (&flow.header, flow.ended) {
        _ if flow.reset.is_some() => {}
        (Some((_, Err(wrong))), _) => deadly(wrong.clone()),
        (Some((_, Ok(whole))), Some((_, sent))) if *whole != sent => {
            deadly(format!("{sent} bytes instead of {whole}"));
        }
        (Some(_), Some(_)) => seen.answers += 1,
        (None, Some(_)) => deadly("a connection without a header".to_owned()),
        // Still under way when the watch ended.
        (_, None) => {}
    }
}
