//! Where log lines go: standard error, and the system's log once a mount has left its terminal.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::time::uptime;

/// The environment's say in what is logged, in the words of tracing-subscriber's filters: `SWARMFS_LOG=swarmfs=trace`.
const FILTER: &str = "SWARMFS_LOG";
const SYSTEM_LOG: &str = "/dev/log";
/// syslog's facility of daemons, as RFC 5424 numbers it.
const DAEMON: u8 = 3;

static BACKGROUND: OnceLock<Option<UnixDatagram>> = OnceLock::new();

/// Starts logging: warnings, of a node that stays also what its user sees change, more with each `-v`.
pub fn start(verbose: u8, talkative: bool) {
    let level = match (verbose, talkative) {
        (0, false) => "warn",
        (0, true) => "info",
        (1, _) => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| EnvFilter::new(format!("warn,swarmfs={level}")));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(false).with_writer(Sink);
    // A second start, in a program that embeds this, leaves the first one's log as it is.
    let _ = if verbose > 0 { lines.with_timer(uptime()).try_init() } else { lines.without_time().try_init() };
}

/// From here on standard error is nobody's: lines go to the system's log, or nowhere where there is none.
pub fn to_background() {
    let socket = UnixDatagram::unbound().and_then(|socket| {
        socket.connect(SYSTEM_LOG)?;
        // A log that does not keep up loses lines; a node does not wait for it.
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    let _ = BACKGROUND.set(socket.ok());
}

struct Sink;

/// Takes one line at a time: the formatter writes each with a single call.
struct Line(Level);

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Level::INFO)
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        Line(*metadata.level())
    }
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match BACKGROUND.get() {
            None => io::stderr().write_all(line)?,
            Some(Some(socket)) => {
                let _ = socket.send(&packet(self.0, std::process::id(), line));
            }
            Some(None) => {}
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line as syslog(3) sends it.
fn packet(level: Level, pid: u32, line: &[u8]) -> Vec<u8> {
    let severity = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    };
    let mut packet = format!("<{}>swarmfs[{pid}]: ", DAEMON * 8 + severity).into_bytes();
    packet.extend_from_slice(line.trim_ascii());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_sent_as_syslog_sends_it() {
        assert_eq!(packet(Level::WARN, 7, b" WARN a=1\n"), b"<28>swarmfs[7]: WARN a=1");
        assert_eq!(packet(Level::TRACE, 7, b""), b"<31>swarmfs[7]: ");
    }
}
