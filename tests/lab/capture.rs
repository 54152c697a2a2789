//! What passes the switch, as somebody with a tap on it sees it.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::Lab;

/// Every kind of frame, as the kernel's packet sockets number them.
const ALL: u16 = 3;
/// Frames that wait for this thread on a busy machine.
const WAITING: usize = 64 << 20;

pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Vec<u8>>>,
}

impl Lab {
    /// Records each frame on each port of the switch from when this returns. On a limited link nothing is missed.
    pub fn capture(&self) -> Capture {
        let network = File::open(format!("/proc/{}/ns/net", self.switch.pid())).expect("the holder lives");
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            super::space::move_thread_into(&network);
            let tap = tap();
            ready.send(()).expect("the test waits for it");
            record(&tap, &stopped)
        });
        is_ready.recv().expect("whoever made the switch may listen to it");
        Capture { stop, thread }
    }
}

fn tap() -> Socket {
    let protocol = Protocol::from(i32::from(ALL.to_be()));
    let tap =
        Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).expect("whoever made a namespace may listen to it");
    // What the kernel allows must do where it allows less.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&tap, WAITING)
        .or_else(|_| rustix::net::sockopt::set_socket_recv_buffer_size(&tap, WAITING));
    tap.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket has a timeout");
    tap
}

fn record(mut tap: &Socket, stopped: &AtomicBool) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        // What waits is still taken after the end.
        let stop = stopped.load(Ordering::Acquire);
        match tap.read(&mut buffer) {
            Ok(len) => frames.push(buffer[..len].to_vec()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) && stop => return frames,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => panic!("cannot listen: {error}"),
        }
    }
}

impl Capture {
    /// All frames so far, most of them twice: as they came to the switch and as they left it.
    pub fn stop(self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the tap records what comes")
    }
}
