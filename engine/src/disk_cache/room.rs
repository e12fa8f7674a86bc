//! Which bytes of the disk are the cache's: entries, downloads under way, and files that left while a client holds
//! them. The kernel frees those when the last holder closes.

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::process::{Resource, getrlimit};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

use crate::disk_cache::entry::{Entry, EntryId};
use crate::disk_cache::eviction::{EvictionQueue, Usage};

/// Files that left and are held: each costs the server a descriptor while it is watched. At most an eighth of what the
/// process may open.
const MAX_HELD: u64 = 512;
/// Files of a cache. Each takes some 300 bytes of memory.
const MAX_FILES: usize = 1 << 20;
/// Held files that an eviction passes over before it gives up.
const MAX_PASSED_OVER: usize = 4096;

#[derive(Debug)]
pub struct Room {
    queue: EvictionQueue<EntryId>,
    /// The entries that requests have used since the start.
    entries: HashMap<EntryId, Weak<Entry>>,
    /// Bytes of downloads under way.
    reserved: u64,
    held: Vec<HeldFile>,
    held_bytes: u64,
    size: u64,
    max_held: usize,
}

#[derive(Debug)]
struct HeldFile {
    file: OwnedFd,
    bytes: u64,
}

/// Bytes and files by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "python", derive(pyo3::IntoPyObject))]
pub struct RoomUsage {
    pub cached_bytes: u64,
    pub cached_files: u64,
    pub reserved_bytes: u64,
    pub held_bytes: u64,
    pub held_files: u64,
}

impl Room {
    pub fn new(size: u64) -> Room {
        Room {
            queue: EvictionQueue::new(size),
            entries: HashMap::new(),
            reserved: 0,
            held: Vec::new(),
            held_bytes: 0,
            size,
            max_held: (getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX) / 8).min(MAX_HELD) as usize,
        }
    }

    pub fn usage(&self) -> RoomUsage {
        RoomUsage {
            cached_bytes: self.queue.bytes(),
            cached_files: self.queue.len() as u64,
            reserved_bytes: self.reserved,
            held_bytes: self.held_bytes,
            held_files: self.held.len() as u64,
        }
    }

    /// Whether a further file of this number of bytes fits.
    pub fn fits(&self, bytes: u64) -> bool {
        let taken = self.queue.bytes() + self.reserved + self.held_bytes;
        taken.saturating_add(bytes) <= self.size && self.queue.len() < MAX_FILES
    }

    pub fn reserve(&mut self, bytes: u64) {
        self.reserved += bytes;
    }

    pub fn release(&mut self, bytes: u64) {
        self.reserved -= bytes;
    }

    pub fn contains(&self, id: &EntryId) -> bool {
        self.queue.contains(id)
    }

    /// Counts a file that the cache has.
    pub fn add(&mut self, id: EntryId, bytes: u64) {
        self.queue.insert(id, bytes);
    }

    /// Asks this entry from now on how often its file is used.
    pub fn attach(&mut self, entry: &Arc<Entry>) {
        self.entries.insert(entry.id, Arc::downgrade(entry));
    }

    pub fn forget(&mut self, id: &EntryId) -> Option<Arc<Entry>> {
        self.queue.forget(id);
        self.entries.remove(id).and_then(|entry| entry.upgrade())
    }

    /// The next file to leave, of those that no client holds: one that is held would free no byte. The caller unlinks it.
    pub fn evict(
        &mut self,
        is_held: impl Fn(&EntryId) -> bool,
    ) -> Option<(EntryId, u64, Option<Arc<Entry>>)> {
        let Room { queue, entries, .. } = self;
        let (id, bytes) = queue.evict(&Uses { entries, is_held: &is_held }, MAX_PASSED_OVER)?;
        let entry = entries.remove(&id).and_then(|entry| entry.upgrade());
        Some((id, bytes, entry))
    }

    /// Counts a file that has left and that a client may hold, until it is closed.
    pub fn hold(&mut self, file: OwnedFd, bytes: u64) {
        if self.held.len() < self.max_held && is_held(&file) {
            self.held_bytes += bytes;
            self.held.push(HeldFile { file, bytes });
        }
    }

    /// Gives back the bytes of files that no client holds any more.
    pub fn sweep_held(&mut self) {
        let mut freed = 0;
        self.held.retain(|held| {
            let is_held = is_held(&held.file);
            freed += if is_held { 0 } else { held.bytes };
            is_held
        });
        self.held_bytes -= freed;
    }
}

struct Uses<'a, H: Fn(&EntryId) -> bool + ?Sized> {
    entries: &'a HashMap<EntryId, Weak<Entry>>,
    is_held: &'a H,
}

impl<H: Fn(&EntryId) -> bool + ?Sized> Usage<EntryId> for Uses<'_, H> {
    fn uses(&self, id: &EntryId) -> u8 {
        self.entries.get(id).and_then(Weak::upgrade).map_or(0, |entry| entry.uses())
    }

    fn spend_use(&self, id: &EntryId) -> bool {
        self.entries.get(id).and_then(Weak::upgrade).is_some_and(|entry| entry.spend_use())
    }

    fn may_leave(&self, id: &EntryId) -> bool {
        !(self.is_held)(id)
    }
}

/// Which signal announces a lease that must go (fcntl(2)); `libc` lacks it.
const F_SETSIG: i32 = 10;

/// Whether another open file description, or a mapping, of this file exists: the kernel grants a write lease only to
/// the sole one (fcntl(2), "Leases"). Where the file system has no leases the answer is no.
pub fn is_held(file: &OwnedFd) -> bool {
    let number = file.as_raw_fd();
    // SAFETY: the descriptor is open for the time of the calls. A process that opens the file at this moment makes the
    // kernel send the signal: SIGURG instead of SIGIO, which would end the process.
    unsafe {
        libc::fcntl(number, F_SETSIG, libc::SIGURG);
        if libc::fcntl(number, libc::F_SETLEASE, libc::F_WRLCK) == 0 {
            libc::fcntl(number, libc::F_SETLEASE, libc::F_UNLCK);
            return false;
        }
    }
    std::io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN)
}
