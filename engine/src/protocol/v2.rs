//! Version 2, sans-IO: pipelined, answered out of order, with metadata; and its extension.
//!
//! A request is `01 id(4) flags(1) mode(1) uri_len(2) uri`, and where flag 80 is set `params_len(2) params`
//! behind it. `hello.rs` has the start of a connection, `response.rs` the server's responses, and
//! `docs/protocol.md` describes all of it. Integers are big-endian.

pub use super::Operation;
use super::{MAX_URI, Status};
pub use crate::protocol::hello::{
    Capabilities, DecodedHello, DecodedHelloAck, HELLO_ACK, Hello, MAGIC, MAX_PIPELINE, decode_hello,
    decode_hello_ack, encode_hello, encode_hello_ack,
};
pub use crate::protocol::metadata::Metadata;
pub use crate::protocol::parameters::{MAX_PARAMETERS, Parameters};
#[cfg(test)]
pub use crate::protocol::response::LISTED;
pub use crate::protocol::response::{
    CONTENT_LEN_AT, DecodedResponse, LEFT_OUT_LONG, LEFT_OUT_NAME, LEFT_OUT_UNREADABLE, MARKER,
    ResponseDecoder, encode_close, encode_close_ack, encode_detailed, encode_entry, encode_left_out,
    encode_refusal, encode_response,
};

/// Type, id, flags, mode and length, in front of every URI.
#[cfg(test)]
const REQUEST_HEAD: usize = 9;
/// The longest request that the decoder holds: it skips a longer one as it comes, or the frame is fatal.
#[cfg(test)]
const MAX_REQUEST: usize = REQUEST_HEAD + MAX_URI + 2 + MAX_PARAMETERS;

/// The first byte of a connection that speaks this version; no request of version 1 begins with it.
pub const FIRST: u8 = MAGIC[0];
/// The first byte of a request, and where in it flags and mode are.
pub const REQUEST: u8 = 0x01;
pub const FLAGS_AT: usize = 5;
pub const MODE_AT: usize = 6;
pub(super) const CLOSE: u8 = 0x03;
pub(super) const CLOSE_ACK: u8 = 0x04;

/// The server must not answer this request before earlier ones.
pub const ORDERED: u8 = 0x01;
/// The server puts this request before others that wait.
pub const PRIORITY: u8 = 0x02;
const HAS_PARAMETERS: u8 = 0x80;

/// A request, borrowed from the bytes it came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The client's number for the request, which its response repeats.
    pub id: u32,
    pub flags: u8,
    pub operation: Operation,
    pub uri: &'a str,
    pub parameters: Parameters<'a>,
}

impl Request<'_> {
    /// Whether the request goes before others that wait.
    pub fn has_priority(&self) -> bool {
        self.flags & PRIORITY != 0
    }

    /// Appends the request. The caller sends the content of a put.
    #[cfg(test)]
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        encode_request(out, self.id, self.operation, self.uri);
        let has_parameters = self.flags & HAS_PARAMETERS != 0 || self.parameters != Parameters::default();
        out[start + 5] = self.flags | if has_parameters { HAS_PARAMETERS } else { 0 };
        if has_parameters {
            let length_at = out.len();
            out.extend_from_slice(&[0, 0]);
            self.parameters.push_to(out);
            let length = (out.len() - length_at - 2).min(usize::from(u16::MAX)) as u16;
            out[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
        }
    }
}

/// Appends a request without flags and parameters. The caller must not pass a URI of more than [`MAX_URI`] bytes.
pub fn encode_request(out: &mut Vec<u8>, id: u32, operation: Operation, uri: &str) {
    debug_assert!(uri.len() <= MAX_URI);
    out.push(REQUEST);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&[0, operation as u8]);
    out.extend_from_slice(&(uri.len() as u16).to_be_bytes());
    out.extend_from_slice(uri.as_bytes());
}

/// A decoded frame of a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// The content of a put follows, `parameters.content_len` bytes; no other request has content.
    Request(Request<'a>),
    /// The frame was read to its end. The server answers with this status, skips `content_len` bytes behind
    /// the frame, and the connection goes on. `operation` is the requested one, None where it is unknown.
    Refused { id: u32, operation: Option<Operation>, status: Status, content_len: u64 },
    /// The client sends no further request.
    Close { reason: u8 },
    /// The input is not the protocol: answer with this status, then close.
    Fatal(Status),
    /// The input ends inside a frame.
    More,
}

/// Why the server ends a connection. Clients have 0, which is normal, and 2, an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CloseReason {
    IdleTimeout = 1,
    ShuttingDown = 3,
}

/// The part of a request in front of the URI, without its length.
#[derive(Debug, Clone, Copy)]
struct FrameHead {
    id: u32,
    flags: u8,
    mode: u8,
}

/// A request whose URI is too long, and how much of that URI is still to come.
#[derive(Debug, Clone, Copy)]
struct Skipping {
    front: FrameHead,
    left: usize,
}

/// Decodes requests from a byte stream. Remembers only how much of an over-long URI is still to come.
#[derive(Debug, Clone, Default)]
pub struct RequestDecoder {
    extended: bool,
    skipping: Option<Skipping>,
}

impl RequestDecoder {
    /// `extended` means that this capability is in force.
    pub fn new(extended: bool) -> Self {
        RequestDecoder { extended, skipping: None }
    }

    /// Whether the decoder is skipping an over-long URI, with the input used up.
    pub fn is_skipping(&self) -> bool {
        self.skipping.is_some()
    }

    /// Decodes the next frame, and moves `input` behind it.
    ///
    /// After `More` the caller offers the remaining bytes again, with the new ones behind them; never more
    /// than the longest request has remain.
    pub fn decode<'a>(&mut self, input: &mut &'a [u8]) -> Decoded<'a> {
        if let Some(skipping) = self.skipping {
            return self.skip(skipping, input);
        }
        match input.first() {
            None => Decoded::More,
            Some(&REQUEST) => self.request(input),
            Some(&CLOSE) => {
                let &[_, reason, ref rest @ ..] = *input else {
                    return Decoded::More;
                };
                *input = rest;
                Decoded::Close { reason }
            }
            Some(_) => Decoded::Fatal(Status::ProtocolError),
        }
    }

    fn request<'a>(&mut self, input: &mut &'a [u8]) -> Decoded<'a> {
        let &[_, i0, i1, i2, i3, flags, mode, high, low, ref rest @ ..] = *input else {
            return Decoded::More;
        };
        if flags & HAS_PARAMETERS != 0 && !self.extended {
            return Decoded::Fatal(Status::ProtocolError);
        }
        let front = FrameHead { id: u32::from_be_bytes([i0, i1, i2, i3]), flags, mode };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > MAX_URI {
            *input = rest;
            return self.skip(Skipping { front, left: length }, input);
        }
        let Some((uri, rest)) = rest.split_at_checked(length) else {
            return Decoded::More;
        };
        match split_parameters(flags, rest) {
            Split::At(parameters, rest) => {
                *input = rest;
                self.judge(front, Some(uri), parameters)
            }
            Split::More => Decoded::More,
            Split::TooLong => Decoded::Fatal(Status::ProtocolError),
        }
    }

    fn skip<'a>(&mut self, mut skipping: Skipping, input: &mut &'a [u8]) -> Decoded<'a> {
        let available = skipping.left.min(input.len());
        *input = &input[available..];
        skipping.left -= available;
        self.skipping = Some(skipping);
        if skipping.left > 0 {
            return Decoded::More;
        }
        match split_parameters(skipping.front.flags, input) {
            Split::At(parameters, rest) => {
                *input = rest;
                self.skipping = None;
                self.judge(skipping.front, None, parameters)
            }
            Split::More => Decoded::More,
            Split::TooLong => Decoded::Fatal(Status::ProtocolError),
        }
    }

    /// The request or refusal of a whole frame. `uri` is None where it was too long.
    fn judge<'a>(&self, front: FrameHead, uri: Option<&'a [u8]>, parameters: &'a [u8]) -> Decoded<'a> {
        let operation = Operation::from_byte(front.mode);
        let operation = operation.filter(|operation| self.extended || operation.mode().is_some());
        let read = Parameters::read(parameters);
        let content_len = read.parameters.content_len;
        let is_put = operation == Some(Operation::Put);
        if is_put && !read.is_sound && content_len.is_none() {
            // The end of the content is unknown, and so is the start of the next frame.
            return Decoded::Fatal(Status::ProtocolError);
        }
        let refused = |status| {
            let content_len = content_len.unwrap_or(0);
            Decoded::Refused { id: front.id, operation, status, content_len }
        };
        let Some(operation) = operation else {
            return refused(Status::InvalidMode);
        };
        let Some(uri) = uri else {
            return refused(Status::UriTooLong);
        };
        if !read.is_sound || is_put != content_len.is_some() || uri.is_empty() || uri.contains(&0) {
            return refused(Status::InvalidRequest);
        }
        match std::str::from_utf8(uri) {
            Ok(uri) => Decoded::Request(Request {
                id: front.id,
                flags: front.flags,
                operation,
                uri,
                parameters: read.parameters,
            }),
            Err(_) => refused(Status::InvalidRequest),
        }
    }
}

enum Split<'a> {
    /// The parameters, and the bytes behind them.
    At(&'a [u8], &'a [u8]),
    More,
    TooLong,
}

/// Splits the parameters off the bytes behind a URI.
fn split_parameters(flags: u8, rest: &[u8]) -> Split<'_> {
    if flags & HAS_PARAMETERS == 0 {
        return Split::At(&[], rest);
    }
    let &[high, low, ref rest @ ..] = rest else {
        return Split::More;
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_PARAMETERS {
        return Split::TooLong;
    }
    rest.split_at_checked(length).map_or(Split::More, |(parameters, rest)| Split::At(parameters, rest))
}

#[cfg(test)]
#[path = "v2_tests.rs"]
mod tests;
