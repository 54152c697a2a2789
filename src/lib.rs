//! swarmfs: a read-only filesystem whose chunks travel through a LAN swarm.
//!
//! The modules in floor order; a file names only floors below its own (`tests/floors.rs` keeps that).
//!
//! Below the effects the clock, sockets and files are banned: `clippy.toml` lists the calls, the attributes here switch
//! the ban on for a module and everything in it.

// words
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod chunk;
// data
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod cache;
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod catalogue;
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod keys;
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod secret;
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod settings;
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod wire;
// decisions
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod swarm;
// effects
pub mod driver;
pub mod net;
pub mod origin;
pub mod state;
// fronts
pub mod control;
pub mod fs;
pub mod fuse;
pub mod stream;
// command line
pub mod cli;
pub mod run;
