//! A mount that is made before its tree was found (`delay_connect`): who looks for it meanwhile.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::io::AsyncRead;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use super::live::{self, Live};
use super::{RunError, find};
use crate::cli::{MountRequest, OptionError};
use crate::control::{Answer, Entry, Failure, Node, Role, Status};
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
    seeking: Arc<Seeking>,
    late: Late<Client>,
    net: NetSettings,
    cache: CacheSettings,
    tree: TreeName,
    point: PathBuf,
}

/// What `status` is told meanwhile.
struct Seeking {
    tree: TreeName,
    point: PathBuf,
    reason: Mutex<String>,
}

impl Seeking {
    fn reason(&self) -> MutexGuard<'_, String> {
        self.reason.lock().expect("no holder of this lock panics")
    }
}

impl Node for Seeking {
    fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            role: Role::Mount,
            tree: self.tree.to_string(),
            mountpoint: Some(self.point.to_string_lossy().into_owned()),
            waits: Some(self.reason().clone()),
            ..Status::default()
        }
    }

    fn list<'a>(&'a self, _: &'a Path, _: mpsc::Sender<Entry>) -> Answer<'a, ()> {
        Box::pin(async { Err(Failure::TimedOut) })
    }

    fn open<'a>(&'a self, _: &'a Path) -> Answer<'a, Box<dyn AsyncRead + Send + Unpin>> {
        Box::pin(async { Err(Failure::TimedOut) })
    }
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
        let reason = Mutex::new("the network is being asked for the tree".to_owned());
        let seeking = Arc::new(Seeking { tree: tree.clone(), point: point.clone(), reason });
        Ok((Search { seeking, late, net, cache, tree, point }, fs))
    }

    /// The node, as soon as somebody with the tree was found. `status` shows the mount meanwhile.
    pub async fn node(self) -> Result<Arc<Live>, RunError> {
        let late = self.late.clone();
        let mut control = std::pin::pin!(live::answer(self.seeking.clone(), self.tree.clone()));
        let (tell, mut found) = oneshot::channel();
        let thread = std::thread::Builder::new().name("swarmfs-search".to_owned()).spawn(move || {
            // Nobody waits any more where the mount has ended.
            let _ = tell.send(self.find());
        });
        thread.map_err(RunError::Start)?;
        loop {
            tokio::select! {
                node = &mut found => return Ok(node.expect("the thread tells before it ends")),
                () = &mut control => {}
                () = tokio::time::sleep(TICK) => late.expire(Instant::now()),
            }
        }
    }

    fn find(self) -> Arc<Live> {
        let mut told = false;
        loop {
            let joined = find::find(&self.net, Some(&self.tree), RETRY_BY_HAND)
                .and_then(|found| live::join(found, &self.net, &self.cache));
            match joined {
                Ok(node) => {
                    let node = Arc::new(node.mounted_on(&self.point));
                    self.late.connect(node.client().clone());
                    info!(tree = %self.tree, "whoever waited for the tree can go on");
                    return node;
                }
                Err(error) => {
                    *self.seeking.reason() = error.to_string();
                    match told {
                        true => debug!(%error, "still looking for the tree"),
                        false => warn!("{error}; the mount waits for it"),
                    }
                    told = true;
                }
            }
            std::thread::sleep(PAUSE);
        }
    }
}
