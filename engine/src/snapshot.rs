//! The figures of the engine at one moment.

use std::collections::BTreeMap;

use crate::service::Service;
use crate::udp::DatagramCounts;

/// The state of one transport, for the snapshot.
#[derive(Debug)]
#[cfg_attr(feature = "python", derive(pyo3::IntoPyObject))]
pub struct TransportState {
    pub transport: &'static str,
    pub model: &'static str,
    pub address: String,
    pub connections: usize,
    pub connections_total: u64,
    pub connections_waiting: usize,
    pub active_threads: usize,
    pub queue_depth: usize,
    pub queue_depth_max: usize,
    pub rejected_total: u64,
    pub accept_failures_total: u64,
    pub timeouts_total: u64,
    pub protocol_errors_total: u64,
    pub panics_total: u64,
    pub steals_total: u64,
    pub parks_total: u64,
}

#[derive(Debug)]
#[cfg_attr(feature = "python", derive(pyo3::IntoPyObject))]
pub struct Snapshot {
    pub uptime: f64,
    pub draining: bool,
    pub max_connections: usize,
    pub descriptors_in_flight: u32,
    pub output_bytes: usize,
    pub uploads_in_flight: u64,
    pub reserved_bytes: u64,
    pub denied_total: BTreeMap<&'static str, u64>,
    /// By errno.
    pub storage_errors_total: BTreeMap<i32, u64>,
    pub root_problem: Option<String>,
    pub cache_hits_total: u64,
    pub cache_misses_total: u64,
    pub cache_bytes: u64,
    pub disk_io_pending: usize,
    pub figures: Vec<crate::statistics::Figures>,
    pub transports: Vec<TransportState>,
    /// None if the server does not serve UDP.
    pub datagrams: Option<DatagramCounts>,
}

impl Snapshot {
    pub fn new(
        service: &Service,
        draining: bool,
        transports: Vec<TransportState>,
        datagrams: Option<DatagramCounts>,
    ) -> Self {
        let cache = service.statistics.cache_counts();
        let (uploads_in_flight, reserved_bytes) = service.uploads.figures();
        Snapshot {
            uptime: service.statistics.uptime().as_secs_f64(),
            draining,
            max_connections: service.max_connections(),
            descriptors_in_flight: service.fd_budget.taken(),
            output_bytes: service.output.taken(),
            uploads_in_flight,
            reserved_bytes,
            denied_total: service.clients.denials.counts().collect(),
            storage_errors_total: service.failures.counts(),
            root_problem: service.mapping.root_state().problem(),
            cache_hits_total: cache.hits,
            cache_misses_total: cache.misses,
            cache_bytes: service.cache.size(),
            disk_io_pending: service.storage_pending(),
            figures: service.statistics.figures(),
            transports,
            datagrams,
        }
    }
}
