//! How the commands find a tree: whom they ask, whose key they trust, and what a person is told where that fails.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tracing::warn;

use super::RunError;
use super::show::local_time;
use super::trust::Memory;
use crate::driver::{self, DiscoverError, Found, Offer};
use crate::net::discover::Tried;
use crate::settings::NetSettings;
use crate::wire::head::TreeName;

/// How long one round of questions takes where nobody answers: several times what an origin takes to answer three lost
/// datagrams.
const ROUND: Duration = Duration::from_secs(5);
/// Between rounds that end at once because there is no network to ask yet.
const PAUSE: Duration = Duration::from_millis(500);
/// Asks the network for the tree, or for the one tree that there is. While nobody answers it goes on asking for as long as
/// `patience` says; an origin's answer is final, if it may be the origin's.
pub fn find(net: &NetSettings, tree: Option<&TreeName>, patience: Duration) -> Result<Found, RunError> {
    let begin = Instant::now();
    let memory = Memory::open();
    let mut told = false;
    let found = loop {
        let left = patience.saturating_sub(begin.elapsed());
        match driver::discover_known(net, tree, &|tree| memory.known(tree), left.min(ROUND)) {
            Ok(found) => break found,
            Err(error) if is_final(&error) || begin.elapsed() + PAUSE >= patience => {
                let (net, tree) = (Box::new(net.clone()), tree.cloned());
                return Err(RunError::Discover { error, net, tree, waited: patience });
            }
            Err(error) => {
                if !told {
                    told = true;
                    let text = explain(&error, net, tree, begin.elapsed());
                    warn!("{text}; trying on for {} s", patience.as_secs());
                }
                if matches!(error, DiscoverError::Network(_)) {
                    std::thread::sleep(PAUSE);
                }
            }
        }
    };
    memory.trust(&found, net.key);
    Ok(found)
}

/// Whether asking again is no use: an origin has spoken.
fn is_final(error: &DiscoverError) -> bool {
    match error {
        // The network may be late, or its interface.
        DiscoverError::NoOrigin(_) | DiscoverError::Network(_) => false,
        // Nodes that mounted another tree speak for that one only; the origin of this one may be booting.
        DiscoverError::TreeMissing { trees } => trees.iter().any(|offer| offer.origin),
        // Whoever has another key may be anybody: he must not keep the origin from being found when it is back.
        DiscoverError::WrongKey(_) | DiscoverError::KeyChanged { .. } => false,
        _ => true,
    }
}

/// What a person does about a tree that was not found.
pub fn explain(error: &DiscoverError, net: &NetSettings, tree: Option<&TreeName>, waited: Duration) -> String {
    let wanted = tree.map_or("any tree".to_owned(), |tree| format!("the tree {:?}", tree.as_str()));
    match error {
        DiscoverError::NoOrigin(tried) => format!("nobody offers {wanted}: {}", silence(tried, net, waited)),
        DiscoverError::SeveralTrees(offers) => {
            format!("the network has several trees; name one of them:{}", lines(offers, false))
        }
        DiscoverError::SeveralKeys(offers) => format!(
            "origins with different keys offer {wanted}; say with --key which one is trusted:{}",
            lines(offers, true)
        ),
        DiscoverError::WrongKey(offers) => format!(
            "{} offered with another key than the one given with --key; compare with what `swarmfs key` prints at its \
             origin:{}",
            tree.map_or("the network's trees are".to_owned(), |_| format!("{wanted} is")),
            lines(offers, true)
        ),
        DiscoverError::KeyChanged { tree, known, offers } => format!(
            "the key of the tree {tree:?} has changed: this host trusts {}, remembered since {}, and the tree is now \
             offered with another by:{}\nEither its origin has a new key, or somebody else serves in its name: compare \
             with what `swarmfs key` prints at the origin. `swarmfs key --forget {tree}` accepts the new one for good, \
             --key for once",
            known.key.fingerprint(),
            local_time(known.since_s),
            lines(offers, true)
        ),
        DiscoverError::OtherHead { wanted: pinned, offers } => {
            let mut lines: Vec<String> =
                offers.iter().map(|(offer, head)| format!("{}: head {head}", offer.host.ip())).collect();
            lines.sort();
            lines.dedup();
            format!(
                "{wanted} is not in the state asked for, head {pinned}, but in another:{}\nHave the origin serve it as \
                 it was, or ask for the head that `swarmfs status` shows there",
                super::show::indented(&lines)
            )
        }
        DiscoverError::TreeMissing { trees } => {
            format!("nobody offers {wanted}; the network has:{}", lines(trees, false))
        }
        DiscoverError::Network(reason) => format!("cannot use the network: {reason}"),
    }
}

/// Whom nobody answered for, and what may be in the way.
fn silence(tried: &Tried, net: &NetSettings, waited: Duration) -> String {
    let (first, last) = net.ports().into_inner();
    // What was asked because it was named is said as it was named.
    let aim = |by: &String, to: &IpAddr| match net.peers.iter().any(|(host, _)| host == by) {
        true if *by == to.to_string() => by.clone(),
        true => format!("{by} ({to})"),
        false => format!("{to} on {by}"),
    };
    // Not what loopback refused, where a network is missing as well.
    let refused = tried.refused.iter().filter(|(_, to, _)| !to.is_loopback());
    let refused: Vec<String> = refused.map(|(by, to, reason)| format!("{} ({reason})", aim(by, to))).collect();
    let refused = refused.join(", ");
    // Loopback is always asked: a node of this host would have answered. It is no network.
    let only_loopback = tried.asked.iter().all(|(_, to)| to.is_loopback());
    let denied = tried.refused.iter().any(|(.., reason)| reason.kind() == io::ErrorKind::PermissionDenied);
    if only_loopback && denied && !refused.is_empty() {
        return format!(
            "this host may not ask {refused}; does its own firewall let UDP and TCP ports {first} to {last} out?"
        );
    }
    if only_loopback && !refused.is_empty() {
        return format!("this host cannot ask {refused}; `ip addr` and `ip route` show how its network is set up");
    }
    if only_loopback && net.interfaces.is_empty() && net.peers.is_empty() {
        return "there is no network to ask, since no interface but loopback is up, has carrier and broadcasts; name \
                one with --interface, or an origin with --peer"
            .to_owned();
    }
    let asked = tried.asked.iter().filter(|(_, to)| only_loopback || !to.is_loopback());
    let asked: Vec<String> = asked.map(|(by, to)| aim(by, to)).collect();
    let not_asked = if refused.is_empty() { refused } else { format!(", and cannot ask {refused}") };
    if !tried.strangers.is_empty() {
        let (asked, waited) = (asked.join(", "), waited.as_secs());
        return format!("asked {asked} for {waited} s{not_asked}; {}", strangers(tried, net));
    }
    format!(
        "asked {} for {} s without an answer{not_asked}; is `swarmfs serve` running, and do the firewalls of both hosts \
         let UDP and TCP ports {first} to {last} in? Where broadcast does not reach, use --peer",
        asked.join(", "),
        waited.as_secs()
    )
}

/// Who heard the question and could not read it, and what to do about that.
fn strangers(tried: &Tried, net: &NetSettings) -> String {
    let hosts = |secret: bool| {
        let hosts = tried.strangers.iter().filter(|(_, has)| **has == secret).map(|(ip, _)| ip.to_string());
        hosts.collect::<Vec<String>>().join(", ")
    };
    let mut said = Vec::new();
    let (sealed, open) = (hosts(true), hosts(false));
    match &net.secret_file {
        Some(file) if !sealed.is_empty() => {
            let file = file.display();
            said.push(format!("nodes with another secret than that of {file} are at {sealed}: all need copies of one"));
        }
        None if !sealed.is_empty() => said.push(format!(
            "nodes with a secret are at {sealed}: it takes --secret-file and a copy of theirs to join them"
        )),
        _ => {}
    }
    if !open.is_empty() {
        said.push(format!("nodes without a secret are at {open}: they need --secret-file, too"));
    }
    said.join("; ")
}

fn lines(offers: &[Offer], keys: bool) -> String {
    let mut lines: Vec<String> = offers
        .iter()
        .map(|Offer { host, tree, key, .. }| match keys {
            false => format!("{tree} (from {}, key {})", host.ip(), key.fingerprint()),
            true => format!("{}: {} (--key {key})", host.ip(), key.fingerprint()),
        })
        .collect();
    lines.sort();
    lines.dedup();
    super::show::indented(&lines)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::keys::OriginKey;

    fn offer(tree: &str, seed: u8) -> Offer {
        let key = OriginKey::from_seed(&[seed; 32]).public();
        Offer { host: ([10, 0, 0, seed], 19024).into(), tree: tree.parse().unwrap(), key, origin: true }
    }

    fn message(error: &DiscoverError) -> String {
        explain(error, &NetSettings::default(), Some(&"images".parse().unwrap()), ROUND)
    }

    #[test]
    fn silence_names_what_was_tried_and_what_may_be_in_the_way() {
        let to = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 255));
        let asked = |asked| DiscoverError::NoOrigin(Tried { asked, ..Tried::default() });
        let text = message(&asked(vec![("eth0".to_owned(), to)]));
        assert!(text.starts_with("nobody offers the tree \"images\": asked 10.0.0.255 on eth0 for 5 s"), "{text}");
        assert!(text.contains("19024 to 19039") && text.contains("--peer"), "{text}");
        let text = message(&asked(Vec::new()));
        assert!(text.contains("no network to ask") && text.contains("--interface"), "{text}");
        let [loopback, far] = [[127, 255, 255, 255], [10, 9, 0, 1]].map(IpAddr::from);
        let tried = vec![("lo".to_owned(), loopback), ("far.example".to_owned(), far)];
        let net = NetSettings { peers: vec![("far.example".to_owned(), 19024)], ..NetSettings::default() };
        let text = explain(&asked(tried), &net, None, ROUND);
        assert!(text.contains("asked far.example (10.9.0.1) for 5 s"), "{text}");
        let net = NetSettings { interfaces: vec!["lo".to_owned()], ..NetSettings::default() };
        let text = explain(&asked(vec![("lo".to_owned(), loopback)]), &net, None, ROUND);
        assert!(text.contains("asked 127.255.255.255 on lo for 5 s"), "{text}");
    }

    #[test]
    fn nodes_with_another_secret_or_none_are_named_with_what_to_do() {
        let [one, other] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let silence = |strangers: &[(IpAddr, bool)], file: Option<&str>| {
            let asked = vec![("eth0".to_owned(), IpAddr::from([10, 0, 0, 255]))];
            let tried = Tried { asked, strangers: strangers.iter().copied().collect(), ..Tried::default() };
            let net = NetSettings { secret_file: file.map(Into::into), ..NetSettings::default() };
            explain(&DiscoverError::NoOrigin(tried), &net, None, ROUND)
        };
        let text = silence(&[(one, true), (other, true)], Some("/etc/secret"));
        assert!(text.contains("another secret than that of /etc/secret are at 10.0.0.1, 10.0.0.2"), "{text}");
        let text = silence(&[(one, false), (other, true)], Some("/etc/secret"));
        assert!(
            text.contains("another secret") && text.contains("without a secret are at 10.0.0.1: they need"),
            "{text}"
        );
        let text = silence(&[(one, true)], None);
        assert!(text.contains("with a secret are at 10.0.0.1: it takes --secret-file"), "{text}");
        assert!(text.contains("for 5 s;") && !text.contains("firewall"), "{text}");
    }

    #[test]
    fn what_this_host_does_not_send_is_named_with_its_reason() {
        let to = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 255));
        let silence = |asked: &[&str], reason: io::ErrorKind| {
            let asked = asked.iter().map(|name| ((*name).to_owned(), to)).collect();
            let refused = vec![("eth0".to_owned(), to, reason.into())];
            message(&DiscoverError::NoOrigin(Tried { asked, refused, ..Tried::default() }))
        };
        let text = silence(&[], io::ErrorKind::PermissionDenied);
        assert!(
            text.contains("this host may not ask 10.0.0.255 on eth0 (permission denied); does its own fire"),
            "{text}"
        );
        let text = silence(&[], io::ErrorKind::NetworkUnreachable);
        assert!(
            text.contains("cannot ask 10.0.0.255 on eth0 (network unreachable)") && text.contains("ip route"),
            "{text}"
        );
        let text = silence(&["eth1"], io::ErrorKind::NetworkUnreachable);
        assert!(
            text.contains("asked 10.0.0.255 on eth1 for 5 s without an answer, and cannot ask 10.0.0.255 on"),
            "{text}"
        );
    }

    #[test]
    fn an_origins_word_is_final_and_silence_is_not() {
        assert!(!is_final(&DiscoverError::NoOrigin(Tried::default())));
        assert!(is_final(&DiscoverError::TreeMissing { trees: vec![offer("other", 1)] }));
        let peer = Offer { origin: false, ..offer("other", 1) };
        assert!(!is_final(&DiscoverError::TreeMissing { trees: vec![peer] }));
        assert!(is_final(&DiscoverError::SeveralKeys(Vec::new())));
        assert!(!is_final(&DiscoverError::WrongKey(vec![offer("images", 1)])), "anybody can have another key");
    }

    #[test]
    fn choices_are_listed_once_each() {
        let text = message(&DiscoverError::SeveralTrees(vec![offer("b", 1), offer("a", 2), offer("b", 1)]));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[1].starts_with("  a (from 10.0.0.2, key "), "{text}");
        let text = message(&DiscoverError::SeveralKeys(vec![offer("images", 1), offer("images", 2)]));
        for offer in [offer("images", 1), offer("images", 2)] {
            let line = format!("  {}: {} (--key {})", offer.host.ip(), offer.key.fingerprint(), offer.key);
            assert!(text.lines().any(|said| said == line), "{text}");
        }
        let text = message(&DiscoverError::TreeMissing { trees: vec![offer("a", 1)] });
        assert!(text.starts_with("nobody offers the tree \"images\"; the network has:\n  a (from"), "{text}");
    }
}
