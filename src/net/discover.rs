//! Finding a tree: ask everybody, gather who answers, decide which tree is meant.
//!
//! Runs before there is a node, on the caller's thread, and ends after the patience given. What the answers mean is
//! decided by `choose`, which sees no socket.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::mail::{Heard, Mail};
use super::sockets;
use crate::keys::PublicKey;
use crate::settings::NetSettings;
use crate::state::Known;
use crate::wire::datagram::{Datagram, Join, MAX_DATAGRAM, Welcome};
use crate::wire::frame::NodeId;
use crate::wire::head::{PageHash, TreeHead, TreeName};

/// How long after the first answer others are waited for: another origin, or another key, must be noticed.
const MORE: Duration = Duration::from_millis(250);
/// How long after a first answer that does not settle it another is waited for: an origin's after a reader's, and where
/// one state of the tree is wanted, one from whoever shows that.
const MORE_ORIGIN: Duration = Duration::from_millis(800);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);
/// Answers kept. Everybody may answer; a flood of them must not grow without a bound.
const MAX_ANSWERS: usize = 256;
/// Hosts kept that answered and could not read the question.
const MAX_STRANGERS: usize = 16;

/// A tree and one of the hosts that answered for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    pub host: SocketAddr,
    pub tree: TreeName,
    pub key: PublicKey,
    /// Whether the host has the tree on its disk.
    pub origin: bool,
}

/// The tree that was asked for, and who offers it.
#[derive(Debug)]
pub struct Found {
    /// The newest head among the answers.
    pub head: Arc<TreeHead>,
    pub offers: Vec<Offer>,
    /// Who offers it with a key that is not trusted.
    pub strange: Vec<Offer>,
    /// The answers themselves, for the node that will join.
    pub answers: Vec<(SocketAddr, Welcome)>,
}

/// Whom nobody answered for.
#[derive(Debug, Default)]
pub struct Tried {
    /// By which interface or option, and to which address.
    pub asked: Vec<(String, IpAddr)>,
    /// The same of what this host refused to send, and why.
    pub refused: Vec<(String, IpAddr, std::io::Error)>,
    /// Who heard the question and has another secret than this host (true), or none.
    pub strangers: BTreeMap<IpAddr, bool>,
}

impl Tried {
    fn note(&mut self, by: &str, to: IpAddr, sent: std::io::Result<usize>) {
        match sent {
            // Said once for each: the question is repeated.
            Ok(_) if !self.asked.iter().any(|(name, asked)| name == by && *asked == to) => {
                tracing::debug!(by, %to, "asked for trees");
                self.asked.push((by.to_owned(), to));
            }
            Err(error) if !self.refused.iter().any(|(name, aim, _)| name == by && *aim == to) => {
                self.refused.push((by.to_owned(), to, error));
            }
            _ => {}
        }
    }

    fn note_stranger(&mut self, from: SocketAddr, secret: bool) {
        if self.strangers.len() < MAX_STRANGERS {
            self.strangers.insert(from.ip(), secret);
        }
    }
}

/// Why no tree was found.
#[derive(Debug, Error)]
pub enum DiscoverError {
    #[error("no origin answered")]
    NoOrigin(Tried),
    #[error("several trees are offered")]
    SeveralTrees(Vec<Offer>),
    #[error("origins with different keys offer the tree")]
    SeveralKeys(Vec<Offer>),
    #[error("the tree is offered with another key than the one given")]
    WrongKey(Vec<Offer>),
    #[error("the tree is offered with another key than the one remembered")]
    KeyChanged { tree: TreeName, known: Box<Known>, offers: Vec<Offer> },
    #[error("the tree is offered in another state than the one given")]
    OtherHead { wanted: PageHash, offers: Vec<(Offer, PageHash)> },
    #[error("the tree is not offered")]
    TreeMissing { trees: Vec<Offer> },
    #[error("cannot use the network: {0}")]
    Network(std::io::Error),
}

/// The key that is remembered for a tree, if any.
pub type Remembered<'a> = &'a dyn Fn(&TreeName) -> Option<Known>;

/// Asks the network for the tree, or for the one tree that there is.
pub fn discover(net: &NetSettings, tree: Option<&TreeName>, patience: Duration) -> Result<Found, DiscoverError> {
    discover_known(net, tree, &|_| None, patience)
}

/// The same where keys seen before are trusted, and no others in their place.
pub fn discover_known(
    net: &NetSettings,
    tree: Option<&TreeName>,
    remembered: Remembered,
    patience: Duration,
) -> Result<Found, DiscoverError> {
    let network = DiscoverError::Network;
    let missing = super::interfaces::missing(&net.interfaces).map_err(network)?;
    if let Some(name) = missing.first() {
        let text = format!("no interface {name}: expected one of those that `ip link` lists");
        return Err(DiscoverError::Network(std::io::Error::new(ErrorKind::NotFound, text)));
    }
    let asking = sockets::Asking::open(net).map_err(network)?;
    let socket = &asking.udp;
    let port = socket.local_addr().map_err(network)?.port();
    // Any tree may answer: the error for a wrong name lists those that there are.
    let node = NodeId(getrandom::u64().map_err(|error| DiscoverError::Network(error.into()))?);
    let join = Datagram::Join(Join { node, port, sequence: 0, position: 0, tree: None });
    let mut mail = Mail::new(net.secret.as_ref(), Instant::now());
    let begin = Instant::now();
    let (mut next, mut pause) = (begin, FIRST_PAUSE);
    let mut end = begin + patience;
    let mut answers: BTreeMap<NodeId, (SocketAddr, Welcome)> = BTreeMap::new();
    let mut tried = Tried::default();
    let (mut heard, mut heard_origin) = (false, false);
    loop {
        let now = Instant::now();
        if now >= end {
            break;
        }
        if now >= next {
            next = now + pause;
            pause = (pause * 2).min(LAST_PAUSE);
            let join = mail.question(&join, port).map_err(network)?;
            for sent in sockets::broadcast(&join, net).map_err(network)? {
                tried.note(&sent.by, IpAddr::V4(sent.to), sent.result);
            }
            for peer in &net.peers {
                for addr in sockets::resolve(std::slice::from_ref(peer)) {
                    tried.note(&peer.0, addr.ip(), socket.send_to(&join, addr));
                }
            }
        }
        let wait = end.min(next).saturating_duration_since(now).max(Duration::from_millis(1));
        socket.set_read_timeout(Some(wait)).map_err(network)?;
        let mut buffer = [0; MAX_DATAGRAM + 1];
        let (len, from) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            // A peer's host may answer a unicast with an ICMP error; the others may still answer.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) =>
            {
                continue;
            }
            Err(error) => return Err(network(error)),
        };
        let welcome = match mail.hear(from, &buffer[..len]) {
            Heard::Own { datagram: Datagram::Peers(welcome), answers: true } => welcome,
            Heard::Refused { secret } => {
                tried.note_stranger(from, secret);
                continue;
            }
            _ => continue,
        };
        tracing::debug!(%from, tree = %welcome.head.name, origin = welcome.origin, "answered");
        let meant =
            tree.is_none_or(|name| *name == welcome.head.name) && is_trusted(&welcome.head, net.key, remembered);
        // Somebody with another tree must not keep us from waiting for ours; but an origin's word that there are others
        // ends the wait, too.
        if welcome.origin && !heard_origin {
            heard_origin = true;
            let settled = net.head.is_none_or(|wanted| wanted == welcome.head.root);
            end = end.min(Instant::now() + if settled { MORE } else { MORE_ORIGIN });
        } else if meant && !heard {
            end = end.min(Instant::now() + MORE_ORIGIN);
        }
        heard |= meant;
        if answers.len() < MAX_ANSWERS {
            answers.insert(welcome.node, (from, *welcome));
        }
    }
    let answers = answers.into_values().collect();
    choose(answers, tree, net.key, remembered, tried)?.pinned(net.head)
}

/// The key given counts, else the one remembered; where there is neither, any.
fn is_trusted(head: &TreeHead, given: Option<PublicKey>, remembered: Remembered) -> bool {
    given.or_else(|| remembered(&head.name).map(|known| known.key)).is_none_or(|key| key == head.key)
}

/// Which tree the answers mean.
fn choose(
    answers: Vec<(SocketAddr, Welcome)>,
    tree: Option<&TreeName>,
    key: Option<PublicKey>,
    remembered: Remembered,
    tried: Tried,
) -> Result<Found, DiscoverError> {
    if answers.is_empty() {
        return Err(DiscoverError::NoOrigin(tried));
    }
    let (named, others): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|(_, welcome)| tree.is_none_or(|name| *name == welcome.head.name));
    if named.is_empty() {
        return Err(DiscoverError::TreeMissing { trees: offers(&others) });
    }
    // With a key given only what is signed with it is meant; a key remembered is another question's answer.
    let meant: Vec<_> =
        named.iter().filter(|(_, welcome)| key.is_none_or(|key| key == welcome.head.key)).cloned().collect();
    if meant.iter().any(|(_, welcome)| welcome.head.name != meant[0].1.head.name) {
        return Err(DiscoverError::SeveralTrees(offers(&meant)));
    }
    let (trusted, strange): (Vec<_>, Vec<_>) =
        named.into_iter().partition(|(_, welcome)| is_trusted(&welcome.head, key, remembered));
    let speaks = |answers: &[(SocketAddr, Welcome)]| answers.iter().any(|(_, welcome)| welcome.origin);
    // Of the trusted only mounts are left, and an origin has another key: it may have lost its own, or be none.
    let displaced = key.is_none() && !speaks(&trusted) && speaks(&strange);
    let Some((_, first)) = trusted.first().filter(|_| !displaced) else {
        return Err(refusal(&strange, key, remembered));
    };
    if trusted.iter().any(|(_, welcome)| welcome.head.key != first.head.key) {
        return Err(DiscoverError::SeveralKeys(offers(&trusted)));
    }
    let newest = trusted.iter().map(|(_, welcome)| &welcome.head).max_by_key(|head| head.sequence);
    let head = Arc::new(newest.expect("there is a first one").clone());
    Ok(Found { head, offers: offers(&trusted), strange: offers(&strange), answers: trusted })
}

impl Found {
    /// The same where one state of the tree is wanted.
    fn pinned(self, wanted: Option<PageHash>) -> Result<Found, DiscoverError> {
        let Some(wanted) = wanted else { return Ok(self) };
        let fits = self.answers.iter().map(|(_, welcome)| &welcome.head).filter(|head| head.root == wanted);
        if let Some(head) = fits.max_by_key(|head| head.sequence).cloned() {
            return Ok(Found { head: Arc::new(head), ..self });
        }
        let of = |(from, welcome): &(SocketAddr, Welcome)| {
            offers(&[(*from, welcome.clone())]).pop().map(|offer| (offer, welcome.head.root))
        };
        Err(DiscoverError::OtherHead { wanted, offers: self.answers.iter().filter_map(of).collect() })
    }
}

/// Why the tree is not taken from those who have another key than the trusted one.
fn refusal(strange: &[(SocketAddr, Welcome)], key: Option<PublicKey>, remembered: Remembered) -> DiscoverError {
    let tree = &strange[0].1.head.name;
    match (key, remembered(tree)) {
        (None, Some(known)) => {
            DiscoverError::KeyChanged { tree: tree.clone(), known: Box::new(known), offers: offers(strange) }
        }
        _ => DiscoverError::WrongKey(offers(strange)),
    }
}

/// One line per host, tree and key; of what an origin answered for, origins only.
fn offers(answers: &[(SocketAddr, Welcome)]) -> Vec<Offer> {
    let has_origin = |other: &TreeHead| {
        let same = |head: &TreeHead| (&head.name, head.key) == (&other.name, other.key);
        answers.iter().any(|(_, welcome)| welcome.origin && same(&welcome.head))
    };
    let mut offers: Vec<Offer> = Vec::new();
    for (from, welcome) in answers.iter().filter(|(_, welcome)| welcome.origin || !has_origin(&welcome.head)) {
        let host = SocketAddr::new(from.ip(), welcome.port);
        let offer = Offer { host, tree: welcome.head.name.clone(), key: welcome.head.key, origin: welcome.origin };
        if !offers.contains(&offer) {
            offers.push(offer);
        }
    }
    offers.sort_by(|a, b| (&a.tree, a.host).cmp(&(&b.tree, b.host)));
    offers
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::keys::OriginKey;
    use crate::wire::head::Totals;

    fn answer(host: u8, tree: &str, key: u8, sequence: u64) -> (SocketAddr, Welcome) {
        let secret = OriginKey::from_seed(&[key; 32]);
        let head = TreeHead::sign(tree.parse().unwrap(), sequence, PageHash([0; 32]), 0, Totals::default(), &secret);
        let welcome = Welcome { node: NodeId(host as u64), port: 19024, origin: true, head, peers: vec![] };
        (([10, 0, 0, host], 5).into(), welcome)
    }

    const NOTHING: Remembered = &|_| None;

    fn key(key: u8) -> PublicKey {
        OriginKey::from_seed(&[key; 32]).public()
    }

    #[test]
    fn one_tree_need_not_be_named_and_its_newest_head_counts() {
        let found =
            choose(vec![answer(1, "a", 1, 5), answer(2, "a", 1, 7)], None, None, NOTHING, Tried::default()).unwrap();
        assert_eq!((found.head.sequence, found.offers.len(), found.answers.len()), (7, 2, 2));
    }

    #[test]
    fn several_trees_several_keys_and_none_are_told_apart() {
        let a: TreeName = "a".parse().unwrap();
        let b: TreeName = "b".parse().unwrap();
        let answers = vec![answer(1, "a", 1, 1), answer(2, "b", 1, 1), answer(3, "a", 2, 1)];
        let choose = |tree, key| choose(answers.clone(), tree, key, NOTHING, Tried::default());
        assert!(matches!(choose(None, None), Err(DiscoverError::SeveralTrees(offers)) if offers.len() == 3));
        assert!(matches!(choose(Some(&a), None), Err(DiscoverError::SeveralKeys(offers)) if offers.len() == 2));
        assert_eq!(choose(Some(&a), Some(key(2))).unwrap().head.key, key(2));
        assert!(matches!(choose(Some(&b), Some(key(2))), Err(DiscoverError::WrongKey(offers)) if offers.len() == 1));
        let c: TreeName = "c".parse().unwrap();
        assert!(matches!(choose(Some(&c), None), Err(DiscoverError::TreeMissing { trees }) if trees.len() == 3));
        let mut peer = answer(4, "a", 1, 1);
        peer.1.origin = false;
        let answers = vec![answer(1, "a", 1, 1), peer.clone()];
        assert_eq!(
            super::choose(answers, Some(&a), None, NOTHING, Tried::default()).unwrap().offers.len(),
            1,
            "the origin speaks for it"
        );
        // An origin that lost its key, and a mount that still trusts the old one.
        let answers = vec![answer(3, "a", 2, 1), peer];
        let both = super::choose(answers, Some(&a), None, NOTHING, Tried::default());
        assert!(matches!(both, Err(DiscoverError::SeveralKeys(offers)) if offers.len() == 2));
        let mut tried = Tried::default();
        for _ in 0..2 {
            tried.note("eth0", Ipv4Addr::BROADCAST.into(), Ok(1));
            tried.note("eth1", Ipv4Addr::BROADCAST.into(), Err(ErrorKind::PermissionDenied.into()));
        }
        assert_eq!((tried.asked.len(), tried.refused.len()), (1, 1));
        assert!(matches!(super::choose(vec![], None, None, NOTHING, tried), Err(DiscoverError::NoOrigin(_))));
    }

    #[test]
    fn a_key_remembered_is_the_only_one_trusted_unless_another_is_given() {
        let known = Known { key: key(1), since_s: 5 };
        let remembered: Remembered = &|tree| (tree.as_str() == "a").then_some(known);
        let choose =
            |answers: &[(SocketAddr, Welcome)], key| choose(answers.to_vec(), None, key, remembered, Tried::default());
        let (own, other) = (answer(1, "a", 1, 1), answer(2, "a", 2, 9));
        let found = choose(&[own.clone(), other.clone()], None).unwrap();
        assert_eq!((found.head.key, found.offers.len(), found.strange.len()), (key(1), 1, 1));
        let changed = choose(std::slice::from_ref(&other), None);
        assert!(
            matches!(&changed, Err(DiscoverError::KeyChanged { known: k, offers, .. }) if **k == known && offers.len() == 1),
            "{changed:?}"
        );
        assert_eq!(choose(std::slice::from_ref(&other), Some(key(2))).unwrap().head.key, key(2));
        assert!(matches!(choose(std::slice::from_ref(&own), Some(key(2))), Err(DiscoverError::WrongKey(_))));
        // An origin that lost its key, and a mount that still trusts the old one.
        let mut peer = own;
        peer.1.origin = false;
        assert!(matches!(choose(&[peer.clone(), other.clone()], None), Err(DiscoverError::KeyChanged { .. })));
        assert_eq!(choose(&[peer.clone(), other], Some(key(1))).unwrap().head.key, key(1), "who insists gets it");
        let mut stranger = answer(3, "a", 2, 1);
        stranger.1.origin = false;
        assert_eq!(choose(&[peer, stranger], None).unwrap().head.key, key(1));
        // A tree that nothing is remembered of is not taken just because the other one's key changed.
        let both = choose(&[answer(2, "a", 2, 1), answer(4, "b", 7, 1)], None);
        assert!(matches!(both, Err(DiscoverError::SeveralTrees(offers)) if offers.len() == 2));
    }

    #[test]
    fn of_several_states_the_one_asked_for_is_taken_and_no_other() {
        let secret = OriginKey::from_seed(&[1; 32]);
        let at = |host: u8, sequence, root| {
            let (from, mut welcome) = answer(host, "a", 1, 0);
            welcome.head = TreeHead::sign("a".parse().unwrap(), sequence, root, 0, Totals::default(), &secret);
            (from, welcome)
        };
        let [old, new, none] = [1, 2, 3].map(|byte| PageHash([byte; 32]));
        let found = || choose(vec![at(1, 9, new), at(2, 5, old)], None, None, NOTHING, Tried::default()).unwrap();
        assert_eq!(found().pinned(None).unwrap().head.root, new);
        assert_eq!(found().pinned(Some(old)).unwrap().head.root, old);
        let refused = found().pinned(Some(none));
        assert!(
            matches!(&refused, Err(DiscoverError::OtherHead { wanted, offers })
                if *wanted == none && offers.len() == 2 && offers.iter().any(|(_, root)| *root == new)),
            "{refused:?}"
        );
    }
}
