//! Where a listing continues, as the bytes that a client sends back: `02 listing(8) path seal(8) checksum(8)`.
//!
//! The checksum covers the prefix too. So any server, also after a restart, detects a cursor that was cut,
//! changed or sent with another prefix. The checksum is not secret: a client that forges one can request any
//! place below the prefix, which a prefix can do as well. The seal is secret: SipHash with a random key of
//! this server, over the session and all of the cursor. Only a cursor from its own session gets the batches
//! kept for that listing.

use std::hash::{BuildHasher, RandomState};

use crate::errors::Error;
use crate::storage::etag::mix64;

const FORM: u8 = 2;
const NUMBER: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// The number of its listing on this server.
    pub listing: u64,
    /// The path of the last listed object, or of a directory, with a slash, to continue with. Empty at the start.
    pub after: Vec<u8>,
}

impl Cursor {
    /// Encodes the cursor for the client of this session.
    pub fn encode(&self, prefix: &[u8], key: &RandomState, session: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1 + self.after.len() + 3 * NUMBER);
        bytes.push(FORM);
        bytes.extend_from_slice(&self.listing.to_be_bytes());
        bytes.extend_from_slice(&self.after);
        let seal = key.hash_one((session, prefix, &bytes[..]));
        bytes.extend_from_slice(&seal.to_be_bytes());
        let checksum = checksum(prefix, &bytes);
        bytes.extend_from_slice(&checksum.to_be_bytes());
        bytes
    }

    /// The cursor, and whether this server gave it to this session.
    pub fn decode(
        bytes: &[u8],
        prefix: &[u8],
        key: &RandomState,
        session: u64,
    ) -> Result<(Cursor, bool), Error> {
        let (covered, sum) = bytes.split_last_chunk::<NUMBER>().ok_or(Error::BadCursor)?;
        let (sealed, seal) = covered.split_last_chunk::<NUMBER>().ok_or(Error::BadCursor)?;
        let Some((&[FORM, ref listing @ ..], after)) = sealed.split_first_chunk::<{ 1 + NUMBER }>() else {
            return Err(Error::BadCursor);
        };
        let &[a, b, c, d, e, f, g, h] = listing;
        if u64::from_be_bytes(*sum) != checksum(prefix, covered) || !after.starts_with(prefix) {
            return Err(Error::BadCursor);
        }
        let is_own = u64::from_be_bytes(*seal) == key.hash_one((session, prefix, sealed));
        Ok((Cursor { listing: u64::from_be_bytes([a, b, c, d, e, f, g, h]), after: after.to_vec() }, is_own))
    }
}

/// FNV-1a of 64 bits (Fowler, Noll, Vo) over the prefix, a byte that no prefix has, and the bytes; then
/// SplitMix64's finaliser, since the last byte would otherwise affect the lower half only.
fn checksum(prefix: &[u8], bytes: &[u8]) -> u64 {
    let all = prefix.iter().chain(&[0xff]).chain(bytes);
    mix64(all.fold(0xcbf2_9ce4_8422_2325, |state, &byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    }))
}
