//! Sockets: which interfaces, which ports, where broadcasts go. It decides nothing that the swarm decides.

pub mod channel;
pub mod discover;
pub mod interfaces;
pub mod mail;
pub mod sockets;
