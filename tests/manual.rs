//! The manual pages say what `--help` says: every command, option and mount option of one occurs in the other. And they
//! are well-formed.

use std::collections::BTreeSet;
use std::process::Command;

use clap::CommandFactory;
use swarmfs::cli::{Cli, HelperArgs, ignored_words, mount_words};

const MANUAL: &str = include_str!("../man/swarmfs.1");
const HELPER: &str = include_str!("../man/mount.swarmfs.8");
const PAGES: [&str; 4] = ["man/swarmfs.1", "man/swarmfs.conf.5", "man/swarmfs.7", "man/mount.swarmfs.8"];

/// What stands after a macro wherever it occurs, in mdoc(7)'s own escapes: `Fl \-name` gives `-name`.
fn after(manual: &str, wanted: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in manual.lines().filter_map(|line| line.strip_prefix('.')) {
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
    let mut written = after(MANUAL, "Fl");
    assert!(written.remove("u"), "fusermount3 -u");
    assert_eq!(written, known);
}

#[test]
fn every_command_is_in_the_manual_and_the_other_way_round() {
    let known: BTreeSet<String> = Cli::command().get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    // Words after -o are the other page's.
    let options: BTreeSet<String> = mount_words().map(str::to_owned).collect();
    let written: BTreeSet<String> = after(MANUAL, "Cm").difference(&options).cloned().collect();
    assert_eq!(written, known.difference(&options).cloned().collect());
}

#[test]
fn every_option_of_the_helper_is_in_its_manual() {
    let mut command = HelperArgs::command();
    command.build();
    let written: BTreeSet<String> = HELPER
        .lines()
        .filter_map(|line| line.strip_prefix(".It Fl "))
        .flat_map(|line| {
            line.split(" , ")
                .filter_map(|option| option.trim_start_matches("Fl ").split_whitespace().next())
                .map(|option| option.replace('\\', ""))
        })
        .collect();
    let mut known = BTreeSet::new();
    for argument in command.get_arguments() {
        known.extend(argument.get_short().map(String::from));
        known.extend(argument.get_long().map(|long| format!("-{long}")));
    }
    assert_eq!(written, known);
}

#[test]
fn every_mount_option_is_in_the_helpers_manual_and_the_other_way_round() {
    let known: BTreeSet<String> = mount_words().chain(ignored_words()).map(str::to_owned).collect();
    let mut written = BTreeSet::new();
    for line in HELPER.lines() {
        let Some(words) = line.strip_prefix(".It Cm ").or_else(|| line.strip_prefix(".Cm ")) else { continue };
        for word in words.split([' ', ',']).filter(|word| !word.is_empty()) {
            written.insert(word.replace('\\', ""));
        }
    }
    let missing: Vec<&String> = known.difference(&written).collect();
    assert!(missing.is_empty(), "not in the manual: {missing:?}");
    let places = ["Ns", "=", "Ar", "Cm", "Oo", "Oc", ":", "x-*", "swarmfs", "fuse.swarmfs", "fuse", "drop_privileges"];
    let values = [
        "IF", "N", "ADDR", "HOST", "PORT", "SIZE", "KEY", "HASH", "RATE", "TIME", "FILE", "MASK", "PATHS", "|", ".",
        ";",
    ];
    let unknown: Vec<&String> = written
        .difference(&known)
        .filter(|word| !places.contains(&word.as_str()) && !values.contains(&word.as_str()))
        .collect();
    assert!(unknown.is_empty(), "only in the manual: {unknown:?}");
}

/// What both readers of manual pages have to say; where one is missing and nothing may be skipped, that is an error.
#[test]
fn the_pages_are_well_formed() {
    for (program, args) in [("mandoc", &["-Tlint", "-Wstyle"][..]), ("man", &["--warnings", "-l"])] {
        if Command::new(program).arg("--help").output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "{program} is not installed (.ci/need)");
            eprintln!("SKIPPED: no {program}");
            continue;
        }
        for page in PAGES {
            let mut command = Command::new(program);
            command.args(args).arg(page).current_dir(env!("CARGO_MANIFEST_DIR")).env("MANWIDTH", "80");
            let output = command.output().unwrap();
            let said = if program == "man" { &output.stderr } else { &output.stdout };
            let said = String::from_utf8_lossy(said);
            // Which other pages are installed is the host's own business.
            let wrong: Vec<&str> = said.lines().filter(|line| !line.contains("referenced manual not found")).collect();
            assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        }
    }
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
    for (fact, manual) in
        [("19024", MANUAL), ("32M", MANUAL), ("64M", MANUAL), ("256M", MANUAL), ("60 seconds", HELPER)]
    {
        assert!(manual.contains(fact), "{fact}");
    }
}

/// Whoever reads `status` finds each of its counters in the manual.
#[test]
fn every_counter_of_status_is_in_the_manual() {
    let source = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/driver/core.rs")).unwrap();
    let manual = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/man/swarmfs.1")).unwrap();
    let list = source.split("counters: vec![").nth(1).and_then(|rest| rest.split(']').next()).expect("the list");
    let names: Vec<&str> = list.split("(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        assert!(manual.split([' ', '\n', ',']).any(|word| word == name), "{name} is not in swarmfs(1)");
    }
}
