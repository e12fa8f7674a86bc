//! All objects below a prefix, in the order of their URIs, a page at a time.

use crate::errors::Error;
use crate::mapping::Mapping;

/// Where the caller names no limit.
pub const DEFAULT_LIMIT: u32 = 1_000;
pub const MAX_LIMIT: u32 = 10_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// `uri_len(2) uri size(8) mtime(8)` each, integers big-endian.
    pub entries: Vec<u8>,
    pub count: u32,
    /// Where the next page goes on; None on the last. A page may be short, even empty, and yet have one.
    pub cursor: Option<Vec<u8>>,
}

/// What listings that are under way have already read of large directories. One for all sessions.
#[derive(Debug, Default)]
pub struct Listing {}

impl Listing {
    /// `limit` 0 means [`DEFAULT_LIMIT`].
    pub fn page(
        &self,
        _mapping: &Mapping,
        _prefix: &str,
        _cursor: Option<&[u8]>,
        _limit: u32,
    ) -> Result<Page, Error> {
        todo!()
    }
}
