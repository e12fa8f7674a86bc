//! Small objects in memory, so that a hot one costs one `stat` instead of open, fstat, read and close.
//!
//! Every hit is validated: what lies at the path must be the same inode with the same size, modification and change time
//! as when it was read. A change within the last moments before reading could hide behind a coarse clock, so such a file is
//! not kept yet (git calls that "racily clean").

use quick_cache::{Weighter, sync::Cache as Store};
use rustix::fs::Stat;
use std::ffi::{CStr, CString};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Kernel clocks tick every 10 ms at the slowest (CONFIG_HZ=100).
const SETTLED: Duration = Duration::from_millis(20);
/// What an entry costs besides its bytes.
const OVERHEAD: u64 = 256;

/// What must be the same for a file to have the same content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    pub fn of(stat: &Stat) -> Self {
        Version {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec as i64),
            changed: (stat.st_ctime, stat.st_ctime_nsec as i64),
        }
    }

    /// Whether a later change is sure to show.
    fn is_settled(&self, now: SystemTime) -> bool {
        let (seconds, nanoseconds) = self.changed.max(self.modified);
        let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(seconds), u32::try_from(nanoseconds)) else {
            return false;
        };
        let at = UNIX_EPOCH + Duration::new(seconds, nanoseconds);
        now.duration_since(at).is_ok_and(|age| age > SETTLED)
    }
}

#[derive(Debug, Clone)]
pub struct Cached {
    pub version: Version,
    pub bytes: Arc<[u8]>,
}

#[derive(Debug, Clone)]
struct BySize;

impl Weighter<CString, Cached> for BySize {
    fn weight(&self, path: &CString, cached: &Cached) -> u64 {
        (path.as_bytes().len() + cached.bytes.len()) as u64 + OVERHEAD
    }
}

#[derive(Debug)]
pub struct Cache {
    store: Option<Store<CString, Cached, BySize>>,
}

impl Cache {
    /// Keeps up to `size` bytes; 0 keeps nothing.
    pub fn new(size: u64) -> Self {
        // The number of entries is only an estimate that sizes the tables' growth.
        let entries = usize::try_from(size / 4096).unwrap_or(usize::MAX).clamp(16, 1 << 16);
        Cache { store: (size > 0).then(|| Store::with_weighter(entries, size, BySize)) }
    }

    pub fn is_on(&self) -> bool {
        self.store.is_some()
    }

    pub fn get(&self, path: &CStr) -> Option<Cached> {
        self.store.as_ref()?.get(path)
    }

    /// Keeps the bytes, unless the file changed too short a time ago.
    pub fn put(&self, path: &CStr, version: Version, bytes: &[u8]) {
        if let Some(store) = &self.store
            && version.is_settled(SystemTime::now())
        {
            store.insert(path.to_owned(), Cached { version, bytes: bytes.into() });
        }
    }

    pub fn remove(&self, path: &CStr) {
        if let Some(store) = &self.store {
            store.remove(path);
        }
    }

    /// Bytes that are kept, with what it costs to keep them.
    pub fn size(&self) -> u64 {
        self.store.as_ref().map_or(0, Store::weight)
    }
}
