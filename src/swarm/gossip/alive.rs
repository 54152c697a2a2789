//! Which links live, what is told over those that have nothing to say, and how fast this node is.

use super::{FAST, GREETING, HEAD_PAUSE, LAST_HEAD, MEASURED, PROMPT, RISING, SERVED};
use crate::swarm::link::Link;
use crate::swarm::{JoinAim, LinkId, Node, Output};
use crate::wire::frame::Frame;

impl Node {
    /// Measures rates, ends silent links, keeps quiet ones alive.
    pub(in crate::swarm) fn check_links(&mut self) {
        let ids: Vec<LinkId> = self.links.keys().copied().collect();
        // Neighbours know the rate that they were told, and speak as often as that wants it.
        let told_rate = if self.me.origin { self.gossip.rate() } else { self.gossip.receive_rate };
        let hush = self.policy.hush(told_rate);
        for id in ids {
            let Some(link) = self.links.get_mut(&id) else { continue };
            if !link.greeted {
                if self.now.since(link.born) > GREETING {
                    self.close_link(id);
                }
                continue;
            }
            // The other side must have a reason to speak: a window that it was told, or blocks that it owes. Whoever only
            // pulls a block now and then would take its quiet neighbours for dead.
            let told = if link.origin { &self.gossip.origins } else { &self.gossip.neighbours };
            let active = !told.window.is_empty() || self.requests.is_served_by(id) || !link.is_idle();
            if active && !link.active {
                link.active_since = self.now;
            }
            link.active = active;
            let (silence, keepalive) = if active {
                (self.policy.silence, self.policy.keepalive(self.gossip.rate().max(link.rate)))
            } else {
                (self.policy.silence_idle, self.policy.keepalive_idle)
            };
            let heard = if active { link.last_heard.max(link.active_since) } else { link.last_heard };
            let silent = self.now.since(heard);
            // A reader reports to an origin less often than it speaks to others, except while it gets blocks from it: only
            // those may be nobody else's yet. An origin, which is never hushed, speaks as seldom: ten thousand links that are
            // kept alive every 60 ms take a seventh of its own.
            let rests = self.me.origin || (link.origin && !link.has_sent_within(SERVED, self.now));
            let keepalive = if rests { keepalive.max(2 * self.policy.report) } else { keepalive };
            let served = link.last_served.is_some_and(|at| self.now.since(at) < SERVED);
            let ignores = link.offers.first().is_some_and(|offer| self.now.since(offer.made) > hush);
            let watched = !link.origin && (!self.me.origin || served || ignores);
            let hushes = active && watched && !link.hushed && silent > hush;
            let quiet = self.now.since(link.last_told) >= keepalive;
            if silent > silence {
                self.close_link(id);
                continue;
            }
            if hushes {
                self.hush_link(id);
            }
            if quiet {
                self.keep_alive(id);
            }
        }
    }

    /// Says that this node is there and which head it has, if nothing else.
    pub(super) fn keep_alive(&mut self, id: LinkId) {
        let mut state = self.blank_state(false);
        state.front = if self.is_origin(id) { self.gossip.origins.front() } else { self.gossip.neighbours.front() };
        self.send(id, Frame::State(state));
        self.told(id);
    }

    /// Makes room for somebody who connects: whoever connected and has said nothing for longer than a greeting takes goes
    /// first. False if there is no such.
    pub(in crate::swarm) fn close_a_silent_stranger(&mut self) -> bool {
        let silent = |link: &Link| !link.greeted && !link.opened_by_me;
        let oldest = self.links.iter().filter(|(_, link)| silent(link)).min_by_key(|(_, link)| link.born);
        let Some((id, link)) = oldest else { return false };
        let (id, late) = (*id, self.now.since(link.born) > PROMPT);
        if late {
            self.close_link(id);
        }
        late
    }

    pub(in crate::swarm) fn measure(&mut self) {
        let elapsed = self.now.since(self.gossip.measured);
        if elapsed < RISING {
            return;
        }
        if elapsed < MEASURED {
            // Pieces are short until the rate is known: that it rises must be seen soon on a fast link. (What was sent may not
            // have left the kernel yet.) But what came before and waited behind a lost packet is handed on at once: then only
            // as much counts as would be fast for the whole time.
            let received = self.gossip.received * 1_000_000 / elapsed;
            let first = self.gossip.receive_rate == 0;
            let lasts = first || self.gossip.received * 1_000_000 / MEASURED >= FAST;
            if lasts && received >= FAST && received > 2 * self.gossip.receive_rate {
                self.gossip.receive_rate = received;
            }
            return;
        }
        let smooth = |old: u64, bytes: u64| {
            let rate = bytes * 1_000_000 / elapsed;
            if old == 0 { rate } else { (old + rate) / 2 }
        };
        self.gossip.receive_rate = smooth(self.gossip.receive_rate, self.gossip.received);
        self.gossip.send_rate = smooth(self.gossip.send_rate, self.gossip.sent);
        self.gossip.best_rate = self.gossip.best_rate.max(self.gossip.rate());
        (self.gossip.received, self.gossip.sent) = (0, 0);
        self.gossip.measured = self.now;
    }

    /// Of what came, whether it was adopted or not.
    pub(in crate::swarm) fn newest_head(&self) -> u64 {
        self.me.sequence.max(self.gossip.newest)
    }

    /// Neighbours are told that there is a newer head; who has an older one asks for it.
    pub(in crate::swarm) fn on_head(&mut self, sequence: u64) {
        self.me.sequence = sequence;
        // A file that was moved away and back is the same version again.
        self.provide.failed.clear();
        let ids: Vec<LinkId> = self.links.iter().filter(|(_, link)| link.told).map(|(id, _)| *id).collect();
        for id in ids {
            self.keep_alive(id);
        }
    }

    /// A neighbour named a sequence: an origin's newer head is asked for, by a question that proves this node's address.
    pub(in crate::swarm) fn compare_sequence(&mut self, id: LinkId, sequence: u64) {
        let Some(link) = self.links.get(&id) else { return };
        if link.origin && sequence > self.newest_head() && self.now >= self.gossip.next_head {
            if sequence != self.gossip.asked_head {
                (self.gossip.asked_head, self.gossip.head_pause) = (sequence, HEAD_PAUSE);
            }
            self.gossip.next_head = self.now.plus(self.gossip.head_pause);
            // Whoever names what it does not have is asked less and less.
            self.gossip.head_pause = (2 * self.gossip.head_pause).min(LAST_HEAD);
            self.out.push_back(Output::Join { join: JoinAim::Unicast(link.addr) });
        }
    }

    /// Asks once more for a head that an origin named and that has not come: question or answer was lost.
    pub(in crate::swarm) fn ask_for_head(&mut self) {
        if self.signs_heads() || self.now < self.gossip.next_head {
            return;
        }
        let named = self.links.iter().filter(|(_, link)| link.greeted && link.origin);
        if let Some((id, sequence)) = named.map(|(id, link)| (*id, link.sequence)).max_by_key(|(_, sequence)| *sequence)
        {
            self.compare_sequence(id, sequence);
        }
    }
}
