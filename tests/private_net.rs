//! A swarm with a secret on a network where others listen, look and knock: they learn no name and no byte, see no tree and
//! keep nobody out, and who has the wrong secret is told.

use std::collections::HashSet;
use std::net::{TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

mod lab;

use lab::samples::{self, Digest};
use lab::swarm::{self, MOUNT, SOON, complaint, swarmfs, wait_until};
use lab::{Host, Lab, Link, Running};

const TREE: &str = "hidden-tree";
const FILE: &str = "very-private-name";
const SIZE: u64 = 4 << 20;
const SECRET: &str = "/run/secret";
/// Where nodes answer by the legacy protocol.
const LEGACY: u16 = 19023;
const LONG: Duration = Duration::from_secs(60);
/// Length of the pieces of content that are looked for: none is found by chance.
const WINDOW: usize = 16;

/// Writes a secret of one repeated byte on a host, as its user's own file.
fn write_secret(host: &Host, byte: u8) {
    host.sh(SOON, &format!("umask 077; printf '%s\\n' {} > {SECRET}", format!("{byte:02x}").repeat(32)));
}

fn make_tree(lab: &Lab) -> (PathBuf, Digest) {
    let tree = lab.scratch().join("tree");
    std::fs::create_dir(&tree).unwrap();
    samples::random_file(&tree.join(FILE), SIZE, 21);
    let digest = samples::digest_of(&tree.join(FILE));
    (tree, digest)
}

fn status(host: &Host) -> serde_json::Value {
    let output = swarmfs(host, &["status", "--json"]);
    let nodes: serde_json::Value = serde_json::from_slice(&output.stdout).expect("status is JSON");
    nodes[0].clone()
}

fn counter(host: &Host, name: &str) -> u64 {
    status(host)["counters"][name].as_u64().expect("the counter is there")
}

/// An origin that answers when this returns. Nobody asks for it on the network meanwhile: a command that has no secret
/// would say so to whoever listens.
fn serve(host: &Host, tree: &Path, more: &[&str]) -> Running {
    let tree = tree.to_str().expect("build directories have plain names");
    let mut origin = swarm::start(host, &[&["serve", tree, "--name", TREE], more].concat());
    wait_until(SOON, "the origin answers", || {
        assert!(origin.has_ended().is_none(), "the origin ended: {}", origin.log());
        status(host).is_object().then_some(())
    });
    origin
}

/// What passes the switch while a node looks for the tree, mounts it, lists it and reads it whole; and the origin's key.
fn overheard(lab: &Lab, tree: &Path, digest: Digest, more: &[&str]) -> (Vec<Vec<u8>>, String) {
    let capture = lab.capture();
    let mut origin = serve(lab.origin(), tree, more);
    let mut node = swarm::mount(lab.host(1), TREE, more);
    assert!(lab.host(1).sh(LONG, &format!("ls -l {MOUNT}")).contains(FILE));
    swarm::read(lab.host(1), FILE, &[]).finish(LONG).must_be(digest);
    let status = status(lab.host(1));
    assert_eq!(status["private"], serde_json::Value::Bool(!more.is_empty()));
    let key = status["key"].as_str().expect("a node knows the key").to_owned();
    lab.host(1).sh(SOON, &format!("umount {MOUNT}"));
    node.wait(SOON);
    origin.signal("TERM");
    origin.wait(SOON);
    (capture.stop(), key)
}

/// What somebody with a tap knows of names, keys and content.
fn learned(frames: &[Vec<u8>], tree: &Path, key: &str) -> Vec<&'static str> {
    let content = std::fs::read(tree.join(FILE)).unwrap();
    let windows: HashSet<&[u8]> = content.chunks_exact(WINDOW).collect();
    let key: Vec<u8> = key.as_bytes().chunks(2).map(|pair| (digit(pair[0]) << 4) | digit(pair[1])).collect();
    let has = |text: &[u8]| frames.iter().any(|frame| frame.windows(text.len()).any(|window| window == text));
    let mut learned = Vec::new();
    for (what, found) in [
        ("the tree's name", has(TREE.as_bytes())),
        ("a file's name", has(FILE.as_bytes())),
        ("the origin's key", has(&key)),
        ("content", frames.iter().any(|frame| frame.windows(WINDOW).any(|window| windows.contains(window)))),
        ("a plain datagram", frames.iter().any(|frame| frame.get(42..47) == Some(b"swfs\x01"))),
    ] {
        if found {
            learned.push(what);
        }
    }
    learned
}

fn digit(byte: u8) -> u8 {
    char::from(byte).to_digit(16).expect("a key is hex digits") as u8
}

#[test]
fn who_listens_learns_no_name_and_no_byte() {
    let Some(lab) = Lab::shared(2, Link::mbit(100)) else { return };
    let (tree, digest) = make_tree(&lab);
    // Without a secret all of it is there to be found: so the search finds what there is.
    let (frames, key) = overheard(&lab, &tree, digest, &[]);
    let all = ["the tree's name", "a file's name", "the origin's key", "content", "a plain datagram"];
    assert_eq!(learned(&frames, &tree, &key), all);

    lab.hosts().iter().for_each(|host| write_secret(host, 0xa7));
    let (frames, key) = overheard(&lab, &tree, digest, &["--secret-file", SECRET]);
    let bytes: usize = frames.iter().map(Vec::len).sum();
    assert!(bytes as u64 > SIZE, "only {bytes} bytes were overheard");
    assert_eq!(learned(&frames, &tree, &key), [""; 0]);
    assert!(!frames.iter().any(|frame| frame.windows(7).any(|window| window == b"swarmfs")));
}

#[test]
fn who_lacks_the_secret_sees_no_tree_and_is_told_why() {
    let Some(lab) = Lab::shared(4, Link::unlimited()) else { return };
    let (tree, digest) = make_tree(&lab);
    let (node, open, wrong) = (lab.host(1), lab.host(2), lab.host(3));
    write_secret(lab.origin(), 0xa7);
    write_secret(node, 0xa7);
    write_secret(wrong, 0xa8);
    let origin = serve(lab.origin(), &tree, &["--secret-file", SECRET]);
    let mut without = swarm::start(open, &["ls", &format!("{TREE}:/")]);
    assert_ne!(without.wait(LONG).code(), Some(0));
    let said = without.log();
    assert!(
        said.contains("nodes with a secret are at 10.77.0.1: it takes --secret-file") && !said.contains(FILE),
        "{said}"
    );

    // Now somebody serves without a secret as well.
    let _open = swarm::serve(open, &tree, "open-tree", &[]);
    let mut stranger = swarm::start(wrong, &["mount", TREE, MOUNT, "--secret-file", SECRET]);
    assert_eq!(stranger.wait(LONG).code(), Some(2));
    let said = stranger.log();
    assert!(said.contains(&format!("nodes with another secret than that of {SECRET} are at 10.77.0.1")), "{said}");
    assert!(said.contains("nodes without a secret are at 10.77.0.3"), "{said}");

    // The legacy protocol knows no secret: whoever has one neither answers nor asks by it.
    let is_free = |host: &Host| host.inside(|| UdpSocket::bind(("0.0.0.0", LEGACY)).is_ok());
    assert!(is_free(lab.origin()) && !is_free(open));
    let output = swarmfs(node, &["mount", "-o", &format!("xcat,secret_file={SECRET}"), MOUNT]);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("option xcat with secret_file"), "{}", complaint(&output));

    let options = format!("secret_file={SECRET}");
    let _mount = swarm::mount(node, TREE, &["-o", &options]);
    swarm::read(node, FILE, &[]).finish(LONG).must_be(digest);
    wait_until(SOON, "they are counted", || (counter(lab.origin(), "foreign_datagrams") >= 2).then_some(()));
    for said in ["a node without a secret is on this network", "a node with another secret is on this network"] {
        assert_eq!(origin.log().matches(said).count(), 1, "said once: {}", origin.log());
    }
    let peers = |host: &Host| status(host)["peers"].as_array().map_or(0, Vec::len);
    wait_until(SOON, "who has the secret is a peer", || (peers(lab.origin()) == 1).then_some(()));
    assert_eq!(peers(open), 0);
}

#[test]
fn strangers_that_knock_keep_nobody_out() {
    let Some(lab) = Lab::shared(3, Link::unlimited()) else { return };
    let (tree, digest) = make_tree(&lab);
    lab.hosts().iter().for_each(|host| write_secret(host, 0xa7));
    let origin = serve(lab.origin(), &tree, &["--secret-file", SECRET]);
    // More than can wait at once; they say nothing and stay.
    let address = (lab.origin().address(), 19024);
    let silent = lab.host(2).inside(|| {
        let knock = |_| TcpStream::connect(address).expect("the origin listens");
        (0..600).map(knock).collect::<Vec<TcpStream>>()
    });
    let _mount = swarm::mount(lab.host(1), TREE, &["--secret-file", SECRET]);
    swarm::read(lab.host(1), FILE, &[]).finish(LONG).must_be(digest);
    wait_until(SOON, "all strangers are gone", || (counter(lab.origin(), "strangers") >= 600).then_some(()));
    drop(silent);
    // One that speaks as nodes without a secret do.
    let output = swarmfs(lab.host(2), &["ls", &format!("{TREE}:/"), "--peer", &lab.origin().address().to_string()]);
    assert!(!output.status.success(), "{}", complaint(&output));
    lab.host(2).inside(|| {
        let mut stream = TcpStream::connect(address).expect("the origin listens");
        std::io::Write::write_all(&mut stream, &[1, 1, 60, 0]).expect("it was just accepted");
        stream.set_read_timeout(Some(SOON)).expect("a socket has a timeout");
        let end = std::io::Read::read(&mut stream, &mut [0; 16]);
        assert!(
            end.as_ref().map_or_else(|error| error.kind() == std::io::ErrorKind::ConnectionReset, |len| *len == 0),
            "{end:?}"
        );
    });
    wait_until(SOON, "it is said", || origin.log().contains("a stranger's connection was refused").then_some(()));
}
