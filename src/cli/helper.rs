//! The same program as mount(8) and systemd call it: `mount.swarmfs SPEC DIR [-sfnv] [-N NS] [-o OPTS] [-t TYPE]`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgAction, Parser};

use super::{FileSettings, MountRequest, NodeArgs, OptionError, Words};
use crate::settings::{RETRY_AT_BOOT, TreeSpec};

/// What the helper's names begin with: `mount.swarmfs`, and `mount.fuse.swarmfs` for `mount -t fuse.swarmfs`.
const PREFIX: &str = "mount.";

/// Mount a tree of a swarm read-only, for mount(8) and systemd.
///
/// mount(8) calls it for `mount -t swarmfs TREE: DIR` and for lines of fstab(5). By hand, `swarmfs mount` says the same
/// with less ceremony. mount.swarmfs(8) lists the options.
#[derive(Parser, Debug)]
#[command(name = "mount.swarmfs", version, max_term_width = 80)]
#[command(after_help = "\
Exit status: 0 mounted, 1 wrong usage, 2 the system failed, 4 a bug, 8
interrupted, 16 the table of mounts cannot be read, 32 the mount failed.")]
pub struct HelperArgs {
    /// TREE: or TREE:/SUBDIR
    #[arg(value_name = "SPEC", value_parser = OsStringValueParser::new().try_map(spec))]
    pub spec: TreeSpec,

    /// The directory to mount on, or /dev/fd/N for a connection to the kernel that was opened already
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,

    /// Check the words and mount nothing
    #[arg(short)]
    pub fake: bool,

    /// Pass over unknown mount options
    #[arg(short)]
    pub sloppy: bool,

    /// Taken and ignored: there is no mtab to write
    #[arg(short)]
    pub no_mtab: bool,

    /// Say more on standard error; twice, each decision and datagram
    #[arg(short, action = ArgAction::Count)]
    pub verbose: u8,

    /// Mount in this mount namespace: a process number or a file
    #[arg(short = 'N', value_name = "NS", value_parser = OsStringValueParser::new().map(namespace))]
    pub namespace: Option<PathBuf>,

    /// Mount options, separated by commas; repeatable
    #[arg(short = 'o', value_name = "OPTS")]
    pub options: Vec<String>,

    /// Taken and ignored: there is one type
    #[arg(short = 't', value_name = "TYPE")]
    pub kind: Option<String>,
}

impl HelperArgs {
    /// Whether a program that was called by this name is the helper.
    pub fn is_called(name: &OsStr) -> bool {
        let base = Path::new(name).file_name().and_then(OsStr::to_str);
        base.is_some_and(|base| base.starts_with(PREFIX))
    }

    pub fn settings(self, file: &FileSettings, ram_bytes: u64, root: bool) -> Result<MountRequest, OptionError> {
        let options: Vec<String> = self.options.iter().map(|words| without_default(words).to_owned()).collect();
        let words = Words { options: &options, sloppy: self.sloppy, retry: RETRY_AT_BOOT };
        words.settings(Some(self.spec), self.dir, NodeArgs::default(), file, ram_bytes, root)
    }
}

/// mount(8) says `rw` before all other words where nobody said `ro`; nobody can tell that from one that somebody wrote.
fn without_default(words: &str) -> &str {
    match words.strip_prefix("rw") {
        Some("") => "",
        Some(rest) => rest.strip_prefix(',').unwrap_or(words),
        None => words,
    }
}

fn spec(text: OsString) -> Result<TreeSpec, String> {
    TreeSpec::parse(&text).map_err(|unfit| {
        let name = Path::new(&text).file_name().filter(|_| text.as_encoded_bytes().starts_with(b"/"));
        match name {
            // A bare word that exists as a path below the working directory comes here as that path.
            Some(name) => format!("mount(8) makes a path of a word that exists as one; write {}:", name.display()),
            None => unfit.expectation(),
        }
    })
}

fn namespace(text: OsString) -> PathBuf {
    match text.to_str().and_then(|text| text.parse::<u32>().ok()) {
        Some(pid) => PathBuf::from(format!("/proc/{pid}/ns/mnt")),
        None => PathBuf::from(text),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::settings::MountSettings;

    fn parse(line: &str) -> Result<HelperArgs, clap::Error> {
        HelperArgs::try_parse_from(line.split_whitespace())
    }

    fn settings(line: &str) -> Result<MountSettings, OptionError> {
        let args = parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        args.settings(&FileSettings::default(), 1 << 30, true).map(|request| request.mount)
    }

    #[test]
    fn the_definition_holds_together_and_its_help_fits_80_columns() {
        let mut command = HelperArgs::command();
        command.build();
        command.clone().debug_assert();
        for help in [command.render_help(), command.render_long_help()] {
            assert!(help.to_string().lines().all(|line| line.chars().count() <= 80), "{help}");
        }
    }

    #[test]
    fn the_helper_is_known_by_its_name() {
        for (name, helper) in [
            ("/sbin/mount.swarmfs", true),
            ("mount.fuse.swarmfs", true),
            ("swarmfs", false),
            ("/mount.d/swarmfs", false),
        ] {
            assert_eq!(HelperArgs::is_called(OsStr::new(name)), helper, "{name}");
        }
    }

    #[test]
    fn what_mount_8_says_is_understood() {
        let args = parse("mount.swarmfs images: /mnt -s -f -n -v -N 7 -o rw -t fuse.swarmfs").unwrap();
        assert!(args.fake && args.sloppy && args.no_mtab && args.verbose == 1);
        assert_eq!(args.namespace.as_deref(), Some(Path::new("/proc/7/ns/mnt")));
        let mount = settings("mount.swarmfs images:/a /mnt -o rw,noexec,nosuid,nodev,nofail,_netdev,user").unwrap();
        assert!(mount.noexec && !mount.suid && !mount.dev);
        assert_eq!((mount.source.as_deref(), mount.retry), (Some(OsStr::new("images:/a")), RETRY_AT_BOOT));
        assert_eq!(settings("mount.swarmfs images: /mnt -o rw"), settings("mount.swarmfs images: /mnt"));
        assert_eq!(settings("mount.swarmfs images: /mnt -o ro,rw"), Err(OptionError::ReadWrite));
        assert_eq!(settings("mount.swarmfs images: /mnt -o rw,remount"), Err(OptionError::Remount));
        assert!(settings("mount.swarmfs images: /mnt -o rw,bogus").is_err());
        assert!(settings("mount.swarmfs images: /mnt -s -o rw,bogus").is_ok());
    }

    #[test]
    fn a_word_that_became_a_path_is_explained() {
        let message = parse("mount.swarmfs /srv/images /mnt").unwrap_err().to_string();
        assert!(message.contains("write images:"), "{message}");
    }
}
