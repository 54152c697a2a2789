//! A replica among an origin and a reader: what it asks before it signs, and what it never says.

use super::*;

const SEGMENT: SegmentId = SegmentId { object: ObjectId([1; 16]), index: 0 };

/// A replica with another origin and a reader that wants the first segment; both links, and what is put out.
fn replica_with(size: Option<u64>) -> (Bench, LinkId, LinkId, Vec<Output>) {
    let mut node = Node::new(Policy::with_budget(160 << 20), hello(1, true), 1, Time(0));
    node.become_replica();
    node.handle(Input::Tick, Time(0));
    let mut bench = Bench { node, now: 0 };
    let origin = bench.link(2, true, vec![]);
    let reader = bench.link(3, false, vec![run(0, 64)]);
    let outputs = bench.give(Input::Resolved { object: SEGMENT.object, size });
    (bench, origin, reader, outputs)
}

fn asked(outputs: &[Output]) -> Vec<LinkId> {
    let asked = |output: &Output| match output {
        Output::Send { link, frame: Frame::GetHeader(segment) } if *segment == SEGMENT => Some(*link),
        _ => None,
    };
    outputs.iter().filter_map(asked).collect()
}

fn reads(outputs: &[Output]) -> bool {
    outputs.contains(&Output::Prepare { segment: SEGMENT })
}

#[test]
fn it_reads_its_copy_only_after_the_other_origin_said_what_was_signed() {
    let (mut bench, origin, _, outputs) = replica_with(Some(SIZE));
    assert_eq!(asked(&outputs), [origin], "{outputs:?}");
    assert!(!reads(&outputs) && bench.node.compares(SEGMENT));
    assert!(!reads(&bench.wait(500_000)));
    let outputs = bench.give(Input::HeaderKnown { segment: SEGMENT });
    assert!(reads(&outputs) && !bench.node.compares(SEGMENT));
    assert!(!reads(&bench.give(Input::HeaderKnown { segment: SEGMENT })), "once");
}

#[test]
fn it_goes_on_alone_when_nobody_has_a_header_or_nobody_is_left_or_nobody_answers() {
    let (mut bench, origin, ..) = replica_with(Some(SIZE));
    assert!(reads(&bench.frame(origin, Frame::NoHeader(SEGMENT))));
    let (mut bench, origin, ..) = replica_with(Some(SIZE));
    assert!(reads(&bench.give(Input::Closed { link: origin })));
    let (mut bench, ..) = replica_with(Some(SIZE));
    assert!(!reads(&bench.wait(900_000)));
    assert!(reads(&bench.wait(2_500_000)), "who never answers holds nobody up for long");
}

#[test]
fn it_never_says_that_something_is_gone() {
    let gone = |outputs: &[Output]| {
        outputs.iter().any(|output| matches!(output, Output::Send { frame: Frame::Gone { .. }, .. }))
    };
    let (.., outputs) = replica_with(None);
    assert!(!gone(&outputs), "{outputs:?}");
    let (mut bench, origin, reader, _) = replica_with(Some(SIZE));
    bench.frame(origin, Frame::NoHeader(SEGMENT));
    let reason = PrepareError::Gone(GoneReason::Replaced);
    let mut outputs = bench.give(Input::PrepareFailed { segment: SEGMENT, reason });
    let transfer = crate::wire::frame::WANTED | 1;
    outputs.extend(bench.frame(reader, Frame::Want { transfer, starving: true, run: run(0, 4) }));
    assert!(!gone(&outputs), "{outputs:?}");
    assert!(outputs.contains(&Output::Send { link: reader, frame: Frame::Abort { transfer } }), "{outputs:?}");
}

#[test]
fn two_replicas_do_not_wait_for_each_other() {
    let (mut bench, origin, ..) = replica_with(Some(SIZE));
    let outputs = bench.frame(origin, Frame::GetHeader(SEGMENT));
    assert!(outputs.contains(&Output::Send { link: origin, frame: Frame::NoHeader(SEGMENT) }), "{outputs:?}");
}

/// When an origin died that was to send a header, the reader asked the replica for it, which asked the reader, and both
/// waited for three seconds.
#[test]
fn a_replica_and_a_reader_do_not_wait_for_each_others_header() {
    let mut bench = Bench::new();
    let [origin, replica] = [2, 3].map(|node| bench.link(node, true, vec![]));
    bench.read_on();
    let outputs = bench.frame(origin, Frame::Offer { id: 7, runs: vec![run(0, 2)] });
    assert_eq!(asked(&outputs), [origin]);
    bench.frame(replica, Frame::Offer { id: 7, runs: vec![run(2, 2)] });
    assert_eq!(asked(&bench.give(Input::Closed { link: origin })), [replica]);
    let outputs = bench.frame(replica, Frame::GetHeader(SEGMENT));
    assert!(outputs.contains(&Output::Send { link: replica, frame: Frame::NoHeader(SEGMENT) }), "{outputs:?}");
}

#[test]
fn a_replica_waits_for_what_the_origin_that_signs_has_yet_to_read() {
    let mut bench = Bench { node: Node::new(Policy::with_budget(160 << 20), hello(1, true), 1, Time(0)), now: 0 };
    let replica = bench.link(2, true, vec![]);
    bench.give(Input::Resolved { object: SEGMENT.object, size: Some(SIZE) });
    let outputs = bench.frame(replica, Frame::GetHeader(SEGMENT));
    assert!(reads(&outputs) && !outputs.contains(&Output::Send { link: replica, frame: Frame::NoHeader(SEGMENT) }));
    let outputs = bench.give(Input::Prepared { segment: SEGMENT, zero: 0 });
    assert!(outputs.contains(&Output::SendHeader { link: replica, segment: SEGMENT }), "{outputs:?}");
}

#[test]
fn only_a_whole_copy_speaks_for_a_version() {
    let (mut bench, ..) = replica_with(Some(SIZE));
    assert_eq!(bench.node.spoken_sequence(), 0);
    bench.node.set_complete(true);
    assert_eq!(bench.node.spoken_sequence(), 1);
}
