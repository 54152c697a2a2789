//! What a reader that has fallen behind gets beyond what others have.

use super::*;

/// Bytes come over all links, at 2 MB/s together.
fn receive(bench: &mut Bench, links: &[LinkId], milliseconds: usize) -> Vec<Output> {
    let mut outputs = Vec::new();
    for link in links.iter().cycle().take(milliseconds / 2) {
        outputs.extend(bench.give(Input::Progress { link: *link, transfer: 0, bytes: 4_000 }));
        outputs.extend(bench.give(Input::Tick));
    }
    outputs
}

fn tell(bench: &mut Bench, link: LinkId, position: u64, room: i16) -> Vec<Output> {
    let state = State { full: true, room, position, added: vec![run(0, 1024)], ..State::default() };
    bench.frame(link, Frame::State(state))
}

/// Of 32 readers those with eight links fell behind those with ten, all the way, and were a second late.
#[test]
fn who_is_behind_the_median_of_its_neighbours_opens_two_links_more() {
    // It is at 1002: two blocks after where it reads are on their way.
    for (position, opened) in [(1018, 0), (1019, 2)] {
        let mut bench = Bench::new();
        let links: Vec<LinkId> = (2..10).map(|node| bench.link(node, false, vec![run(0, 1024)])).collect();
        (20..30).for_each(|node| bench.node.learn_peer(NodeId(node), ([10, 0, 1, node as u8], 19024).into(), false));
        let window = vec![Wanted { run: run(0, 1024), size: SIZE, position: 1000 }];
        bench.give(Input::Window { reader: ReaderId(1), window });
        bench.node.note_good_block(links[0]);
        bench.frame(links[0], Frame::Offer { id: 0, runs: vec![run(0, 2)] });
        receive(&mut bench, &links, 700);
        // A single one says of itself what it likes.
        tell(&mut bench, links[0], u64::MAX, 0);
        links[1..].iter().for_each(|link| drop(tell(&mut bench, *link, position, 0)));
        let outputs = receive(&mut bench, &links, 500);
        let connects = outputs.iter().filter(|output| matches!(output, Output::Connect { .. })).count();
        assert_eq!(connects, opened, "others at {position}");
    }
}

#[test]
fn who_is_behind_the_others_may_have_one_transfer_more() {
    for (position, transfers) in [(84, 2), (83, 3)] {
        let mut bench = Bench::new();
        let source = bench.link(2, false, vec![]);
        let others: Vec<LinkId> = (3..14).map(|node| bench.link(node, false, vec![run(0, 1024)])).collect();
        bench.node.note_good_block(source);
        bench.read_on();
        receive(&mut bench, &others, 400);
        for link in &others {
            tell(&mut bench, *link, 100, 0);
        }
        tell(&mut bench, others[0], position, 0);
        for id in 0..8 {
            bench.frame(source, Frame::Offer { id, runs: vec![run(2 * id, 2)] });
        }
        let outputs = tell(&mut bench, others[0], position, 64);
        let offers = outputs
            .iter()
            .filter(|output| matches!(output, Output::Send { link, frame: Frame::Offer { .. } } if *link == others[0]));
        assert_eq!(offers.count(), transfers, "at {position} where the others are at 100");
    }
}
