//! The settings, as one frozen value. Python validates them; see `objmapper_server/config.py` for what each means.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::concurrency::Model;
use crate::transport::Transport;
use crate::udp::Network;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptimizeFor {
    /// Threads spin briefly before they sleep.
    Latency,
    /// Threads sleep at once, and batch.
    Throughput,
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub root: PathBuf,
    pub unix: Option<PathBuf>,
    /// Permissions of the Unix socket's file.
    pub unix_mode: u32,
    /// Numeric address and port.
    pub tcp: Option<std::net::SocketAddr>,
    /// Numeric address and port.
    pub udp: Option<std::net::SocketAddr>,
    /// Networks, besides loopback, that may ask for plain replies.
    pub udp_trusted: Vec<Network>,
    /// Bytes a second over UDP towards one address that is not loopback; 0: no limit.
    pub udp_rate_limit: u64,
    pub models: BTreeMap<Transport, Model>,
    /// 0: twice the cores.
    pub pool_size: usize,
    pub max_queue_depth: usize,
    pub max_threads: usize,
    pub max_connections: usize,
    pub optimize_for: OptimizeFor,
    pub async_storage: bool,
    pub storage_pool_size: usize,
    /// Bytes of small objects kept in memory; 0 keeps none.
    pub cache_size: u64,
    pub follow_symlinks: bool,
    /// Whether clients may put and delete.
    pub writable: bool,
    pub idle_timeout: Duration,
    pub header_timeout: Duration,
    pub request_timeout: Duration,
}

impl Settings {
    /// Workers of a pool: what was asked for, else twice the cores.
    pub fn workers(&self) -> usize {
        if self.pool_size > 0 { self.pool_size } else { cores() * 2 }
    }
}

/// The processors that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
