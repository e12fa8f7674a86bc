//! Objects of origins as files on this machine's disk, within a bound: files in, descriptors out.
//!
//! An entry is one version of one object: written to a file without a name, then linked in, so that a crash leaves a
//! whole entry or none. Names and extended attributes say everything; there is no index. An entry leaves by unlink(2):
//! a descriptor that a client holds stays whole.

mod directory;
pub mod entry;
mod eviction;
mod room;
pub mod table;

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{self, AtFlags, CWD, FallocateFlags, Mode as Permissions, OFlags, Timespec, Timestamps};
use rustix::io::{self, Errno};
use std::ffi::{CStr, CString};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk_cache::directory::{Directory, names};
use crate::disk_cache::entry::{Entry, EntryId, Record};
pub use crate::disk_cache::room::RoomUsage;
use crate::disk_cache::room::{Room, is_held};
use crate::disk_cache::table::Table;
use crate::errors::{Error, StartError};
use crate::storage::mapping::OpenObject;
use crate::sync::unpoisoned;

/// File systems count space in blocks of this many bytes, mostly; an entry takes one more for its attribute.
const BLOCK: u64 = 4096;
/// The part of the file system that stays free for others, as a divisor.
const FREE_PART: u64 = 20;
/// O_NONBLOCK, so that the look of [`is_held`] cannot delay a request.
const READING: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOFOLLOW);
/// How often a request opens a file again that [`is_held`] is looking at.
const OPEN_TRIES: usize = 100;

#[derive(Debug)]
pub struct DiskCache {
    directory: Directory,
    size: u64,
    room: Mutex<Room>,
    /// The number of the next name in `staging/`, and of the next file's modification time.
    next: AtomicU64,
    /// Which boot of the machine this is.
    boot: String,
    counts: Counts,
    is_stopped: AtomicBool,
}

#[derive(Debug, Default)]
struct Counts {
    evicted: AtomicU64,
    damaged: AtomicU64,
}

/// Why a cache has no place for an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// It is larger than the whole cache.
    TooLarge,
    /// What could leave is held by clients, or other downloads have reserved the rest.
    Full,
    /// The disk failed.
    Disk(Errno),
}

impl From<NoRoom> for Error {
    fn from(why: NoRoom) -> Error {
        match why {
            NoRoom::TooLarge => Error::LargerThanCache,
            NoRoom::Full | NoRoom::Disk(Errno::NOSPC | Errno::DQUOT) => Error::CacheFull,
            NoRoom::Disk(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => Error::from_open(errno),
            NoRoom::Disk(errno) => Error::Storage(errno),
        }
    }
}

impl DiskCache {
    /// Opens the cache in a directory, for at most `size` bytes.
    pub fn open(path: &Path, size: u64) -> Result<Arc<DiskCache>, StartError> {
        let directory = Directory::open(path)?;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let cache = DiskCache {
            directory,
            size,
            room: Mutex::new(Room::new(size)),
            next: AtomicU64::new(u64::from(rustix::process::getpid().as_raw_pid().unsigned_abs()) * 1000),
            boot: boot.trim().to_owned(),
            counts: Counts::default(),
            is_stopped: AtomicBool::new(false),
        };
        cache.probe().map_err(|errno| {
            let why = "the file system of the disk cache lacks what entries need: files without a name (O_TMPFILE) and \
                       extended attributes of users; ext4, XFS, btrfs and tmpfs (Linux 6.6) have both";
            StartError::new(errno, why, path.display().to_string())
        })?;
        Ok(Arc::new(cache))
    }

    fn probe(&self) -> io::Result<()> {
        let file = self.open_unnamed()?;
        fs::fsetxattr(&file, "user.objmapper.probe", b"1", fs::XattrFlags::empty())
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn usage(&self) -> RoomUsage {
        self.room().usage()
    }

    /// The bound on all bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Entries that left to make room.
    pub fn evicted(&self) -> u64 {
        self.counts.evicted.load(Relaxed)
    }

    /// Entries whose file was missing, or not the one that was written.
    pub fn damaged(&self) -> u64 {
        self.counts.damaged.load(Relaxed)
    }

    /// Counts the files that an earlier server left. May take long: for a thread of its own.
    pub fn scan(&self) {
        for byte in 0..=255u8 {
            if self.is_stopped.load(Relaxed) {
                return;
            }
            // A folder that cannot be read is counted as its entries are used.
            let _ = self.scan_folder(&format!("{byte:02x}"));
        }
    }

    fn scan_folder(&self, folder: &str) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            fs::openat(&self.directory, format!("objects/{folder}"), flags, Permissions::empty())?;
        for name in names(&directory)? {
            let Some(id) = name.to_str().ok().and_then(|name| EntryId::parse(folder, name)) else { continue };
            if let Ok(stat) = fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
                let mut room = self.room();
                if !room.contains(&id) {
                    room.add(id, footprint_of(stat.st_blocks as u64 * 512));
                }
            }
        }
        Ok(())
    }

    /// Ends a scan.
    pub fn stop(&self) {
        self.is_stopped.store(true, Relaxed);
    }

    /// Opens an entry's file for one request. None where it is gone or damaged: then the entry is gone, too. An error
    /// where the process or the machine has no descriptor or no memory left, which says nothing about the file.
    pub fn open_entry(&self, entry: &Entry) -> Result<Option<OpenObject>, Error> {
        let file = match self.open_file(entry.path()) {
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => return Err(Error::from_open(errno)),
            // Another thread asks whether it is held.
            Err(Errno::AGAIN) => return Ok(None),
            file => file.ok(),
        };
        if let Some(file) = file
            && let Ok(stat) = fs::fstat(&file)
            && entry.is_file(&stat)
        {
            entry.note_use();
            return Ok(Some(OpenObject { file, size: entry.record.size, version: entry.version() }));
        }
        // Evicted since the caller found it: no damage.
        if !entry.is_evicted() {
            self.counts.damaged.fetch_add(1, Relaxed);
            self.drop_entry(entry);
        }
        Ok(None)
    }

    fn open_file(&self, path: &CStr) -> io::Result<OwnedFd> {
        let mut tries = 0;
        loop {
            match fs::openat(&self.directory, path, READING, Permissions::empty()) {
                Err(Errno::AGAIN) if tries < OPEN_TRIES => {
                    tries += 1;
                    std::thread::yield_now();
                }
                Err(Errno::INTR) => {}
                answer => return answer,
            }
        }
    }

    /// Finds the entry of an object that an earlier server left. May wait for the disk.
    pub fn find(&self, store: &str, key: &str, table: &Arc<Table>) -> Option<Arc<Entry>> {
        let id = EntryId::new(store, key);
        let path = id.path();
        let file = self.open_file(&path).ok()?;
        let stat = fs::fstat(&file).ok()?;
        let record = Record::read(&file).ok()?;
        let is_whole = |record: &Record| {
            let is_synced =
                record.unsynced_since_boot.as_ref().is_none_or(|boot| !boot.is_empty() && *boot == self.boot);
            (&*record.store, &*record.key, record.size) == (store, key, stat.st_size as u64) && is_synced
        };
        let Some(record) = record.filter(is_whole) else {
            self.counts.damaged.fetch_add(1, Relaxed);
            self.room().forget(&id);
            let _ = fs::unlinkat(&self.directory, &path, AtFlags::empty());
            return None;
        };
        let footprint = footprint_of(stat.st_blocks as u64 * 512);
        let entry = Arc::new(Entry::new(id, record, &stat, footprint, Arc::downgrade(table)));
        let mut room = self.room();
        if !room.contains(&id) {
            room.add(id, footprint);
        }
        room.attach(&entry);
        table.insert(&entry);
        Some(entry)
    }

    /// Begins an entry of `size` bytes; makes room for it first.
    pub fn begin(self: &Arc<Self>, size: u64) -> Result<PendingEntry, NoRoom> {
        let reservation = self.reserve(footprint_of(size))?;
        let file = self.open_unnamed().map_err(NoRoom::Disk)?;
        if size > 0 {
            match fs::fallocate(&file, FallocateFlags::empty(), 0, size) {
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(NoRoom::Disk(errno)),
            }
        }
        Ok(PendingEntry { file, size, reservation })
    }

    fn open_unnamed(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        fs::openat(&self.directory, c"staging", flags, Permissions::RUSR | Permissions::WUSR)
    }

    fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, NoRoom> {
        if bytes > self.size {
            return Err(NoRoom::TooLarge);
        }
        let mut room = self.room();
        room.sweep_held();
        // Freed space may show late (btrfs), and others may fill the disk: the cache gives no more than what is lacking.
        let lacking = self.disk_lacks(bytes).map_err(NoRoom::Disk)?;
        if lacking > room.usage().cached_bytes {
            return Err(NoRoom::Full);
        }
        let mut freed = 0;
        while !room.fits(bytes) || freed < lacking {
            let is_held = |id: &EntryId| self.open_file(&id.path()).is_ok_and(|file| is_held(&file));
            let Some((id, left, entry)) = room.evict(is_held) else { return Err(NoRoom::Full) };
            self.unlink(&mut room, id, left, entry.as_deref());
            freed += left;
            self.counts.evicted.fetch_add(1, Relaxed);
        }
        room.reserve(bytes);
        Ok(Reservation { cache: Arc::clone(self), bytes })
    }

    /// Bytes that the disk lacks to keep its share free with this number of bytes more.
    fn disk_lacks(&self, bytes: u64) -> io::Result<u64> {
        let disk = fs::fstatvfs(&self.directory)?;
        let share = disk.f_blocks * disk.f_frsize / FREE_PART;
        Ok((bytes + share).saturating_sub(disk.f_bavail * disk.f_frsize))
    }

    /// Removes an entry that is out of the queue.
    fn unlink(&self, room: &mut Room, id: EntryId, bytes: u64, entry: Option<&Entry>) {
        if let Some(entry) = entry {
            entry.mark_evicted();
            if let Some(table) = entry.table.upgrade() {
                table.remove(entry);
            }
        }
        let path = id.path();
        let file = self.open_file(&path);
        let _ = fs::unlinkat(&self.directory, &path, AtFlags::empty());
        if let Ok(file) = file {
            room.hold(file, bytes);
        }
    }

    /// Removes an entry: its object is gone, or its file is not what it was.
    pub fn drop_entry(&self, entry: &Entry) {
        let mut room = self.room();
        if entry.is_evicted() {
            return;
        }
        room.forget(&entry.id);
        self.unlink(&mut room, entry.id, entry.footprint, Some(entry));
    }

    /// Gives back the bytes of files that left and that no client holds any more.
    pub fn sweep(&self) {
        self.room().sweep_held();
    }

    /// Notes that the origin has confirmed an entry, for a later server too.
    pub fn confirm(&self, entry: &Entry, at: u64) {
        entry.set_validated(at);
        let unsynced_since_boot = entry.record.unsynced_since_boot.clone().filter(|_| !entry.is_synced());
        let record = Record { validated: at, unsynced_since_boot, ..entry.record.clone() };
        self.rewrite(entry, &record);
    }

    /// Waits until the disk has an entry, so that it outlives a power cut.
    pub fn sync(&self, entry: &Entry) {
        let Ok(file) = self.open_file(entry.path()) else { return };
        if fs::fdatasync(&file).is_ok() {
            entry.set_synced();
            let record =
                Record { unsynced_since_boot: None, validated: entry.validated(), ..entry.record.clone() };
            self.rewrite(entry, &record);
        }
    }

    fn rewrite(&self, entry: &Entry, record: &Record) {
        // A record that stays as it was costs one question to the origin, or one download after a power cut.
        if let Ok(file) = self.open_file(entry.path())
            && fs::fstat(&file).is_ok_and(|stat| entry.is_file(&stat))
        {
            let _ = record.write(&file);
        }
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        unpoisoned(self.room.lock())
    }
}

/// Bytes that a file of this size takes on the disk.
fn footprint_of(size: u64) -> u64 {
    size.next_multiple_of(BLOCK) + BLOCK
}

/// Bytes that are kept free for a download; given back on drop.
#[derive(Debug)]
struct Reservation {
    cache: Arc<DiskCache>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.cache.room().release(self.bytes);
    }
}

/// An entry on its way: a file without a name. Dropping it leaves nothing.
#[derive(Debug)]
pub struct PendingEntry {
    file: OwnedFd,
    size: u64,
    reservation: Reservation,
}

impl PendingEntry {
    /// Writes at an offset. Bytes beyond the size are refused.
    pub fn write(&self, mut bytes: &[u8], mut at: u64) -> Result<(), NoRoom> {
        if at + bytes.len() as u64 > self.size {
            return Err(NoRoom::Disk(Errno::FBIG));
        }
        while !bytes.is_empty() {
            match io::pwrite(&self.file, bytes, at) {
                Ok(written) => {
                    bytes = &bytes[written..];
                    at += written as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(NoRoom::Disk(errno)),
            }
        }
        Ok(())
    }

    /// Makes it an entry, in place of another version's. The caller has written all bytes.
    pub fn commit(self, mut record: Record, table: &Arc<Table>) -> io::Result<Arc<Entry>> {
        let PendingEntry { file, reservation, .. } = self;
        let cache = Arc::clone(&reservation.cache);
        record.unsynced_since_boot = Some(cache.boot.clone());
        let id = EntryId::new(&record.store, &record.key);
        let path = id.path();
        record.write(&file)?;
        let number = cache.next.fetch_add(1, Relaxed);
        // Nanoseconds that no other file has, so that a file is known again.
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT },
            last_modification: Timespec { tv_sec: record.modified, tv_nsec: (number % 1_000_000_000) as _ },
        };
        fs::futimens(&file, &times)?;
        let stat = fs::fstat(&file)?;
        let footprint = footprint_of(record.size);
        let entry = Arc::new(Entry::new(id, record, &stat, footprint, Arc::downgrade(table)));
        let staged = CString::new(format!("staging/{number}")).unwrap_or_default();
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        fs::linkat(CWD, unnamed, &cache.directory, &staged, AtFlags::SYMLINK_FOLLOW)?;
        let mut room = cache.room();
        let before = cache.open_file(&path);
        if let Err(errno) = fs::renameat(&cache.directory, &staged, &cache.directory, &path) {
            drop(room);
            let _ = fs::unlinkat(&cache.directory, &staged, AtFlags::empty());
            return Err(errno);
        }
        let replaced = table.insert(&entry);
        if let Some(replaced) = &replaced {
            replaced.mark_evicted();
        }
        if let Ok(before) = before {
            let bytes = fs::fstat(&before).map_or(0, |stat| footprint_of(stat.st_size as u64));
            room.hold(before, bytes);
        }
        room.add(id, footprint);
        room.attach(&entry);
        drop(room);
        drop(reservation);
        Ok(entry)
    }
}

#[cfg(test)]
#[path = "disk_cache_tests.rs"]
mod tests;
