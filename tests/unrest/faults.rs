//! The hosts, what runs on them, and what happens to both.

use std::path::Path;
use std::time::{Duration, Instant};

use super::leaks::Held;
use super::tree::Tree;
use super::{Life, PATIENCE};
use crate::lab::swarm::{self, MOUNT, SOON, wait_until};
use crate::lab::{Host, Lab, Running};

/// The least that a node takes: less than the tree, so that chunks come and go all the time.
pub const CACHE_MIB: u64 = 32;
/// Nodes that nothing kills, so that what piles up in a long life is seen.
const VETERANS: usize = 2;

/// What a full cache and all beside it differ by from one moment to the next.
const GROWTH: u64 = 16 << 20;
/// Rounds of which the least counts.
const RECENT: usize = 6;
/// Links of such a swarm that one moment has and the next has not.
const LINKS: u64 = 24;

pub struct World<'a> {
    pub lab: &'a Lab,
    pub tree: &'a Tree,
    pub origin: Option<Running>,
    pub nodes: Vec<Node<'a>>,
    /// Nodes whose mount was taken away; they end once the last reader is gone.
    leaving: Vec<Running>,
    /// Hosts without a cable, hosts that lose packets.
    cut: Vec<&'a Host>,
    lossy: Vec<&'a Host>,
    start: Instant,
}

pub struct Node<'a> {
    pub host: &'a Host,
    pub life: &'a Life,
    pub program: Option<Running>,
    stopped: bool,
    veteran: bool,
}

impl<'a> World<'a> {
    pub fn new(lab: &'a Lab, tree: &'a Tree, lives: &'a [Life]) -> World<'a> {
        let nodes = lab.nodes().iter().zip(lives).enumerate().map(|(index, (host, life))| Node {
            host,
            life,
            program: None,
            stopped: false,
            veteran: index < VETERANS,
        });
        let mut world = World {
            lab,
            tree,
            origin: None,
            nodes: nodes.collect(),
            leaving: Vec::new(),
            cut: Vec::new(),
            lossy: Vec::new(),
            start: Instant::now(),
        };
        world.mend();
        world
    }

    /// One thing happens, and a moment passes.
    pub fn step(&mut self, random: &mut fastrand::Rng) {
        let what = match random.u32(..20) {
            // Who reads nothing shows nothing: an origin is not away for long.
            _ if self.origin.is_none() && random.u32(..3) == 0 => self.kill_or_start_the_origin(),
            0..5 => self.tree.change(random),
            5..8 => self.end_a_node(random),
            8..11 => self.start_a_node(random),
            11 | 12 => self.kill_or_start_the_origin(),
            13 | 14 => self.cut(random),
            15 | 16 => self.plug_in(random),
            17 => self.lose(random),
            _ => self.stop_or_continue(random),
        };
        println!("{:8.2} {what}", self.start.elapsed().as_secs_f64());
        self.look_at_mounts();
        std::thread::sleep(Duration::from_millis(random.u64(20..700)));
    }

    /// Whatever happened is undone: all run, all are connected, all are mounted.
    pub fn mend(&mut self) {
        for host in std::mem::take(&mut self.cut) {
            self.lab.mend(host);
        }
        for host in std::mem::take(&mut self.lossy) {
            host.lose(0.0);
        }
        for node in &mut self.nodes {
            node.go_on();
        }
        if self.origin.is_none() {
            self.start_origin();
        }
        for index in 0..self.nodes.len() {
            if self.nodes[index].program.is_none() {
                self.nodes[index].mount();
            }
        }
        wait_until(PATIENCE, "everything is mounted", || {
            self.look_at_mounts();
            self.nodes.iter().all(|node| node.life.current().is_some()).then_some(())
        });
        println!("{:8.2} all is mended", self.start.elapsed().as_secs_f64());
    }

    /// What was unmounted ends with its last reader.
    pub fn await_the_leaving(&mut self) {
        for mut program in self.leaving.drain(..) {
            program.wait(PATIENCE);
        }
    }

    /// Everything ends as it should.
    pub fn end(&mut self) {
        for node in &mut self.nodes {
            let mut program = node.program.take().expect("all is mended");
            node.life.disturb();
            let asked = swarm::swarmfs(node.host, &["umount", MOUNT]);
            assert!(asked.status.success(), "{}: {}", node.host.name, swarm::complaint(&asked));
            let status = program.wait(PATIENCE);
            assert!(status.success(), "{}: {status} after it was unmounted", node.host.name);
        }
        let mut origin = self.origin.take().expect("all is mended");
        origin.signal("TERM");
        let status = origin.wait(PATIENCE);
        assert!(status.success(), "the origin: {status} after it was asked to end");
    }

    /// What they hold after hours is what they held when they were young: the least of some rounds, since one moment has
    /// more under way than the next. A node that was killed meanwhile has begun anew.
    pub fn veterans_must_not_grow(&self, rounds: &[Vec<Held>]) {
        let recent = &rounds[rounds.len().saturating_sub(RECENT)..];
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.veteran) {
            // The origin is the first of what was measured.
            let of = |round: &Vec<Held>| round[index + 1];
            let least = |what: fn(Held) -> u64| recent.iter().map(of).map(what).min().expect("there was a round");
            let (anonymous, descriptors) = (least(|held| held.anonymous), least(|held| held.descriptors as u64));
            let (name, young) = (&node.host.name, of(&rounds[0]));
            // A young one need not have filled its cache.
            let full = young.anonymous.max(CACHE_MIB << 20);
            assert!(anonymous < full + GROWTH, "memory leaks on {name}: {young:?}, and now at least {anonymous} bytes");
            let links = young.descriptors as u64 + LINKS;
            assert!(descriptors < links, "descriptors leak on {name}: {young:?}, and now at least {descriptors}");
        }
    }

    fn end_a_node(&mut self, random: &mut fastrand::Rng) -> String {
        let index = random.usize(..self.nodes.len());
        let node = &mut self.nodes[index];
        let name = &node.host.name;
        if node.stopped || node.veteran {
            return format!("{name} is left alone");
        }
        let Some(program) = node.program.take() else { return format!("{name} does not run") };
        // Who unmounts before it has mounted takes away the dead mount that it was to replace.
        let mounted = node.life.current().is_some();
        node.life.disturb();
        match random.u32(..5) {
            _ if !mounted => {
                kill(program);
                return format!("{name} is killed while it mounts");
            }
            0 | 1 => {
                kill(program);
                return format!("{name} is killed");
            }
            2 => program.signal("TERM"),
            3 => {
                let lazily = node.host.run(SOON, "umount", &["-l", MOUNT]);
                if lazily.status.success() {
                    self.leaving.push(program);
                    return format!("{name} is unmounted lazily");
                }
                // It was not mounted yet.
                kill(program);
                return format!("{name} is killed while it mounts");
            }
            _ => {
                let asked = swarm::swarmfs(node.host, &["umount", MOUNT]);
                if !asked.status.success() {
                    node.program = Some(program);
                    return format!("{name} cannot be unmounted: {}", swarm::complaint(&asked).trim());
                }
            }
        }
        self.leaving.push(program);
        format!("{name} is unmounted")
    }

    fn start_a_node(&mut self, random: &mut fastrand::Rng) -> String {
        let down: Vec<usize> = (0..self.nodes.len()).filter(|index| self.nodes[*index].program.is_none()).collect();
        let Some(index) = random.choice(down) else { return "all nodes run".to_owned() };
        self.nodes[index].mount();
        format!("{} is mounted", self.nodes[index].host.name)
    }

    fn kill_or_start_the_origin(&mut self) -> String {
        match self.origin.take() {
            Some(program) => {
                kill(program);
                "the origin is killed".to_owned()
            }
            None => {
                self.start_origin();
                "the origin is started".to_owned()
            }
        }
    }

    fn start_origin(&mut self) {
        let dir: &Path = &self.tree.dir;
        let args = ["serve", dir.to_str().expect("samples are served from plain names"), "--name", "images"];
        let cache = format!("{CACHE_MIB}M");
        self.origin = Some(swarm::start(self.lab.origin(), &[&args[..], &["--cache", &cache]].concat()));
    }

    fn cut(&mut self, random: &mut fastrand::Rng) -> String {
        let host = self.lab.host(random.usize(..self.lab.hosts().len()));
        if self.cut.iter().any(|other| other.name == host.name) {
            return format!("{} is cut off already", host.name);
        }
        self.lab.cut(host);
        self.cut.push(host);
        format!("{} is cut off", host.name)
    }

    fn plug_in(&mut self, random: &mut fastrand::Rng) -> String {
        if self.cut.is_empty() {
            return "all cables are in".to_owned();
        }
        let host = self.cut.swap_remove(random.usize(..self.cut.len()));
        self.lab.mend(host);
        format!("{} is plugged in", host.name)
    }

    fn lose(&mut self, random: &mut fastrand::Rng) -> String {
        let host = self.lab.host(random.usize(..self.lab.hosts().len()));
        let percent = [0, 1, 5, 20][random.usize(..4)];
        host.lose(f64::from(percent) / 100.0);
        self.lossy.push(host);
        format!("{} loses {percent} % of what reaches it", host.name)
    }

    fn stop_or_continue(&mut self, random: &mut fastrand::Rng) -> String {
        if let Some(node) = self.nodes.iter_mut().find(|node| node.stopped) {
            node.go_on();
            return format!("{} goes on", node.host.name);
        }
        let index = random.usize(..self.nodes.len());
        let node = &mut self.nodes[index];
        let Some(program) = &node.program else { return format!("{} does not run", node.host.name) };
        program.signal("STOP");
        node.stopped = true;
        format!("{} stands still", node.host.name)
    }

    /// Which nodes that were started can be read by now. One that gave up meanwhile is a fault of the product.
    fn look_at_mounts(&mut self) {
        for node in &mut self.nodes {
            let Some(program) = &mut node.program else { continue };
            if let Some(status) = program.has_ended() {
                panic!("{} ended by itself: {status}\n{}", program.what(), program.log());
            }
            if node.life.current().is_none() && !node.stopped && node.is_mounted() {
                node.life.is_mounted();
            }
        }
        if let Some(origin) = &mut self.origin
            && let Some(status) = origin.has_ended()
        {
            panic!("{} ended by itself: {status}\n{}", origin.what(), origin.log());
        }
    }
}

/// It is gone when this returns, and with it what it held.
fn kill(mut program: Running) {
    program.signal("KILL");
    program.wait(SOON);
}

impl Node<'_> {
    /// Over a mount whose node was killed, too. It looks for the origin as long as it takes.
    fn mount(&mut self) {
        let cache = format!("{CACHE_MIB}M");
        self.program =
            Some(swarm::start(self.host, &["mount", "-f", "images", MOUNT, "--cache", &cache, "-o", "retry=1h"]));
    }

    /// Not one that is dead and will be replaced.
    fn is_mounted(&self) -> bool {
        let topmost = self.host.mounts_on(MOUNT).pop();
        topmost.is_some_and(|(kind, _)| kind == "fuse.swarmfs")
            // The kernel answers for a dead one, too, unless it must ask the node.
            && self.host.run(SOON, "stat", &["-f", MOUNT]).status.success()
    }

    fn go_on(&mut self) {
        if std::mem::take(&mut self.stopped)
            && let Some(program) = &self.program
        {
            program.signal("CONT");
        }
    }
}
