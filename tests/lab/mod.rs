//! The lab: several hosts on one switch, made of this machine's namespaces, for tests and for the demo.
//!
//! A host is a network, mount, process and host name of its own; its only link goes to the switch, a bridge in a
//! network namespace that has nothing else. Links can be limited to a rate (both ways, with the queue of a small
//! switch port), made lossy and cut. Nothing has a name outside: each namespace lives by one process that ends when
//! its standard input does, so when the lab is dropped, when a test panics and even when its process is killed the
//! kernel takes everything away: namespaces, links, mounts and whatever still ran inside.
//!
//! It never touches the machine's own network. It needs root, or a user namespace (`unshare -Ur make test`).

// Each test file compiles its own copy of this module and uses its own part of it.
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub mod capture;
pub mod chain;
mod process;
pub mod race;
pub mod samples;
mod space;
pub mod swarm;

pub use process::{Patience, Running};
use space::Space;

/// Payload bytes per byte on a limited link: 1,448 bytes of TCP (timestamps on) in an Ethernet frame of 1,514.
pub const PAYLOAD: f64 = 1448.0 / 1514.0;

/// What every host's link can carry.
#[derive(Clone, Copy)]
pub struct Link {
    /// Megabits a second in each direction; none is as fast as the machine is.
    pub mbit: Option<u32>,
}

impl Link {
    pub fn unlimited() -> Link {
        Link { mbit: None }
    }

    pub fn mbit(mbit: u32) -> Link {
        Link { mbit: Some(mbit) }
    }

    /// The least time in which `bytes` of payload pass a limited link.
    pub fn ideal(self, bytes: u64) -> Duration {
        let mbit = self.mbit.expect("only a limited link has an ideal time");
        Duration::from_secs_f64(bytes as f64 / (mbit as f64 * 1e6 / 8.0 * PAYLOAD))
    }

    /// Queue of a switch port in bytes: 21 ms at 100 Mbit/s, 84 ms at 25.
    const QUEUE: u32 = 256 * 1024;

    /// Packets that pass a link as one: 8 KiB of payload. Rates and queues count the headers of each. With single packets
    /// this machine spends its time on a timer per packet and link, and hosts have too little left to be measured.
    const TRAIN: u32 = 6;

    fn shape(self, script: &mut String, device: &str) {
        writeln!(script, "ip link set {device} gso_max_segs {} up", Link::TRAIN).expect("a string takes any text");
        if let Some(mbit) = self.mbit {
            // A bucket of 2.5 ms: what a busy machine's timers are late by is not lost, and bursts stay far below a queue.
            let burst = (mbit * 312).max(16 * 1024);
            let queue = Link::QUEUE;
            writeln!(script, "tc qdisc replace dev {device} root tbf rate {mbit}mbit burst {burst} limit {queue}")
                .expect("a string takes any text");
        }
    }
}

pub struct Lab {
    hosts: Vec<Host>,
    switch: Space,
    pub link: Link,
    scratch: PathBuf,
    _turn: Option<Turn>,
}

impl Lab {
    /// `hosts` hosts for a test that measures time: no other lab exists meanwhile. None where this machine does not
    /// allow namespaces; what was skipped and why is then printed.
    pub fn timed(hosts: usize, link: Link) -> Option<Lab> {
        Lab::possible().then(|| Lab::build(hosts, link, Some(Turn::alone())))
    }

    /// `hosts` hosts for a test that measures nothing: other such labs may exist meanwhile.
    pub fn shared(hosts: usize, link: Link) -> Option<Lab> {
        Lab::possible().then(|| Lab::build(hosts, link, Some(Turn::shared())))
    }

    /// A lab for a program that is no test and waits for nobody.
    pub fn standalone(hosts: usize, link: Link) -> Lab {
        Lab::build(hosts, link, None)
    }

    /// Whether namespaces can be made here, and why not.
    pub fn can_exist() -> Result<(), String> {
        let tried = Command::new("unshare").args(["--net", "--mount", "--uts", "--pid", "--fork", "true"]).output();
        match tried {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(format!("unshare: {error}")),
        }
    }

    /// Whether a test can have its lab. Where nothing may be skipped (`CI` is set) it is an error if not.
    fn possible() -> bool {
        let Err(why) = Lab::can_exist() else { return true };
        assert!(std::env::var_os("CI").is_none(), "no namespaces here: {why}");
        eprintln!("SKIPPED: needs root or a user namespace (try `make test`, or `unshare -Ur cargo test`): {why}");
        false
    }

    fn build(count: usize, link: Link, turn: Option<Turn>) -> Lab {
        static LABS: AtomicU32 = AtomicU32::new(0);
        assert!(count < 250, "a lab's hosts share one /24");
        let scratch =
            scratch_root().join(format!("lab-{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed)));
        sweep();
        fs::create_dir_all(&scratch).expect("the build directory can be written");

        let switch = Space::network("switch");
        let mut script = String::from("ip link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n");
        script.push_str("ip link set br0 up\n");
        // A machine with a firewall would pass each packet on the switch through its rules' hooks.
        let filter = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        writeln!(script, "if [ -e {filter} ]; then echo 0 > {filter}; fi").expect("a string takes any text");
        let mut hosts = Vec::new();
        for index in 0..count {
            let name = if index == 0 { "origin".to_owned() } else { format!("node{index}") };
            let space = Space::host(&name);
            let host = Host { index, name, space, port: format!("port{index}"), link, scratch: scratch.clone() };
            writeln!(script, "ip link add {} type veth peer name eth0 netns {}", host.port, host.space.pid())
                .expect("a string takes any text");
            writeln!(script, "ip link set {} master br0", host.port).expect("a string takes any text");
            link.shape(&mut script, &host.port);
            hosts.push(host);
        }
        switch.script(&script);
        for host in &hosts {
            let mut script = format!("ip addr add {}/24 broadcast 10.77.0.255 dev eth0\n", host.address());
            link.shape(&mut script, "eth0");
            // A gateway that is not there: hosts have a default route, and 255.255.255.255 needs one.
            script.push_str("ip route add default via 10.77.0.254\n");
            // What Linux does unless told otherwise, and not what this machine was told: another one's pacing takes a timer
            // per packet. Where a namespace may not choose cubic, its forebear does the same on a LAN.
            let control = "/proc/sys/net/ipv4/tcp_congestion_control";
            writeln!(script, "echo cubic 2> /dev/null > {control} || echo reno > {control}")
                .expect("a string takes any text");
            host.space.script(&script);
        }
        let lab = Lab { hosts, switch, link, scratch, _turn: turn };
        for host in &lab.hosts {
            lab.wait_until_linked(host);
        }
        lab
    }

    /// The kernel notices a link's carrier a moment later, up to a second on either side, and drops packets till then.
    fn wait_until_linked(&self, host: &Host) {
        let until = |command: &str| {
            format!(
                "for i in $(seq 1000); do if {command}; then exit 0; fi; sleep 0.01; done; echo no carrier >&2; exit 1"
            )
        };
        self.switch.script(&until(&format!("bridge link show dev {} | grep -q 'state forwarding'", host.port)));
        host.space.script(&until("ip -br link show eth0 | grep -q ' UP '"));
    }

    pub fn host(&self, index: usize) -> &Host {
        &self.hosts[index]
    }

    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The first host, where tests put the origin.
    pub fn origin(&self) -> &Host {
        &self.hosts[0]
    }

    /// All hosts but the first.
    pub fn nodes(&self) -> &[Host] {
        &self.hosts[1..]
    }

    /// A directory on disk that every host sees and that is removed with the lab.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Bytes that a host has sent onto its link so far, headers included.
    pub fn sent_by(&self, host: &Host) -> u64 {
        if host.link.mbit.is_none() {
            return self.switch.counters(&host.port).0;
        }
        passed(&host.space, "eth0")
    }

    /// Bytes that the switch has sent to a host so far, headers included.
    pub fn sent_to(&self, host: &Host) -> u64 {
        if host.link.mbit.is_none() {
            return self.switch.counters(&host.port).1;
        }
        passed(&self.switch, &host.port)
    }

    /// Pulls a host's cable: its interface loses carrier.
    pub fn cut(&self, host: &Host) {
        self.switch.script(&format!("ip link set {} down", host.port));
    }

    /// Plugs it in again.
    pub fn mend(&self, host: &Host) {
        self.switch.script(&format!("ip link set {} up", host.port));
        self.wait_until_linked(host);
    }

    /// Broadcasts that a host has sent so far, whatever they were for.
    pub fn broadcasts_of(&self, host: &Host) -> u64 {
        host.space.broadcasts()
    }

    /// From now on a host's link has another rate.
    pub fn change_link(&self, host: &Host, link: Link) {
        for (space, device) in [(&self.switch, host.port.as_str()), (&host.space, "eth0")] {
            let mut script = String::new();
            link.shape(&mut script, device);
            space.script(&script);
        }
    }

    /// The namespaces that this lab is made of, as links below /proc/PID/ns name them.
    pub fn namespaces(&self) -> BTreeSet<PathBuf> {
        let spaces = self.hosts.iter().map(|host| &host.space).chain([&self.switch]);
        let own = namespaces_of(std::process::id());
        spaces.flat_map(|space| namespaces_of(space.pid())).filter(|namespace| !own.contains(namespace)).collect()
    }

    /// From now on each packet that reaches any host is lost with this probability.
    pub fn lose(&self, probability: f64) {
        for host in &self.hosts {
            host.lose(probability);
        }
    }
}

/// The namespaces of a process; none if it has ended.
pub fn namespaces_of(pid: u32) -> BTreeSet<PathBuf> {
    let kinds = ["net", "mnt", "pid", "uts"];
    kinds.into_iter().filter_map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()).collect()
}

/// Bytes that a limited link let pass: of packets that travel as one its interface counts one's headers, its limit all.
fn passed(space: &Space, device: &str) -> u64 {
    let shown = space.script(&format!("tc -s -j qdisc show dev {device}"));
    let queues: serde_json::Value = serde_json::from_str(&shown).expect("tc writes JSON");
    queues[0]["bytes"].as_u64().expect("tc counts what it lets pass")
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        // Hosts first: a mount that still reads from the scratch directory ends with its host.
        self.hosts.clear();
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

impl Lab {
    /// What the programs in the lab had to say: the only trace of them once a test has failed.
    fn show_logs(&self) {
        let Ok(entries) = fs::read_dir(&self.scratch) else { return };
        let mut logs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.sort();
        for path in logs {
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            let shown = &lines[lines.len().saturating_sub(60)..];
            eprintln!("--- {} (last {} of {} lines)", path.display(), shown.len(), lines.len());
            eprintln!("{}", shown.join("\n"));
        }
    }
}

/// One host of the lab. `/run` is its own and in memory: state, sockets and mountpoints belong there.
pub struct Host {
    index: usize,
    pub name: String,
    space: Space,
    port: String,
    link: Link,
    scratch: PathBuf,
}

impl Host {
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.index as u8 + 1)
    }

    /// A command that runs on this host. Killing it kills the program. It starts in `/`.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.space.enter(program);
        command.env("STATE_DIRECTORY", "/run/state").env("RUNTIME_DIRECTORY", "/run/swarmfs");
        command
    }

    /// Starts a program whose output goes to a log that is shown if the test fails.
    pub fn spawn(&self, program: &str, args: &[&str]) -> Running {
        let short = Path::new(program).file_name().expect("a program has a name").to_string_lossy().into_owned();
        let (log, out) = self.log(&short);
        let err = out.try_clone().expect("descriptors are not used up");
        let mut command = self.command(program);
        command.args(args).stdin(Stdio::null()).stdout(out).stderr(err);
        Running::start(command, format!("{short} {} on {}", args.join(" "), self.name), Some(log))
    }

    /// A file for what a program of this host prints.
    fn log(&self, program: &str) -> (PathBuf, fs::File) {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let log = self.scratch.join(format!("{number:03}-{}-{program}.log", self.name));
        let file = fs::File::create(&log).expect("the scratch directory can be written");
        (log, file)
    }

    /// Runs a program to its end, which must come within `limit`.
    pub fn run(&self, limit: Duration, program: &str, args: &[&str]) -> Output {
        let mut command = self.command(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::start(command, format!("{program} {} on {}", args.join(" "), self.name), None).output(limit)
    }

    /// Runs a shell script to its end; its exit status must be 0. Gives what it printed.
    pub fn sh(&self, limit: Duration, script: &str) -> String {
        let output = self.run(limit, "sh", &["-ec", script]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "on {}: {script}\n{}\n{text}{errors}", self.name, output.status);
        text
    }

    /// How a path of this host is reached from the test's own process.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref().strip_prefix("/").expect("paths of a host are absolute");
        PathBuf::from(format!("/proc/{}/root", self.space.pid())).join(path)
    }

    /// Runs `work` in a thread whose sockets are this host's.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.space.move_thread_into_network();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Makes each packet that reaches this host get lost with this probability; 0 loses none. What it sends are single
    /// packets meanwhile.
    pub fn lose(&self, probability: f64) {
        // The filter must see single packets.
        let train = if probability == 0.0 { Link::TRAIN } else { 1 };
        let per_million = (probability * 1e6).round() as u32;
        self.space.script(&format!(
            "ip link set eth0 gso_max_segs {train}
             nft 'add table netdev lab; delete table netdev lab; add table netdev lab;
             add chain netdev lab in {{ type filter hook ingress device eth0 priority 0; }};
             add rule netdev lab in numgen random mod 1000000 < {per_million} drop'"
        ));
    }

    /// Processes of this host by program name, as numbers of the test's own process namespace; not the dead ones.
    pub fn pids_of(&self, name: &str) -> Vec<u32> {
        self.space.pids().into_iter().filter(|pid| process::name_of(*pid).as_deref() == Some(name)).collect()
    }

    /// How many mounts this host has, on whatever path.
    pub fn mounts(&self) -> usize {
        fs::read_to_string(format!("/proc/{}/mountinfo", self.space.pid())).expect("the holder lives").lines().count()
    }

    /// What is mounted on a path of this host: (filesystem type, source), topmost last.
    pub fn mounts_on(&self, path: &str) -> Vec<(String, String)> {
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", self.space.pid())).unwrap_or_default();
        let mounts = table.lines().filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut right = right.split(' ');
            (left.split(' ').nth(4)? == path).then_some((right.next()?.to_owned(), right.next()?.to_owned()))
        });
        mounts.collect()
    }
}

/// A place in the queue of labs: tests that measure wait until no other lab exists, also one of another test binary.
struct Turn(#[expect(dead_code, reason = "the lock is held as long as the file is open")] fs::File);

impl Turn {
    fn alone() -> Turn {
        Turn::take(rustix::fs::FlockOperation::LockExclusive)
    }

    fn shared() -> Turn {
        Turn::take(rustix::fs::FlockOperation::LockShared)
    }

    fn take(operation: rustix::fs::FlockOperation) -> Turn {
        fs::create_dir_all(scratch_root()).expect("the build directory can be written");
        let path = scratch_root().join("lab.lock");
        let file = fs::File::create(&path).expect("the build directory can be written");
        rustix::fs::flock(&file, operation).expect("a regular file can be locked");
        Turn(file)
    }
}

/// Cargo's directory for what tests leave on disk; a program that is no test has only the usual one.
fn scratch_root() -> PathBuf {
    option_env!("CARGO_TARGET_TMPDIR").map_or_else(|| std::env::temp_dir().join("swarmfs-lab"), PathBuf::from)
}

/// Removes the files of labs whose process was killed: the one thing that the kernel does not take away by itself.
fn sweep() {
    let Ok(entries) = fs::read_dir(scratch_root()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((pid, _)) = name.strip_prefix("lab-").and_then(|rest| rest.split_once('-')) else { continue };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
