//! Who has fallen behind: with fewer neighbours than others have, or with neighbours who have more, a reader gets less of
//! their uploads, and would be the last of all.

use super::Node;
use super::link::{Link, by_chunk};

impl Node {
    /// A figure of the neighbours who read, of two the lower one: what a single peer says of itself must not shut the other
    /// out.
    pub(super) fn median(&self, figure: impl Fn(&Link) -> u64) -> u64 {
        let read = |link: &&Link| link.greeted && link.known && !link.window.is_empty();
        let mut figures: Vec<u64> = self.links.values().filter(read).map(figure).collect();
        figures.sort_unstable();
        figures.get(figures.len().saturating_sub(1) / 2).copied().unwrap_or(0)
    }

    /// How far most neighbours have been for long: who is not is behind. None where nobody gets more for that.
    pub(super) fn rear(&self) -> Option<u64> {
        let behind = self.policy.behind(self.gossip.rate())?;
        Some(self.median(Link::progress).saturating_sub(behind))
    }

    /// Links beyond those that a node opens anyway.
    pub(super) fn links_to_catch_up(&self) -> usize {
        let reads = !self.requests.window().is_empty();
        let is_behind = || self.rear().is_some_and(|rear| self.progress() < rear);
        if reads && (self.has_strayed() || is_behind()) { self.policy.links_to_catch_up } else { 0 }
    }

    /// How far this node is, as `Link::progress` says it of others.
    fn progress(&self) -> u64 {
        let chunks = self.requests.window().iter().flat_map(|run| by_chunk(*run));
        let taken: u32 = chunks.map(|(chunk, range)| range.and(&self.store.taken(chunk)).count()).sum();
        self.requests.position() + u64::from(taken)
    }
}
