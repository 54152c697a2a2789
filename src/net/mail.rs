//! Datagrams as they travel: sealed where the swarm has a secret, plain where it has none.
//!
//! Whoever has no secret can still send an old sealed datagram again, from any address. There is no clock to tell it by.
//! - An answer repeats the token of its question, and each is heeded once. So one from yesterday is no answer: it adds no
//!   peer and no tree, whatever it says; all it can bring is its tree head, which counts only if it is newer.
//! - A question changes nothing here. It is answered once for each address that it seems to come from, as long as it is
//!   remembered, by what a stranger cannot read.
//!
//! What cannot be read is counted, and whoever looks for a tree is told so (REFUSAL): else the same slip, a wrong file,
//! would look like a dead network. A refusal is small, says nothing of the swarm, and few are sent.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::secret::Secret;
use crate::wire::codec::Malformed;
use crate::wire::datagram::Datagram;
use crate::wire::sealed::{self, Envelope, NONCE, Opened, Token};

/// Questions of this node whose answers are heeded: a minute's, where nobody answers.
const ASKED: usize = 64;
/// Others' questions that answers are still owed to: each board of a rack asks at the same moment.
const OWED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Datagrams that are known when they come again.
const REMEMBERED: usize = 512;
/// Refusals sent at most within `PER`.
const REFUSALS: u32 = 8;
const PER: Duration = Duration::from_secs(1);

pub struct Mail {
    envelope: Option<Envelope>,
    asked: VecDeque<Token>,
    owed: LruCache<SocketAddr, Token>,
    /// Questions with the address that they came from; answers with none.
    remembered: VecDeque<(Token, Option<SocketAddr>)>,
    refusals: u32,
    refused_since: Instant,
}

/// What a datagram was.
#[derive(PartialEq, Debug)]
pub enum Heard {
    /// The swarm's own; `answers` if it answers what was asked lately.
    Own {
        datagram: Datagram,
        answers: bool,
    },
    /// One that was heard before.
    Again,
    /// Of nodes with another secret than this one's, or, unless `sealed`, without any. Who looks for a tree wants to be
    /// told, there.
    Foreign {
        sealed: bool,
        tell: Option<SocketAddr>,
    },
    /// Somebody else could not read a question: a node with another secret, or with none.
    Refused {
        secret: bool,
    },
    Malformed(Malformed),
}

impl Mail {
    pub fn new(secret: Option<&Secret>, now: Instant) -> Mail {
        Mail {
            envelope: secret.map(Envelope::new),
            asked: VecDeque::new(),
            owed: LruCache::new(OWED),
            remembered: VecDeque::new(),
            refusals: 0,
            refused_since: now,
        }
    }

    /// Each is sealed anew, also when the same is asked again. Refusals come to `refusals_at`, if that is not 0.
    pub fn question(&mut self, question: &Datagram, refusals_at: u16) -> io::Result<Vec<u8>> {
        let Some(envelope) = &self.envelope else { return Ok(question.encode()) };
        let (bytes, token) = envelope.seal(nonce()?, refusals_at, Token::default(), &question.encode_bare());
        push(&mut self.asked, ASKED, token);
        Ok(bytes)
    }

    /// The answer to the last question that came from there.
    pub fn answer(&mut self, to: SocketAddr, answer: &Datagram) -> io::Result<Vec<u8>> {
        let Some(envelope) = &self.envelope else { return Ok(answer.encode()) };
        let question = self.owed.get(&to).copied().unwrap_or_default();
        Ok(envelope.seal(nonce()?, 0, question, &answer.encode_bare()).0)
    }

    /// What nobody asked for.
    pub fn news(&mut self, news: &Datagram) -> io::Result<Vec<u8>> {
        let Some(envelope) = &self.envelope else { return Ok(news.encode()) };
        Ok(envelope.seal(nonce()?, 0, Token::default(), &news.encode_bare()).0)
    }

    pub fn hear(&mut self, from: SocketAddr, bytes: &[u8]) -> Heard {
        let sealed = sealed::is_sealed(bytes);
        let own = self.envelope.as_ref().and_then(|envelope| envelope.open(bytes));
        match (own, sealed) {
            (Some(opened), _) => self.open(from, opened),
            (None, Some(port)) => Heard::Foreign { sealed: true, tell: at(from, port) },
            (None, None) => match Datagram::parse(bytes) {
                Ok(Datagram::Refusal { secret }) => Heard::Refused { secret },
                Ok(datagram) if self.envelope.is_none() => Heard::Own { datagram, answers: true },
                Ok(datagram) => Heard::Foreign { sealed: false, tell: asks(from, &datagram) },
                Err(error) => Heard::Malformed(error),
            },
        }
    }

    fn open(&mut self, from: SocketAddr, opened: Opened) -> Heard {
        let Opened { token, answers, datagram } = opened;
        let datagram = match Datagram::parse_bare(&datagram) {
            Ok(datagram) => datagram,
            Err(error) => return Heard::Malformed(error),
        };
        let source = matches!(datagram, Datagram::Join(_)).then_some(from);
        if self.remembered.contains(&(token, source)) {
            return Heard::Again;
        }
        push(&mut self.remembered, REMEMBERED, (token, source));
        if let Datagram::Join(join) = &datagram {
            self.owed.put(SocketAddr::new(from.ip(), join.port), token);
        }
        Heard::Own { answers: self.asked.contains(&answers), datagram }
    }

    /// What to tell somebody who looks for another swarm's tree, unless enough were told just now.
    pub fn refusal(&mut self, now: Instant) -> Option<Vec<u8>> {
        if now.saturating_duration_since(self.refused_since) >= PER {
            (self.refused_since, self.refusals) = (now, 0);
        }
        self.refusals += 1;
        let refusal = Datagram::Refusal { secret: self.envelope.is_some() };
        (self.refusals <= REFUSALS).then(|| refusal.encode())
    }
}

fn nonce() -> io::Result<[u8; NONCE]> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce)?;
    Ok(nonce)
}

fn push<T>(queue: &mut VecDeque<T>, most: usize, item: T) {
    if queue.len() == most {
        queue.pop_front();
    }
    queue.push_back(item);
}

/// Where somebody is to be told who looks for a tree without a secret.
fn asks(from: SocketAddr, datagram: &Datagram) -> Option<SocketAddr> {
    match datagram {
        Datagram::Join(join) if join.sequence == 0 => at(from, join.port),
        _ => None,
    }
}

fn at(from: SocketAddr, port: u16) -> Option<SocketAddr> {
    (port != 0).then_some(SocketAddr::new(from.ip(), port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::OriginKey;
    use crate::wire::datagram::{Join, MAX_DATAGRAM, Welcome};
    use crate::wire::frame::NodeId;
    use crate::wire::head::{PageHash, Totals, TreeHead};

    fn mail(secret: Option<u8>) -> Mail {
        let secret = secret.map(|byte| Secret::from_bytes([byte; 32]));
        Mail::new(secret.as_ref(), Instant::now())
    }

    fn join(sequence: u64) -> Datagram {
        let tree = Some("images".parse().unwrap());
        Datagram::Join(Join { node: NodeId(1), port: 19030, sequence, position: 0, tree })
    }

    fn welcome() -> Datagram {
        let key = OriginKey::from_seed(&[1; 32]);
        let head = TreeHead::sign("images".parse().unwrap(), 9, PageHash([2; 32]), 0, Totals::default(), &key);
        Datagram::Peers(Box::new(Welcome { node: NodeId(2), port: 19024, origin: true, head, peers: Vec::new() }))
    }

    fn host(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 5).into()
    }

    fn own(datagram: Datagram, answers: bool) -> Heard {
        Heard::Own { datagram, answers }
    }

    #[test]
    fn those_with_one_secret_understand_each_other_and_nobody_else_does() {
        let (mut asker, mut origin) = (mail(Some(1)), mail(Some(1)));
        let question = asker.question(&join(0), 19030).unwrap();
        let asks: SocketAddr = ([10, 0, 0, 1], 19030).into();
        for mut stranger in [mail(Some(2)), mail(None)] {
            assert_eq!(stranger.hear(host(1), &question), Heard::Foreign { sealed: true, tell: Some(asks) });
        }
        assert_eq!(origin.hear(host(1), &question), own(join(0), false));
        let answer = origin.answer(asks, &welcome()).unwrap();
        assert_eq!(answer.len(), MAX_DATAGRAM, "an answer's length tells nothing");
        assert_eq!(asker.hear(host(2), &answer), own(welcome(), true));
        for text in [&question, &answer] {
            assert!(!text.windows(6).any(|window| window == b"images"));
        }
    }

    #[test]
    fn an_old_answer_is_none_and_a_new_one_counts_once() {
        let (mut asker, mut origin) = (mail(Some(1)), mail(Some(1)));
        let to: SocketAddr = ([10, 0, 0, 1], 19030).into();
        let question = asker.question(&join(0), 0).unwrap();
        origin.hear(host(1), &question);
        let recorded = origin.answer(to, &welcome()).unwrap();
        let mut later = mail(Some(1));
        later.question(&join(0), 0).unwrap();
        assert_eq!(later.hear(host(2), &recorded), own(welcome(), false));
        let mut stranger = mail(Some(1));
        let unasked = stranger.answer(to, &welcome()).unwrap();
        assert_eq!(asker.hear(host(2), &unasked), own(welcome(), false));
        assert_eq!(asker.hear(host(2), &recorded), own(welcome(), true));
        assert_eq!(asker.hear(host(3), &recorded), Heard::Again, "whoever seems to send it");
    }

    #[test]
    fn a_recorded_question_is_answered_once_for_each_address() {
        let (mut asker, mut origin) = (mail(Some(1)), mail(Some(1)));
        let question = asker.question(&join(0), 0).unwrap();
        assert_eq!(origin.hear(host(1), &question), own(join(0), false));
        assert_eq!(origin.hear(host(1), &question), Heard::Again);
        assert_eq!(origin.hear(host(2), &question), own(join(0), false), "a host with two interfaces asks by both");
        assert_eq!(origin.hear(host(2), &question), Heard::Again);
        let again = asker.question(&join(0), 0).unwrap();
        assert_eq!(origin.hear(host(1), &again), own(join(0), false));
    }

    #[test]
    fn what_is_remembered_has_an_end() {
        let (mut asker, mut origin) = (mail(Some(1)), mail(Some(1)));
        for index in 0..2 * REMEMBERED {
            let question = asker.question(&join(0), 0).unwrap();
            origin.hear(([10, 1, (index >> 8) as u8, index as u8], 5).into(), &question);
        }
        assert_eq!((asker.asked.len(), origin.remembered.len()), (ASKED, REMEMBERED));
        assert!(origin.owed.len() <= OWED.get());
    }

    #[test]
    fn plain_ones_are_as_ever_and_foreign_to_a_swarm_with_a_secret() {
        let (mut plain, mut private) = (mail(None), mail(Some(1)));
        let question = plain.question(&join(0), 0).unwrap();
        assert_eq!(question, join(0).encode());
        assert_eq!(mail(None).hear(host(1), &question), own(join(0), true));
        let tell = Some(([10, 0, 0, 1], 19030).into());
        assert_eq!(private.hear(host(1), &question), Heard::Foreign { sealed: false, tell });
        // Nodes that run ask now and then all their lives; nobody waits for their errors.
        assert_eq!(private.hear(host(1), &join(7).encode()), Heard::Foreign { sealed: false, tell: None });
        assert_eq!(private.hear(host(1), &welcome().encode()), Heard::Foreign { sealed: false, tell: None });
        assert_eq!(private.hear(host(1), b"swfs"), Heard::Malformed(Malformed::Short));
    }

    #[test]
    fn few_are_told_that_they_are_not_understood_and_little() {
        for (secret, mut mail) in [(true, mail(Some(1))), (false, mail(None))] {
            let now = Instant::now();
            let refusal = mail.refusal(now).unwrap();
            assert!(refusal.len() < 16);
            assert_eq!(Datagram::parse(&refusal), Ok(Datagram::Refusal { secret }));
            assert_eq!((0..100).filter(|_| mail.refusal(now).is_some()).count() as u32, REFUSALS - 1);
            assert!(mail.refusal(now + PER).is_some());
        }
    }
}
