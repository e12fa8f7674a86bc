//! The bytes of a reply: its head in either version, and contents that are copied behind it.

use crate::errors::Error;
use crate::protocol::{self, Operation, Status, v2};
use crate::session::dispatch::RequestContext;
use crate::storage::mapping::{self, ObjectMeta};
use rustix::fd::OwnedFd;

/// How a reply is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    V1,
    V2 { id: u32, extended: bool },
}

/// Pushes the head of a content, or a head that stands alone. In version 1 only contents have a head.
pub(super) fn push_head(out: &mut Vec<u8>, context: RequestContext, content: u64, meta: Option<&ObjectMeta>) {
    match context.framing {
        Framing::V1 => out.extend_from_slice(&protocol::content_head(content)),
        Framing::V2 { id, .. } => {
            let etag = meta.map(ObjectMeta::etag);
            // Omitted from answers with a content: clients that need no exact time should not pay for it.
            let is_exact =
                matches!(context.operation, Operation::Stat | Operation::Put | Operation::PutDescriptor);
            let metadata = v2::Metadata {
                size: meta.map(|meta| meta.size),
                mtime: meta.map(|meta| meta.mtime as u64),
                nanoseconds: meta.filter(|_| is_exact).map(|meta| meta.version.mtime_nanoseconds()),
                etag: etag.as_ref().map(<[u8; 16]>::as_slice),
                ..v2::Metadata::default()
            };
            v2::encode_response(out, id, Status::Ok, content, &metadata);
        }
    }
}

/// Replaces the length in a pushed head.
pub(super) fn patch_length(head: &mut [u8], framing: Framing, content: u64) {
    let at = if framing == Framing::V1 { 1 } else { v2::CONTENT_LEN_AT };
    head[at..at + 8].copy_from_slice(&content.to_be_bytes());
}

/// Appends the file's bytes between two offsets; fewer if the file ends before. False if the disk would block and
/// this thread may not wait.
pub(super) fn append_part(
    file: &OwnedFd,
    at: u64,
    end: u64,
    out: &mut Vec<u8>,
    may_wait: bool,
) -> Result<bool, Error> {
    let start = out.len();
    let length = (end - at) as usize;
    out.resize(start + length, 0);
    let mut have = 0;
    while have < length {
        let (buffer, offset) = (&mut out[start + have..], at + have as u64);
        let read = match may_wait {
            false => match mapping::read_cached(file, buffer, offset)? {
                Some(read) => read,
                None => return Ok(false),
            },
            true => match rustix::io::pread(file, buffer, offset) {
                Err(rustix::io::Errno::INTR) => continue,
                answer => answer.map_err(Error::Storage)?,
            },
        };
        if read == 0 {
            break;
        }
        have += read;
    }
    out.truncate(start + have);
    Ok(true)
}
