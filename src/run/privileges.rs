//! Root's powers, given up by an origin as far as serving needs none of them.
//!
//! Powers belong to threads, so this comes before there is a second one. What stays: reading whatever the tree holds,
//! and asking whether somebody has a file open for writing. Nothing that is started from then on can get more.

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs};
use tracing::warn;

/// Below it a port needs a power of its own.
const FIRST_FREE_PORT: u16 = 1024;

/// An origin whose first port is `port` keeps what it needs.
pub fn give_up(port: u16) {
    let mut needed = CapabilitySet::DAC_READ_SEARCH | CapabilitySet::LEASE;
    needed.set(CapabilitySet::NET_BIND_SERVICE, port < FIRST_FREE_PORT);
    let given = capabilities(None).and_then(|held| {
        // Where a service manager gave no more, it may have forbidden the call as well.
        if needed.contains(held.permitted) {
            return Ok(());
        }
        let kept = held.permitted & needed;
        set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
    });
    for error in [given.err(), set_no_new_privs(true).err()].into_iter().flatten() {
        warn!(%error, "an origin that keeps all of its user's powers");
    }
}
