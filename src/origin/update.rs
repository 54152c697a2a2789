//! The next version of a tree's listing: of all of it, or of what is known to have changed.
//!
//! Both give the same catalogue. Looking at what changed costs a look at that, and a few milliseconds for each million
//! of rows; whole trees are listed where it is not known what changed, and where a file with several names did, whose
//! other names nothing tells.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::{debug, info, warn};

use super::changes::{Batch, Depth};
use super::follow::Asked;
use super::headers::{Headers, Version};
use super::lease;
use super::listing::{Known, Report, Walk};
use super::objects::Objects;
use super::root::{Root, Stamp};
use super::state::TreeState;
use super::watch::Watch;
use super::{OriginError, Tree, random_generation, wall_clock_ns};
use crate::catalogue::{Builder, Built, Kind, NotATree, Page, Pages, Revision, Row, View, revise};
use crate::chunk::ObjectId;
use crate::keys::OriginKey;
use crate::wire::head::{PageHash, TreeHead, TreeName};

/// Warnings of one listing that go to the log; all are in the report.
const LOGGED: usize = 20;
/// A file written longer ago is listed though somebody may have it open: its closing is told, or comes to light.
const YOUNG: Duration = Duration::from_secs(10);
/// Listings before the last whose pages are kept: some seconds of a tree that changes all the time.
const EARLIER: usize = 16;

/// What a look at changes came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Update {
    /// There is a new head.
    pub changed: bool,
    /// All of the tree was listed for it.
    pub whole: bool,
}

/// The tree as it was last listed.
pub(super) struct Snapshot {
    pub head: TreeHead,
    pub pages: HashMap<PageHash, Bytes>,
    pub report: Report,
    /// Whether anything but a directory has more than one name.
    links: bool,
}

/// The newest snapshot, and where in it each object is named.
pub(super) struct Current {
    pub snapshot: Arc<Snapshot>,
    pub objects: Objects,
}

/// A tree as it was when it was walked.
pub(super) struct Listing {
    built: Built,
    report: Report,
    links: bool,
}

impl Pages for Snapshot {
    fn page(&self, hash: &PageHash) -> Option<Arc<Page>> {
        let bytes = self.pages.get(hash)?.clone();
        Some(Arc::new(Page::parse(bytes).expect("pages built here are pages")))
    }
}

impl Snapshot {
    /// Makes the head, saved before anyone hears of it. An unchanged tree keeps the head that it had.
    pub fn new(listing: Listing, name: &TreeName, state: &TreeState, key: &OriginKey) -> Result<Snapshot, OriginError> {
        let Listing { built, report, links } = listing;
        let sequence = match state.last_head() {
            Some((sequence, root)) if root == built.root => sequence,
            last => {
                let next = last.map_or(0, |(sequence, _)| sequence.saturating_add(1)).max(wall_clock_ns());
                state.save_head(next, &built.root)?;
                next
            }
        };
        let head = TreeHead::sign(name.clone(), sequence, built.root, built.root_level, built.totals, key);
        Ok(Snapshot { head, pages: built.pages, report, links })
    }

    /// The first row of a leaf that names an object.
    pub fn row_in(&self, leaf: &PageHash, object: &ObjectId) -> Option<Row> {
        self.page(leaf)?.row_of(object)
    }

    /// The row of a path.
    fn row(&self, path: &[u8]) -> Option<Row> {
        let (dir, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        let view = View::new(self.head.root, self.head.root_level);
        view.row(self, dir, name).expect("a catalogue built here is whole").map(|entry| entry.row)
    }
}

impl Current {
    pub fn new(snapshot: Snapshot) -> Current {
        let mut objects = Objects::default();
        objects.follow(&HashMap::new(), snapshot.head.root, &snapshot.pages);
        Current { snapshot: Arc::new(snapshot), objects }
    }

    /// Forgets headers of what is no longer in the tree, if that is worth it.
    pub fn compact(&self, headers: &Mutex<Headers>) {
        headers.lock().expect("no holder of this lock panics").compact(|object| self.objects.contains(object));
    }
}

/// What the first walk of a tree knows.
pub(super) struct Whole<'a> {
    pub root: &'a Root,
    pub headers: &'a Mutex<Headers>,
    pub watch: &'a Watch,
    pub asked: &'a Asked,
}

impl Known for Whole<'_> {
    fn generation(&self, base: &ObjectId) -> u64 {
        let headers = self.headers.lock().expect("no holder of this lock panics");
        headers.version(base).map_or(0, |version| version.generation)
    }

    fn entering(&self, path: &Arc<[u8]>, dir: BorrowedFd) {
        self.watch.add(path, dir);
    }

    fn standing(&self, path: &[u8], age: Duration) -> Option<Option<Row>> {
        self.is_open_for_writing(path, age).then_some(None)
    }

    fn is_over(&self) -> bool {
        self.asked.is_over()
    }
}

impl Whole<'_> {
    /// Whether a file, whose writing nobody may have told of, is being written.
    fn is_open_for_writing(&self, path: &[u8], age: Duration) -> bool {
        age < YOUNG && self.root.file(path).is_ok_and(|file| lease::is_open_for_writing(&file) == Some(true))
    }
}

/// What a later one knows, too.
struct Again<'a> {
    whole: Whole<'a>,
    before: &'a Snapshot,
    written: &'a dyn Fn(&[u8]) -> bool,
}

impl Known for Again<'_> {
    fn generation(&self, base: &ObjectId) -> u64 {
        self.whole.generation(base)
    }

    fn entering(&self, path: &Arc<[u8]>, dir: BorrowedFd) {
        self.whole.entering(path, dir);
    }

    fn standing(&self, path: &[u8], age: Duration) -> Option<Option<Row>> {
        let written = (self.written)(path) || self.whole.is_open_for_writing(path, age);
        written.then(|| self.before.row(path))
    }

    fn is_over(&self) -> bool {
        self.whole.is_over()
    }
}

/// Walks all of a tree.
pub(super) fn list(dir: &Path, root: &Root, known: &impl Known) -> Result<Listing, OriginError> {
    let start = Instant::now();
    let fail = |source: NotATree| OriginError::Listing { path: dir.to_owned(), source };
    let mut builder = Builder::default();
    let mut walk = Walk::new(root, known);
    walk.tree(&mut |row| builder.push(&row)).map_err(fail)?;
    let (links, report) = (walk.met_links(), walk.finish());
    let built = builder.finish().map_err(fail)?;
    tell(&report);
    info!(rows = built.totals.rows, bytes = built.totals.bytes, took = ?start.elapsed(), "the tree is listed");
    Ok(Listing { built, report, links })
}

fn tell(report: &Report) {
    for warning in report.warnings.iter().take(LOGGED) {
        warn!(path = %warning.path.escape_ascii(), "cannot list all of the tree: {}", warning.why);
    }
    if report.warned > LOGGED as u64 {
        warn!(more = report.warned - LOGGED as u64, "cannot list all of the tree: more of the same");
    }
}

impl Tree {
    /// Lists the whole tree again; true if it changed, and with it the head. Objects of the old head that are held open
    /// can still be had.
    pub fn rescan(&self) -> Result<bool, OriginError> {
        let everything = Batch { everything: true, ..Batch::default() };
        self.update(&everything, &|_| false).map(|update| update.changed)
    }

    /// Looks at what changed. Files that are `written` now stay as they were listed.
    pub(super) fn update(&self, batch: &Batch, written: &dyn Fn(&[u8]) -> bool) -> Result<Update, OriginError> {
        let state = self.state.lock().expect("no holder of this lock panics");
        let before = self.snapshot();
        let root = self.root();
        let whole = Whole { root: &root, headers: &self.headers, watch: &self.watch, asked: &self.asked };
        let known = Again { whole, before: &before, written };
        let revised = if batch.everything { None } else { self.revised(&root, &known, &batch.paths)? };
        let whole = revised.is_none();
        let listing = match revised {
            Some(listing) => listing,
            None => list(&self.path, &root, &known)?,
        };
        // A walk that was broken off is no listing.
        let changed = listing.built.root != before.head.root && !self.asked.is_over();
        if changed {
            let snapshot = Snapshot::new(listing, &self.name, &state, &self.key)?;
            self.show(before, snapshot, whole);
        }
        Ok(Update { changed, whole })
    }

    /// From now on the tree is what this snapshot says.
    fn show(&self, before: Arc<Snapshot>, snapshot: Snapshot, whole: bool) {
        let mut current = self.current.write().expect("no holder of this lock panics");
        current.objects.follow(&before.pages, snapshot.head.root, &snapshot.pages);
        current.snapshot = Arc::new(snapshot);
        // What the tree no longer names is Unknown from now on, and need not be marked.
        let mut withdrawn = self.withdrawn.lock().expect("no holder of this lock panics");
        withdrawn.retain(|object| current.objects.contains(object));
        drop(withdrawn);
        drop(current);
        if whole {
            self.current().compact(&self.headers);
        }
        let mut earlier = self.earlier.lock().expect("no holder of this lock panics");
        earlier.push_back(before);
        while earlier.len() > EARLIER {
            earlier.pop_front();
        }
    }

    /// The listing with some paths looked at again; none if all must be.
    fn revised(
        &self,
        root: &Root,
        known: &Again,
        paths: &BTreeMap<Vec<u8>, Depth>,
    ) -> Result<Option<Listing>, OriginError> {
        let start = Instant::now();
        let fail = |source: NotATree| OriginError::Listing { path: self.path.clone(), source };
        let before = known.before;
        let mut walk = Walk::new(root, known);
        let mut revision = Revision::default();
        for (path, depth) in paths {
            if is_below(path, &revision) || !is_in_tree(path, before) {
                continue;
            }
            let old = before.row(path);
            let mut fresh = walk.name(path).map_err(fail)?;
            let is_content = *depth >= Depth::Content || object(&old) != object(&fresh);
            if is_content && let Some(row) = &fresh {
                self.identify(row);
                fresh = walk.name(path).map_err(fail)?;
            }
            if has_names(&old) || has_names(&fresh) {
                if old == fresh || same_but_object(&old, &fresh) {
                    continue;
                }
                return Ok(None);
            }
            let (was_dir, is_dir) = (is_directory(&old), is_directory(&fresh));
            let deep = *depth == Depth::Tree && (was_dir || is_dir) || was_dir != is_dir;
            if deep && was_dir && before.links {
                return Ok(None);
            }
            if deep {
                revision.subtrees.insert(path.clone());
            } else if old == fresh {
                continue;
            }
            revision.names.insert(path.clone());
            revision.rows.extend(fresh);
            if deep && is_dir {
                let rows = &mut revision.rows;
                walk.subtree(path, &mut |row| {
                    // Of the root its own row is here already.
                    if !(path.is_empty() && row.name().is_empty()) {
                        rows.push(row);
                    }
                    Ok(())
                })
                .map_err(fail)?;
            }
        }
        // What was met of them by name alone is as it was.
        if revision.rows.iter().any(is_linked) {
            return Ok(None);
        }
        let report = walk.finish();
        tell(&report);
        let (names, rows) = (revision.names.len(), revision.rows.len());
        let built = revise(before.head.root, &before.pages, revision).map_err(fail)?;
        debug!(looked_at = paths.len(), names, rows, took = ?start.elapsed(), "what changed was listed");
        // What could not be listed at first is told of as long as the whole was not listed again.
        let report = before.report.clone().and(report);
        Ok(Some(Listing { built, report, links: before.links }))
    }

    /// A file may have been written, or another one put in its place, with the size and time of a version that was signed
    /// before: then it gets another generation now, lest nodes that hold the one before show that.
    fn identify(&self, row: &Row) {
        let Some(object) = row.object() else { return };
        let attributes = row.attributes();
        let base = ObjectId::of_version(&row.path(), attributes.size, attributes.mtime.as_ns(), 0);
        if self.headers().version(&base).is_none() {
            return;
        }
        // Whatever is wrong with it now, its readers will meet.
        let Ok(found) = self.open_version(row, object) else { return };
        let Ok(stamp) = Stamp::of(&found.file) else { return };
        match self.held.peek(&object) {
            // The one before has readers, and is served to its end.
            Some(held) if held.inode != found.inode => {
                let version = Version { generation: random_generation(), ctime: stamp.ctime };
                self.headers().set_version(base, version);
            }
            Some(held) => drop(self.confirm(&held, stamp.ctime)),
            None => drop(self.confirm(&found, stamp.ctime)),
        }
    }
}

fn is_below(path: &[u8], revision: &Revision) -> bool {
    let whole = revision.subtrees.contains(&b""[..]) && !path.is_empty();
    whole || path.iter().enumerate().any(|(at, byte)| *byte == b'/' && revision.subtrees.contains(&path[..at]))
}

/// Whether a path lies in a directory that is listed.
fn is_in_tree(path: &[u8], snapshot: &Snapshot) -> bool {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => is_directory(&snapshot.row(&path[..slash])),
        None => true,
    }
}

fn object(row: &Option<Row>) -> Option<ObjectId> {
    row.as_ref().and_then(Row::object)
}

fn is_directory(row: &Option<Row>) -> bool {
    row.as_ref().is_some_and(|row| *row.kind() == Kind::Directory)
}

/// Whether a row is of something with several names: a regular file, mostly, but a symbolic link can have them, too.
fn has_names(row: &Option<Row>) -> bool {
    row.as_ref().is_some_and(is_linked)
}

fn is_linked(row: &Row) -> bool {
    *row.kind() != Kind::Directory && row.attributes().nlink > 1
}

/// Whether both are of one regular file whose attributes did not change; its object is that of its first name.
fn same_but_object(old: &Option<Row>, fresh: &Option<Row>) -> bool {
    let (Some(old), Some(fresh)) = (old, fresh) else { return false };
    let files = old.object().is_some() && fresh.object().is_some();
    files && old.attributes() == fresh.attributes() && old.xattrs() == fresh.xattrs()
}
