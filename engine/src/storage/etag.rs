//! The version of an object, from the stat(2) of its file, and the etag made from it.

use rustix::fs::Stat;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Kernel clocks tick every 10 ms at the slowest (CONFIG_HZ=100).
const SETTLED: Duration = Duration::from_millis(20);

/// Where both times are whole seconds, the file system may keep no fractions; the coarsest (FAT) counts in 2 s.
const SETTLED_COARSE: Duration = Duration::from_secs(2);

/// SplitMix64's increment: 2⁶⁴ divided by the golden ratio.
pub(super) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A version in 16 hex digits.
pub type Etag = [u8; 16];

/// The fields that must match for a file to have the same content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    pub(crate) device: u64,
    pub(super) inode: u64,
    pub(super) size: i64,
    pub(super) modified: (i64, i64),
    pub(super) changed: (i64, i64),
    /// The stamp that the server stores with the content where times are coarse (`distinct_versions.rs`); 0 for none.
    pub(super) stamp: u64,
    /// The version that the origin of the object gave it, the same on every node; 0 for none.
    pub(super) origin: u64,
}

impl Version {
    /// The version without the stamp.
    pub fn from_stat(stat: &Stat) -> Self {
        Version {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec as i64),
            changed: (stat.st_ctime, stat.st_ctime_nsec as i64),
            stamp: 0,
            origin: 0,
        }
    }

    /// The version of an origin's object that is in no file.
    pub fn from_origin(size: u64, modified: i64, number: u64) -> Self {
        Version {
            device: 0,
            inode: 0,
            size: i64::try_from(size).unwrap_or(i64::MAX),
            modified: (modified, 0),
            changed: (0, 0),
            stamp: 0,
            origin: number,
        }
    }

    /// The version of an origin's object that is in the file of this version.
    pub fn of_object(self, modified: i64, number: u64) -> Self {
        Version { modified: (modified, self.modified.1), origin: number, ..self }
    }

    pub fn stamped(self, stamp: u64) -> Self {
        Version { stamp, ..self }
    }

    /// Whether both times are whole seconds, as on a file system that keeps no fractions.
    pub fn is_coarse(&self) -> bool {
        (self.modified.1, self.changed.1) == (0, 0)
    }

    /// Whether stat(2) gives the same values for both; of a file of the disk cache, but for the change time.
    pub fn looks_like(&self, other: &Version) -> bool {
        if self.origin != 0 {
            return Version { origin: 0, ..*self }.same_content(other);
        }
        self.stamped(0) == other.stamped(0)
    }

    /// Whether both are of one file with one content. A link or an attribute changes the change time alone.
    pub fn same_content(&self, other: &Version) -> bool {
        let of_content = |version: &Version| Version { changed: (0, 0), ..*version };
        of_content(self) == of_content(other)
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
    /// Mixes inode, size, modification and change time one after the other with the finaliser of SplitMix64
    /// (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014, in variant 13 of
    /// Stafford), a bijection in which every input bit changes every output bit with a probability near one
    /// half. Leaves out the device: its number may change at a reboot.
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
        if self.origin != 0 {
            return self.origin;
        }
        let (modified, changed) = (self.modified, self.changed);
        let fields = [self.inode, self.size as u64, nanoseconds(modified), nanoseconds(changed)];
        // The fraction of the golden ratio, SplitMix64's increment, keeps a field of 0 from being a fixed point.
        let step = |state: u64, field: u64| mix64(state.wrapping_add(GOLDEN) ^ field);
        let mixed = fields.iter().fold(0u64, |state, &field| step(state, field));
        if self.stamp == 0 { mixed } else { step(mixed, self.stamp) }
    }

    /// Whether any later change is sure to show, except one through a mapping. `seen` is a time before
    /// stat(2) was called: with a later time, a slow read could make any file look old.
    pub(super) fn is_stable(&self, seen: SystemTime) -> bool {
        let (seconds, nanoseconds) = self.changed.max(self.modified);
        let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(seconds), u32::try_from(nanoseconds)) else {
            return false;
        };
        let at = UNIX_EPOCH + Duration::new(seconds, nanoseconds);
        let settled = if self.is_coarse() { SETTLED_COARSE } else { SETTLED };
        seen.duration_since(at).is_ok_and(|age| age > settled)
    }
}

/// Wraps around in 2554 and before 1678, which is harmless in an etag.
fn nanoseconds((seconds, nanoseconds): (i64, i64)) -> u64 {
    seconds.wrapping_mul(1_000_000_000).wrapping_add(nanoseconds) as u64
}

/// The finaliser of SplitMix64.
pub(crate) fn mix64(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
