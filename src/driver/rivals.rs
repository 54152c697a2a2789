//! Who else offers this tree, and how often the log says so.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::keys::PublicKey;

/// Each of them is named again after this time.
const EVERY: Duration = Duration::from_secs(600);
/// Keys remembered at once. Whoever makes more of them is not named any more; all are counted.
const MOST: usize = 16;

/// How long a rival is shown after it was heard: a node without an origin asks more often than that.
const LATELY: Duration = Duration::from_secs(60);

#[derive(Default)]
pub struct Rivals {
    said: HashMap<PublicKey, Instant>,
    last: Option<(IpAddr, PublicKey, Instant)>,
    pub heard: u64,
}

impl Rivals {
    /// Who was heard within the last minute.
    pub fn lately(&self, now: Instant) -> Option<(IpAddr, PublicKey)> {
        let last = self.last.filter(|(.., heard)| now.saturating_duration_since(*heard) < LATELY);
        last.map(|(host, key, _)| (host, key))
    }

    pub fn note(&mut self, host: IpAddr, key: PublicKey, now: Instant) {
        self.last = Some((host, key, now));
    }

    /// Somebody offers the tree with this key; whether that is to be said now.
    pub fn is_due(&mut self, key: PublicKey, now: Instant) -> bool {
        self.heard += 1;
        if self.said.get(&key).is_some_and(|last| now.saturating_duration_since(*last) < EVERY) {
            return false;
        }
        if self.said.len() >= MOST {
            self.said.retain(|_, last| now.saturating_duration_since(*last) < EVERY);
        }
        let room = self.said.len() < MOST;
        if room {
            self.said.insert(key, now);
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::OriginKey;

    #[test]
    fn a_rival_is_named_now_and_then_and_a_crowd_of_them_is_only_counted() {
        let key = |seed: u8| OriginKey::from_seed(&[seed; 32]).public();
        let start = Instant::now();
        let mut rivals = Rivals::default();
        assert!(rivals.is_due(key(1), start));
        assert!(!rivals.is_due(key(1), start + EVERY / 2));
        assert!(rivals.is_due(key(1), start + EVERY));
        let named = (0..100).filter(|seed| rivals.is_due(key(*seed), start + EVERY)).count();
        assert_eq!((named, rivals.heard), (MOST - 1, 103));
        assert!(rivals.is_due(key(200), start + EVERY * 2), "later there is room again");
    }
}
