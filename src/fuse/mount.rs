//! Mounting by mount(2) as root, and through fusermount3 otherwise.
//!
//! fuser's own mounting is never used: its teardown unmounts whatever lies on the path. Nothing here is mounted over
//! what is in use, and nothing is unmounted but a dead mount of the same source. The mount point is opened once with
//! O_PATH; every check is of that open file, not of a name that may change meanwhile.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType};
use thiserror::Error;

use super::handed;
use super::mountinfo::{self, Device};
use crate::settings::Shown;
use crate::state::Lock;

/// The type that mountinfo shows. Nothing of another type is ever unmounted.
pub const KIND: &str = "fuse.swarmfs";
const SUBTYPE: &str = "swarmfs";
const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";

/// What to mount where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The tree as it was asked for, to the letter: `mount -a` compares it with fstab.
    pub source: OsString,
    pub point: PathBuf,
    /// Honour set-user-id bits and file capabilities. Off: files of the tree must not make anybody root.
    pub suid: bool,
    /// Honour device files. Off for the same reason.
    pub dev: bool,
    /// Programs can be started from the mount.
    pub exec: bool,
    /// Other users may use the mount of a user who is not root; fuse.conf(5) must let users say so.
    pub allow_other: bool,
    /// Symbolic links are followed.
    pub symfollow: bool,
    /// Whose files they seem to be.
    pub shown: Shown,
}

impl Settings {
    pub fn new(source: impl Into<OsString>, point: impl Into<PathBuf>) -> Settings {
        Settings {
            source: source.into(),
            point: point.into(),
            suid: false,
            dev: false,
            exec: true,
            allow_other: false,
            symfollow: true,
            shown: Shown::default(),
        }
    }
}

/// A mount whose INIT is still to be answered.
#[derive(Debug)]
pub struct Attached {
    /// The connection to the kernel.
    pub connection: OwnedFd,
    pub point: PathBuf,
    /// Unknown of a mount that was handed over and is in no namespace of ours.
    pub device: Option<Device>,
    /// Whether somebody else made the mount, whose business its end is.
    pub handed: bool,
}

#[derive(Debug, Error)]
pub enum MountError {
    #[error("mount point {0:?} does not exist; create it with `mkdir -p`")]
    Missing(PathBuf),
    #[error("mount point {0:?} is not a directory; name an empty directory")]
    NotADirectory(PathBuf),
    #[error("mount point {0:?} cannot be reached: {1}")]
    Unreachable(PathBuf, io::Error),
    #[error("{point:?} already shows the tree {source_name:?}; `swarmfs umount` it first")]
    AlreadyMounted { point: PathBuf, source_name: OsString },
    #[error(
        "{point:?} is busy: a filesystem of type {kind:?} ({source_name:?}) is mounted there; unmount it or name another directory"
    )]
    Busy { point: PathBuf, kind: OsString, source_name: OsString },
    #[error("{point:?} has a dead mount of {source_name:?}, whose process is gone; clear it with `swarmfs umount`")]
    Dead { point: PathBuf, source_name: OsString },
    #[error("another swarmfs is mounting on {0:?} at this moment")]
    Racing(PathBuf),
    #[error(
        "there is no /dev/fuse; load the kernel's module with `modprobe fuse` (in a container, pass `--device /dev/fuse`)"
    )]
    NoDevice,
    #[error("/dev/fuse may be opened by root only; run as root, or let users mount with `chmod 666 /dev/fuse`")]
    DeviceClosed,
    #[error("this kernel has no FUSE; load its module with `modprobe fuse`")]
    NoFuse,
    #[error(
        "fusermount3 is not installed, and only root can mount without it; install the package `fuse3`, or run as root"
    )]
    NoHelper,
    #[error("descriptor {0} is no open /dev/fuse: {1}; name a directory, or hand over the connection of a mount")]
    NotHanded(i32, io::Error),
    #[error("cannot read the table of mounts, /proc/self/mountinfo: {0}")]
    NoTable(io::Error),
    #[error("mounting on {0:?} is not permitted; run as root, and in a container with the capability SYS_ADMIN")]
    NotPermitted(PathBuf),
    #[error("fusermount3 refused: {0}")]
    Helper(String),
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
}

#[derive(Debug, Error)]
pub enum UnmountError {
    #[error("nothing is mounted on {0:?}; `findmnt -t fuse.swarmfs` lists the mounts of swarmfs")]
    NotMounted(PathBuf),
    #[error("what is mounted on {point:?} is of type {kind:?}, not swarmfs; use umount(8)")]
    NotOurs { point: PathBuf, kind: OsString },
    #[error("{0:?} is in use; `fuser -vm` names the processes, and `umount -l` detaches it from under them")]
    Busy(PathBuf),
    #[error("unmounting {0:?} is not permitted; run as root, or as the user that mounted it")]
    NotPermitted(PathBuf),
    #[error(
        "fusermount3 is not installed, and only root can unmount without it; install the package `fuse3`, or run as root"
    )]
    NoHelper,
    #[error("fusermount3 refused: {0}")]
    Helper(String),
    #[error("cannot unmount {0:?}: {1}")]
    System(PathBuf, io::Error),
}

/// Mounts. A dead mount of the same source on the same point, left by a process that was killed, is replaced.
///
/// The mount point must not be touched until the session has answered INIT: it would wait for that.
pub fn attach(settings: &Settings) -> Result<Attached, MountError> {
    if let Some(number) = handed::number(&settings.point) {
        return handed::take(number);
    }
    let point = open_point(&settings.point)?;
    let path = mountinfo::path_of(&point).map_err(|error| match Path::new("/proc/self/fd").exists() {
        true => MountError::Unreachable(settings.point.clone(), error),
        false => MountError::NoTable(error),
    })?;
    let _lock = lock(&path)?;
    let cleared = clear_dead(settings, &point, &path)?;
    // What was opened is the dead mount itself if there was one: the point below it is opened anew.
    let point = if cleared { open_point(&path)? } else { point };
    let connection = if rustix::process::geteuid().is_root() {
        mount_as_root(settings, &point, &path)?
    } else {
        mount_by_helper(settings, &path)?
    };
    let mounts = mountinfo::mounts().map_err(MountError::NoTable)?;
    let device = match mountinfo::topmost(&mounts, &path) {
        Some(mount) if mount.kind == KIND => mount.device,
        // Somebody unmounted it, or mounted something else on it, within these microseconds.
        _ => return Err(MountError::Racing(path)),
    };
    Ok(Attached { connection, point: path, device: Some(device), handed: false })
}

/// Ends the mount on `point`, whoever serves it, if it is one of ours. Without `lazy` a mount in use stays.
pub fn unmount(point: &Path, lazy: bool) -> Result<(), UnmountError> {
    let path = open_path(point).and_then(|file| mountinfo::path_of(&file));
    // A dead mount may refuse to be opened; its name is good enough then.
    let path = match path.or_else(|_| std::path::absolute(point)) {
        Ok(path) => path,
        Err(error) => return Err(UnmountError::System(point.to_owned(), error)),
    };
    let mounts = mountinfo::mounts().map_err(|error| UnmountError::System(path.clone(), error))?;
    match mountinfo::topmost(&mounts, &path) {
        None => Err(UnmountError::NotMounted(path)),
        Some(mount) if mount.kind != KIND => Err(UnmountError::NotOurs { point: path, kind: mount.kind.clone() }),
        Some(_) if rustix::process::geteuid().is_root() => unmount_as_root(path, lazy),
        Some(_) => unmount_by_helper(path, lazy),
    }
}

/// Not by the standard library's options: with musl they take O_PATH for a part of the access mode and leave it out, and
/// what is opened then is the dead mount itself.
fn open_path(path: &Path) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

fn open_point(path: &Path) -> Result<File, MountError> {
    open_path(path).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::NOENT) => MountError::Missing(path.to_owned()),
        Some(Errno::NOTDIR) => MountError::NotADirectory(path.to_owned()),
        _ => MountError::Unreachable(path.to_owned(), error),
    })
}

/// Refuses a mount point in use; says whether a dead mount was taken away. Asked once, never in a loop: a point with
/// several dead mounts is somebody's accident to look at.
fn clear_dead(settings: &Settings, point: &File, path: &Path) -> Result<bool, MountError> {
    let system = |what| move |error| MountError::System(what, error);
    let mounts = mountinfo::mounts().map_err(MountError::NoTable)?;
    let Some(mount) = mountinfo::topmost(&mounts, path) else { return Ok(false) };
    // An automounter's trigger is there to be mounted on.
    if mount.kind == "autofs" {
        return Ok(false);
    }
    if mount.kind != KIND || mountinfo::mount_id(point).map_err(system("read /proc/self/fdinfo"))? != mount.id {
        let (kind, source_name) = (mount.kind.clone(), mount.source.clone());
        return Err(MountError::Busy { point: path.to_owned(), kind, source_name });
    }
    let (point_path, source_name) = (path.to_owned(), mount.source.clone());
    // The one question that a dead mount answers with ENOTCONN; attributes may come from the kernel's memory.
    if rustix::fs::fstatfs(point).err() != Some(Errno::NOTCONN) {
        return Err(MountError::AlreadyMounted { point: point_path, source_name });
    }
    if mount.source != settings.source {
        return Err(MountError::Dead { point: point_path, source_name });
    }
    let removed = if rustix::process::geteuid().is_root() {
        unmount_as_root(point_path.clone(), true)
    } else {
        unmount_by_helper(point_path.clone(), true)
    };
    match removed {
        Ok(()) => {
            tracing::info!(point = %path.display(), "replaced a dead mount whose process is gone");
            Ok(true)
        }
        Err(error) => {
            tracing::debug!(%error, "a dead mount stays");
            Err(MountError::Dead { point: point_path, source_name })
        }
    }
}

/// Two mounts at once on one point would stack. Held while one is being made; without a runtime directory there is no
/// lock, and the second one finds the first in mountinfo unless both came within the same millisecond.
fn lock(path: &Path) -> Result<Option<Lock>, MountError> {
    let Some(dir) = runtime_dir() else { return Ok(None) };
    let name = blake3::hash(path.as_os_str().as_bytes()).to_hex();
    let locked =
        std::fs::create_dir_all(&dir).and_then(|()| Lock::take(&dir.join(format!("{}.mounting", &name[..16]))));
    match locked {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => Err(MountError::Racing(path.to_owned())),
        Err(error) => {
            tracing::debug!(dir = %dir.display(), %error, "no lock against a second mount at the same moment");
            Ok(None)
        }
    }
}

fn runtime_dir() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("RUNTIME_DIRECTORY") {
        return Some(PathBuf::from(dir));
    }
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/run/swarmfs"));
    }
    std::env::var_os("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join("swarmfs"))
}

fn mount_as_root(settings: &Settings, point: &File, path: &Path) -> Result<OwnedFd, MountError> {
    let connection =
        File::options().read(true).write(true).open(DEVICE).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NXIO) => MountError::NoDevice,
            Some(Errno::NODEV) => MountError::NoFuse,
            Some(Errno::PERM | Errno::ACCESS) => MountError::NotPermitted(path.to_owned()),
            _ => MountError::System("open /dev/fuse", error),
        })?;
    let data = CString::new(format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,allow_other",
        connection.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw()
    ))
    .expect("numbers and words hold no NUL");
    let mut flags = MountFlags::RDONLY;
    flags.set(MountFlags::NOSUID, !settings.suid);
    flags.set(MountFlags::NODEV, !settings.dev);
    flags.set(MountFlags::NOEXEC, !settings.exec);
    flags.set(MountFlags::NOSYMFOLLOW, !settings.symfollow);
    // By the open file: nobody can put a link in the path's place meanwhile.
    let target = format!("/proc/self/fd/{}", point.as_raw_fd());
    rustix::mount::mount(settings.source.as_os_str(), target, KIND, flags, &*data).map_err(|errno| match errno {
        Errno::PERM | Errno::ACCESS => MountError::NotPermitted(path.to_owned()),
        Errno::NODEV => MountError::NoFuse,
        _ => MountError::System("mount", errno.into()),
    })?;
    Ok(connection.into())
}

/// fusermount3 opens /dev/fuse with root's rights, mounts, and sends the open file through a socket, whose number it
/// finds in `_FUSE_COMMFD`. Here that socket is its standard input.
fn mount_by_helper(settings: &Settings, path: &Path) -> Result<OwnedFd, MountError> {
    let system = |what| move |error: Errno| MountError::System(what, error.into());
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(system("make a socket pair"))?;
    let mut child = helper()
        .ok_or(MountError::NoHelper)?
        .arg("-o")
        .arg(helper_options(settings))
        .arg("--")
        .arg(path)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| MountError::System("start fusermount3", error))?;
    let connection = receive(&ours).map_err(system("hear from fusermount3"));
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        // What it says beyond this is no use in an error message.
        let _ = stderr.take(4096).read_to_string(&mut said);
    }
    let status = child.wait().map_err(|error| MountError::System("wait for fusermount3", error))?;
    match connection? {
        Some(connection) if status.success() => Ok(connection),
        _ if !Path::new(DEVICE).exists() => Err(MountError::NoDevice),
        _ if said.contains("failed to open /dev/fuse") => Err(MountError::DeviceClosed),
        _ => Err(MountError::Helper(helper_message(&said))),
    }
}

/// Looked for here: execvp(3) says "not permitted" of what is nowhere, if one directory of the path is closed.
fn helper() -> Option<Command> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/bin", "/bin", "/usr/local/bin"].map(PathBuf::from))
        .map(|dir| dir.join(HELPER))
        .find(|file| file.is_file());
    found.map(Command::new)
}

fn helper_options(settings: &Settings) -> OsString {
    let mut options = OsString::from("ro,nosuid,nodev,default_permissions,");
    let words =
        [("noexec,", !settings.exec), ("nosymfollow,", !settings.symfollow), ("allow_other,", settings.allow_other)];
    for (word, _) in words.into_iter().filter(|(_, wanted)| *wanted) {
        options.push(word);
    }
    options.push(format!("subtype={SUBTYPE},fsname="));
    // A comma or backslash in a value is written with a backslash before it.
    for part in settings.source.as_bytes().split_inclusive(|byte| matches!(byte, b',' | b'\\')) {
        let (last, before) = part.split_last().expect("split_inclusive gives no empty part");
        options.push(std::ffi::OsStr::from_bytes(before));
        if matches!(last, b',' | b'\\') {
            options.push("\\");
        }
        options.push(std::ffi::OsStr::from_bytes(&[*last]));
    }
    options
}

/// The connection, or nothing if the helper ended without sending it.
fn receive(socket: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    }))
}

fn helper_message(said: &str) -> String {
    // It names itself by the path that it was started by.
    let message = said.trim().rsplit("fusermount3: ").next().unwrap_or_default();
    if message.is_empty() { "it gave no reason".to_owned() } else { message.to_owned() }
}

fn unmount_as_root(path: PathBuf, lazy: bool) -> Result<(), UnmountError> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    rustix::mount::unmount(&path, flags | UnmountFlags::NOFOLLOW).map_err(|errno| match errno {
        Errno::BUSY => UnmountError::Busy(path),
        Errno::INVAL => UnmountError::NotMounted(path),
        Errno::PERM => UnmountError::NotPermitted(path),
        _ => UnmountError::System(path, errno.into()),
    })
}

fn unmount_by_helper(path: PathBuf, lazy: bool) -> Result<(), UnmountError> {
    let output = helper()
        .ok_or(UnmountError::NoHelper)?
        .arg(if lazy { "-uz" } else { "-u" })
        .arg("--")
        .arg(&path)
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| UnmountError::System(path.clone(), error))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(())
    } else if said.contains("busy") {
        Err(UnmountError::Busy(path))
    } else if said.contains("not permitted") || said.contains("not found in") {
        Err(UnmountError::NotPermitted(path))
    } else {
        Err(UnmountError::Helper(helper_message(&said)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_that_cannot_be_one_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let missing = attach(&Settings::new("t", dir.path().join("none"))).unwrap_err();
        assert!(matches!(&missing, MountError::Missing(_)) && missing.to_string().contains("mkdir"), "{missing}");
        assert!(matches!(attach(&Settings::new("t", &file)), Err(MountError::NotADirectory(_))));
        let busy = attach(&Settings::new("t", "/proc")).unwrap_err();
        assert!(matches!(&busy, MountError::Busy { kind, .. } if kind == "proc"), "{busy}");
    }

    #[test]
    fn only_a_mount_of_swarmfs_is_unmounted() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(unmount(dir.path(), false), Err(UnmountError::NotMounted(_))));
        assert!(matches!(unmount(&dir.path().join("none"), false), Err(UnmountError::NotMounted(_))));
        assert!(matches!(unmount(Path::new("/proc"), true), Err(UnmountError::NotOurs { kind, .. }) if kind == "proc"));
    }

    #[test]
    fn a_source_with_commas_reaches_the_helper_as_one_option() {
        let options = helper_options(&Settings { exec: false, allow_other: true, ..Settings::new("a,b\\c", "/mnt") });
        assert_eq!(options, "ro,nosuid,nodev,default_permissions,noexec,allow_other,subtype=swarmfs,fsname=a\\,b\\\\c");
    }
}
