//! URI → open file, inside the root and nowhere else.
//!
//! Two fences: segments that are never names (`.`, `..`, empty, over-long) are refused before the kernel sees them, and
//! `openat2(2)` resolves the rest beneath the root (RESOLVE_BENEATH), so a rename or a link planted meanwhile cannot lead
//! out either.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, AtFlags, CWD, FileType, Mode as Permissions, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::path::Path;

use crate::cache::Version;
use crate::errors::{Error, StartError};

/// The longest name that Linux file systems hold, in bytes.
const MAX_SEGMENT: usize = 255;
/// openat2 says EAGAIN where a rename raced with it; so many times it is asked again.
const RENAME_RETRIES: usize = 16;

/// A regular file, opened for this request alone: offset and status flags belong to nobody else.
#[derive(Debug)]
pub struct Opened {
    pub file: OwnedFd,
    /// Bytes, at the time of opening.
    pub size: u64,
    /// What the file was at that time.
    pub version: Version,
}

/// A directory whose regular files are the objects.
#[derive(Debug)]
pub struct Mapping {
    root: OwnedFd,
    resolve: ResolveFlags,
}

impl Mapping {
    /// Takes hold of `root`; later renames of the directory do not matter.
    pub fn new(root: &Path, follow_symlinks: bool) -> Result<Self, StartError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = fs::openat(CWD, root, flags, Permissions::empty())
            .map_err(|errno| StartError::new(errno, "cannot serve this root", root.display().to_string()))?;
        let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        if !follow_symlinks {
            resolve |= ResolveFlags::NO_SYMLINKS;
        }
        Ok(Mapping { root: directory, resolve })
    }

    /// Opens the object for reading. `path` comes from [`relative_path`].
    pub fn open(&self, path: &CStr) -> Result<Opened, Error> {
        // O_NONBLOCK, because opening a FIFO would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let mut tries = 0;
        let file = loop {
            match fs::openat2(self.root.as_fd(), path, flags, Permissions::empty(), self.resolve) {
                Ok(file) => break file,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if tries < RENAME_RETRIES => tries += 1,
                Err(errno) => return Err(Error::from_open(errno)),
            }
        };
        let stat = fs::fstat(&file).map_err(Error::Storage)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::NotRegular);
        }
        Ok(Opened { file, size: stat.st_size.max(0) as u64, version: Version::of(&stat) })
    }

    /// What lies at the path now, for comparison with what once was opened there; None where there is nothing.
    ///
    /// This follows links on the way, unlike `open`: it decides only whether bytes that were rightly read are still those
    /// of the same, unchanged file.
    pub fn version(&self, path: &CStr) -> Option<Version> {
        fs::statat(self.root.as_fd(), path, AtFlags::SYMLINK_NOFOLLOW).ok().map(|stat| Version::of(&stat))
    }
}

/// Makes a descriptor fit to be given away: the receiver gets it without O_NONBLOCK, as open(2) would have given it.
pub fn clear_status_flags(file: &OwnedFd) -> Result<(), Error> {
    fs::fcntl_setfl(file, OFlags::empty()).map_err(Error::Storage)
}

/// The path below the root, written into `path` so that nothing is allocated, or why there is none. A leading slash is optional, so an object has just one path.
pub fn relative_path<'a>(uri: &str, path: &'a mut Vec<u8>) -> Result<&'a CStr, Error> {
    let relative = uri.strip_prefix('/').unwrap_or(uri).as_bytes();
    let is_name = |segment: &[u8]| !matches!(segment, b"" | b"." | b"..") && segment.len() <= MAX_SEGMENT;
    if !relative.split(|&byte| byte == b'/').all(is_name) {
        return Err(Error::BadPath);
    }
    path.clear();
    path.extend_from_slice(relative);
    path.push(0);
    CStr::from_bytes_with_nul(path).map_err(|_| Error::BadPath)
}

#[cfg(test)]
#[path = "mapping_tests.rs"]
mod tests;
