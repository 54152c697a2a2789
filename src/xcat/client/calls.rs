//! Who connects to answer a question, and whom of them to believe.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::wire::xcat::{Header, Request};

/// How long a header may take once there is a connection.
const HEADER: Duration = Duration::from_secs(3);
/// Connections taken for one question, and of one address: a late answer may come beside the one awaited.
pub const CALLERS: usize = 16;
const CALLS: usize = 4;

/// Somebody who answered, and whose body is still to come.
pub struct Caller {
    pub stream: TcpStream,
    pub from: IpAddr,
    pub header: Header,
}

/// Who has connected since a question was asked.
#[derive(Default)]
pub struct Calls {
    pub reading: JoinSet<(IpAddr, Option<Caller>)>,
    /// Connections of each address.
    open: BTreeMap<IpAddr, usize>,
    pub heard: Vec<Caller>,
    /// Those who are believed only if nobody else answers.
    pub avoided: Vec<Caller>,
}

impl Calls {
    pub fn take(&mut self, stream: TcpStream, from: IpAddr, request: &Request) {
        let all: usize = self.open.values().sum();
        let its = self.open.get(&from).copied().unwrap_or_default();
        if all < CALLERS && its < CALLS {
            self.open.insert(from, its + 1);
            let request = request.clone();
            self.reading.spawn(async move { (from, read_header(stream, from, request).await) });
        }
    }

    /// What was read of a connection.
    pub fn hear(&mut self, from: IpAddr, read: Option<Caller>) -> Option<Caller> {
        if read.is_none()
            && let Some(its) = self.open.get_mut(&from)
        {
            *its -= 1;
            self.open.retain(|_, its| *its > 0);
        }
        read
    }

    pub fn any(&self) -> bool {
        !(self.heard.is_empty() && self.avoided.is_empty())
    }

    pub fn has_spoken(&self, address: IpAddr) -> bool {
        self.heard.iter().chain(&self.avoided).any(|caller| caller.from == address)
    }

    /// Those to believe, the most credible first.
    pub fn best(self, request: &Request) -> Vec<Caller> {
        let mut callers = if self.heard.is_empty() { self.avoided } else { self.heard };
        let claims: BTreeSet<Claim> = callers.iter().map(|caller| claim(caller.from, caller.header)).collect();
        if callers.iter().any(|caller| caller.header != callers[0].header) {
            let claims: Vec<String> = claims.iter().map(|(from, len, _)| format!("{from}: {len} bytes")).collect();
            let (request, claims) = (request.text(), claims.join(", "));
            warn!(request, claims, "those who answer for this chunk contradict each other");
        }
        callers.sort_by_key(|caller| Reverse(credit(caller.header, &claims)));
        callers
    }
}

/// Who says it, the length and the sum.
type Claim = (IpAddr, u32, u32);

fn claim(from: IpAddr, header: Header) -> Claim {
    (from, header.len, header.sum)
}

/// How many addresses say so, and how much they must send to have said it.
fn credit(header: Header, claims: &BTreeSet<Claim>) -> (usize, u32) {
    let same = |(from, ..): &&Claim| claims.contains(&claim(*from, header));
    let addresses: BTreeSet<IpAddr> = claims.iter().filter(same).map(|(from, ..)| *from).collect();
    (addresses.len(), header.len)
}

/// None for what is no answer to this request.
async fn read_header(mut stream: TcpStream, from: IpAddr, request: Request) -> Option<Caller> {
    let mut text = vec![0; request.header_len()];
    let read = timeout(HEADER, stream.read_exact(&mut text)).await;
    let parsed = match read {
        Ok(Ok(_)) => Header::parse(&request, &text).map_err(|error| error.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no header in time".to_owned()),
    };
    match parsed {
        Ok(header) => Some(Caller { stream, from, header }),
        Err(reason) => {
            debug!(%from, request = request.text(), reason, "a connection without an answer");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// The length believed where each of these addresses says one.
    fn believed(said: &[(u8, u32)]) -> u32 {
        let header = |len| Header { sum: len, len };
        let claims: BTreeSet<Claim> =
            said.iter().map(|(last, len)| claim(Ipv4Addr::new(10, 0, 0, *last).into(), header(*len))).collect();
        said.iter().map(|(_, len)| *len).max_by_key(|len| credit(header(*len), &claims)).unwrap()
    }

    #[test]
    fn what_most_addresses_say_is_believed_and_else_who_must_send_more() {
        assert_eq!(believed(&[(1, 5)]), 5);
        assert_eq!(believed(&[(1, 0), (2, 1000)]), 1000, "that a file ends costs a liar nothing");
        assert_eq!(believed(&[(1, 1000), (2, 0), (3, 0)]), 0);
        assert_eq!(believed(&[(1, 1000), (2, 0), (2, 0), (2, 5)]), 1000, "one address has one voice");
    }
}
