//! What all sessions share: settings, the mapping, statistics, and the limits that hold over all connections.

use rustix::fd::OwnedFd;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::cache::Cache;
use crate::errors::StartError;
use crate::in_flight::InFlight;
use crate::mapping::Mapping;
use crate::settings::Settings;
use crate::statistics::Statistics;
use crate::storage_pool::StoragePool;
use crate::transport;

/// Descriptors that connections never get: for the files that requests open, the listeners, the interpreter.
pub const RESERVED_DESCRIPTORS: u64 = 32;

#[derive(Debug)]
pub struct Service {
    pub settings: Settings,
    pub mapping: Mapping,
    pub cache: Cache,
    /// None where storage is read by whoever serves.
    pub storage_pool: Option<StoragePool>,
    pub statistics: Statistics,
    pub in_flight: InFlight,
    /// The cap on connections, fitted to RLIMIT_NOFILE.
    pub max_connections: usize,
    /// A descriptor with this number or a higher one means that the reserve has been reached.
    pub descriptor_limit: u64,
    pub connections: AtomicUsize,
    /// Threads that spin at this moment instead of sleeping, and how many may.
    pub spinners: AtomicUsize,
    pub max_spinners: usize,
    estranged: Mutex<Vec<Estranged>>,
    notices: Vec<String>,
}

/// A socket whose session is over, but whose client has not received its descriptors: they count against the user until
/// it reads them or closes, so the socket stays open to tell when.
#[derive(Debug)]
struct Estranged {
    socket: OwnedFd,
    unread: u32,
}

impl Service {
    pub fn new(settings: Settings) -> Result<Self, StartError> {
        let mapping = Mapping::new(&settings.root, settings.follow_symlinks)?;
        let storage_pool =
            if settings.async_storage { Some(StoragePool::start(settings.storage_pool_size)?) } else { None };
        let mut notices = Vec::new();
        let limit = raise_descriptor_limit(&mut notices);
        // A quarter of the limit may be in flight; as many can be open, waiting to be sent.
        let in_flight = limit / 4;
        let room = limit.saturating_sub(RESERVED_DESCRIPTORS + in_flight).max(1);
        let max_connections = settings.max_connections.min(usize::try_from(room).unwrap_or(usize::MAX));
        if max_connections < settings.max_connections {
            notices.push(format!(
                "max_connections lowered from {} to {max_connections}: RLIMIT_NOFILE is {limit} (raise it with ulimit -n \
                 or LimitNOFILE=)",
                settings.max_connections
            ));
        }
        Ok(Service {
            mapping,
            cache: Cache::new(settings.cache_size),
            storage_pool,
            statistics: Statistics::new(),
            in_flight: InFlight::new(u32::try_from(in_flight).unwrap_or(u32::MAX)),
            max_connections,
            descriptor_limit: limit.saturating_sub(RESERVED_DESCRIPTORS),
            connections: AtomicUsize::new(0),
            spinners: AtomicUsize::new(0),
            // One core must stay free to do what is being spun for.
            max_spinners: crate::settings::cores().saturating_sub(1).max(1),
            estranged: Mutex::new(Vec::new()),
            notices,
            settings,
        })
    }

    /// What was fitted at start, a line each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Counts one connection more; false where the cap is reached (and then nothing is counted).
    pub fn admit_connection(&self) -> bool {
        if self.connections.fetch_add(1, Relaxed) < self.max_connections {
            return true;
        }
        self.connections.fetch_sub(1, Relaxed);
        false
    }

    pub fn connection_ended(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    /// Settles the account of a session that is over. Takes the socket where descriptors are still under way in it.
    pub fn settle(&self, socket: OwnedFd, unread: u32) {
        if unread == 0 {
            return;
        }
        match transport::unread_by_peer(&socket) {
            Ok(queued) if queued > 0 => {
                // The client sees the end of the stream; what is queued in front of it stays readable.
                let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
                self.estranged().push(Estranged { socket, unread });
            }
            _ => self.in_flight.release(unread),
        }
    }

    /// Closes the estranged sockets whose clients have read everything or are gone. Called once a second.
    pub fn sweep_estranged(&self) {
        self.estranged().retain(|estranged| {
            let waits = matches!(transport::unread_by_peer(&estranged.socket), Ok(queued) if queued > 0);
            if !waits {
                self.in_flight.release(estranged.unread);
            }
            waits
        });
    }

    fn estranged(&self) -> std::sync::MutexGuard<'_, Vec<Estranged>> {
        self.estranged.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
