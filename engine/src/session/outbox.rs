//! Outgoing replies: assembled and not yet handed to the kernel, and the sending.
//!
//! Small replies lie side by side in one buffer and leave in one call; descriptors of version 1 leave in one
//! `sendmmsg`, those of version 2 travel with the message of their replies, up to 64 in one.

use crate::net::socket;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Next, RunOptions, Session, ThreadBuffers};
use crate::errors::Error;
use crate::net::transport::IoMode;
use crate::protocol::{self, Status, v2};
use crate::request_log::{CompletedRequest, PeerRef};
use crate::session::dispatch::{BYTES_PER_TURN, MAX_INLINE, MAX_PREFETCH, RequestContext};
use crate::session::output_charge::Charge;
use crate::session::reply::Framing;
use crate::statistics::{Answered, Labels};
use crate::storage::mapping;
use crate::storage_failures::{ENDED_EARLY, is_of_socket};

/// A piece of a reply that has not been handed to the kernel.
#[derive(Debug)]
pub(super) struct Segment {
    pub payload: Payload,
    /// The record to count when the last byte is sent; None if more of the same reply follows.
    pub record: Option<ReplyRecord>,
}

#[derive(Debug)]
pub(super) struct ReplyRecord {
    pub context: RequestContext,
    pub status: Status,
    pub content: u64,
}

#[derive(Debug)]
pub(super) enum Payload {
    /// This many bytes of the out buffer.
    Buffered(usize),
    /// The same, and the first byte carries a descriptor.
    BytesWithFd { length: usize, file: OwnedFd },
    /// One byte in a message of its own, which carries a descriptor.
    FdByte { byte: u8, file: OwnedFd },
    /// A content as storage delivered it; the bytes before `at` are sent.
    StorageOutput { bytes: Box<[u8]>, at: usize, _charge: Charge },
    /// The file's bytes from `at` up to `end`; the bytes before `cached_until` were found in memory.
    File { file: Arc<OwnedFd>, at: u64, end: u64, cached_until: u64 },
    /// An error in place of a descriptor that the kernel refused, and of `replaces` bytes of the out buffer.
    Replacement { bytes: Vec<u8>, at: usize, replaces: usize },
}

impl Session {
    /// Hands the outbox to the kernel. None: everything was sent.
    pub(super) fn flush(
        &mut self,
        buffers: &mut ThreadBuffers,
        options: RunOptions,
        sent: &mut usize,
        bytes_left: &mut usize,
    ) -> Option<Next> {
        if !self.outbox.is_empty() {
            buffers.flush_began = Instant::now();
        }
        let next = self.write_segments(buffers, options, sent, bytes_left);
        // A reply that waits for its file still counts as storage time; anything else that is left is being sent.
        if next.as_ref().is_some_and(|next| !matches!(next, Next::Waiting)) {
            for record in self.outbox.iter_mut().filter_map(|segment| segment.record.as_mut()) {
                record.context.answered_at.get_or_insert(buffers.flush_began);
            }
        }
        next
    }

    fn write_segments(
        &mut self,
        buffers: &mut ThreadBuffers,
        options: RunOptions,
        sent: &mut usize,
        bytes_left: &mut usize,
    ) -> Option<Next> {
        while let Some(front) = self.outbox.front() {
            if *bytes_left == 0 && options.io_mode == IoMode::NonBlocking {
                return Some(Next::Yield);
            }
            let outcome = match front.payload {
                Payload::Buffered(_) | Payload::BytesWithFd { .. } => {
                    self.flush_buffered(buffers, options.io_mode, sent)
                }
                Payload::FdByte { .. } => self.flush_descriptors(buffers, options.io_mode),
                Payload::File { .. } => {
                    if self.needs_prefetch(options) {
                        return Some(Next::Waiting);
                    }
                    self.flush_file(buffers, options.io_mode, bytes_left)
                }
                Payload::StorageOutput { .. } => {
                    self.flush_storage_output(buffers, options.io_mode, bytes_left)
                }
                Payload::Replacement { .. } => self.flush_replacement(buffers, options.io_mode, sent),
            };
            match outcome {
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    // The session reads nothing meanwhile, so the rest of a frame cannot arrive.
                    self.frame_since = None;
                    return Some(Next::Writable);
                }
                // The head of this reply is sent already, so it can only wait.
                Err(Errno::TOOMANYREFS) => return Some(self.backoff()),
                Err(_) => return Some(Next::Closed),
            }
        }
        if *sent > 0 {
            buffers.out.clear();
            *sent = 0;
        }
        None
    }

    fn flush_buffered(
        &mut self,
        buffers: &mut ThreadBuffers,
        io_mode: IoMode,
        sent: &mut usize,
    ) -> Result<(), Errno> {
        let mut total = 0;
        let mut more = false;
        let mut files: [Option<BorrowedFd<'_>>; socket::MAX_FDS_PER_MESSAGE] =
            [None; socket::MAX_FDS_PER_MESSAGE];
        let mut count = 0;
        for segment in &self.outbox {
            match &segment.payload {
                Payload::Buffered(length) => total += length,
                Payload::BytesWithFd { length, file } if count < files.len() => {
                    files[count] = Some(file.as_fd());
                    count += 1;
                    total += length;
                }
                other => {
                    more = matches!(other, Payload::File { .. } | Payload::StorageOutput { .. });
                    break;
                }
            }
        }
        let bytes = &buffers.out[*sent..*sent + total];
        let passed = if count == 0 {
            socket::send(self.socket(), bytes, io_mode, more)
        } else {
            socket::send_with_fds(self.socket(), bytes, &files[..count], io_mode)
        };
        let mut taken = match passed {
            Ok(taken) => taken,
            Err(Errno::TOOMANYREFS) => {
                self.reject_first_fd();
                return Ok(());
            }
            Err(errno) => return Err(errno),
        };
        *sent += taken;
        let now = Instant::now();
        self.moved_at = now;
        self.count_sent(1, taken, count as u32);
        if count > 0 {
            // The kernel passed all descriptors with the first byte.
            for segment in self.outbox.iter_mut() {
                if count == 0 {
                    break;
                }
                if let Payload::BytesWithFd { length, .. } = segment.payload {
                    segment.payload = Payload::Buffered(length);
                    count -= 1;
                }
            }
        }
        while let Some(Segment { payload: Payload::Buffered(length), .. }) = self.outbox.front_mut() {
            if *length > taken {
                *length -= taken;
                break;
            }
            taken -= *length;
            self.finish_front(buffers, now);
        }
        Ok(())
    }

    /// The kernel allows this user no further descriptor in flight. Answers one request with an error, so that the
    /// others progress; the connection continues.
    fn reject_first_fd(&mut self) {
        let error = Error::Busy("this user has too many unread file descriptors; try again");
        for segment in self.outbox.iter_mut() {
            let Payload::BytesWithFd { length, .. } = segment.payload else { continue };
            let mut bytes = Vec::new();
            if let Some(record) = &mut segment.record
                && let Framing::V2 { id, .. } = record.context.framing
            {
                record.status = error.status();
                v2::encode_refusal(&mut bytes, id, error.status(), &error.to_string());
            }
            segment.payload = Payload::Replacement { bytes, at: 0, replaces: length };
            break;
        }
        self.release_open_fds(1);
    }

    fn flush_descriptors(&mut self, buffers: &mut ThreadBuffers, io_mode: IoMode) -> Result<(), Errno> {
        let Some(Segment { payload: Payload::FdByte { byte, file }, .. }) = self.outbox.front() else {
            return Ok(());
        };
        let byte = *byte;
        let passed = if self.outbox.len() == 1 {
            socket::send_fd_bytes(self.socket(), byte, &[file.as_fd()], io_mode)
        } else {
            let alike = |segment| as_descriptor(segment, byte);
            let files: Vec<BorrowedFd<'_>> = self.outbox.iter().map_while(alike).collect();
            socket::send_fd_bytes(self.socket(), byte, &files, io_mode)
        };
        match passed {
            Ok(passed) => {
                let now = Instant::now();
                self.moved_at = now;
                self.count_sent(passed, 1, 1);
                for _ in 0..passed {
                    self.finish_front(buffers, now);
                }
                Ok(())
            }
            Err(Errno::TOOMANYREFS) if byte == Status::Ok as u8 => {
                // The kernel allows this user no further descriptor in flight: refuse this request and continue.
                self.release_open_fds(1);
                let error = Error::Busy("this user has too many unread file descriptors; try again");
                let mut bytes = Vec::new();
                protocol::encode_error(&mut bytes, error.status(), &error.to_string());
                if let Some(front) = self.outbox.front_mut() {
                    front.payload = Payload::Replacement { bytes, at: 0, replaces: 0 };
                    if let Some(record) = &mut front.record {
                        record.status = error.status();
                    }
                }
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }

    fn flush_replacement(
        &mut self,
        buffers: &mut ThreadBuffers,
        io_mode: IoMode,
        sent: &mut usize,
    ) -> Result<(), Errno> {
        let Some(Segment { payload: Payload::Replacement { bytes, at, .. }, .. }) = self.outbox.front()
        else {
            return Ok(());
        };
        let taken = socket::send(self.socket(), &bytes[*at..], io_mode, false)?;
        let now = Instant::now();
        self.moved_at = now;
        if let Some(Segment { payload: Payload::Replacement { bytes, at, replaces }, .. }) =
            self.outbox.front_mut()
        {
            *at += taken;
            if *at == bytes.len() {
                *sent += *replaces;
                self.finish_front(buffers, now);
            }
        }
        Ok(())
    }

    fn flush_storage_output(
        &mut self,
        buffers: &mut ThreadBuffers,
        io_mode: IoMode,
        bytes_left: &mut usize,
    ) -> Result<(), Errno> {
        let Some(Segment { payload: Payload::StorageOutput { bytes, at, .. }, .. }) = self.outbox.front()
        else {
            return Ok(());
        };
        let taken = socket::send(self.socket(), &bytes[*at..], io_mode, false)?;
        *bytes_left = bytes_left.saturating_sub(taken);
        let now = Instant::now();
        self.moved_at = now;
        self.count_sent(1, taken, 0);
        if let Some(Segment { payload: Payload::StorageOutput { bytes, at, .. }, .. }) =
            self.outbox.front_mut()
        {
            *at += taken;
            if *at == bytes.len() {
                self.finish_front(buffers, now);
            }
        }
        Ok(())
    }

    /// Whether the next bytes of the file in front must come from the disk. If so, starts fetching them.
    fn needs_prefetch(&mut self, options: RunOptions) -> bool {
        if self.may_wait(options) {
            return false;
        }
        if self.is_prefetching {
            return true;
        }
        let Some(Segment { payload: Payload::File { file, at, end, cached_until }, .. }) =
            self.outbox.front_mut()
        else {
            return false;
        };
        if *at < *cached_until {
            return false;
        }
        let next = prefetch_end(*at, *end);
        *cached_until = next;
        if !self.service.mapping.is_remote() && is_in_memory(file, next) {
            return false;
        }
        let (file, at) = (Arc::clone(file), *at);
        self.prefetch(file, at, next - at);
        true
    }

    fn flush_file(
        &mut self,
        buffers: &mut ThreadBuffers,
        io_mode: IoMode,
        bytes_left: &mut usize,
    ) -> Result<(), Errno> {
        if io_mode == IoMode::NonBlocking {
            self.make_non_blocking()?;
        }
        let Some(Segment { payload: Payload::File { file, at, end, .. }, .. }) = self.outbox.front() else {
            return Ok(());
        };
        let (offset, end) = (*at, *end);
        let mut max_bytes = usize::try_from(end - offset).unwrap_or(usize::MAX).min(BYTES_PER_TURN);
        if io_mode == IoMode::NonBlocking {
            max_bytes = max_bytes.min(*bytes_left);
        }
        let taken = match socket::send_file(self.socket(), file, offset, max_bytes) {
            // The file system cannot do it: copy through this process.
            Err(Errno::INVAL | Errno::NOSYS) => {
                let mut bytes = vec![0; max_bytes.min(MAX_INLINE as usize)];
                match rustix::io::pread(file, &mut bytes[..], offset) {
                    Ok(0) => 0,
                    Ok(length) => socket::send(self.socket(), &bytes[..length], io_mode, false)?,
                    Err(Errno::INTR) => return Err(Errno::INTR),
                    Err(errno) => return Err(self.fail_file(buffers, errno.raw_os_error())),
                }
            }
            Err(errno) if !is_of_socket(errno, || socket::is_cut(self.socket())) => {
                return Err(self.fail_file(buffers, errno.raw_os_error()));
            }
            other => other?,
        };
        if taken == 0 {
            return Err(self.fail_file(buffers, ENDED_EARLY));
        }
        *bytes_left = bytes_left.saturating_sub(taken);
        let now = Instant::now();
        self.moved_at = now;
        if let Some(Segment { payload: Payload::File { at, .. }, .. }) = self.outbox.front_mut() {
            *at += taken as u64;
            if *at == end {
                self.finish_front(buffers, now);
            }
        }
        Ok(())
    }

    /// Counts the reply in front, whose file failed or ended early after its length was promised, with the bytes that
    /// were sent. Only closing can report that to the client: returns the error that closes the connection.
    fn fail_file(&mut self, buffers: &ThreadBuffers, errno: i32) -> Errno {
        if let Some(Segment { payload: Payload::File { at, end, .. }, record: Some(record) }) =
            self.outbox.front_mut()
        {
            record.status = Status::StorageError;
            record.content = record.content.saturating_sub(*end - *at);
            let RequestContext { operation, uri, .. } = &record.context;
            self.service.failures.note(errno, operation.name(), uri);
        }
        self.finish_front(buffers, Instant::now());
        Errno::IO
    }

    /// Drops the front segment, whose last byte is sent, and counts the reply that ends with it.
    fn finish_front(&mut self, buffers: &ThreadBuffers, now: Instant) {
        let Some(Segment { payload, record }) = self.outbox.pop_front() else { return };
        if matches!(payload, Payload::File { .. }) {
            self.release_open_fds(1);
        }
        let Some(record) = record else { return };
        let complete_at = record.context.complete_at;
        let answered_at = record.context.answered_at.unwrap_or(buffers.flush_began);
        // Most requests are read after their session's wait in the queue. A request that was complete earlier has
        // waited since then. For an answer that began in an earlier turn the wait is no longer known.
        let (queue, started_at) = match buffers.queued {
            Some(queued) if complete_at >= queued.until => (queued.wait, complete_at),
            Some(queued) if answered_at >= queued.until => {
                (queued.until.saturating_duration_since(complete_at), queued.until)
            }
            _ => (Duration::ZERO, complete_at),
        };
        let storage = answered_at.saturating_duration_since(started_at);
        let send = now.saturating_duration_since(answered_at.max(started_at));
        self.service.request_log.record(&CompletedRequest {
            shard: buffers.shard,
            uri: &record.context.uri,
            from: PeerRef::Connection(&self.connection.socket),
            transport: self.transport,
            operation: record.context.operation.name(),
            model: buffers.model.name(),
            status: record.status as u8,
            bytes: record.content,
            queue,
            storage,
            send,
        });
        self.service.statistics.record(
            buffers.shard,
            &Answered {
                labels: Labels::new(self.transport, buffers.model, record.context.operation),
                status: record.status,
                latency: queue + storage + send,
                // Served requests only: the wait of a refused request is not recorded.
                queue_wait: buffers
                    .queued
                    .filter(|_| record.status != Status::Unavailable)
                    .map(|queued| queued.wait),
                bytes: record.content,
            },
        );
    }
}

/// The offset up to which the server brings a file into memory before it sends more of it.
pub(super) fn prefetch_end(at: u64, end: u64) -> u64 {
    (at + MAX_PREFETCH).min(end)
}

/// Whether the bytes before `next` can be sent without waiting for the disk.
pub(super) fn is_in_memory(file: &OwnedFd, next: u64) -> bool {
    // Read-ahead brings in the end last, so one byte there tells.
    !matches!(mapping::read_cached(file, &mut [0], next - 1), Ok(None))
}

/// Borrows the descriptor that a segment passes with this byte.
fn as_descriptor(segment: &Segment, status_byte: u8) -> Option<BorrowedFd<'_>> {
    match &segment.payload {
        Payload::FdByte { byte, file } if *byte == status_byte => Some(file.as_fd()),
        _ => None,
    }
}
