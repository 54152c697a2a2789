//! What comes in over the network: parsed, checked, and only then told to the node.
//!
//! A block is compared with its signed header and a page with its name before anything is decided by them. What was not
//! asked for is thrown away.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::Unavailable;
use super::core::{Core, Errand};
use crate::cache::Filling;
use crate::catalogue::Page;
use crate::chunk::{Run, segment_len};
use crate::keys::SIGNATURE;
use crate::net::mail::Heard;
use crate::swarm::{Input, LinkId};
use crate::wire::datagram::{Datagram, Welcome};
use crate::wire::frame::{Frame, proof_text};
use crate::wire::head::{PageHash, TreeHead};
use crate::wire::header::SegmentHeader;

impl Core {
    // ---- over links

    /// Some bytes of a block. They are kept only until the block is whole and checked.
    pub fn on_data(&mut self, link: LinkId, data: crate::wire::frame::DataHeader, bytes: &[u8]) {
        if !self.node.has_link(link) {
            return;
        }
        let origin = self.node.is_origin(link);
        let Some(io) = self.links.get_mut(&link) else { return };
        let Some(whole) = io.take(data, bytes) else {
            self.statistics.unexpected += 1;
            return;
        };
        let received = if origin { &mut self.statistics.from_origin } else { &mut self.statistics.from_peers };
        *received += bytes.len() as u64;
        self.handle(Input::Progress { link, transfer: data.transfer, bytes: bytes.len() as u32 });
        if let Some((run, block)) = whole {
            self.check_block(link, data.transfer, run, data.block, block);
        }
    }

    /// Checks a whole block against its header, or keeps it until the header comes.
    fn check_block(&mut self, link: LinkId, transfer: u32, run: Run, index: u32, bytes: Vec<u8>) {
        let block = crate::chunk::BlockId { object: run.object, index };
        if !self.node.has_room_for(block) {
            self.statistics.unexpected += 1;
            return;
        }
        let Some(segment) = self.shared.cache.segment(block.segment()) else {
            if let Some(io) = self.links.get_mut(&link) {
                io.hold(transfer, index, bytes);
            }
            return;
        };
        let good = match segment.fill(index - block.segment().first_block(), &bytes) {
            Ok(good) => good,
            Err(error) => {
                // Without memory the block is as good as not sent: the transfer stalls and is asked for again.
                tracing::error!(%error, "no memory for a block");
                return;
            }
        };
        if !good {
            tracing::warn!(peer = %self.peer(link), "a peer sent a wrong block; dropped and avoided");
        }
        self.handle(Input::Block { link, transfer, block, good });
        if good {
            self.waiting.wake(block.segment(), &self.shared);
        }
        if let Some(io) = self.links.get_mut(&link) {
            io.recycle(bytes);
        }
    }

    pub fn on_frame(&mut self, link: LinkId, frame: Frame) {
        // The rest of what a peer sent before it was dropped concerns nobody; nor does what is said before a greeting.
        match frame {
            _ if !self.node.has_link(link) => {}
            Frame::Header(_) | Frame::Page(_) if !self.node.is_greeted(link) => self.handle(Input::BadFrame { link }),
            Frame::Header(bytes) => self.on_header(link, &bytes),
            Frame::Proof { signature } => self.on_proof(link, &signature),
            Frame::Page(bytes) => self.on_page(link, bytes),
            frame => self.handle(Input::Frame { link, frame }),
        }
    }

    fn on_proof(&mut self, link: LinkId, signature: &[u8; SIGNATURE]) {
        let good = self.node.proof_asked(link).map(|(nonce, peer)| {
            let text = proof_text(&nonce, peer, self.me);
            self.head().key.verifies(&text, signature)
        });
        if good != Some(true) {
            tracing::warn!(peer = %self.peer(link), "a peer says that it is the origin and has not its key; dropped and avoided");
        }
        self.handle(Input::Proof { link, good: good == Some(true) });
    }

    fn on_header(&mut self, link: LinkId, bytes: &[u8]) {
        // What nobody waits for is not worth checking a signature, unless it says otherwise than the one that is here.
        let late = SegmentHeader::names(bytes).filter(|id| self.node.expects_header(*id).is_none());
        if late.is_some_and(|id| self.shared.cache.segment(id).is_none_or(|held| held.header().is(bytes))) {
            return;
        }
        let Ok(header) = SegmentHeader::open(bytes, &self.head().key) else {
            return self.on_wrong_header(link);
        };
        let id = header.segment();
        self.compare_headers(link, &header);
        // Late ones are no fault: their chunk was dropped, or another neighbour was faster.
        let Some(size) = self.node.expects_header(id) else { return };
        if header.len() != segment_len(size, id.index) {
            return self.on_wrong_header(link);
        }
        if self.node.compares(id) {
            return self.learn_header(header);
        }
        let zero = header.zero();
        // A chunk that was dropped and begun anew in this batch must be out of the cache before.
        self.carry_all_out();
        let filling = match (self.node.wants_whole(id), self.node.is_fast()) {
            (false, _) => Filling::Part,
            (true, false) => Filling::Whole,
            (true, true) => Filling::AtOnce,
        };
        self.shared.cache.admit(header, filling);
        self.handle(Input::Header { segment: id, zero });
        self.waiting.wake(id, &self.shared);
        let held: Vec<_> =
            self.links.iter_mut().flat_map(|(link, io)| io.release(id).into_iter().map(|held| (*link, held))).collect();
        for (link, (transfer, run, index, bytes)) in held {
            // One wrong block says enough of a peer.
            if self.node.has_link(link) {
                self.check_block(link, transfer, run, index, bytes);
            }
        }
    }

    /// A replica hears what was signed before it read its own copy.
    fn learn_header(&mut self, header: SegmentHeader) {
        let Some(tree) = self.tree.as_ref() else { return };
        let segment = header.segment();
        tree.learn(&header);
        self.handle(Input::HeaderKnown { segment });
    }

    /// Two origins with one key and other bytes under one name: the first header is kept.
    fn compare_headers(&mut self, link: LinkId, header: &SegmentHeader) {
        let Some(held) = self.shared.cache.segment(header.segment()) else { return };
        if held.header() != header {
            self.statistics.contradictions += 1;
            tracing::warn!(peer = %self.peer(link), segment = ?header.segment(),
                "two headers for one segment are signed with the tree's key; the first one is kept. Do two origins serve \
                 different bytes under one name, size and time?");
        }
    }

    fn on_wrong_header(&mut self, link: LinkId) {
        tracing::warn!(peer = %self.peer(link), "a peer sent a wrong segment header; dropped and avoided");
        self.handle(Input::BadHeader { link });
    }

    fn on_page(&mut self, link: LinkId, bytes: Bytes) {
        let hash = PageHash::of(&bytes);
        if !self.node.page_answered(link, &hash) {
            tracing::warn!(peer = %self.peer(link), "a peer sent a page that was not asked for; dropped and avoided");
            return self.handle(Input::BadFrame { link });
        }
        if !self.node.wants_page(&hash) {
            // The second of two answers; it is no fault, however late it comes.
            self.statistics.unexpected += 1;
            return;
        }
        match Page::parse(bytes) {
            Ok(page) => self.keep_page(hash, Arc::new(page)),
            Err(error) => {
                // Its name is right, so the origin itself signed it: nobody else will have a better one.
                tracing::error!(%error, ?hash, "the origin's catalogue has a malformed page");
                self.waiting.fail_page(hash, Unavailable::Unreadable);
                self.handle(Input::BadPage { hash });
            }
        }
    }

    pub fn keep_page(&mut self, hash: PageHash, page: Arc<Page>) {
        self.shared.pages.write().expect("no holder of this lock panics").insert(hash, page.clone());
        self.handle(Input::Page { hash, len: page.cost() as u32 });
        self.waiting.page(&hash, &page);
        if self.prefetch {
            for child in page.children() {
                if self.shared.page(&child).is_none() {
                    self.handle(Input::PageAhead { hash: child });
                }
            }
        }
    }

    // ---- by datagram

    pub fn on_datagram(&mut self, from: SocketAddr, bytes: &[u8]) {
        if !self.datagrams.admit(from.ip(), Instant::now()) {
            self.statistics.flooded += 1;
            return;
        }
        match self.mail.hear(from, bytes) {
            Heard::Own { datagram: Datagram::Join(join), .. } => self.handle(Input::Join { from, join }),
            Heard::Own { datagram: Datagram::Peers(welcome), answers } => self.on_welcome(from, welcome, answers),
            Heard::Foreign { sealed, tell } => self.on_foreign(from, sealed, tell),
            // Who looks for a tree is told; a node has one.
            Heard::Own { datagram: Datagram::Refusal { .. }, .. } | Heard::Refused { .. } => {}
            Heard::Again => self.statistics.repeated += 1,
            Heard::Malformed(error) => {
                self.statistics.malformed += 1;
                tracing::trace!(%from, %error, "datagram dropped");
            }
        }
    }

    /// A datagram of another swarm: with another secret than this one's, or, unless `sealed`, with none.
    fn on_foreign(&mut self, from: SocketAddr, sealed: bool, tell: Option<SocketAddr>) {
        self.statistics.foreign += 1;
        if !std::mem::replace(&mut self.statistics.told[usize::from(!sealed)], true) {
            let said = match (sealed, self.net.secret.is_some()) {
                (false, _) => "a node without a secret is on this network; such nodes are ignored",
                (true, true) => "a node with another secret is on this network; such nodes are ignored",
                (true, false) => "a node with a secret is on this network; it takes --secret-file to join such nodes",
            };
            tracing::info!(%from, "{said}");
        }
        if let Some(to) = tell
            && let Some(refusal) = self.mail.refusal(Instant::now())
        {
            self.errands.push(Errand::Datagram(to, refusal));
        }
    }

    fn on_welcome(&mut self, from: SocketAddr, welcome: Box<Welcome>, answers: bool) {
        let head = self.head();
        if welcome.node == self.me || welcome.head.name != head.name {
            return;
        }
        self.statistics.old_heads += u64::from(welcome.head.key == head.key && welcome.head.sequence < head.sequence);
        if !answers {
            // Nobody asked: it may be an old one, from anywhere. Its head is signed, and counts if it is newer.
            if welcome.head.key == head.key && (self.tree.is_none() || self.replica) {
                self.on_head(&welcome.head);
            }
            return;
        }
        if welcome.head.key != head.key {
            return self.on_rival(from, &welcome);
        }
        if self.tree.is_some() && !self.replica {
            return self.on_twin(from, &welcome);
        }
        self.on_head(&welcome.head);
        self.handle(Input::Welcome { from, welcome });
    }

    /// A head of this tree, signed with its key. A newer one is adopted, unless another one is pinned.
    fn on_head(&mut self, head: &TreeHead) {
        if head.sequence <= self.head().sequence {
            return;
        }
        match self.net.head.filter(|pinned| *pinned != head.root) {
            None => self.adopt(head.clone()),
            Some(pinned) if head.sequence > self.passed_over => {
                self.passed_over = head.sequence;
                tracing::info!(now = %head.root, %pinned, "the tree changed; the state that was asked for stays");
            }
            Some(_) => {}
        }
    }

    /// Somebody offers this tree with another key than the one that counts here.
    fn on_rival(&mut self, from: SocketAddr, welcome: &Welcome) {
        let theirs = welcome.head.key;
        self.rivals.note(from.ip(), theirs, Instant::now());
        if !self.rivals.is_due(theirs, Instant::now()) {
            return;
        }
        let (tree, key) = (&welcome.head.name, theirs.fingerprint());
        if self.tree.is_some() {
            tracing::warn!(host = %from.ip(), %tree, key,
                "somebody else offers this tree with another key: readers that remember none see both");
        } else {
            tracing::warn!(host = %from.ip(), %tree, key,
                "somebody offers this tree with another key; ignored. If that is right, unmount, say `swarmfs key --forget \
                 {tree}`, and mount again");
        }
    }

    /// Somebody has this origin's tree and key. Who only passes on its heads is a reader or a replica.
    fn on_twin(&mut self, from: SocketAddr, welcome: &Welcome) {
        let newer = welcome.head.sequence > self.head().sequence;
        if newer && welcome.origin && self.rivals.is_due(welcome.head.key, Instant::now()) {
            tracing::warn!(host = %from.ip(),
                "another host signs heads of this tree with the same key: one of the two must be `serve --replica`");
        }
    }

    /// An origin's directory was listed and is another than before. A replica's head is not its own to make.
    pub fn listed_anew(&mut self) {
        let Some(own) = self.tree.as_ref().map(|tree| tree.head()) else { return };
        if self.replica {
            self.node.set_complete(own.root == self.head().root);
        } else if own.sequence > self.head().sequence {
            self.errands.push(Errand::Announce(own.sequence));
            self.adopt(own);
        }
    }

    /// From now on the tree is what this head says.
    pub fn adopt(&mut self, head: TreeHead) {
        let (sequence, root) = (head.sequence, head.root);
        tracing::info!(sequence, "the tree changed");
        *self.shared.head.write().expect("no holder of this lock panics") = Arc::new(head);
        if let Some(tree) = self.tree.clone().filter(|_| self.replica) {
            self.node.set_complete(tree.head().root == root);
        }
        self.handle(Input::Head { sequence });
        if self.prefetch && self.shared.page(&root).is_none() {
            self.handle(Input::WantPage { hash: root });
        }
    }
}
