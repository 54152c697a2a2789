//! Whom a node links itself to and sends to first where it is in one network of several.

use std::net::{IpAddr, Ipv4Addr};

use super::*;

const OWN: [u8; 4] = [10, 1, 0, 250];
const RACK: u8 = 24;
const FLAT: u8 = 16;

fn peer(ip: [u8; 4]) -> Peer {
    Peer { node: NodeId(u32::from_be_bytes(ip) as u64), addr: (ip, 19024).into() }
}

/// Eight in this node's /24, twenty in the next one.
fn named() -> Vec<Peer> {
    (1..=8).map(|host| peer([10, 1, 0, host])).chain((1..=20).map(|host| peer([10, 1, 1, host]))).collect()
}

fn mask(bits: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::MAX << (32 - bits))
}

fn crosses(addr: &SocketAddr) -> bool {
    addr.to_string().starts_with("10.1.1.")
}

impl Bench {
    /// Takes up the connections that were asked for, from a network of so many bits, or nothing where none is known; who
    /// was dialled.
    fn dialled(&mut self, outputs: &[Output], bits: Option<u8>) -> Vec<(LinkId, SocketAddr)> {
        let connects = outputs.iter().filter_map(|output| match output {
            Output::Connect { link, addr } => Some((*link, *addr)),
            _ => None,
        });
        let connects: Vec<(LinkId, SocketAddr)> = connects.collect();
        let subnet = bits.map(|bits| Subnet { address: OWN.into(), mask: mask(bits) });
        for (link, addr) in &connects {
            let IpAddr::V4(ip) = addr.ip() else { panic!("all addresses here are of IPv4") };
            self.give(Input::Connected { link: *link, subnet });
            self.frame(*link, Frame::Hello(hello(u32::from(ip) as u64, false)));
        }
        connects
    }

    /// A node that knows its network, and that an origin then named these to: whom it dialled of them.
    fn named(peers: Vec<Peer>, bits: Option<u8>) -> (Bench, Vec<(LinkId, SocketAddr)>) {
        let mut bench = Bench::new();
        let origin = bench.link(2, true, vec![]);
        let mut outputs = bench.frame(origin, Frame::Peers(vec![peer([10, 1, 0, 200])]));
        outputs.extend(bench.wait(100_000));
        assert_eq!(bench.dialled(&outputs, bits).len(), 1, "it is told of one, by which it learns its network");
        outputs = bench.frame(origin, Frame::Peers(peers));
        let mut dialled = Vec::new();
        for _ in 0..20 {
            outputs.extend(bench.wait(50_000));
            dialled.extend(bench.dialled(&outputs, bits));
            outputs.clear();
        }
        (bench, dialled)
    }
}

fn outside(dialled: &[(LinkId, SocketAddr)]) -> usize {
    dialled.iter().filter(|(_, addr)| crosses(addr)).count()
}

#[test]
fn most_links_stay_in_the_rack_and_some_lead_out_of_it() {
    let (bench, dialled) = Bench::named(named(), Some(RACK));
    assert!(dialled.len() >= 7, "{dialled:?}");
    assert_eq!(outside(&dialled), bench.node.policy.outside(0), "{dialled:?}");
}

/// A thousand machines in one /16 have all sorts of third numbers.
#[test]
fn on_a_flat_network_or_an_unknown_one_everybody_is_dialled_alike() {
    // So many that chance alone takes most from there.
    let peers: Vec<Peer> = named().into_iter().chain((21..=100).map(|host| peer([10, 1, 1, host]))).collect();
    let [flat, unknown] = [Some(FLAT), None].map(|bits| Bench::named(peers.clone(), bits).1);
    assert!(outside(&flat) > 3, "{flat:?}");
    assert_eq!(flat, unknown);
}

#[test]
fn whoever_has_few_in_its_rack_takes_others() {
    let few = named().into_iter().filter(|peer| crosses(&peer.addr) || peer.addr == ([10, 1, 0, 1], 19024).into());
    let (_, dialled) = Bench::named(few.collect(), Some(RACK));
    assert!(dialled.len() >= 7 && outside(&dialled) == dialled.len() - 1, "{dialled:?}");
}

/// Names cost nothing: who is named in the rack may not be there, and takes no place from those outside.
#[test]
fn names_of_nobody_in_the_rack_leave_the_links_that_lead_out_of_it() {
    let (mut bench, _) = Bench::named(vec![], Some(RACK));
    let liar = bench.link(3, false, vec![]);
    bench.frame(liar, Frame::Peers((1..=199).map(|host| peer([10, 1, 0, host])).collect()));
    let mut outputs = bench.frame(liar, Frame::Peers((1..=20).map(|host| peer([10, 1, 1, host])).collect()));
    outputs.extend(bench.wait(1_000_000));
    let tried = outputs.iter().filter(|output| matches!(output, Output::Connect { addr, .. } if crosses(addr)));
    assert_eq!(tried.count(), bench.node.policy.outside(0));
}

/// Whoever was offered something first, of one in this /24 that is so many blocks ahead and of one in another.
fn offered_first(bits: u8, ahead: u64) -> &'static str {
    let mut bench = Bench::new();
    let subnet = Subnet { address: [10, 0, 0, 250].into(), mask: mask(bits) };
    let origin = bench.link(2, true, vec![]);
    bench.give(Input::Connected { link: origin, subnet: Some(subnet) });
    let inside = bench.link(3, false, vec![]);
    let outside = bench.node.accept(([10, 0, 1, 4], 40_000).into(), Time(bench.now)).expect("there is room");
    bench.frame(outside, Frame::Hello(hello(4, false)));
    for (link, position) in [(inside, ahead), (outside, 0)] {
        let state = State { full: true, room: 16, position, added: vec![run(0, 1024)], ..State::default() };
        bench.frame(link, Frame::State(state));
    }
    bench.read_on();
    let outputs = bench.frame(origin, Frame::Offer { id: 7, runs: vec![run(0, 2)] });
    let first = outputs.iter().find_map(|output| match output {
        Output::Send { link, frame: Frame::Offer { .. } } => Some(*link),
        _ => None,
    });
    if first.expect("both want it") == inside { "inside" } else { "outside" }
}

#[test]
fn who_is_in_the_rack_is_offered_first_unless_it_is_far_ahead() {
    assert_eq!(offered_first(RACK, 100), "inside");
    assert_eq!(offered_first(RACK, 1_000), "outside", "it lacks 31 MiB more");
    assert_eq!(offered_first(FLAT, 100), "outside", "on a flat network nobody is");
}
