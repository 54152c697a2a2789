//! Whether a thread that waits for us has been killed.
//!
//! The kernel says INTERRUPT at most once to a server that does not take it, so a killed reader is found by looking: a
//! fatal signal stays pending while its thread waits in an uninterruptible request.

/// Signals that do nothing or stop by default; every other one ends a process that has no handler for it.
const NOT_FATAL: u64 = bit(libc::SIGCHLD)
    | bit(libc::SIGCONT)
    | bit(libc::SIGURG)
    | bit(libc::SIGWINCH)
    | bit(libc::SIGSTOP)
    | bit(libc::SIGTSTP)
    | bit(libc::SIGTTIN)
    | bit(libc::SIGTTOU);
const KILL: u64 = bit(libc::SIGKILL);

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Whether a fatal signal is pending for the thread with this number. One that cannot be looked at is not called
/// killed: `hidepid` hides other users' threads, and what a thread asked for before it ended may be awaited by another.
pub fn is_killed(thread: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{thread}/status")).is_ok_and(|status| is_fatal(&status))
}

fn is_fatal(status: &str) -> bool {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
    };
    // A fatal signal without a core dump becomes a KILL pending for each thread as it is sent.
    if field("SigPnd") & KILL != 0 {
        return true;
    }
    // One with a core dump stays what it is until a thread takes it.
    let unhandled = !(field("SigBlk") | field("SigIgn") | field("SigCgt"));
    (field("SigPnd") | field("ShdPnd")) & unhandled & !NOT_FATAL != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: u64, shared: u64, blocked: u64, ignored: u64, caught: u64) -> String {
        format!(
            "Name:\tdd\nSigQ:\t0/1\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\n\
             SigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
        )
    }

    #[test]
    fn a_pending_kill_is_fatal_whatever_is_blocked() {
        assert!(is_fatal(&status(KILL, 0, u64::MAX, 0, 0)));
        assert!(!is_fatal(&status(0, 0, 0, 0, 0)));
    }

    #[test]
    fn a_signal_that_is_blocked_ignored_or_handled_is_not() {
        let quit = bit(libc::SIGQUIT);
        assert!(is_fatal(&status(0, quit, 0, 0, 0)));
        assert!(!is_fatal(&status(0, quit, quit, 0, 0)));
        assert!(!is_fatal(&status(0, quit, 0, quit, 0)));
        assert!(!is_fatal(&status(0, quit, 0, 0, quit)));
        assert!(!is_fatal(&status(bit(libc::SIGCHLD) | bit(libc::SIGTSTP), 0, 0, 0, 0)));
    }

    #[test]
    fn a_thread_that_lives_or_cannot_be_seen_is_not_called_killed() {
        assert!(!is_killed(std::process::id()));
        assert!(!is_killed(u32::MAX));
    }
}
