//! What was seen to change, gathered until it is worth looking at. Pure: the time comes in.
//!
//! Changes that come in a row are one change. A regular file that somebody writes is left as it was listed, or unlisted,
//! until it is closed; who writes without opening (`truncate(2)`), or moved a file in whose writing was not seen, closes
//! nothing, so whether a file that rests is still open is then asked by other means (`Changes::resting`).

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::SETTLE;

/// Looked at so long after the last of some changes in a row, and at the latest so long after the first.
const GATHER: Duration = Duration::from_millis(30);
const GATHER_MOST: Duration = Duration::from_millis(200);
/// When it is asked what was made, if it was not closed by then.
const CREATED: Duration = Duration::from_millis(50);
/// How often it is asked again whether a file that rests is still open for writing.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// Where that cannot be asked, a file is taken as it is when it rested for so long.
const RESTED: Duration = Duration::from_secs(10);
/// Paths remembered one by one; of more changes the whole tree is listed.
const MAX_PATHS: usize = 100_000;

/// How much of what is at a path is to be looked at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Depth {
    /// Its row.
    Row,
    /// Its row, and whether its content is another, which attributes may not tell.
    Content,
    /// Its row and all that is below it.
    Tree,
}

/// What is to be looked at.
#[derive(Default, PartialEq, Eq, Debug)]
pub(super) struct Batch {
    pub everything: bool,
    pub paths: BTreeMap<Vec<u8>, Depth>,
}

#[derive(Default)]
pub(super) struct Changes {
    batch: Batch,
    /// When the first and the last of the batch was seen.
    seen: Option<(Instant, Instant)>,
    writing: HashMap<Vec<u8>, Writing>,
}

/// A file that is being written.
struct Writing {
    last: Instant,
    /// When to ask whether it still is.
    ask: Instant,
}

impl Changes {
    /// What is at a path may be another.
    pub fn note(&mut self, path: &[u8], depth: Depth, now: Instant) {
        // A file that is being written is looked at when it is closed.
        if depth < Depth::Tree && self.writing.contains_key(path) {
            return;
        }
        if self.batch.paths.len() >= MAX_PATHS {
            return self.everything(now);
        }
        let known = self.batch.paths.entry(path.to_vec()).or_insert(depth);
        *known = (*known).max(depth);
        self.saw(now);
    }

    /// Anything may be another.
    pub fn everything(&mut self, now: Instant) {
        self.batch = Batch { everything: true, ..Batch::default() };
        self.saw(now);
    }

    /// Something that is no directory was made: mostly a file that is open for writing, but not a link or a fifo.
    pub fn created(&mut self, path: &[u8], now: Instant) {
        self.begin(path, now, now + CREATED);
    }

    /// Somebody writes a file.
    pub fn written(&mut self, path: &[u8], now: Instant) {
        self.begin(path, now, now + SETTLE);
    }

    fn begin(&mut self, path: &[u8], now: Instant, ask: Instant) {
        if self.writing.len() >= MAX_PATHS && !self.writing.contains_key(path) {
            return self.note(path, Depth::Content, now);
        }
        // What was seen of it before is looked at when it is closed.
        if self.batch.paths.get(path).is_some_and(|depth| *depth < Depth::Tree) {
            self.batch.paths.remove(path);
        }
        self.writing.insert(path.to_vec(), Writing { last: now, ask });
    }

    /// A file was closed by somebody who could write, or is no longer there.
    pub fn closed(&mut self, path: &[u8], now: Instant) {
        self.writing.remove(path);
        self.note(path, Depth::Content, now);
    }

    /// A directory is no longer there: nobody writes below it.
    pub fn gone_below(&mut self, dir: &[u8]) {
        self.writing.retain(|path, _| !path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/")));
    }

    pub fn is_written(&self, path: &[u8]) -> bool {
        self.writing.contains_key(path)
    }

    /// Files that rest though nobody closed them.
    pub fn resting(&self, now: Instant) -> Vec<Vec<u8>> {
        self.writing.iter().filter(|(_, writing)| writing.ask <= now).map(|(path, _)| path.clone()).collect()
    }

    /// Whether somebody has such a file open for writing; none if that cannot be known.
    pub fn answer(&mut self, path: &[u8], open: Option<bool>, now: Instant) {
        let Some(writing) = self.writing.get_mut(path) else { return };
        let done = match open {
            Some(open) => !open,
            None => now.saturating_duration_since(writing.last) >= RESTED,
        };
        writing.ask = now + ASK_AGAIN;
        if done {
            self.closed(path, now);
        }
    }

    /// When there is something to do.
    pub fn due(&self) -> Option<Instant> {
        let batch = self.seen.map(|(first, last)| (last + GATHER).min(first + GATHER_MOST));
        let ask = self.writing.values().map(|writing| writing.ask).min();
        batch.into_iter().chain(ask).min()
    }

    /// What is to be looked at, if it was gathered.
    pub fn take(&mut self, now: Instant) -> Option<Batch> {
        let (first, last) = self.seen?;
        if now < (last + GATHER).min(first + GATHER_MOST) {
            return None;
        }
        self.seen = None;
        Some(std::mem::take(&mut self.batch))
    }

    fn saw(&mut self, now: Instant) {
        let first = self.seen.map_or(now, |(first, _)| first);
        self.seen = Some((first, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn paths(batch: Option<Batch>) -> Vec<(Vec<u8>, Depth)> {
        batch.expect("it is due").paths.into_iter().collect()
    }

    #[test]
    fn changes_in_a_row_are_looked_at_together_and_soon() {
        let (mut changes, start) = (Changes::default(), Instant::now());
        assert_eq!(changes.due(), None);
        for step in 0..20 {
            changes.note(b"a", Depth::Row, start + step * 20 * MS);
        }
        assert_eq!(changes.due(), Some(start + GATHER_MOST));
        changes.note(b"a", Depth::Tree, start + 150 * MS);
        changes.note(b"a", Depth::Content, start + 151 * MS);
        assert_eq!(changes.take(start + 151 * MS), None);
        assert_eq!(paths(changes.take(start + GATHER_MOST)), [(b"a".to_vec(), Depth::Tree)]);
        assert_eq!((changes.due(), changes.take(start + GATHER_MOST)), (None, None));
    }

    #[test]
    fn a_file_is_looked_at_when_it_is_closed() {
        let (mut changes, start) = (Changes::default(), Instant::now());
        changes.note(b"f", Depth::Row, start);
        changes.written(b"f", start);
        changes.note(b"f", Depth::Content, start + MS);
        assert!(changes.is_written(b"f"));
        assert_eq!(paths(changes.take(start + GATHER_MOST)), []);
        changes.closed(b"f", start + 300 * MS);
        assert!(!changes.is_written(b"f"));
        assert_eq!(paths(changes.take(start + 300 * MS + GATHER)), [(b"f".to_vec(), Depth::Content)]);
    }

    #[test]
    fn a_file_that_rests_unclosed_is_asked_about_and_taken_when_nobody_has_it_open() {
        let (mut changes, start) = (Changes::default(), Instant::now());
        changes.written(b"f", start);
        assert_eq!(changes.due(), Some(start + SETTLE));
        assert!(changes.resting(start).is_empty());
        assert_eq!(changes.resting(start + SETTLE), [b"f".to_vec()]);
        changes.answer(b"f", Some(true), start + SETTLE);
        assert!(changes.is_written(b"f") && changes.resting(start + SETTLE).is_empty());
        changes.answer(b"f", None, start + SETTLE + ASK_AGAIN);
        assert!(changes.is_written(b"f"), "it cannot be known, and rests for a short time only");
        changes.answer(b"f", Some(false), start + SETTLE + ASK_AGAIN);
        assert!(!changes.is_written(b"f"));
        changes.written(b"g", start);
        changes.answer(b"g", None, start + RESTED);
        assert!(!changes.is_written(b"g"));
    }

    #[test]
    fn more_changes_than_are_remembered_are_a_change_of_everything() {
        let (mut changes, now) = (Changes::default(), Instant::now());
        for index in 0..=MAX_PATHS as u32 {
            changes.note(&index.to_le_bytes(), Depth::Row, now);
        }
        let batch = changes.take(now + GATHER).unwrap();
        assert!(batch.everything && batch.paths.is_empty());
    }

    #[test]
    fn what_was_written_below_a_directory_that_went_is_forgotten() {
        let (mut changes, now) = (Changes::default(), Instant::now());
        changes.written(b"d/f", now);
        changes.written(b"d!/f", now);
        changes.gone_below(b"d");
        assert!(!changes.is_written(b"d/f") && changes.is_written(b"d!/f"));
    }
}
