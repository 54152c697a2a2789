//! The event loop's tasks: what waits (for a datagram, a connection, the disk, the time) and then tells the core.
//!
//! The core is borrowed only between waits, and settled after every batch of news.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::Command;
use super::core::{Core, Errand, Handle, Parts};
use super::links;
use crate::net::sockets::{self, Sockets};
use crate::origin::SegmentError;
use crate::swarm::Input;
use crate::wire::datagram::MAX_DATAGRAM;

/// How often deadlines are looked at and the snapshot is renewed.
const HOUSEKEEPING: Duration = Duration::from_millis(100);
/// How often an origin closes files that nobody asks for any more.
const TIDY: Duration = Duration::from_secs(60);
/// How often an origin asks who else offers its tree.
const RIVALS: Duration = Duration::from_secs(30);
/// When a changed head is broadcast: links tell of it, too, but not whoever is about to find its link dead.
const ANNOUNCED: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// Lets a batch of events take effect and starts what it gave rise to.
pub fn settle(core: &Handle) {
    let errands = {
        let mut core = core.borrow_mut();
        core.settle();
        std::mem::take(&mut core.errands)
    };
    for errand in errands {
        tokio::task::spawn_local(run_errand(core.clone(), errand));
    }
}

async fn run_errand(core: Handle, errand: Errand) {
    match errand {
        Errand::Connect(link, addr) => links::connect(core, link, addr).await,
        Errand::Prepare(segment) => {
            let Some(tree) = core.borrow().tree.clone() else { return };
            let read = move || {
                let mut bytes = Vec::new();
                tree.segment(segment, &mut bytes).map(|header| (header, bytes))
            };
            let result = tokio::task::spawn_blocking(read).await.unwrap_or(Err(SegmentError::Unreadable));
            core.borrow_mut().prepared(segment, result);
            settle(&core);
        }
        Errand::Announce(sequence) => announce(core, sequence).await,
        Errand::Datagram(to, bytes) => {
            let socket = core.borrow().socket.clone();
            if let Some(socket) = socket
                && let Err(error) = socket.send_to(&bytes, to).await
            {
                tracing::debug!(%to, %error, "datagram not sent");
            }
        }
        Errand::Broadcast(bytes) => {
            let net = core.borrow().net.clone();
            // Names of peers are resolved here, which may wait for a name server.
            let sent = tokio::task::spawn_blocking(move || {
                // First what needs no name server.
                let sent = sockets::broadcast(&bytes, &net);
                let peers = sockets::resolve(&net.peers);
                sent.map(|_| (bytes, peers))
            });
            match sent.await {
                Ok(Ok((bytes, peers))) => {
                    for peer in peers {
                        Box::pin(run_errand(core.clone(), Errand::Datagram(peer, bytes.clone()))).await;
                    }
                }
                Ok(Err(error)) => tracing::warn!(%error, "cannot broadcast"),
                Err(error) => tracing::error!(%error, "broadcast failed"),
            }
        }
    }
}

/// Tells the network of an origin's new head, until there is a newer one.
async fn announce(core: Handle, sequence: u64) {
    let begin = tokio::time::Instant::now();
    for at in ANNOUNCED {
        tokio::time::sleep_until(begin + at).await;
        let bytes = {
            let mut core = core.borrow_mut();
            if core.head().sequence != sequence {
                return;
            }
            core.news()
        };
        if let Some(bytes) = bytes {
            Box::pin(run_errand(core.clone(), Errand::Broadcast(bytes))).await;
        }
    }
}

/// The event loop, until a client stops it.
pub async fn run(parts: Parts, sockets: Sockets, mut orders: mpsc::UnboundedReceiver<Command>) {
    let core: Handle = Rc::new(RefCell::new(Core::new(parts)));
    if let Err(error) = listen(&core, sockets) {
        tracing::error!(%error, "cannot use the sockets");
    }
    tokio::task::spawn_local(keep_time(core.clone()));
    tokio::task::spawn_local(keep_house(core.clone()));
    settle(&core);
    while let Some(command) = orders.recv().await {
        let stop = matches!(command, Command::Stop);
        core.borrow_mut().obey(command);
        // What came meanwhile belongs to the same batch.
        let mut stopped = stop;
        while let Ok(command) = orders.try_recv() {
            stopped |= matches!(command, Command::Stop);
            core.borrow_mut().obey(command);
        }
        if stopped {
            break;
        }
        settle(&core);
    }
    orders.close();
    while let Ok(command) = orders.try_recv() {
        core.borrow_mut().obey(command);
    }
    let mut core = core.borrow_mut();
    core.waiting.fail_all();
    core.links.clear();
}

fn listen(core: &Handle, sockets: Sockets) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(sockets.tcp)?;
    let own = Rc::new(UdpSocket::from_std(sockets.udp)?);
    core.borrow_mut().socket = Some(own.clone());
    tokio::task::spawn_local(hear(core.clone(), own));
    for socket in sockets.heard {
        tokio::task::spawn_local(hear(core.clone(), Rc::new(UdpSocket::from_std(socket)?)));
    }
    tokio::task::spawn_local(links::accept(core.clone(), listener));
    Ok(())
}

async fn hear(core: Handle, socket: Rc<UdpSocket>) {
    let mut buffer = [0; MAX_DATAGRAM + 1];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((len, from)) => {
                core.borrow_mut().on_datagram(from, &buffer[..len]);
                settle(&core);
            }
            // An ICMP error to something that was sent; the socket is still good.
            Err(error) => tracing::debug!(%error, "datagram not received"),
        }
    }
}

/// Ticks when the node wants to be woken.
async fn keep_time(core: Handle) {
    let (began, rearm) = {
        let core = core.borrow();
        (core.began, core.rearm.clone())
    };
    loop {
        let next = {
            let mut core = core.borrow_mut();
            core.armed = core.node.next_tick();
            core.armed
        };
        let at = tokio::time::Instant::from_std(began + Duration::from_micros(next.0));
        tokio::select! {
            () = tokio::time::sleep_until(at) => {
                core.borrow_mut().handle(Input::Tick);
                settle(&core);
            }
            () = rearm.notified() => {}
        }
    }
}

async fn keep_house(core: Handle) {
    let mut timer = tokio::time::interval(HOUSEKEEPING);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut tidied = Instant::now();
    let mut asked: Option<Instant> = None;
    loop {
        timer.tick().await;
        core.borrow_mut().housekeeping();
        let tree = core.borrow().tree.clone();
        if tree.is_some() && asked.is_none_or(|asked| asked.elapsed() > RIVALS) {
            asked = Some(Instant::now());
            if let Some(question) = core.borrow_mut().question() {
                tokio::task::spawn_local(run_errand(core.clone(), Errand::Broadcast(question)));
            }
        }
        if let Some(tree) = tree
            && tidied.elapsed() > TIDY
        {
            tidied = Instant::now();
            tokio::task::spawn_blocking(move || tree.tidy());
        }
    }
}
