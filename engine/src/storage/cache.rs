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

/// SplitMix64's increment: 2⁶⁴ divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A version in 16 hex digits.
pub type Etag = [u8; 16];

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

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size.max(0) as u64
    }

    /// Seconds since 1970 at which the content last changed, negative before that.
    pub fn mtime(&self) -> i64 {
        self.modified.0
    }

    /// Nanoseconds beyond those seconds.
    pub fn mtime_nanoseconds(&self) -> u32 {
        self.modified.1 as u32
    }

    /// The version as 16 hex digits, which stay the same over restarts.
    ///
    /// Inode, size, modification and change time are mixed one after the other with the finaliser of SplitMix64 (Steele,
    /// Lea, Flood, "Fast splittable pseudorandom number generators", 2014, in the variant 13 of Stafford), a bijection
    /// in which every bit of the input changes every bit of the output with a probability near one half. The device
    /// is left out: its number may be another after a reboot.
    pub fn etag(&self) -> Etag {
        let mixed = self.number();
        let mut digits = [0; 16];
        for (at, digit) in digits.iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[(mixed >> (60 - 4 * at)) as usize & 15];
        }
        digits
    }

    /// The number that the etag spells in hex.
    pub fn number(&self) -> u64 {
        let (modified, changed) = (self.modified, self.changed);
        let fields = [self.inode, self.size as u64, nanoseconds(modified), nanoseconds(changed)];
        // The fraction of the golden ratio, SplitMix64's increment, keeps a field of 0 from being a fixed point.
        fields.iter().fold(0u64, |state, &field| mix(state.wrapping_add(GOLDEN) ^ field))
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

/// Wraps around in 2554 and before 1678, which an etag can live with.
fn nanoseconds((seconds, nanoseconds): (i64, i64)) -> u64 {
    seconds.wrapping_mul(1_000_000_000).wrapping_add(nanoseconds) as u64
}

/// The finaliser of SplitMix64.
pub(crate) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
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

    /// Bytes that are kept, with what it costs to keep them.
    pub fn size(&self) -> u64 {
        self.store.as_ref().map_or(0, Store::weight)
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
