//! `ls` and `cat`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;

use super::access::Access;
use super::{RunError, report, show, status};
use crate::cli::{CatArgs, FileSettings, LsArgs};
use crate::control::Entry;
use crate::wire::head::TreeName;

pub fn ls(args: LsArgs, file: &FileSettings) -> Result<(), RunError> {
    let LsArgs { long, path: spec, pin, node } = args;
    let access = Access::to(spec.tree.as_ref(), pin, node, file)?;
    let terminal = io::stdout().is_terminal();
    let mut out = BufWriter::new(io::stdout().lock());
    let listed = access.list(&spec.path, &mut |entry: Entry| out.write_all(&show::entry(&entry, long, terminal)));
    // What came before a failure is shown before the failure is told.
    let flushed = out.flush().map_err(RunError::Output);
    listed.map_err(|error| RunError::of_path(&spec.text, error))?;
    flushed
}

/// Writes one file after the other; one that fails is told, and the next is written all the same, as cat(1) does.
pub fn cat(args: CatArgs, file: &FileSettings) -> Result<(), RunError> {
    let mut ways: BTreeMap<Option<TreeName>, Access> = BTreeMap::new();
    // Past the standard library's buffer, which would look for lines in it: what came goes on at once, in large pieces.
    let mut out = File::from(io::stdout().as_fd().try_clone_to_owned().map_err(RunError::Output)?);
    let mut failed = false;
    for spec in args.paths {
        if !ways.contains_key(&spec.tree) {
            ways.insert(spec.tree.clone(), Access::to(spec.tree.as_ref(), args.pin.clone(), args.node.clone(), file)?);
        }
        let written = ways[&spec.tree].cat(&spec.path, &mut out).map_err(|error| RunError::of_path(&spec.text, error));
        match written {
            Err(error @ RunError::Output(_)) => return Err(error),
            written => failed |= report(written) != status::DONE,
        }
    }
    if failed { Err(RunError::Reported) } else { Ok(()) }
}
