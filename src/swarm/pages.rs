//! The catalogue's way through the swarm: a page is asked of a neighbour first, then of the origin.

use std::collections::{BTreeMap, BTreeSet};

use lru::LruCache;

use super::{LinkId, Node, Output, Time};
use crate::wire::frame::Frame;
use crate::wire::head::PageHash;

/// Neighbours tried before the origin is asked.
const TRIES: usize = 2;
/// An answer later than this is waited for no longer.
const PATIENCE: u64 = 1_000_000;
/// Pages waited for at once: a deep path needs a handful, a prefetch of the whole catalogue goes on as they come.
const MAX_WANTED: usize = 4096;

struct Want {
    asked: Option<(LinkId, Time)>,
    tried: BTreeSet<LinkId>,
}

pub struct PageDesk {
    held: LruCache<PageHash, u32>,
    bytes: u64,
    budget: u64,
    wanted: BTreeMap<PageHash, Want>,
    /// What was asked of each link and not answered: an answer is welcome however late, anything else was not asked for.
    unanswered: BTreeMap<LinkId, BTreeSet<PageHash>>,
}

impl PageDesk {
    pub fn new(budget: u64) -> PageDesk {
        PageDesk { held: LruCache::unbounded(), bytes: 0, budget, wanted: BTreeMap::new(), unanswered: BTreeMap::new() }
    }

    /// Whoever was asked over this link must be asked elsewhere, at the next tick.
    pub fn forget_link(&mut self, id: LinkId) {
        self.unanswered.remove(&id);
        for want in self.wanted.values_mut() {
            want.tried.remove(&id);
            if want.asked.is_some_and(|(asked, _)| asked == id) {
                want.asked = None;
            }
        }
    }
}

impl Node {
    pub(super) fn want_page(&mut self, hash: PageHash) {
        if self.pages.wanted.len() < MAX_WANTED && !self.pages.wanted.contains_key(&hash) {
            self.pages.wanted.insert(hash, Want { asked: None, tried: BTreeSet::new() });
            self.ask_page(hash);
        }
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

    fn ask_page(&mut self, hash: PageHash) {
        let Some(want) = self.pages.wanted.get_mut(&hash) else { return };
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
                if asked.len() < MAX_WANTED {
                    asked.insert(hash);
                }
                self.send(id, Frame::GetPage(hash));
            }
            // Everybody was tried: begin again with the next tick.
            None => {
                want.asked = None;
                want.tried.clear();
            }
        }
    }

    pub(super) fn check_pages(&mut self) {
        let late = |want: &Want| want.asked.is_none_or(|(_, since)| self.now.since(since) > PATIENCE);
        let due: Vec<PageHash> =
            self.pages.wanted.iter().filter(|(_, want)| late(want)).map(|(hash, _)| *hash).collect();
        for hash in due {
            if let Some(want) = self.pages.wanted.get_mut(&hash)
                && let Some((id, _)) = want.asked.take()
            {
                want.tried.insert(id);
                // An origin may have many pages to send to many.
                if !self.is_origin(id) {
                    self.break_promise(id);
                }
            }
            self.ask_page(hash);
        }
    }

    pub(super) fn on_page(&mut self, hash: PageHash, len: u32) {
        self.pages.wanted.remove(&hash);
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
        if let Some(want) = self.pages.wanted.get_mut(&hash)
            && want.asked.is_some_and(|(asked, _)| asked == id)
        {
            want.tried.insert(id);
            // An origin has every page that counts: this one is of a tree that is no more.
            if self.is_origin(id) {
                self.pages.wanted.remove(&hash);
                return self.out.push_back(Output::PageGone { hash });
            }
            self.ask_page(hash);
        }
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
