//! The command line: text in, plain settings out.
//!
//! It opens nothing and asks nobody; what depends on the machine (how much memory, whether root, what its configuration
//! file says) is handed in. The invariant: what comes out of here is complete and was checked, so whatever fails later is
//! not the command line's fault. What is given in several places counts in this order: options, words after `-o`, the
//! file. The manual pages say the same as the texts here; `tests/manual.rs` compares them.

use std::ffi::{OsStr, OsString};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand};
pub use clap_complete::Shell;

use crate::keys::PublicKey;
use crate::settings::{
    self, CacheSettings, MountSettings, NetSettings, PathSpec, RETRY_BY_HAND, ServeSettings, TreeSpec, Unfit,
};
use crate::wire::head::{PageHash, TreeName};

mod file;
mod helper;
mod key;
mod options;

pub use file::{FileError, FileSettings, file_keys};
pub use helper::HelperArgs;
pub use key::KeyArgs;
use options::Draft;
pub use options::{OptionError, ignored_words, mount_words};

/// A read-only filesystem whose chunks travel through a LAN swarm.
///
/// One host serves a directory tree; any number of others mount it and read it as files. Each of them passes on what it
/// reads, so the tree leaves its origin about once, however many read it. Nodes find each other by UDP broadcast: there
/// is nothing to configure.
///
/// Whoever is on the same network can read what is served, unless its nodes have a secret.
#[derive(Parser, Debug)]
#[command(name = "swarmfs", version, max_term_width = 80, disable_help_subcommand = true, subcommand_required = true)]
#[command(after_help = EXAMPLES, arg_required_else_help = false)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// Say more on standard error; twice, each decision and datagram
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,

    /// Read this file [default: /etc/swarmfs/swarmfs.conf, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  swarmfs serve /srv/images           offer a directory under its own name
  swarmfs mount /mnt/images           mount the one tree on the network
  swarmfs mount images:/boards /mnt   mount a directory of a tree by name
  swarmfs cat images:/rack.img | dd of=/dev/mmcblk0 bs=4M iflag=fullblock
  swarmfs status                      what this host's nodes are doing

Exit status: 0 done, 1 wrong usage, 2 the system or network failed. swarmfs(1)
says more.";

#[derive(Subcommand, Debug)]
pub enum Command {
    Serve(ServeArgs),
    Mount(MountArgs),
    Umount(UmountArgs),
    Ls(LsArgs),
    Cat(CatArgs),
    Status(StatusArgs),
    Key(KeyArgs),
    Completions(CompletionsArgs),
    Xcat(XcatArgs),
}

/// Offer a directory tree to the network.
///
/// Stays in the foreground until SIGINT or SIGTERM. Files are read when they are first asked for. Prints the tree's name
/// and the public key that its bytes are signed with.
#[derive(Args, Debug)]
#[command(after_help = "Example: swarmfs serve /srv/images --name boards --interface eth1")]
pub struct ServeArgs {
    /// The directory to offer
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,

    /// What to call the tree [default: the directory's name]
    #[arg(long, value_name = "TREE", value_parser = tree_name)]
    pub name: Option<TreeName>,

    /// Offer a copy of a tree that another host serves, with the same key
    #[arg(long)]
    pub replica: bool,

    /// Log to this file instead of standard error
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,

    #[command(flatten)]
    pub node: NodeArgs,
}

/// Mount a tree read-only.
///
/// Returns when the mount answers, and goes on in the background. Ends with `swarmfs umount DIR`, umount(8),
/// `fusermount3 -u DIR` or SIGTERM.
#[derive(Args, Debug)]
#[command(allow_missing_positional = true)]
#[command(after_help = "\
Words after -o: interface=IF, port=N, broadcast=ADDR, peer=HOST[:PORT],
cache=SIZE, key=KEY, head=HASH, secret_file=FILE, upload=RATE, upload_slots=N
and log_file=FILE as the options above; hard (reads wait for an origin that is
away, the default) or soft with timeo=TIME (they fail); retry=TIME,
delay_connect; xcat or xcat=PATH:PATH (by the legacy protocol alone), noxcat
(leave its requests unanswered); uid=N, gid=N, umask=MASK; allow_other,
allow_suid, allow_dev, noexec, nosymfollow; ro. Words that only mount(8)
needs, such as nofail, are ignored. mount.swarmfs(8) says what each means.

Examples:
  swarmfs mount /mnt
  swarmfs mount images:/boards/a /mnt -o soft,timeo=30s,cache=512M")]
pub struct MountArgs {
    /// TREE, TREE: or TREE:/SUBDIR [default: the one tree on the network]
    #[arg(value_name = "TREE", value_parser = OsStringValueParser::new().try_map(tree_spec))]
    pub tree: Option<TreeSpec>,

    /// The directory to mount on
    #[arg(value_name = "DIR", required = true)]
    pub dir: PathBuf,

    /// Stay in the foreground
    #[arg(short, long)]
    pub foreground: bool,

    /// Mount options, separated by commas; repeatable
    #[arg(short = 'o', long = "options", value_name = "OPTS")]
    pub options: Vec<String>,

    /// Log to this file instead of the system's log
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,

    #[command(flatten)]
    pub pin: PinArgs,

    #[command(flatten)]
    pub node: NodeArgs,
}

/// Unmount a tree.
#[derive(Args, Debug)]
pub struct UmountArgs {
    /// The directory that a tree is mounted on
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// List a directory of a tree, without a mount.
///
/// Asks this host's node for the tree if there is one, else joins the swarm for as long as it takes.
#[derive(Args, Debug)]
#[command(after_help = "Example: swarmfs ls -l images:/boards")]
pub struct LsArgs {
    /// Show mode, links, owner, group, size, time and a link's target
    #[arg(short, long)]
    pub long: bool,

    /// TREE:/PATH, or PATH in the one tree on the network
    #[arg(value_name = "PATH", default_value = "/", value_parser = OsStringValueParser::new().try_map(path_spec))]
    pub path: PathSpec,

    #[command(flatten)]
    pub pin: PinArgs,

    #[command(flatten)]
    pub node: NodeArgs,
}

/// Write files of a tree to standard output, without a mount.
///
/// Asks this host's node for the tree if there is one, else joins the swarm for as long as it takes. Ends with another
/// exit status than 0 if any byte could not be had.
#[derive(Args, Debug)]
#[command(after_help = "Example: swarmfs cat images:/rack.img | sha256sum")]
pub struct CatArgs {
    /// TREE:/PATH, or PATH in the one tree on the network
    #[arg(value_name = "PATH", required = true, value_parser = OsStringValueParser::new().try_map(path_spec))]
    pub paths: Vec<PathSpec>,

    #[command(flatten)]
    pub pin: PinArgs,

    #[command(flatten)]
    pub node: NodeArgs,
}

/// Show what this host's nodes are doing.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// An array of objects, one for each node
    #[arg(long)]
    pub json: bool,
}

/// Get one file, by the legacy protocol where nobody speaks another.
///
/// The swarm is asked first; where nobody answers for the path within 300 ms it is asked for by xcat's protocol, whose
/// bytes are checked by a sum and by no signature. Meanwhile, and as long as --linger says, what was got is passed on. The
/// program does this too where it is called xcat.
#[derive(Args, Debug)]
#[command(after_help = "Example: swarmfs xcat ts7000/flash.dd | dd of=/dev/mmcblk0 bs=4M iflag=fullblock")]
pub struct XcatArgs {
    /// TREE:/PATH, or PATH below the root of whoever serves it
    #[arg(value_name = "PATH", value_parser = OsStringValueParser::new().try_map(path_spec))]
    pub path: PathSpec,

    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Help others for so long after the last byte
    #[arg(long, value_name = "SECONDS", value_parser = brief(settings::quantity::parse_duration))]
    pub linger: Option<Duration>,

    #[command(flatten)]
    pub node: NodeArgs,
}

impl XcatArgs {
    /// Whether a program that was called by this name is the legacy client.
    pub fn is_called(name: &OsStr) -> bool {
        std::path::Path::new(name).file_name() == Some(OsStr::new("xcat"))
    }
}

/// Print what makes a shell complete this program's command line.
///
/// `make install` and the packages put it where the shells look.
#[derive(Args, Debug)]
#[command(after_help = "Example: swarmfs completions bash > /etc/bash_completion.d/swarmfs")]
pub struct CompletionsArgs {
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// What every reader takes.
#[derive(Args, Debug, Clone, Default, PartialEq, Eq)]
pub struct PinArgs {
    /// Take the tree in this state only, whatever it becomes
    #[arg(long, value_name = "HASH")]
    pub head: Option<PageHash>,
}

/// What every node takes.
#[derive(Args, Debug, Clone, Default, PartialEq, Eq)]
#[command(next_help_heading = "Network and memory")]
pub struct NodeArgs {
    /// Use this interface; repeatable [default: each that is up and broadcasts]
    #[arg(long, value_name = "IF", value_parser = brief(settings::parse_interface))]
    pub interface: Vec<String>,

    /// First of the swarm's 16 UDP and TCP ports [default: 19024]
    #[arg(long, value_name = "N", value_parser = brief(settings::parse_port))]
    pub port: Option<u16>,

    /// Send requests to this broadcast address too; repeatable
    #[arg(long, value_name = "ADDR", value_parser = brief(settings::parse_broadcast))]
    pub broadcast: Vec<Ipv4Addr>,

    /// Ask this host, where broadcast does not reach; repeatable
    #[arg(long, value_name = "HOST[:PORT]", value_parser = brief(settings::parse_peer))]
    pub peer: Vec<(String, u16)>,

    /// Memory for chunks, at least 32M [default: an eighth, 64M to 256M]
    #[arg(long, value_name = "SIZE", value_parser = brief(CacheSettings::parse))]
    pub cache: Option<CacheSettings>,

    /// Trust only this public key [default: the first one seen]
    #[arg(long, value_name = "KEY")]
    pub key: Option<PublicKey>,

    /// Send others at most so much a second [default: what links carry]
    #[arg(long, value_name = "RATE", value_parser = brief(settings::quantity::parse_rate))]
    pub upload: Option<u64>,

    /// Send to at most so many others at once [default: as is fastest]
    #[arg(long, value_name = "N", value_parser = brief(settings::parse_slots))]
    pub upload_slots: Option<u16>,

    /// Leave requests of the legacy protocol (xcat, port 19023) unanswered
    #[arg(long)]
    pub no_xcat: bool,

    /// Join only those with this file's secret, and encrypt what is sent
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
}

impl NodeArgs {
    /// These, and what they leave open from below: a list that is given replaces the other.
    fn over(self, below: NodeArgs) -> NodeArgs {
        fn list<T>(above: Vec<T>, below: Vec<T>) -> Vec<T> {
            if above.is_empty() { below } else { above }
        }
        NodeArgs {
            interface: list(self.interface, below.interface),
            port: self.port.or(below.port),
            broadcast: list(self.broadcast, below.broadcast),
            peer: list(self.peer, below.peer),
            cache: self.cache.or(below.cache),
            key: self.key.or(below.key),
            upload: self.upload.or(below.upload),
            upload_slots: self.upload_slots.or(below.upload_slots),
            no_xcat: self.no_xcat || below.no_xcat,
            secret_file: self.secret_file.or(below.secret_file),
        }
    }

    /// Whether no option says where on the network to look.
    pub fn says_nowhere(&self) -> bool {
        let elsewhere = NodeArgs {
            cache: None,
            key: None,
            upload: None,
            upload_slots: None,
            secret_file: None,
            no_xcat: false,
            ..self.clone()
        };
        elsewhere == NodeArgs::default()
    }

    /// Fills in what the file says.
    pub fn with(self, file: &FileSettings) -> NodeArgs {
        self.over(file.node.clone())
    }

    pub fn settings(self, ram_bytes: u64) -> (NetSettings, CacheSettings) {
        let cache = self.cache.unwrap_or_else(|| CacheSettings::for_memory(ram_bytes));
        (self.net(), cache)
    }

    fn net(self) -> NetSettings {
        NetSettings {
            interfaces: self.interface,
            port: self.port,
            broadcast: self.broadcast,
            peers: self.peer,
            key: self.key,
            head: None,
            upload: self.upload,
            upload_slots: self.upload_slots,
            no_xcat: self.no_xcat,
            secret_file: self.secret_file,
            ..NetSettings::default()
        }
    }
}

impl ServeArgs {
    pub fn settings(self, file: &FileSettings, ram_bytes: u64) -> (ServeSettings, NetSettings, CacheSettings) {
        let (net, cache) = self.node.with(file).settings(ram_bytes);
        (ServeSettings { dir: self.dir, name: self.name, replica: self.replica }, net, cache)
    }
}

/// Everything that a mount needs to know.
#[derive(Debug, PartialEq, Eq)]
pub struct MountRequest {
    pub mount: MountSettings,
    pub net: NetSettings,
    pub cache: CacheSettings,
    /// None: standard error, and the system's log in the background.
    pub log_file: Option<PathBuf>,
}

impl MountArgs {
    pub fn settings(self, file: &FileSettings, ram_bytes: u64, root: bool) -> Result<MountRequest, OptionError> {
        let MountArgs { tree, dir, foreground, options, log_file, pin, node } = self;
        let words = Words { options: &options, sloppy: false, retry: RETRY_BY_HAND };
        let mut request = words.settings(tree, dir, node, file, ram_bytes, root)?;
        request.mount.foreground = foreground;
        request.net.head = pin.head.or(request.net.head);
        request.log_file = log_file.or(request.log_file);
        Ok(request)
    }
}

/// Words after `-o`, and what they mean where they say nothing.
struct Words<'a> {
    options: &'a [String],
    sloppy: bool,
    retry: Duration,
}

impl Words<'_> {
    fn settings(
        self,
        tree: Option<TreeSpec>,
        mountpoint: PathBuf,
        above: NodeArgs,
        file: &FileSettings,
        ram_bytes: u64,
        root: bool,
    ) -> Result<MountRequest, OptionError> {
        let mut draft = Draft::new(root, self.sloppy);
        draft.take(&file.options)?;
        // Interfaces and peers of a nearer place replace those of a farther one; within a place they add up.
        let below = std::mem::take(&mut draft.node).over(file.node.clone());
        for words in self.options {
            draft.take(words)?;
        }
        let patience = draft.patience()?;
        if draft.delay_connect && tree.is_none() {
            return Err(OptionError::DelayWithoutTree);
        }
        let (mut net, cache) = above.over(std::mem::take(&mut draft.node)).over(below).settings(ram_bytes);
        net.head = draft.head;
        draft.legacy_fits(&net)?;
        let (source, tree, subdir) = match tree {
            Some(TreeSpec { text, tree, subdir }) => (Some(text), Some(tree), subdir),
            None => (None, None, PathBuf::new()),
        };
        let mount = MountSettings {
            source,
            tree,
            subdir,
            mountpoint,
            allow_other: draft.allow_other,
            suid: draft.suid,
            dev: draft.dev,
            noexec: draft.noexec,
            nosymfollow: draft.nosymfollow,
            shown: draft.shown,
            patience,
            retry: draft.retry.unwrap_or(self.retry),
            delay_connect: draft.delay_connect,
            legacy: draft.legacy,
            foreground: false,
        };
        Ok(MountRequest { mount, net, cache, log_file: draft.log_file.or_else(|| file.log_file.clone()) })
    }
}

/// Whatever `parse` takes; clap has named the value and what it was for when it shows the refusal.
fn brief<T>(parse: fn(&str) -> Result<T, Unfit>) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: Clone + Send + Sync + 'static,
{
    move |text: &str| parse(text).map_err(|unfit| unfit.expectation())
}

fn tree_name(text: &str) -> Result<TreeName, String> {
    text.parse().map_err(|_| "expected 1 to 255 bytes without '/', ':' and control characters".to_owned())
}

fn tree_spec(text: OsString) -> Result<TreeSpec, String> {
    TreeSpec::parse(OsStr::new(&text)).map_err(|unfit| unfit.expectation())
}

fn path_spec(text: OsString) -> Result<PathSpec, String> {
    PathSpec::parse(OsStr::new(&text)).map_err(|unfit| unfit.expectation())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};
    use proptest::prelude::*;

    use super::*;
    use crate::keys::OriginKey;
    use crate::settings::Patience;

    const RAM: u64 = 1 << 30;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command)
    }

    fn mount(line: &str) -> (MountSettings, NetSettings, CacheSettings) {
        mount_with(line, &FileSettings::default())
    }

    fn mount_with(line: &str, file: &FileSettings) -> (MountSettings, NetSettings, CacheSettings) {
        let Ok(Command::Mount(args)) = parse(line) else { panic!("{line}") };
        let MountRequest { mount, net, cache, .. } = args.settings(file, RAM, false).expect(line);
        (mount, net, cache)
    }

    fn refused(line: &str) -> String {
        match parse(line) {
            Ok(Command::Mount(args)) => {
                args.settings(&FileSettings::default(), RAM, false).expect_err(line).to_string()
            }
            Ok(_) => panic!("{line} was taken"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_help_fits_80_columns() {
        let mut command = Cli::command();
        command.build();
        let mut helps = vec![command.render_help(), command.render_long_help()];
        for sub in command.get_subcommands_mut() {
            helps.extend([sub.render_help(), sub.render_long_help()]);
        }
        for help in helps {
            for line in help.to_string().lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
        }
    }

    #[test]
    fn a_single_argument_of_mount_is_the_mountpoint() {
        let (settings, net, cache) = mount("swarmfs mount /mnt");
        assert_eq!((settings.source, settings.tree), (None, None));
        assert_eq!(settings.mountpoint, PathBuf::from("/mnt"));
        assert!(!settings.foreground && !settings.allow_other && !settings.suid && !settings.dev);
        assert_eq!(settings.patience, Patience::Hard);
        assert_eq!(net, NetSettings::default());
        assert_eq!(cache.budget_bytes, 128 << 20);
    }

    #[test]
    fn a_mount_names_its_tree_and_keeps_the_source_as_given() {
        for (spec, subdir) in [("images", ""), ("images:", ""), ("images:/a/b", "a/b")] {
            let (settings, ..) = mount(&format!("swarmfs mount {spec} /mnt -f"));
            assert_eq!(settings.source.as_deref(), Some(OsStr::new(spec)));
            assert_eq!(settings.tree.as_ref().map(TreeName::as_str), Some("images"));
            assert_eq!(settings.subdir, PathBuf::from(subdir));
            assert!(settings.foreground);
        }
    }

    #[test]
    fn options_and_words_say_the_same() {
        let key = OriginKey::from_seed(&[1; 32]).public();
        let head = PageHash([0xa5; 32]);
        let options = mount(&format!(
            "swarmfs mount /mnt --interface eth0 --interface eth1 --port 20000 --broadcast 10.0.0.255 \
             --peer a --peer b:7 --cache 64M --key {key} --head {head}"
        ));
        let words = mount(&format!(
            "swarmfs mount /mnt -o interface=eth0,interface=eth1,port=20000,broadcast=10.0.0.255 \
             -o peer=a,peer=b:7,cache=64M,key={key},head={head}"
        ));
        assert_eq!(options, words);
        assert_eq!(words.1.peers, [("a".to_owned(), 19024), ("b".to_owned(), 7)]);
        assert_eq!(words.2.budget_bytes, 64 << 20);
        assert_eq!((words.1.key, words.1.head), (Some(key), Some(head)));
    }

    #[test]
    fn words_of_a_mount_are_understood() {
        let (settings, ..) =
            mount("swarmfs mount /mnt -o ro,soft,timeo=2min,suid,dev,noexec,allow_other,nofail,x-foo=1");
        assert_eq!((settings.retry, settings.delay_connect), (RETRY_BY_HAND, false));
        assert_eq!(settings.patience, Patience::Soft(Duration::from_secs(120)));
        assert!(settings.suid && settings.dev && settings.noexec && settings.allow_other);
        let (settings, ..) = mount("swarmfs mount /mnt -o soft,suid,dev,hard,nosuid,nodev,exec");
        assert_eq!(settings.patience, Patience::Hard, "the later word counts");
        assert!(!settings.suid && !settings.dev && !settings.noexec);
        let Ok(Command::Mount(args)) = parse("swarmfs mount /mnt") else { panic!() };
        assert!(
            args.settings(&FileSettings::default(), RAM, true).unwrap().mount.allow_other,
            "as root a mount is for the host"
        );
    }

    #[test]
    fn options_count_over_words_and_words_over_the_file() {
        let file = FileSettings::parse(
            "port = 20000\ninterface = [\"eth8\", \"eth9\"]\ncache = \"40M\"\n\
             mount-options = \"soft,timeo=9s,peer=filed,cache=50M\"\n",
        )
        .unwrap();
        let (settings, net, cache) = mount_with("swarmfs mount /mnt -o hard,port=20001 --interface eth0", &file);
        assert_eq!(settings.patience, Patience::Hard);
        assert_eq!((net.port, &net.interfaces[..]), (Some(20001), &["eth0".to_owned()][..]));
        assert_eq!(net.peers, [("filed".to_owned(), 19024)]);
        assert_eq!(cache.budget_bytes, 50 << 20, "words in the file over the file's own keys");
        let (_, net, cache) = mount_with("swarmfs mount /mnt -o cache=60M,peer=a --cache 70M", &file);
        assert_eq!((net.interfaces.len(), cache.budget_bytes), (2, 70 << 20));
        assert_eq!(net.peers, [("a".to_owned(), 19024)]);
    }

    #[test]
    fn refused_words_are_named_with_what_to_write_instead() {
        for (words, expected) in [
            ("rw", "option rw: a swarmfs mount is read-only"),
            ("tmeo=5", "unknown mount option tmeo: did you mean timeo?"),
            ("alow_other", "unknown mount option alow_other: did you mean allow_other?"),
            ("frobnicate", "unknown mount option frobnicate: mount.swarmfs(8) lists them"),
            ("soft,timeo", "option timeo needs a value, for example timeo=30s"),
            ("soft=1", "option soft takes no value, but has \"1\""),
            ("soft,timeo=x", "option timeo=x: expected seconds"),
            ("timeo=5", "option timeo: only a soft mount gives up: add soft"),
            ("cache=1M", "option cache=1M: expected at least 32M"),
            ("key=12", "option key=12: not a public key"),
            ("head=12", "option head=12: expected the 64 hex digits"),
            ("port=0", "option port=0: expected a number from 1"),
            ("delay_connect", "option delay_connect needs a tree's name"),
            ("uid=root", "option uid=root: expected a number"),
            ("remount", "option remount: a swarmfs mount cannot be changed"),
        ] {
            let message = refused(&format!("swarmfs mount /mnt -o {words}"));
            assert!(message.starts_with(expected), "{words}: {message}");
        }
    }

    #[test]
    fn refused_arguments_are_named_with_what_was_expected() {
        for (line, expected) in [
            ("swarmfs mount", "<DIR>"),
            ("swarmfs mount a b c", "unexpected argument 'c'"),
            ("swarmfs mount a/b /mnt", "expected TREE, TREE: or TREE:/SUBDIR"),
            ("swarmfs mount /mnt --cache 5X", "'5X' for '--cache <SIZE>': expected at least 32M"),
            ("swarmfs mount /mnt --cach 64M", "'--cache'"),
            ("swarmfs serve", "<DIR>"),
            ("swarmfs serve / --name a/b", "expected 1 to 255 bytes without '/'"),
            ("swarmfs cat", "<PATH>"),
            ("swarmfs cat a/../b", "without '..'"),
            ("swarmfs ls a b", "unexpected argument 'b'"),
            ("swarmfs umount", "<DIR>"),
            ("swarmfs statis", "'status'"),
            ("swarmfs status --key 1", "--key"),
            ("swarmfs key --export a --import b", "cannot be used with"),
            ("swarmfs key --force", "--export <FILE>|--import <FILE>"),
        ] {
            let message = refused(line);
            assert!(message.contains(expected), "{line}: {message}");
        }
    }

    #[test]
    fn the_other_commands_are_understood() {
        let Ok(Command::Serve(args)) = parse("swarmfs serve /srv/images --name boards --cache 1G") else { panic!() };
        let (serve, _, cache) = args.settings(&FileSettings::default(), RAM);
        assert_eq!(serve.dir, PathBuf::from("/srv/images"));
        assert_eq!(serve.name.as_ref().map(TreeName::as_str), Some("boards"));
        assert_eq!(cache.budget_bytes, 1 << 30);
        let Ok(Command::Ls(args)) = parse("swarmfs ls") else { panic!() };
        assert!(!args.long && args.path.tree.is_none() && args.path.path == PathBuf::new());
        let Ok(Command::Cat(args)) = parse("swarmfs cat images:/a b --peer origin") else { panic!() };
        assert_eq!(args.paths.len(), 2);
        assert!(matches!(parse("swarmfs umount /mnt"), Ok(Command::Umount(_))));
        let Ok(Command::Key(args)) = parse("swarmfs key --import - --force") else { panic!() };
        assert!(args.force && args.import == Some(PathBuf::from("-")));
        assert!(matches!(parse("swarmfs status --json"), Ok(Command::Status(StatusArgs { json: true }))));
        assert_eq!(Cli::try_parse_from(["swarmfs", "status", "-vv"]).unwrap().verbose, 2);
        assert_eq!(parse("swarmfs --version").unwrap_err().kind(), ErrorKind::DisplayVersion);
    }

    proptest! {
        #[test]
        fn no_words_panic(words in ".*") {
            let mut draft = Draft::default();
            let _ = draft.take(&words);
        }

        #[test]
        fn a_word_with_one_letter_missing_is_recognised(at in 0usize..11) {
            let mut word = "allow_other".to_owned();
            word.remove(at);
            let message = Draft::default().take(&word).unwrap_err().to_string();
            prop_assert!(message.contains("did you mean allow_other?"), "{}", message);
        }
    }
}
