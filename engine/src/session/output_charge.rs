//! Answers in the server's memory: how much one client has of them, and how much it may have; see `output_budget.rs`.

use std::sync::Arc;

use super::{ProtocolState, Session, ThreadBuffers};
use crate::errors::Error;
use crate::output_budget::MIN_ALLOWANCE;
use crate::protocol::{Operation, Status, v2};
use crate::session::connection::Connection;
use crate::session::dispatch::{MAX_INLINE, RequestContext};
use crate::session::outbox::{Payload, ReplyRecord, Segment};
use crate::session::reply::{Framing, push_head};
use crate::session::run::{GATHER_BYTES, InputOutcome};
use crate::session::storage_job::{JobOutput, StorageJob};
use crate::storage::listing::MAX_PAGE_BYTES;

/// The size of an answer without content: its metadata or its message.
pub(super) const HEAD: usize = 256;

/// Contents from storage up to this size are copied into the output; larger ones stay where they are.
const MAX_COPIED: usize = 4 << 10;

/// One page of a listing may take this fraction of the free bytes; the rest is for the requests behind it.
const LIST_SHARE: usize = 4;

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

/// Bytes that must be free before the session answers a request. A page of a list takes what is free.
fn min_memory(operation: Operation) -> usize {
    match operation {
        Operation::List => LIST_SHARE * MAX_INLINE as usize,
        other => max_memory(other),
    }
}

/// The most memory that the answer to a request may take, in bytes.
fn max_memory(operation: Operation) -> usize {
    match operation {
        Operation::List => MAX_PAGE_BYTES + HEAD,
        Operation::Copy => MAX_INLINE as usize + HEAD,
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
    /// Bytes to reserve for the job's result, of the `free` bytes.
    pub fn needs(&self, free: usize) -> usize {
        let part = if self.operation == Operation::List { free / LIST_SHARE } else { free };
        max_memory(self.operation).min(part.max(MIN_ALLOWANCE))
    }
}

impl JobOutput {
    /// Bytes that the result takes.
    pub fn memory(&self) -> usize {
        match self {
            JobOutput::Bytes { bytes, .. } => bytes.len() + HEAD,
            JobOutput::Page(page) => page.entries.capacity() + HEAD,
            JobOutput::Descriptor(_)
            | JobOutput::File { .. }
            | JobOutput::Metadata(_)
            | JobOutput::Nothing => HEAD,
        }
    }
}

impl Session {
    /// How many bytes this client's answers may take from now on.
    pub(super) fn output_allowance(&self) -> usize {
        self.service.output.allowance().saturating_sub(self.connection.output())
    }

    /// Whether the session must send the gathered replies before it answers more.
    pub(super) fn has_gathered(&self, buffers: &ThreadBuffers) -> bool {
        let gathered = buffers.out.len();
        gathered >= GATHER_BYTES || (gathered > 0 && gathered + MIN_ALLOWANCE > buffers.output_limit)
    }

    /// Bytes that one small content may take beside its head; a larger one goes from file to socket.
    pub(super) fn max_inline(&self, buffers: &ThreadBuffers) -> u64 {
        MAX_INLINE.min(buffers.output_limit.saturating_sub(buffers.out.len()).max(MIN_ALLOWANCE) as u64)
    }

    /// Whether the request in front must wait until its client reads, or until storage delivers a result for it.
    pub(super) fn over_output_budget(&self, rest: &[u8]) -> Option<InputOutcome> {
        let charged = self.connection.output();
        // Without replies or jobs there is nothing to wait for.
        if charged == 0 || (self.jobs == 0 && self.outbox.is_empty()) {
            return None;
        }
        let mode = match &self.protocol_state {
            ProtocolState::V2(_) if rest.first() == Some(&v2::REQUEST) => rest.get(v2::MODE_AT),
            ProtocolState::V2(_) => None,
            _ => rest.first(),
        };
        let min_size = mode.and_then(|mode| Operation::from_byte(*mode)).map_or(HEAD, min_memory);
        let allowance = self.service.output.allowance();
        if charged + min_size.min(allowance) <= allowance {
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
        context: RequestContext,
        output: JobOutput,
        charge: Charge,
    ) -> Result<(), Error> {
        match output {
            JobOutput::Descriptor(opened) => self.push_descriptor(buffers, context, opened)?,
            JobOutput::Bytes { meta, bytes } => {
                if context.operation == Operation::Copy && self.service.cache.is_on() {
                    self.service.statistics.record_cache(buffers.shard, false);
                }
                if bytes.len() <= MAX_COPIED {
                    self.push_bytes(buffers, context, &meta, &bytes);
                } else {
                    let head = buffers.out.len();
                    push_head(&mut buffers.out, context, bytes.len() as u64, Some(&meta));
                    self.push_storage_output(buffers, context, head, bytes, charge);
                }
            }
            JobOutput::File { opened, at, end } => self.push_file(buffers, context, opened, at, end),
            JobOutput::Metadata(meta) => self.push_metadata(buffers, context, Some(&meta)),
            JobOutput::Nothing => self.push_metadata(buffers, context, None),
            JobOutput::Page(page) => {
                let Framing::V2 { id, .. } = context.framing else { return Ok(()) };
                let before = buffers.out.len();
                let (cursor, form) = (page.cursor.as_deref(), page.form.number());
                let metadata = v2::Metadata { cursor, form, ..v2::Metadata::default() };
                let content = page.entries.len() as u64;
                v2::encode_response(&mut buffers.out, id, Status::Ok, content, &metadata);
                if page.entries.len() <= MAX_COPIED {
                    buffers.out.extend_from_slice(&page.entries);
                    let length = buffers.out.len() - before;
                    self.push_buffered(length, Some(ReplyRecord { context, status: Status::Ok, content }));
                } else {
                    self.push_storage_output(buffers, context, before, page.entries, charge);
                }
            }
        }
        Ok(())
    }

    /// Pushes a reply whose head starts at `head` in the output; its content stays where storage put it.
    fn push_storage_output(
        &mut self,
        buffers: &ThreadBuffers,
        context: RequestContext,
        head: usize,
        bytes: impl Into<Box<[u8]>>,
        charge: Charge,
    ) {
        self.push_buffered(buffers.out.len() - head, None);
        let bytes = bytes.into();
        let record = Some(ReplyRecord { context, status: Status::Ok, content: bytes.len() as u64 });
        self.outbox
            .push_back(Segment { payload: Payload::StorageOutput { bytes, at: 0, _charge: charge }, record });
    }
}
