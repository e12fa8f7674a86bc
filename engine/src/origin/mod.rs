//! Stores under prefixes of the URIs: S3, GCS, Azure Blob, HTTP. Their objects become files of the disk cache.
//!
//! Sessions ask [`Origins`] as they ask the mapping: what is here is opened at once; what is not comes later, as from
//! a slow disk. A runtime of its own talks to the stores; it never touches a client's socket.

mod absent_keys;
mod fill;
mod flight;
mod mount;
mod problems;
mod store;
mod turns;

use std::ffi::CStr;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::{Handle, Runtime};

use crate::disk_cache::{DiskCache, RoomUsage};
use crate::errors::{Error, OriginFailure, StartError};
pub use crate::origin::mount::{Mount, MountFigures};
use crate::origin::turns::Turns;
use crate::settings::Settings;
use crate::storage::mapping::{ObjectMeta, OpenObject};
use crate::storage::pool::User;
use crate::sync::unpoisoned;

/// Threads that talk to stores.
const THREADS: usize = 2;
/// Threads that wait for the cache's disk.
const DISK_THREADS: usize = 8;
/// How often a waiting request looks whether its client has gone.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How often the cache looks which files that left are still held.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How long a download that a datagram began goes on without another request for it.
const PREFETCH_TIME: Duration = Duration::from_secs(60);
/// Downloads that datagrams may have begun: any address can send them.
const MAX_PREFETCHES: usize = 64;
/// A flight may end for want of waiters at the moment when a request joins it; the request begins another.
const JOINS: usize = 3;

/// All mounts, and what they share.
#[derive(Debug, Default)]
pub struct Origins(Option<Running>);

#[derive(Debug)]
struct Running {
    /// The longest prefix first.
    mounts: Vec<Arc<Mount>>,
    cache: Arc<DiskCache>,
    pending: Arc<AtomicUsize>,
    prefetches: Arc<AtomicUsize>,
    turns: Turns,
    handle: Handle,
    runtime: Mutex<Option<Runtime>>,
}

/// The figures of the disk cache and of all mounts.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "python", derive(pyo3::IntoPyObject))]
pub struct OriginFigures {
    pub directory: String,
    pub size: u64,
    pub usage: RoomUsage,
    pub evictions: u64,
    pub damaged: u64,
    pub mounts: Vec<MountFigures>,
}

/// What a waiting request asks of its origin.
#[derive(Debug, Clone)]
pub struct OriginRequest {
    pub mount: Arc<Mount>,
    pub key: String,
    /// Whose request it is.
    pub user: User,
    pub deadline: Option<Instant>,
}

impl Origins {
    /// Opens the cache and the mounts, and starts the runtime, if the settings name an origin.
    pub fn start(settings: &Settings) -> Result<Origins, StartError> {
        let (false, Some(directory)) = (settings.origins.is_empty(), &settings.disk_cache) else {
            return Ok(Origins(None));
        };
        let cache = DiskCache::open(directory, settings.disk_cache_size)?;
        let mounts = settings.origins.iter().map(|origin| Mount::open(origin, &cache).map(Arc::new));
        let mut mounts = mounts.collect::<Result<Vec<_>, _>>()?;
        for (at, mount) in mounts.iter().enumerate() {
            if let Some(other) = mounts[..at].iter().find(|other| other.store_name() == mount.store_name()) {
                let why = format!(
                    "the origins /{} and /{} are the same store: give it one prefix",
                    other.prefix(),
                    mount.prefix()
                );
                return Err(StartError::new(rustix::io::Errno::INVAL, why, mount.store_name().to_owned()));
            }
        }
        mounts.sort_by_key(|mount| std::cmp::Reverse(mount.prefix().len()));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(DISK_THREADS)
            .thread_name("objmapper-origin")
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| {
            let errno = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::AGAIN);
            StartError::new(errno, "cannot start the threads of the origins", "origins")
        })?;
        let handle = runtime.handle().clone();
        let scanned = Arc::clone(&cache);
        handle.spawn_blocking(move || scanned.scan());
        let swept = Arc::clone(&cache);
        handle.spawn(async move {
            loop {
                tokio::time::sleep(SWEEP_INTERVAL).await;
                let swept = Arc::clone(&swept);
                let _ = tokio::task::spawn_blocking(move || swept.sweep()).await;
            }
        });
        let pending = Arc::default();
        Ok(Origins(Some(Running {
            mounts,
            cache,
            pending,
            turns: Turns::default(),
            prefetches: Arc::default(),
            handle,
            runtime: Mutex::new(Some(runtime)),
        })))
    }

    /// The mount of a path, and its key there. None for a path of the local root.
    pub fn find<'a>(&self, path: &'a CStr) -> Option<(&Arc<Mount>, &'a str)> {
        let running = self.0.as_ref()?;
        let path = path.to_str().ok()?;
        running.mounts.iter().find_map(|mount| Some((mount, mount.key_of(path)?)))
    }

    /// Whether a prefix of URIs lies in a mount.
    pub fn covers(&self, uri: &str) -> bool {
        let path = uri.strip_prefix('/').unwrap_or(uri);
        self.0.as_ref().is_some_and(|running| running.mounts.iter().any(|mount| mount.key_of(path).is_some()))
    }

    /// Whether there is any mount.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Requests that wait for an origin.
    pub fn pending(&self) -> usize {
        self.0.as_ref().map_or(0, |running| running.pending.load(Relaxed))
    }

    pub fn figures(&self) -> Option<OriginFigures> {
        let running = self.0.as_ref()?;
        Some(OriginFigures {
            directory: running.cache.path().display().to_string(),
            size: running.cache.size(),
            usage: running.cache.usage(),
            evictions: running.cache.evicted(),
            damaged: running.cache.damaged(),
            mounts: running.mounts.iter().map(|mount| mount.figures()).collect(),
        })
    }

    /// Brings an object here, and calls `done` with it open, on a thread that may wait for a disk. Calls nothing once
    /// `is_gone` says that the client has gone; both are dropped then.
    pub fn fetch(
        &self,
        request: OriginRequest,
        is_gone: impl Fn() -> bool + Send + 'static,
        done: impl FnOnce(Result<OpenObject, Error>) + Send + 'static,
    ) {
        let OriginRequest { mount, key, user, deadline } = request;
        let turns = self.0.as_ref().map(|running| running.turns.of(user));
        let fetched = async move {
            // To wait for a download that is under way takes no turn, nor does an object that is on this disk.
            let is_here = mount.entry(&key).await.is_some();
            let _turn = match turns.filter(|_| !is_here && !mount.is_on_its_way(&key)) {
                Some(turns) => turns.acquire_owned().await.ok(),
                None => None,
            };
            for _ in 0..JOINS {
                match mount.fetch(&key).wait().await {
                    Err(Error::Origin(OriginFailure::Stopped)) => {}
                    Err(error) => return Err(error),
                    Ok(entry) => {
                        // Evicted or damaged in between: it is fetched again.
                        if let Some(opened) = mount.cache.open_entry(&entry)? {
                            return Ok(opened);
                        }
                    }
                }
            }
            Err(Error::Origin(OriginFailure::Stopped))
        };
        self.run(fetched, deadline, is_gone, done);
    }

    /// Begins to bring an object here, for a request that does not wait. A flight without waiters stops before half of
    /// the object is here, so a task waits in its place for a while.
    pub fn prefetch(&self, mount: &Arc<Mount>, key: &str) {
        let Some(running) = &self.0 else { return };
        if !mount.is_on_its_way(key) && running.prefetches.load(Relaxed) < MAX_PREFETCHES {
            let prefetch = Pending::new(&running.prefetches);
            let request = OriginRequest {
                mount: Arc::clone(mount),
                key: key.to_owned(),
                user: User::Unknown,
                deadline: Some(Instant::now() + PREFETCH_TIME),
            };
            self.fetch(request, || false, move |_| drop(prefetch));
        }
    }

    /// Asks an origin for an object's metadata.
    pub fn head(
        &self,
        request: OriginRequest,
        is_gone: impl Fn() -> bool + Send + 'static,
        done: impl FnOnce(Result<ObjectMeta, Error>) + Send + 'static,
    ) {
        let OriginRequest { mount, key, deadline, .. } = request;
        self.run(async move { mount.head(&key).await }, deadline, is_gone, done);
    }

    fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
        deadline: Option<Instant>,
        is_gone: impl Fn() -> bool + Send + 'static,
        done: impl FnOnce(Result<T, Error>) + Send + 'static,
    ) {
        let Some(running) = &self.0 else { return };
        let pending = Pending::new(&running.pending);
        running.handle.spawn(async move {
            tokio::pin!(work);
            let outcome = loop {
                let look = Instant::now() + LOOK_INTERVAL;
                let until = deadline.map_or(look, |deadline| deadline.min(look));
                tokio::select! {
                    outcome = &mut work => break outcome,
                    () = tokio::time::sleep_until(until.into()) => {}
                }
                if is_gone() {
                    return;
                }
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    break Err(Error::DeadlinePassed);
                }
            };
            tokio::task::spawn_blocking(move || {
                done(outcome);
                drop(pending);
            });
        });
    }

    /// Ends the runtime; leaves behind what is stuck at `until`.
    pub fn stop(&self, until: Instant) {
        let Some(running) = &self.0 else { return };
        running.cache.stop();
        let runtime = unpoisoned(running.runtime.lock()).take();
        if let Some(runtime) = runtime {
            runtime.shutdown_timeout(until.saturating_duration_since(Instant::now()));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A runtime waits for its blocking work when it is dropped.
        self.cache.stop();
    }
}

/// A request that waits; it counts until it is dropped.
#[derive(Debug)]
struct Pending(Arc<AtomicUsize>);

impl Pending {
    fn new(pending: &Arc<AtomicUsize>) -> Pending {
        pending.fetch_add(1, Relaxed);
        Pending(Arc::clone(pending))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
