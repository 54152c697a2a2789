//! A reader whose neighbours read elsewhere, or have read to the end, or lack what comes next; and those who could help it.

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

/// Four readers came when all others were past the beginning. Their neighbours had much of what follows, so none looked for
/// those who had kept it; each piece was starved for in turn.
#[test]
fn a_reader_whom_all_its_neighbours_let_starve_asks_for_others_at_once() {
    let mut bench = Bench::new();
    let origin = bench.link(2, true, vec![]);
    let links: Vec<LinkId> = (10..18).map(|node| bench.link(node, false, vec![])).collect();
    for link in &links {
        bench.frame(*link, Frame::State(State { taken: vec![run(512, 512)], ..State::default() }));
    }
    let links: Vec<LinkId> = links.into_iter().chain([origin]).collect();
    live(&mut bench, &links, 1_000);
    bench.read_on();
    for first in [0, 100] {
        bench.give(Input::demand(run(first, 4), SIZE));
    }
    let (mut starved, mut outputs) = (0, Vec::new());
    while starved < 2 {
        outputs = live(&mut bench, &links, 100);
        let pulls =
            |output: &&Output| matches!(output, Output::Send { link, frame: Frame::Want { .. } } if *link == origin);
        starved += outputs.iter().filter(pulls).count();
        assert!(bench.now < 3_000_000, "it asks for what no neighbour has");
    }
    outputs.extend(bench.wait(50_000));
    let asks = |output: &Output| matches!(output, Output::Send { link, frame: Frame::Ask { .. } } if *link == origin);
    assert!(outputs.iter().any(asks), "{outputs:?}");
    let peer = Peer { node: NodeId(80), addr: ([10, 0, 2, 80], 19024).into() };
    let mut outputs = bench.frame(origin, Frame::Peers(vec![peer]));
    outputs.extend(bench.wait(50_000));
    assert_eq!(dialled(&outputs), [peer.addr]);
}

/// Whoever had read to the end was full of links to its likes, and turned away those who came for what it keeps.
#[test]
fn a_node_full_of_links_that_are_of_no_use_makes_room_for_another() {
    let mut bench = Bench::new();
    let most = bench.node.policy.most_links(0, false) as u64;
    let links: Vec<LinkId> = (10..10 + most).map(|node| bench.link(node, false, vec![])).collect();
    live(&mut bench, &links, 1_000);
    let late = |bench: &mut Bench, node: u8| bench.node.accept(([10, 0, 3, node], 40_000).into(), Time(bench.now));
    assert!(late(&mut bench, 1).is_some());
    assert_eq!(closed(&bench.drain()), 1);
    bench.read_on();
    for link in links.iter().filter(|link| bench.node.has_link(**link)).copied().collect::<Vec<_>>() {
        bench.frame(link, Frame::State(State { taken: vec![run(0, 8)], ..State::default() }));
    }
    assert!(late(&mut bench, 2).is_none(), "all of them are of use now");
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
        (8, vec![run(1000, 1024)], vec![run(600, 8)]),
    ] {
        let link = bench.link(node, false, window);
        bench.frame(link, Frame::State(State { taken, ..State::default() }));
    }
    for expected in [&[5][..], &[5, 6], &[5, 6, 8]] {
        let outputs = bench.frame(asks, Frame::Ask { count: expected.len() as u8 });
        let named = outputs.iter().find_map(|output| match output {
            Output::Send { frame: Frame::Peers(peers), .. } => Some(peers.iter().map(|peer| peer.node.0).collect()),
            _ => None,
        });
        assert_eq!(named, Some(expected.to_vec()));
    }
}
