//! The codec against the vectors that the Python codec reads too, and against arbitrary bytes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::protocol::vectors::{hex, in_pieces, unhex, vectors};
use proptest::prelude::*;

const REQUESTS: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/v1_requests.txt"));
const REPLIES: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/v1_replies.txt"));

/// The outcomes of a vector, with their bytes written out and without `more`; and whether it ends inside a frame.
fn promised(text: &str) -> (Vec<String>, bool) {
    let mut outcomes: Vec<_> = text
        .split(',')
        .map(|outcome| match outcome.trim().split(' ').collect::<Vec<_>>()[..] {
            ["request", mode, uri] => format!("request {mode} {}", hex(&unhex(uri))),
            ["content", length, bytes] => {
                let bytes = unhex(bytes);
                assert_eq!(length.parse(), Ok(bytes.len()), "{text}");
                content(&bytes)
            }
            ["content", "0"] => content(b""),
            ["error", status, message] => format!("error {status} {}", hex(&unhex(message))),
            ["error", status] => format!("error {status} "),
            _ => outcome.trim().to_owned(),
        })
        .collect();
    let inside = outcomes.last().is_some_and(|outcome| outcome == "more");
    if inside {
        outcomes.pop();
    }
    (outcomes, inside)
}

fn content(bytes: &[u8]) -> String {
    format!("content {} {}", bytes.len(), hex(bytes))
}

/// Feeds the chunks to a decoder, as a server would. Returns the outcomes, and whether they end inside a frame.
fn decode_requests<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<String>, bool) {
    let mut decoder = RequestDecoder::default();
    let mut kept = Vec::new();
    let mut outcomes = Vec::new();
    for chunk in chunks {
        kept.extend_from_slice(chunk);
        let mut input = &kept[..];
        loop {
            match decoder.decode(&mut input) {
                Decoded::Request { mode, uri } => {
                    outcomes.push(format!("request {} {}", char::from(mode as u8), hex(uri.as_bytes())));
                }
                Decoded::Refused(status) => outcomes.push(format!("refused {:02x}", status as u8)),
                Decoded::Fatal(status) => {
                    outcomes.push(format!("fatal {:02x}", status as u8));
                    return (outcomes, false);
                }
                Decoded::More => break,
            }
        }
        kept = input.to_vec();
    }
    (outcomes, decoder.to_skip > 0 || !kept.is_empty())
}

/// Feeds the chunks to a decoder, as a client that requested `modes` would; joins the pieces of a content.
fn decode_replies<'a>(modes: &[Mode], chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<String>, bool) {
    let mut decoder = ReplyDecoder::default();
    let mut requested = modes.iter().copied();
    let mut oldest = requested.next();
    let mut kept = Vec::new();
    let mut gathered = Vec::new();
    let mut outcomes = Vec::new();
    for chunk in chunks {
        kept.extend_from_slice(chunk);
        let mut input = &kept[..];
        loop {
            match decoder.decode(oldest, &mut input) {
                DecodedReply::Descriptor => outcomes.push("descriptor".to_owned()),
                DecodedReply::Content { bytes, last } => {
                    gathered.extend_from_slice(bytes);
                    if !last {
                        continue;
                    }
                    outcomes.push(content(&gathered));
                    gathered.clear();
                }
                DecodedReply::Error { status, message } => {
                    outcomes.push(format!("error {status:02x} {}", hex(message)));
                }
                DecodedReply::Broken => {
                    outcomes.push("broken".to_owned());
                    return (outcomes, false);
                }
                DecodedReply::More => break,
            }
            oldest = requested.next();
        }
        kept = input.to_vec();
    }
    (outcomes, decoder.content_left.is_some() || !kept.is_empty())
}

fn modes(text: &str) -> Vec<Mode> {
    text.bytes().map(|byte| Mode::from_byte(byte).expect("a mode")).collect()
}

#[test]
fn request_vectors_whole_and_byte_by_byte() {
    for [name, bytes, outcome] in vectors(REQUESTS) {
        let bytes = unhex(bytes);
        let (outcomes, inside) = promised(outcome);
        let promise = (outcomes, inside && !bytes.is_empty());
        assert_eq!(decode_requests([&bytes[..]]), promise, "{name}, whole");
        assert_eq!(decode_requests(bytes.chunks(1)), promise, "{name}, byte by byte");
    }
}

#[test]
fn request_vectors_leave_the_next_message_alone() {
    for [name, bytes, outcome] in vectors(REQUESTS) {
        let (mut outcomes, inside) = promised(outcome);
        if inside && !bytes.is_empty() {
            continue;
        }
        let mut bytes = unhex(bytes);
        encode_request(&mut bytes, Mode::Copy, "/next");
        // Bytes after a fatal frame do not count.
        if outcomes.last().is_none_or(|outcome| !outcome.starts_with("fatal")) {
            outcomes.push("request 2 2f6e657874".to_owned());
        }
        assert_eq!(decode_requests([&bytes[..]]), (outcomes, false), "{name}");
    }
}

#[test]
fn reply_vectors_whole_and_byte_by_byte() {
    for [name, requested, bytes, outcome] in vectors(REPLIES) {
        let (requested, bytes) = (modes(requested), unhex(bytes));
        let (outcomes, inside) = promised(outcome);
        let promise = (outcomes, inside && !bytes.is_empty());
        assert_eq!(decode_replies(&requested, [&bytes[..]]), promise, "{name}, whole");
        assert_eq!(decode_replies(&requested, bytes.chunks(1)), promise, "{name}, byte by byte");
    }
}

#[test]
fn reply_vectors_leave_the_next_message_alone() {
    for [name, requested, bytes, outcome] in vectors(REPLIES) {
        let (mut outcomes, inside) = promised(outcome);
        if inside && !bytes.is_empty() {
            continue;
        }
        let mut requested = modes(requested);
        let mut bytes = unhex(bytes);
        encode_error(&mut bytes, Status::NotFound, "next");
        if outcomes.last().is_none_or(|outcome| outcome != "broken") {
            // The vector `nothing` already has a request that waits for its reply.
            if !inside {
                requested.push(Mode::Copy);
            }
            outcomes.push("error 01 6e657874".to_owned());
        }
        assert_eq!(decode_replies(&requested, [&bytes[..]]), (outcomes, false), "{name}");
    }
}

#[test]
fn statuses_are_numbered_without_gaps() {
    for (at, status) in Status::ALL.into_iter().enumerate() {
        assert_eq!(status.index(), at, "{status:?}");
    }
}

const MODES: [Mode; 3] = [Mode::FdPass, Mode::Copy, Mode::Splice];

#[test]
fn modes_are_identified_by_their_bytes() {
    assert_eq!(MODES.map(|mode| Mode::from_byte(mode as u8)), MODES.map(Some));
    assert_eq!(Mode::from_byte(b'4'), None);
}

#[test]
fn an_error_message_is_cut_to_the_longest_encodable_length() {
    let mut bytes = Vec::new();
    encode_error(&mut bytes, Status::InternalError, &"x".repeat(70_000));
    assert_eq!(bytes.len(), 3 + 65_535);
    let (outcomes, inside) = decode_replies(&[Mode::Copy], [&bytes[..]]);
    assert_eq!((outcomes.len(), inside), (1, false));
}

fn any_mode() -> impl Strategy<Value = Mode> {
    proptest::sample::select(&MODES[..])
}

fn any_uri() -> impl Strategy<Value = String> {
    "[^\\x00]{1,200}".prop_filter("at most 4096 bytes", |uri| uri.len() <= MAX_URI)
}

/// Bytes that look like requests more often than random ones do.
fn nearly_requests() -> impl Strategy<Value = Vec<u8>> {
    let frame = (any_mode(), any::<u16>(), proptest::collection::vec(any::<u8>(), 0..40), any::<bool>());
    proptest::collection::vec(frame, 0..20).prop_map(|frames| {
        let mut bytes = Vec::new();
        for (mode, lie, uri, honest) in frames {
            let length = if honest { uri.len() as u16 } else { lie };
            bytes.push(mode as u8);
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(&uri);
        }
        bytes
    })
}

#[derive(Debug, Clone)]
enum AnyReply {
    Descriptor,
    Content(Mode, Vec<u8>),
    Error(Mode, Status, String),
}

fn any_reply() -> impl Strategy<Value = AnyReply> {
    let bytes_mode = proptest::sample::select(&[Mode::Copy, Mode::Splice][..]);
    let failure = proptest::sample::select(&Status::ALL[1..]);
    prop_oneof![
        Just(AnyReply::Descriptor),
        (bytes_mode, proptest::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(mode, bytes)| AnyReply::Content(mode, bytes)),
        (any_mode(), failure, ".{0,80}")
            .prop_map(|(mode, status, message)| { AnyReply::Error(mode, status, message) }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn encoded_requests_decode_to_the_same(
        sent in proptest::collection::vec((any_mode(), any_uri()), 1..8),
        sizes in proptest::collection::vec(1usize..50, 1..5),
    ) {
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for (mode, uri) in &sent {
            encode_request(&mut bytes, *mode, uri);
            expected.push(format!("request {} {}", char::from(*mode as u8), hex(uri.as_bytes())));
        }
        prop_assert_eq!(decode_requests(in_pieces(&bytes, &sizes)), (expected, false));
    }

    #[test]
    fn encoded_replies_decode_to_the_same(
        sent in proptest::collection::vec(any_reply(), 1..8),
        sizes in proptest::collection::vec(1usize..50, 1..5),
    ) {
        let (mut bytes, mut requested, mut expected) = (Vec::new(), Vec::new(), Vec::new());
        for reply in sent {
            match reply {
                AnyReply::Descriptor => {
                    requested.push(Mode::FdPass);
                    bytes.push(Status::Ok as u8);
                    expected.push("descriptor".to_owned());
                }
                AnyReply::Content(mode, body) => {
                    requested.push(mode);
                    bytes.extend_from_slice(&content_head(body.len() as u64));
                    bytes.extend_from_slice(&body);
                    expected.push(content(&body));
                }
                AnyReply::Error(mode, status, message) => {
                    requested.push(mode);
                    encode_error(&mut bytes, status, &message);
                    expected.push(format!("error {:02x} {}", status as u8, hex(message.as_bytes())));
                }
            }
        }
        prop_assert_eq!(decode_replies(&requested, in_pieces(&bytes, &sizes)), (expected, false));
    }

    #[test]
    fn requests_decode_alike_however_the_stream_is_split(
        bytes in prop_oneof![nearly_requests(), proptest::collection::vec(any::<u8>(), 0..400)],
        sizes in proptest::collection::vec(1usize..70, 1..5),
    ) {
        prop_assert_eq!(decode_requests(in_pieces(&bytes, &sizes)), decode_requests([&bytes[..]]));
    }

    #[test]
    fn replies_decode_alike_however_the_stream_is_split(
        bytes in proptest::collection::vec(prop_oneof![Just(0u8), Just(1u8), any::<u8>()], 0..400),
        requested in proptest::collection::vec(any_mode(), 0..40),
        sizes in proptest::collection::vec(1usize..70, 1..5),
    ) {
        prop_assert_eq!(
            decode_replies(&requested, in_pieces(&bytes, &sizes)),
            decode_replies(&requested, [&bytes[..]])
        );
    }
}
