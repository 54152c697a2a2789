//! A followed tree while its files change: what is listed, when, and under which version.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};

use super::tests::{Served, look_up, modified, object, read, set_modified};
use super::*;
use crate::catalogue::View;

/// For what takes a second at most; a loaded machine gets its time.
const LATEST: Duration = Duration::from_secs(20);

fn follow(tree: Tree) -> (Arc<Tree>, Following) {
    let tree = Arc::new(tree);
    let following = tree.follow(|| {}).unwrap();
    (tree, following)
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < LATEST, "not within {LATEST:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn row(tree: &Tree, path: &str) -> Option<Row> {
    let snapshot = tree.snapshot();
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    let view = View::new(snapshot.head.root, snapshot.head.root_level);
    view.row(&*snapshot, dir.as_bytes(), name.as_bytes()).unwrap().map(|entry| entry.row)
}

fn size(tree: &Tree, path: &str) -> Option<u64> {
    row(tree, path).map(|row| row.attributes().size)
}

/// The root page that listing all of the tree would give.
fn listed_anew(tree: &Tree) -> PageHash {
    let root = tree.root();
    let whole = update::Whole { root: &root, headers: &tree.headers, watch: &tree.watch, asked: &tree.asked };
    let listing = update::list(&tree.path, &root, &whole).unwrap();
    let state = tree.state.lock().unwrap();
    Snapshot::new(listing, &tree.name, &state, &tree.key).unwrap().head.root
}

/// One random change of a random tree.
fn change(dir: &Path, random: &mut fastrand::Rng) {
    let mut paths = Vec::new();
    let mut ahead = vec![dir.to_owned()];
    while let Some(here) = ahead.pop() {
        for entry in fs::read_dir(&here).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                ahead.push(entry.path());
            }
            paths.push(entry.path());
        }
    }
    paths.sort();
    let some = paths.get(random.usize(..paths.len().max(1))).cloned().unwrap_or_else(|| dir.to_owned());
    let parent = if some.is_dir() { some.clone() } else { some.parent().unwrap().to_owned() };
    let fresh = parent.join(format!("n{}", random.u8(..12)));
    // What cannot be done to what is there is not done.
    let _ = match random.u8(..12) {
        0..3 => fs::write(&fresh, vec![b'x'; random.usize(..300)]),
        3 => fs::create_dir_all(fresh.join("deep/er")),
        4 => fs::rename(&some, &fresh),
        5 => fs::remove_file(&some),
        6 if some != dir => fs::remove_dir_all(&some),
        7 => fs::hard_link(&some, &fresh),
        8 => symlink("elsewhere", &fresh),
        9 => fs::set_permissions(&some, fs::Permissions::from_mode(0o700 | random.u32(..0o100))),
        10 => File::open(&some).and_then(|file| file.set_modified(UNIX_EPOCH + Duration::from_secs(random.u64(..9)))),
        _ => File::options().append(true).open(&some).and_then(|mut file| file.write_all(b"more")),
    };
}

#[test]
fn a_followed_tree_is_what_listing_it_anew_gives() {
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let served = Served::new();
    for index in 0..300 {
        served.write(&format!("d{}/file {index}", index % 7), &[b'x'; 10]);
    }
    let (tree, _following) = follow(served.open());
    for _ in 0..25 {
        for _ in 0..random.usize(1..12) {
            change(served.dir.path(), &mut random);
        }
        wait_until("the listing is that of the disk", || tree.head().root == listed_anew(&tree));
    }
}

#[test]
fn a_file_is_listed_when_it_was_closed_and_stays_as_it_was_while_it_is_written() {
    let served = Served::new();
    served.write("old", b"as it was");
    let (tree, _following) = follow(served.open());
    let create = |name: &str| File::create(served.path(name)).unwrap();
    let (mut fresh, mut old) = (create("fresh"), create("old"));
    for round in 0..2 {
        fresh.write_all(b"half").unwrap();
        old.write_all(b"half").unwrap();
        // Whoever pauses is still writing.
        std::thread::sleep(SETTLE + Duration::from_millis(100));
        drop(create(&format!("marker {round}")));
        wait_until("what came later is listed", || row(&tree, &format!("marker {round}")).is_some());
        assert_eq!(size(&tree, "fresh"), None);
        assert_eq!(size(&tree, "old"), Some(9));
    }
    drop((fresh, old));
    wait_until("what was closed is listed", || (size(&tree, "fresh"), size(&tree, "old")) == (Some(8), Some(8)));
}

#[test]
fn what_nobody_opens_to_write_is_listed_without_being_closed() {
    let served = Served::new();
    let file = served.write("file", b"0123456789");
    let (tree, _following) = follow(served.open());
    symlink("file", served.path("link")).unwrap();
    fs::hard_link(&file, served.path("other name")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, served.path("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    wait_until("all are listed", || ["link", "other name", "fifo"].iter().all(|name| row(&tree, name).is_some()));
    // Shortened by its path.
    let status = std::process::Command::new("truncate").args(["-s", "3"]).arg(&file).status().unwrap();
    assert!(status.success());
    wait_until("the new size is listed", || ["file", "other name"].iter().all(|name| size(&tree, name) == Some(3)));
}

#[test]
fn every_name_of_a_symbolic_link_tells_how_many_there_are() {
    let served = Served::new();
    symlink("elsewhere", served.path("link")).unwrap();
    let (tree, _following) = follow(served.open());
    let names = |path: &str| row(&tree, path).map(|row| row.attributes().nlink);
    fs::create_dir(served.path("d")).unwrap();
    fs::hard_link(served.path("link"), served.path("d/other")).unwrap();
    wait_until("both names are listed", || (names("link"), names("d/other")) == (Some(2), Some(2)));
    fs::remove_dir_all(served.path("d")).unwrap();
    wait_until("the other name is gone", || (names("link"), names("d/other")) == (Some(1), None));
}

/// Nodes that hold blocks of the version before would show them for this one.
#[test]
fn a_file_that_looks_as_one_that_was_read_before_gets_another_generation_at_once() {
    let served = Served::new();
    let file = served.write("file", &[b'1'; SEGMENT as usize + 1]);
    let (tree, _following) = follow(served.open());
    let first = object(&tree, "file");
    read(&tree, first, 0).unwrap();
    let time = modified(&file);
    let writer = File::options().write(true).open(&file).unwrap();
    writer.write_all_at(&[b'2'; SEGMENT as usize + 1], 0).unwrap();
    writer.set_modified(time).unwrap();
    drop(writer);
    wait_until("it has another version", || object(&tree, "file") != first);
    let second = object(&tree, "file");
    assert_eq!(read(&tree, second, 1).unwrap(), b"2");
    // The same by another file put in its place; the one before has a reader.
    let beside = served.write("beside", &[b'3'; SEGMENT as usize + 1]);
    set_modified(&beside, time);
    fs::rename(&beside, &file).unwrap();
    wait_until("it has another version", || object(&tree, "file") != second);
    let third = object(&tree, "file");
    for _ in 0..3 {
        assert_eq!(read(&tree, third, 0).unwrap(), [b'3'; SEGMENT as usize]);
        assert_eq!(read(&tree, second, 0).unwrap(), [b'2'; SEGMENT as usize]);
    }
    assert_eq!(object(&tree, "file"), third);
}

#[test]
fn changed_attributes_and_further_links_are_listed_and_keep_the_version() {
    let served = Served::new();
    let file = served.write("d/file", &[b'1'; 100]);
    let (tree, _following) = follow(served.open());
    let id = row(&tree, "d/file").unwrap().object().unwrap();
    read(&tree, id, 0).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).unwrap();
    wait_until("its mode is listed", || look_up(&tree, b"d", b"file").row.attributes().mode == 0o400);
    let status = std::process::Command::new("cp").arg("-al").args([served.path("d"), served.path("e")]).status();
    assert!(status.unwrap().success());
    wait_until("both names are listed", || {
        row(&tree, "e/file").is_some_and(|row| row.attributes().nlink == 2)
            && look_up(&tree, b"d", b"file").row.attributes().nlink == 2
    });
    assert!(["d/file", "e/file"].iter().all(|path| row(&tree, path).unwrap().object() == Some(id)));
    assert!(read(&tree, id, 0).is_ok());
}

#[test]
fn a_directory_that_is_moved_is_followed_in_its_new_place_and_not_outside() {
    let served = Served::new();
    served.write("a/b/file", b"1");
    let (tree, _following) = follow(served.open());
    fs::rename(served.path("a"), served.path("moved")).unwrap();
    wait_until("it is listed there", || row(&tree, "moved/b/file").is_some() && row(&tree, "a").is_none());
    served.write("moved/b/later", b"1");
    wait_until("it is followed there", || row(&tree, "moved/b/later").is_some());
    let outside = tempfile::tempdir_in(served.dir.path().parent().unwrap()).unwrap();
    fs::rename(served.path("moved"), outside.path().join("gone")).unwrap();
    wait_until("it is gone", || row(&tree, "moved").is_none());
    let head = tree.head();
    fs::write(outside.path().join("gone/b/secret"), "").unwrap();
    served.write("marker", b"");
    wait_until("what came later is listed", || row(&tree, "marker").is_some());
    assert_eq!(tree.head().totals.rows, head.totals.rows + 1);
}

#[test]
fn a_directory_put_in_the_place_of_the_one_served_is_served() {
    let served = Served::new();
    let root = served.path("root");
    served.write("root/old", b"1");
    let state = StateDir::at(served.state.path()).unwrap();
    let opened = Tree::open(&root, "images".parse().unwrap(), &state, state.key().unwrap()).unwrap();
    let (tree, _following) = follow(opened);
    fs::rename(&root, served.path("before")).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert!(row(&tree, "old").is_some(), "what was served goes on");
    served.write("next/new", b"1");
    fs::rename(served.path("next"), &root).unwrap();
    wait_until("the new one is served", || row(&tree, "new").is_some() && row(&tree, "old").is_none());
    served.write("root/later", b"1");
    wait_until("and followed", || row(&tree, "later").is_some());
}

#[test]
fn a_tree_that_the_kernel_cannot_watch_is_listed_again_and_again() {
    let served = Served::new();
    let mut tree = served.open();
    tree.watch = Watch::broken();
    let (tree, _following) = follow(tree);
    served.write("file", b"1");
    wait_until("it is found", || row(&tree, "file").is_some());
    // A reader that meets another file has it looked at.
    let id = object(&tree, "file");
    fs::write(served.path("file"), b"22").unwrap();
    assert_eq!(read(&tree, id, 0), Err(SegmentError::Gone));
    wait_until("the new version is listed", || size(&tree, "file") == Some(2));
}

/// A tree of links, fifos, sockets and outside directories that come and go in the place of files and directories, with
/// the kernel's help and without.
#[test]
fn nothing_outside_the_tree_is_ever_read_while_links_are_swapped_in() {
    const SECRET: &[u8] = b"nobody may read this";
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(outside.path().join("d")).unwrap();
    for path in ["file", "d/file"] {
        fs::write(outside.path().join(path), SECRET.repeat(100)).unwrap();
    }
    for has_openat2 in [true, false] {
        let served = Served::new();
        let bytes = vec![b'i'; SECRET.len() * 100];
        served.write("file", &bytes);
        served.write("d/file", &bytes);
        served.write("d/e/file", &bytes);
        let tree = served.open();
        if !has_openat2 {
            tree.root().forget_openat2();
        }
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                swap(served.dir.path(), outside.path(), 1_500);
                over.store(true, Ordering::SeqCst);
            });
            let mut rounds = 0;
            while !over.load(Ordering::SeqCst) || rounds < 50 {
                rounds += 1;
                tree.rescan().unwrap();
                must_not_know(&tree, SECRET, outside.path());
            }
        });
    }
}

fn must_not_know(tree: &Tree, secret: &[u8], outside: &Path) {
    // Whatever was listed under these names is asked for.
    for path in ["file", "d/file", "d/e/file", "d/d/file"] {
        let Some(row) = row(tree, path) else { continue };
        let Some(id) = row.object() else { continue };
        if let Ok(bytes) = read(tree, id, 0) {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{path} is of outside");
        }
        let _ = tree.open_file(path.as_bytes(), id).map(|file| {
            let real = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file))).unwrap();
            assert!(!real.starts_with(outside), "{path} leads to {}", real.display());
        });
    }
}

/// Puts things of outside, and what must not be opened, where files and directories of the tree were, and back.
fn swap(dir: &Path, outside: &Path, rounds: usize) {
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..rounds {
        let (name, aside) = [("file", "kept file"), ("d", "kept d"), ("d/e", "d/kept e")][round % 3];
        let (name, aside) = (dir.join(name), dir.join(aside));
        fs::rename(&name, &aside).unwrap();
        match random.u8(..5) {
            0 => symlink(outside.join("file"), &name).unwrap(),
            1 => symlink(outside.join("d"), &name).unwrap(),
            2 => symlink(outside, &name).unwrap(),
            3 => rustix::fs::mknodat(rustix::fs::CWD, &name, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap(),
            _ => drop(std::os::unix::net::UnixListener::bind(&name)),
        }
        std::thread::sleep(Duration::from_micros(random.u64(..300)));
        fs::remove_file(&name).unwrap();
        fs::rename(&aside, &name).unwrap();
    }
}
