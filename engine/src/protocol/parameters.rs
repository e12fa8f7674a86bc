//! The parameters of an extended request: the part of the object, the deadline, and the conditions.

use std::time::Duration;

use super::MAX_CONTENT;
use crate::protocol::tlv::{Entries, number_u8, number_u32, number_u64};

/// The most bytes of one request's parameters.
pub const MAX_PARAMETERS: usize = 8192;

const OFFSET: u8 = 0x81;
const LENGTH: u8 = 0x82;
const DEADLINE: u8 = 0x83;
const CONTENT_LEN: u8 = 0x84;
const IF_NONE_MATCH: u8 = 0x85;
const LIMIT: u8 = 0x86;
const CURSOR: u8 = 0x87;
const IF_MATCH: u8 = 0x88;
const MAKE_PARENTS: u8 = 0x89;
const FORM: u8 = 0x8a;

/// The request's parameters beside operation and URI.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Parameters<'a> {
    pub offset: Option<u64>,
    pub length: Option<u64>,
    /// The time left when the client sent the request; whole milliseconds on the wire.
    pub deadline: Option<Duration>,
    /// Bytes that follow a put.
    pub content_len: Option<u64>,
    pub if_none_match: Option<&'a [u8]>,
    pub limit: Option<u32>,
    pub cursor: Option<&'a [u8]>,
    pub if_match: Option<&'a [u8]>,
    /// A put makes missing directories.
    pub make_parents: bool,
    /// The form of list entries that the client wants.
    pub form: Option<u8>,
}

/// Decoded parameters.
#[derive(Debug)]
pub(super) struct Read<'a> {
    /// Where the length of the content is in doubt, it is None here.
    pub parameters: Parameters<'a>,
    /// Every entry fits; each known entry has the right length and comes once.
    pub is_sound: bool,
}

impl<'a> Parameters<'a> {
    /// Reads on behind a wrong entry, so that the length of a put's content is known wherever possible.
    pub(super) fn read(bytes: &'a [u8]) -> Read<'a> {
        let mut found = Parameters::default();
        let (mut is_sound, mut content_in_doubt) = (true, false);
        for entry in Entries(bytes) {
            let Ok((kind, data)) = entry else {
                is_sound = false;
                break;
            };
            is_sound &= match kind {
                OFFSET => set(&mut found.offset, number_u64(data)),
                LENGTH => set(&mut found.length, number_u64(data)),
                DEADLINE => {
                    set(&mut found.deadline, number_u32(data).map(|ms| Duration::from_millis(ms.into())))
                }
                CONTENT_LEN => {
                    let length = number_u64(data).filter(|length| *length <= MAX_CONTENT);
                    let is_clear = set(&mut found.content_len, length);
                    content_in_doubt |= !is_clear;
                    is_clear
                }
                IF_NONE_MATCH => set(&mut found.if_none_match, Some(data)),
                LIMIT => set(&mut found.limit, number_u32(data)),
                CURSOR => set(&mut found.cursor, Some(data)),
                IF_MATCH => set(&mut found.if_match, Some(data)),
                MAKE_PARENTS => {
                    let is_first = !found.make_parents;
                    found.make_parents = true;
                    is_first && data.is_empty()
                }
                FORM => set(&mut found.form, number_u8(data)),
                // From a later version: a client sends only entries that the server may ignore.
                _ => true,
            };
        }
        if content_in_doubt {
            found.content_len = None;
        }
        Read { parameters: found, is_sound }
    }

    /// Appends the entries, without their length.
    #[cfg(test)]
    pub(super) fn push_to(&self, out: &mut Vec<u8>) {
        let numbers = [(OFFSET, self.offset), (LENGTH, self.length), (CONTENT_LEN, self.content_len)];
        for (kind, number) in numbers {
            if let Some(number) = number {
                crate::protocol::tlv::push(out, kind, &number.to_be_bytes());
            }
        }
        let deadline = self.deadline.map(|left| u32::try_from(left.as_millis()).unwrap_or(u32::MAX));
        for (kind, number) in [(DEADLINE, deadline), (LIMIT, self.limit)] {
            if let Some(number) = number {
                crate::protocol::tlv::push(out, kind, &number.to_be_bytes());
            }
        }
        let words = [(IF_NONE_MATCH, self.if_none_match), (CURSOR, self.cursor), (IF_MATCH, self.if_match)];
        for (kind, word) in words {
            if let Some(word) = word {
                crate::protocol::tlv::push(out, kind, word);
            }
        }
        if self.make_parents {
            crate::protocol::tlv::push(out, MAKE_PARENTS, &[]);
        }
        if let Some(form) = self.form {
            crate::protocol::tlv::push(out, FORM, &[form]);
        }
    }
}

/// Fills an empty place. Returns whether there was a value and the place was empty.
fn set<T>(place: &mut Option<T>, value: Option<T>) -> bool {
    value.is_some() && std::mem::replace(place, value).is_none()
}
