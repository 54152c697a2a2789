//! One who reads file after file through a node, and compares.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::tree::Tree;
use super::{Bound, Calm, Life, PATIENCE};
use crate::lab::samples::{self, Digest};
use crate::lab::swarm::{MOUNT, SOON};
use crate::lab::{Host, Running};

pub struct Reader<'a> {
    pub host: &'a Host,
    pub life: &'a Life,
    pub tree: &'a Tree,
    pub tally: &'a Tally,
    pub random: fastrand::Rng,
    /// In this life of the node no file may go back behind the version that it has shown.
    seen: BTreeMap<&'static str, usize>,
    of_life: u64,
}

/// How readings ended, so that a run that showed nothing is known by it.
#[derive(Default, Debug)]
pub struct Tally {
    pub whole: AtomicU64,
    /// By those who looked whether all is as it should be.
    pub verified: AtomicU64,
    pub bytes: AtomicU64,
    pub stale: AtomicU64,
    pub missing: AtomicU64,
    /// By a fault of its node.
    pub disturbed: AtomicU64,
}

/// What came of reading one file: its bytes, or what `dd` complained of.
type Outcome = Result<Digest, String>;

impl<'a> Reader<'a> {
    pub fn new(host: &'a Host, life: &'a Life, tree: &'a Tree, tally: &'a Tally, seed: u64) -> Reader<'a> {
        let random = fastrand::Rng::with_seed(seed);
        Reader { host, life, tree, tally, random, seen: BTreeMap::new(), of_life: 0 }
    }

    /// Reads one file after another until it is calm.
    pub fn roam(&mut self, calm: &Calm) {
        while !calm.has_begun() {
            if let Some(life) = self.life.current() {
                let name = self.tree.any_name(&mut self.random);
                let outcome = self.read(name, calm);
                self.judge(name, outcome, life);
            }
            std::thread::sleep(Duration::from_millis(self.random.u64(5..200)));
        }
    }

    /// Once everything is whole each file has to be what it is at the origin, and no other may be there.
    pub fn verify(&mut self) {
        let calm = Calm::default();
        calm.begin();
        for name in self.tree.names() {
            let (expected, mut bound) = (self.tree.now(name), Bound::new());
            loop {
                let outcome = self.read(name, &calm);
                match (&outcome, expected) {
                    (Ok(digest), Some(expected)) if *digest == expected => {
                        self.tally.verified.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    (Err(complaint), None) if complaint.contains("No such file") => break,
                    _ => {}
                }
                let life = self.life.current().expect("nothing happens to nodes while it is calm");
                bound.check(&calm, || format!("{name} on {} becomes {expected:?}; it is {outcome:?}", self.host.name));
                self.judge(name, outcome, life);
                std::thread::sleep(Duration::from_millis(250));
            }
        }
        self.verify_listing(&calm);
    }

    fn verify_listing(&self, calm: &Calm) {
        let expected: BTreeSet<&str> = self.tree.names().filter(|name| self.tree.now(name).is_some()).collect();
        let mut bound = Bound::new();
        loop {
            let output = self.host.run(PATIENCE, "find", &[MOUNT, "-type", "f", "-printf", "%P\\n"]);
            let listed = String::from_utf8_lossy(&output.stdout).into_owned();
            if listed.lines().collect::<BTreeSet<_>>() == expected {
                return;
            }
            bound.check(calm, || format!("{} lists {expected:?}; it lists {listed}", self.host.name));
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    /// By one of the ways that programs take through the page cache or past it.
    fn read(&mut self, name: &str, calm: &Calm) -> Outcome {
        let way = [&["bs=1M"][..], &["bs=1M", "iflag=direct"], &["bs=20000"]][self.random.usize(..3)];
        let mut command = self.host.command("dd");
        command.arg(format!("if={MOUNT}/{name}")).arg("status=none").args(way).env("LC_ALL", "C");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let what = format!("dd of {name} {way:?} on {}", self.host.name);
        let mut program = Running::start(command, what.clone(), None);
        let (stdout, mut stderr) = (program.stdout(), program.stderr());
        let digester = std::thread::spawn(move || samples::digest(stdout).expect("a pipe can be read"));
        let mut bound = Bound::new();
        let status = loop {
            if let Some(status) = program.has_ended() {
                break status;
            }
            bound.check(calm, || what.clone());
            std::thread::sleep(Duration::from_millis(5));
        };
        let digest = digester.join().expect("digesting does not panic");
        let mut complaint = String::new();
        stderr.read_to_string(&mut complaint).expect("dd complains in ASCII");
        if status.success() { Ok(digest) } else { Err(complaint) }
    }

    /// Right bytes of one version, or an error that something accounts for.
    fn judge(&mut self, name: &'static str, outcome: Outcome, life: u64) {
        if self.of_life != life {
            self.of_life = life;
            self.seen.clear();
        }
        let count = |which: &AtomicU64, by| which.fetch_add(by, Ordering::Relaxed);
        let node = &self.host.name;
        match outcome {
            Ok(digest) => {
                let place = self.tree.place(name, Some(digest));
                let place = place.unwrap_or_else(|| panic!("wrong bytes: {name} on {node} never was {digest:?}"));
                let floor = self.seen.insert(name, place).unwrap_or(0);
                assert!(place >= floor, "{name} on {node} went back from version {floor} to {place}");
                count(&self.tally.whole, 1);
                count(&self.tally.bytes, digest.len);
            }
            Err(_) if !self.life.is(life) => drop(count(&self.tally.disturbed, 1)),
            Err(complaint) if complaint.contains("No such file") && self.tree.place(name, None).is_some() => {
                count(&self.tally.missing, 1);
            }
            Err(complaint) if complaint.contains("Stale file handle") && self.tree.versions(name) > 1 => {
                count(&self.tally.stale, 1);
            }
            Err(complaint) => panic!("{name} on {node}: nothing accounts for this: {complaint}"),
        }
    }
}

/// Asks again and again for what never may wait, whatever happened to network and origin.
pub fn probe(host: &Host, life: &Life, calm: &Calm) {
    while !calm.has_begun() {
        if let Some(current) = life.current() {
            let output = host.run(SOON, "stat", &["-f", MOUNT]);
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() || !life.is(current), "{}: {complaint}", host.name);
        }
        std::thread::sleep(Duration::from_millis(700));
    }
}

impl Tally {
    /// Otherwise the faults left nobody anything to read.
    pub fn must_show_something(&self) {
        assert!(self.whole.load(Ordering::Relaxed) > 20, "a soak that shows nothing: {self:?}");
    }
}
