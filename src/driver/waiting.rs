//! Who waits for what: parked reads by the segments they lack, parked pages by their hash.
//!
//! Every closure kept here is called exactly once: with what it waits for, or with why that will not come.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::{PageDone, Read, ReadDone, Shared, Ticket, Unavailable};
use crate::catalogue::Page;
use crate::chunk::{ObjectId, SegmentId};
use crate::wire::head::PageHash;

#[derive(Default)]
pub struct Waiting {
    reads: HashMap<Ticket, (Read, ReadDone)>,
    by_segment: HashMap<SegmentId, Vec<Ticket>>,
    pages: HashMap<PageHash, Vec<PageWait>>,
    by_ticket: HashMap<Ticket, PageHash>,
    /// Reads that were answered without their bytes since somebody looked.
    given_up: Vec<(Ticket, Read)>,
}

struct PageWait {
    ticket: Ticket,
    deadline: Option<Instant>,
    done: PageDone,
}

impl Waiting {
    pub fn park_read(&mut self, ticket: Ticket, read: Read, done: ReadDone) {
        for (segment, _) in read.range.parts() {
            self.by_segment.entry(segment).or_default().push(ticket);
        }
        self.reads.insert(ticket, (read, done));
    }

    pub fn park_page(&mut self, ticket: Ticket, hash: PageHash, deadline: Option<Instant>, done: PageDone) {
        self.pages.entry(hash).or_default().push(PageWait { ticket, deadline, done });
        self.by_ticket.insert(ticket, hash);
    }

    /// A read that still waits.
    pub fn parked(&self, ticket: Ticket) -> Option<Read> {
        self.reads.get(&ticket).map(|(read, _)| *read)
    }

    /// Reads that were answered without their bytes since this was last called.
    pub fn take_given_up(&mut self) -> Vec<(Ticket, Read)> {
        std::mem::take(&mut self.given_up)
    }

    pub fn fail_page(&mut self, hash: PageHash, why: Unavailable) {
        self.fail_pages(hash, |_| Some(why));
    }

    /// Blocks of a segment came in: whoever has all that it waits for is answered.
    pub fn wake(&mut self, segment: SegmentId, shared: &Shared) {
        let Some(tickets) = self.by_segment.get(&segment) else { return };
        for ticket in tickets.clone() {
            let Some((read, _)) = self.reads.get(&ticket) else { continue };
            if let Some(slices) = shared.read_now(read.range)
                && let Some(done) = self.take_read(ticket)
            {
                done(Ok(slices));
            }
        }
    }

    pub fn page(&mut self, hash: &PageHash, page: &Arc<Page>) {
        for wait in self.pages.remove(hash).unwrap_or_default() {
            self.by_ticket.remove(&wait.ticket);
            (wait.done)(Ok(page.clone()));
        }
    }

    pub fn fail_object(&mut self, object: ObjectId, why: Unavailable) {
        self.fail_reads(|read| (read.range.object == object).then_some(why));
    }

    pub fn cancel(&mut self, ticket: Ticket) {
        let parked = self.parked(ticket);
        if let Some(done) = self.take_read(ticket) {
            self.given_up.extend(parked.map(|read| (ticket, read)));
            done(Err(Unavailable::Stopped));
        }
        if let Some(hash) = self.by_ticket.get(&ticket).copied() {
            self.fail_pages(hash, |wait| (wait.ticket == ticket).then_some(Unavailable::Stopped));
        }
    }

    /// Fails whoever's deadline has passed.
    pub fn expire(&mut self, now: Instant) {
        let late = |deadline: Option<Instant>| deadline.is_some_and(|at| at <= now).then_some(Unavailable::TimedOut);
        self.fail_reads(|read| late(read.deadline));
        for hash in self.pages.keys().copied().collect::<Vec<_>>() {
            self.fail_pages(hash, |wait| late(wait.deadline));
        }
    }

    pub fn fail_all(&mut self) {
        self.fail_reads(|_| Some(Unavailable::Stopped));
        for hash in self.pages.keys().copied().collect::<Vec<_>>() {
            self.fail_pages(hash, |_| Some(Unavailable::Stopped));
        }
    }

    fn fail_reads(&mut self, why: impl Fn(&Read) -> Option<Unavailable>) {
        let failed: Vec<(Ticket, Unavailable)> =
            self.reads.iter().filter_map(|(ticket, (read, _))| Some((*ticket, why(read)?))).collect();
        for (ticket, why) in failed {
            let parked = self.parked(ticket);
            if let Some(done) = self.take_read(ticket) {
                self.given_up.extend(parked.map(|read| (ticket, read)));
                done(Err(why));
            }
        }
    }

    fn fail_pages(&mut self, hash: PageHash, why: impl Fn(&PageWait) -> Option<Unavailable>) {
        let Some(waits) = self.pages.remove(&hash) else { return };
        let mut kept = Vec::new();
        for wait in waits {
            match why(&wait) {
                Some(why) => {
                    self.by_ticket.remove(&wait.ticket);
                    (wait.done)(Err(why));
                }
                None => kept.push(wait),
            }
        }
        if !kept.is_empty() {
            self.pages.insert(hash, kept);
        }
    }

    fn take_read(&mut self, ticket: Ticket) -> Option<ReadDone> {
        let (read, done) = self.reads.remove(&ticket)?;
        for (segment, _) in read.range.parts() {
            if let Some(tickets) = self.by_segment.get_mut(&segment) {
                tickets.retain(|other| *other != ticket);
                if tickets.is_empty() {
                    self.by_segment.remove(&segment);
                }
            }
        }
        Some(done)
    }
}
