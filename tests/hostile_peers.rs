//! Peers that lie, stall, flood or talk nonsense harm no reader: its bytes are right, it ends in time, and whoever lied is
//! dropped, named in the log and avoided.
//!
//! A liar speaks with the crate's own wire types over a real connection. Where it matters it tells origin and reader that
//! it holds everything, and offers it to the reader.

mod mouth;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mouth::{Mouth, Talker, asked, connect, encoded, ends};
use swarmfs::catalogue::Kind;
use swarmfs::chunk::{BLOCK, BLOCKS_PER_CHUNK, BLOCKS_PER_SEGMENT, MAX_BLOCKS, ObjectId, Run, SegmentId, blocks_of};
use swarmfs::driver::{self, Client, discover};
use swarmfs::keys::OriginKey;
use swarmfs::origin::{StateDir, Tree};
use swarmfs::settings::{CacheSettings, NetSettings};
use swarmfs::stream::Embedded;
use swarmfs::wire::codec::Writer;
use swarmfs::wire::datagram::{Datagram, Peer, Welcome};
use swarmfs::wire::frame::{Frame, GoneReason, Hello, MAX_RUN, NodeId, State, WANTED};
use swarmfs::wire::head::TreeHead;
use swarmfs::wire::header::SegmentHeader;

/// Not a multiple of anything.
const SIZE: usize = 12 * 1024 * 1024 + 12_345;
const BUDGET: u64 = 64 << 20;
/// What a reading may take where nobody is waited for, on a busy machine too.
const PROMPT: Duration = Duration::from_secs(10);
/// The same where a peer that keeps no promise is found out only by waiting for it.
const PATIENT: Duration = Duration::from_secs(30);

// ---- lies about bytes

#[test]
fn a_peer_that_sends_wrong_blocks_is_dropped_named_and_avoided() {
    let stage = Stage::new();
    let liar = stage.liar(1, |liar, frame| {
        if let Some((transfer, run)) = asked(&frame) {
            for block in run.blocks() {
                liar.data(transfer, block.index, 0, &[0xbd; BLOCK as usize]);
            }
        }
    });
    stage.must_read(PROMPT);
    stage.must_have_refused(&liar, "wrong block");
    assert_eq!(stage.counter("wrong_blocks"), 1, "what it sent after the first lie was looked at");
    stage.must_avoid(1);
}

#[test]
fn a_peer_that_sends_a_wrong_header_is_dropped_named_and_avoided() {
    for (node, spoil) in [
        (1, (|_: &mut Vec<u8>| {}) as fn(&mut Vec<u8>)),
        (2, |header| header[200] ^= 1),
        (3, |header| header.truncate(100)),
        (4, |header| header.clear()),
    ] {
        let stage = Stage::new();
        let (bytes, foreign) = (stage.bytes.clone(), OriginKey::from_seed(&[9; 32]));
        let liar = stage.liar(node, move |liar, frame| {
            if let Frame::GetHeader(segment) = frame {
                let start = segment.first_block() as usize * BLOCK as usize;
                let end = bytes.len().min(start + (BLOCK * BLOCKS_PER_SEGMENT) as usize);
                let mut header = Writer::new();
                SegmentHeader::sign(segment, &bytes[start..end], &foreign).encode(&mut header);
                let mut header = header.finish();
                spoil(&mut header);
                liar.say(&Frame::Header(header.into()));
            }
        });
        stage.must_read(PROMPT);
        stage.must_have_refused(&liar, "wrong segment header");
        assert_eq!(stage.counter("wrong_headers"), 1);
        stage.must_avoid(node);
    }
}

#[test]
fn a_peer_that_sends_a_page_nobody_asked_for_is_dropped_named_and_avoided() {
    let stage = Stage::new();
    let mut liar = stage.greet(stage.reader.snapshot().port, 1);
    liar.say(&Frame::Page(Bytes::from(vec![7; 5000])));
    stage.must_have_refused(&liar.address(), "page");
    stage.must_avoid(1);
    stage.must_read(PROMPT);
}

// ---- promises not kept

#[test]
fn a_peer_that_offers_and_claims_everything_and_never_sends_is_waited_for_once() {
    let stage = Stage::new();
    let _liar = stage.liar(1, |_, _| {});
    stage.must_read(PROMPT);
    let stalled = stage.counter("stalled_transfers");
    assert!(stalled <= 16, "{stalled} transfers were waited for");
}

#[test]
fn a_peer_that_gives_up_whatever_it_promised_delays_nobody_for_long() {
    let stage = Stage::new();
    let _liar = stage.liar(1, |liar, frame| {
        if let Some((transfer, _)) = asked(&frame) {
            liar.say(&Frame::Abort { transfer });
        }
    });
    stage.must_read(PATIENT);
}

#[test]
fn data_that_was_not_asked_for_or_comes_out_of_order_is_thrown_away() {
    let stage = Stage::new();
    let _liar = stage.liar(1, |liar, frame| {
        if let Some((transfer, run)) = asked(&frame) {
            let junk = [0xbd; 1000];
            liar.data(transfer, run.first, 100, &junk);
            liar.data(transfer, run.end() + 5, 0, &junk);
            liar.data(transfer, u32::MAX, 0, &junk);
            liar.data(transfer ^ 1, run.first, 0, &junk);
            liar.data(12_345, 0, 0, &junk);
            liar.data(WANTED | 77, 0, (BLOCK - 1000) as u16, &junk);
        }
    });
    stage.must_read(PATIENT);
    assert!(stage.counter("unexpected_data") >= 6);
    assert_eq!(stage.counter("wrong_blocks"), 0);
}

#[test]
fn readers_that_answer_no_offer_keep_no_origin_from_the_others() {
    let stage = Stage::new();
    let all = stage.all();
    let _hogs: Vec<Talker> = (10..22)
        .map(|node| {
            let mut hog = stage.greet(stage.origin.snapshot().port, node);
            hog.say(&Frame::State(State { full: true, room: 200, added: all.clone(), ..State::default() }));
            Talker::start(hog, |_, _| {}, State { room: 200, ..State::default() })
        })
        .collect();
    stage.must_read(PROMPT);
}

#[test]
fn a_peer_that_sends_a_byte_a_second_is_given_up_soon() {
    let stage = Stage::new();
    let (mut owed, mut sent, mut offset) = (Vec::new(), Instant::now(), 0);
    let _liar = stage.liar(1, move |liar, frame| {
        owed.extend(asked(&frame));
        if sent.elapsed() > Duration::from_secs(1) {
            sent = Instant::now();
            for (transfer, run) in &owed {
                liar.data(*transfer, run.first, offset, &[0xbd]);
            }
            offset += 1;
        }
    });
    stage.must_read(PROMPT);
    let stalled = stage.counter("stalled_transfers");
    assert!(stalled <= 16, "{stalled} transfers were waited for");
}

// ---- who is the origin

/// Whoever said that it was an origin was believed that a file is gone, and its reader got an error.
#[test]
fn a_false_origin_is_not_believed_that_a_file_is_gone() {
    let stage = Stage::new();
    let hello = Hello { origin: true, ..stage.hello(1) };
    let mut liar = Mouth::greet(at(stage.reader.snapshot().port), hello);
    let object = stage.object;
    liar.say(&Frame::Gone { object, reason: GoneReason::Replaced });
    let act = move |liar: &mut Mouth, frame| match frame {
        Frame::Prove { .. } => liar.say(&Frame::Proof { signature: [7; 64] }),
        _ => liar.say(&Frame::Gone { object, reason: GoneReason::Replaced }),
    };
    let _liar = Talker::start(liar, act, State::default());
    stage.must_read(PROMPT);
    stage.wait_for("it is counted", || stage.counter("false_origins") == 1);
    stage.must_avoid(1);
}

#[test]
fn heads_of_the_tree_as_it_was_are_counted_and_change_nothing() {
    let stage = Stage::new();
    let now = stage.origin.head();
    let state = StateDir::at(stage._disk.path().join("state")).unwrap();
    let (key, port) = (state.key().unwrap(), stage.reader.snapshot().port);
    let mouth = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for n in 1..=50 {
        let root = swarmfs::wire::head::PageHash([n as u8; 32]);
        let head = TreeHead::sign(now.name.clone(), now.sequence - n, root, 0, now.totals, &key);
        let welcome = Welcome { node: NodeId(n), port: 9, origin: true, head, peers: Vec::new() };
        mouth.send_to(&Datagram::Peers(Box::new(welcome)).encode(), at(port)).unwrap();
    }
    stage.wait_for("they are counted", || stage.counter("old_heads") >= 50);
    assert_eq!(stage.reader.head(), now);
    stage.must_read(PROMPT);
}

// ---- floods

#[test]
fn endless_state_is_read_later_and_slows_nobody() {
    let stage = Stage::new();
    let mut peer = stage.greet(stage.reader.snapshot().port, 1);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let flooder = std::thread::spawn(move || {
        let mut n = 0u32;
        while !stopped.load(Ordering::Relaxed) && peer.is_open() {
            n += 1;
            let object = |i: u32| ObjectId([(n * 2000 + i).to_le_bytes(); 4].concat().try_into().expect("16 bytes"));
            let run = |i| Run { object: object(i), first: 0, count: BLOCKS_PER_CHUNK };
            peer.say(&Frame::State(State {
                full: n.is_multiple_of(3),
                taken: (0..2000).map(run).collect(),
                ..State::default()
            }));
            peer.hear(Duration::ZERO);
        }
    });
    stage.must_read(PROMPT);
    stage.wait_for("it is read later", || stage.counter("throttled_links") > 0);
    stop.store(true, Ordering::Relaxed);
    flooder.join().expect("the flooder only writes");
}

/// Whoever sends JOINs with another's address, so that the answers go there: no more comes out than goes in, and of a
/// flood most is not answered.
#[test]
fn an_amplifier_is_none() {
    let stage = Stage::new();
    let victim = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    victim.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mouth = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let to = at(stage.origin.snapshot().port);
    let join = swarmfs::wire::datagram::Join {
        node: NodeId(5),
        port: victim.local_addr().unwrap().port(),
        sequence: 0,
        position: 0,
        tree: None,
    };
    let question = Datagram::Join(join).encode();
    let heard = || {
        let mut buffer = [0; 2000];
        std::iter::from_fn(|| victim.recv(&mut buffer).ok()).collect::<Vec<usize>>()
    };
    mouth.send_to(&question[..100], to).unwrap();
    assert_eq!(heard(), Vec::<usize>::new(), "a short question is answered");
    for _ in 0..2000 {
        mouth.send_to(&question, to).unwrap();
    }
    let answers = heard();
    assert!(!answers.is_empty() && answers.iter().all(|len| *len <= question.len()), "{answers:?}");
    assert!(answers.len() < 600, "{} of 2000 questions of one address are answered", answers.len());
    // Of a burst the kernel keeps as many as the socket holds.
    stage.wait_for("they are counted", || {
        (0..50).for_each(|_| drop(mouth.send_to(&question, to)));
        counter(&stage.origin, "flooded_datagrams") > 1000
    });
    stage.must_read(PROMPT);
}

#[test]
fn a_peer_that_comes_and_goes_without_end_is_met_each_time_and_slows_nobody() {
    let stage = Stage::new();
    let ports = [stage.reader.snapshot().port, stage.origin.snapshot().port];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut node = 100;
            while !stop.load(Ordering::Relaxed) {
                node += 1;
                for port in ports {
                    let mut peer = Mouth::greet(at(port), stage.hello(node));
                    peer.say(&Frame::State(State { full: true, room: 100, added: stage.all(), ..State::default() }));
                    peer.hear(Duration::from_millis(5));
                }
            }
        });
        let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| stage.must_read(PROMPT)));
        stop.store(true, Ordering::Relaxed);
        read.unwrap();
    });
}

// ---- nonsense

#[test]
fn garbage_half_frames_and_silence_are_closed_and_counted() {
    let stage = Stage::new();
    let port = stage.reader.snapshot().port;
    let hello = encoded(&Frame::Hello(stage.hello(1)));
    let mut random = fastrand::Rng::with_seed(5);
    let mut junk = vec![0; 10_000];
    random.fill(&mut junk);
    // Looks like a short frame, as far as its length.
    junk[..4].copy_from_slice(&[1, 16, 1, 0]);
    let said = [vec![], hello[..hello.len() / 2].to_vec(), vec![1, 6], junk.clone(), encoded(&Frame::Ask { count: 3 })];
    let mut strangers: Vec<TcpStream> = said.iter().map(|said| connect(at(port), said)).collect();
    stage.must_read(PROMPT);
    let begin = Instant::now();
    for stranger in &mut strangers {
        assert!(ends(stranger, Duration::from_secs(8)), "a connection without a greeting stays open");
    }
    assert!(begin.elapsed() < Duration::from_secs(6), "a greeting is waited for 3 s");
    assert_eq!(stage.counter("refused_peers"), 1, "only garbage is a fault; silence ends by itself");

    let mut peer = stage.greet(port, 2);
    peer.raw(&junk);
    stage.must_have_refused(&peer.address(), "malformed frame");
    stage.wait_for("both are counted", || stage.counter("malformed_frames") == 2);
    stage.must_avoid(2);
}

#[test]
fn absurd_runs_windows_and_segments_disturb_neither_reader_nor_origin() {
    let stage = Stage::new();
    let before = resident();
    let stop = Arc::new(AtomicBool::new(false));
    let mut flooders = Vec::new();
    for (index, port) in [stage.reader.snapshot().port, stage.origin.snapshot().port].into_iter().enumerate() {
        let mut name = 1000 + index as u64;
        let hello = stage.hello(name);
        let mut peer = Mouth::greet(at(port), hello.clone());
        let (stop, object) = (stop.clone(), stage.object);
        flooders.push(std::thread::spawn(move || {
            let strange = |n: u32| ObjectId([n.to_le_bytes(); 4].concat().try_into().expect("16 bytes"));
            let run = |object, first, count| Run { object, first, count };
            let mut n = 0;
            while n < 10 || !stop.load(Ordering::Relaxed) {
                n += 1;
                if !peer.is_open() {
                    // It was thrown out, and comes back under another name.
                    name += 2;
                    peer = Mouth::greet(at(port), Hello { node: NodeId(name), ..hello.clone() });
                }
                let chunk = |i: u32| run(strange(n * 1000 + i), (i % 9) * BLOCKS_PER_CHUNK, BLOCKS_PER_CHUNK);
                peer.say(&Frame::State(State {
                    full: n.is_multiple_of(100),
                    position: u64::MAX,
                    room: i16::MAX,
                    rate: u32::MAX,
                    dropped: u16::MAX,
                    front: u32::MAX,
                    added: (0..256)
                        .map(|i| run(if i % 2 == 0 { object } else { strange(i) }, i * 7, MAX_RUN))
                        .collect(),
                    taken: (0..1000).map(chunk).collect(),
                    lost: vec![run(object, MAX_BLOCKS - 511, 511)],
                    ..State::default()
                }));
                for first in [0, 64, MAX_BLOCKS - 64] {
                    peer.say(&Frame::Want { transfer: WANTED | n, starving: true, run: run(object, first, 1) });
                    peer.say(&Frame::Want { transfer: WANTED | n, starving: true, run: run(strange(n), first, 60) });
                    peer.say(&Frame::Offer { id: n, runs: vec![run(object, first, 63)] });
                    // Of an offer that was never made; one outside its offer would end the link.
                    peer.say(&Frame::Accept { id: n + 1_000_000, run: run(object, first, 1) });
                }
                for index in [0, 1 << 20, MAX_BLOCKS / BLOCKS_PER_SEGMENT - 1] {
                    peer.say(&Frame::GetHeader(SegmentId { object, index }));
                }
                peer.say(&Frame::Cancel { transfer: n });
                peer.say(&Frame::Gone { object, reason: GoneReason::Replaced });
                peer.hear(Duration::ZERO);
            }
        }));
    }
    stage.must_read(PATIENT);
    stop.store(true, Ordering::Relaxed);
    for flooder in flooders {
        flooder.join().expect("the flooder only writes");
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < BUDGET + SIZE as u64 + (48 << 20), "{} MiB more", grown >> 20);

    // A segment whose first block has no number in 32 bits made an origin overflow, or read another one.
    let mut peer = stage.greet(stage.origin.snapshot().port, 50);
    peer.say(&Frame::GetHeader(SegmentId { object: stage.object, index: u32::MAX }));
    assert!(peer.closes(PROMPT), "a segment beyond any object is malformed");
    stage.again().must_read(PROMPT);
}

#[test]
fn a_peer_that_asks_without_reading_is_dropped_and_holds_no_memory() {
    let stage = Stage::new();
    let before = resident();
    let root = stage.origin.head().root;
    let mut greedy: Vec<Mouth> = (60..64).map(|node| stage.greet(stage.origin.snapshot().port, node)).collect();
    let asks: Vec<u8> = (0..2000u32)
        .flat_map(|n| {
            let segment = SegmentId { object: stage.object, index: n % 7 };
            let run = Run { object: stage.object, first: n % 64, count: 64 - n % 64 };
            [
                encoded(&Frame::GetPage(root)),
                encoded(&Frame::GetHeader(segment)),
                encoded(&Frame::Ask { count: 255 }),
                encoded(&Frame::Want { transfer: WANTED | n, starving: true, run }),
            ]
        })
        .flatten()
        .collect();
    let begin = Instant::now();
    while greedy.iter().any(Mouth::is_open) && begin.elapsed() < PATIENT {
        for peer in &mut greedy {
            peer.raw(&asks);
        }
        let grown = resident().saturating_sub(before);
        assert!(grown < BUDGET + (48 << 20), "{} MiB more", grown >> 20);
    }
    assert!(begin.elapsed() < PATIENT, "a peer that reads nothing is served for ever");
    stage.must_read(PROMPT);
}

// ---- crowds

#[test]
fn two_hundred_connections_leave_room_for_a_neighbour() {
    let stage = Stage::new();
    let port = stage.reader.snapshot().port;
    let mut crowd: Vec<TcpStream> = (0..200).map(|_| connect(at(port), &[])).collect();
    let open = crowd.iter_mut().map(|stranger| ends(stranger, Duration::from_millis(1))).filter(|ended| !ended).count();
    assert!(open <= 34, "{open} connections of strangers are kept");
    // They have had their time to greet; a peer that does comes in.
    std::thread::sleep(Duration::from_millis(300));
    let _peer = stage.greet(port, 1);
    stage.wait_for("a peer that greets is let in", || stage.has_neighbour());
    stage.must_read(PROMPT);
    assert!(crowd.iter_mut().all(|stranger| ends(stranger, Duration::from_secs(8))), "strangers stay for ever");
}

#[test]
fn thousands_of_invented_peers_and_origins_are_not_dialled_at_once() {
    let stage = Stage::new();
    let port = stage.reader.snapshot().port;
    let mut peer = stage.greet(port, 1);
    let invented = |n: u64| Peer { node: NodeId(1 << 32 | n), addr: ([127, 0, (n >> 8) as u8, n as u8], 9).into() };
    for part in 0..40 {
        peer.say(&Frame::Peers((part * 200..part * 200 + 200).map(invented).collect()));
    }
    let mouth = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let head = (*stage.origin.head()).clone();
    for n in 0..500 {
        let node = NodeId(1 << 40 | n);
        let welcome = Welcome { node, port: 9, origin: true, head: head.clone(), peers: Vec::new() };
        mouth.send_to(&Datagram::Peers(Box::new(welcome)).encode(), (Ipv4Addr::LOCALHOST, port)).unwrap();
    }
    let done = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(std::fs::read_dir("/proc/self/fd").unwrap().count());
                std::thread::sleep(Duration::from_millis(2));
            }
            most
        });
        let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| stage.must_read(PROMPT)));
        std::thread::sleep(Duration::from_millis(500));
        done.store(true, Ordering::Relaxed);
        read.unwrap();
        watch.join().unwrap()
    });
    assert!(most < 200, "{most} descriptors");
    stage.wait_for("the origin is not crowded out", || stage.reader.snapshot().peers.iter().any(|peer| peer.origin));
}

// ---- the stage

/// An origin and a reader that has found it, on loopback.
struct Stage {
    origin: Client,
    reader: Client,
    object: ObjectId,
    bytes: Arc<Vec<u8>>,
    net: NetSettings,
    _disk: Arc<tempfile::TempDir>,
    /// Memory and time are measured: one test at a time.
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Stage {
    fn new() -> Stage {
        static TURN: Mutex<()> = Mutex::new(());
        static PLACE: AtomicU16 = AtomicU16::new(0);
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        log();
        // Below the ports that connections go out from; other runs of this test have other places.
        let place = (std::process::id() as u16).wrapping_mul(40).wrapping_add(PLACE.fetch_add(1, Ordering::Relaxed));
        let net = NetSettings {
            port: Some(20_000 + place % 780 * 16),
            interfaces: vec!["lo".to_owned()],
            ..NetSettings::default()
        };
        let disk = tempfile::tempdir().unwrap();
        let root = disk.path().join("tree");
        std::fs::create_dir(&root).unwrap();
        let mut bytes = vec![0; SIZE];
        fastrand::Rng::with_seed(1).fill(&mut bytes);
        std::fs::write(root.join("f"), &bytes).unwrap();
        // A file is signed when it has settled.
        let old = std::time::SystemTime::now() - Duration::from_secs(60);
        std::fs::File::options().write(true).open(root.join("f")).unwrap().set_modified(old).unwrap();
        let state = StateDir::at(disk.path().join("state")).unwrap();
        let key = state.key().unwrap();
        let tree = Tree::open(&root, "images".parse().unwrap(), &state, key).unwrap();
        let origin = driver::serve(Arc::new(tree), &net, &CacheSettings { budget_bytes: BUDGET }).unwrap();
        let (reader, object) = reader(&net);
        Stage { origin, reader, object, bytes: Arc::new(bytes), net, _disk: Arc::new(disk), _turn: Some(turn) }
    }

    /// The same with another reader, that remembers nothing.
    fn again(&self) -> Stage {
        let (reader, object) = reader(&self.net);
        let (origin, bytes, net, disk) =
            (self.origin.clone(), self.bytes.clone(), self.net.clone(), self._disk.clone());
        Stage { origin, reader, object, bytes, net, _disk: disk, _turn: None }
    }

    fn must_read(&self, limit: Duration) {
        let begin = Instant::now();
        let files = Embedded::new(self.reader.clone());
        let read = runtime().block_on(async {
            let mut read = Vec::new();
            let cat = tokio::time::timeout(limit, files.cat("f", &mut read)).await;
            (cat.is_ok_and(|cat| cat.is_ok()), read)
        });
        let (whole, read) = read;
        assert!(self.bytes.starts_with(&read), "wrong bytes among the first {}", read.len());
        let counters = self.reader.snapshot().counters;
        assert!(
            whole && read.len() == SIZE,
            "{} of {SIZE} bytes after {:?}: {counters:?}",
            read.len(),
            begin.elapsed()
        );
    }

    /// A peer that tells origin and reader that it has everything, offers it to the reader, and answers with `act`.
    fn liar(&self, node: u64, mut act: impl FnMut(&mut Mouth, Frame) + Send + 'static) -> Talker {
        let claim = State { full: true, room: 0, taken: self.all(), ..State::default() };
        let mut to_origin = self.greet(self.origin.snapshot().port, node);
        to_origin.say(&Frame::State(claim.clone()));
        let mut to_reader = self.greet(self.reader.snapshot().port, node);
        to_reader.say(&Frame::State(claim));
        self.wait_for("the liar is a neighbour", || self.has_neighbour());
        let idle = State::default();
        // Claims alone are not believed: whenever the reader says something, it is offered runs all over the file.
        let (object, mut number) = (self.object, 0);
        let mut random = fastrand::Rng::with_seed(node);
        let offering = move |mouth: &mut Mouth, frame: Frame| {
            number += 1;
            let mut run = || {
                let segment = random.u32(0..blocks_of(SIZE as u64) / BLOCKS_PER_SEGMENT);
                Run { object, first: segment * BLOCKS_PER_SEGMENT + random.u32(0..8) * 8, count: 8 }
            };
            let runs = (0..8).map(|_| run()).collect();
            if number < 500 && matches!(frame, Frame::State(_) | Frame::Decline { .. }) {
                mouth.say(&Frame::Offer { id: number, runs });
            }
            act(mouth, frame);
        };
        let mut talker = Talker::start(to_reader, offering, idle.clone());
        talker.beside = Some(Box::new(Talker::start(to_origin, |_, _| {}, idle)));
        talker
    }

    /// A connection whose two ends have greeted.
    fn greet(&self, port: u16, node: u64) -> Mouth {
        Mouth::greet(at(port), self.hello(node))
    }

    fn hello(&self, node: u64) -> Hello {
        let head: Arc<TreeHead> = self.origin.head();
        let tree = head.name.clone();
        Hello { node: NodeId(node), origin: false, port: 9, sequence: head.sequence, key: head.key, tree }
    }

    /// All of the file, by chunks.
    fn all(&self) -> Vec<Run> {
        let blocks = blocks_of(SIZE as u64);
        let starts = (0..blocks).step_by(BLOCKS_PER_CHUNK as usize);
        starts.map(|first| Run { object: self.object, first, count: BLOCKS_PER_CHUNK.min(blocks - first) }).collect()
    }

    fn has_neighbour(&self) -> bool {
        self.reader.snapshot().peers.iter().any(|peer| !peer.origin)
    }

    fn counter(&self, name: &str) -> u64 {
        counter(&self.reader, name)
    }

    fn must_have_refused(&self, who: &impl std::fmt::Display, why: &str) {
        let who = who.to_string();
        let says = |line: &str| line.contains(&who) && line.contains(why) && line.contains("WARN");
        self.wait_for(&format!("a warning that names {who} and its {why}"), || logged().lines().any(says));
        self.wait_for("the liar is counted", || self.counter("refused_peers") > 0);
        self.wait_for("its link ends", || !self.has_neighbour());
    }

    /// Whoever comes back under the same name is not let in.
    fn must_avoid(&self, node: u64) {
        let mut back = self.greet(self.reader.snapshot().port, node);
        assert!(back.closes(PROMPT), "a liar is let in again");
    }

    fn wait_for(&self, what: &str, mut there: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !there() {
            assert!(begin.elapsed() < PATIENT, "waited in vain: {what}; {:?}", self.reader.snapshot());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.reader.stop();
        if self._turn.is_some() {
            self.origin.stop();
            assert!(std::thread::panicking() || !logged().contains("panicked"), "an event loop panicked");
        }
    }
}

/// A node that has found the tree, its origin and the file, and has read nothing of it.
fn reader(net: &NetSettings) -> (Client, ObjectId) {
    let found = discover(net, None, PATIENT).unwrap();
    let reader = driver::join(found, net, &CacheSettings { budget_bytes: BUDGET }).unwrap();
    let entry = runtime().block_on(Embedded::new(reader.clone()).entry("f", true)).unwrap();
    let Kind::File { object } = *entry.row.kind() else { panic!("f is a file") };
    (reader, object)
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn counter(node: &Client, name: &str) -> u64 {
    let counters = node.snapshot().counters;
    counters.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no counter {name}")).1
}

/// Everything that nodes log in this process, since its start.
fn log() -> &'static Arc<Mutex<Vec<u8>>> {
    static LOG: std::sync::OnceLock<Arc<Mutex<Vec<u8>>>> = std::sync::OnceLock::new();
    LOG.get_or_init(|| {
        let log = Arc::new(Mutex::new(Vec::new()));
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::INFO)
            .with_writer(Mutex::new(Shared(log.clone())))
            .init();
        log
    })
}

fn logged() -> String {
    String::from_utf8_lossy(&log().lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}

struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Resident memory of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
