//! The thread that asks for a legacy tree's chunks: one at a time, as the protocol has it.
//!
//! What waits is looked at in turn: reads first, by their age, then names, then what readers will want next. An
//! unanswered question does not hold up the others for longer than `TURN`.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::{debug, info, warn};

use super::{Parked, Seek, Shared, State, chunks_of};
use crate::chunk::{CHUNK, ChunkId, MAX_OBJECT};
use crate::driver::{Ticket, Unavailable};
use crate::settings::NetSettings;
use crate::xcat::client::{Answer, Asker, Want};

/// How long silence lasts that means that nobody has a file of this name: a busy original takes a while to answer.
const SILENCE: Duration = Duration::from_secs(2);
/// How long one chunk is asked for before others have their turn.
const TURN: Duration = Duration::from_secs(2);
/// How long the holder of a chunk has to answer for another of the same file.
const NEXT: Duration = Duration::from_secs(10);
/// How often a size is looked for whose parts contradict each other.
const TRIES: usize = 5;
/// Chunks got before they are read.
const AHEAD: usize = 3;
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(100);

pub fn start(shared: Arc<Shared>, net: NetSettings) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let fetcher = Fetcher { shared: shared.clone(), asker: Asker::new(net), last: Ticket(0) };
    std::thread::Builder::new().name("swarmfs-legacy".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                () = fetcher.run() => {}
                () = keep_house(&shared) => {}
            }
        });
    })?;
    Ok(())
}

/// Fails what waited too long; returns when the tree ends, with nothing waiting any more.
async fn keep_house(shared: &Shared) {
    loop {
        tokio::time::sleep(TICK).await;
        let now = Instant::now();
        let mut state = shared.state();
        if state.names.forget_guesses(now) {
            shared.publish(&state);
        }
        let ended = state.ended;
        let late = |deadline: Option<Instant>| ended || deadline.is_some_and(|deadline| deadline <= now);
        let seeks: Vec<Seek> = state.seeks.extract_if(.., |seek| late(seek.deadline)).collect();
        let reads: Vec<Parked> = state.reads.extract_if(.., |read| late(read.deadline)).collect();
        drop(state);
        let why = if ended { Unavailable::Stopped } else { Unavailable::TimedOut };
        seeks.into_iter().for_each(|seek| (seek.done)(Err(why)));
        reads.into_iter().for_each(|read| (read.done)(Err(why)));
        if ended {
            return;
        }
    }
}

struct Fetcher {
    shared: Arc<Shared>,
    asker: Asker,
    /// The read that had the last turn.
    last: Ticket,
}

enum Work {
    Chunk(ChunkId),
    Name(Ticket, String),
}

impl Fetcher {
    async fn run(mut self) {
        loop {
            self.answer();
            match self.next() {
                Some(Work::Chunk(chunk)) => self.fetch(chunk).await,
                Some(Work::Name(ticket, path)) => self.seek(ticket, path).await,
                None => self.shared.wake.notified().await,
            }
        }
    }

    /// Answers the reads whose bytes are here, and those whose file is gone.
    fn answer(&self) {
        let mut state = self.shared.state();
        let State { reads, names, .. } = &mut *state;
        let mut answers = Vec::new();
        let ready = reads.extract_if(.., |read| {
            let slices = self.shared.slices(read.range);
            let gone = read.range.len > 0 && names.path(&read.range.object).is_none();
            let answer = slices.map(Ok).or(gone.then_some(Err(Unavailable::Gone)));
            let ready = answer.is_some();
            answers.extend(answer);
            ready
        });
        let ready: Vec<Parked> = ready.collect();
        drop(state);
        ready.into_iter().zip(answers).for_each(|(read, answer)| (read.done)(answer));
    }

    fn next(&mut self) -> Option<Work> {
        let state = self.shared.state();
        let held = state.held.as_ref()?;
        let lacking = |read: &Parked| chunks_of(read.range).find(|chunk| !held.contains(chunk));
        // The one after the last that had its turn.
        let mut reads: Vec<&Parked> = state.reads.iter().collect();
        reads.sort_by_key(|read| (read.ticket <= self.last, read.ticket));
        let read = reads.into_iter().find_map(|read| Some((read.ticket, lacking(read)?)));
        let name = state.seeks.first().map(|seek| Work::Name(seek.ticket, seek.path.clone()));
        // A name every other time, so that neither waits for the other to have no more.
        if let Some((ticket, chunk)) = read
            && (name.is_none() || ticket > self.last)
        {
            self.last = ticket;
            return Some(Work::Chunk(chunk));
        }
        self.last = Ticket(0);
        let ahead = || {
            let most = AHEAD.min(self.shared.most - 1);
            let wanted = state.windows.values().flat_map(|window| {
                let runs = window.iter().flat_map(|wanted| {
                    let first = wanted.blocks.start / crate::chunk::BLOCKS_PER_CHUNK;
                    let end = wanted.blocks.end.div_ceil(crate::chunk::BLOCKS_PER_CHUNK);
                    (first..end).map(|index| ChunkId { object: wanted.object, index })
                });
                runs.take(most)
            });
            let mut wanted = wanted.filter(|chunk| !held.contains(chunk) && state.names.path(&chunk.object).is_some());
            wanted.next().map(Work::Chunk)
        };
        name.or_else(ahead)
    }

    async fn ask(&mut self, path: &str, chunk: u32, want: Want, patience: Duration) -> Option<Answer> {
        let request = self.shared.request(path, chunk)?;
        match self.asker.ask_for(&request, want, patience).await {
            Ok(answer) => answer,
            Err(error) => {
                warn!(%error, "cannot ask by the legacy protocol");
                tokio::time::sleep(patience.min(SILENCE)).await;
                None
            }
        }
    }

    async fn fetch(&mut self, chunk: ChunkId) {
        let file = {
            let state = self.shared.state();
            let path = state.names.path(&chunk.object).map(str::to_owned);
            path.and_then(|path| Some((state.names.file(&path)?, path)))
        };
        let Some((file, path)) = file else { return };
        self.shared.make_room();
        let Some(answer) = self.ask(&path, chunk.index, Want::Body, TURN).await else { return };
        let start = u64::from(chunk.index) * u64::from(CHUNK);
        let expected = file.size.saturating_sub(start).min(u64::from(CHUNK)) as u32;
        if answer.header.len == expected {
            return self.take(chunk, answer.body);
        }
        let len = answer.header.len;
        warn!(path, from = %answer.from, chunk = chunk.index, len, expected, "a legacy file's size is contradicted");
        self.shared.state().doubted = Some(path.clone());
        let measured = self.measure(&path, None).await;
        self.shared.state().doubted = None;
        match measured {
            Some(found) if found.size == file.size => self.asker.avoid(answer.from),
            Some(found) => {
                warn!(
                    path,
                    was = file.size,
                    is = found.size,
                    "a legacy file has another size than it had: its readers \
                    must open it again"
                );
                let mut state = self.shared.state();
                state.names.remove(&path);
                self.shared.publish(&state);
            }
            // Nobody answers: whoever reads it waits, as for any chunk.
            None => {}
        }
    }

    fn take(&self, chunk: ChunkId, body: Option<Bytes>) {
        let Some(body) = body.filter(|body| !body.is_empty()) else { return };
        if let Err(error) = self.shared.keep(chunk, &body) {
            warn!(%error, "no memory for a chunk");
        }
    }

    async fn seek(&mut self, ticket: Ticket, path: String) {
        let known = self.shared.state().names.has(&path);
        let found = if known { Ok(true) } else { self.find(&path).await };
        let mut state = self.shared.state();
        let at = state.seeks.iter().position(|seek| seek.ticket == ticket);
        let seek = at.map(|at| state.seeks.remove(at));
        drop(state);
        // It may have been given up meanwhile.
        seek.into_iter().for_each(|seek| (seek.done)(found));
    }

    /// Whether the path is shown from now on.
    async fn find(&mut self, path: &str) -> Result<bool, Unavailable> {
        if self.shared.request(path, 0).is_none() {
            return Ok(false);
        }
        let Some(first) = self.ask(path, 0, Want::Length, SILENCE).await else {
            let mut state = self.shared.state();
            let guessed = self.shared.settings.paths.is_empty() && state.names.guess(path, Instant::now());
            if guessed {
                debug!(path, "nobody answers for this name; it may be a directory");
                self.shared.publish(&state);
            }
            return Ok(guessed);
        };
        let Some(found) = self.measure(path, Some(first)).await else {
            warn!(path, "there is such a file, and its size could not be found");
            return Err(Unavailable::TimedOut);
        };
        let mut state = self.shared.state();
        let Some(file) = state.names.add(path, found.size) else { return Ok(false) };
        self.shared.publish(&state);
        drop(state);
        info!(path, size = found.size, "found by the legacy protocol; its bytes are not signed");
        self.shared.make_room();
        self.take(ChunkId { object: file.object, index: found.last }, found.body);
        Ok(true)
    }

    /// The size of a file, by chunks of which the last has come whole. None if nobody answers for one of them, or if what
    /// is said of them does not fit together however often it is asked for.
    async fn measure(&mut self, path: &str, mut first: Option<Answer>) -> Option<Found> {
        for _ in 0..TRIES {
            let first = match first.take() {
                Some(first) => first,
                None => self.ask(path, 0, Want::Length, NEXT).await?,
            };
            let mut full_by = first.from;
            let (mut search, mut answer) = (Search::new(first.header.len), first);
            while let Search::Ask { chunk, .. } = search {
                answer = self.ask(path, chunk, Want::Length, NEXT).await?;
                if answer.header.is_full() {
                    full_by = answer.from;
                }
                search = search.heard(answer.header.len);
            }
            let Search::Done(size) = search else { continue };
            let last = size.saturating_sub(1) / u64::from(CHUNK);
            let last = u32::try_from(last).expect("a chunk was asked for by its number");
            // Whoever says where it ends, the chunk before must be there.
            let (whole, liar, found) = if size > 0 && size.is_multiple_of(u64::from(CHUNK)) {
                let whole = self.ask(path, last, Want::Body, NEXT).await?;
                (whole.header.is_full(), full_by, Found { size, last, body: whole.body })
            } else {
                let whole = last == 0 || self.ask(path, last - 1, Want::Settled, NEXT).await?.header.is_full();
                (whole, answer.from, Found { size, last, body: answer.body })
            };
            if whole {
                return Some(found);
            }
            warn!(path, size, from = %liar, "what is said of a legacy file's size does not fit together");
            self.asker.avoid(liar);
        }
        None
    }
}

/// A file that was found.
struct Found {
    size: u64,
    /// Its last chunk, and the bytes of that.
    last: u32,
    body: Option<Bytes>,
}

/// Chunks of the largest file that can be shown: who says that it goes on is not asked further.
const MOST: u32 = (MAX_OBJECT / CHUNK as u64) as u32;

/// A size that is being found. A chunk that is full says that the file goes on; one that is empty, that it has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Search {
    /// `full` is the last chunk known to be full, `empty` the first known to be empty.
    Ask {
        chunk: u32,
        full: u32,
        empty: Option<u32>,
    },
    Done(u64),
}

impl Search {
    fn new(first_len: u32) -> Search {
        match first_len {
            CHUNK => Search::between(0, None),
            len => Search::Done(u64::from(len)),
        }
    }

    fn between(full: u32, empty: Option<u32>) -> Search {
        let end = empty.unwrap_or(MOST);
        let chunk = match empty {
            Some(empty) => full + (empty - full) / 2,
            None => full.saturating_mul(2).clamp(1, MOST - 1),
        };
        if end - full <= 1 {
            return Search::Done(u64::from(end) * u64::from(CHUNK));
        }
        Search::Ask { chunk, full, empty }
    }

    fn heard(self, len: u32) -> Search {
        let Search::Ask { chunk, full, empty } = self else { return self };
        match len {
            CHUNK => Search::between(chunk, empty),
            0 => Search::between(full, Some(chunk)),
            len => Search::Done(u64::from(chunk) * u64::from(CHUNK) + u64::from(len)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_found_in_few_questions() {
        let chunk = u64::from(CHUNK);
        for (size, most) in [
            (0, 0),
            (5, 0),
            (chunk - 1, 0),
            (chunk, 1),
            (chunk + 1, 1),
            (2 * chunk, 2),
            (3 * chunk, 4),
            (12 * chunk - 1, 8),
            (1000 * chunk + 17, 20),
            (MAX_OBJECT - 1, 46),
            (MAX_OBJECT, 46),
            (MAX_OBJECT + 1, 46),
        ] {
            let len_of = |index: u32| size.saturating_sub(u64::from(index) * chunk).min(chunk) as u32;
            let (mut search, mut asked) = (Search::new(len_of(0)), 0);
            while let Search::Ask { chunk, .. } = search {
                search = search.heard(len_of(chunk));
                asked += 1;
                assert!(asked < 100, "{size}: {search:?}");
            }
            assert_eq!(search, Search::Done(size.min(MAX_OBJECT)));
            assert!(asked <= most, "{size}: {asked}");
        }
    }

    #[test]
    fn answers_that_contradict_each_other_end_too() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut search, mut asked) = (Search::new(CHUNK), 0);
            while let Search::Ask { .. } = search {
                search = search.heard(if random.bool() { CHUNK } else { 0 });
                asked += 1;
                assert!(asked < 100);
            }
        }
    }
}
