//! Sockets: which interfaces, which ports, where broadcasts go. It decides nothing that the swarm decides.

pub mod discover;
pub mod interfaces;
pub mod sockets;
