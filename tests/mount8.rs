//! Mounts by the real mount(8), as fstab and an administrator ask for them: what it hands to the helper, what the helper
//! does with it, and what its exit status says.
//!
//! A host's `/sbin` and `/etc/fstab` are its own: overlays in its mount namespace, with the program under its helper's
//! names.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

mod lab;

use lab::swarm::{self, MOUNT, SOON, complaint, wait_until};
use lab::{Host, Lab, Link, Running};

/// Puts the helper where mount(8) looks for it, and these lines into fstab.
fn equip(host: &Host, fstab: &str) {
    let program = swarm::program();
    let script = format!(
        "mkdir -p /run/over/sbin /run/over/etc
        for name in mount.swarmfs mount.fuse.swarmfs; do ln -s '{}' /run/over/sbin/$name; done
        printf '%s\\n' \"$0\" > /run/over/etc/fstab
        for dir in sbin etc; do
            real=$(readlink -f /$dir)
            mount -t overlay -o ro,lowerdir=/run/over/$dir:$real overlay $real
        done",
        program.display()
    );
    let output = host.run(SOON, "sh", &["-ec", &script, fstab]);
    assert!(output.status.success(), "{}", complaint(&output));
}

/// Runs a command line on the host.
fn sh(host: &Host, line: &str) -> Output {
    host.run(SOON, "sh", &["-c", line])
}

#[track_caller]
fn must_end(host: &Host, line: &str, status: i32, words: &[&str]) {
    let output = sh(host, line);
    let said = complaint(&output);
    assert_eq!(output.status.code(), Some(status), "{line}: {said}");
    for word in words {
        assert!(said.contains(word), "{line}: no {word:?} in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

/// A directory with a few files, and one that only root may have.
fn plant(lab: &Lab) -> PathBuf {
    let tree = lab.scratch().join("tree");
    std::fs::create_dir_all(tree.join("boards/a")).unwrap();
    std::fs::write(tree.join("boards/a/name"), "a\n").unwrap();
    std::fs::write(tree.join("hello"), "hello\n").unwrap();
    std::fs::write(tree.join("secret"), "secret\n").unwrap();
    std::fs::set_permissions(tree.join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    tree
}

/// An origin of that as the tree `images`.
fn serve(lab: &Lab) -> Running {
    swarm::serve(lab.origin(), &plant(lab), "images", &[])
}

/// Sends a signal to a process, by its number in the test's own process namespace.
fn kill(signal: &str, pid: u32) {
    let status = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status();
    assert!(status.expect("kill(1) is installed").success());
}

fn mounts(host: &Host) -> Vec<(String, String)> {
    host.mounts_on(MOUNT)
}

fn is_mounted_once(host: &Host, source: &str) {
    assert_eq!(mounts(host), [("fuse.swarmfs".to_owned(), source.to_owned())]);
}

#[test]
fn a_line_of_fstab_is_mounted_once_by_whatever_asks_for_it() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let _origin = serve(&lab);
    let node = lab.host(1);
    equip(node, &format!("images: {MOUNT} swarmfs defaults,nofail,_netdev,noatime,x-systemd.automount,comment=a 0 0"));
    for command in ["mount -a", "mount -a", "mount -a -t swarmfs", "mount -fnv -t swarmfs images: /run/state"] {
        must_end(node, command, 0, &[]);
        is_mounted_once(node, "images:");
    }
    assert_eq!(node.mounts_on("/run/state"), []);
    assert_eq!(node.sh(SOON, &format!("cat {MOUNT}/hello; findmnt -no OPTIONS {MOUNT}")).lines().next(), Some("hello"));
    must_end(node, &format!("mount -o remount,ro {MOUNT}"), 1, &["cannot be changed while it is mounted"]);
    must_end(node, &format!("mount {MOUNT}"), 32, &["already"]);
    must_end(node, &format!("umount {MOUNT}"), 0, &[]);
    must_end(node, &format!("mount {MOUNT}"), 0, &[]);
    is_mounted_once(node, "images:");
    // In use: only `umount -l` takes it away, and its node ends when its user does.
    let user = node.spawn("sh", &["-c", &format!("cd {MOUNT} && touch /run/inside && sleep 1000")]);
    wait_until(SOON, "the mount is in use", || node.path("/run/inside").exists().then_some(()));
    must_end(node, &format!("umount {MOUNT}"), 32, &["busy"]);
    must_end(node, &format!("umount -l {MOUNT}"), 0, &[]);
    assert_eq!(mounts(node), []);
    drop(user);
    wait_until(SOON, "the node ends", || node.pids_of("mount.swarmfs").is_empty().then_some(()));
    // By its other type, a directory of it, and with a mount point that has files.
    std::fs::write(node.path(format!("{MOUNT}/below")), "").unwrap();
    must_end(node, &format!("mount -t fuse.swarmfs images:/boards/a {MOUNT}"), 0, &[]);
    is_mounted_once(node, "images:/boards/a");
    assert_eq!(node.sh(SOON, &format!("ls {MOUNT}")), "name\n");
    must_end(node, &format!("umount {MOUNT} && ls {MOUNT}/below"), 0, &[]);
}

#[test]
fn each_failure_has_its_exit_status_and_says_what_to_do() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let _origin = serve(&lab);
    let node = lab.host(1);
    equip(node, "");
    let mount = |rest: &str| format!("mount -t swarmfs {rest}");
    // 1: wrong usage.
    must_end(node, &mount(&format!("-o sotf images: {MOUNT}")), 1, &["unknown mount option sotf: did you mean soft?"]);
    must_end(node, &mount(&format!("-o soft=5 images: {MOUNT}")), 1, &["option soft takes no value"]);
    must_end(node, "mount.swarmfs images:", 1, &["<DIR>"]);
    must_end(
        node,
        &format!("mount.swarmfs images: {MOUNT} -o nofail,rw"),
        1,
        &["option rw: a swarmfs mount is read-only"],
    );
    // A word that exists as a path is that path by the time the helper sees it.
    must_end(
        node,
        &format!("mkdir -p /run/images; cd /run; {}", mount(&format!("images {MOUNT}"))),
        1,
        &["write images:"],
    );
    assert_eq!(mounts(node), []);
    must_end(node, &format!("cd /run; {}", mount(&format!("-s -o sotf images: {MOUNT}"))), 0, &[]);
    // 32: the mount failed.
    must_end(node, &mount(&format!("images: {MOUNT}")), 32, &["already shows the tree \"images:\""]);
    must_end(node, &format!("umount {MOUNT}"), 0, &[]);
    must_end(node, &mount("images: /run/missing"), 32, &["/run/missing"]);
    must_end(
        node,
        &mount(&format!("image: {MOUNT}")),
        32,
        &["nobody offers the tree \"image\"; the network has:\n  images"],
    );
    must_end(node, &mount(&format!("images:/nowhere {MOUNT}")), 32, &["cannot show \"/nowhere\" of the tree"]);
    must_end(node, &mount(&format!("-o retry=1,port=20000 images: {MOUNT}")), 32, &["for 1 s without an answer"]);
    must_end(
        node,
        &format!("mount -t tmpfs none {MOUNT}; {}", mount(&format!("images: {MOUNT}"))),
        32,
        &["is busy", "tmpfs"],
    );
    must_end(node, &format!("umount {MOUNT}"), 0, &[]);
    // 8, 4: the process that should have mounted was ended, or crashed.
    for (signal, status) in [("TERM", 8), ("ABRT", 4)] {
        let mut waiting = node.spawn("mount", &["-t", "swarmfs", "-o", "retry=5min,port=20000", "images:", MOUNT]);
        // mount(8) forks the helper, and that the process which goes into the background.
        let child = wait_until(SOON, "it tries", || {
            waiting.log().contains("trying").then_some(())?;
            node.pids_of("mount.swarmfs").into_iter().max()
        });
        kill(signal, child);
        assert_eq!(waiting.wait(SOON).code(), Some(status), "{signal}: {}", waiting.log());
    }
    // 16: the table of mounts cannot be read.
    let proc = "mount -t tmpfs none /proc && mkdir -p /proc/self/task/1";
    let without = format!("{proc} && exec mount.swarmfs images: {MOUNT}");
    must_end(
        node,
        &format!("exec unshare --mount sh -c '{without}'"),
        16,
        &["cannot read the table of mounts, /proc/self/mountinfo"],
    );
    // 2: the system failed.
    let nothing = "mkdir /run/dev; mount --bind /run/dev /dev";
    must_end(node, &format!("{nothing}; mount.swarmfs images: {MOUNT}"), 2, &["there is no /dev/fuse"]);
    assert_eq!(mounts(node), []);
}

/// An automounter's daemon, as in the kernel's Documentation/filesystems/autofs.rst: it covers a directory, is told when
/// somebody looks, mounts there and says that it is done. Its own process group, and no other, passes the cover.
const AUTOMOUNTER: &str = r#"
    use Fcntl;
    $^F = 100;
    my $dir = shift;
    setpgrp(0, 0);
    pipe(my $asked, my $tell);
    my $options = "fd=" . fileno($tell) . ",pgrp=$$,minproto=5,maxproto=5,direct";
    system("mount", "-i", "-t", "autofs", "-o", $options, "automounter", $dir) == 0 or exit 77;
    close($tell);
    sysopen(my $cover, $dir, O_RDONLY | O_DIRECTORY) or die "$dir: $!";
    $| = 1;
    print "covered
";
    while (sysread($asked, my $packet, 304)) {
        my ($version, $type, $token) = unpack("iiI", $packet);
        my $done = system("mount", $dir) == 0 ? 0x9360 : 0x9361;
        ioctl($cover, $done, $token + 0) or die "ioctl: $!";
    }
"#;

#[test]
fn whoever_first_looks_at_an_automount_sees_the_tree() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let node = lab.host(1);
    let autofs = std::fs::read_to_string("/proc/filesystems").unwrap().contains("\tautofs\n");
    if !autofs || !sh(node, "command -v perl").status.success() {
        return eprintln!("SKIPPED: this kernel has no autofs, or this host no perl to play its daemon");
    }
    let _origin = serve(&lab);
    equip(node, &format!("images: {MOUNT} swarmfs noauto 0 0"));
    let mut daemon = node.spawn("perl", &["-e", AUTOMOUNTER, MOUNT]);
    let covered = wait_until(SOON, "the automounter is ready", || {
        let ended = daemon.has_ended().map(|_| false);
        ended.or_else(|| daemon.log().contains("covered").then_some(true))
    });
    if !covered {
        assert!(std::env::var_os("CI").is_none(), "autofs cannot be mounted: {}", daemon.log());
        return eprintln!("SKIPPED: autofs cannot be mounted here: {}", daemon.log());
    }
    assert_eq!(mounts(node), [("autofs".to_owned(), "automounter".to_owned())]);
    let mut readers: Vec<Running> = (0..3).map(|_| node.spawn("cat", &[&format!("{MOUNT}/hello")])).collect();
    for reader in &mut readers {
        assert!(reader.wait(SOON).success(), "{}{}", reader.log(), daemon.log());
        assert_eq!(reader.log(), "hello\n");
    }
    let both = [("autofs", "automounter"), ("fuse.swarmfs", "images:")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(mounts(node), both);
    // Given back, as after an idle time, and taken again.
    must_end(node, &format!("umount {MOUNT} && cat {MOUNT}/hello"), 0, &[]);
    assert_eq!(mounts(node), both);
}

#[test]
fn a_mount_is_made_in_the_namespace_that_was_asked_for() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let _origin = serve(&lab);
    let node = lab.host(1);
    equip(node, "");
    let other = node.spawn("unshare", &["--mount", "--propagation=private", "sh", "-c", "echo $$; exec sleep 1000"]);
    let pid = wait_until(SOON, "the namespace is there", || Some(other.log().lines().next()?.to_owned()));
    for mount in ["mount -t swarmfs", "mount.swarmfs"] {
        must_end(node, &format!("{mount} -N {pid} images: {MOUNT}"), 0, &[]);
        assert_eq!(mounts(node), [], "{mount}");
        let inside = format!("nsenter --mount=/proc/{pid}/ns/mnt");
        assert_eq!(node.sh(SOON, &format!("{inside} cat {MOUNT}/hello; {inside} umount {MOUNT}")), "hello\n");
    }
}

/// What a boot does, in any order: each ends mounted.
#[test]
fn a_mount_at_boot_waits_for_the_origin_and_for_the_network() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let node = lab.host(1);
    equip(node, &format!("images: {MOUNT} swarmfs _netdev,nofail 0 0"));
    let tries = |what: &str| {
        let running = node.spawn("mount", &["-a"]);
        wait_until(SOON, what, || running.log().contains("trying on for 60 s").then_some(()));
        running
    };
    let mut waiting = tries("the client waits for the origin");
    let _origin = serve(&lab);
    assert!(waiting.wait(SOON).success(), "{}", waiting.log());
    is_mounted_once(node, "images:");
    must_end(node, &format!("umount {MOUNT}"), 0, &[]);
    // A cable that is plugged in late, and an interface that is made late.
    lab.cut(node);
    // The kernel sees it up to a second later.
    wait_until(SOON, "the cable is out", || (!node.sh(SOON, "ip -br link show eth0").contains(" UP ")).then_some(()));
    let mut waiting = tries("the client waits for the network");
    assert!(waiting.log().contains("no network to ask"), "{}", waiting.log());
    lab.mend(node);
    assert!(waiting.wait(SOON).success(), "{}", waiting.log());
    is_mounted_once(node, "images:");
    must_end(node, &format!("umount {MOUNT}; mount -a"), 0, &[]);
    is_mounted_once(node, "images:");
}

#[test]
fn a_mount_that_waits_for_nobody_shows_the_tree_once_its_origin_is_there() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let node = lab.host(1);
    equip(node, &format!("images:/boards {MOUNT} swarmfs _netdev,delay_connect 0 0"));
    must_end(node, "mount -a", 0, &[]);
    is_mounted_once(node, "images:/boards");
    must_end(node, &format!("timeout 5 df {MOUNT} && timeout 5 stat {MOUNT}"), 0, &[]);
    let program = swarm::program();
    wait_until(SOON, "the mount says what it waits for", || {
        let said = sh(node, &format!("{} status", program.display())).stdout;
        let said = String::from_utf8(said).unwrap();
        said.contains(&format!("mounted on {MOUNT}")).then_some(())?;
        said.contains("waits       nobody offers the tree \"images\"").then_some(())
    });
    let mut reader = node.spawn("cat", &[&format!("{MOUNT}/a/name")]);
    let _origin = serve(&lab);
    assert!(reader.wait(SOON).success(), "{}", reader.log());
    assert_eq!(reader.log(), "a\n");
    wait_until(SOON, "the mount has its neighbours", || {
        sh(node, &format!("{} status | grep '1 of them origins'", program.display())).status.success().then_some(())
    });
    must_end(node, &format!("umount {MOUNT}"), 0, &[]);
}

/// mount.fuse3 makes the mount and hands it over to a program that may not mount.
#[test]
fn a_mount_that_somebody_else_made_is_served_without_privileges() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let _origin = serve(&lab);
    let node = lab.host(1);
    equip(node, "");
    if !sh(node, "command -v mount.fuse3").status.success() {
        assert!(std::env::var_os("CI").is_none(), "mount.fuse3 is not installed (.ci/need)");
        return eprintln!("SKIPPED: no mount.fuse3");
    }
    must_end(node, &format!("mount.fuse3 mount.swarmfs#images: {MOUNT} -o drop_privileges,ro,allow_other"), 0, &[]);
    assert_eq!(mounts(node).len(), 1);
    assert_eq!(node.sh(SOON, &format!("cat {MOUNT}/hello")), "hello\n");
    let pid = node.pids_of("mount.swarmfs")[0];
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    must_end(node, &format!("umount {MOUNT}"), 0, &[]);
    wait_until(SOON, "the node ends", || node.pids_of("mount.swarmfs").is_empty().then_some(()));
}

#[test]
fn a_mount_whose_node_was_killed_is_replaced() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let _origin = serve(&lab);
    let node = lab.host(1);
    equip(node, &format!("images: {MOUNT} swarmfs defaults 0 0"));
    must_end(node, "mount -a", 0, &[]);
    for pid in node.pids_of("mount.swarmfs") {
        kill("KILL", pid);
    }
    wait_until(SOON, "the mount is dead", || {
        complaint(&sh(node, &format!("stat -f {MOUNT}"))).contains("not connected").then_some(())
    });
    must_end(node, &format!("mount {MOUNT}"), 0, &[]);
    is_mounted_once(node, "images:");
    assert_eq!(node.sh(SOON, &format!("cat {MOUNT}/hello")), "hello\n");
}

#[test]
fn what_is_asked_of_a_mount_without_its_files_is_answered_at_once_with_everything_cut_off() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let _origin = serve(&lab);
    let node = lab.host(1);
    equip(node, &format!("images: {MOUNT} swarmfs defaults 0 0"));
    must_end(node, "mount -a", 0, &[]);
    lab.cut(node);
    // Somebody waits for what nobody can bring; all others go by.
    let mut reader = node.spawn("cat", &[&format!("{MOUNT}/hello")]);
    wait_until(SOON, "it has the file open", || has_open(&reader, "hello").then_some(()));
    let program = swarm::program();
    for line in [
        format!("df {MOUNT}"),
        "df".to_owned(),
        format!("stat -f {MOUNT}"),
        format!("stat {MOUNT}"),
        "ls -l /run".to_owned(),
        format!("{} status", program.display()),
    ] {
        // These take milliseconds, and whatever waits for the network waits for ever here.
        let output = sh(node, &format!("timeout 5 {line}"));
        assert!(output.status.success(), "{line}: {}", complaint(&output));
    }
    assert!(reader.has_ended().is_none(), "the reader waits: {}", reader.log());
    reader.signal("KILL");
    reader.wait(SOON);
    must_end(node, &format!("umount {MOUNT}"), 0, &[]);
}

/// Whether a program got as far as having this file open.
fn has_open(running: &Running, name: &str) -> bool {
    let open = std::fs::read_dir(format!("/proc/{}/fd", running.pid())).into_iter().flatten().flatten();
    open.filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|file| file.ends_with(name))
}

/// What another local user can do with root's mount.
#[test]
fn files_of_a_tree_make_nobody_root_and_open_nothing_unless_asked_for() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let node = lab.host(1);
    const NOBODY: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    if !sh(node, &format!("{NOBODY} true")).status.success() {
        assert!(std::env::var_os("CI").is_none(), "only one user here");
        return eprintln!("SKIPPED: this user namespace has one user");
    }
    let tree = plant(&lab);
    // A program that is set-user-ID root says who it runs as; a device that anybody may open.
    let more = "cp $(command -v id) id; chmod 4755 id; mknod -m 666 null c 1 3";
    node.sh(SOON, &format!("cd {}; {more}", tree.display()));
    let _origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    equip(node, "");
    let as_nobody = |line: &str| sh(node, &format!("{NOBODY} {line}"));
    let mount = |options: &str| {
        must_end(node, &format!("mount -t swarmfs -o {options} images: {MOUNT}"), 0, &[]);
    };
    mount("ro");
    assert_eq!(as_nobody(&format!("cat {MOUNT}/hello")).stdout, b"hello\n");
    let refused = as_nobody(&format!("cat {MOUNT}/secret"));
    assert!(complaint(&refused).contains("Permission denied") && refused.stdout.is_empty(), "{}", complaint(&refused));
    assert_eq!(as_nobody(&format!("{MOUNT}/id -u")).stdout, b"65534\n", "set-user-ID bits count for nothing");
    assert!(complaint(&as_nobody(&format!("cat {MOUNT}/null"))).contains("Permission denied"), "nor do devices");
    node.sh(SOON, &format!("umount {MOUNT}"));
    mount("allow_suid,allow_dev");
    assert_eq!(as_nobody(&format!("{MOUNT}/id -u")).stdout, b"0\n");
    assert!(as_nobody(&format!("cat {MOUNT}/null")).status.success());
    assert!(!as_nobody(&format!("cat {MOUNT}/secret")).status.success());
    node.sh(SOON, &format!("umount {MOUNT}"));
    mount("uid=65534,gid=7,umask=077,noexec");
    assert_eq!(
        node.sh(SOON, &format!("stat -c '%u %g %a' {MOUNT}/hello {MOUNT}/secret")),
        "65534 7 600\n65534 7 600\n"
    );
    assert_eq!(as_nobody(&format!("cat {MOUNT}/secret")).stdout, b"secret\n", "it is that user's");
    assert!(complaint(&as_nobody(&format!("{MOUNT}/id"))).contains("Permission denied"));
    node.sh(SOON, &format!("umount {MOUNT}"));
}

/// The configuration file counts for mounts by fstab, and what is wrong with it is named.
#[test]
fn the_configuration_file_counts_where_nothing_else_does() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let _origin = serve(&lab);
    let node = lab.host(1);
    equip(node, &format!("images: {MOUNT} swarmfs defaults 0 0"));
    let write = |text: &str| {
        node.sh(SOON, "mkdir -p /run/over/etc/swarmfs");
        std::fs::write(node.path("/run/over/etc/swarmfs/swarmfs.conf"), text).unwrap();
    };
    write("port = 20000\nmount-options = \"retry=1\"\n");
    node.sh(SOON, "umount $(readlink -f /etc); mount -t overlay -o ro,lowerdir=/run/over/etc:/etc overlay /etc");
    must_end(node, "mount -a", 32, &["without an answer", "20000 to 20015"]);
    must_end(node, &format!("mount -t swarmfs -o port=19024,log_file=/run/log images: {MOUNT}"), 0, &[]);
    node.sh(SOON, &format!("umount {MOUNT}"));
    wait_until(SOON, "the log has its end", || {
        std::fs::read_to_string(node.path("/run/log")).unwrap().contains("INFO unmounted").then_some(())
    });
    write("prot = 20000\n");
    must_end(
        node,
        &format!("mount {MOUNT}"),
        1,
        &["/etc/swarmfs/swarmfs.conf, line 1: unknown key \"prot\": did you mean \"port\"?"],
    );
}
