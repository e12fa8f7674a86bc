//! The protocols of the load generator: encodes requests as bytes, and decodes answers from received bytes.

use rustix::io::{self, Errno};

use crate::protocol::v2::{self, DecodedResponse, ResponseDecoder};
use crate::protocol::{DecodedReply, Mode, Operation, ReplyDecoder, Status, encode_request};

/// The protocol to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadProtocol {
    /// Version 1.
    Objmapper(Mode),
    /// Version 2 with the extension.
    Extended(Mode),
    Http,
    Redis,
    /// Ranges over UDP.
    Pull,
    /// Over UDP as well.
    Memcached,
}

impl LoadProtocol {
    /// Whether answers carry descriptors.
    pub fn passes_descriptors(self) -> bool {
        matches!(self, LoadProtocol::Objmapper(Mode::FdPass) | LoadProtocol::Extended(Mode::FdPass))
    }

    /// A request for `uri`; in version 2 the caller still sets its id, see [`number`](Self::number).
    pub fn frame(self, uri: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            LoadProtocol::Objmapper(mode) => encode_request(&mut bytes, mode, uri),
            LoadProtocol::Extended(mode) => v2::encode_request(&mut bytes, 0, mode.into(), uri),
            LoadProtocol::Http => {
                bytes.extend(format!("GET {uri} HTTP/1.1\r\nHost: bench\r\n\r\n").into_bytes())
            }
            LoadProtocol::Redis => {
                bytes.extend(format!("*2\r\n$3\r\nGET\r\n${}\r\n{uri}\r\n", uri.len()).into_bytes());
            }
            // `load/datagrams.rs` makes each datagram itself.
            LoadProtocol::Pull | LoadProtocol::Memcached => {}
        }
        bytes
    }

    /// Sets the id of a request.
    pub fn number(self, frame: &mut [u8], id: u32) {
        if matches!(self, LoadProtocol::Extended(_)) {
            frame[1..5].copy_from_slice(&id.to_be_bytes());
        }
    }

    /// The first bytes that a client sends.
    pub fn greeting(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if matches!(self, LoadProtocol::Extended(_)) {
            let interest =
                v2::Capabilities::OUT_OF_ORDER | v2::Capabilities::PIPELINING | v2::Capabilities::EXTENDED;
            v2::encode_hello(&mut bytes, interest, v2::MAX_PIPELINE);
        }
        bytes
    }
}

/// A decoded answer, or its state.
#[derive(Debug)]
pub enum LoadReply {
    /// `id` where the load protocol has one; otherwise the oldest request's.
    Done {
        id: Option<u32>,
        refused: bool,
        failed: bool,
    },
    More,
}

impl LoadReply {
    fn from_status(id: Option<u32>, status: u8) -> Self {
        let refused = status == Status::Unavailable as u8;
        LoadReply::Done { id, refused, failed: !refused && status != Status::Ok as u8 }
    }
}

/// Decodes the answers of one connection.
#[derive(Debug)]
pub enum LoadReplyDecoder {
    V1(Mode, ReplyDecoder),
    V2 {
        operation: Operation,
        decoder: ResponseDecoder,
        /// The id of the response whose content is coming.
        id: u32,
    },
    /// Bytes of a body that are still to come.
    Http(u64),
    Redis(u64),
    /// Protocols without connections: see `load/datagrams.rs`.
    Datagrams,
}

impl LoadReplyDecoder {
    pub fn new(protocol: LoadProtocol) -> Self {
        match protocol {
            LoadProtocol::Objmapper(mode) => LoadReplyDecoder::V1(mode, ReplyDecoder::default()),
            LoadProtocol::Extended(mode) => {
                LoadReplyDecoder::V2 { operation: mode.into(), decoder: ResponseDecoder::new(true), id: 0 }
            }
            LoadProtocol::Http => LoadReplyDecoder::Http(0),
            LoadProtocol::Redis => LoadReplyDecoder::Redis(0),
            LoadProtocol::Pull | LoadProtocol::Memcached => LoadReplyDecoder::Datagrams,
        }
    }

    /// The next answer in `input`. Fails with EPROTO where the server broke the protocol.
    pub fn next(&mut self, input: &mut &[u8]) -> io::Result<LoadReply> {
        match self {
            LoadReplyDecoder::V1(mode, decoder) => loop {
                return match decoder.decode(Some(*mode), input) {
                    DecodedReply::Descriptor | DecodedReply::Content { last: true, .. } => {
                        Ok(LoadReply::from_status(None, 0))
                    }
                    DecodedReply::Content { .. } => continue,
                    DecodedReply::Error { status, .. } => Ok(LoadReply::from_status(None, status)),
                    DecodedReply::Broken => Err(Errno::PROTO),
                    DecodedReply::More => Ok(LoadReply::More),
                };
            },
            LoadReplyDecoder::V2 { operation, decoder, id } => loop {
                return match decoder.decode(|_| Some(*operation), input) {
                    DecodedResponse::Head(head) if head.is_whole => {
                        Ok(LoadReply::from_status(Some(head.id), head.status))
                    }
                    DecodedResponse::Head(head) => {
                        *id = head.id;
                        continue;
                    }
                    DecodedResponse::Content { last: false, .. } => continue,
                    DecodedResponse::Content { last: true, .. } => Ok(LoadReply::from_status(Some(*id), 0)),
                    DecodedResponse::More => Ok(LoadReply::More),
                    _ => Err(Errno::PROTO),
                };
            },
            LoadReplyDecoder::Http(body) => {
                if *body == 0 {
                    let Some(end) = find(input, b"\r\n\r\n") else { return Ok(LoadReply::More) };
                    let head = &input[..end];
                    let length = find(head, b"ength: ").map_or(0, |at| digits(&head[at..]));
                    let failed = head.get(9..12) != Some(b"200");
                    *input = &input[end..];
                    if failed || length == 0 {
                        let available = usize::try_from(length).unwrap_or(usize::MAX).min(input.len());
                        *input = &input[available..];
                        return Ok(LoadReply::Done { id: None, refused: false, failed });
                    }
                    *body = length;
                }
                Ok(take_body(body, input))
            }
            LoadReplyDecoder::Redis(body) => {
                if *body == 0 {
                    let Some(end) = find(input, b"\r\n") else { return Ok(LoadReply::More) };
                    let missing = input.starts_with(b"$-") || !input.starts_with(b"$");
                    let length = digits(&input[1..end]) + 2;
                    *input = &input[end..];
                    if missing {
                        return Ok(LoadReply::Done { id: None, refused: false, failed: true });
                    }
                    *body = length;
                }
                Ok(take_body(body, input))
            }
            LoadReplyDecoder::Datagrams => Err(Errno::PROTO),
        }
    }
}

fn take_body(body: &mut u64, input: &mut &[u8]) -> LoadReply {
    let available = usize::try_from(*body).unwrap_or(usize::MAX).min(input.len());
    *input = &input[available..];
    *body -= available as u64;
    if *body == 0 { LoadReply::from_status(None, 0) } else { LoadReply::More }
}

/// The position behind the first occurrence.
fn find(input: &[u8], interest: &[u8]) -> Option<usize> {
    input.windows(interest.len()).position(|window| window == interest).map(|at| at + interest.len())
}

fn digits(text: &[u8]) -> u64 {
    text.iter()
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0, |number: u64, byte| number.saturating_mul(10).saturating_add(u64::from(byte - b'0')))
}
