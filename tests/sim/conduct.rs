//! Hosts that mean ill. Each meets others by a node of the product, so that it is greeted, known and kept alive; what it
//! says of itself is altered on its way out, and whoever asks it for something is answered here.

#![allow(dead_code, reason = "not every test needs every kind")]

use swarmfs::chunk::{BLOCKS_PER_CHUNK, BLOCKS_PER_SEGMENT, ObjectId, Run, block_len, blocks_of};
use swarmfs::wire::frame::{GoneReason, MAX_OFFER, State};

use super::*;

/// How often they act without being asked.
const TURN: u64 = 50 * MS;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Conduct {
    #[default]
    Honest,
    /// Reads like any other, and all that it sends is wrong.
    Liar,
    /// Claims and offers everything, and what it then sends is wrong.
    WrongBlocks,
    /// The same with segment headers.
    WrongHeaders,
    /// Claims and offers everything, and sends nothing of it.
    Idle,
    /// Sends a byte a second of it.
    Crawl,
    /// Gives up whatever was accepted.
    Abort,
    /// Claims everything and offers nothing.
    Boast,
    /// Wants everything, and answers no offer.
    Hog,
    /// One STATE after the other, each full of chunks that nobody has.
    Flood,
    /// Says that it is the origin, that the tree is an old one, and of every object that it is gone.
    FalseOrigin,
    /// Comes and goes, each time as somebody else.
    Flap,
    /// Calls itself what another is called.
    Thief,
}

use Conduct::*;

impl Conduct {
    /// Those that `hostile` hosts of a world take in turn.
    pub const ALL: [Conduct; 11] =
        [WrongBlocks, WrongHeaders, Idle, Crawl, Abort, Boast, Hog, Flood, FalseOrigin, Flap, Thief];

    /// Whether its hosts must be done before a world is.
    pub fn is_waited_for(self) -> bool {
        matches!(self, Honest | Liar)
    }

    fn claims(self) -> bool {
        matches!(self, WrongBlocks | WrongHeaders | Idle | Crawl | Abort | Boast)
    }

    fn offers(self) -> bool {
        self.claims() && self != Boast
    }
}

impl World {
    /// What a host says instead of what its node would.
    pub(super) fn alter(&self, host: usize, frame: Frame) -> Option<Frame> {
        let conduct = self.hosts[host].setup.conduct;
        Some(match frame {
            Frame::State(state) if conduct.claims() => {
                Frame::State(State { taken: self.everything(), rate: u32::MAX, room: 0, ..state })
            }
            Frame::State(state) if conduct == Hog => {
                let object = self.tree.object(0);
                let count = blocks_of(object.size).min(1500);
                let added = vec![Run { object: object.id, first: 0, count }];
                Frame::State(State { full: true, added, taken: vec![], room: i16::MAX, rate: u32::MAX, ..state })
            }
            Frame::Accept { .. } | Frame::Decline { .. } if conduct == Hog => return None,
            Frame::Hello(hello) if conduct == FalseOrigin => Frame::Hello(Hello { origin: true, ..hello }),
            Frame::Hello(hello) if conduct == Thief => {
                let victims: Vec<NodeId> = self.hosts[..host].iter().filter_map(|host| host.id).collect();
                let victim = victims.get(self.connections.len() % victims.len().max(1)).copied();
                Frame::Hello(Hello { node: victim.unwrap_or(hello.node), ..hello })
            }
            frame => frame,
        })
    }

    fn everything(&self) -> Vec<Run> {
        let object = self.tree.object(0);
        let blocks = blocks_of(object.size);
        let starts = (0..blocks).step_by(BLOCKS_PER_CHUNK as usize);
        let run = |first| Run { object: object.id, first, count: BLOCKS_PER_CHUNK.min(blocks - first) };
        starts.map(run).collect()
    }

    /// What a host does with what it was told; what is left over is for its node.
    pub(super) fn answer(&mut self, host: usize, link: LinkId, frame: Frame) -> Option<Frame> {
        let conduct = self.hosts[host].setup.conduct;
        let (transfer, run) = match frame {
            Frame::GetHeader(segment) if conduct == WrongHeaders => {
                self.write(host, link, Message::WrongHeader, 2000);
                let _ = segment;
                return None;
            }
            Frame::GetHeader(segment) if conduct.claims() && conduct != WrongBlocks => {
                let _ = segment;
                return None;
            }
            Frame::Accept { id, run } if conduct.offers() => (id, run),
            Frame::Want { transfer, run, .. } if conduct.claims() => (transfer, run),
            frame => return Some(frame),
        };
        match conduct {
            WrongBlocks => {
                let size = self.tree.find(run.object).map_or(0, |object| object.size);
                for block in run.blocks() {
                    let len = block_len(size, block.index);
                    let message = Message::Data { transfer, block, offset: 0, len, wrong: true };
                    self.write(host, link, message, len + (FRAME_HEADER + DATA_HEADER) as u32);
                }
            }
            Abort => self.carry_out(host, Output::Send { link, frame: Frame::Abort { transfer } }),
            Crawl => self.hosts[host].owing.push((link, transfer)),
            _ => {}
        }
        None
    }

    pub(super) fn misbehave_soon(&mut self, host: usize) {
        if !matches!(self.hosts[host].setup.conduct, Honest | Liar) {
            let life = self.hosts[host].life;
            self.after(TURN, host, Event::Misbehave(host, life));
        }
    }

    /// What a host does by itself, every now and then.
    pub(super) fn misbehave(&mut self, host: usize) {
        let conduct = self.hosts[host].setup.conduct;
        let links: Vec<LinkId> = self.hosts[host].links.keys().copied().collect();
        let greeted = |world: &World, link: LinkId| world.hosts[host].node.as_ref().is_some_and(|n| n.is_greeted(link));
        for link in links.into_iter().filter(|link| greeted(self, *link)).collect::<Vec<_>>() {
            match conduct {
                conduct if conduct.offers() => {
                    let id = self.rng.u32(..1 << 30);
                    let runs = (0..MAX_OFFER).map(|_| self.some_run()).collect();
                    self.carry_out(host, Output::Send { link, frame: Frame::Offer { id, runs } });
                }
                // As much as costs the world a few seconds and whoever gets it nothing that shows.
                Flood if self.now / (4 * TURN) != (self.now - TURN) / (4 * TURN) => {
                    let object = |n: u32| ObjectId([n.to_le_bytes(); 4].concat().try_into().expect("16 bytes"));
                    let first = self.rng.u32(..);
                    let taken = (0..200).map(|n| Run { object: object(first ^ n), first: 0, count: 512 }).collect();
                    let state = State { full: true, sequence: u64::MAX, taken, ..State::default() };
                    self.carry_out(host, Output::Send { link, frame: Frame::State(state) });
                }
                FalseOrigin => {
                    let object = self.tree.object(0).id;
                    let frame = Frame::Gone { object, reason: GoneReason::Replaced };
                    self.carry_out(host, Output::Send { link, frame });
                }
                _ => {}
            }
        }
        if conduct == Crawl && self.now / SECOND != (self.now - TURN) / SECOND {
            for (link, transfer) in self.hosts[host].owing.clone() {
                self.write(host, link, Message::Drip(transfer), 21);
            }
        }
        if conduct == FalseOrigin {
            let to = self.rng.usize(0..self.hosts.len());
            let (node, port) = (self.id_of(host), self.hosts[host].addr.port());
            let welcome = Welcome { node, port, origin: true, head: self.old_head.clone(), peers: vec![] };
            self.throw(host, to, Rc::new(Datagram::Welcome(Box::new(welcome))));
        }
        if conduct == Flap && self.now / (6 * TURN) != (self.now - TURN) / (6 * TURN) {
            self.exit(host);
            return self.after(2 * TURN, host, Event::Start(host));
        }
        self.misbehave_soon(host);
    }

    /// Some blocks of the first file, inside one segment.
    fn some_run(&mut self) -> Run {
        let object = *self.tree.object(0);
        let blocks = blocks_of(object.size);
        let first = self.rng.u32(0..blocks);
        let left = (BLOCKS_PER_SEGMENT - first % BLOCKS_PER_SEGMENT).min(blocks - first);
        Run { object: object.id, first, count: left.min(32) }
    }
}
