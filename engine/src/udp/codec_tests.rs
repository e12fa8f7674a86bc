//! The datagrams against the vectors that the Python codec reads too, and against arbitrary bytes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use proptest::prelude::*;
use std::fmt::Write as _;

const VECTORS: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/udp.txt"));

/// Name, side, bytes, outcome of each vector.
fn vectors() -> Vec<[&'static str; 4]> {
    let lines = VECTORS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let fields: Vec<_> = line.split('|').map(str::trim).collect();
            fields.try_into().unwrap_or_else(|_| panic!("not four fields: {line}"))
        })
        .collect()
}

/// Hex with spaces, where `xx*N` repeats one byte N times.
fn unhex(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in text.split_whitespace() {
        let (digits, times) = word.split_once('*').unwrap_or((word, "1"));
        for at in (0..digits.len()).step_by(2) {
            bytes.push(u8::from_str_radix(&digits[at..at + 2], 16).expect("hex"));
        }
        let last = *bytes.last().expect("something to repeat");
        bytes.resize(bytes.len() + times.parse::<usize>().expect("a number") - 1, last);
    }
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The outcome with its bytes written out.
fn promised(outcome: &str) -> String {
    let words =
        outcome.split(' ').map(|word| if word.contains('*') { hex(&unhex(word)) } else { word.to_owned() });
    words.collect::<Vec<_>>().join(" ")
}

fn describe_request(request: &UdpRequest<'_>) -> String {
    match request {
        UdpRequest::Pull(pull) => match pull.uri {
            Ok(uri) => {
                let Pull { request_id, offset, length, chunk, cookie, .. } = pull;
                let cookie = cookie.map_or("-".to_owned(), |cookie| hex(&cookie));
                format!("pull {request_id} {offset} {length} {chunk} {cookie} {}", hex(uri.as_bytes()))
            }
            Err(status) => format!("refused {:02x}", status as u8),
        },
        UdpRequest::Plain(Ok((mode, uri))) => {
            format!("plain {} {}", *mode as u8 as char, hex(uri.as_bytes()))
        }
        UdpRequest::Plain(Err(status)) => format!("refused {:02x}", *status as u8),
        UdpRequest::Noise => "noise".to_owned(),
    }
}

fn describe_reply(answer: &UdpReply<'_>) -> String {
    match answer {
        UdpReply::Retry { request_id, cookie } => format!("retry {request_id} {}", hex(cookie)),
        UdpReply::Data { request_id, version, total, offset, payload } => {
            format!("data {request_id} {version:016x} {total} {offset} {}", hex(payload))
                .trim_end()
                .to_owned()
        }
        UdpReply::Error { request_id, status, message } => {
            format!("error {request_id} {status:02x} {}", hex(message)).trim_end().to_owned()
        }
        UdpReply::Noise => "noise".to_owned(),
    }
}

/// Encodes a decoded datagram again; None where it has no encoder.
fn encoded(side: &str, bytes: &[u8], uri: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    if side == "question" {
        match UdpRequest::decode(bytes) {
            UdpRequest::Pull(pull) if pull.uri.is_ok() => encode_pull(&mut out, &pull, pull.uri.unwrap()),
            UdpRequest::Plain(Ok((mode, uri))) => crate::protocol::encode_request(&mut out, mode, uri),
            _ => return None,
        }
        return Some(out);
    }
    match UdpReply::decode(checksum_of_uri(uri), bytes) {
        UdpReply::Retry { request_id, cookie } => encode_retry(&mut out, request_id, &cookie),
        UdpReply::Data { request_id, version, total, offset, payload } => {
            out.resize(DATA_HEAD, 0xee);
            out.extend_from_slice(payload);
            let head = DataHead { request_id, version, total, seed: checksum_of_uri(uri) };
            seal_data(&mut out, &head, offset);
        }
        UdpReply::Error { request_id, status, message } => {
            let status = Status::ALL.into_iter().find(|known| *known as u8 == status)?;
            encode_error(&mut out, request_id, status, std::str::from_utf8(message).ok()?);
        }
        UdpReply::Noise => return None,
    }
    Some(out)
}

#[test]
fn datagrams_decode_as_the_vectors_say() {
    let vectors = vectors();
    assert!(vectors.len() > 50);
    for [name, side, bytes, outcome] in vectors {
        let bytes = unhex(bytes);
        let found = match side.strip_prefix("answer ") {
            None => describe_request(&UdpRequest::decode(&bytes)),
            Some(uri) => {
                let uri = String::from_utf8(unhex(uri)).unwrap();
                describe_reply(&UdpReply::decode(checksum_of_uri(&uri), &bytes))
            }
        };
        assert_eq!(found, promised(outcome), "{name}");
    }
}

#[test]
fn datagrams_are_encoded_as_the_vectors_say() {
    let mut compared = 0;
    for [name, side, bytes, _] in vectors() {
        let bytes = unhex(bytes);
        let uri =
            side.strip_prefix("answer ").map_or(String::new(), |uri| String::from_utf8(unhex(uri)).unwrap());
        if let Some(encoded) = encoded(side, &bytes, &uri).filter(|_| !name.contains("padded")) {
            assert_eq!(hex(&encoded), hex(&bytes), "{name}");
            compared += 1;
        }
    }
    assert!(compared > 15, "{compared}");
}

#[test]
fn the_checksum_is_crc_32c() {
    // RFC 3720, B.4: 32 bytes of zeros; and the check value of the CRC catalogues.
    assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn a_message_that_is_too_long_is_cut() {
    let mut out = Vec::new();
    encode_error(&mut out, 7, Status::InternalError, &"x".repeat(70_000));
    assert_eq!(out.len(), ERROR_HEAD + MAX_MESSAGE);
    assert!(matches!(UdpReply::decode(0, &out), UdpReply::Error { request_id: 7, status: 0x10, .. }));
}

fn a_piece() -> impl Strategy<Value = (u32, u64, u64, Vec<u8>, String)> {
    let payload = prop::collection::vec(any::<u8>(), 0..2000);
    (any::<u32>(), any::<u64>(), 0..u64::MAX / 2, payload, "/[a-z]{1,40}")
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoders_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
        let mut bytes = bytes;
        if magic && bytes.len() > 3 {
            bytes[..2].copy_from_slice(&MAGIC);
            bytes[2] %= 5;
        }
        let _ = UdpRequest::decode(&bytes);
        let _ = UdpReply::decode(1, &bytes);
    }

    /// The decoder rejects a DATA with one wrong bit anywhere.
    #[test]
    fn a_damaged_piece_is_noise((request_id, version, offset, payload, uri) in a_piece(), bit in any::<prop::sample::Index>()) {
        let mut datagram = vec![0; DATA_HEAD];
        datagram.extend_from_slice(&payload);
        let seed = checksum_of_uri(&uri);
        let total = offset + payload.len() as u64;
        seal_data(&mut datagram, &DataHead { request_id, version, total, seed }, offset);
        prop_assert_eq!(
            UdpReply::decode(seed, &datagram),
            UdpReply::Data { request_id, version, total, offset, payload: &payload }
        );
        prop_assert_eq!(UdpReply::decode(seed ^ 1, &datagram), UdpReply::Noise);
        let bit = bit.index(datagram.len() * 8);
        datagram[bit / 8] ^= 1 << (bit % 8);
        let damaged = UdpReply::decode(seed, &datagram);
        prop_assert!(!matches!(damaged, UdpReply::Data { .. }), "{:?}", damaged);
    }

    /// No request decodes as a reply and no reply as a request, so servers cannot be made to answer each other.
    #[test]
    fn a_servers_replies_are_noise_to_a_server((request_id, version, offset, payload, uri) in a_piece(), words in ".{0,40}") {
        let mut said = vec![Vec::new(); 4];
        said[0].resize(DATA_HEAD, 0);
        said[0].extend_from_slice(&payload);
        let total = offset + payload.len() as u64;
        seal_data(&mut said[0], &DataHead { request_id, version, total, seed: checksum_of_uri(&uri) }, offset);
        encode_retry(&mut said[1], request_id, &[7; COOKIE]);
        encode_error(&mut said[2], request_id, Status::NotFound, &words);
        crate::protocol::encode_error(&mut said[3], Status::NotFound, &words);
        for datagram in said {
            prop_assert_eq!(UdpRequest::decode(&datagram), UdpRequest::Noise);
        }
    }
}
