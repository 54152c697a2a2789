//! The legacy protocol on a network: what originals would not survive never passes, nobody's requests can be made to harm
//! others, and native readers hardly notice.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

mod lab;
mod legacy;

use lab::samples::{self, Digest};
use lab::swarm::{self, MOUNT, complaint};
use lab::{Host, Lab, Link};
use legacy::client::Client;
use legacy::liar::{Liar, Lie};
use legacy::server::Server;
use legacy::watch::{Limits, Watch};

const SECOND: Duration = Duration::from_secs(1);
const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(120);

/// A tree of one random file.
fn tree(lab: &Lab, len: u64) -> (PathBuf, Digest) {
    let path = lab.scratch().join("tree");
    std::fs::create_dir(&path).unwrap();
    samples::random_file(&path.join("random"), len, 5);
    samples::random_file(&path.join("small"), 1000, 6);
    let digest = samples::digest_of(&path.join("random"));
    (path, digest)
}

/// What an original client gets, and how long it takes.
fn get(host: &Host, client: &Client) -> (Digest, Duration) {
    host.inside(|| {
        let (mut hasher, began) = (blake3::Hasher::new(), Instant::now());
        let len = client.get("random", LONG, |bytes| {
            hasher.update(bytes);
        });
        let len = len.unwrap_or_else(|death| panic!("the client died of {death}"));
        (Digest { len, hash: hasher.finalize() }, began.elapsed())
    })
}

fn xcat(host: &Host, name: &str, more: &[&str]) -> Digest {
    let args = [&["xcat", name], more].concat();
    let output = host.run(LONG, swarm::program().to_str().unwrap(), &args);
    assert!(output.status.success(), "{}", complaint(&output));
    samples::digest(&output.stdout[..]).unwrap()
}

#[test]
fn nothing_that_kills_an_original_passes_in_a_run_of_everything() {
    let Some(lab) = Lab::shared(6, Link::mbit(400)) else { return };
    let (path, digest) = tree(&lab, 40 * MIB);
    let watch = lab.at_switch(Watch::start);
    // Native and legacy at once.
    let mut origin = swarm::serve(lab.origin(), &path, "images", &[]);
    let mounts = [1, 2].map(|host| swarm::mount(lab.host(host), "images", &["--cache", "128M"]));
    std::thread::scope(|scope| {
        for host in [1, 2] {
            let host = lab.host(host);
            scope.spawn(move || swarm::read(host, "random", &[]).finish(LONG).must_be(digest));
        }
        for host in [3, 4] {
            let host = lab.host(host);
            scope.spawn(move || {
                let client = host.inside(|| Client::start(true));
                assert_eq!(get(host, &client).0, digest);
                assert_eq!(client.stop(), None);
            });
        }
        let host = lab.host(5);
        scope.spawn(move || assert_eq!(xcat(host, "random", &[]), digest));
    });
    origin.kill();
    let client = lab.host(3).inside(|| Client::start(false));
    assert_eq!(get(lab.host(3), &client).0, digest, "by the mounts alone");
    assert_eq!(client.stop(), None);
    drop(mounts);
    // Legacy alone.
    let server = lab.origin().inside(|| Server::start(&path));
    let helper = lab.host(3).inside(|| Client::start(true));
    assert_eq!(get(lab.host(3), &helper).0, digest);
    assert_eq!(xcat(lab.host(4), "random", &["--linger", "1s"]), digest);
    let mount = swarm::mount(lab.host(5), "old", &["-o", "xcat"]);
    swarm::read(lab.host(5), "random", &[]).finish(LONG).must_be(digest);
    drop(mount);
    assert_eq!((server.stop(), helper.stop()), (None, None));
    // A limit that makes a whole chunk take longer than an original waits.
    let _origin = swarm::serve(lab.origin(), &path, "images", &["--upload", "1M"]);
    let client = lab.host(2).inside(|| Client::start(false));
    lab.host(2).inside(|| {
        client.get("random", Duration::from_secs(1), |_| {}).unwrap_err();
        assert_eq!(client.get("small", LONG, |_| {}), Ok(1000));
    });
    assert_eq!(client.stop(), None);
    let seen = watch.stop();
    // What the original client does itself is not ours to judge: it helps out with headers alone.
    let originals = [3, 4].map(|host| format!("{} to ", lab.host(host).address()));
    // Nor is what `xcat` and a mount break off when they end: an original takes an early end as it takes those of its kind.
    let ended = format!("{} to ", lab.host(5).address());
    let broken_off = |what: &str| what.starts_with(&ended) && what.contains("bytes instead of");
    let own = |what: &str| originals.iter().any(|original| what.starts_with(original));
    let deadly: Vec<&String> = seen.deadly.iter().filter(|what| !own(what) && !broken_off(what)).collect();
    assert!(deadly.is_empty(), "{deadly:#?}");
    // Each of the two was sending to hosts 3 and 4 at the most.
    assert!(seen.deadly.iter().filter(|what| broken_off(what)).count() <= 4, "{:#?}", seen.deadly);
    assert!(seen.requests > 20 && seen.answers > 15, "{} requests, {} answers", seen.requests, seen.answers);
}

/// What must not be seen in the test above, seen.
#[test]
fn the_watch_sees_each_thing_that_an_original_does_not_survive() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let whom = lab.host(1).address();
    let listener = lab.host(1).inside(|| TcpListener::bind((whom, legacy::PORT)).unwrap());
    let tenth = Duration::from_millis(100);
    let watch = lab.at_switch(|| Watch::with(Limits { header: 5 * tenth, whole: 10 * tenth }));
    let ways: [(&[u8], Duration, &[u8]); 7] = [
        (b"a@0@0000000F00000005\x01\x02\x03\x04\x05", Duration::ZERO, b""),
        (b"a@0@0000000001000001", Duration::ZERO, b""),
        (b"a@0@0000000000000005", Duration::ZERO, b"abc"),
        (b"nothing of the kind", Duration::ZERO, b""),
        (b"", Duration::ZERO, b""),
        (b"", 8 * tenth, b"a@0@0000000000000000"),
        (b"a@0@0000000000000003", 12 * tenth, b"abc"),
    ];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in ways {
                let (mut stream, _) = listener.accept().unwrap();
                std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
            }
        });
        lab.origin().inside(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            for datagram in [&b""[..], b"a\xff@0", b"hello", b"a@0"] {
                socket.send_to(datagram, (whom, legacy::PORT)).unwrap();
            }
            let sending = ways.map(|(first, pause, then)| {
                let mut stream = TcpStream::connect((whom, legacy::PORT)).unwrap();
                std::thread::spawn(move || {
                    stream.write_all(first).unwrap();
                    std::thread::sleep(pause);
                    stream.write_all(then).unwrap();
                })
            });
            sending.into_iter().for_each(|sent| sent.join().unwrap());
        });
    });
    // The last of them arrives a moment later.
    std::thread::sleep(tenth);
    let seen = watch.stop();
    let mut missing = vec![
        "an empty datagram",
        "no UTF-8",
        "no request",
        "16777217 bytes announced",
        "bytes instead of",
        "no header: nothing",
        "without a header",
        "a late header",
        "a late end",
    ];
    for found in &seen.deadly {
        missing.retain(|what| !found.contains(what));
    }
    let whole: Vec<&String> = seen.deadly.iter().filter(|found| found.contains(" to ")).collect();
    assert_eq!((missing, whole.len(), seen.answers), (vec![], 6, 1), "{:#?}", seen.deadly);
}

/// Requests with a forged source, as fast as asked for, until it is dropped.
struct Forger {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Forger {
    /// In the network of the calling thread. Requests come from each of these addresses in turn, a millisecond's worth at
    /// a time.
    fn start(from: Vec<Ipv4Addr>, requests: Vec<Vec<u8>>, per_ms: usize) -> Forger {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
        socket.set_header_included_v4(true).unwrap();
        socket.set_broadcast(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let to = SocketAddr::from((Ipv4Addr::BROADCAST, 0)).into();
            let (mut sent, began) = (0u64, Instant::now());
            while !stopped.load(Ordering::SeqCst) {
                for _ in 0..per_ms {
                    let from = from[sent as usize % from.len()];
                    let packet = forged(from, &requests[sent as usize % requests.len()]);
                    // A full queue loses some.
                    let _ = socket.send_to(&packet, &to);
                    sent += 1;
                }
                let due = Duration::from_micros(sent * 1000 / per_ms as u64);
                std::thread::sleep(due.saturating_sub(began.elapsed()));
            }
            sent
        });
        Forger { stop, thread: Some(thread) }
    }

    fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

/// An IPv4 packet to everybody. The kernel fills in its length, number and sum; UDP does without one.
fn forged(from: Ipv4Addr, request: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(from.octets());
    packet.extend(Ipv4Addr::BROADCAST.octets());
    for number in [40_000, legacy::PORT, 8 + request.len() as u16, 0] {
        packet.extend(number.to_be_bytes());
    }
    packet.extend(request);
    packet
}

#[test]
fn forged_requests_reach_nobody_more_than_once_a_second_and_cost_readers_nothing() {
    let Some(lab) = Lab::timed(4, Link::mbit(100)) else { return };
    let (path, digest) = tree(&lab, 40 * MIB);
    let _origin = swarm::serve(lab.origin(), &path, "images", &[]);
    let _mount = swarm::mount(lab.host(1), "images", &["--cache", "32M"]);
    let read = || {
        lab.host(1).sh(LONG, &format!("echo 3 > /proc/sys/vm/drop_caches; cat {MOUNT}/small > /dev/null"));
        let read = swarm::read(lab.host(1), "random", &["iflag=nocache"]).finish(LONG);
        read.must_be(digest);
        read.took
    };
    let quiet = read();
    let victim = lab.host(2).address();
    // Somebody who is there and listens for nothing, and many who are not there.
    let from = std::iter::once(victim).chain((100..220).map(|last| Ipv4Addr::new(10, 77, 0, last))).collect();
    let mut requests: Vec<Vec<u8>> = (0..6).map(|chunk| format!("random@{chunk}").into_bytes()).collect();
    requests.extend([&b"../etc/passwd@0"[..], b"nothing@0", b"random@x"].map(<[u8]>::to_vec));
    let watch = lab.at_switch(Watch::start);
    let began = Instant::now();
    let chunk = requests[..1].to_vec();
    let forger = lab.host(3).inside(|| Forger::start(from, requests, 10));
    let noisy = read();
    let sent = forger.stop();
    let took = began.elapsed();
    // Nobody is disturbed now: the one who is there, and asks for one thing, is connected to.
    let forger = lab.host(3).inside(|| Forger::start(vec![victim], chunk, 10));
    swarm::wait_until(LONG, "three seconds of forged requests", || (began.elapsed() > took + 3 * SECOND).then_some(()));
    forger.stop();
    let seen = watch.stop();
    let rate = sent as f64 / took.as_secs_f64();
    let most = seen.connections.values().map(|times| most_within(times, Duration::from_millis(900))).max();
    let counts: BTreeMap<_, _> = seen.connections.iter().map(|(to, times)| (to, times.len())).collect();
    println!("{rate:.0} a second: {noisy:?} instead of {quiet:?}; {most:?} connections within a second: {counts:?}");
    assert!(rate > 5_000.0, "{rate} a second");
    assert!((1..=2).contains(&most.unwrap_or(0)), "each of origin and mount may connect: {counts:?}");
    assert!(noisy < quiet.mul_f64(1.25), "{noisy:?} instead of {quiet:?}");
}

/// The most of these moments that lie within so long of each other.
fn most_within(times: &[Instant], span: Duration) -> usize {
    times
        .iter()
        .map(|first| times.iter().filter(|at| **at >= *first && **at < *first + span).count())
        .max()
        .unwrap_or(0)
}

/// One host of each kind, who all answer everybody before the server does. What is wrong only beside the truth is said of
/// a small file: the server reads and sums a chunk for each repetition, which takes a busy machine its time.
#[test]
fn liars_cost_time_and_no_wrong_byte_is_written() {
    let Some(lab) = Lab::shared(3 + Lie::ALL.len(), Link::unlimited()) else { return };
    let (path, digest) = tree(&lab, 33 * MIB);
    let small = samples::digest_of(&path.join("small"));
    let server = lab.origin().inside(|| Server::start(&path));
    let liars = lab.hosts()[3..].iter().zip(Lie::ALL);
    let liars = liars.map(|(host, lie)| {
        host.inside(|| Liar::start(lie, move |request| !lie.is_whole() || request.starts_with("small@")))
    });
    let liars: Vec<_> = liars.collect();
    let mount = swarm::mount(lab.host(2), "old", &["-o", "xcat"]);
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(xcat(lab.host(1), "random", &[]), digest));
        scope.spawn(|| must_show(lab.host(2), "random", digest));
    });
    assert_eq!(xcat(lab.host(1), "small", &[]), small);
    must_show(lab.host(2), "small", small);
    assert!(mount.log().contains("contradict each other"), "{}", mount.log());
    let told: Vec<usize> = liars.into_iter().map(Liar::stop).collect();
    assert!(told.iter().all(|told| *told > 1), "{told:?} lies of each kind");
    assert_eq!(server.stop(), None);
}

fn must_show(host: &Host, name: &str, digest: Digest) {
    assert_eq!(host.sh(LONG, &format!("stat -c %s {MOUNT}/{name}")).trim(), digest.len.to_string(), "{name}");
    swarm::read(host, name, &[]).finish(LONG).must_be(digest);
}

/// Somebody says of a file that is being read that it ends where it does not, and only he answers.
#[test]
fn a_reader_waits_for_who_agrees_with_the_size_that_a_file_had() {
    let Some(lab) = Lab::shared(3, Link::unlimited()) else { return };
    let (path, _) = tree(&lab, 60 * MIB);
    let server = lab.origin().inside(|| Server::start(&path));
    let host = lab.host(1);
    let mount = swarm::mount(host, "old", &["-o", "xcat", "--cache", "32M"]);
    host.sh(LONG, &format!("stat {MOUNT}/random"));
    assert_eq!(server.stop(), None);
    let liar = lab.host(2).inside(|| Liar::start(Lie::Short, |request| !request.ends_with("@0")));
    let server = std::thread::scope(|scope| {
        let (from, file) = (20 * MIB, path.join("random"));
        let compare = format!("dd if={MOUNT}/random bs=1M skip=20 status=none | cmp -i 0:{from} - {}", file.display());
        scope.spawn(move || host.sh(LONG, &compare));
        swarm::wait_until(LONG, "the size is contradicted", || {
            mount.log().contains("size is contradicted").then_some(())
        });
        lab.origin().inside(|| Server::start(&path))
    });
    assert!(liar.stop() > 0);
    assert_eq!(server.stop(), None);
}

#[test]
fn a_file_whose_size_changes_is_opened_anew_and_no_reader_gets_two_versions_of_it() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let (path, _) = tree(&lab, 1);
    let file = path.join("random");
    let resize = |mib: u64| std::fs::File::options().write(true).open(&file).unwrap().set_len(mib * MIB).unwrap();
    resize(200);
    let server = lab.origin().inside(|| Server::start(&path));
    let host = lab.host(1);
    let _mount = swarm::mount(host, "old", &["-o", "xcat", "--cache", "64M"]);
    let (more, less) = (file.display(), "dd bs=1M count=1 status=none of=/dev/null");
    let said = host.sh(
        LONG,
        &format!(
            "exec 3< {MOUNT}/random; {less} <&3; truncate -s 20M {more}
             LC_ALL=C {less} skip=180 <&3 2>&1 && echo read || true"
        ),
    );
    assert!(said.contains("Stale file handle"), "{said}");
    swarm::wait_until(LONG, "the new size", || {
        let size = host.sh(LONG, &format!("stat -c %s {MOUNT}/random"));
        (size.trim() == (20 * MIB).to_string()).then_some(())
    });
    assert_eq!(host.sh(LONG, &format!("wc -c < {MOUNT}/random")).trim(), (20 * MIB).to_string());
    assert_eq!(server.stop(), None);
}

/// What the originals should cost the mounts in time is a tenth at most; more is let pass, since the machine's own load is
/// in it.
#[test]
fn four_originals_take_two_copies_at_most_and_four_mounts_beside_them_hardly_notice() {
    let Some(lab) = Lab::timed(9, Link::mbit(100)) else { return };
    let (path, digest) = tree(&lab, 64 * MIB);
    let (mounts, clients): (Vec<&Host>, Vec<&Host>) =
        (lab.nodes()[..4].iter().collect(), lab.nodes()[4..].iter().collect());
    let start = || {
        let origin = swarm::serve(lab.origin(), &path, "images", &[]);
        let nodes: Vec<_> = mounts.iter().map(|host| swarm::mount(host, "images", &["--cache", "128M"])).collect();
        (origin, nodes)
    };
    let first = start();
    let alone = read_all(&mounts, digest);
    drop(first);
    let _second = start();
    let before = lab.sent_by(lab.origin());
    let (beside, slowest) = std::thread::scope(|scope| {
        let native = scope.spawn(|| read_all(&mounts, digest));
        let originals: Vec<_> = clients.iter().map(|host| scope.spawn(|| original(host, digest))).collect();
        let slowest = originals.into_iter().map(|original| original.join().unwrap()).max().unwrap();
        (native.join().unwrap(), slowest)
    });
    let copies = |bytes: u64| bytes as f64 / digest.len as f64;
    let (all, originals) = (copies(lab.sent_by(lab.origin()) - before), copies(legacy_bytes(lab.origin())));
    let ratio = beside.as_secs_f64() / alone.as_secs_f64();
    println!(
        "mounts {alone:?} alone and {beside:?} beside originals ({ratio:.3}), which took {slowest:?}; {all:.2} copies \
        left the origin, {originals:.2} of them for originals"
    );
    assert!(originals <= 2.0, "{originals:.2}");
    // Of originals the bytes are counted without TCP's headers, a twentieth more, and a link's with them. The mounts' own is
    // one copy and some headers.
    assert!(all <= 1.05 * originals + 1.1, "{all:.2}");
    assert!(ratio < 1.25, "{beside:?} instead of {alone:?}");
}

fn legacy_bytes(host: &Host) -> u64 {
    let status = swarm::swarmfs(host, &["status", "--json"]);
    let nodes: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    nodes[0]["counters"]["legacy_bytes"].as_u64().expect("it is counted")
}

/// Reads the file on all mounts at once; the time of the last.
fn read_all(mounts: &[&Host], digest: Digest) -> Duration {
    let readings: Vec<_> = mounts.iter().map(|host| swarm::read(host, "random", &[])).collect();
    let reads = readings.into_iter().map(|reading| {
        let read = reading.finish(LONG);
        read.must_be(digest);
        read.took
    });
    reads.max().unwrap()
}

fn original(host: &Host, digest: Digest) -> Duration {
    let client = host.inside(|| Client::start(true));
    let (got, took) = get(host, &client);
    assert_eq!(got, digest);
    assert_eq!(client.stop(), None);
    took
}
