//! What may not pile up: memory, descriptors, threads, processes, mounts, sockets and state.

use std::fs;
use std::path::Path;

use super::faults::{CACHE_MIB, World};
use crate::lab::swarm::{self, try_memory};
use crate::lab::{Host, Running};

const MIB: u64 = 1 << 20;

/// Beside its cache: code, threads' stacks, the catalogue's tables, buffers of links, and extents that are dropped but of
/// which a link still sends: 2 MiB for each. `tests/memory.rs` holds a node to less that has three quiet links.
const BESIDE: u64 = 40 * MIB;
/// What an origin has beside that: four segments of 2 MiB being read, each in a buffer of its thread's own heap.
const READING: u64 = 16 * MIB;
/// Of eight nodes each has links to all others, and an origin keeps the files open that were asked for.
const DESCRIPTORS: usize = 120;
/// tokio's blocking threads come and go.
const THREADS: usize = 48;
/// Keys, heads and the headers of all segments.
const STATE: u64 = 4 * MIB;

/// What was there when nothing ran yet.
pub struct Before {
    mounts: Vec<usize>,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Held {
    pub anonymous: u64,
    pub descriptors: usize,
    threads: usize,
}

impl Before {
    pub fn of(hosts: &[Host]) -> Before {
        Before { mounts: hosts.iter().map(Host::mounts).collect() }
    }

    /// To be called when it is calm. Gives what each node holds, the origin first.
    pub fn compare(&self, world: &World) -> Vec<Held> {
        let nodes = world.nodes.iter().map(|node| node.program.as_ref());
        let programs = [world.origin.as_ref()].into_iter().chain(nodes);
        let mut all = Vec::new();
        for ((host, program), mounts) in world.lab.hosts().iter().zip(programs).zip(&self.mounts) {
            let program = program.expect("all is mended");
            all.push(holds(program));
            let mounted = usize::from(host.name != world.lab.origin().name);
            assert_eq!(host.mounts(), mounts + mounted, "mounts were left behind on {}", host.name);
            assert_eq!(host.pids_of("swarmfs").len(), 1, "a node was left behind on {}", host.name);
            assert_eq!(host.pids_of("dd").len(), 0, "a reader hangs on {}", host.name);
            // The node's socket, and a lock that mounts of one place share.
            let runtime = entries(&host.path("/run/swarmfs"));
            assert!(runtime <= 2, "{}: {runtime} files in the directory for sockets", host.name);
            let state = size_of(&host.path("/run/state"));
            assert!(state < STATE, "{}: {state} bytes of state", host.name);
        }
        all
    }

    /// When everything has ended.
    pub fn must_be_all(&self, hosts: &[Host]) {
        for (host, mounts) in hosts.iter().zip(&self.mounts) {
            assert_eq!(host.mounts(), *mounts, "mounts were left behind on {}", host.name);
            assert_eq!(host.pids_of("swarmfs").len(), 0, "a node was left behind on {}", host.name);
        }
    }
}

fn holds(program: &Running) -> Held {
    let (pid, what) = (program.pid(), program.what());
    let peak = swarm::memory(pid, "VmHWM");
    let held = Held {
        anonymous: try_memory(pid, "RssAnon").expect("the kernel tells it apart"),
        descriptors: entries(Path::new(&format!("/proc/{pid}/fd"))),
        threads: entries(Path::new(&format!("/proc/{pid}/task"))),
    };
    println!("         {what}: peak {} MiB, {} MiB anonymous, {held:?}", peak / MIB, held.anonymous / MIB);
    let reading = if what.starts_with("swarmfs serve") { READING } else { 0 };
    assert!(peak < CACHE_MIB * MIB + BESIDE + reading, "{what}: resident memory reached {} MiB", peak / MIB);
    assert!(held.descriptors < DESCRIPTORS, "{what}: {} descriptors are open", held.descriptors);
    assert!(held.threads < THREADS, "{what}: {} threads", held.threads);
    held
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

fn size_of(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size_of(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
