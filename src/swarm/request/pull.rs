//! Asking for what no offer will bring soon.

use super::segment_of;
use crate::chunk::{BLOCKS_PER_CHUNK, BLOCKS_PER_SEGMENT, BlockId, Run, SegmentId};
use crate::swarm::link::by_chunk;
use crate::swarm::{LinkId, Node};
use crate::wire::frame::{Frame, WANTED};

impl Node {
    /// Asks for what no offer will bring soon.
    pub(in crate::swarm) fn pull(&mut self) {
        let store = &self.store;
        self.requests.demands.retain(|demand| !demand.run.blocks().all(|block| store.has(block)));
        if self.me.origin {
            return self.prepare_demands();
        }
        self.let_read_ahead_wait();
        let mut room = self.policy.pulls.saturating_sub(self.pulls_under_way());
        let piece = self.policy.piece(self.gossip.rate());
        let offers_come = self.offers_come();
        for (index, demand) in self.requests.demands.clone().into_iter().enumerate() {
            for run in self.missing(demand.run) {
                if room == 0 {
                    return;
                }
                let chunk = BlockId { object: run.object, index: run.first }.chunk();
                let offered = self.requests.in_window(chunk).get(run.first - chunk.first_block());
                let waited = self.now.since(demand.since);
                let idle = self.requests.downloads.is_empty();
                // Whoever jumps about is in no herd that a copy would serve.
                let starving = !offered || waited >= self.patience(idle);
                // Inside a window neighbours and origin offer by themselves; a pull would bring a copy too many.
                // Asking is cheap, since the origin refuses what comes from others: so it is asked as early as anywhere.
                if offered && waited < self.policy.patience(0, idle) {
                    continue;
                }
                // And a piece at a time: what one neighbour owes nobody else brings. (A megabyte that the first of 32 readers at
                // 25 Mbit/s pulled from the origin took 3.7 s, and everybody starved for it.)
                if offered && offers_come && self.is_pulled(demand.run) {
                    continue;
                }
                let count = if offered { run.count.min(piece) } else { run.count };
                if self.want(Run { count, ..run }, starving, Some(index)) {
                    room -= 1;
                }
            }
        }
        if std::mem::take(&mut self.requests.window_lost) {
            self.rebuild_window();
        }
        self.pull_orphans(room);
    }

    /// A kernel that reads a file ahead asks for 2 MiB and more at once, and nobody waits yet for what follows other reads:
    /// at 25 Mbit/s they are 0.6 s long. (Pulled after 0.2 s each the last of 32 readers took 1.11 instead of 1.07 of the
    /// ideal time between namespaces, and 1.125 instead of 1.056 in the simulator.)
    fn let_read_ahead_wait(&mut self) {
        let demands = &mut self.requests.demands;
        let mut runs: Vec<_> =
            demands.iter().map(|demand| (demand.run.object, demand.run.first, demand.run.end())).collect();
        runs.sort_unstable();
        for demand in demands {
            let Run { object, first, .. } = demand.run;
            // Reads need not begin where blocks do: then one has the block in which the one before it ends.
            let before = runs.partition_point(|(other, begin, _)| (*other, *begin) < (object, first));
            let follows = runs[..before].last().is_some_and(|(other, _, end)| *other == object && *end >= first);
            if follows {
                demand.since = self.now;
            }
        }
    }

    /// The window's head may be at no neighbour: then, after a while, the origin is asked for it and what follows.
    pub(super) fn pull_orphans(&mut self, mut room: usize) {
        let piece = self.policy.piece(self.gossip.rate());
        let window = self.requests.window.clone();
        let pulled = self.pulls_under_way();
        if self.gossip.best_rate() == 0 {
            // One pull shows whether the origin is there for this node alone.
            room = room.min(1usize.saturating_sub(pulled));
        }
        let offers_come = self.offers_come();
        if offers_come {
            // Only what they leave out is pulled, a little at a time, since the origin is everybody's.
            room = room.min((self.policy.urgent as usize).saturating_sub(pulled));
        }
        let mut head = true;
        for run in window {
            for missing in self.missing(run) {
                let block = BlockId { object: missing.object, index: missing.first };
                let at_neighbour = self.links.values().any(|link| {
                    !link.origin
                        && link.is_credible(self.now)
                        && link.has_taken(block.chunk(), block.index % BLOCKS_PER_CHUNK)
                });
                if head {
                    head = false;
                    if at_neighbour {
                        (self.requests.orphan, self.requests.starving) = (None, false);
                        return;
                    }
                    // Offers move the head on; only a block that stays at the head that long is nobody's.
                    let since = match self.requests.orphan {
                        Some((same, since)) if same == block => since,
                        _ => self.now,
                    };
                    self.requests.orphan = Some((block, since));
                    let idle = self.requests.downloads.is_empty();
                    let patience = self.patience(idle);
                    // Whoever lives by pulls alone does not wait for each.
                    let pulls_on = self.requests.starving && !offers_come;
                    if !pulls_on && self.now.since(since) < patience {
                        return;
                    }
                    self.counters.starved += 1;
                }
                if room == 0 {
                    return;
                }
                if !at_neighbour && self.want(Run { count: missing.count.min(piece), ..missing }, true, None) {
                    self.requests.starving = true;
                    room -= 1;
                }
            }
        }
        if head {
            (self.requests.orphan, self.requests.starving) = (None, false);
        }
    }

    /// How long what is at no neighbour is left to them: whoever has none has nothing to wait for.
    pub(super) fn patience(&self, idle: bool) -> u64 {
        let alone = !self.links.values().any(|link| link.greeted && !link.origin && !link.is_doubted(self.now));
        self.policy.patience(if alone { 0 } else { self.gossip.best_rate() }, idle)
    }

    /// The stretches of a run that are neither here nor awaited, each inside one segment.
    pub(super) fn missing(&self, run: Run) -> Vec<Run> {
        let mut stretches = Vec::new();
        for (chunk, range) in by_chunk(run) {
            let start = chunk.first_block();
            for (mut first, end) in range.minus(&self.store.taken(chunk)).runs() {
                while first < end {
                    let stop = end.min((first / BLOCKS_PER_SEGMENT + 1) * BLOCKS_PER_SEGMENT);
                    stretches.push(Run { object: chunk.object, first: start + first, count: stop - first });
                    first = stop;
                }
            }
        }
        stretches
    }

    /// Whether some of a run was asked for and is on its way.
    fn is_pulled(&self, run: Run) -> bool {
        self.requests.downloads.iter().any(|d| d.transfer & WANTED != 0 && d.run.overlaps(run))
    }

    pub(super) fn pulls_under_way(&self) -> usize {
        self.requests.downloads.iter().filter(|d| d.transfer & WANTED != 0).count()
    }

    /// Whether something that was offered is on its way.
    fn offers_come(&self) -> bool {
        self.requests.downloads.iter().any(|d| d.transfer & WANTED == 0)
    }

    /// Asks one neighbour, or else an origin, for a run. False if nobody can be asked now.
    pub(super) fn want(&mut self, run: Run, starving: bool, demand: Option<usize>) -> bool {
        let segment = segment_of(run);
        let (chunk, block) = (segment.chunk(), run.first % BLOCKS_PER_CHUNK);
        let busy = |id: LinkId| self.requests.downloads.iter().filter(|d| d.link == id).count();
        let free = |id: LinkId| !self.requests.refused.contains_key(&(id, segment));
        let origins = self.links.iter().filter(|(id, link)| link.greeted && link.origin && free(**id));
        let origin = origins.min_by_key(|(_, link)| (!link.is_proven(), link.record.broken)).map(|(id, _)| *id);
        // What a stranger says it has is believed where nobody else is there, or by who jumps about: an origin alone would
        // have to serve all of those.
        let jumps = !self.requests.in_window(chunk).get(block);
        let believes = origin.is_none() || jumps;
        let mut holders: Vec<(usize, LinkId)> = self
            .links
            .iter()
            .filter(|(_, link)| link.greeted && !link.origin && !link.is_doubted(self.now))
            .filter(|(id, link)| (believes || link.is_credible(self.now)) && link.has_taken(chunk, block) && free(**id))
            .map(|(id, _)| (busy(*id), *id))
            .collect();
        let least = holders.iter().map(|(busy, _)| *busy).min();
        holders.retain(|(busy, _)| Some(*busy) == least);
        let Some(id) = self.rng.choice(holders).map(|(_, id)| id).or(origin) else { return false };
        let transfer = WANTED | self.requests.next_want;
        if !self.begin_download(id, transfer, run, demand) {
            return false;
        }
        self.requests.next_want = (self.requests.next_want + 1) & !WANTED;
        self.send(id, Frame::Want { transfer, starving, run });
        self.requests.left_out += u32::from(starving && !jumps && Some(id) == origin);
        // An origin refuses a crowd that begins what it reads on in; their headers alone would keep it busy. (With 100 readers
        // at 25 Mbit/s for a second.) They are asked for when it sends.
        if jumps || Some(id) != origin {
            self.ask_header(id, segment);
        }
        true
    }

    pub(super) fn prepare_demands(&mut self) {
        let mut segments: Vec<(SegmentId, usize)> = Vec::new();
        for (index, demand) in self.requests.demands.iter().enumerate() {
            for run in self.missing(demand.run) {
                segments.push((segment_of(run), index));
            }
        }
        segments.dedup_by_key(|(segment, _)| *segment);
        for (segment, demand) in segments {
            self.prepare_for(segment, Some(demand));
        }
    }
}
