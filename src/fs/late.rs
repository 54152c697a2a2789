//! A tree that is shown before anybody with it was found.
//!
//! Until then there is a head that no origin signed, of a catalogue that holds the mounted directory's own row and nothing
//! else. `Fs::start` sees its pages, and after that nobody does: a look-up waits for them as it waits for any page, and is
//! cancelled, interrupted and timed out as any. When the real supply comes they are gone, as those of a version that was
//! replaced, and the look-up is done anew in the real tree. What is asked of the mount without its names (`statfs`,
//! attributes of its root) is answered all along.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use super::{Error, Fs, Settings, Supply};
use crate::catalogue::{Attributes, Kind, Page, Row, build};
use crate::driver::{PageDone, ReadDone, ReadRange, ReaderId, Slices, Ticket, Unavailable, Wanted};
use crate::keys::OriginKey;
use crate::wire::head::{PageHash, Totals, TreeHead, TreeName};

/// A filesystem on such a supply.
pub type LateFs<S> = Arc<Fs<Late<S>>>;

/// Set in the tickets given out here; a node counts its own from 0.
const OWN: u64 = 1 << 63;

/// A supply that is not there yet. Cloning gives another handle to the same one.
pub struct Late<S>(Arc<State<S>>);

struct State<S> {
    real: OnceLock<S>,
    head: Arc<TreeHead>,
    pages: HashMap<PageHash, Arc<Page>>,
    /// Whether pages of the stand-in can be had.
    shown: AtomicBool,
    waiting: Mutex<BTreeMap<u64, Waiting>>,
    next: AtomicU64,
}

struct Waiting {
    deadline: Option<Instant>,
    done: Done,
}

enum Done {
    Page(PageDone),
    Read(ReadDone),
}

impl Done {
    fn fail(self, reason: Unavailable) {
        match self {
            Done::Page(done) => done(Err(reason)),
            Done::Read(done) => done(Err(reason)),
        }
    }
}

impl<S> Clone for Late<S> {
    fn clone(&self) -> Late<S> {
        Late(self.0.clone())
    }
}

impl<S: Supply> Late<S> {
    /// A filesystem on a tree of this name that is still to be found. `key` signs the stand-in's head; it is nobody's.
    pub fn start(name: TreeName, settings: Settings, key: &OriginKey) -> Result<(Late<S>, LateFs<S>), Error> {
        let late = Late::stand_in(name, &settings.root, key)?;
        let (tell, answer) = std::sync::mpsc::channel();
        // All pages are here, so it is answered within the call.
        Fs::start(late.clone(), settings, move |started| {
            let _ = tell.send(started);
        });
        let fs = answer.try_recv().unwrap_or(Err(Error::Ended))?;
        late.0.shown.store(false, Ordering::SeqCst);
        Ok((late, fs))
    }

    fn stand_in(name: TreeName, root: &[u8], key: &OriginKey) -> Result<Late<S>, Error> {
        let directory = |dir: &[u8], name: &[u8]| {
            let attributes = Attributes { mode: 0o755, nlink: 2, ..Attributes::default() };
            Row::new(dir, name, Kind::Directory, attributes, Vec::new()).map_err(|_| Error::NotFound)
        };
        let mut rows = vec![directory(b"", b"")?];
        let mut dir: Vec<u8> = Vec::new();
        for name in root.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            rows.push(directory(&dir, name)?);
            if !dir.is_empty() {
                dir.push(b'/');
            }
            dir.extend_from_slice(name);
        }
        let built = build(rows).map_err(|_| Error::Malformed)?;
        let page = |bytes| Page::parse(bytes).map(Arc::new).map_err(|_| Error::Malformed);
        let pages: Result<_, Error> = built.pages.into_iter().map(|(hash, bytes)| Ok((hash, page(bytes)?))).collect();
        // Sequence 0 is below any origin's.
        let head = TreeHead::sign(name, 0, built.root, built.root_level, Totals::default(), key);
        Ok(Late(Arc::new(State {
            real: OnceLock::new(),
            head: Arc::new(head),
            pages: pages?,
            shown: AtomicBool::new(true),
            waiting: Mutex::default(),
            next: AtomicU64::new(OWN),
        })))
    }

    /// The tree was found: what waited is asked of it. A second supply is not taken.
    pub fn connect(&self, supply: S) {
        if self.0.real.set(supply).is_ok() {
            self.release();
        }
    }

    /// Gives up what has waited to its deadline. To be called a few times a second until the tree is found.
    pub fn expire(&self, now: Instant) {
        let mut waiting = self.waiting();
        let late: Vec<u64> = waiting
            .iter()
            .filter(|(_, one)| one.deadline.is_some_and(|deadline| deadline <= now))
            .map(|(ticket, _)| *ticket)
            .collect();
        let late: Vec<Waiting> = late.iter().filter_map(|ticket| waiting.remove(ticket)).collect();
        drop(waiting);
        late.into_iter().for_each(|one| one.done.fail(Unavailable::TimedOut));
    }

    /// Sends what waits for the stand-in's pages to the real tree.
    fn release(&self) {
        let waiting = std::mem::take(&mut *self.waiting());
        waiting.into_values().for_each(|one| one.done.fail(Unavailable::Gone));
    }

    fn park(&self, deadline: Option<Instant>, done: Done) -> Ticket {
        let ticket = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.waiting().insert(ticket, Waiting { deadline, done });
        Ticket(ticket)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Waiting>> {
        self.0.waiting.lock().expect("no holder of this lock panics")
    }
}

impl<S: Supply> Supply for Late<S> {
    fn head(&self) -> Arc<TreeHead> {
        self.0.real.get().map_or_else(|| self.0.head.clone(), Supply::head)
    }

    fn page(&self, hash: &PageHash) -> Option<Arc<Page>> {
        match self.0.pages.get(hash) {
            Some(page) => self.0.shown.load(Ordering::SeqCst).then(|| page.clone()),
            None => self.0.real.get()?.page(hash),
        }
    }

    fn fetch_page(&self, hash: PageHash, deadline: Option<Instant>, done: PageDone) -> Ticket {
        match self.0.real.get() {
            Some(real) if !self.0.pages.contains_key(&hash) => real.fetch_page(hash, deadline, done),
            // A look-up that began before the tree was found. Nothing is asked of the real one but to call back.
            Some(real) => {
                let nothing = ReadRange { object: crate::chunk::ObjectId([0; 16]), size: 0, offset: 0, len: 0 };
                real.read(nothing, None, Box::new(move |_| done(Err(Unavailable::Gone))))
            }
            None => {
                let ticket = self.park(deadline, Done::Page(done));
                // It may have been found between the two: then this one came after the others were released.
                if let Some(real) = self.0.real.get() {
                    let late = self.clone();
                    let nothing = ReadRange { object: crate::chunk::ObjectId([0; 16]), size: 0, offset: 0, len: 0 };
                    real.read(nothing, None, Box::new(move |_| late.release()));
                }
                ticket
            }
        }
    }

    fn new_reader(&self) -> ReaderId {
        // Nothing can be opened before there is a tree.
        self.0.real.get().map_or(ReaderId(0), Supply::new_reader)
    }

    fn read_now(&self, range: ReadRange) -> Option<Slices> {
        self.0.real.get()?.read_now(range)
    }

    fn read(&self, range: ReadRange, deadline: Option<Instant>, done: ReadDone) -> Ticket {
        match self.0.real.get() {
            Some(real) => real.read(range, deadline, done),
            None => self.park(deadline, Done::Read(done)),
        }
    }

    fn cancel(&self, ticket: Ticket) {
        if ticket.0 & OWN == 0 {
            self.0.real.get().into_iter().for_each(|real| real.cancel(ticket));
            return;
        }
        let one = self.waiting().remove(&ticket.0);
        one.into_iter().for_each(|one| one.done.fail(Unavailable::Stopped));
    }

    fn set_window(&self, reader: ReaderId, window: Vec<Wanted>) {
        self.0.real.get().into_iter().for_each(|real| real.set_window(reader, window.clone()));
    }

    fn close_reader(&self, reader: ReaderId) {
        self.0.real.get().into_iter().for_each(|real| real.close_reader(reader));
    }
}
