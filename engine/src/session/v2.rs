//! Version 2 in a session: the greeting, requests with ids answered as they become ready, incoming contents.

use rustix::io::Errno;
use std::time::Instant;

use super::{CloseState, FrameOutcome, ProtocolState, RunOptions, Session, ThreadBuffers};
use crate::errors::Error;
use crate::protocol::v2::{self, Capabilities, Decoded, DecodedHello, Hello, Request};
use crate::protocol::{Operation, Status};
use crate::request_log::UriTail;
use crate::session::dispatch::{ParsedRequest, RequestContext};
use crate::session::fd_charge::{FDS_PER_PUT, PassedFiles};
use crate::session::pace::{Allowed, Pace};
use crate::session::reply::Framing;
use crate::session::storage_job::{JobArgs, StorageJob};
use crate::session::upload::{Uploading, Wish};
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
    pub received: PassedFiles,
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
    Whole(StorageJob),
    Coming(Uploading),
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
        if self.has_read_all && self.receiving.is_none() && !self.received.is_empty() {
            self.received.close_spare(has_begun || self.is_skipping());
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
        let ours = Capabilities::OUT_OF_ORDER | Capabilities::PIPELINING | Capabilities::EXTENDED;
        let agreed = hello.agree(ours, v2::MAX_PIPELINE);
        let before = buffers.out.len();
        let workers = u8::try_from(self.service.settings.workers()).unwrap_or(u8::MAX);
        v2::encode_hello_ack(&mut buffers.out, agreed.capabilities, agreed.max_pipeline, workers);
        let length = buffers.out.len() - before;
        self.push_buffered(length, None);
        let received = match &mut self.protocol_state {
            ProtocolState::Unknown(received) => std::mem::take(received),
            _ => PassedFiles::default(),
        };
        self.protocol_state = ProtocolState::V2(Box::new(V2State {
            decoder: v2::RequestDecoder::new(agreed.capabilities.contains(Capabilities::EXTENDED)),
            agreed,
            window: 0,
            received,
            has_read_all: true,
            receiving: None,
        }));
        FrameOutcome::Done
    }

    fn refuse_handshake(&mut self, buffers: &mut ThreadBuffers, status: Status) -> FrameOutcome {
        let complete_at = self.complete_at;
        let asked = RequestContext {
            framing: Framing::V1,
            operation: Operation::FdPass,
            complete_at,
            answered_at: None,
            uri: UriTail::of(""),
        };
        self.push_error(buffers, asked, Error::Refused(status));
        FrameOutcome::Fatal
    }

    /// Answers the frame in front of `rest`, or submits a storage job for it.
    pub(super) fn step_v2(
        &mut self,
        buffers: &mut ThreadBuffers,
        options: RunOptions,
        rest: &mut &[u8],
    ) -> FrameOutcome {
        let ProtocolState::V2(two) = &mut self.protocol_state else { return FrameOutcome::More };
        let complete_at = self.complete_at;
        let extended = two.is_extended();
        let asked = |id, operation, uri| {
            let framing = Framing::V2 { id, extended };
            RequestContext { framing, operation, complete_at, answered_at: None, uri: UriTail::of(uri) }
        };
        let decoded = two.decoder.decode(rest);
        if matches!(
            decoded,
            Decoded::Request(Request { operation: Operation::PutDescriptor, .. })
                | Decoded::Refused { operation: Some(Operation::PutDescriptor), .. }
        ) {
            let decoder = two.decoder.clone();
            two.received.check(|| 1 + puts_by_descriptor(decoder, rest));
        }
        if matches!(decoded, Decoded::Request(_) | Decoded::Refused { .. }) {
            two.window += 1;
            if two.window > u32::from(two.agreed.max_pipeline) {
                let error = Error::Refused(Status::CapabilityError);
                self.push_error(buffers, asked(0, Operation::FdPass, ""), error);
                return FrameOutcome::Fatal;
            }
        }
        match decoded {
            Decoded::More => FrameOutcome::More,
            Decoded::Request(request) => {
                let asked = asked(request.id, request.operation, request.uri);
                if request.operation == Operation::Put {
                    self.begin_put(buffers, options, asked, &request, rest);
                } else if let Err(error) = self.handle_v2(buffers, options, asked, request) {
                    self.push_error(buffers, asked, error);
                }
                FrameOutcome::Done
            }
            Decoded::Refused { id, operation, status, content_len } => {
                if content_len > 0 {
                    let pace = Pace::new(complete_at);
                    two.receiving = Some(IncomingBody { left: content_len, upload: None, pace });
                }
                if operation == Some(Operation::PutDescriptor) {
                    // Take its descriptor with it: the next one belongs to the next put.
                    drop(two.received.take());
                }
                // A refusal without a known operation counts under the most common one.
                let operation = operation.unwrap_or(Operation::FdPass);
                self.push_error(buffers, asked(id, operation, ""), Error::Refused(status));
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
                self.push_error(buffers, asked(0, Operation::FdPass, ""), Error::Refused(status));
                FrameOutcome::Fatal
            }
        }
    }

    fn handle_v2(
        &mut self,
        buffers: &mut ThreadBuffers,
        options: RunOptions,
        asked: RequestContext,
        request: Request<'_>,
    ) -> Result<(), Error> {
        let source = match &mut self.protocol_state {
            // Take it even if the put fails: the next one belongs to the next put.
            ProtocolState::V2(two) if asked.operation == Operation::PutDescriptor => {
                Some(two.received.take())
            }
            _ => None,
        };
        if options.refuse {
            return Err(Error::QUEUE_FULL);
        }
        let source = match source {
            // Check first whether this server accepts descriptors at all; other faults come after.
            Some(source) if self.service.takes_descriptors(self.transport) => Some(source?),
            _ => None,
        };
        let has_priority = request.has_priority();
        let wanted =
            ParsedRequest { asked, uri: request.uri, parameters: request.parameters, has_priority, source };
        self.handle(buffers, options, wanted)
    }

    /// Begins a put. `rest` holds the bytes that have arrived behind the request.
    fn begin_put(
        &mut self,
        buffers: &mut ThreadBuffers,
        options: RunOptions,
        asked: RequestContext,
        request: &Request<'_>,
        rest: &mut &[u8],
    ) {
        let parameters = request.parameters;
        let left = parameters.content_len.unwrap_or(0);
        let wanted = ParsedRequest { asked, uri: request.uri, parameters, has_priority: false, source: None };
        let begun = (|| {
            if options.refuse {
                return Err(Error::QUEUE_FULL);
            }
            let deadline = wanted.deadline(buffers)?;
            let conditions = wanted.conditions()?;
            if self.service.staging.is_none() {
                return Err(Error::NotWritable);
            }
            let path = mapping::relative_path(request.uri, &mut buffers.path)?;
            self.check_use(path.to_bytes())?;
            check_size(left, self.service.settings.max_object_size)?;
            self.check_descriptors(FDS_PER_PUT)?;
            if let Some(bytes) = usize::try_from(left).ok().and_then(|left| rest.get(..left)) {
                let make_parents = parameters.make_parents;
                return Ok(PutStart::Whole(StorageJob {
                    operation: Operation::Put,
                    path: path.to_owned(),
                    offset: 0,
                    length: None,
                    conditions,
                    deadline,
                    room: 0,
                    rest: JobArgs::Content { bytes: bytes.into(), make_parents, hold: self.hold_for_put() },
                }));
            }
            let client = self.connection.client();
            let upload = self.service.uploads.begin(client.user)?;
            let wish = Wish {
                path: path.to_owned(),
                make_parents: parameters.make_parents,
                length: left,
                asked,
                conditions,
                deadline,
            };
            let hold = self.hold_for_put();
            Ok(PutStart::Coming(Uploading::new(&self.service, &self.connection, client, wish, upload, hold)))
        })();
        let upload = match begun {
            Ok(PutStart::Coming(upload)) => {
                // A refusal is sent at once, whether or not a byte arrives.
                self.jobs += 1;
                upload.start();
                Some(upload)
            }
            Ok(PutStart::Whole(job)) => {
                *rest = &rest[left as usize..];
                if let Err(error) = self.submit_job(buffers, options, asked, job, false) {
                    self.push_error(buffers, asked, error);
                }
                return;
            }
            Err(error) => {
                // Send the error at once; drop what the client still sends.
                self.push_error(buffers, asked, error);
                if left == 0 {
                    return;
                }
                None
            }
        };
        if let ProtocolState::V2(two) = &mut self.protocol_state {
            two.receiving = Some(IncomingBody { left, upload, pace: Pace::new(Instant::now()) });
        }
    }

    /// Takes bytes of the incoming content off the front of `rest`.
    pub(super) fn take_content(&mut self, rest: &mut &[u8]) {
        let ProtocolState::V2(two) = &mut self.protocol_state else { return };
        let Some(receiving) = &mut two.receiving else { return };
        let here = usize::try_from(receiving.left).unwrap_or(usize::MAX).min(rest.len());
        if here == 0 {
            // A turn without bytes is not progress of the client, and gives a writer no work.
            return;
        }
        let (content, behind) = rest.split_at(here);
        *rest = behind;
        receiving.left -= here as u64;
        receiving.pace.came(here);
        let is_whole = receiving.left == 0;
        if let Some(upload) = &receiving.upload
            && upload.push(content, is_whole)
        {
            self.jobs += 1;
            upload.start();
        }
        if is_whole {
            two.receiving = None;
            // Descriptors already received may belong to a request behind the content.
            two.has_read_all = false;
        }
    }

    /// Reads the incoming content, and nothing behind it, in larger pieces than requests need.
    pub(super) fn receive_content(
        &mut self,
        buffers: &mut ThreadBuffers,
        options: RunOptions,
    ) -> Result<usize, Errno> {
        let ProtocolState::V2(two) = &self.protocol_state else { return Ok(0) };
        let Some(receiving) = &two.receiving else { return Ok(0) };
        let room = receiving.upload.as_ref().map_or(BULK, Uploading::room).clamp(1, BULK);
        let room = usize::try_from(receiving.left).unwrap_or(BULK).min(room);
        let mut bulk = std::mem::take(&mut buffers.bulk);
        if bulk.is_empty() {
            bulk = vec![0; BULK].into_boxed_slice();
        }
        let came = self.receive(&mut bulk[..room], options);
        if let Ok(length) = came {
            self.take_content(&mut &bulk[..length]);
        }
        buffers.bulk = bulk;
        came
    }

    /// Whether an incoming content has no room until a writer takes the bytes that wait.
    pub(super) fn waits_for_writers(&mut self) -> bool {
        let ProtocolState::V2(two) = &mut self.protocol_state else { return false };
        let Some(receiving) = &mut two.receiving else { return false };
        let waits = receiving.upload.as_ref().is_some_and(|upload| upload.room() == 0);
        receiving.pace.waits(waits, Instant::now());
        waits
    }

    /// Whether a content has used up its total time, whatever delayed it, including a client that does not read its
    /// answers.
    pub(super) fn receives_too_long(&self, now: Instant) -> bool {
        let ProtocolState::V2(two) = &self.protocol_state else { return false };
        let total = self.service.settings.upload_timeout;
        two.receiving.as_ref().is_some_and(|receiving| receiving.pace.is_over(now, total))
    }

    /// Whether a content arrives too slowly by the client's fault. Sends the error if the socket has room for it.
    pub(super) fn receives_too_slowly(&self, now: Instant) -> bool {
        let ProtocolState::V2(two) = &self.protocol_state else { return false };
        let Some(receiving) = &two.receiving else { return false };
        if !receiving.pace.is_too_slow(now, Allowed::by(&self.service.settings)) {
            return false;
        }
        // A request gets one answer.
        if let Some(upload) = receiving.upload.as_ref().filter(|upload| !upload.has_failed())
            && let Framing::V2 { id, .. } = upload.asked().framing
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
            && self.ending == CloseState::No
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
