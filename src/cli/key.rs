//! What `key` takes.

use std::path::PathBuf;

use clap::Args;

use crate::wire::head::TreeName;

/// Print this host's origin key and those it trusts, share it, forget one.
///
/// What this host serves is signed with the key, and readers trust it: `--key KEY` pins it. It is made at first use and
/// kept in the state directory. A host that imports it can serve in this one's place, and readers notice no difference;
/// so can anybody else who gets hold of the exported file.
///
/// Readers remember the first key they see of a tree and refuse another one, until it is forgotten.
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

    /// Forget the key that this host trusts for this tree
    #[arg(long, value_name = "TREE", group = "what", value_parser = super::tree_name)]
    pub forget: Option<TreeName>,

    /// Make a secret for a private swarm (`--secret-file`), in a new file or on standard output
    #[arg(long, value_name = "FILE", group = "what", num_args = 0..=1, default_missing_value = "-")]
    pub new_secret: Option<PathBuf>,

    /// Overwrite another key, or another file
    #[arg(long, requires = "what", conflicts_with_all = ["forget", "new_secret"])]
    pub force: bool,
}
