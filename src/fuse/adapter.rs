//! fuser's calls translated to the filesystem's, and its answers to replies.
//!
//! Session threads never wait here: a reply goes with the closure and is sent from whatever thread has the answer.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request, Version,
};

use super::errno::errno;
use crate::catalogue::{Entry, Kind, Row, Time};
use crate::driver::Slices;
use crate::fs::{Batch, Call, Fs, Handle, Supply};
use crate::settings::Shown;

/// How long the kernel may believe a name or attributes: a change is notified, so this is only for what was missed.
const BELIEVED: Duration = Duration::from_secs(3600);
/// The same where the kernel has no notification that makes it look all names up again.
const BELIEVED_UNNOTIFIED: Duration = Duration::from_secs(1);
/// The kernel's FUSE since which there is one (Linux 6.16).
const WITH_EPOCH: Version = Version(7, 44);
/// How long a caller outside this process's pid namespace may wait: its thread has no number here, so that nobody can
/// see it being killed.
const UNSEEN: Duration = Duration::from_secs(120);
/// Reads that the kernel may have under way ahead of its readers. Those that wait for the network count, so with few
/// of them one reader without an origin would stop the read-ahead of all.
const BACKGROUND: u16 = 512;
/// What `stat` says is a good size to read in, as of other filesystems.
const BLOCK_SIZE: u32 = 4096;
const CAPABILITIES: [InitFlags; 10] = [
    InitFlags::FUSE_DO_READDIRPLUS,
    // Attributes come with the names only while somebody asks for them.
    InitFlags::FUSE_READDIRPLUS_AUTO,
    // Without it one look-up that waits blocks its directory.
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    // `.` and `..` are looked up: what NFS and file handles need.
    InitFlags::FUSE_EXPORT_SUPPORT,
    // ACLs of the tree are enforced, not only shown.
    InitFlags::FUSE_POSIX_ACL,
    // A reader's own O_DIRECT is split into reads at once.
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    // With the two offsets of lseek() this is all that cp's --sparse asks for; containers mount with shifted owners.
    InitFlags::FUSE_ALLOW_IDMAP,
    InitFlags::FUSE_ASYNC_READ,
];
/// `.` and `..` come before a listing's entries: an entry's offset is its rank and these.
const DOTS: u64 = 2;

/// One filesystem behind one session.
pub struct Adapter<S: Supply> {
    fs: Arc<Fs<S>>,
    believed: Duration,
    shown: Shown,
}

impl<S: Supply> Adapter<S> {
    pub fn new(fs: Arc<Fs<S>>, shown: Shown) -> Adapter<S> {
        Adapter { fs, believed: BELIEVED_UNNOTIFIED, shown }
    }

    /// A request whose caller does not die of a signal before it is answered.
    fn call(&self, request: &Request) -> Arc<Call> {
        let limit = (request.pid() == 0).then_some(UNSEEN);
        self.fs.call(request.pid(), limit)
    }
}

impl<S: Supply> Filesystem for Adapter<S> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for capability in CAPABILITIES {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "this kernel lacks it");
            }
        }
        // A number above 0 is accepted.
        let _ = config.set_max_background(BACKGROUND);
        if config.kernel_abi() >= WITH_EPOCH {
            self.believed = BELIEVED;
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (believed, shown) = (self.believed, self.shown);
        self.fs.lookup(self.call(request), parent.0, name.as_bytes(), move |found| match found {
            Ok((number, entry)) => reply.entry(&believed, &attributes(number, &entry.row, shown), Generation(0)),
            Err(crate::fs::Error::NotFound) => {
                // Number 0: the kernel remembers that there is none.
                let none = FileAttr { ino: INodeNo(0), ..NO_ATTRIBUTES };
                reply.entry(&believed, &none, Generation(0));
            }
            Err(error) => reply.error(errno(error)),
        });
    }

    fn forget(&self, _request: &Request, number: INodeNo, lookups: u64) {
        self.fs.forget(number.0, lookups);
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.fs.entry(number.0) {
            Ok(entry) => reply.attr(&self.believed, &attributes(number.0, &entry.row, self.shown)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readlink(&self, _request: &Request, number: INodeNo, reply: ReplyData) {
        match self.fs.target(number.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open(&self, request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        self.fs.open(self.call(request), number.0, move |opened| match opened {
            // A number stands for one version, so what is cached of it stays right; there is nothing to flush.
            Ok(handle) => reply.opened(FileHandle(handle.0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn read(
        &self,
        request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // A cached reader dies by itself, and what it asked for is awaited by others: only direct reads are looked at.
        let direct = flags.0 & libc::O_DIRECT != 0;
        let call = if direct { self.call(request) } else { self.fs.call(0, None) };
        self.fs.read(call, Handle(handle.0), offset, size, move |slices| match slices {
            Ok(slices) => answer(reply, slices),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn flush(&self, _request: &Request, _number: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _request: &Request, _number: INodeNo, _handle: FileHandle, _data: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.fs.close(Handle(handle.0));
        reply.ok();
    }

    fn opendir(&self, _request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.fs.open_directory(number.0) {
            Ok((handle, unchanged)) => {
                let mut flags = FopenFlags::FOPEN_CACHE_DIR;
                flags.set(FopenFlags::FOPEN_KEEP_CACHE, unchanged);
                reply.opened(FileHandle(handle.0), flags);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(&self, request: &Request, _number: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let fs = self.fs.clone();
        let handle = Handle(handle.0);
        let dots = match fs.dots(handle) {
            Ok(dots) => dots,
            Err(error) => return reply.error(errno(error)),
        };
        self.fs.list(self.call(request), handle, first_rank(offset), move |batch| match batch {
            Ok(batch) => {
                for (at, number, name) in [(1, dots.0, "."), (2, dots.1, "..")] {
                    if offset < at && reply.add(INodeNo(number), at, FileType::Directory, name) {
                        return reply.ok();
                    }
                }
                each(&fs, handle, batch, |_, entry| {
                    let (row, next) = (&entry.row, entry.rank + 1 + DOTS);
                    reply.add(INodeNo(fs.number(entry)), next, kind(row.kind()), OsStr::from_bytes(row.name()))
                });
                reply.ok();
            }
            Err(error) => reply.error(errno(error)),
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let fs = self.fs.clone();
        let handle = Handle(handle.0);
        let dots = match fs.dots(handle) {
            Ok(dots) => dots,
            Err(error) => return reply.error(errno(error)),
        };
        let (believed, shown) = (self.believed, self.shown);
        self.fs.list(self.call(request), handle, first_rank(offset), move |batch| match batch {
            Ok(batch) => {
                for (at, number, name) in [(1, dots.0, "."), (2, dots.1, "..")] {
                    // The kernel takes the number and the type from these two, and counts no look-up.
                    let attr = FileAttr { ino: INodeNo(number), kind: FileType::Directory, ..NO_ATTRIBUTES };
                    if offset < at && reply.add(attr.ino, at, name, &believed, &attr, Generation(0)) {
                        return reply.ok();
                    }
                }
                each(&fs, handle, batch, |version, entry| {
                    // Counted before the kernel can hear of it. One whose number collides is logged and left out.
                    let Ok(number) = fs.remember(entry, version) else { return false };
                    let (row, next) = (&entry.row, entry.rank + 1 + DOTS);
                    let attr = attributes(number, row, shown);
                    let name = OsStr::from_bytes(row.name());
                    let full = reply.add(INodeNo(number), next, name, &believed, &attr, Generation(0));
                    if full {
                        fs.forget(number, 1);
                    }
                    full
                });
                reply.ok();
            }
            Err(error) => reply.error(errno(error)),
        });
    }

    fn releasedir(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.fs.close_directory(Handle(handle.0));
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _number: INodeNo, reply: ReplyStatfs) {
        let totals = self.fs.totals();
        let blocks = totals.bytes.div_ceil(BLOCK_SIZE as u64);
        reply.statfs(blocks, 0, 0, totals.rows, 0, BLOCK_SIZE, crate::catalogue::MAX_NAME as u32, BLOCK_SIZE);
    }

    fn getxattr(&self, _request: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        answer_xattr(reply, self.fs.xattr(number.0, name.as_bytes()), size);
    }

    fn listxattr(&self, _request: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        answer_xattr(reply, self.fs.xattrs(number.0), size);
    }

    fn lseek(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let found = match whence {
            libc::SEEK_DATA => self.fs.seek_data(Handle(handle.0), offset),
            libc::SEEK_HOLE => self.fs.seek_hole(Handle(handle.0), offset),
            _ => return reply.error(Errno::EINVAL),
        };
        match found {
            Ok(offset) => reply.offset(i64::try_from(offset).unwrap_or(i64::MAX)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn ioctl(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _room: u32,
        reply: ReplyIoctl,
    ) {
        // No file has attribute flags; an immutable one could not be copied up by overlayfs.
        reply.error(Errno::ENOTTY);
    }
}

/// Where the listing of entries goes on for an offset.
fn first_rank(offset: u64) -> Option<u64> {
    offset.checked_sub(DOTS).filter(|rank| *rank > 0)
}

/// Hands entries to `add` until that says it is full, or no more are in memory. One part is enough for the kernel to
/// ask on from there.
fn each<S: Supply>(fs: &Arc<Fs<S>>, handle: Handle, first: Batch, mut add: impl FnMut(u64, &Arc<Entry>) -> bool) {
    let mut batch = first;
    loop {
        if batch.entries.iter().any(|entry| add(batch.version, entry)) || batch.is_last {
            return;
        }
        let Some(last) = batch.entries.last() else { return };
        let Some(next) = fs.list_now(handle, Some(last.rank + 1)) else { return };
        batch = next;
    }
}

fn answer(reply: ReplyData, slices: Slices) {
    match &slices[..] {
        [] => reply.data(&[]),
        [one] => reply.data(one),
        // A reply takes one slice, and few reads cross a segment's end.
        many => reply.data(&many.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<u8>>()),
    }
}

fn answer_xattr(reply: ReplyXattr, value: Result<Vec<u8>, crate::fs::Error>, room: u32) {
    match value {
        Ok(value) if room == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > room as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno(error)),
    }
}

const NO_ATTRIBUTES: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: BLOCK_SIZE,
    flags: 0,
};

fn attributes(number: u64, row: &Row, shown: Shown) -> FileAttr {
    let attributes = row.attributes();
    let mtime = moment(attributes.mtime);
    FileAttr {
        ino: INodeNo(number),
        size: attributes.size,
        blocks: attributes.blocks,
        // A tree has one time: reading does not change it, and a version does not change at all.
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: kind(row.kind()),
        perm: attributes.mode & !shown.umask,
        nlink: attributes.nlink,
        uid: shown.uid.unwrap_or(attributes.uid),
        gid: shown.gid.unwrap_or(attributes.gid),
        // The kernel's numbers and the C library's agree in the low 32 bits, which are all that the kernel has.
        rdev: row.rdev() as u32,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

fn kind(kind: &Kind) -> FileType {
    match kind {
        Kind::File { .. } => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink { .. } => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice { .. } => FileType::CharDevice,
        Kind::BlockDevice { .. } => FileType::BlockDevice,
    }
}

fn moment(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let whole = if time.sec < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nsec as u64))).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_before_1970_and_beyond_all_clocks_are_taken() {
        assert_eq!(moment(Time { sec: -1, nsec: 999_999_999 }), UNIX_EPOCH - Duration::from_nanos(1));
        assert_eq!(moment(Time { sec: 1, nsec: 5 }), UNIX_EPOCH + Duration::new(1, 5));
        for sec in [i64::MIN, i64::MAX] {
            moment(Time { sec, nsec: 999_999_999 });
        }
    }

    #[test]
    fn a_listing_goes_on_after_the_entry_that_an_offset_names() {
        assert_eq!(first_rank(0), None);
        assert_eq!(first_rank(DOTS), None);
        let entry_rank = 1;
        assert_eq!(first_rank(entry_rank + 1 + DOTS), Some(2));
    }
}
