//! Real files in a directory of their own, changed in all the ways that files change.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::catalogue::{Entry, Kind, View};

/// A directory that is served, and the state of its origin.
pub(super) struct Served {
    pub dir: tempfile::TempDir,
    pub state: tempfile::TempDir,
}

impl Served {
    pub fn new() -> Served {
        Served { dir: tempfile::tempdir().unwrap(), state: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Writes a file whose last change was a minute ago, so that it is settled.
    pub fn write(&self, path: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        set_age(&path, Duration::from_secs(60));
        path
    }

    pub fn open(&self) -> Tree {
        let state = StateDir::at(self.state.path()).unwrap();
        let key = state.key().unwrap();
        Tree::open(self.dir.path(), "images".parse().unwrap(), &state, key).unwrap()
    }
}

fn set_age(path: &Path, age: Duration) {
    File::open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
}

pub(super) fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

pub(super) fn set_modified(path: &Path, time: SystemTime) {
    OpenOptions::new().write(true).open(path).unwrap().set_modified(time).unwrap();
}

pub(super) fn look_up(tree: &Tree, dir: &[u8], name: &[u8]) -> Entry {
    let snapshot = tree.snapshot();
    let view = View::new(snapshot.head.root, snapshot.head.root_level);
    view.row(&*snapshot, dir, name).unwrap().expect("in the tree")
}

pub(super) fn object(tree: &Tree, name: &str) -> ObjectId {
    look_up(tree, b"", name.as_bytes()).row.object().expect("a regular file")
}

pub(super) fn read(tree: &Tree, object: ObjectId, index: u32) -> Result<Vec<u8>, SegmentError> {
    let mut bytes = Vec::new();
    let header = tree.segment(SegmentId { object, index }, &mut bytes)?;
    assert_eq!(header.segment(), SegmentId { object, index });
    assert!(certifies(&header, &bytes));
    Ok(bytes)
}

/// Bytes that differ from block to block.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at / 1000) as u8 ^ seed ^ at as u8).collect()
}

const SEGMENT_LEN: usize = SEGMENT as usize;

#[test]
fn a_file_is_read_by_segments_and_its_end_is_its_end() {
    let served = Served::new();
    let bytes = pattern(2 * SEGMENT_LEN + 5, 1);
    served.write("file", &bytes);
    served.write("empty", b"");
    let tree = served.open();
    let id = object(&tree, "file");
    assert_eq!(tree.work(), Work::default(), "the listing reads no contents");
    assert_eq!(read(&tree, id, 0).unwrap(), bytes[..SEGMENT_LEN]);
    assert_eq!(read(&tree, id, 2).unwrap(), bytes[2 * SEGMENT_LEN..]);
    assert_eq!(read(&tree, id, 3), Err(SegmentError::Unknown));
    assert_eq!(read(&tree, object(&tree, "empty"), 0), Err(SegmentError::Unknown));
    assert_eq!(read(&tree, ObjectId([9; 16]), 0), Err(SegmentError::Unknown));
}

#[test]
fn a_sparse_file_is_listed_with_its_blocks_and_its_holes_are_zeros() {
    let served = Served::new();
    let path = served.path("sparse");
    let file = File::create(&path).unwrap();
    file.set_len(20 << 20).unwrap();
    file.write_all_at(&[1; 4096], 5 << 20).unwrap();
    set_age(&path, Duration::from_secs(60));
    let tree = served.open();
    let entry = look_up(&tree, b"", b"sparse");
    assert_eq!(entry.row.attributes().blocks, file.metadata().unwrap().blocks());
    assert_eq!((tree.head().totals.chunks, tree.head().totals.bytes), (2, 20 << 20));
    let mut bytes = Vec::new();
    let id = entry.row.object().unwrap();
    let header = tree.segment(SegmentId { object: id, index: 2 }, &mut bytes).unwrap();
    assert_eq!(header.zero().count_ones(), 63, "one block of 64 has data");
    assert!(read(&tree, id, 9).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn all_kinds_are_shown_as_lstat_has_them_and_links_are_not_followed() {
    let served = Served::new();
    served.write("dir/file", b"x");
    fs::set_permissions(served.path("dir/file"), fs::Permissions::from_mode(0o6751)).unwrap();
    symlink("/etc/passwd", served.path("out")).unwrap();
    symlink("dir", served.path("to-dir")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, served.path("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(served.path("socket")).unwrap();
    let before_1970 = UNIX_EPOCH - Duration::new(5, 1);
    set_modified(&served.path("dir/file"), before_1970);
    let tree = served.open();
    let row = look_up(&tree, b"dir", b"file").row;
    let (attributes, stat) = (*row.attributes(), fs::symlink_metadata(served.path("dir/file")).unwrap());
    assert_eq!(attributes.mode, 0o6751);
    assert_eq!(attributes.mtime, Time { sec: -6, nsec: 999_999_999 });
    assert_eq!((attributes.uid, attributes.gid, attributes.nlink), (stat.uid(), stat.gid(), 1));
    let kind = |name: &[u8]| look_up(&tree, b"", name).row.kind().clone();
    assert_eq!(kind(b"out"), Kind::Symlink { target: (*b"/etc/passwd").into() });
    assert_eq!(kind(b"to-dir"), Kind::Symlink { target: (*b"dir").into() });
    assert_eq!(kind(b"fifo"), Kind::Fifo);
    assert_eq!(kind(b"socket"), Kind::Socket);
    assert_eq!(tree.head().totals.rows, 7, "nothing is listed through a link");
    assert_eq!(tree.report(), Report::default());
}

#[test]
fn names_of_any_bytes_and_of_255_bytes_are_served() {
    let served = Served::new();
    let names = [b"\xff\xfe\n ".to_vec(), vec![b'n'; 255]];
    for name in &names {
        let path = served.dir.path().join(OsStr::from_bytes(name));
        fs::write(&path, b"content").unwrap();
        set_age(&path, Duration::from_secs(60));
    }
    let tree = served.open();
    for name in &names {
        let id = look_up(&tree, b"", name).row.object().unwrap();
        assert_eq!(read(&tree, id, 0).unwrap(), b"content");
    }
}

#[test]
fn hard_links_share_the_object_of_their_first_path() {
    let served = Served::new();
    served.write("z", b"linked");
    fs::create_dir(served.path("a")).unwrap();
    fs::hard_link(served.path("z"), served.path("a/b")).unwrap();
    fs::hard_link(served.path("z"), served.path("c")).unwrap();
    let tree = served.open();
    let first = object(&tree, "c");
    assert_eq!(object(&tree, "z"), first);
    assert_eq!(look_up(&tree, b"a", b"b").row.object(), Some(first));
    assert_eq!(tree.object(&first).unwrap().path(), b"c", "files of a directory come before its directories");
    assert_eq!(look_up(&tree, b"a", b"b").row.attributes().nlink, 3);
    assert_eq!(tree.head().totals.chunks, 3);
    assert_eq!(read(&tree, first, 0).unwrap(), b"linked");
}

#[test]
fn a_file_that_shrinks_or_grows_is_gone() {
    let served = Served::new();
    let path = served.write("file", &pattern(3 * SEGMENT_LEN, 1));
    let tree = served.open();
    let id = object(&tree, "file");
    assert!(read(&tree, id, 0).is_ok());
    File::options().write(true).open(&path).unwrap().set_len(SEGMENT as u64).unwrap();
    assert_eq!(read(&tree, id, 2), Err(SegmentError::Gone));
    assert_eq!(read(&tree, id, 0), Err(SegmentError::Gone));
    File::options().write(true).open(&path).unwrap().set_len(9 * SEGMENT as u64).unwrap();
    assert_eq!(read(&tree, id, 0), Err(SegmentError::Gone));
}

#[test]
fn a_file_that_shrinks_while_it_is_read_never_gives_bytes_of_two_versions() {
    const ROUNDS: usize = 40;
    let served = Served::new();
    let paths: Vec<_> = (0..ROUNDS).map(|round| served.write(&round.to_string(), &[b'a'; SEGMENT_LEN])).collect();
    let tree = served.open();
    for (round, path) in paths.iter().enumerate() {
        let id = object(&tree, &round.to_string());
        let start = std::sync::Barrier::new(2);
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            scope.spawn(|| {
                let file = File::options().write(true).open(path).unwrap();
                start.wait();
                file.set_len(SEGMENT as u64 / 2).unwrap();
                file.write_all_at(&[b'b'; SEGMENT_LEN], 0).unwrap();
            });
            start.wait();
            (0..3).map(|_| read(&tree, id, 0)).collect()
        });
        for outcome in outcomes {
            match outcome {
                Ok(bytes) => assert_eq!(bytes, [b'a'; SEGMENT_LEN]),
                // Its size is the same again, its modification time a moment ago.
                Err(error) => assert_eq!(error, SegmentError::Gone),
            }
        }
        assert_eq!(read(&tree, id, 0), Err(SegmentError::Gone));
    }
}

/// Bytes read before a change and identified after it, or the other way round, would be signed as what they are not.
#[test]
fn a_change_between_identifying_and_reading_is_noticed() {
    let served = Served::new();
    let path = served.write("file", b"one");
    let tree = served.open();
    let id = SegmentId { object: object(&tree, "file"), index: 0 };
    let held = tree.hold(id.object).unwrap();
    let hide_change = |bytes: &[u8]| {
        let time = modified(&path);
        fs::write(&path, bytes).unwrap();
        set_modified(&path, time);
    };
    // Its time is put back, so only ctime tells: it is read again, and what is signed is what was read last.
    let mut bytes = [0; 3];
    let mut changes = [&b"two"[..], b"six"].into_iter();
    let header = tree.read_certified(&held, id, &mut bytes, |into| {
        tree.read_segment(&held, 0, into)?;
        changes.next().into_iter().for_each(hide_change);
        Ok(())
    });
    assert_eq!(&bytes, b"six");
    assert!(certifies(&header.unwrap(), b"six"));
    // A file that never rests is not signed at all; one whose time moved is gone.
    let other = SegmentId { object: object(&tree, "file"), index: 0 };
    let restless = tree.read_certified(&held, other, &mut bytes, |into| {
        tree.read_segment(&held, 0, into)?;
        hide_change(b"six");
        Ok(())
    });
    assert_eq!(restless, Err(SegmentError::Unsettled { ready_in: SETTLE }));
    let changed = tree.read_certified(&held, other, &mut bytes, |into| {
        tree.read_segment(&held, 0, into)?;
        fs::write(&path, b"ten").unwrap();
        Ok(())
    });
    assert_eq!(changed, Err(SegmentError::Gone));
}

#[test]
fn a_version_replaced_by_rename_is_served_to_its_end_and_the_new_one_beside_it() {
    let served = Served::new();
    let (old, new) = (pattern(2 * SEGMENT_LEN, 1), pattern(2 * SEGMENT_LEN, 2));
    let path = served.write("file", &old);
    let tree = served.open();
    let old_id = object(&tree, "file");
    assert_eq!(read(&tree, old_id, 0).unwrap(), old[..SEGMENT_LEN]);
    let fresh = served.write("fresh", &new);
    set_age(&fresh, Duration::from_secs(30));
    fs::rename(&fresh, &path).unwrap();
    assert_eq!(read(&tree, old_id, 1).unwrap(), old[SEGMENT_LEN..]);
    let before = tree.head();
    assert!(tree.rescan().unwrap());
    assert!(tree.head().sequence > before.sequence);
    assert!(!tree.rescan().unwrap(), "nothing changed since");
    let new_id = object(&tree, "file");
    assert_ne!(new_id, old_id);
    assert_eq!(read(&tree, new_id, 1).unwrap(), new[SEGMENT_LEN..]);
    assert_eq!(read(&tree, old_id, 0).unwrap(), old[..SEGMENT_LEN]);
    fs::remove_file(&path).unwrap();
    assert_eq!(read(&tree, new_id, 0).unwrap(), new[..SEGMENT_LEN], "removed, but held open");
}

#[test]
fn a_version_replaced_or_removed_before_it_was_asked_for_is_gone() {
    let served = Served::new();
    let replaced = served.write("replaced", b"old");
    let removed = served.write("removed", b"old");
    let fifo = served.write("fifo", b"old");
    let link = served.write("link", b"old");
    let tree = served.open();
    let ids = ["replaced", "removed", "fifo", "link"].map(|name| object(&tree, name));
    fs::rename(served.write("other", b"newer"), replaced).unwrap();
    fs::remove_file(removed).unwrap();
    fs::remove_file(&fifo).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    fs::remove_file(&link).unwrap();
    symlink("/etc/passwd", &link).unwrap();
    for id in ids {
        assert_eq!(read(&tree, id, 0), Err(SegmentError::Gone));
    }
}

#[test]
fn a_file_rewritten_in_place_is_gone_until_the_tree_is_listed_again() {
    let served = Served::new();
    let path = served.write("file", b"one");
    let tree = served.open();
    let id = object(&tree, "file");
    assert_eq!(read(&tree, id, 0).unwrap(), b"one");
    fs::write(&path, b"two").unwrap();
    set_age(&path, Duration::from_secs(30));
    assert_eq!(read(&tree, id, 0), Err(SegmentError::Gone));
    assert!(tree.rescan().unwrap());
    assert_eq!(read(&tree, id, 0), Err(SegmentError::Unknown));
    assert_eq!(read(&tree, object(&tree, "file"), 0).unwrap(), b"two");
}

/// `touch -r` after a change: neither size nor modification time tells. Without a look at ctime, one segment of the
/// old content and one of the new would be signed under the same id.
#[test]
fn a_change_that_hides_its_time_gets_another_generation() {
    for restarted in [false, true] {
        let served = Served::new();
        let path = served.write("file", &pattern(2 * SEGMENT_LEN, 1));
        let mut tree = served.open();
        let id = object(&tree, "file");
        assert!(read(&tree, id, 0).is_ok());
        let time = modified(&path);
        fs::write(&path, pattern(2 * SEGMENT_LEN, 2)).unwrap();
        set_modified(&path, time);
        if restarted {
            drop(tree);
            tree = served.open();
            assert_eq!(object(&tree, "file"), id, "the listing reads no contents");
        }
        assert_eq!(read(&tree, id, 1), Err(SegmentError::Gone));
        assert_eq!(read(&tree, id, 1), Err(SegmentError::Gone));
        assert!(tree.rescan().unwrap());
        let next = object(&tree, "file");
        assert_ne!(next, id);
        assert_eq!(read(&tree, next, 1).unwrap(), pattern(2 * SEGMENT_LEN, 2)[SEGMENT_LEN..]);
        drop(tree);
        let tree = served.open();
        assert_eq!(object(&tree, "file"), next, "the generation is remembered");
        assert!(read(&tree, next, 1).is_ok());
    }
}

#[test]
fn a_change_of_attributes_alone_keeps_the_version() {
    let served = Served::new();
    let path = served.write("file", &pattern(2 * SEGMENT_LEN, 1));
    let tree = served.open();
    let id = object(&tree, "file");
    assert!(read(&tree, id, 0).is_ok());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    assert!(read(&tree, id, 1).is_ok());
    let expected = Work { read: 3, signed: 2 };
    assert_eq!(tree.work(), expected, "what was signed is read again, once");
    assert!(read(&tree, id, 1).is_ok());
    assert_eq!(tree.work(), Work { read: 4, ..expected });
    assert!(tree.rescan().unwrap());
    assert_eq!(object(&tree, "file"), id);
}

/// A page of the file was changed through a mapping, or the disk lost bits: no attribute tells.
#[test]
fn bytes_that_contradict_a_signed_header_are_withdrawn() {
    let served = Served::new();
    served.write("file", &pattern(100, 1));
    let tree = served.open();
    let id = object(&tree, "file");
    let segment = SegmentId { object: id, index: 0 };
    // Stands for what the file once held.
    let signed = SegmentHeader::sign(segment, &pattern(100, 2), &tree.key);
    tree.headers().set_header(&signed);
    assert_eq!(read(&tree, id, 0), Err(SegmentError::Gone));
    assert_eq!(read(&tree, id, 0), Err(SegmentError::Gone));
    assert!(tree.rescan().unwrap());
    assert_ne!(object(&tree, "file"), id);
    assert_eq!(read(&tree, object(&tree, "file"), 0).unwrap(), pattern(100, 1));
}

#[test]
fn a_file_written_a_moment_ago_is_not_signed_yet() {
    let served = Served::new();
    fs::write(served.path("file"), b"fresh").unwrap();
    let tree = served.open();
    let id = object(&tree, "file");
    match read(&tree, id, 0) {
        Err(SegmentError::Unsettled { ready_in }) => {
            assert!(ready_in <= SETTLE);
            std::thread::sleep(ready_in);
        }
        // The listing took that long.
        other => assert!(other.is_ok()),
    }
    assert_eq!(read(&tree, id, 0).unwrap(), b"fresh");
    let ahead = served.write("ahead", b"x");
    set_modified(&ahead, SystemTime::now() + Duration::from_secs(1_000_000));
    assert!(tree.rescan().unwrap());
    assert!(matches!(read(&tree, object(&tree, "ahead"), 0), Err(SegmentError::Unsettled { .. }) | Ok(_)));
    std::thread::sleep(SETTLE);
    assert_eq!(read(&tree, object(&tree, "ahead"), 0).unwrap(), b"x", "a time to come does not lock a file for ever");
}

/// Gives up root's power to read anything, for this thread alone; without root there is none.
fn become_nobody() {
    // SAFETY: changes the file-system user id of the calling thread and nothing else.
    unsafe { libc::setfsuid(65534) };
}

#[test]
fn what_cannot_be_read_does_not_keep_the_rest_from_being_served() {
    let served = Served::new();
    let secret = served.write("secret", b"x");
    served.write("open", b"y");
    served.write("closed/inside", b"z");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(served.path("closed"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(served.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let state = StateDir::at(served.state.path()).unwrap();
    let key = state.key().unwrap();
    // Whatever root must make is made.
    drop(TreeState::open(&state, &"images".parse().unwrap()).unwrap());
    fs::write(TreeState::open(&state, &"images".parse().unwrap()).unwrap().headers_path(), b"").unwrap();
    for path in ["trees", "trees/images", "trees/images/lock", "trees/images/headers", "."] {
        fs::set_permissions(served.state.path().join(path), fs::Permissions::from_mode(0o777)).unwrap();
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            become_nobody();
            unreadable_parts_are_told(&served, &state, key);
        });
    });
    fs::set_permissions(served.path("closed"), fs::Permissions::from_mode(0o700)).unwrap();
}

fn unreadable_parts_are_told(served: &Served, state: &StateDir, key: OriginKey) {
    let tree = Tree::open(served.dir.path(), "images".parse().unwrap(), state, key).unwrap();
    assert_eq!(read(&tree, object(&tree, "open"), 0).unwrap(), b"y");
    assert_eq!(read(&tree, object(&tree, "secret"), 0), Err(SegmentError::Unreadable));
    assert_eq!(*look_up(&tree, b"", b"closed").row.kind(), Kind::Directory);
    let report = tree.report();
    assert_eq!((report.warned, &report.warnings[0].path[..]), (1, &b"closed"[..]));
    assert!(report.warnings[0].why.contains("shown empty"), "{report:?}");
}

#[test]
fn a_restart_gives_the_same_head_and_hashes_nothing_again() {
    let served = Served::new();
    for number in 0..50 {
        served.write(&format!("dir{}/file{number}", number % 7), &pattern(3000, number));
    }
    served.write("big", &pattern(SEGMENT_LEN + 9, 3));
    let tree = served.open();
    let head = tree.head();
    let id = object(&tree, "big");
    let first = [read(&tree, id, 0).unwrap(), read(&tree, id, 1).unwrap()];
    assert_eq!(tree.work(), Work { read: 2, signed: 2 });
    drop(tree);
    let tree = served.open();
    assert_eq!(tree.head(), head);
    assert_eq!(tree.work(), Work::default());
    assert_eq!([read(&tree, id, 0).unwrap(), read(&tree, id, 1).unwrap()], first);
    assert_eq!(tree.work(), Work { read: 2, signed: 0 });
}

#[test]
fn a_lost_state_directory_costs_a_new_key_and_nothing_else() {
    let mut served = Served::new();
    served.write("file", b"x");
    let tree = served.open();
    let (head, id) = (tree.head(), object(&tree, "file"));
    drop(tree);
    served.state = tempfile::tempdir().unwrap();
    let tree = served.open();
    assert_ne!(tree.head().key, head.key);
    assert_eq!(tree.head().root, head.root);
    assert!(tree.head().sequence > head.sequence, "the clock keeps it growing");
    assert_eq!(read(&tree, id, 0).unwrap(), b"x");
}

#[test]
fn a_sequence_ahead_of_the_clock_still_grows() {
    let served = Served::new();
    let state = StateDir::at(served.state.path()).unwrap();
    let far = u64::MAX - 10;
    TreeState::open(&state, &"images".parse().unwrap()).unwrap().save_head(far, &PageHash([0; 32])).unwrap();
    assert_eq!(served.open().head().sequence, far + 1);
}

#[test]
fn what_is_no_directory_is_refused_by_name() {
    let served = Served::new();
    let file = served.write("file", b"x");
    let state = StateDir::at(served.state.path()).unwrap();
    for path in [served.path("missing"), file] {
        let opened = Tree::open(&path, "images".parse().unwrap(), &state, state.key().unwrap());
        let message = opened.err().expect("refused").to_string();
        assert!(message.contains(&path.display().to_string()) && message.contains("give a directory"), "{message}");
    }
}

#[test]
fn extended_attributes_of_users_are_listed_and_bounded() {
    let mut served = Served::new();
    // A tmpfs has room for more of them than is shown; ext4 has not.
    if let Ok(dir) = tempfile::tempdir_in("/dev/shm") {
        served.dir = dir;
    }
    let path = served.write("file", b"x");
    let set = |name: &str, value: &[u8]| rustix::fs::setxattr(&path, name, value, rustix::fs::XattrFlags::empty());
    if set("user.b", b"2") == Err(Errno::OPNOTSUPP) {
        // A filesystem without them has nothing to list.
        return;
    }
    set("user.a", b"").unwrap();
    // As much as this filesystem takes: some have room for less than is ever shown.
    let huge = (0..4).filter(|number| set(&format!("user.huge{number}"), &[1; 3000]).is_ok()).count();
    let tree = served.open();
    let row = look_up(&tree, b"", b"file").row;
    let names: Vec<_> = row.xattrs().iter().take(2).map(|xattr| (&*xattr.name, &*xattr.value)).collect();
    assert_eq!(names, [(&b"user.a"[..], &b""[..]), (b"user.b", b"2")]);
    assert_eq!(row.xattrs().len(), 2 + huge.min(2));
    assert_eq!(tree.report().warned, u64::from(huge > 2));
}

#[test]
fn many_threads_read_one_tree() {
    let served = Served::new();
    let bytes = pattern(8 * SEGMENT_LEN, 5);
    served.write("file", &bytes);
    let tree = served.open();
    let id = object(&tree, "file");
    std::thread::scope(|scope| {
        for start in 0..4 {
            let (tree, bytes) = (&tree, &bytes);
            scope.spawn(move || {
                for index in (0..8).map(|index| (index + 2 * start) % 8) {
                    let at = index as usize * SEGMENT_LEN;
                    assert_eq!(read(tree, id, index).unwrap(), bytes[at..at + SEGMENT_LEN]);
                }
            });
        }
    });
    assert_eq!(tree.work().signed, 8, "each segment is signed once");
}
