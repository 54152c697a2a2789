//! A filesystem's supply by the legacy protocol alone: `mount -o xcat`.
//!
//! The protocol has no listing. So the tree begins with the paths that were given, and grows by those that are looked up:
//! a name is asked for as a file, and if somebody answers, it is one. Its size is found by asking for chunks and looking
//! at their headers: doubling the number until one is not full, then halving the distance. It is believed when the last
//! chunk has come whole. A name that nobody answers for is taken for a directory where no list of paths was given, and
//! forgotten again unless a file is found below it.
//!
//! Nobody signed these bytes. Catalogue, head and segments are made and signed here, by a key that nobody else sees, so
//! that `fs` and `cache` hold them as they hold any; there is no node of the native swarm that could pass them on. If a
//! chunk does not fit its file's size, that is found anew: where it is the same, somebody lied; where it is not, the file
//! has changed, whoever has it open gets `Gone`, and it is looked up anew. A change that leaves the size as it is cannot be
//! seen.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Instant;

use tokio::sync::Notify;

use crate::cache::{Cache, Filling};
use crate::catalogue::Page;
use crate::chunk::{CHUNK, ChunkId, ObjectId, SEGMENT, SegmentId};
use crate::driver::{PageDone, ReadDone, ReadRange, ReaderId, Slices, Ticket, Unavailable, Wanted};
use crate::fs::{SeekDone, Supply};
use crate::keys::OriginKey;
use crate::settings::{CacheSettings, NetSettings};
use crate::wire::head::{PageHash, TreeHead, TreeName};
use crate::wire::header::SegmentHeader;
use crate::wire::xcat::Request;

mod fetch;
mod names;
mod shelf;

use names::{Names, Shown};

/// What to show and where it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub name: TreeName,
    /// The directory of the legacy tree that is shown as the root; empty for its own root.
    pub below: String,
    /// The paths that there are; empty where any may be.
    pub paths: Vec<String>,
}

/// The supply. Cloning gives another handle to the same one; its thread ends when `end` is called.
#[derive(Clone)]
pub struct Tree {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    key: OriginKey,
    cache: Cache,
    /// Chunks held and in flight together.
    most: usize,
    shown: RwLock<Shown>,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    names: Names,
    /// Chunks in memory, the longest unused last.
    held: Option<lru::LruCache<ChunkId, ()>>,
    seeks: Vec<Seek>,
    reads: Vec<Parked>,
    windows: BTreeMap<ReaderId, Vec<Wanted>>,
    next: u64,
    received: u64,
    /// The file whose size is being found anew. Nobody is helped with it: this host hears its own questions too.
    doubted: Option<String>,
    ended: bool,
}

struct Seek {
    ticket: Ticket,
    path: String,
    deadline: Option<Instant>,
    done: SeekDone,
}

struct Parked {
    ticket: Ticket,
    range: ReadRange,
    deadline: Option<Instant>,
    done: ReadDone,
}

pub use shelf::TreeShelf;

/// What is said of it in `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub chunks: u64,
    pub received: u64,
}

impl Tree {
    /// Starts to ask. The thread ends with `end`.
    pub fn start(settings: Settings, net: &NetSettings, cache: &CacheSettings) -> io::Result<Tree> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        let key = OriginKey::from_seed(&seed);
        let state = State { held: Some(lru::LruCache::unbounded()), ..State::default() };
        let shown = state.names.shown(&settings.name, &key).map_err(io::Error::other)?;
        let most = (cache.budget_bytes / u64::from(CHUNK)).max(2) as usize;
        let (shown, state) = (RwLock::new(shown), Mutex::new(state));
        let shared =
            Arc::new(Shared { settings, key, cache: Cache::default(), most, shown, state, wake: Notify::new() });
        fetch::start(shared.clone(), net.clone())?;
        Ok(Tree { shared })
    }

    /// Looks for the paths that were given, each for so long, and says which of them nobody answered for.
    pub fn find(&self, patience: std::time::Duration) -> Vec<String> {
        let found = |path: &String| {
            let (tell, answer) = std::sync::mpsc::channel();
            let done = move |found| {
                // Nobody waits any more only where the command has ended.
                let _ = tell.send(found);
            };
            self.seek(path.clone().into_bytes(), Some(Instant::now() + patience), Box::new(done));
            answer.recv() == Ok(Ok(true))
        };
        self.shared.settings.paths.iter().filter(|path| !found(path)).cloned().collect()
    }

    /// Answers whatever waits, and asks for nothing any more.
    pub fn end(&self) {
        self.shared.state().ended = true;
        self.shared.wake.notify_one();
    }

    pub fn figures(&self) -> Figures {
        let state = self.shared.state();
        Figures { chunks: state.held.as_ref().map_or(0, lru::LruCache::len) as u64, received: state.received }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// A path of this tree as it is asked for.
    fn request(&self, path: &str, chunk: u32) -> Option<Request> {
        let below = &self.settings.below;
        let path = if below.is_empty() { path.to_owned() } else { format!("{below}/{path}") };
        Request::new(&path, chunk).ok()
    }

    /// Shows what is known by now.
    fn publish(&self, state: &State) {
        match state.names.shown(&self.settings.name, &self.key) {
            Ok(shown) => *self.shown.write().expect("no holder of this lock panics") = shown,
            Err(error) => tracing::error!(%error, "what was found cannot be shown"),
        }
    }

    fn slices(&self, range: ReadRange) -> Option<Slices> {
        range.parts().map(|(id, part)| self.cache.read(id, part)).collect()
    }

    /// Keeps a chunk that came.
    fn keep(&self, chunk: ChunkId, bytes: &[u8]) -> io::Result<()> {
        for (index, part) in (chunk.index * (CHUNK / SEGMENT)..).zip(bytes.chunks(SEGMENT as usize)) {
            let id = SegmentId { object: chunk.object, index };
            self.cache.admit(SegmentHeader::sign(id, part, &self.key), Filling::AtOnce).fill_own(part)?;
        }
        let mut state = self.state();
        state.received += bytes.len() as u64;
        if let Some(held) = &mut state.held {
            held.put(chunk, ());
        }
        Ok(())
    }

    /// Makes room for one chunk more.
    fn make_room(&self) {
        let mut state = self.state();
        while let Some(held) = &mut state.held
            && held.len() >= self.most
            && let Some((oldest, ())) = held.pop_lru()
        {
            self.cache.drop_chunk(oldest);
        }
    }
}

/// The chunks that a range touches.
fn chunks_of(range: ReadRange) -> impl Iterator<Item = ChunkId> {
    let chunks: BTreeSet<ChunkId> = range.parts().map(|(segment, _)| segment.chunk()).collect();
    chunks.into_iter()
}

impl Supply for Tree {
    fn head(&self) -> Arc<TreeHead> {
        self.shared.shown.read().expect("no holder of this lock panics").head.clone()
    }

    fn page(&self, hash: &PageHash) -> Option<Arc<Page>> {
        self.shared.shown.read().expect("no holder of this lock panics").pages.get(hash).cloned()
    }

    /// All pages of the newest version are here: this one is of an older.
    fn fetch_page(&self, hash: PageHash, _deadline: Option<Instant>, done: PageDone) -> Ticket {
        let page = self.page(&hash).ok_or(Unavailable::Gone);
        let nothing = ReadRange { object: ObjectId([0; 16]), size: 0, offset: 0, len: 0 };
        self.read(nothing, None, Box::new(move |read| done(read.and(page))))
    }

    fn new_reader(&self) -> ReaderId {
        let mut state = self.shared.state();
        state.next += 1;
        ReaderId(state.next)
    }

    fn read_now(&self, range: ReadRange) -> Option<Slices> {
        let slices = self.shared.slices(range)?;
        if let Some(held) = &mut self.shared.state().held {
            for chunk in chunks_of(range) {
                held.promote(&chunk);
            }
        }
        Some(slices)
    }

    fn read(&self, range: ReadRange, deadline: Option<Instant>, done: ReadDone) -> Ticket {
        let mut state = self.shared.state();
        state.next += 1;
        let ticket = Ticket(state.next);
        state.reads.push(Parked { ticket, range, deadline, done });
        self.shared.wake.notify_one();
        ticket
    }

    fn cancel(&self, ticket: Ticket) {
        let mut state = self.shared.state();
        let seek = state.seeks.iter().position(|seek| seek.ticket == ticket).map(|at| state.seeks.remove(at));
        let read = state.reads.iter().position(|read| read.ticket == ticket).map(|at| state.reads.remove(at));
        drop(state);
        seek.into_iter().for_each(|seek| (seek.done)(Err(Unavailable::Stopped)));
        read.into_iter().for_each(|read| (read.done)(Err(Unavailable::Stopped)));
    }

    fn set_window(&self, reader: ReaderId, window: Vec<Wanted>) {
        self.shared.state().windows.insert(reader, window);
        self.shared.wake.notify_one();
    }

    fn close_reader(&self, reader: ReaderId) {
        self.shared.state().windows.remove(&reader);
    }

    fn seeks(&self) -> bool {
        true
    }

    fn seek(&self, path: Vec<u8>, deadline: Option<Instant>, done: SeekDone) -> Ticket {
        let mut state = self.shared.state();
        state.next += 1;
        let ticket = Ticket(state.next);
        // A name that is no UTF-8 cannot be asked for; nor can the empty one.
        let path = String::from_utf8(path).unwrap_or_default();
        state.seeks.push(Seek { ticket, path, deadline, done });
        self.shared.wake.notify_one();
        ticket
    }
}
