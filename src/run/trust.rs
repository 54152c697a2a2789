//! Trust on first use: what this host remembers of trees' keys, and what is said of it.

use tracing::{info, warn};

use super::show::local_time;
use crate::driver::Found;
use crate::keys::PublicKey;
use crate::state::{Known, StateDir, StateError};
use crate::wire::head::TreeName;

/// Strangers named in the log at once.
const NAMED: usize = 8;

/// The state directory, where there is one that can be used. Without it a key is trusted for as long as the node runs.
pub struct Memory(Result<StateDir, StateError>);

impl Memory {
    pub fn open() -> Memory {
        Memory(StateDir::locate())
    }

    pub fn known(&self, tree: &TreeName) -> Option<Known> {
        match self.0.as_ref().ok()?.known(tree) {
            Ok(known) => known,
            Err(error) => {
                warn!("cannot look up which key is trusted: {error}");
                None
            }
        }
    }

    /// Says whose key counts from now on, and remembers it. `given` is the one that a person named.
    pub fn trust(&self, found: &Found, given: Option<PublicKey>) {
        for offer in found.strange.iter().take(NAMED) {
            warn!(host = %offer.host.ip(), key = offer.key.fingerprint(),
                "somebody else offers this tree with another key; ignored");
        }
        let head = &found.head;
        let (tree, key) = (&head.name, head.key.fingerprint());
        let known = self.known(tree);
        if let Some(known) = known.filter(|known| known.key == head.key) {
            let since = local_time(known.since_s);
            return match given {
                Some(_) => info!(%tree, key, "found the tree, signed with the key given"),
                None => info!(%tree, key, since, "found the tree, signed with the key that is remembered"),
            };
        }
        if let Some(known) = known {
            let remembered = known.key.fingerprint();
            return info!(%tree, key, remembered, "found the tree; the key given counts over the one remembered");
        }
        let remembered = match &self.0 {
            Ok(state) => state.remember(tree, head.key).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match (remembered, given) {
            (Ok(_), Some(_)) => info!(%tree, key, "found the tree, signed with the key given, which is remembered"),
            (Ok(_), None) => warn!(
                %tree, key,
                "found the tree; its key is the first one seen and is remembered, pin it with --key {}", head.key
            ),
            (Err(reason), Some(_)) => info!(%tree, key, reason, "found the tree, signed with the key given"),
            (Err(reason), None) => warn!(
                %tree, key,
                "found the tree; its key is trusted as the first one seen and cannot be remembered ({reason}), pin it \
                 with --key {}", head.key
            ),
        }
    }
}
