//! Where a listing goes on, as the bytes that a client sends back: `01 listing(8) path checksum(8)`.
//!
//! The checksum covers the prefix too, so a cursor that was cut, changed or sent with another prefix is recognised. It keeps no
//! secret: whoever forges one may ask for any place below the prefix, which a prefix could do as well.

use crate::errors::Error;
use crate::storage::cache::mix;

const FORM: u8 = 1;
const NUMBER: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// Which of the listings of this server it belongs to.
    pub listing: u64,
    /// The path of the last object that was listed, or of the directory, with a slash, to go on with. Empty at the start.
    pub after: Vec<u8>,
}

impl Cursor {
    pub fn encode(&self, prefix: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1 + NUMBER + self.after.len() + NUMBER);
        bytes.push(FORM);
        bytes.extend_from_slice(&self.listing.to_be_bytes());
        bytes.extend_from_slice(&self.after);
        let checksum = checksum(prefix, &bytes);
        bytes.extend_from_slice(&checksum.to_be_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8], prefix: &[u8]) -> Result<Cursor, Error> {
        let (covered, sum) = bytes.split_last_chunk::<NUMBER>().ok_or(Error::BadCursor)?;
        let Some((&[FORM, ref listing @ ..], after)) = covered.split_first_chunk::<{ 1 + NUMBER }>() else {
            return Err(Error::BadCursor);
        };
        let &[a, b, c, d, e, f, g, h] = listing;
        if u64::from_be_bytes(*sum) != checksum(prefix, covered) || !after.starts_with(prefix) {
            return Err(Error::BadCursor);
        }
        Ok(Cursor { listing: u64::from_be_bytes([a, b, c, d, e, f, g, h]), after: after.to_vec() })
    }
}

/// FNV-1a of 64 bits (Fowler, Noll, Vo) over the prefix, a byte that is in no prefix, and the bytes; then SplitMix64's
/// finaliser, since the last byte would otherwise reach the lower half only.
fn checksum(prefix: &[u8], bytes: &[u8]) -> u64 {
    let all = prefix.iter().chain(&[0xff]).chain(bytes);
    mix(all.fold(0xcbf2_9ce4_8422_2325, |state, &byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    }))
}
