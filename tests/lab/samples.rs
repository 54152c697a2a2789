//! What the labs serve: trees and images made of this machine's own files, and files with known bytes.

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

const MIB: u64 = 1 << 20;

/// The BLAKE3 of a stretch of bytes that passed by, and how many they were.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    pub len: u64,
    pub hash: blake3::Hash,
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes {}", self.len, &self.hash.to_hex()[..16])
    }
}

/// Reads to the end.
pub fn digest(mut from: impl Read) -> std::io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; MIB as usize];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(Digest { len: hasher.count(), hash: hasher.finalize() }),
            count => hasher.update(&buffer[..count]),
        };
    }
}

pub fn digest_of(path: &Path) -> Digest {
    digest(File::open(path).expect("the sample is there")).expect("the sample can be read")
}

/// A file of incompressible bytes, the same for the same seed.
pub fn random_file(path: &Path, len: u64, seed: u64) {
    let file = File::create(path).expect("the scratch directory can be written");
    fill(&file, 0, len, seed);
    settle(path);
}

/// A file of `len` bytes in which only every fourth MiB holds anything; the rest are holes.
pub fn file_with_holes(path: &Path, len: u64, seed: u64) {
    let file = File::create(path).expect("the scratch directory can be written");
    file.set_len(len).expect("the filesystem has sparse files");
    for start in (0..len).step_by(4 * MIB as usize) {
        fill(&file, start, MIB.min(len - start), seed + start);
    }
    settle(path);
}

fn fill(file: &File, start: u64, len: u64, seed: u64) {
    let mut stream = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut buffer = vec![0; MIB as usize];
    let mut at = start;
    while at < start + len {
        let count = MIB.min(start + len - at) as usize;
        stream.fill(&mut buffer[..count]);
        file.write_all_at(&buffer[..count], at).expect("the disk has room for the samples");
        at += count as u64;
    }
}

/// An origin does not sign a file that may still be written to; samples are to be older than that.
fn settle(path: &Path) {
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
    let file = File::options().write(true).open(path).expect("the sample was just made");
    file.set_times(FileTimes::new().set_modified(time).set_accessed(time)).expect("one's own file has times");
}

/// Copies programs and libraries of this machine, subdirectories and links included, until `bytes` are reached.
pub fn machine_files(into: &Path, bytes: u64) {
    fs::create_dir_all(into).expect("the scratch directory can be written");
    let mut left = bytes;
    for source in
        ["/usr/share/perl5", "/usr/share/doc", "/usr/lib/git-core", "/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/lib"]
    {
        let target = into.join(source.trim_start_matches('/').replace('/', "-"));
        left = copy_some(Path::new(source), &target, left, 4);
    }
}

/// Gives what is left of `budget`. No file may take more than a quarter of it, so that there are several.
fn copy_some(source: &Path, target: &Path, budget: u64, depth: u32) -> u64 {
    let Ok(entries) = fs::read_dir(source) else { return budget };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(|entry| entry.file_name());
    fs::create_dir_all(target).expect("the scratch directory can be written");
    let mut left = budget;
    for entry in entries {
        let (from, to) = (entry.path(), target.join(entry.file_name()));
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_symlink() {
            let link = fs::read_link(&from).expect("a link can be read");
            let _ = symlink(link, to);
        } else if meta.is_dir() && depth > 0 {
            left = copy_some(&from, &to, left, depth - 1);
        } else if meta.is_file()
            && meta.len() <= left
            && meta.len() <= budget / 4 + 4096
            && fs::copy(&from, &to).is_ok()
        {
            let times = FileTimes::new().set_modified(meta.modified().expect("Linux has modification times"));
            // A copy keeps the mode, and a read-only file's times are set through a descriptor opened for reading.
            File::open(&to).and_then(|file| file.set_times(times)).expect("one's own file has times");
            left -= meta.len();
        }
    }
    left
}

/// Everything that is easy to get wrong, in one directory.
pub fn hard_cases(root: &Path) {
    let make = |name: &str, bytes: &[u8]| {
        let path = root.join(name);
        fs::write(&path, bytes).expect("the scratch directory can be written");
        settle(&path);
        path
    };
    fs::create_dir_all(root.join("empty directory")).expect("the scratch directory can be written");
    make("empty", b"");
    make("one byte", b"1");
    make("new\nline", b"names may hold newlines");
    make(&"n".repeat(255), b"a name of 255 bytes");
    let raw = root.join(OsStr::from_bytes(b"not utf-8 \xff\xfe\x80"));
    fs::write(&raw, b"names are bytes").expect("the filesystem takes any bytes");
    settle(&raw);

    let chunk = 16 * MIB;
    for (name, len) in [
        ("one block", 32 * 1024),
        ("a chunk less a byte", chunk - 1),
        ("exactly one chunk", chunk),
        ("a chunk and a byte", chunk + 1),
        ("exactly two chunks", 2 * chunk),
    ] {
        random_file(&root.join(name), len, len);
    }
    file_with_holes(&root.join("sparse"), 24 * MIB + 17, 9);
    let holes = File::create(root.join("only a hole")).expect("the scratch directory can be written");
    holes.set_len(40 * MIB).expect("the filesystem has sparse files");
    settle(&root.join("only a hole"));

    for mode in [0o000, 0o400, 0o600, 0o644, 0o755, 0o4755, 0o2755, 0o1777] {
        let path = make(&format!("mode {mode:04o}"), b"modes");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("one's own file has a mode");
    }
    for (name, time) in [
        ("a nanosecond past the epoch", SystemTime::UNIX_EPOCH + Duration::from_nanos(1)),
        ("before the epoch", SystemTime::UNIX_EPOCH - Duration::new(86_400, 500_000_000)),
        ("after 2038", SystemTime::UNIX_EPOCH + Duration::new(3_000_000_000, 999_999_999)),
    ] {
        let file = File::options().write(true).open(make(name, b"times")).expect("the sample was just made");
        file.set_times(FileTimes::new().set_modified(time)).expect("one's own file has times");
    }
    let owned = make("somebody's", b"owners");
    // In a user namespace with one user there is nobody else to give it to.
    let _ = std::os::unix::fs::chown(&owned, Some(1234), Some(5678));

    let first = make("a hard link", b"hard links share their bytes");
    fs::hard_link(&first, root.join("its other name")).expect("the filesystem has hard links");
    fs::hard_link(&first, root.join("empty directory/its third name")).expect("the filesystem has hard links");
    for (name, target) in [
        ("link to a file", "one byte"),
        ("link to a directory", "empty directory"),
        ("link out of the tree", "/etc/hostname"),
        ("link above the root", "../../../../etc/hostname"),
        ("dangling link", "nowhere"),
        ("link to itself", "link to itself"),
    ] {
        symlink(target, root.join(name)).expect("the filesystem has symbolic links");
    }
    symlink("t".repeat(4000), root.join("long link")).expect("a link holds 4,095 bytes");
    rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .expect("the filesystem has fifos");

    let mut deep = root.join("deep");
    for level in 0..20 {
        deep.push(format!("level {level}"));
    }
    fs::create_dir_all(&deep).expect("the scratch directory can be written");
    fs::write(deep.join("at the bottom"), b"here").expect("the scratch directory can be written");
    let many = root.join("many");
    fs::create_dir(&many).expect("the scratch directory can be written");
    for index in 0..2000 {
        let mut file = File::create(many.join(format!("file {index}"))).expect("the scratch directory can be written");
        write!(file, "{index}").expect("the disk has room for the samples");
    }
}

/// An ext4 image of `mib` MiB, made with real files in it; sparse where the filesystem is free.
pub fn ext4_image(path: &Path, mib: u64, files: &Path) {
    let output = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .args([files, path])
        .arg(format!("{mib}M"))
        .output()
        .expect("e2fsprogs is installed (.ci/need)");
    assert!(output.status.success(), "mke2fs: {}", String::from_utf8_lossy(&output.stderr));
    settle(path);
}
