//! A tree full of traps: nothing outside of it is ever served, nothing in it that is no file is opened, nobody hangs.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};

mod lab;

use lab::swarm::{self, MOUNT, wait_until};
use lab::{Lab, Link};

const SECRET: &[u8] = b"what lies outside of the tree";
const INSIDE: &[u8] = b"what lies in it, as long     ";
/// The whole of what runs here takes a few seconds.
const LATEST: Duration = Duration::from_secs(60);

fn file(path: &Path, line: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, line.repeat(20_000)).unwrap();
    let old = std::time::SystemTime::now() - Duration::from_secs(100);
    fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
}

/// What is no file; a device where this user may make one.
fn plant(tree: &Path, outside: &Path) {
    symlink("/etc/passwd", tree.join("passwd")).unwrap();
    symlink(outside.join("file"), tree.join("absolute")).unwrap();
    symlink("../outside/file", tree.join("relative")).unwrap();
    symlink("../outside", tree.join("directory")).unwrap();
    symlink("loop", tree.join("loop")).unwrap();
    rustix::fs::mknodat(CWD, tree.join("fifo"), FileType::Fifo, 0o644.into(), 0).unwrap();
    drop(UnixListener::bind(tree.join("socket")).unwrap());
    let zero = rustix::fs::makedev(1, 5);
    let _ = rustix::fs::mknodat(CWD, tree.join("device"), FileType::CharacterDevice, 0o644.into(), zero);
}

/// Swaps files and directories for what must not be followed or opened, and back; now and then a directory is outside
/// for a moment, and something secret is put into it there.
fn swap(tree: &Path, outside: &Path, over: &AtomicBool) {
    let mut random = fastrand::Rng::with_seed(3);
    while !over.load(Ordering::SeqCst) {
        for (name, aside) in [("file", "kept"), ("d", "kept d"), ("d/e", "d/kept"), ("d", "../outside/moved")] {
            let (name, aside) = (tree.join(name), tree.join(aside));
            fs::rename(&name, &aside).unwrap();
            let secret = outside.join("moved/secret");
            if aside.ends_with("moved") {
                file(&secret, SECRET);
            }
            match random.u8(..5) {
                0 => symlink(outside.join("file"), &name).unwrap(),
                1 => symlink(outside.join("d"), &name).unwrap(),
                2 => symlink("../outside", &name).unwrap(),
                3 => rustix::fs::mknodat(CWD, &name, FileType::Fifo, 0o644.into(), 0).unwrap(),
                _ => drop(UnixListener::bind(&name).unwrap()),
            }
            // Long enough to be listed now and then.
            std::thread::sleep(Duration::from_millis(random.u64(..400)));
            fs::remove_file(&name).unwrap();
            let _ = fs::remove_file(&secret);
            fs::rename(&aside, &name).unwrap();
            std::thread::sleep(Duration::from_millis(random.u64(..200)));
        }
    }
}

/// Reads what the mount shows under a name, whatever that is at the moment. Links are the reader's own to follow, and are
/// not followed here.
fn read(mount: &Path, name: &str) -> Option<Vec<u8>> {
    let dir = fs::File::options().read(true).custom_flags(libc::O_DIRECTORY).open(mount).unwrap();
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    let fd = rustix::fs::openat2(&dir, name, flags, Mode::empty(), resolve).ok()?;
    let mut bytes = Vec::new();
    // A directory, or a version that is gone.
    fs::File::from(fd).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[test]
fn a_tree_full_of_traps_shows_nothing_from_outside_and_nobody_hangs() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let (tree, outside) = (lab.scratch().join("tree"), lab.scratch().join("outside"));
    for name in ["file", "d/file", "d/e/file"] {
        file(&tree.join(name), INSIDE);
        file(&outside.join(name), SECRET);
    }
    plant(&tree, &outside);
    let origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    has_given_up_its_powers(origin.pid());
    let _mount = swarm::mount(lab.host(1), "images", &[]);
    let mount = lab.host(1).path(MOUNT);
    let kinds = lab.host(1).sh(LATEST, &format!("cd {MOUNT} && stat -c %F fifo socket passwd directory loop"));
    assert_eq!(kinds, "fifo\nsocket\nsymbolic link\nsymbolic link\nsymbolic link\n");
    let (over, read_whole) = (AtomicBool::new(false), AtomicU64::new(0));
    let (tell, done) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| swap(&tree, &outside, &over));
        for reader in 0..3 {
            let (tell, mount, over, read_whole) = (tell.clone(), &mount, &over, &read_whole);
            scope.spawn(move || {
                for name in ["file", "d/file", "d/e/file", "d/d/file", "d/secret", "directory/file", "moved/file"]
                    .into_iter()
                    .cycle()
                    .skip(reader)
                {
                    if over.load(Ordering::SeqCst) {
                        break;
                    }
                    let Some(bytes) = read(mount, name) else { continue };
                    let leaks = bytes.windows(SECRET.len()).any(|window| window == SECRET);
                    assert!(!leaks, "{name} shows what lies outside");
                    if bytes == INSIDE.repeat(20_000) {
                        read_whole.fetch_add(1, Ordering::SeqCst);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                tell.send(()).unwrap();
            });
        }
        std::thread::sleep(Duration::from_secs(5));
        over.store(true, Ordering::SeqCst);
        for _ in 0..3 {
            done.recv_timeout(LATEST).expect("a reader hangs or has failed");
        }
    });
    assert!(read_whole.load(Ordering::SeqCst) > 10, "hardly anything was read");
    // When it is quiet again all is as it was.
    for name in ["file", "d/file", "d/e/file"] {
        wait_until(LATEST, name, || (read(&mount, name)? == INSIDE.repeat(20_000)).then_some(()));
    }
    for name in ["passwd", "absolute", "relative", "directory/file", "fifo", "socket", "device"] {
        let ended = swarm::swarmfs(lab.origin(), &["cat", &format!("images:/{name}")]);
        assert!(!ended.status.success() && ended.stdout.is_empty(), "{name}");
    }
}

/// Of root's powers an origin keeps reading (2) and leases (28), and nothing that it starts can have more.
fn has_given_up_its_powers(origin: u32) {
    let status = fs::read_to_string(format!("/proc/{origin}/status")).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    let powers = u64::from_str_radix(&field("CapPrm:"), 16).unwrap();
    assert_eq!(powers & !(1 << 2 | 1 << 28), 0, "{powers:x}");
    assert_eq!(field("NoNewPrivs:"), "1");
    for thread in fs::read_dir(format!("/proc/{origin}/task")).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert!(status.contains(&format!("CapEff:\t{powers:016x}")), "{status}");
    }
}

#[test]
fn a_directory_that_leaves_the_tree_is_read_to_the_end_by_whoever_reads_it_and_by_nobody_else() {
    let Some(lab) = Lab::shared(2, Link::mbit(200)) else { return };
    let (tree, outside) = (lab.scratch().join("tree"), lab.scratch().join("outside"));
    fs::create_dir_all(tree.join("d")).unwrap();
    fs::create_dir(&outside).unwrap();
    lab::samples::random_file(&tree.join("d/image"), 64 << 20, 1);
    let expected = lab::samples::digest_of(&tree.join("d/image"));
    let _origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    let _mount = swarm::mount(lab.host(1), "images", &[]);
    let mut reading = swarm::read(lab.host(1), "d/image", &[]);
    reading.reaches(4 << 20, LATEST);
    fs::rename(tree.join("d"), outside.join("d")).unwrap();
    file(&outside.join("d/secret"), SECRET);
    let shown = lab.host(1).path(MOUNT);
    wait_until(LATEST, "it is no longer there", || (!shown.join("d").exists()).then_some(()));
    assert!(read(&shown, "d/secret").is_none());
    reading.finish(LATEST).must_be(expected);
}
