//! What to fetch before it is asked for: decides from the reads of one stream whether it goes forward, and how far
//! ahead of it to fetch.
//!
//! Pure: it is told of reads and says what should be wanted; it owns no clock and asks for nothing. A stream is one
//! open file, or, where files are read through in catalogue order as `tar` does, one after the other.

/// Bytes wanted ahead of a reader: three chunks, which the swarm's policy found to be enough for relaying.
pub const AHEAD: u64 = 48 * 1024 * 1024;
/// A window is handed down again when it has moved this far: eight blocks, so that a reader of 128 KiB pieces hands
/// down every second time.
const STEP: u64 = 256 * 1024;
/// ... or when so many files were begun, so that a window of at most 256 small files never runs out.
const FILES: u32 = 64;
/// Reads this near the furthest byte read go forward. The kernel reads 2 MiB ahead and two threads take its requests,
/// so they come in some disorder within twice that.
const NEAR: u64 = 4 * 1024 * 1024;
/// A stream that began in the middle or jumped goes forward again after so many bytes: more than a random reader takes
/// in one place.
const PROVEN: u64 = 256 * 1024;

/// What should happen to a stream's window after a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// It stays as it is.
    Keep,
    /// It is taken back: the reader jumps about.
    Nothing,
    /// It becomes `here` bytes of this file from `from` on, then `beyond` bytes of the files that follow. It begins with
    /// what was just asked for: whoever reads the same at the same time is to share that, too.
    Window { from: u64, here: u64, beyond: u64 },
}

/// The state of one stream.
#[derive(Clone, Debug, Default)]
pub struct Readahead {
    started: bool,
    forward: bool,
    /// Files are being read one after the other.
    through: bool,
    /// Where the stream began or last jumped to.
    start: u64,
    /// The furthest byte read since then.
    frontier: u64,
    /// Bytes read near each other since then.
    streak: u64,
    handed_down: bool,
    /// Bytes and files since the window was handed down.
    moved: u64,
    files: u32,
}

impl Readahead {
    /// Takes a read of `len` bytes at `offset` in a file of `size`.
    pub fn read(&mut self, size: u64, offset: u64, len: u64) -> Advice {
        let end = offset.saturating_add(len).min(size);
        let near =
            self.started && offset <= self.frontier.saturating_add(NEAR) && end.saturating_add(NEAR) >= self.frontier;
        if near {
            self.moved += end.saturating_sub(self.frontier);
            self.frontier = self.frontier.max(end);
            self.streak += end.saturating_sub(offset);
            self.forward |= offset == 0 || self.streak >= PROVEN;
            if offset < self.start {
                // What was handed down began behind this.
                self.start = offset;
                self.moved = self.moved.max(STEP);
            }
        } else {
            // A jump, or the first read. Whoever starts at the beginning is taken to go on from there; the kernel cuts the
            // first read of a megabyte, with what it reads ahead, in two, and the other half may have been taken first.
            let first = !std::mem::replace(&mut self.started, true);
            let half = first && offset < NEAR && end.saturating_sub(offset) >= PROVEN;
            self.forward = offset == 0 || half;
            self.start = offset;
            self.frontier = end;
            self.streak = end.saturating_sub(offset);
            if std::mem::take(&mut self.handed_down) && !self.forward {
                return Advice::Nothing;
            }
        }
        self.advise(size)
    }

    /// The stream goes on at the beginning of the file that follows.
    pub fn next_file(&mut self) {
        // The window handed down so far ends with the last file, unless files were read through before.
        self.handed_down &= std::mem::replace(&mut self.through, true);
        self.forward = true;
        self.started = true;
        (self.start, self.frontier) = (0, 0);
        self.files += 1;
    }

    /// Whether anything was read yet.
    pub fn has_started(&self) -> bool {
        self.started
    }

    /// Whether a file of `size` was read to its end, forward.
    pub fn is_at_end(&self, size: u64) -> bool {
        self.started && self.forward && self.frontier >= size
    }

    fn advise(&mut self, size: u64) -> Advice {
        let due = !self.handed_down || self.moved >= STEP || self.files >= FILES;
        // Reads so near behind the furthest may still wait for their bytes.
        let from = self.frontier.saturating_sub(NEAR).max(self.start);
        let ahead = size.saturating_sub(self.frontier).min(AHEAD);
        let here = self.frontier - from + ahead;
        let beyond = if self.through { AHEAD - ahead } else { 0 };
        if !self.forward || !due || here + beyond == 0 {
            return Advice::Keep;
        }
        self.handed_down = true;
        self.moved = 0;
        self.files = 0;
        Advice::Window { from, here, beyond }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;
    const GIB: u64 = 1024 * MIB;

    #[test]
    fn a_first_read_at_the_beginning_is_followed() {
        let mut ahead = Readahead::default();
        assert_eq!(ahead.read(GIB, 0, 128 * KIB), Advice::Window { from: 0, here: 128 * KIB + AHEAD, beyond: 0 });
        assert_eq!(ahead.read(GIB, 128 * KIB, 128 * KIB), Advice::Keep, "moved by 128 KiB only");
        let here = 384 * KIB + AHEAD;
        assert_eq!(ahead.read(GIB, 256 * KIB, 128 * KIB), Advice::Window { from: 0, here, beyond: 0 });
        let (from, here) = (MIB + 512 * KIB, NEAR + AHEAD);
        assert_eq!(
            ahead.read(GIB, MIB + 512 * KIB, NEAR),
            Advice::Window { from, here, beyond: 0 },
            "no further behind"
        );
    }

    #[test]
    fn a_window_ends_with_the_file() {
        let mut ahead = Readahead::default();
        assert_eq!(ahead.read(MIB, 0, 64 * KIB), Advice::Window { from: 0, here: MIB, beyond: 0 });
        ahead.read(MIB, 64 * KIB, MIB);
        assert!(ahead.is_at_end(MIB));
        assert_eq!(Readahead::default().read(10, 0, 4096), Advice::Window { from: 0, here: 10, beyond: 0 });
        assert_eq!(Readahead::default().read(0, 0, 4096), Advice::Keep);
    }

    #[test]
    fn a_random_reader_hands_down_nothing() {
        let mut ahead = Readahead::default();
        for n in 1..200u64 {
            let offset = (n * 7919 % 1000) * MIB;
            assert_eq!(ahead.read(GIB, offset, 4 * KIB), Advice::Keep, "read at {offset}");
        }
        assert!(!ahead.is_at_end(GIB));
    }

    #[test]
    fn a_forward_reader_that_jumps_loses_its_window_until_it_goes_forward_again() {
        let mut ahead = Readahead::default();
        ahead.read(GIB, 0, 128 * KIB);
        assert_eq!(ahead.read(GIB, 500 * MIB, 128 * KIB), Advice::Nothing);
        let (from, here) = (500 * MIB, 256 * KIB + AHEAD);
        assert_eq!(ahead.read(GIB, 500 * MIB + 128 * KIB, 128 * KIB), Advice::Window { from, here, beyond: 0 });
        assert_eq!(ahead.read(GIB, 0, 512), Advice::Window { from: 0, here: 512 + AHEAD, beyond: 0 }, "rewound");
    }

    #[test]
    fn requests_in_disorder_go_forward_all_the_same() {
        let mut ahead = Readahead::default();
        let mut furthest = 0;
        // Pairs swapped, as two threads take them; the very first comes second.
        for pair in 0..64u64 {
            for offset in [(2 * pair + 1) * 128 * KIB, 2 * pair * 128 * KIB] {
                match ahead.read(GIB, offset, 128 * KIB) {
                    Advice::Window { from, here, .. } => furthest = from + here - AHEAD,
                    Advice::Keep => {}
                    Advice::Nothing => panic!("taken for a jump at {offset}"),
                }
            }
        }
        assert!(furthest >= 16 * MIB - STEP, "{furthest}");
    }

    #[test]
    fn a_first_read_that_the_kernel_cut_in_two_is_followed_from_its_beginning_whichever_half_comes_first() {
        let mut ahead = Readahead::default();
        assert_eq!(ahead.read(GIB, MIB, MIB), Advice::Window { from: MIB, here: MIB + AHEAD, beyond: 0 });
        assert_eq!(ahead.read(GIB, 0, MIB), Advice::Window { from: 0, here: 2 * MIB + AHEAD, beyond: 0 });
        assert_eq!(Readahead::default().read(GIB, MIB, 128 * KIB), Advice::Keep, "too short for that");
        assert_eq!(Readahead::default().read(GIB, 8 * MIB, MIB), Advice::Keep, "too far from the beginning");
    }

    #[test]
    fn files_read_through_are_followed_into_the_next_ones() {
        let mut ahead = Readahead::default();
        let alone = Advice::Window { from: 0, here: 100, beyond: 0 };
        assert_eq!(ahead.read(100, 0, 4096), alone, "nothing says yet that others follow");
        ahead.next_file();
        assert_eq!(ahead.read(100, 0, 4096), Advice::Window { from: 0, here: 100, beyond: AHEAD });
        ahead.next_file();
        assert_eq!(ahead.read(100, 0, 4096), Advice::Keep, "moved by 100 bytes");
        let mut files = 2;
        let again = loop {
            ahead.next_file();
            files += 1;
            match ahead.read(100, 0, 4096) {
                Advice::Keep => assert!(files < 200, "the window ran out"),
                advice => break advice,
            }
        };
        assert_eq!(again, Advice::Window { from: 0, here: 100, beyond: AHEAD });
        assert_eq!(files, 1 + FILES, "before a window of 256 files runs out");
        ahead.next_file();
        let advice = ahead.read(20 * MIB, 0, MIB);
        assert_eq!(advice, Advice::Window { from: 0, here: 20 * MIB, beyond: AHEAD - 19 * MIB });
    }
}
