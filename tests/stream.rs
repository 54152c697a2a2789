//! Files read from within a program: the bytes, seeking, paths through symbolic links, and requests given up.

use std::io::SeekFrom;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use swarmfs::fs::Error;
use swarmfs::stream::{Embedded, StreamError};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

mod disk;

use disk::DiskNode;

/// More than a segment and no multiple of anything.
const SIZE: usize = 2 * 1024 * 1024 + 77_777;

#[tokio::test]
async fn a_file_is_read_from_its_beginning_to_its_end() {
    let (dir, bytes) = tree();
    let node = DiskNode::new(dir.path(), 1);
    let files = Embedded::new(node.clone());
    let mut read = Vec::new();
    files.open("f").await.unwrap().read_to_end(&mut read).await.unwrap();
    assert!(read == bytes);
    let mut copied = Vec::new();
    assert_eq!(files.cat("/d/../f", &mut copied).await.unwrap(), SIZE as u64);
    assert!(copied == bytes);
    assert_eq!(files.cat("empty", &mut copied).await.unwrap(), 0);
    assert_eq!(node.readers(), 0, "each stream has told that it is done");
}

#[tokio::test]
async fn any_place_can_be_sought_and_read_in_pieces_of_any_size() {
    let (dir, bytes) = tree();
    let files = Embedded::new(DiskNode::new(dir.path(), 2));
    let mut stream = files.open("f").await.unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..300 {
        let at = random.usize(..SIZE + 100);
        let to = match random.u8(..3) {
            0 => SeekFrom::Start(at as u64),
            1 => SeekFrom::End(at as i64 - SIZE as i64),
            _ => SeekFrom::Current(at as i64 - stream.stream_position().await.unwrap() as i64),
        };
        assert_eq!(stream.seek(to).await.unwrap(), at as u64);
        for _ in 0..random.u8(..4) {
            let from = stream.stream_position().await.unwrap() as usize;
            let mut piece = vec![0; random.usize(1..400_000)];
            let len = stream.read(&mut piece).await.unwrap();
            assert!(len > 0 || from >= SIZE);
            assert!(piece[..len] == bytes[from.min(SIZE)..][..len], "{len} bytes at {from}");
        }
    }
    assert!(stream.seek(SeekFrom::Current(-(SIZE as i64) * 2)).await.is_err());
}

#[tokio::test]
async fn a_sequential_reader_hands_down_the_rest_of_its_file() {
    let (dir, _) = tree();
    let node = DiskNode::new(dir.path(), 1);
    let mut stream = Embedded::new(node.clone()).open("f").await.unwrap();
    stream.read_u8().await.unwrap();
    let windows = node.windows();
    assert_eq!(windows.len(), 1);
    // From what was demanded on, so that whoever demands the same shares it.
    assert_eq!(windows[0][0].blocks, 0..SIZE.div_ceil(32 * 1024) as u32);
    drop(stream);
    assert_eq!(node.windows().len(), 0);
}

#[tokio::test]
async fn symbolic_links_are_followed_inside_the_tree_and_no_further() {
    let (dir, bytes) = tree();
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    std::fs::write(dir.path().join("etc/hostname"), "of the tree").unwrap();
    let link = |target: &str, name: &str| symlink(target, dir.path().join(name)).unwrap();
    link("../f", "d/up");
    link("d/up", "twice");
    link("/etc/hostname", "absolute");
    link("../../../../etc/hostname", "d/outward");
    link("loop-b", "loop-a");
    link("loop-a", "loop-b");
    link("d", "dir");
    let files = Embedded::new(DiskNode::new(dir.path(), 1));
    for path in ["twice", "dir/up", "/d/./up", "dir/../d//up"] {
        let mut read = Vec::new();
        files.cat(path, &mut read).await.unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(read == bytes, "{path}");
    }
    for path in ["absolute", "d/outward"] {
        let mut read = Vec::new();
        files.cat(path, &mut read).await.unwrap();
        assert_eq!(read, b"of the tree", "{path}");
    }
    for (path, expected) in [
        ("loop-a", Error::Loop),
        ("absent", Error::NotFound),
        ("f/below", Error::NotADirectory),
        ("f/..", Error::NotADirectory),
        (&*"n".repeat(256), Error::NameTooLong),
    ] {
        match files.open(path).await.err() {
            Some(StreamError::Path { reason, .. }) => assert_eq!(reason, expected, "{path}"),
            other => panic!("{path}: {other:?}"),
        }
    }
    assert!(matches!(files.open("dir").await.err(), Some(StreamError::IsADirectory(_))));
    assert!(files.entry("dir", false).await.unwrap().row.path() == b"dir");
}

#[tokio::test]
async fn a_directory_is_listed_in_parts() {
    let (dir, _) = tree();
    for index in 0..1000 {
        std::fs::write(dir.path().join("d").join(index.to_string()), "").unwrap();
    }
    let files = Embedded::new(DiskNode::new(dir.path(), 1));
    let (mut names, mut parts) = (Vec::new(), 0);
    let each = |part: Vec<swarmfs::catalogue::Entry>| {
        parts += 1;
        names.extend(part.iter().map(|entry| String::from_utf8(entry.row.name().to_vec()).unwrap()));
    };
    files.list("d", each).await.unwrap();
    let mut expected: Vec<String> = (0..1000).map(|index| index.to_string()).collect();
    expected.sort();
    assert_eq!(names, expected);
    assert!(parts > 1);
}

#[tokio::test]
async fn a_read_that_nobody_waits_for_any_more_is_given_up() {
    let (dir, _) = tree();
    let node = DiskNode::new(dir.path(), 1);
    let files = Embedded::new(node.clone());
    let mut stream = files.open("f").await.unwrap();
    node.cut_off(true);
    let waited = tokio::time::timeout(Duration::from_millis(20), stream.read_u8()).await;
    assert!(waited.is_err() && node.wait_for_parked(1));
    drop(stream);
    assert!(node.wait_for_none_parked());

    node.forget();
    let impatient = files.with_patience(Duration::from_millis(20));
    let Err(StreamError::Path { reason, .. }) = impatient.open("f").await else { panic!("nobody answered") };
    assert_eq!(reason, Error::TimedOut);
}

fn tree() -> (tempfile::TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = vec![0; SIZE];
    fastrand::Rng::with_seed(9).fill(&mut bytes);
    plant(dir.path(), &bytes);
    (dir, bytes)
}

fn plant(dir: &Path, bytes: &[u8]) {
    std::fs::write(dir.join("f"), bytes).unwrap();
    std::fs::write(dir.join("empty"), "").unwrap();
    std::fs::create_dir(dir.join("d")).unwrap();
}
