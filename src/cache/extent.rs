//! Extents: the 2 MiB of anonymous memory that hold one segment's blocks.
//!
//! The one file that touches raw memory. Its invariant: a byte range of an extent is written only before the block it
//! belongs to was published (see `cache::Segment`), and read only after. An extent that was recycled as sparse reads as
//! zeros wherever nothing was written.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use crate::chunk::SEGMENT;

const LEN: usize = SEGMENT as usize;

/// Idle extents kept for reuse: a dropped chunk has eight, and what is dropped made room for what comes next.
const IDLE: usize = 8;

/// 2 MiB of memory, aligned to 2 MiB so that it can be one huge page.
pub struct Extent {
    /// Taken out only while the extent is dropped.
    memory: Option<Memory>,
    filling: Filling,
    pool: Arc<Pool>,
}

/// Which of a segment's blocks will come, and how soon: that says how its memory is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filling {
    /// Some of them: page by page as it is written, and what is never written reads as zeros.
    Part,
    /// All of them, one after another: page by page, too, or as another segment left it.
    Whole,
    /// All of them, at once or nearly so: one huge page, or as another segment left it. It is cleared when its first block
    /// is written, which took 6 ms where the machine's memory came from its host by small pages, and everything else of the
    /// node waited. (With those 32 readers at 25 Mbit/s took 1.078 instead of 1.067 of the ideal time.)
    AtOnce,
}

impl Filling {
    /// All of it is written before it is read, so that what another segment left in it does not matter.
    fn is_whole(self) -> bool {
        self != Filling::Part
    }
}

struct Memory(NonNull<u8>);

// SAFETY: the pointer is an own mapping, valid until it is unmapped in `drop`, and tied to no thread.
unsafe impl Send for Memory {}
// SAFETY: shared access goes through `Extent`'s methods, whose contracts keep writes and reads apart.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: maps exactly what `Memory::map` mapped, once.
        unsafe { libc::munmap(self.0.as_ptr().cast(), LEN) };
    }
}

impl Memory {
    fn map() -> std::io::Result<Memory> {
        // Twice the length, so that an aligned extent lies in it whatever address the kernel gives.
        // SAFETY: a fresh anonymous mapping; the parts outside the aligned extent are unmapped before anyone sees it.
        unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let start = libc::mmap(std::ptr::null_mut(), 2 * LEN, protection, flags, -1, 0);
            if start == libc::MAP_FAILED {
                return Err(std::io::Error::last_os_error());
            }
            let start = start.cast::<u8>();
            let lead = start.align_offset(LEN);
            if lead > 0 {
                libc::munmap(start.cast(), lead);
            }
            if LEN - lead > 0 {
                libc::munmap(start.add(lead + LEN).cast(), LEN - lead);
            }
            Ok(Memory(NonNull::new(start.add(lead)).expect("mmap never maps page zero")))
        }
    }

    fn advise(&self, advice: libc::c_int) {
        // SAFETY: advice on an own mapping; every advice given here keeps or zeroes its content, and is given while
        // nobody holds a slice of it.
        unsafe { libc::madvise(self.0.as_ptr().cast(), LEN, advice) };
    }
}

/// Where extents come from and go back to.
#[derive(Default)]
pub struct Pool {
    idle: Mutex<Vec<Memory>>,
}

impl Pool {
    /// An extent for a segment.
    pub fn take(self: &Arc<Pool>, filling: Filling) -> std::io::Result<Extent> {
        let idle =
            if filling.is_whole() { self.idle.lock().expect("no holder of this lock panics").pop() } else { None };
        let memory = match idle {
            Some(memory) => memory,
            None => {
                let memory = Memory::map()?;
                let huge = filling == Filling::AtOnce;
                memory.advise(if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE });
                memory
            }
        };
        Ok(Extent { memory: Some(memory), filling, pool: self.clone() })
    }
}

impl Extent {
    fn start(&self) -> *mut u8 {
        self.memory.as_ref().expect("present until the extent is dropped").0.as_ptr()
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Safety
    /// No slice of this range is alive, and nobody else writes to it at the same time.
    pub unsafe fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= LEN, "a write stays inside its extent");
        // SAFETY: in bounds by the assertion, unshared by the caller's promise, and `bytes` cannot overlap it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start().add(offset), bytes.len()) };
    }

    /// The bytes at `offset`.
    ///
    /// # Safety
    /// Nobody writes to this range while the slice is alive.
    pub unsafe fn slice(&self, offset: usize, len: usize) -> &[u8] {
        assert!(offset + len <= LEN, "a slice stays inside its extent");
        // SAFETY: in bounds by the assertion, initialised since anonymous memory starts as zeros, unwritten by the
        // caller's promise.
        unsafe { std::slice::from_raw_parts(self.start().add(offset), len) }
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        // What was written in part has few pages that somebody else could save taking.
        if let (true, Some(memory)) = (self.filling.is_whole(), self.memory.take()) {
            let mut idle = self.pool.idle.lock().expect("no holder of this lock panics");
            if idle.len() < IDLE {
                idle.push(memory);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_for_what_will_be_written_whole() {
        let pool = Arc::new(Pool::default());
        let start = pool.take(Filling::Whole).unwrap().start();
        let part = pool.take(Filling::Part).unwrap();
        assert_ne!(part.start(), start);
        assert_eq!(pool.take(Filling::AtOnce).unwrap().start(), start);
        drop(part);
        assert_eq!(pool.idle.lock().unwrap().len(), 1, "what was written in part is not kept");
    }
}
