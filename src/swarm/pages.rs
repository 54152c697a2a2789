//! The catalogue's way through the swarm: a page is asked of a neighbour first, then of the origin.
//!
//! Few are asked for at once, those that somebody waits for first: a large catalogue that is fetched ahead would pile up
//! at whoever answers until that took the link for dead.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lru::LruCache;

use super::{LinkId, Node, Output, Table, Time};
use crate::wire::frame::Frame;
use crate::wire::head::PageHash;

/// Neighbours tried before the origin is asked.
const TRIES: usize = 2;
/// An answer later than this is waited for no longer.
const PATIENCE: u64 = 1_000_000;
/// After everybody was tried in vain.
const PAUSE: u64 = 200_000;
/// Pages asked for at once: 2 MiB of answers, half of what a link may have unsent.
const ASKED: usize = 64;
/// The same of those that nobody waits for.
const ASKED_AHEAD: usize = 32;
/// Pages wanted that nobody waits for; more are not fetched ahead. Those waited for are as many as parked requests.
const MAX_AHEAD: usize = 4096;

struct Want {
    /// Somebody waits for it.
    demanded: bool,
    asked: Option<(LinkId, Time)>,
    tried: BTreeSet<LinkId>,
    /// Everybody was tried: not again before.
    rests: Time,
}

pub struct PageDesk {
    held: LruCache<PageHash, u32>,
    bytes: u64,
    budget: u64,
    wanted: BTreeMap<PageHash, Want>,
    /// What was asked of each link and not answered: an answer is welcome however late, anything else was not asked for.
    unanswered: BTreeMap<LinkId, BTreeSet<PageHash>>,
    /// Those wanted that nobody is asked for now, the next one in front; some may have come meanwhile.
    queue: VecDeque<PageHash>,
}

impl PageDesk {
    pub fn new(budget: u64) -> PageDesk {
        PageDesk {
            held: LruCache::unbounded(),
            bytes: 0,
            budget,
            wanted: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            queue: VecDeque::new(),
        }
    }

    pub fn tables(&self) -> [Table; 4] {
        let demanded = self.wanted.values().filter(|want| want.demanded).count();
        let unanswered = self.unanswered.values().map(BTreeSet::len).max().unwrap_or(0);
        [
            Table::new("pages' KiB", (self.bytes / 1024) as usize, (self.budget / 1024) as usize),
            Table::new("pages wanted ahead", self.wanted.len() - demanded, MAX_AHEAD),
            Table::new("pages' queue", self.queue.len(), 2 * (MAX_AHEAD + demanded)),
            Table::new("pages a link was asked for", unanswered, MAX_AHEAD),
        ]
    }

    /// Whoever was asked over this link must be asked elsewhere, at the next tick.
    pub fn forget_link(&mut self, id: LinkId) {
        self.unanswered.remove(&id);
        for (hash, want) in &mut self.wanted {
            want.tried.remove(&id);
            if want.asked.is_some_and(|(asked, _)| asked == id) {
                want.asked = None;
                self.queue.push_front(*hash);
            }
        }
    }

    /// It will be asked for again.
    fn put_back(&mut self, hash: PageHash) {
        match self.wanted.get(&hash) {
            Some(want) if want.demanded => self.queue.push_front(hash),
            Some(_) => self.queue.push_back(hash),
            None => {}
        }
    }
}

impl Node {
    /// Somebody waits for a page, or it is fetched ahead.
    pub(super) fn want_page(&mut self, hash: PageHash, demanded: bool) {
        let full = self.pages.wanted.len() >= MAX_AHEAD;
        match self.pages.wanted.get_mut(&hash) {
            Some(want) if want.demanded || !demanded => return,
            Some(want) => {
                want.demanded = true;
                if want.asked.is_some() {
                    return;
                }
            }
            None if !demanded && full => return,
            None => {
                let want = Want { demanded, asked: None, tried: BTreeSet::new(), rests: Time(0) };
                self.pages.wanted.insert(hash, want);
            }
        }
        self.pages.put_back(hash);
        self.ask_pages();
    }

    /// Whether a page that arrives was asked for.
    pub fn wants_page(&self, hash: &PageHash) -> bool {
        self.pages.wanted.contains_key(hash)
    }

    /// Notes a page that came over a link; false if it was never asked for there.
    pub fn page_answered(&mut self, link: LinkId, hash: &PageHash) -> bool {
        self.pages.unanswered.get_mut(&link).is_some_and(|asked| asked.remove(hash))
    }

    /// Pages and their bytes, for `status`.
    pub fn pages_held(&self) -> (usize, u64) {
        (self.pages.held.len(), self.pages.bytes)
    }

    /// Asks for what is next, as much as may be under way.
    fn ask_pages(&mut self) {
        if !self.links.values().any(|link| link.greeted) {
            return;
        }
        let mut asked = self.pages.wanted.values().filter(|want| want.asked.is_some()).count();
        let mut later = Vec::new();
        while asked < ASKED
            && let Some(hash) = self.pages.queue.pop_front()
        {
            let Some(want) = self.pages.wanted.get(&hash).filter(|want| want.asked.is_none()) else { continue };
            let full = !want.demanded && asked >= ASKED_AHEAD;
            if !full && self.now >= want.rests && self.ask_page(hash) {
                asked += 1;
            } else {
                later.push(hash);
                if full {
                    break;
                }
            }
        }
        later.into_iter().rev().for_each(|hash| self.pages.queue.push_front(hash));
    }

    /// Asks one neighbour or an origin; false if all were tried.
    fn ask_page(&mut self, hash: PageHash) -> bool {
        let Some(want) = self.pages.wanted.get_mut(&hash) else { return false };
        let now = self.now;
        let open =
            self.links.iter().filter(|(id, link)| link.greeted && !link.is_doubted(now) && !want.tried.contains(id));
        let (origins, others): (Vec<LinkId>, Vec<LinkId>) =
            open.map(|(id, link)| (*id, link.origin)).fold((vec![], vec![]), |(mut o, mut n), (id, origin)| {
                if origin {
                    o.push(id)
                } else {
                    n.push(id)
                }
                (o, n)
            });
        let neighbours = if want.tried.len() < TRIES || origins.is_empty() { others } else { Vec::new() };
        let target = self.rng.choice(neighbours).or_else(|| self.rng.choice(origins));
        match target {
            Some(id) => {
                want.asked = Some((id, self.now));
                let asked = self.pages.unanswered.entry(id).or_default();
                // Of one that never answers no more is remembered; its late answers are then no longer welcome.
                if asked.len() < MAX_AHEAD {
                    asked.insert(hash);
                }
                self.send(id, Frame::GetPage(hash));
            }
            // Begin again, after a while.
            None => {
                want.tried.clear();
                want.rests = self.now.plus(PAUSE);
            }
        }
        target.is_some()
    }

    pub(super) fn check_pages(&mut self) {
        let late = |want: &Want| want.asked.is_some_and(|(_, since)| self.now.since(since) > PATIENCE);
        let due: Vec<PageHash> =
            self.pages.wanted.iter().filter(|(_, want)| late(want)).map(|(hash, _)| *hash).collect();
        for hash in due {
            let asked = self.pages.wanted.get(&hash).and_then(|want| want.asked);
            self.page_not_from(hash);
            // An origin may have many pages to send to many.
            if let Some((id, _)) = asked.filter(|(id, _)| !self.is_origin(*id)) {
                self.break_promise(id);
            }
        }
        self.ask_pages();
    }

    /// Whoever was asked for a page does not give it.
    fn page_not_from(&mut self, hash: PageHash) {
        if let Some(want) = self.pages.wanted.get_mut(&hash)
            && let Some((id, _)) = want.asked.take()
        {
            want.tried.insert(id);
            self.pages.put_back(hash);
        }
    }

    /// Nobody will ever have a page that can be used.
    pub(super) fn give_page_up(&mut self, hash: PageHash) {
        if self.pages.wanted.remove(&hash).is_some() {
            self.out.push_back(Output::PageGone { hash });
        }
        self.ask_pages();
    }

    pub(super) fn on_page(&mut self, hash: PageHash, len: u32) {
        self.pages.wanted.remove(&hash);
        self.ask_pages();
        if self.pages.held.put(hash, len).is_none() {
            self.pages.bytes += len as u64;
        }
        while self.pages.bytes > self.pages.budget {
            let Some((old, len)) = self.pages.held.pop_lru() else { return };
            self.pages.bytes -= len as u64;
            self.out.push_back(Output::DropPage { hash: old });
        }
    }

    pub(super) fn on_no_page(&mut self, id: LinkId, hash: PageHash) {
        self.page_answered(id, &hash);
        let asked = self.pages.wanted.get(&hash).is_some_and(|want| want.asked.is_some_and(|(asked, _)| asked == id));
        let Some(link) = self.links.get(&id).filter(|_| asked) else { return };
        let (origin, sequence) = (self.is_proven(id), link.sequence);
        if origin && sequence == self.newest_head() {
            // It has all of the version that it announced, so the page is of another one: whoever waits looks anew.
            return self.give_page_up(hash);
        }
        self.compare_sequence(id, sequence);
        self.page_not_from(hash);
        self.ask_pages();
    }

    pub(super) fn on_get_page(&mut self, id: LinkId, hash: PageHash) {
        if self.me.origin || self.pages.held.contains(&hash) {
            self.pages.held.promote(&hash);
            self.out.push_back(Output::SendPage { link: id, hash });
        } else {
            self.send(id, Frame::NoPage(hash));
        }
    }
}
