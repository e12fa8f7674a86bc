//! The datagrams, sans-IO: bytes in, values out. The same vectors test the Python codec
//! (`tests/vectors/udp.txt`).
//!
//! ```text
//! PULL   'U' 01 00 cookie_len(1)  request_id(4) offset(8) length(4) chunk(2) uri_len(2) cookie uri [padding]
//! RETRY  'U' 01 01 00             request_id(4) cookie(16)
//! DATA   'U' 01 02 status         request_id(4) version(8) total(8) offset(8) crc32c(4) payload
//! ERROR  'U' 01 03 status         request_id(4) message_len(2) message
//! ```
//!
//! A request of version 1 may come in a datagram of its own, and gets its reply in one. Any other datagram is noise.
//! The server never answers noise: two servers that an attacker makes answer each other would never stop.

use crate::protocol::{Decoded, MAX_URI, Mode, RequestDecoder, Status};

/// The first bytes of every datagram of the pull form: a letter, and the version of the form.
const MAGIC: [u8; 2] = [b'U', 1];
const PULL: u8 = 0;
const RETRY: u8 = 1;
const DATA: u8 = 2;
const ERROR: u8 = 3;

pub const COOKIE: usize = 16;
/// The bytes in front of a PULL's cookie and URI.
pub const PULL_HEAD: usize = 24;
#[cfg(test)]
pub const RETRY_LENGTH: usize = 24;
/// The bytes in front of a DATA's payload.
pub const DATA_HEAD: usize = 36;
const CHECKSUM_AT: usize = 32;
#[cfg(test)]
pub const ERROR_HEAD: usize = 10;
/// The server keeps this many bytes of a datagram. Anything behind them is padding, or makes the datagram noise.
pub const MAX_REQUEST: usize = PULL_HEAD + COOKIE + MAX_URI + 1;
/// The longest message of an ERROR, so that it fits every path.
const MAX_MESSAGE: usize = 1_000;

/// A decoded UDP request.
#[derive(Debug, PartialEq, Eq)]
pub enum UdpRequest<'a> {
    Pull(Pull<'a>),
    /// A request of version 1, or the status that answers it.
    Plain(Result<(Mode, &'a str), Status>),
    /// Invalid: the server does not answer.
    Noise,
}

/// A range of an object, to be sent in pieces.
#[derive(Debug, PartialEq, Eq)]
pub struct Pull<'a> {
    pub request_id: u32,
    pub offset: u64,
    /// Bytes from `offset` on, at most.
    pub length: u32,
    /// Bytes in a piece, at most; the last of a range may be shorter.
    pub chunk: u16,
    pub cookie: Option<[u8; COOKIE]>,
    /// The URI, or the error status for this request.
    pub uri: Result<&'a str, Status>,
}

impl<'a> UdpRequest<'a> {
    /// Decodes a received datagram.
    pub fn decode(bytes: &'a [u8]) -> Self {
        match bytes {
            [b'1'..=b'3', ..] => UdpRequest::Plain(decode_plain(bytes)),
            _ => decode_pull(bytes).map_or(UdpRequest::Noise, UdpRequest::Pull),
        }
    }
}

fn decode_plain(bytes: &[u8]) -> Result<(Mode, &str), Status> {
    let mut rest = bytes;
    match RequestDecoder::default().decode(&mut rest) {
        Decoded::Request { mode, uri } if rest.is_empty() => Ok((mode, uri)),
        Decoded::Refused(status) if rest.is_empty() => Err(status),
        // A truncated URI that is too long gets the same answer as the whole one.
        Decoded::More if matches!(*bytes, [_, high, low, ..] if is_too_long(high, low)) => {
            Err(Status::UriTooLong)
        }
        _ => Err(Status::ProtocolError),
    }
}

fn is_too_long(high: u8, low: u8) -> bool {
    usize::from(u16::from_be_bytes([high, low])) > MAX_URI
}

fn decode_pull(bytes: &[u8]) -> Option<Pull<'_>> {
    let (head, rest) = bytes.split_first_chunk::<PULL_HEAD>()?;
    let mut fields = Fields(&head[4..]);
    let (request_id, offset) = (fields.u32(), fields.u64());
    let (length, chunk, uri_length) = (fields.u32(), fields.u16(), fields.u16());
    if head[..2] != MAGIC || head[2] != PULL {
        return None;
    }
    let (cookie, rest) = match usize::from(head[3]) {
        0 => (None, rest),
        COOKIE => rest.split_first_chunk::<COOKIE>().map(|(cookie, rest)| (Some(*cookie), rest))?,
        _ => return None,
    };
    let uri = if usize::from(uri_length) > MAX_URI {
        Err(Status::UriTooLong)
    } else {
        decode_uri(rest.get(..usize::from(uri_length))?)
    };
    let uri = if chunk == 0 { Err(Status::InvalidRequest) } else { uri };
    Some(Pull { request_id, offset, length, chunk, cookie, uri })
}

fn decode_uri(uri: &[u8]) -> Result<&str, Status> {
    if uri.is_empty() || uri.contains(&0) {
        return Err(Status::InvalidRequest);
    }
    std::str::from_utf8(uri).map_err(|_| Status::InvalidRequest)
}

/// Appends a PULL. The URI has at most [`MAX_URI`] bytes.
pub fn encode_pull(out: &mut Vec<u8>, pull: &Pull<'_>, uri: &str) {
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[PULL, pull.cookie.map_or(0, |cookie| cookie.len() as u8)]);
    out.extend_from_slice(&pull.request_id.to_be_bytes());
    out.extend_from_slice(&pull.offset.to_be_bytes());
    out.extend_from_slice(&pull.length.to_be_bytes());
    out.extend_from_slice(&pull.chunk.to_be_bytes());
    out.extend_from_slice(&(uri.len() as u16).to_be_bytes());
    out.extend_from_slice(pull.cookie.as_ref().map_or(&[][..], |cookie| &cookie[..]));
    out.extend_from_slice(uri.as_bytes());
}

/// Appends a RETRY: the client must send this cookie with its next PULL, to prove its address.
pub fn encode_retry(out: &mut Vec<u8>, request_id: u32, cookie: &[u8; COOKIE]) {
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[RETRY, 0]);
    out.extend_from_slice(&request_id.to_be_bytes());
    out.extend_from_slice(cookie);
}

/// Appends an ERROR. Cuts a message of more than 1,000 bytes.
pub fn encode_error(out: &mut Vec<u8>, request_id: u32, status: Status, message: &str) {
    let message = &message.as_bytes()[..message.len().min(MAX_MESSAGE)];
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[ERROR, status as u8]);
    out.extend_from_slice(&request_id.to_be_bytes());
    out.extend_from_slice(&(message.len() as u16).to_be_bytes());
    out.extend_from_slice(message);
}

/// The fields that all DATA of one reply share.
#[derive(Debug, Clone, Copy)]
pub struct DataHead {
    pub request_id: u32,
    /// Names the object's state: other content has another number.
    pub version: u64,
    /// Bytes of the whole object.
    pub total: u64,
    /// The checksum of the URI, from which the checksum of every piece starts: see [`checksum_of_uri`].
    pub seed: u32,
}

/// The checksum of every DATA covers the URI first, so a client rejects a piece of another object. A damaged
/// PULL may have requested that object.
pub fn checksum_of_uri(uri: &str) -> u32 {
    crc32c::crc32c(uri.as_bytes())
}

/// Writes the head of a DATA in front of its payload: `datagram` is all of it, with room for the head.
///
/// The checksum is CRC-32C (Castagnoli) over the URI and the datagram, with its own field as zeros, as in SCTP.
pub fn seal_data(datagram: &mut [u8], head: &DataHead, offset: u64) {
    let Some((front, payload)) = datagram.split_first_chunk_mut::<DATA_HEAD>() else { return };
    front[..2].copy_from_slice(&MAGIC);
    front[2..4].copy_from_slice(&[DATA, Status::Ok as u8]);
    front[4..8].copy_from_slice(&head.request_id.to_be_bytes());
    front[8..16].copy_from_slice(&head.version.to_be_bytes());
    front[16..24].copy_from_slice(&head.total.to_be_bytes());
    front[24..CHECKSUM_AT].copy_from_slice(&offset.to_be_bytes());
    front[CHECKSUM_AT..].fill(0);
    let checksum = crc32c::crc32c_append(crc32c::crc32c_append(head.seed, front), payload);
    front[CHECKSUM_AT..].copy_from_slice(&checksum.to_be_bytes());
}

/// A decoded reply of the server.
#[derive(Debug, PartialEq, Eq)]
pub enum UdpReply<'a> {
    Retry {
        request_id: u32,
        cookie: [u8; COOKIE],
    },
    Data {
        request_id: u32,
        version: u64,
        total: u64,
        offset: u64,
        payload: &'a [u8],
    },
    Error {
        request_id: u32,
        status: u8,
        message: &'a [u8],
    },
    /// Damaged, or of none of these forms.
    Noise,
}

impl<'a> UdpReply<'a> {
    /// Decodes a reply to a UDP request for the URI with this checksum.
    pub fn decode(seed: u32, bytes: &'a [u8]) -> Self {
        Self::read(seed, bytes).unwrap_or(UdpReply::Noise)
    }

    fn read(seed: u32, bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<8>()?;
        if head[..2] != MAGIC {
            return None;
        }
        let (status, request_id) = (head[3], Fields(&head[4..]).u32());
        match head[2] {
            RETRY if status == 0 => Some(UdpReply::Retry { request_id, cookie: rest.try_into().ok()? }),
            DATA if status == 0 => {
                let (head, payload) = bytes.split_first_chunk::<DATA_HEAD>()?;
                let mut fields = Fields(&head[8..]);
                let (version, total, offset, checksum) =
                    (fields.u64(), fields.u64(), fields.u64(), fields.u32());
                let mut covered = *head;
                covered[CHECKSUM_AT..].fill(0);
                let computed = crc32c::crc32c_append(crc32c::crc32c_append(seed, &covered), payload);
                let fits = offset.checked_add(payload.len() as u64).is_some_and(|end| end <= total);
                let fits = fits || payload.is_empty();
                (computed == checksum && fits).then_some(UdpReply::Data {
                    request_id,
                    version,
                    total,
                    offset,
                    payload,
                })
            }
            ERROR if status != 0 => {
                let (length, message) = rest.split_first_chunk::<2>()?;
                (usize::from(u16::from_be_bytes(*length)) == message.len()).then_some(UdpReply::Error {
                    request_id,
                    status,
                    message,
                })
            }
            _ => None,
        }
    }
}

/// Reads big-endian numbers off the front of a head whose length is already checked.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => unreachable!("the head has room for all of its fields"),
        }
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
