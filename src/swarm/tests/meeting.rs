//! How those who start together find each other without standing in each other's way.

use super::*;

fn fresh(seed: u64) -> Node {
    Node::new(Policy::with_budget(160 << 20), hello(seed, false), seed, Time(0))
}

/// When a node that nobody answers broadcasts, within so many microseconds.
fn broadcasts(mut node: Node, until: u64) -> Vec<u64> {
    let mut found = Vec::new();
    loop {
        let now = node.next_tick();
        if now > Time(until) {
            return found;
        }
        node.handle(Input::Tick, now);
        node.settle();
        let outputs = std::iter::from_fn(|| node.poll_output());
        found.extend(outputs.filter(|output| *output == Output::Join { join: JoinAim::Broadcast }).map(|_| now.0));
    }
}

#[test]
fn those_who_start_together_ask_one_after_the_other_and_meet_nobody_again_in_a_queue() {
    let all: Vec<Vec<u64>> = (1..=100).map(|seed| broadcasts(fresh(seed), 1_000_000)).collect();
    let distinct = |times: Vec<u64>| times.iter().map(|time| time / 1000).collect::<BTreeSet<_>>().len();
    assert!(all.iter().all(|times| times[0] < 20_000 && (4..8).contains(&times.len())), "{all:?}");
    assert!(distinct(all.iter().map(|times| times[0]).collect()) > 15);
    assert!(distinct(all.iter().map(|times| times[1] - times[0]).collect()) > 30);
}

/// How many of a hundred questions of one peer a node answers.
fn answers(node: &mut Node, now: Time) -> usize {
    let from = ([10, 0, 0, 99], 19024).into();
    let join = Join { node: NodeId(99), port: 19024, sequence: 1, position: 0, tree: None };
    for _ in 0..100 {
        node.handle(Input::Join { from, join: join.clone() }, now);
    }
    node.settle();
    std::iter::from_fn(|| node.poll_output()).filter(|output| matches!(output, Output::Welcome { .. })).count()
}

#[test]
fn a_broadcast_is_answered_by_about_three_of_those_who_know_somebody() {
    let mut node = fresh(1);
    assert_eq!(answers(&mut node, Time(50_000)), 0, "it has just come itself");
    let mut alone = fresh(2);
    assert_eq!(answers(&mut alone, Time(1_000_000)), 100, "nobody else is there");
    for peer in 0..150u8 {
        node.learn_peer(NodeId(1000 + u64::from(peer)), ([10, 0, 1, peer], 19024).into(), false);
    }
    let some = answers(&mut node, Time(1_000_000));
    assert!((1..10).contains(&some), "one of fifty, {some} of 100");
    assert!(node.known_peers().any(|peer| peer == NodeId(99)), "who asks is heard of");
}

/// Who asked for a state that the origin shows no more heard of it only by luck, where many were known.
#[test]
fn a_state_that_the_origin_shows_no_more_is_told_by_those_who_show_it() {
    let mut bench = Bench::new();
    for peer in 0..150u8 {
        bench.node.learn_peer(NodeId(1000 + u64::from(peer)), ([10, 0, 1, peer], 19024).into(), false);
    }
    let neighbours: Vec<LinkId> = (10..12).map(|node| bench.link(node, false, vec![])).collect();
    bench.wait(1_000_000);
    let says = |bench: &mut Bench, sequence| {
        for link in neighbours.clone() {
            bench.frame(link, Frame::State(State { sequence, ..State::default() }));
        }
        bench.now += 1_000;
        answers(&mut bench.node, Time(bench.now))
    };
    assert!(says(&mut bench, 1) < 20, "all show the same");
    let key = OriginKey::from_seed(&[1; 32]);
    let totals = crate::wire::head::Totals::default();
    let head = crate::wire::head::TreeHead::sign(hello(1, false).tree, 2, hash(7), 0, totals, &key);
    let welcome = Welcome { node: NodeId(2), port: 19024, origin: true, head, peers: vec![] };
    bench.give(Input::Welcome { from: ([10, 0, 0, 2], 19024).into(), welcome: Box::new(welcome) });
    assert_eq!(says(&mut bench, 2), 100, "its neighbours have gone on, and it was not told to");
    assert!((1..20).contains(&says(&mut bench, 1)), "its neighbours were not told to either");
    bench.give(Input::Head { sequence: 2 });
    assert!(says(&mut bench, 2) < 20, "it has gone on as well");
}

/// A JOIN's source can be forged: one that was believed could have all nodes of a swarm call one address again and again.
#[test]
fn who_asks_again_under_other_names_or_from_elsewhere_is_remembered_once() {
    let mut node = fresh(1);
    let mut ask = |name: u64, host: u8| {
        let join = Join { node: NodeId(name), port: 19024, sequence: 1, position: 0, tree: None };
        node.handle(Input::Join { from: ([10, 0, 0, host], 19024).into(), join }, Time(1_000_000));
    };
    (100..200).for_each(|name| ask(name, 9));
    (0..100).for_each(|host| ask(100, host));
    assert_eq!(node.known_peers().collect::<Vec<_>>(), [NodeId(100)]);
    let dialled = |node: &mut Node, now| {
        node.handle(Input::Tick, Time(now));
        node.settle();
        let connects = std::iter::from_fn(|| node.poll_output()).filter_map(|output| match output {
            Output::Connect { addr, .. } => Some(addr),
            _ => None,
        });
        connects.collect::<Vec<SocketAddr>>()
    };
    assert_eq!(dialled(&mut node, 1_100_000), [([10, 0, 0, 9], 19024).into()]);
}

#[test]
fn of_a_crowd_that_is_too_large_to_remember_each_node_remembers_others() {
    let remembers = |seed| {
        let mut node = fresh(seed);
        let origin = NodeId(9_999);
        node.learn_peer(origin, ([10, 0, 9, 1], 19024).into(), true);
        for number in 0..8_000u64 {
            let addr = ([10, 1, (number / 250) as u8, (number % 250) as u8], 19024).into();
            node.learn_peer(NodeId(10_000 + number), addr, false);
        }
        let known: BTreeSet<NodeId> = node.known_peers().collect();
        assert!(known.contains(&origin), "an origin goes after all others");
        known
    };
    let (one, other) = (remembers(1), remembers(2));
    let (shared, first) = (one.intersection(&other).count(), one.iter().filter(|node| node.0 < 14_000).count());
    assert!(shared < one.len() * 7 / 10, "{shared} of {} are known to both", one.len());
    assert!(first > one.len() / 20, "{first} of {} are of the first half", one.len());
}
