//! Turns one UDP request into its datagrams. Every reply reflects the file as it is now; only the cache keeps
//! anything.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::errors::Error;
use crate::model::Model;
use crate::net::transport::Transport;
use crate::protocol::{self, CONTENT_HEAD, Mode, Operation, Status};
use crate::request_log::{CompletedRequest, PeerRef, UriTail};
use crate::service::Service;
use crate::statistics::{Answered, Labels};
use crate::udp::address_limits::canonical;
use crate::udp::admission::Admission;
use crate::udp::batch::{Outbox, Peer};
use crate::udp::codec::{self, DATA_HEAD, DataHead, Pull, UdpRequest};
use crate::udp::object_reader::{
    Content, DiskWait, ReadError, Reader, TRIES, being_written, payloads, read_pieces,
};
use crate::udp::socket::UdpSocket;

/// Pieces in the reply to one PULL.
const MAX_PIECES: usize = 32;
/// The longest datagram off loopback: with its headers it fits every common path (RFC 9000, section 14,
/// requires as much).
const FAR_DATAGRAM: usize = 1_200;
/// The longest datagram on loopback, whose frames have 65,536 bytes: the limit of an IPv4 header's length
/// field, and for IPv6 the rest of a frame after the headers.
const NEAR_DATAGRAM_V4: usize = 65_507;
const NEAR_DATAGRAM_V6: usize = 65_488;
/// The same for a piece off loopback, in bytes of content.
const FAR_PIECE: usize = 1_152;
/// IP and UDP headers, which count towards an address's rate.
const HEADERS: usize = 48;
/// The responder flushes an outbox of this many bytes before it adds more.
const FLUSH_SIZE: usize = 512 << 10;

/// Why a UDP request gets no content.
#[derive(Debug)]
struct Refusal(Status, Cow<'static, str>, Option<Error>);

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal(error.status(), error.to_string().into(), Some(error))
    }
}

/// The outcome of a UDP request.
enum Outcome {
    /// Bytes of content.
    Content(u64),
    /// The address is over its rate: the server stays silent, so that the client sends more slowly.
    Limited,
    Refused(Refusal),
    /// The server may have to wait for a disk first. The address's rate is already charged with these bytes.
    Storage {
        charged: usize,
    },
}

/// Where a UDP request is answered, as the serving threads see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Disposition {
    /// Answered, or left without a reply on purpose.
    Now,
    /// The reply would have to wait for a disk. A thread that may wait answers, with this
    /// [`RequestContext::charged`].
    Elsewhere { charged: usize },
}

impl From<ReadError> for Outcome {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Failed(error) => Outcome::Refused(error.into()),
            ReadError::Storage => Outcome::Storage { charged: 0 },
        }
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Outcome::Refused(refusal)
    }
}

/// When and from where a UDP request came, and how to answer it.
#[derive(Debug, Clone, Copy)]
pub struct RequestContext {
    pub from: Peer,
    pub arrived: Instant,
    /// How long it waited in a queue; None where the model has none.
    pub waited: Option<Duration>,
    pub storage: DiskWait,
    /// Bytes of the reply that are already charged to the address's rate.
    pub charged: usize,
}

/// A reply in the outbox, to be counted once it is sent.
#[derive(Debug)]
struct PendingRecord {
    uri: UriTail,
    from: SocketAddr,
    status: Status,
    content: u64,
    arrived: Instant,
    answered_at: Instant,
    waited: Option<Duration>,
}

impl PendingRecord {
    fn new(request: &UdpRequest<'_>, context: RequestContext, status: Status, content: u64) -> Self {
        let uri = match request {
            UdpRequest::Pull(pull) => pull.uri.ok(),
            UdpRequest::Plain(Ok((_, uri))) => Some(*uri),
            _ => None,
        };
        PendingRecord {
            uri: UriTail::from_uri(uri.unwrap_or_default()),
            from: context.from.address,
            status,
            content,
            arrived: context.arrived,
            answered_at: Instant::now(),
            waited: context.waited,
        }
    }
}

/// Makes replies. Each thread has one, with its own buffers.
#[derive(Debug)]
pub struct Responder {
    socket: Arc<UdpSocket>,
    service: Arc<Service>,
    model: Model,
    shard: usize,
    outbox: Outbox,
    pending_records: Vec<PendingRecord>,
    reader: Reader,
}

impl Responder {
    pub fn new(socket: &Arc<UdpSocket>, service: &Arc<Service>, model: Model) -> Self {
        let shard = service.statistics.assign_shard();
        Responder {
            socket: Arc::clone(socket),
            service: Arc::clone(service),
            model,
            shard,
            outbox: Outbox::default(),
            pending_records: Vec::new(),
            reader: Reader::new(service, shard),
        }
    }

    fn admission(&self) -> &Admission {
        &self.socket.admission
    }

    /// Sends a RETRY with a cookie.
    pub fn retry(&mut self, request: &UdpRequest<'_>, cookie: &[u8; codec::COOKIE], to: Peer) {
        if let UdpRequest::Pull(pull) = request {
            let start = self.outbox.bytes.len();
            codec::encode_retry(&mut self.outbox.bytes, pull.request_id, cookie);
            self.outbox.push_one(start, to);
            self.admission().counts.retry_sent.fetch_add(1, Relaxed);
        }
    }

    /// Answers an admitted UDP request, unless it would have to wait for a disk and must not.
    pub fn answer(&mut self, request: &UdpRequest<'_>, context: RequestContext) -> Disposition {
        let mark = self.outbox.bytes.len();
        let outcome = match request {
            UdpRequest::Pull(pull) => match pull.uri {
                Ok(uri) => self.pull(pull, uri, context),
                Err(status) => Err(Refusal::from(Error::Refused(status)).into()),
            },
            UdpRequest::Plain(Ok((mode, uri))) => self.plain(*mode, uri, context),
            UdpRequest::Plain(Err(status)) => Err(Refusal::from(Error::Refused(*status)).into()),
            UdpRequest::Noise => return Disposition::Now,
        };
        match outcome.unwrap_or_else(|outcome| outcome) {
            Outcome::Content(content) => {
                self.pending_records.push(PendingRecord::new(request, context, Status::Ok, content));
            }
            Outcome::Limited => self.outbox.bytes.truncate(mark),
            Outcome::Storage { charged } => {
                self.outbox.bytes.truncate(mark);
                return Disposition::Elsewhere { charged };
            }
            Outcome::Refused(refusal) => {
                self.outbox.bytes.truncate(mark);
                self.push_refusal(request, &refusal, context);
            }
        }
        if self.outbox.bytes.len() >= FLUSH_SIZE {
            self.flush();
        }
        Disposition::Now
    }

    /// Whether an address is over its rate now; counts the request as dropped if so. For requests that would
    /// cost work first.
    pub fn is_over_its_rate(&self, from: Peer) -> bool {
        !self.admission().may_send(from.address, 0, Instant::now())
    }

    /// Answers that the server is busy, before any work.
    pub fn refuse(&mut self, request: &UdpRequest<'_>, from: Peer, arrived: Instant) {
        self.service.statistics.gauges(Transport::Udp).rejected_total.fetch_add(1, Relaxed);
        let refusal = Refusal::from(Error::Busy("the server's queue is full; try again"));
        let context =
            RequestContext { from, arrived, waited: None, storage: DiskWait::Forbidden, charged: 0 };
        self.push_refusal(request, &refusal, context);
    }

    fn push_refusal(&mut self, request: &UdpRequest<'_>, refusal: &Refusal, context: RequestContext) {
        let RequestContext { from: to, arrived, .. } = context;
        let explained = refusal.2.map(|error| self.service.mapping.explained(error));
        if let Some(Error::Storage(errno)) = explained {
            let uri = PendingRecord::new(request, context, refusal.0, 0).uri;
            self.service.failures.note(errno.raw_os_error(), Operation::Copy.name(), &uri);
        }
        let explained = explained.filter(|error| *error == Error::RootGone).map(Refusal::from);
        let Refusal(status, message, _) = explained.as_ref().unwrap_or(refusal);
        if *status == Status::ProtocolError {
            self.service.statistics.gauges(Transport::Udp).protocol_errors_total.fetch_add(1, Relaxed);
        }
        let start = self.outbox.bytes.len();
        let counter = match request {
            UdpRequest::Pull(pull) => {
                codec::encode_error(&mut self.outbox.bytes, pull.request_id, *status, message);
                &self.socket.admission.counts.error_sent
            }
            UdpRequest::Plain(_) => {
                protocol::encode_error(&mut self.outbox.bytes, *status, message);
                &self.socket.admission.counts.reply_sent
            }
            UdpRequest::Noise => return,
        };
        if !self.socket.admission.may_send(to.address, self.outbox.bytes.len() - start + HEADERS, arrived) {
            return self.outbox.bytes.truncate(start);
        }
        counter.fetch_add(1, Relaxed);
        self.outbox.push_one(start, to);
        self.pending_records.push(PendingRecord::new(request, context, *status, 0));
    }

    /// Sends the outbox, and counts its replies.
    pub fn flush(&mut self) {
        if self.outbox.is_empty() {
            return;
        }
        self.socket.send(&mut self.outbox);
        let now = Instant::now();
        for record in self.pending_records.drain(..) {
            let waited = record.waited.unwrap_or_default();
            self.service.request_log.record(&CompletedRequest {
                shard: self.shard,
                uri: &record.uri,
                from: PeerRef::Address(record.from),
                transport: Transport::Udp,
                operation: Operation::Copy.name(),
                model: self.model.name(),
                status: record.status as u8,
                bytes: record.content,
                queue: waited,
                storage: record.answered_at.saturating_duration_since(record.arrived),
                send: now.saturating_duration_since(record.answered_at),
            });
            self.service.statistics.record(
                self.shard,
                &Answered {
                    labels: Labels::new(Transport::Udp, self.model, Operation::Copy),
                    status: record.status,
                    latency: now.saturating_duration_since(record.arrived) + waited,
                    queue_wait: record.waited.filter(|_| record.status != Status::Unavailable),
                    bytes: record.content,
                },
            );
        }
    }

    /// Whether the server may send `bytes` to the client; charges each byte once.
    fn may_send(&self, bytes: usize, context: RequestContext) -> bool {
        let due = bytes.saturating_sub(context.charged);
        (due == 0 && context.charged > 0)
            || self.admission().may_send(context.from.address, due, context.arrived)
    }

    /// Answers a version 1 request: in one datagram, or with an error.
    fn plain(&mut self, mode: Mode, uri: &str, context: RequestContext) -> Result<Outcome, Outcome> {
        if mode != Mode::Copy {
            let message = "over UDP only copy is supported; descriptors and splice need a stream";
            return Err(Refusal(Status::InvalidMode, message.into(), None).into());
        }
        let capacity = longest_datagram(context.from.address) - CONTENT_HEAD;
        let content = self.reader.find(uri, context.storage, context.arrived)?;
        let total = content.total();
        let Some(bytes) = self.reader.small(&content).filter(|bytes| bytes.len() <= capacity) else {
            let message =
                format!("{total} bytes do not fit one datagram of {capacity}; pull ranges, or use TCP");
            return Err(Refusal(Status::UnsupportedOp, message.into(), None).into());
        };
        if !self.may_send(bytes.len() + CONTENT_HEAD + HEADERS, context) {
            return Ok(Outcome::Limited);
        }
        let start = self.outbox.bytes.len();
        self.outbox.bytes.extend_from_slice(&protocol::content_head(total));
        self.outbox.bytes.extend_from_slice(bytes);
        self.outbox.push_one(start, context.from);
        self.admission().counts.reply_sent.fetch_add(1, Relaxed);
        Ok(Outcome::Content(total))
    }

    /// Answers a PULL with pieces. An empty range, and one behind the end, gets an empty piece: it carries
    /// version and size.
    fn pull(&mut self, pull: &Pull<'_>, uri: &str, context: RequestContext) -> Result<Outcome, Outcome> {
        let mut charged = 0;
        for _ in 0..TRIES {
            let content = match self.reader.find(uri, context.storage, context.arrived) {
                Err(ReadError::Storage) => return Err(Outcome::Storage { charged }),
                found => found?,
            };
            let range = Range::new(pull, content.total(), context.from.address);
            let datagrams = range.length.div_ceil(range.piece).max(1);
            let bytes = range.length + datagrams * DATA_HEAD;
            let cost = bytes + datagrams * HEADERS;
            // Another attempt may find a longer object: charge the additional bytes as well.
            let context = RequestContext { charged: charged.max(context.charged), ..context };
            if !self.may_send(cost, context) {
                return Ok(Outcome::Limited);
            }
            charged = cost.max(context.charged);
            let start = self.outbox.bytes.len();
            self.outbox.bytes.resize(start + bytes, 0);
            let buffer = &mut self.outbox.bytes[start..];
            if let Content::Open(opened) = &content {
                match read_pieces(opened, buffer, range.piece, range.offset, context.storage) {
                    Ok(true) => {}
                    Ok(false) => {
                        self.outbox.bytes.truncate(start);
                        continue;
                    }
                    Err(ReadError::Storage) => return Err(Outcome::Storage { charged }),
                    Err(error) => return Err(error.into()),
                }
            } else if let Some(small) = self.reader.small(&content) {
                let mut rest = small.get(range.start..).unwrap_or_default();
                for payload in payloads(buffer, range.piece) {
                    let (chunk, remaining) = rest.split_at(payload.len());
                    payload.copy_from_slice(chunk);
                    rest = remaining;
                }
            }
            let head = DataHead {
                request_id: pull.request_id,
                version: content.version().number(),
                total: content.total(),
                seed: codec::checksum_of_uri(uri),
            };
            let datagram = DATA_HEAD + range.piece;
            for (number, datagram) in buffer.chunks_mut(datagram).enumerate() {
                codec::seal_data(datagram, &head, pull.offset.saturating_add((number * range.piece) as u64));
            }
            self.outbox.push(start, datagram, self.socket.segmented(datagram), context.from);
            self.admission().counts.data_sent.fetch_add(datagrams as u64, Relaxed);
            return Ok(Outcome::Content(range.length as u64));
        }
        Err(Refusal::from(being_written()).into())
    }
}

/// The part of an object that answers a PULL.
struct Range {
    offset: u64,
    /// The offset, where it fits `usize`.
    start: usize,
    length: usize,
    /// Bytes of content in a datagram, at least 1.
    piece: usize,
}

impl Range {
    fn new(pull: &Pull<'_>, total: u64, to: SocketAddr) -> Self {
        let longest = longest_datagram(to);
        let max_piece = if longest == FAR_DATAGRAM { FAR_PIECE } else { longest - DATA_HEAD };
        let piece = usize::from(pull.chunk).clamp(1, max_piece);
        let requested = (pull.length as usize).min(piece * MAX_PIECES) as u64;
        let length = total.saturating_sub(pull.offset).min(requested) as usize;
        Range {
            offset: pull.offset,
            start: usize::try_from(pull.offset).unwrap_or(usize::MAX),
            length,
            piece,
        }
    }
}

fn longest_datagram(to: SocketAddr) -> usize {
    match canonical(to).ip() {
        ip if !ip.is_loopback() => FAR_DATAGRAM,
        ip if ip.is_ipv4() => NEAR_DATAGRAM_V4,
        _ => NEAR_DATAGRAM_V6,
    }
}

#[cfg(test)]
#[path = "responder_tests.rs"]
mod tests;
