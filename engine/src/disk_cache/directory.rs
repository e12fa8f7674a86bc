//! The cache's directory: created or reopened, checked for its owner and its content, locked for one server.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, AtFlags, CWD, Dir, FlockOperation, Mode as Permissions, OFlags};
use rustix::io::{self, Errno};
use std::ffi::CStr;
use std::path::{Path, PathBuf};

use crate::errors::StartError;

/// Names the directory a cache (bford.info/cachedir), so that backups leave it out; its lock is the server's.
const TAG: &CStr = c"CACHEDIR.TAG";
const TAG_TEXT: &[u8] =
    b"Signature: 8a477f597d28d172789f06886806bc55\n# The disk cache of an objmapper server.\n";
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const OWNER_ONLY: Permissions = Permissions::RWXU;

#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    directory: OwnedFd,
    /// Its lock lasts as long as it is open.
    _tag: OwnedFd,
}

impl Directory {
    /// Opens the directory; makes it where it is missing. Fails where another server uses it, or where files are in it
    /// that are not a cache's.
    pub fn open(path: &Path) -> Result<Directory, StartError> {
        let shown = || path.display().to_string();
        let failed = |errno| StartError::new(errno, "cannot use this directory for the disk cache", shown());
        match fs::mkdirat(CWD, path, OWNER_ONLY) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let directory = fs::openat(CWD, path, DIRECTORY, Permissions::empty()).map_err(failed)?;
        let stat = fs::fstat(&directory).map_err(failed)?;
        let own = rustix::process::geteuid().as_raw();
        if stat.st_uid != own {
            let why = format!(
                "the directory of the disk cache belongs to user {}, and the server runs as user {own}: give it a directory \
                 of its own",
                stat.st_uid
            );
            return Err(StartError::new(Errno::PERM, why, shown()));
        }
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Permissions::RUSR | Permissions::WUSR;
        let tag = match fs::openat(&directory, TAG, flags, Permissions::empty()) {
            Err(Errno::NOENT) if is_empty(&directory).map_err(failed)? => {
                fs::openat(&directory, TAG, flags | OFlags::CREATE, mode).map_err(failed)?
            }
            Err(Errno::NOENT) => {
                let why = "the directory of the disk cache has files in it that are not a cache's: give the server an \
                           empty directory";
                return Err(StartError::new(Errno::NOTEMPTY, why, shown()));
            }
            tag => tag.map_err(failed)?,
        };
        match fs::flock(&tag, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::AGAIN) => {
                let why =
                    "another server uses this directory for its disk cache: give each server one of its own";
                return Err(StartError::new(Errno::BUSY, why, shown()));
            }
            locked => locked.map_err(failed)?,
        }
        io::pwrite(&tag, TAG_TEXT, 0).map_err(failed)?;
        fs::fchmod(&directory, OWNER_ONLY).map_err(failed)?;
        let directory = Directory { path: path.to_owned(), directory, _tag: tag };
        directory.make_folders().map_err(failed)?;
        Ok(directory)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `objects/` with a folder for each first byte of an id, and `staging/`, empty.
    fn make_folders(&self) -> io::Result<()> {
        let make = |name: &str| match fs::mkdirat(&self.directory, name, OWNER_ONLY) {
            Err(Errno::EXIST) => Ok(()),
            made => made,
        };
        make("objects")?;
        make("staging")?;
        for byte in 0..=255u8 {
            make(&format!("objects/{byte:02x}"))?;
        }
        let staging = fs::openat(&self.directory, c"staging", DIRECTORY, Permissions::empty())?;
        for left in names(&staging)? {
            fs::unlinkat(&staging, left, AtFlags::empty())?;
        }
        Ok(())
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> rustix::fd::BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

fn is_empty(directory: &OwnedFd) -> io::Result<bool> {
    Ok(names(directory)?.iter().all(|name| name.as_bytes() == b"lost+found"))
}

/// The names in a directory, without `.` and `..`.
pub(super) fn names(directory: &OwnedFd) -> io::Result<Vec<std::ffi::CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}
