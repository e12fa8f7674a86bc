//! URI → open file, inside the root and nowhere else.
//!
//! Two checks: the server refuses segments that are never names (`.`, `..`, empty, over-long) itself, and
//! `openat2(2)` resolves the rest beneath the root (RESOLVE_BENEATH). So a rename or a link made meanwhile
//! cannot lead out either.

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, CWD, FileType, Mode as Permissions, OFlags, ResolveFlags, Stat};
use rustix::io::{self, Errno, IoSliceMut, ReadWriteFlags};
use std::ffi::CStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::errors::{Error, StartError};
use crate::storage::distinct_versions;
use crate::storage::etag::{Etag, Version};
use crate::storage::remote_file_systems;
use crate::storage::root::Root;

/// The longest name that Linux file systems hold, in bytes.
const MAX_SEGMENT: usize = 255;
/// The directory at the top of a root in which the server prepares writes. No URI leads into a directory of
/// this name, at any depth: a directory below this root may be the root of another server.
pub const RESERVED: &str = ".objmapper";
const NO_LINKS: ResolveFlags = ResolveFlags::NO_SYMLINKS;
/// openat2 fails with EAGAIN when a rename races with it; the server retries this often.
const RENAME_RETRIES: usize = 16;

// O_NONBLOCK, because opening a FIFO would wait for a writer.
const READING: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// A regular file, opened for this request alone: no other request shares its offset and status flags.
#[derive(Debug)]
pub struct OpenObject {
    pub file: OwnedFd,
    /// Bytes, at the time of opening.
    pub size: u64,
    /// The version of the file at that time.
    pub version: Version,
}

impl OpenObject {
    /// Whether the file is unchanged since it was opened. Checked after reading, true means that the bytes
    /// are of one state of the file.
    pub fn is_unchanged(&self) -> bool {
        fs::fstat(&self.file).is_ok_and(|stat| self.version.looks_like(&Version::from_stat(&stat)))
    }

    pub fn meta(&self) -> ObjectMeta {
        ObjectMeta { size: self.size, mtime: self.version.mtime(), version: self.version }
    }
}

/// The metadata of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970, negative before that.
    pub mtime: i64,
    pub version: Version,
}

impl ObjectMeta {
    pub fn from_stat(stat: &Stat) -> Self {
        ObjectMeta::new(Version::from_stat(stat))
    }

    /// The metadata of an open file.
    pub fn from_file(file: &OwnedFd, stat: &Stat) -> Self {
        ObjectMeta::new(distinct_versions::version_of(file, stat))
    }

    fn new(version: Version) -> Self {
        ObjectMeta { size: version.size(), mtime: version.mtime(), version }
    }

    /// 16 hex digits that identify this state of the object.
    pub fn etag(&self) -> Etag {
        self.version.etag()
    }
}

/// A directory whose regular files are the objects. A clone shares its descriptor.
#[derive(Debug, Clone)]
pub struct Mapping {
    root: Arc<Root>,
    resolve: ResolveFlags,
    is_remote: bool,
    device: u64,
    /// Whether this kernel supports RESOLVE_CACHED; true until a call fails.
    resolves_cached: Arc<AtomicBool>,
}

impl Mapping {
    /// Opens `root`.
    pub fn new(root: &Path, follow_symlinks: bool) -> Result<Self, StartError> {
        let failed = |errno| StartError::new(errno, "cannot serve this root", root.display().to_string());
        let directory = Root::open(root).map_err(failed)?;
        let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        if !follow_symlinks {
            resolve |= ResolveFlags::NO_SYMLINKS;
        }
        let is_remote = remote_file_systems::is_remote(&directory).map_err(failed)?;
        let device = fs::fstat(&directory).map_err(failed)?.st_dev;
        Ok(Mapping {
            root: Arc::new(directory),
            resolve,
            is_remote,
            device,
            resolves_cached: Arc::new(AtomicBool::new(true)),
        })
    }

    /// The directory itself, opened without read permission.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The root, for health checks.
    pub fn root_state(&self) -> &Root {
        &self.root
    }

    /// The error for the client: says so where an object is missing because the root is gone.
    pub fn explained(&self, error: Error) -> Error {
        match error {
            Error::NotFound
            | Error::NoDirectory
            | Error::NotDirectory
            | Error::StagingGone
            | Error::MayNotWrite
            | Error::NoPermission
            | Error::OtherFileSystem
            | Error::NotRegular
            | Error::Storage(_)
                if self.root.is_gone() =>
            {
                Error::RootGone
            }
            other => other,
        }
    }

    /// Fails where the root is gone: for calls that find nothing without an error.
    pub fn check_root(&self) -> Result<(), Error> {
        if self.root.is_gone() { Err(Error::RootGone) } else { Ok(()) }
    }

    /// The path of the root when it was opened, for messages.
    pub fn name(&self) -> &Path {
        self.root.path()
    }

    /// Whether the root lies on a network file system or one in user space, where any look-up may block.
    pub fn is_remote(&self) -> bool {
        self.is_remote
    }

    /// Whether stat(2) of this file shows every change. On a file system that another machine may change it
    /// does not: the kernel then answers from attributes that it caches for a while.
    pub fn sees_changes_of(&self, opened: &OpenObject) -> bool {
        // Another file system may be mounted below the root. Subvolumes and layers have devices of their own, too.
        let is_remote = || remote_file_systems::is_remote(&opened.file).unwrap_or(true);
        !self.is_remote && (opened.version.device == self.device || !is_remote())
    }

    pub fn follows_symlinks(&self) -> bool {
        !self.resolve.contains(ResolveFlags::NO_SYMLINKS)
    }

    /// Opens the object for reading. `path` comes from [`relative_path`].
    pub fn open(&self, path: &CStr) -> Result<OpenObject, Error> {
        opened(self.resolve(path, READING).map_err(Error::from_open)?)
    }

    /// Opens the object if that needs no waiting. None where the path is not in the kernel's cache or leads
    /// to another file system than the root's, or where the kernel cannot tell (before Linux 5.12, and [on
    /// remote roots](Self::is_remote)). Then [`open`](Self::open) decides, on a thread that may wait.
    pub fn open_cached(&self, path: &CStr) -> Result<Option<OpenObject>, Error> {
        self.resolve_cached(path, READING)?.map(opened).transpose()
    }

    /// The result of [`stat`](Self::stat), if that needs no waiting. Opens nothing for reading, so a program
    /// that waits for a reader of a FIFO goes on waiting.
    pub fn stat_cached(&self, path: &CStr) -> Result<Option<ObjectMeta>, Error> {
        let Some(file) = self.resolve_cached(path, OFlags::PATH | OFlags::CLOEXEC)? else { return Ok(None) };
        let meta = ObjectMeta::from_stat(&regular(&file)?);
        Ok((!meta.version.is_coarse()).then_some(meta))
    }

    fn resolve_cached(&self, path: &CStr, flags: OFlags) -> Result<Option<OwnedFd>, Error> {
        if self.is_remote || !self.resolves_cached.load(Relaxed) {
            return Ok(None);
        }
        // A slower file system may be mounted below the root.
        let cached = self.resolve | ResolveFlags::CACHED | ResolveFlags::NO_XDEV;
        let file = match fs::openat2(&*self.root, path, flags, Permissions::empty(), cached | NO_LINKS) {
            Err(Errno::LOOP) if self.follows_symlinks() => {
                let behind = fs::openat2(&*self.root, path, flags, Permissions::empty(), cached);
                behind.and_then(|file| self.outside_staging(file))
            }
            answer => answer,
        };
        match file {
            Ok(file) => Ok(Some(file)),
            // XDEV is a mount or a way out of the root: `open` finds out which.
            Err(Errno::AGAIN | Errno::INTR | Errno::XDEV) => Ok(None),
            Err(Errno::INVAL | Errno::NOSYS) => {
                self.resolves_cached.store(false, Relaxed);
                Ok(None)
            }
            Err(errno) => Err(Error::from_open(errno)),
        }
    }

    /// The metadata of the object, without opening it. The server may lack permission to read the object itself.
    pub fn stat(&self, path: &CStr) -> Result<ObjectMeta, Error> {
        let file = self.resolve(path, OFlags::PATH | OFlags::CLOEXEC).map_err(Error::from_open)?;
        let meta = ObjectMeta::from_stat(&regular(&file)?);
        // Reading its stamp takes a descriptor for reading. An unreadable file has no stamp for this server.
        if meta.version.is_coarse()
            && let Ok(file) = self.resolve(path, READING)
        {
            return opened(file).map(|opened| opened.meta());
        }
        Ok(meta)
    }

    /// Opens a directory, to read its entries or for fsync(2); `.` is the root itself.
    pub fn open_directory(&self, path: &CStr) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        self.resolve(path, flags)
    }

    fn resolve(&self, path: &CStr, flags: OFlags) -> io::Result<OwnedFd> {
        let mut tries = 0;
        // First without links: then the path itself shows that it does not lead into a staging directory.
        let mut resolve = self.resolve | NO_LINKS;
        loop {
            match fs::openat2(&*self.root, path, flags, Permissions::empty(), resolve) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if tries < RENAME_RETRIES => tries += 1,
                Err(Errno::LOOP) if resolve != self.resolve => resolve = self.resolve,
                Ok(file) if resolve != self.resolve | NO_LINKS => return self.outside_staging(file),
                answer => return answer,
            }
        }
    }

    /// ENOENT for a file in any server's staging directory, whichever link leads there. Also ENOENT where the
    /// server cannot find that out, without /proc.
    fn outside_staging(&self, file: OwnedFd) -> io::Result<OwnedFd> {
        let path_of = |file: BorrowedFd<'_>| {
            fs::readlinkat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), Vec::new())
        };
        let reserved = |path: &CStr| {
            path.to_bytes().split(|&byte| byte == b'/').filter(|name| is_reserved(name)).count()
        };
        let count = reserved(&path_of(file.as_fd())?);
        // The root itself may lie below a directory of this name.
        if count > 0 && count > reserved(&path_of(self.root())?) {
            return Err(Errno::NOENT);
        }
        Ok(file)
    }

    /// Whether the file at the path still looks as it did at `version`.
    ///
    /// Unlike `open`, this follows links on the way: it only decides whether bytes that `open` allowed are
    /// still those of the same, unchanged file.
    pub fn is_still(&self, path: &CStr, version: &Version) -> bool {
        fs::statat(&*self.root, path, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| version.looks_like(&Version::from_stat(&stat)))
    }
}

fn opened(file: OwnedFd) -> Result<OpenObject, Error> {
    let stat = regular(&file)?;
    let meta = ObjectMeta::from_file(&file, &stat);
    Ok(OpenObject { file, size: meta.size, version: meta.version })
}

/// The fstat(2) of the file, if it is a regular one.
fn regular(file: &OwnedFd) -> Result<Stat, Error> {
    let stat = fs::fstat(file).map_err(Error::Storage)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(stat),
        _ => Err(Error::NotRegular),
    }
}

/// Reads bytes that the kernel has in memory; 0 at the end of the file. None where the read would have to
/// wait for the disk.
///
/// Fewer bytes than requested may mean that the rest is on the disk. On file systems that cannot tell
/// (overlayfs, older tmpfs) this reads like pread(2), and may block.
pub fn read_cached(file: &OwnedFd, buffer: &mut [u8], offset: u64) -> Result<Option<usize>, Error> {
    loop {
        let answer = match io::preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => io::pread(file, &mut *buffer, offset),
            Err(Errno::AGAIN) => return Ok(None),
            answer => answer,
        };
        match answer {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::Storage(errno)),
            Ok(count) => return Ok(Some(count)),
        }
    }
}

/// Clears O_NONBLOCK, so that a client receives the descriptor as open(2) would have returned it.
pub fn clear_status_flags(file: &OwnedFd) -> Result<(), Error> {
    fs::fcntl_setfl(file, OFlags::empty()).map_err(Error::Storage)
}

/// The path below the root, written into `path` so that the call allocates nothing, or why the URI has none.
/// A leading slash is optional, so each object has one path.
pub fn relative_path<'a>(uri: &str, path: &'a mut Vec<u8>) -> Result<&'a CStr, Error> {
    #[cfg(test)]
    assert_ne!(uri, "/panic", "a test wants this");
    let relative = uri.strip_prefix('/').unwrap_or(uri).as_bytes();
    let mut leads_to_staging = false;
    for segment in relative.split(|&byte| byte == b'/') {
        if matches!(segment, b"" | b"." | b"..") || segment.len() > MAX_SEGMENT {
            return Err(Error::BadPath);
        }
        leads_to_staging |= is_reserved(segment);
    }
    if leads_to_staging {
        return Err(Error::NotFound);
    }
    path.clear();
    path.extend_from_slice(relative);
    path.push(0);
    CStr::from_bytes_with_nul(path).map_err(|_| Error::BadPath)
}

/// Whether a name is that of a staging directory, on a case-insensitive file system too.
pub fn is_reserved(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(RESERVED.as_bytes())
}

#[cfg(test)]
#[path = "mapping_tests.rs"]
mod tests;
