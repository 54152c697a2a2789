//! The limit on what this node sends to others, over all its links.
//!
//! Each frame of data is due when what was sent before has had its time at the limit. Control never waits, but counts.

use std::time::{Duration, Instant};

/// What timers are late by is made up for, up to this: so the limit is met and not only kept.
const SLACK: Duration = Duration::from_millis(20);

pub struct Upload {
    /// Bytes a second; none is as fast as the links are.
    limit: Option<u64>,
    /// When all that was sent so far will have had its time.
    due: Instant,
}

impl Upload {
    pub fn new(limit: Option<u64>, now: Instant) -> Upload {
        Upload { limit, due: now }
    }

    /// When data may be sent, if not at once.
    pub fn wait(&self, now: Instant) -> Option<Instant> {
        self.limit.and((self.due > now).then_some(self.due))
    }

    pub fn count(&mut self, bytes: usize, now: Instant) {
        if let Some(limit) = self.limit {
            let earliest = now.checked_sub(SLACK).unwrap_or(now);
            self.due = self.due.max(earliest) + Duration::from_nanos(bytes as u64 * 1_000_000_000 / limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Bytes sent within 10 s by somebody who sends a frame whenever he may, `late` after that.
    fn sent(limit: u64, late: Duration) -> u64 {
        let start = Instant::now();
        let (mut upload, mut now, mut sent) = (Upload::new(Some(limit), start), start, 0);
        while now < start + 10_000 * MS {
            match upload.wait(now) {
                Some(due) => now = due + late,
                None => {
                    upload.count(8212, now);
                    sent += 8212;
                }
            }
        }
        sent
    }

    #[test]
    fn the_limit_is_kept_and_met_also_by_a_late_timer() {
        for limit in [64 << 10, 1_000_000, 100_000_000] {
            for late in [Duration::ZERO, MS, 5 * MS] {
                let share = sent(limit, late) as f64 / (limit * 10) as f64;
                assert!((0.98..=1.02).contains(&share), "{share} of {limit}, {late:?} late");
            }
        }
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let now = Instant::now();
        let mut upload = Upload::new(None, now);
        upload.count(usize::MAX, now);
        assert_eq!(upload.wait(now), None);
    }

    #[test]
    fn what_was_not_used_for_long_is_not_saved_up() {
        let start = Instant::now();
        let mut upload = Upload::new(Some(1_000_000), start);
        let later = start + 60_000 * MS;
        upload.count(100_000, later);
        assert_eq!(upload.wait(later), Some(later - SLACK + 100 * MS));
    }
}
