//! `serve`.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::info;

use super::live::{self, Signals};
use super::{RunError, ram_bytes, secret, service};
use crate::cli::{FileSettings, ServeArgs};
use crate::settings::ServeSettings;
use crate::settings::quantity::show_size;
use crate::wire::head::{TreeHead, TreeName};

pub fn serve(args: ServeArgs, file: &FileSettings) -> Result<(), RunError> {
    super::log_to(args.log_file.as_deref().or(file.log_file.as_deref()))?;
    let (settings, mut net, cache) = args.settings(file, ram_bytes());
    secret::read(&mut net)?;
    super::privileges::give_up(net.base_port());
    let replica = settings.replica;
    let (dir, name) = tree_of(settings)?;
    let runtime = live::runtime()?;
    let node = match replica {
        false => live::serve(&dir, name, &net, &cache)?,
        true => live::serve_replica(&dir, name, &net, &cache)?,
    };
    let node = Arc::new(node.with_legacy(&net, &cache));
    let signals = {
        let _inside = runtime.enter();
        Signals::new()?
    };
    // Nobody needs to read this for the tree to be served.
    let _ = announce(&dir, &node.client().head(), replica);
    let tree = node.client().head().name.clone();
    runtime.block_on(async {
        tokio::select! {
            () = live::attend(node.clone(), tree, signals, std::future::pending()) => {}
            () = service::attend(&node) => {}
        }
    });
    service::stopping();
    info!("stopped");
    Ok(())
}

/// The directory by its real path, and what its tree is called.
fn tree_of(settings: ServeSettings) -> Result<(PathBuf, TreeName), RunError> {
    let ServeSettings { dir: given, name, .. } = settings;
    let refused = |reason| RunError::Directory { dir: given.clone(), reason };
    let dir = given.canonicalize().map_err(refused)?;
    // Listed here once, so that a directory that cannot be read is told at once.
    std::fs::read_dir(&dir).map_err(refused)?;
    let name = match name {
        Some(name) => name,
        None => name_of(&dir)?,
    };
    Ok((dir, name))
}

fn name_of(dir: &Path) -> Result<TreeName, RunError> {
    let name: OsString = dir.file_name().unwrap_or(dir.as_os_str()).to_owned();
    let parsed = name.to_str().and_then(|name| name.parse().ok());
    parsed.ok_or(RunError::Unnamed { name })
}

/// What a person at the origin copies to the other hosts.
fn announce(dir: &Path, head: &TreeHead, replica: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let (entries, bytes) = (head.totals.rows, show_size(head.totals.bytes));
    let what = if replica { "a replica of" } else { "as" };
    writeln!(out, "serving {} {what} {}: {entries} entries, {bytes}", dir.display(), head.name)?;
    writeln!(out, "key {} ({})", head.key, head.key.fingerprint())?;
    writeln!(out, "head {}", head.root)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(dir: &Path) -> Result<(PathBuf, TreeName), RunError> {
        tree_of(ServeSettings { dir: dir.to_owned(), name: None, replica: false })
    }

    #[test]
    fn a_tree_is_called_as_its_directory_really_is() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("images");
        std::fs::create_dir(&dir).unwrap();
        std::os::unix::fs::symlink("images", parent.path().join("link")).unwrap();
        for path in [dir.clone(), dir.join("."), parent.path().join("link")] {
            let (real, name) = named(&path).unwrap();
            assert_eq!((real, name.as_str()), (dir.canonicalize().unwrap(), "images"));
        }
    }

    #[test]
    fn what_cannot_be_served_or_named_is_refused_with_what_to_do() {
        let parent = tempfile::tempdir().unwrap();
        let error = named(&parent.path().join("missing")).unwrap_err().to_string();
        assert!(error.contains("No such file") && error.contains("name a directory"), "{error}");
        let file = parent.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(named(&file), Err(RunError::Directory { .. })));
        let odd = parent.path().join("a:b");
        std::fs::create_dir(&odd).unwrap();
        let error = named(&odd).unwrap_err().to_string();
        assert!(error.contains("--name"), "{error}");
        assert!(matches!(name_of(Path::new("/")), Err(RunError::Unnamed { .. })), "the root has no name");
    }
}
