//! Whom a node links itself to: those who are at the same place of the tree, and in the same rack.

use super::*;

/// Where somebody is who started long before.
const ELSEWHERE: u64 = 100_000;

impl Bench {
    /// Neighbours speak, and time passes.
    fn speak(&mut self, links: &[(LinkId, u64)], us: u64) -> Vec<Output> {
        let (end, mut all) = (self.now + us, Vec::new());
        while self.now < end {
            for (link, position) in links {
                let state = State { full: true, room: 16, position: *position, ..State::default() };
                all.extend(self.frame(*link, Frame::State(state)));
            }
            all.extend(self.wait(50_000));
        }
        all
    }

    /// Takes up the connections that were asked for; who was dialled.
    fn dialled(&mut self, outputs: &[Output], own: [u8; 4]) -> Vec<SocketAddr> {
        let connects: Vec<(LinkId, SocketAddr)> = outputs
            .iter()
            .filter_map(|output| match output {
                Output::Connect { link, addr } => Some((*link, *addr)),
                _ => None,
            })
            .collect();
        for (link, addr) in &connects {
            let IpAddr::V4(ip) = addr.ip() else { panic!("all addresses here are of IPv4") };
            self.give(Input::Connected { link: *link, own: own.into() });
            self.frame(*link, Frame::Hello(hello(u32::from(ip) as u64, false)));
        }
        connects.into_iter().map(|(_, addr)| addr).collect()
    }
}

fn peer(ip: [u8; 4]) -> Peer {
    Peer { node: NodeId(u32::from_be_bytes(ip) as u64), addr: (ip, 19024).into() }
}

fn closed(outputs: &[Output]) -> Vec<LinkId> {
    outputs.iter().filter_map(|output| if let Output::Close { link } = output { Some(*link) } else { None }).collect()
}

/// A thousand readers started over half a minute: nearly everybody whom a late one had heard of was far ahead of it, and
/// it got from the origin what those had dropped.
#[test]
fn who_is_far_ahead_makes_room_for_those_whom_the_origin_names() {
    let mut bench = Bench::new();
    let origin = bench.link(2, true, vec![]);
    let mut links: Vec<(LinkId, u64)> = (10..18).map(|node| (bench.link(node, false, vec![]), ELSEWHERE)).collect();
    bench.speak(&links, 700_000);
    bench.read_on();
    let outputs = bench.speak(&links, 100_000);
    let asks = |output: &Output| matches!(output, Output::Send { link, frame: Frame::Ask { .. } } if *link == origin);
    assert!(outputs.iter().any(asks), "the origin is asked for others");
    assert_eq!(closed(&outputs), [], "nobody is left before others are there");
    let mut outputs = bench.frame(links[0].0, Frame::Peers(vec![peer([10, 0, 1, 1])]));
    outputs.extend(bench.speak(&links, 100_000));
    assert_eq!(bench.dialled(&outputs, [10, 0, 0, 1]), [], "what others name may be as far away");
    outputs = bench.frame(origin, Frame::Peers(vec![peer([10, 0, 1, 2])]));
    outputs.extend(bench.speak(&links, 100_000));
    assert_eq!(bench.dialled(&outputs, [10, 0, 0, 1]), [([10, 0, 1, 2], 19024).into()]);
    let near = outputs.iter().find_map(|o| if let Output::Connect { link, .. } = o { Some(*link) } else { None });
    links.push((near.expect("it was dialled"), 0));
    let outputs = bench.speak(&links, 3_000_000);
    let left = closed(&outputs);
    assert_eq!(left.len(), 1, "one came and one goes: {left:?}");
    assert!(links[..8].iter().any(|(link, _)| *link == left[0]), "one of those far ahead");
}

#[test]
fn most_links_stay_in_the_rack() {
    let racks = |own: [u8; 4]| {
        let mut bench = Bench::new();
        let origin = bench.link(2, true, vec![]);
        let mut first = bench.frame(origin, Frame::Peers(vec![peer([10, 1, 0, 200])]));
        first.extend(bench.wait(100_000));
        bench.dialled(&first, own);
        let inside = (1..=20).map(|host| peer([10, 1, 0, host]));
        let peers: Vec<Peer> = inside.chain((1..=20).map(|host| peer([10, 1, 1, host]))).collect();
        let mut outputs = bench.frame(origin, Frame::Peers(peers));
        let mut dialled = Vec::new();
        for _ in 0..20 {
            outputs.extend(bench.wait(50_000));
            dialled.extend(bench.dialled(&outputs, own));
            outputs.clear();
        }
        assert!(dialled.len() >= 7, "{dialled:?}");
        dialled.iter().filter(|addr| addr.to_string().starts_with("10.1.1.")).count()
    };
    assert!((1..=3).contains(&racks([10, 1, 0, 250])), "three lead to the other rack at the most");
    assert!(racks([10, 9, 0, 1]) > 3, "whoever has nobody in its rack takes others");
}
