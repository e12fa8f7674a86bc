//! Fetches an object of a store into the disk cache: its first part, then the others in parallel.
//!
//! All parts carry the ETag of the first as their condition, so that parts of two versions never mix.

use futures_util::StreamExt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::disk_cache::entry::Entry;
use crate::disk_cache::{NoRoom, PendingEntry};
use crate::errors::{Error, OriginFailure};
use crate::origin::flight::Flight;
use crate::origin::mount::{Mount, unless};
use crate::origin::store::{Condition, Download, StoreError};

/// Bytes of a part.
pub const PART: u64 = 8 << 20;
/// Parts of one object under way at a time.
const PARALLEL_PARTS: usize = 8;
/// How often a part that breaks off, or stalls, is asked for again from where it stopped.
const TRIES: usize = 3;
/// How often an object that changes while it is fetched is begun again.
const VERSIONS: usize = 2;

/// What a fill found.
pub enum Fill {
    New(Arc<Entry>),
    /// The object is still of the version that the cache has.
    Unchanged,
}

/// Why a fill failed.
#[derive(Debug)]
pub enum Failure {
    Store(StoreError),
    /// This server's own fault or decision: the origin is well.
    Local(Error),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::Store(error)
    }
}

impl From<NoRoom> for Failure {
    fn from(why: NoRoom) -> Failure {
        Failure::Local(why.into())
    }
}

/// Fetches an object, unless the cache has its version. Stops where nothing waits for it and less than half has come.
pub async fn fill(
    mount: &Arc<Mount>,
    key: &str,
    known: Option<&Arc<Entry>>,
    flight: &Flight,
) -> Result<Fill, Failure> {
    let mut changes = 0;
    loop {
        match fill_version(mount, key, known, flight).await {
            Err(Failure::Store(StoreError::NotModified)) => return Ok(Fill::Unchanged),
            Err(Failure::Store(StoreError::Changed)) if changes + 1 < VERSIONS => changes += 1,
            Err(failure) => return Err(failure),
            Ok(entry) => return Ok(Fill::New(entry)),
        }
    }
}

async fn fill_version(
    mount: &Arc<Mount>,
    key: &str,
    known: Option<&Arc<Entry>>,
    flight: &Flight,
) -> Result<Arc<Entry>, Failure> {
    let mut first = match mount.store.get(key, Some(0..PART), unless(known)).await {
        // An empty object has no first part, and some HTTP servers know no ranges.
        Err(StoreError::NoRange) => mount.store.get(key, None, unless(known)).await?,
        answer => answer?,
    };
    // If-Match compares strongly (RFC 9110, 13.1.1): a weak ETag matches nothing.
    let strong = first.meta.etag.clone().filter(|etag| !etag.starts_with("W/"));
    if strong.is_none() && first.range.end < first.meta.size {
        // Nothing says that further parts are of this version: one answer has them all. Its request may wait for the
        // place of this one.
        drop(first);
        first = mount.store.get(key, None, Condition::Any).await?;
    }
    let record = mount.record(key, &first.meta);
    let size = first.meta.size;
    let cache = Arc::clone(&mount.cache);
    let pending = tokio::task::spawn_blocking(move || cache.begin(size)).await;
    let pending = pending.map_err(|_| Failure::Local(Error::Origin(OriginFailure::Stopped)))??;
    let transfer = Transfer {
        mount,
        key,
        etag: strong.as_deref(),
        pending: &pending,
        size,
        flight,
        done: AtomicU64::new(0),
    };
    let rest = first.range.end..size;
    if first.range.start != 0 || rest.start > size {
        return Err(StoreError::Unavailable(format!("{key}: the store answered another range")).into());
    }
    let parts = (rest.start..rest.end).step_by(PART as usize).map(|at| at..(at + PART).min(size));
    let parts = futures_util::stream::iter(parts).map(|part| transfer.part(part, None));
    let mut parts = parts.buffer_unordered(PARALLEL_PARTS - 1);
    let beginning = transfer.part(0..rest.start, Some(first));
    let others = async {
        while let Some(part) = parts.next().await {
            part?;
        }
        Ok::<(), Failure>(())
    };
    tokio::try_join!(beginning, others)?;
    drop(parts);
    let table = Arc::clone(mount.table());
    let committed = tokio::task::spawn_blocking(move || pending.commit(record, &table)).await;
    let committed = committed.map_err(|_| Failure::Local(Error::Origin(OriginFailure::Stopped)))?;
    let entry = committed.map_err(|errno| Failure::from(NoRoom::Disk(errno)))?;
    let (cache, synced) = (Arc::clone(&mount.cache), Arc::clone(&entry));
    let syncs = Arc::clone(&mount.syncs);
    tokio::spawn(async move {
        // One at a time: answers wait for the same threads.
        let _turn = syncs.acquire_owned().await;
        let _ = tokio::task::spawn_blocking(move || cache.sync(&synced)).await;
    });
    Ok(entry)
}

/// One version of an object on its way.
struct Transfer<'a> {
    mount: &'a Mount,
    key: &'a str,
    etag: Option<&'a str>,
    pending: &'a PendingEntry,
    size: u64,
    flight: &'a Flight,
    done: AtomicU64,
}

impl Transfer<'_> {
    /// Fetches a part; `download` has it from its beginning on, where the caller has asked for it.
    async fn part(&self, part: Range<u64>, mut download: Option<Download>) -> Result<(), Failure> {
        let mut at = part.start;
        let mut tries = 0;
        loop {
            let current = match download.take() {
                Some(download) => Ok(download),
                None if at == part.end => return Ok(()),
                None => self.ask(at..part.end).await,
            };
            let error = match current {
                Ok(mut current) => match self.receive(&mut current, &mut at, part.end).await {
                    Ok(()) => return Ok(()),
                    Err(Failure::Store(error)) => error,
                    Err(failure) => return Err(failure),
                },
                // A store without ranges cannot go on where it broke off.
                Err(StoreError::NoRange) => {
                    StoreError::Unavailable(format!("{}: broke off, and the store knows no ranges", self.key))
                }
                Err(error) => error,
            };
            tries += 1;
            // Without an ETag nothing says that the rest would be of this version.
            let may_go_on = self.etag.is_some() && matches!(error, StoreError::Unavailable(_));
            if !may_go_on || tries >= TRIES {
                return Err(error.into());
            }
        }
    }

    async fn ask(&self, range: Range<u64>) -> Result<Download, StoreError> {
        let condition = self.etag.map_or(Condition::Any, Condition::Match);
        let download = self.mount.store.get(self.key, Some(range.clone()), condition).await?;
        let is_same = download.meta.size == self.size && download.meta.etag.as_deref() == self.etag;
        match is_same {
            false => Err(StoreError::Changed),
            true if download.range != range => {
                Err(StoreError::Unavailable(format!("{}: the store answered another range", self.key)))
            }
            true => Ok(download),
        }
    }

    /// Writes what comes, from `at` on, which moves along.
    async fn receive(&self, download: &mut Download, at: &mut u64, end: u64) -> Result<(), Failure> {
        loop {
            let next = tokio::time::timeout(self.mount.stall_timeout, download.next()).await;
            let bytes = match next {
                Err(_) => {
                    let why = format!("{}: no byte for {:?}", self.key, self.mount.stall_timeout);
                    return Err(StoreError::Unavailable(why).into());
                }
                Ok(None) if *at == end => return Ok(()),
                Ok(None) => {
                    let why = format!("{}: the answer ended at byte {at} of {end}", self.key);
                    return Err(StoreError::Unavailable(why).into());
                }
                Ok(Some(bytes)) => bytes?,
            };
            if bytes.len() as u64 > end - *at {
                let why = format!("{}: the answer is longer than it said", self.key);
                return Err(StoreError::Unavailable(why).into());
            }
            self.pending.write(&bytes, *at)?;
            *at += bytes.len() as u64;
            self.mount.counts.origin_bytes.fetch_add(bytes.len() as u64, Relaxed);
            let done = self.done.fetch_add(bytes.len() as u64, Relaxed) + bytes.len() as u64;
            if self.flight.waiters() == 0 && done < self.size / 2 {
                return Err(Failure::Local(Error::Origin(OriginFailure::Stopped)));
            }
        }
    }
}
