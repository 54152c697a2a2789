//! Who is behind the same switch, as far as this host's own network tells: what goes from rack to rack shares a few links.
//!
//! A rack is the network that an interface is in, by the interface's own mask. On a flat network, whatever its size, nobody is
//! outside, and nothing here changes anything. Nobody's word counts: a neighbour is where its connection comes from.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::swarm::Node;
use crate::swarm::link::Link;
use crate::wire::frame::NodeId;

/// A network that this host is in, as one of its interfaces has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subnet {
    pub address: Ipv4Addr,
    pub mask: Ipv4Addr,
}

impl Subnet {
    fn contains(&self, address: Ipv4Addr) -> bool {
        address & self.mask == self.address & self.mask
    }
}

impl Node {
    /// A connection to somebody was made from an address of this network.
    pub(in crate::swarm) fn note_own_subnet(&mut self, subnet: Option<Subnet>) {
        self.gossip.subnet = subnet.filter(|subnet| !subnet.address.is_loopback()).or(self.gossip.subnet);
    }

    /// Whether somebody is in another rack; nobody is before this node knows its own.
    pub(in crate::swarm) fn is_outside(&self, addr: SocketAddr) -> bool {
        match (self.gossip.subnet, addr.ip()) {
            (Some(subnet), IpAddr::V4(ip)) if self.policy.outside < self.policy.links => {
                !ip.is_loopback() && !subnet.contains(ip)
            }
            _ => false,
        }
    }

    /// Peers in the order in which links to them are opened: some in other racks, so that racks stay joined whoever is named
    /// in this one; then this rack's; then, if those are too few, the others.
    pub(super) fn own_rack_first(&self, candidates: Vec<(NodeId, SocketAddr)>) -> Vec<(NodeId, SocketAddr)> {
        let crosses = |link: &&Link| link.opened_by_me && !link.origin && self.is_outside(link.addr);
        let more = self.policy.outside(self.gossip.rate()).saturating_sub(self.links.values().filter(crosses).count());
        let is_origin = |node: &NodeId| self.gossip.known.get(node).is_some_and(|known| known.origin);
        let (mut order, inside): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(|(node, addr)| self.is_outside(*addr) && !is_origin(node));
        let rest = order.split_off(more.min(order.len()));
        order.extend(inside.into_iter().chain(rest));
        order
    }
}
