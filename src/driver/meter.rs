//! How much of this node's time others may take: so many datagrams of an address, so much talk of a link.
//!
//! What is not data costs more to understand than to send. Each has its allowance by the second, and may save some of it
//! up. A datagram beyond is dropped; a link that says more is read later, so that its sender waits.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use lru::LruCache;

/// Datagrams of one address a second, and saved up: a node that looks for its origin sends ten in the first second, and
/// a host has at most 16 of them.
const OF_ONE: u32 = 50;
const OF_ONE_SAVED: u32 = 250;
/// The same of all together: a thousand boards are switched on at once. To understand one takes 2 to 100 us.
const OF_ALL: u32 = 4_000;
const OF_ALL_SAVED: u32 = 8_000;
/// Addresses remembered; the one that was silent longest is forgotten, and begins anew.
const MOST_ADDRESSES: usize = 1024;
/// How much of its talk a link may save up.
const TALK_SAVED: Duration = Duration::from_secs(1);
/// What a frame costs beside its bytes.
const FRAME: u64 = 64;

/// When all that was taken will have been paid for.
#[derive(Clone, Copy)]
struct Allowance(Instant);

impl Allowance {
    fn take(&mut self, cost: Duration, now: Instant) {
        self.0 = self.0.max(now) + cost;
    }

    /// By how much more was taken than was saved up.
    fn excess(&self, saved: Duration, now: Instant) -> Duration {
        self.0.saturating_duration_since(now).saturating_sub(saved)
    }
}

pub struct Datagrams {
    each: LruCache<IpAddr, Allowance>,
    all: Allowance,
}

impl Datagrams {
    pub fn new(now: Instant) -> Datagrams {
        Datagrams { each: LruCache::unbounded(), all: Allowance(now) }
    }

    /// Whether one more of an address is looked at.
    pub fn admit(&mut self, from: IpAddr, now: Instant) -> bool {
        let second = Duration::from_secs(1);
        if self.all.excess(second * OF_ALL_SAVED / OF_ALL, now) > Duration::ZERO {
            return false;
        }
        if self.each.len() >= MOST_ADDRESSES && !self.each.contains(&from) {
            self.each.pop_lru();
        }
        let own = self.each.get_or_insert_mut(from, || Allowance(now));
        if own.excess(second * OF_ONE_SAVED / OF_ONE, now) > Duration::ZERO {
            return false;
        }
        own.take(second / OF_ONE, now);
        self.all.take(second / OF_ALL, now);
        true
    }
}

/// What one link says beside data.
pub struct Talk(Allowance);

impl Talk {
    pub fn new(now: Instant) -> Talk {
        Talk(Allowance(now))
    }

    /// Notes so many bytes in so many frames, of `allowed` bytes a second; how long nothing more is read, if it is too much.
    pub fn note(&mut self, bytes: usize, frames: usize, allowed: u64, now: Instant) -> Option<Duration> {
        let cost = (bytes as u64 + frames as u64 * FRAME) * 1_000_000_000 / allowed.max(1);
        self.0.take(Duration::from_nanos(cost), now);
        Some(self.0.excess(TALK_SAVED, now)).filter(|excess| !excess.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_floods_is_heard_a_little_and_others_as_before() {
        let (start, mut meter) = (Instant::now(), Datagrams::new(Instant::now()));
        let (flood, other): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let mut heard = [0; 2];
        for ms in 0..2_000u64 {
            let now = start + Duration::from_millis(ms);
            heard[0] += (0..50).filter(|_| meter.admit(flood, now)).count() as u32;
            heard[1] += u32::from(ms % 100 == 0 && meter.admit(other, now));
        }
        assert_eq!(heard[1], 20);
        assert!((OF_ONE_SAVED..OF_ONE_SAVED + 3 * OF_ONE).contains(&heard[0]), "{}", heard[0]);
    }

    #[test]
    fn invented_addresses_take_no_more_than_all_may_and_are_forgotten() {
        let (start, mut meter) = (Instant::now(), Datagrams::new(Instant::now()));
        let heard = (0..100_000u32).filter(|n| meter.admit(n.to_be_bytes().into(), start)).count() as u32;
        assert!((OF_ALL_SAVED..OF_ALL_SAVED + OF_ALL).contains(&heard), "{heard}");
        assert_eq!(meter.each.len(), MOST_ADDRESSES);
    }

    #[test]
    fn a_link_that_talks_without_end_waits_and_one_that_pauses_does_not() {
        let start = Instant::now();
        let mut talk = Talk::new(start);
        assert_eq!(talk.note(500_000, 10, 1_000_000, start), None);
        let wait = talk.note(2_000_000, 10, 1_000_000, start).expect("more than half of it is too much");
        assert_eq!(wait.as_millis(), 1_501);
        assert_eq!(talk.note(100, 1, 1_000_000, start + Duration::from_secs(10)), None);
    }
}
