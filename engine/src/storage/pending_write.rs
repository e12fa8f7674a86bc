//! A write in progress: a file without a URI until it is complete and on the disk; a rename then puts it in place.

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{self, AtFlags, CWD, FallocateFlags, Mode as Permissions, OFlags, RenameFlags};
use rustix::io::{self, Errno};
use std::ffi::CString;
use std::sync::Arc;

use crate::errors::Error;
use crate::storage::mapping::ObjectMeta;
use crate::storage::quota::check_quota;
#[cfg(test)]
use crate::storage::source_copy::{Copied, Copying};
use crate::storage::staging::Directory;
use crate::storage::target::{Conditions, Target};

/// A dropped write leaves no file behind.
#[derive(Debug)]
pub struct PendingWrite {
    staging: Arc<Directory>,
    target: Target,
    file: OwnedFd,
    /// Its name in the staging directory, once it has one.
    name: Option<CString>,
    size: u64,
    reserved: u64,
}

impl PendingWrite {
    pub(crate) fn new(staging: Arc<Directory>, target: Target) -> Result<PendingWrite, Error> {
        let everybody = Permissions::from_raw_mode(0o666);
        let (file, name) = if staging.can_link {
            // In the target's own directory: missing permission, room or quota shows now, and that
            // directory's group and default access list apply. After a crash no file remains to sweep.
            let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
            (fs::openat(&target.directory, c".", flags, everybody).map_err(Error::from_write)?, None)
        } else {
            let name = staging.next_name();
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            (fs::openat(&staging.file, &name, flags, everybody).map_err(in_staging)?, Some(name))
        };
        Ok(PendingWrite { staging, target, file, name, size: 0, reserved: 0 })
    }

    /// The file that receives the bytes.
    pub fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the disk has room for `more` bytes, as far as the server can know. A write beyond the free
    /// room would fill the disk before it failed, and every other writer would find it full.
    pub fn check_space(&self, more: u64) -> Result<(), Error> {
        let disk = fs::fstatvfs(&self.file).map_err(Error::from_write)?;
        if more > disk.f_bavail.saturating_mul(disk.f_frsize) {
            return Err(Error::from_write(Errno::NOSPC));
        }
        check_quota(&self.file, more)
    }

    /// Reserves room on the disk for `length` bytes in all, so that a lack of room shows before they come.
    /// File systems without this allocate as bytes are written.
    pub fn reserve(&mut self, length: u64) -> Result<(), Error> {
        while length > self.reserved {
            match fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.reserved, length - self.reserved)
            {
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => break,
                Err(errno) => return Err(Error::from_write(errno)),
                Ok(()) => self.reserved = length,
            }
        }
        Ok(())
    }

    /// Appends all of `bytes`.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            match io::pwrite(&self.file, bytes, self.size) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::from_write(errno)),
                // Linux is not known to return 0; a retry would never end.
                Ok(0) => return Err(Error::Storage(Errno::IO)),
                Ok(count) => {
                    self.size += count as u64;
                    bytes = &bytes[count..];
                }
            }
        }
        Ok(())
    }

    /// Bytes reserved on the disk.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Sets the length, without reserving room; bytes never written read as zeros.
    pub(crate) fn extend(&mut self, length: u64) -> Result<(), Error> {
        fs::ftruncate(&self.file, length).map_err(Error::from_write)?;
        self.size = length;
        Ok(())
    }

    /// Copies all of `source`, step by step.
    #[cfg(test)]
    fn copy_from(&mut self, source: OwnedFd) -> Result<u64, Error> {
        let mut copying = Copying::new(source, 0)?;
        while copying.step(self)? == Copied::Part {}
        Ok(copying.length())
    }

    /// Puts the object in its place, durably, if the conditions hold. Returns its new metadata.
    ///
    /// A failure before the rename leaves the old object unchanged. If the last step fails, the fsync(2) of
    /// the directory, the new object is in place, but a crash may still bring the old one back. The server
    /// never retries an fsync: after a failure Linux marks the lost pages as clean, and a second call succeeds.
    pub fn commit(mut self, conditions: Conditions) -> Result<ObjectMeta, Error> {
        // Checked again below; a failure here saves the wait for the disk.
        let existing = self.target.existing()?;
        self.target.check(&conditions, existing.as_ref())?;
        if let Some(existing) = existing {
            let permissions = Permissions::from_raw_mode(existing.st_mode & 0o777);
            fs::fchmod(&self.file, permissions).map_err(Error::from_write)?;
        }
        if self.reserved > self.size {
            fs::ftruncate(&self.file, self.size).map_err(Error::from_write)?;
        }
        self.link()?;
        self.staging.versions.assign(&self.file).map_err(Error::from_write)?;
        fs::fsync(&self.file).map_err(Error::Storage)?;
        let staging = Arc::clone(&self.staging);
        let guard = staging.lock(&self.target);
        self.target.check(&conditions, self.target.existing()?.as_ref())?;
        self.target.confirm(&staging.mapping)?;
        self.rename(conditions.are_exclusive())?;
        // A rename changes the file's ctime, so its version is known only now.
        let meta = ObjectMeta::from_file(&self.file, &fs::fstat(&self.file).map_err(Error::Storage)?);
        drop(guard);
        self.target.sync()?;
        // The directory may have been moved between the check before the rename and the rename.
        self.target.confirm(&staging.mapping)?;
        Ok(meta)
    }

    /// Gives the file a name in the staging directory. linkat(2) replaces nothing, so the file needs a name
    /// before the rename. On some file systems (btrfs before 2025) fsync(2) of a file without a name does
    /// nothing, so the name comes before the fsync.
    fn link(&mut self) -> Result<(), Error> {
        if self.name.is_none() {
            // AT_EMPTY_PATH would do without /proc, and needs a capability before Linux 6.10.
            let name = self.staging.next_name();
            let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            fs::linkat(CWD, path, &self.staging.file, &name, AtFlags::SYMLINK_FOLLOW).map_err(in_staging)?;
            self.name = Some(name);
        }
        Ok(())
    }

    /// Renames from the staging directory to the object's name.
    fn rename(&mut self, exclusive: bool) -> Result<(), Error> {
        self.link()?;
        let (from, to) = (&self.staging.file, &self.target);
        let Some(name) = &self.name else { return Err(Error::StagingGone) };
        let flags = if exclusive { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
        let mut answer = fs::renameat_with(from, name, &to.directory, &to.name, flags);
        if exclusive && matches!(answer, Err(Errno::INVAL | Errno::NOSYS)) {
            // This file system has no exclusive rename; the check under the lock covers all writes through
            // this server.
            answer = fs::renameat(from, name, &to.directory, &to.name);
        }
        match answer {
            Ok(()) => self.name = None,
            Err(Errno::EXIST) => return Err(Error::Conflict),
            Err(errno) => return Err(Error::from_write(errno)),
        }
        Ok(())
    }
}

impl Drop for PendingWrite {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // The next start sweeps a file that cannot be removed now.
            let _ = fs::unlinkat(&self.staging.file, name, AtFlags::empty());
        }
    }
}

/// Refuses an object of more than `max_size` bytes; 0: no limit.
pub fn check_size(length: u64, max_size: u64) -> Result<(), Error> {
    if max_size > 0 && length > max_size { Err(Error::TooLarge) } else { Ok(()) }
}

fn in_staging(errno: Errno) -> Error {
    match errno {
        Errno::NOENT => Error::StagingGone,
        other => Error::from_write(other),
    }
}

#[cfg(test)]
#[path = "pending_write_tests/mod.rs"]
mod tests;
