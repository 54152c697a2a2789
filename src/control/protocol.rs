//! What travels on a control socket. Both ends are of one host, and usually of one version.
//!
//! ```text
//! request                                    answer: frames, until an end or a failure
//! offset  bytes  field                       offset  bytes  field
//! 0       1      version, 1                  0       1      1 data, 2 end, 3 failure
//! 1       1      1 status, 2 list, 3 cat     1       4      length n, at most 65,536
//! 2       2      length n, at most 4,095     5       n      data: part of the status in JSON; one entry; bytes
//! 4       n      path below the root                        failure: 1 byte, which
//! ```
//!
//! ```text
//! entry
//! offset  bytes    field                     offset  bytes    field
//! 0       4        mode                      32      8        device number
//! 4       4        number of links           40      2 + n    name
//! 8       4        owner                     42 + n  2 + m    target of a symbolic link, else empty
//! 12      4        group
//! 16      8        size
//! 24      8        modification time, s
//! ```

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::{Entry, Failure};
use crate::wire::codec::{Malformed, Reader, Writer};

const VERSION: u8 = 1;
/// A request's bytes before its path.
pub const REQUEST_HEAD: usize = 4;
/// Bytes before a frame's body.
pub const FRAME_HEAD: usize = 5;
/// The longest body of a frame: two blocks, so that a cat copies few and large pieces.
pub const MAX_BODY: usize = 64 * 1024;
const MAX_PATH: usize = 4095;
/// The longest name of an entry: what was asked for by path is called by that path's last component.
const MAX_NAME: usize = 255;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Status,
    List(PathBuf),
    Cat(PathBuf),
}

impl Request {
    /// # Panics
    /// When the path is longer than a `PathSpec` takes.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, path) = match self {
            Request::Status => (1, &b""[..]),
            Request::List(path) => (2, path.as_os_str().as_bytes()),
            Request::Cat(path) => (3, path.as_os_str().as_bytes()),
        };
        let mut out = Writer::new();
        out.u8(VERSION).u8(kind).string(path);
        out.finish()
    }

    /// How many bytes of path follow, from a request's first bytes.
    pub fn path_len(head: &[u8; REQUEST_HEAD]) -> Result<usize, Malformed> {
        let mut from = Reader::new(head);
        let (version, kind, len) = (from.u8()?, from.u8()?, from.u16()? as usize);
        match (version, kind) {
            (VERSION, 1..=3) if len <= MAX_PATH => Ok(len),
            (VERSION, 1..=3) => Err(Malformed::Bound("path")),
            (VERSION, kind) => Err(Malformed::Kind(kind)),
            (version, _) => Err(Malformed::Version(version)),
        }
    }

    /// The request whose head and path these are. A path is relative and has no `..`: the node looks names up one by one.
    pub fn decode(head: &[u8; REQUEST_HEAD], path: Vec<u8>) -> Result<Request, Malformed> {
        let odd = |part: &[u8]| part.is_empty() || part == b"." || part == b".." || part.contains(&0);
        if !path.is_empty() && path.split(|byte| *byte == b'/').any(odd) {
            return Err(Malformed::Bound("path"));
        }
        let path = PathBuf::from(OsString::from_vec(path));
        match head[1] {
            1 => Ok(Request::Status),
            2 => Ok(Request::List(path)),
            3 => Ok(Request::Cat(path)),
            kind => Err(Malformed::Kind(kind)),
        }
    }
}

/// What a frame says, its body aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    Data(usize),
    End,
    Failure,
}

impl Frame {
    pub fn head(self) -> [u8; FRAME_HEAD] {
        let (kind, len) = match self {
            Frame::Data(len) => (1, len as u32),
            Frame::End => (2, 0),
            Frame::Failure => (3, 1),
        };
        let len = len.to_le_bytes();
        [kind, len[0], len[1], len[2], len[3]]
    }

    pub fn decode(head: &[u8; FRAME_HEAD]) -> Result<Frame, Malformed> {
        let len = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        match (head[0], len) {
            (1, len) if len <= MAX_BODY => Ok(Frame::Data(len)),
            (2, 0) => Ok(Frame::End),
            (3, 1) => Ok(Frame::Failure),
            (1..=3, _) => Err(Malformed::Bound("frame length")),
            (kind, _) => Err(Malformed::Kind(kind)),
        }
    }
}

const FAILURES: [Failure; 11] = [
    Failure::NotFound,
    Failure::NotADirectory,
    Failure::IsADirectory,
    Failure::NotAFile,
    Failure::LinkLoop,
    Failure::Gone,
    Failure::Unreadable,
    Failure::TimedOut,
    Failure::Stopped,
    Failure::BadRequest,
    Failure::Busy,
];

/// A failure's number is its place in `FAILURES`, from 1.
pub fn failure_code(failure: Failure) -> u8 {
    let place = FAILURES.iter().position(|known| *known == failure).expect("every failure is listed");
    place as u8 + 1
}

pub fn failure_of(code: u8) -> Result<Failure, Malformed> {
    let place = (code as usize).checked_sub(1).ok_or(Malformed::Kind(code))?;
    FAILURES.get(place).copied().ok_or(Malformed::Kind(code))
}

impl Entry {
    /// The entry as a body. A name or target that no tree can hold is cut rather than refused: this is for showing.
    pub(super) fn encode(&self) -> Vec<u8> {
        let name = self.name.as_bytes();
        let target = self.target.as_deref().map_or(&b""[..], |target| target.as_os_str().as_bytes());
        let mut out = Writer::new();
        out.u32(self.mode).u32(self.nlink).u32(self.uid).u32(self.gid).u64(self.size);
        out.u64(self.mtime_s as u64).u64(self.rdev);
        out.string(&name[..name.len().min(MAX_NAME)]).string(&target[..target.len().min(MAX_PATH)]);
        out.finish()
    }

    pub(super) fn decode(body: &[u8]) -> Result<Entry, Malformed> {
        let mut from = Reader::new(body);
        let (mode, nlink, uid, gid) = (from.u32()?, from.u32()?, from.u32()?, from.u32()?);
        let (size, mtime_s, rdev) = (from.u64()?, from.u64()? as i64, from.u64()?);
        let name = OsString::from_vec(from.string(MAX_NAME, "name")?.to_vec());
        let target = from.string(MAX_PATH, "target")?.to_vec();
        from.end()?;
        let target = (!target.is_empty()).then(|| PathBuf::from(OsString::from_vec(target)));
        Ok(Entry { name, mode, nlink, uid, gid, size, mtime_s, rdev, target })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(bytes: &[u8]) -> Result<Request, Malformed> {
        let (head, path) = bytes.split_first_chunk::<REQUEST_HEAD>().ok_or(Malformed::Short)?;
        let len = Request::path_len(head)?;
        Request::decode(head, path.get(..len).ok_or(Malformed::Short)?.to_vec())
    }

    #[test]
    fn a_request_is_laid_out_as_drawn() {
        assert_eq!(Request::Cat(PathBuf::from("a/b")).encode(), b"\x01\x03\x03\x00a/b");
        assert_eq!(Frame::Data(0x1234).head(), [1, 0x34, 0x12, 0, 0]);
    }

    #[test]
    fn requests_survive_their_bytes() {
        for request in [Request::Status, Request::List(PathBuf::new()), Request::Cat(PathBuf::from("a/b"))] {
            assert_eq!(parse(&request.encode()), Ok(request));
        }
    }

    #[test]
    fn paths_that_leave_the_tree_are_refused() {
        for path in ["/etc", "..", "a/..", "a//b", "a/./b", "a\0"] {
            assert_eq!(parse(&Request::Cat(PathBuf::from(path)).encode()), Err(Malformed::Bound("path")), "{path:?}");
        }
        assert_eq!(parse(&[2, 1, 0, 0]), Err(Malformed::Version(2)));
        assert_eq!(parse(&[1, 4, 0, 0]), Err(Malformed::Kind(4)));
        assert_eq!(parse(&[1, 3, 0, 0x10]), Err(Malformed::Bound("path")));
    }

    #[test]
    fn every_failure_has_a_number_of_its_own() {
        for (place, failure) in FAILURES.into_iter().enumerate() {
            assert_eq!(failure_code(failure) as usize, place + 1);
            assert_eq!(failure_of(failure_code(failure)), Ok(failure));
        }
        assert!(failure_of(0).is_err() && failure_of(12).is_err());
    }

    proptest! {
        #[test]
        fn entries_survive_their_bytes(
            numbers in any::<(u32, u32, u32, u32, u64, i64, u64)>(),
            name in prop::collection::vec(any::<u8>(), 1..256),
            target in prop::option::of(prop::collection::vec(any::<u8>(), 1..100)),
        ) {
            let (mode, nlink, uid, gid, size, mtime_s, rdev) = numbers;
            let target = target.map(|target| PathBuf::from(OsString::from_vec(target)));
            let entry = Entry { name: OsString::from_vec(name), mode, nlink, uid, gid, size, mtime_s, rdev, target };
            prop_assert_eq!(Entry::decode(&entry.encode()), Ok(entry));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = (parse(&bytes), Entry::decode(&bytes));
            if let Some(head) = bytes.first_chunk() {
                let _ = Frame::decode(head);
            }
        }
    }
}
