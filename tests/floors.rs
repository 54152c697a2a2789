//! The sources keep the floors of ARCHITECTURE.md: a file names only floors below its own.
//!
//! The table there is what counts. Modules of one floor may name each other as long as no circle comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Files that may hold `unsafe`, each because the system offers no safe way; every block says why it is sound.
const UNSAFE: [(&str, &str); 7] = [
    ("src/cache.rs", "reads and fills blocks that an atomic bit guards"),
    ("src/cache/extent.rs", "maps memory in huge pages"),
    ("src/origin/lease.rs", "asks whether a file is open for writing, which no crate wraps"),
    ("src/origin/tests.rs", "gives up root's power to read, for one thread"),
    ("src/fuse/daemon.rs", "forks into the background before there is any thread"),
    ("src/fuse/handed.rs", "takes over a descriptor that is known by its number"),
    ("src/run/show.rs", "asks the C library for local time"),
];

/// The first floor that may touch the clock, sockets and files.
const EFFECTS: &str = "effects";

struct Module {
    floor: usize,
    name: String,
}

/// The table of ARCHITECTURE.md: floor names in order, and each module's floor.
fn floors() -> (Vec<String>, BTreeMap<String, usize>) {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (mut names, mut modules) = (Vec::new(), BTreeMap::new());
    let table = text.lines().skip_while(|line| !line.starts_with("| floor | module |"));
    for line in table.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, floor, listed, ..] = cells[..] else { continue };
        let listed: Vec<&str> = listed.split('`').skip(1).step_by(2).collect();
        if listed.is_empty() {
            continue;
        }
        if !floor.is_empty() {
            names.push(floor.to_owned());
        }
        for module in listed {
            let again = modules.insert(module.to_owned(), names.len() - 1);
            assert_eq!(again, None, "`{module}` stands in the table twice");
        }
    }
    assert!(names.len() >= 6 && modules.len() >= 10, "ARCHITECTURE.md lost its table: {names:?} {modules:?}");
    (names, modules)
}

#[test]
fn a_file_names_only_floors_below_its_own() {
    let (names, floors) = floors();
    let mut broken = Vec::new();
    // Within a floor: who names whom.
    let mut beside: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in sources() {
        let Some(own) = module_of(&path, &floors) else { continue };
        for (line, other) in named_in(&fs::read_to_string(&path).unwrap()) {
            let at = format!("{}:{line}", shown(&path));
            let Some(floor) = floors.get(&other) else {
                broken.push(format!("{at} names `{other}`, which ARCHITECTURE.md does not list"));
                continue;
            };
            if *floor > own.floor {
                broken.push(format!(
                    "{at} is of the floor \"{}\" and names `{other}` of \"{}\" above it",
                    names[own.floor], names[*floor]
                ));
            } else if *floor == own.floor && other != own.name {
                beside.entry(own.name.clone()).or_default().insert(other);
            }
        }
    }
    for module in beside.keys() {
        if reaches(&beside, module, module) {
            broken.push(format!("`{module}` names itself by way of others of its floor: {:?}", beside[module]));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn lib_rs_lists_the_modules_on_the_floors_of_the_table_and_bans_effects_below() {
    let (names, floors) = floors();
    let text = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let effects = names.iter().position(|name| name == EFFECTS).expect("there is a floor of effects");
    let (mut floor, mut denies, mut last) = (None, false, String::new());
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("// ") {
            floor = names.iter().position(|floor| floor == name);
            assert!(floor.is_some(), "src/lib.rs: no floor is called \"{name}\"");
        } else if line.starts_with("#[deny(") {
            denies = line.contains("clippy::disallowed_methods") && line.contains("clippy::disallowed_types");
        } else if let Some(module) = line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';')) {
            assert_eq!(
                floor,
                floors.get(module).copied(),
                "src/lib.rs: `{module}` stands on another floor than in the table"
            );
            let below = floors[module] < effects;
            assert!(
                !below || denies,
                "src/lib.rs: `{module}` is below the effects and must deny what clippy.toml bans"
            );
            (denies, last) = (false, module.to_owned());
        }
    }
    assert!(!last.is_empty(), "src/lib.rs declares no module in a way that this test reads");
}

#[test]
fn unsafe_code_stays_in_the_files_that_are_named() {
    let word = ["un", "safe"].concat();
    let mut strangers = Vec::new();
    for path in sources() {
        let shown = shown(&path);
        if UNSAFE.iter().any(|(file, _)| *file == shown) {
            continue;
        }
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            // `unsafe_code` in an attribute is not the keyword.
            if code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|token| token == word) {
                strangers.push(format!("{shown}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(strangers.is_empty(), "name the file in tests/floors.rs with its reason:\n{}", strangers.join("\n"));
}

#[test]
fn every_file_opens_with_what_it_is() {
    let silent: Vec<String> = sources()
        .into_iter()
        .filter(|path| !fs::read_to_string(path).unwrap().starts_with("//!"))
        .map(|path| shown(&path))
        .collect();
    assert!(silent.is_empty(), "no `//!` at the top of {silent:?}");
}

#[test]
fn the_reader_of_the_sources_sees_what_it_must() {
    let text = "use crate::chunk::{self, ObjectId};\nuse crate::{wire, cache::{Slice, Cache},\n    keys};\n\
                // crate::fuse in a comment\nlet x = crate::swarm::Node::new();\nlet y = swarmfs::cli::parse();";
    let named: Vec<(usize, String)> = named_in(text);
    let expected = [(1, "chunk"), (2, "wire"), (2, "cache"), (2, "keys"), (5, "swarm"), (6, "cli")];
    assert_eq!(named, expected.map(|(line, name)| (line, name.to_owned())));
}

/// The top-level modules that a text names by path, each with its line.
fn named_in(text: &str) -> Vec<(usize, String)> {
    // Comments are blanked, not removed, so that lines keep their numbers.
    let code: String = text.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect();
    let mut named = Vec::new();
    for root in ["crate::", "swarmfs::"] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let line = code[..at].matches('\n').count() + 1;
            let rest = &code[at + root.len()..];
            match rest.strip_prefix('{') {
                Some(group) => named.extend(first_segments(group).into_iter().map(|name| (line, name))),
                None => named.extend(identifier(rest).map(|name| (line, name))),
            }
        }
    }
    named.sort_by_key(|(line, _)| *line);
    named
}

/// The first word of each path in a `use` group, nested groups left out.
fn first_segments(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut names) = (0, true, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            c if start && depth == 0 && !c.is_whitespace() => {
                names.extend(identifier(&group[at..]));
                start = false;
            }
            _ => {}
        }
    }
    names
}

/// A lower-case word, as modules are called; types and macros at the crate's root are none.
fn identifier(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_').collect();
    let next = text.chars().nth(word.len());
    (!word.is_empty() && !next.is_some_and(|c| c.is_alphanumeric() || c == '!')).then_some(word)
}

/// The top-level module that a file belongs to; `lib.rs` is the map and belongs to none.
fn module_of(path: &Path, floors: &BTreeMap<String, usize>) -> Option<Module> {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    let name = first.strip_suffix(".rs").unwrap_or(first).to_owned();
    if name == "lib" {
        return None;
    }
    let floor = *floors.get(&name).unwrap_or_else(|| panic!("ARCHITECTURE.md does not list `{name}`"));
    Some(Module { floor, name })
}

fn reaches(edges: &BTreeMap<String, BTreeSet<String>>, from: &str, to: &str) -> bool {
    let (mut open, mut seen) = (vec![from], BTreeSet::new());
    while let Some(at) = open.pop() {
        for next in edges.get(at).into_iter().flatten() {
            if next == to {
                return true;
            }
            if seen.insert(next) {
                open.push(next);
            }
        }
    }
    false
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// Every Rust file below src, in order.
fn sources() -> Vec<PathBuf> {
    let (mut open, mut files) = (vec![root().join("src")], Vec::new());
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(files.len() > 5, "the sources are elsewhere");
    files
}
