//! Responses of version 2: the server encodes them, and a client decodes them.

use super::{MAX_CONTENT, Operation, Status};
use crate::protocol::metadata::Metadata;
use crate::protocol::v2::{CLOSE, CLOSE_ACK, CloseReason};

/// Type, id, status, the length of the content and that of the metadata.
pub const RESPONSE_HEAD: usize = 16;
/// Where in a response the length of its content is, 8 bytes.
pub const CONTENT_LEN_AT: usize = 6;
/// In plain version 2, the byte that carries a descriptor, in a message of its own behind the response.
pub const MARKER: u8 = 0x58;
pub(super) const RESPONSE: u8 = 0x02;

/// Appends a response; the caller sends its content.
pub fn encode_response(
    out: &mut Vec<u8>,
    id: u32,
    status: Status,
    content_len: u64,
    metadata: &Metadata<'_>,
) {
    let mut head = [0; RESPONSE_HEAD - 2];
    head[0] = RESPONSE;
    head[1..5].copy_from_slice(&id.to_be_bytes());
    head[5] = status as u8;
    head[6..].copy_from_slice(&content_len.to_be_bytes());
    out.extend_from_slice(&head);
    metadata.push_to(out);
}

/// Appends an error response with its reason.
pub fn encode_refusal(out: &mut Vec<u8>, id: u32, status: Status, text: &str) {
    encode_response(out, id, status, 0, &Metadata { text: Some(text.as_bytes()), ..Metadata::default() });
}

/// Appends the notice that this side reads, or sends, no further request.
pub fn encode_close(out: &mut Vec<u8>, reason: CloseReason) {
    out.extend_from_slice(&[CLOSE, reason as u8]);
}

/// Appends the answer to a close; `outstanding` requests were not answered when the close came.
pub fn encode_close_ack(out: &mut Vec<u8>, outstanding: u32) {
    out.extend_from_slice(&[CLOSE_ACK, 0]);
    out.extend_from_slice(&outstanding.to_be_bytes());
}

/// Appends an entry of a list's content. `mtime` is in seconds since 1970. The URI comes in two pieces and has
/// at most 4,096 bytes.
pub fn encode_entry(out: &mut Vec<u8>, uri: [&[u8]; 2], size: u64, mtime: i64) {
    push_path(out, uri);
    out.extend_from_slice(&size.to_be_bytes());
    out.extend_from_slice(&mtime.to_be_bytes());
}

/// The kind of a listed object in the second form; see [`encode_detailed`].
pub const LISTED: u8 = 1;
/// Left out: the name is not UTF-8.
pub const LEFT_OUT_NAME: u8 = 2;
/// Left out: the server may not read the directory, or may not stat the file.
pub const LEFT_OUT_UNREADABLE: u8 = 3;

/// Left out: its URI would be longer than [`super::MAX_URI`].
pub const LEFT_OUT_LONG: u8 = 4;

/// Appends an entry of the second form, for an object: with nanoseconds beyond `mtime`.
pub fn encode_detailed(out: &mut Vec<u8>, uri: [&[u8]; 2], size: u64, mtime: i64, nanoseconds: u32) {
    out.push(LISTED);
    encode_entry(out, uri, size, mtime);
    out.extend_from_slice(&nanoseconds.to_be_bytes());
}

/// Appends an entry of the second form for something that a list leaves out: `kind` gives the reason. A
/// directory's path ends in a slash.
pub fn encode_left_out(out: &mut Vec<u8>, kind: u8, path: [&[u8]; 2]) {
    out.push(kind);
    push_path(out, path);
}

fn push_path(out: &mut Vec<u8>, path: [&[u8]; 2]) {
    let length = path[0].len() + path[1].len();
    debug_assert!(length <= usize::from(u16::MAX));
    out.extend_from_slice(&(length as u16).to_be_bytes());
    path.iter().for_each(|piece| out.extend_from_slice(piece));
}

/// A response without the bytes that follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head<'a> {
    pub id: u32,
    /// As received.
    pub status: u8,
    /// In the extended version the object's size, also where it comes as a descriptor.
    pub content_len: u64,
    pub metadata: Metadata<'a>,
    /// Neither a content nor a marker follows.
    pub is_whole: bool,
}

/// A decoded frame, or a piece of one, from a server.
#[derive(Debug, PartialEq, Eq)]
pub enum DecodedResponse<'a> {
    Head(Head<'a>),
    /// Bytes of the content of the response before; `last` means that the content is complete.
    Content {
        bytes: &'a [u8],
        last: bool,
    },
    /// The byte that carries the descriptor of the response before.
    Marker,
    Close {
        reason: u8,
    },
    CloseAck {
        outstanding: u32,
    },
    /// The server broke the protocol.
    Broken,
    /// The input ends inside a frame.
    More,
}

#[derive(Debug, Clone, Copy, Default)]
enum Remainder {
    #[default]
    Nothing,
    Content(u64),
    Marker,
}

/// Decodes responses from a byte stream.
#[derive(Debug, Default)]
pub struct ResponseDecoder {
    extended: bool,
    follows: Remainder,
}

impl ResponseDecoder {
    /// `extended` means that this capability is in force: then a descriptor comes on its response's first byte.
    pub fn new(extended: bool) -> Self {
        ResponseDecoder { extended, follows: Remainder::Nothing }
    }

    /// The next frame, or piece of one. `operation_of` returns the operation requested under an id, None for an unknown id.
    ///
    /// After `More` the caller offers the remaining bytes again, with the new ones behind them.
    pub fn decode<'a>(
        &mut self,
        operation_of: impl FnOnce(u32) -> Option<Operation>,
        input: &mut &'a [u8],
    ) -> DecodedResponse<'a> {
        let Some(&kind) = input.first() else {
            return DecodedResponse::More;
        };
        match self.follows {
            Remainder::Nothing => {}
            Remainder::Content(left) => return self.content(left, input),
            Remainder::Marker if kind == MARKER => {
                *input = &input[1..];
                self.follows = Remainder::Nothing;
                return DecodedResponse::Marker;
            }
            Remainder::Marker => return DecodedResponse::Broken,
        }
        match kind {
            RESPONSE => self.response(operation_of, input),
            CLOSE => {
                let &[_, reason, ref rest @ ..] = *input else {
                    return DecodedResponse::More;
                };
                *input = rest;
                DecodedResponse::Close { reason }
            }
            CLOSE_ACK => {
                let &[_, _, a, b, c, d, ref rest @ ..] = *input else {
                    return DecodedResponse::More;
                };
                *input = rest;
                DecodedResponse::CloseAck { outstanding: u32::from_be_bytes([a, b, c, d]) }
            }
            _ => DecodedResponse::Broken,
        }
    }

    fn response<'a>(
        &mut self,
        operation_of: impl FnOnce(u32) -> Option<Operation>,
        input: &mut &'a [u8],
    ) -> DecodedResponse<'a> {
        let Some((head, rest)) = input.split_first_chunk::<RESPONSE_HEAD>() else {
            return DecodedResponse::More;
        };
        let &[_, i0, i1, i2, i3, status, c0, c1, c2, c3, c4, c5, c6, c7, high, low] = head;
        let id = u32::from_be_bytes([i0, i1, i2, i3]);
        let content_len = u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]);
        let length = usize::from(u16::from_be_bytes([high, low]));
        if content_len > MAX_CONTENT {
            return DecodedResponse::Broken;
        }
        let Some((metadata, rest)) = rest.split_at_checked(length) else {
            return DecodedResponse::More;
        };
        let (Some(operation), Some(metadata)) = (operation_of(id), Metadata::read(metadata)) else {
            return DecodedResponse::Broken;
        };
        let by_descriptor = operation == Operation::FdPass;
        let is_refusal = status != Status::Ok as u8;
        self.follows = match content_len {
            _ if by_descriptor && !is_refusal && self.extended => Remainder::Nothing,
            0 if by_descriptor && !is_refusal => Remainder::Marker,
            0 => Remainder::Nothing,
            _ if by_descriptor || is_refusal => return DecodedResponse::Broken,
            left => Remainder::Content(left),
        };
        *input = rest;
        let is_whole = matches!(self.follows, Remainder::Nothing);
        DecodedResponse::Head(Head { id, status, content_len, metadata, is_whole })
    }

    fn content<'a>(&mut self, left: u64, input: &mut &'a [u8]) -> DecodedResponse<'a> {
        let available = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        let (bytes, rest) = input.split_at(available);
        let left = left - available as u64;
        *input = rest;
        self.follows = if left > 0 { Remainder::Content(left) } else { Remainder::Nothing };
        DecodedResponse::Content { bytes, last: left == 0 }
    }

    #[cfg(test)]
    pub(super) fn is_inside(&self) -> bool {
        !matches!(self.follows, Remainder::Nothing)
    }
}

#[cfg(test)]
#[path = "response_tests.rs"]
mod tests;
