//! Open directories: a listing is of one version of the tree from its first entry to its last.

use std::sync::Arc;

use super::look::{Held, look};
use super::{Call, Error, Fs, Handle, ROOT, Supply, Version};
use crate::catalogue::{Entry, Kind, Pages};

/// Rows asked of the catalogue at once: more than one reply of the usual 4 KiB holds.
pub const BATCH: usize = 128;

/// One open directory.
#[derive(Clone)]
pub(super) struct Listing {
    dir: Arc<[u8]>,
    number: u64,
    parent: u64,
    version: Version,
}

/// Part of a listing.
pub struct Batch {
    /// In order. To go on after one of them, name its rank plus one.
    pub entries: Vec<Arc<Entry>>,
    /// Nothing follows.
    pub is_last: bool,
    /// Number of the version that it lists, for `Fs::remember`.
    pub version: u64,
}

impl<S: Supply> Fs<S> {
    /// Opens a directory; says too whether the kernel may keep the listing that it remembers.
    pub fn open_directory(&self, number: u64) -> Result<(Handle, bool), Error> {
        let entry = self.entry(number)?;
        if *entry.row.kind() != Kind::Directory {
            return Err(Error::NotADirectory);
        }
        let parent = if number == ROOT { ROOT } else { self.inodes.number_of_directory(entry.row.dir()) };
        let version = self.newest();
        let listing = Listing { dir: entry.row.path().into(), number, parent, version };
        let handle = self.handle();
        self.listings.write().expect("no holder of this lock panics").insert(handle, listing);
        Ok((Handle(handle), self.inodes.list(number, version.number)))
    }

    pub fn close_directory(&self, handle: Handle) {
        self.listings.write().expect("no holder of this lock panics").remove(&handle.0);
    }

    /// The numbers of an open directory and of the one that it is in: its entries `.` and `..`.
    pub fn dots(&self, handle: Handle) -> Result<(u64, u64), Error> {
        self.listing(handle).map(|listing| (listing.number, listing.parent))
    }

    /// The entries of an open directory from its first, or from a rank on. Nothing is counted as looked up.
    pub fn list(
        self: &Arc<Self>,
        call: Arc<Call>,
        handle: Handle,
        from: Option<u64>,
        done: impl FnOnce(Result<Batch, Error>) + Send + 'static,
    ) {
        match self.listing(handle) {
            Ok(listing) => self.list_in(listing, call, handle, from, done),
            Err(error) => done(Err(error)),
        }
    }

    /// Of a listing that has not begun, whose version was replaced and is gone, the newest version is listed instead.
    fn list_in(
        self: &Arc<Self>,
        listing: Listing,
        call: Arc<Call>,
        handle: Handle,
        from: Option<u64>,
        done: impl FnOnce(Result<Batch, Error>) + Send + 'static,
    ) {
        let (fs, call_again, dir, version) = (self.clone(), call.clone(), listing.dir.clone(), listing.version);
        look(
            self.supply.clone(),
            call,
            version.view,
            move |view, pages| view.entries(pages, &dir, from, BATCH),
            move |found| match found {
                Err(Error::Stale) if from.is_none() && fs.newest() != version => {
                    let newest = Listing { version: fs.newest(), ..listing };
                    let mut open = fs.listings.write().expect("no holder of this lock panics");
                    open.entry(handle.0).and_modify(|listing| *listing = newest.clone());
                    drop(open);
                    // Boxed: a closure that holds itself would have no size.
                    let done: Box<dyn FnOnce(Result<Batch, Error>) + Send> = Box::new(done);
                    fs.list_in(newest, call_again, handle, from, done);
                }
                found => done(found.map(|entries| batch(entries, version))),
            },
        );
    }

    /// The same, if all of it is in memory.
    pub fn list_now(&self, handle: Handle, from: Option<u64>) -> Option<Batch> {
        let listing = self.listing(handle).ok()?;
        let held = Held::new(self.supply.clone());
        let pages: &dyn Pages = &held;
        listing
            .version
            .view
            .entries(pages, &listing.dir, from, BATCH)
            .ok()
            .map(|entries| batch(entries, listing.version))
    }

    fn listing(&self, handle: Handle) -> Result<Listing, Error> {
        if self.calls.has_ended() {
            return Err(Error::Ended);
        }
        self.listings.read().expect("no holder of this lock panics").get(&handle.0).cloned().ok_or(Error::BadHandle)
    }
}

fn batch(entries: Vec<Entry>, version: Version) -> Batch {
    let is_last = entries.len() < BATCH;
    Batch { entries: entries.into_iter().map(Arc::new).collect(), is_last, version: version.number }
}
