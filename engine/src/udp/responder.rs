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
use crate::request_log::{CompletedRequest, PeerRef as Asker, UriTail};
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
const MOST_PIECES: usize = 32;
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
const FULL: usize = 512 << 10;

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
        counted: usize,
    },
}

/// Where a UDP request is answered, as the serving threads see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Disposition {
    /// Answered, or left without a reply on purpose.
    Now,
    /// The reply would have to wait for a disk. A thread that may wait answers, with this
    /// [`RequestContext::counted`].
    Elsewhere { counted: usize },
}

impl From<ReadError> for Outcome {
    fn from(stop: ReadError) -> Self {
        match stop {
            ReadError::Failed(error) => Outcome::Refused(error.into()),
            ReadError::Storage => Outcome::Storage { counted: 0 },
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
    pub counted: usize,
}

/// A reply in the outbox, to be counted once it is sent.
#[derive(Debug)]
struct Ending {
    uri: UriTail,
    from: SocketAddr,
    status: Status,
    content: u64,
    arrived: Instant,
    answered_at: Instant,
    waited: Option<Duration>,
}

impl Ending {
    fn new(question: &UdpRequest<'_>, turn: RequestContext, status: Status, content: u64) -> Self {
        let uri = match question {
            UdpRequest::Pull(pull) => pull.uri.ok(),
            UdpRequest::Plain(Ok((_, uri))) => Some(*uri),
            _ => None,
        };
        Ending {
            uri: UriTail::of(uri.unwrap_or_default()),
            from: turn.from.address,
            status,
            content,
            arrived: turn.arrived,
            answered_at: Instant::now(),
            waited: turn.waited,
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
    endings: Vec<Ending>,
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
            endings: Vec::new(),
            reader: Reader::new(service, shard),
        }
    }

    fn gate(&self) -> &Admission {
        &self.socket.gate
    }

    /// Sends a RETRY with a cookie.
    pub fn retry(&mut self, question: &UdpRequest<'_>, cookie: &[u8; codec::COOKIE], to: Peer) {
        if let UdpRequest::Pull(pull) = question {
            let start = self.outbox.bytes.len();
            codec::encode_retry(&mut self.outbox.bytes, pull.request_id, cookie);
            self.outbox.push_one(start, to);
            self.gate().counts.retry_sent.fetch_add(1, Relaxed);
        }
    }

    /// Answers an admitted UDP request, unless it would have to wait for a disk and must not.
    pub fn answer(&mut self, question: &UdpRequest<'_>, turn: RequestContext) -> Disposition {
        let mark = self.outbox.bytes.len();
        let outcome = match question {
            UdpRequest::Pull(pull) => match pull.uri {
                Ok(uri) => self.pull(pull, uri, turn),
                Err(status) => Err(Refusal::from(Error::Refused(status)).into()),
            },
            UdpRequest::Plain(Ok((mode, uri))) => self.plain(*mode, uri, turn),
            UdpRequest::Plain(Err(status)) => Err(Refusal::from(Error::Refused(*status)).into()),
            UdpRequest::Noise => return Disposition::Now,
        };
        match outcome.unwrap_or_else(|outcome| outcome) {
            Outcome::Content(content) => {
                self.endings.push(Ending::new(question, turn, Status::Ok, content));
            }
            Outcome::Limited => self.outbox.bytes.truncate(mark),
            Outcome::Storage { counted } => {
                self.outbox.bytes.truncate(mark);
                return Disposition::Elsewhere { counted };
            }
            Outcome::Refused(refusal) => {
                self.outbox.bytes.truncate(mark);
                self.push_refusal(question, &refusal, turn);
            }
        }
        if self.outbox.bytes.len() >= FULL {
            self.flush();
        }
        Disposition::Now
    }

    /// Whether an address is over its rate now; counts the request as dropped if so. For requests that would
    /// cost work first.
    pub fn is_over_its_rate(&self, from: Peer) -> bool {
        !self.gate().may_send(from.address, 0, Instant::now())
    }

    /// Answers that the server is busy, before any work.
    pub fn refuse(&mut self, question: &UdpRequest<'_>, from: Peer, arrived: Instant) {
        self.service.statistics.gauges(Transport::Udp).rejected_total.fetch_add(1, Relaxed);
        let refusal = Refusal::from(Error::Busy("the server's queue is full, try again"));
        let turn = RequestContext { from, arrived, waited: None, storage: DiskWait::Forbidden, counted: 0 };
        self.push_refusal(question, &refusal, turn);
    }

    fn push_refusal(&mut self, question: &UdpRequest<'_>, refusal: &Refusal, turn: RequestContext) {
        let RequestContext { from: to, arrived, .. } = turn;
        let explained = refusal.2.map(|error| self.service.mapping.explained(error));
        if let Some(Error::Storage(errno)) = explained {
            let uri = Ending::new(question, turn, refusal.0, 0).uri;
            self.service.failures.note(errno.raw_os_error(), Operation::Copy.name(), &uri);
        }
        let explained = explained.filter(|error| *error == Error::RootGone).map(Refusal::from);
        let Refusal(status, message, _) = explained.as_ref().unwrap_or(refusal);
        if *status == Status::ProtocolError {
            self.service.statistics.gauges(Transport::Udp).protocol_errors_total.fetch_add(1, Relaxed);
        }
        let start = self.outbox.bytes.len();
        let counter = match question {
            UdpRequest::Pull(pull) => {
                codec::encode_error(&mut self.outbox.bytes, pull.request_id, *status, message);
                &self.socket.gate.counts.error_sent
            }
            UdpRequest::Plain(_) => {
                protocol::encode_error(&mut self.outbox.bytes, *status, message);
                &self.socket.gate.counts.reply_sent
            }
            UdpRequest::Noise => return,
        };
        if !self.socket.gate.may_send(to.address, self.outbox.bytes.len() - start + HEADERS, arrived) {
            return self.outbox.bytes.truncate(start);
        }
        counter.fetch_add(1, Relaxed);
        self.outbox.push_one(start, to);
        self.endings.push(Ending::new(question, turn, *status, 0));
    }

    /// Sends the outbox, and counts its replies.
    pub fn flush(&mut self) {
        if self.outbox.is_empty() {
            return;
        }
        self.socket.send(&mut self.outbox);
        let now = Instant::now();
        for ending in self.endings.drain(..) {
            let waited = ending.waited.unwrap_or_default();
            self.service.journal.record(&CompletedRequest {
                shard: self.shard,
                uri: &ending.uri,
                from: Asker::Address(ending.from),
                transport: Transport::Udp,
                operation: Operation::Copy.name(),
                model: self.model.name(),
                status: ending.status as u8,
                bytes: ending.content,
                queue: waited,
                storage: ending.answered_at.saturating_duration_since(ending.arrived),
                send: now.saturating_duration_since(ending.answered_at),
            });
            self.service.statistics.record(
                self.shard,
                &Answered {
                    labels: Labels::new(Transport::Udp, self.model, Operation::Copy),
                    status: ending.status,
                    latency: now.saturating_duration_since(ending.arrived) + waited,
                    queue_wait: ending.waited.filter(|_| ending.status != Status::Unavailable),
                    bytes: ending.content,
                },
            );
        }
    }

    /// Whether the server may send `bytes` to the client; charges each byte once.
    fn may_send(&self, bytes: usize, turn: RequestContext) -> bool {
        let due = bytes.saturating_sub(turn.counted);
        (due == 0 && turn.counted > 0) || self.gate().may_send(turn.from.address, due, turn.arrived)
    }

    /// Answers a version 1 request: in one datagram, or with an error.
    fn plain(&mut self, mode: Mode, uri: &str, turn: RequestContext) -> Result<Outcome, Outcome> {
        if mode != Mode::Copy {
            let words = "over UDP objects come by copy: descriptors and splices need a stream";
            return Err(Refusal(Status::InvalidMode, words.into(), None).into());
        }
        let room = longest_datagram(turn.from.address) - CONTENT_HEAD;
        let content = self.reader.find(uri, turn.storage, turn.arrived)?;
        let total = content.total();
        let Some(bytes) = self.reader.small(&content).filter(|bytes| bytes.len() <= room) else {
            let words = format!("{total} bytes do not fit one datagram of {room}: pull ranges, or use TCP");
            return Err(Refusal(Status::UnsupportedOp, words.into(), None).into());
        };
        if !self.may_send(bytes.len() + CONTENT_HEAD + HEADERS, turn) {
            return Ok(Outcome::Limited);
        }
        let start = self.outbox.bytes.len();
        self.outbox.bytes.extend_from_slice(&protocol::content_head(total));
        self.outbox.bytes.extend_from_slice(bytes);
        self.outbox.push_one(start, turn.from);
        self.gate().counts.reply_sent.fetch_add(1, Relaxed);
        Ok(Outcome::Content(total))
    }

    /// Answers a PULL with pieces. An empty range, and one behind the end, gets an empty piece: it carries
    /// version and size.
    fn pull(&mut self, pull: &Pull<'_>, uri: &str, turn: RequestContext) -> Result<Outcome, Outcome> {
        let mut counted = 0;
        for _ in 0..TRIES {
            let content = match self.reader.find(uri, turn.storage, turn.arrived) {
                Err(ReadError::Storage) => return Err(Outcome::Storage { counted }),
                found => found?,
            };
            let range = Range::new(pull, content.total(), turn.from.address);
            let datagrams = range.length.div_ceil(range.piece).max(1);
            let bytes = range.length + datagrams * DATA_HEAD;
            let cost = bytes + datagrams * HEADERS;
            // Another attempt may find a longer object: charge the additional bytes as well.
            let turn = RequestContext { counted: counted.max(turn.counted), ..turn };
            if !self.may_send(cost, turn) {
                return Ok(Outcome::Limited);
            }
            counted = cost.max(turn.counted);
            let start = self.outbox.bytes.len();
            self.outbox.bytes.resize(start + bytes, 0);
            let room = &mut self.outbox.bytes[start..];
            if let Content::Open(opened) = &content {
                match read_pieces(opened, room, range.piece, range.offset, turn.storage) {
                    Ok(true) => {}
                    Ok(false) => {
                        self.outbox.bytes.truncate(start);
                        continue;
                    }
                    Err(ReadError::Storage) => return Err(Outcome::Storage { counted }),
                    Err(stop) => return Err(stop.into()),
                }
            } else if let Some(small) = self.reader.small(&content) {
                let mut rest = small.get(range.start..).unwrap_or_default();
                for payload in payloads(room, range.piece) {
                    let (here, after) = rest.split_at(payload.len());
                    payload.copy_from_slice(here);
                    rest = after;
                }
            }
            let head = DataHead {
                request_id: pull.request_id,
                version: content.version().number(),
                total: content.total(),
                seed: codec::checksum_of_uri(uri),
            };
            let datagram = DATA_HEAD + range.piece;
            for (number, datagram) in room.chunks_mut(datagram).enumerate() {
                codec::seal_data(datagram, &head, pull.offset.saturating_add((number * range.piece) as u64));
            }
            self.outbox.push(start, datagram, self.socket.segmented(datagram), turn.from);
            self.gate().counts.data_sent.fetch_add(datagrams as u64, Relaxed);
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
        let most = if longest == FAR_DATAGRAM { FAR_PIECE } else { longest - DATA_HEAD };
        let piece = usize::from(pull.chunk).clamp(1, most);
        let asked = (pull.length as usize).min(piece * MOST_PIECES) as u64;
        let length = total.saturating_sub(pull.offset).min(asked) as usize;
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
