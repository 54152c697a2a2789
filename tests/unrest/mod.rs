//! What the soak test is made of: a tree that changes, readers that are never content, faults, and what may not pile up.

pub mod faults;
pub mod leaks;
pub mod reader;
pub mod tree;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::lab::Patience;

/// What one operation may take once everything is whole again. A hang is one that never ends, so this is generous: it is
/// many times what the slowest takes on a machine that does other things too.
pub const PATIENCE: Duration = Duration::from_secs(150);

/// One node as its readers know it.
#[derive(Default)]
pub struct Life {
    /// One more with each thing that may fail what is read through it: kill, unmounting.
    disturbed: AtomicU64,
    mounted: AtomicBool,
}

impl Life {
    /// Where it can be read, the number of this life.
    pub fn current(&self) -> Option<u64> {
        let life = self.disturbed.load(Ordering::SeqCst);
        (self.mounted.load(Ordering::SeqCst) && self.is(life)).then_some(life)
    }

    /// Whether nothing happened to it since.
    pub fn is(&self, life: u64) -> bool {
        self.disturbed.load(Ordering::SeqCst) == life
    }

    /// Said before it is done.
    fn disturb(&self) {
        self.mounted.store(false, Ordering::SeqCst);
        self.disturbed.fetch_add(1, Ordering::SeqCst);
    }

    fn is_mounted(&self) {
        self.mounted.store(true, Ordering::SeqCst);
    }
}

/// Unrest until it is over; from then on everything has to end.
#[derive(Default)]
pub struct Calm(AtomicBool);

impl Calm {
    pub fn begin(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// One operation's time, which runs while it is calm.
pub struct Bound(Option<Patience>);

impl Bound {
    pub fn new() -> Bound {
        Bound(None)
    }

    /// To be called several times a second. Panics if the operation hangs.
    pub fn check(&mut self, calm: &Calm, what: impl FnOnce() -> String) {
        if calm.has_begun() {
            let ended = self.0.get_or_insert_with(|| Patience::new(PATIENCE)).has_ended();
            assert!(!ended, "a hang: not within {PATIENCE:?} after everything was mended: {}", what());
        }
    }
}

/// Begins when dropped too, so that a panic does not leave readers going for ever.
pub struct CalmAtLast<'a>(pub &'a Calm);

impl Drop for CalmAtLast<'_> {
    fn drop(&mut self) {
        self.0.begin();
    }
}
