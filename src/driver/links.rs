//! One link: bytes between its connection and the core.
//!
//! What is written, in this order: the frame begun, all control, one DATA frame of the first transfer that has a block,
//! and so on. Control so never waits behind more than one frame of data and what the kernel was told to hold at most.

use std::collections::{HashMap, VecDeque};
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::core::Handle;
use super::greet::{self, Greeting};
use super::meter::Talk;
use super::tasks::settle;
use crate::chunk::{BLOCKS_PER_SEGMENT, BlockId, Run, SegmentId, block_len};
use crate::net::channel::{Channel, Opener, Sealer};
use crate::net::{interfaces, sockets};
use crate::swarm::{Input, LinkId, Subnet, Transmit};
use crate::wire::deframe::{Deframer, Piece};
use crate::wire::frame::{DATA_HEADER, DataHeader, FRAME_HEADER, Frame, data_header};
use crate::wire::head::PageHash;

/// Control that a peer has not read: more is a peer that does not read at all.
const MOST_CONTROL: usize = 1 << 20;
/// Pages and headers that a peer may wait for: more than a node asks for at once. They are made when they can be sent, so
/// each costs its name until then.
const MOST_OWED: usize = 8192;
/// A peer that takes no byte for so long does not read.
const UNREAD: Duration = Duration::from_secs(5);
/// Block buffers kept for reuse on a link.
const SPARE: usize = 4;
const CONNECT: Duration = Duration::from_secs(3);
/// Bytes read at once: enough for a batch of frames, few enough that other links get their turn.
const READ: usize = 256 * 1024;

/// What the event loop holds of a connection. Dropping it closes the connection.
pub struct LinkIo {
    pub addr: SocketAddr,
    control: Vec<u8>,
    owed: VecDeque<Owed>,
    wake: Rc<Notify>,
    incoming: HashMap<u32, Incoming>,
    spare: Vec<Vec<u8>>,
    tasks: Vec<AbortHandle>,
}

/// What a peer asked for and gets when its link can take it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owed {
    Header(SegmentId),
    Page(PageHash),
}

/// A transfer that DATA is expected of.
struct Incoming {
    run: Run,
    size: u64,
    /// The block that is coming in, and its bytes so far.
    block: u32,
    bytes: Vec<u8>,
    /// Whole blocks that wait for their segment's header. No more than the run has.
    held: Vec<(u32, Vec<u8>)>,
}

/// A block that waited for its header: transfer, run, number, bytes.
pub type Held = (u32, Run, u32, Vec<u8>);

impl Drop for LinkIo {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl LinkIo {
    /// Appends a frame to what will be written; false if the peer has let too much pile up.
    pub fn queue(&mut self, frame: &Frame) -> bool {
        frame.encode(&mut self.control);
        self.wake.notify_one();
        self.control.len() <= MOST_CONTROL
    }

    /// Notes what the peer gets next; false if it has let too much pile up. Asking twice makes no second answer.
    pub fn owe(&mut self, owed: Owed) -> bool {
        if !self.owed.contains(&owed) {
            self.owed.push_back(owed);
            self.wake.notify_one();
        }
        self.owed.len() <= MOST_OWED
    }

    pub fn wake(&self) {
        self.wake.notify_one();
    }

    pub fn expect(&mut self, transfer: u32, run: Run, size: u64) {
        let incoming = Incoming { run, size, block: u32::MAX, bytes: Vec::new(), held: Vec::new() };
        self.incoming.insert(transfer, incoming);
    }

    pub fn ignore(&mut self, transfer: u32) {
        self.incoming.remove(&transfer);
    }

    /// Takes bytes of a block. None if they are not expected; else the run and the block if it is whole.
    pub fn take(&mut self, data: DataHeader, bytes: &[u8]) -> Option<Option<(Run, Vec<u8>)>> {
        let incoming = self.incoming.get_mut(&data.transfer)?;
        let run = incoming.run;
        if !(run.first..run.end()).contains(&data.block) {
            return None;
        }
        if data.offset == 0 {
            incoming.block = data.block;
            if incoming.bytes.capacity() == 0 {
                incoming.bytes = self.spare.pop().unwrap_or_default();
            }
            incoming.bytes.clear();
        }
        let len = block_len(incoming.size, data.block) as usize;
        let fits = incoming.block == data.block
            && incoming.bytes.len() == data.offset as usize
            && incoming.bytes.len() + bytes.len() <= len;
        if !fits {
            return None;
        }
        incoming.bytes.extend_from_slice(bytes);
        let whole = incoming.bytes.len() == len;
        Some(whole.then(|| (run, std::mem::take(&mut incoming.bytes))))
    }

    /// Keeps a whole block until its header comes.
    pub fn hold(&mut self, transfer: u32, block: u32, bytes: Vec<u8>) {
        if let Some(incoming) = self.incoming.get_mut(&transfer)
            && incoming.held.len() < BLOCKS_PER_SEGMENT as usize
        {
            incoming.held.push((block, bytes));
        }
    }

    /// Gives out the blocks of a segment whose header has come.
    pub fn release(&mut self, segment: SegmentId) -> Vec<Held> {
        let mut released = Vec::new();
        for (transfer, incoming) in &mut self.incoming {
            let run = incoming.run;
            if (BlockId { object: run.object, index: run.first }).segment() == segment {
                released.extend(incoming.held.drain(..).map(|(block, bytes)| (*transfer, run, block, bytes)));
            }
        }
        released
    }

    pub fn recycle(&mut self, bytes: Vec<u8>) {
        if self.spare.len() < SPARE {
            self.spare.push(bytes);
        }
    }
}

/// Opens a connection that the node asked for.
pub async fn connect(core: Handle, link: LinkId, addr: SocketAddr) {
    let mut stream = match tokio::time::timeout(CONNECT, TcpStream::connect(addr)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%addr, %error, "not connected");
            core.borrow_mut().handle(Input::Closed { link });
            return settle(&core);
        }
        Err(_) => {
            core.borrow_mut().handle(Input::Closed { link });
            return settle(&core);
        }
    };
    let (secret, suites) = (core.borrow().net.secret.clone(), core.borrow().suites);
    let channel = match secret {
        None => None,
        Some(secret) => match greet::call(&mut stream, &secret, suites).await {
            Ok(channel) => Some(channel),
            Err(error) => {
                tracing::debug!(%addr, %error, "no link: not greeted");
                core.borrow_mut().handle(Input::Closed { link });
                return settle(&core);
            }
        },
    };
    // The node may have given it up just before.
    if core.borrow().node.has_link(link) {
        let subnet = subnet_of(&stream);
        attach(&core, link, stream, addr, channel);
        core.borrow_mut().handle(Input::Connected { link, subnet });
        settle(&core);
    }
}

/// The network that a connection was made from.
fn subnet_of(stream: &TcpStream) -> Option<Subnet> {
    let IpAddr::V4(address) = stream.local_addr().ok()?.ip() else { return None };
    Some(Subnet { address, mask: interfaces::mask_of(address)? })
}

/// Takes connections as long as the loop runs.
pub async fn accept(core: Handle, listener: TcpListener) {
    let secret = core.borrow().net.secret.clone();
    let mut greeting = Greeting::default();
    loop {
        match listener.accept().await {
            Ok((stream, addr)) => match &secret {
                Some(secret) => greeting.begin(&core, secret.clone(), stream, addr, admit),
                None => admit(&core, stream, addr, None),
            },
            Err(error) => {
                // Out of descriptors, most likely: they come back when links end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Makes a link of a connection that came in, if the node wants one.
fn admit(core: &Handle, stream: TcpStream, addr: SocketAddr, channel: Option<Channel>) {
    let now = core.borrow().now();
    let link = core.borrow_mut().node.accept(addr, now);
    if let Some(link) = link {
        attach(core, link, stream, addr, channel);
        settle(core);
    }
}

fn attach(core: &Handle, link: LinkId, stream: TcpStream, addr: SocketAddr, channel: Option<Channel>) {
    if let Err(error) = sockets::tune(&stream) {
        tracing::debug!(%addr, %error, "connection not tuned");
    }
    let (read, write) = stream.into_split();
    let (opener, sealer) = channel.map(|channel| (channel.opener, channel.sealer)).unzip();
    let write = Writing { stream: write, sealer };
    let wake = Rc::new(Notify::new());
    let reader = tokio::task::spawn_local(read_loop(core.clone(), link, read, opener)).abort_handle();
    let writer = tokio::task::spawn_local(write_loop(core.clone(), link, write, wake.clone())).abort_handle();
    let io = LinkIo {
        addr,
        control: Vec::new(),
        owed: VecDeque::new(),
        wake,
        incoming: HashMap::new(),
        spare: Vec::new(),
        tasks: vec![reader, writer],
    };
    core.borrow_mut().links.insert(link, io);
}

async fn read_loop(core: Handle, link: LinkId, stream: OwnedReadHalf, mut opener: Option<Opener>) {
    let mut deframer = Deframer::default();
    let mut talk = Talk::new(Instant::now());
    loop {
        if stream.readable().await.is_err() {
            break;
        }
        let mut too_much = None;
        let ended = {
            let mut core = core.borrow_mut();
            let mut scratch = std::mem::take(&mut core.scratch);
            scratch.resize(READ, 0);
            let ended = match stream.try_read(&mut scratch) {
                Ok(0) => true,
                Ok(len) => {
                    let mut room = std::mem::take(&mut core.room);
                    // Pages are asked for, as data is.
                    let (mut frames, mut data_bytes) = (0, 0);
                    let mut deframe = |bytes: &[u8]| {
                        deframer.feed(bytes, |piece| match piece {
                            Piece::Frame(frame) => {
                                frames += 1;
                                data_bytes += if let Frame::Page(page) = &frame { page.len() } else { 0 };
                                core.on_frame(link, frame);
                            }
                            Piece::Data(data, bytes) => {
                                data_bytes += bytes.len();
                                core.on_data(link, data, bytes);
                            }
                        })
                    };
                    let taken = match &mut opener {
                        Some(opener) => opener.feed(&mut room, &scratch[..len], deframe),
                        None => deframe(&scratch[..len]),
                    };
                    core.room = room;
                    let allowed = core.node.talk_allowed(link);
                    too_much = talk.note(len.saturating_sub(data_bytes), frames, allowed, Instant::now());
                    core.statistics.throttled += u64::from(too_much.is_some());
                    if let Err(error) = taken {
                        core.on_malformed(link, error);
                    }
                    taken.is_err()
                }
                Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
            };
            core.scratch = scratch;
            // The node may have ended the link in this very batch.
            ended || !core.links.contains_key(&link)
        };
        if ended {
            break;
        }
        settle(&core);
        if let Some(pause) = too_much {
            tokio::time::sleep(pause).await;
        }
    }
    core.borrow_mut().end_link(link);
    settle(&core);
}

async fn write_loop(core: Handle, link: LinkId, mut writing: Writing, wake: Rc<Notify>) {
    let mut unsent = 0;
    loop {
        let limit = core.borrow().node.unsent();
        if limit != unsent {
            unsent = limit;
            if let Err(error) = sockets::limit_unsent(writing.stream.as_ref(), limit) {
                tracing::debug!(?link, %error, "unsent bytes not limited");
            }
        }
        match next_write(&core, link) {
            Write::Control(bytes) => {
                if let Err(stop) = writing.send(&core, &bytes, &[]).await {
                    stop.tell(&core, link);
                    break;
                }
                core.borrow_mut().upload.count(bytes.len(), Instant::now());
            }
            Write::Data(header, transmit) => {
                let slice = {
                    let core = core.borrow();
                    let segment = transmit.block.segment();
                    let start = (transmit.block.index - segment.first_block()) * crate::chunk::BLOCK + transmit.offset;
                    core.shared.cache.read(segment, start..start + transmit.len)
                };
                let Some(slice) = slice else {
                    tracing::error!(?transmit, "the node sends what the cache does not hold; link closed");
                    break;
                };
                if let Err(stop) = writing.send(&core, &header, &slice).await {
                    stop.tell(&core, link);
                    break;
                }
                core.borrow_mut().statistics.to_peers += transmit.len as u64;
                if core.borrow().node.wants_settling() {
                    settle(&core);
                }
            }
            Write::Wait(until) => {
                tokio::select! {
                    () = tokio::time::sleep_until(until.into()) => {}
                    () = wake.notified() => {}
                }
            }
            Write::Nothing => wake.notified().await,
            Write::Ended => return,
        }
    }
    core.borrow_mut().end_link(link);
    settle(&core);
}

/// Why no more is written to a link.
enum Stop {
    Failed,
    Unread,
}

impl Stop {
    fn tell(self, core: &Handle, link: LinkId) {
        if let Stop::Unread = self {
            core.borrow_mut().on_unread(link);
        }
    }
}

/// What a link's bytes are written to.
struct Writing {
    stream: OwnedWriteHalf,
    sealer: Option<Sealer>,
}

impl Writing {
    /// Writes both parts, encrypted if the link is.
    async fn send(&mut self, core: &Handle, mut first: &[u8], mut second: &[u8]) -> Result<(), Stop> {
        let Some(sealer) = &mut self.sealer else { return write_all(&mut self.stream, first, second).await };
        let mut message = core.borrow_mut().room.take();
        while !(first.is_empty() && second.is_empty()) {
            message.clear();
            let sealed = sealer.seal(&mut core.borrow_mut().room, &mut first, &mut second, &mut message);
            sealed.map_err(|_| Stop::Failed)?;
            write_all(&mut self.stream, &message, &[]).await?;
        }
        core.borrow_mut().room.give_back(message);
        Ok(())
    }
}

/// Writes both parts, as long as the peer takes some of it now and then.
async fn write_all(stream: &mut OwnedWriteHalf, first: &[u8], second: &[u8]) -> Result<(), Stop> {
    let mut parts = [IoSlice::new(first), IoSlice::new(second)];
    let mut parts = &mut parts[..];
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match tokio::time::timeout(UNREAD, stream.write_vectored(parts)).await {
            Ok(Ok(0) | Err(_)) => return Err(Stop::Failed),
            Ok(Ok(written)) => IoSlice::advance_slices(&mut parts, written),
            Err(_) => return Err(Stop::Unread),
        }
    }
    Ok(())
}

enum Write {
    Control(Vec<u8>),
    Data([u8; 20], Transmit),
    /// Nothing before then, unless control comes up.
    Wait(Instant),
    Nothing,
    Ended,
}

fn next_write(core: &Handle, link: LinkId) -> Write {
    let mut core = core.borrow_mut();
    let Some(io) = core.links.get_mut(&link) else { return Write::Ended };
    if !io.control.is_empty() {
        return Write::Control(std::mem::take(&mut io.control));
    }
    if let Some(owed) = io.owed.pop_front() {
        let mut bytes = Vec::new();
        core.pay(owed).encode(&mut bytes);
        return Write::Control(bytes);
    }
    let now = Instant::now();
    if let Some(due) = core.upload.wait(now) {
        return Write::Wait(due);
    }
    match core.node.transmit(link) {
        Some(transmit) => {
            core.upload.count(FRAME_HEADER + DATA_HEADER + transmit.len as usize, now);
            let header = DataHeader {
                transfer: transmit.transfer,
                block: transmit.block.index,
                offset: transmit.offset as u16,
                len: transmit.len as u16,
            };
            Write::Data(data_header(header), transmit)
        }
        None => {
            drop(core);
            Write::Nothing
        }
    }
}
