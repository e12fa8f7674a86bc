//! One question in, its datagrams out. Every answer is made from the file as it is now; nothing is remembered but the cache.

use rustix::io::{Errno, IoSliceMut};
use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::batch::{Outbox, Peer};
use super::gate::Gate;
use super::limits::canonical;
use super::socket::UdpSocket;
use super::wire::{self, DATA_HEAD, DataHead, Pull, Question};
use crate::cache::Version;
use crate::concurrency::Model;
use crate::errors::Error;
use crate::mapping::{self, Opened};
use crate::protocol::{self, CONTENT_HEAD, Mode, Operation, Status};
use crate::service::Service;
use crate::statistics::{Answered, Labels};
use crate::transport::Transport;

/// Pieces that one PULL may bring.
const MOST_PIECES: usize = 32;
/// The longest datagram off loopback: it fits every path of today with its headers (RFC 9000, section 14, asks for as much).
const FAR_DATAGRAM: usize = 1_200;
/// The longest on loopback, whose frames have 65,536 bytes: what an IPv4 header's length field allows, and for IPv6 what is
/// left after the headers.
const NEAR_DATAGRAM_V4: usize = 65_507;
const NEAR_DATAGRAM_V6: usize = 65_488;
/// And of a piece off loopback, in bytes of content.
const FAR_PIECE: usize = 1_152;
/// IP and UDP headers, for the account of what is sent to an address.
const HEADERS: usize = 48;
/// Objects up to this size are read whole, and kept in memory.
const SMALL: u64 = 64 << 10;
/// An object that is written to while it is read is read again so often.
const TRIES: usize = 4;
/// An outbox with so many bytes is sent before more is put into it.
const FULL: usize = 512 << 10;

/// Why a question was not answered with content.
#[derive(Debug)]
struct Refusal(Status, Cow<'static, str>);

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal(error.status(), error.to_string().into())
    }
}

/// What became of a question.
enum Outcome {
    /// So many bytes of content.
    Content(u64),
    /// The address had its bytes for this moment: silence, so that it asks more slowly.
    Limited,
}

/// An answer that is in the outbox, to be counted when it is gone.
#[derive(Debug)]
struct Ending {
    status: Status,
    content: u64,
    arrived: Instant,
    waited: Option<Duration>,
}

/// Makes answers. Each thread has one, with the buffers that it needs for that.
#[derive(Debug)]
pub struct Answerer {
    socket: Arc<UdpSocket>,
    service: Arc<Service>,
    model: Model,
    shard: usize,
    outbox: Outbox,
    endings: Vec<Ending>,
    path: Vec<u8>,
    small: Vec<u8>,
}

impl Answerer {
    pub fn new(socket: &Arc<UdpSocket>, service: &Arc<Service>, model: Model) -> Self {
        Answerer {
            socket: Arc::clone(socket),
            service: Arc::clone(service),
            model,
            shard: service.statistics.assign_shard(),
            outbox: Outbox::default(),
            endings: Vec::new(),
            path: Vec::new(),
            small: Vec::new(),
        }
    }

    fn gate(&self) -> &Gate {
        &self.socket.gate
    }

    /// Asks for a cookie to be shown.
    pub fn retry(&mut self, question: &Question<'_>, cookie: &[u8; wire::COOKIE], to: Peer) {
        if let Question::Pull(pull) = question {
            let start = self.outbox.bytes.len();
            wire::encode_retry(&mut self.outbox.bytes, pull.request_id, cookie);
            self.outbox.push_one(start, to);
            self.gate().counts.retry_sent.fetch_add(1, Relaxed);
        }
    }

    /// Answers a question that the gate let in. `waited` is how long it lay in a queue.
    pub fn answer(&mut self, question: &Question<'_>, to: Peer, arrived: Instant, waited: Option<Duration>) {
        let mark = self.outbox.bytes.len();
        let outcome = match question {
            Question::Pull(pull) => match pull.uri {
                Ok(uri) => self.pull(pull, uri, to, arrived),
                Err(status) => Err(Error::Refused(status).into()),
            },
            Question::Plain(Ok((mode, uri))) => self.plain(*mode, uri, to, arrived),
            Question::Plain(Err(status)) => Err(Error::Refused(*status).into()),
            Question::Noise => return,
        };
        match outcome {
            Ok(Outcome::Content(content)) => {
                self.endings.push(Ending { status: Status::Ok, content, arrived, waited });
            }
            Ok(Outcome::Limited) => self.outbox.bytes.truncate(mark),
            Err(refusal) => {
                self.outbox.bytes.truncate(mark);
                self.push_refusal(question, &refusal, to, arrived, waited);
            }
        }
        if self.outbox.bytes.len() >= FULL {
            self.flush();
        }
    }

    /// Answers that there is no room, before any work.
    pub fn refuse(&mut self, question: &Question<'_>, to: Peer, arrived: Instant) {
        self.service.statistics.gauges(Transport::Udp).rejected_total.fetch_add(1, Relaxed);
        let refusal = Refusal::from(Error::Busy("the server's queue is full, try again"));
        self.push_refusal(question, &refusal, to, arrived, None);
    }

    fn push_refusal(
        &mut self,
        question: &Question<'_>,
        refusal: &Refusal,
        to: Peer,
        arrived: Instant,
        waited: Option<Duration>,
    ) {
        let Refusal(status, message) = refusal;
        if *status == Status::ProtocolError {
            self.service.statistics.gauges(Transport::Udp).protocol_errors_total.fetch_add(1, Relaxed);
        }
        let start = self.outbox.bytes.len();
        let counter = match question {
            Question::Pull(pull) => {
                wire::encode_error(&mut self.outbox.bytes, pull.request_id, *status, message);
                &self.socket.gate.counts.error_sent
            }
            Question::Plain(_) => {
                protocol::encode_error(&mut self.outbox.bytes, *status, message);
                &self.socket.gate.counts.reply_sent
            }
            Question::Noise => return,
        };
        if !self.socket.gate.may_send(to.address, self.outbox.bytes.len() - start + HEADERS, arrived) {
            return self.outbox.bytes.truncate(start);
        }
        counter.fetch_add(1, Relaxed);
        self.outbox.push_one(start, to);
        self.endings.push(Ending { status: *status, content: 0, arrived, waited });
    }

    /// Sends what there is, and counts it.
    pub fn flush(&mut self) {
        if self.outbox.is_empty() {
            return;
        }
        self.socket.send(&mut self.outbox);
        let now = Instant::now();
        for ending in self.endings.drain(..) {
            let waited = ending.waited.unwrap_or_default();
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

    /// Whether the question can be answered without waiting for a disk: its object is in memory, or there is none.
    pub fn is_warm(&mut self, question: &Question<'_>) -> bool {
        let (Question::Pull(Pull { uri: Ok(uri), .. }) | Question::Plain(Ok((_, uri)))) = question else {
            return true;
        };
        match mapping::relative_path(uri, &mut self.path) {
            Ok(path) => self.service.cache.get(path).is_some(),
            Err(_) => true,
        }
    }

    /// A version 1 request: its reply in one datagram, or not at all.
    fn plain(&mut self, mode: Mode, uri: &str, to: Peer, now: Instant) -> Result<Outcome, Refusal> {
        if mode != Mode::Copy {
            let words = "over UDP objects come by copy: descriptors and splices need a stream";
            return Err(Refusal(Status::InvalidMode, words.into()));
        }
        let room = longest_datagram(to.address) - CONTENT_HEAD;
        let too_large = |size: u64| {
            let words = format!("{size} bytes do not fit one datagram of {room}: pull ranges, or use TCP");
            Refusal(Status::UnsupportedOp, words.into())
        };
        match self.content(uri)? {
            Content::Small { total, .. } if total > room as u64 => Err(too_large(total)),
            Content::Open(opened) => Err(too_large(opened.size)),
            Content::Small { total, bytes, .. } => {
                let start = self.outbox.bytes.len();
                if !self.socket.gate.may_send(to.address, total as usize + CONTENT_HEAD + HEADERS, now) {
                    return Ok(Outcome::Limited);
                }
                self.outbox.bytes.extend_from_slice(&protocol::content_head(total));
                self.outbox.bytes.extend_from_slice(bytes.of(&self.small));
                self.outbox.push_one(start, to);
                self.socket.gate.counts.reply_sent.fetch_add(1, Relaxed);
                Ok(Outcome::Content(total))
            }
        }
    }

    /// A range in pieces. A range of nothing, and one behind the end, is answered with an empty piece: it tells version and
    /// size.
    fn pull(&mut self, pull: &Pull<'_>, uri: &str, to: Peer, now: Instant) -> Result<Outcome, Refusal> {
        for _ in 0..TRIES {
            let content = self.content(uri)?;
            let range = Range::new(pull, content.total(), to.address);
            let datagrams = range.length.div_ceil(range.piece).max(1);
            let bytes = range.length + datagrams * (DATA_HEAD + HEADERS);
            if !self.socket.gate.may_send(to.address, bytes, now) {
                return Ok(Outcome::Limited);
            }
            let start = self.outbox.bytes.len();
            self.outbox.bytes.resize(start + range.length + datagrams * DATA_HEAD, 0);
            let room = &mut self.outbox.bytes[start..];
            let is_whole = match &content {
                Content::Small { bytes, .. } => {
                    let mut rest = bytes.of(&self.small).get(range.start..).unwrap_or_default();
                    for payload in payloads(room, range.piece) {
                        let (here, after) = rest.split_at(payload.len());
                        payload.copy_from_slice(here);
                        rest = after;
                    }
                    true
                }
                Content::Open(opened) => {
                    read_pieces(opened, room, range.piece, range.offset)? && opened.is_unchanged()
                }
            };
            if !is_whole {
                self.outbox.bytes.truncate(start);
                continue;
            }
            let head = DataHead {
                request_id: pull.request_id,
                version: content.version().number(),
                total: content.total(),
                seed: wire::checksum_of_uri(uri),
            };
            for (number, datagram) in room.chunks_mut(DATA_HEAD + range.piece).enumerate() {
                wire::seal_data(datagram, &head, pull.offset.saturating_add((number * range.piece) as u64));
            }
            let datagram = DATA_HEAD + range.piece;
            self.outbox.push(start, datagram, self.socket.segmented(datagram), to);
            self.socket.gate.counts.data_sent.fetch_add(datagrams as u64, Relaxed);
            return Ok(Outcome::Content(range.length as u64));
        }
        Err(Error::Busy("the object is being written to, try again").into())
    }

    /// The object as it is now: its bytes where it is small, else the open file.
    fn content(&mut self, uri: &str) -> Result<Content, Refusal> {
        let Answerer { service, path, small, shard, .. } = self;
        let path = mapping::relative_path(uri, path)?;
        if let Some(kept) = service.cache.get(path)
            && service.mapping.version(path) == Some(kept.version)
        {
            service.statistics.record_cache(*shard, true);
            let total = kept.bytes.len() as u64;
            return Ok(Content::Small { version: kept.version, total, bytes: Bytes::Kept(kept.bytes) });
        }
        for _ in 0..TRIES {
            let opened = service.mapping.open(path)?;
            if opened.size > SMALL {
                return Ok(Content::Open(opened));
            }
            small.resize(opened.size as usize, 0);
            if read_pieces(&opened, small, 0, 0)? && opened.is_unchanged() {
                if service.cache.is_on() {
                    service.statistics.record_cache(*shard, false);
                    service.cache.put(path, opened.version, small);
                }
                let total = opened.size;
                return Ok(Content::Small { version: opened.version, total, bytes: Bytes::Scratch });
            }
        }
        Err(Error::Busy("the object is being written to, try again").into())
    }
}

#[derive(Debug)]
enum Content {
    Small { version: Version, total: u64, bytes: Bytes },
    Open(Opened),
}

/// Bytes of a small object: from the cache, or read just now.
#[derive(Debug)]
enum Bytes {
    Kept(Arc<[u8]>),
    Scratch,
}

impl Bytes {
    fn of<'a>(&'a self, scratch: &'a [u8]) -> &'a [u8] {
        match self {
            Bytes::Kept(bytes) => bytes,
            Bytes::Scratch => scratch,
        }
    }
}

impl Content {
    fn total(&self) -> u64 {
        match self {
            Content::Small { total, .. } => *total,
            Content::Open(opened) => opened.size,
        }
    }

    fn version(&self) -> Version {
        match self {
            Content::Small { version, .. } => *version,
            Content::Open(opened) => opened.version,
        }
    }
}

/// The part of an object that answers a PULL.
struct Range {
    offset: u64,
    /// The offset, where it lies within memory.
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

/// Where the contents go in a room for datagrams; a piece of 0 means that there are no heads between them.
fn payloads(room: &mut [u8], piece: usize) -> impl Iterator<Item = &mut [u8]> {
    let (head, step) = if piece == 0 { (0, room.len().max(1)) } else { (DATA_HEAD, DATA_HEAD + piece) };
    room.chunks_mut(step).map(move |datagram| &mut datagram[head..])
}

/// Reads a file from `offset` on into the datagrams' payloads. False where it ends before they are full.
fn read_pieces(opened: &Opened, room: &mut [u8], piece: usize, offset: u64) -> Result<bool, Error> {
    let mut slices: Vec<IoSliceMut<'_>> = payloads(room, piece).map(IoSliceMut::new).collect();
    let (mut left, mut at) = (&mut slices[..], offset);
    IoSliceMut::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match rustix::io::preadv(&opened.file, left, at) {
            Ok(0) => return Ok(false),
            Ok(read) => {
                IoSliceMut::advance_slices(&mut left, read);
                at += read as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::Storage(errno)),
        }
    }
    Ok(true)
}
