//! Small objects in memory, so that a hot one costs one `stat` instead of open, fstat, read and close.
//!
//! Every hit is validated: what lies at the path must be the same inode with the same size, modification and change time
//! as when it was read. A change within the last moments before reading could hide behind a coarse clock, so such a file is
//! not kept yet (git calls that "racily clean"). A store through a mapping (mmap) need not change any of these, so an entry
//! has a greatest age.

use quick_cache::{Weighter, sync::Cache as Store};
use rustix::fs::Stat;
use std::ffi::{CStr, CString};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::settings::TimeLimit;

/// Kernel clocks tick every 10 ms at the slowest (CONFIG_HZ=100).
const SETTLED: Duration = Duration::from_millis(20);
/// Where both times are whole seconds, the file system may keep no fractions; the coarsest (FAT) counts in 2 s.
const SETTLED_COARSE: Duration = Duration::from_secs(2);
/// What an entry costs besides its bytes.
const OVERHEAD: u64 = 256;

/// SplitMix64's increment: 2⁶⁴ divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A version in 16 hex digits.
pub type Etag = [u8; 16];

/// What must be the same for a file to have the same content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    pub(crate) device: u64,
    inode: u64,
    size: i64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// What the server wrote beside the content because times are coarse here (`versions.rs`); 0 for none.
    stamp: u64,
}

impl Version {
    /// All but the stamp.
    pub fn of(stat: &Stat) -> Self {
        Version {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec as i64),
            changed: (stat.st_ctime, stat.st_ctime_nsec as i64),
            stamp: 0,
        }
    }

    pub fn stamped(self, stamp: u64) -> Self {
        Version { stamp, ..self }
    }

    /// Whether both times are whole seconds, as on a file system that keeps no fractions.
    pub fn is_coarse(&self) -> bool {
        (self.modified.1, self.changed.1) == (0, 0)
    }

    /// Whether stat(2) says the same of both.
    pub fn looks_like(&self, other: &Version) -> bool {
        self.stamped(0) == other.stamped(0)
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
        let step = |state: u64, field: u64| mix(state.wrapping_add(GOLDEN) ^ field);
        let mixed = fields.iter().fold(0u64, |state, &field| step(state, field));
        if self.stamp == 0 { mixed } else { step(mixed, self.stamp) }
    }

    /// Whether a change after `seen` is sure to show, but for one through a mapping. `seen` is a time before stat(2) was
    /// called: afterwards a slow read could let any file look old.
    fn is_settled(&self, seen: SystemTime) -> bool {
        let (seconds, nanoseconds) = self.changed.max(self.modified);
        let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(seconds), u32::try_from(nanoseconds)) else {
            return false;
        };
        let at = UNIX_EPOCH + Duration::new(seconds, nanoseconds);
        let settled = if self.is_coarse() { SETTLED_COARSE } else { SETTLED };
        seen.duration_since(at).is_ok_and(|age| age > settled)
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
    kept_at: Instant,
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
    /// How long an entry is used before the file is read again.
    pub max_age: TimeLimit,
}

impl Cache {
    /// Keeps up to `size` bytes; 0 keeps nothing.
    pub fn new(size: u64, max_age: Duration) -> Self {
        // The number of entries is only an estimate that sizes the tables' growth.
        let entries = usize::try_from(size / 4096).unwrap_or(usize::MAX).clamp(16, 1 << 16);
        let store = (size > 0).then(|| Store::with_weighter(entries, size, BySize));
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
            && version.is_settled(seen)
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
