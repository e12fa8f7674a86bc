//! Turns a request into a reply in the outbox: at once if nothing blocks, else through the storage pool.

use crate::session::reply::{Framing, append_part, patch_length, push_head};
use crate::storage::readahead;
use std::ffi::CStr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::{RunOptions, Session, ThreadBuffers};
use crate::errors::Error;
use crate::net::transport::Transport;
use crate::protocol::{self, Operation, Status, v2};
use crate::request_log::UriTail;
use crate::session::fd_charge::PassedFile;
use crate::session::outbox::{Payload, ReplyRecord, Segment, is_in_memory, prefetch_end};
use crate::session::put_by_descriptor::PutDescriptor;
use crate::session::storage_job::{JobArgs, PendingCompletion, StorageJob, clamp_range};
use crate::storage::cache::Cached;
use crate::storage::listing::{Form, PageRequest};
use crate::storage::mapping::{self, ObjectMeta, OpenObject};
use crate::storage::target::{Conditions, Match};

/// Contents up to this size are copied beside their head; larger ones go by sendfile.
pub(super) const MAX_INLINE: u64 = 64 << 10;
/// Bytes of files that one turn of a session sends before other sessions run. The number is small so that clients of
/// the same file stay close together: the next one finds the data in the processor's caches.
pub(super) const BYTES_PER_TURN: usize = 256 << 10;
/// Bytes of a put's content that one turn takes in.
pub(super) const CONTENT_PER_TURN: usize = 4 << 20;
/// Bytes of a file that the server asks of the disk at once, before it sends any of them.
pub(super) const MAX_PREFETCH: u64 = 4 << 20;

/// Facts about the request that the reply needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestContext {
    pub framing: Framing,
    pub operation: Operation,
    /// When the whole request had arrived.
    pub complete_at: Instant,
    /// When storage had found the answer, if the session waited for it; or when sending began, if it takes more than
    /// a turn.
    pub answered_at: Option<Instant>,
    pub uri: UriTail,
}

/// A request of either version.
#[derive(Debug)]
pub(super) struct ParsedRequest<'a> {
    pub context: RequestContext,
    pub uri: &'a str,
    pub parameters: v2::Parameters<'a>,
    pub has_priority: bool,
    /// The file that came along with a put by descriptor.
    pub source: Option<PassedFile>,
}

impl ParsedRequest<'_> {
    pub fn conditions(&self) -> Result<Conditions, Error> {
        Ok(Conditions {
            if_match: self.parameters.if_match.map(Match::parse).transpose()?,
            if_none_match: self.parameters.if_none_match.map(Match::parse).transpose()?,
        })
    }

    /// When the client gives up; DEADLINE_PASSED if that time has passed.
    pub fn deadline(&self, buffers: &ThreadBuffers) -> Result<Option<Instant>, Error> {
        let Some(left) = self.parameters.deadline else { return Ok(None) };
        let left = left.saturating_sub(buffers.queued.map_or(Duration::ZERO, |queued| queued.wait));
        let deadline = self.context.complete_at + left;
        if Instant::now() >= deadline { Err(Error::DeadlinePassed) } else { Ok(Some(deadline)) }
    }
}

impl Session {
    /// Answers a request, or submits a storage job for it. The caller pushes an error as the answer.
    pub(super) fn handle(
        &mut self,
        buffers: &mut ThreadBuffers,
        options: RunOptions,
        mut request: ParsedRequest<'_>,
    ) -> Result<(), Error> {
        let operation = request.context.operation;
        let deadline = request.deadline(buffers)?;
        let conditions = request.conditions()?;
        if matches!(operation, Operation::PutDescriptor | Operation::Delete) && self.service.staging.is_none()
        {
            return Err(Error::NotWritable);
        }
        if matches!(operation, Operation::FdPass | Operation::PutDescriptor)
            && self.transport != Transport::Unix
        {
            return Err(Error::ModeNeedsUnix);
        }
        let parameters = request.parameters;
        let args = match operation {
            Operation::List => {
                let (prefix, view) = (request.uri.to_owned(), self.check_list(request.uri)?);
                if self.service.origins.covers(request.uri) {
                    return Err(Error::OriginIsNotListed);
                }
                let cursor = parameters.cursor.map(<[u8]>::to_vec);
                let (form, limit) = (Form::from_number(parameters.form), parameters.limit.unwrap_or(0));
                self.has_listed = true;
                let session = self.connection.number();
                JobArgs::List(PageRequest { session, form, view, prefix, cursor, limit })
            }
            _ => JobArgs::Nothing,
        };
        let mut path = std::mem::take(&mut buffers.path);
        let outcome = (|| {
            let path = match operation {
                Operation::List => c"",
                _ => mapping::relative_path(request.uri, &mut path)?,
            };
            if operation != Operation::List {
                self.check_use(path.to_bytes())?;
            }
            if operation == Operation::FdPass {
                self.check_descriptors(1)?;
            }
            let is_write = matches!(operation, Operation::PutDescriptor | Operation::Delete);
            if is_write && self.service.origins.find(path).is_some() {
                return Err(Error::OriginIsReadOnly);
            }
            if operation == Operation::PutDescriptor {
                let source = request.source.take().ok_or(Error::BadDescriptor)?;
                let to = (path.to_owned(), parameters.make_parents, conditions);
                self.jobs += 1;
                let completion = PendingCompletion::new(&self.connection, operation);
                PutDescriptor::submit(&self.service, completion, request.context, deadline, source, to);
                return Ok(());
            }
            if self.handle_inline(buffers, options, &request, path, conditions)? {
                return Ok(());
            }
            let job = StorageJob {
                operation,
                path: path.to_owned(),
                offset: parameters.offset.unwrap_or(0),
                length: parameters.length,
                conditions,
                deadline,
                reserved: 0,
                args,
            };
            self.submit_job(buffers, options, request.context, job, request.has_priority)
        })();
        buffers.path = path;
        outcome
    }

    /// Answers if nothing blocks, or if this thread may block; returns false if a storage job is needed.
    fn handle_inline(
        &mut self,
        buffers: &mut ThreadBuffers,
        options: RunOptions,
        request: &ParsedRequest<'_>,
        path: &CStr,
        conditions: Conditions,
    ) -> Result<bool, Error> {
        let may_wait = self.may_wait(options);
        let context = request.context;
        match context.operation {
            Operation::FdPass => {
                let Some(opened) = self.open(path, may_wait)? else { return Ok(false) };
                conditions.check_version(Some(&opened.version))?;
                self.push_descriptor(buffers, context, opened)?;
            }
            Operation::Copy | Operation::Splice => {
                return self.copy_inline(buffers, request, path, conditions, may_wait);
            }
            Operation::Stat => {
                let Some(meta) = self.stat(path, may_wait)? else { return Ok(false) };
                conditions.check_version(Some(&meta.version))?;
                self.push_metadata(buffers, context, Some(&meta));
            }
            Operation::List | Operation::Put | Operation::PutDescriptor | Operation::Delete => {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn open(&self, path: &CStr, may_wait: bool) -> Result<Option<OpenObject>, Error> {
        if let Some((mount, key)) = self.service.origins.find(path) {
            // A thread that may wait for a disk does not wait for another machine.
            return mount.open_cached(key);
        }
        match may_wait {
            true => self.service.mapping.open(path).map(Some),
            false => self.service.mapping.open_cached(path),
        }
    }

    fn stat(&self, path: &CStr, may_wait: bool) -> Result<Option<ObjectMeta>, Error> {
        if let Some((mount, key)) = self.service.origins.find(path) {
            return Ok(mount.stat_cached(key));
        }
        match may_wait {
            true => self.service.mapping.stat(path).map(Some),
            false => self.service.mapping.stat_cached(path),
        }
    }

    fn copy_inline(
        &mut self,
        buffers: &mut ThreadBuffers,
        request: &ParsedRequest<'_>,
        path: &CStr,
        conditions: Conditions,
        may_wait: bool,
    ) -> Result<bool, Error> {
        let (context, offset, length) =
            (request.context, request.parameters.offset.unwrap_or(0), request.parameters.length);
        // An origin's objects are files on this machine that nothing changes: the kernel keeps them in memory.
        let is_local = self.service.origins.is_empty() || self.service.origins.find(path).is_none();
        let is_cached = context.operation == Operation::Copy && is_local && self.service.cache.is_on();
        let max_inline = self.max_inline(buffers);
        if is_cached
            && let Some(Cached { version, bytes, .. }) = self.service.cache.get(path, context.complete_at)
            && self.service.mapping.is_still(path, &version)
        {
            let (at, end) = clamp_range(bytes.len() as u64, offset, length);
            if end - at <= max_inline {
                self.service.statistics.record_cache(buffers.shard, true);
                conditions.check_version(Some(&version))?;
                let meta = ObjectMeta { size: bytes.len() as u64, mtime: version.mtime(), version };
                self.push_bytes(buffers, context, &meta, &bytes[at as usize..end as usize]);
                return Ok(true);
            }
        }
        let seen = is_cached.then(SystemTime::now);
        let Some(opened) = self.open(path, may_wait)? else { return Ok(false) };
        conditions.check_version(Some(&opened.version))?;
        let (at, end) = clamp_range(opened.size, offset, length);
        if end > at && (end - at > max_inline || context.operation == Operation::Splice) {
            // Once the head is sent, everything behind it waits for the content, and a failure can only close the
            // connection.
            if may_wait {
                readahead::touch(&opened.file, at, 1).map_err(Error::Storage)?;
            } else if !is_in_memory(&opened.file, prefetch_end(at, end)) {
                return Ok(false);
            }
            self.push_file(buffers, context, opened, at, end);
            return Ok(true);
        }
        let before = buffers.out.len();
        push_head(&mut buffers.out, context, end - at, Some(&opened.meta()));
        let start = buffers.out.len();
        match append_part(&opened.file, at, end, &mut buffers.out, may_wait) {
            Ok(true) => {}
            Ok(false) => {
                buffers.out.truncate(before);
                return Ok(false);
            }
            Err(error) => {
                buffers.out.truncate(before);
                return Err(error);
            }
        }
        let content = (buffers.out.len() - start) as u64;
        if content != end - at {
            // The file became shorter meanwhile: patch the promised length.
            patch_length(&mut buffers.out[before..], context.framing, content);
        }
        if let Some(seen) = seen {
            self.service.statistics.record_cache(buffers.shard, false);
            if content == opened.size {
                self.service.cache_object(path, &opened, &buffers.out[start..], seen);
            }
        }
        let length = buffers.out.len() - before;
        self.push_buffered(length, Some(ReplyRecord { context, status: Status::Ok, content }));
        Ok(true)
    }

    pub(super) fn push_descriptor(
        &mut self,
        buffers: &mut ThreadBuffers,
        context: RequestContext,
        opened: OpenObject,
    ) -> Result<(), Error> {
        mapping::clear_status_flags(&opened.file)?;
        self.count_open_fd();
        let record = Some(ReplyRecord { context, status: Status::Ok, content: 0 });
        let meta = opened.meta();
        let payload = match context.framing {
            Framing::V1 => Payload::FdByte { byte: Status::Ok as u8, file: opened.file },
            Framing::V2 { extended, .. } => {
                let before = buffers.out.len();
                push_head(&mut buffers.out, context, if extended { meta.size } else { 0 }, Some(&meta));
                let length = buffers.out.len() - before;
                if extended {
                    Payload::BytesWithFd { length, file: opened.file }
                } else {
                    self.push_buffered(length, None);
                    Payload::FdByte { byte: v2::MARKER, file: opened.file }
                }
            }
        };
        self.outbox.push_back(Segment { payload, record });
        Ok(())
    }

    pub(super) fn push_bytes(
        &mut self,
        buffers: &mut ThreadBuffers,
        context: RequestContext,
        meta: &ObjectMeta,
        bytes: &[u8],
    ) {
        let before = buffers.out.len();
        push_head(&mut buffers.out, context, bytes.len() as u64, Some(meta));
        buffers.out.extend_from_slice(bytes);
        let record = ReplyRecord { context, status: Status::Ok, content: bytes.len() as u64 };
        let length = buffers.out.len() - before;
        self.push_buffered(length, Some(record));
    }

    /// The part that the first turn sends is in memory, or this thread may wait for it.
    pub(super) fn push_file(
        &mut self,
        buffers: &mut ThreadBuffers,
        context: RequestContext,
        opened: OpenObject,
        at: u64,
        end: u64,
    ) {
        let before = buffers.out.len();
        push_head(&mut buffers.out, context, end - at, Some(&opened.meta()));
        let length = buffers.out.len() - before;
        self.push_buffered(length, None);
        let record = Some(ReplyRecord { context, status: Status::Ok, content: end - at });
        self.count_open_fd();
        let payload =
            Payload::File { file: Arc::new(opened.file), at, end, cached_until: prefetch_end(at, end) };
        self.outbox.push_back(Segment { payload, record });
    }

    /// Pushes a response without content, only metadata.
    pub(super) fn push_metadata(
        &mut self,
        buffers: &mut ThreadBuffers,
        context: RequestContext,
        meta: Option<&ObjectMeta>,
    ) {
        let before = buffers.out.len();
        push_head(&mut buffers.out, context, 0, meta);
        let length = buffers.out.len() - before;
        self.push_buffered(length, Some(ReplyRecord { context, status: Status::Ok, content: 0 }));
    }

    pub(super) fn push_buffered(&mut self, length: usize, record: Option<ReplyRecord>) {
        self.outbox.push_back(Segment { payload: Payload::Buffered(length), record });
    }

    pub(super) fn push_error(&mut self, buffers: &mut ThreadBuffers, context: RequestContext, error: Error) {
        let error = self.service.note_failure(error, context.operation, &context.uri);
        self.count_refusal(&error);
        let before = buffers.out.len();
        let (status, text) = (error.status(), error.to_string());
        match context.framing {
            Framing::V1 => protocol::encode_error(&mut buffers.out, status, &text),
            Framing::V2 { id, .. } => v2::encode_refusal(&mut buffers.out, id, status, &text),
        }
        let length = buffers.out.len() - before;
        self.push_buffered(length, Some(ReplyRecord { context, status, content: 0 }));
    }
}
