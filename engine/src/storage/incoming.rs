//! An object on its way in: a file that no URI leads to until it is whole and on the disk; then it is renamed into place.

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{self, AtFlags, CWD, FallocateFlags, FileType, Mode as Permissions, OFlags, RenameFlags};
use rustix::io::{self, Errno};
use std::ffi::CString;
use std::sync::Arc;

use crate::errors::Error;
use crate::storage::mapping::Found;
use crate::storage::staging::Directory;
use crate::storage::target::{Conditions, Target};

/// Bytes that one call is asked to copy: less than the 2 GiB at which Linux cuts off.
const MOST_AT_ONCE: u64 = 1 << 30;

/// What is dropped leaves nothing behind.
#[derive(Debug)]
pub struct Incoming {
    staging: Arc<Directory>,
    target: Target,
    file: OwnedFd,
    /// Its name in the staging directory, if it has one already.
    name: Option<CString>,
    size: u64,
    reserved: u64,
}

impl Incoming {
    pub(crate) fn new(staging: Arc<Directory>, target: Target) -> Result<Incoming, Error> {
        let everybody = Permissions::from_raw_mode(0o666);
        let (file, name) = if staging.can_link {
            // In the target's own directory, so that a lack of permission, room or quota shows now, and the group and the
            // default access list of that directory hold. Nothing has to be swept after a crash.
            let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
            (fs::openat(&target.directory, c".", flags, everybody).map_err(Error::from_write)?, None)
        } else {
            let name = staging.next_name();
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            (fs::openat(&staging.file, &name, flags, everybody).map_err(in_staging)?, Some(name))
        };
        Ok(Incoming { staging, target, file, name, size: 0, reserved: 0 })
    }

    /// Where the bytes go.
    pub fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// Bytes so far.
    #[cfg(test)]
    fn size(&self) -> u64 {
        self.size
    }

    /// Takes room on the disk for `length` bytes in all, so that a lack of it shows before they come. File systems that
    /// cannot do so take it as they are written to. What is more than there is takes nothing: fallocate(2) would fill the
    /// disk before it fails, and every other writer would find it full.
    pub fn reserve(&mut self, length: u64) -> Result<(), Error> {
        let disk = fs::fstatvfs(&self.file).map_err(Error::from_write)?;
        if length.saturating_sub(self.reserved) > disk.f_bavail.saturating_mul(disk.f_frsize) {
            return Err(Error::from_write(Errno::NOSPC));
        }
        while length > self.reserved {
            match fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, length) {
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
                // Not seen on Linux; asked again it would go on for ever.
                Ok(0) => return Err(Error::Storage(Errno::IO)),
                Ok(count) => {
                    self.size += count as u64;
                    bytes = &bytes[count..];
                }
            }
        }
        Ok(())
    }

    /// Appends what `source` holds at this moment, from its beginning, whatever its position. Returns the number of bytes.
    ///
    /// Where the file system can, both share the blocks until one is written to; a later change of the source does not
    /// reach what is stored. A change while this copies may.
    pub fn copy_from(&mut self, source: &OwnedFd) -> Result<u64, Error> {
        let length = readable_size(source)?;
        if length > 0 && !(self.size == 0 && self.clone_from(source, length)?) {
            let copied = self.copy_range(source, length)?;
            self.send_rest(source, copied, length)?;
        }
        Ok(length)
    }

    /// FICLONE: the file system notes that both have the same blocks. Whether it could.
    fn clone_from(&mut self, source: &OwnedFd, length: u64) -> Result<bool, Error> {
        if fs::ioctl_ficlone(&self.file, source).is_err() {
            return Ok(false);
        }
        let size = fs::fstat(&self.file).map_err(Error::Storage)?.st_size.max(0) as u64;
        if size < length {
            return Err(Error::SourceShrank);
        }
        if size > length {
            fs::ftruncate(&self.file, length).map_err(Error::from_write)?;
        }
        self.size = length;
        Ok(true)
    }

    /// copy_file_range(2), as far as these two file systems let it. Returns the number of bytes.
    fn copy_range(&mut self, source: &OwnedFd, length: u64) -> Result<u64, Error> {
        let mut from = 0;
        while from < length {
            let (mut at, mut to) = (from, self.size);
            let count = (length - from).min(MOST_AT_ONCE) as usize;
            match fs::copy_file_range(source, Some(&mut at), &self.file, Some(&mut to), count) {
                Err(Errno::INTR) => {}
                // XDEV is what a memory file gives; the others are of older kernels and stacked file systems. A 0 may be the
                // end of the file, or one of those that cannot tell: sendfile finds out.
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) | Ok(0) => {
                    break;
                }
                Err(errno) => return Err(Error::from_write(errno)),
                Ok(count) => {
                    from += count as u64;
                    self.size += count as u64;
                }
            }
        }
        Ok(from)
    }

    /// sendfile(2), from any file to any file.
    fn send_rest(&mut self, source: &OwnedFd, mut from: u64, length: u64) -> Result<(), Error> {
        if from < length {
            fs::seek(&self.file, fs::SeekFrom::Start(self.size)).map_err(Error::Storage)?;
        }
        while from < length {
            let mut at = from;
            let count = (length - from).min(MOST_AT_ONCE) as usize;
            match fs::sendfile(&self.file, source, Some(&mut at), count) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::from_write(errno)),
                Ok(0) => return Err(Error::SourceShrank),
                Ok(count) => {
                    from += count as u64;
                    self.size += count as u64;
                }
            }
        }
        Ok(())
    }

    /// Puts the object in its place, lastingly, if the conditions hold. Returns what stat says from now on.
    ///
    /// Whatever fails before the rename leaves what was there as it was. When the last step fails, the fsync(2) of
    /// the directory, the new object stands there, and a crash may still bring back what was there before. No fsync is
    /// tried twice: after a failure Linux takes the lost pages for clean, and the second one succeeds.
    pub fn commit(mut self, conditions: Conditions) -> Result<Found, Error> {
        // Checked again below; here it saves the wait for the disk.
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
        self.staging.versions.give(&self.file).map_err(Error::from_write)?;
        fs::fsync(&self.file).map_err(Error::Storage)?;
        let staging = Arc::clone(&self.staging);
        let held = staging.lock(&self.target);
        self.target.check(&conditions, self.target.existing()?.as_ref())?;
        self.target.confirm(&staging.mapping)?;
        self.rename(conditions.are_exclusive())?;
        // A rename counts as a change of the file, so its version is known only now.
        let found = Found::of_file(&self.file, &fs::fstat(&self.file).map_err(Error::Storage)?);
        drop(held);
        self.target.sync()?;
        // The directory may have been moved between the look before the rename and the rename.
        self.target.confirm(&staging.mapping)?;
        Ok(found)
    }

    /// Gives the file a name in the staging directory. linkat(2) replaces nothing, so the way into place leads over a name;
    /// and fsync(2) of a file that has no name is nothing on some file systems (btrfs before 2025), so the name comes first.
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

    /// From the name in the staging directory to that of the object.
    fn rename(&mut self, exclusive: bool) -> Result<(), Error> {
        self.link()?;
        let (from, to) = (&self.staging.file, &self.target);
        let Some(name) = &self.name else { return Err(Error::StagingGone) };
        let flags = if exclusive { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
        let mut answer = fs::renameat_with(from, name, &to.directory, &to.name, flags);
        if exclusive && matches!(answer, Err(Errno::INVAL | Errno::NOSYS)) {
            // This file system cannot; the check under the lock holds against all writes through this server.
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

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // What cannot be removed now is swept by the next start.
            let _ = fs::unlinkat(&self.staging.file, name, AtFlags::empty());
        }
    }
}

/// The size of what was passed, if it can be copied.
fn readable_size(source: &OwnedFd) -> Result<u64, Error> {
    let flags = fs::fcntl_getfl(source).map_err(Error::Storage)?;
    let stat = fs::fstat(source).map_err(Error::Storage)?;
    let is_readable = !flags.contains(OFlags::PATH) && flags & OFlags::ACCMODE != OFlags::WRONLY;
    if !is_readable || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::BadDescriptor);
    }
    Ok(stat.st_size.max(0) as u64)
}

fn in_staging(errno: Errno) -> Error {
    match errno {
        Errno::NOENT => Error::StagingGone,
        other => Error::from_write(other),
    }
}

#[cfg(test)]
#[path = "incoming_tests/mod.rs"]
mod tests;
