//! Events by the stretch of time that they fall into, within a stretch by host, and each host's by time and then in the order
//! in which they were put in.
//!
//! What one host does to another comes later than a stretch is long, so it makes no difference to a host who else had a turn
//! before it; and what a node looks at for one event is still in the processor's caches for the next. With a thousand
//! hosts in the order of time it never is.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};

/// Nanoseconds in one stretch, as a power of two, and how many stretches are kept apart.
const STRETCH: u32 = 16;
const STRETCHES: u64 = 1 << 10;
pub const LENGTH: u64 = 1 << STRETCH;

struct Due<E> {
    /// Of its host in its stretch.
    turn: u32,
    time: u64,
    number: u64,
    event: E,
}

impl<E> Due<E> {
    fn key(&self) -> (u32, u64, u64) {
        (self.turn, self.time, self.number)
    }
}

impl<E> PartialEq for Due<E> {
    fn eq(&self, other: &Due<E>) -> bool {
        self.key() == other.key()
    }
}
impl<E> Eq for Due<E> {}
impl<E> PartialOrd for Due<E> {
    fn partial_cmp(&self, other: &Due<E>) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> Ord for Due<E> {
    fn cmp(&self, other: &Due<E>) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// A host's place in a stretch: another in each, since whoever is first finds the places in full queues.
fn turn(host: usize, stretch: u64) -> u32 {
    (host as u32).wrapping_mul(0x9e37_79b1) ^ (stretch as u32).wrapping_mul(0x85eb_ca77)
}

pub struct Queue<E> {
    number: u64,
    /// The stretch that has begun: its events, the last first, and those that were added since.
    now: u64,
    sorted: Vec<Due<E>>,
    added: BinaryHeap<Reverse<Due<E>>>,
    /// The stretches after it, each in its place modulo their number, and how many events they have.
    later: Vec<Vec<Due<E>>>,
    count: usize,
    /// Those beyond, by stretch.
    far: BTreeMap<u64, Vec<Due<E>>>,
}

impl<E> Queue<E> {
    pub fn new() -> Queue<E> {
        let later = (0..STRETCHES).map(|_| Vec::new()).collect();
        Queue { number: 0, now: 0, sorted: Vec::new(), added: BinaryHeap::new(), later, count: 0, far: BTreeMap::new() }
    }

    pub fn push(&mut self, time: u64, host: usize, event: E) {
        self.number += 1;
        let stretch = time >> STRETCH;
        let due = Due { turn: turn(host, stretch), time, number: self.number, event };
        if stretch <= self.now {
            self.added.push(Reverse(due));
        } else if stretch < self.now + STRETCHES {
            self.later[(stretch % STRETCHES) as usize].push(due);
            self.count += 1;
        } else {
            self.far.entry(stretch).or_default().push(due);
        }
    }

    /// When the stretch of the next event begins.
    pub fn next(&mut self) -> Option<u64> {
        while self.sorted.is_empty() && self.added.is_empty() {
            self.begin_next()?;
        }
        Some(self.now << STRETCH)
    }

    pub fn pop(&mut self) -> Option<(u64, E)> {
        self.next()?;
        let sorted_first = match (self.sorted.last(), self.added.peek()) {
            (Some(sorted), Some(Reverse(added))) => sorted < added,
            (sorted, _) => sorted.is_some(),
        };
        let due = if sorted_first { self.sorted.pop() } else { self.added.pop().map(|Reverse(due)| due) };
        due.map(|due| (due.time, due.event))
    }

    /// Goes on to the next stretch that may have events; none if there are none at all.
    fn begin_next(&mut self) -> Option<()> {
        self.now = match (self.count, self.far.first_key_value()) {
            (0, Some((stretch, _))) => *stretch,
            (0, None) => return None,
            _ => self.now + 1,
        };
        let stretch = &mut self.later[(self.now % STRETCHES) as usize];
        std::mem::swap(stretch, &mut self.sorted);
        self.count -= self.sorted.len();
        if let Some(mut due) = self.far.remove(&self.now) {
            self.sorted.append(&mut due);
        }
        self.sorted.sort_unstable_by(|a, b| b.cmp(a));
        Some(())
    }
}

#[test]
fn events_come_by_stretch_then_host_then_time_then_entry() {
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut queue, mut now, mut last) = (Queue::new(), 0, (0, 0, 0, 0));
    let mut place = |time: u64, (host, number): (usize, u64)| {
        let place = (time >> STRETCH, turn(host, time >> STRETCH), time, number);
        assert!(place > last, "{place:?} after {last:?}");
        last = place;
    };
    for number in 1..=200_000u64 {
        // Often in the same stretch, to a host whose turn is still to come; mostly soon; now and then far beyond the stretches
        // that are kept apart.
        let delay = [LENGTH, rng.u64(0..1_000_000), rng.u64(0..1_000_000_000)][rng.usize(0..3)];
        let host = rng.usize(0..100);
        queue.push(now + LENGTH + delay, host, (host, number));
        if rng.bool() {
            let (time, event) = queue.pop().expect("one was put in");
            place(time, event);
            now = time;
        }
    }
    let mut left = 0;
    while let Some((time, event)) = queue.pop() {
        place(time, event);
        left += 1;
    }
    assert!(left > 90_000 && queue.next().is_none());
}
