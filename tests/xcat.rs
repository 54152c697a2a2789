//! The legacy protocol between this program and originals, in every pair: the same bytes, whoever sends and whoever asks.
//! The originals are `tests/legacy`.

use std::path::{Path, PathBuf};
use std::time::Duration;

mod lab;
mod legacy;

use lab::samples::{self, Digest};
use lab::swarm::{self, MOUNT, complaint, wait_until};
use lab::{Host, Lab, Link, Running};
use legacy::client::Client;
use legacy::server::Server;

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(60);

/// Names and lengths that matter: nothing, less than a chunk, whole chunks, chunks and a bit; blanks and UTF-8.
const FILES: [(&str, u64); 7] = [
    ("empty", 0),
    ("five", 5),
    ("boards/almost a chunk", 16 * MIB - 1),
    ("boards/chunk", 16 * MIB),
    ("boards/two chunks", 32 * MIB),
    ("boards/rev ä/größer.img", 50 * MIB + 17),
    ("boards/rev ä/leer", 0),
];

struct Tree {
    path: PathBuf,
    digests: Vec<(&'static str, Digest)>,
}

/// On a network as it should be, and on one that loses a packet of a hundred.
fn with_and_without_loss(lab: &Lab, mut check: impl FnMut()) {
    for loss in [0.0, 0.01] {
        lab.lose(loss);
        check();
    }
}

fn tree(lab: &Lab) -> Tree {
    let path = lab.scratch().join("tree");
    let digests = FILES.iter().enumerate().map(|(seed, (name, len))| {
        let file = path.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        samples::random_file(&file, *len, seed as u64);
        (*name, samples::digest_of(&file))
    });
    let digests = digests.collect();
    Tree { path, digests }
}

fn serve(lab: &Lab, tree: &Tree) -> Running {
    swarm::serve(lab.origin(), &tree.path, "images", &[])
}

fn original(host: &Host, tree: &Tree) -> Server {
    host.inside(|| Server::start(&tree.path))
}

/// What an original client gets.
fn get(host: &Host, client: &Client, name: &str) -> Digest {
    host.inside(|| {
        let mut hasher = blake3::Hasher::new();
        let len = client.get(name, LONG, |bytes| {
            hasher.update(bytes);
        });
        Digest { len: len.unwrap_or_else(|death| panic!("the client died of {death}")), hash: hasher.finalize() }
    })
}

/// What our client gets.
fn xcat(host: &Host, name: &str, more: &[&str]) -> Digest {
    let args = [&["xcat", name], more].concat();
    let output = host.run(LONG, swarm::program().to_str().unwrap(), &args);
    assert!(output.status.success(), "{}", complaint(&output));
    samples::digest(&output.stdout[..]).unwrap()
}

fn all_by_an_original(host: &Host, files: &[(&str, Digest)]) {
    let client = host.inside(|| Client::start(false));
    for (name, digest) in files {
        assert_eq!(get(host, &client, name), *digest, "{name}");
    }
    assert_eq!(client.stop(), None);
}

#[test]
fn an_original_client_gets_everything_from_serve() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let tree = tree(&lab);
    let _origin = serve(&lab, &tree);
    with_and_without_loss(&lab, || all_by_an_original(lab.host(1), &tree.digests));
}

#[test]
fn ours_gets_everything_from_an_original_server() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let tree = tree(&lab);
    let server = original(lab.origin(), &tree);
    with_and_without_loss(&lab, || {
        for (name, digest) in &tree.digests {
            assert_eq!(xcat(lab.host(1), name, &[]), *digest, "{name}");
        }
    });
    assert_eq!(server.stop(), None);
}

#[test]
fn an_original_client_is_helped_by_a_mount_whose_origin_is_gone() {
    let Some(lab) = Lab::shared(3, Link::unlimited()) else { return };
    let tree = tree(&lab);
    let mut origin = serve(&lab, &tree);
    let _mount = swarm::mount(lab.host(1), "images", &["--cache", "256M"]);
    for (name, digest) in &tree.digests {
        swarm::read(lab.host(1), name, &[]).finish(LONG).must_be(*digest);
    }
    origin.kill();
    with_and_without_loss(&lab, || all_by_an_original(lab.host(2), &tree.digests));
}

#[test]
fn ours_takes_from_the_swarm_where_there_is_one() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let tree = tree(&lab);
    let origin = swarm::serve(lab.origin(), &tree.path, "images", &["--no-xcat"]);
    for (name, digest) in &tree.digests {
        assert_eq!(xcat(lab.host(1), name, &[]), *digest, "{name}");
        assert_eq!(xcat(lab.host(1), &format!("images:/{name}"), &[]), *digest, "{name}");
    }
    drop(origin);
}

#[test]
fn an_original_client_gets_from_ours_what_ours_got() {
    let Some(lab) = Lab::shared(3, Link::unlimited()) else { return };
    let tree = tree(&lab);
    let (name, digest) = tree.digests[5];
    let server = original(lab.origin(), &tree);
    let file = lab.scratch().join("got");
    let mut ours =
        swarm::start(lab.host(1), &["xcat", name, "-o", file.to_str().unwrap(), "--linger", "60", "--cache", "256M"]);
    wait_until(LONG, "ours has the file", || {
        assert!(ours.has_ended().is_none(), "{}", ours.log());
        std::fs::metadata(&file).is_ok_and(|meta| meta.len() == digest.len).then_some(())
    });
    assert_eq!(samples::digest_of(&file), digest);
    assert_eq!(server.stop(), None);
    let client = lab.host(2).inside(|| Client::start(false));
    assert_eq!(get(lab.host(2), &client, name), digest);
    assert_eq!(client.stop(), None);
}

/// The server is gone by the time that the second client asks.
#[test]
fn an_original_client_gets_from_another_with_ours_as_the_third() {
    let Some(lab) = Lab::shared(4, Link::unlimited()) else { return };
    let tree = tree(&lab);
    with_and_without_loss(&lab, || {
        let first = lab.host(1).inside(|| Client::start(false));
        let second = lab.host(2).inside(|| Client::start(false));
        for (name, digest) in &tree.digests {
            let server = original(lab.origin(), &tree);
            let mut ours = swarm::start(lab.host(3), &["xcat", name, "-v", "-o", "/dev/null", "--linger", "60"]);
            assert_eq!(get(lab.host(1), &first, name), *digest, "{name}");
            wait_until(LONG, "ours has the file", || {
                assert!(ours.has_ended().is_none(), "{}", ours.log());
                ours.log().contains("got by the legacy protocol").then_some(())
            });
            assert_eq!(server.stop(), None);
            assert_eq!(get(lab.host(2), &second, name), *digest, "{name}");
        }
        assert_eq!((first.stop(), second.stop()), (None, None));
    });
}

#[test]
fn ours_bears_an_original_client_that_helps_out_with_headers_alone() {
    let Some(lab) = Lab::shared(3, Link::unlimited()) else { return };
    let tree = tree(&lab);
    let server = original(lab.origin(), &tree);
    let helper = lab.host(1).inside(|| Client::start(true));
    with_and_without_loss(&lab, || {
        for (name, digest) in &tree.digests {
            assert_eq!(get(lab.host(1), &helper, name), *digest, "{name}");
            assert_eq!(xcat(lab.host(2), name, &[]), *digest, "{name}");
        }
    });
    // Another that helps out in earnest, and no server.
    assert_eq!(server.stop(), None);
    let (name, digest) = tree.digests[5];
    assert_eq!(helper.stop(), None);
    let server = original(lab.origin(), &tree);
    let helper = lab.host(1).inside(|| Client::start(false));
    get(lab.host(1), &helper, name);
    assert_eq!(server.stop(), None);
    assert_eq!(xcat(lab.host(2), name, &[]), digest);
    assert_eq!(helper.stop(), None);
}

#[test]
fn originals_and_ours_share_a_network_with_mounts() {
    let Some(lab) = Lab::shared(4, Link::unlimited()) else { return };
    let tree = tree(&lab);
    let _origin = serve(&lab, &tree);
    let _mount = swarm::mount(lab.host(1), "images", &[]);
    let (name, digest) = tree.digests[5];
    std::thread::scope(|scope| {
        scope.spawn(|| swarm::read(lab.host(1), name, &[]).finish(LONG).must_be(digest));
        scope.spawn(|| assert_eq!(xcat(lab.host(3), name, &["-o", "/dev/stdout"]), digest));
        scope.spawn(|| all_by_an_original(lab.host(2), &tree.digests));
    });
}

#[test]
fn a_mount_shows_what_an_original_server_has() {
    let Some(lab) = Lab::shared(3, Link::unlimited()) else { return };
    let tree = tree(&lab);
    let server = original(lab.origin(), &tree);
    let host = lab.host(1);
    with_and_without_loss(&lab, || {
        let _mount = swarm::mount(host, "old", &["-o", "xcat"]);
        for (name, digest) in &tree.digests {
            swarm::read(host, name, &[]).finish(LONG).must_be(*digest);
            let size = host.sh(LONG, &format!("stat -c %s '{MOUNT}/{name}'"));
            assert_eq!(size.trim(), digest.len.to_string(), "{name}");
        }
        host.sh(LONG, &format!("umount {MOUNT}"));
    });
    assert_eq!(server.stop(), None);
}

#[test]
fn a_legacy_mount_says_that_nobody_signed_it_and_helps_others() {
    let Some(lab) = Lab::shared(3, Link::unlimited()) else { return };
    let tree = tree(&lab);
    let server = original(lab.origin(), &tree);
    let host = lab.host(1);
    let mount = swarm::mount(host, "old", &["-o", "xcat"]);
    for (name, _) in &tree.digests {
        host.sh(LONG, &format!("stat '{MOUNT}/{name}'"));
    }
    assert!(mount.log().contains("nobody has signed it"), "{}", mount.log());
    let status = swarm::swarmfs(host, &["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("old (mounted on") && status.contains("unsigned"), "{status}");
    assert_eq!(host.sh(LONG, &format!("ls {MOUNT}/boards/")), "almost a chunk\nchunk\nrev ä\ntwo chunks\n");
    // It helps others with what it has, and no native node is told of it.
    let (name, digest) = tree.digests[3];
    swarm::read(host, name, &[]).finish(LONG).must_be(digest);
    assert_eq!(server.stop(), None);
    let client = lab.host(2).inside(|| Client::start(false));
    assert_eq!(get(lab.host(2), &client, name), digest);
    assert_eq!(client.stop(), None);
    let native = swarm::swarmfs(lab.host(2), &["ls", "old:/"]);
    assert!(!native.status.success() && complaint(&native).contains("nobody offers"), "{}", complaint(&native));
    let server = original(lab.origin(), &tree);
    host.sh(LONG, &format!("umount {MOUNT}"));
    drop(mount);
    // With the paths given, below a directory.
    let _mount = swarm::mount(host, "old:/boards", &["-o", "xcat=chunk:rev ä/größer.img"]);
    assert_eq!(host.sh(LONG, &format!("cd {MOUNT}; find * -type f")), "chunk\nrev ä/größer.img\n");
    for (name, digest) in [tree.digests[3], tree.digests[5]] {
        swarm::read(host, name.strip_prefix("boards/").unwrap(), &[]).finish(LONG).must_be(digest);
    }
    let missing = host.run(LONG, "cat", &[&format!("{MOUNT}/typo")]);
    assert!(complaint(&missing).contains("No such file"), "{}", complaint(&missing));
    assert_eq!(server.stop(), None);
}

#[test]
fn a_mount_of_paths_that_nobody_has_fails_and_says_what_to_look_at() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let output = swarm::swarmfs(lab.host(1), &["mount", MOUNT, "-o", "xcat=a:b,retry=500ms"]);
    assert_eq!(output.status.code(), Some(2));
    let said = complaint(&output);
    assert!(said.contains("a, b") && said.contains("19023"), "{said}");
}

#[test]
fn what_an_original_server_would_give_away_gets_silence() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let tree = tree(&lab);
    std::fs::write(lab.scratch().join("secret"), "secret").unwrap();
    for (name, target) in [("out", "../secret"), ("absolute", "/etc/passwd"), ("inside", "five")] {
        std::os::unix::fs::symlink(target, tree.path.join(name)).unwrap();
    }
    std::fs::write(tree.path.join("an@sign"), "sign").unwrap();
    let _origin = serve(&lab, &tree);
    let client = lab.host(1).inside(|| Client::start(false));
    for name in
        ["../secret", "/../secret", "boards/../../secret", "out", "absolute", "/etc/passwd", "an@sign", "boards", ""]
    {
        let got = lab.host(1).inside(|| client.get(name, Duration::from_millis(350), |_| {}));
        let death = got.unwrap_err();
        assert!(death.contains("limit"), "{name}: {death}");
    }
    lab.host(1).inside(|| {
        for number in ["007", "+0", " 0", "0x0", "0@x"] {
            assert!(!is_answered(&lab, &format!("five@{number}")), "{number}");
        }
        assert!(is_answered(&lab, "five@0"));
    });
    assert_eq!(get(lab.host(1), &client, "inside"), tree.digests[1].1);
    assert_eq!(get(lab.host(1), &client, "//five"), tree.digests[1].1);
    assert_eq!(client.stop(), None);
}

/// Whether the origin connects to the host that the calling thread is in, which asks for as long as an origin may take.
fn is_answered(lab: &Lab, request: &str) -> bool {
    let listener = legacy::on_the_port(|| std::net::TcpListener::bind(("0.0.0.0", legacy::PORT)));
    listener.set_nonblocking(true).unwrap();
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    (0..6).any(|_| {
        socket.send_to(request.as_bytes(), (lab.origin().address(), legacy::PORT)).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        listener.accept().is_ok()
    })
}

/// An original has the port for itself; what else was started on its host says so and goes on.
#[test]
fn a_port_that_is_taken_is_told_once() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let tree = tree(&lab);
    let server = original(lab.origin(), &tree);
    let origin = serve(&lab, &tree);
    assert_eq!(origin.log().matches("legacy requests are not answered: UDP port 19023").count(), 1, "{}", origin.log());
    all_by_an_original(lab.host(1), &tree.digests);
    assert_eq!(server.stop(), None);
    let _mount = swarm::mount(lab.host(1), "images", &[]);
    assert_eq!(lab.host(1).sh(LONG, &format!("wc -c < {MOUNT}/five")).trim(), "5");
}

#[test]
fn it_is_called_by_its_own_name_too() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let tree = tree(&lab);
    let _server = original(lab.origin(), &tree);
    let link: &Path = &lab.scratch().join("xcat");
    std::os::unix::fs::symlink(swarm::program(), link).unwrap();
    let output = lab.host(1).run(LONG, link.to_str().unwrap(), &["five"]);
    assert_eq!(samples::digest(&output.stdout[..]).unwrap(), tree.digests[1].1, "{}", complaint(&output));
    let output = lab.host(1).run(LONG, link.to_str().unwrap(), &["an@sign"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(complaint(&output).contains("cannot be asked for by the legacy protocol"), "{}", complaint(&output));
}
