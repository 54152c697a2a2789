//! x
pub use super::process::wait_until;
