//! Files that were asked for lately, kept open: a version that was replaced or removed since is served to its end.

use std::fs::File;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::catalogue::Time;
use crate::chunk::ObjectId;

/// How long after it was last asked for a file stays open.
const IDLE: Duration = Duration::from_secs(600);
/// Files open at once: a quarter of the 1,024 descriptors that a process has by default.
const MAX_HELD: usize = 256;

/// An open file that was the object's when it was opened.
pub(super) struct Held {
    pub file: File,
    /// Below the root, for messages.
    pub path: Vec<u8>,
    pub object: ObjectId,
    /// Id of the same version's generation 0.
    pub base: ObjectId,
    pub size: u64,
    pub mtime: Time,
    /// Device and inode: another file may be at its path.
    pub inode: (u64, u64),
    /// The ctime for which what was signed is known to be the content. Locked while that is looked into.
    pub confirmed: Mutex<Option<Time>>,
}

impl Held {
    /// Whether this is the version of its path, size and time that has this generation.
    pub fn is_of(&self, generation: u64) -> bool {
        match generation {
            0 => self.object == self.base,
            _ => self.object == ObjectId::of_version(&self.path, self.size, self.mtime.as_ns(), generation),
        }
    }
}

pub(super) struct HeldFiles {
    files: Mutex<LruCache<ObjectId, (Arc<Held>, Instant)>>,
}

impl Default for HeldFiles {
    fn default() -> HeldFiles {
        HeldFiles { files: Mutex::new(LruCache::unbounded()) }
    }
}

impl HeldFiles {
    pub fn get(&self, object: &ObjectId, now: Instant) -> Option<Arc<Held>> {
        let mut files = self.files.lock().expect("no holder of this lock panics");
        let (held, used) = files.get_mut(object)?;
        *used = now;
        Some(held.clone())
    }

    /// An open file, if there is one; its time of being asked for stays what it was.
    pub fn peek(&self, object: &ObjectId) -> Option<Arc<Held>> {
        self.files.lock().expect("no holder of this lock panics").peek(object).map(|(held, _)| held.clone())
    }

    /// Keeps a file open; one that another thread opened meanwhile stays instead.
    pub fn insert(&self, held: Arc<Held>, now: Instant) -> Arc<Held> {
        let mut files = self.files.lock().expect("no holder of this lock panics");
        expire(&mut files, now);
        if let Some((first, used)) = files.get_mut(&held.object) {
            *used = now;
            return first.clone();
        }
        if files.len() >= MAX_HELD {
            files.pop_lru();
        }
        files.put(held.object, (held.clone(), now));
        held
    }

    pub fn remove(&self, object: &ObjectId) {
        self.files.lock().expect("no holder of this lock panics").pop(object);
    }

    /// Closes what nobody asked for lately.
    pub fn expire(&self, now: Instant) {
        expire(&mut self.files.lock().expect("no holder of this lock panics"), now);
    }

    /// Closes the half that was asked for longest ago; false if there was nothing to close.
    pub fn close_half(&self) -> bool {
        let mut files = self.files.lock().expect("no holder of this lock panics");
        let closing = files.len().div_ceil(2);
        for _ in 0..closing {
            files.pop_lru();
        }
        closing > 0
    }
}

fn expire(files: &mut LruCache<ObjectId, (Arc<Held>, Instant)>, now: Instant) {
    while files.peek_lru().is_some_and(|(_, (_, used))| now.saturating_duration_since(*used) >= IDLE) {
        files.pop_lru();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(number: u16) -> Arc<Held> {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&number.to_le_bytes());
        Arc::new(Held {
            file: File::open("/dev/null").unwrap(),
            path: Vec::new(),
            object: ObjectId(id),
            base: ObjectId(id),
            size: 0,
            mtime: Time::default(),
            inode: (0, 0),
            confirmed: Mutex::new(None),
        })
    }

    #[test]
    fn a_file_is_closed_ten_minutes_after_it_was_last_asked_for() {
        let files = HeldFiles::default();
        let start = Instant::now();
        let (one, other) = (files.insert(held(1), start), files.insert(held(2), start));
        let later = start + IDLE / 2;
        assert!(files.get(&one.object, later).is_some());
        files.expire(start + IDLE);
        assert!(files.get(&other.object, later).is_none());
        assert!(files.get(&one.object, later).is_some());
    }

    #[test]
    fn no_more_files_are_open_than_the_bound() {
        let files = HeldFiles::default();
        let now = Instant::now();
        let first = files.insert(held(0), now);
        for number in 1..=MAX_HELD as u16 {
            files.insert(held(number), now);
        }
        assert!(files.get(&first.object, now).is_none());
        assert_eq!(files.files.lock().unwrap().len(), MAX_HELD);
        assert!(files.close_half());
        assert_eq!(files.files.lock().unwrap().len(), MAX_HELD / 2);
    }
}
