//! objmapper's data plane: sockets, wire format, concurrency models, path resolution, statistics.
//!
//! `engine → concurrency → session → service → net, storage, access, fd, statistics → errors → protocol`, and nothing
//! back up. PyO3 lives in `python.rs` and `errors.rs` only, behind the feature `python`; the interpreter's lock is never
//! taken to serve a request.

// The names of documented items explain them; not every field of a plain value needs prose.
#![allow(missing_docs)]
// Python calls the engine: without it most items here are used by tests alone.
#![cfg_attr(not(feature = "python"), allow(dead_code))]

mod access;
mod bounded_queue;
mod codel;
mod concurrency;
mod disk_cache;
mod endpoint;
mod engine;
mod errors;
mod fd;
mod load;
mod model;
mod net;
mod origin;
mod output_budget;
mod protocol;
mod request_log;
mod service;
mod session;
mod settings;
mod snapshot;
mod spawn;
mod statistics;
mod storage;
mod storage_failures;
mod sync;
mod udp;
mod uploads;

#[cfg(all(test, model_check))]
mod loom_tests;
#[cfg(feature = "python")]
mod python;

/// Items that `benches/recording.rs` measures.
pub mod recording {
    pub use crate::model::Model;
    pub use crate::net::transport::Transport;
    pub use crate::protocol::{Operation, Status};
    pub use crate::settings::cores;
    pub use crate::statistics::{Answered, Labels, Statistics};
}
