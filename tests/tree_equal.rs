//! The mount is the tree: whatever ordinary programs can compare is the same on both sides.

use std::path::PathBuf;
use std::time::Duration;

mod lab;

use lab::{Lab, Link, Running, samples, swarm};

const LONG: Duration = Duration::from_secs(240);

/// A tree of real files and hard cases on the origin, mounted on one node.
fn mounted() -> Option<(Lab, PathBuf, [Running; 2])> {
    let lab = Lab::shared(2, Link::unlimited())?;
    let tree = lab.scratch().join("tree");
    samples::machine_files(&tree.join("machine"), 48 << 20);
    samples::hard_cases(&tree);
    let origin = swarm::serve(lab.origin(), &tree, "tree", &[]);
    let mount = swarm::mount(lab.host(1), "tree", &[]);
    Some((lab, tree, [origin, mount]))
}

#[test]
fn no_program_finds_a_difference_between_tree_and_mount() {
    let Some((lab, tree, _nodes)) = mounted() else { return };
    let (node, tree, mount) = (lab.host(1), tree.display(), swarm::MOUNT);

    // Names, types, modes, owners, link counts, sizes, link targets and times to the nanosecond. (A directory's size is
    // its filesystem's own affair; its count of links too.)
    let listing = |root: &str| {
        node.sh(
            LONG,
            &format!(
                "cd {root} && find . -printf '%P %y %m %U %G %T@ %l' \\( -type d -printf '\\n' -o -printf ' %s %n\\n' \\) \
                 | LC_ALL=C sort"
            ),
        )
    };
    let (ours, theirs) = (listing(&tree.to_string()), listing(mount));
    let first = ours.lines().zip(theirs.lines()).find(|(ours, theirs)| ours != theirs);
    assert_eq!(first, None, "tree and mount differ");
    assert_eq!(ours.lines().count(), theirs.lines().count());

    // diff calls two fifos different whatever they are; rsync below looks at them.
    node.sh(LONG, &format!("diff -r --no-dereference --exclude=fifo {tree} {mount}"));
    for (from, to) in [(tree.to_string(), mount.to_string()), (mount.to_string(), tree.to_string())] {
        let differences = node.sh(LONG, &format!("rsync -naHc --delete --itemize-changes {from}/ {to}/"));
        assert_eq!(differences, "", "rsync from {from} to {to}");
    }
}

#[test]
fn what_tar_reads_from_the_mount_unpacks_to_the_same_tree() {
    let Some((lab, tree, _nodes)) = mounted() else { return };
    let copy = lab.scratch().join("copy");
    std::fs::create_dir(&copy).unwrap();
    let (node, tree, copy, mount) = (lab.host(1), tree.display(), copy.display(), swarm::MOUNT);
    node.sh(LONG, &format!("tar -C {mount} -cf - . | tar -C {copy} -xpf -"));
    let differences = node.sh(LONG, &format!("rsync -naHc --delete --itemize-changes {tree}/ {copy}/"));
    assert_eq!(differences, "");
}

#[test]
fn holes_stay_holes_in_a_sparse_copy() {
    let Some((lab, tree, _nodes)) = mounted() else { return };
    let (node, scratch, mount) = (lab.host(1), lab.scratch().display(), swarm::MOUNT);
    for name in ["sparse", "only a hole"] {
        node.sh(
            LONG,
            &format!("cp --sparse=auto '{mount}/{name}' {scratch}/copy && cmp {scratch}/copy '{mount}/{name}'"),
        );
        let blocks = |path: &str| -> u64 { node.sh(LONG, &format!("stat -c %b '{path}'")).trim().parse().unwrap() };
        let (copied, original) = (blocks(&format!("{scratch}/copy")), blocks(&format!("{}/{name}", tree.display())));
        // The filesystem of the copy may round up and need blocks of its own to say where the holes are.
        assert!(copied <= original + original / 8 + 64, "{name}: {copied} blocks instead of {original}");
    }
}

#[test]
fn the_mount_cannot_be_written_to() {
    let Some((lab, _tree, _nodes)) = mounted() else { return };
    let (node, mount) = (lab.host(1), swarm::MOUNT);
    for attempt in
        ["touch new", "rm empty", "mkdir new", "mv empty new", "chmod 600 empty", "ln -s x new", "echo x >> empty"]
    {
        let output = node.run(LONG, "sh", &["-c", &format!("cd {mount} && {attempt}")]);
        assert!(!output.status.success(), "{attempt} succeeded");
        assert!(
            swarm::complaint(&output).contains("Read-only file system"),
            "{attempt}: {}",
            swarm::complaint(&output)
        );
    }
}
