//! Real mounts on this host: what they show, how they end, and what is said when they cannot be made.
//!
//! A mount is served by this process and read by others only; a process that reads its own mount would wait for
//! itself. Without root or /dev/fuse each test says so and passes.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use swarmfs::fs::{Fs, Late, Settings};
use swarmfs::fuse::{self, MountError, Mounted, UnmountError};
use swarmfs::keys::OriginKey;

mod disk;

use disk::DiskNode;

/// For what needs no more than a moment; a loaded machine gets its time.
const LATEST: Duration = Duration::from_secs(20);
/// Set for the processes that this file starts of itself.
const SERVE: &str = "SWARMFS_TEST_SERVE";
const ROLE: &str = "SWARMFS_TEST_ROLE";

#[test]
fn a_mount_shows_the_directory_as_it_is() {
    let Some(place) = Place::new() else { return };
    plant(&place.tree);
    let served = place.serve();
    run(
        "diff",
        [
            "-r".as_ref(),
            "--no-dereference".as_ref(),
            "--exclude=fifo".as_ref(),
            place.tree.as_os_str(),
            place.point.as_os_str(),
        ],
    );
    for path in [&place.tree, &place.point] {
        let listing = run("find", [path.as_os_str(), "-printf".as_ref(), "%P %y %m %U %G %s %n %l %T@\\n".as_ref()]);
        let mut lines: Vec<_> = listing.stdout.split(|byte| *byte == b'\n').collect();
        lines.sort();
        std::fs::write(place.dir.path().join(if *path == place.tree { "one" } else { "other" }), lines.join(&b'\n'))
            .unwrap();
    }
    run("cmp", [place.dir.path().join("one"), place.dir.path().join("other")]);
    let status = run_any("touch", [place.point.join("new")]).status;
    assert!(!status.success(), "a mount is read-only");
    drop(served);
    assert!(place.is_unmounted());
}

#[test]
fn hard_links_sparse_files_and_offsets_beyond_the_end_are_read_right() {
    let Some(place) = Place::new() else { return };
    let file = std::fs::File::create(place.tree.join("sparse")).unwrap();
    file.set_len(5 * 1024 * 1024 + 3).unwrap();
    std::fs::hard_link(place.tree.join("sparse"), place.tree.join("linked")).unwrap();
    let _served = place.serve();
    let numbers = run("stat", ["-c".into(), "%i %h".into(), place.point.join("sparse"), place.point.join("linked")]);
    let text = String::from_utf8(numbers.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], lines[1], "hard links have one number");
    run("cmp", [place.tree.join("sparse"), place.point.join("linked")]);
    let direct = place.point.join("sparse");
    let input = format!("if={}", direct.display());
    run("dd", [&*input, "of=/dev/null", "bs=1M", "iflag=direct", "status=none"]);
    run("dd", [&*input, "of=/dev/null", "skip=1000", "bs=64K", "status=none"]);
}

#[test]
fn a_mount_point_in_use_is_refused_with_what_to_do() {
    let Some(place) = Place::new() else { return };
    let served = place.serve();
    let again = place.mount().err().expect("refused");
    assert!(matches!(again, MountError::AlreadyMounted { .. }), "{again}");
    assert!(again.to_string().contains("swarmfs umount"), "{again}");
    drop(served);

    run("mount", ["-t".as_ref(), "tmpfs".as_ref(), "none".as_ref(), place.point.as_os_str()]);
    let busy = place.mount().err().expect("refused");
    assert!(matches!(&busy, MountError::Busy { kind, .. } if kind == "tmpfs"), "{busy}");
    assert!(matches!(fuse::unmount(&place.point, false), Err(UnmountError::NotOurs { .. })));
    run("umount", [&place.point]);
}

#[test]
fn without_dev_fuse_the_error_says_how_to_get_it() {
    if Place::new().is_none() {
        return;
    }
    let script =
        "mount --make-rprivate / && mount -t tmpfs none /dev && exec \"$0\" --exact a_process_of_its_own --nocapture";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .env(ROLE, "no-device")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("modprobe fuse"), "{said}");
}

#[test]
fn a_dead_mount_of_the_same_source_is_replaced_and_no_other() {
    let Some(place) = Place::new() else { return };
    std::fs::write(place.tree.join("f"), "text").unwrap();
    let mut server = place.start("serve");
    place.wait_until_mounted();
    // It answers: nobody may take it away.
    assert!(matches!(place.mount(), Err(MountError::AlreadyMounted { .. })));
    server.kill().unwrap();
    server.wait().unwrap();
    let stat = Command::new("stat").arg("-f").arg(&place.point).output().unwrap();
    assert!(String::from_utf8_lossy(&stat.stderr).contains("Transport endpoint"), "it is dead");

    let other = fuse::Settings::new("other", &place.point);
    let refused = fuse::mount(place.fs(&place.node()), &other).err().expect("refused");
    assert!(matches!(refused, MountError::Dead { .. }), "{refused}");
    let _served = place.serve();
    assert_eq!(run("cat", [place.point.join("f")]).stdout, b"text");
    assert_eq!(place.mounts(), 1, "nothing is stacked");
}

#[test]
fn a_dead_mount_is_cleared_by_unmount() {
    let Some(place) = Place::new() else { return };
    let mut server = place.start("serve");
    place.wait_until_mounted();
    server.kill().unwrap();
    server.wait().unwrap();
    fuse::unmount(&place.point, false).unwrap();
    assert_eq!(place.mounts(), 0);
}

#[test]
fn a_mount_in_use_stays_and_its_owner_detaches_it() {
    let Some(place) = Place::new() else { return };
    std::fs::write(place.tree.join("f"), "text").unwrap();
    let served = place.serve();
    let mut user = place.child("sh", ["-c", "exec 3< f; echo open; read _"], Stdio::piped());
    assert!(heard(&mut user, b"open"));
    let busy = fuse::unmount(&place.point, false).unwrap_err();
    assert!(matches!(busy, UnmountError::Busy(_)) && busy.to_string().contains("fuser -vm"), "{busy}");
    assert_eq!(place.mounts(), 1);
    served.mounted.unmount().unwrap();
    served.mounted.wait();
    assert_eq!(place.mounts(), 0);
    served.mounted.unmount().expect("a second time is no error");
    user.kill().unwrap();
    user.wait().unwrap();
}

#[test]
fn a_lazy_unmount_answers_everything_that_waits() {
    let Some(place) = Place::new() else { return };
    std::fs::write(place.tree.join("f"), vec![1; 300_000]).unwrap();
    let served = place.serve();
    // Known, so that what waits are reads.
    run("stat", [place.point.join("f")]);
    served.node.cut_off(true);
    served.node.forget();
    let mut cached = place.child("cat", ["f"], Stdio::null());
    let mut direct = place.child("dd", ["if=f", "of=/dev/null", "iflag=direct", "status=none"], Stdio::null());
    assert!(served.node.wait_for_parked(2));
    run("umount", ["-l".as_ref(), place.point.as_os_str()]);
    for reader in [&mut cached, &mut direct] {
        let status = ended(reader, LATEST).expect("it is answered");
        assert!(!status.success(), "with an error");
    }
    served.mounted.wait();
}

#[test]
fn a_killed_process_is_gone_within_a_second_while_everything_is_cut_off() {
    let Some(place) = Place::new() else { return };
    std::fs::create_dir(place.tree.join("d")).unwrap();
    std::fs::write(place.tree.join("f"), vec![1; 3_000_000]).unwrap();
    let served = place.serve();
    run("stat", [place.point.join("f")]);
    run("stat", [place.point.join("d")]);
    served.node.cut_off(true);
    served.node.forget();
    let waiting: [(&str, &[&str]); 6] = [
        ("cat", &["f"]),
        ("dd", &["if=f", "of=/dev/null"]),
        ("dd", &["if=f", "of=/dev/null", "iflag=direct"]),
        ("stat", &["absent-1"]),
        ("ls", &["d"]),
        ("cat", &["d/absent-2"]),
    ];
    for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGINT, libc::SIGQUIT] {
        let dies = |(name, args): &&(&str, &[&str])| match signal {
            // dd has a handler for it.
            libc::SIGINT => *name != "dd",
            // Who waits for a page is woken by KILL only, and by signals that end a process without a core dump.
            libc::SIGQUIT => args[0] != "f" && (*name != "dd" || args.contains(&"iflag=direct")),
            _ => true,
        };
        let waiting: Vec<_> = waiting.iter().filter(dies).collect();
        let mut children: Vec<Guard> =
            waiting.iter().map(|(program, args)| place.child(program, args.iter().copied(), Stdio::null())).collect();
        for child in &children {
            assert!(in_request(child), "{:?}", child.0);
        }
        let sent = Instant::now();
        for child in &children {
            let pid = rustix::process::Pid::from_child(child);
            rustix::process::kill_process(pid, rustix::process::Signal::from_named_raw(signal).unwrap()).unwrap();
        }
        for (child, what) in children.iter_mut().zip(&waiting) {
            let status = ended(child, LATEST)
                .unwrap_or_else(|| panic!("{what:?} is still there after signal {signal}: {}", standing(child)));
            assert_eq!(status.signal(), Some(signal), "{what:?}");
        }
        assert!(sent.elapsed() < Duration::from_secs(1), "{:?} after signal {signal}", sent.elapsed());
    }
    served.node.cut_off(false);
    run("cmp", [place.tree.join("f"), place.point.join("f")]);
}

#[test]
fn a_changed_tree_is_seen_by_new_opens_and_not_by_old_ones() {
    let Some(place) = Place::new() else { return };
    std::fs::write(place.tree.join("f"), "old").unwrap();
    let served = place.serve();
    served.node.remember_all();
    let mut reader = place.child("sh", ["-c", "exec 3< f; cat f; echo; read _; cat <&3; cat f"], Stdio::piped());
    assert!(heard(&mut reader, b"old"));
    std::fs::write(place.tree.join("new"), "newer").unwrap();
    std::fs::rename(place.tree.join("new"), place.tree.join("f")).unwrap();
    std::fs::write(place.tree.join("added"), "").unwrap();
    served.node.rescan();
    let until = Instant::now() + LATEST;
    while run_any("cat", [place.point.join("f")]).stdout != b"newer" {
        assert!(Instant::now() < until, "the name still leads to the old version");
    }
    drop(reader.stdin.take());
    let mut rest = String::new();
    std::io::Read::read_to_string(reader.stdout.as_mut().unwrap(), &mut rest).unwrap();
    assert_eq!(rest, "oldnewer");
    assert_eq!(String::from_utf8_lossy(&run("ls", [&place.point]).stdout), "added\nf\n");
}

#[test]
fn a_mount_made_before_its_tree_was_found_answers_what_needs_no_names_and_the_rest_waits() {
    let Some(place) = Place::new() else { return };
    std::fs::create_dir(place.tree.join("d")).unwrap();
    std::fs::write(place.tree.join("d/f"), "text").unwrap();
    // The mount shows a directory of the tree; a request that nobody answers may be given up.
    let settings = Settings { root: b"d".to_vec(), patience: Some(LATEST) };
    let key = OriginKey::from_seed(&[1; 32]);
    let (late, fs) = Late::<DiskNode>::start("tree".parse().unwrap(), settings, &key).unwrap();
    let mounted = fuse::mount(fs, &fuse::Settings::new(SOURCE, &place.point)).unwrap();
    run("stat", ["-f".as_ref(), place.point.as_os_str()]);
    run("stat", [&place.point]);
    let waiting = |program: &str, args: &[&str]| {
        let child = place.child(program, args.iter().copied(), Stdio::piped());
        assert!(in_request(&child), "{program} {args:?} waits");
        child
    };
    let mut given_up = waiting("cat", &["f"]);
    // The kernel has it wait; the filesystem may not have heard of it yet.
    let until = Instant::now() + LATEST;
    while given_up.try_wait().unwrap().is_none() && Instant::now() < until {
        late.expire(until + LATEST);
        std::thread::yield_now();
    }
    assert_eq!(ended(&mut given_up, Duration::ZERO).expect("it is answered").code(), Some(1));
    let mut killed = waiting("cat", &["f"]);
    killed.kill().unwrap();
    assert_eq!(ended(&mut killed, LATEST).expect("it is let go").signal(), Some(libc::SIGKILL));
    let mut readers = [waiting("cat", &["f"]), waiting("ls", &[]), waiting("stat", &["-c", "%F", "absent"])];
    late.connect(place.node());
    let outputs = readers.each_mut().map(|reader| {
        let status = ended(reader, LATEST).expect("it goes on");
        let mut said = String::new();
        std::io::Read::read_to_string(reader.stdout.as_mut().unwrap(), &mut said).unwrap();
        (status.code(), said)
    });
    assert_eq!(outputs[0], (Some(0), "text".to_owned()));
    assert_eq!(outputs[1], (Some(0), "f\n".to_owned()));
    assert_eq!(outputs[2].0, Some(1));
    run("cmp", [place.tree.join("d/f"), place.point.join("f")]);
    mounted.unmount().unwrap();
    mounted.wait();
}

#[test]
fn a_user_without_root_mounts_through_fusermount3() {
    let Some(place) = Place::new() else { return };
    let helper = Path::new("/usr/bin/fusermount3");
    if !helper.metadata().is_ok_and(|stat| stat.mode() & 0o4000 != 0) {
        return eprintln!("skipped: fusermount3 is not installed set-user-id");
    }
    // Elsewhere anybody may open the device; here, in namespaces of its own, a copy of it.
    let script = "
        mount --make-rprivate /
        mknod \"$0/fuse\" c 10 229
        chmod 666 \"$0/fuse\"
        mount --bind \"$0/fuse\" /dev/fuse
        cp \"$1\" \"$0/program\"
        echo text > \"$0/tree/f\"
        chown -R nobody \"$0\"
        as='setpriv --reuid nobody --regid nogroup --clear-groups'
        $as \"$0/program\" --exact a_process_of_its_own --nocapture &
        for try in $(seq 200); do
            grep -qF \"$0/point\" /proc/self/mountinfo && break
            sleep 0.05
        done
        $as cat \"$0/point/f\"
        grep -F \"$0/point\" /proc/self/mountinfo
        $as fusermount3 -u \"$0/point\"
        wait %1
    ";
    let output = Command::new("unshare")
        .args(["-m", "-p", "-f", "--mount-proc", "--kill-child", "sh", "-ec", script])
        .arg(place.dir.path())
        .arg(std::env::current_exe().unwrap())
        .env(ROLE, "serve")
        .env(SERVE, place.dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("text\n"), "{said}");
    assert!(said.contains(" - fuse.swarmfs tree:/a,b ro,user_id=65534"), "{said}");
}

/// Not a test of its own: what the processes do that other tests start of this program.
#[test]
fn a_process_of_its_own() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let serve = || {
        let dir = PathBuf::from(std::env::var_os(SERVE).unwrap());
        let place = (dir.join("tree"), dir.join("point"));
        let node = DiskNode::new(&place.0, 1);
        fuse::mount(start(&node), &fuse::Settings::new(SOURCE, &place.1))
    };
    match role.as_str() {
        "no-device" => {
            let dir = tempfile::tempdir().unwrap();
            let error = fuse::mount::attach(&fuse::Settings::new("tree", dir.path())).unwrap_err();
            eprintln!("{error}");
            assert!(matches!(error, MountError::NoDevice));
        }
        "serve" => serve().unwrap().wait(),
        other => panic!("no role {other:?}"),
    }
}

const SOURCE: &str = "tree:/a,b";

/// A tree and a mount point.
struct Place {
    dir: tempfile::TempDir,
    tree: PathBuf,
    point: PathBuf,
}

struct Served {
    node: DiskNode,
    mounted: Mounted,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.node.cut_off(false);
    }
}

/// A process that ends with its test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl std::ops::Deref for Guard {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl std::ops::DerefMut for Guard {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Place {
    fn new() -> Option<Place> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("skipped: a real mount needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let (tree, point) = (dir.path().join("tree"), dir.path().join("point"));
        std::fs::create_dir(&tree).unwrap();
        std::fs::create_dir(&point).unwrap();
        Some(Place { dir, tree, point })
    }

    fn node(&self) -> DiskNode {
        DiskNode::new(&self.tree, 1)
    }

    fn fs(&self, node: &DiskNode) -> Arc<Fs<DiskNode>> {
        start(node)
    }

    fn mount(&self) -> Result<Mounted, MountError> {
        fuse::mount(self.fs(&self.node()), &fuse::Settings::new(SOURCE, &self.point))
    }

    fn serve(&self) -> Served {
        let node = self.node();
        let mounted = fuse::mount(self.fs(&node), &fuse::Settings::new(SOURCE, &self.point)).unwrap();
        Served { node, mounted }
    }

    /// This program in another role, for this place.
    fn command(&self, program: &Path, role: &str) -> Command {
        let mut command = Command::new(program);
        command.args(["--exact", "a_process_of_its_own", "--nocapture"]).env(ROLE, role).env(SERVE, self.dir.path());
        command
    }

    fn start(&self, role: &str) -> Guard {
        let mut command = self.command(&std::env::current_exe().unwrap(), role);
        Guard(command.stdout(Stdio::null()).spawn().unwrap())
    }

    /// A process that works in the mount.
    fn child<'a>(&self, program: &str, args: impl IntoIterator<Item = &'a str>, out: Stdio) -> Guard {
        // A shell's background job, which the tests may be, ignores SIGINT and SIGQUIT, and so would this.
        let script = "cd \"$0\" && exec env --default-signal \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(&self.point).arg(program).args(args);
        Guard(command.stdin(Stdio::piped()).stdout(out).stderr(Stdio::null()).spawn().unwrap())
    }

    fn mounts(&self) -> usize {
        let mounts = swarmfs::fuse::mountinfo::mounts().unwrap();
        mounts.iter().filter(|mount| mount.point == self.point).count()
    }

    fn is_unmounted(&self) -> bool {
        self.mounts() == 0
    }

    fn wait_until_mounted(&self) {
        let until = Instant::now() + LATEST;
        while self.mounts() == 0 || !run_any("stat", ["-f".as_ref(), self.point.as_os_str()]).status.success() {
            assert!(Instant::now() < until, "no mount came");
            std::thread::yield_now();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        while self.mounts() > 0 {
            if !run_any("umount", ["-l".as_ref(), self.point.as_os_str()]).status.success() {
                return;
            }
        }
    }
}

fn start(node: &DiskNode) -> Arc<Fs<DiskNode>> {
    let (tell, answer) = mpsc::channel();
    Fs::start(node.clone(), Settings::default(), move |fs| tell.send(fs).unwrap());
    answer.recv_timeout(LATEST).unwrap().unwrap()
}

fn plant(tree: &Path) {
    let file = |name: &[u8], bytes: &[u8], mode: u32| {
        let path = tree.join(std::ffi::OsStr::from_bytes(name));
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    };
    file(b"empty", b"", 0o644);
    file(b"\xff\xfe not text", b"bytes", 0o600);
    file(&[b'n'; 255], b"long", 0o4755);
    let mut random = fastrand::Rng::with_seed(5);
    for size in [1, 32_768, 2 * 1024 * 1024, 5_000_001] {
        let mut bytes = vec![0; size];
        random.fill(&mut bytes);
        file(size.to_string().as_bytes(), &bytes, 0o640);
    }
    std::os::unix::fs::chown(tree.join("1"), Some(1234), Some(4321)).unwrap();
    std::fs::hard_link(tree.join("1"), tree.join("also 1")).unwrap();
    symlink("../absent/target", tree.join("link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, tree.join("fifo"), rustix::fs::FileType::Fifo, 0o640.into(), 0).unwrap();
    std::fs::create_dir(tree.join("many")).unwrap();
    for index in 0..1500 {
        std::fs::write(tree.join("many").join(format!("file {index}")), index.to_string()).unwrap();
    }
    std::fs::create_dir_all(tree.join("a/b/c/d")).unwrap();
    let old = std::time::UNIX_EPOCH - Duration::from_millis(1500);
    std::fs::File::open(tree.join("empty")).unwrap().set_modified(old).unwrap();
}

/// Runs a program that must succeed.
fn run(program: &str, args: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>) -> Output {
    let output = run_any(program, args);
    assert!(
        output.status.success(),
        "{program}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn run_any(program: &str, args: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>) -> Output {
    Command::new(program).args(args).output().unwrap()
}

/// Where a process that should be gone is.
fn standing(child: &Child) -> String {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", child.id())).unwrap_or_default();
    format!("{}{}", read("stack"), read("status"))
}

/// How a process ended, if it did in time.
fn ended(child: &mut Child, within: Duration) -> Option<std::process::ExitStatus> {
    let until = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > until {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process says this on its standard output.
fn heard(child: &mut Child, expected: &[u8]) -> bool {
    use std::io::Read;
    let mut said = vec![0; expected.len() + 1];
    child.stdout.as_mut().unwrap().read_exact(&mut said).is_ok() && said.starts_with(expected)
}

/// Whether a process comes to wait in a request of ours: then it sleeps in the kernel's FUSE code or for a page of it.
fn in_request(child: &Child) -> bool {
    let until = Instant::now() + LATEST;
    while Instant::now() < until {
        let at = std::fs::read_to_string(format!("/proc/{}/wchan", child.id())).unwrap_or_default();
        let name = std::fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap_or_default();
        let runs = !["sh", "env"].contains(&name.trim());
        if runs && (at.contains("request") || at.contains("folio") || at.contains("fuse")) {
            return true;
        }
        std::thread::yield_now();
    }
    false
}
