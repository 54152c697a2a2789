//! Events in the order of their times, those of one time in the order in which they were put in.
//!
//! Nearly all lie within some milliseconds. They are put down by the stretch of time that they fall into and sorted when
//! that begins: with a thousand hosts a heap of them all is out of every processor cache.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Nanoseconds in one stretch, as a power of two, and how many stretches are kept apart.
const STRETCH: u32 = 12;
const STRETCHES: u64 = 1 << 14;

struct Due<E>(u64, u64, E);

impl<E> PartialEq for Due<E> {
    fn eq(&self, other: &Due<E>) -> bool {
        (self.0, self.1) == (other.0, other.1)
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
        (self.0, self.1).cmp(&(other.0, other.1))
    }
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
    far: BinaryHeap<Reverse<Due<E>>>,
}

impl<E> Queue<E> {
    pub fn new() -> Queue<E> {
        let later = (0..STRETCHES).map(|_| Vec::new()).collect();
        Queue {
            number: 0,
            now: 0,
            sorted: Vec::new(),
            added: BinaryHeap::new(),
            later,
            count: 0,
            far: BinaryHeap::new(),
        }
    }

    pub fn push(&mut self, time: u64, event: E) {
        self.number += 1;
        let due = Due(time, self.number, event);
        let stretch = time >> STRETCH;
        if stretch <= self.now {
            self.added.push(Reverse(due));
        } else if stretch < self.now + STRETCHES {
            self.later[(stretch % STRETCHES) as usize].push(due);
            self.count += 1;
        } else {
            self.far.push(Reverse(due));
        }
    }

    /// When the next event is due.
    pub fn next(&mut self) -> Option<u64> {
        while self.sorted.is_empty() && self.added.is_empty() {
            self.begin_next()?;
        }
        let added = self.added.peek().map(|Reverse(due)| due.0);
        let sorted = self.sorted.last().map(|due| due.0);
        added.into_iter().chain(sorted).min()
    }

    pub fn pop(&mut self) -> Option<(u64, E)> {
        self.next()?;
        let sorted_first = match (self.sorted.last(), self.added.peek()) {
            (Some(sorted), Some(Reverse(added))) => sorted < added,
            (sorted, _) => sorted.is_some(),
        };
        let due = if sorted_first { self.sorted.pop() } else { self.added.pop().map(|Reverse(due)| due) };
        due.map(|Due(time, _, event)| (time, event))
    }

    /// Goes on to the next stretch that may have events; none if there are none at all.
    fn begin_next(&mut self) -> Option<()> {
        self.now = match (self.count, self.far.peek()) {
            (0, Some(Reverse(far))) => far.0 >> STRETCH,
            (0, None) => return None,
            _ => self.now + 1,
        };
        let stretch = &mut self.later[(self.now % STRETCHES) as usize];
        std::mem::swap(stretch, &mut self.sorted);
        self.count -= self.sorted.len();
        while self.far.peek().is_some_and(|Reverse(due)| due.0 >> STRETCH < self.now + STRETCHES) {
            let Some(Reverse(due)) = self.far.pop() else { break };
            let stretch = due.0 >> STRETCH;
            if stretch <= self.now {
                self.sorted.push(due);
            } else {
                self.later[(stretch % STRETCHES) as usize].push(due);
                self.count += 1;
            }
        }
        self.sorted.sort_unstable_by(|a, b| b.cmp(a));
        Some(())
    }
}

#[test]
fn events_come_in_the_order_of_time_and_then_of_entry() {
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut queue, mut now, mut last) = (Queue::new(), 0, (0, 0));
    for number in 0..200_000u64 {
        // Often at once, mostly soon, now and then far beyond the stretches that are kept apart.
        let delay = [0, rng.u64(0..100), rng.u64(0..1_000_000), rng.u64(0..1_000_000_000)][rng.usize(0..4)];
        queue.push(now + delay, number);
        if rng.bool() {
            let (time, number) = queue.pop().expect("one was put in");
            assert!((time, number) > last || last == (0, 0), "{:?} after {last:?}", (time, number));
            (now, last) = (time, (time, number));
        }
    }
    let mut left = 0;
    while let Some((time, number)) = queue.pop() {
        assert!((time, number) > last, "{:?} after {last:?}", (time, number));
        (last, left) = ((time, number), left + 1);
    }
    assert!(left > 90_000 && queue.next().is_none());
}
