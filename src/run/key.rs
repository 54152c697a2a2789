//! `key`.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use super::{RunError, say, secret, show};
use crate::cli::KeyArgs;
use crate::state::{Exported, Imported, KeyText, StateDir, StateError};
use crate::wire::head::TreeName;

/// Standard input or output, as a file's name.
const STANDARD: &str = "-";

pub fn key(args: KeyArgs) -> Result<(), RunError> {
    let mut out = io::stdout().lock();
    let KeyArgs { export, import, forget, new_secret, force } = args;
    if let Some(file) = new_secret {
        return make_secret(&file, &mut out);
    }
    let state = StateDir::locate()?;
    match (export, import, forget) {
        (Some(file), ..) => self::export(&state, &file, force, &mut out),
        (None, Some(file), _) => self::import(&state, &file, force, &mut out),
        (None, None, Some(tree)) => self::forget(&state, &tree, &mut out),
        (None, None, None) => print(&state, &mut out),
    }
}

fn print(state: &StateDir, out: &mut dyn Write) -> Result<(), RunError> {
    let key = state.key()?.public();
    let trusted = state.all_known()?;
    let mut said = writeln!(out, "key {key} ({})\nkept in {}", key.fingerprint(), state.path().display());
    for (tree, known) in trusted {
        let since = show::local_time(known.since_s);
        said = said.and_then(|()| writeln!(out, "trusts {tree}: {} since {since}", known.key.fingerprint()));
    }
    said.map_err(RunError::Output)
}

fn make_secret(file: &Path, out: &mut dyn Write) -> Result<(), RunError> {
    if file == Path::new(STANDARD) {
        return writeln!(out, "{}", secret::draw()?.reveal()).map_err(RunError::Output);
    }
    secret::make(file)?;
    let file = file.display();
    writeln!(out, "wrote a new secret to {file}: each node of the swarm takes a copy, with --secret-file")
        .map_err(RunError::Output)
}

fn forget(state: &StateDir, tree: &TreeName, out: &mut dyn Write) -> Result<(), RunError> {
    let Some(known) = state.forget(tree)? else {
        let known = state.all_known()?.into_iter().map(|(tree, known)| format!("{tree}: {}", known.key.fingerprint()));
        return Err(RunError::NothingKnown { tree: tree.clone(), known: known.collect() });
    };
    let said = writeln!(
        out,
        "forgot the key {} of the tree {tree}: the next one seen is trusted; running mounts keep theirs",
        known.key.fingerprint()
    );
    said.map_err(RunError::Output)
}

fn export(state: &StateDir, file: &Path, force: bool, out: &mut dyn Write) -> Result<(), RunError> {
    let key = state.key_text()?;
    let fingerprint = key.public().fingerprint();
    if file == Path::new(STANDARD) {
        out.write_all(key.text().as_bytes()).map_err(RunError::Output)?;
        // Not among what goes into a file or a pipe.
        say(&format!("this is the secret key {fingerprint}: whoever has it can serve in this host's name"));
        return Ok(());
    }
    let said = match key.export(file, force)? {
        Exported::Written => writeln!(
            out,
            "wrote the secret key {fingerprint} to {}: whoever has it can serve in this host's name",
            file.display()
        ),
        Exported::Same => writeln!(out, "{} has the secret key {fingerprint} already", file.display()),
    };
    said.map_err(RunError::Output)
}

fn import(state: &StateDir, file: &Path, force: bool, out: &mut dyn Write) -> Result<(), RunError> {
    let key = if file == Path::new(STANDARD) {
        KeyText::read(io::stdin().lock(), file)?
    } else {
        let opened = File::open(file).map_err(|source| StateError::File { path: file.to_owned(), source })?;
        KeyText::read(opened, file)?
    };
    let fingerprint = key.public().fingerprint();
    let said = match state.import_key(&key, force)? {
        Imported::Same => writeln!(out, "the key {fingerprint} was this host's already"),
        Imported::New => writeln!(out, "the key {fingerprint} is this host's now"),
        Imported::Replaced { before, aside } => {
            let before = before.as_deref().unwrap_or("a damaged one");
            writeln!(
                out,
                "the key {fingerprint} is this host's now, in place of {before}, which was put aside as {}; a `swarmfs \
                 serve` that runs uses the old one until it is started again",
                aside.display()
            )
        }
    };
    said.map_err(RunError::Output)
}
