//! The numbers the swarm decides by, each with its reason. Times are in microseconds.

use super::gossip::MAX_ORIGINS;
use crate::chunk::{BLOCK, BLOCKS_PER_CHUNK};
use crate::wire::frame::MAX_OFFER;

const MS: u64 = 1_000;
/// The weight of a whole piece.
pub const WHOLE: usize = 8;
/// Bytes a second from which on a network is fast.
const FAST: u64 = 60_000_000;

#[derive(Clone, PartialEq, Debug)]
pub struct Policy {
    /// Blocks that may be held or awaited: the byte budget less the pages' share.
    pub budget_blocks: u32,
    /// Bytes of catalogue pages kept.
    pub page_budget: u64,
    /// How far ahead of its reader a node fetches: 48 MiB; 32 is as good, more only keeps peers apart.
    pub window_blocks: u32,
    /// Blocks in the longest piece, a power of two.
    pub most_piece: u32,
    /// How long changes are gathered before neighbours are told: below 40 Mbit/s, below 480 Mbit/s, above. Half as long
    /// makes half of all frames out of these, and saves 0.4 % of the time at the most; at 25 Mbit/s, where each costs most of
    /// its link, nothing.
    pub coalesce: [u64; 3],
    /// The same before the rate was measured.
    pub coalesce_first: u64,
    /// Bytes that a link's kernel queue may hold unsent, below 480 Mbit/s and above.
    pub unsent: [u32; 2],
    /// Uploads of whole pieces at once over all links, and offers and accepted transfers ahead of them.
    pub uploads: usize,
    /// Those ahead: below 40 Mbit/s, where an answer takes longest, below 480 Mbit/s, above.
    pub uploads_ahead: [usize; 3],
    /// The same of an origin: more in parallel makes every piece at the front late for everybody. Below 40 Mbit/s (with four
    /// the last of 32 readers at 25 Mbit/s took 1.055 instead of 1.052 of the ideal time), below 480 Mbit/s, above.
    pub origin_uploads: [usize; 3],
    pub origin_ahead: usize,
    /// Neighbours that data is sent to at once at the most, and bytes a second that may be sent, if somebody said so.
    pub slots: Option<usize>,
    pub upload: Option<u64>,
    /// A link carries at least this many transfers before others get more: below 40 Mbit/s, where each is long on its way,
    /// below 480 Mbit/s, above.
    pub per_link: [usize; 3],
    /// Blocks behind the median of one's neighbours from which on a reader counts as behind, and may have one transfer more
    /// of each: below 40 Mbit/s, below 480 Mbit/s, above. With 16 uploads ahead each neighbour shares its upload among ten,
    /// and whoever has only eight of them falls behind. (Without this and the links beyond the last of 32 readers at
    /// 25 Mbit/s took 1.059 instead of 1.049 of the ideal time, the last of 128 1.137 instead of 1.084. With 12 ahead and
    /// without this it is 1.047 and 1.083 in the simulator, but 1.063 instead of 1.052 on the network. At 100 Mbit/s it
    /// changes nothing.)
    pub behind: [Option<u64>; 3],
    /// Transfers that a reader shows room for: below 40 Mbit/s, where each is long on its way, below 480 Mbit/s, above. (With
    /// 16 the last of 32 readers at 25 Mbit/s took 1.056 instead of 1.050 of the ideal time, with 12 it was 1.086.)
    pub downloads: [usize; 3],
    /// What it accepts beyond, since maps are late: below 40 Mbit/s, below 480 Mbit/s, above. (Without it the last of 50
    /// readers at 1 Gbit/s, where one in twenty lost power, took 1.10 instead of 1.07 of one reader's time.)
    pub downloads_extra: [usize; 3],
    /// Runs in an offer, of which the receiver takes the one that it needs most. (Maps are late: with a single one all senders
    /// offer the same first pieces. The last of 32 readers at 25 Mbit/s then took 1.1 to 1.25 of one reader's time instead of
    /// 1.04 in the simulator, on the network 1.63 instead of 1.06; with two it is 1.05.)
    pub alternatives: usize,
    /// Offers go to the neighbour with the lowest position instead of the one with the fewest blocks. Only the benches and
    /// the simulator's tests ask for it, to show that all then push at the same laggard. (1.048 instead of 1.042; on the
    /// network 1.062 instead of 1.057.)
    pub herd: bool,
    /// A neighbour in another rack counts as this much farther ahead, in steps of 256 KiB: what its own rack has it gets
    /// there, and what crosses is what nobody there has. (The last of 50 readers of 256 MiB, 14 to a switch
    /// behind 4 Gbit/s, took 1.25 of one reader's time; with most links inside 1.19, and with this 1.12.)
    pub crossing: u64,
    /// Chunks that a node keeps longer than others, each node others, so that whoever comes late finds them. (Of 25 readers
    /// that started over half a minute up to 2.8 copies left the origin without it, and 2.2 with it.)
    pub pinned: usize,
    /// Links a node keeps to other readers.
    pub links: usize,
    /// Links beyond those that a reader opens, and keeps, that is so far behind, or has strayed from its neighbours.
    pub links_to_catch_up: usize,
    /// How often a reader looks whether its neighbours are of use, if it does, and how seldom where it finds no others. (Without
    /// it 100 slow ones of 1,000 readers of 1 GiB were not done in three times their time; with it they take 1.00, and 1.03
    /// copies leave the origin. Of 50 that start over half a minute the last takes 1.05 instead of 1.09.)
    pub look: Option<[u64; 2]>,
    /// How many of those it opens lead to other racks where it opens all, if its own has enough for the rest. If all may,
    /// nobody asks for racks.
    pub outside: usize,
    /// Pieces at the front of a window that go before the others. (With 2 the last of 250 readers at 1 Gbit/s took 3 % longer,
    /// with none 5 %.)
    pub urgent: u32,
    /// The head of the window may be missing at every neighbour for this long before the origin is asked for it: below 40
    /// Mbit/s, where a piece is that long on its way from neighbour to neighbour, below 480 Mbit/s, above. (With 200 ms 32
    /// readers at 25 Mbit/s drew 1.6 copies from the origin, with these times 1.09.)
    pub starve: [u64; 3],
    /// The same when nothing else is on its way.
    pub starve_idle: [u64; 3],
    /// A first copy so young may still be on its way to whoever starves for it.
    pub fresh: [u64; 3],
    /// Pieces pulled at once by readers that no offers reach.
    pub pulls: usize,
    /// A link that is in use and silent for this long is dead.
    pub silence: u64,
    /// One that is silent for this long is counted on for nothing until it speaks again: below 40 Mbit/s, below 480
    /// Mbit/s, above. A window is read in less than it takes to call a link dead, and what only that neighbour had stops
    /// everybody.
    pub hush: [u64; 3],
    /// The same of a link that nobody uses.
    pub silence_idle: u64,
    /// Whether what strangers promise is passed on with its first bytes, as long as nobody breaks a promise: below 40 Mbit/s,
    /// where a block is long on its way and all are strangers at the start (the last of 32 readers at 25 Mbit/s took 1.09
    /// instead of 1.07 of the ideal time), below 480 Mbit/s, above. Before the rate was measured it counts as low.
    pub trusts: [bool; 3],
    /// A STATE at least this often over a link in use, and over one that is not.
    pub keepalive: [u64; 3],
    pub keepalive_idle: u64,
    /// How often a reader reports to an origin; faster costs the origin's uplink 1 - 2 %.
    pub report: u64,
    /// How often a node in use looks what is late: below 40 Mbit/s, below 480 Mbit/s, above; and one that is not.
    pub tick: [u64; 3],
    pub idle_tick: u64,
}

impl Policy {
    /// The defaults for a node that may hold `budget` bytes in all. `budget` is at least 32 MiB (`settings`).
    pub fn with_budget(budget: u64) -> Policy {
        // The catalogue takes an eighth; the rest is chunks.
        let page_budget = budget / 8;
        let blocks = ((budget - page_budget) / BLOCK as u64).min(u32::MAX as u64) as u32;
        Policy {
            budget_blocks: blocks,
            page_budget,
            // A window may straddle one chunk more than it is long, and something behind it must stay for peers.
            window_blocks: (3 * BLOCKS_PER_CHUNK).min(blocks.saturating_sub(BLOCKS_PER_CHUNK) * 4 / 5),
            most_piece: 32,
            coalesce: [80 * MS, 20 * MS, 10 * MS],
            coalesce_first: 40 * MS,
            unsent: [16 * 1024, 128 * 1024],
            uploads: 4,
            uploads_ahead: [16, 8, 8],
            origin_uploads: [6, 4, 4],
            origin_ahead: 3,
            slots: None,
            upload: None,
            per_link: [2, 1, 1],
            behind: [Some(16), None, None],
            downloads: [24, 16, 16],
            downloads_extra: [0, 0, 4],
            alternatives: MAX_OFFER,
            herd: false,
            crossing: 32,
            pinned: 2,
            links: 16,
            links_to_catch_up: 2,
            look: Some([1_000 * MS, 10_000 * MS]),
            outside: 3,
            urgent: 8,
            starve: [1_400 * MS, 200 * MS, 200 * MS],
            starve_idle: [500 * MS, 50 * MS, 50 * MS],
            fresh: [1_500 * MS, 500 * MS, 500 * MS],
            pulls: 16,
            silence: 1_000 * MS,
            hush: [600 * MS, 400 * MS, 200 * MS],
            silence_idle: 30_000 * MS,
            trusts: [true, false, false],
            keepalive: [300 * MS, 100 * MS, 60 * MS],
            keepalive_idle: 10_000 * MS,
            report: 200 * MS,
            tick: [20 * MS, 10 * MS, 5 * MS],
            idle_tick: 100 * MS,
        }
    }

    /// What whoever runs the node allows it to send to others.
    pub fn limit_uploads(&mut self, rate: Option<u64>, slots: Option<u16>) {
        self.upload = rate;
        self.slots = slots.map(|slots| usize::from(slots).max(1));
    }

    /// The rate that uploads are cut by: pieces as long as the link could carry would be on their way for too long.
    pub fn upload_rate(&self, rate: u64) -> u64 {
        rate.min(self.upload.unwrap_or(u64::MAX))
    }

    /// Whole pieces that may wait to be sent: no more than a second's, or who waits for them would take this node for dead.
    pub fn most_queued(&self, queued: usize) -> usize {
        let second = |limit: u64| (limit / (self.piece(limit) as u64 * BLOCK as u64)).max(1) as usize;
        self.upload.map_or(queued, |limit| queued.min(second(limit)))
    }

    /// Connections in both directions: twice what a node opens is the mean of a crowd. An origin knows everybody.
    pub fn most_links(&self, rate: u64, origin: bool) -> usize {
        if origin { 16_384 } else { 2 * self.links(rate) }
    }

    /// Connections that come from one address. A host has at most 16 nodes, and nobody needs all of them for neighbours.
    pub fn most_of_an_address(&self, rate: u64, origin: bool) -> usize {
        (self.most_links(rate, origin) / 4).min(16)
    }

    /// All connections, those being opened among them: what comes in, what is dialled, and origins that answered.
    pub fn most_connections(&self, origin: bool) -> usize {
        self.most_links(u64::MAX, origin) + 3 * self.links + MAX_ORIGINS
    }

    /// Links that a node opens to other readers: each costs the acknowledgements of its STATEs, both ways, and may send when
    /// all do, into one switch port's queue. As many are opened towards it. (Below 480 Mbit/s with all 16 the last of 32
    /// readers at 100 Mbit/s took 1.07 instead of 1.03.)
    pub fn links(&self, rate: u64) -> usize {
        by_rate([self.links / 2, self.links * 3 / 4, self.links], rate)
    }

    /// How many of those lead to other racks: as large a part at each rate. (With 3 of 12 at 100 Mbit/s 8.7 of 28 copies crossed
    /// between two racks, with 2 it is 6.9, and the last reader is no later.)
    pub fn outside(&self, rate: u64) -> usize {
        (self.outside * self.links(rate) + self.links / 2) / self.links
    }

    /// Blocks in a piece at a rate in bytes a second: 7.5 to 15 ms of it. 64 KiB at 25 Mbit/s, 128 KiB at 100 Mbit/s,
    /// 1 MiB at 1 Gbit/s.
    pub fn piece(&self, rate: u64) -> u32 {
        let blocks = (rate / 200 * 3 / BLOCK as u64).clamp(2, self.most_piece as u64) as u32;
        1 << blocks.ilog2()
    }

    /// What a transfer of so many bytes counts, in eighths of a whole piece: many small files travel at once where one
    /// piece of a large one would. Half a piece counts as a whole one: it is one to neighbours just under the next length,
    /// and whoever took twice as many of theirs would take them from others. (The last of 32 readers at 300 Mbit/s took
    /// 1.11 instead of 1.04 of one reader's time.)
    pub fn weight(&self, bytes: u64, rate: u64) -> usize {
        let piece = self.piece(rate) as u64 * BLOCK as u64;
        (2 * bytes * WHOLE as u64).div_ceil(piece).clamp(1, WHOLE as u64) as usize
    }

    /// Bytes that a link's kernel queue may hold unsent: control waits behind them, about a millisecond; on a fast link
    /// fewer would cost a wake-up for every few blocks.
    pub fn unsent(&self, rate: u64) -> u32 {
        self.unsent[usize::from(self.is_fast(rate))]
    }

    /// 480 Mbit/s and more; what was not measured yet is not.
    pub fn is_fast(&self, rate: u64) -> bool {
        rate >= FAST
    }

    /// How long the head of a window may be at no neighbour, at a rate in bytes a second; 0 is not measured yet.
    pub fn patience(&self, rate: u64, idle: bool) -> u64 {
        by_rate(if idle { self.starve_idle } else { self.starve }, known(rate))
    }

    /// How long a first copy may be on its way to everybody, at an origin's rate in bytes a second.
    pub fn fresh(&self, rate: u64) -> u64 {
        by_rate(self.fresh, known(rate))
    }

    /// How long changes are gathered at a rate in bytes a second; 0 is not measured yet.
    pub fn coalesce(&self, rate: u64) -> u64 {
        if rate == 0 { self.coalesce_first } else { by_rate(self.coalesce, rate) }
    }

    /// How often a node in use looks what is late at a rate in bytes a second; 0 is not measured yet.
    pub fn tick(&self, rate: u64) -> u64 {
        by_rate(self.tick, known(rate))
    }

    /// Transfers over a link before others get more at a rate in bytes a second.
    pub fn per_link(&self, rate: u64) -> usize {
        by_rate(self.per_link, rate)
    }

    /// Transfers that a reader shows room for at a rate in bytes a second; 0 is not measured yet.
    pub fn downloads(&self, rate: u64) -> usize {
        by_rate(self.downloads, known(rate))
    }

    /// Transfers that a reader has on their way at the most, at a rate in bytes a second.
    pub fn accepted(&self, rate: u64) -> usize {
        self.downloads(rate) + by_rate(self.downloads_extra, rate)
    }

    /// The same at any rate.
    pub fn most_accepted(&self) -> usize {
        let sums = self.downloads.iter().zip(&self.downloads_extra).map(|(shown, extra)| shown + extra);
        sums.max().unwrap_or(0)
    }

    /// Whole pieces that an origin sends at once at a rate in bytes a second; 0 is not measured yet.
    pub fn origin_uploads(&self, rate: u64) -> usize {
        by_rate(self.origin_uploads, known(rate))
    }

    /// Offers and accepted transfers ahead of those being sent at a rate in bytes a second.
    pub fn ahead(&self, rate: u64) -> usize {
        by_rate(self.uploads_ahead, rate)
    }

    /// How far behind its neighbours a reader may be at a rate in bytes a second before it gets more than others, if it ever
    /// does; 0 is not measured yet.
    pub fn behind(&self, rate: u64) -> Option<u64> {
        by_rate(self.behind, known(rate))
    }

    /// How long a node in use is silent at the most at a rate in bytes a second: a third of what is noticed.
    pub fn keepalive(&self, rate: u64) -> u64 {
        by_rate(self.keepalive, rate)
    }

    /// Whether strangers' promises are passed on at a rate in bytes a second.
    pub fn trusts(&self, rate: u64) -> bool {
        by_rate(self.trusts, rate)
    }

    /// How long a neighbour may be silent at a rate in bytes a second before nothing is expected of it.
    pub fn hush(&self, rate: u64) -> u64 {
        by_rate(self.hush, rate)
    }
}

/// Before it was measured a network is taken for a fast one: who begins must not wait.
fn known(rate: u64) -> u64 {
    if rate == 0 { u64::MAX } else { rate }
}

fn by_rate<T>([slow, common, fast]: [T; 3], rate: u64) -> T {
    match rate {
        0..5_000_000 => slow,
        5_000_000..FAST => common,
        _ => fast,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_and_what_is_behind_it_fit_the_least_budget() {
        for mib in [32, 64, 256, 8192] {
            let policy = Policy::with_budget(mib << 20);
            assert!(policy.window_blocks + BLOCKS_PER_CHUNK <= policy.budget_blocks, "{mib} MiB");
            assert!(policy.window_blocks >= 128, "{mib} MiB");
        }
        assert_eq!(Policy::with_budget(256 << 20).window_blocks, 1536);
    }

    #[test]
    fn a_slow_upload_promises_no_more_than_it_can_send_soon() {
        let mut policy = Policy::with_budget(256 << 20);
        assert_eq!(policy.most_queued(12), 12);
        policy.limit_uploads(Some(64 << 10), Some(0));
        assert_eq!((policy.most_queued(12), policy.slots), (1, Some(1)));
        policy.limit_uploads(Some(10_000_000), None);
        assert_eq!(policy.most_queued(12), 12);
    }

    #[test]
    fn small_transfers_weigh_less_than_a_piece_and_none_weighs_nothing() {
        let policy = Policy::with_budget(256 << 20);
        let weights = [1, 16 << 10, 64 << 10, 1 << 20].map(|bytes| policy.weight(bytes, 12_500_000));
        assert_eq!(weights, [1, 2, 8, 8]);
    }

    #[test]
    fn pieces_follow_the_rate() {
        let policy = Policy::with_budget(256 << 20);
        let kib = |mbit: u64| policy.piece(mbit * 1_000_000 / 8) * BLOCK / 1024;
        let lengths = [kib(0), kib(25), kib(100), kib(400), kib(1_000), kib(u64::MAX / 1_000_000)];
        assert_eq!(lengths, [64, 64, 128, 512, 1024, 1024]);
    }
}
