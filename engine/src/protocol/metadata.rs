//! The metadata of an object in a response, besides status and content.

use super::MAX_URI;
use crate::protocol::tlv::{self, ENTRY_HEAD, Entries, number_u8, number_u32, number_u64};

const SIZE: u8 = 0x01;
const MTIME: u8 = 0x02;
const ETAG: u8 = 0x03;
const MIME: u8 = 0x04;
const BACKEND: u8 = 0x05;
const LATENCY: u8 = 0x06;
const CURSOR: u8 = 0x87;
const FORM: u8 = 0x8a;
const NANOSECONDS: u8 = 0x8b;
const TEXT: u8 = 0xff;

/// The most bytes of a cursor: a path of the length of a URI, one more name, and 25 bytes besides.
pub(crate) const MAX_CURSOR: usize = MAX_URI + 512;

/// The entries of a response, borrowed: from the server's data, or from the bytes that a client received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Metadata<'a> {
    /// Bytes.
    pub size: Option<u64>,
    /// Seconds since 1970, in two's complement.
    pub mtime: Option<u64>,
    /// Nanoseconds beyond those seconds.
    pub nanoseconds: Option<u32>,
    /// The object's version.
    pub etag: Option<&'a [u8]>,
    pub mime: Option<&'a [u8]>,
    pub backend: Option<u8>,
    /// Microseconds.
    pub latency: Option<u32>,
    /// Where a list continues, at most [`MAX_CURSOR`] bytes.
    pub cursor: Option<&'a [u8]>,
    /// The form of a list's entries; None for the first form.
    pub form: Option<u8>,
    /// The error message, UTF-8, for people.
    pub text: Option<&'a [u8]>,
}

impl<'a> Metadata<'a> {
    /// None where an entry does not fit, or a known one has a wrong length. Of two entries of a kind the later counts.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Metadata<'a>> {
        let mut metadata = Metadata::default();
        for entry in Entries(bytes) {
            let (kind, data) = entry.ok()?;
            match kind {
                SIZE => metadata.size = Some(number_u64(data)?),
                MTIME => metadata.mtime = Some(number_u64(data)?),
                ETAG => metadata.etag = Some(data),
                MIME => metadata.mime = Some(data),
                BACKEND => metadata.backend = Some(number_u8(data)?),
                LATENCY => metadata.latency = Some(number_u32(data)?),
                CURSOR => metadata.cursor = Some(data),
                NANOSECONDS => metadata.nanoseconds = Some(number_u32(data)?),
                FORM => metadata.form = Some(number_u8(data)?),
                TEXT => metadata.text = Some(data),
                _ => {}
            }
        }
        Some(metadata)
    }

    /// Appends `metadata_len(2) metadata`.
    pub(super) fn push_to(&self, out: &mut Vec<u8>) {
        let length_at = out.len();
        out.extend_from_slice(&[0, 0]);
        if let Some(size) = self.size {
            tlv::push(out, SIZE, &size.to_be_bytes());
        }
        if let Some(mtime) = self.mtime {
            tlv::push(out, MTIME, &mtime.to_be_bytes());
        }
        if let Some(etag) = self.etag {
            push_word(out, ETAG, etag);
        }
        if let Some(nanoseconds) = self.nanoseconds {
            tlv::push(out, NANOSECONDS, &nanoseconds.to_be_bytes());
        }
        if let Some(mime) = self.mime {
            push_word(out, MIME, mime);
        }
        if let Some(backend) = self.backend {
            tlv::push(out, BACKEND, &[backend]);
        }
        if let Some(latency) = self.latency {
            tlv::push(out, LATENCY, &latency.to_be_bytes());
        }
        if let Some(cursor) = self.cursor {
            debug_assert!(cursor.len() <= MAX_CURSOR, "a cursor of {} bytes", cursor.len());
            tlv::push(out, CURSOR, cursor);
        }
        if let Some(form) = self.form {
            tlv::push(out, FORM, &[form]);
        }
        let start = length_at + 2;
        if let Some(text) = self.text {
            let capacity = usize::from(u16::MAX) - (out.len() - start) - ENTRY_HEAD;
            tlv::push(out, TEXT, &text[..text.len().min(capacity)]);
        }
        let length = (out.len() - start) as u16;
        out[length_at..start].copy_from_slice(&length.to_be_bytes());
    }
}

/// No word is longer than a URI, and a cursor little longer, so that all together fit the two bytes of their length.
fn push_word(out: &mut Vec<u8>, kind: u8, word: &[u8]) {
    debug_assert!(word.len() <= MAX_URI, "an entry of {} bytes", word.len());
    tlv::push(out, kind, &word[..word.len().min(MAX_URI)]);
}
