//! The configuration file: what options and mount options are where the command line says nothing of them.
//!
//! TOML, one table. Values are read by the parsers that read the command line. A key that is unknown is an error: a file
//! that nobody looks at for years must not be half understood.

use std::path::PathBuf;

use thiserror::Error;
use toml::de::{DeTable, DeValue};

use super::NodeArgs;
use super::options::{Draft, OptionError, nearest};
use crate::keys::{NotAKey, PublicKey};
use crate::settings::quantity::parse_rate;
use crate::settings::{CacheSettings, Unfit, parse_broadcast, parse_interface, parse_peer, parse_port, parse_slots};

/// Each key with an example of its value.
const KEYS: [(&str, &str); 11] = [
    ("interface", "interface = [\"eth0\", \"eth1\"]"),
    ("port", "port = 19024"),
    ("broadcast", "broadcast = [\"192.168.7.255\"]"),
    ("peer", "peer = [\"origin.example\"]"),
    ("cache", "cache = \"128M\""),
    ("key", "key = \"KEY\", with the 64 hex digits that `swarmfs serve` prints"),
    ("upload", "upload = \"10M\""),
    ("upload-slots", "upload-slots = 4"),
    ("secret-file", "secret-file = \"/etc/swarmfs/secret\""),
    ("log-file", "log-file = \"/var/log/swarmfs.log\""),
    ("mount-options", "mount-options = \"soft,timeo=30s\""),
];

/// What a configuration file says; nothing, where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileSettings {
    pub node: NodeArgs,
    pub log_file: Option<PathBuf>,
    /// Words as after `-o`, checked.
    pub options: String,
}

/// What is wrong with a file, and in which line.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("line {line}: {reason}")]
pub struct FileError {
    pub line: usize,
    pub reason: Reason,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum Reason {
    #[error("not TOML: {0}")]
    Syntax(String),
    #[error("unknown key {key:?}: {}", match .nearest {
        Some(nearest) => format!("did you mean {nearest:?}?"),
        None => "swarmfs.conf(5) lists them".to_owned(),
    })]
    Unknown { key: String, nearest: Option<&'static str> },
    #[error("a value of another kind was expected, for example: {example}")]
    Kind { example: &'static str },
    #[error("{key}: {}", .unfit.expectation())]
    Unfit { key: &'static str, unfit: Unfit },
    #[error("key: {0}")]
    Key(NotAKey),
    #[error("mount-options: {0}")]
    Options(OptionError),
}

/// Every key that a file may have.
pub fn file_keys() -> impl Iterator<Item = &'static str> {
    KEYS.into_iter().map(|(key, _)| key)
}

impl FileSettings {
    pub fn parse(text: &str) -> Result<FileSettings, FileError> {
        let line_of = |at: usize| text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1;
        let table = DeTable::parse(text).map_err(|error| {
            let line = line_of(error.span().map_or(0, |span| span.start));
            FileError { line, reason: Reason::Syntax(error.message().to_owned()) }
        })?;
        let mut settings = FileSettings::default();
        for (key, value) in table.get_ref() {
            let at = |reason| FileError { line: line_of(key.span().start), reason };
            let Some((known, example)) = KEYS.into_iter().find(|(known, _)| known == key.get_ref()) else {
                let nearest = nearest(key.get_ref(), file_keys());
                return Err(at(Reason::Unknown { key: key.get_ref().to_string(), nearest }));
            };
            let texts = texts(value.get_ref()).filter(|texts| texts.len() == 1 || is_list(known));
            let texts = texts.ok_or_else(|| at(Reason::Kind { example }))?;
            texts.iter().try_for_each(|text| settings.set(known, text)).map_err(at)?;
        }
        Ok(settings)
    }

    fn set(&mut self, key: &'static str, text: &str) -> Result<(), Reason> {
        let unfit = |unfit| Reason::Unfit { key, unfit };
        match key {
            "interface" => self.node.interface.push(parse_interface(text).map_err(unfit)?),
            "port" => self.node.port = Some(parse_port(text).map_err(unfit)?),
            "broadcast" => self.node.broadcast.push(parse_broadcast(text).map_err(unfit)?),
            "peer" => self.node.peer.push(parse_peer(text).map_err(unfit)?),
            "cache" => self.node.cache = Some(CacheSettings::parse(text).map_err(unfit)?),
            "key" => self.node.key = Some(text.parse::<PublicKey>().map_err(Reason::Key)?),
            "upload" => self.node.upload = Some(parse_rate(text).map_err(unfit)?),
            "upload-slots" => self.node.upload_slots = Some(parse_slots(text).map_err(unfit)?),
            "secret-file" => self.node.secret_file = Some(PathBuf::from(text)),
            "log-file" => self.log_file = Some(PathBuf::from(text)),
            "mount-options" => {
                Draft::default().take(text).map_err(Reason::Options)?;
                self.options = text.to_owned();
            }
            _ => unreachable!("{key} is listed in KEYS"),
        }
        Ok(())
    }
}

fn is_list(key: &str) -> bool {
    matches!(key, "interface" | "broadcast" | "peer")
}

/// A text, a number, or a list of such, as texts.
fn texts(value: &DeValue<'_>) -> Option<Vec<String>> {
    match value {
        DeValue::String(text) => Some(vec![text.to_string()]),
        DeValue::Integer(number) if number.radix() == 10 => Some(vec![number.as_str().to_owned()]),
        DeValue::Array(values) => {
            let each = values.iter().map(|value| value.get_ref().as_str().map(str::to_owned));
            each.collect()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keys::OriginKey;

    #[test]
    fn a_file_says_what_options_say() {
        let key = OriginKey::from_seed(&[1; 32]).public();
        let text = format!(
            "# a comment\ninterface = 'eth0'\nport = 20000\nbroadcast = ['10.0.0.255']\npeer = ['a', 'b:7']\n\
             cache = '64M'\nkey = '{key}'\nlog-file = '/var/log/s'\nmount-options = 'soft,timeo=5'\n"
        );
        let settings = FileSettings::parse(&text).unwrap();
        let node = &settings.node;
        assert_eq!((&node.interface[..], node.port), (&["eth0".to_owned()][..], Some(20000)));
        assert_eq!((node.broadcast.len(), &node.peer[1]), (1, &("b".to_owned(), 7)));
        assert_eq!((node.cache.unwrap().budget_bytes, node.key), (64 << 20, Some(key)));
        assert_eq!((settings.log_file, &*settings.options), (Some("/var/log/s".into()), "soft,timeo=5"));
        assert_eq!(FileSettings::parse(""), Ok(FileSettings::default()));
    }

    #[test]
    fn the_example_of_each_key_is_right() {
        for (key, example) in KEYS.into_iter().filter(|(key, _)| *key != "key") {
            assert_ne!(FileSettings::parse(example), Ok(FileSettings::default()), "{key}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_and_what_to_write() {
        for (text, line, expected) in [
            ("\nintreface = 'eth0'", 2, "unknown key \"intreface\": did you mean \"interface\"?"),
            ("x = 1", 1, "unknown key \"x\": swarmfs.conf(5) lists them"),
            ("[mount]\nport = 5", 1, "unknown key \"mount\""),
            ("\n\nport = ", 3, "not TOML"),
            ("port = 'x'", 1, "port: expected a number from 1"),
            ("port = [1]", 1, "a value of another kind"),
            ("cache = ['64M', '65M']", 1, "a value of another kind"),
            ("cache = true", 1, "a value of another kind was expected, for example: cache = \"128M\""),
            ("key = '12'", 1, "key: not a public key"),
            ("mount-options = 'sotf'", 1, "mount-options: unknown mount option sotf: did you mean soft?"),
            ("mount-options = 'rw'", 1, "mount-options: option rw"),
        ] {
            let error = FileSettings::parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text}: {error}");
            assert!(error.reason.to_string().starts_with(expected), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = FileSettings::parse(&text);
        }
    }
}
