//! Gauges and counters that do not concern single requests.

use std::sync::atomic::{AtomicU64, AtomicUsize};

/// The gauges and counters of one transport.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Gauges {
    pub connections: AtomicUsize,
    pub connections_total: AtomicU64,
    pub connections_waiting: AtomicUsize,
    pub active_threads: AtomicUsize,
    pub queue_depth: AtomicUsize,
    pub queue_depth_max: AtomicUsize,
    pub rejected_total: AtomicU64,
    pub accept_failures_total: AtomicU64,
    pub timeouts_total: AtomicU64,
    pub protocol_errors_total: AtomicU64,
    /// Sessions that ended by a panic in the server.
    pub panics_total: AtomicU64,
    pub steals_total: AtomicU64,
    pub parks_total: AtomicU64,
}
