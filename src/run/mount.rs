//! `mount`: from the settings to a mount that answers, and to its end.
//!
//! The order matters. The fork comes before any thread; what can be refused without the network is refused first; the
//! mount is made when there is something to show; the terminal is left when the mount answers. A failure before that is
//! the command's own, told where the command was given.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::live::{self, Live, Signals};
use super::{RunError, is_root, log, ram_bytes, report, say, status};
use crate::cli::MountArgs;
use crate::driver::Client;
use crate::fs::{self, Fs};
use crate::fuse::{self, MountError, Mounted, Outcome, Readiness, Role, daemonize};
use crate::settings::{CacheSettings, MountSettings, NetSettings, Patience};

/// Runs the command and gives its exit status.
pub fn mount(args: MountArgs) -> u8 {
    let (settings, net, cache) = match args.settings(ram_bytes(), is_root()) {
        Ok(settings) => settings,
        Err(error) => return report(Err(error.into())),
    };
    let readiness = match daemonize(settings.foreground) {
        Ok(Role::Child(readiness)) => readiness,
        Ok(Role::Parent(outcome)) => return tell(&outcome),
        Err(error) => return tell(&outcome_of(&RunError::Background(error))),
    };
    match start(&settings, &net, &cache) {
        Ok(started) => started.stay(readiness),
        Err(error) => fail(readiness, &error),
    }
}

/// A mount that answers, its node, and what will end them.
struct Started {
    // In the order in which they end: the mount's requests need the node.
    mounted: Arc<Mounted>,
    node: Arc<Live>,
    signals: Signals,
    runtime: Runtime,
}

fn start(settings: &MountSettings, net: &NetSettings, cache: &CacheSettings) -> Result<Started, RunError> {
    let point = usable(&settings.mountpoint)?;
    let runtime = live::runtime()?;
    let found = live::find(net, settings.tree.as_ref())?;
    let source = settings.source.clone().unwrap_or_else(|| found.head.name.as_str().into());
    let node = Arc::new(live::join(found, net, cache)?.mounted_on(&point));
    let fs = runtime.block_on(filesystem(&node, settings, net))?;
    // Until here a signal just ends the process; from here there is a mount to take away first.
    let signals = {
        let _inside = runtime.enter();
        Signals::new()?
    };
    let MountSettings { suid, dev, noexec, .. } = *settings;
    let mounted = fuse::mount(fs, &fuse::Settings { source, point, suid, dev, exec: !noexec })?;
    Ok(Started { mounted: Arc::new(mounted), node, signals, runtime })
}

/// The tree, or the directory of it that is to be shown.
async fn filesystem(node: &Live, settings: &MountSettings, net: &NetSettings) -> Result<Arc<Fs<Client>>, RunError> {
    let root = settings.subdir.as_os_str().as_bytes().to_vec();
    let patience = match settings.patience {
        Patience::Hard => None,
        Patience::Soft(patience) => Some(patience),
    };
    let (tell, answer) = oneshot::channel();
    Fs::start(node.client().clone(), fs::Settings { root, patience }, move |started| {
        // Nobody waits any more only where the command has ended.
        let _ = tell.send(started);
    });
    let answer = tokio::time::timeout(live::FIRST_PAGE, answer).await.map_err(|_| node.unreached(net))?;
    let started = answer.unwrap_or(Err(fs::Error::Ended));
    started.map_err(|reason| RunError::Root { subdir: Path::new("/").join(&settings.subdir), reason: reason.into() })
}

/// The mountpoint by its real path. Looked at before the network is, so that a slip of the finger is told at once.
fn usable(point: &Path) -> Result<PathBuf, MountError> {
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
        let Started { mounted, node, signals, runtime } = self;
        let foreground = readiness.is_foreground();
        if let Err(error) = readiness.ready() {
            warn!(%error, "cannot leave the terminal");
        }
        if !foreground {
            log::to_background();
        }
        runtime.block_on(node.attend(signals, ended(mounted.clone())));
        // After a signal it is still there.
        if let Err(error) = mounted.unmount() {
            warn!(%error, "the mount could not be taken away");
            return status::SYSTEM;
        }
        mounted.wait();
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

fn outcome_of(error: &RunError) -> Outcome {
    Outcome { status: error.status(), message: error.to_string() }
}

fn fail(readiness: Readiness, error: &RunError) -> u8 {
    let foreground = readiness.is_foreground();
    let Outcome { status, message } = outcome_of(error);
    let outcome = readiness.failed(status, &message);
    // In the background the parent, which the person is looking at, says it.
    if foreground { tell(&outcome) } else { outcome.status }
}

fn tell(outcome: &Outcome) -> u8 {
    if !outcome.message.is_empty() {
        say(&outcome.message);
    }
    outcome.status
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

    #[test]
    fn a_mount_that_fails_ends_with_2_and_a_wrong_command_line_with_1() {
        let missing = RunError::Mount(MountError::Missing(PathBuf::from("/mnt/x")));
        assert_eq!(outcome_of(&missing).status, 2);
        let unnamed = RunError::SeveralHere(Vec::new());
        assert_eq!(outcome_of(&unnamed).status, 1);
    }
}
