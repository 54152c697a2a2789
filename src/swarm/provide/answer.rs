//! What follows an offer or a pull: an upload, or none.

use super::{MAX_PARKED, MOST_UPLOADS, PULLED, UNANSWERED, UNANSWERED_STRANGER};
use crate::chunk::{BLOCK, BlockId, Run, blocks_of};
use crate::swarm::link::{Upload, by_chunk};
use crate::swarm::policy::WHOLE;
use crate::swarm::{LinkId, Node};
use crate::wire::frame::{Frame, Refusal, WANTED};

impl Node {
    pub(in crate::swarm) fn on_accept(&mut self, id: LinkId, offer: u32, run: Run) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(index) = link.offers.iter().position(|made| made.id == offer) else {
            // Withdrawn while the answer travelled: who accepted it must not wait.
            if link.uploads.iter().all(|upload| upload.transfer != offer) {
                self.send(id, Frame::Abort { transfer: offer });
            }
            return;
        };
        let made = link.offers.swap_remove(index);
        link.record.answers = true;
        let inside =
            |offered: &Run| offered.object == run.object && offered.first <= run.first && run.end() <= offered.end();
        if !made.runs.iter().any(inside) {
            return self.refuse_peer(id);
        }
        self.refill = true;
        // What was offered may have been dropped, or its source may have failed, while the answer travelled.
        if self.can_source(run, made.begun) {
            self.begin_upload(id, offer, run, false);
        } else {
            self.send(id, Frame::Abort { transfer: offer });
            self.note_lost(id, run);
        }
    }

    pub(in crate::swarm) fn on_decline(&mut self, id: LinkId, offer: u32, reason: Refusal) {
        let origin = self.me.origin;
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(index) = link.offers.iter().position(|made| made.id == offer) else { return };
        let made = link.offers.swap_remove(index);
        link.record.answers = true;
        self.refill = true;
        match (reason, origin) {
            (Refusal::NoRoom, _) => {
                // Nothing more until it shows room again.
                link.room = link.room.min(if origin { -(64 * WHOLE as i32) } else { 0 });
                if origin {
                    for run in made.runs {
                        self.note_lost(id, run);
                    }
                }
            }
            // Its map was late; one offer less until the next comes.
            (Refusal::NotNeeded, false) => link.room -= made.weight as i32,
            (Refusal::NotNeeded, true) => {}
        }
    }

    /// Withdraws offers that nobody answers: they hold slots that others could use, and an origin's first copies.
    pub(in crate::swarm) fn check_offers(&mut self) {
        let (now, mut withdrawn) = (self.now, Vec::new());
        for (id, link) in &mut self.links {
            let patience = if link.record.answers { UNANSWERED } else { UNANSWERED_STRANGER };
            for made in link.offers.extract_if(.., |made| now.since(made.made) > patience) {
                withdrawn.push((*id, made));
            }
        }
        for (id, made) in withdrawn {
            if self.me.origin {
                for run in made.runs {
                    self.note_lost(id, run);
                }
            }
            self.note_unanswered(id);
            self.refill = true;
        }
    }

    /// Whether a run is here, or will come by a download older than what is to pass it on (one of the first `begun`) or
    /// from an origin. So every transfer is younger than the one that feeds it, and no ring of nodes can wait for each
    /// other; a block lost and awaited anew since it was offered could close one.
    pub(super) fn can_source(&self, run: Run, begun: u64) -> bool {
        if self.me.origin {
            return self.sizes.get(&run.object).is_some_and(|size| run.end() <= blocks_of(*size))
                && !self.provide.failed.contains_key(&run.object);
        }
        let from_origin = |id: LinkId| self.links.get(&id).is_some_and(|link| link.origin);
        run.blocks().all(|block| self.store.has(block) || self.requests.awaits(block, begun, from_origin))
    }

    pub(super) fn begin_upload(&mut self, id: LinkId, transfer: u32, run: Run, first: bool) {
        self.note_taken(id, run);
        let weight = self.weight(run);
        if let Some(link) = self.links.get_mut(&id) {
            let upload = Upload { transfer, run, next: run.first, offset: 0, weight };
            // Pulls go before offers, but not before one that has begun or another pull.
            let pulls = link.uploads.iter().take_while(|u| u.transfer & WANTED != 0 || u.has_begun()).count();
            let at = if first { pulls } else { link.uploads.len() };
            link.uploads.insert(at, upload);
            self.ready.insert(id);
        }
        let segment = BlockId { object: run.object, index: run.first }.segment();
        self.store.touch(segment.chunk());
        if self.me.origin {
            self.prepare(segment);
        }
    }

    /// Somebody asks for blocks by itself: a random reader, a first block, or one whose neighbours all lack it.
    pub(in crate::swarm) fn on_want(&mut self, id: LinkId, transfer: u32, starving: bool, run: Run) {
        let Some(link) = self.links.get(&id) else { return };
        if transfer & WANTED == 0 {
            return self.refuse_peer(id);
        }
        if self.me.origin && !self.sizes.contains_key(&run.object) && self.provide.parked.len() < MAX_PARKED {
            self.provide.parked.push((id, transfer, starving, run));
            return match self.provide.failed.get(&run.object) {
                Some(_) => self.on_resolved(run.object, None),
                None => self.resolve_object(run.object),
            };
        }
        let queued: usize = self.links.values().map(|link| link.uploads.len()).sum();
        let full = link.uploads.len() >= PULLED || queued >= MOST_UPLOADS;
        if full || !self.can_source(run, 0) || (self.me.origin && self.comes_from_others(id, run, starving)) {
            if let Some((reason, _)) = self.provide.failed.get(&run.object).copied()
                && self.replica.is_none()
            {
                self.send(id, Frame::Gone { object: run.object, reason });
            }
            return self.send(id, Frame::Abort { transfer });
        }
        if self.me.origin {
            self.provide.note_sent(run, self.now, self.fresh());
        }
        self.begin_upload(id, transfer, run, true);
    }

    pub(super) fn fresh(&self) -> u64 {
        self.policy.fresh(self.gossip.best_rate())
    }

    /// Whether an asker will get a run from neighbours: then a second copy out of the origin would be too many.
    pub(super) fn comes_from_others(&mut self, id: LinkId, run: Run, starving: bool) -> bool {
        if by_chunk(run).all(|(chunk, range)| range.and(&self.provide.copies.any(chunk)).is_empty()) {
            return false;
        }
        // The asker's own report may already count what it awaits from this very answer.
        let own = |chunk, block| self.links.get(&id).is_some_and(|link| link.has_taken(chunk, block)) as u32;
        let given = self.given();
        let copied = by_chunk(run).any(|(chunk, range)| {
            let held = range.and(&self.may_be_held(chunk, &given));
            held.iter().any(|block| self.provide.copies.of(chunk, block) > own(chunk, block))
        });
        let put_off = |node: &mut Node| node.provide.was_sent(run, node.now, node.fresh()) && node.puts_off(id, run);
        copied && (!starving || put_off(self) || !self.may_have_again(id, run))
    }

    /// Whether an asker can have once more what others have. As long as first copies are due, which bound everybody, such
    /// copies are a small part of what is sent: who is slow falls out of everybody's memory and asks for all of it, and in a
    /// large crowd each waits longer for some piece than any of them can know to be patient. (Without that 200 readers at
    /// 25 Mbit/s took 1.19 instead of 1.15 of one reader's time.) Who jumps about asks for little.
    fn may_have_again(&mut self, id: LinkId, run: Run) -> bool {
        let median = self.median_rate();
        let Some(link) = self.links.get(&id).filter(|link| !link.window.is_empty()) else { return true };
        if self.links.values().all(|link| link.offered() == 0) {
            return true;
        }
        // Those who are slow use theirs up.
        let left = &mut self.provide.for_starving[usize::from(link.is_slow(median))];
        let may = *left > 0;
        if may {
            *left -= i64::from(run.count) * i64::from(BLOCK);
        }
        may
    }

    /// Whether a starving asker can be told to wait for what was just sent to another: for as long as a copy is fresh, and
    /// no longer. One that has the same block sent to it again and again would keep the others from it for ever.
    fn puts_off(&mut self, id: LinkId, run: Run) -> bool {
        let (now, fresh) = (self.now, self.fresh());
        let block = BlockId { object: run.object, index: run.first };
        let Some(link) = self.links.get_mut(&id) else { return false };
        let Some(index) = link.put_off.iter().position(|(other, _)| *other == block) else {
            link.put_off.truncate(PULLED - 1);
            link.put_off.push_front((block, now));
            return true;
        };
        let waits = now.since(link.put_off[index].1) < fresh;
        if !waits {
            link.put_off.remove(index);
        }
        waits
    }

    pub(in crate::swarm) fn on_cancel(&mut self, id: LinkId, transfer: u32) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(index) = link.uploads.iter().position(|upload| upload.transfer == transfer) else { return };
        if let Some(upload) = link.uploads.remove(index) {
            let rest = Run { first: upload.next, count: upload.run.end() - upload.next, ..upload.run };
            if rest.count > 0 {
                self.note_lost(id, rest);
            }
        }
        // It may hold a slot.
        self.ready.insert(id);
        self.refill = true;
    }
}
