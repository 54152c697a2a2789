//! Open files: reading one version's bytes, and wanting the next ones before they are asked for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::look::{Held, look};
use super::{Advice, Call, Error, Fs, Readahead, Supply, Version};
use crate::catalogue::{Entry, Kind, Lookup, Pages, View};
use crate::chunk::{ObjectId, blocks_in, chunks_of};
use crate::driver::{ReadRange, ReaderId, Slices, Wanted};

/// Entries in the longest window handed down.
const MAX_WINDOW: usize = 256;
/// Streams remembered after their file's end: as many programs may walk through the tree at once and be recognised.
const MAX_TRAIL: usize = 8;
/// Ordinals that a walk may skip between two files and still be the same walk: a file it had cached, or left out.
const MAX_SKIP: u64 = 8;
/// How long a walk may pause between two files before its window is taken back.
const PAUSE: Duration = Duration::from_secs(5);

/// Names an open file or directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Handle(pub u64);

/// One open file. Its version is pinned: whatever its name leads to meanwhile, this is what is read.
pub(super) struct File<S: Supply> {
    handle: u64,
    object: ObjectId,
    size: u64,
    /// Where its chunks lie on the number line of `version`.
    ordinal: u64,
    version: Version,
    stream: Mutex<Arc<Stream<S>>>,
}

/// A reader as the swarm knows it: one open file, or several that are read one after the other.
pub(super) struct Stream<S: Supply> {
    supply: Arc<S>,
    id: ReaderId,
    state: Mutex<StreamState>,
}

#[derive(Default)]
struct StreamState {
    /// The open file that it is at. Reads of the earlier ones no longer move its window.
    at: u64,
    ahead: Readahead,
    /// A window waits for a page of the catalogue.
    looking: bool,
}

/// Streams that came to the end of a file, the latest last, to be taken up by whoever opens the next one.
pub(super) struct Trail<S: Supply> {
    ends: VecDeque<End<S>>,
}

struct End<S: Supply> {
    version: Version,
    /// Number of the first chunk after the file.
    next: u64,
    since: Instant,
    stream: Arc<Stream<S>>,
}

impl<S: Supply> Fs<S> {
    /// Opens the version of a file that a number stands for, unless it was replaced: then the name leads elsewhere.
    pub fn open(
        self: &Arc<Self>,
        call: Arc<Call>,
        number: u64,
        done: impl FnOnce(Result<Handle, Error>) + Send + 'static,
    ) {
        let inode = match self.inodes.get(number) {
            _ if self.calls.has_ended() => return done(Err(Error::Ended)),
            None => return done(Err(Error::Stale)),
            Some(inode) => inode,
        };
        let Some(object) = inode.entry.row.object() else { return done(Err(Error::NotAFile)) };
        let newest = self.newest();
        if inode.version == newest.number {
            return done(Ok(self.open_entry(&inode.entry, object, newest)));
        }
        // Seen in an older version, or in a listing: is it still what its name leads to?
        let (dir, name) = (inode.entry.row.dir().to_vec(), inode.entry.row.name().to_vec());
        let fs = self.clone();
        self.look_newest(
            call,
            move |view, pages| view.row(pages, &dir, &name),
            move |found, version| {
                done(match found {
                    Ok(Some(entry)) if entry.row.object() == Some(object) => {
                        let entry = Arc::new(entry);
                        fs.inodes.renew(&entry, version);
                        // Its place holds for that version only; a newer one since then costs a window, no more.
                        let newest = fs.newest();
                        Ok(fs.open_entry(&entry, object, newest))
                    }
                    Ok(_) => Err(Error::Stale),
                    Err(error) => Err(error),
                })
            },
        );
    }

    fn open_entry(&self, entry: &Entry, object: ObjectId, version: Version) -> Handle {
        let handle = self.handle();
        let file = File {
            handle,
            object,
            size: entry.row.attributes().size,
            ordinal: entry.ordinal,
            version,
            stream: Mutex::new(Arc::new(Stream::new(self.supply.clone(), handle))),
        };
        self.open.write().expect("no holder of this lock panics").insert(handle, Arc::new(file));
        Handle(handle)
    }

    pub fn close(&self, handle: Handle) {
        // Dropped outside the lock: the last holder of a stream tells the node.
        let closed = self.open.write().expect("no holder of this lock panics").remove(&handle.0);
        drop(closed);
    }

    /// Bytes of an open file, in order; fewer than `len` only at its end.
    pub fn read(
        self: &Arc<Self>,
        call: Arc<Call>,
        handle: Handle,
        offset: u64,
        len: u32,
        done: impl FnOnce(Result<Slices, Error>) + Send + 'static,
    ) {
        let file = match self.file(handle) {
            Ok(file) => file,
            Err(error) => return done(Err(error)),
        };
        if len == 0 || offset >= file.size {
            return done(Ok(Slices::new()));
        }
        self.take_up(&file, offset);
        let stream = file.stream();
        let range = ReadRange { object: file.object, size: file.size, offset, len };
        match self.supply.read_now(range) {
            Some(slices) => {
                done(Ok(slices));
                self.read_ahead(&file, &stream, offset, len);
            }
            None => {
                // The window goes first: what lies in it the neighbours offer by themselves, and a demand for it need
                // not ask the origin for a copy too many.
                self.read_ahead(&file, &stream, offset, len);
                let (parked, answered) = (call.clone(), file.clone());
                let finish = move |slices: Result<Slices, _>| {
                    done(slices.map_err(|reason| {
                        let error = parked.given_up().unwrap_or_else(|| Error::from(reason));
                        if error == Error::Stale {
                            tracing::warn!(object = ?answered.object, "a file was rewritten in place while it was read");
                        }
                        error
                    }));
                };
                call.park(&*self.supply, |deadline| self.supply.read(range, deadline, Box::new(finish)));
            }
        }
    }

    /// Where the next byte that is no hole lies. Which blocks are zero is known only of what is here, so all of a
    /// file counts as data.
    pub fn seek_data(&self, handle: Handle, offset: u64) -> Result<u64, Error> {
        let size = self.file(handle)?.size;
        if offset < size { Ok(offset) } else { Err(Error::BeyondEnd) }
    }

    /// Where the next hole lies: the one that every file ends in.
    pub fn seek_hole(&self, handle: Handle, offset: u64) -> Result<u64, Error> {
        let size = self.file(handle)?.size;
        if offset < size { Ok(size) } else { Err(Error::BeyondEnd) }
    }

    fn file(&self, handle: Handle) -> Result<Arc<File<S>>, Error> {
        if self.calls.has_ended() {
            return Err(Error::Ended);
        }
        self.open.read().expect("no holder of this lock panics").get(&handle.0).cloned().ok_or(Error::BadHandle)
    }

    /// A file read from its beginning just after the one before it in the catalogue goes on with that one's stream.
    fn take_up(&self, file: &Arc<File<S>>, offset: u64) {
        if offset != 0 || file.stream().state().ahead.has_started() {
            return;
        }
        let Some(stream) = self.trail().take(file) else { return };
        {
            let mut state = stream.state();
            state.at = file.handle;
            state.ahead.next_file();
        }
        *file.stream.lock().expect("no holder of this lock panics") = stream;
    }

    fn read_ahead(self: &Arc<Self>, file: &Arc<File<S>>, stream: &Arc<Stream<S>>, offset: u64, len: u32) {
        let (advice, at_end) = {
            let mut state = stream.state();
            if state.at != file.handle {
                return;
            }
            (state.ahead.read(file.size, offset, len as u64), state.ahead.is_at_end(file.size))
        };
        match advice {
            Advice::Keep => {}
            Advice::Nothing => self.supply.set_window(stream.id, Vec::new()),
            Advice::Window { from, here, beyond } => self.hand_down(file, stream, from, here, beyond),
        }
        if at_end {
            self.trail().note(file, stream);
        }
    }

    fn hand_down(self: &Arc<Self>, file: &Arc<File<S>>, stream: &Arc<Stream<S>>, from: u64, here: u64, beyond: u64) {
        let held = Held::new(self.supply.clone());
        let file_at = Place { object: file.object, size: file.size, ordinal: file.ordinal };
        match window(&file.version.view, &held, file_at, from, here, beyond) {
            Ok(window) => self.supply.set_window(stream.id, window),
            Err(Lookup::Malformed) => tracing::debug!("no window beyond this file: the catalogue contradicts itself"),
            Err(Lookup::Missing(_)) => {
                // What is known is handed down at once, the rest when the pages have come, if the stream is still there.
                if let Ok(window) = window(&file.version.view, &held, file_at, from, here, 0) {
                    self.supply.set_window(stream.id, window);
                }
                if std::mem::replace(&mut stream.state().looking, true) {
                    return;
                }
                let step = move |view: &View, pages: &Held<S>| window(view, pages, file_at, from, here, beyond);
                let (supply, waiting) = (self.supply.clone(), Arc::downgrade(stream));
                look(self.supply.clone(), self.call(0, None), file.version.view, step, move |found| {
                    let Some(stream) = waiting.upgrade() else { return };
                    stream.state().looking = false;
                    match found {
                        Ok(window) => supply.set_window(stream.id, window),
                        Err(error) => tracing::debug!(%error, "no window beyond this file"),
                    }
                });
            }
        }
    }

    fn trail(&self) -> MutexGuard<'_, Trail<S>> {
        self.trail.lock().expect("no holder of this lock panics")
    }
}

/// A file's place: its object, and where that lies on the number line.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub object: ObjectId,
    pub size: u64,
    pub ordinal: u64,
}

/// The window of `here` bytes of a file from `from` on, and `beyond` bytes of the files that follow it.
pub(crate) fn window(
    view: &View,
    pages: &impl Pages,
    file: Place,
    from: u64,
    here: u64,
    beyond: u64,
) -> Result<Vec<Wanted>, Lookup> {
    let mut window = Vec::new();
    if here > 0 {
        let blocks = blocks_in(file.size, from, here);
        window.push(Wanted { object: file.object, size: file.size, blocks, ordinal: file.ordinal });
    }
    if beyond > 0 {
        let next = file.ordinal + chunks_of(file.size) as u64;
        let mut left = beyond;
        for entry in view.next_files(pages, next, MAX_WINDOW - 1, beyond)? {
            let size = entry.row.attributes().size;
            let Kind::File { object } = *entry.row.kind() else { continue };
            let blocks = blocks_in(size, 0, left.min(size));
            left = left.saturating_sub(size);
            window.push(Wanted { object, size, blocks, ordinal: entry.ordinal });
        }
    }
    Ok(window)
}

impl<S: Supply> File<S> {
    fn stream(&self) -> Arc<Stream<S>> {
        self.stream.lock().expect("no holder of this lock panics").clone()
    }
}

impl<S: Supply> Stream<S> {
    fn new(supply: Arc<S>, at: u64) -> Stream<S> {
        let id = supply.new_reader();
        Stream { supply, id, state: Mutex::new(StreamState { at, ..StreamState::default() }) }
    }

    fn state(&self) -> MutexGuard<'_, StreamState> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl<S: Supply> Drop for Stream<S> {
    fn drop(&mut self) {
        self.supply.close_reader(self.id);
    }
}

impl<S: Supply> Default for Trail<S> {
    fn default() -> Self {
        Trail { ends: VecDeque::new() }
    }
}

impl<S: Supply> Trail<S> {
    fn note(&mut self, file: &File<S>, stream: &Arc<Stream<S>>) {
        self.ends.retain(|end| !Arc::ptr_eq(&end.stream, stream));
        if self.ends.len() == MAX_TRAIL {
            self.ends.pop_front();
        }
        let next = file.ordinal + chunks_of(file.size) as u64;
        self.ends.push_back(End { version: file.version, next, since: Instant::now(), stream: stream.clone() });
    }

    /// The stream that this file goes on with: of those that ended shortly before it, the nearest.
    fn take(&mut self, file: &File<S>) -> Option<Arc<Stream<S>>> {
        let follows =
            |end: &End<S>| end.version == file.version && (end.next..=end.next + MAX_SKIP).contains(&file.ordinal);
        let nearest = (0..self.ends.len())
            .filter(|index| follows(&self.ends[*index]))
            .max_by_key(|index| self.ends[*index].next)?;
        self.ends.remove(nearest).map(|end| end.stream)
    }

    pub fn expire(&mut self, now: Instant) {
        self.ends.retain(|end| now.saturating_duration_since(end.since) < PAUSE);
    }

    pub fn clear(&mut self) {
        self.ends.clear();
    }
}
