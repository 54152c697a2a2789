//! The tree as a filesystem, without FUSE's types: numbers and names in, rows and bytes out.
//!
//! The calling contract: an operation that can need the network takes a `Call` and a closure, and calls the closure
//! exactly once, at once if everything is in memory, else later from the thread that brought what was lacking. None
//! ever waits. What the inode table knows (attributes, links, extended attributes, totals) is answered by plain
//! functions. It knows neither errno nor threads.
//!
//! The invariant: what is read through one inode number is one version of one file. A newer head changes what names
//! lead to, never what a number stands for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::catalogue::{Entry, Kind, Page, View};
use crate::driver::{Client, PageDone, ReadDone, ReadRange, ReaderId, Slices, Ticket, Unavailable, Wanted};
use crate::wire::head::{PageHash, Totals, TreeHead};

mod call;
mod directories;
mod files;
mod inodes;
mod late;
mod look;
mod readahead;

pub use call::Call;
pub(crate) use call::Calls;
pub use directories::{BATCH, Batch};
pub use files::Handle;
pub(crate) use files::{Place as FilePlace, window};
pub use inodes::{Inode, ROOT};
pub use late::{Late, LateFs};
pub(crate) use look::{Held, look};
pub use look::{MAX_LINKS, resolve};
pub use readahead::{AHEAD, Advice, Readahead};

/// What a filesystem needs of a running node: the part of `driver::Client` that reads. The contract is that one's;
/// closures may be called on any thread, but never within the call that they were handed to.
pub trait Supply: Send + Sync + 'static {
    fn head(&self) -> Arc<TreeHead>;
    fn page(&self, hash: &PageHash) -> Option<Arc<Page>>;
    fn fetch_page(&self, hash: PageHash, deadline: Option<Instant>, done: PageDone) -> Ticket;
    fn new_reader(&self) -> ReaderId;
    fn read_now(&self, range: ReadRange) -> Option<Slices>;
    fn read(&self, range: ReadRange, deadline: Option<Instant>, done: ReadDone) -> Ticket;
    fn cancel(&self, ticket: Ticket);
    fn set_window(&self, reader: ReaderId, window: Vec<Wanted>);
    fn close_reader(&self, reader: ReaderId);

    /// Whether names that are not in the catalogue may exist all the same.
    fn seeks(&self) -> bool {
        false
    }

    /// Looks elsewhere for a path that is not in the catalogue, and calls `done` when it is or will not be there.
    fn seek(&self, path: Vec<u8>, deadline: Option<Instant>, done: SeekDone) -> Ticket {
        let _ = (path, deadline, done);
        unreachable!("only a supply that seeks is asked to")
    }
}

/// True if the catalogue has the path now.
pub type SeekDone = Box<dyn FnOnce(Result<bool, Unavailable>) + Send>;
type LookedUp = Box<dyn FnOnce(Result<(u64, Arc<Entry>), Error>) + Send>;

impl Supply for Client {
    fn head(&self) -> Arc<TreeHead> {
        Client::head(self)
    }

    fn page(&self, hash: &PageHash) -> Option<Arc<Page>> {
        Client::page(self, hash)
    }

    fn fetch_page(&self, hash: PageHash, deadline: Option<Instant>, done: PageDone) -> Ticket {
        Client::fetch_page(self, hash, deadline, done)
    }

    fn new_reader(&self) -> ReaderId {
        Client::new_reader(self)
    }

    fn read_now(&self, range: ReadRange) -> Option<Slices> {
        Client::read_now(self, range)
    }

    fn read(&self, range: ReadRange, deadline: Option<Instant>, done: ReadDone) -> Ticket {
        Client::read(self, range, deadline, done)
    }

    fn cancel(&self, ticket: Ticket) {
        Client::cancel(self, ticket)
    }

    fn set_window(&self, reader: ReaderId, window: Vec<Wanted>) {
        Client::set_window(self, reader, window)
    }

    fn close_reader(&self, reader: ReaderId) {
        Client::close_reader(self, reader)
    }
}

/// Why a request is answered without what it asked for.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    #[error("no such name")]
    NotFound,
    /// Where there is no catalogue to say that there is none.
    #[error("nobody answered for this name")]
    Unanswered,
    #[error("not a directory")]
    NotADirectory,
    #[error("not a regular file")]
    NotAFile,
    #[error("not a symbolic link")]
    NotALink,
    #[error("too many levels of symbolic links")]
    Loop,
    #[error("a name of more than 255 bytes")]
    NameTooLong,
    #[error("no such extended attribute")]
    NoAttribute,
    #[error("offset beyond the end")]
    BeyondEnd,
    #[error("no open file has this handle")]
    BadHandle,
    /// The number is not known, or the version that it stands for is no longer the newest, or no longer to be had.
    #[error("this version is gone")]
    Stale,
    #[error("the origin cannot read it")]
    Unreadable,
    #[error("nobody answered in time")]
    TimedOut,
    #[error("the catalogue contradicts itself")]
    Malformed,
    /// Two files have the same inode number.
    #[error("inode numbers collide")]
    Collision,
    /// Who asked was killed meanwhile.
    #[error("interrupted")]
    Interrupted,
    #[error("the filesystem has ended")]
    Ended,
}

impl From<Unavailable> for Error {
    fn from(reason: Unavailable) -> Error {
        match reason {
            Unavailable::Gone => Error::Stale,
            Unavailable::Unreadable => Error::Unreadable,
            Unavailable::TimedOut => Error::TimedOut,
            Unavailable::Stopped => Error::Ended,
        }
    }
}

/// How a mounted tree behaves.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// Path of the directory that is shown as the root, without a leading '/'; empty for the whole tree.
    pub root: Vec<u8>,
    /// How long a request may wait for the network (`soft,timeo=`). Without it, for ever (`hard`): an origin that
    /// reboots does not fail its readers.
    pub patience: Option<Duration>,
}

/// One tree, as one mount shows it.
pub struct Fs<S: Supply> {
    supply: Arc<S>,
    settings: Settings,
    inodes: inodes::Inodes,
    calls: Arc<call::Calls>,
    /// The newest version of the tree that this filesystem has taken note of.
    newest: RwLock<Version>,
    /// The number of the version that names were last looked up again for.
    told: AtomicU64,
    open: RwLock<HashMap<u64, Arc<files::File<S>>>>,
    listings: RwLock<HashMap<u64, directories::Listing>>,
    next_handle: AtomicU64,
    trail: Mutex<files::Trail<S>>,
}

/// A version of the tree, numbered in the order in which this filesystem has seen them. A head with another sequence
/// and the same root is the same version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Version {
    number: u64,
    root: PageHash,
    view: View,
}

impl<S: Supply> Fs<S> {
    /// Looks the root up and calls `done` with the filesystem.
    pub fn start(supply: S, settings: Settings, done: impl FnOnce(Result<Arc<Fs<S>>, Error>) + Send + 'static) {
        let supply = Arc::new(supply);
        let head = supply.head();
        let version = Version { number: 1, root: head.root, view: View::new(head.root, head.root_level) };
        let calls = Arc::new(call::Calls::default());
        let call = calls.begin(0, settings.patience);
        let (dir, name) = look::split(&settings.root);
        let (dir, name) = (dir.to_vec(), name.to_vec());
        let look = move |view: &View, pages: &look::Held<S>| view.row(pages, &dir, &name);
        let shared = supply.clone();
        look::look(shared, call, version.view, look, move |found| {
            done(found.and_then(|entry| {
                let root = entry.ok_or(Error::NotFound)?;
                if *root.row.kind() != Kind::Directory {
                    return Err(Error::NotADirectory);
                }
                Ok(Arc::new(Fs {
                    supply,
                    settings,
                    inodes: inodes::Inodes::new(root, version.number),
                    calls,
                    newest: RwLock::new(version),
                    told: AtomicU64::new(version.number),
                    open: RwLock::default(),
                    listings: RwLock::default(),
                    next_handle: AtomicU64::new(1),
                    trail: Mutex::default(),
                }))
            }));
        });
    }

    /// A request of a thread that may be killed while it waits; 0 if its thread is not to be looked at. It waits as
    /// the settings say, and no longer than `limit`.
    pub fn call(&self, thread: u32, limit: Option<Duration>) -> Arc<Call> {
        let patience = match (self.settings.patience, limit) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        self.calls.begin(thread, patience)
    }

    /// Looks a name up in a directory and counts the look-up. `.` and `..` are understood for numbers that are known.
    pub fn lookup(
        self: &Arc<Self>,
        call: Arc<Call>,
        parent: u64,
        name: &[u8],
        done: impl FnOnce(Result<(u64, Arc<Entry>), Error>) + Send + 'static,
    ) {
        self.look_up(call, parent, name, self.supply.seeks(), Box::new(done));
    }

    fn look_up(self: &Arc<Self>, call: Arc<Call>, parent: u64, name: &[u8], seeks: bool, done: LookedUp) {
        let (dir, name) = match self.place_of(parent, name) {
            Ok(Place::Known(entry)) => return done(self.remember(&entry, 0).map(|number| (number, entry))),
            Ok(Place::Look { dir, name }) => (dir, name),
            Err(error) => return done(Err(error)),
        };
        let (fs, resumed) = (self.clone(), call.clone());
        let (of, wanted) = (dir.clone(), name.clone());
        self.look_newest(
            call,
            move |view, pages| view.row(pages, &of, &wanted),
            move |found, version| match found {
                Ok(None) if seeks => fs.seek(resumed, parent, &dir, name, done),
                found => done(found.and_then(|entry| {
                    let entry = Arc::new(entry.ok_or(Error::NotFound)?);
                    let number = fs.inodes.remember(&entry, version).map_err(|_| Error::Collision)?;
                    Ok((number, entry))
                })),
            },
        );
    }

    /// Looks a name up that the catalogue lacks so far.
    fn seek(self: &Arc<Self>, call: Arc<Call>, parent: u64, dir: &[u8], name: Vec<u8>, done: LookedUp) {
        let path = if dir.is_empty() { name.clone() } else { [dir, b"/", &name[..]].concat() };
        let (fs, resumed) = (self.clone(), call.clone());
        let sought = move |found| match found {
            Ok(true) => fs.look_up(resumed, parent, &name, false, done),
            Ok(false) => done(Err(Error::Unanswered)),
            Err(reason) => done(Err(resumed.given_up().unwrap_or_else(|| Error::from(reason)))),
        };
        call.park(&*self.supply, |deadline| self.supply.seek(path, deadline, Box::new(sought)));
    }

    /// Counts a look-up of an entry of a listing of this version (`Batch::version`), and gives its number.
    pub fn remember(&self, entry: &Arc<Entry>, version: u64) -> Result<u64, Error> {
        self.inodes.remember(entry, version).map_err(|_| Error::Collision)
    }

    /// The number that an entry has or would have.
    pub fn number(&self, entry: &Entry) -> u64 {
        self.inodes.number(&entry.row)
    }

    pub fn forget(&self, number: u64, lookups: u64) {
        self.inodes.forget(number, lookups);
    }

    /// How many numbers are known.
    pub fn inodes(&self) -> usize {
        self.inodes.len()
    }

    /// The row behind a number.
    pub fn entry(&self, number: u64) -> Result<Arc<Entry>, Error> {
        if self.calls.has_ended() {
            return Err(Error::Ended);
        }
        self.inodes.get(number).map(|inode| inode.entry).ok_or(Error::Stale)
    }

    /// Where a symbolic link leads, to the letter.
    pub fn target(&self, number: u64) -> Result<Vec<u8>, Error> {
        match self.entry(number)?.row.kind() {
            Kind::Symlink { target } => Ok(target.to_vec()),
            _ => Err(Error::NotALink),
        }
    }

    pub fn xattr(&self, number: u64, name: &[u8]) -> Result<Vec<u8>, Error> {
        let entry = self.entry(number)?;
        let found = entry.row.xattrs().iter().find(|xattr| &*xattr.name == name);
        found.map(|xattr| xattr.value.to_vec()).ok_or(Error::NoAttribute)
    }

    /// The names of all extended attributes, each with a NUL after it.
    pub fn xattrs(&self, number: u64) -> Result<Vec<u8>, Error> {
        let entry = self.entry(number)?;
        Ok(entry.row.xattrs().iter().flat_map(|xattr| xattr.name.iter().copied().chain([0])).collect())
    }

    /// What the newest head says that the tree adds up to.
    pub fn totals(&self) -> Totals {
        self.supply.head().totals
    }

    /// Requests that have waited so long.
    pub fn waiting_for(&self, at_least: Duration) -> Vec<Arc<Call>> {
        self.calls.waiting_for(at_least)
    }

    /// Answers a request with `Error::Interrupted` unless it is answered already.
    pub fn interrupt(&self, call: &Call) {
        call.give_up(&*self.supply, Error::Interrupted);
    }

    /// Answers all requests that wait, and all to come, with `Error::Ended`.
    pub fn end(&self) {
        self.calls.end();
        for call in self.calls.waiting_for(Duration::ZERO) {
            call.give_up(&*self.supply, Error::Ended);
        }
        self.trail.lock().expect("no holder of this lock panics").clear();
    }

    /// To be called a few times a second: takes note of a newer version of the tree, and lets go of streams that
    /// nobody went on with. True if there is a newer version, so that names must be looked up again.
    pub fn tick(self: &Arc<Self>) -> bool {
        self.trail.lock().expect("no holder of this lock panics").expire(Instant::now());
        // Whoever looked something up meanwhile has taken note of it already, and told nobody.
        let newest = self.newest().number;
        let changed = self.told.swap(newest, Ordering::Relaxed) != newest;
        if changed {
            let (dir, name) = look::split(&self.settings.root);
            let (dir, name) = (dir.to_vec(), name.to_vec());
            let fs = self.clone();
            let call = self.call(0, None);
            self.look_newest(
                call,
                move |view, pages| view.row(pages, &dir, &name),
                move |found, version| match found {
                    Ok(Some(entry)) => fs.inodes.renew(&Arc::new(entry), version),
                    // The old one stays: a directory that is gone lists nothing, and may come back.
                    other => {
                        tracing::warn!(?other, "the directory that is mounted is not in the tree's newest version")
                    }
                },
            );
        }
        changed
    }

    /// The newest version, after taking note of the newest head.
    fn newest(&self) -> Version {
        let known = *self.newest.read().expect("no holder of this lock panics");
        let head = self.supply.head();
        if head.root == known.root {
            return known;
        }
        let mut newest = self.newest.write().expect("no holder of this lock panics");
        if head.root != newest.root {
            let view = View::new(head.root, head.root_level);
            *newest = Version { number: newest.number + 1, root: head.root, view };
        }
        *newest
    }

    fn place_of(&self, parent: u64, name: &[u8]) -> Result<Place, Error> {
        let entry = self.entry(parent)?;
        if name == b"." {
            return Ok(Place::Known(entry));
        }
        if *entry.row.kind() != Kind::Directory {
            return Err(Error::NotADirectory);
        }
        if name == b".." {
            if parent == ROOT {
                return Ok(Place::Known(entry));
            }
            let (dir, name) = look::split(entry.row.dir());
            return Ok(Place::Look { dir: dir.to_vec(), name: name.to_vec() });
        }
        if name.len() > crate::catalogue::MAX_NAME {
            return Err(Error::NameTooLong);
        }
        Ok(Place::Look { dir: entry.row.path(), name: name.to_vec() })
    }

    fn handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }
}

enum Place {
    Known(Arc<Entry>),
    Look { dir: Vec<u8>, name: Vec<u8> },
}
