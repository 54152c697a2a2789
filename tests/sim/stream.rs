//! Connections as drivers see them: opening, writing, sending in turn, receiving, closing.

use super::*;

impl World {
    /// Whether an end of a connection still belongs to the life of its host that opened it.
    pub(super) fn ours(&self, connection: usize, side: usize) -> bool {
        let end = &self.connections[connection].ends[side];
        end.open && self.hosts[end.host].life == end.life
    }

    /// Who is at one end has crashed, or its cable is pulled: nothing comes back from there.
    fn silent(&self, connection: usize, side: usize) -> bool {
        let host = &self.hosts[self.connections[connection].ends[side].host];
        host.node.is_none() && !host.exited || host.wire.cut
    }

    pub(super) fn connect(&mut self, host: usize, link: LinkId, addr: SocketAddr) {
        let Some(to) = self.addrs.get(&addr).copied() else { return };
        let end = |host: &Host, index| End { host: index, life: host.life, link: None, open: false };
        let from = End { link: Some(link), open: true, ..end(&self.hosts[host], host) };
        let index = self.connections.len();
        self.connections.push(Connection::new(from, end(&self.hosts[to], to), self.network.window));
        self.hosts[host].links.insert(link, (index, 0));
        if !self.hosts[host].wire.cut {
            self.after(self.network.latency, to, Event::Asked { connection: index });
        }
    }

    /// A connection's first packet is at its other end.
    pub(super) fn asked(&mut self, connection: usize) {
        let [from, to] = self.connections[connection].ends;
        if self.silent(connection, 1) || self.hosts[to.host].paused {
            // Whoever asked gives up by itself.
            return;
        }
        let now = self.time();
        // What an inbound connection comes from is some free port.
        let mut addr = self.hosts[from.host].addr;
        addr.set_port(40_000 + (connection % 20_000) as u16);
        let link = self.hosts[to.host].node.as_mut().and_then(|node| node.accept(addr, now));
        let latency = self.network.latency;
        match link {
            Some(link) => {
                let life = self.hosts[to.host].life;
                self.connections[connection].ends[1] = End { host: to.host, life, link: Some(link), open: true };
                self.hosts[to.host].links.insert(link, (connection, 1));
                self.wake_soon(to.host);
                self.after(latency, from.host, Event::Connected { connection });
            }
            None => self.after(latency, from.host, Event::Reset { connection, side: 0 }),
        }
    }

    pub(super) fn write(&mut self, host: usize, link: LinkId, message: Message, bytes: u32) {
        let Some(&(connection, side)) = self.hosts[host].links.get(&link) else { return };
        self.connections[connection].pipes[side].control.push_back((message, bytes));
        self.pump(connection, side);
    }

    /// The driver writes as long as the socket takes it: control first, then a frame of data.
    pub(super) fn pump(&mut self, connection: usize, side: usize) {
        let End { host, link, .. } = self.connections[connection].ends[side];
        let (Some(link), true) = (link, self.ours(connection, side)) else { return };
        if self.hosts[host].paused {
            return;
        }
        let liar = self.hosts[host].setup.conduct == conduct::Conduct::Liar;
        let pipe = &mut self.connections[connection].pipes[side];
        let mut sent = false;
        let Some(node) = &mut self.hosts[host].node else { return };
        let low_water = node.unsent();
        while pipe.unsent_bytes < low_water {
            if let Some((message, bytes)) = pipe.control.pop_front() {
                pipe.write(message, bytes, &mut self.spare);
                continue;
            }
            let Some(node) = &mut self.hosts[host].node else { return };
            let Some(next) = node.transmit(link) else { break };
            sent = true;
            let owner = &mut self.hosts[host];
            assert!(owner.has(next.block), "host {host} is to send {:?}, which it has not", next.block);
            owner.count.data_sent += next.len as u64;
            let bytes = next.len + (FRAME_HEADER + DATA_HEADER) as u32;
            let (transfer, block, offset, len) = (next.transfer, next.block, next.offset, next.len);
            pipe.write(Message::Data { transfer, block, offset, len, wrong: liar }, bytes, &mut self.spare);
        }
        if sent {
            self.wake_soon(host);
        }
        self.take_turn(connection, side);
    }

    /// A pipe that may send waits for its turn at its host's link.
    pub(super) fn take_turn(&mut self, connection: usize, side: usize) {
        let host = self.connections[connection].ends[side].host;
        let pipe = &mut self.connections[connection].pipes[side];
        if !pipe.in_turn && pipe.can_send() {
            pipe.in_turn = true;
            self.hosts[host].wire.turns.push_back((connection, side));
        }
        self.send_next(host);
    }

    fn send_next(&mut self, host: usize) {
        while !self.hosts[host].wire.busy {
            let Some((connection, side)) = self.hosts[host].wire.turns.pop_front() else { return };
            let ours = self.ours(connection, side);
            let pipe = &mut self.connections[connection].pipes[side];
            pipe.in_turn = false;
            if !ours || !pipe.can_send() {
                continue;
            }
            let Some(piece) = pipe.take() else { continue };
            if pipe.can_send() {
                pipe.in_turn = true;
                self.hosts[host].wire.turns.push_back((connection, side));
            }
            let wire = &mut self.hosts[host].wire;
            wire.busy = true;
            let owed = std::mem::take(&mut wire.owed);
            let takes = wire.takes(piece.wire() + owed);
            self.hosts[host].count.wire_sent += piece.wire();
            self.after(takes, host, Event::Sent { host, connection, side, piece });
            self.pump(connection, side);
        }
    }

    /// A piece has left its sender and goes through the switch.
    pub(super) fn sent(&mut self, host: usize, connection: usize, side: usize, piece: Piece) {
        self.hosts[host].wire.busy = false;
        let to = self.connections[connection].ends[1 - side].host;
        let (now, latency) = (self.now, self.network.latency);
        if self.hosts[host].wire.cut || self.silent(connection, 1 - side) {
            if self.ours(connection, side) {
                let delay = self.connections[connection].pipes[side].timeout(now);
                self.after(delay, host, Event::Lost { connection, side, piece, round_trip: u64::MAX / 2 });
            }
            return self.send_next(host);
        }
        let lost = self.network.lost_pieces > 0 && self.rng.u32(0..1000) < self.network.lost_pieces;
        let full = self.uplink_is_full(host, to, piece.wire());
        let port = &mut self.hosts[to].wire;
        let waiting = port.queued(now);
        if lost || full || waiting + piece.wire() > self.network.port {
            let round_trip = 2 * latency + port.takes(waiting);
            self.hosts[host].count.dropped_pieces += 1;
            self.after(round_trip, host, Event::Lost { connection, side, piece, round_trip });
        } else {
            let at = self.through_switches(host, to, piece.wire());
            self.after(at - now, to, Event::Arrived { connection, side, piece });
        }
        self.send_next(host);
    }

    /// The links between racks that lie between two hosts: which rack's, and 0 for its way out, 1 for its way in.
    fn uplinks_between(&self, from: usize, to: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let rack = |host: usize| match self.network.racks {
            Some(racks) if !self.hosts[host].origin => Some((host - 1) / racks.readers),
            _ => None,
        };
        let (from, to) = (rack(from), rack(to));
        let crosses = from != to;
        let out = from.filter(|_| crosses).map(|rack| (rack, 0));
        out.into_iter().chain(to.filter(|_| crosses).map(|rack| (rack, 1)))
    }

    fn uplink_is_full(&mut self, from: usize, to: usize, bytes: u64) -> bool {
        let (now, port) = (self.now, self.network.port);
        let mut between = self.uplinks_between(from, to);
        between.any(|(rack, way)| self.uplinks[rack][way].queued(now) + bytes > port)
    }

    /// Sends bytes through all switch queues on their way; when they arrive.
    fn through_switches(&mut self, from: usize, to: usize, bytes: u64) -> u64 {
        let mut at = self.now + self.network.latency;
        for (rack, way) in self.uplinks_between(from, to) {
            at = self.uplinks[rack][way].through_port(at, bytes);
            self.crossed += if way == 1 { bytes } else { 0 };
        }
        self.hosts[to].wire.through_port(at, bytes)
    }

    pub(super) fn arrived(&mut self, connection: usize, side: usize, piece: Piece) {
        let (from, to) =
            (self.connections[connection].ends[side].host, self.connections[connection].ends[1 - side].host);
        if self.silent(connection, 1 - side) || self.hosts[from].wire.cut {
            if self.ours(connection, side) {
                let now = self.now;
                let delay = self.connections[connection].pipes[side].timeout(now);
                self.after(delay, from, Event::Lost { connection, side, piece, round_trip: u64::MAX / 2 });
            }
            return;
        }
        if !self.ours(connection, 1 - side) {
            // Nobody is there any more.
            return self.after(self.network.latency, from, Event::Reset { connection, side });
        }
        let bytes = piece.bytes;
        let messages = self.connections[connection].pipes[side].arrived(piece);
        if self.hosts[to].paused {
            // The kernel takes it, and says that it has no room for more.
            return self.hosts[to].backlog.push_back(Backlog::Messages { connection, side, messages, bytes });
        }
        self.receive(connection, side, messages, bytes);
    }

    /// A driver reads what came in; the ACK goes back behind what waits at the sender's switch port.
    pub(super) fn receive(&mut self, connection: usize, side: usize, mut messages: Vec<Message>, bytes: u32) {
        let (from, to) =
            (self.connections[connection].ends[side].host, self.connections[connection].ends[1 - side].host);
        let receiver = &mut self.hosts[to];
        receiver.wire.owed += ACK;
        receiver.count.wire_sent += ACK;
        let at = self.through_switches(to, from, ACK);
        self.after(at - self.now, from, Event::Acknowledged { connection, side, bytes });
        for message in messages.drain(..) {
            // Any of them may have ended the connection.
            let End { link: Some(link), open: true, .. } = self.connections[connection].ends[1 - side] else { return };
            self.message(to, link, message);
        }
        self.spare.push(messages);
    }

    fn message(&mut self, host: usize, link: LinkId, message: Message) {
        match message {
            Message::Frame(bytes, written) => {
                let (head, body) = bytes.split_first_chunk::<FRAME_HEADER>().expect("whole frames are sent");
                if bytes[1] == 2 {
                    self.hosts[host].count.state_ages.note(self.now - written);
                }
                let frame = Prefix::parse(head).and_then(|prefix| prefix.frame(body));
                let frame = frame.unwrap_or_else(|error| panic!("a node made a frame that is refused: {error}"));
                if let Frame::Proof { signature } = frame {
                    return self.input(host, Input::Proof { link, good: signature == [1; 64] });
                }
                if let Some(frame) = self.answer(host, link, frame) {
                    self.input(host, Input::Frame { link, frame });
                }
            }
            Message::WrongHeader => self.input(host, Input::BadHeader { link }),
            Message::Drip(transfer) => {
                if self.hosts[host].incoming.contains_key(&(link, transfer)) {
                    self.input(host, Input::Progress { link, transfer, bytes: 1 });
                }
            }
            Message::Header(segment) => {
                let zero = self.tree.zero(segment);
                let owner = &mut self.hosts[host];
                owner.admit(segment, zero);
                owner.fresh = true;
                self.input(host, Input::Header { segment, zero });
                let waiting = self.hosts[host].unchecked.remove(&segment).unwrap_or_default();
                for (link, transfer, block, wrong) in waiting {
                    self.block(host, link, transfer, block, wrong);
                }
            }
            Message::Page(hash) => {
                let wanted = self.hosts[host].node.as_ref().is_some_and(|node| node.wants_page(&hash));
                if wanted {
                    self.hosts[host].pages.insert(hash);
                    self.input(host, Input::Page { hash, len: 30_000 });
                }
            }
            Message::Data { transfer, block, offset, len, wrong } => {
                let owner = &mut self.hosts[host];
                owner.count.data_received += len as u64;
                self.input(host, Input::Progress { link, transfer, bytes: len });
                let owner = &mut self.hosts[host];
                let Some(incoming) = owner.incoming.get_mut(&(link, transfer)) else {
                    owner.count.wasted += len as u64;
                    return;
                };
                let inside = incoming.run.object == block.object
                    && (incoming.run.first..incoming.run.end()).contains(&block.index);
                assert!(inside, "host {host} is sent {block:?} in a transfer of {:?}", incoming.run);
                let (part, have, bad) =
                    incoming.part.take().filter(|(of, ..)| *of == block).unwrap_or((block, 0, false));
                assert!(have == offset || wrong, "DATA of {block:?} is not in order");
                let (have, bad) = (have + len, bad || wrong);
                let size = self.tree.find(block.object).map_or(0, |object| object.size);
                if have < swarmfs::chunk::block_len(size, block.index) {
                    incoming.part = Some((part, have, bad));
                } else if owner.cache.get(&block.segment()).is_some_and(|held| held.header) {
                    self.block(host, link, transfer, block, bad);
                } else {
                    owner.unchecked.entry(block.segment()).or_default().push((link, transfer, block, bad));
                }
            }
        }
    }

    /// A whole block is here and its header too: it is checked, kept if it is right, and the node is told.
    fn block(&mut self, host: usize, link: LinkId, transfer: u32, block: BlockId, wrong: bool) {
        let owner = &mut self.hosts[host];
        if !owner.incoming.contains_key(&(link, transfer)) {
            return;
        }
        owner.count.wrong += wrong as u64;
        if !wrong {
            if !owner.keep(block) {
                owner.count.wasted += swarmfs::chunk::BLOCK as u64;
            }
            owner.fresh = true;
        }
        self.input(host, Input::Block { link, transfer, block, good: !wrong });
        let owner = &mut self.hosts[host];
        if !wrong && !owner.node.as_ref().is_some_and(|node| node.has_block(block)) {
            owner.untaken.push((link, transfer, block));
        }
    }

    /// A driver closes its end.
    pub(super) fn close(&mut self, connection: usize, side: usize) {
        let other = self.other(connection, side);
        let end = &mut self.connections[connection].ends[side];
        if std::mem::replace(&mut end.open, false) && !self.hosts[end.host].wire.cut {
            self.after(self.network.latency, other, Event::Reset { connection, side: 1 - side });
        }
    }

    /// An end learns that the other is closed.
    pub(super) fn reset(&mut self, connection: usize, side: usize) {
        if !self.ours(connection, side) {
            return;
        }
        let End { host, link, .. } = self.connections[connection].ends[side];
        let Some(link) = link else { return };
        if self.hosts[host].paused {
            return self.hosts[host].backlog.push_back(Backlog::Closed { connection, side });
        }
        self.connections[connection].ends[side].open = false;
        self.hosts[host].links.remove(&link);
        self.hosts[host].incoming.retain(|(of, _), _| *of != link);
        self.input(host, Input::Closed { link });
    }
}
