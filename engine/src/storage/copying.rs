//! What a client passed as a descriptor, on its way into an [`PendingWrite`]: in steps, between which its caller may give up.
//!
//! Any call on the source may wait as long as its file system likes, one in user space for ever; so threads that serve, and
//! those that read for others, call nothing in here. Holes stay holes.

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{self, CWD, Mode as Permissions, OFlags, SeekFrom};
use rustix::io::{self, Errno};

use crate::errors::Error;
use crate::storage::mounts;
use crate::storage::pending_write::{PendingWrite, check_size};

/// Bytes that one step copies at the most.
pub const STEP: u64 = 4 << 20;
/// st_blocks counts in these.
const BLOCK: u64 = 512;

#[derive(Debug)]
pub struct Copying {
    source: OwnedFd,
    /// Another open file of the same object, for looking for holes: that moves the position, and the client's is its own.
    looker: Looker,
    length: u64,
    /// Bytes that the disk is known to have had room for: those of the source's blocks, as its file system told.
    room: u64,
    /// Bytes that have been copied.
    copied: u64,
    /// How far all is copied, and where the data behind that ends that is known.
    at: u64,
    data_until: u64,
    way: Way,
    has_begun: bool,
}

/// Where holes are looked for.
#[derive(Debug)]
enum Looker {
    /// The file has a block for each of its bytes.
    None,
    Own(OwnedFd),
    /// The file cannot be opened by the server: the client's position is put back each time.
    Theirs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// FICLONE: the file system notes that both have the same blocks. Where it cannot, as the next.
    Clone,
    /// copy_file_range(2), as far as these two file systems let it.
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
    /// Of what `source` holds at this moment, from its beginning, whatever its position. Refused where that can be no object,
    /// or has more than `most` bytes; 0: any number.
    pub fn of(source: OwnedFd, most: u64) -> Result<Copying, Error> {
        let flags = fs::fcntl_getfl(&source).map_err(Error::Storage)?;
        let is_readable = !flags.contains(OFlags::PATH) && flags & OFlags::ACCMODE != OFlags::WRONLY;
        // Before any call that the file's own file system would have to answer.
        if !is_readable || !mounts::is_regular(&source) {
            return Err(Error::BadDescriptor);
        }
        if !mounts::is_local(&source) {
            return Err(Error::SourceNotLocal);
        }
        let source = match flags.contains(OFlags::DIRECT) {
            // The kernel reads whole blocks through such a descriptor alone, and says EINVAL of the rest.
            true => open_again(&source).map_err(|_| Error::BadDescriptor)?,
            false => source,
        };
        let stat = fs::fstat(&source).map_err(Error::Storage)?;
        let length = stat.st_size.max(0) as u64;
        check_size(length, most)?;
        let allocated = (stat.st_blocks.max(0) as u64).saturating_mul(BLOCK);
        let looker = if allocated < length { Looker::of(&source) } else { Looker::None };
        let room = allocated.min(length);
        let way = Way::Clone;
        Ok(Copying { source, looker, length, room, copied: 0, at: 0, data_until: 0, way, has_begun: false })
    }

    /// Bytes of the object, holes too.
    #[cfg(test)]
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Copies on, [`STEP`] bytes at the most; nothing else has been written to `incoming`.
    ///
    /// Where the file system can, both share the blocks until one is written to; a later change of the source does not
    /// reach what is stored. A change while this copies may.
    pub fn step(&mut self, incoming: &mut PendingWrite) -> Result<Copied, Error> {
        if self.length == 0 {
            return Ok(Copied::All);
        }
        if !self.has_begun {
            self.has_begun = true;
            incoming.check_room(self.room)?;
            if self.way == Way::Clone && self.clone_to(incoming)? {
                return Ok(Copied::All);
            }
            // What no file may be as long as shows now; what is never written stays a hole.
            incoming.extend(self.length)?;
        }
        if self.at == self.data_until {
            self.find_data()?;
        }
        if self.at < self.data_until {
            let count = (self.data_until - self.at).min(STEP);
            self.claim_room(incoming, count)?;
            let copied = self.copy(incoming, count as usize)?;
            self.at += copied;
            self.copied += copied;
        }
        if self.at < self.length {
            return Ok(Copied::Part);
        }
        if !matches!(self.looker, Looker::None) && self.size()? < self.length {
            return Err(Error::SourceShrank);
        }
        Ok(Copied::All)
    }

    /// Asks for room again where more is copied than the source has blocks: a file system that compresses, or stores a file in
    /// its inode, tells of fewer, and the source may grow into its holes.
    fn claim_room(&mut self, incoming: &PendingWrite, count: u64) -> Result<(), Error> {
        if self.copied + count > self.room {
            incoming.check_room(count)?;
            self.room = self.copied + count;
        }
        Ok(())
    }

    fn size(&self) -> Result<u64, Error> {
        fs::fstat(&self.source).map(|stat| stat.st_size.max(0) as u64).map_err(Error::Storage)
    }

    fn clone_to(&self, incoming: &mut PendingWrite) -> Result<bool, Error> {
        if fs::ioctl_ficlone(incoming.file(), &self.source).is_err() {
            return Ok(false);
        }
        let size = fs::fstat(incoming.file()).map_err(Error::Storage)?.st_size.max(0) as u64;
        if size < self.length {
            return Err(Error::SourceShrank);
        }
        incoming.extend(self.length)?;
        Ok(true)
    }

    /// Goes over a hole, to data or to the end.
    fn find_data(&mut self) -> Result<(), Error> {
        let Some(data) = self.look(SeekFrom::Data(self.at))? else {
            // Nothing but a hole is left.
            (self.at, self.data_until) = (self.length, self.length);
            return Ok(());
        };
        self.at = data.clamp(self.at, self.length);
        let end = if self.at < self.length { self.look(SeekFrom::Hole(self.at))? } else { None };
        self.data_until = end.map_or(self.length, |end| end.clamp(self.at, self.length));
        if self.data_until == self.at && self.at < self.length {
            // It has become a hole meanwhile.
            self.data_until = self.length;
        }
        Ok(())
    }

    /// None: there is none behind.
    fn look(&self, from: SeekFrom) -> Result<Option<u64>, Error> {
        let file = match &self.looker {
            Looker::None => return Ok(Some(if let SeekFrom::Data(at) = from { at } else { self.length })),
            Looker::Own(file) => file,
            Looker::Theirs => &self.source,
        };
        let before = match &self.looker {
            Looker::Theirs => Some(fs::seek(file, SeekFrom::Current(0)).map_err(Error::Storage)?),
            _ => None,
        };
        let found = fs::seek(file, from);
        if let Some(before) = before {
            fs::seek(file, SeekFrom::Start(before)).map_err(Error::Storage)?;
        }
        match found {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NXIO) => Ok(None),
            // This file system cannot tell: all is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                Ok(Some(if let SeekFrom::Data(at) = from { at } else { self.length }))
            }
            Err(errno) => Err(Error::Storage(errno)),
        }
    }

    /// Copies at most this number of bytes. Returns how many.
    fn copy(&mut self, incoming: &PendingWrite, count: usize) -> Result<u64, Error> {
        loop {
            let (mut from, mut to) = (self.at, self.at);
            let answer = match self.way {
                Way::Send => {
                    fs::seek(incoming.file(), SeekFrom::Start(to)).map_err(Error::Storage)?;
                    fs::sendfile(incoming.file(), &self.source, Some(&mut from), count)
                }
                _ => {
                    fs::copy_file_range(&self.source, Some(&mut from), incoming.file(), Some(&mut to), count)
                }
            };
            match answer {
                Err(Errno::INTR) => {}
                // XDEV is what a memory file gives; the others are of older kernels and stacked file systems. A 0 may be the
                // end of the file, or one of those that cannot tell: sendfile finds out.
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) | Ok(0)
                    if self.way != Way::Send =>
                {
                    self.way = Way::Send;
                }
                Ok(0) => return Err(Error::SourceShrank),
                Ok(copied) => return Ok(copied as u64),
                Err(errno) => return Err(Error::from_write(errno)),
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn without_cloning(mut self) -> Copying {
        self.way = Way::Range;
        self
    }

    #[cfg(test)]
    pub(crate) fn by_sendfile(mut self) -> Copying {
        self.way = Way::Send;
        self
    }

    #[cfg(test)]
    pub(crate) fn looking_in_the_source(mut self) -> Copying {
        self.looker = Looker::Theirs;
        self
    }
}

impl Looker {
    fn of(source: &OwnedFd) -> Looker {
        open_again(source).map_or(Looker::Theirs, Looker::Own)
    }
}

/// Another open file of the same object, with nothing of how the client opened its own.
fn open_again(source: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let path = format!("/proc/self/fd/{}", source.as_raw_fd());
    fs::openat(CWD, path, flags, Permissions::empty())
}
