//! Look-ups in the catalogue that go on by themselves when a page has come.
//!
//! A look-up is a function of a view and the pages that are here. It is run again after each page that it lacked; the
//! pages that were fetched for it are held until it is done, so that it ends however little the cache keeps.

use std::sync::Arc;

use super::{Call, Error, Fs, Supply, Version};
use crate::catalogue::{Entry, Kind, Lookup, Page, Pages, View};
use crate::wire::head::PageHash;

/// Symbolic links followed in one path, as Linux has it.
pub const MAX_LINKS: usize = 40;
/// Pages fetched for one look-up: it needs one per level for each page that it spans, and spans few.
const MAX_PAGES: usize = 256;
/// How often a look-up begins anew because the version it looked in was replaced and its pages are gone.
const MAX_VERSIONS: usize = 4;

/// The pages in memory, and those fetched for a look-up.
pub(crate) struct Held<S> {
    supply: Arc<S>,
    fetched: Vec<(PageHash, Arc<Page>)>,
}

impl<S: Supply> Held<S> {
    pub fn new(supply: Arc<S>) -> Held<S> {
        Held { supply, fetched: Vec::new() }
    }
}

impl<S: Supply> Pages for Held<S> {
    fn page(&self, hash: &PageHash) -> Option<Arc<Page>> {
        let fetched = self.fetched.iter().find(|(name, _)| name == hash);
        fetched.map(|(_, page)| page.clone()).or_else(|| self.supply.page(hash))
    }
}

/// A look-up, run again after each page that it lacked.
type Step<S, T> = dyn Fn(&View, &Held<S>) -> Result<T, Lookup> + Send + Sync;

/// Runs `step` until it lacks no page, and hands `done` what it found.
pub(crate) fn look<S: Supply, T: Send + 'static>(
    supply: Arc<S>,
    call: Arc<Call>,
    view: View,
    step: impl Fn(&View, &Held<S>) -> Result<T, Lookup> + Send + 'static,
    done: impl FnOnce(Result<T, Error>) + Send + 'static,
) {
    go_on(Held::new(supply), call, view, step, done);
}

fn go_on<S: Supply, T: Send + 'static>(
    held: Held<S>,
    call: Arc<Call>,
    view: View,
    step: impl Fn(&View, &Held<S>) -> Result<T, Lookup> + Send + 'static,
    done: impl FnOnce(Result<T, Error>) + Send + 'static,
) {
    let missing = match step(&view, &held) {
        Ok(found) => return done(Ok(found)),
        Err(Lookup::Malformed) => return done(Err(Error::Malformed)),
        Err(Lookup::Missing(_)) if held.fetched.len() == MAX_PAGES => return done(Err(Error::Malformed)),
        Err(Lookup::Missing(hash)) => hash,
    };
    let supply = held.supply.clone();
    let resumed = call.clone();
    let go_on = move |page: Result<Arc<Page>, _>| match page {
        Ok(page) => {
            let mut held = held;
            held.fetched.push((missing, page));
            go_on(held, resumed, view, step, done);
        }
        Err(reason) => {
            let error = resumed.given_up().unwrap_or_else(|| Error::from(reason));
            done(Err(error));
        }
    };
    call.park(&*supply, |deadline| supply.fetch_page(missing, deadline, Box::new(go_on)));
}

impl<S: Supply> Fs<S> {
    /// Looks in the newest version. If that is replaced meanwhile and its pages are gone, looks in the next one.
    pub(super) fn look_newest<T: Send + 'static>(
        self: &Arc<Self>,
        call: Arc<Call>,
        step: impl Fn(&View, &Held<S>) -> Result<T, Lookup> + Send + Sync + 'static,
        done: impl FnOnce(Result<T, Error>, u64) + Send + 'static,
    ) {
        let version = self.newest();
        self.look_in(version, MAX_VERSIONS, call, Arc::new(step), done);
    }

    fn look_in<T: Send + 'static>(
        self: &Arc<Self>,
        version: Version,
        versions_left: usize,
        call: Arc<Call>,
        step: Arc<Step<S, T>>,
        done: impl FnOnce(Result<T, Error>, u64) + Send + 'static,
    ) {
        if self.calls.has_ended() {
            return done(Err(Error::Ended), version.number);
        }
        let fs = self.clone();
        let (call_again, step_again) = (call.clone(), step.clone());
        let done = move |found: Result<T, Error>| {
            let newest = fs.newest();
            let replaced = found.as_ref().err() == Some(&Error::Stale) && newest != version;
            if !replaced || versions_left == 0 {
                return done(found, version.number);
            }
            // Boxed: a closure that holds itself would have no size.
            let done: Box<dyn FnOnce(Result<T, Error>, u64) + Send> = Box::new(done);
            fs.look_in(newest, versions_left - 1, call_again, step_again, done);
        };
        look(self.supply.clone(), call, version.view, move |view, pages| step(view, pages), done);
    }
}

/// A path's directory and last name; the root's are both empty.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// The row that a path leads to, following symbolic links inside the tree; of the last name too if `follow`. A link
/// that starts with '/' is taken from the tree's root, as it would be if that were mounted as one.
pub fn resolve(view: &View, pages: &impl Pages, path: &[u8], follow: bool) -> Result<Result<Entry, Error>, Lookup> {
    // Names still to walk, the next one last.
    let mut names: Vec<Vec<u8>> = components(path).rev().map(<[u8]>::to_vec).collect();
    let Some(mut at) = view.row(pages, b"", b"")? else { return Err(Lookup::Malformed) };
    let mut links = 0;
    while let Some(name) = names.pop() {
        if *at.row.kind() != Kind::Directory {
            return Ok(Err(Error::NotADirectory));
        }
        if name == b".." {
            // The root is its own parent.
            let (dir, name) = split(at.row.dir());
            let Some(entry) = view.row(pages, dir, name)? else { return Err(Lookup::Malformed) };
            at = entry;
            continue;
        }
        if name.len() > crate::catalogue::MAX_NAME {
            return Ok(Err(Error::NameTooLong));
        }
        let Some(entry) = view.row(pages, &at.row.path(), &name)? else { return Ok(Err(Error::NotFound)) };
        match entry.row.kind() {
            Kind::Symlink { target } if follow || !names.is_empty() => {
                links += 1;
                if links > MAX_LINKS {
                    return Ok(Err(Error::Loop));
                }
                if target.starts_with(b"/") {
                    let Some(root) = view.row(pages, b"", b"")? else { return Err(Lookup::Malformed) };
                    at = root;
                }
                names.extend(components(target).rev().map(<[u8]>::to_vec));
            }
            _ => at = entry,
        }
    }
    Ok(Ok(at))
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".")
}
