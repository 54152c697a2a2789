//! The peers that are remembered, linked or not, and who is named to others.

use std::cmp::Reverse;
use std::net::SocketAddr;

use super::{COMPARED, Gossip, Known, MAX_KNOWN, MAX_ORIGINS, NEAR, RANKED, RANKED_BY};
use crate::chunk::ChunkId;
use crate::swarm::bits::Bits;
use crate::swarm::link::Link;
use crate::swarm::{LinkId, Node};
use crate::wire::datagram::Peer;
use crate::wire::frame::NodeId;

impl Gossip {
    fn forget(&mut self, node: NodeId) {
        if let Some(known) = self.known.swap_remove(&node) {
            self.leave(known.addr);
        }
    }

    /// Somebody known is not at an address any more.
    fn leave(&mut self, addr: SocketAddr) {
        if let Some(count) = self.at.get_mut(&addr) {
            *count -= 1;
            if *count == 0 {
                self.at.swap_remove(&addr);
            }
        }
    }
}

impl Node {
    pub(in crate::swarm) fn learn_peer(&mut self, node: NodeId, addr: SocketAddr, origin: bool) {
        if node == self.me.node || addr.port() == 0 {
            return;
        }
        if origin && !self.gossip.known.get(&node).is_some_and(|known| known.origin) {
            self.forget_an_origin();
        }
        if let Some(known) = self.gossip.known.get_mut(&node) {
            let before = std::mem::replace(&mut known.addr, addr);
            known.origin |= origin;
            known.tries = 0;
            if before != addr {
                self.gossip.leave(before);
                *self.gossip.at.entry(addr).or_default() += 1;
            }
            return;
        }
        if self.gossip.known.len() >= MAX_KNOWN {
            self.forget_worst_peer();
        }
        let (perhaps_origin, tries) = (false, 0);
        let known = Known { addr, origin, perhaps_origin, next_try: self.now, tries };
        self.gossip.known.insert(node, known);
        *self.gossip.at.entry(addr).or_default() += 1;
    }

    /// Somebody asked for neighbours by a datagram that anybody can forge: it is remembered if it is new in name and address.
    /// So nobody known is sent elsewhere, and an address that does not answer is not tried sooner for being named again.
    pub(super) fn learn_asker(&mut self, node: NodeId, addr: SocketAddr) {
        if !self.gossip.known.contains_key(&node) && !self.gossip.at.contains_key(&addr) {
            self.learn_peer(node, addr, false);
        }
    }

    /// A node that was heard itself has its address alone: one that was there before has ended, and started anew as this
    /// one. Else a long life would remember every start of every host.
    pub(in crate::swarm) fn forget_namesakes(&mut self, node: NodeId, addr: SocketAddr) {
        let itself = self.gossip.known.get(&node).is_some_and(|known| known.addr == addr);
        if self.gossip.at.get(&addr).copied().unwrap_or(0) > itself as u32 {
            self.gossip.known.retain(|other, known| *other == node || known.addr != addr);
            self.gossip.at.swap_remove(&addr);
            if itself {
                self.gossip.at.insert(addr, 1);
            }
        }
    }

    /// Makes room for another peer: of a few at random the one goes that failed most often, of equals no origin. So each node
    /// of a crowd that is larger than the table remembers others of it, and nobody can choose a name that stays.
    pub(super) fn forget_worst_peer(&mut self) {
        let count = self.gossip.known.len();
        let start = self.rng.usize(0..count.max(1));
        let known = (0..count).filter_map(|step| self.gossip.known.get_index((start + step) % count));
        let mut few: Vec<(&NodeId, &Known)> = known.take(COMPARED).collect();
        few.sort_unstable_by_key(|(_, known)| Reverse((known.tries, !known.origin)));
        let linked = |node: &NodeId| self.links.values().any(|link| link.greeted && link.peer == *node);
        // Of an origin's all may be linked: their links know them.
        let worst = few.iter().find(|(node, _)| !linked(node)).or(few.first()).map(|(node, _)| **node);
        if let Some(node) = worst {
            self.gossip.forget(node);
        }
    }

    /// Whoever knows the origin names it first: one that has lost all answers to its JOINs finds it by its neighbours.
    pub(in crate::swarm) fn learn_peers(&mut self, peers: Vec<Peer>) {
        let seeking = !self.has_origin();
        for (index, peer) in peers.into_iter().enumerate() {
            if !self.gossip.known.contains_key(&peer.node) {
                self.learn_peer(peer.node, peer.addr, false);
            }
            if let Some(known) = self.gossip.known.get_mut(&peer.node)
                && seeking
                && index == 0
            {
                known.perhaps_origin = true;
            }
        }
        self.gossip.next_meet = self.now;
    }

    /// Makes room for another origin: of too many the one goes that is not linked and was tried in vain most often.
    pub(super) fn forget_an_origin(&mut self) {
        let origins = self.gossip.known.iter().filter(|(_, known)| known.origin);
        if origins.clone().count() < MAX_ORIGINS {
            return;
        }
        let idle = origins.filter(|(node, _)| !self.links.values().any(|link| link.greeted && link.peer == **node));
        if let Some(node) = idle.max_by_key(|(_, known)| known.tries).map(|(node, _)| *node) {
            self.gossip.forget(node);
        }
    }

    #[cfg(test)]
    pub(in crate::swarm) fn known_peers(&self) -> impl Iterator<Item = NodeId> {
        self.gossip.known.keys().copied()
    }

    /// Random neighbours of mine, for somebody who is new, those first that may have what it is at; and the origin, in case
    /// it has not found that by itself.
    pub(super) fn some_peers(&mut self, not: NodeId, at: SocketAddr, position: u64, count: usize) -> Vec<Peer> {
        self.named_peers(not, at, count, |link| link.position.abs_diff(position) > NEAR)
    }

    /// The same for a neighbour: those first that have what it wants first, and of those the ones that read themselves.
    pub(super) fn peers_for(&mut self, id: LinkId, count: usize) -> Vec<Peer> {
        let Some(link) = self.links.get(&id) else { return Vec::new() };
        let (peer, addr, position) = (link.peer, link.addr, link.position);
        let lacks = |(chunk, range): (ChunkId, Bits)| (chunk, range.minus(&link.taken(chunk)));
        let wanted: Vec<(ChunkId, Bits)> =
            link.wants().map(lacks).filter(|(_, bits)| !bits.is_empty()).take(RANKED_BY).collect();
        self.named_peers(peer, addr, count, move |link| {
            let has = wanted.iter().position(|(chunk, bits)| !bits.and(&link.taken(*chunk)).is_empty());
            let near = link.position.abs_diff(position) <= NEAR;
            (has.unwrap_or(wanted.len()), link.window.is_empty(), !near)
        })
    }

    fn named_peers<R: Ord>(
        &mut self,
        not: NodeId,
        at: SocketAddr,
        count: usize,
        rank: impl Fn(&Link) -> R,
    ) -> Vec<Peer> {
        let peer = |link: &Link| Peer { node: link.peer, addr: link.addr };
        // Another host would find itself at this one's loopback.
        let of_use =
            |link: &&Link| link.greeted && link.peer != not && (at.ip().is_loopback() || !link.addr.ip().is_loopback());
        let origin = self.links.values().filter(of_use).find(|link| link.origin).map(peer);
        let count = count.saturating_sub(origin.is_some() as usize);
        let peers = self.links.values().filter(of_use).filter(|link| !link.origin && !link.hushed);
        let mut peers: Vec<&Link> = peers.collect();
        self.rng.shuffle(&mut peers);
        peers.truncate(RANKED);
        peers.sort_by_cached_key(|link| rank(link));
        origin.into_iter().chain(peers.into_iter().take(count).map(peer)).collect()
    }
}
