//! `xcat`: one file to standard output or to a file, from the swarm or, where nobody there has it, by the legacy protocol.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::io::AsyncReadExt;
use tracing::{debug, info, warn};

use super::{RunError, access, find, live, ram_bytes, secret};
use crate::cli::{FileSettings, XcatArgs};
use crate::control::client::ClientError;
use crate::control::server::failure_in;
use crate::control::{Failure, Node};
use crate::driver::DiscoverError;
use crate::settings::{CacheSettings, NetSettings, PathSpec};
use crate::wire::xcat::{Refusal, Request};
use crate::xcat::Kept;
use crate::xcat::client::{Asker, Want};

/// How long the swarm has to answer before the legacy protocol is used.
const NATIVE: Duration = Duration::from_millis(300);
/// Bytes handed to the output at once where they come from the swarm.
const PIECE: usize = 256 * 1024;

pub fn xcat(args: XcatArgs, file: &FileSettings) -> Result<(), RunError> {
    let XcatArgs { path, output, linger, node } = args;
    let linger = linger.unwrap_or_default();
    let anywhere = node.says_nowhere();
    let (mut net, cache) = node.with(file).settings(ram_bytes());
    secret::read(&mut net)?;
    let mut out = Output::open(output)?;
    if anywhere && through_host(&path, &net, &mut out)? {
        return out.finish();
    }
    let nobody = match live::runtime()?.block_on(from_swarm(&path, &net, &cache, &mut out, linger)) {
        Ok(()) => return out.finish(),
        Err(error) if may_have_others(&error) => error,
        Err(error) => return Err(error),
    };
    // Whoever says which key is trusted, or has a secret, does not mean bytes that nobody signed.
    if net.key.is_some() || net.secret.is_some() {
        return Err(nobody);
    }
    debug!(error = %nobody, "asking by the legacy protocol");
    by_legacy(&path, &net, &cache, out, linger)
}

/// Whether the swarm has nobody for this path, so that a legacy server may. A key that changed is no such reason.
fn may_have_others(error: &RunError) -> bool {
    match error {
        RunError::Discover { error, .. } => matches!(
            error,
            DiscoverError::NoOrigin(_) | DiscoverError::TreeMissing { .. } | DiscoverError::SeveralTrees(_)
        ),
        RunError::Path { error: ClientError::Refused(Failure::NotFound), .. } => true,
        _ => false,
    }
}

/// Whether a node of this host had it.
fn through_host(path: &PathSpec, net: &NetSettings, out: &mut Output) -> Result<bool, RunError> {
    // With several trees here and none named, the legacy protocol asks all of them.
    let Ok(Some(socket)) = access::node_of_this_host(path.tree.as_ref(), net) else { return Ok(false) };
    match socket.cat(&path.path, out) {
        Ok(()) => Ok(true),
        Err(_) if out.written == 0 && out.error.is_none() => Ok(false),
        Err(ClientError::Output(error)) => Err(out.refused(error)),
        Err(error) => Err(RunError::Path { path: path.text.clone(), error }),
    }
}

/// Gets it from the swarm. Others, legacy ones too, are helped meanwhile and for `linger` after.
async fn from_swarm(
    path: &PathSpec,
    net: &NetSettings,
    cache: &CacheSettings,
    out: &mut Output,
    linger: Duration,
) -> Result<(), RunError> {
    let found = find::find(net, path.tree.as_ref(), NATIVE)?;
    let node = live::join(found, net, cache)?.with_legacy(net, cache);
    node.reached(net).await?;
    let failed = |failure: Failure| RunError::Path { path: path.text.clone(), error: failure.into() };
    let mut file = node.open(&path.path).await.map_err(failed)?;
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece).await {
            Ok(0) => break,
            Ok(len) => out.write_all(&piece[..len]).map_err(|error| out.refused(error))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(failure_in(&error))),
        }
    }
    out.flush().map_err(|error| out.refused(error))?;
    tokio::time::sleep(linger).await;
    Ok(())
}

fn by_legacy(
    path: &PathSpec,
    net: &NetSettings,
    cache: &CacheSettings,
    out: Output,
    linger: Duration,
) -> Result<(), RunError> {
    let refused = |reason| RunError::Legacy { path: path.path.clone(), reason };
    let name = path.path.to_str().ok_or(refused(Refusal::NotUtf8))?;
    let first = Request::new(name, 0).map_err(refused)?;
    // What is being got and what waits to be written take a chunk each.
    let kept = Kept::within(cache.budget_bytes.saturating_sub(32 << 20));
    let _helping = live::answer_legacy(kept.clone(), net, cache, false);
    let runtime = live::runtime()?;
    let (bodies, writer) = Writer::start(out)?;
    let fetched = runtime.block_on(fetch(name, first, net, &kept, bodies));
    // What the output refused is why the rest was not fetched.
    let out = writer.join().expect("writing does not panic")?;
    let bytes = fetched?;
    info!(path = name, bytes, "got by the legacy protocol, which has sums and no signatures");
    std::thread::sleep(linger);
    out.finish()
}

/// Gets chunk after chunk: the next one while the one before is being written.
async fn fetch(
    name: &str,
    first: Request,
    net: &NetSettings,
    kept: &Kept,
    bodies: SyncSender<Bytes>,
) -> Result<u64, RunError> {
    let mut asker = Asker::new(net.clone());
    let (mut request, mut bytes) = (first, 0);
    loop {
        let answer = asker.ask(&request, Want::Body).await.map_err(RunError::Asking)?;
        let body = answer.body.expect("a body was wanted");
        bytes += body.len() as u64;
        kept.keep(&request.path(), request.chunk(), body.clone());
        // Its end is told by who writes.
        let written = bodies.send(body).is_ok();
        let next = request.chunk().checked_add(1).filter(|_| answer.header.is_full() && written);
        let Some(next) = next else { return Ok(bytes) };
        request = Request::new(name, next).map_err(|reason| RunError::Legacy { path: name.into(), reason })?;
    }
}

/// A thread that gives its output back when all is written.
type Writing = JoinHandle<Result<Output, RunError>>;

/// Writes what comes, on a thread of its own: a slow output must not keep an answer from being taken in time.
struct Writer;

impl Writer {
    fn start(mut out: Output) -> Result<(SyncSender<Bytes>, Writing), RunError> {
        let (bodies, arriving): (_, Receiver<Bytes>) = sync_channel(0);
        let write = move || {
            for body in arriving {
                out.write_all(&body).map_err(|error| out.refused(error))?;
            }
            out.flush().map_err(|error| out.refused(error))?;
            Ok(out)
        };
        let thread = std::thread::Builder::new().name("swarmfs-output".to_owned()).spawn(write);
        Ok((bodies, thread.map_err(RunError::Start)?))
    }
}

/// Standard output or a file, and how far it is.
struct Output {
    to: Box<dyn Write + Send>,
    path: Option<PathBuf>,
    progress: ProgressBar,
    written: u64,
    error: Option<io::ErrorKind>,
}

impl Output {
    fn open(path: Option<PathBuf>) -> Result<Output, RunError> {
        let to: Box<dyn Write + Send> = match &path {
            Some(path) => {
                let file = File::create(path);
                Box::new(file.map_err(|reason| RunError::File { path: path.clone(), reason })?)
            }
            None => Box::new(io::stdout()),
        };
        Ok(Output { to, path, progress: progress(), written: 0, error: None })
    }

    fn refused(&self, error: io::Error) -> RunError {
        match &self.path {
            Some(path) => RunError::File { path: path.clone(), reason: error },
            None => RunError::Output(error),
        }
    }

    fn finish(mut self) -> Result<(), RunError> {
        self.progress.finish();
        self.to.flush().map_err(|error| self.refused(error))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // In pieces, so that the line moves while a chunk goes out.
        let written = self.to.write(&bytes[..bytes.len().min(1 << 20)]);
        match &written {
            Ok(count) => {
                self.written += *count as u64;
                self.progress.set_position(self.written);
            }
            Err(error) => self.error = Some(error.kind()),
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A line on a terminal, and nothing elsewhere. How long the file is, nobody knows beforehand.
fn progress() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    match ProgressStyle::with_template("{binary_bytes}  {binary_bytes_per_sec}  {elapsed}") {
        Ok(style) => bar.set_style(style),
        Err(error) => warn!(%error, "no progress is shown"),
    }
    bar
}
