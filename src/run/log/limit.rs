//! How often one line of the program may speak.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;

/// Lines at once: what belongs to one event, such as a network's loss, many times over.
const BURST: u32 = 20;
/// How long one more takes: a day of them fits on a few pages.
const REFILL: Duration = Duration::from_secs(30);

/// One bucket for each place in the program that logs; there are only so many.
#[derive(Default)]
pub struct Limiter {
    buckets: HashMap<Identifier, Bucket>,
}

struct Bucket {
    left: u32,
    since: Instant,
    left_out: u64,
}

impl Limiter {
    /// Whether a line may be written now, and how many like it were not since the last one.
    pub fn allow(&mut self, callsite: Identifier, now: Instant) -> Option<u64> {
        let bucket = self.buckets.entry(callsite).or_insert(Bucket { left: BURST, since: now, left_out: 0 });
        let earned = (now.saturating_duration_since(bucket.since).as_secs() / REFILL.as_secs()) as u32;
        if earned > 0 {
            bucket.left = bucket.left.saturating_add(earned).min(BURST);
            bucket.since += REFILL * earned;
        }
        if bucket.left == 0 {
            bucket.left_out += 1;
            return None;
        }
        bucket.left -= 1;
        Some(std::mem::take(&mut bucket.left_out))
    }
}

#[cfg(test)]
mod tests {
    use tracing::Callsite;

    use super::*;

    /// A place that logs.
    struct Here;

    impl Callsite for Here {
        fn set_interest(&self, _: tracing::subscriber::Interest) {}
        fn metadata(&self) -> &tracing::Metadata<'_> {
            unreachable!("nobody asks")
        }
    }

    #[test]
    fn a_burst_passes_then_one_line_at_a_time_that_says_how_many_did_not() {
        static HERE: Here = Here;
        let here = || Identifier(&HERE);
        let mut limiter = Limiter::default();
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(limiter.allow(here(), start), Some(0));
        }
        for _ in 0..100 {
            assert_eq!(limiter.allow(here(), start + REFILL / 2), None);
        }
        assert_eq!(limiter.allow(here(), start + REFILL), Some(100));
        assert_eq!(limiter.allow(here(), start + REFILL), None);
        let later = start + REFILL * 1000;
        for left_out in [1].into_iter().chain(std::iter::repeat_n(0, BURST as usize - 1)) {
            assert_eq!(limiter.allow(here(), later), Some(left_out));
        }
        assert_eq!(limiter.allow(here(), later), None, "no more than a burst is earned");
    }
}
