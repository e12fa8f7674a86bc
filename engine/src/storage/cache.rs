//! Small objects in memory, so that a hot one costs one `stat` instead of open, fstat, read and close.
//!
//! Every hit is validated: what lies at the path must be the same inode with the same size, modification and change time
//! as when it was read. A change within the last moments before reading could hide behind a coarse clock, so such a file is
//! not kept yet (git calls that "racily clean"). A store through a mapping (mmap) need not change any of these, so an entry
//! has a greatest age.

use crate::storage::version::Version;
use quick_cache::{Weighter, sync::Cache as Store};
use std::ffi::{CStr, CString};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::settings::TimeLimit;

/// What an entry costs besides its bytes.
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

    /// What is kept of this path and not too old at `now`. The caller compares its version with the file's.
    pub fn get(&self, path: &CStr, now: Instant) -> Option<Cached> {
        let cached = self.store.as_ref()?.get(path)?;
        (now.saturating_duration_since(cached.kept_at) < self.max_age.get()).then_some(cached)
    }

    /// Keeps the bytes, unless the file had changed too short a time before `seen`: a time before the stat(2) that gave
    /// `version`, and so before the bytes were read.
    pub fn put(&self, path: &CStr, version: Version, bytes: &[u8], seen: SystemTime) {
        if let Some(store) = &self.store
            && version.is_stable(seen)
        {
            let kept_at = Instant::now();
            store.insert(path.to_owned(), Cached { version, bytes: bytes.into(), kept_at });
        }
    }

    /// Bytes that are kept, with what it costs to keep them.
    pub fn size(&self) -> u64 {
        self.store.as_ref().map_or(0, Store::weight)
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
