//! The served directory, and whether it is still the one at its path.
//!
//! All look-ups use one descriptor. When the path leads nowhere, or to a directory that must not be served,
//! dup3(2) replaces that descriptor with one below which nothing exists. When the path leads to a directory
//! again, dup3(2) puts that one in. So a look-up costs no more than before, and one under way keeps the
//! directory that it began with.

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, CWD, FileType, Mode as Permissions, OFlags, Stat};
use rustix::io::{self, Errno};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use crate::sync::unpoisoned;

const FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

#[derive(Debug)]
pub struct Root {
    /// The descriptor of look-ups; its number stays, its directory may change.
    current: OwnedFd,
    path: PathBuf,
    is_gone: AtomicBool,
    served: Mutex<Served>,
}

#[derive(Debug)]
struct Served {
    /// The directory that was served last. While it is open, no other directory gets its inode number.
    directory: OwnedFd,
    /// Whether it is a mount point.
    is_mount: bool,
    problem: Option<String>,
}

/// The result of resolving the root's path.
enum Resolved {
    /// The directory that is open.
    Same,
    /// Another one that may be served.
    Other(OwnedFd),
    /// Unknown for now: the process, or the machine, has no descriptor or no memory left.
    Unknown,
}

/// The result of a look at the path.
#[derive(Debug, PartialEq, Eq)]
pub enum RootChange {
    /// Nothing has changed.
    Same,
    /// The root is gone; the reason, for people.
    Gone(String),
    /// The previous directory is at its path again.
    Back,
    /// Another directory is there; the server serves it from now on.
    Replaced,
}

impl Root {
    pub fn open(path: &Path) -> io::Result<Root> {
        let current = fs::openat(CWD, path, FLAGS, Permissions::empty())?;
        // Opening a directory takes no permission on it; look-ups below it take search permission.
        fs::openat(&current, c".", FLAGS, Permissions::empty())?;
        let directory = io::fcntl_dupfd_cloexec(&current, 0)?;
        let served = Served { is_mount: is_mount(&directory), directory, problem: None };
        Ok(Root {
            current,
            path: path.to_owned(),
            is_gone: AtomicBool::new(false),
            served: Mutex::new(served),
        })
    }

    /// The path given at the start.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether look-ups fail because the root itself is gone. Called after a failed look-up.
    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Relaxed) || fs::fstat(&self.current).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Why the root is gone, for people; None where it is not.
    pub fn problem(&self) -> Option<String> {
        self.served().problem.clone()
    }

    /// Checks whether the path leads to the served directory, and follows it where allowed. `prepare` must
    /// succeed before the server serves a replacement. May wait for the path's file systems.
    pub fn check(&self, prepare: impl FnOnce() -> Result<(), String>) -> RootChange {
        let mut served = self.served();
        let check = match self.resolve(&served) {
            Ok(Resolved::Unknown) => return RootChange::Same,
            Ok(Resolved::Same) if served.problem.is_none() => return RootChange::Same,
            Ok(Resolved::Same) => {
                self.put(&served.directory).map(|()| RootChange::Back).map_err(|errno| errno.to_string())
            }
            Ok(Resolved::Other(directory)) => {
                self.put(&directory).map_err(|errno| errno.to_string()).and_then(|()| {
                    prepare()?;
                    served.is_mount = is_mount(&directory);
                    served.directory = directory;
                    Ok(RootChange::Replaced)
                })
            }
            Err(problem) => Err(problem),
        };
        match check {
            Ok(check) => {
                served.problem = None;
                self.is_gone.store(false, Relaxed);
                check
            }
            Err(problem) => {
                self.is_gone.store(true, Relaxed);
                // Look-ups below a file that is not a directory find nothing.
                let not_a_directory =
                    fs::openat(CWD, "/dev/null", OFlags::PATH | OFlags::CLOEXEC, Permissions::empty());
                let _ = not_a_directory.and_then(|not_a_directory| self.put(&not_a_directory));
                if served.problem.as_ref() == Some(&problem) {
                    return RootChange::Same;
                }
                served.problem = Some(problem.clone());
                RootChange::Gone(problem)
            }
        }
    }

    /// Resolves the path; an error says why the result must not be served.
    fn resolve(&self, served: &Served) -> Result<Resolved, String> {
        let shown = self.path.display();
        let directory = match fs::openat(CWD, &self.path, FLAGS, Permissions::empty()) {
            Ok(directory) => directory,
            Err(errno) if is_exhausted(errno) => return Ok(Resolved::Unknown),
            Err(Errno::NOENT | Errno::NOTDIR) => {
                return Err(format!("{shown} was removed or renamed; put it back"));
            }
            Err(errno) => return Err(format!("{shown} cannot be opened: {errno}")),
        };
        let (now, before) = (identity(&directory)?, identity(&served.directory)?);
        if now == before {
            return Ok(Resolved::Same);
        }
        if now.0 != before.0 && !(served.is_mount && is_mount(&directory)) {
            return Err(format!(
                "another file system is at {shown} than at the start, mounted or uncovered: mount what was there, or restart \
                 the server to serve what is there now"
            ));
        }
        match fs::openat(&directory, c".", FLAGS, Permissions::empty()) {
            Ok(_) => Ok(Resolved::Other(directory)),
            Err(errno) if is_exhausted(errno) => Ok(Resolved::Unknown),
            Err(errno) => {
                Err(format!("{shown} was replaced by a directory that cannot be searched: {errno}"))
            }
        }
    }

    fn put(&self, directory: &OwnedFd) -> io::Result<()> {
        // SAFETY: both are open, and `current` stays this value's own: only its directory changes.
        let answer = unsafe { libc::dup3(directory.as_raw_fd(), self.current.as_raw_fd(), libc::O_CLOEXEC) };
        if answer >= 0 {
            return Ok(());
        }
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }

    fn served(&self) -> MutexGuard<'_, Served> {
        unpoisoned(self.served.lock())
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.current.as_fd()
    }
}

/// Whether the process, or the machine, has no descriptor or no memory left: such an error says nothing about
/// the path.
fn is_exhausted(errno: Errno) -> bool {
    matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::INTR)
}

fn identity(directory: &OwnedFd) -> Result<(u64, u64), String> {
    let stat: Stat = fs::fstat(directory).map_err(|errno| errno.to_string())?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Whether the directory is a mount point, by the device of its parent.
fn is_mount(directory: &OwnedFd) -> bool {
    let above = fs::statat(directory, c"..", fs::AtFlags::empty());
    let Ok((here, above)) = fs::fstat(directory).and_then(|here| Ok((here, above?))) else { return false };
    FileType::from_raw_mode(here.st_mode) == FileType::Directory
        && (here.st_dev != above.st_dev || here.st_ino == above.st_ino)
}

#[cfg(test)]
#[path = "root_tests.rs"]
mod tests;
