//! A sorted run of a directory's names: the smallest beyond a bound, as many as may be held.
//!
//! Names are kept as keys: `name` for what may be an object, `name/` for a directory. Then the order of keys is the order
//! of all URIs below them.

use rustix::fd::OwnedFd;
use rustix::fs::{self, AtFlags, FileType, RawDir, RawDirEntry};
use rustix::io::{self, Errno};
use std::collections::BinaryHeap;

use crate::storage::mapping::is_reserved;

/// What getdents64(2) fills at a time: a thousand names or so.
const BUFFER: usize = 64 << 10;

/// Where a run begins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bound {
    key: Vec<u8>,
    /// Whether `key` itself is out of it.
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

/// How much one run may hold, whatever the directory has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunLimits {
    pub names: usize,
    /// Of the names together.
    pub bytes: usize,
}

impl Default for RunLimits {
    fn default() -> Self {
        RunLimits { names: 65_536, bytes: 4 << 20 }
    }
}

/// Which names of a directory are wanted.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub bound: &'a Bound,
    /// What a key begins with.
    pub prefix: &'a [u8],
    pub symlinks: bool,
}

#[derive(Debug)]
pub(crate) struct Run {
    from: Bound,
    /// All keys, one behind the other, and where each ends.
    keys: Vec<u8>,
    ends: Vec<u32>,
    /// Whether the directory has no key beyond these.
    pub is_last: bool,
}

impl Run {
    /// Of a directory that cannot be read.
    pub fn empty() -> Run {
        Run { from: Bound::START, keys: Vec::new(), ends: Vec::new(), is_last: true }
    }

    /// Reads all of the directory, and holds what is in the limits.
    pub fn read(directory: &OwnedFd, wanted: &Wanted<'_>, limits: RunLimits) -> io::Result<Run> {
        let mut smallest = Smallest { heap: BinaryHeap::new(), bytes: 0, limits, is_last: true };
        let mut buffer = Vec::with_capacity(BUFFER);
        let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
        let mut key = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(Errno::INTR) => continue,
                // The directory has been removed meanwhile.
                Err(Errno::NOENT) => break,
                Err(errno) => return Err(errno),
            };
            if make_key(&mut key, directory, &entry, wanted) {
                smallest.offer(&key);
            }
        }
        Ok(smallest.into_run(wanted.bound.clone()))
    }

    pub fn get(&self, at: usize) -> Option<&[u8]> {
        let end = *self.ends.get(at)? as usize;
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        Some(&self.keys[start..end])
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn last(&self) -> Option<&[u8]> {
        self.get(self.ends.len().checked_sub(1)?)
    }

    /// Whether what comes next from `bound` on is in this run.
    pub fn covers(&self, bound: &Bound) -> bool {
        *bound >= self.from && (self.is_last || self.last().is_some_and(|last| *bound < Bound::after(last)))
    }

    /// The number of the first key from `bound` on.
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

    /// Bytes that it takes.
    pub fn weight(&self) -> usize {
        self.keys.capacity() + self.ends.capacity() * size_of::<u32>() + size_of::<Run>()
    }
}

/// Writes the entry's key, if it is wanted.
fn make_key(key: &mut Vec<u8>, directory: &OwnedFd, entry: &RawDirEntry<'_>, wanted: &Wanted<'_>) -> bool {
    let name = entry.file_name().to_bytes();
    if matches!(name, b"." | b"..") || is_reserved(name) {
        return false;
    }
    key.clear();
    key.extend_from_slice(name);
    let mut kind = entry.file_type();
    if kind == FileType::Unknown {
        let stat = fs::statat(directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW);
        kind = stat.map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode));
    }
    match kind {
        FileType::RegularFile => {}
        FileType::Symlink if wanted.symlinks => {}
        FileType::Directory => key.push(b'/'),
        _ => return false,
    }
    key.starts_with(wanted.prefix) && wanted.bound.admits(key)
}

/// The smallest keys so far; the greatest of them is on top and the first to go.
struct Smallest {
    heap: BinaryHeap<Vec<u8>>,
    bytes: usize,
    limits: RunLimits,
    is_last: bool,
}

impl Smallest {
    fn offer(&mut self, key: &[u8]) {
        // Once a key had to go, all beyond it have, so that the run has no gap.
        let is_full = !self.is_last || self.heap.len() >= self.limits.names;
        if is_full && self.heap.peek().is_some_and(|greatest| key >= &**greatest) {
            self.is_last = false;
            return;
        }
        self.bytes += key.len();
        self.heap.push(key.to_vec());
        while self.heap.len() > self.limits.names || (self.bytes > self.limits.bytes && self.heap.len() > 1) {
            self.bytes -= self.heap.pop().map_or(0, |greatest| greatest.len());
            self.is_last = false;
        }
    }

    fn into_run(self, from: Bound) -> Run {
        let mut run = Run {
            from,
            keys: Vec::with_capacity(self.bytes),
            ends: Vec::with_capacity(self.heap.len()),
            is_last: self.is_last,
        };
        for key in self.heap.into_sorted_vec() {
            run.keys.extend_from_slice(&key);
            run.ends.push(run.keys.len() as u32);
        }
        run
    }
}
