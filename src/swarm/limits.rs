//! What a node remembers beside what it may: every table that somebody else can make grow, by name. ARCHITECTURE.md
//! says what happens when one is full; the fuzzer and the simulator look at them after every step.

use super::Node;
use super::link::{Link, MAX_CHUNKS, most_tracked};
use super::policy::WHOLE;
use super::provide::{HEADER_WAITS, MAX_SIZES, PULLED};
use crate::wire::frame::MAX_WINDOW;

/// How many entries a table has and may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table {
    pub name: &'static str,
    pub len: usize,
    pub most: usize,
}

impl Table {
    pub fn new(name: &'static str, len: usize, most: usize) -> Table {
        Table { name, len, most }
    }
}

impl Node {
    /// Every table; of those that each link has one of, the fullest.
    pub fn tables(&self) -> Vec<Table> {
        let mut tables = vec![
            Table::new("links", self.links.len(), self.policy.most_connections(self.me.origin)),
            Table::new("neighbours' chunks", self.tracked, most_tracked(self.me.origin, self.links.len())),
            Table::new("sizes", self.sizes.len(), MAX_SIZES.max(2 * self.sizes_used) + MAX_WINDOW),
            Table::new("chunks held", self.store.chunks(), self.policy.budget_blocks as usize),
        ];
        // The least transfers weigh an eighth.
        let most = |by_rate: [usize; 3]| by_rate.into_iter().max().unwrap_or(0);
        let (ahead, origin) = (most(self.policy.uploads_ahead), most(self.policy.origin_uploads));
        let offers = (self.policy.uploads.max(origin) + ahead.max(self.policy.origin_ahead)) * WHOLE;
        type OfLink = (&'static str, fn(&Link) -> usize, usize);
        let each: [OfLink; 5] = [
            ("a link's window", |link| link.window.len(), MAX_WINDOW),
            ("a link's chunks", Link::chunks, MAX_CHUNKS),
            ("a link's uploads", |link| link.uploads.len(), PULLED + 2 * offers),
            ("a link's offers", |link| link.offers.len(), offers),
            ("a link's header waits", |link| link.header_waits.len(), HEADER_WAITS),
        ];
        for (name, len, most) in each {
            tables.push(Table::new(name, self.links.values().map(len).max().unwrap_or(0), most));
        }
        tables.extend(self.requests.tables(&self.policy));
        tables.extend(self.provide.tables());
        tables.extend(self.provide.copies.tables());
        tables.extend(self.gossip.tables(&self.policy));
        tables.extend(self.pages.tables());
        tables.push(self.trust.table());
        tables
    }
}
