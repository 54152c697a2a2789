//! The filesystem layer against a real directory: random look-ups, listings, reads and totals must agree with what the
//! operating system says, while pages and chunks come late, in disorder, and are forgotten again.
//!
//! A failure prints its seed; `SWARMFS_SEED=N cargo test --test model` repeats it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use swarmfs::catalogue::{Entry, Kind};
use swarmfs::driver::Slices;
use swarmfs::fs::{Batch, Error, Fs, Handle, ROOT, Settings, Supply};

mod disk;

use disk::DiskNode;

const STEPS: usize = 3_000;
const LATEST: Duration = Duration::from_secs(20);

#[test]
fn random_operations_agree_with_the_directory() {
    let seeds = match std::env::var("SWARMFS_SEED") {
        Ok(seed) => vec![seed.parse().expect("SWARMFS_SEED is a number")],
        Err(_) => vec![1, 2, 3, fastrand::u64(..)],
    };
    for seed in seeds {
        let _seed = SeedOnPanic(seed);
        let dir = tempfile::tempdir().unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut model = Model::new(dir.path(), &mut random);
        for _ in 0..STEPS {
            model.step(&mut random);
        }
        model.finish();
    }
}

#[test]
fn a_replaced_file_keeps_its_number_and_bytes_for_who_has_it_open_and_is_stale_for_a_new_open() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), vec![1; 100_000]).unwrap();
    let node = DiskNode::new(dir.path(), 1);
    node.remember_all();
    let fs = start(&node, Settings::default());
    let (old, _) = lookup(&fs, ROOT, b"f").unwrap();
    let handle = open(&fs, old).unwrap();
    assert_eq!(read(&fs, handle, 0, 10).unwrap(), [1; 10]);

    std::fs::write(dir.path().join("new"), vec![2; 50_000]).unwrap();
    std::fs::rename(dir.path().join("new"), dir.path().join("f")).unwrap();
    node.rescan();

    assert!(fs.tick(), "a newer version is noticed");
    assert!(!fs.tick(), "once");
    assert_eq!(read(&fs, handle, 99_990, 100).unwrap(), [1; 10], "what is here of the old version stays readable");
    assert_eq!(open(&fs, old), Err(Error::Stale));
    let (new, entry) = lookup(&fs, ROOT, b"f").unwrap();
    assert_ne!(new, old);
    assert_eq!(entry.row.attributes().size, 50_000);
    let other = open(&fs, new).unwrap();
    assert_eq!(read(&fs, other, 0, 10).unwrap(), [2; 10]);
    node.forget();
    assert_eq!(read(&fs, handle, 0, 10), Err(Error::Stale), "bytes of the new version are never read as the old one's");
}

#[test]
fn an_unchanged_file_is_opened_in_a_newer_version() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "same").unwrap();
    let node = DiskNode::new(dir.path(), 1);
    let fs = start(&node, Settings::default());
    let (number, _) = lookup(&fs, ROOT, b"f").unwrap();
    std::fs::write(dir.path().join("g"), "other").unwrap();
    node.rescan();
    assert_eq!(lookup(&fs, ROOT, b"f").unwrap().0, number);
    let handle = open(&fs, number).unwrap();
    assert_eq!(read(&fs, handle, 0, 10).unwrap(), b"same");
    assert_eq!(lookup(&fs, ROOT, b"g").unwrap().1.row.attributes().size, 5);
}

/// A look-up that came before the next tick took note of the version, and the tick found nothing new: the kernel went on
/// believing that there is no such file, for as long as nothing else changed.
#[test]
fn a_newer_version_that_a_look_up_met_first_is_told_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "same").unwrap();
    let node = DiskNode::new(dir.path(), 1);
    let fs = start(&node, Settings::default());
    assert_eq!(lookup(&fs, ROOT, b"g").map(drop), Err(Error::NotFound));
    std::fs::write(dir.path().join("g"), "new").unwrap();
    node.rescan();
    lookup(&fs, ROOT, b"f").unwrap();
    assert!(fs.tick(), "names are to be looked up again");
    assert!(!fs.tick(), "once");
}

#[test]
fn requests_that_wait_are_answered_when_interrupted_late_or_ended() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "text").unwrap();
    let node = DiskNode::new(dir.path(), 1);
    node.remember_all();
    let fs = start(&node, Settings::default());
    let (number, _) = lookup(&fs, ROOT, b"f").unwrap();
    let handle = open(&fs, number).unwrap();
    node.cut_off(true);

    let (tell, answer) = mpsc::channel();
    fs.read(fs.call(7, None), handle, 0, 4, move |found| tell.send(found.err()).unwrap());
    let waiting = fs.waiting_for(Duration::ZERO);
    let waiting: Vec<_> = waiting.into_iter().filter(|call| call.thread() == 7).collect();
    assert_eq!(waiting.len(), 1);
    fs.interrupt(&waiting[0]);
    assert_eq!(answer.recv_timeout(LATEST), Ok(Some(Error::Interrupted)));
    drop(waiting);
    assert!(eventually(|| fs.waiting_for(Duration::ZERO).is_empty()));

    let (tell, answer) = mpsc::channel();
    fs.read(fs.call(0, Some(Duration::from_millis(30))), handle, 0, 4, move |found| tell.send(found.err()).unwrap());
    assert_eq!(answer.recv_timeout(LATEST), Ok(Some(Error::TimedOut)));

    node.forget();
    let (tell, answer) = mpsc::channel();
    let tell_other = tell.clone();
    fs.read(fs.call(0, None), handle, 0, 4, move |found| tell.send(found.err()).unwrap());
    fs.lookup(fs.call(0, None), ROOT, b"f", move |found| tell_other.send(found.err()).unwrap());
    fs.end();
    assert_eq!(answer.recv_timeout(LATEST), Ok(Some(Error::Ended)));
    assert_eq!(answer.recv_timeout(LATEST), Ok(Some(Error::Ended)));
    assert_eq!(lookup(&fs, ROOT, b"f").err(), Some(Error::Ended), "what comes later is answered too");
    node.cut_off(false);
}

#[test]
fn memory_answers_while_the_network_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "text").unwrap();
    let node = DiskNode::new(dir.path(), 1);
    let fs = start(&node, Settings::default());
    let (number, _) = lookup(&fs, ROOT, b"f").unwrap();
    node.cut_off(true);
    node.forget();
    assert_eq!(fs.entry(number).unwrap().row.attributes().size, 4);
    assert_eq!(fs.totals().bytes, 4);
    assert_eq!(fs.xattr(ROOT, b"system.posix_acl_access"), Err(Error::NoAttribute));
}

#[test]
fn a_directory_of_the_tree_can_be_the_root() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
    std::fs::write(dir.path().join("a/b/f"), "text").unwrap();
    let node = DiskNode::new(dir.path(), 1);
    let fs = start(&node, Settings { root: b"a/b".to_vec(), ..Settings::default() });
    assert!(lookup(&fs, ROOT, b"f").is_ok());
    assert_eq!(lookup(&fs, ROOT, b"..").unwrap().0, ROOT, "the root has nothing above it");
    let (below, _) = lookup(&fs, ROOT, b"c").unwrap();
    assert_eq!(lookup(&fs, below, b"..").unwrap().0, ROOT);
    assert_eq!(lookup(&fs, below, b".").unwrap().0, below);
    for (root, error) in [(&b"a/none"[..], Error::NotFound), (b"a/b/f", Error::NotADirectory)] {
        let (tell, answer) = mpsc::channel();
        let settings = Settings { root: root.to_vec(), ..Settings::default() };
        Fs::start(node.clone(), settings, move |fs| tell.send(fs.err()).unwrap());
        assert_eq!(answer.recv_timeout(LATEST), Ok(Some(error)));
    }
}

#[test]
fn files_read_one_after_the_other_share_a_window_into_the_next_ones() {
    let dir = tempfile::tempdir().unwrap();
    for index in 0..40 {
        std::fs::write(dir.path().join(format!("{index:02}")), vec![index; 10_000]).unwrap();
    }
    let node = DiskNode::new(dir.path(), 1);
    let fs = start(&node, Settings::default());
    for index in 0..3 {
        let (number, _) = lookup(&fs, ROOT, format!("{index:02}").as_bytes()).unwrap();
        let handle = open(&fs, number).unwrap();
        assert_eq!(read(&fs, handle, 0, 65536).unwrap().len(), 10_000);
        fs.close(handle);
        assert_eq!(node.readers(), 1, "one stream lives on from file to file");
    }
    // From the second file on, that one included, once the pages have come that say which follow.
    let all = || node.windows().iter().any(|window| window.iter().map(|wanted| wanted.ordinal).eq(1..40));
    assert!(eventually(all), "{:?}", node.windows());
    assert_eq!(node.windows().len(), 1);
}

/// Whether something comes true within ten seconds.
fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while !holds() {
        if std::time::Instant::now() > until {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

struct SeedOnPanic(u64);

impl Drop for SeedOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat with: SWARMFS_SEED={} cargo test --test model", self.0);
        }
    }
}

/// What is known of the filesystem under test, and the directory that it must agree with.
struct Model {
    dir: PathBuf,
    node: DiskNode,
    fs: Arc<Fs<DiskNode>>,
    /// Numbers known, each with its path and how often it was looked up.
    known: BTreeMap<u64, (PathBuf, u64)>,
    open: Vec<(Handle, PathBuf)>,
}

impl Model {
    fn new(dir: &Path, random: &mut fastrand::Rng) -> Model {
        plant(dir, random, 0);
        let node = DiskNode::new(dir, random.u64(..));
        let fs = start(&node, Settings::default());
        let known = BTreeMap::from([(ROOT, (dir.to_owned(), 0))]);
        Model { dir: dir.to_owned(), node, fs, known, open: Vec::new() }
    }

    fn step(&mut self, random: &mut fastrand::Rng) {
        match random.u8(..20) {
            0..5 => self.look_up(random),
            5..7 => self.list(random),
            7..10 => self.open(random),
            10..15 => self.read(random),
            15 => self.close(random),
            16 => self.forget(random),
            17 => self.read_many_at_once(random),
            18 => self.node.forget(),
            _ => self.attributes(random),
        }
    }

    fn finish(self) {
        for (handle, _) in &self.open {
            self.fs.close(*handle);
        }
        for (number, (_, lookups)) in &self.known {
            self.fs.forget(*number, *lookups);
        }
        assert_eq!(self.fs.inodes(), 1, "only the root is known when all else was forgotten");
        assert!(eventually(|| self.fs.waiting_for(Duration::ZERO).is_empty()), "windows' pages come too");
        let files = walk(&self.dir);
        let bytes: u64 =
            files.iter().filter(|path| is_file(path)).map(|path| path.symlink_metadata().unwrap().len()).sum();
        assert_eq!(self.fs.totals().bytes, bytes);
        assert_eq!(self.fs.totals().rows, files.len() as u64 + 1);
        self.node.stop();
    }

    fn look_up(&mut self, random: &mut fastrand::Rng) {
        let (parent, path) = self.pick(random);
        let names = names_in(&path);
        let name = if names.is_empty() || random.u8(..4) == 0 {
            let absent: [&[u8]; 5] = [b"absent", b"\xff", b"0", &[b'n'; 256], b"f"];
            random.choice(absent).unwrap().to_vec()
        } else {
            names[random.usize(..names.len())].clone()
        };
        let child = path.join(OsStr::from_bytes(&name));
        match lookup(&self.fs, parent, &name) {
            Ok((number, entry)) => {
                assert_same(&entry, &child);
                let slot = self.known.entry(number).or_insert_with(|| (child.clone(), 0));
                if slot.0 != child {
                    let (one, other) = (slot.0.symlink_metadata().unwrap(), child.symlink_metadata().unwrap());
                    assert_eq!(one.ino(), other.ino(), "only hard links share a number: {:?} {child:?}", slot.0);
                }
                slot.1 += 1;
            }
            Err(Error::NotADirectory) => assert!(!path.is_dir() || path.is_symlink()),
            Err(Error::NameTooLong) => assert!(name.len() > 255),
            Err(error) => {
                assert_eq!(error, Error::NotFound);
                assert!(child.symlink_metadata().is_err(), "{child:?} is there");
            }
        }
    }

    fn list(&mut self, random: &mut fastrand::Rng) {
        let (number, path) = self.pick(random);
        let (handle, _) = match self.fs.open_directory(number) {
            Ok(opened) => opened,
            Err(error) => {
                assert_eq!(error, Error::NotADirectory);
                assert!(path.is_symlink() || !path.is_dir());
                return;
            }
        };
        let mut found = Vec::new();
        let mut from = None;
        loop {
            let batch = list(&self.fs, handle, from).unwrap();
            // Not always all of it is taken: the next part begins wherever this one was left.
            let take = if random.bool() { batch.entries.len() } else { random.usize(..=batch.entries.len()) };
            for entry in &batch.entries[..take] {
                assert_same(entry, &path.join(OsStr::from_bytes(entry.row.name())));
                from = Some(entry.rank + 1);
                found.push(entry.row.name().to_vec());
                if random.bool() {
                    let number = self.fs.remember(entry, batch.version).unwrap();
                    let child = path.join(OsStr::from_bytes(entry.row.name()));
                    self.known.entry(number).or_insert((child, 0)).1 += 1;
                }
            }
            if batch.is_last && take == batch.entries.len() {
                break;
            }
        }
        self.fs.close_directory(handle);
        found.sort();
        assert_eq!(found, names_in(&path), "{path:?}");
    }

    fn open(&mut self, random: &mut fastrand::Rng) {
        let (number, path) = self.pick(random);
        match open(&self.fs, number) {
            Ok(handle) => self.open.push((handle, path)),
            Err(error) => {
                assert_eq!(error, Error::NotAFile);
                assert!(!is_file(&path));
            }
        }
    }

    fn read(&mut self, random: &mut fastrand::Rng) {
        let Some((handle, path)) = random.choice(&self.open) else { return };
        let (offset, len) = some_range(path, random);
        assert_eq!(
            read(&self.fs, *handle, offset, len).unwrap(),
            expected(path, offset, len),
            "{path:?} {offset} {len}"
        );
        let size = path.metadata().unwrap().len();
        assert_eq!(self.fs.seek_data(*handle, offset).ok(), (offset < size).then_some(offset));
        assert_eq!(self.fs.seek_hole(*handle, offset).ok(), (offset < size).then_some(size));
    }

    fn read_many_at_once(&mut self, random: &mut fastrand::Rng) {
        if self.open.is_empty() {
            return;
        }
        let (tell, answers) = mpsc::channel();
        let mut asked = HashMap::new();
        for index in 0..20 {
            let (handle, path) = random.choice(&self.open).unwrap().clone();
            let (offset, len) = some_range(&path, random);
            let tell = tell.clone();
            asked.insert(index, (path, offset, len));
            self.fs.read(self.fs.call(0, None), handle, offset, len, move |slices| {
                tell.send((index, slices.map(joined))).unwrap();
            });
        }
        drop(tell);
        for _ in 0..20 {
            let (index, bytes) = answers.recv_timeout(LATEST).expect("every read is answered");
            let (path, offset, len) = asked.remove(&index).expect("once");
            assert_eq!(bytes.unwrap(), expected(&path, offset, len), "{path:?} {offset} {len}");
        }
    }

    fn close(&mut self, random: &mut fastrand::Rng) {
        if !self.open.is_empty() {
            let (handle, _) = self.open.swap_remove(random.usize(..self.open.len()));
            self.fs.close(handle);
            assert_eq!(read(&self.fs, handle, 0, 1), Err(Error::BadHandle));
        }
    }

    fn forget(&mut self, random: &mut fastrand::Rng) {
        let (number, _) = self.pick(random);
        let slot = self.known.get_mut(&number).unwrap();
        let lookups = random.u64(..=slot.1);
        slot.1 -= lookups;
        self.fs.forget(number, lookups);
        if slot.1 == 0 && number != ROOT {
            self.known.remove(&number);
            if lookups > 0 {
                assert_eq!(self.fs.entry(number).err(), Some(Error::Stale));
            }
        }
    }

    fn attributes(&mut self, random: &mut fastrand::Rng) {
        let (number, path) = self.pick(random);
        assert_same(&self.fs.entry(number).unwrap(), &path);
        match path.read_link() {
            Ok(target) => assert_eq!(self.fs.target(number).unwrap(), target.as_os_str().as_bytes()),
            Err(_) => assert_eq!(self.fs.target(number), Err(Error::NotALink)),
        }
        let expected = disk::xattrs(&path);
        let names: Vec<u8> = expected.iter().flat_map(|xattr| [&xattr.name[..], b"\0"].concat()).collect();
        assert_eq!(self.fs.xattrs(number).unwrap(), names);
        for xattr in expected {
            assert_eq!(self.fs.xattr(number, &xattr.name).unwrap(), &xattr.value[..]);
        }
    }

    fn pick(&self, random: &mut fastrand::Rng) -> (u64, PathBuf) {
        let index = random.usize(..self.known.len());
        self.known.iter().nth(index).map(|(number, (path, _))| (*number, path.clone())).unwrap()
    }
}

fn plant(dir: &Path, random: &mut fastrand::Rng, depth: u32) {
    const SIZES: [usize; 9] = [0, 1, 4096, 32_767, 32_768, 32_769, 200_000, 2 * 1024 * 1024, 2 * 1024 * 1024 + 70_000];
    // Enough in one directory for several pages and parts of a listing.
    let count = if depth == 0 { 400 } else { random.usize(..8) };
    for index in 0..count {
        let mut name = format!("{index}-").into_bytes();
        name.extend((0..random.usize(..12)).map(|_| random.choice(b"ab .\xff\n-".iter().copied()).unwrap()));
        if random.u8(..40) == 0 {
            name.resize(255, b'l');
        }
        let path = dir.join(OsStr::from_bytes(&name));
        match random.u8(..20) {
            0..2 if depth < 4 => {
                std::fs::create_dir(&path).unwrap();
                plant(&path, random, depth + 1);
            }
            2 => symlink(random.choice(["absent", "../x", "/etc"]).unwrap(), &path).unwrap(),
            3 => rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o640.into(), 0).unwrap(),
            kind => {
                let size = if kind == 19 { *random.choice(&SIZES).unwrap() } else { random.usize(..3000) };
                let mut bytes = vec![0; size];
                // A third of it stays zero.
                random.fill(&mut bytes[..size - size / 3]);
                std::fs::write(&path, bytes).unwrap();
                if kind == 18 {
                    std::fs::hard_link(
                        &path,
                        dir.join(OsStr::from_bytes(&[&name[..name.len().min(200)], b"+"].concat())),
                    )
                    .unwrap();
                }
                if kind == 17 {
                    let flags = rustix::fs::XattrFlags::empty();
                    // Not every filesystem has them.
                    let _ = rustix::fs::lsetxattr(&path, "user.note", b"value", flags);
                }
            }
        }
    }
}

fn some_range(path: &Path, random: &mut fastrand::Rng) -> (u64, u32) {
    let size = path.metadata().unwrap().len();
    let offset = match random.u8(..4) {
        0 => 0,
        1 => size.saturating_sub(random.u64(..100)) + random.u64(..50),
        _ => random.u64(..=size),
    };
    (offset, *random.choice(&[0, 1, 512, 4096, 70_000, 1_000_000, 3_000_000]).unwrap())
}

fn expected(path: &Path, offset: u64, len: u32) -> Vec<u8> {
    let size = path.metadata().unwrap().len();
    let mut bytes = vec![0; size.saturating_sub(offset).min(len as u64) as usize];
    std::fs::File::open(path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

fn assert_same(entry: &Entry, path: &Path) {
    let stat = path.symlink_metadata().unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let attributes = entry.row.attributes();
    assert_eq!(attributes.size, stat.size(), "{path:?}");
    assert_eq!(attributes.mode as u32, stat.mode() & 0o7777, "{path:?}");
    assert_eq!((attributes.uid, attributes.gid), (stat.uid(), stat.gid()), "{path:?}");
    assert_eq!((attributes.mtime.sec, attributes.mtime.nsec as i64), (stat.mtime(), stat.mtime_nsec()), "{path:?}");
    assert_eq!(attributes.nlink as u64, stat.nlink(), "{path:?}");
    assert_eq!(*entry.row.kind() == Kind::Directory, stat.is_dir(), "{path:?}");
    assert_eq!(entry.row.object().is_some(), stat.is_file(), "{path:?}");
}

fn names_in(path: &Path) -> Vec<Vec<u8>> {
    if path.is_symlink() {
        return Vec::new();
    }
    let entries =
        std::fs::read_dir(path).map(|entries| entries.map(|entry| entry.unwrap().file_name().as_bytes().to_vec()));
    let mut names: Vec<Vec<u8>> = entries.map(Iterator::collect).unwrap_or_default();
    names.sort();
    names
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(walk(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

fn is_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|stat| stat.is_file())
}

fn start(node: &DiskNode, settings: Settings) -> Arc<Fs<DiskNode>> {
    let (tell, answer) = mpsc::channel();
    Fs::start(node.clone(), settings, move |fs| tell.send(fs).unwrap());
    answer.recv_timeout(LATEST).unwrap().unwrap()
}

fn lookup<S: Supply>(fs: &Arc<Fs<S>>, parent: u64, name: &[u8]) -> Result<(u64, Arc<Entry>), Error> {
    let (tell, answer) = mpsc::channel();
    fs.lookup(fs.call(0, None), parent, name, move |found| tell.send(found).unwrap());
    answer.recv_timeout(LATEST).expect("a look-up is answered")
}

fn list<S: Supply>(fs: &Arc<Fs<S>>, handle: Handle, from: Option<u64>) -> Result<Batch, Error> {
    let (tell, answer) = mpsc::channel();
    fs.list(fs.call(0, None), handle, from, move |found| tell.send(found).map_err(drop).unwrap());
    answer.recv_timeout(LATEST).expect("a listing is answered")
}

fn open<S: Supply>(fs: &Arc<Fs<S>>, number: u64) -> Result<Handle, Error> {
    let (tell, answer) = mpsc::channel();
    fs.open(fs.call(0, None), number, move |found| tell.send(found).unwrap());
    answer.recv_timeout(LATEST).expect("an open is answered")
}

fn read<S: Supply>(fs: &Arc<Fs<S>>, handle: Handle, offset: u64, len: u32) -> Result<Vec<u8>, Error> {
    let (tell, answer) = mpsc::channel();
    fs.read(fs.call(0, None), handle, offset, len, move |found| tell.send(found.map(joined)).unwrap());
    answer.recv_timeout(LATEST).expect("a read is answered")
}

fn joined(slices: Slices) -> Vec<u8> {
    slices.iter().flat_map(|slice| slice.to_vec()).collect()
}
