//! What stands between a connection and a link where the swarm has a secret: both ends prove that they have it.
//!
//! The node hears of a connection that came in only when that has happened. So strangers take none of its links, and
//! what they cost is bounded here: a short time, few bytes, and room that is taken from whoever waits longest.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use super::core::Handle;
use crate::net::channel::{ANSWER, CALL_HEAD, Call, Channel, PROOF, Refused, Suites, answer, call_len};
use crate::net::sockets;
use crate::secret::Secret;

/// A board that is busy booting answers within a fraction of it.
const GREETING: Duration = Duration::from_secs(3);
/// Connections that have proved nothing yet. A node of the swarm takes milliseconds; whoever keeps it out would have to
/// open this many connections in that time.
const MOST_GREETING: usize = 256;

#[derive(Debug, Error)]
pub enum NoLink {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Connection(#[from] io::Error),
    #[error("it said nothing for {} s", GREETING.as_secs())]
    Silent,
}

/// Proves the secret to whom this node has called.
pub async fn call(stream: &mut TcpStream, secret: &Secret, suites: Suites) -> Result<Channel, NoLink> {
    let greeting = async {
        sockets::tune(stream)?;
        let (call, first) = Call::begin(secret, suites)?;
        stream.write_all(&first).await?;
        let mut answer = [0; ANSWER];
        stream.read_exact(&mut answer).await?;
        let (channel, proof) = call.finish(&answer)?;
        stream.write_all(&proof).await?;
        Ok(channel)
    };
    tokio::time::timeout(GREETING, greeting).await.unwrap_or(Err(NoLink::Silent))
}

/// Has whoever calls prove the secret.
async fn be_called(stream: &mut TcpStream, secret: &Secret, suites: Suites) -> Result<Channel, NoLink> {
    let greeting = async {
        sockets::tune(stream)?;
        let mut head = [0; CALL_HEAD];
        stream.read_exact(&mut head).await?;
        let mut steps = vec![0; call_len(head)?];
        stream.read_exact(&mut steps).await?;
        let (mut channel, reply) = answer(secret, suites, head, &steps)?;
        stream.write_all(&reply).await?;
        let mut proof = [0; PROOF];
        stream.read_exact(&mut proof).await?;
        channel.prove(&proof)?;
        Ok(channel)
    };
    tokio::time::timeout(GREETING, greeting).await.unwrap_or(Err(NoLink::Silent))
}

/// Connections that came in and have proved nothing yet, oldest first.
#[derive(Default)]
pub struct Greeting(VecDeque<AbortHandle>);

impl Greeting {
    /// Hands the connection to `then` once it has proved the secret.
    pub fn begin(
        &mut self,
        core: &Handle,
        secret: Secret,
        mut stream: TcpStream,
        addr: SocketAddr,
        then: impl FnOnce(&Handle, TcpStream, SocketAddr, Option<Channel>) + 'static,
    ) {
        self.0.retain(|task| !task.is_finished());
        if self.0.len() == MOST_GREETING
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
            core.borrow_mut().statistics.strangers += 1;
        }
        let core = core.clone();
        let task = tokio::task::spawn_local(async move {
            let suites = core.borrow().suites;
            match be_called(&mut stream, &secret, suites).await {
                Ok(channel) => then(&core, stream, addr, Some(channel)),
                Err(error) => core.borrow_mut().on_stranger(addr, &error),
            }
        });
        self.0.push_back(task.abort_handle());
    }
}

impl super::core::Core {
    fn on_stranger(&mut self, from: SocketAddr, error: &NoLink) {
        self.statistics.strangers += 1;
        // One that just ends may be the swarm's own node that was switched off; whoever lacks the secret is not.
        if matches!(error, NoLink::Refused(_)) && !std::mem::replace(&mut self.statistics.told[2], true) {
            tracing::info!(%from, %error, "a stranger's connection was refused; further ones are only counted");
        } else {
            tracing::debug!(%from, %error, "a stranger's connection was refused");
        }
    }
}
