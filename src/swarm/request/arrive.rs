//! What arrives of the transfers under way, what does not, and the headers that they need.

use super::{CRAWL, Download, HEADER_PATIENCE, REFUSED, Sure, segment_bits, segment_of};
use crate::chunk::{BlockId, Run, SEGMENTS_PER_CHUNK, SegmentId};
use crate::swarm::bits::Bits;
use crate::swarm::link::{Link, by_chunk};
use crate::swarm::{LinkId, Node, Output, Time};
use crate::wire::frame::{Frame, WANTED};

impl Node {
    /// Asks for a header that is needed and neither here nor on its way. What only a stranger was asked for is asked for
    /// again: all blocks of the segment wait for it, whoever brings them.
    pub(super) fn ask_header(&mut self, id: LinkId, segment: SegmentId) {
        let known = |id: &LinkId| self.links.get(id).is_some_and(|link| !link.is_stranger());
        let comes = self.requests.headers.get(&segment).is_some_and(|(asked, _)| known(asked) || !known(&id));
        if comes || self.store.has_header(segment) {
            return;
        }
        self.requests.headers.insert(segment, (id, self.now));
        self.send(id, Frame::GetHeader(segment));
    }

    pub(in crate::swarm) fn on_no_header(&mut self, id: LinkId, segment: SegmentId) {
        if self.requests.headers.get(&segment).is_some_and(|(asked, _)| *asked == id) {
            self.ask_header_elsewhere(id, segment);
        }
        self.header_not_from(id, segment);
    }

    pub(super) fn ask_header_elsewhere(&mut self, not: LinkId, segment: SegmentId) {
        self.requests.headers.remove(&segment);
        if self.store.has_header(segment) || !self.requests.downloads.iter().any(|d| segment_of(d.run) == segment) {
            return;
        }
        let index = segment.index % SEGMENTS_PER_CHUNK;
        let holders = self.links.iter().filter(|(id, link)| {
            **id != not
                && link.greeted
                && !link.origin
                && !link.is_doubted(self.now)
                && link.taken(segment.chunk()).segment(index) != 0
        });
        let (known, strangers): (Vec<_>, Vec<_>) = holders.partition(|(_, link)| !link.is_stranger());
        let origins = self.links.iter().filter(|(_, link)| link.greeted && link.origin);
        let origin = origins.min_by_key(|(id, link)| (!link.is_proven(), **id == not)).map(|(id, _)| *id);
        let known = self.rng.choice(known).map(|(id, _)| *id);
        if let Some(id) = known.or(origin).or_else(|| self.rng.choice(strangers).map(|(id, _)| *id)) {
            self.ask_header(id, segment);
        }
    }

    pub(in crate::swarm) fn on_header(&mut self, segment: SegmentId, zero: u64) {
        self.requests.headers.remove(&segment);
        let Some(fresh) = self.store.header(segment, zero) else {
            // Dropped while its header was on the way.
            return self.out.push_back(Output::Drop { chunk: segment.chunk() });
        };
        let index = segment.index % SEGMENTS_PER_CHUNK;
        let mut bits = Bits::EMPTY;
        bits.set_segment(index, fresh);
        if let Some(lost) = self.requests.lost.get_mut(&segment.chunk()) {
            let mut zeros = Bits::EMPTY;
            zeros.set_segment(index, zero);
            bits = bits.or(&lost.and(&zeros));
            *lost = lost.minus(&zeros);
        }
        if !bits.is_empty() {
            self.gossip.note_taken(segment.chunk(), bits);
        }
        self.finish_downloads(|run| segment_of(*run) == segment);
        self.answer_header_waits(segment);
        self.wake_uploads(segment.chunk());
        self.trim_window();
        self.refill = true;
    }

    pub(in crate::swarm) fn on_progress(&mut self, id: LinkId, transfer: u32, bytes: u32) {
        self.gossip.count_received(bytes as u64);
        self.heard(id);
        let now = self.now;
        if let Some(link) = self.links.get_mut(&id) {
            link.last_data = now;
        }
        if let Some(download) = self.requests.downloads.iter_mut().find(|d| d.link == id && d.transfer == transfer) {
            let answered = download.is_uncertain();
            download.last = now;
            if !download.started {
                download.advanced = now;
            }
            let began = !std::mem::replace(&mut download.started, true);
            let run = download.run;
            if answered && !download.is_uncertain() {
                self.tell_awaited(run);
            }
            if began {
                self.ask_header(id, segment_of(run));
            }
        }
    }

    /// A stranger brought a good block, or proved that it is the origin: what else is awaited of it can be counted on.
    pub(in crate::swarm) fn vouch_for(&mut self, id: LinkId) {
        let mut certain = Vec::new();
        for download in self.requests.downloads.iter_mut().filter(|d| d.link == id && d.is_uncertain()) {
            download.sure = if download.transfer & WANTED == 0 { Sure::Accepted } else { Sure::Begun };
            if !download.is_uncertain() {
                certain.push(download.run);
            }
        }
        for run in certain {
            self.tell_awaited(run);
        }
    }

    pub(in crate::swarm) fn on_block(&mut self, id: LinkId, transfer: u32, block: BlockId, good: bool) {
        if !good {
            self.counters.wrong_blocks += 1;
            return self.refuse_peer(id);
        }
        let fresh = !self.store.has(block);
        if !self.store.fill(block) {
            return;
        }
        self.store.touch(block.chunk());
        if fresh {
            self.note_good_block(id);
            self.vouch_for(id);
            if self.requests.found(block) {
                self.tell_taken(Run { object: block.object, first: block.index, count: 1 });
            }
            let same = |d: &&mut Download| d.link == id && d.transfer == transfer;
            if let Some(download) = self.requests.downloads.iter_mut().find(same) {
                download.advanced = self.now;
            }
        }
        self.finish_downloads(|run| run.object == block.object && (run.first..run.end()).contains(&block.index));
        self.wake_block(block);
        if self.requests.window.first().is_some_and(|front| front.object == block.object && front.first == block.index)
        {
            self.trim_window();
        }
    }

    /// Ends the downloads among those asked for whose blocks are all here.
    pub(super) fn finish_downloads(&mut self, of: impl Fn(&Run) -> bool) {
        let store = &self.store;
        let mut done = Vec::new();
        self.requests.downloads.retain(|download| {
            let ended = of(&download.run) && download.run.blocks().all(|block| store.has(block));
            if ended {
                done.push((download.link, download.transfer));
            }
            !ended
        });
        for (link, transfer) in done {
            self.out.push_back(Output::Ignore { link, transfer });
            self.gossip.mark_dirty();
            self.refill = true;
        }
    }

    pub(in crate::swarm) fn on_abort(&mut self, id: LinkId, transfer: u32) {
        let Some(index) = self.requests.downloads.iter().position(|d| d.link == id && d.transfer == transfer) else {
            return;
        };
        let download = self.requests.downloads.swap_remove(index);
        if transfer & WANTED != 0 {
            self.requests.refused.insert((id, segment_of(download.run)), self.now);
        }
        self.drop_download(download, false);
        self.note_aborted(id);
    }

    /// Blocks that a download will not bring: free again, and whoever was to get them from here is told.
    pub(super) fn drop_download(&mut self, download: Download, tell: bool) {
        let Download { link, transfer, run, .. } = download;
        self.out.push_back(Output::Ignore { link, transfer });
        if tell {
            self.send(link, Frame::Cancel { transfer });
        }
        for (chunk, range) in by_chunk(run) {
            let missing = range.minus(&self.store.get(chunk).map_or(Bits::EMPTY, |held| held.have));
            self.tell_lost(chunk, missing);
            let lost = self.requests.lost.entry(chunk).or_default();
            *lost = lost.or(&missing);
        }
        self.store.release(segment_of(run), segment_bits(run));
        let segment = segment_of(run);
        if !self.has_some(segment) {
            self.refuse_header_waits(|waits| waits == segment);
        }
        self.abort_uploads_without_source();
        self.gossip.mark_dirty();
        self.refill = true;
    }

    /// A link has ended.
    pub(in crate::swarm) fn drop_downloads_of(&mut self, id: LinkId) {
        self.drop_downloads(id, false);
    }

    /// A link is silent: if it still lives, it is to stop what nobody waits for any more.
    pub(in crate::swarm) fn give_downloads_up(&mut self, id: LinkId) {
        self.drop_downloads(id, true);
    }

    /// Tells of what was just begun to be awaited, but for what was lost once.
    pub(super) fn tell_awaited(&mut self, run: Run) {
        for (chunk, bits) in by_chunk(run) {
            let lost = self.requests.lost.get(&chunk).copied().unwrap_or_default();
            self.gossip.note_taken(chunk, bits.minus(&lost));
        }
    }

    pub(super) fn drop_downloads(&mut self, id: LinkId, tell: bool) {
        let (gone, kept) = self.requests.downloads.drain(..).partition(|download| download.link == id);
        self.requests.downloads = kept;
        let gone: Vec<Download> = gone;
        for download in gone {
            self.drop_download(download, tell);
        }
        let lost: Vec<SegmentId> =
            self.requests.headers.iter().filter(|(_, (link, _))| *link == id).map(|(segment, _)| *segment).collect();
        for segment in lost {
            self.ask_header_elsewhere(id, segment);
        }
    }

    /// Gives up transfers without progress, and asks elsewhere for headers that do not come.
    pub(in crate::swarm) fn check_transfers(&mut self) {
        let now = self.now;
        let mut stalled = Vec::new();
        // A stranger has one transfer at a time: it begins as soon as that of a neighbour that is heard of again, or never.
        let hush = self.policy.hush(self.gossip.best_rate());
        for download in &self.requests.downloads {
            let limit = self.policy.silence;
            let link = self.links.get(&download.link);
            let stranger = link.is_some_and(Link::is_stranger);
            let (since, limit) = if download.started {
                (download.last, limit)
            } else if stranger {
                (download.began, hush)
            } else {
                // It may queue behind others as long as those move, but not for ever. Only an origin that reads its disk
                // may just talk meanwhile.
                let moved = |link: &Link| if link.origin { link.last_heard } else { link.last_data };
                let moved = link.map_or(Time(0), moved);
                (download.began.max(moved.min(download.began.plus(3 * limit))), 2 * limit)
            };
            // Bytes that never make a block are no progress either.
            let crawl = if stranger { 2 * hush } else { CRAWL };
            let crawls = download.started && now.since(download.advanced) > crawl;
            if crawls || now.since(since) > limit {
                stalled.push((download.link, download.transfer));
            }
        }
        for (link, transfer) in stalled {
            self.counters.stalled_transfers += 1;
            if let Some(index) = self.requests.downloads.iter().position(|d| d.link == link && d.transfer == transfer) {
                let download = self.requests.downloads.swap_remove(index);
                self.requests.refused.insert((link, segment_of(download.run)), now);
                self.drop_download(download, true);
            }
            self.break_promise(link);
        }
        let late = self.requests.headers.iter().filter(|(_, (_, since))| now.since(*since) > HEADER_PATIENCE);
        let late: Vec<(SegmentId, LinkId)> = late.map(|(segment, (link, _))| (*segment, *link)).collect();
        for (segment, link) in late {
            self.ask_header_elsewhere(link, segment);
        }
        self.requests.refused.retain(|_, since| now.since(*since) < REFUSED);
    }
}
