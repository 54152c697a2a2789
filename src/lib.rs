//! swarmfs: a read-only filesystem whose chunks travel through a LAN swarm.
//!
//! The modules in floor order; a file names only floors below its own (`tests/floors.rs` keeps that).

// words
pub mod chunk;
// data
pub mod cache;
pub mod catalogue;
pub mod keys;
pub mod settings;
pub mod wire;
// decisions
pub mod swarm;
// effects
pub mod driver;
pub mod origin;
// fronts
pub mod control;
pub mod fs;
pub mod fuse;
pub mod stream;
// command line
pub mod cli;
pub mod run;
