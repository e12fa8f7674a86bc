//! The wire, sans-IO: bytes in, values out. The Python codec is held to the same vectors (`tests/vectors`).
//!
//! Version 1: a request is `mode(1) uri_len(2) uri`; a reply is one status byte (mode 1, it carries the descriptor),
//! `00 content_len(8) content` (modes 2 and 3), or `status message_len(2) message`. Integers are big-endian.

/// The longest URI, in bytes.
pub const MAX_URI: usize = 4096;
/// Mode and length, in front of every URI.
pub const REQUEST_HEAD: usize = 3;
/// Status and length, in front of every content.
pub const CONTENT_HEAD: usize = 9;
/// A longer content than this cannot be: file offsets are signed.
const MAX_CONTENT: u64 = i64::MAX as u64;

/// How an object is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    FdPass = b'1',
    Copy = b'2',
    Splice = b'3',
}

impl Mode {
    pub const ALL: [Mode; 3] = [Mode::FdPass, Mode::Copy, Mode::Splice];

    pub fn from_byte(byte: u8) -> Option<Mode> {
        match byte {
            b'1' => Some(Mode::FdPass),
            b'2' => Some(Mode::Copy),
            b'3' => Some(Mode::Splice),
            _ => None,
        }
    }

    /// A small number without gaps, for tables.
    pub fn index(self) -> usize {
        match self {
            Mode::FdPass => 0,
            Mode::Copy => 1,
            Mode::Splice => 2,
        }
    }

    pub fn name(self) -> &'static str {
        ["fdpass", "copy", "splice"][self.index()]
    }
}

/// The first byte of every reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    Ok = 0x00,
    NotFound = 0x01,
    InvalidRequest = 0x02,
    InvalidMode = 0x03,
    UriTooLong = 0x04,
    UnsupportedOp = 0x05,
    Forbidden = 0x06,
    Conflict = 0x07,
    InternalError = 0x10,
    StorageError = 0x11,
    OutOfMemory = 0x12,
    Timeout = 0x13,
    Unavailable = 0x14,
    ProtocolError = 0x20,
    VersionMismatch = 0x21,
    CapabilityError = 0x22,
}

impl Status {
    pub const ALL: [Status; 16] = [
        Status::Ok,
        Status::NotFound,
        Status::InvalidRequest,
        Status::InvalidMode,
        Status::UriTooLong,
        Status::UnsupportedOp,
        Status::Forbidden,
        Status::Conflict,
        Status::InternalError,
        Status::StorageError,
        Status::OutOfMemory,
        Status::Timeout,
        Status::Unavailable,
        Status::ProtocolError,
        Status::VersionMismatch,
        Status::CapabilityError,
    ];

    /// The position in [`Status::ALL`], for tables.
    pub fn index(self) -> usize {
        match self as u8 {
            low @ 0x00..=0x07 => low as usize,
            middle @ 0x10..=0x14 => 8 + (middle - 0x10) as usize,
            high => 13 + (high - 0x20) as usize,
        }
    }
}

/// What stood at the front of the input.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    Request {
        mode: Mode,
        uri: &'a str,
    },
    /// The frame was read to its end; it is answered with this status and the connection goes on.
    Refused(Status),
    /// What comes cannot be understood: answer with this status, then close.
    Fatal(Status),
    /// The input ends inside a frame.
    More,
}

/// Takes requests off the front of a byte stream. Its only memory is how much of an over-long URI is still to come.
#[derive(Debug, Default)]
pub struct RequestDecoder {
    to_skip: usize,
}

impl RequestDecoder {
    /// The next request in `input`, which is moved behind what was understood.
    ///
    /// After `More` the caller offers the bytes that were left again, with what came since.
    pub fn decode<'a>(&mut self, input: &mut &'a [u8]) -> Decoded<'a> {
        if self.to_skip > 0 {
            return self.skip(input);
        }
        let Some(&byte) = input.first() else {
            return Decoded::More;
        };
        let Some(mode) = Mode::from_byte(byte) else {
            return Decoded::Fatal(Status::ProtocolError);
        };
        let &[_, high, low, ref rest @ ..] = *input else {
            return Decoded::More;
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > MAX_URI {
            *input = rest;
            self.to_skip = length;
            return self.skip(input);
        }
        let Some((uri, rest)) = rest.split_at_checked(length) else {
            return Decoded::More;
        };
        *input = rest;
        if uri.is_empty() || uri.contains(&0) {
            return Decoded::Refused(Status::InvalidRequest);
        }
        match std::str::from_utf8(uri) {
            Ok(uri) => Decoded::Request { mode, uri },
            Err(_) => Decoded::Refused(Status::InvalidRequest),
        }
    }

    /// What [`decode`](Self::decode) would find, without taking it; None while an over-long URI is being skipped.
    pub fn peek<'a>(&self, input: &mut &'a [u8]) -> Option<Decoded<'a>> {
        if self.to_skip > 0 { None } else { Some(RequestDecoder::default().decode(input)) }
    }

    fn skip<'a>(&mut self, input: &mut &'a [u8]) -> Decoded<'a> {
        let here = self.to_skip.min(input.len());
        *input = &input[here..];
        self.to_skip -= here;
        if self.to_skip > 0 { Decoded::More } else { Decoded::Refused(Status::UriTooLong) }
    }
}

/// Appends a request for `uri`. A URI of more than [`MAX_URI`] bytes is the caller's fault and is cut off by the server.
pub fn encode_request(out: &mut Vec<u8>, mode: Mode, uri: &str) {
    out.push(mode as u8);
    out.extend_from_slice(&(uri.len().min(usize::from(u16::MAX)) as u16).to_be_bytes());
    out.extend_from_slice(uri.as_bytes());
}

/// What precedes a content of `length` bytes.
pub fn content_head(length: u64) -> [u8; CONTENT_HEAD] {
    let mut head = [0; CONTENT_HEAD];
    head[1..].copy_from_slice(&length.to_be_bytes());
    head
}

/// Appends an error reply.
pub fn encode_error(out: &mut Vec<u8>, status: Status, message: &str) {
    let message = &message.as_bytes()[..message.len().min(usize::from(u16::MAX))];
    out.push(status as u8);
    out.extend_from_slice(&(message.len() as u16).to_be_bytes());
    out.extend_from_slice(message);
}

/// What stood at the front of a server's answer.
#[derive(Debug, PartialEq, Eq)]
pub enum DecodedReply<'a> {
    /// The status byte that carries a descriptor.
    Descriptor,
    /// Bytes of a content; `last` says that the reply is complete with them.
    Content { bytes: &'a [u8], last: bool },
    /// An error reply, whole. The status is as it came.
    Error { status: u8, message: &'a [u8] },
    /// The server broke the protocol.
    Broken,
    /// The input ends inside a reply.
    More,
}

/// Takes replies off the front of a byte stream.
#[derive(Debug, Default)]
pub struct ReplyDecoder {
    content_left: Option<u64>,
}

impl ReplyDecoder {
    /// The next piece of a reply. `asked` is the mode of the oldest unanswered request, None where there is none.
    pub fn decode<'a>(&mut self, asked: Option<Mode>, input: &mut &'a [u8]) -> DecodedReply<'a> {
        if let Some(left) = self.content_left {
            return self.content(left, input);
        }
        let Some(&status) = input.first() else {
            return DecodedReply::More;
        };
        let Some(mode) = asked else {
            return DecodedReply::Broken;
        };
        if status != 0 {
            let &[_, high, low, ref rest @ ..] = *input else {
                return DecodedReply::More;
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            let Some((message, rest)) = rest.split_at_checked(length) else {
                return DecodedReply::More;
            };
            *input = rest;
            return DecodedReply::Error { status, message };
        }
        if mode == Mode::FdPass {
            *input = &input[1..];
            return DecodedReply::Descriptor;
        }
        let Some((head, rest)) = input.split_first_chunk::<CONTENT_HEAD>() else {
            return DecodedReply::More;
        };
        let mut length = [0; 8];
        length.copy_from_slice(&head[1..]);
        let length = u64::from_be_bytes(length);
        if length > MAX_CONTENT {
            return DecodedReply::Broken;
        }
        *input = rest;
        self.content(length, input)
    }

    fn content<'a>(&mut self, left: u64, input: &mut &'a [u8]) -> DecodedReply<'a> {
        let here = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        let (bytes, rest) = input.split_at(here);
        let left = left - here as u64;
        *input = rest;
        self.content_left = (left > 0).then_some(left);
        if left > 0 && bytes.is_empty() {
            return DecodedReply::More;
        }
        DecodedReply::Content { bytes, last: left == 0 }
    }
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
