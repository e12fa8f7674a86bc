//! URI → open file, inside the root and nowhere else.
//!
//! Two fences: segments that are never names (`.`, `..`, empty, over-long) are refused before the kernel sees them, and
//! `openat2(2)` resolves the rest beneath the root (RESOLVE_BENEATH), so a rename or a link planted meanwhile cannot lead
//! out either.

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, CWD, FileType, Mode as Permissions, OFlags, ResolveFlags, Stat};
use rustix::io::{self, Errno, IoSliceMut, ReadWriteFlags};
use std::ffi::CStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::errors::{Error, StartError};
use crate::storage::file_system;
use crate::storage::root::Root;
use crate::storage::version::{Etag, Version};
use crate::storage::versions;

/// The longest name that Linux file systems hold, in bytes.
const MAX_SEGMENT: usize = 255;
/// The directory at the top of a root in which writes are prepared. No URI leads into one of this name, at whatever depth: a
/// directory below this root may be the root of another server.
pub const RESERVED: &str = ".objmapper";
const NO_LINKS: ResolveFlags = ResolveFlags::NO_SYMLINKS;
/// openat2 says EAGAIN where a rename raced with it; so many times it is asked again.
const RENAME_RETRIES: usize = 16;

// O_NONBLOCK, because opening a FIFO would wait for a writer.
const READING: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// A regular file, opened for this request alone: offset and status flags belong to nobody else.
#[derive(Debug)]
pub struct OpenObject {
    pub file: OwnedFd,
    /// Bytes, at the time of opening.
    pub size: u64,
    /// What the file was at that time.
    pub version: Version,
}

impl OpenObject {
    /// Whether the file is still what it was when it was opened: asked after reading, it says that what was read is one
    /// state of it.
    pub fn is_unchanged(&self) -> bool {
        fs::fstat(&self.file).is_ok_and(|stat| self.version.looks_like(&Version::of(&stat)))
    }

    pub fn found(&self) -> ObjectMeta {
        ObjectMeta { size: self.size, mtime: self.version.mtime(), version: self.version }
    }
}

/// What is known of an object without its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970, negative before that.
    pub mtime: i64,
    pub version: Version,
}

impl ObjectMeta {
    pub fn of(stat: &Stat) -> Self {
        ObjectMeta::new(Version::of(stat))
    }

    /// What is known of an open file.
    pub fn of_file(file: &OwnedFd, stat: &Stat) -> Self {
        ObjectMeta::new(versions::version_of(file, stat))
    }

    fn new(version: Version) -> Self {
        ObjectMeta { size: version.size(), mtime: version.mtime(), version }
    }

    /// 16 hex digits that stand for this state of the object.
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
    /// Whether this kernel knows RESOLVE_CACHED, as far as it has been asked.
    resolves_cached: Arc<AtomicBool>,
}

impl Mapping {
    /// Takes hold of `root`.
    pub fn new(root: &Path, follow_symlinks: bool) -> Result<Self, StartError> {
        let failed = |errno| StartError::new(errno, "cannot serve this root", root.display().to_string());
        let directory = Root::open(root).map_err(failed)?;
        let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        if !follow_symlinks {
            resolve |= ResolveFlags::NO_SYMLINKS;
        }
        let is_remote = file_system::is_remote(&directory).map_err(failed)?;
        let device = fs::fstat(&directory).map_err(failed)?.st_dev;
        Ok(Mapping {
            root: Arc::new(directory),
            resolve,
            is_remote,
            device,
            resolves_cached: Arc::new(AtomicBool::new(true)),
        })
    }

    /// The directory itself, held open without permission to read.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The root, to be looked at.
    pub fn place(&self) -> &Root {
        &self.root
    }

    /// An error as the client gets it: what was not found because the root is gone says so.
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

    /// Fails where the root is gone: for what finds nothing without an error.
    pub fn check_root(&self) -> Result<(), Error> {
        if self.root.is_gone() { Err(Error::RootGone) } else { Ok(()) }
    }

    /// The path that it had when it was opened, for messages.
    pub fn name(&self) -> &Path {
        self.root.path()
    }

    /// Whether the root lies on a network file system or one in user space, where any look-up may have to wait.
    pub fn is_remote(&self) -> bool {
        self.is_remote
    }

    /// Whether stat(2) of this file tells of every change that stat(2) can tell of. Not so where another machine may
    /// change the file: the kernel then answers from attributes that it keeps for a while.
    pub fn sees_changes_of(&self, opened: &OpenObject) -> bool {
        // Below the root something else may be mounted. Subvolumes and layers have devices of their own, too.
        let is_remote = || file_system::is_remote(&opened.file).unwrap_or(true);
        !self.is_remote && (opened.version.device == self.device || !is_remote())
    }

    pub fn follows_symlinks(&self) -> bool {
        !self.resolve.contains(ResolveFlags::NO_SYMLINKS)
    }

    /// Opens the object for reading. `path` comes from [`relative_path`].
    pub fn open(&self, path: &CStr) -> Result<OpenObject, Error> {
        opened(self.resolve(path, READING).map_err(Error::from_open)?)
    }

    /// Opens the object if that needs no waiting: None where the path is not in the kernel's cache, leads to another file
    /// system than the root's, or where none of this is known (before Linux 5.12, and [on remote roots](Self::is_remote)).
    /// Then [`open`](Self::open) decides, on a thread that may wait.
    pub fn open_cached(&self, path: &CStr) -> Result<Option<OpenObject>, Error> {
        self.resolve_cached(path, READING)?.map(opened).transpose()
    }

    /// What [`stat`](Self::stat) tells, if that needs no waiting. Nothing is opened for reading, so a program that waits for a
    /// reader of a FIFO goes on waiting.
    pub fn stat_cached(&self, path: &CStr) -> Result<Option<ObjectMeta>, Error> {
        let Some(file) = self.resolve_cached(path, OFlags::PATH | OFlags::CLOEXEC)? else { return Ok(None) };
        let found = ObjectMeta::of(&regular(&file)?);
        Ok((!found.version.is_coarse()).then_some(found))
    }

    fn resolve_cached(&self, path: &CStr, flags: OFlags) -> Result<Option<OwnedFd>, Error> {
        if self.is_remote || !self.resolves_cached.load(Relaxed) {
            return Ok(None);
        }
        // Below the root something slower may be mounted.
        let cached = self.resolve | ResolveFlags::CACHED | ResolveFlags::NO_XDEV;
        let found = match fs::openat2(&*self.root, path, flags, Permissions::empty(), cached | NO_LINKS) {
            Err(Errno::LOOP) if self.follows_symlinks() => {
                let behind = fs::openat2(&*self.root, path, flags, Permissions::empty(), cached);
                behind.and_then(|file| self.outside_staging(file))
            }
            answer => answer,
        };
        match found {
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

    /// What [`open`](Self::open) would open, without opening it; it may be an object that the server cannot read.
    pub fn stat(&self, path: &CStr) -> Result<ObjectMeta, Error> {
        let file = self.resolve(path, OFlags::PATH | OFlags::CLOEXEC).map_err(Error::from_open)?;
        let found = ObjectMeta::of(&regular(&file)?);
        // Its stamp takes a descriptor for reading. What cannot be read has none for this server.
        if found.version.is_coarse()
            && let Ok(file) = self.resolve(path, READING)
        {
            return opened(file).map(|opened| opened.found());
        }
        Ok(found)
    }

    /// Opens a directory, for reading its entries and for fsync(2); `.` is the root itself.
    pub fn open_directory(&self, path: &CStr) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        self.resolve(path, flags)
    }

    fn resolve(&self, path: &CStr, flags: OFlags) -> io::Result<OwnedFd> {
        let mut tries = 0;
        // At first without links: where there are none, the path itself says that it does not lead into a staging directory.
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

    /// ENOENT for what lies in a directory in which a server prepares writes, however a link has led there; also where that
    /// cannot be found out, for want of /proc.
    fn outside_staging(&self, file: OwnedFd) -> io::Result<OwnedFd> {
        let path_of = |file: BorrowedFd<'_>| {
            fs::readlinkat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), Vec::new())
        };
        let reserved = |path: &CStr| {
            path.to_bytes().split(|&byte| byte == b'/').filter(|name| is_reserved(name)).count()
        };
        let found = reserved(&path_of(file.as_fd())?);
        // The root itself may lie below a directory of this name.
        if found > 0 && found > reserved(&path_of(self.root())?) {
            return Err(Errno::NOENT);
        }
        Ok(file)
    }

    /// Whether what lies at the path looks as it did when `version` was taken of it.
    ///
    /// This follows links on the way, unlike `open`: it decides only whether bytes that were rightly read are still those
    /// of the same, unchanged file.
    pub fn is_still(&self, path: &CStr, version: &Version) -> bool {
        fs::statat(&*self.root, path, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| version.looks_like(&Version::of(&stat)))
    }
}

fn opened(file: OwnedFd) -> Result<OpenObject, Error> {
    let stat = regular(&file)?;
    let found = ObjectMeta::of_file(&file, &stat);
    Ok(OpenObject { file, size: found.size, version: found.version })
}

/// What fstat(2) says of it, if it is a regular file.
fn regular(file: &OwnedFd) -> Result<Stat, Error> {
    let stat = fs::fstat(file).map_err(Error::Storage)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(stat),
        _ => Err(Error::NotRegular),
    }
}

/// Reads what the kernel has in memory; at the end of the file 0. None where the disk would have to be waited for.
///
/// Fewer bytes than asked for may mean that the rest is on the disk. On file systems that cannot tell (overlayfs, older
/// tmpfs) it reads like pread(2), and may wait.
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

/// Makes a descriptor fit to be given away: the receiver gets it without O_NONBLOCK, as open(2) would have given it.
pub fn clear_status_flags(file: &OwnedFd) -> Result<(), Error> {
    fs::fcntl_setfl(file, OFlags::empty()).map_err(Error::Storage)
}

/// The path below the root, written into `path` so that nothing is allocated, or why there is none. A leading slash is optional, so an object has just one path.
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

/// Whether a name is that of a directory in which writes are prepared, on a file system that does not tell cases apart too.
pub fn is_reserved(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(RESERVED.as_bytes())
}

#[cfg(test)]
#[path = "mapping_tests.rs"]
mod tests;
