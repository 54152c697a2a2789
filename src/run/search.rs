//! A mount that is made before its tree was found (`delay_connect`): who looks for it meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::RunError;
use super::live::{self, Live};
use crate::cli::{MountRequest, OptionError};
use crate::driver::Client;
use crate::fs::{self, Late, LateFs};
use crate::keys::OriginKey;
use crate::settings::{CacheSettings, NetSettings, RETRY_BY_HAND};
use crate::wire::head::TreeName;

/// How often waiting requests are looked at: they may be this much late.
const TICK: Duration = Duration::from_millis(250);
/// Between two questions: an origin that answers and has no such tree yet answers at once.
const PAUSE: Duration = Duration::from_secs(1);

pub struct Search {
    late: Late<Client>,
    net: NetSettings,
    cache: CacheSettings,
    tree: TreeName,
    point: PathBuf,
}

impl Search {
    /// The filesystem to mount, and who will find what is in it.
    pub fn start(
        request: &MountRequest,
        settings: fs::Settings,
        point: &Path,
    ) -> Result<(Search, LateFs<Client>), RunError> {
        let tree = request.mount.tree.clone().ok_or(OptionError::DelayWithoutTree)?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| RunError::Start(error.into()))?;
        let (late, fs) = Late::start(tree.clone(), settings, &OriginKey::from_seed(&seed))
            .map_err(|reason| RunError::Root { subdir: request.mount.subdir.clone(), reason: reason.into() })?;
        let (net, cache, point) = (request.net.clone(), request.cache, point.to_owned());
        Ok((Search { late, net, cache, tree, point }, fs))
    }

    /// The node, as soon as somebody with the tree was found.
    pub async fn node(self) -> Result<Arc<Live>, RunError> {
        let late = self.late.clone();
        let (tell, mut found) = oneshot::channel();
        let thread = std::thread::Builder::new().name("swarmfs-search".to_owned()).spawn(move || {
            // Nobody waits any more where the mount has ended.
            let _ = tell.send(self.find());
        });
        thread.map_err(RunError::Start)?;
        loop {
            tokio::select! {
                node = &mut found => return Ok(node.expect("the thread tells before it ends")),
                () = tokio::time::sleep(TICK) => late.expire(Instant::now()),
            }
        }
    }

    fn find(self) -> Arc<Live> {
        let mut told = false;
        loop {
            let joined = live::find(&self.net, Some(&self.tree), RETRY_BY_HAND)
                .and_then(|found| live::join(found, &self.net, &self.cache));
            match joined {
                Ok(node) => {
                    let node = Arc::new(node.mounted_on(&self.point));
                    self.late.connect(node.client().clone());
                    info!(tree = %self.tree, "whoever waited for the tree can go on");
                    return node;
                }
                Err(error) if told => debug!(%error, "still looking for the tree"),
                Err(error) => {
                    told = true;
                    warn!("{error}; the mount waits for it");
                }
            }
            std::thread::sleep(PAUSE);
        }
    }
}
