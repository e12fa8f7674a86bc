//! Where writes are prepared: one directory a server, `ROOT/.objmapper/<pid>-<random>/`, swept when its owner has died.

use std::ffi::CStr;

use crate::cache::Etag;
use crate::errors::{Error, StartError};
use crate::incoming::Incoming;
use crate::mapping::Mapping;

/// What a condition is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// `*`: whatever is there, as long as something is.
    Any,
    Etag(Etag),
}

impl Match {
    /// From what a request carries: 16 hex digits, or `*`.
    pub fn parse(bytes: &[u8]) -> Result<Match, Error> {
        if bytes == b"*" {
            return Ok(Match::Any);
        }
        match Etag::try_from(bytes) {
            Ok(etag) if etag.iter().all(u8::is_ascii_hexdigit) => {
                Ok(Match::Etag(etag.map(|digit| digit.to_ascii_lowercase())))
            }
            _ => Err(Error::BadEtag),
        }
    }
}

/// What must hold of the object that is there for a write to take place; CONFLICT where it does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conditions {
    pub if_match: Option<Match>,
    pub if_none_match: Option<Match>,
}

#[derive(Debug)]
pub struct Staging {}

impl Staging {
    pub fn new(_mapping: &Mapping) -> Result<Staging, StartError> {
        todo!()
    }

    /// What is worth a line in the log of the start.
    pub fn notices(&self) -> &[String] {
        todo!()
    }

    /// Starts a put. `path` comes from `mapping::relative_path`; nothing is borrowed: an `Incoming` may go to another thread.
    pub fn begin(&self, _path: &CStr, _make_parents: bool) -> Result<Incoming, Error> {
        todo!()
    }

    pub fn delete(&self, _path: &CStr, _if_match: Option<Match>) -> Result<(), Error> {
        todo!()
    }
}
