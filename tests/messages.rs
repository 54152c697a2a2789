//! README's table of errors: each message is produced here, in the table's very words, by what its row says.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use swarmfs::keys::OriginKey;

mod lab;

use lab::swarm::{self, SOON, complaint, swarmfs, wait_until};
use lab::{Host, Lab, Link, Running};

const README: &str = include_str!("../README.md");
/// A mount that finds a tree and gets nothing of it says so after 30 seconds.
const UNREACHED: Duration = Duration::from_secs(60);

/// The messages of the table that nothing has produced yet.
struct Table {
    listed: BTreeSet<&'static str>,
    left: BTreeSet<&'static str>,
}

impl Table {
    fn read() -> Table {
        let (_, section) = README.split_once("\n## When it does not work\n").expect("the section is there");
        let (section, _) = section.split_once("\n## ").unwrap_or((section, ""));
        let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
        let cells = rows.map(|row| row.split('|').nth(1).expect("a row has cells").trim());
        // In backticks what is printed; without, what is seen.
        let listed: BTreeSet<&str> = cells
            .flat_map(|cell| match cell.contains('`') {
                true => cell.split('`').skip(1).step_by(2).collect(),
                false => vec![cell],
            })
            .collect();
        assert!(listed.len() >= 20, "the table was not found: {listed:?}");
        Table { left: listed.clone(), listed }
    }

    #[track_caller]
    fn has(&mut self, message: &str) {
        assert!(self.listed.contains(message), "README has no such message: {message}");
        self.left.remove(message);
    }

    /// This is the message, and somebody was shown it.
    #[track_caller]
    fn said(&mut self, message: &str, said: &str) {
        self.has(message);
        assert!(said.contains(message), "no {message:?} in: {said}");
    }

    /// What the program says when it is called like that; it fails.
    #[track_caller]
    fn fails(&mut self, host: &Host, args: &str, message: &str) {
        let output = swarmfs(host, &args.split(' ').collect::<Vec<_>>());
        assert!(!output.status.success(), "{args} did not fail");
        self.said(message, &complaint(&output));
    }

    /// What another program says.
    #[track_caller]
    fn shown(&mut self, host: &Host, script: &str, message: &str) {
        let output = host.run(SOON, "sh", &["-c", script]);
        assert!(!output.status.success(), "{script} did not fail");
        self.said(message, &complaint(&output));
    }
}

#[track_caller]
fn must(host: &Host, args: &str) {
    let output = swarmfs(host, &args.split(' ').collect::<Vec<_>>());
    assert!(output.status.success(), "{args}: {}", complaint(&output));
}

fn program() -> String {
    swarm::program().to_str().expect("build directories have plain names").to_owned()
}

#[test]
fn each_message_of_the_readme_is_what_is_said() {
    let Some(lab) = Lab::shared(4, Link::unlimited()) else { return };
    let mut table = Table::read();
    let (node, shut) = (lab.host(2), lab.host(3));
    let tree = lab.scratch().join("images");
    std::fs::create_dir(&tree).unwrap();
    for name in ["hello", "changed", "waits", "gives-up"] {
        std::fs::write(tree.join(name), name.repeat(10_000)).unwrap();
    }
    // What takes its time goes on beside the rest: nobody is at port 20000.
    let lonely = swarm::start(node, &["mount", "/run/mnt", "--port", "20000"]);
    let mut origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    let _private = serve_privately(shut, &tree);
    let foreign = with_wrong_secrets(node);
    let unreached = with_tcp_shut(shut);

    wrong_words(&lab, &mut table);
    of_the_network(&lab, &mut table);
    of_the_mount_point(node, &mut table);
    without_root(&lab, &mut table);
    while_mounted(&lab, &tree, &mut origin, &mut table);

    for (mut command, message) in [
        (lonely, "nobody offers any tree: asked 255.255.255.255 on eth0 for 5 s without an answer"),
        (unreached, "found the tree \"images\", but for 30 s got nothing from those who have it"),
    ] {
        assert_eq!(command.wait(UNREACHED).code(), Some(2), "{}", command.log());
        table.said(message, &command.log());
    }
    for (mut command, message) in foreign {
        assert_eq!(command.wait(SOON).code(), Some(2), "{}", command.log());
        table.said(message, &command.log());
    }
    assert!(table.left.is_empty(), "README promises what nothing here produces: {:?}", table.left);
}

/// A swarm with a secret, on ports of its own.
fn serve_privately(host: &Host, tree: &std::path::Path) -> Running {
    must(host, "key --new-secret /run/secret");
    swarm::serve(host, tree, "private", &["--port", "21000", "--secret-file", "/run/secret"])
}

/// Commands that find nodes with another secret than theirs, or none, and what each will say.
fn with_wrong_secrets(host: &Host) -> [(Running, &'static str); 3] {
    must(host, "key --new-secret /run/secret");
    let secret = ["--secret-file", "/run/secret"];
    let ls = |more: &[&str]| swarm::start(host, &[&["ls"], more].concat());
    [
        (ls(&["--port", "21000"]), "nodes with a secret are at"),
        (ls(&[&["--port", "21000"], &secret[..]].concat()), "nodes with another secret than that of"),
        (ls(&secret), "nodes without a secret are at"),
    ]
}

/// A mount on a host whose firewall lets no connections through. It has found its tree when this returns.
fn with_tcp_shut(host: &Host) -> Running {
    host.sh(
        SOON,
        "nft 'add table inet shut; add chain inet shut input { type filter hook input priority 0; };
              add rule inet shut input iif eth0 meta l4proto tcp drop'",
    );
    let mount = swarm::start(host, &["mount", "images:", "/run/mnt"]);
    wait_until(SOON, "the tree is found", || mount.log().contains("found the tree").then_some(()));
    mount
}

fn wrong_words(lab: &Lab, table: &mut Table) {
    let node = lab.host(2);
    table.fails(node, "mount images: /mnt -o sotf", "unknown mount option sotf: did you mean soft?");
    std::fs::write(node.path("/run/swarmfs.conf"), "# One.\n# Two.\nprot = 20000\n").unwrap();
    table.fails(node, "mount --config /run/swarmfs.conf images: /mnt", "line 3: unknown key \"prot\"");
    table.fails(node, "ls --secret-file /run/swarmfs.conf", "expected a secret of 64 hex digits");
    let helper = "mount.swarmfs /srv/images /mnt";
    table.fails(node, helper, "mount(8) makes a path of a word that exists as one");
    table.fails(node, "mount images: /mnt -o remount", "a swarmfs mount cannot be changed while it is mounted");
    table.fails(node, "mount images: /mnt -o rw", "a swarmfs mount is read-only");
}

fn of_the_network(lab: &Lab, table: &mut Table) {
    let (other, node) = (lab.host(1), lab.host(2));
    table.fails(node, "mount image: /mnt", "nobody offers the tree \"image\"; the network has:");
    let stranger = OriginKey::from_seed(&[7; 32]).public();
    table.fails(
        node,
        &format!("mount images: /mnt --key {stranger} -o retry=1s"),
        "the tree \"images\" is offered with another key than the one given with --key",
    );
    let head = "5a".repeat(32);
    let message = "the tree \"images\" is not in the state asked for";
    table.fails(node, &format!("mount images: /mnt --head {head}"), message);
    let tree = lab.scratch().join("images");
    let tree = tree.to_str().expect("build directories have plain names");
    table.fails(
        lab.origin(),
        &format!("serve {tree}"),
        "the tree \"images\" is already served by another process of this host",
    );
    must(other, "key");
    table.fails(other, &format!("serve {tree} --name images --replica"), "cannot be a replica of the tree \"images\"");
    {
        let _second = swarm::serve(other, tree.as_ref(), "rescue", &[]);
        table.fails(node, "mount /mnt", "the network has several trees; name one of them:");
    }
    {
        let _impostor = swarm::serve(other, tree.as_ref(), "images", &[]);
        table.fails(node, "mount images: /mnt", "origins with different keys offer the tree \"images\"");
    }
    {
        must(node, "ls images:");
        let elsewhere = ["--port", "20100"];
        let _changed = swarm::serve(other, tree.as_ref(), "images", &elsewhere);
        let message = "the key of the tree \"images\" has changed";
        table.fails(node, "mount images: /mnt --port 20100 -o retry=1s", message);
    }
    wait_until(SOON, "the impostor is gone", || other.pids_of("swarmfs").is_empty().then_some(()));
    let taken: Vec<TcpListener> = other
        .inside(|| (19024..=19039).map(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()).collect());
    table.fails(other, &format!("serve {tree}"), "TCP ports 19024 to 19039 are all taken");
    drop(taken);
    other.sh(
        SOON,
        "nft 'add table inet shut; add chain inet shut output { type filter hook output priority 0; policy drop; }'",
    );
    table.fails(other, "mount /mnt -o retry=1s", "this host may not ask 255.255.255.255 on eth0");
    other.sh(SOON, "ip link set eth0 down");
    table.fails(other, "mount /mnt -o retry=1s", "nobody offers any tree: there is no network to ask");
}

fn of_the_mount_point(node: &Host, table: &mut Table) {
    table.fails(node, "mount images: /mnt/x", "mount point \"/mnt/x\" does not exist");
    node.sh(SOON, "mount -t tmpfs none /mnt");
    table.fails(node, "mount images: /mnt", "\"/mnt\" is busy");
    node.sh(SOON, "umount /mnt");
    let bare = format!(
        "touch /run/null; mount --bind /dev/null /run/null; mount -t tmpfs none /dev; touch /dev/null
         mount --bind /run/null /dev/null; exec {} mount images: /mnt",
        program()
    );
    table.shown(node, &format!("exec unshare --mount sh -c '{bare}'"), "there is no /dev/fuse");
}

/// What users other than root are told.
fn without_root(lab: &Lab, table: &mut Table) {
    let node = lab.host(2);
    let (closed, missing) = ("/dev/fuse may be opened by root only", "fusermount3 is not installed");
    const NOBODY: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    // A copy that anybody may run, a device of root's own, a directory of the user's own, and no helper.
    let prepare = format!(
        "cp {} /run/program; mknod -m 600 /run/fuse c 10 229; mount --bind /run/fuse /dev/fuse
         mkdir -p /run/without/bin /run/theirs; chown 65534:65534 /run/theirs
         mknod /run/without/bin/fusermount3 c 0 0; {NOBODY} true",
        program()
    );
    if !node.run(SOON, "sh", &["-ec", &prepare]).status.success() {
        assert!(std::env::var_os("CI").is_none(), "only one user here, or no device files");
        eprintln!("SKIPPED: this user namespace has one user, or makes no device files: {closed}; {missing}");
        table.has(closed);
        table.has(missing);
        return;
    }
    let mount = format!("exec {NOBODY} /run/program mount images: /run/theirs");
    table.shown(node, &mount, closed);
    let without = "mount -t overlay -o ro,lowerdir=/run/without/bin:/usr/bin overlay /usr/bin";
    table.shown(node, &format!("exec unshare --mount sh -c '{without} && {mount}'"), missing);
    node.sh(SOON, "umount /dev/fuse");
}

/// What whoever reads a mount is told, from its start to its end.
fn while_mounted(lab: &Lab, tree: &std::path::Path, origin: &mut Running, table: &mut Table) {
    let node = lab.host(2);
    must(node, "mount images: /mnt");
    table.fails(node, "mount images: /mnt", "\"/mnt\" already shows the tree");
    let mut user = node.spawn("sh", &["-c", "cd /mnt && echo inside && exec sleep 1000"]);
    wait_until(SOON, "somebody uses the mount", || user.log().contains("inside").then_some(()));
    table.fails(node, "umount /mnt", "\"/mnt\" is in use");
    user.kill();
    node.sh(SOON, "stat /mnt/waits");
    // Open before the change: whoever comes after it may be shown the new version.
    let written = tree.join("changed");
    let late = format!("exec 3< /mnt/changed && echo in place > {} && cat <&3", written.display());
    table.shown(node, &late, "Stale file handle");

    node.sh(SOON, &format!("mkdir /run/soft; {} mount images: /run/soft -o soft,timeo=1s", program()));
    node.sh(SOON, "stat /run/soft/gives-up");
    origin.kill();
    let mut reader = node.spawn("cat", &["/mnt/waits"]);
    // By the time that another mount has given up, this one has waited as long.
    table.shown(node, "cat /run/soft/gives-up", "Input/output error");
    assert!(reader.has_ended().is_none(), "a hard mount waits: {}", reader.log());
    reader.signal("KILL");
    reader.wait(SOON);
    table.has("a read hangs");

    for pid in node.pids_of("swarmfs") {
        let killed = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        assert!(killed.expect("kill(1) is installed").success());
    }
    wait_until(SOON, "the node is gone", || node.pids_of("swarmfs").is_empty().then_some(()));
    table.shown(node, "ls /mnt", "Transport endpoint is not connected");
    must(node, "umount /mnt");
}
