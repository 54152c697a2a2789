//! Files of a served tree that change while others read them: nobody ever sees bytes of two versions, and whoever opens
//! a file a second later sees the new one.
//!
//! Every eight bytes of a file here name its version and their own place, so that a page of another version shows,
//! whichever page of whichever cache it is. `ROUNDS` sets how often files are changed, `SEED` repeats a run.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

mod lab;

use lab::samples::{self, Digest};
use lab::swarm::{self, MOUNT, wait_until};
use lab::{Host, Lab, Link};

const MIB: u64 = 1 << 20;
/// Two segments, and an end that is no block's.
const SIZE: u64 = 3 * MIB + 8 * 1234;
const PIECE: u64 = 64 * 1024;
/// Files that change at the same time, each by itself.
const FILES: u32 = 8;
const ROUNDS: u32 = 200;
/// What is promised; half of all changes are to be faster even where all files change all the time on a busy machine.
const PROMISED: Duration = Duration::from_secs(1);
/// More than any change may take to be seen, on a busy machine too.
const LATEST: Duration = Duration::from_secs(15);
/// Set for the processes that this file starts of itself.
const ROLE: &str = "SWARMFS_TEST_ROLE";

// ---- bytes that tell their version

fn content(version: u32, len: u64) -> Vec<u8> {
    (0..len / 8).flat_map(|index| ((version as u64) << 32 | index).to_le_bytes()).collect()
}

/// The one version that all of these bytes, which begin at `offset`, are of.
fn version_of(bytes: &[u8], offset: u64) -> Result<u32, String> {
    let mut version = None;
    for (index, word) in (offset / 8..).zip(bytes.chunks_exact(8)) {
        let word = u64::from_le_bytes(word.try_into().expect("chunks of eight"));
        let (found, place) = ((word >> 32) as u32, word & 0xffff_ffff);
        if place != index || *version.get_or_insert(found) != found {
            return Err(format!("word {index} is {place} of version {found}, the ones before are of {version:?}"));
        }
    }
    version.ok_or_else(|| "no bytes".to_owned())
}

#[track_caller]
fn must_be(bytes: &[u8], offset: u64, version: u32) {
    match version_of(bytes, offset) {
        Ok(found) => assert_eq!(found, version, "another version's bytes at {offset}"),
        Err(mixed) => panic!("mixed at {offset}, where version {version} is read: {mixed}"),
    }
}

/// How a reader of an old version came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Whole,
    Stale,
}

// ---- readers

/// A file that is open, with its first piece read.
struct OpenReader {
    file: File,
    version: u32,
    len: u64,
}

impl OpenReader {
    fn start(path: &Path, version: u32, len: u64) -> OpenReader {
        let file = File::open(path).expect("the file is there");
        let mut piece = vec![0; PIECE as usize];
        file.read_exact_at(&mut piece, 0).expect("its beginning can be read");
        must_be(&piece, 0, version);
        OpenReader { file, version, len }
    }

    /// Reads all of it, one piece here, one there.
    fn finish(self, random: &mut fastrand::Rng) -> Outcome {
        let mut places: Vec<u64> = (0..self.len.div_ceil(PIECE)).collect();
        random.shuffle(&mut places);
        for place in places {
            let offset = place * PIECE;
            let mut piece = vec![0; (self.len - offset).min(PIECE) as usize];
            match self.file.read_exact_at(&mut piece, offset) {
                Ok(()) => must_be(&piece, offset, self.version),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{error}");
                    return Outcome::Stale;
                }
            }
        }
        Outcome::Whole
    }
}

/// A `dd` that is half-way.
struct HalfWay {
    child: Child,
    out: ChildStdout,
    version: u32,
    got: u64,
    len: u64,
}

impl HalfWay {
    fn start(path: &Path, version: u32, len: u64) -> HalfWay {
        HalfWay::start_at(path, version, len, len / 16 * 8)
    }

    fn start_at(path: &Path, version: u32, len: u64, at: u64) -> HalfWay {
        let mut command = Command::new("dd");
        command.arg(format!("if={}", path.display())).args(["bs=64K", "status=none"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = child.stdout.take().unwrap();
        let mut half = HalfWay { child, out, version, got: 0, len };
        half.take(at);
        half
    }

    fn take(&mut self, count: u64) {
        let mut bytes = Vec::new();
        (&mut self.out).take(count).read_to_end(&mut bytes).unwrap();
        let whole = bytes.len() / 8 * 8;
        if whole > 0 {
            must_be(&bytes[..whole], self.got, self.version);
        }
        self.got += bytes.len() as u64;
    }

    fn finish(mut self) -> Outcome {
        self.take(u64::MAX);
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        if self.child.wait().unwrap().success() {
            assert_eq!(self.got, self.len, "dd ended early without an error");
            return Outcome::Whole;
        }
        assert!(said.contains("Stale file handle"), "{said}");
        Outcome::Stale
    }
}

/// A process that has mapped the file and looked at some of its pages.
struct Mapped(Child, BufReader<ChildStdout>);

impl Mapped {
    fn start(path: &Path, version: u32, seed: u64) -> Mapped {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "a_process_that_maps_a_file", "--nocapture"]).env(ROLE, path);
        command.env("VERSION", version.to_string()).env("SEED", seed.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut mapped = Mapped(child, out);
        assert!(mapped.hears("begun"), "it ended");
        mapped
    }

    fn hears(&mut self, word: &str) -> bool {
        let mut line = String::new();
        while self.1.read_line(&mut line).unwrap() > 0 {
            // The harness writes on the same line.
            if line.trim_end().ends_with(word) {
                return true;
            }
            line.clear();
        }
        false
    }

    fn finish(mut self) -> Outcome {
        drop(self.0.stdin.take());
        let whole = self.hears("whole");
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let status = self.0.wait().unwrap();
        match status.signal() {
            Some(libc::SIGBUS) => Outcome::Stale,
            _ => {
                assert!(status.success() && whole, "{status}: {said}");
                Outcome::Whole
            }
        }
    }
}

/// Not a test of its own: a reader by mmap, which a page that cannot be had ends by a signal.
#[test]
fn a_process_that_maps_a_file() {
    let Some(path) = std::env::var_os(ROLE) else { return };
    let number = |name: &str| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let (version, mut random) = (number("VERSION") as u32, fastrand::Rng::with_seed(number("SEED")));
    let file = File::open(path).unwrap();
    let len = file.metadata().unwrap().len() as usize;
    // SAFETY: a new mapping wherever there is room, checked for failure, that lives to the process's end.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ,
            libc::MAP_SHARED,
            std::os::fd::AsRawFd::as_raw_fd(&file),
            0,
        )
    };
    assert_ne!(address, libc::MAP_FAILED);
    // SAFETY: the mapping has `len` bytes; the filesystem shows one version through it, which never changes.
    let bytes = unsafe { std::slice::from_raw_parts(address.cast::<u8>(), len) };
    let mut pages: Vec<usize> = (1..len.div_ceil(4096)).collect();
    random.shuffle(&mut pages);
    let before = random.usize(..pages.len());
    let look = |page: usize| must_be(&bytes[page * 4096..len.min((page + 1) * 4096)], page as u64 * 4096, version);
    look(0);
    pages[..before / 4].iter().for_each(|page| look(*page));
    println!("\nbegun");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    pages[before / 4..].iter().for_each(|page| look(*page));
    println!("\nwhole");
}

// ---- changes

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Change {
    InPlace,
    Rename,
    Truncate,
    /// Written in place, and its modification time put back.
    TouchBack,
}

const CHANGES: [Change; 4] = [Change::InPlace, Change::Rename, Change::Truncate, Change::TouchBack];

/// What a file of the tree is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct State {
    version: u32,
    len: u64,
}

fn pause(random: &mut fastrand::Rng, most_us: u64) {
    std::thread::sleep(Duration::from_micros(random.u64(..most_us)));
}

fn rewrite(path: &Path, next: State, random: &mut fastrand::Rng) -> File {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let bytes = content(next.version, next.len);
    for (index, piece) in bytes.chunks(bytes.len() / 8).enumerate() {
        file.write_all_at(piece, index as u64 * (bytes.len() / 8) as u64).unwrap();
        pause(random, 10_000);
    }
    file.set_len(next.len).unwrap();
    file
}

fn change(how: Change, path: &Path, aside: &Path, now: State, next: u32, random: &mut fastrand::Rng) -> State {
    let fresh = State { version: next, len: SIZE };
    match how {
        Change::InPlace => {
            rewrite(path, fresh, random);
            fresh
        }
        Change::Rename => {
            fs::write(aside, content(next, SIZE)).unwrap();
            // Mostly an old file, as an unpacked or copied one.
            if random.bool() {
                let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
                OpenOptions::new().write(true).open(aside).unwrap().set_modified(time).unwrap();
            }
            fs::rename(aside, path).unwrap();
            fresh
        }
        Change::Truncate => {
            let len = random.u64(PIECE..now.len) / 8 * 8;
            OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
            State { version: now.version, len }
        }
        Change::TouchBack => {
            let time = fs::metadata(path).unwrap().modified().unwrap();
            let same_size = State { version: next, len: now.len };
            rewrite(path, same_size, random).set_modified(time).unwrap();
            same_size
        }
    }
}

/// What opening a file now gives, by the beginning of its bytes.
fn begin(path: &Path) -> Option<State> {
    read_new(path, PIECE)
}

/// What opening and reading it to the end gives, if that is one version.
fn look(path: &Path) -> Option<State> {
    read_new(path, u64::MAX)
}

fn read_new(path: &Path, most: u64) -> Option<State> {
    let stale = |error: std::io::Error| {
        assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{}: {error}", path.display());
    };
    let file = File::open(path).map_err(stale).ok()?;
    let len = file.metadata().unwrap().len();
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).map_err(stale).ok()?;
    assert_eq!(bytes.len() as u64, len.min(most), "{}", path.display());
    let version = version_of(&bytes, 0).unwrap_or_else(|mixed| panic!("a new open shows a mixture: {mixed}"));
    Some(State { version, len })
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn versions_never_mix_and_new_opens_are_right_within_a_second() {
    let Some(lab) = Lab::timed(3, Link::unlimited()) else { return };
    let rounds = setting("ROUNDS").unwrap_or(ROUNDS as u64) as u32;
    let seed = setting("SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed} ROUNDS={rounds}");
    let (tree, aside) = (lab.scratch().join("tree"), lab.scratch().join("aside"));
    [&tree, &aside].iter().for_each(|dir| fs::create_dir(dir).unwrap());
    for file in 0..FILES {
        fs::write(tree.join(file.to_string()), content(file * 1_000 + 1, SIZE)).unwrap();
    }
    let _origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    let _mounts: Vec<_> = lab.nodes().iter().map(|host| swarm::mount(host, "images", &[])).collect();
    let took = Mutex::new(Vec::new());
    let stale = Mutex::new(0);
    std::thread::scope(|scope| {
        for file in 0..FILES {
            let (lab, took, stale, paths) = (&lab, &took, &stale, (tree.clone(), aside.clone()));
            let share = rounds / FILES + u32::from(file < rounds % FILES);
            scope.spawn(move || {
                let name = file.to_string();
                let mut random = fastrand::Rng::with_seed(seed ^ file as u64);
                let mut now = State { version: file * 1_000 + 1, len: SIZE };
                for round in 0..share {
                    let how = CHANGES[(round + file) as usize % 4];
                    let round = Round { lab, name: &name, how, next: file * 1_000 + round + 2 };
                    let (next, seen, lost) = round.run(&paths, now, &mut random);
                    now = next;
                    took.lock().unwrap().push((how, seen));
                    *stale.lock().unwrap() += lost;
                }
                for host in lab.nodes() {
                    assert_eq!(look(&host.path(MOUNT).join(&name)), Some(now));
                }
            });
        }
    });
    tell(&mut took.into_inner().unwrap(), stale.into_inner().unwrap());
}

fn tell(took: &mut [(Change, Duration)], stale: usize) {
    for how in CHANGES {
        let mut of_it: Vec<Duration> = took.iter().filter(|(other, _)| *other == how).map(|(_, took)| *took).collect();
        of_it.sort();
        let (Some(median), Some(last)) = (of_it.get(of_it.len() / 2), of_it.last()) else { continue };
        println!("{how:?}: seen after {median:.0?}, at the latest {last:.0?}, of {}", of_it.len());
        assert!(*median <= PROMISED, "{how:?} is seen after {median:?}");
    }
    println!("{stale} readers of versions that were written over lost them; the others had them from a node's memory");
}

struct Round<'a> {
    lab: &'a Lab,
    name: &'a str,
    how: Change,
    next: u32,
}

impl Round<'_> {
    /// Gives what the file is then, how long it took until new opens saw it, and how many readers lost theirs.
    fn run(&self, paths: &(PathBuf, PathBuf), now: State, random: &mut fastrand::Rng) -> (State, Duration, usize) {
        let nodes = self.lab.nodes();
        let on = |host: &Host| host.path(MOUNT).join(self.name);
        let (here, there) = (on(&nodes[0]), on(&nodes[1]));
        let mut readers = fastrand::Rng::with_seed(random.u64(..));
        let mapped = Mapped::start(if random.bool() { &here } else { &there }, now.version, random.u64(..));
        let open = OpenReader::start(&here, now.version, now.len);
        let half = HalfWay::start(&there, now.version, now.len);
        let (next, changed, outcomes) = std::thread::scope(|scope| {
            let reading = scope.spawn(move || {
                pause(&mut readers, 60_000);
                let first = mapped.finish();
                [first, half.finish(), open.finish(&mut readers)]
            });
            pause(random, 60_000);
            let next = change(self.how, &paths.0.join(self.name), &paths.1.join(self.name), now, self.next, random);
            let changed = Instant::now();
            (next, changed, reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        if self.how == Change::Rename {
            assert_eq!(outcomes, [Outcome::Whole; 3], "{} was replaced by rename", self.name);
        }
        let mut seen = Duration::ZERO;
        for path in [&here, &there] {
            let what = format!("{} shows {next:?} after {:?}", path.display(), self.how);
            wait_until(LATEST, &what, || (begin(path) == Some(next)).then_some(()));
            seen = seen.max(changed.elapsed());
        }
        (next, seen, outcomes.iter().filter(|outcome| **outcome == Outcome::Stale).count())
    }
}

/// So large and over so slow a link that most of it is still on the origin's disk when it is written over.
#[test]
fn readers_of_a_file_that_is_rewritten_in_place_are_told_so_and_see_nothing_of_the_new_one() {
    let Some(lab) = Lab::shared(3, Link::mbit(100)) else { return };
    let tree = lab.scratch().join("tree");
    fs::create_dir(&tree).unwrap();
    let (file, len) = (tree.join("large"), 128 * MIB);
    fs::write(&file, content(1, len)).unwrap();
    let _origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    let mounts: Vec<_> = lab.nodes().iter().map(|host| swarm::mount(host, "images", &[])).collect();
    let shown: Vec<PathBuf> = lab.nodes().iter().map(|host| host.path(MOUNT).join("large")).collect();
    let open = OpenReader::start(&shown[0], 1, len);
    let reading = HalfWay::start_at(&shown[1], 1, len, 2 * MIB);
    let writer = OpenOptions::new().write(true).open(&file).unwrap();
    writer.write_all_at(&content(2, len), 0).unwrap();
    drop(writer);
    assert_eq!(reading.finish(), Outcome::Stale);
    assert_eq!(open.finish(&mut fastrand::Rng::with_seed(1)), Outcome::Stale);
    let logs: String = mounts.iter().map(lab::Running::log).collect();
    assert!(logs.contains("rewritten in place"), "{logs}");
    for path in &shown {
        let next = State { version: 2, len };
        wait_until(LATEST, "a new open shows the new version", || (begin(path) == Some(next)).then_some(()));
    }
}

// ---- what disturbs nobody

#[test]
fn readers_finish_on_the_old_version_when_it_is_replaced_and_when_only_attributes_change() {
    let Some(lab) = Lab::shared(3, Link::unlimited()) else { return };
    let tree = lab.scratch().join("tree");
    fs::create_dir(&tree).unwrap();
    let (old, new) = (tree.join("image"), lab.scratch().join("new"));
    samples::random_file(&old, 96 * MIB, 1);
    samples::random_file(&new, 96 * MIB, 2);
    let (before, after) = (samples::digest_of(&old), samples::digest_of(&new));
    let _origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    // Less than the file, so that half of it is still to be fetched when it is replaced.
    let _mounts: Vec<_> = lab.nodes().iter().map(|host| swarm::mount(host, "images", &["-o", "cache=32M"])).collect();
    let mut readers: Vec<Slow> = (0..8).map(|index| Slow::start(&lab.nodes()[index % 2])).collect();
    let script = format!("chmod 600 {0}/image && cp -al {0} {0}/../links && mv {0}/../links {0}/links", tree.display());
    lab.origin().sh(LATEST, &script);
    readers[..4].iter_mut().for_each(|reader| reader.take(16 * MIB));
    fs::rename(&new, &old).unwrap();
    for reader in readers {
        assert_eq!(reader.finish(), before);
    }
    for host in lab.nodes() {
        wait_until(LATEST, "a new open shows the new version", || {
            (samples::digest_of(&host.path(MOUNT).join("image")) == after).then_some(())
        });
    }
}

/// A `dd` of the image that is read from no faster than it is asked for, half-way when it has started.
struct Slow {
    child: Child,
    out: ChildStdout,
    hash: blake3::Hasher,
}

impl Slow {
    fn start(host: &Host) -> Slow {
        let mut command = Command::new("dd");
        command.arg(format!("if={}/image", host.path(MOUNT).display())).args(["bs=64K", "status=none"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = child.stdout.take().unwrap();
        let mut slow = Slow { child, out, hash: blake3::Hasher::new() };
        slow.take(40 * MIB);
        slow
    }

    fn take(&mut self, count: u64) {
        std::io::copy(&mut (&mut self.out).take(count), &mut self.hash).unwrap();
    }

    fn finish(mut self) -> Digest {
        self.take(u64::MAX);
        assert!(self.child.wait().unwrap().success(), "dd failed after {} bytes", self.hash.count());
        Digest { len: self.hash.count(), hash: self.hash.finalize() }
    }
}

// ---- what is new

#[test]
fn a_copied_file_is_on_all_mounts_a_second_after_it_was_closed_and_not_before() {
    let Some(lab) = Lab::timed(4, Link::unlimited()) else { return };
    let tree = lab.scratch().join("tree");
    fs::create_dir_all(tree.join("d")).unwrap();
    let source = lab.scratch().join("source");
    fs::write(&source, content(1, 8 * MIB)).unwrap();
    let _origin = swarm::serve(lab.origin(), &tree, "images", &[]);
    let _mounts: Vec<_> = lab.nodes().iter().map(|host| swarm::mount(host, "images", &[])).collect();
    let shown = |name: &str| lab.nodes().iter().map(|host| host.path(MOUNT).join(name)).collect::<Vec<_>>();
    // Whoever looked before knows that it is not there.
    let mut took: Vec<Duration> = (0..7)
        .map(|index| {
            let name = format!("d/new {index}");
            assert!(shown(&name).iter().all(|path| !path.exists()));
            fs::copy(&source, tree.join(&name)).unwrap();
            let closed = Instant::now();
            for path in shown(&name) {
                wait_until(LATEST, "it is there", || path.exists().then_some(()));
                assert_eq!(begin(&path), Some(State { version: 1, len: 8 * MIB }));
            }
            let took = closed.elapsed();
            shown(&name).iter().for_each(|path| assert_eq!(look(path), begin(path)));
            took
        })
        .collect();
    took.sort();
    println!("seen and read on three mounts after {took:.0?}");
    assert!(took[took.len() / 2] <= PROMISED, "{took:?}");

    // One that is written slowly is not offered half, in a new directory either.
    fs::create_dir(tree.join("later")).unwrap();
    let mut slow = File::create(tree.join("later/slow")).unwrap();
    let bytes = content(9, 4 * MIB);
    for piece in bytes.chunks(bytes.len() / 2) {
        assert!(shown("later/slow").iter().all(|path| !path.exists()), "half of a file is offered");
        slow.write_all(piece).unwrap();
        // What came later is shown, so the other could have been.
        std::thread::sleep(Duration::from_millis(700));
        let marker = format!("marker {}", slow.metadata().unwrap().len());
        fs::write(tree.join(&marker), "").unwrap();
        for path in shown(&marker) {
            wait_until(LATEST, "the marker is there", || path.exists().then_some(()));
        }
    }
    assert!(shown("later/slow").iter().all(|path| !path.exists()), "a file that is open for writing is offered");
    drop(slow);
    for path in shown("later/slow") {
        wait_until(LATEST, "it is there", || path.exists().then_some(()));
        assert_eq!(look(&path), Some(State { version: 9, len: 4 * MIB }));
    }
}

#[test]
fn an_origin_that_may_watch_too_few_directories_says_so_and_finds_changes_by_itself() {
    let Some(lab) = Lab::shared(2, Link::unlimited()) else { return };
    let tree = lab.scratch().join("tree");
    for index in 0..20 {
        fs::create_dir_all(tree.join(format!("d{index}"))).unwrap();
    }
    let limited = "echo 5 > /proc/sys/user/max_inotify_watches; exec \"$@\"";
    let (program, dir) = (swarm::program(), tree.to_str().unwrap());
    let args = ["-Ur", "sh", "-ec", limited, "sh", program.to_str().unwrap(), "serve", dir, "--name", "images"];
    let origin = lab.origin().spawn("unshare", &args);
    wait_until(LATEST, "it is said", || origin.log().contains("raise that sysctl").then_some(()));
    let _mount = swarm::mount(lab.host(1), "images", &[]);
    fs::write(tree.join("d19/file"), content(1, PIECE)).unwrap();
    let path = lab.host(1).path(MOUNT).join("d19/file");
    wait_until(2 * LATEST, "the file is found", || path.exists().then_some(()));
    assert_eq!(origin.log().matches("raise that sysctl").count(), 1, "{}", origin.log());
}
