//! Requests and the start of a connection, against the vectors that the Python codec reads too, and against
//! arbitrary bytes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::protocol::hello::HELLO;
use crate::protocol::vectors::{expanded, hex, in_pieces, unhex, vectors};
use proptest::prelude::*;
use std::time::Duration;

const REQUESTS: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/v2_requests.txt"));
const HELLOS: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/v2_hello.txt"));

/// Feeds the chunks to a decoder, as a server would, and skips the contents. Returns the outcomes, and
/// whether they end inside a frame or a content.
fn decode<'a>(extended: bool, chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<String>, bool) {
    let mut decoder = RequestDecoder::new(extended);
    let (mut kept, mut outcomes) = (Vec::new(), Vec::new());
    let (mut to_take, mut gathered) = (0, Vec::new());
    for chunk in chunks {
        kept.extend_from_slice(chunk);
        let mut input = &kept[..];
        loop {
            if to_take > 0 {
                let available = input.len().min(usize::try_from(to_take).unwrap());
                gathered.extend_from_slice(&input[..available]);
                input = &input[available..];
                to_take -= available as u64;
                if to_take > 0 {
                    break;
                }
                outcomes.push(format!("content {} {}", gathered.len(), hex(&gathered)));
                gathered.clear();
            }
            match decoder.decode(&mut input) {
                Decoded::Request(request) => {
                    to_take = request.parameters.content_len.unwrap_or(0);
                    outcomes.push(in_words(&request));
                }
                Decoded::Refused { id, status, content_len, .. } => {
                    to_take = content_len;
                    outcomes.push(format!("refused {id:08x} {:02x}", status as u8));
                }
                Decoded::Close { reason } => outcomes.push(format!("close {reason:02x}")),
                Decoded::Fatal(status) => {
                    outcomes.push(format!("fatal {:02x}", status as u8));
                    return (outcomes, false);
                }
                Decoded::More => break,
            }
        }
        assert!(input.len() <= MAX_REQUEST, "{} bytes are to be kept", input.len());
        let used = kept.len() - input.len();
        kept.drain(..used);
    }
    (outcomes, to_take > 0 || decoder.skipping.is_some() || !kept.is_empty())
}

fn in_words(request: &Request<'_>) -> String {
    let Request { id, flags, operation, uri, parameters } = request;
    let mut words =
        format!("request {id:08x} {flags:02x} {} {}", char::from(*operation as u8), hex(uri.as_bytes()));
    let deadline = parameters.deadline.map(|left| left.as_millis().to_string());
    let named = [
        ("offset", parameters.offset.map(|number| number.to_string())),
        ("length", parameters.length.map(|number| number.to_string())),
        ("deadline", deadline),
        ("content_len", parameters.content_len.map(|number| number.to_string())),
        ("if_none_match", parameters.if_none_match.map(hex)),
        ("limit", parameters.limit.map(|number| number.to_string())),
        ("cursor", parameters.cursor.map(hex)),
        ("if_match", parameters.if_match.map(hex)),
        ("form", parameters.form.map(|number| number.to_string())),
    ];
    for (name, value) in named {
        words.extend(value.map(|value| format!(" {name}={value}")));
    }
    if parameters.make_parents {
        words.push_str(" make_parents");
    }
    words
}

fn is_extended(text: &str) -> bool {
    assert!(text == "plain" || text == "extended", "{text}");
    text == "extended"
}

#[test]
fn request_vectors_whole_and_byte_by_byte() {
    for [name, version, bytes, outcome] in vectors(REQUESTS) {
        let (extended, bytes) = (is_extended(version), unhex(bytes));
        let (outcomes, inside) = expanded(outcome);
        let promise = (outcomes, inside && !bytes.is_empty());
        assert_eq!(decode(extended, [&bytes[..]]), promise, "{name}, whole");
        assert_eq!(decode(extended, bytes.chunks(1)), promise, "{name}, byte by byte");
    }
}

#[test]
fn request_vectors_leave_the_next_message_alone() {
    for [name, version, bytes, outcome] in vectors(REQUESTS) {
        let (mut outcomes, inside) = expanded(outcome);
        if inside && !bytes.is_empty() {
            continue;
        }
        let mut bytes = unhex(bytes);
        encode_request(&mut bytes, 42, Operation::Copy, "/next");
        // Bytes after a fatal frame do not count.
        if outcomes.last().is_none_or(|outcome| !outcome.starts_with("fatal")) {
            outcomes.push("request 0000002a 00 2 2f6e657874".to_owned());
        }
        assert_eq!(decode(is_extended(version), [&bytes[..]]), (outcomes, false), "{name}");
    }
}

/// How a side decodes the start of a connection, in the words of the vectors, and how many bytes it leaves.
fn greet(reader: &str, bytes: &[u8]) -> (String, usize) {
    let mut input = bytes;
    let words = match reader {
        "server" => match decode_hello(&mut input) {
            DecodedHello::Hello(hello) => {
                format!("hello {:04x} {}", hello.capabilities.bits(), hello.max_pipeline)
            }
            DecodedHello::WrongVersion => "wrong-version".to_owned(),
            DecodedHello::Broken => "broken".to_owned(),
            DecodedHello::More => "more".to_owned(),
        },
        "client" => match decode_hello_ack(&mut input) {
            DecodedHelloAck::Ack { capabilities, max_pipeline, backend_parallelism } => {
                format!("ack {:04x} {max_pipeline} {backend_parallelism}", capabilities.bits())
            }
            DecodedHelloAck::Refused { status, message } => {
                format!("refused {:02x} {}", status as u8, hex(message)).trim_end().to_owned()
            }
            DecodedHelloAck::WrongVersion => "wrong-version".to_owned(),
            DecodedHelloAck::Broken => "broken".to_owned(),
            DecodedHelloAck::More => "more".to_owned(),
        },
        other => panic!("who is {other}?"),
    };
    (words, input.len())
}

#[test]
fn the_handshake_matches_the_vectors() {
    for [name, reader, bytes, outcome] in vectors(HELLOS) {
        let bytes = unhex(bytes);
        let fails = outcome == "broken" || outcome == "wrong-version";
        let left = if fails || outcome == "more" { bytes.len() } else { 0 };
        assert_eq!(greet(reader, &bytes), (outcome.to_owned(), left), "{name}, whole");
        for end in 0..bytes.len() {
            let (words, left) = greet(reader, &bytes[..end]);
            assert_eq!(left, end, "{name}, {end} bytes");
            // A decoder may find an error before it has the whole frame.
            assert!(words == "more" || (fails && words == outcome), "{name}, {end} bytes: {words}");
        }
        if outcome != "more" {
            let behind = [&bytes[..], &[0x01; 20]].concat();
            assert_eq!(greet(reader, &behind), (outcome.to_owned(), left + 20), "{name}, with more behind");
        }
    }
}

#[test]
fn both_sides_decode_each_others_hello() {
    let (supported, max_pipeline) = (Capabilities::EXTENDED | Capabilities::PIPELINING, 64);
    let mut bytes = Vec::new();
    encode_hello(&mut bytes, Capabilities::OUT_OF_ORDER | Capabilities::PIPELINING, 0);
    assert_eq!(bytes.len(), HELLO);
    let DecodedHello::Hello(hello) = decode_hello(&mut &bytes[..]) else { panic!("{bytes:02x?}") };
    let agreed = hello.agree(supported, max_pipeline);
    assert_eq!(agreed, Hello { capabilities: Capabilities::PIPELINING, max_pipeline: 1 });
    bytes.clear();
    encode_hello_ack(&mut bytes, agreed.capabilities, agreed.max_pipeline, 2);
    assert_eq!(bytes.len(), HELLO_ACK);
    assert_eq!(greet("client", &bytes), ("ack 0002 1 2".to_owned(), 0));
}

#[test]
fn agreed_capabilities_are_those_of_both_sides() {
    let all = Capabilities::from_bits(0xffff);
    let hello = Hello { capabilities: all, max_pipeline: 65_535 };
    assert_eq!(
        hello.agree(Capabilities::EXTENDED, 2_000),
        Hello { capabilities: Capabilities::EXTENDED, max_pipeline: 1_000 }
    );
    assert_eq!(hello.agree(all, 10).max_pipeline, 10);
    assert!(all.contains(Capabilities::EXTENDED) && !Capabilities::PIPELINING.contains(all));
}

#[test]
fn operations_are_numbered_without_gaps_and_begin_with_the_modes() {
    for (at, operation) in Operation::ALL.into_iter().enumerate() {
        assert_eq!(operation.index(), at);
        assert_eq!(Operation::from_byte(operation as u8), Some(operation));
        assert_eq!(operation.mode().map(Operation::from), (at < 3).then_some(operation));
    }
}

type Numbers = (Option<u64>, Option<u64>, Option<u32>, Option<u32>, bool);

#[derive(Debug, Clone)]
struct Sent {
    front: (u32, u8, Operation, String),
    numbers: Numbers,
    words: [Option<Vec<u8>>; 3],
    content: Vec<u8>,
}

impl Sent {
    fn request(&self) -> Request<'_> {
        let (id, flags, operation, uri) = &self.front;
        let (offset, length, deadline, limit, make_parents) = self.numbers;
        let parameters = Parameters {
            offset,
            length,
            deadline: deadline.map(|ms| Duration::from_millis(ms.into())),
            content_len: (*operation == Operation::Put).then_some(self.content.len() as u64),
            if_none_match: self.words[0].as_deref(),
            limit,
            cursor: self.words[1].as_deref(),
            if_match: self.words[2].as_deref(),
            make_parents,
            form: limit.map(|limit| limit as u8),
        };
        let has_parameters = if parameters == Parameters::default() { 0 } else { 0x80 };
        Request { id: *id, flags: flags | has_parameters, operation: *operation, uri, parameters }
    }
}

fn any_operation() -> impl Strategy<Value = Operation> {
    proptest::sample::select(&Operation::ALL[..])
}

fn any_sent() -> impl Strategy<Value = Sent> {
    let uri = "[^\\x00]{1,60}";
    let word = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20));
    let words = [word(), word(), word()];
    let content = proptest::collection::vec(any::<u8>(), 0..40);
    ((any::<u32>(), any::<u8>(), any_operation(), uri), any::<Numbers>(), words, content)
        .prop_map(|(front, numbers, words, content)| Sent { front, numbers, words, content })
}

/// Bytes that look like requests more often than random ones do.
fn nearly_requests() -> impl Strategy<Value = Vec<u8>> {
    let entry = (0x80u8..0x8b, proptest::sample::select(&[0u8, 1, 4, 8, 9][..]));
    let entries = proptest::collection::vec(entry, 0..4).prop_map(|entries| {
        let push = |(kind, length): (u8, u8)| [&[kind, 0, length][..], &vec![0; length.into()]].concat();
        entries.into_iter().flat_map(push).collect::<Vec<u8>>()
    });
    let uri = proptest::collection::vec(any::<u8>(), 0..40);
    let lengths =
        (proptest::option::weighted(0.1, any::<u16>()), proptest::option::weighted(0.1, any::<u16>()));
    let frame = (0u8..4, any_operation(), proptest::sample::select(&[0u8, 0x80][..]), uri, entries, lengths);
    proptest::collection::vec(frame, 0..20).prop_map(|frames| {
        let mut bytes = Vec::new();
        for (kind, operation, flags, uri, entries, (uri_lie, lie)) in frames {
            bytes.extend_from_slice(&[
                if kind == 3 { CLOSE } else { REQUEST },
                0,
                0,
                0,
                kind,
                flags,
                operation as u8,
            ]);
            bytes.extend_from_slice(&uri_lie.unwrap_or(uri.len() as u16).to_be_bytes());
            bytes.extend_from_slice(&uri);
            if flags != 0 {
                bytes.extend_from_slice(&lie.unwrap_or(entries.len() as u16).to_be_bytes());
                bytes.extend_from_slice(&entries);
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn encoded_requests_decode_to_the_same(
        sent in proptest::collection::vec(any_sent(), 1..8),
        sizes in proptest::collection::vec(1usize..50, 1..5),
    ) {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for each in &sent {
            let request = each.request();
            request.encode(&mut bytes);
            expected.push(in_words(&request));
            if request.operation == Operation::Put && !each.content.is_empty() {
                bytes.extend_from_slice(&each.content);
                expected.push(format!("content {} {}", each.content.len(), hex(&each.content)));
            }
        }
        prop_assert_eq!(decode(true, in_pieces(&bytes, &sizes)), (expected, false));
    }

    #[test]
    fn requests_decode_alike_however_the_stream_is_split(
        bytes in prop_oneof![nearly_requests(), proptest::collection::vec(any::<u8>(), 0..400)],
        extended in any::<bool>(),
        sizes in proptest::collection::vec(1usize..70, 1..5),
    ) {
        prop_assert_eq!(decode(extended, in_pieces(&bytes, &sizes)), decode(extended, [&bytes[..]]));
    }
}
