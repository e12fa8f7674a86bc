//! Small objects in memory, so that a hot object costs one `stat` instead of open, fstat, read and close.
//!
//! The server validates every hit: the file at the path must have the same inode, size, modification and
//! change time as when it was read. A coarse clock could hide a change just before the read, so the cache
//! does not keep such a file yet (git calls that "racily clean"). A store through a mapping (mmap) may change
//! none of these, so an entry has a maximum age.

use crate::storage::etag::Version;
use quick_cache::{Weighter, sync::Cache as Store};
use std::ffi::{CStr, CString};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::settings::TimeLimit;

/// Bytes of an entry besides its content.
const OVERHEAD: u64 = 256;

#[derive(Debug, Clone)]
pub struct Cached {
    pub version: Version,
    pub bytes: Arc<[u8]>,
    kept_at: Instant,
}

#[derive(Debug, Clone)]
struct ByteWeighter;

impl Weighter<CString, Cached> for ByteWeighter {
    fn weight(&self, path: &CString, cached: &Cached) -> u64 {
        (path.as_bytes().len() + cached.bytes.len()) as u64 + OVERHEAD
    }
}

#[derive(Debug)]
pub struct Cache {
    store: Option<Store<CString, Cached, ByteWeighter>>,
    /// How long an entry is used before the file is read again.
    pub max_age: TimeLimit,
}

impl Cache {
    /// Keeps up to `size` bytes; 0 keeps nothing.
    pub fn new(size: u64, max_age: Duration) -> Self {
        // The number of entries is only an estimate that sizes the tables' growth.
        let entries = usize::try_from(size / 4096).unwrap_or(usize::MAX).clamp(16, 1 << 16);
        let store = (size > 0).then(|| Store::with_weighter(entries, size, ByteWeighter));
        Cache { store, max_age: max_age.into() }
    }

    pub fn is_on(&self) -> bool {
        self.store.is_some()
    }

    /// The entry of this path, where it is not too old at `now`. The caller compares its version with the file's.
    pub fn get(&self, path: &CStr, now: Instant) -> Option<Cached> {
        let cached = self.store.as_ref()?.get(path)?;
        (now.saturating_duration_since(cached.kept_at) < self.max_age.get()).then_some(cached)
    }

    /// Keeps the bytes, unless the file changed too shortly before `seen`: a time before the stat(2) that
    /// gave `version`, and so before the read.
    pub fn put(&self, path: &CStr, version: Version, bytes: &[u8], seen: SystemTime) {
        if let Some(store) = &self.store
            && version.is_stable(seen)
        {
            let kept_at = Instant::now();
            store.insert(path.to_owned(), Cached { version, bytes: bytes.into(), kept_at });
        }
    }

    /// The size of all entries, with their overhead.
    pub fn size(&self) -> u64 {
        self.store.as_ref().map_or(0, Store::weight)
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
