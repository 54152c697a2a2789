//! What one of many that begin at once asks of an origin.

use super::*;

/// What an origin is asked for: runs and headers.
fn asked(outputs: &[Output], origin: LinkId) -> (Vec<(u32, Run)>, Vec<SegmentId>) {
    let (mut runs, mut headers) = (Vec::new(), Vec::new());
    for output in outputs {
        match output {
            Output::Send { link, frame: Frame::Want { transfer, run, .. } } if *link == origin => {
                runs.push((*transfer, *run));
            }
            Output::Send { link, frame: Frame::GetHeader(segment) } if *link == origin => headers.push(*segment),
            _ => {}
        }
    }
    (runs, headers)
}

/// 43 of 100 readers at 25 Mbit/s had met nobody else yet, and asked for a piece of each segment of their windows. All were
/// refused, but the 700 headers that went with them kept the origin's link busy for most of the first second.
#[test]
fn an_origin_is_asked_for_one_thing_at_first_and_for_its_header_when_it_sends() {
    let mut bench = Bench::new();
    let origin = bench.link(2, true, vec![]);
    let window = vec![Wanted { run: run(0, 1024), size: SIZE, position: 0 }];
    let mut outputs = bench.give(Input::Window { reader: ReaderId(1), window });
    outputs.extend(bench.wait(100_000));
    let (runs, headers) = asked(&outputs, origin);
    assert_eq!((runs.len(), headers), (1, vec![]));
    let (transfer, run) = runs[0];
    let mut outputs = Vec::new();
    for _ in 0..2 {
        outputs.extend(bench.give(Input::Progress { link: origin, transfer, bytes: 16_384 }));
    }
    let segment = BlockId { object: run.object, index: run.first }.segment();
    assert_eq!(asked(&outputs, origin).1, [segment]);
    let mut outputs = bench.wait(500_000);
    outputs.extend(bench.give(Input::Header { segment, zero: 0 }));
    outputs.extend(bench.wait(500_000));
    assert!(asked(&outputs, origin).0.len() > 8, "it is there for this node alone");
}

#[test]
fn who_jumps_about_asks_for_block_and_header_together() {
    let mut bench = Bench::new();
    let origin = bench.link(2, true, vec![]);
    let outputs = bench.give(Input::demand(run(100, 1), SIZE));
    let (runs, headers) = asked(&outputs, origin);
    assert_eq!((runs.len(), headers.len()), (1, 1));
}

/// Of zeros no byte is sent that could make a reader ask for their header.
#[test]
fn who_asks_an_origin_for_zeros_is_answered_by_their_header() {
    let mut bench = Bench { node: Node::new(Policy::with_budget(160 << 20), hello(1, true), 1, Time(0)), now: 0 };
    let reader = bench.link(2, false, vec![]);
    bench.give(Input::Resolved { object: run(0, 1).object, size: Some(SIZE) });
    for (first, zero) in [(0, u64::MAX), (64, 0)] {
        let transfer = WANTED | first;
        bench.frame(reader, Frame::Want { transfer, starving: true, run: run(first, 2) });
        let segment = BlockId { object: run(0, 1).object, index: first }.segment();
        bench.give(Input::Prepared { segment, zero });
        let frames = std::iter::from_fn(|| bench.node.transmit(reader)).count();
        let headers = bench.drain().contains(&Output::SendHeader { link: reader, segment });
        assert_eq!((frames > 0, headers), (zero == 0, zero != 0));
    }
}

/// How often one who has nothing new says to a link that it is there, in two seconds on a network of 1 Gbit/s.
fn said(mut bench: Bench, link: LinkId) -> usize {
    let mut outputs = Vec::new();
    for _ in 0..8 {
        outputs.extend(bench.frame(link, Frame::State(State { room: 16, rate: 100_000, ..State::default() })));
        outputs.extend(bench.wait(250_000));
    }
    let is_state =
        |output: &&Output| matches!(output, Output::Send { link: to, frame: Frame::State(_) } if *to == link);
    outputs.iter().filter(is_state).count()
}

/// Neighbours speak every 60 ms there. Ten thousand readers and their origin would take a seventh of its link for that.
#[test]
fn an_origin_and_its_readers_seldom_say_that_they_are_there() {
    let mut bench = Bench { node: Node::new(Policy::with_budget(160 << 20), hello(1, true), 1, Time(0)), now: 0 };
    let reader = bench.link(2, false, vec![run(0, 1024)]);
    let of_origin = said(bench, reader);
    let mut bench = Bench::new();
    let origin = bench.link(2, true, vec![]);
    bench.read_on();
    let of_reader = said(bench, origin);
    let mut bench = Bench::new();
    let neighbour = bench.link(2, false, vec![run(0, 1024)]);
    bench.read_on();
    let of_neighbour = said(bench, neighbour);
    // After a second of silence they would take each other for dead.
    assert!((4..=6).contains(&of_origin) && (4..=6).contains(&of_reader), "{of_origin}, {of_reader}");
    assert!(of_neighbour > 20, "{of_neighbour}");
}
