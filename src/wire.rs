//! What travels and what is signed: each format drawn in a table where it is parsed.
//!
//! Parsing is the edge: inside, the types cannot hold nonsense. Nothing here owns a socket.

pub mod codec;
pub mod datagram;
pub mod deframe;
pub mod frame;
pub mod head;
pub mod header;
pub mod sealed;
