//! `serve` as a service manager sees it.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

mod lab;

use lab::swarm::{self, SOON};
use lab::{Lab, Link};

/// systemd's limit, in microseconds; half of it is the pause between two signs of life.
const WATCHDOG_US: u64 = 500_000;
/// Six pauses.
const SILENCE: Duration = Duration::from_micros(WATCHDOG_US * 3);

#[test]
fn a_service_is_ready_when_it_serves_and_alive_while_its_event_loop_turns() {
    let Some(lab) = Lab::shared(1, Link::unlimited()) else { return };
    let tree = lab.scratch().join("images");
    std::fs::create_dir(&tree).unwrap();
    let manager = lab.scratch().join("notify");
    let words = Words(UnixDatagram::bind(&manager).unwrap());
    let mut service = lab.origin().spawn(
        "env",
        &[
            &format!("NOTIFY_SOCKET={}", manager.display()),
            &format!("WATCHDOG_USEC={WATCHDOG_US}"),
            swarm::program().to_str().unwrap(),
            "serve",
            tree.to_str().unwrap(),
            "--log-file=/run/log",
        ],
    );
    let ready = words.until("READY=1");
    assert!(ready.contains("STATUS=images: 0 peers"), "{ready}");
    words.until("WATCHDOG=1");

    let held = Held::thread_of(service.pid(), "swarmfs-net");
    let said = words.during(SILENCE);
    // One may have been on its way.
    assert!(said.len() <= 1, "nothing turns, and the watchdog is fed: {said:?}");
    drop(held);
    words.until("WATCHDOG=1");

    service.signal("TERM");
    words.until("STOPPING=1");
    assert!(service.wait(SOON).success());
    let log = std::fs::read_to_string(lab.origin().path("/run/log")).unwrap();
    assert!(log.contains("INFO the tree is listed") && log.contains("INFO stopped"), "{log}");
    assert!(!service.log().contains("INFO"), "what goes to the file goes nowhere else: {}", service.log());
    assert!(service.log().contains("serving"), "what was asked for is still printed: {}", service.log());
}

/// What the service manager is told.
struct Words(UnixDatagram);

impl Words {
    fn next(&self, limit: Duration) -> Option<String> {
        self.0.set_read_timeout(Some(limit)).unwrap();
        let mut buffer = [0; 4096];
        let len = self.0.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..len].to_vec()).unwrap())
    }

    #[track_caller]
    fn until(&self, word: &str) -> String {
        loop {
            let said = self.next(SOON).unwrap_or_else(|| panic!("{word} is not said"));
            if said.lines().any(|line| line == word) {
                return said;
            }
        }
    }

    /// All until there was silence for so long.
    fn during(&self, silence: Duration) -> Vec<String> {
        std::iter::from_fn(|| self.next(silence)).take(10).collect()
    }
}

/// One thread of a program, stopped as by a debugger; it goes on when this is dropped.
struct Held(libc::pid_t);

impl Held {
    fn thread_of(pid: u32, name: &str) -> Held {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let is = |path: &Path| std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name);
        let thread = threads.map(|entry| entry.path()).find(|path| is(path)).expect("the thread runs");
        let thread = thread.file_name().unwrap().to_str().unwrap().parse().unwrap();
        trace(libc::PTRACE_SEIZE, thread);
        trace(libc::PTRACE_INTERRUPT, thread);
        // SAFETY: no status is asked for.
        let stopped = unsafe { libc::waitpid(thread, std::ptr::null_mut(), libc::__WALL) };
        assert_eq!(stopped, thread, "{}", std::io::Error::last_os_error());
        Held(thread)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        trace(libc::PTRACE_DETACH, self.0);
    }
}

fn trace(request: libc::c_uint, thread: libc::pid_t) {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: these requests read and write no memory.
    let done = unsafe { libc::ptrace(request, thread, none, none) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}
