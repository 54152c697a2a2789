//! The core between a front and a node, without a network.

use std::sync::{Mutex, RwLock};

use super::*;
use crate::driver::{ReadRange, Unavailable};
use crate::keys::OriginKey;
use crate::wire::head::PageHash;

const RANGE: ReadRange = ReadRange { object: crate::chunk::ObjectId([1; 16]), size: 1 << 20, offset: 0, len: 4096 };

/// A file was rewritten; the kernel, told so, asked once more for what its read-ahead did not get. The demand of the
/// second read was taken back a moment later in the name of the first, and it waited for ever.
#[test]
fn who_asks_again_for_what_is_gone_is_told_again() {
    let mut core = reader();
    let origin = core.node.accept(([10, 0, 0, 1], 40_000).into(), core.now()).expect("there is room");
    let hello = Hello { node: NodeId(2), origin: true, ..hello_of(&core) };
    core.handle(Input::Frame { link: origin, frame: Frame::Hello(hello) });
    core.handle(Input::Proof { link: origin, good: true });

    let first = read(&mut core, 1);
    let transfer = asked(&mut core, 1_000_000).expect("the only node there is is asked");
    core.handle(Input::Frame { link: origin, frame: Frame::Abort { transfer } });
    core.handle(Input::Frame {
        link: origin,
        frame: Frame::Gone { object: RANGE.object, reason: GoneReason::Replaced },
    });
    core.settle();
    assert!(matches!(*first.lock().unwrap(), Some(Err(Unavailable::Gone))));

    let second = read(&mut core, 2);
    core.housekeeping();
    assert!(asked(&mut core, 2_000_000).is_some(), "the second read is forgotten");
    assert!(second.lock().unwrap().is_none());
}

type Answer = Arc<Mutex<Option<Result<crate::driver::Slices, Unavailable>>>>;

fn read(core: &mut Core, ticket: u64) -> Answer {
    let answer = Answer::default();
    let done = answer.clone();
    let done = Box::new(move |slices| *done.lock().unwrap() = Some(slices));
    let read = super::super::Read { range: RANGE, deadline: None };
    core.obey(Command::Read { ticket: Ticket(ticket), read, done });
    answer
}

/// The transfer for which the node asks somebody, if it does by a time that is ahead of the clock.
fn asked(core: &mut Core, at: u64) -> Option<u32> {
    core.node.handle(Input::Tick, Time(at));
    core.node.settle();
    let outputs: Vec<Output> = std::iter::from_fn(|| core.node.poll_output()).collect();
    outputs.iter().find_map(|output| match output {
        Output::Send { frame: Frame::Want { transfer, .. }, .. } => Some(*transfer),
        _ => None,
    })
}

fn hello_of(core: &Core) -> Hello {
    let head = core.head();
    Hello { node: core.me, origin: false, port: 1, sequence: head.sequence, key: head.key, tree: head.name.clone() }
}

fn reader() -> Core {
    let name = "tree".parse().expect("a plain name");
    let totals = crate::wire::head::Totals::default();
    let head = TreeHead::sign(name, 1, PageHash::of(&[]), 0, totals, &OriginKey::from_seed(&[1; 32]));
    let shared = Arc::new(Shared {
        cache: crate::cache::Cache::default(),
        head: RwLock::new(Arc::new(head)),
        pages: RwLock::default(),
        commands: tokio::sync::mpsc::unbounded_channel().0,
        tickets: Default::default(),
        readers: Default::default(),
        snapshot: Mutex::default(),
        thread: Mutex::new(None),
        following: Mutex::new(None),
    });
    let role = Role::Reader { answers: Vec::new() };
    let net = NetSettings::default();
    Core::new(Parts { shared, net, budget: 64 << 20, role, port: 1, me: NodeId(1), seed: 1 })
}
