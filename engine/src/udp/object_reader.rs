//! Reads objects for replies: from memory, else from the file. A reply never mixes two states of an object.

use rustix::io::{Errno, IoSliceMut, ReadWriteFlags, preadv, preadv2};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::errors::Error;
use crate::service::Service;
use crate::storage::etag::Version;
use crate::storage::mapping::{self, OpenObject};
use crate::udp::codec::DATA_HEAD;

/// Objects up to this size are read whole and kept in memory.
const MAX_CACHED: u64 = 64 << 10;
/// How often the server reads an object again that changes while it is read.
pub const TRIES: usize = 4;

/// Whether the thread may wait for a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskWait {
    /// Other UDP requests would wait as well: see [`ReadError::Storage`].
    Forbidden,
    Wait,
}

/// Why a read gives no content.
#[derive(Debug)]
pub enum ReadError {
    Failed(Error),
    /// The read may have to wait for a disk, and this thread must not.
    Storage,
}

impl From<Error> for ReadError {
    fn from(error: Error) -> Self {
        ReadError::Failed(error)
    }
}

/// An object in its current state.
#[derive(Debug)]
pub enum Content {
    /// From the cache.
    Cached(Version, Arc<[u8]>),
    /// Read just now: [`Reader::small`] has its bytes.
    Small(Version),
    Open(OpenObject),
}

impl Content {
    /// Bytes of the whole object.
    pub fn total(&self) -> u64 {
        match self {
            Content::Cached(version, _) | Content::Small(version) => version.size(),
            Content::Open(opened) => opened.size,
        }
    }

    pub fn version(&self) -> Version {
        match self {
            Content::Cached(version, _) | Content::Small(version) => *version,
            Content::Open(opened) => opened.version,
        }
    }
}

/// Looks up objects, and owns the buffers for it.
#[derive(Debug)]
pub struct Reader {
    service: Arc<Service>,
    shard: usize,
    path: Vec<u8>,
    small: Vec<u8>,
}

impl Reader {
    pub fn new(service: &Arc<Service>, shard: usize) -> Self {
        Reader { service: Arc::clone(service), shard, path: Vec::new(), small: Vec::new() }
    }

    /// The bytes of a small object; None for a large one.
    pub fn small<'a>(&'a self, content: &'a Content) -> Option<&'a [u8]> {
        match content {
            Content::Cached(_, bytes) => Some(bytes),
            Content::Small(_) => Some(&self.small),
            Content::Open(_) => None,
        }
    }

    /// The object of this URI: its bytes where it is small, else the open file.
    pub fn find(&mut self, uri: &str, storage: DiskWait, arrived: Instant) -> Result<Content, ReadError> {
        let Reader { service, shard, path, small } = self;
        let path = mapping::relative_path(uri, path)?;
        service.clients.check_without_user(path.to_bytes())?;
        let may_wait = storage != DiskWait::Forbidden;
        if let Some((mount, key)) = service.origins.find(path) {
            let Some(opened) = mount.open_cached(key)? else {
                if mount.is_absent(key) {
                    return Err(Error::NotFound.into());
                }
                service.origins.prefetch(mount, key);
                return Err(Error::OnItsWay.into());
            };
            if opened.size > MAX_CACHED {
                return Ok(Content::Open(opened));
            }
            small.resize(opened.size as usize, 0);
            let is_whole = read_into(&opened, &mut [IoSliceMut::new(small)], 0, storage)?;
            return if is_whole { Ok(Content::Small(opened.version)) } else { Err(being_written().into()) };
        }
        if let Some(cached) = service.cache.get(path, arrived)
            && service.mapping.is_still(path, &cached.version)
        {
            service.statistics.record_cache(*shard, true);
            return Ok(Content::Cached(cached.version, cached.bytes));
        }
        for _ in 0..TRIES {
            let seen = service.cache.is_on().then(SystemTime::now);
            let opened = match may_wait {
                true => service.mapping.open(path)?,
                false => service.mapping.open_cached(path)?.ok_or(ReadError::Storage)?,
            };
            if opened.size > MAX_CACHED {
                return Ok(Content::Open(opened));
            }
            small.resize(opened.size as usize, 0);
            if read_into(&opened, &mut [IoSliceMut::new(small)], 0, storage)? && opened.is_unchanged() {
                if let Some(seen) = seen {
                    service.statistics.record_cache(*shard, false);
                    service.cache_object(path, &opened, small, seen);
                }
                return Ok(Content::Small(opened.version));
            }
        }
        Err(being_written().into())
    }
}

/// The error for an object that changed during every attempt to read it.
pub fn being_written() -> Error {
    Error::Busy("the object is being written; try again")
}

/// The payload slices in a buffer for datagrams of `piece` bytes of content each.
pub fn payloads(buffer: &mut [u8], piece: usize) -> impl Iterator<Item = &mut [u8]> {
    buffer.chunks_mut(DATA_HEAD + piece).map(|datagram| &mut datagram[DATA_HEAD..])
}

/// Reads a file from `offset` on into the datagrams' payloads. False where the file changed meanwhile.
pub fn read_pieces(
    opened: &OpenObject,
    buffer: &mut [u8],
    piece: usize,
    offset: u64,
    storage: DiskWait,
) -> Result<bool, ReadError> {
    let mut slices: Vec<IoSliceMut<'_>> = payloads(buffer, piece).map(IoSliceMut::new).collect();
    Ok(read_into(opened, &mut slices, offset, storage)? && opened.is_unchanged())
}

/// Fills the slices from a file. False where the file ends too early.
fn read_into(
    opened: &OpenObject,
    mut slices: &mut [IoSliceMut<'_>],
    offset: u64,
    storage: DiskWait,
) -> Result<bool, ReadError> {
    let mut at = offset;
    // Empty slices would look like the end of the file.
    IoSliceMut::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let read = match storage {
            DiskWait::Forbidden => match preadv2(&opened.file, slices, at, ReadWriteFlags::NOWAIT) {
                // This file system cannot report cached data.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => preadv(&opened.file, slices, at),
                Err(Errno::AGAIN) => return Err(ReadError::Storage),
                answer => answer,
            },
            DiskWait::Wait => preadv(&opened.file, slices, at),
        };
        match read {
            Ok(0) => return Ok(false),
            Ok(read) => {
                IoSliceMut::advance_slices(&mut slices, read);
                at += read as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::Storage(errno).into()),
        }
    }
    Ok(true)
}
