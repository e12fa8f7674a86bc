//! The settings that the engine uses, as one value, read from a `Config` by name. `objmapper_server/config.py` checks
//! and documents each. Only the time limits can change while the server runs.

use rustix::fd::OwnedFd;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::model::Model;
use crate::net::network::Network;
use crate::net::transport::Transport;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptimizeFor {
    /// Threads spin briefly before they sleep.
    Latency,
    /// Threads sleep at once, and batch.
    Throughput,
}

#[derive(Debug, Clone)]
#[cfg_attr(feature = "python", derive(pyo3::FromPyObject))]
pub struct Settings {
    pub root: PathBuf,
    pub unix: Option<PathBuf>,
    /// Permissions of the Unix socket's file.
    pub unix_mode: u32,
    /// Numeric address and port.
    #[cfg_attr(feature = "python", pyo3(from_py_with = crate::python::socket_address))]
    pub tcp: Option<std::net::SocketAddr>,
    /// Numeric address and port.
    #[cfg_attr(feature = "python", pyo3(from_py_with = crate::python::socket_address))]
    pub udp: Option<std::net::SocketAddr>,
    /// Networks, besides loopback, whose clients may request plain replies.
    pub udp_trusted: Vec<Network>,
    /// Bytes a second over UDP towards one address that is not loopback; 0: no limit.
    pub udp_rate_limit: u64,
    /// Sockets that were open before the start, listening or for datagrams, in addition to those above. The caller
    /// passes them to the engine beside the settings.
    #[cfg_attr(feature = "python", pyo3(default, from_py_with = crate::python::sockets))]
    pub inherited: Vec<Arc<OwnedFd>>,
    /// The concrete model of each transport; the caller passes it beside the settings, too.
    #[cfg_attr(feature = "python", pyo3(default))]
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
    /// How long the server uses a cached content before it reads the file again.
    #[cfg_attr(feature = "python", pyo3(from_py_with = crate::python::duration))]
    pub cache_max_age: Duration,
    /// Bytes of answers that the server holds in memory for one connection.
    pub max_output_buffer: usize,
    /// The same for all connections together.
    pub max_output_memory: usize,
    pub follow_symlinks: bool,
    /// Whether clients may put and delete.
    pub writable: bool,
    /// Bytes of the largest object that a client may put; 0: any.
    pub max_object_size: u64,
    /// The average rate, in bytes a second, that a content must reach once `request_timeout` has passed; 0: any.
    pub min_upload_rate: u64,
    /// How long one put may take in total.
    #[cfg_attr(feature = "python", pyo3(from_py_with = crate::python::duration))]
    pub upload_timeout: Duration,
    /// Contents that one user may send at a time; 0: any number.
    pub max_uploads_per_uid: u32,
    /// Bytes that the server reserves for contents that one user has announced and not sent; 0: none.
    pub max_reserved_per_uid: u64,
    pub idle_timeout: TimeLimit,
    pub header_timeout: TimeLimit,
    pub request_timeout: TimeLimit,
    /// Stores under prefixes.
    #[cfg_attr(feature = "python", pyo3(from_py_with = crate::python::origins))]
    pub origins: Vec<OriginSettings>,
    /// The directory of the disk cache; there if there is an origin.
    pub disk_cache: Option<PathBuf>,
    /// Bytes of the disk that the cache may take in all.
    pub disk_cache_size: u64,
}

/// A store under a prefix.
#[derive(Clone)]
#[cfg_attr(feature = "python", derive(pyo3::FromPyObject))]
pub struct OriginSettings {
    pub prefix: String,
    pub url: String,
    /// Options of the store by their documented names; some are secrets.
    #[cfg_attr(feature = "python", pyo3(attribute("store_options")))]
    pub options: BTreeMap<String, String>,
    pub revalidate: Revalidate,
    /// How long an object that the origin has last confirmed is served while the origin fails.
    #[cfg_attr(feature = "python", pyo3(from_py_with = crate::python::duration))]
    pub stale_if_error: Duration,
    /// How long the server remembers that an object does not exist.
    #[cfg_attr(feature = "python", pyo3(from_py_with = crate::python::duration))]
    pub negative_ttl: Duration,
    /// How long a download may go without a byte before the rest is asked for again.
    #[cfg_attr(feature = "python", pyo3(from_py_with = crate::python::duration))]
    pub stall_timeout: Duration,
}

impl std::fmt::Debug for OriginSettings {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The options' values stay out of logs and messages.
        let names: Vec<&String> = self.options.keys().collect();
        out.debug_struct("OriginSettings")
            .field("prefix", &self.prefix)
            .field("url", &self.url)
            .field("options", &names)
            .finish_non_exhaustive()
    }
}

/// When the server asks an origin whether an object that it has is still current.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revalidate {
    Never,
    Always,
    /// Once that time has passed since the last answer.
    After(Duration),
}

/// A time limit that can change while other threads read it.
#[derive(Debug)]
pub struct TimeLimit(AtomicU64);

impl TimeLimit {
    pub fn set(&self, limit: Duration) {
        self.0.store(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    pub fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Relaxed))
    }
}

impl From<Duration> for TimeLimit {
    fn from(limit: Duration) -> Self {
        let new = TimeLimit(AtomicU64::new(0));
        new.set(limit);
        new
    }
}

impl Clone for TimeLimit {
    fn clone(&self) -> Self {
        self.get().into()
    }
}

impl PartialEq<TimeLimit> for Duration {
    fn eq(&self, limit: &TimeLimit) -> bool {
        *self == limit.get()
    }
}

impl PartialOrd<TimeLimit> for Duration {
    fn partial_cmp(&self, limit: &TimeLimit) -> Option<std::cmp::Ordering> {
        self.partial_cmp(&limit.get())
    }
}

/// The settings that may change while the server runs.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "python", derive(pyo3::FromPyObject))]
pub struct Limits {
    pub max_connections: usize,
    #[cfg_attr(feature = "python", pyo3(from_py_with = crate::python::duration))]
    pub cache_max_age: Duration,
    #[cfg_attr(feature = "python", pyo3(from_py_with = crate::python::duration))]
    pub idle_timeout: Duration,
    #[cfg_attr(feature = "python", pyo3(from_py_with = crate::python::duration))]
    pub header_timeout: Duration,
    #[cfg_attr(feature = "python", pyo3(from_py_with = crate::python::duration))]
    pub request_timeout: Duration,
}

impl Settings {
    /// Workers of a pool: the configured number, else twice the cores.
    pub fn workers(&self) -> usize {
        if self.pool_size > 0 { self.pool_size } else { cores() * 2 }
    }
}

/// The processors that this process may use, as of the first call: finding out reads files of the cgroup.
pub fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}
