//! Responses, against the vectors that the Python codec reads too, and against arbitrary bytes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::protocol::vectors::{expanded, hex, in_pieces, unhex, vectors};
use proptest::prelude::*;
use std::collections::HashMap;

const RESPONSES: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/v2_responses.txt"));
const ENTRIES: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/v2_entries.txt"));

type Requested = HashMap<u32, Operation>;

/// Feeds the chunks to a decoder, as a client with the requests `requested` would; joins the pieces of a content.
fn decode<'a>(
    extended: bool,
    mut requested: Requested,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<String>, bool) {
    let mut decoder = ResponseDecoder::new(extended);
    let (mut kept, mut gathered, mut outcomes) = (Vec::new(), Vec::new(), Vec::new());
    for chunk in chunks {
        kept.extend_from_slice(chunk);
        let mut input = &kept[..];
        loop {
            match decoder.decode(|id| requested.get(&id).copied(), &mut input) {
                DecodedResponse::Head(head) => {
                    assert_eq!(head.is_whole, !decoder.is_inside());
                    requested.remove(&head.id);
                    outcomes.push(in_words(head.id, head.status, head.content_len, &head.metadata));
                }
                DecodedResponse::Content { bytes, last } => {
                    gathered.extend_from_slice(bytes);
                    if last {
                        outcomes.push(format!("content {} {}", gathered.len(), hex(&gathered)));
                        gathered.clear();
                    }
                }
                DecodedResponse::Marker => outcomes.push("marker".to_owned()),
                DecodedResponse::Close { reason } => outcomes.push(format!("close {reason:02x}")),
                DecodedResponse::CloseAck { outstanding } => outcomes.push(format!("ack {outstanding}")),
                DecodedResponse::Broken => {
                    outcomes.push("broken".to_owned());
                    return (outcomes, false);
                }
                DecodedResponse::More => break,
            }
        }
        let used = kept.len() - input.len();
        kept.drain(..used);
    }
    (outcomes, decoder.is_inside() || !kept.is_empty())
}

fn in_words(id: u32, status: u8, content_len: u64, metadata: &Metadata<'_>) -> String {
    let mut words = format!("head {id:08x} {status:02x} {content_len}");
    let named = [
        ("size", metadata.size.map(|number| number.to_string())),
        ("mtime", metadata.mtime.map(|number| (number as i64).to_string())),
        ("etag", metadata.etag.map(hex)),
        ("mime", metadata.mime.map(hex)),
        ("backend", metadata.backend.map(|number| number.to_string())),
        ("latency", metadata.latency.map(|number| number.to_string())),
        ("nanoseconds", metadata.nanoseconds.map(|number| number.to_string())),
        ("cursor", metadata.cursor.map(hex)),
        ("text", metadata.text.map(hex)),
        ("form", metadata.form.map(|number| number.to_string())),
    ];
    for (name, value) in named {
        words.extend(value.map(|value| format!(" {name}={value}")));
    }
    words
}

/// `1=2 2=s`: the mode or operation requested under each id.
fn requested_operations(text: &str) -> Requested {
    text.split_whitespace()
        .map(|word| {
            let (id, mode) = word.split_once('=').expect("ID=MODE");
            (id.parse().expect("an id"), Operation::from_byte(mode.as_bytes()[0]).expect("a mode"))
        })
        .collect()
}

#[test]
fn response_vectors_whole_and_byte_by_byte() {
    for [name, version, requested, bytes, outcome] in vectors(RESPONSES) {
        let (extended, requested, bytes) =
            (version == "extended", requested_operations(requested), unhex(bytes));
        let (outcomes, inside) = expanded(outcome);
        let promise = (outcomes, inside && !bytes.is_empty());
        assert_eq!(decode(extended, requested.clone(), [&bytes[..]]), promise, "{name}, whole");
        assert_eq!(decode(extended, requested, bytes.chunks(1)), promise, "{name}, byte by byte");
    }
}

#[test]
fn response_vectors_leave_the_next_message_alone() {
    for [name, version, requested, bytes, outcome] in vectors(RESPONSES) {
        let (mut outcomes, inside) = expanded(outcome);
        if inside && !bytes.is_empty() {
            continue;
        }
        let (mut requested, mut bytes) = (requested_operations(requested), unhex(bytes));
        requested.insert(42, Operation::Copy);
        encode_refusal(&mut bytes, 42, Status::NotFound, "next");
        if outcomes.last().is_none_or(|outcome| outcome != "broken") {
            outcomes.push("head 0000002a 01 0 text=6e657874".to_owned());
        }
        assert_eq!(decode(version == "extended", requested, [&bytes[..]]), (outcomes, false), "{name}");
    }
}

#[test]
fn entries_match_the_vectors() {
    for [name, bytes, entries] in vectors(ENTRIES) {
        if entries == "broken" {
            continue;
        }
        let mut out = Vec::new();
        for entry in entries.split(',').filter(|entry| !entry.is_empty()) {
            let [uri, size, mtime] =
                entry.split_whitespace().collect::<Vec<_>>().try_into().expect("three words");
            encode_entry(
                &mut out,
                [&[], &unhex(uri)],
                size.parse().expect("bytes"),
                mtime.parse().expect("seconds"),
            );
        }
        assert_eq!(out, unhex(bytes), "{name}");
    }
}

#[test]
fn closes_are_decoded() {
    let mut bytes = Vec::new();
    encode_close(&mut bytes, CloseReason::ShuttingDown);
    encode_close_ack(&mut bytes, 70_000);
    let expected = vec!["close 03".to_owned(), "ack 70000".to_owned()];
    assert_eq!(decode(false, Requested::new(), [&bytes[..]]), (expected, false));
}

#[test]
fn a_text_is_cut_to_the_longest_encodable_metadata() {
    let mut bytes = Vec::new();
    let text = vec![b'x'; 70_000];
    let metadata = Metadata { size: Some(1), text: Some(&text), ..Metadata::default() };
    encode_response(&mut bytes, 1, Status::InternalError, 0, &metadata);
    assert_eq!(bytes.len(), RESPONSE_HEAD + 65_535);
    let (outcomes, inside) = decode(false, requested_operations("1=2"), [&bytes[..]]);
    assert_eq!((outcomes.len(), inside), (1, false));
    assert!(outcomes[0].starts_with("head 00000001 10 0 size=1 text=7878"), "{}", &outcomes[0][..60]);
}

type Numbers = (Option<u64>, Option<u64>, Option<u8>, Option<u32>);

#[derive(Debug, Clone)]
struct Sent {
    operation: Operation,
    status: Status,
    numbers: Numbers,
    words: [Option<Vec<u8>>; 4],
    content: Vec<u8>,
}

fn any_sent() -> impl Strategy<Value = Sent> {
    let word = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..30));
    let status = prop_oneof![Just(Status::Ok), proptest::sample::select(&Status::ALL[1..])];
    let content = proptest::collection::vec(any::<u8>(), 0..100);
    let operation = proptest::sample::select(&Operation::ALL[..]);
    (operation, status, any::<Numbers>(), [word(), word(), word(), word()], content).prop_map(
        |(operation, status, numbers, words, content)| Sent { operation, status, numbers, words, content },
    )
}

/// Bytes that look like responses more often than random ones do.
fn nearly_responses() -> impl Strategy<Value = Vec<u8>> {
    let entry = (0u8..8, proptest::sample::select(&[1u8, 4, 8, 9][..]));
    let frame = (0u8..5, 0u8..2, 0u8..3, proptest::collection::vec(entry, 0..3), 0u8..9);
    proptest::collection::vec(frame, 0..20).prop_map(|frames| {
        let mut bytes = Vec::new();
        for (id, status, content_len, entries, lie) in frames {
            let mut metadata = Vec::new();
            for (kind, length) in entries {
                metadata.extend_from_slice(&[kind, 0, length]);
                metadata.resize(metadata.len() + usize::from(length), 0);
            }
            let length = metadata.len() as u8 + u8::from(lie == 0);
            bytes.extend_from_slice(&[
                RESPONSE,
                0,
                0,
                0,
                id,
                status,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                content_len,
                0,
                length,
            ]);
            bytes.extend_from_slice(&metadata);
            bytes.resize(bytes.len() + usize::from(content_len), MARKER);
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn encoded_responses_decode_to_the_same(
        sent in proptest::collection::vec(any_sent(), 1..8),
        extended in any::<bool>(),
        sizes in proptest::collection::vec(1usize..50, 1..5),
    ) {
        let (mut bytes, mut expected, mut requested) = (Vec::new(), Vec::new(), Requested::new());
        for (id, each) in (0..).zip(&sent) {
            requested.insert(id, each.operation);
            let (size, mtime, backend, latency) = each.numbers;
            let [etag, mime, cursor, text] = each.words.each_ref().map(Option::as_deref);
            let metadata = Metadata {
                size, mtime, nanoseconds: latency, etag, mime, backend, latency, cursor, form: backend, text,
            };
            let by_descriptor = each.operation == Operation::FdPass;
            let delivers = each.status == Status::Ok;
            let content_len = if delivers && (extended || !by_descriptor) { each.content.len() as u64 } else { 0 };
            encode_response(&mut bytes, id, each.status, content_len, &metadata);
            expected.push(in_words(id, each.status as u8, content_len, &metadata));
            if delivers && by_descriptor && !extended {
                bytes.push(MARKER);
                expected.push("marker".to_owned());
            } else if content_len > 0 && !by_descriptor {
                bytes.extend_from_slice(&each.content);
                expected.push(format!("content {content_len} {}", hex(&each.content)));
            }
        }
        prop_assert_eq!(decode(extended, requested, in_pieces(&bytes, &sizes)), (expected, false));
    }

    #[test]
    fn responses_decode_alike_however_the_stream_is_split(
        bytes in prop_oneof![nearly_responses(), proptest::collection::vec(any::<u8>(), 0..400)],
        extended in any::<bool>(),
        operations in proptest::collection::vec(proptest::sample::select(&Operation::ALL[..]), 5),
        sizes in proptest::collection::vec(1usize..70, 1..5),
    ) {
        let requested: Requested = (0..).zip(operations).collect();
        let whole = decode(extended, requested.clone(), [&bytes[..]]);
        prop_assert_eq!(decode(extended, requested, in_pieces(&bytes, &sizes)), whole);
    }
}
