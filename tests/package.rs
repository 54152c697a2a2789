//! What an administrator copies and a package installs: each file is where it belongs and says what the program
//! understands.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clap::Parser;
use swarmfs::cli::{FileSettings, HelperArgs};
use swarmfs::settings::{DEFAULT_PORT, PORTS};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).current_dir(root()).output();
    output.unwrap_or_else(|error| panic!("{program}: {error} (.ci/need)"))
}

#[track_caller]
fn must(program: &str, args: &[&str]) {
    let output = run(program, args);
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&said));
}

/// Installs what was built for the tests.
fn make(target: &str, destination: &Path) {
    let built = Path::new(env!("CARGO_BIN_EXE_swarmfs")).parent().unwrap().display();
    let destination = destination.display();
    must(
        "make",
        &["-s", "-o", "all", target, &format!("BUILT={built}"), &format!("DESTDIR={destination}"), "PREFIX=/usr"],
    );
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let (mut open, mut files) = (vec![directory.to_owned()], Vec::new());
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => open.push(entry.path()),
                false => files.push(entry.path()),
            }
        }
    }
    files
}

#[test]
fn make_install_puts_each_file_in_its_place_and_uninstall_takes_it_away() {
    let place = tempfile::tempdir().unwrap();
    make("install", place.path());
    for file in [
        "usr/bin/swarmfs",
        "usr/lib/systemd/system/swarmfs-serve@.service",
        "usr/share/man/man1/swarmfs.1",
        "usr/share/man/man5/swarmfs.conf.5",
        "usr/share/man/man7/swarmfs.7",
        "usr/share/man/man8/mount.swarmfs.8",
        "usr/share/bash-completion/completions/swarmfs",
        "usr/share/zsh/vendor-completions/_swarmfs",
        "usr/share/fish/vendor_completions.d/swarmfs.fish",
        "usr/share/doc/swarmfs/README.md",
        "usr/share/doc/swarmfs/examples/fstab",
        "usr/share/doc/swarmfs/examples/swarmfs.conf",
    ] {
        let length = place.path().join(file).metadata().unwrap_or_else(|error| panic!("{file}: {error}")).len();
        assert!(length > 0, "{file}");
    }
    for link in ["sbin/mount.swarmfs", "sbin/mount.fuse.swarmfs"] {
        assert_eq!(std::fs::read_link(place.path().join(link)).unwrap(), Path::new("/usr/bin/swarmfs"));
    }
    // As an original is called.
    assert_eq!(std::fs::read_link(place.path().join("usr/bin/xcat")).unwrap(), Path::new("swarmfs"));
    for shell in ["bash", "zsh", "fish"] {
        let script = match shell {
            "bash" => "usr/share/bash-completion/completions/swarmfs",
            "zsh" => "usr/share/zsh/vendor-completions/_swarmfs",
            _ => "usr/share/fish/vendor_completions.d/swarmfs.fish",
        };
        let script = place.path().join(script);
        // Shells that are not here cannot be asked.
        match Command::new(shell).arg("-n").arg(&script).output() {
            Ok(output) => assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr)),
            Err(_) => eprintln!("SKIPPED: no {shell}"),
        }
    }
    make("uninstall", place.path());
    let left = files_below(place.path());
    assert!(left.is_empty(), "{left:?}");
}

/// Debian's package and `make install` bring the same: what one of them forgets is found here.
#[test]
fn the_package_has_each_file_that_make_install_has() {
    let manifest = read("Cargo.toml");
    let (_, assets) = manifest.split_once("\nassets = [\n").expect("the package's files are listed");
    // Each line has a source, a place and a mode, in quotation marks.
    let packed: Vec<(&str, &str)> = assets
        .lines()
        .take_while(|line| *line != "]")
        .map(|line| line.split('"').skip(1).step_by(2).collect::<Vec<_>>())
        .map(|fields| (fields[0], fields[1]))
        .collect();
    let place = tempfile::tempdir().unwrap();
    make("install", place.path());
    for installed in files_below(place.path()) {
        let installed = installed.strip_prefix(place.path()).unwrap().to_str().unwrap();
        // A distribution whose /sbin is a link to /usr/sbin.
        let installed = installed.strip_prefix("sbin/").map_or(installed.to_owned(), |name| format!("usr/sbin/{name}"));
        let (directory, name) = installed.rsplit_once('/').unwrap();
        let is_packed = packed.iter().any(|(source, target)| match target.strip_suffix('/') {
            Some(target) => target == directory && matches(source.rsplit('/').next().unwrap(), name),
            None => *target == installed.as_str(),
        });
        assert!(is_packed, "{installed} is not in the package");
    }
    for (source, _) in packed.iter().filter(|(source, _)| !source.starts_with("target/")) {
        let (directory, pattern) = source.rsplit_once('/').unwrap_or((".", source));
        let there = std::fs::read_dir(root().join(directory)).unwrap().flatten();
        let some = there.filter_map(|entry| entry.file_name().into_string().ok()).any(|name| matches(pattern, &name));
        assert!(some, "{source} is not there to be packed");
    }
}

/// Whether a name is one of those that a pattern with stars stands for.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name
            .strip_prefix(start)
            .is_some_and(|name| name.char_indices().any(|(at, _)| matches(rest, &name[at..])) || rest.is_empty()),
    }
}

#[test]
fn the_services_are_understood_and_sandboxed() {
    let place = tempfile::tempdir().unwrap();
    let unit = |name: &str| {
        let text = read(&format!("mount/{name}")).replace("/usr/bin/swarmfs", env!("CARGO_BIN_EXE_swarmfs"));
        let path = place.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return eprintln!("SKIPPED: no systemd-analyze");
    }
    let serve = unit("swarmfs-serve@.service");
    for name in [&serve, &unit("mnt-images.mount"), &unit("mnt-images.automount")] {
        must("systemd-analyze", &["verify", "--man=no", "--recursive-errors=no", name]);
    }
    // Exposure below 2.0; the option counts in tenths.
    must("systemd-analyze", &["security", "--offline=true", "--threshold=19", "--no-pager", &serve]);
}

#[test]
fn every_line_of_fstab_that_is_shown_is_one_that_the_helper_takes() {
    let mut lines = 0;
    for file in ["mount/fstab", "mount/kickstart-post.ks", "mount/preseed.cfg", "README.md", "man/mount.swarmfs.8"] {
        for line in read(file).lines() {
            // As it stands there: commented out, or in quotation marks for a shell.
            let line = line.trim_start_matches("echo ").trim_start_matches([' ', '#', '\'']);
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [spec, point, "swarmfs", options, ..] = fields[..] else { continue };
            if !point.starts_with('/') {
                continue;
            }
            let args = HelperArgs::try_parse_from(["mount.swarmfs", spec, point, "-o", options]);
            let args = args.unwrap_or_else(|error| panic!("{file}: {line}: {error}"));
            let request = args.settings(&FileSettings::default(), 1 << 30, true);
            assert!(request.is_ok(), "{file}: {line}: {request:?}");
            lines += 1;
        }
    }
    assert!(lines >= 9, "only {lines} lines were found");
}

#[test]
fn the_example_of_a_configuration_file_shows_each_key() {
    let text = read("mount/swarmfs.conf");
    assert_eq!(FileSettings::parse(&text), Ok(FileSettings::default()), "as it is it changes nothing");
    let told: String = text
        .lines()
        .map(|line| line.strip_prefix('#').filter(|line| !line.starts_with(' ')).unwrap_or(line).to_owned() + "\n")
        .collect();
    FileSettings::parse(&told).unwrap();
    let manual = read("man/swarmfs.conf.5");
    for key in swarmfs::cli::file_keys() {
        assert!(told.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key} is not shown");
        assert!(manual.contains(&format!(".It Cm {}\n", key.replace('-', "\\-"))), "{key} is not in swarmfs.conf(5)");
    }
}

#[test]
fn firewalls_open_the_ports_that_are_used() {
    let (legacy, last) = (DEFAULT_PORT - 1, DEFAULT_PORT + PORTS - 1);
    for (file, range) in [
        ("mount/firewalld-swarmfs.xml", format!("{legacy}-{last}")),
        ("mount/nftables-swarmfs.nft", format!("{legacy}-{last}")),
        ("mount/ufw-swarmfs", format!("{legacy}:{last}")),
        ("mount/kickstart-post.ks", format!("{legacy}-{last}")),
    ] {
        let text = read(file);
        assert_eq!(text.matches(&range).count(), 2, "{file} opens UDP and TCP");
        assert!(text.contains("udp") && text.contains("tcp"), "{file}");
    }
    let nft = run("unshare", &["-rn", "nft", "-c", "-f", "mount/nftables-swarmfs.nft"]);
    assert!(nft.status.success(), "{}", String::from_utf8_lossy(&nft.stderr));
}

#[test]
fn each_file_to_copy_says_where_it_goes() {
    for file in files_below(&root().join("mount")) {
        let name = file.file_name().unwrap().to_str().unwrap();
        if file.parent().unwrap().ends_with("debian") {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let start: String = text.lines().take(6).collect::<Vec<_>>().join("\n");
        let says = [
            "oes to /",
            "oes\n# to /",
            "oes into",
            "Lines for /etc/fstab",
            "Not a file to copy",
            "Beside mnt-images.mount",
        ];
        assert!(says.iter().any(|says| start.contains(says)), "{name} does not say where it goes");
    }
}
