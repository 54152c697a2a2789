//! A reader whose neighbours read elsewhere, or have read to the end.

use super::*;
use crate::wire::datagram::Peer;

/// Time passes in which all neighbours say that they live.
fn live(bench: &mut Bench, links: &[LinkId], milliseconds: u64) -> Vec<Output> {
    let mut outputs = Vec::new();
    for _ in 0..milliseconds / 100 {
        outputs.extend(bench.wait(100_000 - 1_000 * links.len() as u64));
        outputs.extend(links.iter().flat_map(|link| bench.frame(*link, Frame::State(State::default()))));
    }
    outputs
}

/// A reader among ten neighbours who want one thing and have another.
fn among(window: &[Run], taken: &[Run]) -> (Bench, LinkId, Vec<Output>) {
    let mut bench = Bench::new();
    let origin = bench.link(2, true, vec![]);
    let links: Vec<LinkId> = (10..20).map(|node| bench.link(node, false, window.to_vec())).collect();
    for link in &links {
        bench.frame(*link, Frame::State(State { taken: taken.to_vec(), ..State::default() }));
    }
    let links: Vec<LinkId> = links.into_iter().chain([origin]).collect();
    (20..60).for_each(|node| bench.node.learn_peer(NodeId(node), ([10, 0, 1, node as u8], 19024).into(), false));
    live(&mut bench, &links, 1_000);
    bench.read_on();
    bench.drain();
    let outputs = live(&mut bench, &links, 3_000);
    (bench, origin, outputs)
}

fn closed(outputs: &[Output]) -> usize {
    outputs.iter().filter(|output| matches!(output, Output::Close { .. })).count()
}

fn dialled(outputs: &[Output]) -> Vec<SocketAddr> {
    let dials = outputs.iter().filter_map(|output| match output {
        Output::Connect { addr, .. } => Some(*addr),
        _ => None,
    });
    dials.collect()
}

/// Of a thousand readers a hundred at a tenth of the rate were left by the fast ones in the first tenth of the file. Their
/// neighbours had read to the end; each of the hundred had nearly all from the origin, and took three times as long.
#[test]
fn a_reader_whose_neighbours_are_of_no_use_turns_to_those_whom_the_origin_names() {
    let (mut bench, origin, outputs) = among(&[], &[run(4000, 2)]);
    assert_eq!(closed(&outputs), 6, "some stay: what they hold may be wanted later");
    let asks = |output: &Output| matches!(output, Output::Send { link, frame: Frame::Ask { .. } } if *link == origin);
    assert!(outputs.iter().any(asks), "{outputs:?}");
    assert_eq!(dialled(&outputs), [], "of those it knows hardly anybody has it");
    let peer = |node: u64| Peer { node: NodeId(node), addr: ([10, 0, 2, node as u8], 19024).into() };
    let stranger = bench.link(9, false, vec![run(0, 1024)]);
    let mut named_by = |link, node| {
        let mut outputs = bench.frame(link, Frame::Peers(vec![peer(node)]));
        outputs.extend(bench.wait(50_000));
        dialled(&outputs)
    };
    assert_eq!(named_by(stranger, 70), [], "only an origin knows who has");
    assert_eq!(named_by(origin, 80), [peer(80).addr]);
}

#[test]
fn neighbours_who_read_or_have_what_is_near_stay() {
    for (window, taken) in [(vec![run(500, 1024)], vec![]), (vec![], vec![run(100, 2)]), (vec![], vec![run(1023, 1)])] {
        let (_, _, outputs) = among(&window, &taken);
        assert_eq!((closed(&outputs), dialled(&outputs)), (0, vec![]), "{window:?} {taken:?}");
    }
}

#[test]
fn those_are_named_first_who_have_what_is_wanted_and_of_them_who_reads() {
    let mut bench = Bench::new();
    let asks = bench.link(3, false, vec![run(0, 1024)]);
    for (node, window, taken) in [
        (4, vec![], vec![]),
        (5, vec![run(600, 1024)], vec![run(500, 8)]),
        (6, vec![], vec![run(500, 8)]),
        (7, vec![run(4000, 1024)], vec![run(3900, 8)]),
    ] {
        let link = bench.link(node, false, window);
        bench.frame(link, Frame::State(State { taken, ..State::default() }));
    }
    for expected in [&[5][..], &[5, 6]] {
        let outputs = bench.frame(asks, Frame::Ask { count: expected.len() as u8 });
        let named = outputs.iter().find_map(|output| match output {
            Output::Send { frame: Frame::Peers(peers), .. } => Some(peers.iter().map(|peer| peer.node.0).collect()),
            _ => None,
        });
        assert_eq!(named, Some(expected.to_vec()));
    }
}
