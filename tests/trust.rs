//! Whose tree it is: the first key seen is remembered, another one is refused with what to do, and origins hear of rivals.

use std::path::PathBuf;

mod lab;

use lab::swarm::{self, SOON, complaint, swarmfs, wait_until};
use lab::{Host, Lab, Link, Running};

fn tree(lab: &Lab) -> PathBuf {
    let tree = lab.scratch().join("images");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("hello"), "hello").unwrap();
    tree
}

/// What a command that must fail says.
#[track_caller]
fn refused(host: &Host, args: &[&str]) -> String {
    let output = swarmfs(host, args);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {}", complaint(&output));
    complaint(&output)
}

/// What a command that must succeed says.
#[track_caller]
fn done(host: &Host, args: &[&str]) -> String {
    let output = swarmfs(host, args);
    assert!(output.status.success(), "{args:?}: {}", complaint(&output));
    String::from_utf8_lossy(&output.stdout).into_owned() + &complaint(&output)
}

/// The key that a host signs with, and its fingerprint.
fn key_of(host: &Host) -> (String, String) {
    let said = done(host, &["key"]);
    let (key, rest) = said.strip_prefix("key ").unwrap().split_once(" (").unwrap();
    (key.to_owned(), rest.split_once(')').unwrap().0.to_owned())
}

fn says(running: &Running, text: &str) {
    wait_until(SOON, text, || running.log().contains(text).then_some(()));
}

#[test]
fn the_first_key_is_remembered_and_another_is_refused_until_it_is_accepted() {
    let Some(lab) = Lab::shared(3, Link::unlimited()) else { return };
    let (tree, origin, reader, mounted) = (tree(&lab), lab.origin(), lab.host(1), lab.host(2));
    let mut serving = swarm::serve(origin, &tree, "images", &[]);
    let (_, first) = key_of(origin);
    let said = done(reader, &["ls", "images:"]);
    assert!(said.contains("its key is the first one seen and is remembered") && said.contains(&first), "{said}");
    let said = done(reader, &["ls", "images:"]);
    assert!(!said.contains("first one seen"), "said once: {said}");
    let mount = swarm::mount(mounted, "images", &[]);

    // The origin loses what it remembers, and with it its key.
    serving.kill();
    origin.sh(SOON, "rm -r /run/state");
    let serving = swarm::serve(origin, &tree, "images", &[]);
    let (key, second) = key_of(origin);
    let said = refused(reader, &["ls", "images:"]);
    let address = origin.address().to_string();
    for part in ["has changed", &first, &second, &address, &key, "remembered since 20", "key --forget images", "--key"]
    {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
    // Nor does a mount change its mind, and it says what it heard.
    says(&mount, "somebody offers this tree with another key; ignored");
    assert!(mount.log().contains(&second) && mount.log().contains("key --forget images"), "{}", mount.log());

    let shown = format!("{address} with key {second}");
    wait_until(SOON, "status shows the rival", || done(mounted, &["status"]).contains(&shown).then_some(()));

    assert!(done(reader, &["ls", "images:", "--key", &key]).contains("hello"), "who names a key decides");
    refused(reader, &["ls", "images:"]);
    drop(mount);
    assert!(done(reader, &["key"]).contains(&format!("trusts images: {first} since ")));
    assert!(done(reader, &["key", "--forget", "images"]).contains("forgot the key"));
    assert!(done(reader, &["ls", "images:"]).contains(&second), "it is said again");
    let said = refused(reader, &["key", "--forget", "image"]);
    assert!(said.contains("no key is remembered for the tree \"image\"") && said.contains("images: "), "{said}");
    drop(serving);
}

#[test]
fn an_origin_hears_of_a_rival_and_readers_go_on_with_the_key_they_know() {
    let Some(lab) = Lab::shared(3, Link::unlimited()) else { return };
    let (tree, origin, impostor, reader) = (tree(&lab), lab.origin(), lab.host(1), lab.host(2));
    let mut serving = swarm::serve(origin, &tree, "images", &[]);
    done(reader, &["ls", "images:"]);
    let rival = swarm::start(impostor, &["serve", tree.to_str().unwrap(), "--name", "images"]);
    let ((_, mine), (_, theirs)) = (key_of(origin), key_of(impostor));
    says(&rival, "somebody else offers this tree with another key");
    assert!(rival.log().contains(&mine), "{}", rival.log());
    let said = done(reader, &["ls", "images:"]);
    assert!(
        said.contains("hello") && said.contains("somebody else offers this tree") && said.contains(&theirs),
        "{said}"
    );
    // The one that was there before asks now and then; a restart asks at once.
    serving.kill();
    let serving = swarm::start(origin, &["serve", tree.to_str().unwrap(), "--name", "images"]);
    says(&serving, &theirs);
}

#[test]
fn a_host_that_cannot_remember_trusts_all_the_same_and_says_so() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let (tree, reader) = (tree(&lab), lab.host(1));
    let _serving = swarm::serve(lab.origin(), &tree, "images", &[]);
    let program = swarm::program();
    let said = reader.sh(SOON, &format!("STATE_DIRECTORY=/proc/none {} ls images: 2>&1", program.display()));
    assert!(said.contains("cannot be remembered") && said.contains("hello"), "{said}");
    // What is damaged is thrown away, and the next key seen counts.
    done(reader, &["ls", "images:"]);
    reader.sh(SOON, "echo nonsense > /run/state/trees/images/trusted");
    let said = done(reader, &["ls", "images:"]);
    assert!(said.contains("is damaged") && said.contains("first one seen"), "{said}");
}

#[test]
fn a_state_that_was_asked_for_is_what_is_shown_whatever_the_tree_becomes() {
    let Some(lab) = Lab::shared(3, Link::unlimited()) else { return };
    let (tree, origin, reader, mounted) = (tree(&lab), lab.origin(), lab.host(1), lab.host(2));
    let head = |serving: &Running| {
        let log = serving.log();
        log.lines().find_map(|line| line.strip_prefix("head ")).expect("serve prints the head").to_owned()
    };
    let mut serving = swarm::serve(origin, &tree, "images", &[]);
    let first = head(&serving);
    let mount = swarm::mount(mounted, "images", &["-o", &format!("head={first}")]);
    assert!(done(mounted, &["status"]).contains(&first));
    assert!(done(reader, &["ls", "images:", "--head", &first]).contains("hello"));

    assert!(!done(mounted, &["status"]).contains("not heard"));
    serving.kill();
    wait_until(SOON, "status says who is missing", || {
        done(mounted, &["status"]).contains("not heard for").then_some(())
    });
    std::fs::write(tree.join("added"), "later").unwrap();
    let serving = swarm::serve(origin, &tree, "images", &[]);
    let second = head(&serving);
    assert!(done(reader, &["ls", "images:", "--head", &second]).contains("added"));
    says(&mount, "the state that was asked for stays");
    assert_eq!(mounted.sh(SOON, &format!("ls {0}; cat {0}/hello", swarm::MOUNT)), "hello\nhello");
    let none = "5a".repeat(32);
    let said = refused(reader, &["ls", "images:", "--head", &none]);
    assert!(said.contains(&none) && said.contains(&second) && said.contains("not in the state asked for"), "{said}");
    // What one still shows another can have too.
    assert!(!done(reader, &["ls", "images:", "--head", &first]).contains("added"));
}
