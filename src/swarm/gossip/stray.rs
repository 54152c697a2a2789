//! Who has strayed from its neighbours: they have nothing that it wants, want nothing that it has, and do not read where it
//! reads. It looks for others, since else the origin sends it all of that.

use crate::chunk::ChunkId;
use crate::swarm::bits::Bits;
use crate::swarm::link::{Link, by_chunk};
use crate::swarm::{LinkId, Node};
use crate::wire::datagram::{MAX_PEERS, Peer};
use crate::wire::frame::NodeId;

/// A link that was made within this may not have told what it has.
const SETTLED: u64 = 500_000;

impl Node {
    /// Where few of its links are of use to a reader, it closes others and asks for new ones.
    pub(super) fn regroup(&mut self) {
        let Some([first, last]) = self.policy.look else { return };
        if self.now < self.gossip.next_look || self.requests.window().is_empty() || !self.has_origin() {
            return;
        }
        let of_no_use = |id: &LinkId, link: &Link| {
            let settled = link.known && self.now.since(link.born) >= SETTLED;
            let rests = link.uploads.is_empty() && link.offers.is_empty() && !self.requests.is_served_by(*id);
            !link.origin && settled && rests && !self.is_of_use(link)
        };
        let mut useless: Vec<LinkId> =
            self.links.iter().filter(|(id, link)| of_no_use(id, link)).map(|(id, _)| *id).collect();
        let (links, few) = (self.links_by_now(), self.links_by_now() / 2);
        if useless.is_empty() || self.neighbour_links().saturating_sub(useless.len()) >= few {
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

    /// One of the two reads what the other has, or both read the same.
    fn is_of_use(&self, link: &Link) -> bool {
        let mine = || self.requests.window().iter();
        let meets = link.window.iter().any(|theirs| mine().any(|mine| mine.overlaps(*theirs)));
        let has = |(chunk, range): (ChunkId, Bits)| !range.and(&link.taken(chunk)).is_empty();
        let wants = |(chunk, range): (ChunkId, Bits)| !range.and(&self.store.taken(chunk)).is_empty();
        meets || mine().flat_map(|run| by_chunk(*run)).any(has) || link.wants().any(wants)
    }
}
