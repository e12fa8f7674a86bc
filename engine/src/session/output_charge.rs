//! Answers in the server's memory: how much one client has of them, and how much it may have; see `output_budget.rs`.

use std::sync::Arc;

use super::{GATHER_BYTES, InputOutcome, ProtocolState, Session, ThreadBuffers};
use crate::errors::Error;
use crate::output_budget::LEAST;
use crate::protocol::{Operation, Status, v2};
use crate::session::connection::Connection;
use crate::session::dispatch::{RequestContext, SMALL};
use crate::session::outbox::{Payload, ReplyRecord, Segment};
use crate::session::reply::{Framing, push_head};
use crate::session::storage_job::{JobOutput, StorageJob};
use crate::storage::listing::MOST_CONTENT;

/// The size of an answer without content: its metadata or its message.
pub(super) const HEAD: usize = 256;

/// Contents from storage up to this size are copied into the output; larger ones stay where they are.
const MOST_COPIED: usize = 4 << 10;

/// One page of a listing may take this fraction of the free room; the rest is for the requests behind it.
const PART_OF_A_LIST: usize = 4;

/// Bytes of an answer, charged to its client until any thread drops this.
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

    /// Returns the reserved bytes that were not used.
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

/// Bytes that must be free before the session answers a request. A page of a list is as long as its room.
fn least_of(operation: Operation) -> usize {
    match operation {
        Operation::List => PART_OF_A_LIST * SMALL as usize,
        other => most_of(other),
    }
}

/// The most memory that the answer to a request may take, in bytes.
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

impl StorageJob {
    /// Bytes to reserve for the job's result, out of `room`.
    pub fn needs(&self, room: usize) -> usize {
        let part = if self.operation == Operation::List { room / PART_OF_A_LIST } else { room };
        most_of(self.operation).min(part.max(LEAST))
    }
}

impl JobOutput {
    /// Bytes that the result takes.
    pub fn takes(&self) -> usize {
        match self {
            JobOutput::Bytes { bytes, .. } => bytes.len() + HEAD,
            JobOutput::Page(page) => page.entries.capacity() + HEAD,
            JobOutput::Descriptor(_) | JobOutput::File { .. } | JobOutput::Known(_) | JobOutput::Nothing => {
                HEAD
            }
        }
    }
}

impl Session {
    /// How many bytes this client's answers may take from now on.
    pub(super) fn room_for_output(&self) -> usize {
        self.service.output.allowance().saturating_sub(self.connection.output())
    }

    /// Whether the session must send the gathered replies before it answers more.
    pub(super) fn has_gathered(&self, buffers: &ThreadBuffers) -> bool {
        let gathered = buffers.out.len();
        gathered >= GATHER_BYTES || (gathered > 0 && gathered + LEAST > buffers.room)
    }

    /// Bytes that one small content may take beside its head; a larger one goes from file to socket.
    pub(super) fn most_small(&self, buffers: &ThreadBuffers) -> u64 {
        SMALL.min(buffers.room.saturating_sub(buffers.out.len()).max(LEAST) as u64)
    }

    /// Whether the request in front must wait until its client reads, or until storage delivers a result for it.
    pub(super) fn owes_too_much(&self, rest: &[u8]) -> Option<InputOutcome> {
        let owed = self.connection.output();
        // Without replies or jobs there is nothing to wait for.
        if owed == 0 || (self.jobs == 0 && self.outbox.is_empty()) {
            return None;
        }
        let mode = match &self.protocol_state {
            ProtocolState::V2(_) if rest.first() == Some(&v2::REQUEST) => rest.get(v2::MODE_AT),
            ProtocolState::V2(_) => None,
            _ => rest.first(),
        };
        let min_size = mode.and_then(|mode| Operation::from_byte(*mode)).map_or(HEAD, least_of);
        let allowance = self.service.output.allowance();
        if owed + min_size.min(allowance) <= allowance {
            return None;
        }
        Some(if self.outbox.is_empty() { InputOutcome::JobsPending } else { InputOutcome::OutputFull })
    }

    /// Charges the unsent rest of the replies, or releases the charge.
    pub(super) fn charge_kept(&mut self) {
        let (before, now) = (self.kept_charge, self.output_buffer.capacity());
        if now > before {
            self.connection.take_output(now - before);
        } else if now < before {
            self.connection.release_output(before - now);
        }
        self.kept_charge = now;
    }

    /// Keeps the unsent bytes. `lent` is the thread's own buffer if the session's buffer was in use.
    pub(super) fn keep_output(&mut self, buffers: &mut ThreadBuffers, lent: Option<Vec<u8>>, sent: usize) {
        let left = buffers.out.len() - sent;
        match lent {
            Some(lent) => {
                let mut kept = std::mem::replace(&mut buffers.out, lent);
                if left > 0 {
                    kept.drain(..sent);
                    if kept.capacity() > 2 * left {
                        kept.shrink_to_fit();
                    }
                    self.output_buffer = kept;
                }
            }
            None if left > 0 => self.output_buffer = buffers.out[sent..].to_vec(),
            None => {}
        }
        buffers.clear_out();
        if self.output_buffer.capacity() != self.kept_charge {
            self.charge_kept();
        }
    }

    pub(super) fn push_output(
        &mut self,
        buffers: &mut ThreadBuffers,
        asked: RequestContext,
        brought: JobOutput,
        charge: Charge,
    ) -> Result<(), Error> {
        match brought {
            JobOutput::Descriptor(opened) => self.push_descriptor(buffers, asked, opened)?,
            JobOutput::Bytes { found, bytes } => {
                if asked.operation == Operation::Copy && self.service.cache.is_on() {
                    self.service.statistics.record_cache(buffers.shard, false);
                }
                if bytes.len() <= MOST_COPIED {
                    self.push_bytes(buffers, asked, &found, &bytes);
                } else {
                    let head = buffers.out.len();
                    push_head(&mut buffers.out, asked, bytes.len() as u64, Some(&found));
                    self.push_brought_bytes(buffers, asked, head, bytes, charge);
                }
            }
            JobOutput::File { opened, at, end } => self.push_file(buffers, asked, opened, at, end),
            JobOutput::Known(found) => self.push_metadata(buffers, asked, Some(&found)),
            JobOutput::Nothing => self.push_metadata(buffers, asked, None),
            JobOutput::Page(page) => {
                let Framing::V2 { id, .. } = asked.framing else { return Ok(()) };
                let before = buffers.out.len();
                let (cursor, form) = (page.cursor.as_deref(), page.form.number());
                let metadata = v2::Metadata { cursor, form, ..v2::Metadata::default() };
                let content = page.entries.len() as u64;
                v2::encode_response(&mut buffers.out, id, Status::Ok, content, &metadata);
                if page.entries.len() <= MOST_COPIED {
                    buffers.out.extend_from_slice(&page.entries);
                    let length = buffers.out.len() - before;
                    self.push_buffered(length, Some(ReplyRecord { asked, status: Status::Ok, content }));
                } else {
                    self.push_brought_bytes(buffers, asked, before, page.entries, charge);
                }
            }
        }
        Ok(())
    }

    /// Pushes a reply whose head starts at `head` in the output; its content stays where storage put it.
    fn push_brought_bytes(
        &mut self,
        buffers: &ThreadBuffers,
        asked: RequestContext,
        head: usize,
        bytes: impl Into<Box<[u8]>>,
        charge: Charge,
    ) {
        self.push_buffered(buffers.out.len() - head, None);
        let bytes = bytes.into();
        let ends = Some(ReplyRecord { asked, status: Status::Ok, content: bytes.len() as u64 });
        self.outbox
            .push_back(Segment { payload: Payload::StorageOutput { bytes, at: 0, _charge: charge }, ends });
    }
}
