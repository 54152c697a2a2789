//! The simulated network: full-duplex links, one switch, TCP as far as it decides how late a message is.
//!
//! A connection has a pipe in each direction. What a driver writes waits in the pipe (up to the not-sent low-water
//! mark), then for its turn at the sender's link, then in the receiver's switch port, one queue for all senders. A full
//! port drops; the sender's window halves and the piece is sent again. Each piece that arrives costs an ACK the other
//! way. So control is as late behind data as on a network.

use std::collections::{BTreeMap, VecDeque};

use swarmfs::chunk::{BlockId, SegmentId};
use swarmfs::swarm::LinkId;
use swarmfs::wire::head::PageHash;

/// Short messages go through the queues together up to this; a DATA frame is a piece of its own.
const PIECE: u32 = 8 * 1024 + 20;
/// Bytes of a segment that carry nothing: Ethernet, IP, TCP with timestamps. 1,514 bytes carry 1,448.
const SEGMENT_HEADERS: u64 = 66;
const SEGMENT_PAYLOAD: u64 = 1448;
const FIRST_WINDOW: u32 = 10 * 1448;
const RETRY: u64 = 200_000_000;

#[derive(Clone, Debug)]
pub enum Message {
    /// An encoded frame, and when its driver wrote it.
    Frame(Vec<u8>, u64),
    Header(SegmentId),
    Page(PageHash),
    /// Bytes that are no header which the origin signed.
    WrongHeader,
    /// One byte of a transfer.
    Drip(u32),
    Data {
        transfer: u32,
        block: BlockId,
        offset: u32,
        len: u32,
        wrong: bool,
    },
}

/// One direction of the number line of a pipe.
#[derive(Debug)]
pub struct Piece {
    pub number: u64,
    pub bytes: u32,
    pub messages: Vec<Message>,
    /// All but one segment of it is at the receiver already.
    pub repair: bool,
}

impl Piece {
    /// Bytes on the wire.
    pub fn wire(&self) -> u64 {
        if self.repair {
            return SEGMENT_PAYLOAD + SEGMENT_HEADERS;
        }
        self.bytes as u64 + (self.bytes as u64 * SEGMENT_HEADERS / SEGMENT_PAYLOAD).max(SEGMENT_HEADERS)
    }
}

pub const ACK: u64 = SEGMENT_HEADERS;

/// A host's end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub host: usize,
    /// Which life of the host it belongs to.
    pub life: u32,
    pub link: Option<LinkId>,
    pub open: bool,
}

/// One direction of a connection.
pub struct Pipe {
    /// Written by the driver and not yet taken by TCP.
    pub control: VecDeque<(Message, u32)>,
    unsent: VecDeque<Piece>,
    pub unsent_bytes: u32,
    again: VecDeque<Piece>,
    in_flight: u32,
    window: u32,
    threshold: u32,
    most: u32,
    next: u64,
    /// The receiver's side: what is due, and what came before its turn.
    expected: u64,
    early: BTreeMap<u64, Piece>,
    last_cut: u64,
    retries: u32,
    /// It waits for its turn at the sender's link.
    pub in_turn: bool,
}

impl Pipe {
    fn new(most: u32) -> Pipe {
        Pipe {
            control: VecDeque::new(),
            unsent: VecDeque::new(),
            unsent_bytes: 0,
            again: VecDeque::new(),
            in_flight: 0,
            window: FIRST_WINDOW.min(most),
            threshold: u32::MAX,
            most,
            next: 0,
            expected: 0,
            early: BTreeMap::new(),
            last_cut: 0,
            retries: 0,
            in_turn: false,
        }
    }

    /// TCP takes a message; a short one joins what was not sent yet. `spare` is memory for pieces.
    pub fn write(&mut self, message: Message, bytes: u32, spare: &mut Vec<Vec<Message>>) {
        self.unsent_bytes += bytes;
        if let Some(last) = self.unsent.back_mut()
            && last.bytes + bytes <= PIECE
        {
            last.bytes += bytes;
            last.messages.push(message);
            return;
        }
        let mut messages = spare.pop().unwrap_or_default();
        messages.push(message);
        self.unsent.push_back(Piece { number: self.next, bytes, messages, repair: false });
        self.next += 1;
    }

    pub fn can_send(&self) -> bool {
        let next = self.again.front().or(self.unsent.front());
        next.is_some_and(|piece| self.in_flight == 0 || self.in_flight + piece.bytes <= self.window)
    }

    pub fn take(&mut self) -> Option<Piece> {
        let piece = match self.again.pop_front() {
            Some(piece) => piece,
            None => {
                let piece = self.unsent.pop_front()?;
                self.unsent_bytes -= piece.bytes;
                piece
            }
        };
        self.in_flight += piece.bytes;
        Some(piece)
    }

    /// A piece was dropped on the way; half as much is sent from now on, once a round trip.
    pub fn lost(&mut self, mut piece: Piece, now: u64, round_trip: u64) {
        self.in_flight = self.in_flight.saturating_sub(piece.bytes);
        if now >= self.last_cut + round_trip {
            self.last_cut = now;
            self.window = (self.window * 7 / 10).max(2 * PIECE);
            self.threshold = self.window;
        }
        piece.repair = true;
        let at = self.again.partition_point(|other| other.number < piece.number);
        self.again.insert(at, piece);
    }

    /// Nothing comes back: when to try again.
    pub fn timeout(&mut self, now: u64) -> u64 {
        if now >= self.last_cut + (RETRY << self.retries.min(6)) / 2 {
            self.retries += 1;
            self.last_cut = now;
        }
        self.threshold = (self.window / 2).max(2 * PIECE);
        self.window = FIRST_WINDOW;
        RETRY << (self.retries.saturating_sub(1)).min(6)
    }

    pub fn acknowledged(&mut self, bytes: u32) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.retries = 0;
        let more = if self.window < self.threshold { bytes } else { (bytes as u64 * 1448 / self.window as u64) as u32 };
        self.window = (self.window + more).min(self.most);
    }

    /// The receiver's side: the messages that are now in order.
    pub fn arrived(&mut self, piece: Piece) -> Vec<Message> {
        if piece.number == self.expected && self.early.is_empty() {
            self.expected += 1;
            return piece.messages;
        }
        if piece.number >= self.expected {
            self.early.insert(piece.number, piece);
        }
        let mut messages = Vec::new();
        while let Some(piece) = self.early.remove(&self.expected) {
            self.expected += 1;
            messages.extend(piece.messages);
        }
        messages
    }
}

pub struct Connection {
    pub ends: [End; 2],
    /// Pipe i leads away from end i.
    pub pipes: [Pipe; 2],
}

impl Connection {
    pub fn new(from: End, to: End, most: u32) -> Connection {
        Connection { ends: [from, to], pipes: [Pipe::new(most), Pipe::new(most)] }
    }
}

/// A host's link to the switch.
pub struct Wire {
    /// Bytes a second, in each direction.
    pub rate: u64,
    /// Pipes that have something to send, in turn.
    pub turns: VecDeque<(usize, usize)>,
    pub busy: bool,
    /// Bytes of ACKs that the next piece waits for.
    pub owed: u64,
    /// When the switch port towards this host will have sent all that it holds.
    pub port_free: u64,
    /// The latest time at which somebody wanted to put something into it.
    looked: u64,
    pub cut: bool,
}

impl Wire {
    pub fn new(rate: u64) -> Wire {
        Wire { rate, turns: VecDeque::new(), busy: false, owed: 0, port_free: 0, looked: 0, cut: false }
    }

    pub fn takes(&self, bytes: u64) -> u64 {
        bytes * 1_000_000_000 / self.rate
    }

    /// Bytes waiting in the switch port. Hosts have their turns one after the other in a stretch of time: what comes from one
    /// with an earlier clock is as late as what came before it.
    pub fn queued(&mut self, now: u64) -> u64 {
        self.looked = self.looked.max(now);
        self.port_free.saturating_sub(self.looked) * self.rate / 1_000_000_000
    }

    /// Puts bytes into the switch port's queue; when they will have left it.
    pub fn through_port(&mut self, at: u64, bytes: u64) -> u64 {
        self.port_free = self.port_free.max(at) + self.takes(bytes);
        self.port_free
    }
}
