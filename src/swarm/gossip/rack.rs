//! Who is behind the same switch, as far as addresses tell: what crosses from rack to rack shares a few links.

use std::net::{IpAddr, SocketAddr};

use crate::swarm::Node;
use crate::swarm::link::Link;

/// Links that a node opens to other racks, if there are others to open in its own.
pub const OUTSIDE: usize = 3;

/// Whether two addresses are of one rack: of one IPv4 /24 or IPv6 /64, which is how racks are numbered where they are
/// routed. On a flat network all are of one, and nothing changes.
fn same_rack(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.octets()[..3] == b.octets()[..3],
        (IpAddr::V6(a), IpAddr::V6(b)) => a.octets()[..8] == b.octets()[..8],
        _ => false,
    }
}

impl Node {
    /// A connection to somebody was made from this address.
    pub(in crate::swarm) fn note_own_address(&mut self, own: IpAddr) {
        if !own.is_loopback() && !own.is_unspecified() {
            self.gossip.own = Some(own);
        }
    }

    /// Whether somebody is in another rack; nobody is before this node knows its own address.
    pub(in crate::swarm) fn is_outside(&self, addr: SocketAddr) -> bool {
        !addr.ip().is_loopback() && self.gossip.own.is_some_and(|own| !same_rack(own, addr.ip()))
    }

    /// How many links to other racks may still be opened, of those that are wanted, with so many candidates in this one.
    pub(super) fn wanted_outside(&self, wanted: usize, inside: usize) -> usize {
        let crosses = |link: &&Link| !link.origin && link.opened_by_me && self.is_outside(link.addr);
        let open = self.links.values().filter(crosses).count();
        OUTSIDE.saturating_sub(open).max(wanted.saturating_sub(inside))
    }
}

/// Puts those of an address's own rack first.
pub(super) fn own_rack_first(at: IpAddr, peers: &mut [&Link]) {
    peers.sort_by_key(|link| !same_rack(at, link.addr.ip()));
}
