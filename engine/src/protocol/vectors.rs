//! Reads `tests/vectors/*.txt`, which hold both codecs to the same bytes; the form is described at their heads.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write as _;

/// The lines of a vector file that hold vectors, each as its fields.
pub fn vectors<const FIELDS: usize>(text: &'static str) -> Vec<[&'static str; FIELDS]> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let fields: Vec<_> = line.split('|').map(str::trim).collect();
            fields.try_into().unwrap_or_else(|_| panic!("not {FIELDS} fields: {line}"))
        })
        .collect()
}

/// Hex with spaces, where `xx*N` repeats one byte N times.
pub fn unhex(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in text.split_whitespace() {
        let (digits, times) = word.split_once('*').unwrap_or((word, "1"));
        assert!(digits.len().is_multiple_of(2), "half a byte: {word}");
        for at in (0..digits.len()).step_by(2) {
            bytes.push(u8::from_str_radix(&digits[at..at + 2], 16).expect("hex"));
        }
        let last = *bytes.last().expect("something to repeat");
        bytes.resize(bytes.len() + times.parse::<usize>().expect("a number") - 1, last);
    }
    bytes
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes in pieces of the given sizes, over and over.
pub fn in_pieces<'a>(mut bytes: &'a [u8], sizes: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut sizes = sizes.iter().copied().cycle();
    std::iter::from_fn(move || {
        let size = sizes.next().unwrap_or(1).min(bytes.len());
        let (piece, rest) = bytes.split_at(size);
        bytes = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The outcomes of a vector, with their bytes written out and without `more`; and whether it ends inside a frame.
pub fn expanded(text: &str) -> (Vec<String>, bool) {
    let expand = |word: &str| match word.split_once('=') {
        Some((name, value)) if value.contains('*') => format!("{name}={}", hex(&unhex(value))),
        None if word.contains('*') => hex(&unhex(word)),
        _ => word.to_owned(),
    };
    let mut outcomes: Vec<_> = text
        .split(',')
        .map(|outcome| outcome.split_whitespace().map(expand).collect::<Vec<_>>().join(" "))
        .collect();
    let inside = outcomes.last().is_some_and(|outcome| outcome == "more");
    if inside {
        outcomes.pop();
    }
    (outcomes, inside)
}
