//! Where log lines go: standard error, a file, and the system's log once a mount has left its terminal.
//!
//! Nobody waits for a log: what does not keep up loses lines. What a person did not ask for with `-v` is limited, so that a
//! host that goes mad fills no disk of another.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Mutex, RwLock};
use std::time::Instant;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime, uptime};

use limit::Limiter;

mod limit;

/// The environment's say in what is logged, in the words of tracing-subscriber's filters: `SWARMFS_LOG=swarmfs=trace`.
const FILTER: &str = "SWARMFS_LOG";
/// The device and inode of the journal's end of standard error, as systemd tells a service.
const JOURNAL: &str = "JOURNAL_STREAM";
const SYSTEM_LOG: &str = "/dev/log";
/// syslog's facility of daemons, as RFC 5424 numbers it.
const DAEMON: u8 = 3;

/// How much a command says of itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Talk {
    /// Warnings.
    Little,
    /// What its user sees change, too.
    Much,
    /// Warnings while somebody waits for it, and what its user sees change once it is in the background.
    Later,
}

enum Place {
    Stderr {
        least: Level,
        journal: bool,
    },
    File(File),
    System(UnixDatagram),
    /// A host without a log.
    Nowhere,
}

static PLACE: RwLock<Place> = RwLock::new(Place::Stderr { least: Level::TRACE, journal: false });
static LIMITER: Mutex<Option<Limiter>> = Mutex::new(None);

/// Starts logging to standard error: more with each `-v`.
pub fn start(verbose: u8, talk: Talk) {
    let level = match (verbose, talk) {
        (0, Talk::Little) => "warn",
        (0, Talk::Much | Talk::Later) => "info",
        (1, _) => "debug",
        _ => "trace",
    };
    let least = if verbose == 0 && talk == Talk::Later { Level::WARN } else { Level::TRACE };
    put(Place::Stderr { least, journal: is_journal() });
    *LIMITER.lock().expect("no holder of this lock panics") = Some(Limiter::default());
    let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| EnvFilter::new(format!("warn,swarmfs={level}")));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(false).with_writer(Sink);
    // A second start, in a program that embeds this, leaves the first one's log as it is.
    let _ = if verbose > 0 { lines.with_timer(uptime()).try_init() } else { lines.without_time().try_init() };
}

/// From here on lines go to the end of this file.
pub fn to_file(path: &Path) -> io::Result<()> {
    put(Place::File(File::options().create(true).append(true).open(path)?));
    Ok(())
}

/// From here on standard error is nobody's: lines go to the system's log, or nowhere where there is none.
pub fn to_background() {
    if matches!(*PLACE.read().expect("no holder of this lock panics"), Place::File(_)) {
        return;
    }
    let socket = UnixDatagram::unbound().and_then(|socket| {
        socket.connect(SYSTEM_LOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    put(socket.map_or(Place::Nowhere, Place::System));
}

fn put(place: Place) {
    *PLACE.write().expect("no holder of this lock panics") = place;
}

/// Whether standard error is the journal itself, which takes a line's severity before it.
fn is_journal() -> bool {
    let Some(named) = std::env::var(JOURNAL).ok() else { return false };
    rustix::fs::fstat(io::stderr().as_fd()).is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

struct Sink;

/// Takes one line at a time: the formatter writes each with a single call.
struct Line {
    level: Level,
    /// How many like it were left out before; None: it is left out too.
    left_out: Option<u64>,
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { level: Level::INFO, left_out: Some(0) }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        let level = *metadata.level();
        // What was asked for with -v is not limited.
        let left_out = if level > Level::INFO {
            Some(0)
        } else {
            let mut limiter = LIMITER.lock().expect("no holder of this lock panics");
            limiter.as_mut().map_or(Some(0), |limiter| limiter.allow(metadata.callsite(), Instant::now()))
        };
        Line { level, left_out }
    }
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.left_out {
            None => return Ok(line.len()),
            Some(0) => {}
            Some(count) => put_line(self.level, format!(" {count} lines like the next were left out\n").as_bytes())?,
        }
        put_line(self.level, line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn put_line(level: Level, line: &[u8]) -> io::Result<()> {
    match &*PLACE.read().expect("no holder of this lock panics") {
        Place::Stderr { least, .. } if level > *least => Ok(()),
        Place::Stderr { journal: false, .. } => io::stderr().write_all(line),
        Place::Stderr { journal: true, .. } => {
            io::stderr().write_all(&[format!("<{}>", severity(level)).as_bytes(), line.trim_ascii_start()].concat())
        }
        Place::File(file) => (&*file).write_all(&[now().as_bytes(), line].concat()),
        Place::System(socket) => {
            let _ = socket.send(&packet(level, std::process::id(), line));
            Ok(())
        }
        Place::Nowhere => Ok(()),
    }
}

/// The time as RFC 3339 writes it.
fn now() -> String {
    let mut text = String::new();
    // A time that cannot be written is left out.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// A line as syslog(3) sends it.
fn packet(level: Level, pid: u32, line: &[u8]) -> Vec<u8> {
    let mut packet = format!("<{}>swarmfs[{pid}]: ", DAEMON * 8 + severity(level)).into_bytes();
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

    #[test]
    fn a_time_is_written_as_rfc_3339_has_it() {
        let text = now();
        assert!(text.len() >= 20 && &text[4..5] == "-" && &text[10..11] == "T" && text.ends_with('Z'), "{text}");
    }
}
