//! A Unix socket's path: the lock file beside it, and the removal of a stale socket.

use crate::errors::StartError;
use rustix::fd::OwnedFd;
use rustix::fs::{self, CWD, FileType, FlockOperation, Mode as Permissions, OFlags};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::path::{Path, PathBuf};

/// The longest path of a Unix socket: sun_path without its final NUL.
pub(super) const MAX_UNIX_PATH: usize = 107;

/// The claim on a Unix socket's path: a locked file beside it, held as long as the server lives.
#[derive(Debug)]
pub(super) struct SocketPath {
    pub(super) path: PathBuf,
    lock_path: PathBuf,
    // Closing it releases the lock.
    lock: OwnedFd,
    /// Device and inode of this server's socket.
    identity: Option<(u64, u64)>,
}

impl SocketPath {
    /// Locks the path and removes a socket that no server listens on any more.
    pub(super) fn claim(path: &Path, notices: &mut Vec<String>) -> Result<Self, StartError> {
        let shown = path.display().to_string();
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let lock = lock_file(&lock_path, &shown)?;
        let claim = SocketPath { path: path.to_owned(), lock_path, lock, identity: None };
        let stat = match fs::lstat(path) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(claim),
            Err(errno) => return Err(StartError::new(errno, "cannot stat the socket's path", shown)),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(StartError::new(
                Errno::EXIST,
                "the file there is not a socket; remove it or choose another path",
                shown,
            ));
        }
        if answers(path) {
            return Err(StartError::new(Errno::ADDRINUSE, "another server listens there", shown));
        }
        fs::unlink(path)
            .map_err(|errno| StartError::new(errno, "cannot remove the stale socket", shown.clone()))?;
        notices.push(format!("removed a stale socket that no server listened on: {shown}"));
        Ok(claim)
    }

    /// Records which socket is this server's, after bind(2).
    pub(super) fn bound(mut self) -> Result<Self, StartError> {
        let stat = fs::lstat(&self.path).map_err(|errno| {
            StartError::new(errno, "the socket was removed", self.path.display().to_string())
        })?;
        self.identity = Some((stat.st_dev, stat.st_ino));
        Ok(self)
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        // Remove only this server's files: an administrator may have removed both, and another server may have
        // created them anew. The lock goes last, so that a server that waits for it finds the path free.
        let present = fs::lstat(&self.path).ok().map(|stat| (stat.st_dev, stat.st_ino));
        if self.identity.is_some() && present == self.identity {
            let _ = fs::unlink(&self.path);
        }
        let there = fs::lstat(&self.lock_path).map(|stat| (stat.st_dev, stat.st_ino));
        let locked = fs::fstat(&self.lock).map(|stat| (stat.st_dev, stat.st_ino));
        if locked.is_ok() && there == locked {
            let _ = fs::unlink(&self.lock_path);
        }
    }
}

/// Opens and locks the file; tries again if its last holder removed it meanwhile.
fn lock_file(path: &Path, shown: &str) -> Result<OwnedFd, StartError> {
    loop {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = fs::openat(CWD, path, flags, Permissions::from_raw_mode(0o600)).map_err(|errno| {
            StartError::new(errno, "cannot create the lock file beside the socket", shown)
        })?;
        match fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::INTR) => continue,
            Err(Errno::WOULDBLOCK) => {
                return Err(StartError::new(
                    Errno::ADDRINUSE,
                    "another server holds this socket's lock",
                    shown,
                ));
            }
            Err(errno) => return Err(StartError::new(errno, "cannot lock", shown)),
        }
        let mine =
            fs::fstat(&lock).map_err(|errno| StartError::new(errno, "cannot stat the lock file", shown))?;
        if fs::stat(path).is_ok_and(|there| (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)) {
            return Ok(lock);
        }
    }
}

/// Whether a server listens on the socket. Only ECONNREFUSED proves that none does.
fn answers(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let Ok(name) = SocketAddrUnix::new(path) else { return true };
    let Ok(probe) = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None) else {
        return true;
    };
    net::connect(&probe, &name) != Err(Errno::CONNREFUSED)
}
