//! Where a server prepares writes: its own directory, `ROOT/.objmapper/<pid>-<random>/`. The next server
//! sweeps it after a crash.
//!
//! A server holds flock(2) on its directory as long as it lives, so a directory whose lock is free has no
//! owner. The server holds the lock of `.objmapper` above it for the sweep, and between making its directory
//! and locking it.

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{self, AtFlags, CWD, Dir, FlockOperation, Mode as Permissions, OFlags, ResolveFlags};
use rustix::io::{self, Errno};
use rustix::process::{geteuid, getpid};
use rustix::rand::{GetRandomFlags, getrandom};
use std::ffi::{CStr, CString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::errors::{Error, StartError};
use crate::storage::distinct_versions::{VersionSource, Versions};
use crate::storage::mapping::{Mapping, RESERVED};
use crate::storage::pending_write::PendingWrite;
pub use crate::storage::target::{Conditions, Match};
use crate::storage::target::{Target, no_directory};
use crate::sync::unpoisoned;

/// How long a start waits for another server's start, whose sweep takes no longer than removing a few files.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(5);
/// The number of locks, and so the most writes between check and rename at a time.
const STRIPES: usize = 64;
const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The write side of a server. Dropping this and the last [`PendingWrite`] removes its directory.
#[derive(Debug)]
pub struct Staging {
    mapping: Mapping,
    directory: Mutex<Arc<Directory>>,
    notices: Vec<String>,
}

impl Staging {
    /// Makes the directory, and removes those of servers that died.
    pub fn new(mapping: &Mapping) -> Result<Staging, StartError> {
        let (directory, notices) = Staging::make(mapping)?;
        Ok(Staging { mapping: mapping.clone(), directory: Mutex::new(Arc::new(directory)), notices })
    }

    /// Makes a new directory, in the root that has replaced the previous one. Writes under way stay in
    /// the old directory.
    pub fn renew(&self) -> Result<(), StartError> {
        let (directory, _) = Staging::make(&self.mapping)?;
        *unpoisoned(self.directory.lock()) = Arc::new(directory);
        Ok(())
    }

    fn directory(&self) -> Arc<Directory> {
        Arc::clone(&*unpoisoned(self.directory.lock()))
    }

    fn make(mapping: &Mapping) -> Result<(Directory, Vec<String>), StartError> {
        let failed = |errno| {
            let subject = mapping.name().join(RESERVED).display().to_string();
            StartError::new(errno, why_no_staging(errno), subject)
        };
        let started = Instant::now();
        loop {
            match Directory::make(mapping).map_err(failed)? {
                Some(made) => return Ok(made),
                None if started.elapsed() > LOCK_TIMEOUT => return Err(failed(Errno::AGAIN)),
                None => sleep(LOCK_RETRY_INTERVAL),
            }
        }
    }

    /// Acts as on a file system without O_TMPFILE.
    #[cfg(test)]
    pub(crate) fn with_named_files(mut self) -> Staging {
        let directory = unpoisoned(self.directory.get_mut());
        if let Some(directory) = Arc::get_mut(directory) {
            directory.can_link = false;
        }
        self
    }

    /// The findings of the sweep at the start, one line each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Starts a put. `path` comes from `mapping::relative_path`; `make_parents` makes missing directories on the way.
    pub fn begin(&self, path: &CStr, make_parents: bool) -> Result<PendingWrite, Error> {
        let target = if make_parents { Target::make } else { Target::find }(&self.mapping, path);
        let target = target.map_err(no_directory)?;
        // A rename cannot replace anything else. Checked before the content comes, so that the client does
        // not send it for nothing.
        target.existing()?;
        if target.identity.0 != self.directory().device {
            return Err(Error::OtherFileSystem);
        }
        PendingWrite::new(self.directory(), target)
    }

    /// Removes the object, durably, if `if_match` matches it.
    pub fn delete(&self, path: &CStr, if_match: Option<Match>) -> Result<(), Error> {
        let target = Target::find(&self.mapping, path).map_err(Error::from_open)?;
        let directory = self.directory();
        let guard = directory.lock(&target);
        let existing = target.existing()?.ok_or(Error::NotFound)?;
        target.check(&Conditions { if_match, if_none_match: None }, Some(&existing))?;
        target.confirm(&self.mapping).map_err(|error| match error {
            Error::NoDirectory | Error::NotDirectory => Error::NotFound,
            other => other,
        })?;
        match fs::unlinkat(&target.directory, &target.name, AtFlags::empty()) {
            Err(Errno::NOENT) => return Err(Error::NotFound),
            answer => answer.map_err(Error::from_write)?,
        }
        drop(guard);
        target.sync()
    }
}

/// The directory of one server.
#[derive(Debug)]
pub(crate) struct Directory {
    pub file: OwnedFd,
    /// Whether the file system can make files without a name and link them later.
    pub can_link: bool,
    /// Gives distinct versions to the files written here.
    pub versions: Versions,
    device: u64,
    pub mapping: Mapping,
    above: OwnedFd,
    name: CString,
    next: AtomicU64,
    stripes: [Mutex<()>; STRIPES],
}

impl Directory {
    /// None where another server interfered, and a retry may succeed.
    fn make(mapping: &Mapping) -> io::Result<Option<(Directory, Vec<String>)>> {
        match fs::mkdirat(mapping.root(), RESERVED, Permissions::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let above = match fs::openat2(mapping.root(), RESERVED, OPEN, Permissions::empty(), resolve) {
            // A server that stopped has just removed it.
            Err(Errno::NOENT | Errno::AGAIN) => return Ok(None),
            answer => answer?,
        };
        if !lock(&above)? {
            return Ok(None);
        }
        let name = CString::new(format!("{}-{:016x}", getpid().as_raw_nonzero(), random()?));
        let name = name.map_err(|_| Errno::INVAL)?;
        match fs::mkdirat(&above, &name, Permissions::RWXU) {
            // NOENT: the opened directory has been removed since.
            Err(Errno::NOENT | Errno::EXIST) => return Ok(None),
            answer => answer?,
        }
        let file = match fs::openat(&above, &name, OPEN, Permissions::empty()) {
            Ok(file) => file,
            Err(errno) => {
                let _ = fs::unlinkat(&above, &name, AtFlags::REMOVEDIR);
                return Err(errno);
            }
        };
        let versions = probe_versions(&file)?;
        let mut directory = Directory {
            can_link: false,
            versions,
            device: 0,
            mapping: mapping.clone(),
            above,
            name,
            next: AtomicU64::new(0),
            stripes: [const { Mutex::new(()) }; STRIPES],
            file,
        };
        if !lock(&directory.file)? {
            return Ok(None);
        }
        directory.device = fs::fstat(&directory.file)?.st_dev;
        directory.can_link = directory.try_link();
        let mut notices = sweep(&directory.above)?;
        if directory.versions.kept() == VersionSource::Nothing {
            notices.push(
                "conditions are not exact here: this file system keeps neither nanoseconds nor attributes, so two \
                 contents of one size that are put within 2 s may have the same etag"
                    .into(),
            );
        }
        fs::flock(&directory.above, FlockOperation::Unlock)?;
        Ok(Some((directory, notices)))
    }

    /// Whether the file system has O_TMPFILE, and /proc exists to link such a file.
    fn try_link(&self) -> bool {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let Ok(file) = fs::openat(&self.file, c".", flags, Permissions::RUSR | Permissions::WUSR) else {
            return false;
        };
        let (path, name) = (format!("/proc/self/fd/{}", file.as_raw_fd()), self.next_name());
        fs::linkat(CWD, path, &self.file, &name, AtFlags::SYMLINK_FOLLOW).is_ok()
            && fs::unlinkat(&self.file, &name, AtFlags::empty()).is_ok()
    }

    pub fn next_name(&self) -> CString {
        let number = self.next.fetch_add(1, Relaxed);
        CString::new(number.to_string()).unwrap_or_default()
    }

    /// Keeps other writes to this target, and to the targets that share its lock, from running between a
    /// check and a rename.
    pub fn lock(&self, target: &Target) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        (target.identity, &target.name).hash(&mut hasher);
        let stripe = &self.stripes[hasher.finish() as usize % STRIPES];
        unpoisoned(stripe.lock())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // The next start sweeps a file that cannot be removed now. `.objmapper` itself stays while other
        // servers use it.
        let _ = remove_files(&self.file);
        let _ = fs::unlinkat(&self.above, &self.name, AtFlags::REMOVEDIR);
        let _ = fs::unlinkat(self.mapping.root(), RESERVED, AtFlags::REMOVEDIR);
    }
}

/// Whether the lock was free. The descriptor holds it until it closes.
fn lock(directory: &OwnedFd) -> io::Result<bool> {
    match fs::flock(directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Removes the files of servers that died. The caller holds the lock of `above`.
fn sweep(above: &OwnedFd) -> io::Result<Vec<String>> {
    let mut notices = Vec::new();
    for entry in Dir::read_from(above)? {
        let name = entry?.file_name().to_owned();
        if !is_ours(name.to_bytes()) {
            continue;
        }
        let shown = name.to_string_lossy();
        match sweep_one(above, &name) {
            Ok(None) => {}
            Ok(Some(files)) => notices.push(format!(
                "removed {RESERVED}/{shown}, left by a server that died, with {files} unfinished objects"
            )),
            Err(errno) => notices.push(format!(
                "cannot remove {RESERVED}/{shown}, left by a server that died: {errno}; remove it by hand"
            )),
        }
    }
    Ok(notices)
}

/// The number of removed files; None for a directory in use, or one that is not of a server of this user.
fn sweep_one(above: &OwnedFd, name: &CStr) -> io::Result<Option<usize>> {
    let directory = match fs::openat(above, name, OPEN, Permissions::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        answer => answer?,
    };
    let stat = fs::fstat(&directory)?;
    // Users who may write to the root cannot make a directory of this owner and mode.
    let is_own = stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o777 == 0o700;
    if !is_own || !lock(&directory)? {
        return Ok(None);
    }
    let removed = remove_files(&directory);
    match removed.and_then(|files| fs::unlinkat(above, name, AtFlags::REMOVEDIR).map(|()| files)) {
        // Its owner stopped between open and lock, and has removed it.
        Err(Errno::NOENT) => Ok(None),
        answer => answer.map(Some),
    }
}

fn remove_files(directory: &OwnedFd) -> io::Result<usize> {
    let mut count = 0;
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            fs::unlinkat(directory, name, AtFlags::empty())?;
            count += 1;
        }
    }
    Ok(count)
}

/// Finds out in a fresh directory how to tell its files apart.
fn probe_versions(directory: &OwnedFd) -> io::Result<Versions> {
    let (name, flags) = (c"probe", OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC);
    let file = fs::openat(directory, name, flags, Permissions::RUSR | Permissions::WUSR)?;
    let versions = random().and_then(|seed| Versions::new(&file, seed));
    fs::unlinkat(directory, name, AtFlags::empty())?;
    versions
}

/// `<pid>-<16 hex digits>`.
fn is_ours(name: &[u8]) -> bool {
    let mut parts = name.splitn(2, |&byte| byte == b'-');
    let (pid, random) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    !pid.is_empty()
        && pid.iter().all(u8::is_ascii_digit)
        && random.len() == 16
        && random.iter().all(u8::is_ascii_hexdigit)
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    let filled = getrandom(&mut bytes, GetRandomFlags::empty())?;
    if filled == bytes.len() { Ok(u64::from_ne_bytes(bytes)) } else { Err(Errno::IO) }
}

/// The remedy for the error; the caller adds which error it was.
fn why_no_staging(errno: Errno) -> &'static str {
    match errno {
        Errno::ACCESS | Errno::PERM => {
            "the server's user may not write here, or another user's server has left it: give write permission, or \
             remove it when no server runs on this root"
        }
        Errno::ROFS => "the file system is mounted read-only; serve it without --writable",
        Errno::NOTDIR | Errno::LOOP | Errno::XDEV => {
            "the server needs this name for a directory of its own; move the existing file away"
        }
        Errno::AGAIN => "another server on this root does not finish its start; see what it waits for",
        Errno::BADF | Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS => {
            "this file system cannot lock directories (NFS cannot), and writes need that; serve it without --writable"
        }
        _ => "cannot prepare writes here",
    }
}

#[cfg(test)]
#[path = "staging_tests.rs"]
mod tests;
