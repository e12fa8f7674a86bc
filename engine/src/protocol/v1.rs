//! Version 1, sans-IO: one request, one reply, in order.
//!
//! A request is `mode(1) uri_len(2) uri`; a reply is one status byte (mode 1, it carries the descriptor),
//! `00 content_len(8) content` (modes 2 and 3), or `status message_len(2) message`. Integers are big-endian.

use super::{MAX_CONTENT, MAX_URI, Mode, Status};

/// Status and length, in front of every content.
pub const CONTENT_HEAD: usize = 9;

/// A decoded request, or why there is none.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    Request {
        mode: Mode,
        uri: &'a str,
    },
    /// The frame was read to its end; the server answers with this status and the connection goes on.
    Refused(Status),
    /// The input is not the protocol: answer with this status, then close.
    Fatal(Status),
    /// The input ends inside a frame.
    More,
}

/// Decodes requests from a byte stream. Remembers only how much of an over-long URI is still to come.
#[derive(Debug, Clone, Default)]
pub struct RequestDecoder {
    to_skip: usize,
}

impl RequestDecoder {
    /// Decodes the next request, and moves `input` behind it.
    ///
    /// After `More` the caller offers the remaining bytes again, with the new ones behind them.
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

    /// Whether the decoder is skipping an over-long URI, with the input used up.
    pub fn is_skipping(&self) -> bool {
        self.to_skip > 0
    }

    fn skip<'a>(&mut self, input: &mut &'a [u8]) -> Decoded<'a> {
        let available = self.to_skip.min(input.len());
        *input = &input[available..];
        self.to_skip -= available;
        if self.to_skip > 0 { Decoded::More } else { Decoded::Refused(Status::UriTooLong) }
    }
}

/// Appends a request for `uri`. The caller must not pass a URI of more than [`MAX_URI`] bytes; this cuts it.
pub fn encode_request(out: &mut Vec<u8>, mode: Mode, uri: &str) {
    out.push(mode as u8);
    out.extend_from_slice(&(uri.len().min(usize::from(u16::MAX)) as u16).to_be_bytes());
    out.extend_from_slice(uri.as_bytes());
}

/// The bytes in front of a content of `length` bytes.
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

/// A decoded piece of a server's reply.
#[derive(Debug, PartialEq, Eq)]
pub enum DecodedReply<'a> {
    /// The status byte that carries a descriptor.
    Descriptor,
    /// Bytes of a content; `last` means that the reply is complete.
    Content { bytes: &'a [u8], last: bool },
    /// An error reply, whole, with the status as received.
    Error { status: u8, message: &'a [u8] },
    /// The server broke the protocol.
    Broken,
    /// The input ends inside a reply.
    More,
}

/// Decodes replies from a byte stream.
#[derive(Debug, Default)]
pub struct ReplyDecoder {
    content_left: Option<u64>,
}

impl ReplyDecoder {
    /// The next piece of a reply. `oldest_mode` is the mode of the oldest unanswered request, None where there is none.
    pub fn decode<'a>(&mut self, oldest_mode: Option<Mode>, input: &mut &'a [u8]) -> DecodedReply<'a> {
        if let Some(left) = self.content_left {
            return self.content(left, input);
        }
        let Some(&status) = input.first() else {
            return DecodedReply::More;
        };
        let Some(mode) = oldest_mode else {
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
        let available = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        let (bytes, rest) = input.split_at(available);
        let left = left - available as u64;
        *input = rest;
        self.content_left = (left > 0).then_some(left);
        if left > 0 && bytes.is_empty() {
            return DecodedReply::More;
        }
        DecodedReply::Content { bytes, last: left == 0 }
    }
}

#[cfg(test)]
#[path = "v1_tests.rs"]
mod tests;
