//! Malformed frames through a server's parsers, ten million in release mode: no parser panics or loops.
//! `benchmarks/soak/malformed_frames.py` sends such frames to a live server.

use super::{v1, v2};
use crate::protocol::hello::{DecodedHello, decode_hello};
use crate::protocol::vectors::{unhex, vectors};

const ONE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/v1_requests.txt"));
const TWO: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/v2_requests.txt"));
const HELLOS: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/v2_hello.txt"));
const FRAMES: u64 = if cfg!(debug_assertions) { 100_000 } else { 10_000_000 };

/// SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Flips bits, cuts, repeats, and inserts foreign bytes.
fn spoil(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(5) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.next() as u8),
            2 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            3 if at + 2 <= bytes.len() => {
                bytes[at..at + 2].copy_from_slice(&(random.next() as u16).to_be_bytes());
            }
            _ => {
                let copy = bytes[..at].to_vec();
                bytes.extend_from_slice(&copy);
            }
        }
    }
}

/// Decodes as many frames as possible; each round must advance.
fn drain(bytes: &[u8], mut decode: impl FnMut(&mut &[u8]) -> bool) {
    let mut input = bytes;
    loop {
        let before = input.len();
        if !decode(&mut input) {
            break;
        }
        assert!(input.len() < before, "nothing was taken off: {input:02x?}");
    }
}

#[test]
fn malformed_frames_make_no_parser_panic() {
    let mut seeds: Vec<Vec<u8>> = vectors::<3>(ONE).iter().map(|[_, bytes, _]| unhex(bytes)).collect();
    seeds.extend(vectors::<4>(TWO).iter().map(|[_, _, bytes, _]| unhex(bytes)));
    seeds.extend(vectors::<4>(HELLOS).iter().map(|[_, _, bytes, _]| unhex(bytes)));
    // Long seeds find no more than short ones, and take a hundred times as long.
    seeds.retain(|seed| seed.len() < 300);
    let mut random = Random(7);
    let (mut bytes, mut understood) = (Vec::new(), 0u64);
    for _ in 0..FRAMES {
        bytes.clear();
        bytes.extend_from_slice(&seeds[random.below(seeds.len())]);
        spoil(&mut bytes, &mut random);
        let mut one = v1::RequestDecoder::default();
        drain(&bytes, |input| !matches!(one.decode(input), v1::Decoded::More | v1::Decoded::Fatal(_)));
        for extended in [false, true] {
            let mut decoder = v2::RequestDecoder::new(extended);
            drain(&bytes, |input| match decoder.decode(input) {
                v2::Decoded::More | v2::Decoded::Fatal(_) => false,
                v2::Decoded::Request(request) => {
                    understood += 1;
                    request.uri.len() <= super::MAX_URI
                }
                _ => true,
            });
        }
        understood += u64::from(matches!(decode_hello(&mut &bytes[..]), DecodedHello::Hello(_)));
    }
    // Enough frames stay valid to reach the parsers' later steps.
    assert!(understood > FRAMES / 10, "{understood}");
}
