//! Version 2 in a session: the greeting, requests with ids answered as they become ready, incoming contents.

use rustix::io::Errno;
use std::time::Instant;

use super::{CloseState, ProtocolState, RunOptions, Session, ThreadBuffers};
use crate::errors::Error;
use crate::protocol::v2::{self, Capabilities, Decoded, DecodedHello, Hello, Request};
use crate::protocol::{Operation, Status};
use crate::request_log::UriTail;
use crate::session::dispatch::{ParsedRequest, RequestContext};
use crate::session::fd_charge::{FDS_PER_PUT, PassedFiles};
use crate::session::pace::{Allowed, Pace};
use crate::session::reply::Framing;
use crate::session::run::FrameOutcome;
use crate::session::storage_job::{JobArgs, StorageJob};
use crate::session::upload::{PutRequest, Uploading};
use crate::storage::mapping;
use crate::storage::pending_write::check_size;

/// Requests of one client that may wait for storage; each may hold a descriptor or a content.
const JOBS_PER_SESSION: u32 = 64;
/// How many of them may be listings; each takes far longer than a read. Requests behind them wait unread.
const LISTINGS_PER_SESSION: u32 = 4;
/// Bytes of an incoming content that one call reads.
const BULK: usize = 256 << 10;

/// State of a session whose client has greeted.
#[derive(Debug)]
pub(super) struct V2State {
    decoder: v2::RequestDecoder,
    agreed: Hello,
    /// Unanswered requests, as of the last read.
    window: u32,
    /// Files that the client passed for puts.
    pub passed_files: PassedFiles,
    /// The last call that read requests emptied the socket.
    pub has_read_all: bool,
    receiving: Option<IncomingBody>,
}

/// The incoming content of a put.
#[derive(Debug)]
struct IncomingBody {
    left: u64,
    /// None if the request has its answer already.
    upload: Option<Uploading>,
    pace: Pace,
}

/// The start of a put.
enum PutStart {
    /// The whole content has arrived already.
    Complete(StorageJob),
    Streaming(Uploading),
}

impl V2State {
    pub fn is_receiving(&self) -> bool {
        self.receiving.is_some()
    }

    pub fn is_extended(&self) -> bool {
        self.agreed.capabilities.contains(Capabilities::EXTENDED)
    }

    /// Whether the input starts with more than the beginning of a frame.
    pub fn has_complete_request(&self, mut input: &[u8]) -> bool {
        let mut decoder = self.decoder.clone();
        decoder.decode(&mut input) != v2::Decoded::More || decoder.is_skipping()
    }

    /// Records that bytes have arrived: the client sent their requests before any answer from now on.
    pub fn begin_window(&mut self, unanswered: u32) {
        self.window = unanswered;
    }

    /// Whether the request in front must wait for those in progress.
    pub fn is_blocked(&self, jobs: u32, listings: u32, rest: &[u8]) -> bool {
        let is_ordered = !self.agreed.capabilities.contains(Capabilities::OUT_OF_ORDER)
            || rest.get(v2::FLAGS_AT).is_some_and(|flags| flags & v2::ORDERED != 0);
        let is_list = rest.first() == Some(&v2::REQUEST)
            && rest.get(v2::MODE_AT).is_some_and(|mode| *mode == Operation::List as u8);
        jobs >= JOBS_PER_SESSION || (jobs > 0 && is_ordered) || (is_list && listings >= LISTINGS_PER_SESSION)
    }

    /// Whether the decoder has skipped the front of a frame and waits for its end.
    pub fn is_skipping(&self) -> bool {
        self.decoder.is_skipping()
    }

    /// Records that all complete frames are decoded; `has_begun` says that a part of one is left.
    pub fn mark_parsed(&mut self, has_begun: bool) {
        // A message may be longer than one read, and brings its descriptors with its first byte.
        if self.has_read_all && self.receiving.is_none() && !self.passed_files.is_empty() {
            self.passed_files.close_spare(has_begun || self.is_skipping());
        }
    }
}

impl Session {
    /// Answers the greeting in front of `rest`.
    pub(super) fn handshake(&mut self, buffers: &mut ThreadBuffers, rest: &mut &[u8]) -> FrameOutcome {
        let hello = match v2::decode_hello(rest) {
            DecodedHello::More => return FrameOutcome::More,
            DecodedHello::Hello(hello) => hello,
            // In the form of version 1, which a client of another version may know.
            DecodedHello::WrongVersion => return self.refuse_handshake(buffers, Status::VersionMismatch),
            DecodedHello::Broken => return self.refuse_handshake(buffers, Status::ProtocolError),
        };
        let supported = Capabilities::OUT_OF_ORDER | Capabilities::PIPELINING | Capabilities::EXTENDED;
        let agreed = hello.agree(supported, v2::MAX_PIPELINE);
        let before = buffers.out.len();
        let workers = u8::try_from(self.service.settings.workers()).unwrap_or(u8::MAX);
        v2::encode_hello_ack(&mut buffers.out, agreed.capabilities, agreed.max_pipeline, workers);
        let length = buffers.out.len() - before;
        self.push_buffered(length, None);
        let passed_files = match &mut self.protocol_state {
            ProtocolState::Unknown(passed_files) => std::mem::take(passed_files),
            _ => PassedFiles::default(),
        };
        self.protocol_state = ProtocolState::V2(Box::new(V2State {
            decoder: v2::RequestDecoder::new(agreed.capabilities.contains(Capabilities::EXTENDED)),
            agreed,
            window: 0,
            passed_files,
            has_read_all: true,
            receiving: None,
        }));
        FrameOutcome::Done
    }

    fn refuse_handshake(&mut self, buffers: &mut ThreadBuffers, status: Status) -> FrameOutcome {
        let complete_at = self.complete_at;
        let context = RequestContext {
            framing: Framing::V1,
            operation: Operation::FdPass,
            complete_at,
            answered_at: None,
            uri: UriTail::from_uri(""),
        };
        self.push_error(buffers, context, Error::Refused(status));
        FrameOutcome::Fatal
    }

    /// Answers the frame in front of `rest`, or submits a storage job for it.
    pub(super) fn step_v2(
        &mut self,
        buffers: &mut ThreadBuffers,
        options: RunOptions,
        rest: &mut &[u8],
    ) -> FrameOutcome {
        let ProtocolState::V2(state) = &mut self.protocol_state else { return FrameOutcome::More };
        let complete_at = self.complete_at;
        let extended = state.is_extended();
        let context = |id, operation, uri| {
            let framing = Framing::V2 { id, extended };
            RequestContext { framing, operation, complete_at, answered_at: None, uri: UriTail::from_uri(uri) }
        };
        let decoded = state.decoder.decode(rest);
        if matches!(
            decoded,
            Decoded::Request(Request { operation: Operation::PutDescriptor, .. })
                | Decoded::Refused { operation: Some(Operation::PutDescriptor), .. }
        ) {
            let decoder = state.decoder.clone();
            state.passed_files.check(|| 1 + puts_by_descriptor(decoder, rest));
        }
        if matches!(decoded, Decoded::Request(_) | Decoded::Refused { .. }) {
            state.window += 1;
            if state.window > u32::from(state.agreed.max_pipeline) {
                let error = Error::Refused(Status::CapabilityError);
                self.push_error(buffers, context(0, Operation::FdPass, ""), error);
                return FrameOutcome::Fatal;
            }
        }
        match decoded {
            Decoded::More => FrameOutcome::More,
            Decoded::Request(request) => {
                let context = context(request.id, request.operation, request.uri);
                if request.operation == Operation::Put {
                    self.begin_put(buffers, options, context, &request, rest);
                } else if let Err(error) = self.handle_v2(buffers, options, context, request) {
                    self.push_error(buffers, context, error);
                }
                FrameOutcome::Done
            }
            Decoded::Refused { id, operation, status, content_len } => {
                if content_len > 0 {
                    let pace = Pace::new(complete_at);
                    state.receiving = Some(IncomingBody { left: content_len, upload: None, pace });
                }
                if operation == Some(Operation::PutDescriptor) {
                    // Take its descriptor with it: the next one belongs to the next put.
                    drop(state.passed_files.take());
                }
                // A refusal without a known operation counts under the most common one.
                let operation = operation.unwrap_or(Operation::FdPass);
                self.push_error(buffers, context(id, operation, ""), Error::Refused(status));
                FrameOutcome::Done
            }
            Decoded::Close { .. } => {
                let before = buffers.out.len();
                v2::encode_close_ack(&mut buffers.out, self.jobs);
                let length = buffers.out.len() - before;
                self.push_buffered(length, None);
                FrameOutcome::Last
            }
            Decoded::Fatal(status) => {
                self.push_error(buffers, context(0, Operation::FdPass, ""), Error::Refused(status));
                FrameOutcome::Fatal
            }
        }
    }

    fn handle_v2(
        &mut self,
        buffers: &mut ThreadBuffers,
        options: RunOptions,
        context: RequestContext,
        request: Request<'_>,
    ) -> Result<(), Error> {
        let source = match &mut self.protocol_state {
            // Take it even if the put fails: the next one belongs to the next put.
            ProtocolState::V2(state) if context.operation == Operation::PutDescriptor => {
                Some(state.passed_files.take())
            }
            _ => None,
        };
        if options.reject {
            return Err(Error::QUEUE_FULL);
        }
        let source = match source {
            // Check first whether this server accepts descriptors at all; other faults come after.
            Some(source) if self.service.takes_descriptors(self.transport) => Some(source?),
            _ => None,
        };
        let has_priority = request.has_priority();
        let parsed =
            ParsedRequest { context, uri: request.uri, parameters: request.parameters, has_priority, source };
        self.handle(buffers, options, parsed)
    }

    /// Begins a put. `rest` holds the bytes that have arrived behind the request.
    fn begin_put(
        &mut self,
        buffers: &mut ThreadBuffers,
        options: RunOptions,
        context: RequestContext,
        request: &Request<'_>,
        rest: &mut &[u8],
    ) {
        let parameters = request.parameters;
        let left = parameters.content_len.unwrap_or(0);
        let parsed =
            ParsedRequest { context, uri: request.uri, parameters, has_priority: false, source: None };
        let started = (|| {
            if options.reject {
                return Err(Error::QUEUE_FULL);
            }
            let deadline = parsed.deadline(buffers)?;
            let conditions = parsed.conditions()?;
            if self.service.staging.is_none() {
                return Err(Error::NotWritable);
            }
            let path = mapping::relative_path(request.uri, &mut buffers.path)?;
            self.check_use(path.to_bytes())?;
            if self.service.origins.find(path).is_some() {
                return Err(Error::OriginIsReadOnly);
            }
            check_size(left, self.service.settings.max_object_size)?;
            self.check_descriptors(FDS_PER_PUT)?;
            if let Some(bytes) = usize::try_from(left).ok().and_then(|left| rest.get(..left)) {
                let make_parents = parameters.make_parents;
                return Ok(PutStart::Complete(StorageJob {
                    operation: Operation::Put,
                    path: path.to_owned(),
                    offset: 0,
                    length: None,
                    conditions,
                    deadline,
                    reserved: 0,
                    args: JobArgs::Content { bytes: bytes.into(), make_parents, fds: self.charge_for_put() },
                }));
            }
            let client = self.connection.client();
            let upload = self.service.uploads.begin(client.user)?;
            let put = PutRequest {
                path: path.to_owned(),
                make_parents: parameters.make_parents,
                length: left,
                context,
                conditions,
                deadline,
            };
            let fd_charge = self.charge_for_put();
            Ok(PutStart::Streaming(Uploading::new(
                &self.service,
                &self.connection,
                client,
                put,
                upload,
                fd_charge,
            )))
        })();
        let upload = match started {
            Ok(PutStart::Streaming(upload)) => {
                // A refusal is sent at once, whether or not a byte arrives.
                self.jobs += 1;
                upload.start();
                Some(upload)
            }
            Ok(PutStart::Complete(job)) => {
                *rest = &rest[left as usize..];
                if let Err(error) = self.submit_job(buffers, options, context, job, false) {
                    self.push_error(buffers, context, error);
                }
                return;
            }
            Err(error) => {
                // Send the error at once; drop what the client still sends.
                self.push_error(buffers, context, error);
                if left == 0 {
                    return;
                }
                None
            }
        };
        if let ProtocolState::V2(state) = &mut self.protocol_state {
            state.receiving = Some(IncomingBody { left, upload, pace: Pace::new(Instant::now()) });
        }
    }

    /// Takes bytes of the incoming content off the front of `rest`.
    pub(super) fn take_content(&mut self, rest: &mut &[u8]) {
        let ProtocolState::V2(state) = &mut self.protocol_state else { return };
        let Some(receiving) = &mut state.receiving else { return };
        let available = usize::try_from(receiving.left).unwrap_or(usize::MAX).min(rest.len());
        if available == 0 {
            // A turn without bytes is not progress of the client, and gives a writer no work.
            return;
        }
        let (content, behind) = rest.split_at(available);
        *rest = behind;
        receiving.left -= available as u64;
        receiving.pace.add_bytes(available);
        let is_whole = receiving.left == 0;
        if let Some(upload) = &receiving.upload
            && upload.push(content, is_whole)
        {
            self.jobs += 1;
            upload.start();
        }
        if is_whole {
            state.receiving = None;
            // Descriptors already received may belong to a request behind the content.
            state.has_read_all = false;
        }
    }

    /// Reads the incoming content, and nothing behind it, in larger pieces than requests need.
    pub(super) fn receive_content(
        &mut self,
        buffers: &mut ThreadBuffers,
        options: RunOptions,
    ) -> Result<usize, Errno> {
        let ProtocolState::V2(state) = &self.protocol_state else { return Ok(0) };
        let Some(receiving) = &state.receiving else { return Ok(0) };
        let capacity = receiving.upload.as_ref().map_or(BULK, Uploading::capacity).clamp(1, BULK);
        let capacity = usize::try_from(receiving.left).unwrap_or(BULK).min(capacity);
        let mut bulk = std::mem::take(&mut buffers.bulk);
        if bulk.is_empty() {
            bulk = vec![0; BULK].into_boxed_slice();
        }
        let received = self.receive(&mut bulk[..capacity], options);
        if let Ok(length) = received {
            self.take_content(&mut &bulk[..length]);
        }
        buffers.bulk = bulk;
        received
    }

    /// Whether an incoming content has no room until a writer takes the bytes that wait.
    pub(super) fn waits_for_writers(&mut self) -> bool {
        let ProtocolState::V2(state) = &mut self.protocol_state else { return false };
        let Some(receiving) = &mut state.receiving else { return false };
        let waits = receiving.upload.as_ref().is_some_and(|upload| upload.capacity() == 0);
        receiving.pace.waits(waits, Instant::now());
        waits
    }

    /// Whether a content has used up its total time, whatever delayed it, including a client that does not read its
    /// answers.
    pub(super) fn receives_too_long(&self, now: Instant) -> bool {
        let ProtocolState::V2(state) = &self.protocol_state else { return false };
        let total = self.service.settings.upload_timeout;
        state.receiving.as_ref().is_some_and(|receiving| receiving.pace.is_over(now, total))
    }

    /// Whether a content arrives too slowly by the client's fault. Sends the error if the socket has room for it.
    pub(super) fn receives_too_slowly(&self, now: Instant) -> bool {
        let ProtocolState::V2(state) = &self.protocol_state else { return false };
        let Some(receiving) = &state.receiving else { return false };
        if !receiving.pace.is_too_slow(now, Allowed::from_settings(&self.service.settings)) {
            return false;
        }
        // A request gets one answer.
        if let Some(upload) = receiving.upload.as_ref().filter(|upload| !upload.has_failed())
            && let Framing::V2 { id, .. } = upload.context().framing
            && self.outbox.is_empty()
        {
            let mut bytes = Vec::new();
            v2::encode_refusal(&mut bytes, id, Status::Timeout, &Error::UploadTooSlow.to_string());
            let _ = crate::net::socket::send(
                self.socket(),
                &bytes,
                crate::net::transport::IoMode::NonBlocking,
                false,
            );
        }
        true
    }

    /// Sends a client of version 2 the reason why the connection ends, if its socket has room for that.
    pub(super) fn send_close(&mut self, reason: v2::CloseReason) {
        if matches!(self.protocol_state, ProtocolState::V2(_))
            && self.outbox.is_empty()
            && self.close_state == CloseState::No
        {
            let mut bytes = Vec::new();
            v2::encode_close(&mut bytes, reason);
            // The peer may be gone; ignore errors.
            let _ = crate::net::socket::send(
                self.socket(),
                &bytes,
                crate::net::transport::IoMode::NonBlocking,
                false,
            );
        }
    }
}

/// Counts the puts by descriptor at the front of the bytes read, including one that has begun.
fn puts_by_descriptor(mut decoder: v2::RequestDecoder, mut input: &[u8]) -> usize {
    let mut count = 0;
    loop {
        let (operation, content) = match decoder.decode(&mut input) {
            Decoded::Request(request) => {
                (Some(request.operation), request.parameters.content_len.unwrap_or(0))
            }
            Decoded::Refused { operation, content_len, .. } => (operation, content_len),
            Decoded::More => {
                let has_begun = input.first() == Some(&v2::REQUEST)
                    && input.get(v2::MODE_AT) == Some(&(Operation::PutDescriptor as u8));
                return count + usize::from(has_begun);
            }
            Decoded::Close { .. } | Decoded::Fatal(_) => return count,
        };
        count += usize::from(operation == Some(Operation::PutDescriptor));
        let content = usize::try_from(content).unwrap_or(usize::MAX).min(input.len());
        input = &input[content..];
    }
}
