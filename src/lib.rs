//! swarmfs: a read-only filesystem whose chunks travel through a LAN swarm.
//!
//! The modules in floor order; a file names only floors below its own (`tests/floors.rs` keeps that).

// words
pub mod chunk;
// data
pub mod cache;
pub mod catalogue;
pub mod keys;
pub mod wire;
// effects
pub mod driver;
// fronts
pub mod fs;
pub mod fuse;
pub mod stream;
