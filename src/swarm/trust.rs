//! Whom this node goes on dealing with: what lies and broken promises cost a neighbour.
//!
//! Wrong bytes and a broken protocol are nobody's mistake: the link ends and the peer is avoided for long. A transfer that
//! does not come or an offer that nobody answers may be another's fault, so the neighbour is first left alone for a
//! while, and avoided, for less, when it happens again without one good block in between. What a peer calls itself
//! proves nothing: avoided is a name at an address, so that nobody can have another one avoided.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::link::Link;
use super::{LinkId, Node, Table, Time};
use crate::wire::frame::NodeId;

/// How long a peer that lied is avoided.
const AVOID: u64 = 600_000_000;
/// The same of an origin, which may be all that there is: its blocks are checked like any others.
const AVOID_ORIGIN: u64 = 2_000_000;
/// How long one that only keeps no promise is avoided, and how long nothing is asked of it after the first time. The
/// second must outlast what it had promised at that time.
const AVOID_IDLER: u64 = 60_000_000;
const DOUBT: u64 = 5_000_000;
/// Broken promises in a row that end a link.
const MOST_BROKEN: u32 = 2;
/// Aborted transfers in a row that count as one broken promise: some happen whenever a source is lost.
const MOST_ABORTED: u32 = 32;
/// Peers avoided at once. More names than that are one liar with many.
const MAX_AVOIDED: usize = 1024;

/// How a neighbour keeps its word.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    /// In a row, since its last good block.
    pub broken: u32,
    pub aborted: u32,
    doubted_until: Time,
}

#[derive(Default)]
pub struct Trust {
    avoided: BTreeMap<(NodeId, IpAddr), Time>,
}

impl Trust {
    pub fn table(&self) -> Table {
        Table::new("peers avoided", self.avoided.len(), MAX_AVOIDED)
    }
}

impl Link {
    /// Nothing is asked of it now. An origin is asked all the same: there may be no other.
    pub fn is_doubted(&self, now: Time) -> bool {
        !self.origin && (self.hushed || now < self.record.doubted_until)
    }
}

impl Node {
    /// Ends a link to a peer that broke the protocol or sent wrong bytes, and avoids it.
    pub(super) fn refuse_peer(&mut self, id: LinkId) {
        let avoid = if self.is_origin(id) { AVOID_ORIGIN } else { AVOID };
        self.refuse_for(id, avoid);
    }

    /// A neighbour did not do what it had promised. The only origin is borne with.
    pub(super) fn break_promise(&mut self, id: LinkId) {
        let others = self.links.iter().any(|(other, link)| *other != id && link.greeted && link.origin);
        let Some(link) = self.links.get_mut(&id) else { return };
        if self.now < link.record.doubted_until {
            // It had promised that before.
            return;
        }
        link.record.doubted_until = self.now.plus(DOUBT);
        link.record.broken += 1;
        link.record.aborted = 0;
        if link.record.broken >= MOST_BROKEN && (!link.origin || others) {
            self.refuse_for(id, AVOID_IDLER);
        }
    }

    /// A neighbour gave up a transfer that it had promised.
    pub(super) fn note_aborted(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.record.aborted += 1;
        if link.record.aborted >= MOST_ABORTED {
            self.break_promise(id);
        }
    }

    /// A neighbour brought a block that was missing.
    pub(super) fn note_good_block(&mut self, id: LinkId) {
        if let Some(link) = self.links.get_mut(&id) {
            (link.record.broken, link.record.aborted) = (0, 0);
        }
    }

    /// A peer takes nothing of what it is sent.
    pub(super) fn on_unread(&mut self, id: LinkId) {
        self.refuse_for(id, AVOID_IDLER);
    }

    pub(super) fn is_avoided(&self, peer: NodeId, ip: IpAddr) -> bool {
        self.trust.avoided.get(&(peer, ip)).is_some_and(|until| self.now < *until)
    }

    fn refuse_for(&mut self, id: LinkId, us: u64) {
        let Some(link) = self.links.get(&id) else { return };
        self.counters.refused_peers += 1;
        if link.greeted {
            let name = (link.peer, link.addr.ip());
            let until = self.now.plus(us);
            self.avoid(name, until);
        }
        self.close_link(id);
    }

    fn avoid(&mut self, name: (NodeId, IpAddr), until: Time) {
        let (now, avoided) = (self.now, &mut self.trust.avoided);
        if avoided.len() >= MAX_AVOIDED {
            avoided.retain(|_, until| now < *until);
        }
        if avoided.len() >= MAX_AVOIDED
            && let Some(soonest) = avoided.iter().min_by_key(|(_, until)| **until).map(|(name, _)| *name)
        {
            avoided.remove(&soonest);
        }
        avoided.insert(name, until);
    }
}
