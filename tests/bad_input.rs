//! What people get wrong, what networks do, and what strangers send: each ends in the right bytes or in a message that
//! names the thing and says what to do.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use swarmfs::keys::PublicKey;

mod lab;

use lab::samples::{self, Digest};
use lab::swarm::{self, MOUNT, complaint, swarmfs, wait_until};
use lab::{Host, Lab, Link, Running};

const MIB: u64 = 1 << 20;
/// Exit status where the system or the network failed.
const SYSTEM: i32 = 2;
const LONG: Duration = Duration::from_secs(60);

/// Fails unless the command failed with this exit status and a message that has all these words.
fn must_complain(output: &Output, status: i32, words: &[&str]) {
    let said = complaint(output);
    assert_eq!(output.status.code(), Some(status), "{said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

/// A directory of small text files, each holding its own name and `content`.
fn small_tree(lab: &Lab, name: &str, content: &str) -> PathBuf {
    let tree = lab.scratch().join(name);
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    for file in ["a", "b", "sub/c"] {
        std::fs::write(tree.join(file), format!("{file} {content}\n")).unwrap();
    }
    tree
}

/// An origin that serves one random file, which is `random` on the mount.
fn serve_random(lab: &Lab, len: u64) -> (Running, Digest) {
    let tree = lab.scratch().join("tree");
    std::fs::create_dir(&tree).unwrap();
    samples::random_file(&tree.join("random"), len, 11);
    let digest = samples::digest_of(&tree.join("random"));
    (swarm::serve(lab.origin(), &tree, "images", &[]), digest)
}

#[test]
fn a_missing_directory_is_named() {
    let Some(lab) = Lab::shared(1, Link::unlimited()) else { return };
    must_complain(&swarmfs(lab.origin(), &["serve", "/run/no/such/place"]), 2, &["/run/no/such/place"]);
    std::fs::write(lab.origin().path("/run/file"), b"").unwrap();
    must_complain(&swarmfs(lab.origin(), &["serve", "/run/file"]), 2, &["/run/file", "directory"]);
}

#[test]
fn a_file_that_the_origin_cannot_read_fails_alone() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let tree = small_tree(&lab, "tree", "is readable");
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o000);
    std::fs::set_permissions(tree.join("b"), closed).unwrap();
    // Root reads everything unless it gives that up.
    let mut origin = lab.origin().spawn(
        "setpriv",
        &[
            "--bounding-set=-dac_override,-dac_read_search",
            swarm::program().to_str().unwrap(),
            "serve",
            tree.to_str().unwrap(),
            "--name=images",
        ],
    );
    let node = lab.host(1);
    let _mount = swarm::mount(node, "images", &[]);
    let read = |file: &str| node.run(LONG, "cat", &[&format!("{MOUNT}/{file}")]);
    assert_eq!(read("a").stdout, b"a is readable\n");
    let failed = read("b");
    assert!(!failed.status.success() && complaint(&failed).contains("Input/output error"), "{}", complaint(&failed));
    assert_eq!(read("sub/c").stdout, b"sub/c is readable\n");
    assert!(origin.has_ended().is_none());
    assert!(
        origin.log().contains("b") && origin.log().to_lowercase().contains("permission denied"),
        "{}",
        origin.log()
    );
}

#[test]
fn a_link_out_of_the_tree_is_shown_and_never_followed_by_the_origin() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let tree = small_tree(&lab, "tree", "inside");
    // Only the origin has this file: /run is each host's own.
    std::fs::write(lab.origin().path("/run/secret"), b"the origin's secret").unwrap();
    std::os::unix::fs::symlink("/run/secret", tree.join("absolute")).unwrap();
    std::os::unix::fs::symlink("/run", tree.join("directory")).unwrap();
    let _origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    let node = lab.host(1);
    let _mount = swarm::mount(node, "images", &[]);
    assert_eq!(node.sh(LONG, &format!("readlink {MOUNT}/absolute")), "/run/secret\n");
    assert_eq!(node.sh(LONG, &format!("readlink {MOUNT}/directory")), "/run\n");
    for path in ["images:/absolute", "images:/directory/secret"] {
        let output = swarmfs(node, &["cat", path]);
        assert!(!output.status.success() && output.stdout.is_empty(), "{path} was followed");
    }
    let output = node.run(LONG, "cat", &[&format!("{MOUNT}/absolute")]);
    assert!(complaint(&output).contains("No such file"), "the link is the reader's own: {}", complaint(&output));
}

#[test]
fn a_path_with_dots_never_leaves_the_tree() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let tree = small_tree(&lab, "tree", "inside");
    std::fs::write(lab.scratch().join("outside"), b"outside").unwrap();
    let _origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    for path in ["images:/../outside", "images:/sub/../../outside", "images:../outside"] {
        for command in ["cat", "ls"] {
            let output = swarmfs(lab.host(1), &[command, path]);
            assert!(!output.status.success(), "{command} {path} succeeded");
            assert!(!String::from_utf8_lossy(&output.stdout).contains("outside"), "{command} {path} left the tree");
        }
    }
}

#[test]
fn a_file_that_shrinks_while_it_is_read_gives_its_own_bytes_or_an_error() {
    let Some(lab) = Lab::shared(2, Link::mbit(100)) else { return };
    let (_origin, _) = serve_random(&lab, 64 * MIB);
    let file = lab.scratch().join("tree/random");
    let original = std::fs::read(&file).unwrap();
    let _mount = swarm::mount(lab.host(1), "images", &[]);
    let mut reading = swarm::read(lab.host(1), "random", &[]);
    reading.reaches(8 * MIB, LONG);
    std::fs::File::options().write(true).open(&file).unwrap().set_len(4 * MIB).unwrap();
    let read = reading.finish(LONG);
    let got = &original[..read.digest.len as usize];
    assert_eq!(read.digest, samples::digest(got).unwrap(), "bytes of two versions were mixed");
    assert!(!read.status.success(), "dd was told that a file of {} bytes ends at {}", original.len(), got.len());

    // The origin has noticed: whoever opens the file now gets what it is now.
    let wanted = samples::digest(&original[..4 * MIB as usize]).unwrap();
    wait_until(LONG, "the file is read as it is now", || {
        let read = swarm::read(lab.host(1), "random", &[]).finish(LONG);
        (read.status.success() && read.digest == wanted).then_some(())
    });
}

#[test]
fn when_all_ports_are_taken_the_range_is_named() {
    let Some(lab) = Lab::shared(1, Link::unlimited()) else { return };
    let tree = small_tree(&lab, "tree", "");
    let _taken = lab.origin().inside(|| -> Vec<(UdpSocket, TcpListener)> {
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        (19024..=19039)
            .map(|port| (UdpSocket::bind(any(port)).unwrap(), TcpListener::bind(any(port)).unwrap()))
            .collect()
    });
    must_complain(&swarmfs(lab.origin(), &["serve", tree.to_str().unwrap()]), 2, &["19024", "19039"]);
}

#[test]
fn several_nodes_of_a_host_take_a_port_each() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let (first, second) = (small_tree(&lab, "first", "1"), small_tree(&lab, "second", "2"));
    let _first = swarm::serve(lab.origin(), &first, "first", &[]);
    let _second = swarm::serve(lab.origin(), &second, "second", &[]);
    for (name, content) in [("first", "a 1\n"), ("second", "a 2\n")] {
        let output = swarmfs(lab.host(1), &["cat", &format!("{name}:/a")]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), content, "{}", complaint(&output));
    }
}

#[test]
fn without_a_network_the_mount_says_so() {
    let Some(lab) = Lab::shared(1, Link::unlimited()) else { return };
    lab.origin().sh(LONG, "ip link set eth0 down");
    let start = Instant::now();
    must_complain(&swarmfs(lab.origin(), &["mount", MOUNT]), SYSTEM, &["no interface but loopback", "--peer"]);
    assert!(start.elapsed() < Duration::from_secs(8));
}

#[test]
fn without_an_origin_the_mount_fails_after_5_s_and_says_what_it_tried() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let start = Instant::now();
    let output = swarmfs(lab.host(1), &["mount", "images", MOUNT]);
    let took = start.elapsed();
    must_complain(&output, SYSTEM, &["images", "eth0", "255.255.255.255"]);
    assert!((4.5..8.0).contains(&took.as_secs_f64()), "it took {took:?}");
    assert_eq!(lab.host(1).mounts_on(MOUNT).len(), 0);
}

#[test]
fn a_tree_that_nobody_has_fails_at_once_and_lists_what_there_is() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let tree = small_tree(&lab, "tree", "");
    let _origin = swarm::serve(lab.origin(), &tree, "rescue", &[]);
    let start = Instant::now();
    let output = swarmfs(lab.host(1), &["mount", "images", MOUNT]);
    assert!(!output.status.success());
    assert!(complaint(&output).contains("rescue"), "{}", complaint(&output));
    assert!(start.elapsed() < Duration::from_secs(4), "an answer was waited out");
}

#[test]
fn several_trees_and_none_named_are_listed() {
    let Some(lab) = Lab::shared(3, Link::unlimited()) else { return };
    let (first, second) = (small_tree(&lab, "first", ""), small_tree(&lab, "second", ""));
    let _first = swarm::serve(lab.host(0), &first, "rescue", &[]);
    let _second = swarm::serve(lab.host(1), &second, "workshop", &[]);
    must_complain(&swarmfs(lab.host(2), &["mount", MOUNT]), 1, &["rescue", "workshop"]);
    assert_eq!(lab.host(2).mounts_on(MOUNT).len(), 0);
}

#[test]
fn one_tree_need_not_be_named_and_the_mount_goes_on_in_the_background() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let tree = small_tree(&lab, "tree", "there");
    let _origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    let node = lab.host(1);
    for end in ["swarmfs umount", "umount", "fusermount3 -u", "kill -TERM", "kill -INT"] {
        let mounted = swarmfs(node, &["mount", MOUNT]);
        assert!(mounted.status.success(), "{}", complaint(&mounted));
        assert_eq!(node.sh(LONG, &format!("cat {MOUNT}/a")), "a there\n", "the mount answers when mount returns");
        let running = node.pids_of("swarmfs");
        assert_eq!(running.len(), 1, "one process stays in the background");
        match end.split_once(' ') {
            Some(("swarmfs", command)) => assert!(swarmfs(node, &[command, MOUNT]).status.success()),
            Some(("kill", signal)) => {
                let sent = std::process::Command::new("kill").arg(signal).arg(running[0].to_string()).status();
                assert!(sent.unwrap().success());
            }
            _ => drop(node.sh(LONG, &format!("{end} {MOUNT}"))),
        }
        swarm::wait_until(swarm::SOON, &format!("{end} ends the mount and its node"), || {
            (node.mounts_on(MOUNT).is_empty() && node.pids_of("swarmfs").is_empty()).then_some(())
        });
    }
}

#[test]
fn a_missing_or_busy_mountpoint_is_named() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let tree = small_tree(&lab, "tree", "");
    let _origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    let node = lab.host(1);
    must_complain(&swarmfs(node, &["mount", "images", "/run/no/such/place"]), SYSTEM, &["/run/no/such/place"]);
    std::fs::write(node.path("/run/file"), b"").unwrap();
    must_complain(&swarmfs(node, &["mount", "images", "/run/file"]), SYSTEM, &["/run/file", "directory"]);
    let _mount = swarm::mount(node, "images", &[]);
    must_complain(&swarmfs(node, &["mount", "images", MOUNT]), SYSTEM, &[MOUNT]);
    assert_eq!(node.mounts_on(MOUNT).len(), 1, "nothing is stacked on a living mount");
}

#[test]
fn without_dev_fuse_the_mount_says_what_is_missing() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let tree = small_tree(&lab, "tree", "");
    let _origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    let node = lab.host(1);
    node.sh(
        LONG,
        "touch /run/null; mount --bind /dev/null /run/null
         mount -t tmpfs tmpfs /dev; touch /dev/null; mount --bind /run/null /dev/null",
    );
    must_complain(&swarmfs(node, &["mount", "images", MOUNT]), SYSTEM, &["/dev/fuse"]);
}

#[test]
fn usage_errors_exit_with_1() {
    let Some(lab) = Lab::shared(1, Link::unlimited()) else { return };
    for args in [
        &["serve"][..],
        &["mount"],
        &["no-such-command"],
        &["mount", "--cache", "31M", MOUNT],
        &["mount", "--cache", "many", MOUNT],
        &["mount", "--key", "not a key", MOUNT],
        &["mount", "--port", "70000", MOUNT],
    ] {
        let output = swarmfs(lab.origin(), args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", complaint(&output));
        assert!(!complaint(&output).is_empty(), "{args:?} failed without a word");
    }
}

#[test]
fn two_origins_with_different_keys_stop_the_mount_unless_the_key_decides() {
    let Some(lab) = Lab::shared(3, Link::unlimited()) else { return };
    let (mine, theirs) = (small_tree(&lab, "mine", "is mine"), small_tree(&lab, "theirs", "is theirs"));
    let first = swarm::serve(lab.host(0), &mine, "images", &[]);
    let second = swarm::serve(lab.host(1), &theirs, "images", &[]);
    let keys = [key_in(&first.log()), key_in(&second.log())];
    assert_ne!(keys[0], keys[1]);
    let node = lab.host(2);

    let output = swarmfs(node, &["mount", "images", MOUNT]);
    let (first_print, second_print) = (keys[0].fingerprint(), keys[1].fingerprint());
    must_complain(&output, SYSTEM, &[&first_print, &second_print, "10.77.0.1", "10.77.0.2", "--key"]);
    assert_eq!(node.mounts_on(MOUNT).len(), 0);

    for (key, content) in keys.iter().zip(["a is mine\n", "a is theirs\n"]) {
        let mut mount = swarm::mount(node, "images", &["--key", &key.to_string()]);
        assert_eq!(node.sh(LONG, &format!("cat {MOUNT}/a")), content);
        mount.signal("TERM");
        mount.wait(swarm::SOON);
    }
    let neither = "11".repeat(32);
    assert!(!swarmfs(node, &["mount", "images", MOUNT, "--key", &neither]).status.success());
}

/// The public key that `serve` prints for people to copy.
fn key_in(log: &str) -> PublicKey {
    let word = log.split(|c: char| !c.is_ascii_hexdigit()).find(|word| word.len() == 64);
    word.unwrap_or_else(|| panic!("serve printed no key: {log}")).parse().expect("serve prints a valid key")
}

#[test]
fn an_origin_keeps_its_key_over_a_restart() {
    let Some(lab) = Lab::shared(1, Link::unlimited()) else { return };
    let tree = small_tree(&lab, "tree", "");
    let keys = [(); 2].map(|()| key_in(&swarm::serve(lab.origin(), &tree, "images", &[]).log()));
    assert_eq!(keys[0], keys[1]);
}

#[test]
fn random_datagrams_and_silent_connections_disturb_no_reader() {
    let Some(lab) = Lab::shared(3, Link::mbit(100)) else { return };
    let (mut origin, expected) = serve_random(&lab, 32 * MIB);
    let mut mount = swarm::mount(lab.host(1), "images", &[]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| lab.host(2).inside(|| molest(&[lab.host(0), lab.host(1)], &stop)));
        let _stop = SetWhenDropped(&stop);
        swarm::read(lab.host(1), "random", &[]).finish(LONG).must_be(expected);
    });
    assert!(origin.has_ended().is_none(), "the origin ended: {}", origin.log());
    assert!(mount.has_ended().is_none(), "the mount ended: {}", mount.log());
    for node in [&origin, &mount] {
        assert!(!node.log().contains("panicked"), "{}", node.log());
    }
}

/// Ends the junk also when the reader's side of the test panics.
struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends junk to every port a node may have, and opens connections that say nothing, little or nonsense; at most a few
/// thousand datagrams and 400 connections.
fn molest(hosts: &[&Host], stop: &AtomicBool) {
    let mut random = fastrand::Rng::with_seed(1);
    let mouth = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    mouth.set_broadcast(true).unwrap();
    let mut connections = Vec::new();
    for round in 0..3000 {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut junk = vec![0; random.usize(0..1400)];
        random.fill(&mut junk);
        let port = 19024 + random.u16(0..4);
        let host = hosts[round % hosts.len()];
        let _ = mouth.send_to(&junk, (host.address(), port));
        let _ = mouth.send_to(&junk, (Ipv4Addr::BROADCAST, 19024));
        if connections.len() < 400 {
            let target = SocketAddr::from((host.address(), 19024 + random.u16(0..2)));
            if let Ok(mut connection) = TcpStream::connect_timeout(&target, Duration::from_millis(200)) {
                // A third says nothing at all, a third starts and stops, a third talks nonsense.
                let said = [0, 3, junk.len()][round % 3].min(junk.len());
                let _ = connection.write_all(&junk[..said]);
                connections.push(connection);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    // Silent ones stay open until the reader is done.
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(10));
    }
}
