//! One set of namespaces and the process that holds it.
//!
//! The holder is the first process of its own process namespace and reads its standard input, whose other end only
//! the test's process has. When that closes, for whatever reason, the holder ends, the kernel kills everything else in
//! the process namespace, and with the last process go the network, its links and all mounts. Dropping a `Space` waits
//! until that has happened.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Prints its number as the outside sees it, before its own /proc hides that. The last command is no `exec`: the shell
/// stays as the namespace's first process and reaps orphans, which `cat` would not. A container may refuse /sys; its
/// /sys/class/net then shows the container's interfaces.
const HOLD_HOST: &str = "read -r pid rest < /proc/self/stat
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys || true
    mount -t tmpfs -o mode=0755 tmpfs /run
    mkdir -p /run/state /run/swarmfs /run/mnt
    ip link set lo up
    echo \"$pid\"
    cat > /dev/null
    exit";

const HOLD_NETWORK: &str = "read -r pid rest < /proc/self/stat
    echo \"$pid\"
    cat > /dev/null
    exit";

/// Moves the calling thread, and no other, into a network.
pub fn move_thread_into(network: &fs::File) {
    rustix::thread::move_into_link_name_space(
        std::os::fd::AsFd::as_fd(network),
        Some(rustix::thread::LinkNameSpaceType::Network),
    )
    .expect("whoever made a namespace may enter it");
}

pub struct Space {
    name: String,
    holder: Child,
    /// The holder as the test's own process namespace numbers it.
    pid: u32,
    has_mounts: bool,
}

impl Space {
    /// A network alone: the switch.
    pub fn network(name: &str) -> Space {
        Space::hold(name, &["--net", "--pid"], HOLD_NETWORK)
    }

    /// A whole host.
    pub fn host(name: &str) -> Space {
        let mut space =
            Space::hold(name, &["--net", "--pid", "--uts", "--mount", "--propagation", "private"], HOLD_HOST);
        space.has_mounts = true;
        space.script(&format!("echo {name} > /proc/sys/kernel/hostname"));
        space
    }

    fn hold(name: &str, namespaces: &[&str], script: &str) -> Space {
        let mut holder = Command::new("unshare")
            .args(namespaces)
            .args(["--fork", "--kill-child=KILL", "sh", "-ec", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("util-linux is installed (.ci/need)");
        let stdout = holder.stdout.take().expect("it was asked for");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("a pipe can be read");
        let pid = line.trim().parse().unwrap_or_else(|_| panic!("the namespaces of {name} were not made; see above"));
        let space = Space { name: name.to_owned(), holder, pid, has_mounts: false };
        // Otherwise hosts announce themselves by IPv6, and byte counters count it.
        space.script(
            "for when in all default; do
                if [ -e /proc/sys/net/ipv6 ]; then echo 1 > /proc/sys/net/ipv6/conf/$when/disable_ipv6; fi
            done",
        );
        space
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A command that runs inside. `nsenter` stays as its parent outside, because a process changes its process
    /// namespace only by forking; the program dies with it, so killing the `Child` kills the program.
    pub fn enter(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.pid)).args(["--net", "--pid"]);
        if self.has_mounts {
            command.args(["--uts", "--mount"]);
        }
        command.args(["--", "setpriv", "--pdeathsig", "KILL", program]);
        command
    }

    /// Runs a shell script on the namespaces from outside: process numbers in it are the test's own. Gives what it printed.
    pub fn script(&self, script: &str) -> String {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.pid)).arg("--net");
        if self.has_mounts {
            command.arg("--uts");
        }
        let output = command.args(["--", "sh", "-ec", script]).stdin(Stdio::null()).output();
        let output = output.expect("util-linux is installed (.ci/need)");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {script}\n{errors}", self.name);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Bytes received and sent by one interface.
    pub fn counters(&self, interface: &str) -> (u64, u64) {
        let table = fs::read_to_string(format!("/proc/{}/net/dev", self.pid)).expect("the holder lives");
        let line = table.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
        let line = line.unwrap_or_else(|| panic!("{} has no {interface}", self.name));
        let fields: Vec<u64> =
            line.split_whitespace().map(|field| field.parse().expect("counters are numbers")).collect();
        (fields[0], fields[8])
    }

    /// Broadcasts sent by this network's hosts.
    pub fn broadcasts(&self) -> u64 {
        let table = fs::read_to_string(format!("/proc/{}/net/netstat", self.pid)).expect("the holder lives");
        // A line of names, then a line of numbers.
        let mut lines = table.lines().filter_map(|line| line.strip_prefix("IpExt:"));
        let (names, numbers) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let found = names.split_whitespace().zip(numbers.split_whitespace()).find(|(name, _)| *name == "OutBcastPkts");
        found.and_then(|(_, number)| number.parse().ok()).expect("the kernel counts broadcasts")
    }

    /// Moves the calling thread, and no other, into this network. It can never come back, so it should end soon.
    pub fn move_thread_into_network(&self) {
        move_thread_into(&fs::File::open(format!("/proc/{}/ns/net", self.pid)).expect("the holder lives"));
    }

    /// Every living process inside.
    pub fn pids(&self) -> Vec<u32> {
        let own = fs::read_link(format!("/proc/{}/ns/pid", self.pid)).expect("the holder lives");
        let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        // A zombie has no namespaces left to show.
        pids.filter(|pid| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|theirs| theirs == own)).collect()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}
