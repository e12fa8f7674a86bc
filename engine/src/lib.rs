//! objmapper's data plane: sockets, wire, concurrency models, path resolution, statistics.
//!
//! `concurrency → session → transport, storage → protocol → errors`. PyO3 lives in `python.rs` and `errors.rs` only,
//! behind the feature `python`; the interpreter's lock is never taken to serve a request.

// The names of documented items say what they are; not every field of a plain value needs prose.
#![allow(missing_docs)]

pub mod concurrency;
pub mod engine;
pub mod errors;
pub mod in_flight;
pub mod journal;
pub mod listener;
pub mod load;
pub mod peers;
pub mod protocol;
pub mod queue;
pub mod refusals;
pub mod rules;
pub mod service;
pub mod session;
pub mod settings;
pub mod statistics;
pub mod storage;
pub mod transport;
pub mod udp;

#[cfg(feature = "python")]
mod python;
