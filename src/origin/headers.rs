//! The headers that were signed, remembered on disk so that a restart need not read the tree again.
//!
//! ```text
//! offset   bytes   field
//! 0        8       "swfmhdr1"
//! 8        32      the public key that signed what follows; with another key the file begins anew
//! 40               records up to the end
//!
//! record
//! 0        4       length of the body
//! 4        4       crc32 of the body
//! 8        1       kind: 1 version, 2 header
//! 9                kind 1, 36 bytes: id of the version's generation 0, 16; generation, 8; ctime, 8 + 4
//!                  kind 2: a segment header
//! ```
//!
//! Records are only appended, each with one write, before what they tell is given to anyone; a later record of the same
//! version or segment replaces an earlier one. Killed at any byte, the file loses at most the record being written: what
//! follows the last whole record is cut off. When less than half of the file is still of use, what is of use is copied
//! to a new one. In memory is only where each record lies, 40 bytes a segment of 2 MiB.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::catalogue::Time;
use crate::chunk::{ObjectId, SegmentId};
use crate::keys::PublicKey;
use crate::state::{StateError, flush_dir, unusable};
use crate::wire::codec::{Malformed, Reader, Writer};
use crate::wire::header::{MAX_HEADER, SegmentHeader};

const MAGIC: &[u8; 8] = b"swfmhdr1";
const START: u64 = 40;
const FRAME: u64 = 8;
const VERSION_LEN: u64 = FRAME + 1 + 36;
const MAX_BODY: usize = 1 + MAX_HEADER;
/// A file below this is not worth copying.
const SLACK: u64 = 16 * 1024 * 1024;
/// Versions of a generation other than 0 that are remembered though no file has them now: one may come back.
const MAX_RETIRED: usize = 65_536;

/// What is known of a version of which a segment was signed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Version {
    /// 0 as long as size and modification time told every change of content.
    pub generation: u64,
    /// The file's ctime when what was signed was last known to be its content.
    pub ctime: Time,
}

pub(super) struct Headers {
    path: PathBuf,
    file: File,
    key: PublicKey,
    end: u64,
    /// By the id of generation 0.
    versions: HashMap<ObjectId, Version>,
    headers: BTreeMap<SegmentId, Place>,
    /// Bytes of all records that were not replaced.
    used: u64,
    lost: bool,
    /// Whether the last append failed: said once, not once a segment.
    full: bool,
}

#[derive(Clone, Copy)]
struct Place {
    /// Of the header, behind its frame and kind.
    at: u64,
    len: u32,
}

impl Place {
    fn record_len(self) -> u64 {
        FRAME + 1 + self.len as u64
    }
}

enum Record<'a> {
    Version(ObjectId, Version),
    Header(SegmentId, &'a [u8]),
}

impl Headers {
    /// Opens the file, made if it is missing. Damage costs what follows it, and is told by `lost`.
    pub fn open(path: &Path, key: PublicKey) -> Result<Headers, StateError> {
        Headers::load(path, key).map_err(|source| unusable(path, source))
    }

    /// Whether something that was remembered once is gone, so that a header not found may have been given out.
    pub fn lost(&self) -> bool {
        self.lost
    }

    pub fn version(&self, base: &ObjectId) -> Option<Version> {
        self.versions.get(base).copied()
    }

    /// Remembers a version; before anything signed for it is given out.
    pub fn set_version(&mut self, base: ObjectId, version: Version) {
        if self.versions.insert(base, version).is_none() {
            self.used += VERSION_LEN;
        }
        let mut body = Writer::new();
        write_version(&mut body, &base, &version);
        self.append(body.as_slice());
    }

    /// Numbers of the object's segments that were signed.
    pub fn signed(&self, object: ObjectId) -> Vec<u32> {
        let whole = SegmentId { object, index: 0 }..=SegmentId { object, index: u32::MAX };
        self.headers.range(whole).map(|(segment, _)| segment.index).collect()
    }

    pub fn header(&self, segment: SegmentId) -> Option<SegmentHeader> {
        let place = self.headers.get(&segment)?;
        let mut bytes = vec![0; place.len as usize];
        let read = self.file.read_exact_at(&mut bytes, place.at);
        let header = read.ok().and_then(|()| SegmentHeader::open(&bytes, &self.key).ok());
        if header.is_none() {
            warn!(path = %self.path.display(), ?segment, "a remembered header cannot be read back");
        }
        header.filter(|header| header.segment() == segment)
    }

    /// Remembers a header; before it is given out.
    pub fn set_header(&mut self, header: &SegmentHeader) {
        let mut body = Writer::new();
        body.u8(2);
        header.encode(&mut body);
        let at = self.end + FRAME + 1;
        if self.append(body.as_slice()) {
            self.insert_header(header.segment(), Place { at, len: body.len() as u32 - 1 });
        }
    }

    /// Copies what is of use to a new file, if that is less than half. `live` tells the objects of the tree as it is.
    pub fn compact(&mut self, live: impl Fn(&ObjectId) -> bool) {
        if self.end < SLACK {
            return;
        }
        let dead = self.end - START - self.used.min(self.end - START);
        let retired: u64 = self
            .headers
            .iter()
            .filter(|(segment, _)| !live(&segment.object))
            .map(|(_, place)| place.record_len())
            .sum();
        if (dead + retired) * 2 < self.end {
            return;
        }
        let before = self.end;
        match self.copy_live(&live) {
            Ok(fresh) => {
                info!(before, after = fresh.end, "headers of versions that are gone were forgotten");
                *self = fresh;
            }
            Err(error) => warn!(path = %self.path.display(), %error, "the file of headers cannot be made smaller"),
        }
    }

    fn load(path: &Path, key: PublicKey) -> io::Result<Headers> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let mut headers = Headers {
            path: path.to_owned(),
            file,
            key,
            end: START,
            versions: HashMap::new(),
            headers: BTreeMap::new(),
            used: 0,
            lost: false,
            full: false,
        };
        let len = headers.file.metadata()?.len();
        let mut start = [0; START as usize];
        let opens = headers.file.read_exact_at(&mut start, 0).is_ok() && start == start_of(&key);
        if opens {
            headers.read_records(len)?;
            if headers.end < len {
                warn!(path = %path.display(), from = headers.end, bytes = len - headers.end,
                    "the end of the file of headers is damaged and cut off");
                headers.lost = true;
                headers.file.set_len(headers.end)?;
            }
        } else {
            if len > 0 {
                warn!(path = %path.display(), "the file of headers is damaged or of another key, and begins anew");
                headers.lost = true;
            }
            headers.file.set_len(0)?;
            headers.file.write_all_at(&start_of(&key), 0)?;
        }
        Ok(headers)
    }

    /// Takes in whole records from the start, up to the first that is not.
    fn read_records(&mut self, len: u64) -> io::Result<()> {
        let mut from = BufReader::with_capacity(1 << 20, self.file.try_clone()?);
        io::Seek::seek(&mut from, io::SeekFrom::Start(START))?;
        let mut body = vec![0; MAX_BODY];
        let mut frame = [0; FRAME as usize];
        while self.end + FRAME <= len {
            from.read_exact(&mut frame)?;
            let [a, b, c, d, sum @ ..] = frame;
            let body_len = u32::from_le_bytes([a, b, c, d]) as usize;
            if body_len > MAX_BODY || self.end + FRAME + body_len as u64 > len {
                break;
            }
            from.read_exact(&mut body[..body_len])?;
            let body = &body[..body_len];
            if crc32fast::hash(body) != u32::from_le_bytes(sum) {
                break;
            }
            match read_record(body) {
                Ok(Record::Version(base, version)) => {
                    if self.versions.insert(base, version).is_none() {
                        self.used += VERSION_LEN;
                    }
                }
                Ok(Record::Header(segment, header)) => {
                    let place = Place { at: self.end + FRAME + 1, len: header.len() as u32 };
                    self.insert_header(segment, place);
                }
                Err(_) => break,
            }
            self.end += FRAME + body_len as u64;
        }
        Ok(())
    }

    fn insert_header(&mut self, segment: SegmentId, place: Place) {
        self.used += place.record_len();
        if let Some(replaced) = self.headers.insert(segment, place) {
            self.used -= replaced.record_len();
        }
    }

    /// Adds a record, and says whether it is there. If not, it is only not remembered: the tree is served all the same.
    fn append(&mut self, body: &[u8]) -> bool {
        let record = framed(body);
        match self.file.write_all_at(&record, self.end) {
            Ok(()) => {
                self.end += record.len() as u64;
                self.full = false;
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.full, true) {
                    warn!(path = %self.path.display(), %error,
                        "headers cannot be remembered: after a restart the tree is read again");
                }
                // A half-written record would hide those after it.
                if let Err(error) = self.file.set_len(self.end) {
                    warn!(path = %self.path.display(), %error, "the end of the file of headers cannot be cut off");
                }
                false
            }
        }
    }

    fn copy_live(&self, live: &impl Fn(&ObjectId) -> bool) -> io::Result<Headers> {
        let fresh_path = self.path.with_extension("new");
        let mut out =
            BufWriter::new(OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh_path)?);
        out.write_all(&start_of(&self.key))?;
        let mut retired = 0;
        for (base, version) in &self.versions {
            // The id of a later generation cannot be told from the base, so those are kept, up to a bound.
            let keep = if version.generation == 0 { live(base) } else { retired < MAX_RETIRED };
            retired += usize::from(version.generation != 0);
            if keep {
                let mut body = Writer::new();
                write_version(&mut body, base, version);
                out.write_all(&framed(body.as_slice()))?;
            }
        }
        for (segment, place) in self.headers.iter().filter(|(segment, _)| live(&segment.object)) {
            let mut body = vec![2; 1 + place.len as usize];
            self.file.read_exact_at(&mut body[1..], place.at)?;
            // What cannot be read back is not carried on.
            if matches!(read_record(&body), Ok(Record::Header(found, _)) if found == *segment) {
                out.write_all(&framed(&body))?;
            }
        }
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        std::fs::rename(&fresh_path, &self.path)?;
        if let Some(dir) = self.path.parent() {
            flush_dir(dir)?;
        }
        let mut fresh = Headers::load(&self.path, self.key)?;
        fresh.lost |= self.lost;
        Ok(fresh)
    }
}

fn start_of(key: &PublicKey) -> [u8; START as usize] {
    let mut start = [0; START as usize];
    start[..8].copy_from_slice(MAGIC);
    start[8..].copy_from_slice(&key.to_bytes());
    start
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut record = Writer::new();
    record.u32(body.len() as u32).u32(crc32fast::hash(body)).bytes(body);
    record.finish()
}

fn write_version(out: &mut Writer, base: &ObjectId, version: &Version) {
    out.u8(1).bytes(&base.0).u64(version.generation).u64(version.ctime.sec as u64).u32(version.ctime.nsec);
}

fn read_record(body: &[u8]) -> Result<Record<'_>, Malformed> {
    let mut from = Reader::new(body);
    match from.u8()? {
        1 => {
            let base = ObjectId(from.array()?);
            let generation = from.u64()?;
            let ctime = Time { sec: from.u64()? as i64, nsec: from.u32()? };
            from.end()?;
            Ok(Record::Version(base, Version { generation, ctime }))
        }
        2 => {
            let header = &body[1..];
            from.u8()?;
            let segment = SegmentId { object: ObjectId(from.array()?), index: from.u32()? };
            Ok(Record::Header(segment, header))
        }
        kind => Err(Malformed::Kind(kind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::OriginKey;

    fn key() -> OriginKey {
        OriginKey::from_seed(&[1; 32])
    }

    fn header(object: u8, index: u32) -> SegmentHeader {
        let segment = SegmentId { object: ObjectId([object; 16]), index };
        SegmentHeader::sign(segment, &[object; 1000], &key())
    }

    fn version(generation: u64) -> Version {
        Version { generation, ctime: Time { sec: -5, nsec: 7 } }
    }

    /// Three records: a version, two headers. Returns the file's length after each.
    fn fill(path: &Path) -> Vec<u64> {
        let mut headers = Headers::open(path, key().public()).unwrap();
        let mut ends = vec![headers.end];
        headers.set_version(ObjectId([1; 16]), version(0));
        ends.push(headers.end);
        for index in 0..2 {
            headers.set_header(&header(1, index));
            ends.push(headers.end);
        }
        ends
    }

    #[test]
    fn what_was_remembered_is_found_by_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("headers");
        fill(&path);
        let mut headers = Headers::open(&path, key().public()).unwrap();
        assert!(!headers.lost());
        assert_eq!(headers.version(&ObjectId([1; 16])), Some(version(0)));
        assert_eq!(headers.version(&ObjectId([2; 16])), None);
        assert_eq!(headers.signed(ObjectId([1; 16])), [0, 1]);
        assert_eq!(headers.header(header(1, 1).segment()), Some(header(1, 1)));
        headers.set_version(ObjectId([1; 16]), version(9));
        let headers = Headers::open(&path, key().public()).unwrap();
        assert_eq!(headers.version(&ObjectId([1; 16])), Some(version(9)), "the last word counts");
    }

    #[test]
    fn killed_at_any_byte_it_keeps_every_whole_record_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("whole");
        let ends = fill(&whole);
        let bytes = std::fs::read(&whole).unwrap();
        let path = dir.path().join("torn");
        for len in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..len]).unwrap();
            let mut headers = Headers::open(&path, key().public()).unwrap();
            let records = ends.iter().filter(|end| **end <= len as u64).count().saturating_sub(1);
            assert_eq!(headers.versions.len() + headers.headers.len(), records, "{len} bytes");
            assert_eq!(headers.lost(), len > 0 && !ends.contains(&(len as u64)), "{len} bytes");
            headers.set_header(&header(3, 0));
            let headers = Headers::open(&path, key().public()).unwrap();
            assert_eq!(headers.header(header(3, 0).segment()), Some(header(3, 0)), "{len} bytes");
            assert_eq!(headers.versions.len() + headers.headers.len(), records + 1, "{len} bytes");
        }
    }

    #[test]
    fn a_changed_byte_is_never_believed() {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("whole");
        fill(&whole);
        let bytes = std::fs::read(&whole).unwrap();
        let path = dir.path().join("changed");
        for position in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[position] ^= 0x10;
            std::fs::write(&path, &wrong).unwrap();
            let headers = Headers::open(&path, key().public()).unwrap();
            assert!(headers.lost(), "byte {position}");
            for index in 0..2 {
                let found = headers.header(header(1, index).segment());
                assert!(found.is_none_or(|found| found == header(1, index)), "byte {position}");
            }
        }
    }

    #[test]
    fn headers_of_another_key_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("headers");
        fill(&path);
        let headers = Headers::open(&path, OriginKey::from_seed(&[2; 32]).public()).unwrap();
        assert!(headers.lost() && headers.headers.is_empty() && headers.versions.is_empty());
    }

    #[test]
    fn what_no_file_has_any_more_is_dropped_once_it_is_most_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("headers");
        let mut headers = Headers::open(&path, key().public()).unwrap();
        headers.set_version(ObjectId([1; 16]), version(0));
        headers.set_version(ObjectId([2; 16]), version(0));
        headers.set_version(ObjectId([3; 16]), version(7));
        headers.set_header(&header(1, 0));
        headers.set_header(&header(2, 0));
        headers.compact(|_| false);
        assert!(headers.header(header(1, 0).segment()).is_some(), "a small file is left alone");
        // The same header again and again: all but the last are dead.
        let again = header(1, 5);
        while headers.end < SLACK {
            headers.set_header(&again);
        }
        headers.compact(|object| *object == ObjectId([1; 16]));
        assert!(headers.end < 1000);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), headers.end);
        assert_eq!(headers.header(header(1, 0).segment()), Some(header(1, 0)));
        assert_eq!(headers.header(again.segment()), Some(again));
        assert_eq!(headers.header(header(2, 0).segment()), None);
        assert_eq!(headers.version(&ObjectId([1; 16])), Some(version(0)));
        assert_eq!(headers.version(&ObjectId([2; 16])), None);
        assert_eq!(headers.version(&ObjectId([3; 16])), Some(version(7)), "a generation drawn is not drawn again");
        assert_eq!(headers.used, headers.end - START);
    }
}
