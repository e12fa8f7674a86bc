//! Distinct versions for files that this server writes, so that no two contents share an etag.
//!
//! A file system reuses inode numbers, and its clock may stand still for milliseconds, or for a second. So
//! each put sets a modification time that no other put has, to the nanosecond. Where the file system keeps no
//! nanoseconds, it stores a number in an extended attribute with the content.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, Stat, Timespec, Timestamps, UTIME_OMIT, XattrFlags};
use rustix::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::storage::etag::{Version, mix64};

/// Eight bytes, big-endian.
const ATTRIBUTE: &str = "user.objmapper.version";
/// A modification time in which every digit differs; NTFS counts in 100 ns, UDF in 1 µs.
const PROBE: (i64, u64) = (1_000_000_000, 123_456_789);
const FINEST: [u64; 3] = [1, 100, 1000];

/// How to tell the files of one file system apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VersionSource {
    /// By a modification time in steps of this many nanoseconds.
    Time(u64),
    /// By the attribute.
    Attribute,
    /// Only as far as its times differ.
    Nothing,
}

/// Makes versions; one for all files that a server writes.
#[derive(Debug)]
pub(crate) struct Versions {
    kept: VersionSource,
    /// The last one made: nanoseconds since 1970, or a number.
    last: AtomicU64,
}

impl Versions {
    /// Probes with `file`, which must be empty and the caller's own, what its file system keeps. `seed` is random.
    pub fn new(file: &OwnedFd, seed: u64) -> io::Result<Versions> {
        let kept = find_out(file)?;
        let last = if kept == VersionSource::Attribute { seed } else { 0 };
        Ok(Versions { kept, last: last.into() })
    }

    pub fn kept(&self) -> VersionSource {
        self.kept
    }

    /// Gives the file a version that no other file has.
    pub fn assign(&self, file: &OwnedFd) -> io::Result<()> {
        match self.kept {
            VersionSource::Time(step) => set_modified(file, self.next_time(step)),
            VersionSource::Attribute => {
                // A bijection, and never 0, which means none.
                let number = mix64(self.last.fetch_add(1, Relaxed)).max(1);
                fs::fsetxattr(file, ATTRIBUTE, &number.to_be_bytes(), XattrFlags::empty())
            }
            VersionSource::Nothing => Ok(()),
        }
    }

    /// Now, or one step after the last time where that is later.
    fn next_time(&self, step: u64) -> (i64, u64) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
        let later = |last: u64| (now / step * step).max(last + step);
        let last =
            self.last.fetch_update(Relaxed, Relaxed, |last| Some(later(last))).unwrap_or_else(|last| last);
        let time = later(last);
        ((time / 1_000_000_000) as i64, time % 1_000_000_000)
    }
}

fn find_out(file: &OwnedFd) -> io::Result<VersionSource> {
    set_modified(file, PROBE)?;
    let stat = fs::fstat(file)?;
    let step = FINEST.into_iter().find(|step| stat.st_mtime_nsec as u64 == PROBE.1 / step * step);
    if let Some(step) = step {
        return Ok(VersionSource::Time(step));
    }
    let written = fs::fsetxattr(file, ATTRIBUTE, &1u64.to_be_bytes(), XattrFlags::empty());
    let is_kept = Version::from_stat(&stat).is_coarse() && written.is_ok() && stamp_of(file) == 1;
    Ok(if is_kept { VersionSource::Attribute } else { VersionSource::Nothing })
}

fn set_modified(file: &OwnedFd, (seconds, nanoseconds): (i64, u64)) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ },
    };
    fs::futimens(file, &times)
}

/// The version of an open file. Reads its attribute only where both times are whole seconds, which is rare on
/// a file system that keeps fractions.
pub(crate) fn version_of(file: impl AsFd, stat: &Stat) -> Version {
    let version = Version::from_stat(stat);
    if version.is_coarse() { version.stamped(stamp_of(file)) } else { version }
}

/// 0 where it has none, or the server cannot read it.
fn stamp_of(file: impl AsFd) -> u64 {
    let mut bytes = [0; 8];
    match fs::fgetxattr(file, ATTRIBUTE, &mut bytes) {
        Ok(8) => u64::from_be_bytes(bytes),
        _ => 0,
    }
}

#[cfg(test)]
#[path = "distinct_versions_tests.rs"]
mod tests;
