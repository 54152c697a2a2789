//! A node made of a directory on disk: requests really park, and are answered later, in disorder, from another thread.
//!
//! It forgets pages and chunks at random, so that whoever relies on finding again what was there a moment ago fails.
#![allow(dead_code)]

use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use swarmfs::cache::{Cache, Filling};
use swarmfs::catalogue::{Attributes, Built, Kind, Page, Row, Time, Xattr, build};
use swarmfs::chunk::{BLOCK, ChunkId, ObjectId, SEGMENT, SegmentId, segment_len};
use swarmfs::driver::{PageDone, ReadDone, ReadRange, ReaderId, Slices, Ticket, Unavailable, Wanted};
use swarmfs::fs::Supply;
use swarmfs::keys::OriginKey;
use swarmfs::wire::head::{PageHash, TreeHead};
use swarmfs::wire::header::SegmentHeader;

#[derive(Clone)]
pub struct DiskNode(Arc<Shared>);

struct Shared {
    dir: PathBuf,
    key: OriginKey,
    cache: Cache,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    random: fastrand::Rng,
    head: Arc<TreeHead>,
    pages: HashMap<PageHash, Arc<Page>>,
    objects: HashMap<ObjectId, PathBuf>,
    in_memory: HashMap<PageHash, Arc<Page>>,
    brought: HashSet<ObjectId>,
    parked: Vec<(Ticket, Parked)>,
    cancelled: Vec<Parked>,
    last: u64,
    cut_off: bool,
    stopped: bool,
    forgetful: bool,
    readers: Vec<ReaderId>,
    windows: HashMap<ReaderId, Vec<Wanted>>,
}

enum Parked {
    Page(PageHash, Option<Instant>, PageDone),
    Read(ReadRange, Option<Instant>, ReadDone),
}

impl DiskNode {
    pub fn new(dir: &Path, seed: u64) -> DiskNode {
        let key = OriginKey::from_seed(&[3; 32]);
        let (built, objects) = scan(dir);
        let state = State {
            random: fastrand::Rng::with_seed(seed),
            head: Arc::new(sign(&built, 1, &key)),
            pages: parse(&built),
            objects,
            in_memory: HashMap::new(),
            brought: HashSet::new(),
            parked: Vec::new(),
            cancelled: Vec::new(),
            last: 0,
            cut_off: false,
            stopped: false,
            forgetful: true,
            readers: Vec::new(),
            windows: HashMap::new(),
        };
        let shared = Shared {
            dir: dir.to_owned(),
            key,
            cache: Cache::default(),
            state: Mutex::new(state),
            changed: Condvar::new(),
        };
        let node = DiskNode(Arc::new(shared));
        let worker = node.clone();
        std::thread::spawn(move || worker.work());
        node
    }

    /// Looks at the directory again and announces what it is now. Pages of the old version can no longer be had.
    pub fn rescan(&self) {
        let (built, objects) = scan(&self.0.dir);
        let mut state = self.state();
        state.head = Arc::new(sign(&built, state.head.sequence + 1, &self.0.key));
        state.pages = parse(&built);
        state.in_memory.clear();
        state.objects = objects;
    }

    /// While cut off, nothing that lacks something is answered.
    pub fn cut_off(&self, cut_off: bool) {
        self.state().cut_off = cut_off;
        self.0.changed.notify_all();
    }

    /// Forgets everything that can be had again.
    pub fn forget(&self) {
        let mut state = self.state();
        state.in_memory.clear();
        for object in &state.brought {
            for index in 0..2 {
                self.0.cache.drop_chunk(ChunkId { object: *object, index });
            }
        }
    }

    /// Pages and chunks that were had stay.
    pub fn remember_all(&self) {
        self.state().forgetful = false;
    }

    pub fn stop(&self) {
        self.state().stopped = true;
        self.0.changed.notify_all();
    }

    /// Waits until so many requests are parked; false if that does not happen within ten seconds.
    pub fn wait_for_parked(&self, at_least: usize) -> bool {
        let (state, timeout) = self
            .0
            .changed
            .wait_timeout_while(self.state(), Duration::from_secs(10), |state| state.parked.len() < at_least)
            .unwrap();
        drop(state);
        !timeout.timed_out()
    }

    /// Waits until nothing is parked; false if that does not happen within ten seconds.
    pub fn wait_for_none_parked(&self) -> bool {
        let wait =
            self.0.changed.wait_timeout_while(self.state(), Duration::from_secs(10), |state| !state.parked.is_empty());
        !wait.unwrap().1.timed_out()
    }

    pub fn readers(&self) -> usize {
        self.state().readers.len()
    }

    /// The windows that readers have handed down.
    pub fn windows(&self) -> Vec<Vec<Wanted>> {
        self.state().windows.values().filter(|window| !window.is_empty()).cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    fn park(&self, parked: Parked) -> Ticket {
        let mut state = self.state();
        state.last += 1;
        let ticket = Ticket(state.last);
        state.parked.push((ticket, parked));
        self.0.changed.notify_all();
        ticket
    }

    fn work(&self) {
        loop {
            let next = {
                let mut state = self.state();
                loop {
                    if let Some(parked) = state.cancelled.pop() {
                        break Some((parked, true, false));
                    }
                    if state.stopped {
                        match state.parked.pop() {
                            Some((_, parked)) => break Some((parked, true, false)),
                            None => return,
                        }
                    }
                    let late = state
                        .parked
                        .iter()
                        .position(|(_, parked)| parked.deadline().is_some_and(|at| at <= Instant::now()));
                    if let Some(late) = late {
                        break Some((state.parked.remove(late).1, false, true));
                    }
                    if !state.cut_off && !state.parked.is_empty() {
                        let count = state.parked.len();
                        let index = state.random.usize(..count);
                        break Some((state.parked.remove(index).1, false, false));
                    }
                    // Deadlines are looked at again in time.
                    state = self.0.changed.wait_timeout(state, Duration::from_millis(20)).unwrap().0;
                }
            };
            let Some((parked, stopped, late)) = next else { return };
            self.0.changed.notify_all();
            match (parked, stopped, late) {
                (Parked::Page(_, _, done), true, _) => done(Err(Unavailable::Stopped)),
                (Parked::Read(_, _, done), true, _) => done(Err(Unavailable::Stopped)),
                (Parked::Page(_, _, done), _, true) => done(Err(Unavailable::TimedOut)),
                (Parked::Read(_, _, done), _, true) => done(Err(Unavailable::TimedOut)),
                (Parked::Page(hash, _, done), ..) => done(self.bring_page(hash)),
                (Parked::Read(range, _, done), ..) => done(self.bring(range)),
            }
        }
    }

    fn bring_page(&self, hash: PageHash) -> Result<Arc<Page>, Unavailable> {
        let mut state = self.state();
        let page = state.pages.get(&hash).cloned().ok_or(Unavailable::Gone)?;
        if state.forgetful && state.random.bool() {
            state.in_memory.clear();
        }
        // Sometimes it is gone before it can be found.
        if !state.forgetful || state.random.bool() {
            state.in_memory.insert(hash, page.clone());
        }
        Ok(page)
    }

    fn bring(&self, range: ReadRange) -> Result<Slices, Unavailable> {
        let (path, forget) = {
            let mut state = self.state();
            let forget = state.forgetful && state.random.u8(..4) == 0;
            state.brought.insert(range.object);
            (state.objects.get(&range.object).cloned().ok_or(Unavailable::Gone)?, forget)
        };
        let file = std::fs::File::open(&path).map_err(|_| Unavailable::Unreadable)?;
        let end = range.size.min(range.offset + range.len as u64);
        for index in (range.offset / SEGMENT as u64) as u32..end.div_ceil(SEGMENT as u64) as u32 {
            let id = SegmentId { object: range.object, index };
            let mut bytes = vec![0; segment_len(range.size, index) as usize];
            file.read_exact_at(&mut bytes, index as u64 * SEGMENT as u64).map_err(|_| Unavailable::Gone)?;
            let segment = self.0.cache.admit(SegmentHeader::sign(id, &bytes, &self.0.key), Filling::AtOnce);
            for (block, bytes) in bytes.chunks(BLOCK as usize).enumerate() {
                assert!(segment.fill(block as u32, bytes).unwrap(), "a file of the test changed unnoticed");
            }
        }
        let slices = self.slices(range).expect("it was brought just now");
        if forget {
            self.0.cache.drop_chunk(ChunkId { object: range.object, index: 0 });
        }
        Ok(slices)
    }

    fn slices(&self, range: ReadRange) -> Option<Slices> {
        let end = range.size.min(range.offset + range.len as u64);
        let mut slices = Slices::new();
        let mut at = range.offset;
        while at < end {
            let index = (at / SEGMENT as u64) as u32;
            let start = index as u64 * SEGMENT as u64;
            let until = end.min(start + SEGMENT as u64);
            let id = SegmentId { object: range.object, index };
            slices.push(self.0.cache.read(id, (at - start) as u32..(until - start) as u32)?);
            at = until;
        }
        Some(slices)
    }
}

impl Parked {
    fn deadline(&self) -> Option<Instant> {
        match self {
            Parked::Page(_, deadline, _) | Parked::Read(_, deadline, _) => *deadline,
        }
    }
}

impl Supply for DiskNode {
    fn head(&self) -> Arc<TreeHead> {
        self.state().head.clone()
    }

    fn page(&self, hash: &PageHash) -> Option<Arc<Page>> {
        self.state().in_memory.get(hash).cloned()
    }

    fn fetch_page(&self, hash: PageHash, deadline: Option<Instant>, done: PageDone) -> Ticket {
        self.park(Parked::Page(hash, deadline, done))
    }

    fn new_reader(&self) -> ReaderId {
        let mut state = self.state();
        state.last += 1;
        let reader = ReaderId(state.last);
        state.readers.push(reader);
        reader
    }

    fn read_now(&self, range: ReadRange) -> Option<Slices> {
        self.slices(range)
    }

    fn read(&self, range: ReadRange, deadline: Option<Instant>, done: ReadDone) -> Ticket {
        self.park(Parked::Read(range, deadline, done))
    }

    fn cancel(&self, ticket: Ticket) {
        let mut state = self.state();
        if let Some(index) = state.parked.iter().position(|(parked, _)| *parked == ticket) {
            let (_, parked) = state.parked.remove(index);
            state.cancelled.push(parked);
            self.0.changed.notify_all();
        }
    }

    fn set_window(&self, reader: ReaderId, window: Vec<Wanted>) {
        let mut state = self.state();
        assert!(state.readers.contains(&reader), "a reader that was closed hands down a window");
        assert!(window.len() <= 256, "{} entries", window.len());
        state.windows.insert(reader, window);
    }

    fn close_reader(&self, reader: ReaderId) {
        let mut state = self.state();
        let index = state.readers.iter().position(|open| *open == reader).expect("closed twice");
        state.readers.remove(index);
        state.windows.remove(&reader);
    }
}

fn sign(built: &Built, sequence: u64, key: &OriginKey) -> TreeHead {
    TreeHead::sign("tree".parse().unwrap(), sequence, built.root, built.root_level, built.totals, key)
}

fn parse(built: &Built) -> HashMap<PageHash, Arc<Page>> {
    built.pages.iter().map(|(hash, bytes)| (*hash, Arc::new(Page::parse(bytes.clone()).unwrap()))).collect()
}

fn scan(dir: &Path) -> (Built, HashMap<ObjectId, PathBuf>) {
    let mut rows = Vec::new();
    let mut objects = HashMap::new();
    let mut links = HashMap::new();
    rows.push(row(dir, b"", b"", &mut objects, &mut links));
    scan_directory(dir, b"", &mut rows, &mut objects, &mut links);
    (build(rows).unwrap(), objects)
}

type Links = HashMap<u64, ObjectId>;

fn scan_directory(
    path: &Path,
    dir: &[u8],
    rows: &mut Vec<Row>,
    objects: &mut HashMap<ObjectId, PathBuf>,
    links: &mut Links,
) {
    let mut names: Vec<_> = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let child = path.join(&name);
        let row = row(&child, dir, name.as_bytes(), objects, links);
        let below = row.path();
        let is_directory = *row.kind() == Kind::Directory;
        rows.push(row);
        if is_directory {
            scan_directory(&child, &below, rows, objects, links);
        }
    }
}

fn row(path: &Path, dir: &[u8], name: &[u8], objects: &mut HashMap<ObjectId, PathBuf>, links: &mut Links) -> Row {
    let stat = std::fs::symlink_metadata(path).unwrap();
    let kind = stat.file_type();
    let kind = if kind.is_file() {
        let mtime = stat.mtime() as i128 * 1_000_000_000 + stat.mtime_nsec() as i128;
        let full = if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() };
        let fresh = ObjectId::of_version(&full, stat.size(), mtime, 0);
        let object = *links.entry(stat.ino()).or_insert(fresh);
        objects.insert(object, path.to_owned());
        Kind::File { object }
    } else if kind.is_dir() {
        Kind::Directory
    } else if kind.is_symlink() {
        Kind::Symlink { target: std::fs::read_link(path).unwrap().as_os_str().as_bytes().into() }
    } else if kind.is_fifo() {
        Kind::Fifo
    } else if kind.is_socket() {
        Kind::Socket
    } else if kind.is_char_device() {
        Kind::CharDevice { rdev: stat.rdev() }
    } else {
        Kind::BlockDevice { rdev: stat.rdev() }
    };
    let attributes = Attributes {
        mode: (stat.mode() & 0o7777) as u16,
        uid: stat.uid(),
        gid: stat.gid(),
        mtime: Time { sec: stat.mtime(), nsec: stat.mtime_nsec() as u32 },
        size: stat.size(),
        blocks: stat.blocks(),
        nlink: stat.nlink() as u32,
    };
    Row::new(dir.to_vec(), name.to_vec(), kind, attributes, xattrs(path)).unwrap()
}

pub fn xattrs(path: &Path) -> Vec<Xattr> {
    let mut names = vec![0u8; 4096];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut found: Vec<Xattr> = names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0u8; 4096];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            Xattr { name: name.into(), value: value[..len].into() }
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}
