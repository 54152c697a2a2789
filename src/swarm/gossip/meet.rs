//! How nodes meet: a JOIN is broadcast until an origin answers, the rest is introductions.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::{FIRST_JOIN, Known, LAST_JOIN};
use crate::swarm::{JoinAim, LinkId, Node, Output};
use crate::wire::datagram::{Join, MAX_PEERS, Welcome};
use crate::wire::frame::{Frame, NodeId};

impl Node {
    /// Looks for an origin while there is none, and for neighbours while there are too few.
    pub(in crate::swarm) fn meet(&mut self) {
        // An origin is found; a replica of it looks for the others.
        if self.signs_heads() || self.now < self.gossip.next_meet {
            return;
        }
        self.gossip.next_meet = self.now.plus(50_000);
        if !self.has_origin() && self.now >= self.gossip.next_join {
            // Of a thousand that are switched on together some are lost in full queues: those must not meet there again.
            let pause = self.gossip.join_pause;
            self.gossip.next_join = self.now.plus(self.rng.u64(pause / 2..pause * 3 / 2));
            self.gossip.join_pause = (self.gossip.join_pause * 2).min(LAST_JOIN);
            self.counters.joins += 1;
            self.out.push_back(Output::Join { join: JoinAim::Broadcast });
            let origins: Vec<SocketAddr> = self.gossip.known.values().filter(|k| k.origin).map(|k| k.addr).collect();
            for addr in origins {
                self.out.push_back(Output::Join { join: JoinAim::Unicast(addr) });
            }
        }
        self.regroup();
        let mut wanted = (self.links_by_now() + self.links_to_catch_up()).saturating_sub(self.neighbour_links());
        if self.me.origin {
            wanted = 0;
        }
        let leads = self.leads();
        let is_wanted = |node: &NodeId, known: &Known| {
            let leads_on = leads.as_ref().is_none_or(|leads| leads.contains(node));
            (wanted > 0 && leads_on) || known.origin || (known.perhaps_origin && !self.has_origin())
        };
        let linked: BTreeSet<NodeId> = self.links.values().map(|link| link.peer).collect();
        let taken: BTreeSet<SocketAddr> = self.links.values().map(|link| link.addr).collect();
        let mut candidates: Vec<(NodeId, SocketAddr)> = self
            .gossip
            .known
            .iter()
            .filter(|(node, known)| {
                is_wanted(node, known)
                    && !linked.contains(node)
                    && !taken.contains(&known.addr)
                    && self.now >= known.next_try
                    && !self.is_avoided(**node, known.addr.ip())
            })
            .map(|(node, known)| (*node, known.addr))
            .collect();
        self.rng.shuffle(&mut candidates);
        let candidates = self.own_rack_first(candidates);
        let mut dialling = self.links.values().filter(|link| link.opened_by_me && !link.greeted).count();
        for (node, addr) in candidates {
            // Whoever names a thousand peers that do not exist must not have a thousand connections tried at once.
            if dialling >= 2 * self.policy.links {
                break;
            }
            let known = &self.gossip.known[&node];
            let origin = known.origin || (known.perhaps_origin && !self.has_origin());
            if origin || wanted > 0 {
                wanted = if origin { wanted } else { wanted - 1 };
                dialling += 1;
                self.dial(node, addr);
            }
        }
        if wanted > 0 && self.now >= self.gossip.next_ask {
            let pauses = [350_000, 1_400_000];
            self.gossip.next_ask = self
                .now
                .plus(*pauses.get(self.gossip.asks as usize).unwrap_or(&(10_000_000 + self.rng.u64(0..2_000_000))));
            self.gossip.asks += 1;
            let mut targets: Vec<LinkId> =
                self.links.iter().filter(|(_, link)| link.greeted && link.origin).map(|(id, _)| *id).collect();
            if targets.is_empty() {
                targets = self.links.iter().filter(|(_, link)| link.greeted).map(|(id, _)| *id).collect();
            }
            if let Some(id) = self.rng.choice(targets) {
                self.send(id, Frame::Ask { count: wanted.min(MAX_PEERS) as u8 });
            }
        }
    }

    /// A few links at once, more when whoever started at the same moment is there too: if all filled up at once, they
    /// would all choose the first comers.
    pub(super) fn links_by_now(&self) -> usize {
        let most = self.policy.links(self.gossip.rate());
        match self.now.since(self.gossip.began) {
            0..250_000 => most.div_ceil(4),
            250_000..600_000 => most.div_ceil(2),
            _ => most,
        }
    }

    pub(super) fn neighbour_links(&self) -> usize {
        // Somebody who connected and said nothing yet may never do so.
        self.links.values().filter(|link| !link.origin && (link.greeted || link.opened_by_me)).count()
    }

    pub(super) fn dial(&mut self, node: NodeId, addr: SocketAddr) {
        if let Some(known) = self.gossip.known.get_mut(&node) {
            known.tries += 1;
            known.perhaps_origin = false;
            known.next_try = self.now.plus(1_000_000u64.saturating_mul(1 << known.tries.min(6)));
        }
        let link = self.new_link(addr, true);
        self.out.push_back(Output::Connect { link, addr });
    }

    /// An origin introduces whoever greets it to others.
    pub(in crate::swarm) fn introduce(&mut self, id: LinkId) {
        if self.me.origin {
            self.on_ask(id, self.policy.links.div_ceil(4) as u8);
        }
    }

    pub(in crate::swarm) fn on_ask(&mut self, id: LinkId, count: u8) {
        let peers = self.peers_for(id, (count as usize).min(MAX_PEERS));
        self.send(id, Frame::Peers(peers));
    }

    pub(in crate::swarm) fn on_join(&mut self, from: SocketAddr, join: Join) {
        let mine = join.tree.as_ref().is_none_or(|tree| *tree == self.me.tree);
        if !mine || join.node == self.me.node || join.port == 0 {
            return;
        }
        let mut to = from;
        to.set_port(join.port);
        // A broadcast reaches everybody: the origin answers, and about three of the others, in case it is away. Who has just
        // come itself and met nobody has nothing to tell.
        if !self.me.origin {
            self.learn_asker(join.node, to);
            let stranger = self.neighbour_links() == 0 && self.now.since(self.gossip.began) < 2 * FIRST_JOIN;
            let others = self.who_else_could_say();
            if stranger || self.rng.usize(0..others.max(1)) >= 3 {
                return;
            }
        }
        let peers = self.some_peers(join.node, from, join.position, self.policy.links.min(MAX_PEERS));
        self.out.push_back(Output::Welcome { to, peers });
    }

    /// How many can tell what this node can. An older state than the origin's, for which it was pinned, is told by nobody
    /// but those who show it too.
    fn who_else_could_say(&self) -> usize {
        if self.me.sequence == self.newest_head() {
            return self.gossip.known.len();
        }
        let neighbours = self.links.values().filter(|link| link.greeted && !link.origin);
        let alike = neighbours.clone().filter(|link| link.sequence == self.me.sequence).count();
        let there = self.gossip.known.values().filter(|known| known.tries == 0).count();
        there * alike / neighbours.count().max(1)
    }

    pub(in crate::swarm) fn on_welcome(&mut self, from: SocketAddr, welcome: Welcome) {
        let mut addr = from;
        addr.set_port(welcome.port);
        self.forget_namesakes(welcome.node, addr);
        self.learn_peer(welcome.node, addr, welcome.origin);
        if !self.me.origin {
            self.gossip.newest = self.gossip.newest.max(welcome.head.sequence);
        }
        if welcome.origin
            && let Some(known) = self.gossip.known.get_mut(&welcome.node)
        {
            // It is back: no reason to wait for the next try.
            known.next_try = self.now;
        }
        self.learn_peers(welcome.peers);
    }
}
