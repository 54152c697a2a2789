//! Whom this node goes on dealing with: what lies and broken promises cost a neighbour.
//!
//! Wrong bytes and a broken protocol are nobody's mistake: the link ends and the peer is avoided for long. A transfer that
//! does not come or an offer that nobody answers may be another's fault, so the neighbour is first left alone for a
//! while, and avoided, for less, when it happens again without one good block in between. What a peer calls itself
//! proves nothing: avoided is a name at an address, so that nobody can have another one avoided.
//!
//! Nor does what it claims to have. Words cost nothing, so they count as far as deeds go: a stranger's first offer is
//! taken alone and more with each good block; what only strangers claim to have is not waited for; and an origin counts
//! no copy of what it never sent. Who says that it is the origin proves it by the key.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::link::Link;
use super::{LinkId, Node, Output, Table, Time};
use crate::wire::frame::{Frame, NodeId};

/// How long a peer that lied is avoided.
const AVOID: u64 = 600_000_000;
/// The same of an origin, which may be all that there is: its blocks are checked like any others.
const AVOID_ORIGIN: u64 = 2_000_000;
/// How long one that only keeps no promise is avoided, and how long nothing is asked of it after the first time. The
/// second must outlast what it had promised at that time.
const AVOID_IDLER: u64 = 60_000_000;
const DOUBT: u64 = 5_000_000;
/// Broken promises in a row that end a link.
const MOST_BROKEN: u32 = 2;
/// Aborted transfers in a row that count as one broken promise: some happen whenever a source is lost.
const MOST_ABORTED: u32 = 32;
/// The same of one that brought no block since it last broke a promise; and how long nothing is asked of such a one.
const MOST_ABORTED_STRANGER: u32 = 8;
const DOUBT_STRANGER: u64 = 20_000_000;
/// How long after a good block a neighbour's word is taken for what it has: the slowest brings several in that time.
const CREDIBLE: u64 = 3_000_000;
/// Who says that it is an origin has so long to prove it.
const PROOF: u64 = 3_000_000;
/// So many names avoided at one address are one liar with many, who is let in again this seldom. It is not kept out: an
/// honest node may live at the same address.
const MANY_NAMES: usize = 4;
const SELDOM: u64 = 1_000_000;
/// Bytes a second that a neighbour may say beside data: ten times what the busiest link at 10 Gbit/s says; and at least.
const TALK: u64 = 2 << 20;
const LEAST_TALK: u64 = 64 << 10;
/// What a stranger may say of what a reader receives, and anybody of what an origin sends: a quarter of a crowd may not fill
/// a link with talk. Whom an origin sends small files to has more to say.
const TALK_TO_READER: u64 = 128;
const TALK_TO_ORIGIN: u64 = 16;
/// How long after somebody who never brought anything good lied or broke a promise a node passes on no stranger's, where it
/// otherwise would.
const WARY: u64 = 60_000_000;
/// Peers avoided at once. More names than that are one liar with many.
const MAX_AVOIDED: usize = 1024;

/// How a neighbour keeps its word.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    /// In a row, since its last good block.
    pub broken: u32,
    pub aborted: u32,
    /// Good blocks since it last broke a promise, and when the last came.
    pub good: u32,
    last_good: Time,
    /// It brought a good block once.
    proved_good: bool,
    /// It answered an offer.
    pub answers: bool,
    doubted_until: Time,
    /// It left an offer unanswered: until then it is made none.
    deaf_until: Time,
}

/// How far a link that is said to lead to an origin has proved it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Proof {
    #[default]
    None,
    Asked {
        nonce: [u8; 32],
        since: Time,
    },
    Given,
}

#[derive(Default)]
pub struct Trust {
    avoided: BTreeMap<(NodeId, IpAddr), Time>,
    /// When an address with many avoided names was let in last.
    let_in: BTreeMap<IpAddr, Time>,
    wary_until: Time,
}

impl Trust {
    pub fn table(&self) -> Table {
        Table::new("peers avoided", self.avoided.len(), MAX_AVOIDED)
    }
}

impl Link {
    /// Nothing is asked of it now. An origin is asked all the same: there may be no other.
    pub fn is_doubted(&self, now: Time) -> bool {
        !self.origin && (self.hushed || now < self.record.doubted_until)
    }

    /// It is offered nothing now. What it promised itself does not matter to that: one that is slow to send still wants to
    /// read. (With one upload slot each a reader was doubted by all and read 32 MiB in 18 s instead of 4.)
    pub fn is_deaf(&self, now: Time) -> bool {
        self.hushed || now < self.record.deaf_until
    }

    /// Transfers that are accepted of it at once: one of a stranger, whatever it offers and whoever it says that it is.
    pub fn allowance(&self) -> usize {
        if self.is_proven() { usize::MAX } else { 1 + self.record.good as usize }
    }

    /// It leads to who has the origin's key.
    pub fn is_proven(&self) -> bool {
        self.origin && self.proof == Proof::Given
    }

    /// It brought nothing good since it was met, or since it last broke a promise.
    pub fn is_stranger(&self) -> bool {
        self.allowance() == 1
    }

    /// It never brought anything good: what it promises may never come. (One that is slow breaks a promise now and then.)
    pub fn is_unknown(&self) -> bool {
        !self.is_proven() && !self.record.proved_good
    }

    /// Whether what it says it has will come from it, as far as it showed.
    pub fn is_credible(&self, now: Time) -> bool {
        self.record.good > 0 && now.since(self.record.last_good) < CREDIBLE && !self.is_doubted(now)
    }
}

impl Node {
    /// Ends a link to a peer that broke the protocol or sent wrong bytes, and avoids it.
    pub(super) fn refuse_peer(&mut self, id: LinkId) {
        let avoid = if self.is_proven(id) { AVOID_ORIGIN } else { AVOID };
        self.refuse_for(id, avoid);
    }

    /// Bytes a second that a neighbour may say beside data. Whom an origin sends to never brings it anything.
    pub fn talk_allowed(&self, id: LinkId) -> u64 {
        let share = match self.links.get(&id) {
            _ if self.me.origin => TALK_TO_ORIGIN,
            Some(link) if !link.is_unknown() => return TALK,
            _ => TALK_TO_READER,
        };
        (self.gossip.best_rate() / share).clamp(LEAST_TALK, TALK)
    }

    /// What strangers promise is passed on only with a good block: somebody lied lately, or the link is so fast that waiting
    /// for one costs nothing.
    pub(super) fn is_wary(&self) -> bool {
        self.now < self.trust.wary_until || !self.policy.trusts(self.gossip.best_rate())
    }

    fn beware_after(&mut self, id: LinkId) {
        if self.links.get(&id).is_some_and(|link| link.greeted && link.is_unknown()) {
            self.trust.wary_until = self.now.plus(WARY);
        }
    }

    /// A neighbour did not do what it had promised. The only origin is borne with.
    pub(super) fn break_promise(&mut self, id: LinkId) {
        self.beware_after(id);
        let others = self.links.iter().any(|(other, link)| *other != id && link.greeted && link.origin);
        let Some(link) = self.links.get_mut(&id) else { return };
        if self.now < link.record.doubted_until {
            // It had promised that before.
            return;
        }
        let doubt = if link.record.good > 0 { DOUBT } else { DOUBT_STRANGER };
        link.record.doubted_until = self.now.plus(doubt);
        link.record.good = 0;
        link.record.broken += 1;
        link.record.aborted = 0;
        if link.record.broken >= MOST_BROKEN && (!link.origin || others) {
            self.refuse_for(id, AVOID_IDLER);
        }
    }

    /// A neighbour left an offer unanswered.
    pub(super) fn note_unanswered(&mut self, id: LinkId) {
        self.break_promise(id);
        if let Some(link) = self.links.get_mut(&id) {
            link.record.deaf_until = link.record.doubted_until;
        }
    }

    /// A neighbour gave up a transfer that it had promised.
    pub(super) fn note_aborted(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.record.aborted += 1;
        if link.record.aborted >= if link.record.good > 0 { MOST_ABORTED } else { MOST_ABORTED_STRANGER } {
            self.break_promise(id);
        }
    }

    /// A neighbour brought a block that was missing.
    pub(super) fn note_good_block(&mut self, id: LinkId) {
        if let Some(link) = self.links.get_mut(&id) {
            (link.record.broken, link.record.aborted) = (0, 0);
            link.record.good = link.record.good.saturating_add(1);
            link.record.last_good = self.now;
            link.record.proved_good = true;
        }
    }

    // ---- who is an origin

    /// Whoever says that it is an origin is asked to prove it. All else goes on meanwhile: it is of use to those alone who
    /// would be believed that something is gone.
    pub(super) fn ask_for_proof(&mut self, id: LinkId) {
        let mut nonce = [0; 32];
        self.rng.fill(&mut nonce);
        if let Some(link) = self.links.get_mut(&id) {
            link.proof = Proof::Asked { nonce, since: self.now };
        }
        self.send(id, Frame::Prove { nonce });
    }

    /// What a link's proof must be of, if one was asked for: the nonce, and who is at the other end.
    pub fn proof_asked(&self, id: LinkId) -> Option<([u8; 32], NodeId)> {
        let link = self.links.get(&id)?;
        match link.proof {
            Proof::Asked { nonce, .. } => Some((nonce, link.peer)),
            Proof::None | Proof::Given => None,
        }
    }

    pub(super) fn on_proof(&mut self, id: LinkId, good: bool) {
        match self.links.get_mut(&id) {
            Some(link) if good => {
                link.proof = Proof::Given;
                self.vouch_for(id);
            }
            _ => self.refuse_false_origin(id),
        }
    }

    /// Somebody wants to know whether this node is the origin. Once a link: each answer is a signature.
    pub(super) fn on_prove(&mut self, id: LinkId, nonce: [u8; 32]) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if std::mem::replace(&mut link.proved, true) || !self.me.origin {
            return self.refuse_peer(id);
        }
        let peer = link.peer;
        self.out.push_back(Output::Prove { link: id, nonce, peer });
    }

    /// Whether a link leads to who has the origin's key.
    pub(super) fn is_proven(&self, id: LinkId) -> bool {
        self.links.get(&id).is_some_and(Link::is_proven)
    }

    pub(super) fn check_proofs(&mut self) {
        let late = |link: &Link| matches!(link.proof, Proof::Asked { since, .. } if self.now.since(since) > PROOF);
        let late: Vec<LinkId> = self.links.iter().filter(|(_, link)| late(link)).map(|(id, _)| *id).collect();
        for id in late {
            self.refuse_false_origin(id);
        }
    }

    fn refuse_false_origin(&mut self, id: LinkId) {
        self.counters.false_origins += 1;
        self.refuse_for(id, AVOID);
    }

    /// A peer takes nothing of what it is sent.
    pub(super) fn on_unread(&mut self, id: LinkId) {
        self.refuse_for(id, AVOID_IDLER);
    }

    pub(super) fn is_avoided(&self, peer: NodeId, ip: IpAddr) -> bool {
        self.trust.avoided.get(&(peer, ip)).is_some_and(|until| self.now < *until)
    }

    /// Whether a connection is refused since its address was let in not long ago, after many of its names had to be avoided.
    pub(super) fn comes_too_often(&mut self, ip: IpAddr) -> bool {
        let (now, trust) = (self.now, &mut self.trust);
        let names = trust.avoided.iter().filter(|((_, at), until)| *at == ip && now < **until).count();
        if names < MANY_NAMES {
            return false;
        }
        trust.let_in.retain(|_, since| now.since(*since) < SELDOM);
        let lately = trust.let_in.contains_key(&ip);
        trust.let_in.entry(ip).or_insert(now);
        lately
    }

    fn refuse_for(&mut self, id: LinkId, us: u64) {
        self.beware_after(id);
        let Some(link) = self.links.get(&id) else { return };
        self.counters.refused_peers += 1;
        if link.greeted {
            let name = (link.peer, link.addr.ip());
            let until = self.now.plus(us);
            self.avoid(name, until);
        }
        self.close_link(id);
    }

    fn avoid(&mut self, name: (NodeId, IpAddr), until: Time) {
        let (now, avoided) = (self.now, &mut self.trust.avoided);
        if avoided.len() >= MAX_AVOIDED {
            avoided.retain(|_, until| now < *until);
        }
        if avoided.len() >= MAX_AVOIDED
            && let Some(soonest) = avoided.iter().min_by_key(|(_, until)| **until).map(|(name, _)| *name)
        {
            avoided.remove(&soonest);
        }
        avoided.insert(name, until);
    }
}
