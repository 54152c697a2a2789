//! Hosts that mean ill: each way of it that somebody can go who is on the network and has no key, acted over real
//! sockets against everybody at once until it is over.

use std::collections::VecDeque;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use swarmfs::catalogue::Kind;
use swarmfs::chunk::{BLOCK, BLOCKS_PER_CHUNK, BLOCKS_PER_SEGMENT, ObjectId, Run, blocks_of};
use swarmfs::driver::{self, discover};
use swarmfs::keys::OriginKey;
use swarmfs::settings::{CacheSettings, NetSettings};
use swarmfs::stream::Embedded;
use swarmfs::wire::datagram::{Datagram, Join, Welcome};
use swarmfs::wire::frame::{Frame, GoneReason, Hello, NodeId, State};
use swarmfs::wire::head::{PageHash, TreeHead};

use super::{Mouth, Talker, asked, encoded};

/// How long the tree is looked for.
const LONG: Duration = Duration::from_secs(60);
/// How often a host that was thrown out comes back.
const BACK: Duration = Duration::from_millis(100);
/// Connections that one host keeps open: thousands together, and fewer than a process may have descriptors.
const CONNECTIONS: usize = 2000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ill {
    /// Claims and offers everything, and what it then sends is wrong.
    WrongBlocks,
    /// The same with segment headers.
    WrongHeaders,
    /// Claims and offers everything, and sends nothing of it.
    Idle,
    /// Sends a byte a second of it.
    Drip,
    /// Gives up whatever was accepted.
    Abort,
    /// Says that it is the origin and that all is gone.
    FalseOrigin,
    /// One STATE after the other, each full of chunks that nobody has, as fast as they are taken.
    States,
    /// Comes and goes, each time as somebody else who has everything.
    Flap,
    /// Opens connections without end, of which every second one greets.
    Connections,
    /// Sends heads of the tree as it was before, 500 a second.
    OldHeads,
    /// Asks with others' addresses, so that the answers go to them, 500 times a second.
    Forge,
}

impl Ill {
    pub const ALL: [Ill; 11] = [
        Ill::WrongBlocks,
        Ill::WrongHeaders,
        Ill::Idle,
        Ill::Drip,
        Ill::Abort,
        Ill::FalseOrigin,
        Ill::States,
        Ill::Flap,
        Ill::Connections,
        Ill::OldHeads,
        Ill::Forge,
    ];

    /// Whether its hosts are thrown out, so that they may come back under new names.
    pub fn is_refused(self) -> bool {
        matches!(self, Ill::WrongBlocks | Ill::WrongHeaders | Ill::Idle | Ill::Drip | Ill::Abort | Ill::FalseOrigin)
    }
}

/// Whom they all act against, and what they know of the tree.
pub struct Scene {
    pub victims: Vec<SocketAddr>,
    pub head: Arc<TreeHead>,
    pub object: ObjectId,
    size: u64,
    /// Signs old heads: stands for whoever recorded many.
    pub key: Option<OriginKey>,
}

impl Scene {
    /// Finds the tree and a file as anybody would, in the network of the calling thread.
    pub fn scout(victims: Vec<SocketAddr>, file: &str) -> Scene {
        let net = NetSettings::default();
        let found = discover(&net, None, LONG).unwrap();
        let node = driver::join(found, &net, &CacheSettings { budget_bytes: 32 << 20 }).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let entry = runtime.block_on(Embedded::new(node.clone()).entry(file, true)).unwrap();
        let Kind::File { object } = *entry.row.kind() else { panic!("it is a file") };
        let (head, size) = (node.head(), entry.row.attributes().size);
        node.stop();
        Scene { victims, head, object, size, key: None }
    }

    fn hello(&self, node: u64, origin: bool) -> Hello {
        let head = &self.head;
        Hello { node: NodeId(node), origin, port: 9, sequence: head.sequence, key: head.key, tree: head.name.clone() }
    }

    fn everything(&self) -> Vec<Run> {
        let blocks = blocks_of(self.size);
        let starts = (0..blocks).step_by(BLOCKS_PER_CHUNK as usize);
        starts.map(|first| Run { object: self.object, first, count: BLOCKS_PER_CHUNK.min(blocks - first) }).collect()
    }

    fn boast(&self) -> State {
        State { full: true, rate: u32::MAX, taken: self.everything(), ..State::default() }
    }

    /// A connection to one of them that acts until it is dropped or thrown out.
    pub fn liar(&self, ill: Ill, victim: SocketAddr, name: u64) -> std::io::Result<Talker> {
        let mut mouth = Mouth::reach(victim, self.hello(name, ill == Ill::FalseOrigin))?;
        mouth.say(&Frame::State(self.boast()));
        let (object, blocks) = (self.object, blocks_of(self.size));
        let mut random = fastrand::Rng::with_seed(name);
        let (mut number, mut owed, mut sent) = (0, Vec::new(), Instant::now());
        let act = move |mouth: &mut Mouth, frame: Frame| {
            match (&frame, ill) {
                (Frame::GetHeader(_), Ill::WrongHeaders) => mouth.say(&Frame::Header(vec![7; 200].into())),
                (_, Ill::FalseOrigin) => mouth.say(&Frame::Gone { object, reason: GoneReason::Replaced }),
                _ => {}
            }
            match (asked(&frame), ill) {
                (Some((transfer, run)), Ill::WrongBlocks) => {
                    run.blocks().for_each(|block| mouth.data(transfer, block.index, 0, &[0xbd; BLOCK as usize]));
                }
                (Some((transfer, _)), Ill::Abort) => mouth.say(&Frame::Abort { transfer }),
                (Some((transfer, run)), Ill::Drip) => owed.push((transfer, run.first, 0)),
                _ => {}
            }
            if sent.elapsed() > Duration::from_secs(1) {
                sent = Instant::now();
                for (transfer, first, offset) in &mut owed {
                    mouth.data(*transfer, *first, *offset, &[0xbd]);
                    *offset += 1;
                }
            }
            number += 1;
            if ill != Ill::FalseOrigin && number % 3 == 0 {
                let mut run = || {
                    let first = random.u32(0..blocks.div_ceil(BLOCKS_PER_SEGMENT)) * BLOCKS_PER_SEGMENT;
                    Run { object, first, count: 8.min(blocks - first) }
                };
                let runs = (0..8).map(|_| run()).collect();
                mouth.say(&Frame::Offer { id: number, runs });
            }
        };
        Ok(Talker::start(mouth, act, State { rate: u32::MAX, ..State::default() }))
    }

    /// All that one host does until `stop`, in the network of the calling thread; `ready` counts those who have met
    /// everybody. `anew` ones come back under another name when they were thrown out, others as themselves. Each host
    /// has `names` from some number on.
    pub fn act(&self, ill: Ill, anew: bool, names: u64, ready: &AtomicUsize, stop: &AtomicBool) {
        match ill {
            Ill::States => self.flood(names, ready, stop),
            Ill::Flap => self.flap(names, ready, stop),
            Ill::Connections => self.open_connections(names, ready, stop),
            Ill::OldHeads => self.send_old_heads(ready, stop),
            Ill::Forge => self.forge(ready, stop),
            ill => self.talk(ill, anew, names, ready, stop),
        }
    }

    fn talk(&self, ill: Ill, anew: bool, mut names: u64, ready: &AtomicUsize, stop: &AtomicBool) {
        let mut talkers: Vec<Option<Talker>> = self.victims.iter().map(|_| None).collect();
        for turn in 0.. {
            for ((slot, victim), name) in talkers.iter_mut().zip(&self.victims).zip(names..) {
                if slot.as_ref().is_none_or(Talker::is_over) {
                    *slot = self.liar(ill, *victim, name).ok();
                }
            }
            names += if anew { self.victims.len() as u64 } else { 0 };
            if turn == 0 {
                ready.fetch_add(1, Ordering::Relaxed);
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(BACK);
        }
    }

    fn flood(&self, names: u64, ready: &AtomicUsize, stop: &AtomicBool) {
        let states: Vec<Vec<u8>> = (0..4).map(|n| encoded(&Frame::State(strange_state(names + n)))).collect();
        std::thread::scope(|scope| {
            for (victim, name) in self.victims.iter().zip(names..) {
                let states = &states;
                let mut mouth = Mouth::reach(*victim, self.hello(name, false)).unwrap();
                scope.spawn(move || {
                    for state in states.iter().cycle() {
                        mouth.pour(state, stop);
                        if !mouth.is_open() || stop.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                });
            }
            ready.fetch_add(1, Ordering::Relaxed);
        });
    }

    fn flap(&self, names: u64, ready: &AtomicUsize, stop: &AtomicBool) {
        ready.fetch_add(1, Ordering::Relaxed);
        for (victim, name) in self.victims.iter().cycle().zip(names..) {
            if let Ok(mut guest) = Mouth::reach(*victim, self.hello(name, false)) {
                guest.say(&Frame::State(State { room: 100, ..self.boast() }));
                guest.hear(Duration::from_millis(5));
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    fn open_connections(&self, names: u64, ready: &AtomicUsize, stop: &AtomicBool) {
        let mut open = VecDeque::new();
        ready.fetch_add(1, Ordering::Relaxed);
        for (victim, name) in self.victims.iter().cycle().zip(names..) {
            if let Ok(mut stream) = TcpStream::connect_timeout(victim, BACK) {
                if name % 2 == 0 {
                    let _ = stream.write_all(&encoded(&Frame::Hello(self.hello(name, false))));
                }
                open.push_back(stream);
            }
            if open.len() > CONNECTIONS {
                open.pop_front();
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn send_old_heads(&self, ready: &AtomicUsize, stop: &AtomicBool) {
        let key = self.key.as_ref().expect("old heads were signed by the origin");
        let now = &self.head;
        let old = |n: u64| {
            let head = TreeHead::sign(now.name.clone(), now.sequence - n, PageHash([n as u8; 32]), 0, now.totals, key);
            let welcome = Welcome { node: NodeId(n), port: 9, origin: true, head, peers: Vec::new() };
            Datagram::Peers(Box::new(welcome)).encode()
        };
        let old: Vec<Vec<u8>> = (1..=64).map(old).collect();
        let mouth = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        ready.fetch_add(1, Ordering::Relaxed);
        paced(stop, |n| drop(mouth.send_to(&old[n % old.len()], self.victims[n % self.victims.len()])));
    }

    /// Whoever is asked answers somebody else who did not ask: another of the victims.
    fn forge(&self, ready: &AtomicUsize, stop: &AtomicBool) {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
        socket.set_header_included_v4(true).unwrap();
        ready.fetch_add(1, Ordering::Relaxed);
        paced(stop, |n| {
            let to = self.victims[n % self.victims.len()];
            let from = self.victims[(n + 1 + n / self.victims.len()) % self.victims.len()];
            let join = Join { node: NodeId(n as u64), port: from.port(), sequence: 0, position: 0, tree: None };
            let _ = socket.send_to(&packet(from, to, &Datagram::Join(join).encode()), &to.into());
        });
    }
}

/// No more than this machine's timers can do.
fn paced(stop: &AtomicBool, mut what: impl FnMut(usize)) {
    let began = Instant::now();
    for n in 0.. {
        what(n);
        if stop.load(Ordering::Relaxed) {
            return;
        }
        std::thread::sleep(Duration::from_millis(2 * n as u64).saturating_sub(began.elapsed()));
    }
}

/// As many chunks of no object as fit a frame.
fn strange_state(seed: u64) -> State {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut run = || {
        let mut object = [0; 16];
        random.fill(&mut object);
        Run { object: ObjectId(object), first: 0, count: BLOCKS_PER_CHUNK }
    };
    State { full: true, taken: (0..2000).map(|_| run()).collect(), ..State::default() }
}

/// An IPv4 packet. The kernel fills in its length, number and sum; UDP does without one.
fn packet(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    for side in [from, to] {
        let SocketAddr::V4(side) = side else { panic!("the lab speaks IPv4") };
        packet.extend(side.ip().octets());
    }
    for number in [from.port(), to.port(), 8 + payload.len() as u16, 0] {
        packet.extend(number.to_be_bytes());
    }
    packet.extend(payload);
    packet
}
