//! The manual page says what `--help` says: every command, option and mount option of one occurs in the other.

use std::collections::BTreeSet;

use clap::CommandFactory;
use swarmfs::cli::{Cli, mount_words};

const MANUAL: &str = include_str!("../man/swarmfs.1");

/// What stands after a macro wherever it occurs, in mdoc(7)'s own escapes: `Fl \-name` gives `-name`.
fn after(wanted: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in MANUAL.lines().filter_map(|line| line.strip_prefix('.')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        for pair in words.windows(2).filter(|pair| pair[0] == wanted) {
            found.insert(pair[1].replace('\\', ""));
        }
    }
    found
}

#[test]
fn every_option_of_the_help_is_in_the_manual_and_the_other_way_round() {
    let mut command = Cli::command();
    command.build();
    let mut known = BTreeSet::new();
    for command in std::iter::once(&command).chain(command.get_subcommands()) {
        for argument in command.get_arguments() {
            known.extend(argument.get_short().map(String::from));
            known.extend(argument.get_long().map(|long| format!("-{long}")));
        }
    }
    let mut written = after("Fl");
    assert!(written.remove("u"), "fusermount3 -u");
    assert_eq!(written, known);
}

#[test]
fn every_command_and_mount_option_is_in_the_manual_and_the_other_way_round() {
    let commands = Cli::command().get_subcommands().map(|sub| sub.get_name().to_owned()).collect::<BTreeSet<_>>();
    let words: BTreeSet<String> = mount_words().map(str::to_owned).collect();
    let known: BTreeSet<String> = commands.union(&words).cloned().collect();
    let mut written = after("Cm");
    // Their partners are named on the same line after a comma.
    for pair in ["nosuid", "nodev", "noexec"] {
        assert!(
            MANUAL.lines().any(|line| line.starts_with(".It Cm") && line.ends_with(&format!(", {pair}"))),
            "{pair}"
        );
        written.insert(pair.to_owned());
    }
    let missing: Vec<&String> = known.difference(&written).collect();
    assert!(missing.is_empty(), "not in the manual: {missing:?}");
    let unknown: Vec<&String> = written.difference(&known).filter(|word| !is_ignored(word)).collect();
    assert!(unknown.is_empty(), "only in the manual: {unknown:?}");
}

/// Words for whoever reads fstab are taken and mean nothing; the manual names some.
fn is_ignored(word: &str) -> bool {
    use clap::Parser;
    let cli = Cli::try_parse_from(["swarmfs", "mount", "/mnt", "-o", word]).expect("one word is taken");
    let swarmfs::cli::Command::Mount(args) = cli.command else { panic!("mount is mount") };
    args.settings(0, false).is_ok()
}

#[test]
fn every_synopsis_value_and_default_of_the_help_is_in_the_manual() {
    let mut command = Cli::command();
    command.build();
    for sub in command.get_subcommands() {
        for argument in sub.get_arguments().filter(|argument| argument.get_action().takes_values()) {
            for name in argument.get_value_names().unwrap_or_default() {
                let name = name.split('[').next().expect("a split has a first part");
                assert!(MANUAL.contains(&format!("Ar {name}")), "{} of {}", name, sub.get_name());
            }
        }
    }
    for fact in ["19024", "32M", "64M", "256M", "60 seconds"] {
        assert!(MANUAL.contains(fact), "{fact}");
    }
}
