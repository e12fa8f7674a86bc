//! UDP: version 1 in a datagram for what fits, and ranges that clients pull for everything else. The server keeps no state
//! of anybody and never sends again by itself: clients do all the repairing.
//!
//! Nobody can be flooded through it. An address that is not loopback and has not shown a cookie gets 24 bytes for a
//! question of at least 24, or nothing (`admission.rs`); what is not loopback gets datagrams that no router divides.
//!
//! `serve → deferred, answer → content, socket → batch, gate → cookie, limits → wire`; `socket.rs` and `batch.rs` are the only files here that are
//! near raw system calls.

mod admission;
mod batch;
pub mod codec;
mod content;
mod cookie;
mod counts;
mod deferred;
mod limits;
pub(crate) mod load;
mod responder;
mod serve;
mod socket;

pub use counts::DatagramCounts;
pub use limits::Network;
pub use serve::serve;
pub use socket::UdpSocket;

#[cfg(test)]
pub(crate) mod serve_tests;
