//! A store under a prefix of the URIs: which of its objects are here, and how the others come here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

use crate::disk_cache::DiskCache;
use crate::disk_cache::entry::{Entry, Record};
use crate::disk_cache::table::Table;
use crate::errors::{Error, OriginFailure, StartError};
use crate::origin::absent_keys::AbsentKeys;
use crate::origin::fill::{self, Fill};
use crate::origin::flight::{Flight, Flights, Outcome, Waiter};
use crate::origin::problems::Problems;
use crate::origin::store::{Condition, OriginMeta, Store, StoreError};
use crate::settings::{OriginSettings, Revalidate};
use crate::storage::mapping::{ObjectMeta, OpenObject};

/// Bytes of a key: S3 has 1,024 at most, and an entry's attribute holds it.
const MAX_KEY: usize = 2048;

#[derive(Debug)]
pub struct Mount {
    /// Without slashes at its ends; empty for a mount at the root.
    prefix: Box<str>,
    revalidate: Revalidate,
    stale_if_error: Duration,
    pub(super) stall_timeout: Duration,
    pub(super) store: Store,
    pub(super) cache: Arc<DiskCache>,
    table: Arc<Table>,
    flights: Flights,
    absent: AbsentKeys,
    /// A permit to wait until the disk has an entry.
    pub(super) syncs: Arc<Semaphore>,
    pub(super) counts: Counts,
    pub(super) problems: Problems,
}

/// Events since the start.
#[derive(Debug, Default)]
pub struct Counts {
    pub hits: AtomicU64,
    pub stale_hits: AtomicU64,
    pub misses: AtomicU64,
    pub revalidations: AtomicU64,
    pub fills: AtomicU64,
    pub origin_bytes: AtomicU64,
    pub origin_errors: AtomicU64,
}

/// A mount's figures.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "python", derive(pyo3::IntoPyObject))]
pub struct MountFigures {
    pub prefix: String,
    pub store: String,
    pub hits: u64,
    pub stale_hits: u64,
    pub misses: u64,
    pub revalidations: u64,
    pub fills: u64,
    pub fills_under_way: u64,
    pub origin_bytes: u64,
    pub origin_errors: u64,
    /// Why the last request to the store failed; None where it did not.
    pub problem: Option<String>,
}

impl Mount {
    pub fn open(settings: &OriginSettings, cache: &Arc<DiskCache>) -> Result<Mount, StartError> {
        Ok(Mount {
            prefix: settings.prefix.trim_matches('/').into(),
            revalidate: settings.revalidate,
            stale_if_error: settings.stale_if_error,
            stall_timeout: settings.stall_timeout,
            store: Store::open(settings)?,
            cache: Arc::clone(cache),
            table: Arc::default(),
            flights: Flights::default(),
            absent: AbsentKeys::new(settings.negative_ttl),
            syncs: Arc::new(Semaphore::new(1)),
            counts: Counts::default(),
            problems: Problems::default(),
        })
    }

    pub fn store_name(&self) -> &str {
        self.store.name()
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The key of a path below the prefix; None for a path elsewhere. The prefix itself has the empty key.
    pub fn key_of<'a>(&self, path: &'a str) -> Option<&'a str> {
        if self.prefix.is_empty() {
            return Some(path);
        }
        match path.strip_prefix(&*self.prefix)? {
            "" => Some(""),
            rest => rest.strip_prefix('/'),
        }
    }

    pub fn figures(&self) -> MountFigures {
        let count = |count: &AtomicU64| count.load(Relaxed);
        MountFigures {
            prefix: format!("/{}", self.prefix),
            store: self.store.name().to_owned(),
            hits: count(&self.counts.hits),
            stale_hits: count(&self.counts.stale_hits),
            misses: count(&self.counts.misses),
            revalidations: count(&self.counts.revalidations),
            fills: count(&self.counts.fills),
            fills_under_way: self.flights.len() as u64,
            origin_bytes: count(&self.counts.origin_bytes),
            origin_errors: count(&self.counts.origin_errors),
            problem: self.problems.current(),
        }
    }

    /// The object, if it is here and fresh. Asks nothing of the origin.
    pub fn open_cached(&self, key: &str) -> Result<Option<OpenObject>, Error> {
        let Some(entry) = self.table.get(key).filter(|entry| self.is_fresh(entry)) else { return Ok(None) };
        let opened = self.cache.open_entry(&entry)?;
        self.counts.hits.fetch_add(u64::from(opened.is_some()), Relaxed);
        Ok(opened)
    }

    /// Whether a download of this object is under way.
    pub fn is_on_its_way(&self, key: &str) -> bool {
        self.flights.contains(key)
    }

    /// The metadata of the object, if it is here and fresh.
    pub fn stat_cached(&self, key: &str) -> Option<ObjectMeta> {
        let entry = self.table.get(key).filter(|entry| self.is_fresh(entry))?;
        self.counts.hits.fetch_add(1, Relaxed);
        Some(meta_of(&entry.record))
    }

    fn is_fresh(&self, entry: &Entry) -> bool {
        match self.revalidate {
            Revalidate::Never => true,
            Revalidate::Always => false,
            Revalidate::After(age) => now().saturating_sub(entry.validated()) < age.as_millis() as u64,
        }
    }

    /// Joins the flight for an object that is not here, or that is stale; starts it where none is under way.
    pub fn fetch(self: &Arc<Self>, key: &str) -> Waiter {
        let (waiter, begins) = self.flights.join(key);
        if begins {
            let (mount, key) = (Arc::clone(self), key.to_owned());
            tokio::spawn(async move {
                if let Some(leader) = mount.flights.lead(&key) {
                    let outcome = mount.obtain(&key, leader.flight()).await;
                    leader.land(outcome);
                }
            });
        }
        waiter
    }

    /// The metadata of an object: of its entry if that is fresh or the store is away, else from the store.
    pub async fn head(self: &Arc<Self>, key: &str) -> Result<ObjectMeta, Error> {
        if key.is_empty() {
            return Err(Error::NotRegular);
        }
        let entry = self.entry(key).await;
        if let Some(entry) = &entry
            && self.is_fresh(entry)
        {
            return Ok(meta_of(&entry.record));
        }
        if self.absent.contains(key) {
            return Err(Error::NotFound);
        }
        match (self.store.head(key).await, entry) {
            (Ok(meta), _) => {
                self.problems.clear();
                Ok(meta_of(&self.record(key, &meta)))
            }
            (Err(error), entry) => {
                let is_down = is_down(&error);
                let answer = self.note_error(key, error);
                let stale = entry.filter(|entry| is_down && self.may_serve_stale(entry));
                stale.map_or(Err(answer), |entry| Ok(meta_of(&entry.record)))
            }
        }
    }

    /// The entry of an object, fresh or not: of the table, else of the disk.
    pub async fn entry(self: &Arc<Self>, key: &str) -> Option<Arc<Entry>> {
        let entry = self.table.get(key);
        if entry.is_some() {
            return entry;
        }
        let (mount, key) = (Arc::clone(self), key.to_owned());
        let found = move || mount.cache.find(mount.store.name(), &key, &mount.table);
        tokio::task::spawn_blocking(found).await.unwrap_or(None)
    }

    /// Whether the store has said a moment ago that it has no such object.
    pub fn is_absent(&self, key: &str) -> bool {
        self.absent.contains(key)
    }

    async fn obtain(self: &Arc<Self>, key: &str, flight: &Flight) -> Outcome {
        if key.is_empty() {
            return Err(Error::NotRegular);
        }
        if key.len() > MAX_KEY {
            return Err(Error::BadPath);
        }
        let entry = self.entry(key).await;
        if let Some(entry) = &entry
            && self.is_fresh(entry)
        {
            self.counts.hits.fetch_add(1, Relaxed);
            return Ok(Arc::clone(entry));
        }
        if self.absent.contains(key) {
            return Err(Error::NotFound);
        }
        let result = fill::fill(self, key, entry.as_ref(), flight).await;
        match (result, entry) {
            (Ok(Fill::New(entry)), _) => {
                self.problems.clear();
                self.counts.misses.fetch_add(1, Relaxed);
                self.counts.fills.fetch_add(1, Relaxed);
                Ok(entry)
            }
            (Ok(Fill::Unchanged), Some(entry)) => {
                self.problems.clear();
                self.counts.revalidations.fetch_add(1, Relaxed);
                self.counts.hits.fetch_add(1, Relaxed);
                let (cache, confirmed) = (Arc::clone(&self.cache), Arc::clone(&entry));
                let _ = tokio::task::spawn_blocking(move || cache.confirm(&confirmed, now())).await;
                Ok(entry)
            }
            // An origin that says "unchanged" to a question without a condition.
            (Ok(Fill::Unchanged), None) => Err(self.note_error(key, StoreError::NotModified)),
            (Err(fill::Failure::Local(error)), _) => Err(error),
            (Err(fill::Failure::Store(error)), entry) => {
                let is_down = is_down(&error);
                let is_gone = error == StoreError::NotFound;
                let answer = self.note_error(key, error);
                match entry {
                    // Only the origin's word that it is gone drops an entry.
                    Some(entry) if is_gone => {
                        let cache = Arc::clone(&self.cache);
                        let _ = tokio::task::spawn_blocking(move || cache.drop_entry(&entry)).await;
                        Err(answer)
                    }
                    Some(entry) if is_down && self.may_serve_stale(&entry) => {
                        self.counts.stale_hits.fetch_add(1, Relaxed);
                        Ok(entry)
                    }
                    _ => Err(answer),
                }
            }
        }
    }

    fn may_serve_stale(&self, entry: &Entry) -> bool {
        now().saturating_sub(entry.validated()) < self.stale_if_error.as_millis() as u64
    }

    /// Counts a store's refusal; the error that clients get for it.
    fn note_error(&self, key: &str, error: StoreError) -> Error {
        self.counts.origin_errors.fetch_add(u64::from(error != StoreError::NotFound), Relaxed);
        let failed = |failure, why: String| {
            self.problems.note(why);
            Error::Origin(failure)
        };
        match error {
            StoreError::NotFound => {
                self.problems.clear();
                self.absent.insert(key);
                Error::NotFound
            }
            StoreError::BadKey => Error::BadPath,
            StoreError::Forbidden(why) => failed(OriginFailure::Forbidden, why),
            StoreError::Unavailable(why) => failed(OriginFailure::Unavailable, why),
            // The store itself is well.
            StoreError::Changed => Error::Origin(OriginFailure::Changed),
            StoreError::NoRange | StoreError::NotModified => {
                failed(OriginFailure::Failed, format!("{key}: the answer does not fit the request"))
            }
        }
    }

    pub(super) fn record(&self, key: &str, meta: &OriginMeta) -> Record {
        Record {
            store: self.store.name().to_owned(),
            key: key.to_owned(),
            size: meta.size,
            etag: meta.etag.clone(),
            modified: meta.modified,
            validated: now(),
            unsynced_since_boot: None,
        }
    }

    pub(super) fn table(&self) -> &Arc<Table> {
        &self.table
    }
}

/// Whether the store may give the object another time.
fn is_down(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable(_) | StoreError::Forbidden(_))
}

/// The condition under which an entry need not be fetched again.
pub(super) fn unless(entry: Option<&Arc<Entry>>) -> Condition<'_> {
    entry.and_then(|entry| entry.record.etag.as_deref()).map_or(Condition::Any, Condition::NoneMatch)
}

fn meta_of(record: &Record) -> ObjectMeta {
    ObjectMeta { size: record.size, mtime: record.modified, version: record.version() }
}

/// Milliseconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64)
}
