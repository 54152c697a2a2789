//! Two origins of one tree: one dies and nobody waits; a copy that differs harms nobody.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

mod lab;

use lab::samples::{self, Digest};
use lab::swarm::{self, SOON, complaint, swarmfs, wait_until};
use lab::{Host, Lab, Link, Running};

const MIB: u64 = 1 << 20;
const MINUTE: Duration = Duration::from_secs(60);
/// The longest that a reader may go without a byte when an origin dies.
const PAUSE: Duration = Duration::from_secs(1);

/// A tree of one file, and a copy of it.
fn tree_and_copy(lab: &Lab, len: u64) -> (PathBuf, PathBuf, Digest) {
    let [tree, copy] = ["tree", "copy"].map(|name| lab.scratch().join(name));
    std::fs::create_dir(&tree).unwrap();
    samples::random_file(&tree.join("random"), len, 7);
    let digest = samples::digest_of(&tree.join("random"));
    copy_of(lab.origin(), &tree, &copy);
    (tree, copy, digest)
}

fn copy_of(host: &Host, tree: &Path, copy: &Path) {
    host.sh(MINUTE, &format!("cp -a {} {}", tree.display(), copy.display()));
}

/// Gives the spare host the origin's key.
fn share_key(lab: &Lab, spare: &Host) {
    let file = lab.scratch().join("secret");
    let file = file.to_str().unwrap();
    for (host, what) in [(lab.origin(), "--export"), (spare, "--import")] {
        let output = swarmfs(host, &["key", what, file]);
        assert!(output.status.success(), "{}", complaint(&output));
    }
}

fn replica(host: &Host, copy: &Path) -> Running {
    let node = swarm::start(host, &["serve", copy.to_str().unwrap(), "--name", "images", "--replica"]);
    wait_until(SOON, "the replica serves", || node.log().contains("a replica of images").then_some(()));
    node
}

/// How many origins a node of this host has for neighbours.
fn origins(host: &Host) -> usize {
    let output = swarmfs(host, &["status"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let count = said.lines().find_map(|line| line.trim().strip_suffix(" of them origins")?.rsplit_once(", "));
    count.and_then(|(_, count)| count.parse().ok()).unwrap_or(0)
}

#[test]
fn a_reader_goes_on_when_one_of_two_origins_dies() {
    let Some(lab) = Lab::timed(3, Link::mbit(100)) else { return };
    let (tree, copy, expected) = tree_and_copy(&lab, 64 * MIB);
    let (spare, reader) = (lab.host(1), lab.host(2));
    share_key(&lab, spare);
    let mut origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    let _replica = replica(spare, &copy);
    let _mount = swarm::mount(reader, "images", &[]);
    wait_until(SOON, "the reader has both", || (origins(reader) == 2).then_some(()));
    let mut reading = swarm::read(reader, "random", &[]);
    reading.reaches(20 * MIB, MINUTE);
    origin.kill();
    let (mut last, mut longest) = ((reading.got(), Instant::now()), Duration::ZERO);
    while reading.is_running() {
        if reading.got() != last.0 {
            longest = longest.max(last.1.elapsed());
            last = (reading.got(), Instant::now());
        }
        assert!(last.1.elapsed() < MINUTE, "the reader waits for the dead");
        std::thread::sleep(Duration::from_millis(2));
    }
    println!("the longest pause was {longest:?}");
    reading.finish(MINUTE).must_be(expected);
    assert!(longest < PAUSE, "the longest pause was {longest:?}");
    // Nor is the dead one needed for a mount.
    drop(_mount);
    let _mount = swarm::mount(reader, "images", &[]);
    swarm::read(reader, "random", &["count=4"]).finish(MINUTE);
}

#[test]
fn a_copy_that_differs_gives_nobody_other_bytes_and_takes_nothing_from_the_other() {
    let Some(lab) = Lab::shared(3, Link::unlimited()) else { return };
    let (tree, copy, expected) = tree_and_copy(&lab, 24 * MIB);
    let (spare, reader) = (lab.host(1), lab.host(2));
    // The same name, size and time, and one other byte; one file is missing, one is too many.
    std::fs::write(tree.join("only-there"), "there").unwrap();
    std::fs::write(copy.join("only-here"), "here").unwrap();
    lab.origin().sh(
        SOON,
        &format!(
            "printf x | dd of={0}/random bs=1 seek=20000000 conv=notrunc status=none; touch -r {1}/random {0}/random",
            copy.display(),
            tree.display()
        ),
    );
    share_key(&lab, spare);
    // So slow that the reader takes what it can get from the other.
    let _origin = swarm::serve(lab.origin(), &tree, "images", &["--upload", "4M"]);
    let replica = replica(spare, &copy);
    let _mount = swarm::mount(reader, "images", &[]);
    wait_until(SOON, "the reader has both", || (origins(reader) == 2).then_some(()));
    swarm::read(reader, "random", &[]).finish(MINUTE).must_be(expected);
    assert_eq!(reader.sh(SOON, &format!("cat {0}/only-there; ls {0}", swarm::MOUNT)), "thereonly-there\nrandom\n");
    wait_until(SOON, "the replica notices", || replica.log().contains("a version is withdrawn").then_some(()));
}

#[test]
fn without_the_key_there_is_no_replica() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let (tree, copy, _) = tree_and_copy(&lab, 1024);
    let _origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    let output = swarmfs(lab.host(1), &["serve", copy.to_str().unwrap(), "--name", "images", "--replica"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(complaint(&output).contains("cannot be a replica of the tree \"images\""), "{}", complaint(&output));
}
