//! The words after `-o`: the options of `mount` as fstab can say them.

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use super::NodeArgs;
use crate::keys::{NotAKey, PublicKey};
use crate::settings::quantity::{parse_duration, parse_rate};
use crate::settings::{
    CacheSettings, DEFAULT_SOFT, Patience, Shown, Unfit, parse_broadcast, parse_id, parse_interface, parse_peer,
    parse_port, parse_slots, parse_umask,
};
use crate::wire::head::{NotAHash, PageHash};

/// Words that mean something here, with an example of the value where they take one.
const WORDS: [(&str, Option<&str>); 34] = [
    ("interface", Some("interface=eth0")),
    ("port", Some("port=19024")),
    ("broadcast", Some("broadcast=192.168.7.255")),
    ("peer", Some("peer=origin.example")),
    ("cache", Some("cache=128M")),
    ("key", Some("key=KEY, with the 64 hex digits that `swarmfs serve` prints")),
    ("head", Some("head=HASH, with the 64 hex digits that `swarmfs status` shows as the tree's head")),
    ("upload", Some("upload=10M")),
    ("upload_slots", Some("upload_slots=4")),
    ("secret_file", Some("secret_file=/etc/swarmfs/secret")),
    ("hard", None),
    ("soft", None),
    ("timeo", Some("timeo=30s")),
    ("retry", Some("retry=60s")),
    ("delay_connect", None),
    ("bg", None),
    ("log_file", Some("log_file=/var/log/swarmfs.log")),
    ("uid", Some("uid=1000")),
    ("gid", Some("gid=100")),
    ("umask", Some("umask=027")),
    ("allow_other", None),
    // mount(8) keeps `suid` and `dev` to itself, since they are the default of other filesystems.
    ("allow_suid", None),
    ("allow_dev", None),
    ("suid", None),
    ("nosuid", None),
    ("dev", None),
    ("nodev", None),
    ("exec", None),
    ("noexec", None),
    ("symfollow", None),
    ("nosymfollow", None),
    ("ro", None),
    ("rw", None),
    ("remount", None),
];

/// Words that are for whoever reads fstab, or that change nothing on a read-only mount. One line of fstab goes to
/// mount(8), systemd and this program alike.
const IGNORED: [&str; 33] = [
    "defaults",
    "default_permissions",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "sync",
    "async",
    "dirsync",
    "mand",
    "nomand",
    "iversion",
    "noiversion",
    "noowner",
    "nogroup",
    "silent",
    "loud",
    "comment",
];

/// Every word that means something after `-o`.
pub fn mount_words() -> impl Iterator<Item = &'static str> {
    WORDS.into_iter().map(|(word, _)| word)
}

/// Every word that is taken and means nothing here.
pub fn ignored_words() -> impl Iterator<Item = &'static str> {
    IGNORED.into_iter()
}

/// Why a word was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OptionError {
    #[error("unknown mount option {word}: {}", match .nearest {
        Some(nearest) => format!("did you mean {nearest}?"),
        None => "mount.swarmfs(8) lists them".to_owned(),
    })]
    Unknown { word: String, nearest: Option<&'static str> },
    #[error("option rw: a swarmfs mount is read-only; leave the word out, or lay a writable overlayfs over the mount")]
    ReadWrite,
    #[error("option remount: a swarmfs mount cannot be changed while it is mounted; unmount it and mount it again")]
    Remount,
    #[error("option delay_connect needs a tree's name: what there is, nobody may be there to say")]
    DelayWithoutTree,
    #[error("option {word} needs a value, for example {example}")]
    NeedsValue { word: &'static str, example: &'static str },
    #[error("option {word} takes no value, but has {value:?}")]
    TakesNoValue { word: &'static str, value: String },
    #[error("option {word}={}: {}", .unfit.value, .unfit.expectation())]
    Unfit { word: &'static str, unfit: Unfit },
    #[error("option key={value}: {reason}")]
    Key { value: String, reason: NotAKey },
    #[error("option head={value}: {reason}")]
    Head { value: String, reason: NotAHash },
    #[error("option timeo: only a soft mount gives up: add soft, or leave timeo out")]
    TimeoWithoutSoft,
}

/// A mount's settings while words are still added to them.
#[derive(Default)]
pub struct Draft {
    pub node: NodeArgs,
    pub head: Option<PageHash>,
    pub log_file: Option<PathBuf>,
    pub allow_other: bool,
    pub suid: bool,
    pub dev: bool,
    pub noexec: bool,
    pub nosymfollow: bool,
    pub shown: Shown,
    pub retry: Option<Duration>,
    pub delay_connect: bool,
    soft: bool,
    timeo: Option<Duration>,
    /// Unknown words are passed over, as mount(8) asks for with `-s`.
    sloppy: bool,
}

impl Draft {
    pub fn new(allow_other: bool, sloppy: bool) -> Draft {
        Draft { allow_other, sloppy, ..Draft::default() }
    }

    /// Takes words separated by commas. A later one counts where two contradict; interfaces and peers add up.
    pub fn take(&mut self, words: &str) -> Result<(), OptionError> {
        words.split(',').filter(|word| !word.is_empty()).try_for_each(|word| self.take_word(word))
    }

    pub fn patience(&self) -> Result<Patience, OptionError> {
        match (self.soft, self.timeo) {
            (true, timeo) => Ok(Patience::Soft(timeo.unwrap_or(DEFAULT_SOFT))),
            (false, None) => Ok(Patience::Hard),
            (false, Some(_)) => Err(OptionError::TimeoWithoutSoft),
        }
    }

    fn take_word(&mut self, text: &str) -> Result<(), OptionError> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        if IGNORED.contains(&name) || name.starts_with("x-") || name.starts_with("X-") {
            return Ok(());
        }
        let Some((word, example)) = WORDS.into_iter().find(|(word, _)| *word == name) else {
            if self.sloppy {
                return Ok(());
            }
            return Err(OptionError::Unknown { word: name.to_owned(), nearest: nearest(name, mount_words()) });
        };
        match (example, value) {
            (Some(example), None | Some("")) => Err(OptionError::NeedsValue { word, example }),
            (None, Some(value)) => Err(OptionError::TakesNoValue { word, value: value.to_owned() }),
            (Some(_), Some(value)) => self.set_value(word, value),
            (None, None) => self.set_flag(word),
        }
    }

    fn set_value(&mut self, word: &'static str, value: &str) -> Result<(), OptionError> {
        let unfit = |unfit| OptionError::Unfit { word, unfit };
        match word {
            "interface" => self.node.interface.push(parse_interface(value).map_err(unfit)?),
            "port" => self.node.port = Some(parse_port(value).map_err(unfit)?),
            "broadcast" => self.node.broadcast.push(parse_broadcast(value).map_err(unfit)?),
            "peer" => self.node.peer.push(parse_peer(value).map_err(unfit)?),
            "cache" => self.node.cache = Some(CacheSettings::parse(value).map_err(unfit)?),
            "upload" => self.node.upload = Some(parse_rate(value).map_err(unfit)?),
            "upload_slots" => self.node.upload_slots = Some(parse_slots(value).map_err(unfit)?),
            "retry" => self.retry = Some(parse_duration(value).map_err(unfit)?),
            "log_file" => self.log_file = Some(PathBuf::from(value)),
            "uid" => self.shown.uid = Some(parse_id(value).map_err(unfit)?),
            "gid" => self.shown.gid = Some(parse_id(value).map_err(unfit)?),
            "secret_file" => self.node.secret_file = Some(PathBuf::from(value)),
            "umask" => self.shown.umask = parse_umask(value).map_err(unfit)?,
            "timeo" => self.timeo = Some(parse_duration(value).map_err(unfit)?),
            "key" => {
                let key: Result<PublicKey, NotAKey> = value.parse();
                self.node.key = Some(key.map_err(|reason| OptionError::Key { value: value.to_owned(), reason })?);
            }
            "head" => {
                let head: Result<PageHash, NotAHash> = value.parse();
                self.head = Some(head.map_err(|reason| OptionError::Head { value: value.to_owned(), reason })?);
            }
            _ => unreachable!("{word} is listed in WORDS with a value"),
        }
        Ok(())
    }

    fn set_flag(&mut self, word: &'static str) -> Result<(), OptionError> {
        match word {
            "hard" => (self.soft, self.timeo) = (false, None),
            "soft" => self.soft = true,
            "allow_other" => self.allow_other = true,
            "suid" | "allow_suid" => self.suid = true,
            "nosuid" => self.suid = false,
            "dev" | "allow_dev" => self.dev = true,
            "nodev" => self.dev = false,
            "exec" => self.noexec = false,
            "noexec" => self.noexec = true,
            "symfollow" => self.nosymfollow = false,
            "nosymfollow" => self.nosymfollow = true,
            "delay_connect" | "bg" => self.delay_connect = true,
            "ro" => {}
            "rw" => return Err(OptionError::ReadWrite),
            "remount" => return Err(OptionError::Remount),
            _ => unreachable!("{word} is listed in WORDS without a value"),
        }
        Ok(())
    }
}

/// The known word that `word` is likely a slip of: at most a third of its letters wrong, left out, too many or swapped.
pub fn nearest(word: &str, known: impl IntoIterator<Item = &'static str>) -> Option<&'static str> {
    let slips = |known: &'static str| (strsim::damerau_levenshtein(known, word), known);
    let (count, known) = known.into_iter().map(slips).min()?;
    (count <= (known.len() / 3).max(1)).then_some(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_word_is_taken_or_refused_for_a_reason_of_its_own() {
        let key = crate::keys::OriginKey::from_seed(&[1; 32]).public();
        for (word, example) in WORDS {
            let text = match example {
                Some(_) if word == "key" => format!("key={key}"),
                Some(_) if word == "head" => format!("head={}", PageHash([7; 32])),
                Some(example) => example.to_owned(),
                None => word.to_owned(),
            };
            let taken = Draft::default().take(&text);
            let expected = match word {
                "rw" => Err(OptionError::ReadWrite),
                "remount" => Err(OptionError::Remount),
                _ => Ok(()),
            };
            assert_eq!(taken, expected, "{text}");
        }
    }

    #[test]
    fn words_for_mount_and_systemd_change_nothing() {
        let mut draft = Draft::default();
        draft.take(&IGNORED.join(",")).unwrap();
        draft.take("defaults,,x-systemd.automount,comment=backup").unwrap();
        assert!(!draft.suid && !draft.dev && !draft.noexec && !draft.allow_other);
        assert_eq!(draft.patience(), Ok(Patience::Hard));
    }

    #[test]
    fn a_sloppy_mount_passes_over_what_it_does_not_know_and_refuses_what_is_wrong() {
        let mut draft = Draft::new(false, true);
        draft.take("frobnicate,acl=5,suid").unwrap();
        assert!(draft.suid);
        assert!(matches!(draft.take("port=0"), Err(OptionError::Unfit { .. })));
        assert_eq!(draft.take("rw"), Err(OptionError::ReadWrite));
    }
}
