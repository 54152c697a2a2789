//! Which requests of the legacy protocol are answered, when, and how often.
//!
//! The calling contract: `consider` hears of every request; for one that it lets pass the caller looks up what is asked
//! for, and `decide` says whether it is sent. A grant takes a slot until `ended`. `sent` and `ended` tell how fast the
//! network is. Time and chances come in; nothing here owns a socket, a clock or a thread.
//!
//! What it keeps: one transfer per address, a cap in all; the same chunk is not read from disk twice within `PAUSE`; an
//! address is not connected to twice within `PAUSE`, unless it has just taken a whole answer and asks for another chunk:
//! whoever can forge a request's source cannot do that. Nothing is begun that would not end within `FINISH`. Native
//! readers come first.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::num::NonZeroUsize;

use lru::LruCache;

use crate::chunk::ChunkId;
use crate::swarm::Time;

const MS: u64 = 1_000;
const SECOND: u64 = 1_000 * MS;
/// Between two connections to one address, and between two readings of one chunk.
const PAUSE: u64 = SECOND;
/// How long a transfer may be expected to take: an original gives up after 16 s, and kills itself doing so.
const FINISH: u64 = 8 * SECOND;
/// How long one takes that is to disturb native peers as little as can be.
const GENTLE: u64 = 7 * SECOND;
/// The same where the network is so slow that one transfer alone takes longer than `FINISH`.
const FINISH_ALONE: u64 = 13 * SECOND;
/// How long a measured rate is believed.
const FRESH: u64 = 60 * SECOND;
/// A request that is repeated after more than this is a new one: askers repeat theirs every 100 ms.
const REPEATED: u64 = SECOND;
/// An answer waits for a random part of this, so that of several holders not all connect.
const SPREAD: u64 = 20 * MS;
/// How many of the holders are to answer.
const ANSWERS: u32 = 3;
/// Of what a link carries, this part may be taken from native peers: with 13 % the last of four mounts was 17 % later.
const SHARE: u64 = 20;
/// What a link is taken to carry that nobody has measured yet: 100 Mbit/s.
const RATE: u64 = 12_000_000;
/// How much longer an origin waits that sends to native peers: it may be the only one that they get the chunk from.
const YIELD_ORIGIN: u64 = 3 * SECOND;
/// How long an origin leaves a request to others that have the chunk.
const LEAVE: u64 = 300 * MS;
/// Addresses and chunks remembered.
const ADDRESSES: NonZeroUsize = NonZeroUsize::new(4096).expect("not 0");
const CHUNKS: NonZeroUsize = NonZeroUsize::new(4096).expect("not 0");
/// Requests of strangers that are looked up in a second: far more than can be answered.
const LOOKUPS: u32 = 500;
/// Over how long the rate is measured.
const SAMPLE: u64 = 250 * MS;

/// What does not change while a node runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Transfers at once, each of which may pin a chunk's memory.
    pub slots: usize,
    /// The most bytes a second that the node may send.
    pub rate: Option<u64>,
    /// Whether the node has the whole tree, and so leaves what others have to them.
    pub origin: bool,
}

/// What was found of a request, and what the node is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    pub chunk: ChunkId,
    pub len: u32,
    /// Whether the bytes are in memory.
    pub at_hand: bool,
    /// Native neighbours that have the chunk.
    pub holders: u32,
    /// Whether this node sends to native neighbours at the moment.
    pub sending: bool,
    /// Bytes a second that its links carry; 0 if unknown.
    pub rate: u64,
}

impl Case {
    /// How long somebody must have asked before native peers are disturbed, so that over time they keep all but their
    /// `SHARE`.
    fn patience(&self) -> u64 {
        let rate = if self.rate == 0 { RATE } else { self.rate };
        takes(u64::from(self.len) * SHARE, rate).saturating_sub(GENTLE)
    }
}

/// Why nothing is sent. Askers ask again, so most of these only put it off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Silence {
    /// It is being answered, or was a moment ago.
    Recent,
    /// All slots are taken.
    Full,
    /// Too many strangers ask.
    Busy,
    /// It would take too long.
    Slow,
    /// Native readers or other holders go first.
    Yield,
    /// Others have it too, and chance left it to them.
    Chance,
    /// The chunk was read from disk a moment ago.
    Read,
}

/// What may be sent, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    /// Microseconds to wait before connecting.
    pub delay: u64,
    /// Bytes a second at most.
    pub rate: Option<u64>,
}

/// What an address asks for.
#[derive(Clone, Debug, Default)]
struct Ask {
    text: String,
    /// When it was asked first and last.
    first: Time,
    last: Time,
}

/// The last connection to an address. These are kept apart from what is asked: requests are easily forged, and a flood of
/// them must not make forget who was connected to.
#[derive(Clone, Debug)]
struct Served {
    text: String,
    began: Time,
    /// When it ended with all bytes taken.
    took: Option<Time>,
}

pub struct Desk {
    limits: Limits,
    asks: LruCache<Ipv4Addr, Ask>,
    served: LruCache<Ipv4Addr, Served>,
    /// Who is being sent to, and whether more slowly than the network could.
    active: BTreeMap<Ipv4Addr, bool>,
    reads: LruCache<ChunkId, Time>,
    lookups: Lookups,
    random: fastrand::Rng,
    /// Bytes granted and not yet sent.
    owed: u64,
    rate: Option<(u64, Time)>,
    sample: Option<Sample>,
}

/// What may be looked up in this second.
struct Lookups {
    left: u32,
    since: Time,
}

impl Lookups {
    fn take(&mut self, now: Time) -> bool {
        if now.since(self.since) >= SECOND {
            *self = Lookups { left: LOOKUPS, since: now };
        }
        let any = self.left > 0;
        self.left = self.left.saturating_sub(1);
        any
    }
}

/// Bytes sent since a moment from which on something was always being sent.
struct Sample {
    since: Time,
    bytes: u64,
    /// It tells of a pace that was chosen, not of the network.
    paced: bool,
}

impl Desk {
    pub fn new(limits: Limits, seed: u64) -> Desk {
        Desk {
            limits,
            asks: LruCache::new(ADDRESSES),
            served: LruCache::new(ADDRESSES),
            active: BTreeMap::new(),
            reads: LruCache::new(CHUNKS),
            lookups: Lookups { left: LOOKUPS, since: Time(0) },
            random: fastrand::Rng::with_seed(seed),
            owed: 0,
            rate: None,
            sample: None,
        }
    }

    /// A request arrived: whether it is worth being looked up.
    pub fn consider(&mut self, from: Ipv4Addr, text: &str, now: Time) -> Result<(), Silence> {
        let ask = self.asks.get_or_insert_mut(from, Ask::default);
        if ask.text != text || now.since(ask.last) > REPEATED {
            (ask.text, ask.first) = (text.to_owned(), now);
        }
        ask.last = now;
        let recent = self.served.peek(&from).is_some_and(|served| {
            let goes_on = took(served, now) && served.text != text;
            now.since(served.began) < PAUSE && !goes_on
        });
        if recent || self.active.contains_key(&from) {
            return Err(Silence::Recent);
        }
        if self.active.len() >= self.limits.slots {
            return Err(Silence::Full);
        }
        let known = self.served.peek(&from).is_some_and(|served| took(served, now));
        if known || self.lookups.take(now) { Ok(()) } else { Err(Silence::Busy) }
    }

    /// Decides on a request that was considered just now. A grant takes a slot.
    pub fn decide(&mut self, from: Ipv4Addr, case: Case, now: Time) -> Result<Grant, Silence> {
        // The look-up may have taken a while.
        let ask = self.asks.peek(&from).filter(|_| !self.active.contains_key(&from)).cloned();
        let Some(ask) = ask else { return Err(Silence::Recent) };
        let proven = self.served.peek(&from).is_some_and(|served| took(served, now));
        self.has_room(proven, case.sending)?;
        let rate = self.has_time(case, now)?;
        let asked = now.since(ask.first);
        let wait = match (self.limits.origin, case.sending) {
            (true, true) => case.patience() + YIELD_ORIGIN,
            (false, true) => case.patience(),
            // A stranger may be the first of many that start together, native readers among them: a chunk begun a moment
            // before them would be taken from theirs.
            (true, false) if case.holders > 0 || !proven => LEAVE,
            _ => 0,
        };
        if asked < wait {
            return Err(Silence::Yield);
        }
        // The origin has waited for the others already.
        if !self.limits.origin && self.random.u32(..case.holders.saturating_add(1)) >= ANSWERS {
            return Err(Silence::Chance);
        }
        if !case.at_hand {
            if self.reads.peek(&case.chunk).is_some_and(|at| now.since(*at) < PAUSE) {
                return Err(Silence::Read);
            }
            self.reads.put(case.chunk, now);
        }
        self.active.insert(from, rate.is_some());
        let paced = self.is_paced();
        let sample = self.sample.get_or_insert(Sample { since: now, bytes: 0, paced });
        sample.paced |= paced;
        self.owed += u64::from(case.len);
        self.served.put(from, Served { text: ask.text, began: now, took: None });
        Ok(Grant { delay: self.random.u64(..SPREAD), rate })
    }

    /// Half of the slots are for those who have shown that they take what they ask for: a flood of forged requests does
    /// not end what is under way. While native neighbours are sent to there is one.
    fn has_room(&self, proven: bool, sending: bool) -> Result<(), Silence> {
        let slots = if proven { self.limits.slots } else { self.limits.slots.div_ceil(2) };
        let slots = if sending { slots.min(1) } else { slots };
        if self.active.len() < slots { Ok(()) } else { Err(Silence::Full) }
    }

    /// Whether a transfer would end in time; the rate that it must keep to.
    fn has_time(&self, case: Case, now: Time) -> Result<Option<u64>, Silence> {
        let bytes = self.owed + u64::from(case.len);
        // Native peers have the other half.
        let limit = self.limits.rate.map(|rate| if case.sending { rate / 2 } else { rate });
        if limit.is_some_and(|limit| takes(bytes, limit) > FINISH) {
            return Err(Silence::Slow);
        }
        let measured = self.rate.filter(|(_, at)| now.since(*at) < FRESH).map(|(rate, _)| rate);
        let fits = match (self.active.len(), measured) {
            (0, Some(rate)) => takes(bytes, rate) <= FINISH_ALONE,
            (0, None) => true,
            // Nobody knows yet how fast this network is. A limit is chosen below what it can do.
            (_, None) => limit.is_some(),
            (_, Some(rate)) => takes(bytes, rate) <= FINISH,
        };
        if !fits {
            return Err(Silence::Slow);
        }
        // What must not disturb others takes the time that there is.
        let gentle = case.sending.then_some(u64::from(case.len) * SECOND / GENTLE + 1);
        let share = limit.map(|limit| limit / (self.active.len() as u64 + 1));
        Ok(gentle.into_iter().chain(share).min())
    }

    /// Bytes of a granted transfer went out.
    pub fn sent(&mut self, bytes: u64, now: Time) {
        self.owed = self.owed.saturating_sub(bytes);
        let paced = self.is_paced();
        let Some(sample) = &mut self.sample else { return };
        sample.bytes += bytes;
        if now.since(sample.since) >= SAMPLE {
            let before = std::mem::replace(sample, Sample { since: now, bytes: 0, paced });
            self.learn(before, now);
        }
    }

    /// A granted transfer ended, `left` of its bytes unsent; `whole` if the other side has taken all of it.
    pub fn ended(&mut self, from: Ipv4Addr, left: u64, whole: bool, now: Time) {
        self.active.remove(&from);
        self.owed = self.owed.saturating_sub(left);
        if let Some(served) = self.served.peek_mut(&from) {
            served.took = whole.then_some(now);
        }
        if self.active.is_empty()
            && let Some(sample) = self.sample.take()
            && sample.bytes >= SHORT
            && whole
        {
            self.learn(sample, now);
        }
    }

    fn is_paced(&self) -> bool {
        self.active.values().any(|paced| *paced)
    }

    fn learn(&mut self, sample: Sample, now: Time) {
        if sample.paced {
            return;
        }
        let rate = sample.bytes * SECOND / now.since(sample.since).max(1);
        let known = self.rate.filter(|(_, at)| now.since(*at) < FRESH).map_or(rate, |(rate, _)| rate);
        self.rate = Some(((known + rate) / 2, now));
    }
}

/// Whether what is sent to this address is taken.
fn took(served: &Served, now: Time) -> bool {
    served.took.is_some_and(|at| now.since(at) < FRESH)
}

/// A transfer of less tells of connections, not of the network.
const SHORT: u64 = 1 << 20;

/// Microseconds that bytes take at a rate.
fn takes(bytes: u64, rate: u64) -> u64 {
    bytes.saturating_mul(SECOND) / rate.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::{CHUNK, ObjectId};

    const LIMITS: Limits = Limits { slots: 4, rate: None, origin: false };

    fn chunk(index: u32) -> Case {
        let chunk = ChunkId { object: ObjectId([1; 16]), index };
        Case { chunk, len: CHUNK, at_hand: true, holders: 0, sending: false, rate: 0 }
    }

    fn host(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, last)
    }

    fn ask(desk: &mut Desk, from: u8, text: &str, case: Case, ms: u64) -> Result<Grant, Silence> {
        let now = Time(ms * MS);
        desk.consider(host(from), text, now)?;
        desk.decide(host(from), case, now)
    }

    /// Sends all of it within so many milliseconds.
    fn finish(desk: &mut Desk, to: u8, begin_ms: u64, took_ms: u64) {
        for part in 1..=16 {
            desk.sent(u64::from(CHUNK) / 16, Time((begin_ms + took_ms * part / 16) * MS));
        }
        desk.ended(host(to), 0, true, Time((begin_ms + took_ms) * MS));
    }

    #[test]
    fn an_asker_that_takes_its_chunks_gets_one_after_the_other_without_a_pause() {
        let mut desk = Desk::new(LIMITS, 1);
        for index in 0..5 {
            let (text, begin) = (format!("a@{index}"), u64::from(index) * 200);
            let grant = ask(&mut desk, 1, &text, chunk(index), begin).unwrap();
            assert!(grant.delay < SPREAD && grant.rate.is_none());
            assert_eq!(ask(&mut desk, 1, &text, chunk(index), begin + 100), Err(Silence::Recent), "being answered");
            finish(&mut desk, 1, begin, 150);
            assert_eq!(ask(&mut desk, 1, &text, chunk(index), begin + 160), Err(Silence::Recent), "a late repetition");
        }
    }

    #[test]
    fn an_address_that_does_not_take_what_it_asks_for_is_connected_to_once_a_second() {
        let mut desk = Desk::new(LIMITS, 1);
        let mut granted = 0;
        for ms in 0..10_000 {
            if ask(&mut desk, 1, &format!("a@{}", ms % 7), chunk(0), ms).is_ok() {
                granted += 1;
                desk.ended(host(1), u64::from(CHUNK), false, Time(ms * MS));
            }
        }
        assert_eq!(granted, 10);
    }

    #[test]
    fn a_chunk_is_read_from_disk_once_a_second_whoever_asks() {
        let mut desk = Desk::new(LIMITS, 1);
        let away = Case { at_hand: false, ..chunk(0) };
        let mut read = 0;
        for ms in 0..5_000 {
            let from = (ms % 250) as u8;
            if ask(&mut desk, from, "a@0", away, ms).is_ok() {
                read += 1;
                desk.ended(host(from), u64::from(CHUNK), false, Time(ms * MS));
            }
        }
        assert_eq!(read, 5);
    }

    #[test]
    fn strangers_cannot_take_the_slots_of_those_who_take_what_they_ask_for() {
        let mut desk = Desk::new(LIMITS, 1);
        ask(&mut desk, 1, "a@0", chunk(0), 0).unwrap();
        finish(&mut desk, 1, 0, 300);
        ask(&mut desk, 2, "a@0", chunk(0), 400).unwrap();
        ask(&mut desk, 3, "a@0", chunk(0), 400).unwrap();
        assert_eq!(ask(&mut desk, 4, "a@0", chunk(0), 400), Err(Silence::Full));
        ask(&mut desk, 1, "a@1", chunk(1), 400).unwrap();
    }

    #[test]
    fn nothing_is_begun_that_an_upload_limit_would_stretch_past_eight_seconds() {
        let mut slow = Desk::new(Limits { rate: Some(2 << 20), ..LIMITS }, 1);
        let grant = ask(&mut slow, 1, "a@0", chunk(0), 0).unwrap();
        assert_eq!(grant.rate, Some(2 << 20), "16 MiB at 2 MiB/s are just 8 s");
        assert_eq!(ask(&mut slow, 2, "a@0", chunk(0), 0), Err(Silence::Slow), "two at once are not");
        let small = Case { len: 1000, ..chunk(9) };
        let mut slower = Desk::new(Limits { rate: Some((2 << 20) - 1), ..LIMITS }, 1);
        assert_eq!(ask(&mut slower, 1, "a@0", chunk(0), 0), Err(Silence::Slow));
        ask(&mut slower, 1, "a@9", small, 0).unwrap();
    }

    #[test]
    fn on_a_slow_network_no_more_are_begun_than_can_end_in_time() {
        // 25 Mbit/s: a chunk takes 5.6 s.
        let mut desk = Desk::new(LIMITS, 1);
        ask(&mut desk, 1, "a@0", chunk(0), 0).unwrap();
        assert_eq!(ask(&mut desk, 2, "a@0", chunk(0), 10), Err(Silence::Slow), "nothing is known yet");
        finish(&mut desk, 1, 0, 5_600);
        ask(&mut desk, 2, "a@0", chunk(0), 6_000).unwrap();
        assert_eq!(ask(&mut desk, 3, "a@0", chunk(0), 6_010), Err(Silence::Slow));
        // 1 Gbit/s.
        let mut desk = Desk::new(Limits { slots: 8, ..LIMITS }, 1);
        ask(&mut desk, 1, "a@0", chunk(0), 0).unwrap();
        finish(&mut desk, 1, 0, 140);
        for from in 2..=5 {
            ask(&mut desk, from, "a@0", chunk(0), 200).unwrap();
        }
    }

    #[test]
    fn where_even_one_would_not_end_nothing_is_sent_until_the_measurement_is_old() {
        let mut desk = Desk::new(LIMITS, 1);
        ask(&mut desk, 1, "a@0", chunk(0), 0).unwrap();
        desk.sent(u64::from(CHUNK) / 2, Time(15 * SECOND));
        desk.ended(host(1), u64::from(CHUNK) / 2, false, Time(15 * SECOND));
        assert_eq!(ask(&mut desk, 1, "a@0", chunk(0), 20_000), Err(Silence::Slow));
        ask(&mut desk, 1, "a@0", chunk(0), 80_000).unwrap();
    }

    #[test]
    fn native_readers_go_first() {
        // 100 Mbit/s, and 1 Gbit/s, of which the same transfer takes a tenth as much.
        for (rate, origin, patience) in
            [(12_000_000, false, 21_000), (12_000_000, true, 24_000), (0, false, 21_000), (120_000_000, false, 0)]
        {
            let busy = Case { sending: true, rate, ..chunk(0) };
            let mut desk = Desk::new(Limits { origin, ..LIMITS }, 1);
            let mut ms = 0;
            let grant = loop {
                match ask(&mut desk, 1, "a@0", busy, ms) {
                    Ok(grant) => break grant,
                    Err(silence) => assert_eq!(silence, Silence::Yield),
                }
                ms += 100;
            };
            assert_eq!(ms, patience);
            let rate = grant.rate.expect("it is sent gently");
            assert!(u64::from(CHUNK) / rate <= 7, "and still in time");
            assert_eq!(ask(&mut desk, 2, "a@0", busy, ms), Err(Silence::Full), "one at a time");
            finish(&mut desk, 1, ms, 7_000);
            assert_eq!(desk.rate, None, "a chosen pace tells nothing of the network");
        }
    }

    #[test]
    fn an_origin_leaves_a_request_to_others_that_have_the_chunk() {
        let mut desk = Desk::new(Limits { origin: true, ..LIMITS }, 1);
        let held = Case { holders: 2, ..chunk(0) };
        assert_eq!(ask(&mut desk, 1, "a@0", held, 0), Err(Silence::Yield));
        assert_eq!(ask(&mut desk, 1, "a@0", held, 200), Err(Silence::Yield));
        ask(&mut desk, 1, "a@0", held, 300).unwrap();
        ask(&mut desk, 2, "b@0", chunk(0), 400).unwrap_err();
        let mut desk = Desk::new(Limits { origin: true, ..LIMITS }, 1);
        assert_eq!(ask(&mut desk, 2, "b@0", chunk(0), 400), Err(Silence::Yield), "native readers may start now, too");
        ask(&mut desk, 2, "b@0", chunk(0), 700).unwrap();
        finish(&mut desk, 2, 700, 150);
        ask(&mut desk, 2, "b@1", chunk(1), 860).unwrap();
    }

    #[test]
    fn a_flood_does_not_make_forget_who_is_sent_to() {
        let mut desk = Desk::new(LIMITS, 1);
        ask(&mut desk, 1, "a@0", chunk(0), 0).unwrap();
        for count in 0..10_000u32 {
            let _ = desk.consider(Ipv4Addr::from(count), "b@0", Time(u64::from(count)));
        }
        assert_eq!(ask(&mut desk, 1, "a@1", chunk(1), 20), Err(Silence::Recent));
        desk.ended(host(1), 0, false, Time(30 * MS));
        assert_eq!(ask(&mut desk, 1, "a@1", chunk(1), 40), Err(Silence::Recent));
        ask(&mut desk, 1, "a@1", chunk(1), 1_001).unwrap();
    }

    #[test]
    fn a_flood_is_not_looked_up_and_one_who_takes_what_he_asks_for_is() {
        let mut desk = Desk::new(LIMITS, 1);
        ask(&mut desk, 1, "a@0", chunk(0), 0).unwrap();
        finish(&mut desk, 1, 0, 300);
        let asked = |count: u32| Ipv4Addr::from(0x0b00_0000 + count);
        let considered = (0..10_000u32).filter(|count| desk.consider(asked(*count), "b@0", Time(1_500 * MS)).is_ok());
        assert_eq!(considered.count(), LOOKUPS as usize);
        ask(&mut desk, 1, "a@1", chunk(1), 1_500).unwrap();
    }

    #[test]
    fn about_three_of_many_holders_answer() {
        let held = Case { holders: 29, ..chunk(0) };
        let answers = (0..3_000).filter(|seed| {
            let mut desk = Desk::new(LIMITS, *seed);
            ask(&mut desk, 1, "a@0", held, 0).is_ok()
        });
        let each = answers.count() as f64 / 100.0;
        assert!((2.5..3.5).contains(&each), "{each} of 30");
        for seed in 0..100 {
            let mut desk = Desk::new(LIMITS, seed);
            assert!(ask(&mut desk, 1, "a@0", Case { holders: 2, ..held }, 0).is_ok(), "of three, all");
        }
    }

    #[test]
    fn a_flood_of_addresses_and_paths_is_not_remembered_without_a_bound() {
        let mut desk = Desk::new(LIMITS, 1);
        for count in 0..20_000u32 {
            let from = Ipv4Addr::from(count);
            let now = Time(u64::from(count) * 100);
            let mut case = chunk(count);
            case.at_hand = false;
            if desk.consider(from, &format!("a@{count}"), now).is_ok() && desk.decide(from, case, now).is_ok() {
                desk.ended(from, u64::from(CHUNK), false, now);
            }
        }
        assert!(desk.asks.len() <= 4096 && desk.served.len() <= 4096 && desk.reads.len() <= 4096);
        assert_eq!((desk.active.len(), desk.owed), (0, 0));
    }
}
