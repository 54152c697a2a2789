//! A request on its way to an answer: what it waits for at the moment, until when, and how it is given up.
//!
//! A request holds no thread. It may wait several times in a row (a page, then the next one, then bytes); each wait is
//! a step with a ticket of its own. Giving up cancels the step of the moment, whose closure then answers the request:
//! every request is answered exactly once, by whoever is called for its last step.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::{Error, Supply};
use crate::driver::Ticket;

/// One request.
pub struct Call {
    id: u64,
    thread: u32,
    patience: Option<Duration>,
    state: Mutex<State>,
    calls: Arc<Calls>,
}

#[derive(Default)]
struct State {
    /// When it first had to wait.
    parked: Option<Instant>,
    /// Counts waits, so that a ticket that comes late does not pass for that of the next step.
    step: u64,
    ticket: Option<Ticket>,
    given_up: Option<Error>,
}

/// The requests of one filesystem that wait.
#[derive(Default)]
pub(crate) struct Calls {
    next: AtomicU64,
    ended: AtomicBool,
    parked: Mutex<BTreeMap<u64, Weak<Call>>>,
}

impl Call {
    /// The thread that waits for the answer and may be killed meanwhile; 0 if none should be looked at.
    pub fn thread(&self) -> u32 {
        self.thread
    }

    /// Waits for what `ask` asks for until the deadline it is given. What was given up already is asked for and
    /// cancelled at once, so that its closure answers in either case.
    pub(crate) fn park(self: &Arc<Call>, supply: &impl Supply, ask: impl FnOnce(Option<Instant>) -> Ticket) {
        let (step, parked) = {
            let mut state = self.state();
            state.step += 1;
            state.ticket = None;
            (state.step, *state.parked.get_or_insert_with(Instant::now))
        };
        if step == 1 {
            self.calls.parked().insert(self.id, Arc::downgrade(self));
        }
        // What a request may wait in all, not for each of its steps.
        let ticket = ask(self.patience.map(|patience| parked + patience));
        let mut state = self.state();
        if state.step == step {
            state.ticket = Some(ticket);
        }
        if self.calls.ended.load(Ordering::SeqCst) {
            state.given_up.get_or_insert(Error::Ended);
        }
        let given_up = state.given_up.is_some();
        drop(state);
        if given_up {
            supply.cancel(ticket);
        }
    }

    /// Why it was given up, if it was.
    pub(super) fn given_up(&self) -> Option<Error> {
        self.state().given_up
    }

    pub(crate) fn give_up(&self, supply: &impl Supply, error: Error) {
        let ticket = {
            let mut state = self.state();
            state.given_up.get_or_insert(error);
            state.ticket.take()
        };
        if let Some(ticket) = ticket {
            supply.cancel(ticket);
        }
    }

    fn parked_for(&self, now: Instant) -> Duration {
        self.state().parked.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let waited = self.state.get_mut().is_ok_and(|state| state.parked.is_some());
        if waited {
            self.calls.parked().remove(&self.id);
        }
    }
}

impl Calls {
    pub(crate) fn begin(self: &Arc<Calls>, thread: u32, patience: Option<Duration>) -> Arc<Call> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        Arc::new(Call { id, thread, patience, state: Mutex::default(), calls: self.clone() })
    }

    /// Those that have waited so long.
    pub fn waiting_for(&self, at_least: Duration) -> Vec<Arc<Call>> {
        // Upgraded outside the lock: the last holder's drop takes it.
        let parked: Vec<_> = self.parked().values().cloned().collect();
        let now = Instant::now();
        parked.iter().filter_map(Weak::upgrade).filter(|call| call.parked_for(now) >= at_least).collect()
    }

    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn parked(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Weak<Call>>> {
        self.parked.lock().expect("no holder of this lock panics")
    }
}
