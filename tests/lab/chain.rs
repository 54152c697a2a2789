//! What one makes by hand where all hosts are known and start together: a chain of `nc` and `tee`.

use std::path::Path;
use std::time::Duration;

use super::race::{self, Check, Racer};
use super::{Host, Lab, process};

const PORT: u16 = 9000;
const SOON: Duration = Duration::from_secs(20);

pub struct Chain<'a> {
    lab: &'a Lab,
    head: Racer,
}

/// Whether the chain's programs are here.
pub fn is_possible() -> bool {
    std::process::Command::new("nc").arg("-h").output().is_ok()
}

impl<'a> Chain<'a> {
    /// A chain through all hosts in order; what reaches each node is compared with the file of its check. It waits for
    /// `start`, which sends what `source`, a pipe's left side or a redirection, feeds it at the origin.
    pub fn through(lab: &'a Lab, source: &str, whole: &Path, checks: &[Check]) -> (Chain<'a>, Vec<Racer>) {
        let mut racers = Vec::new();
        // From the last to the first: whoever connects must find its neighbour listening.
        for (index, check) in checks.iter().enumerate().rev() {
            let host = &lab.nodes()[index];
            // A descriptor of its own for the checker: the pipe's is taken by the next `nc`.
            let script = match lab.nodes().get(index + 1) {
                Some(next) => format!(
                    "exec 3>&1; nc -d -l {PORT} | tee /dev/fd/3 | nc -N {} {PORT} > /dev/null; times >&2",
                    next.address()
                ),
                None => format!("nc -d -l {PORT}; times >&2"),
            };
            racers.insert(0, race::ready(host, &script, false, check));
            process::wait_until(SOON, "nc listens", || listens(host).then_some(()));
        }
        let first = lab.nodes()[0].address();
        let script = format!("{source} nc -N {first} {PORT}; times >&2");
        (Chain { lab, head: race::ready(lab.origin(), &script, true, &Check::against(whole)) }, racers)
    }

    pub fn start(&mut self) {
        self.head.go();
    }

    /// Most memory that the programs of one node have taken.
    pub fn memory(&self, host: &Host) -> u64 {
        let pids = host.pids_of("nc").into_iter().chain(host.pids_of("tee"));
        pids.filter_map(|pid| super::swarm::try_memory(pid, "VmHWM")).sum()
    }

    /// Ends what still runs; gives the origin's log.
    pub fn stop(self) -> String {
        for host in self.lab.hosts() {
            for pid in host.pids_of("nc").into_iter().chain(host.pids_of("tee")) {
                let pid = rustix::process::Pid::from_raw(pid as i32).expect("0 is no process");
                // It may just have ended by itself.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        self.head.finish().log
    }
}

fn listens(host: &Host) -> bool {
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", host.space.pid())).unwrap_or_default();
    let port = format!(":{PORT:04X}");
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields[..], [_, local, _, "0A", ..] if local.ends_with(&port))
    })
}

/// Processor time that a shell's children took, as its `times` printed it at the end of its log.
pub fn time_of_children(log: &str) -> Option<Duration> {
    let last = log.lines().last()?;
    let times = last.split_whitespace().map(|time| {
        let (minutes, seconds) = time.trim_end_matches('s').split_once('m')?;
        Some(minutes.parse::<f64>().ok()? * 60.0 + seconds.parse::<f64>().ok()?)
    });
    Some(Duration::from_secs_f64(times.sum::<Option<f64>>()?))
}
