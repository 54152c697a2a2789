//! The tree on disk: listed by `lstat`, read, hashed and signed by segment as it is asked for, and remembered.
//!
//! A `Tree` is used from many threads, those on which waiting for a disk is fine. It opens nothing outside its root,
//! follows no link, and decides nothing about who gets what. The invariants: bytes are handed out only with a header
//! that certifies them; under one object id there is only ever one content; what was signed is remembered before it is
//! given out.
//!
//! A version of a file is its path, size, modification time and generation. Where size and modification time stay but
//! ctime moves, what was signed of it is read again before more is: if it differs, the version is withdrawn and the
//! file gets another generation.
//!
//! A tree that is followed (`Tree::follow`) is listed again as it changes: `watch` hears of changes from the kernel,
//! `changes` gathers them, `follow` is the thread that waits, `update` makes the next version of the listing.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustix::io::Errno;
use thiserror::Error;
use tracing::{debug, info, warn};

use crate::catalogue::{NotATree, Row, Time};
use crate::chunk::{BLOCK, ObjectId, SEGMENT, SegmentId, segment_len};
use crate::keys::{OriginKey, SIGNATURE};
pub use crate::state::{StateDir, StateError};
use crate::wire::head::{PageHash, TreeHead, TreeName};
use crate::wire::header::SegmentHeader;

mod changes;
mod follow;
mod headers;
mod held;
mod lease;
mod listing;
mod objects;
mod root;
mod state;
mod update;
mod watch;

pub use follow::Following;
pub use listing::{Report, Warning};

use follow::Asked;
use headers::{Headers, Version};
use held::{Held, HeldFiles};
use root::{Root, Stamp};
use state::TreeState;
use update::{Current, Snapshot};
use watch::Watch;

/// How long after its last change a file is left alone: whoever writes it may not be done, and within the granularity
/// of timestamps a further change would not show.
pub const SETTLE: Duration = Duration::from_millis(500);
/// The same where nobody has it open for writing: timestamps move every 10 ms at the least.
const CLOSED: Duration = Duration::from_millis(50);
/// How often a segment is read again because the file's ctime moved meanwhile.
const ATTEMPTS: usize = 3;

/// A tree that cannot be served.
#[derive(Debug, Error)]
pub enum OriginError {
    #[error("cannot serve {path}: {source}; give a directory that this user can list")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("cannot serve {path}: {source}")]
    Listing { path: PathBuf, source: NotATree },
    #[error(transparent)]
    State(#[from] StateError),
}

/// Why a segment is not handed out.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum SegmentError {
    /// This version is no longer to be had: rewritten in place, shrunk, or removed and not held open. What is at its
    /// path now has an id as soon as the tree was listed again (`Tree::rescan`).
    #[error("this version of the file is gone")]
    Gone,
    /// It is there and cannot be read; the log names the file.
    #[error("the file cannot be read")]
    Unreadable,
    /// No such object in the tree as it was last listed, or no such segment in the object.
    #[error("no such object")]
    Unknown,
    /// It changed a moment ago: ask again after that time.
    #[error("the file was written a moment ago")]
    Unsettled { ready_in: Duration },
}

/// What was done since the tree was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Work {
    /// Segments read from files, also again.
    pub read: u64,
    /// Segments hashed and signed for the first time.
    pub signed: u64,
}

/// A served directory.
pub struct Tree {
    name: TreeName,
    path: PathBuf,
    root: RwLock<Arc<Root>>,
    key: OriginKey,
    /// Locked while the tree is listed and its head made.
    state: Mutex<TreeState>,
    headers: Mutex<Headers>,
    current: RwLock<Current>,
    /// The ones before, the latest last: a reader in the middle of a listing still finds their pages.
    earlier: Mutex<VecDeque<Arc<Snapshot>>>,
    held: HeldFiles,
    /// Objects of the snapshot whose files turned out to have other bytes than were signed.
    withdrawn: Mutex<HashSet<ObjectId>>,
    watch: Watch,
    asked: Asked,
    complaints: Mutex<Complaints>,
    read: AtomicU64,
    signed: AtomicU64,
}

impl Tree {
    /// Signs what shows a peer that this is an origin of the tree.
    pub fn prove(&self, text: &[u8]) -> [u8; SIGNATURE] {
        self.key.sign(text)
    }

    /// Lists `dir` and makes its head. Reads no file's content.
    pub fn open(dir: &Path, name: TreeName, state: &StateDir, key: OriginKey) -> Result<Tree, OriginError> {
        let fail = |error: Errno| OriginError::Directory { path: dir.to_owned(), source: error.into() };
        let root = Root::open(dir).map_err(fail)?;
        root.directory(b"").map_err(fail)?;
        let state = TreeState::open(state, &name)?;
        let headers = Mutex::new(Headers::open(&state.headers_path(), key.public())?);
        let watch = Watch::new();
        watch.consider(root.descriptor());
        let asked = Asked::new();
        let known = update::Whole { root: &root, headers: &headers, watch: &watch, asked: &asked };
        let listing = update::list(dir, &root, &known)?;
        let current = Current::new(Snapshot::new(listing, &name, &state, &key)?);
        current.compact(&headers);
        Ok(Tree {
            name,
            path: dir.to_owned(),
            root: RwLock::new(Arc::new(root)),
            key,
            state: Mutex::new(state),
            headers,
            current: RwLock::new(current),
            earlier: Mutex::default(),
            held: HeldFiles::default(),
            withdrawn: Mutex::default(),
            watch,
            asked,
            complaints: Mutex::default(),
            read: AtomicU64::new(0),
            signed: AtomicU64::new(0),
        })
    }

    pub fn head(&self) -> TreeHead {
        self.snapshot().head.clone()
    }

    /// A page of the catalogue that the head names, or one of the last heads.
    pub fn page(&self, hash: &PageHash) -> Option<Bytes> {
        let page = self.snapshot().pages.get(hash).cloned();
        page.or_else(|| {
            let earlier = self.earlier.lock().expect("no holder of this lock panics");
            earlier.iter().rev().find_map(|snapshot| snapshot.pages.get(hash).cloned())
        })
    }

    /// What the last listing met.
    pub fn report(&self) -> Report {
        self.snapshot().report.clone()
    }

    pub fn work(&self) -> Work {
        Work { read: self.read.load(Ordering::Relaxed), signed: self.signed.load(Ordering::Relaxed) }
    }

    /// The first row that has the object; its `attributes().size` is the object's.
    pub fn object(&self, object: &ObjectId) -> Option<Row> {
        let current = self.current();
        let (snapshot, leaf) = (current.snapshot.clone(), current.objects.leaf(object)?);
        drop(current);
        snapshot.row_in(&leaf, object)
    }

    /// Reads a segment into `into`, which it empties first, and certifies it. Waits for the disk.
    pub fn segment(&self, id: SegmentId, into: &mut Vec<u8>) -> Result<SegmentHeader, SegmentError> {
        let result = self.try_segment(id, into);
        match result {
            // Its file is another one now, which only looking at it can show.
            Err(SegmentError::Gone) => self.object(&id.object).into_iter().for_each(|row| self.asked.path(row.path())),
            // Known to be another one already, if that was told.
            Err(SegmentError::Unknown) if self.watch.is_blind() => self.asked.everything(),
            _ => {}
        }
        result
    }

    fn try_segment(&self, id: SegmentId, into: &mut Vec<u8>) -> Result<SegmentHeader, SegmentError> {
        into.clear();
        if self.withdrawn.lock().expect("no holder of this lock panics").contains(&id.object) {
            return Err(SegmentError::Gone);
        }
        let held = self.hold(id.object)?;
        let len = segment_len(held.size, id.index);
        if len == 0 {
            return Err(SegmentError::Unknown);
        }
        into.resize(len as usize, 0);
        self.read_certified(&held, id, into, |into| self.read_segment(&held, id.index, into))
    }

    /// Takes what another origin with the same key signed: bytes read here must fit it. What was signed first stays.
    pub fn learn(&self, header: &SegmentHeader) {
        let mut headers = self.headers();
        if headers.header(header.segment()).is_none() {
            headers.set_header(header);
        }
    }

    /// Closes files that nobody asked for in ten minutes; to be called about once a minute.
    pub fn tidy(&self) {
        self.held.expire(Instant::now());
    }

    fn current(&self) -> std::sync::RwLockReadGuard<'_, Current> {
        self.current.read().expect("no holder of this lock panics")
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.current().snapshot.clone()
    }

    fn root(&self) -> Arc<Root> {
        self.root.read().expect("no holder of this lock panics").clone()
    }

    /// From now on another directory is served. Files that are held open stay what they are.
    fn replace_root(&self, root: Root) {
        self.watch.consider(root.descriptor());
        *self.root.write().expect("no holder of this lock panics") = Arc::new(root);
    }

    /// The object's open file: the one kept from before, or the one now at its path if that is still this version.
    fn hold(&self, object: ObjectId) -> Result<Arc<Held>, SegmentError> {
        if let Some(held) = self.held.get(&object, Instant::now()) {
            return Ok(held);
        }
        let row = self.object(&object).ok_or(SegmentError::Unknown)?;
        let held = Arc::new(self.open_version(&row, object)?);
        Ok(self.held.insert(held, Instant::now()))
    }

    /// The file at a row's path, if that is still this version.
    fn open_version(&self, row: &Row, object: ObjectId) -> Result<Held, SegmentError> {
        let (path, size, mtime) = (row.path(), row.attributes().size, row.attributes().mtime);
        let file = self.open_file(&path, object)?;
        let base = ObjectId::of_version(&path, size, mtime.as_ns(), 0);
        let inode = Stamp::of(&file).map_err(|error| self.unreadable(&path, object, error))?.inode;
        let held = Held { file, path, object, base, size, mtime, inode, confirmed: Mutex::new(None) };
        self.stamp(&held)?;
        Ok(held)
    }

    fn open_file(&self, path: &[u8], object: ObjectId) -> Result<File, SegmentError> {
        let root = self.root();
        let mut opened = root.file(path);
        if matches!(opened, Err(Errno::MFILE | Errno::NFILE)) && self.held.close_half() {
            opened = root.file(path);
        }
        opened.map_err(|error| match error {
            // Removed, or something in its place or on the way that is no file.
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::NODEV => {
                debug!(path = %path.escape_ascii(), %error, "a file of the tree is gone");
                SegmentError::Gone
            }
            error => self.unreadable(path, object, error),
        })
    }

    /// What identifies the open file now; `Gone` if that is another version.
    fn stamp(&self, held: &Held) -> Result<Stamp, SegmentError> {
        let stamp = Stamp::of(&held.file).map_err(|error| self.unreadable(&held.path, held.object, error))?;
        if stamp.regular && (stamp.size, stamp.mtime) == (held.size, held.mtime) {
            return Ok(stamp);
        }
        info!(path = %held.path.escape_ascii(), "a file was changed in place: readers of its old version are told");
        self.held.remove(&held.object);
        Err(SegmentError::Gone)
    }

    /// Has `read` fill `into` while the file stays what it is, and certifies that.
    fn read_certified(
        &self,
        held: &Held,
        id: SegmentId,
        into: &mut [u8],
        mut read: impl FnMut(&mut [u8]) -> Result<(), SegmentError>,
    ) -> Result<SegmentHeader, SegmentError> {
        for _ in 0..ATTEMPTS {
            let before = self.stamp(held)?;
            settled(&before, &held.file)?;
            self.confirm(held, before.ctime)?;
            read(into)?;
            // Looked at again after the bytes were read, so that they belong to what was identified.
            if self.stamp(held)?.ctime == before.ctime
                && let Some(header) = self.certify(held, id, into, before.ctime)?
            {
                return Ok(header);
            }
        }
        Err(SegmentError::Unsettled { ready_in: SETTLE })
    }

    /// Makes sure that what was signed of this object is what the file holds, if its ctime moved since.
    fn confirm(&self, held: &Held, ctime: Time) -> Result<(), SegmentError> {
        let mut confirmed = held.confirmed.lock().expect("no holder of this lock panics");
        if *confirmed == Some(ctime) {
            return Ok(());
        }
        let known = self.headers().version(&held.base);
        if let Some(version) = known {
            // A version that another of the same size and time has replaced is known by what was signed of it alone.
            let is_newest = held.is_of(version.generation);
            if !is_newest || version.ctime != ctime {
                self.recheck(held)?;
            }
            // Another file may have come into its place while its bytes were read.
            let mut headers = self.headers();
            if is_newest
                && version.ctime != ctime
                && headers.version(&held.base).is_some_and(|now| now.generation == version.generation)
            {
                headers.set_version(held.base, Version { ctime, ..version });
            }
        }
        *confirmed = Some(ctime);
        Ok(())
    }

    /// Reads again all that was signed of an object, and withdraws it unless that is what it was.
    fn recheck(&self, held: &Held) -> Result<(), SegmentError> {
        let (signed, lost) = {
            let headers = self.headers();
            (headers.signed(held.object), headers.lost())
        };
        if signed.is_empty() || lost {
            return Err(self.withdraw(held, "its attributes changed and its headers were lost"));
        }
        debug!(path = %held.path.escape_ascii(), segments = signed.len(), "attributes changed: content is read again");
        let mut bytes = Vec::with_capacity(SEGMENT as usize);
        for index in signed {
            let Some(header) = self.headers().header(SegmentId { object: held.object, index }) else {
                return Err(self.withdraw(held, "its attributes changed and its headers were lost"));
            };
            bytes.resize(segment_len(held.size, index) as usize, 0);
            self.read_segment(held, index, &mut bytes)?;
            if !certifies(&header, &bytes) {
                // Unless it is simply another version now.
                self.stamp(held)?;
                return Err(self.withdraw(held, "its content changed, its size and modification time did not"));
            }
        }
        Ok(())
    }

    fn read_segment(&self, held: &Held, index: u32, into: &mut [u8]) -> Result<(), SegmentError> {
        self.read.fetch_add(1, Ordering::Relaxed);
        root::read_at(&held.file, index as u64 * SEGMENT as u64, into)
            .map_err(|error| self.unreadable(&held.path, held.object, error))
    }

    /// The header of bytes that were just read: the one that was signed before if there is one, and then they must fit.
    /// None if something else was signed for this object since it was confirmed.
    fn certify(
        &self,
        held: &Held,
        id: SegmentId,
        bytes: &[u8],
        ctime: Time,
    ) -> Result<Option<SegmentHeader>, SegmentError> {
        let remembered = self.headers().header(id);
        let header = match remembered {
            Some(header) => header,
            None => {
                // Hashed without the lock; whoever signs this segment first meanwhile has the say.
                let fresh = SegmentHeader::sign(id, bytes, &self.key);
                let mut headers = self.headers();
                match (headers.header(id), headers.version(&held.base)) {
                    (Some(first), _) => first,
                    // Another file of this path, size and modification time was open too.
                    (None, Some(version)) if version.ctime != ctime && held.is_of(version.generation) => {
                        drop(headers);
                        *held.confirmed.lock().expect("no holder of this lock panics") = None;
                        return Ok(None);
                    }
                    (None, known) => {
                        if known.is_none() {
                            // An id of a later generation whose number was forgotten gets another one at the next
                            // listing.
                            let generation = if held.base == held.object { 0 } else { random_generation() };
                            headers.set_version(held.base, Version { generation, ctime });
                        }
                        headers.set_header(&fresh);
                        self.signed.fetch_add(1, Ordering::Relaxed);
                        return Ok(Some(fresh));
                    }
                }
            }
        };
        if certifies(&header, bytes) {
            return Ok(Some(header));
        }
        Err(self.withdraw(held, "its content is not what was signed, though its size and modification time are"))
    }

    /// From now on the file is another version: under this id two contents would mix.
    fn withdraw(&self, held: &Held, why: &str) -> SegmentError {
        warn!(path = %held.path.escape_ascii(), why, "a version is withdrawn: its readers must open the file again");
        let ctime = Stamp::of(&held.file).map_or(Time::default(), |stamp| stamp.ctime);
        let mut headers = self.headers();
        // Unless the file at its path is another version already.
        if headers.version(&held.base).is_none_or(|version| held.is_of(version.generation)) {
            headers.set_version(held.base, Version { generation: random_generation(), ctime });
        }
        drop(headers);
        self.withdrawn.lock().expect("no holder of this lock panics").insert(held.object);
        self.held.remove(&held.object);
        SegmentError::Gone
    }

    fn unreadable(&self, path: &[u8], object: ObjectId, error: Errno) -> SegmentError {
        let mut complaints = self.complaints.lock().expect("no holder of this lock panics");
        if complaints.is_due(object, Instant::now()) {
            warn!(path = %path.escape_ascii(), %error, "cannot read a file of the tree: its readers get an I/O error");
        }
        SegmentError::Unreadable
    }

    fn headers(&self) -> MutexGuard<'_, Headers> {
        self.headers.lock().expect("no holder of this lock panics")
    }
}

/// Which unreadable files the log named lately: each is named once a minute, not once a request.
#[derive(Default)]
struct Complaints(HashMap<ObjectId, Instant>);

impl Complaints {
    const EVERY: Duration = Duration::from_secs(60);
    const MAX: usize = 1024;

    fn is_due(&mut self, object: ObjectId, now: Instant) -> bool {
        if self.0.get(&object).is_some_and(|last| now.saturating_duration_since(*last) < Self::EVERY) {
            return false;
        }
        if self.0.len() >= Self::MAX {
            self.0.clear();
        }
        self.0.insert(object, now);
        true
    }
}

/// Whether all blocks are what the header says.
fn certifies(header: &SegmentHeader, bytes: &[u8]) -> bool {
    header.len() as usize == bytes.len()
        && bytes.chunks(BLOCK as usize).enumerate().all(|(index, block)| header.matches(index as u32, block))
}

/// Whether a file may be signed. A modification time ahead of the clock says nothing, so ctime stands in for it.
fn settled(stamp: &Stamp, file: &File) -> Result<(), SegmentError> {
    let now = wall_clock_ns() as i128;
    let changed = if stamp.mtime.as_ns() > now { stamp.ctime } else { stamp.mtime };
    let age = now - changed.as_ns();
    if !(0..SETTLE.as_nanos() as i128).contains(&age) {
        return Ok(());
    }
    let is_closed = lease::is_open_for_writing(file) == Some(false);
    let settle = if is_closed { CLOSED } else { SETTLE }.as_nanos() as i128;
    if age < settle {
        let ready_in = Duration::from_nanos((settle - age) as u64);
        return Err(SegmentError::Unsettled { ready_in });
    }
    Ok(())
}

/// Nanoseconds since 1970.
fn wall_clock_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn random_generation() -> u64 {
    let random = getrandom::u64().unwrap_or_else(|_| wall_clock_ns());
    random.max(1)
}

#[cfg(test)]
mod live_tests;
#[cfg(test)]
mod tests;
