//! Copies a file that a client passed as a descriptor into a [`PendingWrite`], in steps between which the
//! caller may give up.
//!
//! Any call on the source may block as long as its file system likes, for ever in one in user space. So
//! serving threads and storage threads call nothing in here. Holes stay holes.

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{self, CWD, Mode as Permissions, OFlags, SeekFrom};
use rustix::io::{self, Errno};

use crate::errors::Error;
use crate::storage::pending_write::{PendingWrite, check_size};
use crate::storage::source_file_system;

/// Bytes that one step copies at most.
pub const STEP: u64 = 4 << 20;
/// The unit of st_blocks.
const BLOCK: u64 = 512;

#[derive(Debug)]
pub struct Copying {
    source: OwnedFd,
    /// A second open file of the same object, to look for holes: that moves the position, and the client
    /// keeps its own.
    seek_file: SeekFile,
    length: u64,
    /// Bytes that the disk is known to have room for: those of the source's blocks, as its file system reports them.
    claimed: u64,
    /// Bytes copied so far.
    copied: u64,
    /// Everything before `at` is copied; the data behind it ends at `data_until`, where that is known.
    at: u64,
    data_until: u64,
    method: Method,
    has_begun: bool,
}

/// The file in which holes are looked for.
#[derive(Debug)]
enum SeekFile {
    /// The file has a block for each of its bytes.
    None,
    Reopened(OwnedFd),
    /// The server cannot open the file: it restores the client's position each time.
    Clients,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// FICLONE: both files share the same blocks. Where the file system refuses, the next method.
    Clone,
    /// copy_file_range(2), where both file systems allow it.
    #[cfg_attr(not(test), expect(dead_code, reason = "a test begins with it"))]
    Range,
    /// sendfile(2), from any file to any file.
    Send,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    All,
    Part,
}

impl Copying {
    /// Copies the present content of `source` from its beginning, whatever its position. Refuses a file that
    /// cannot be an object, or has more than `max_size` bytes; 0: any number.
    pub fn new(source: OwnedFd, max_size: u64) -> Result<Copying, Error> {
        let flags = fs::fcntl_getfl(&source).map_err(Error::Storage)?;
        let is_readable = !flags.contains(OFlags::PATH) && flags & OFlags::ACCMODE != OFlags::WRONLY;
        // Before any call that the file's own file system would have to answer.
        if !is_readable || !source_file_system::is_regular(&source) {
            return Err(Error::BadDescriptor);
        }
        if !source_file_system::is_local(&source) {
            return Err(Error::SourceNotLocal);
        }
        let source = match flags.contains(OFlags::DIRECT) {
            // Such a descriptor (O_DIRECT) reads whole blocks only; the kernel fails the rest with EINVAL.
            true => open_again(&source).map_err(|_| Error::BadDescriptor)?,
            false => source,
        };
        let stat = fs::fstat(&source).map_err(Error::Storage)?;
        let length = stat.st_size.max(0) as u64;
        check_size(length, max_size)?;
        let allocated = (stat.st_blocks.max(0) as u64).saturating_mul(BLOCK);
        let seek_file = if allocated < length { SeekFile::reopen(&source) } else { SeekFile::None };
        let claimed = allocated.min(length);
        let method = Method::Clone;
        Ok(Copying {
            source,
            seek_file,
            length,
            claimed,
            copied: 0,
            at: 0,
            data_until: 0,
            method,
            has_begun: false,
        })
    }

    /// Bytes of the object, holes included.
    #[cfg(test)]
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Copies up to [`STEP`] more bytes. Nothing else may have been written to `pending`.
    ///
    /// Where the file system can, both files share the blocks until one is written to; a later change of the
    /// source does not reach the stored object. A change during the copy may.
    pub fn step(&mut self, pending: &mut PendingWrite) -> Result<Copied, Error> {
        if self.length == 0 {
            return Ok(Copied::All);
        }
        if !self.has_begun {
            self.has_begun = true;
            pending.check_space(self.claimed)?;
            if self.method == Method::Clone && self.clone_to(pending)? {
                return Ok(Copied::All);
            }
            // A file that exceeds the size limit fails here; the parts never written stay a hole.
            pending.extend(self.length)?;
        }
        if self.at == self.data_until {
            self.find_data()?;
        }
        if self.at < self.data_until {
            let count = (self.data_until - self.at).min(STEP);
            self.claim_space(pending, count)?;
            let copied = self.copy(pending, count as usize)?;
            self.at += copied;
            self.copied += copied;
        }
        if self.at < self.length {
            return Ok(Copied::Part);
        }
        if !matches!(self.seek_file, SeekFile::None) && self.size()? < self.length {
            return Err(Error::SourceShrank);
        }
        Ok(Copied::All)
    }

    /// Claims more room where the copy exceeds the source's blocks: a file system that compresses, or stores
    /// a file in its inode, reports fewer, and the source may grow into its holes.
    fn claim_space(&mut self, pending: &PendingWrite, count: u64) -> Result<(), Error> {
        if self.copied + count > self.claimed {
            pending.check_space(count)?;
            self.claimed = self.copied + count;
        }
        Ok(())
    }

    fn size(&self) -> Result<u64, Error> {
        fs::fstat(&self.source).map(|stat| stat.st_size.max(0) as u64).map_err(Error::Storage)
    }

    fn clone_to(&self, pending: &mut PendingWrite) -> Result<bool, Error> {
        if fs::ioctl_ficlone(pending.file(), &self.source).is_err() {
            return Ok(false);
        }
        let size = fs::fstat(pending.file()).map_err(Error::Storage)?.st_size.max(0) as u64;
        if size < self.length {
            return Err(Error::SourceShrank);
        }
        pending.extend(self.length)?;
        Ok(true)
    }

    /// Skips a hole, to the next data or the end.
    fn find_data(&mut self) -> Result<(), Error> {
        let Some(data) = self.seek(SeekFrom::Data(self.at))? else {
            // Only a hole remains.
            (self.at, self.data_until) = (self.length, self.length);
            return Ok(());
        };
        self.at = data.clamp(self.at, self.length);
        let end = if self.at < self.length { self.seek(SeekFrom::Hole(self.at))? } else { None };
        self.data_until = end.map_or(self.length, |end| end.clamp(self.at, self.length));
        if self.data_until == self.at && self.at < self.length {
            // It has become a hole meanwhile.
            self.data_until = self.length;
        }
        Ok(())
    }

    /// None: the file has no such position after `from`.
    fn seek(&self, from: SeekFrom) -> Result<Option<u64>, Error> {
        let file = match &self.seek_file {
            SeekFile::None => return Ok(Some(if let SeekFrom::Data(at) = from { at } else { self.length })),
            SeekFile::Reopened(file) => file,
            SeekFile::Clients => &self.source,
        };
        let before = match &self.seek_file {
            SeekFile::Clients => Some(fs::seek(file, SeekFrom::Current(0)).map_err(Error::Storage)?),
            _ => None,
        };
        let result = fs::seek(file, from);
        if let Some(before) = before {
            fs::seek(file, SeekFrom::Start(before)).map_err(Error::Storage)?;
        }
        match result {
            Ok(result) => Ok(Some(result)),
            Err(Errno::NXIO) => Ok(None),
            // This file system cannot report holes: treat all as data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                Ok(Some(if let SeekFrom::Data(at) = from { at } else { self.length }))
            }
            Err(errno) => Err(Error::Storage(errno)),
        }
    }

    /// Copies at most `count` bytes. Returns how many.
    fn copy(&mut self, pending: &PendingWrite, count: usize) -> Result<u64, Error> {
        loop {
            let (mut from, mut to) = (self.at, self.at);
            let answer = match self.method {
                Method::Send => {
                    fs::seek(pending.file(), SeekFrom::Start(to)).map_err(Error::Storage)?;
                    fs::sendfile(pending.file(), &self.source, Some(&mut from), count)
                }
                _ => fs::copy_file_range(&self.source, Some(&mut from), pending.file(), Some(&mut to), count),
            };
            match answer {
                Err(Errno::INTR) => {}
                // A memory file gives XDEV; older kernels and stacked file systems give the others. A 0 may
                // mean the end of the file, or a file system that cannot copy: sendfile finds out.
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) | Ok(0)
                    if self.method != Method::Send =>
                {
                    self.method = Method::Send;
                }
                Ok(0) => return Err(Error::SourceShrank),
                Ok(copied) => return Ok(copied as u64),
                Err(errno) => return Err(Error::from_write(errno)),
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn without_cloning(mut self) -> Copying {
        self.method = Method::Range;
        self
    }

    #[cfg(test)]
    pub(crate) fn by_sendfile(mut self) -> Copying {
        self.method = Method::Send;
        self
    }

    #[cfg(test)]
    pub(crate) fn seeking_in_the_source(mut self) -> Copying {
        self.seek_file = SeekFile::Clients;
        self
    }
}

impl SeekFile {
    fn reopen(source: &OwnedFd) -> SeekFile {
        open_again(source).map_or(SeekFile::Clients, SeekFile::Reopened)
    }
}

/// Opens the same object again, without the flags and position of the client's descriptor.
fn open_again(source: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let path = format!("/proc/self/fd/{}", source.as_raw_fd());
    fs::openat(CWD, path, flags, Permissions::empty())
}
