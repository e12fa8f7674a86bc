//! State that all sessions share: settings, the mapping, statistics, and the limits over all connections.

use rustix::fd::{AsFd, AsRawFd};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::ffi::CStr;
use std::fmt::Display;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use crate::access::accounts::Clients;
use crate::errors::{Error, StartError};
use crate::fd::budget::FdBudget;
use crate::fd::counted_connection::CountedConnection;
use crate::net::transport::Transport;
use crate::origin::Origins;
use crate::output_budget::OutputBudget;
use crate::protocol::Operation;
use crate::request_log::RequestLog;
use crate::settings::{Limits, Settings};
use crate::statistics::Statistics;
use crate::storage::cache::Cache;
use crate::storage::copier_threads::Copiers;
use crate::storage::listing::Listing;
use crate::storage::mapping::{Mapping, OpenObject};
use crate::storage::pool::{Client, StoragePool};
use crate::storage::remote_file_systems;
use crate::storage::staging::Staging;
use crate::storage_failures::Failures;
use crate::sync::unpoisoned;
use crate::uploads::Uploads;

/// Descriptors that connections never get: reserved for the files that requests open, the listeners, the interpreter.
pub const RESERVED_DESCRIPTORS: u64 = 32;
/// Descriptors that the server opens after its transports are served: those of the admin endpoint and the access log.
const DESCRIPTORS_STILL_TO_OPEN: u64 = 8;
/// The advice on raising RLIMIT_NOFILE leaves room for at least this many clients.
const MIN_CLIENTS: u64 = 16;
/// An idle pool's threads end within a moment; a failed start waits at most this long for them.
const END_OF_A_POOL: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Service {
    pub settings: Settings,
    pub mapping: Mapping,
    pub cache: Cache,
    pub listing: Listing,
    /// None if the server takes no writes.
    pub staging: Option<Staging>,
    /// Threads that read; None if the serving threads read themselves.
    pub storage_pool: Option<StoragePool>,
    /// Threads that only write; None if the server takes no writes.
    pub write_pool: Option<StoragePool>,
    /// Threads that copy the files that clients pass.
    pub copiers: Copiers,
    pub uploads: Arc<Uploads>,
    pub statistics: Statistics,
    pub request_log: RequestLog,
    pub fd_budget: FdBudget,
    pub failures: Failures,
    pub output: OutputBudget,
    /// Stores under prefixes.
    pub origins: Origins,
    pub clients: Clients,
    /// The cap on connections, fitted to RLIMIT_NOFILE.
    max_connections: AtomicUsize,
    /// Connections that RLIMIT_NOFILE has room for.
    fd_capacity: AtomicUsize,
    limit: u64,
    /// A descriptor with this number or a higher one means that the reserve has been reached.
    pub descriptor_limit: u64,
    /// The same limit for descriptors that a slow client can keep open while it writes.
    write_limit: u64,
    pub connections: AtomicUsize,
    /// Threads that spin at this moment instead of sleeping, and how many may.
    pub spinners: AtomicUsize,
    pub max_spinners: usize,
    /// Connections whose session is over while their client has unread descriptors. These count against the user
    /// until the client reads them or closes. The socket stays open so that the server notices, and counts as a
    /// connection, for at most `request_timeout`.
    unread: Mutex<Vec<UnreadConnection>>,
    notices: Vec<String>,
}

#[derive(Debug)]
struct UnreadConnection {
    connection: Arc<dyn CountedConnection>,
    since: Instant,
}

impl Service {
    pub fn new(settings: Settings) -> Result<Self, StartError> {
        let mapping = Mapping::new(&settings.root, settings.follow_symlinks)?;
        let remote = remote_name(&mapping)?;
        if let (Some(name), true) = (remote, settings.writable) {
            let why = format!(
                "the root is on {name}, where another machine may write as well and no lock of this server holds: serve it \
                 without --writable, or where the disk is"
            );
            return Err(StartError::new(Errno::OPNOTSUPP, why, mapping.name().display().to_string()));
        }
        let origins = Origins::start(&settings)?;
        let staging = if settings.writable { Some(Staging::new(&mapping)?) } else { None };
        let pool = |is_needed: bool, name: &'static str| {
            is_needed.then(|| StoragePool::start(name, settings.storage_pool_size)).transpose()
        };
        let storage_pool = pool(settings.async_storage, "objmapper-storage")?;
        let write_pool = pool(settings.writable, "objmapper-writer").inspect_err(|_| {
            // Otherwise the pool's threads would wait for work as long as the process lives.
            if let Some(started) = &storage_pool {
                started.stop(Instant::now() + END_OF_A_POOL);
            }
        })?;
        let uploads = Uploads::new(settings.max_uploads_per_uid, settings.max_reserved_per_uid);
        let mut notices = staging.as_ref().map_or(Vec::new(), |staging| staging.notices().to_vec());
        if let (Some(name), true) = (remote, settings.cache_size > 0) {
            notices.push(format!(
                "no objects are cached: the root is on {name}, where another machine may change an object unseen"
            ));
        }
        let limit = raise_descriptor_limit(&mut notices);
        // A quarter of the limit may be in flight; as many can be open, waiting to be sent.
        let fd_budget = limit / 4;
        let fd_capacity = limit.saturating_sub(RESERVED_DESCRIPTORS + fd_budget).max(1);
        let fd_capacity = usize::try_from(fd_capacity).unwrap_or(usize::MAX);
        let max_connections = settings.max_connections.min(fd_capacity);
        Ok(Service {
            mapping,
            cache: Cache::new(if remote.is_some() { 0 } else { settings.cache_size }, settings.cache_max_age),
            listing: Listing::default(),
            staging,
            storage_pool,
            write_pool,
            copiers: Copiers::default(),
            uploads: Arc::new(uploads),
            statistics: Statistics::new(),
            request_log: RequestLog::default(),
            fd_budget: FdBudget::new(u32::try_from(fd_budget).unwrap_or(u32::MAX)),
            failures: Failures::default(),
            origins,
            output: OutputBudget::new(settings.max_output_buffer, settings.max_output_memory),
            clients: Clients::default(),
            max_connections: max_connections.into(),
            fd_capacity: fd_capacity.into(),
            limit,
            descriptor_limit: limit.saturating_sub(RESERVED_DESCRIPTORS),
            write_limit: limit - limit / 4,
            connections: AtomicUsize::new(0),
            spinners: AtomicUsize::new(0),
            // One core must stay free for the work that the spinning threads wait for.
            max_spinners: crate::settings::cores().saturating_sub(1).max(1),
            unread: Mutex::new(Vec::new()),
            notices,
            settings,
        })
    }

    /// Fits the number of connections to what RLIMIT_NOFILE leaves after the server's own descriptors. Called once
    /// all transports are served. Returns a notice if fewer fit than requested; fails if none fits.
    pub fn fit_connections(&self) -> Result<Option<String>, StartError> {
        // The kernel returns the lowest free number.
        let next = rustix::io::fcntl_dupfd_cloexec(self.mapping.root(), 0);
        let next = next.map_or(self.limit, |next| next.as_raw_fd() as u64);
        // The server may have accepted clients already.
        let accepted = self.connections.load(Relaxed) as u64;
        let own = next.saturating_sub(accepted) + DESCRIPTORS_STILL_TO_OPEN;
        let free = self.limit.saturating_sub(RESERVED_DESCRIPTORS + own);
        let limit = self.limit;
        if free == 0 {
            let why = format!(
                "RLIMIT_NOFILE is too low to serve one client (got {limit}): the server uses about {own} descriptors and \
                 reserves {RESERVED_DESCRIPTORS}; raise it to at least {} (ulimit -n, LimitNOFILE=)",
                RESERVED_DESCRIPTORS + own + MIN_CLIENTS
            );
            return Err(StartError::new(Errno::MFILE, why, "ulimit -n"));
        }
        let fd_capacity = self.fd_capacity.load(Relaxed).min(usize::try_from(free).unwrap_or(usize::MAX));
        self.fd_capacity.store(fd_capacity, Relaxed);
        let requested = self.settings.max_connections;
        let fits = requested.min(fd_capacity);
        self.max_connections.store(fits, Relaxed);
        Ok((fits < requested).then(|| {
            format!(
                "max_connections lowered from {requested} to {fits}: RLIMIT_NOFILE is {limit} (raise it with ulimit -n or \
                 LimitNOFILE=)"
            )
        }))
    }

    /// Checks whether the root still exists, and follows it if it was replaced. Skips remote roots, where the check
    /// could wait for another machine.
    pub fn follow_root(&self) {
        if !self.mapping.is_remote() {
            let renew = || self.staging.as_ref().map_or(Ok(()), Staging::renew);
            self.mapping.root_state().check(|| renew().map_err(|error| error.to_string()));
        }
    }

    /// Adjustments made at start, a line each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The cap on connections that is in force.
    pub fn max_connections(&self) -> usize {
        self.max_connections.load(Relaxed)
    }

    /// Changes the limits that may change while sessions live. Connected clients stay, even over a lower cap.
    pub fn set_limits(&self, limits: &Limits) {
        self.max_connections.store(limits.max_connections.min(self.fd_capacity.load(Relaxed)), Relaxed);
        self.cache.max_age.set(limits.cache_max_age);
        self.settings.idle_timeout.set(limits.idle_timeout);
        self.settings.header_timeout.set(limits.header_timeout);
        self.settings.request_timeout.set(limits.request_timeout);
    }

    /// Caches the content of a small object, unless a later change of the file might go unnoticed. `seen` is a time
    /// before it was opened.
    pub fn cache_object(&self, path: &CStr, opened: &OpenObject, bytes: &[u8], seen: SystemTime) {
        if self.cache.is_on() && self.mapping.sees_changes_of(opened) {
            self.cache.put(path, opened.version, bytes, seen);
        }
    }

    /// Counts one connection more; false if the cap is reached (then nothing is counted).
    pub fn admit_connection(&self) -> bool {
        if self.connections.fetch_add(1, Relaxed) < self.max_connections() {
            return true;
        }
        self.connections.fetch_sub(1, Relaxed);
        false
    }

    pub fn connection_ended(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    /// Whether a descriptor opened for a write may stay open until its client, or the disk, is ready. The kernel
    /// returns the lowest free number, so a high number means that many are open; the last quarter is for clients
    /// that connect and read.
    pub fn has_fd_headroom(&self, descriptor: &impl AsFd) -> bool {
        (descriptor.as_fd().as_raw_fd() as u64) < self.write_limit
    }

    /// Counts a storage error and keeps it for the log, whether or not a client is left to receive it. Returns the
    /// error to answer with.
    pub fn note_failure(&self, error: Error, operation: Operation, uri: &impl Display) -> Error {
        let error = self.mapping.explained(error);
        if let Some(errno) = error.of_storage() {
            self.failures.note(errno.raw_os_error(), operation.name(), uri);
        }
        error
    }

    /// Work that storage has not finished.
    pub fn storage_pending(&self) -> usize {
        let pools = [&self.storage_pool, &self.write_pool].into_iter().flatten();
        pools.map(StoragePool::pending).sum::<usize>() + self.copiers.pending() + self.origins.pending()
    }

    /// Ends storage work for a connection, except writes whose bytes have all arrived.
    pub fn cancel_storage(&self, client: Client) {
        for pool in [&self.storage_pool, &self.write_pool].into_iter().flatten() {
            pool.cancel(client);
        }
        self.copiers.cancel(client);
    }

    /// Starts further threads in place of those that are stuck.
    pub fn replace_stuck_threads(&self) {
        for pool in [&self.storage_pool, &self.write_pool].into_iter().flatten() {
            pool.replace_stuck();
        }
    }

    /// Ends the storage threads; leaves behind those that are stuck at `until`.
    pub fn stop_storage(&self, until: Instant) {
        // Close the copiers first, so that they end while the pools stop.
        self.copiers.close();
        for pool in [&self.storage_pool, &self.write_pool].into_iter().flatten() {
            pool.stop(until);
        }
        self.copiers.stop(until);
        self.origins.stop(until);
    }

    /// Whether clients may pass descriptors for puts.
    pub fn takes_descriptors(&self, transport: Transport) -> bool {
        self.staging.is_some() && transport == Transport::Unix
    }

    /// Keeps a connection without a session until its client has received its descriptors.
    pub fn track_unread(&self, connection: Arc<dyn CountedConnection>) {
        self.unread().push(UnreadConnection { connection, since: Instant::now() });
    }

    /// Drops the kept connections whose clients have read everything or are gone, and those that have had
    /// `request_timeout` to read. Called once a second.
    pub fn sweep_unread(&self) {
        let mut over = Vec::new();
        self.unread().retain(|kept| {
            kept.connection.settle_unread();
            let has_unread_fds = kept.connection.has_unread_fds();
            let is_late = kept.since.elapsed() > self.settings.request_timeout.get();
            if has_unread_fds && is_late {
                self.statistics.gauges(kept.connection.transport()).timeouts_total.fetch_add(1, Relaxed);
            }
            if !has_unread_fds || is_late {
                over.push(Arc::clone(&kept.connection));
            }
            has_unread_fds && !is_late
        });
        for connection in over {
            connection.forget_unread();
        }
    }

    /// Drops all kept connections; nothing checks them any more, and they hold references to the service.
    pub fn drop_unread(&self) {
        let kept = std::mem::take(&mut *self.unread());
        for kept in kept {
            kept.connection.forget_unread();
        }
    }

    fn unread(&self) -> std::sync::MutexGuard<'_, Vec<UnreadConnection>> {
        unpoisoned(self.unread.lock())
    }
}

/// The name of the root's file system if other machines may change it without this kernel's knowledge.
fn remote_name(mapping: &Mapping) -> Result<Option<&'static str>, StartError> {
    remote_file_systems::remote_name(mapping.root()).map_err(|errno| {
        StartError::new(
            errno,
            "cannot get the type of this root's file system",
            mapping.name().display().to_string(),
        )
    })
}

/// Raises the soft limit on descriptors to the hard one. Returns the limit in force.
fn raise_descriptor_limit(notices: &mut Vec<String>) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // None means unlimited; the kernel's own ceiling (fs.nr_open) holds then.
    let hard = limit.maximum.unwrap_or(1 << 20);
    let soft = limit.current.unwrap_or(hard);
    if soft >= hard {
        return soft;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(hard), maximum: limit.maximum }) {
        Ok(()) => hard,
        Err(errno) => {
            notices.push(format!("cannot raise RLIMIT_NOFILE from {soft} to {hard}: {errno}"));
            soft
        }
    }
}
