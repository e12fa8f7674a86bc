//! A sorted batch of a directory's names: the smallest beyond a bound, as many as the limits allow.
//!
//! Names are kept as keys: `name` for a possible object, `name/` for a directory. The order of keys is then
//! the order of all URIs below them.

use rustix::fd::OwnedFd;
use rustix::fs::{self, AtFlags, FileType, RawDir, RawDirEntry};
use rustix::io::{self, Errno};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::storage::mapping::is_reserved;
pub(crate) use crate::storage::smallest_names::BatchLimits;
use crate::storage::smallest_names::{Keys, SmallestNames};

/// The buffer of one getdents64(2) call: two thousand short names, in less than a turn. The kernel locks the
/// directory during one call, so a directory that fits is read as of one moment.
const BUFFER: usize = 64 << 10;
/// The largest buffer for a directory that changed during several calls, and how often it is read again.
const MAX_BUFFER: usize = 8 << 20;
const MAX_READINGS: u32 = 3;
/// A directory that changed less than this ago may change again and keep the same time: clocks tick every few
/// milliseconds, and on some file systems every one or two seconds.
const TICK: Duration = Duration::from_millis(20);
const COARSE_TICK: Duration = Duration::from_secs(2);
/// Reading a smaller directory again costs no more than keeping its batch.
const MIN_KEPT_ENTRIES: usize = 512;

/// Where a batch begins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bound {
    key: Vec<u8>,
    /// Whether the batch starts after `key` itself.
    exclusive: bool,
}

impl Bound {
    pub const START: Bound = Bound { key: Vec::new(), exclusive: false };

    pub fn from(key: &[u8]) -> Bound {
        Bound { key: key.into(), exclusive: false }
    }

    pub fn after(key: &[u8]) -> Bound {
        Bound { key: key.into(), exclusive: true }
    }

    fn admits(&self, key: &[u8]) -> bool {
        key > &*self.key || (key == self.key && !self.exclusive)
    }
}

/// The names of a directory that a batch collects.
#[derive(Debug)]
pub(crate) struct Filter {
    pub bound: Bound,
    /// The prefix of the keys.
    pub prefix: Vec<u8>,
    pub symlinks: bool,
}

#[derive(Debug)]
pub(crate) struct NameBatch {
    from: Bound,
    /// All keys, one behind the other, and where each ends.
    keys: Vec<u8>,
    ends: Vec<u32>,
    /// Entries of the directory that were read to find the keys.
    scanned: usize,
    /// Whether the directory has no key beyond these.
    pub is_last: bool,
}

impl NameBatch {
    /// The batch of an unreadable directory.
    pub fn empty() -> NameBatch {
        NameBatch { from: Bound::START, keys: Vec::new(), ends: Vec::new(), scanned: 0, is_last: true }
    }

    pub fn get(&self, at: usize) -> Option<&[u8]> {
        let end = *self.ends.get(at)? as usize;
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        Some(&self.keys[start..end])
    }

    pub fn last(&self) -> Option<&[u8]> {
        self.get(self.ends.len().checked_sub(1)?)
    }

    /// Whether this batch holds the keys that follow `bound`.
    pub fn covers(&self, bound: &Bound) -> bool {
        *bound >= self.from && (self.is_last || self.last().is_some_and(|last| *bound < Bound::after(last)))
    }

    /// The index of the first key from `bound` on.
    pub fn position(&self, bound: &Bound) -> usize {
        let (mut low, mut high) = (0, self.ends.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.get(middle) {
                Some(key) if !bound.admits(key) => low = middle + 1,
                _ => high = middle,
            }
        }
        low
    }

    /// Whether reading the directory again costs more than keeping this.
    pub fn is_worth_keeping(&self) -> bool {
        self.scanned >= MIN_KEPT_ENTRIES || !self.is_last
    }

    /// Bytes of memory.
    pub fn weight(&self) -> usize {
        self.keys.capacity() + self.ends.capacity() * size_of::<u32>() + size_of::<NameBatch>()
    }
}

/// Writes the entry's key; false where the batch does not want it.
fn make_key(
    key: &mut Vec<u8>,
    directory: &OwnedFd,
    entry: &RawDirEntry<'_>,
    filter: &Filter,
) -> io::Result<bool> {
    let name = entry.file_name().to_bytes();
    if matches!(name, b"." | b"..") || is_reserved(name) {
        return Ok(false);
    }
    key.clear();
    key.extend_from_slice(name);
    let mut kind = entry.file_type();
    if kind == FileType::Unknown {
        kind = match fs::statat(directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode),
            Err(Errno::NOENT) => FileType::Unknown,
            // The listing stats the entry again, and reports the missing permission.
            Err(Errno::ACCESS) => FileType::RegularFile,
            Err(errno) => return Err(errno),
        };
    }
    match kind {
        FileType::RegularFile => {}
        FileType::Symlink if filter.symlinks => {}
        FileType::Directory => key.push(b'/'),
        _ => return Ok(false),
    }
    Ok(key.starts_with(&filter.prefix) && filter.bound.admits(key))
}

/// Reads a directory in steps.
///
/// An object that rename(2) replaces moves to another place in the directory: a reading of several calls may
/// miss it, or meet it twice. So the server reads a directory that changed meanwhile again, in one call if
/// possible, and merges the names of all readings. The walk later drops names that no longer exist.
#[derive(Debug)]
pub(crate) struct Reading {
    filter: Filter,
    smallest: SmallestNames,
    /// The directory's times before the reading.
    before: Option<Times>,
    buffer: usize,
    /// Of this reading: calls that returned entries, and their bytes.
    calls: u32,
    bytes: usize,
    readings: u32,
    scanned: usize,
    /// The directory is read to its end.
    is_read: bool,
}

impl Reading {
    pub fn new(filter: Filter, limits: BatchLimits) -> Reading {
        Reading {
            filter,
            smallest: SmallestNames::new(limits),
            before: None,
            buffer: BUFFER,
            calls: 0,
            bytes: 0,
            readings: 0,
            scanned: 0,
            is_read: false,
        }
    }

    /// Reads on, at least one call or one step of sorting; returns whether the directory is complete.
    pub fn advance(&mut self, directory: &OwnedFd, is_over: &dyn Fn() -> bool) -> io::Result<bool> {
        let mut buffer = Vec::new();
        loop {
            if !self.smallest.merge_on(is_over) {
                return Ok(false);
            }
            if self.is_read {
                return Ok(true);
            }
            self.read_on(directory, &mut buffer)?;
            if self.is_read || self.smallest.has_too_many() {
                self.smallest.begin_merge();
            }
            if is_over() {
                return Ok(false);
            }
        }
    }

    fn read_on(&mut self, directory: &OwnedFd, buffer: &mut Vec<u8>) -> io::Result<()> {
        if self.before.is_none() {
            self.before = Some(Times::from_directory(directory)?);
        }
        buffer.reserve(self.buffer);
        if self.fill(directory, buffer)? {
            return Ok(());
        }
        self.readings += 1;
        if self.calls <= 1 || self.readings >= MAX_READINGS || !self.has_changed(directory)? {
            self.is_read = true;
            return Ok(());
        }
        self.buffer = (self.bytes + self.bytes / 4 + BUFFER).min(MAX_BUFFER);
        (self.before, self.calls, self.bytes) = (None, 0, 0);
        fs::seek(directory, fs::SeekFrom::Start(0))?;
        Ok(())
    }

    /// The names found, once the directory is complete.
    pub fn into_batch(self) -> NameBatch {
        let Keys { bytes, ends } = self.smallest.sorted;
        let is_last = self.smallest.greatest.is_none();
        NameBatch { from: self.filter.bound, keys: bytes, ends, scanned: self.scanned, is_last }
    }

    /// One call of getdents64(2); false at the end.
    fn fill(&mut self, directory: &OwnedFd, buffer: &mut Vec<u8>) -> io::Result<bool> {
        let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
        let mut key = Vec::new();
        let mut has_some = false;
        loop {
            let entry = match entries.next() {
                None => return Ok(false),
                Some(Ok(entry)) => entry,
                Some(Err(Errno::INTR)) => continue,
                // The directory has been removed meanwhile.
                Some(Err(Errno::NOENT)) => return Ok(false),
                Some(Err(errno)) => return Err(errno),
            };
            if !has_some {
                has_some = true;
                self.calls += 1;
            }
            self.scanned += 1;
            // The most bytes that an entry takes besides its name.
            self.bytes += entry.file_name().to_bytes().len() + 28;
            if make_key(&mut key, directory, &entry, &self.filter)? {
                self.smallest.offer(&key);
            }
            if entries.is_buffer_empty() {
                return Ok(true);
            }
        }
    }

    /// Whether the directory may have changed since this reading began.
    fn has_changed(&self, directory: &OwnedFd) -> io::Result<bool> {
        let now = Times::from_directory(directory)?;
        Ok(self.before.is_none_or(|before| !before.is_stable || before.at != now.at))
    }
}

/// When a directory last changed.
#[derive(Debug, Clone, Copy)]
struct Times {
    at: [i64; 4],
    /// A later change will set another time.
    is_stable: bool,
}

impl Times {
    fn from_directory(directory: &OwnedFd) -> io::Result<Times> {
        let stat = fs::fstat(directory)?;
        let nanoseconds =
            [stat.st_mtime_nsec, stat.st_ctime_nsec].map(|part| i64::try_from(part).unwrap_or(0));
        let changed = Duration::new(
            u64::try_from(stat.st_ctime.max(stat.st_mtime)).unwrap_or(0),
            u32::try_from(nanoseconds[0].max(nanoseconds[1])).unwrap_or(0),
        );
        let tick = if nanoseconds == [0, 0] { COARSE_TICK } else { TICK };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = [stat.st_mtime, nanoseconds[0], stat.st_ctime, nanoseconds[1]];
        Ok(Times { at, is_stable: now > changed + tick })
    }
}
