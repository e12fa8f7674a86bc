//! An object on its way in: a file without a name until it is whole, on the disk, and renamed over what was there.

use rustix::fd::OwnedFd;

use crate::errors::Error;
use crate::mapping::Found;
use crate::staging::Conditions;

#[derive(Debug)]
pub struct Incoming {}

impl Incoming {
    /// Takes room on the disk for `length` bytes, so that a lack of it shows before they come.
    pub fn reserve(&mut self, _length: u64) -> Result<(), Error> {
        todo!()
    }

    /// Appends.
    pub fn write(&mut self, _bytes: &[u8]) -> Result<(), Error> {
        todo!()
    }

    /// Appends what `source` holds now, from its beginning. Returns the number of bytes.
    pub fn copy_from(&mut self, _source: &OwnedFd) -> Result<u64, Error> {
        todo!()
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        todo!()
    }

    pub fn commit(self, _conditions: Conditions) -> Result<Found, Error> {
        todo!()
    }
}
