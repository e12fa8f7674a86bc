//! The target of a write: an open directory, a name in it, and the conditions on the present object.

use rustix::fd::OwnedFd;
use rustix::fs::{self, AtFlags, FileType, Mode as Permissions, OFlags, Stat};
use rustix::io::{self, Errno};
use std::ffi::{CStr, CString};

use crate::errors::Error;
use crate::storage::distinct_versions;
use crate::storage::etag::{Etag, Version};
use crate::storage::mapping::Mapping;

/// The version that a condition compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// `*`: any object, as long as one exists.
    Any,
    Etag(Etag),
}

impl Match {
    /// Parses a request's condition: 16 hex digits, or `*`.
    pub fn parse(bytes: &[u8]) -> Result<Match, Error> {
        match Etag::try_from(bytes) {
            _ if bytes == b"*" => Ok(Match::Any),
            Ok(etag) if etag.iter().all(u8::is_ascii_hexdigit) => {
                Ok(Match::Etag(etag.map(|digit| digit.to_ascii_lowercase())))
            }
            _ => Err(Error::BadEtag),
        }
    }

    fn fits(self, etag: Option<Etag>) -> bool {
        match self {
            Match::Any => etag.is_some(),
            Match::Etag(expected) => etag == Some(expected),
        }
    }
}

/// The conditions on the present object for a write; CONFLICT where they do not hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Only over this version; with [`Match::Any`] only over an object.
    pub if_match: Option<Match>,
    /// Not over this version; with [`Match::Any`] only where no object exists.
    pub if_none_match: Option<Match>,
}

impl Conditions {
    /// CONFLICT where the conditions do not hold of `existing`; None means no object.
    pub fn check_version(&self, existing: Option<&Version>) -> Result<(), Error> {
        if self.if_match.is_none() && self.if_none_match.is_none() {
            return Ok(());
        }
        let etag = existing.map(Version::etag);
        let hold = self.if_match.is_none_or(|expected| expected.fits(etag))
            && self.if_none_match.is_none_or(|excluded| !excluded.fits(etag));
        if hold { Ok(()) } else { Err(Error::Conflict) }
    }

    /// Whether a write must not replace anything, which the kernel itself can enforce.
    pub(crate) fn are_exclusive(&self) -> bool {
        self.if_none_match == Some(Match::Any)
    }
}

/// A place in the tree: a directory opened beneath the root, and a name in it. The directory may move while
/// it is open; [`confirm`](Target::confirm) detects that.
#[derive(Debug)]
pub(crate) struct Target {
    pub directory: OwnedFd,
    pub name: CString,
    /// Device and inode of the directory.
    pub identity: (u64, u64),
    /// The path by which the directory was opened; empty for the root.
    above: Box<[u8]>,
}

impl Target {
    /// `path` comes from `mapping::relative_path`.
    pub fn find(mapping: &Mapping, path: &CStr) -> io::Result<Target> {
        let (above, name) = divide(path.to_bytes());
        Target::in_directory(open(mapping, above)?, above, name)
    }

    /// As [`find`](Self::find), but makes missing directories, each of them durably.
    pub fn make(mapping: &Mapping, path: &CStr) -> io::Result<Target> {
        let (above, name) = divide(path.to_bytes());
        let mut there = above;
        let mut directory = loop {
            match open(mapping, there) {
                Err(Errno::NOENT) if !there.is_empty() => there = divide(there).0,
                answer => break answer?,
            }
        };
        while there.len() < above.len() {
            let from = if there.is_empty() { 0 } else { there.len() + 1 };
            let length = above[from..].iter().position(|&byte| byte == b'/').unwrap_or(above.len() - from);
            let segment = c_string(&above[from..from + length])?;
            let is_made = match fs::mkdirat(&directory, &segment, Permissions::from_raw_mode(0o777)) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(errno) => return Err(errno),
            };
            there = &above[..from + length];
            let below = open(mapping, there).and_then(|below| match is_made && !is_in(&below, &directory)? {
                true => Err(Errno::NOENT),
                false => Ok(below),
            });
            match below {
                // Another writer that made it may not have called fsync yet.
                Ok(below) => {
                    sync_directory(&directory)?;
                    directory = below;
                }
                Err(errno) => {
                    // The directory has moved meanwhile, perhaps out of the root: remove the new directory there.
                    if is_made {
                        let _ = fs::unlinkat(&directory, &segment, AtFlags::REMOVEDIR);
                    }
                    return Err(errno);
                }
            }
        }
        Target::in_directory(directory, above, name)
    }

    fn in_directory(directory: OwnedFd, above: &[u8], name: &[u8]) -> io::Result<Target> {
        let identity = identity(&directory)?;
        Ok(Target { directory, name: c_string(name)?, identity, above: above.into() })
    }

    /// Whether the path of the directory still leads to it, beneath the root. Otherwise a change in it would
    /// not be one at the URI, or would be one outside the root. Resolves the path anew.
    pub fn confirm(&self, mapping: &Mapping) -> Result<(), Error> {
        let now = open(mapping, &self.above).and_then(|directory| identity(&directory));
        match now.map_err(no_directory)? {
            now if now == self.identity => Ok(()),
            _ => Err(Error::Busy("the object's directory was moved or replaced meanwhile; try again")),
        }
    }

    /// The present object; refused where a write cannot replace or remove it.
    pub fn existing(&self) -> Result<Option<Stat>, Error> {
        let stat = match fs::statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            answer => answer.map_err(Error::from_write)?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(Some(stat)),
            FileType::Directory => Err(Error::IsDirectory),
            FileType::Symlink => Err(Error::WriteToLink),
            _ => Err(Error::NotRegular),
        }
    }

    /// Whether the conditions hold of the result of [`existing`](Self::existing).
    pub fn check(&self, conditions: &Conditions, existing: Option<&Stat>) -> Result<(), Error> {
        conditions.check_version(existing.map(|stat| self.version(stat)).as_ref())
    }

    fn version(&self, stat: &Stat) -> Version {
        let version = Version::from_stat(stat);
        if !version.is_coarse() {
            return version;
        }
        // Only a descriptor for reading gives the stamp. The stamp of another file, which came meanwhile,
        // gives another version.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
        match fs::openat(&self.directory, &self.name, flags, Permissions::empty()) {
            Ok(file) => distinct_versions::version_of(&file, stat),
            Err(_) => version,
        }
    }

    /// Makes a change in the directory durable.
    pub fn sync(&self) -> Result<(), Error> {
        sync_directory(&self.directory).map_err(Error::Storage)
    }
}

/// The error of a put whose directory look-up failed.
pub(crate) fn no_directory(errno: Errno) -> Error {
    match errno {
        // openat2 returns this for a link that leads out of the root, not for a mount.
        Errno::XDEV => Error::Outside,
        other => Error::from_write(other),
    }
}

/// Device and inode.
fn identity(directory: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = fs::fstat(directory)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Whether `below` lies in `directory` itself.
fn is_in(below: &OwnedFd, directory: &OwnedFd) -> io::Result<bool> {
    let above = fs::statat(below, c"..", AtFlags::SYMLINK_NOFOLLOW)?;
    Ok((above.st_dev, above.st_ino) == identity(directory)?)
}

/// The path of the directory, empty for the root, and the last name.
fn divide(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn open(mapping: &Mapping, path: &[u8]) -> io::Result<OwnedFd> {
    mapping.open_directory(&c_string(if path.is_empty() { b"." } else { path })?)
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| Errno::INVAL)
}

/// Some file systems have no fsync for directories and return EINVAL; their changes are as durable as they can be.
fn sync_directory(directory: &OwnedFd) -> io::Result<()> {
    match fs::fsync(directory) {
        Err(Errno::INVAL) => Ok(()),
        answer => answer,
    }
}
