//! Plain validated settings, one struct per consumer, with the reason on each field.
//!
//! Nothing here opens a file or looks at the machine: what is known of it (how much memory there is) is handed in. Text
//! becomes settings by the parsers here and in `quantity`, whoever the text comes from (command line, `-o`, fstab), so a
//! value means the same everywhere. The invariant: a value of these types can be used without a further check.

use std::ffi::{OsStr, OsString};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::keys::PublicKey;
use crate::secret::Secret;
use crate::wire::head::{PageHash, TreeName};

pub mod quantity;

/// Where nodes listen unless told otherwise: the first of `PORTS` ports, and where all hear broadcasts.
pub const DEFAULT_PORT: u16 = 19024;
/// How many nodes of one swarm fit on a host: each takes the next free port. Few enough that a firewall opens them all.
pub const PORTS: u16 = 16;
/// The least byte budget: one 16 MiB chunk being read and one being fetched.
pub const LEAST_CACHE_BYTES: u64 = 32 << 20;
/// Bounds of the default budget: below, peers are hardly helped; above, one who asked for nothing would miss the memory.
const DEFAULT_CACHE_BYTES: RangeInclusive<u64> = 64 << 20..=256 << 20;
/// Longest path below a tree's root that is taken from text; PATH_MAX of the systems that it could be opened on.
const MAX_PATH_BYTES: usize = 4095;

/// What text was refused, why, and what would do.
#[derive(Debug, Error, PartialEq, Eq, Clone)]
#[error("{value:?} is no {what}: expected {expected}, for example {example}")]
pub struct Unfit {
    pub value: String,
    pub what: &'static str,
    pub expected: &'static str,
    pub example: &'static str,
}

impl Unfit {
    /// The error for a reader who was told the value and what it was for already.
    pub fn expectation(&self) -> String {
        format!("expected {}, for example {}", self.expected, self.example)
    }
}

/// What sockets and discovery need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetSettings {
    /// Interfaces to use. Empty: each that is up, has carrier and broadcast, except bridges and veths of containers: a
    /// host's LAN is found without being named, and nobody serves into containers by accident.
    pub interfaces: Vec<String>,
    /// First port of the swarm's range. Another one than the default makes a swarm of its own on the same network.
    pub port: Option<u16>,
    /// Where to send requests beside the interfaces' own broadcast addresses: for subnets that a router forwards
    /// broadcasts to.
    pub broadcast: Vec<Ipv4Addr>,
    /// Hosts to ask by name, where broadcast does not reach. Names are resolved when the node starts, and again later: a
    /// host may get another address.
    pub peers: Vec<(String, u16)>,
    /// The one key trusted. None: the first one seen, which whoever answers first can choose.
    pub key: Option<PublicKey>,
    /// The one state of the tree that is wanted, by its catalogue's root page. None: the newest, and whatever it becomes.
    pub head: Option<PageHash>,
    /// The most bytes a second that the node sends to others. None: as fast as its links are.
    pub upload: Option<u64>,
    /// How many others it serves at once, at least 1. None: as many as the policy finds best.
    pub upload_slots: Option<u16>,
    /// Where the secret is that the swarm's nodes share. None: whoever is on the network can join and read.
    pub secret_file: Option<PathBuf>,
    /// What was read there, before anything is sent.
    pub secret: Option<Secret>,
    /// Whether links are encrypted as on boards whose processor has no AES, whatever this one has: for benches.
    pub without_aes: bool,
}

impl NetSettings {
    /// Where broadcasts go, and the first port that a node tries to take.
    pub fn base_port(&self) -> u16 {
        self.port.unwrap_or(DEFAULT_PORT)
    }

    /// All ports that nodes of this swarm may have.
    pub fn ports(&self) -> RangeInclusive<u16> {
        let base = self.base_port();
        base..=base.saturating_add(PORTS - 1)
    }
}

/// How much memory the chunk cache may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// Bytes held and in flight together. At least `LEAST_CACHE_BYTES`.
    pub budget_bytes: u64,
}

impl CacheSettings {
    /// An eighth of memory within 64 and 256 MiB: what a host that does something else can spare.
    pub fn for_memory(ram_bytes: u64) -> CacheSettings {
        let (least, most) = DEFAULT_CACHE_BYTES.into_inner();
        CacheSettings { budget_bytes: (ram_bytes / 8).clamp(least, most) }
    }

    pub fn parse(text: &str) -> Result<CacheSettings, Unfit> {
        let unfit = || Unfit {
            value: text.to_owned(),
            what: "cache size",
            expected: "at least 32M, in bytes or with K, M, G, KB, MB or GB",
            example: "128M",
        };
        let budget_bytes = quantity::parse_size(text).map_err(|_| unfit())?;
        if budget_bytes < LEAST_CACHE_BYTES { Err(unfit()) } else { Ok(CacheSettings { budget_bytes }) }
    }
}

/// What a read does when nobody answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Patience {
    /// It waits for as long as it takes, and a fatal signal ends it: an origin that reboots does not fail an imaging run.
    #[default]
    Hard,
    /// It fails with EIO after this time.
    Soft(Duration),
}

/// How long a read waits with `soft` and no `timeo`: longer than an origin's service takes to restart.
pub const DEFAULT_SOFT: Duration = Duration::from_secs(60);

/// How long a mount made by hand waits for somebody with the tree: several times what an origin takes to answer three
/// lost datagrams.
pub const RETRY_BY_HAND: Duration = Duration::from_secs(5);
/// The same under mount(8), at boot: a switch port may be silent for 50 s after its link came up.
pub const RETRY_AT_BOOT: Duration = Duration::from_secs(60);

/// Whose files are shown, and what may be done with them, where that is not as in the tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// All files belong to this user.
    pub uid: Option<u32>,
    /// All files belong to this group.
    pub gid: Option<u32>,
    /// Permissions taken from those of the tree; none are added.
    pub umask: u16,
}

/// What to mount where, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountSettings {
    /// The mount's source, exactly as it was given: `mount -a` compares it. None: the tree's name once it is found.
    pub source: Option<OsString>,
    /// None: the one tree on the network.
    pub tree: Option<TreeName>,
    /// The directory shown as the mount's root, below the tree's root; empty for the root itself.
    pub subdir: PathBuf,
    pub mountpoint: PathBuf,
    /// Whether other users of this host may use the mount. Always for root, whose mounts are for the host.
    pub allow_other: bool,
    /// Whether set-uid bits and file capabilities count: off, since they are the origin's to give.
    pub suid: bool,
    /// Whether device files open devices: off for the same reason.
    pub dev: bool,
    /// Whether programs cannot be run from the mount.
    pub noexec: bool,
    /// Whether symbolic links are not followed.
    pub nosymfollow: bool,
    pub shown: Shown,
    pub patience: Patience,
    /// How long somebody with the tree is waited for before the mount fails.
    pub retry: Duration,
    /// Whether the mount is made before anybody with the tree was found.
    pub delay_connect: bool,
    /// Whether the process stays instead of going into the background once the mount answers.
    pub foreground: bool,
}

/// What to offer under which name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeSettings {
    pub dir: PathBuf,
    /// None: the directory's own name.
    pub name: Option<TreeName>,
    /// Whether another host signs the heads, and this one offers what it has of them.
    pub replica: bool,
}

/// A tree, or a directory in it, as a mount's source names it: `TREE`, `TREE:` or `TREE:/SUBDIR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeSpec {
    /// As it was written.
    pub text: OsString,
    pub tree: TreeName,
    /// Below the tree's root; empty for the root itself.
    pub subdir: PathBuf,
}

impl TreeSpec {
    pub fn parse(text: &OsStr) -> Result<TreeSpec, Unfit> {
        let unfit = || Unfit {
            value: text.to_string_lossy().into_owned(),
            what: "tree",
            expected: "TREE, TREE: or TREE:/SUBDIR without '..'",
            example: "images or images:/boards/a",
        };
        let bytes = text.as_bytes();
        let (name, rest) = match bytes.iter().position(|byte| *byte == b':') {
            Some(colon) => (&bytes[..colon], &bytes[colon + 1..]),
            None => (bytes, &b""[..]),
        };
        if !rest.is_empty() && rest[0] != b'/' {
            return Err(unfit());
        }
        let tree = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok()).ok_or_else(unfit)?;
        let subdir = below_root(rest).ok_or_else(unfit)?;
        Ok(TreeSpec { text: text.to_owned(), tree, subdir })
    }
}

/// A path in a tree, as `ls` and `cat` take it: `TREE:/PATH`, or `/PATH` or `PATH` in the one tree on the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathSpec {
    /// As it was written: what messages call it.
    pub text: OsString,
    pub tree: Option<TreeName>,
    /// Below the tree's root; empty for the root itself.
    pub path: PathBuf,
}

impl PathSpec {
    /// What stands before a colon is a tree's name only where `/` or nothing follows: `a:b` is a file.
    pub fn parse(text: &OsStr) -> Result<PathSpec, Unfit> {
        let unfit = || Unfit {
            value: text.to_string_lossy().into_owned(),
            what: "path in a tree",
            expected: "TREE:/PATH or PATH, below the tree's root and without '..'",
            example: "images:/boards/a.img",
        };
        let bytes = text.as_bytes();
        if bytes.is_empty() {
            return Err(unfit());
        }
        let colon = bytes.iter().position(|byte| *byte == b':').filter(|colon| {
            !bytes[..*colon].contains(&b'/') && matches!(bytes.get(colon + 1), None | Some(b'/')) && *colon > 0
        });
        let (tree, rest) = match colon {
            Some(colon) => {
                let tree = std::str::from_utf8(&bytes[..colon]).ok().and_then(|name| name.parse().ok());
                (Some(tree.ok_or_else(unfit)?), &bytes[colon + 1..])
            }
            None => (None, bytes),
        };
        let path = below_root(rest).ok_or_else(unfit)?;
        Ok(PathSpec { text: text.to_owned(), tree, path })
    }
}

/// The path without empty and `.` components; None where it leaves the root or cannot be a path.
fn below_root(bytes: &[u8]) -> Option<PathBuf> {
    if bytes.len() > MAX_PATH_BYTES || bytes.contains(&0) {
        return None;
    }
    let parts: Vec<&[u8]> =
        bytes.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&&b".."[..]) {
        return None;
    }
    Some(PathBuf::from(OsString::from_vec(parts.join(&b'/'))))
}

/// First port of a swarm: the whole range must exist.
pub fn parse_port(text: &str) -> Result<u16, Unfit> {
    let last = u16::MAX - (PORTS - 1);
    text.parse().ok().filter(|port| (1..=last).contains(port)).ok_or_else(|| Unfit {
        value: text.to_owned(),
        what: "port",
        expected: "a number from 1 to 65520, the first of 16 ports",
        example: "19024",
    })
}

/// A user's or group's number. mount(8) makes numbers of names before it calls anybody.
pub fn parse_id(text: &str) -> Result<u32, Unfit> {
    // The highest number means "nobody" to the kernel's calls.
    text.parse().ok().filter(|id| *id != u32::MAX).ok_or_else(|| Unfit {
        value: text.to_owned(),
        what: "user or group",
        expected: "a number, as `id` shows it",
        example: "1000",
    })
}

/// Permission bits in octal.
pub fn parse_umask(text: &str) -> Result<u16, Unfit> {
    u16::from_str_radix(text, 8).ok().filter(|mask| *mask <= 0o777 && !text.starts_with('+')).ok_or_else(|| Unfit {
        value: text.to_owned(),
        what: "umask",
        expected: "permission bits in octal, from 0 to 777",
        example: "027",
    })
}

/// How many others are sent to at once.
pub fn parse_slots(text: &str) -> Result<u16, Unfit> {
    text.parse().ok().filter(|slots| *slots > 0).ok_or_else(|| Unfit {
        value: text.to_owned(),
        what: "number of slots",
        expected: "a whole number from 1 to 65535",
        example: "4",
    })
}

/// `HOST`, `HOST:PORT`, `ADDRESS`, `[V6]:PORT`; the port is the default one unless given.
pub fn parse_peer(text: &str) -> Result<(String, u16), Unfit> {
    let unfit = || Unfit {
        value: text.to_owned(),
        what: "peer",
        expected: "HOST or HOST:PORT, an IPv6 address in brackets",
        example: "origin.example:19024",
    };
    let (host, port) = if let Some(inside) = text.strip_prefix('[') {
        let (host, rest) = inside.split_once(']').ok_or_else(unfit)?;
        host.parse::<std::net::Ipv6Addr>().map_err(|_| unfit())?;
        (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or_else(unfit)?) })
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    if host.is_empty() || host.len() > 253 || !host.chars().all(plain) {
        return Err(unfit());
    }
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(unfit)?,
        None => DEFAULT_PORT,
    };
    Ok((host.to_owned(), port))
}

/// An interface's name; whether there is one, the network floor finds out.
pub fn parse_interface(text: &str) -> Result<String, Unfit> {
    // IFNAMSIZ is 16 with the closing zero; the kernel refuses '/', ':' and white space.
    let fits = (1..=15).contains(&text.len()) && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    if fits {
        return Ok(text.to_owned());
    }
    Err(Unfit {
        value: text.to_owned(),
        what: "interface",
        expected: "an interface's name of 1 to 15 characters, as `ip link` lists them",
        example: "eth0",
    })
}

pub fn parse_broadcast(text: &str) -> Result<Ipv4Addr, Unfit> {
    text.parse().map_err(|_| Unfit {
        value: text.to_owned(),
        what: "broadcast address",
        expected: "an IPv4 address",
        example: "192.168.7.255",
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tree(text: &str) -> Result<TreeSpec, Unfit> {
        TreeSpec::parse(OsStr::new(text))
    }

    fn path(text: &str) -> Result<PathSpec, Unfit> {
        PathSpec::parse(OsStr::new(text))
    }

    #[test]
    fn a_tree_is_named_with_or_without_a_directory_in_it() {
        for (text, subdir) in [("images", ""), ("images:", ""), ("images:/", ""), ("images:/a//./b/", "a/b")] {
            let spec = tree(text).unwrap();
            assert_eq!(spec.tree.as_str(), "images", "{text}");
            assert_eq!(spec.subdir, PathBuf::from(subdir), "{text}");
            assert_eq!(spec.text, text, "the source is kept as it was given");
        }
    }

    #[test]
    fn what_names_no_tree_is_refused() {
        for text in ["", ":", ":/a", "/a", "images:a", "images:/a/../..", "a/b", "a/b:/c", "."] {
            assert!(tree(text).is_err(), "{text}");
        }
        let long = format!("images:/{}", "x".repeat(MAX_PATH_BYTES));
        assert!(tree(&long).is_err());
    }

    #[test]
    fn a_path_names_its_tree_or_leaves_it_to_the_network() {
        for (text, tree, expected) in [
            ("images:/a/b", Some("images"), "a/b"),
            ("images:", Some("images"), ""),
            ("/a/b", None, "a/b"),
            ("a", None, "a"),
            ("/", None, ""),
            (".", None, ""),
            ("a:b", None, "a:b"),
            ("./images:/b", None, "images:/b"),
            (":/b", None, ":/b"),
        ] {
            let spec = path(text).unwrap();
            assert_eq!(spec.tree.as_ref().map(TreeName::as_str), tree, "{text}");
            assert_eq!(spec.path, PathBuf::from(expected), "{text}");
        }
        for text in ["", "..", "/../etc/passwd", "images:/a/..", ".:/a", "a\0b"] {
            assert!(path(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_that_are_not_utf8_are_kept_in_paths_and_refused_in_tree_names() {
        let raw = OsStr::from_bytes(b"images:/\xff\xfe");
        assert_eq!(PathSpec::parse(raw).unwrap().path.as_os_str().as_bytes(), b"\xff\xfe");
        assert_eq!(TreeSpec::parse(raw).unwrap().subdir.as_os_str().as_bytes(), b"\xff\xfe");
        assert!(TreeSpec::parse(OsStr::from_bytes(b"\xff")).is_err());
    }

    #[test]
    fn peers_are_hosts_with_or_without_a_port() {
        assert_eq!(parse_peer("origin"), Ok(("origin".to_owned(), DEFAULT_PORT)));
        assert_eq!(parse_peer("10.0.0.1:5000"), Ok(("10.0.0.1".to_owned(), 5000)));
        assert_eq!(parse_peer("[fe80::1]"), Ok(("fe80::1".to_owned(), DEFAULT_PORT)));
        assert_eq!(parse_peer("[fe80::1]:7"), Ok(("fe80::1".to_owned(), 7)));
        for text in ["", ":1", "a:0", "a:b", "a:65536", "fe80::1", "[fe80::1", "[x]:1", "a b", "[fe80::1]7"] {
            assert!(parse_peer(text).is_err(), "{text}");
        }
    }

    #[test]
    fn owners_are_numbers_and_permissions_octal() {
        assert_eq!((parse_id("0"), parse_id("4294967294")), (Ok(0), Ok(u32::MAX - 1)));
        for text in ["", "root", "-1", "4294967295"] {
            assert!(parse_id(text).is_err(), "{text}");
        }
        assert_eq!((parse_umask("027"), parse_umask("777"), parse_umask("0")), (Ok(0o27), Ok(0o777), Ok(0)));
        for text in ["", "8", "1000", "+7", "-7", "rwx"] {
            assert!(parse_umask(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_port_leaves_room_for_the_whole_range() {
        assert_eq!(parse_port("65520"), Ok(65520));
        assert_eq!(NetSettings { port: Some(65520), ..NetSettings::default() }.ports(), 65520..=65535);
        assert_eq!(NetSettings::default().ports(), 19024..=19039);
        for text in ["0", "65521", "-1", "x", ""] {
            assert!(parse_port(text).is_err(), "{text}");
        }
    }

    #[test]
    fn interfaces_and_broadcast_addresses_are_checked_for_their_form() {
        assert_eq!(parse_interface("eth0.7"), Ok("eth0.7".to_owned()));
        for text in ["", "a/b", "a b", "sixteen-chars-xx"] {
            assert!(parse_interface(text).is_err(), "{text}");
        }
        assert_eq!(parse_broadcast("10.0.0.255"), Ok(Ipv4Addr::new(10, 0, 0, 255)));
        assert!(parse_broadcast("10.0.0").is_err());
    }

    #[test]
    fn the_default_budget_is_an_eighth_of_memory_within_bounds() {
        for (ram, budget) in [(0, 64 << 20), (1 << 30, 128 << 20), (1 << 40, 256 << 20)] {
            assert_eq!(CacheSettings::for_memory(ram).budget_bytes, budget);
        }
        assert_eq!(CacheSettings::parse("32M").unwrap().budget_bytes, LEAST_CACHE_BYTES);
        let refused = CacheSettings::parse("31M").unwrap_err();
        assert_eq!(
            refused.to_string(),
            r#""31M" is no cache size: expected at least 32M, in bytes or with K, M, G, KB, MB or GB, for example 128M"#
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_a_path_that_leaves_the_root(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let text = OsStr::from_bytes(&bytes);
            let paths = [TreeSpec::parse(text).map(|spec| spec.subdir), PathSpec::parse(text).map(|spec| spec.path)];
            for path in paths.into_iter().flatten() {
                prop_assert!(path.is_relative());
                prop_assert!(path.components().all(|part| matches!(part, std::path::Component::Normal(_))));
            }
        }

        #[test]
        fn no_text_panics_a_parser(text in any::<String>()) {
            let _ = (parse_peer(&text), parse_port(&text), parse_interface(&text), parse_broadcast(&text));
            let _ = CacheSettings::parse(&text);
        }
    }
}
