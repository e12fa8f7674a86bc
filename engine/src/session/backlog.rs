//! Answers in the server's memory: what one client has of them, and what it may have; see `output.rs`.

use std::sync::Arc;

use super::connection::Connection;
use super::errand::{Brought, Errand};
use super::outbox::{Ending, Payload, Segment};
use super::replies::{Asked, Framing, SMALL, push_head};
use super::{GATHER_BYTES, Progress, Scratch, Session, Speaks};
use crate::errors::Error;
use crate::output::LEAST;
use crate::protocol::{Operation, Status, v2};
use crate::storage::listing::MOST_CONTENT;

/// What an answer without a content takes, its metadata or its message.
pub(super) const HEAD: usize = 256;

/// Contents that storage brought are copied into the output up to this size; larger ones stay where they are.
const MOST_COPIED: usize = 4 << 10;

/// The part of the free room that one page of a listing may take: the rest is for the requests behind it.
const PART_OF_A_LIST: usize = 4;

/// Bytes of an answer, on the account of its client until this is dropped, by whichever thread.
#[derive(Debug)]
pub(super) struct Charge {
    connection: Arc<Connection>,
    bytes: usize,
}

impl Charge {
    pub fn new(connection: &Arc<Connection>, bytes: usize) -> Charge {
        connection.take_output(bytes);
        Charge { connection: Arc::clone(connection), bytes }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives back what was set aside and not used.
    pub fn shrink_to(&mut self, bytes: usize) {
        let spare = self.bytes.saturating_sub(bytes);
        self.bytes -= spare;
        self.connection.release_output(spare);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.connection.release_output(self.bytes);
    }
}

/// What must be free before a request is answered. A page of a list is as long as the room for it.
fn least_of(operation: Operation) -> usize {
    match operation {
        Operation::List => PART_OF_A_LIST * SMALL as usize,
        other => most_of(other),
    }
}

/// What may come of a request, in bytes of memory.
fn most_of(operation: Operation) -> usize {
    match operation {
        Operation::List => MOST_CONTENT + HEAD,
        Operation::Copy => SMALL as usize + HEAD,
        // The content of a splice goes from file to socket.
        Operation::Splice
        | Operation::FdPass
        | Operation::Stat
        | Operation::Put
        | Operation::PutDescriptor
        | Operation::Delete => HEAD,
    }
}

impl Errand {
    /// Bytes that are set aside for what it brings, of `room`.
    pub fn needs(&self, room: usize) -> usize {
        let part = if self.operation == Operation::List { room / PART_OF_A_LIST } else { room };
        most_of(self.operation).min(part.max(LEAST))
    }
}

impl Brought {
    /// Bytes that it takes.
    pub fn takes(&self) -> usize {
        match self {
            Brought::Bytes { bytes, .. } => bytes.len() + HEAD,
            Brought::Page(page) => page.entries.capacity() + HEAD,
            Brought::Descriptor(_) | Brought::File { .. } | Brought::Known(_) | Brought::Nothing => HEAD,
        }
    }
}

impl Session {
    /// How many bytes this client's answers may take from now on.
    pub(super) fn room_for_output(&self) -> usize {
        self.service.output.allowance().saturating_sub(self.connection.output())
    }

    /// Whether what has been gathered is to be handed over before more is answered.
    pub(super) fn has_gathered(&self, scratch: &Scratch) -> bool {
        let gathered = scratch.out.len();
        gathered >= GATHER_BYTES || (gathered > 0 && gathered + LEAST > scratch.room)
    }

    /// Bytes that one small content may take beside its head; a larger one goes from file to socket.
    pub(super) fn most_small(&self, scratch: &Scratch) -> u64 {
        SMALL.min(scratch.room.saturating_sub(scratch.out.len()).max(LEAST) as u64)
    }

    /// Whether the request in front has to wait for what its client has not read, or for what storage is bringing for it.
    pub(super) fn owes_too_much(&self, rest: &[u8]) -> Option<Progress> {
        let owed = self.connection.output();
        // Without either there is nothing to wait for.
        if owed == 0 || (self.jobs == 0 && self.outbox.is_empty()) {
            return None;
        }
        let mode = match &self.speaks {
            Speaks::Two(_) if rest.first() == Some(&v2::REQUEST) => rest.get(v2::MODE_AT),
            Speaks::Two(_) => None,
            _ => rest.first(),
        };
        let least = mode.and_then(|mode| Operation::from_byte(*mode)).map_or(HEAD, least_of);
        let allowance = self.service.output.allowance();
        if owed + least.min(allowance) <= allowance {
            return None;
        }
        Some(if self.outbox.is_empty() { Progress::Held } else { Progress::Full })
    }

    /// Puts what is left over of the replies on the account, or takes it off.
    pub(super) fn charge_kept(&mut self) {
        let (before, now) = (self.kept_charge, self.kept_out.capacity());
        if now > before {
            self.connection.take_output(now - before);
        } else if now < before {
            self.connection.release_output(before - now);
        }
        self.kept_charge = now;
    }

    /// Keeps what was not sent. `lent` is the thread's own buffer, where the session's was used.
    pub(super) fn keep_output(&mut self, scratch: &mut Scratch, lent: Option<Vec<u8>>, sent: usize) {
        let left = scratch.out.len() - sent;
        match lent {
            Some(lent) => {
                let mut kept = std::mem::replace(&mut scratch.out, lent);
                if left > 0 {
                    kept.drain(..sent);
                    if kept.capacity() > 2 * left {
                        kept.shrink_to_fit();
                    }
                    self.kept_out = kept;
                }
            }
            None if left > 0 => self.kept_out = scratch.out[sent..].to_vec(),
            None => {}
        }
        scratch.clear_out();
        if self.kept_out.capacity() != self.kept_charge {
            self.charge_kept();
        }
    }

    pub(super) fn push_brought(
        &mut self,
        scratch: &mut Scratch,
        asked: Asked,
        brought: Brought,
        charge: Charge,
    ) -> Result<(), Error> {
        match brought {
            Brought::Descriptor(opened) => self.push_descriptor(scratch, asked, opened)?,
            Brought::Bytes { found, bytes } => {
                if asked.operation == Operation::Copy && self.service.cache.is_on() {
                    self.service.statistics.record_cache(scratch.shard, false);
                }
                if bytes.len() <= MOST_COPIED {
                    self.push_bytes(scratch, asked, &found, &bytes);
                } else {
                    let head = scratch.out.len();
                    push_head(&mut scratch.out, asked, bytes.len() as u64, Some(&found));
                    self.push_brought_bytes(scratch, asked, head, bytes, charge);
                }
            }
            Brought::File { opened, at, end } => self.push_file(scratch, asked, opened, at, end),
            Brought::Known(found) => self.push_known(scratch, asked, Some(&found)),
            Brought::Nothing => self.push_known(scratch, asked, None),
            Brought::Page(page) => {
                let Framing::Two { id, .. } = asked.framing else { return Ok(()) };
                let before = scratch.out.len();
                let (cursor, form) = (page.cursor.as_deref(), page.form.number());
                let metadata = v2::Metadata { cursor, form, ..v2::Metadata::default() };
                let content = page.entries.len() as u64;
                v2::encode_response(&mut scratch.out, id, Status::Ok, content, &metadata);
                if page.entries.len() <= MOST_COPIED {
                    scratch.out.extend_from_slice(&page.entries);
                    let length = scratch.out.len() - before;
                    self.push_buffered(length, Some(Ending { asked, status: Status::Ok, content }));
                } else {
                    self.push_brought_bytes(scratch, asked, before, page.entries, charge);
                }
            }
        }
        Ok(())
    }

    /// Pushes a reply whose head is in the output from `head` on, with a content that stays where storage put it.
    fn push_brought_bytes(
        &mut self,
        scratch: &Scratch,
        asked: Asked,
        head: usize,
        bytes: impl Into<Box<[u8]>>,
        charge: Charge,
    ) {
        self.push_buffered(scratch.out.len() - head, None);
        let bytes = bytes.into();
        let ends = Some(Ending { asked, status: Status::Ok, content: bytes.len() as u64 });
        self.outbox.push_back(Segment { payload: Payload::Brought { bytes, at: 0, _charge: charge }, ends });
    }
}
