//! UDP: version 1 in a datagram for what fits, and ranges that clients pull for everything else. The server
//! keeps no state of a client and never retransmits by itself; clients repair all losses.
//!
//! An attacker cannot use the server to flood a third party. An address that is not loopback and has no valid
//! cookie gets 24 bytes for a request of at least 24, or nothing (`admission.rs`). Addresses off loopback get
//! datagrams that no router fragments.
//!
//! `serve → deferred_limits, responder → object_reader, socket → batch, admission → cookie, address_limits → codec`;
//! only `socket.rs` and `batch.rs` here make raw system calls.

mod address_limits;
mod admission;
mod batch;
pub mod codec;
mod cookie;
mod counts;
mod deferred_limits;
mod object_reader;
mod responder;
mod serve;
mod socket;

pub use counts::DatagramCounts;
pub use serve::serve;
pub use socket::UdpSocket;

#[cfg(test)]
pub(crate) mod serve_tests;
