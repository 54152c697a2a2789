//! Who has strayed from its neighbours: they have nothing that it wants, want nothing that it has, and do not read where it
//! reads; or what comes next is at none of them. It looks for others, since else the origin sends it all of that, and what
//! others have only to who starves for it: a piece at a time.

use crate::chunk::ChunkId;
use crate::swarm::bits::Bits;
use crate::swarm::link::{Link, by_chunk};
use crate::swarm::{LinkId, Node};
use crate::wire::datagram::{MAX_PEERS, Peer};
use crate::wire::frame::NodeId;

/// A link that was made within this may not have told what it has.
const SETTLED: u64 = 500_000;
/// So many pieces at no neighbour show that it is not this one alone that they lack. (Four who started three seconds after 45
/// others, as fast as flash cards, had the first 14 MiB, which were among those kept for such readers, in 4.3 s.)
const LEFT_OUT: u32 = 2;

impl Node {
    /// Where few of a reader's links are of use to it, or none for what comes next, it closes some of the others and asks for
    /// new ones.
    pub(super) fn regroup(&mut self) {
        let Some([first, last]) = self.policy.look else { return };
        let is_left_out = self.requests.left_out >= LEFT_OUT;
        let due = self.now >= self.gossip.next_look || (is_left_out && self.gossip.leads.is_none());
        if !due || self.requests.window().is_empty() || !self.has_origin() {
            return;
        }
        self.requests.left_out = 0;
        let mut useless = self.useless_links();
        let (links, few) = (self.links_by_now(), self.links_by_now() / 2);
        let most_are_of_use = useless.is_empty() || self.neighbour_links().saturating_sub(useless.len()) >= few;
        if most_are_of_use && !is_left_out {
            (self.gossip.leads, self.gossip.look_pause) = (None, first);
        } else {
            self.gossip.leads = Some(Vec::new());
            self.gossip.look_pause = (2 * self.gossip.look_pause).clamp(first, last);
            self.gossip.next_ask = self.now;
            // Some stay: what they hold is wanted later.
            self.rng.shuffle(&mut useless);
            for id in useless.drain((links - few).min(useless.len())..) {
                self.close_link(id);
            }
        }
        self.gossip.next_look = self.now.plus(self.gossip.look_pause);
    }

    pub(in crate::swarm) fn has_strayed(&self) -> bool {
        self.gossip.leads.is_some()
    }

    /// Whom alone a stray dials: of those it knows hardly anybody would be of use. Only an origin knows what all have.
    pub(super) fn leads(&self) -> Option<Vec<NodeId>> {
        self.gossip.leads.clone().filter(|_| self.has_origin())
    }

    pub(in crate::swarm) fn on_peers(&mut self, id: LinkId, peers: Vec<Peer>) {
        if let Some(leads) = self.gossip.leads.as_mut().filter(|_| self.links.get(&id).is_some_and(|link| link.origin))
        {
            leads.extend(peers.iter().map(|peer| peer.node).take(MAX_PEERS - leads.len()));
        }
        self.learn_peers(peers);
    }

    /// Makes room for somebody who connects: a link goes that is of no use now. False if there is none. (Those who have read to
    /// the end are full of links to each other, and turned away whoever came late for what they keep.)
    pub(in crate::swarm) fn close_a_useless_link(&mut self) -> bool {
        let useless = if self.me.origin { Vec::new() } else { self.useless_links() };
        let Some(id) = self.rng.choice(useless) else { return false };
        self.close_link(id);
        true
    }

    /// Links to neighbours that are of no use to either side now.
    fn useless_links(&self) -> Vec<LinkId> {
        let of_no_use = |id: &LinkId, link: &Link| {
            let settled = link.known && self.now.since(link.born) >= SETTLED;
            let rests = link.uploads.is_empty() && link.offers.is_empty() && !self.requests.is_served_by(*id);
            !link.origin && settled && rests && !self.is_of_use(link)
        };
        self.links.iter().filter(|(id, link)| of_no_use(id, link)).map(|(id, _)| *id).collect()
    }

    /// One of the two reads what the other has, or both read the same.
    fn is_of_use(&self, link: &Link) -> bool {
        let mine = || self.requests.window().iter();
        let meets = link.window.iter().any(|theirs| mine().any(|mine| mine.overlaps(*theirs)));
        let has = |(chunk, range): (ChunkId, Bits)| !range.and(&link.taken(chunk)).is_empty();
        let wants = |(chunk, range): (ChunkId, Bits)| !range.and(&self.store.taken(chunk)).is_empty();
        meets || mine().flat_map(|run| by_chunk(*run)).any(has) || link.wants().any(wants)
    }
}
