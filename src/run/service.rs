//! What a service manager is told: that the node is ready, what it does, and that its event loop still turns.
//!
//! Where none asks (`NOTIFY_SOCKET` is not set) every word goes nowhere.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

use super::live::Live;
use super::show;
use crate::control::Node;

/// How often the status line is renewed where no watchdog asks for more.
const PAUSE: Duration = Duration::from_secs(10);

/// Says that the node is ready, then shows its state and feeds the watchdog for as long as the event loop answers.
pub async fn attend(node: &Live) {
    let watchdog = sd_notify::watchdog_enabled();
    // systemd recommends half of what it allows.
    let pause = watchdog.map_or(PAUSE, |limit| (limit / 2).min(PAUSE));
    ready(&show::line(&node.status()));
    loop {
        tokio::time::sleep(pause).await;
        node.turns().await;
        say(&[NotifyState::Watchdog, NotifyState::Status(&show::line(&node.status()))]);
    }
}

/// Says that all that was waited for is there, and what it is.
pub fn ready(status: &str) {
    say(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Says that the node ends because it was asked to.
pub fn stopping() {
    say(&[NotifyState::Stopping]);
}

fn say(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "the service manager was not told");
    }
}
