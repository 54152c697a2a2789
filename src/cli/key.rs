//! What `key` takes.

use std::path::PathBuf;

use clap::Args;

/// Print this host's origin key, or share it with another host.
///
/// What this host serves is signed with the key, and readers trust it: `--key KEY` pins it. It is made at first use and
/// kept in the state directory. A host that imports it can serve in this one's place, and readers notice no difference;
/// so can anybody else who gets hold of the exported file.
#[derive(Args, Debug)]
#[command(after_help = "\
A FILE of - is standard output or input.

Example: swarmfs key --export - | ssh spare swarmfs key --import -")]
pub struct KeyArgs {
    /// Write the secret key to this file, which only its owner can read
    #[arg(long, value_name = "FILE", group = "what")]
    pub export: Option<PathBuf>,

    /// Make the secret key in this file this host's own
    #[arg(long, value_name = "FILE", group = "what")]
    pub import: Option<PathBuf>,

    /// Overwrite another key, or another file
    #[arg(long, requires = "what")]
    pub force: bool,
}
