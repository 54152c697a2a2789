//! Mounts on a network with a host that means ill: it keeps a connection for each way of lying to the origin and to every
//! reader, and floods both with datagrams. What is read is right, in time, in the memory that was given.

mod lab;
mod mouth;

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use lab::{Lab, Link, samples, swarm};
use mouth::ill::{Ill, Scene};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 48 * MIB;
const LONG: Duration = Duration::from_secs(60);
/// What a reader's process may take beside its cache.
const PROGRAM: u64 = 48 * MIB;

#[test]
fn a_host_that_lies_in_every_way_harms_no_mount() {
    let Some(lab) = Lab::shared(5, Link::mbit(100)) else { return };
    let tree = lab.scratch().join("tree");
    std::fs::create_dir(&tree).unwrap();
    samples::random_file(&tree.join("random"), SIZE, 11);
    let expected = samples::digest_of(&tree.join("random"));
    let origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    let mounts: Vec<_> = (1..4).map(|host| swarm::mount(lab.host(host), "images", &["--cache=32M"])).collect();
    let victims: Vec<SocketAddr> = (0..4).map(|host| (lab.host(host).address(), 19024).into()).collect();
    let (stop, ready) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| lab.host(4).inside(|| lie(&victims, &ready, &stop)));
        let _stop = SetWhenDropped(&stop);
        swarm::wait_until(LONG, "the liars have greeted", || ready.load(Ordering::Relaxed).then_some(()));
        let reading: Vec<_> = (1..4).map(|host| swarm::read(lab.host(host), "random", &[])).collect();
        for read in reading {
            read.finish(LONG).must_be(expected);
        }
    });
    for node in mounts.iter().chain([&origin]) {
        assert!(!node.log().contains("panicked"), "{}", node.log());
        let peak = swarm::memory(node.pid(), "VmHWM");
        let budget = if std::ptr::eq(node, &origin) { 256 * MIB } else { 32 * MIB };
        assert!(peak < budget + PROGRAM, "{} MiB at most", peak / MIB);
    }
    let status = swarm::swarmfs(lab.host(1), &["status", "--json"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    for name in ["refused_peers", "false_origins", "stalled_transfers"] {
        let count = status.split(&format!("\"{name}\":")).nth(1).and_then(|rest| rest.trim().split([',', '}']).next());
        let count = count.and_then(|count| count.trim().parse::<u64>().ok());
        assert!(count.is_some_and(|count| count > 0), "{name} is not counted: {status}");
    }
}

struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Lies to everybody until it is over.
fn lie(victims: &[SocketAddr], ready: &AtomicBool, stop: &AtomicBool) {
    let scene = Scene::scout(victims.to_vec(), "random");
    // A reader takes four connections of one address: the last way of lying is one too many.
    let ills = [Ill::FalseOrigin, Ill::WrongBlocks, Ill::WrongHeaders, Ill::Idle, Ill::Drip];
    let met = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (index, ill) in ills.into_iter().enumerate() {
            let (scene, met) = (&scene, &met);
            scope.spawn(move || scene.act(ill, false, index as u64 * 1000, met, stop));
            swarm::wait_until(LONG, "everybody is met", || (met.load(Ordering::Relaxed) > index).then_some(()));
        }
        scope.spawn(|| scene.act(Ill::Flap, false, 10_000, &met, stop));
        ready.store(true, Ordering::Relaxed);
        let mouth = UdpSocket::bind("0.0.0.0:0").unwrap();
        for n in 0.. {
            for victim in victims {
                let _ = mouth.send_to(&[n as u8; 1200], victim);
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}
