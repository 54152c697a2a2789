//! A further origin of a tree: a node with a copy on disk, under a head that another one signs.
//!
//! Under one object id there must be one content. So before a replica reads and signs a segment it asks for the header that
//! somebody may have already: the other origins, and neighbours that have some of it. With that its own bytes are compared.
//! Only where nobody has one, or nobody answers, it signs what it read. What it lacks, others may have: it never says that
//! an object is gone.

use std::collections::{BTreeMap, BTreeSet};

use super::link::Link;
use super::{LinkId, Node, Output, Time};
use crate::chunk::{ObjectId, SEGMENTS_PER_CHUNK, SegmentId};
use crate::wire::frame::Frame;

/// How long an answer is waited for: longer than an origin with a slow disk and much to do takes to read and hash a
/// segment, since signing other bytes than it is worse than being late. Whoever died is noticed sooner.
const PATIENCE: u64 = 3_000_000;
/// Origins and neighbours asked for one header.
const ORIGINS: usize = 4;
const NEIGHBOURS: usize = 2;

#[derive(Default)]
pub struct Replica {
    /// Its copy is all of what the head names.
    pub complete: bool,
    /// At most as many as segments are prepared at once.
    asking: BTreeMap<SegmentId, Asking>,
}

struct Asking {
    open: BTreeSet<LinkId>,
    since: Time,
}

impl Node {
    /// From now on this origin is one of several, and does not sign heads.
    pub fn become_replica(&mut self) {
        assert!(self.me.origin, "a replica has the tree on its disk");
        self.replica = Some(Replica::default());
    }

    /// Whether this is the origin whose heads count.
    pub(super) fn signs_heads(&self) -> bool {
        self.me.origin && self.replica.is_none()
    }

    /// Whether the copy is all of what the head names, as far as its catalogue tells.
    pub fn set_complete(&mut self, complete: bool) {
        if let Some(replica) = &mut self.replica {
            replica.complete = complete;
        }
    }

    /// The version of the tree that neighbours are told. One that has only some of it speaks for none, so that what it
    /// lacks is asked of others.
    pub(super) fn spoken_sequence(&self) -> u64 {
        let partial = self.replica.as_ref().is_some_and(|replica| !replica.complete);
        if partial { 0 } else { self.me.sequence }
    }

    /// Has a segment read; by a replica only after others were asked what they know of it.
    pub(super) fn read_segment(&mut self, segment: SegmentId) {
        let open = if self.replica.is_some() { self.whom_to_ask(segment) } else { BTreeSet::new() };
        if let (Some(replica), false) = (&mut self.replica, open.is_empty()) {
            replica.asking.insert(segment, Asking { open: open.clone(), since: self.now });
            for id in open {
                self.send(id, Frame::GetHeader(segment));
            }
            return;
        }
        self.out.push_back(Output::Prepare { segment });
    }

    fn whom_to_ask(&self, segment: SegmentId) -> BTreeSet<LinkId> {
        let index = segment.index % SEGMENTS_PER_CHUNK;
        let has_some = |link: &Link| link.taken(segment.chunk()).segment(index) != 0;
        let open = || self.links.iter().filter(|(_, link)| link.greeted && !link.hushed);
        let origins = open().filter(|(_, link)| link.origin).take(ORIGINS);
        let holders = open().filter(|(_, link)| !link.origin && has_some(link)).take(NEIGHBOURS);
        origins.chain(holders).map(|(id, _)| *id).collect()
    }

    /// Whether a header was asked for only to compare one's own bytes with it.
    pub fn compares(&self, segment: SegmentId) -> bool {
        self.replica.as_ref().is_some_and(|replica| replica.asking.contains_key(&segment))
    }

    /// Somebody's header was checked and is remembered: one's own bytes must fit it.
    pub(super) fn on_header_known(&mut self, segment: SegmentId) {
        if let Some(replica) = &mut self.replica
            && replica.asking.remove(&segment).is_some()
        {
            self.out.push_back(Output::Prepare { segment });
        }
    }

    /// Somebody has no such header, and maybe nobody.
    pub(super) fn header_not_from(&mut self, id: LinkId, segment: SegmentId) {
        let Some(replica) = &mut self.replica else { return };
        let Some(asking) = replica.asking.get_mut(&segment) else { return };
        asking.open.remove(&id);
        if asking.open.is_empty() {
            replica.asking.remove(&segment);
            self.out.push_back(Output::Prepare { segment });
        }
    }

    /// Nobody who has gone will answer.
    pub(super) fn no_headers_from(&mut self, id: LinkId) {
        let Some(replica) = &self.replica else { return };
        let asked: Vec<SegmentId> = replica
            .asking
            .iter()
            .filter(|(_, asking)| asking.open.contains(&id))
            .map(|(segment, _)| *segment)
            .collect();
        for segment in asked {
            self.header_not_from(id, segment);
        }
    }

    /// Who was asked may never answer.
    pub(super) fn check_replica(&mut self) {
        let Some(replica) = &mut self.replica else { return };
        let now = self.now;
        let late = replica.asking.iter().filter(|(_, asking)| now.since(asking.since) > PATIENCE);
        let late: Vec<SegmentId> = late.map(|(segment, _)| *segment).collect();
        let silent: Vec<Asking> = late.iter().filter_map(|segment| replica.asking.remove(segment)).collect();
        self.out.extend(late.into_iter().map(|segment| Output::Prepare { segment }));
        for id in silent.into_iter().flat_map(|asking| asking.open) {
            self.break_promise(id);
        }
    }

    /// What the copy lacks is refused without a word that it is gone.
    pub(super) fn refuse_object(&mut self, object: ObjectId) {
        let mut aborted = Vec::new();
        for (id, link) in &mut self.links {
            let given_up = link.uploads.iter().filter(|upload| upload.run.object == object);
            aborted.extend(given_up.map(|upload| (*id, upload.transfer)));
            link.uploads.retain(|upload| upload.run.object != object);
            link.offers.retain(|offer| offer.runs.iter().all(|run| run.object != object));
        }
        for (id, transfer) in aborted {
            self.send(id, Frame::Abort { transfer });
        }
    }
}
