//! `mount`: from the settings to a mount that answers, and to its end.
//!
//! The order matters. The fork comes before any thread; what can be refused without the network is refused first; the
//! mount is made when there is something to show; the terminal is left when the mount answers. A failure before that is
//! the command's own, told where the command was given.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::live::{self, Live, Signals};
use super::search::Search;
use super::{RunError, find, log, service, status};
use crate::cli::MountRequest;
use crate::driver::Client;
use crate::fs::{self, Fs};
use crate::fuse::{self, MountError, Mounted, Outcome, Readiness, Role, daemonize};
use crate::settings::{MountSettings, NetSettings, Patience};

/// Mounts and, in the foreground, serves the mount to its end. `status_of` gives the exit status of a failure: the command
/// and mount(8)'s helper differ in that. An error is still to be told; an outcome's message is, too.
pub fn mount(request: &MountRequest, status_of: &dyn Fn(&RunError) -> u8) -> Result<Outcome, RunError> {
    super::log_to(request.log_file.as_deref())?;
    let readiness = match daemonize(request.mount.foreground).map_err(RunError::Background)? {
        Role::Child(readiness) => readiness,
        Role::Parent(outcome) => return Ok(outcome),
    };
    match start(request) {
        Ok(started) => Ok(Outcome { status: started.stay(readiness), message: String::new(), death: None }),
        Err(error) if readiness.is_foreground() => Err(error),
        // The parent, which the person is looking at, says it.
        Err(error) => {
            let told = readiness.failed(status_of(&error), &error.to_string());
            Ok(Outcome { message: String::new(), ..told })
        }
    }
}

/// A mount that answers, its node, and what will end them.
struct Started {
    // In the order in which they end: the mount's requests need the node.
    mounted: Arc<Mounted>,
    supply: Source,
    signals: Signals,
    runtime: Runtime,
}

/// Where a mount's bytes come from.
enum Source {
    Node(Arc<Live>),
    /// From a node that is still to be found.
    Search(Box<Search>),
}

fn start(request: &MountRequest) -> Result<Started, RunError> {
    let MountRequest { mount: settings, net, cache, .. } = request;
    let point = usable(&settings.mountpoint)?;
    let runtime = live::runtime()?;
    if settings.delay_connect {
        let (search, fs) = Search::start(request, of_fs(settings), &point)?;
        let source = settings.source.clone().unwrap_or_default();
        let signals = signals(&runtime)?;
        let mounted = Arc::new(fuse::mount(fs, &shown_on(point, source, settings))?);
        return Ok(Started { mounted, supply: Source::Search(Box::new(search)), signals, runtime });
    }
    let found = find::find(net, settings.tree.as_ref(), settings.retry)?;
    let source = settings.source.clone().unwrap_or_else(|| found.head.name.as_str().into());
    let node = Arc::new(live::join(found, net, cache)?.mounted_on(&point));
    let fs = runtime.block_on(filesystem(&node, settings, net))?;
    let signals = signals(&runtime)?;
    let mounted = Arc::new(fuse::mount(fs, &shown_on(point, source, settings))?);
    Ok(Started { mounted, supply: Source::Node(node), signals, runtime })
}

/// Until they are heard a signal just ends the process; from then on there is a mount to take away first.
fn signals(runtime: &Runtime) -> Result<Signals, RunError> {
    let _inside = runtime.enter();
    Signals::new()
}

fn of_fs(settings: &MountSettings) -> fs::Settings {
    let patience = match settings.patience {
        Patience::Hard => None,
        Patience::Soft(patience) => Some(patience),
    };
    fs::Settings { root: settings.subdir.as_os_str().as_bytes().to_vec(), patience }
}

fn shown_on(point: PathBuf, source: OsString, settings: &MountSettings) -> fuse::Settings {
    let MountSettings { suid, dev, noexec, nosymfollow, allow_other, shown, .. } = *settings;
    fuse::Settings { source, point, suid, dev, exec: !noexec, allow_other, symfollow: !nosymfollow, shown }
}

/// The tree, or the directory of it that is to be shown.
async fn filesystem(node: &Live, settings: &MountSettings, net: &NetSettings) -> Result<Arc<Fs<Client>>, RunError> {
    let (tell, answer) = oneshot::channel();
    Fs::start(node.client().clone(), of_fs(settings), move |started| {
        // Nobody waits any more only where the command has ended.
        let _ = tell.send(started);
    });
    let answer = tokio::time::timeout(live::FIRST_PAGE, answer).await.map_err(|_| node.unreached(net))?;
    let started = answer.unwrap_or(Err(fs::Error::Ended));
    started.map_err(|reason| RunError::Root { subdir: Path::new("/").join(&settings.subdir), reason: reason.into() })
}

/// The mountpoint by its real path. Looked at before the network is, so that a slip of the finger is told at once.
fn usable(point: &Path) -> Result<PathBuf, MountError> {
    if fuse::handed_descriptor(point).is_some() {
        return Ok(point.to_owned());
    }
    let unusable = |reason: io::Error| match reason.kind() {
        io::ErrorKind::NotFound => MountError::Missing(point.to_owned()),
        _ => MountError::Unreachable(point.to_owned(), reason),
    };
    let real = point.canonicalize().map_err(unusable)?;
    match real.metadata() {
        Ok(metadata) if !metadata.is_dir() => Err(MountError::NotADirectory(point.to_owned())),
        // A dead mount is the business of the mounting itself, which knows when to clear it.
        _ => Ok(real),
    }
}

impl Started {
    /// Lets the command return, and serves the mount until it is unmounted or a signal asks for its end.
    fn stay(self, readiness: Readiness) -> u8 {
        let Started { mounted, supply, mut signals, runtime } = self;
        let foreground = readiness.is_foreground();
        if let Err(error) = readiness.ready() {
            warn!(%error, "cannot leave the terminal");
        }
        if !foreground {
            log::to_background();
        }
        // Held until the mount is gone: its requests need it.
        let node = match supply {
            Source::Node(node) => Some(node),
            Source::Search(search) => runtime.block_on(async {
                service::ready("waits for somebody with the tree");
                tokio::select! {
                    found = search.node() => found.map_err(|error| warn!(%error, "the mount stays empty")).ok(),
                    () = ended(mounted.clone()) => None,
                    () = signals.asked() => None,
                }
            }),
        };
        if let Some(node) = &node {
            runtime.block_on(async {
                tokio::select! {
                    () = node.clone().attend(signals, ended(mounted.clone())) => {}
                    () = service::attend(node) => {}
                }
            });
        }
        service::stopping();
        // After a signal it is still there.
        if let Err(error) = mounted.unmount() {
            warn!(%error, "the mount could not be taken away");
            return status::SYSTEM;
        }
        if !mounted.is_handed() {
            mounted.wait();
        }
        info!("unmounted");
        status::DONE
    }
}

/// Done when the mount is gone, whoever took it away.
async fn ended(mounted: Arc<Mounted>) {
    let (tell, gone) = oneshot::channel();
    let thread = std::thread::Builder::new().name("swarmfs-unmount".to_owned()).spawn(move || {
        mounted.wait();
        let _ = tell.send(());
    });
    match thread {
        Ok(_) => drop(gone.await),
        Err(error) => {
            warn!(%error, "cannot watch for the mount's end: only a signal ends this process");
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mountpoint_is_refused_before_the_network_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(usable(&dir.path().join("missing")), Err(MountError::Missing(_))));
        assert!(matches!(usable(&file), Err(MountError::NotADirectory(_))));
        assert_eq!(usable(&dir.path().join(".")).unwrap(), dir.path().canonicalize().unwrap());
    }
}
