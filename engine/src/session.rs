//! One connection: bytes in, replies out, no opinion about threads.
//!
//! A session is a state machine over steps that need not wait. [`Session::run`] does what can be done now and says what
//! it needs next; which thread calls it, and whether the socket waits, is the business of `concurrency/`.
//!
//! Replies go out in the order of the requests. What one `recv` brought is answered together: small replies lie side by
//! side in one buffer and leave in one call, descriptors in one `sendmmsg`.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::concurrency::{Model, TICK};
use crate::errors::Error;
use crate::mapping::{self, Opened};
use crate::protocol::{self, Decoded, Mode, RequestDecoder, Status};
use crate::service::Service;
use crate::statistics::{Answered, Labels};
use crate::transport::{self, Patience, Transport};

/// Room for what one `recv` brings.
const INPUT: usize = 16 << 10;
/// Contents up to this size are copied beside their head; larger ones go by sendfile.
const SMALL: u64 = 64 << 10;
/// Replies are handed to the kernel once so many bytes or segments have gathered.
const GATHER_BYTES: usize = 256 << 10;
const GATHER_SEGMENTS: usize = transport::MOST_AT_ONCE;
/// One turn of a session answers so many requests, or sends so many bytes of files, before others have theirs.
const REQUESTS_A_TURN: usize = 64;
const BYTES_A_TURN: usize = 4 << 20;
/// How long a client that has not read its descriptors is left alone before it is looked at again.
const UNREAD_PAUSE: Duration = Duration::from_millis(2);
/// After a last word, so long the client's further bytes are read and dropped, so that a reset does not destroy the word.
const LINGER: Duration = Duration::from_secs(2);

/// What a session needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Bytes from the client.
    Readable,
    /// Room for bytes to the client.
    Writable,
    /// Storage that may block: [`Session::read_ahead`] on a thread that may wait, then run it again.
    Storage,
    /// Nothing: others should have their turn, then run it again.
    Again,
    /// To be run again after this time.
    Later(Duration),
    /// It is over: drop it.
    Closed,
}

/// How a model runs sessions.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    pub patience: Patience,
    /// With `Patience::Wait`: so long is tried before the thread sleeps.
    pub spin: Duration,
    /// Every request is answered with UNAVAILABLE, before any work.
    pub refuse: bool,
    /// Whoever runs this never waits for storage: see [`Next::Storage`].
    pub storage_elsewhere: bool,
}

/// Buffers that a thread lends to whichever session it runs, so that idle sessions need none.
#[derive(Debug)]
pub struct Scratch {
    input: Box<[u8]>,
    out: Vec<u8>,
    path: Vec<u8>,
    segments: VecDeque<Segment>,
    shard: usize,
    model: Model,
    /// How long the session that is run next has waited in a queue.
    pub queue_wait: Option<Duration>,
}

impl Scratch {
    pub fn new(service: &Service, model: Model) -> Self {
        Scratch {
            input: vec![0; INPUT].into_boxed_slice(),
            out: Vec::new(),
            path: Vec::new(),
            segments: VecDeque::new(),
            shard: service.statistics.assign_shard(),
            model,
            queue_wait: None,
        }
    }
}

/// A piece of a reply that has not been handed to the kernel.
#[derive(Debug)]
struct Segment {
    payload: Payload,
    /// What is counted when the last byte is gone; None where more of the same reply follows.
    ends: Option<Ending>,
}

#[derive(Debug)]
struct Ending {
    mode: Option<Mode>,
    status: Status,
    content: u64,
    complete_at: Instant,
}

#[derive(Debug)]
enum Payload {
    /// So many bytes of the out buffer.
    Buffered(usize),
    Descriptor(OwnedFd),
    /// The file's bytes from `at` up to `end`.
    File {
        file: OwnedFd,
        at: u64,
        end: u64,
    },
    /// An error that took the place of a descriptor the kernel refused.
    Text {
        bytes: Vec<u8>,
        at: usize,
    },
}

#[derive(Debug)]
pub struct Session {
    // None only after the session's account was settled, in drop.
    socket: Option<Arc<OwnedFd>>,
    transport: Transport,
    service: Arc<Service>,
    decoder: RequestDecoder,
    /// Bytes read and not yet understood.
    kept_input: Vec<u8>,
    /// Replies of which the kernel has not taken everything.
    outbox: VecDeque<Segment>,
    kept_out: Vec<u8>,
    /// Descriptors opened for this client that it has, as far as is known, not received.
    unread: u32,
    /// When the input last became complete requests.
    complete_at: Instant,
    /// When the frame that is still incomplete began.
    frame_since: Option<Instant>,
    /// When bytes last moved, either way.
    moved_at: Instant,
    ending: End,
    /// The object that the next request asks for was touched by a thread that may wait.
    warm: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    No,
    /// Close once the outbox is empty.
    AfterReplies,
    /// The last word is out: read and drop until then.
    Lingering(Instant),
}

impl Drop for Session {
    fn drop(&mut self) {
        self.outbox.clear();
        self.service.connection_ended();
        self.service.statistics.gauges(self.transport).connections.fetch_sub(1, Relaxed);
        if let Some(socket) = self.socket.take().and_then(Arc::into_inner) {
            self.service.settle(socket, self.unread);
        } else {
            self.service.in_flight.release(self.unread);
        }
    }
}

enum Progress {
    /// Nothing complete is left in the input.
    All,
    /// Enough has gathered: hand it over first.
    Full,
    /// The client must read descriptors first.
    Unread,
    /// The next request's object may have to come from the disk.
    Storage,
}

impl Session {
    /// Takes a connection that was counted by [`Service::admit_connection`].
    pub fn new(socket: OwnedFd, transport: Transport, service: &Arc<Service>) -> Self {
        let gauges = service.statistics.gauges(transport);
        gauges.connections.fetch_add(1, Relaxed);
        gauges.connections_total.fetch_add(1, Relaxed);
        let now = Instant::now();
        Session {
            socket: Some(Arc::new(socket)),
            transport,
            service: Arc::clone(service),
            decoder: RequestDecoder::default(),
            kept_input: Vec::new(),
            outbox: VecDeque::new(),
            kept_out: Vec::new(),
            unread: 0,
            complete_at: now,
            frame_since: None,
            moved_at: now,
            ending: End::No,
            warm: false,
        }
    }

    /// The socket, lent.
    pub fn socket(&self) -> &Arc<OwnedFd> {
        match &self.socket {
            Some(socket) => socket,
            None => unreachable!("the socket is given up in drop only"),
        }
    }

    /// Fits the socket to how it will be used: to wait (a second at most a call), or never.
    pub fn set_patience(&self, patience: Patience) -> Result<(), Errno> {
        transport::set_patience(self.socket(), patience, TICK)
    }

    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Does what can be done now.
    pub fn run(&mut self, scratch: &mut Scratch, manner: Manner) -> Next {
        let mut have = self.kept_input.len();
        scratch.input[..have].copy_from_slice(&self.kept_input);
        self.kept_input.clear();
        std::mem::swap(&mut scratch.out, &mut self.kept_out);
        if self.outbox.is_empty() {
            std::mem::swap(&mut scratch.segments, &mut self.outbox);
        }
        let mut at = 0;
        let mut sent = 0;
        let next = self.turn(scratch, manner, &mut at, &mut have, &mut sent);
        self.kept_input.extend_from_slice(&scratch.input[at..have]);
        if at == have && self.kept_input.capacity() > 0 {
            self.kept_input = Vec::new();
        }
        if sent < scratch.out.len() {
            self.kept_out.extend_from_slice(&scratch.out[sent..]);
        }
        scratch.out.clear();
        if self.outbox.is_empty() {
            std::mem::swap(&mut scratch.segments, &mut self.outbox);
        }
        next
    }

    fn turn(
        &mut self,
        scratch: &mut Scratch,
        manner: Manner,
        at: &mut usize,
        have: &mut usize,
        sent: &mut usize,
    ) -> Next {
        let mut requests_left = REQUESTS_A_TURN;
        let mut bytes_left = BYTES_A_TURN;
        // Whether the socket is known to hold nothing more.
        let mut emptied = false;
        loop {
            if let Some(next) = self.flush(scratch, manner, sent, &mut bytes_left) {
                return next;
            }
            match self.ending {
                End::No => {}
                End::AfterReplies => {
                    let _ = rustix::net::shutdown(self.socket(), rustix::net::Shutdown::Write);
                    self.ending = End::Lingering(Instant::now() + LINGER);
                    *at = *have;
                    continue;
                }
                End::Lingering(_) => return self.linger(scratch, manner.patience),
            }
            let progress = self.answer(scratch, manner, at, *have, &mut requests_left);
            if !self.outbox.is_empty() || self.ending != End::No {
                continue;
            }
            match progress {
                Progress::Unread => return Next::Later(UNREAD_PAUSE),
                Progress::Storage => return Next::Storage,
                Progress::Full => return Next::Again,
                Progress::All => {}
            }
            if requests_left == 0 {
                return Next::Again;
            }
            if emptied && manner.patience == Patience::Never {
                return Next::Readable;
            }
            if *at > 0 {
                scratch.input.copy_within(*at..*have, 0);
                *have -= *at;
                *at = 0;
            }
            let room = INPUT - *have;
            match receive(self.socket(), &mut scratch.input[*have..], manner, &self.service) {
                Ok(0) => return Next::Closed,
                Ok(length) => {
                    *have += length;
                    emptied = length < room;
                    self.complete_at = Instant::now();
                    self.moved_at = self.complete_at;
                    if self
                        .frame_since
                        .is_some_and(|since| self.complete_at - since > self.service.settings.header_timeout)
                    {
                        self.refuse_slow_frame(scratch);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Next::Readable,
                Err(_) => return Next::Closed,
            }
        }
    }

    /// Answers the complete requests in the input, into the outbox.
    fn answer(
        &mut self,
        scratch: &mut Scratch,
        manner: Manner,
        at: &mut usize,
        have: usize,
        requests_left: &mut usize,
    ) -> Progress {
        // The input is borrowed apart from the rest of the scratch buffers.
        let input = std::mem::take(&mut scratch.input);
        let mut rest = &input[*at..have];
        let progress = loop {
            if self.outbox.len() >= GATHER_SEGMENTS || scratch.out.len() >= GATHER_BYTES {
                break Progress::Full;
            }
            if *requests_left == 0 && !rest.is_empty() {
                break Progress::Full;
            }
            let by_descriptor =
                self.transport == Transport::Unix && rest.first() == Some(&(Mode::FdPass as u8));
            if by_descriptor && !self.may_pass() {
                break if self.outbox.is_empty() { Progress::Unread } else { Progress::Full };
            }
            if manner.storage_elsewhere && !manner.refuse && !self.is_warm(scratch, rest) {
                break if self.outbox.is_empty() { Progress::Storage } else { Progress::Full };
            }
            match self.decoder.decode(&mut rest) {
                Decoded::More => break Progress::All,
                Decoded::Request { mode, uri } => {
                    let result = if manner.refuse {
                        Err(Error::Busy("the server's queue is full, try again"))
                    } else {
                        self.answer_one(scratch, mode, uri)
                    };
                    if let Err(error) = result {
                        self.push_error(scratch, Some(mode), error);
                    }
                }
                Decoded::Refused(status) => self.push_error(scratch, None, Error::Refused(status)),
                Decoded::Fatal(status) => {
                    self.service
                        .statistics
                        .gauges(self.transport)
                        .protocol_errors_total
                        .fetch_add(1, Relaxed);
                    self.push_error(scratch, None, Error::Refused(status));
                    self.ending = End::AfterReplies;
                    rest = &[];
                    break Progress::All;
                }
            }
            self.frame_since = None;
            self.warm = false;
            *requests_left = requests_left.saturating_sub(1);
        };
        *at = have - rest.len();
        if matches!(progress, Progress::All) && !rest.is_empty() && self.frame_since.is_none() {
            self.frame_since = Some(self.complete_at);
        }
        scratch.input = input;
        progress
    }

    fn answer_one(&mut self, scratch: &mut Scratch, mode: Mode, uri: &str) -> Result<(), Error> {
        if mode == Mode::FdPass && self.transport != Transport::Unix {
            return Err(Error::ModeNeedsUnix);
        }
        let Scratch { path, out, shard, .. } = scratch;
        let path = mapping::relative_path(uri, path)?;
        let service = &self.service;
        let complete_at = self.complete_at;
        let cached = mode == Mode::Copy && service.cache.is_on();
        let ending = |content| Some(Ending { mode: Some(mode), status: Status::Ok, content, complete_at });
        if cached
            && let Some(kept) = service.cache.get(path)
            && service.mapping.version(path) == Some(kept.version)
        {
            service.statistics.record_cache(*shard, true);
            out.extend_from_slice(&protocol::content_head(kept.bytes.len() as u64));
            out.extend_from_slice(&kept.bytes);
            let length = protocol::CONTENT_HEAD + kept.bytes.len();
            self.push_buffered(length, ending(kept.bytes.len() as u64));
            return Ok(());
        }
        let Opened { file, size, version } = service.mapping.open(path)?;
        if mode == Mode::FdPass {
            mapping::clear_status_flags(&file)?;
            self.unread += 1;
            self.service.in_flight.take(1);
            self.outbox.push_back(Segment { payload: Payload::Descriptor(file), ends: ending(0) });
            return Ok(());
        }
        if size == 0 || (mode == Mode::Copy && size <= SMALL) {
            let before = out.len();
            let content = read_whole(&file, size as usize, out)?;
            let length = out.len() - before;
            if cached {
                service.statistics.record_cache(*shard, false);
                if content as u64 == size {
                    service.cache.put(path, version, &out[before + protocol::CONTENT_HEAD..]);
                }
            }
            self.push_buffered(length, ending(content as u64));
            return Ok(());
        }
        out.extend_from_slice(&protocol::content_head(size));
        self.push_buffered(protocol::CONTENT_HEAD, None);
        self.outbox
            .push_back(Segment { payload: Payload::File { file, at: 0, end: size }, ends: ending(size) });
        Ok(())
    }

    /// Whether the front request can be answered without waiting for a disk: its object is in memory, was read ahead, or
    /// there is no whole request.
    fn is_warm(&self, scratch: &mut Scratch, mut input: &[u8]) -> bool {
        if self.warm {
            return true;
        }
        let Some(Decoded::Request { mode, uri }) = self.decoder.peek(&mut input) else {
            return true;
        };
        let Ok(path) = mapping::relative_path(uri, &mut scratch.path) else {
            return true;
        };
        mode == Mode::Copy && self.service.cache.get(path).is_some()
    }

    /// Does the waiting for the request in front: looks its path up and brings the start of its content into memory. What
    /// goes wrong here goes wrong again, and is answered, when the request is served.
    pub fn read_ahead(&mut self) {
        self.warm = true;
        let mut input = &self.kept_input[..];
        let Some(Decoded::Request { mode, uri }) = self.decoder.peek(&mut input) else {
            return;
        };
        let mut path = Vec::new();
        let Ok(path) = mapping::relative_path(uri, &mut path) else {
            return;
        };
        if let Ok(Opened { file, size, .. }) = self.service.mapping.open(path)
            && mode != Mode::FdPass
        {
            transport::touch(&file, size.min(BYTES_A_TURN as u64));
        }
    }

    /// Whether one more descriptor may be opened for this client.
    fn may_pass(&mut self) -> bool {
        if self.unread < self.service.in_flight.allowance() {
            return true;
        }
        if self.outbox.is_empty() {
            self.notice_reading();
        }
        self.unread < self.service.in_flight.allowance()
    }

    /// Settles what the client has received. What lies in the outbox must not be counted as that: it must be empty.
    fn notice_reading(&mut self) {
        if self.unread > 0
            && self.outbox.is_empty()
            && matches!(transport::unread_by_peer(self.socket()), Ok(0))
        {
            self.service.in_flight.release(self.unread);
            self.unread = 0;
        }
    }

    fn push_buffered(&mut self, length: usize, ends: Option<Ending>) {
        self.outbox.push_back(Segment { payload: Payload::Buffered(length), ends });
    }

    fn push_error(&mut self, scratch: &mut Scratch, mode: Option<Mode>, error: Error) {
        let before = scratch.out.len();
        protocol::encode_error(&mut scratch.out, error.status(), &error.to_string());
        let ending = Ending { mode, status: error.status(), content: 0, complete_at: self.complete_at };
        self.push_buffered(scratch.out.len() - before, Some(ending));
    }

    fn refuse_slow_frame(&mut self, scratch: &mut Scratch) {
        self.service.statistics.gauges(self.transport).timeouts_total.fetch_add(1, Relaxed);
        self.push_error(scratch, None, Error::TooSlow);
        self.ending = End::AfterReplies;
    }

    /// Hands the outbox to the kernel. None: all of it.
    fn flush(
        &mut self,
        scratch: &mut Scratch,
        manner: Manner,
        sent: &mut usize,
        bytes_left: &mut usize,
    ) -> Option<Next> {
        while let Some(front) = self.outbox.front() {
            if *bytes_left == 0 && manner.patience == Patience::Never {
                return Some(Next::Again);
            }
            let outcome = match front.payload {
                Payload::Buffered(_) => self.flush_buffered(scratch, manner.patience, sent),
                Payload::Descriptor(_) => self.flush_descriptors(scratch, manner.patience),
                Payload::File { .. } => self.flush_file(scratch, manner.patience, bytes_left),
                Payload::Text { .. } => self.flush_text(scratch, manner.patience),
            };
            match outcome {
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Some(Next::Writable),
                Err(_) => return Some(Next::Closed),
            }
        }
        if *sent > 0 {
            scratch.out.clear();
            *sent = 0;
        }
        None
    }

    fn flush_buffered(
        &mut self,
        scratch: &mut Scratch,
        patience: Patience,
        sent: &mut usize,
    ) -> Result<(), Errno> {
        let mut total = 0;
        let mut more = false;
        for segment in &self.outbox {
            match segment.payload {
                Payload::Buffered(length) => total += length,
                _ => {
                    more = matches!(segment.payload, Payload::File { .. });
                    break;
                }
            }
        }
        let mut taken = transport::send(self.socket(), &scratch.out[*sent..*sent + total], patience, more)?;
        *sent += taken;
        let now = Instant::now();
        self.moved_at = now;
        while let Some(Segment { payload: Payload::Buffered(length), .. }) = self.outbox.front_mut() {
            if *length > taken {
                *length -= taken;
                break;
            }
            taken -= *length;
            self.finish_front(scratch, now);
        }
        Ok(())
    }

    fn flush_descriptors(&mut self, scratch: &mut Scratch, patience: Patience) -> Result<(), Errno> {
        let passed = {
            let first = self.outbox.front().and_then(as_descriptor);
            match (first, self.outbox.len()) {
                (Some(file), 1) => transport::send_descriptors(self.socket(), &[file], patience),
                _ => {
                    let files: Vec<BorrowedFd<'_>> = self.outbox.iter().map_while(as_descriptor).collect();
                    transport::send_descriptors(self.socket(), &files, patience)
                }
            }
        };
        match passed {
            Ok(passed) => {
                let now = Instant::now();
                self.moved_at = now;
                for _ in 0..passed {
                    self.finish_front(scratch, now);
                }
                Ok(())
            }
            // Too many in flight for this user: this request is refused, the connection goes on.
            Err(Errno::TOOMANYREFS) => {
                self.unread -= 1;
                self.service.in_flight.release(1);
                let error = Error::Busy("too many unread file descriptors of this user, try again");
                let mut bytes = Vec::new();
                protocol::encode_error(&mut bytes, error.status(), &error.to_string());
                if let Some(front) = self.outbox.front_mut() {
                    front.payload = Payload::Text { bytes, at: 0 };
                    if let Some(ending) = &mut front.ends {
                        ending.status = error.status();
                    }
                }
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }

    fn flush_text(&mut self, scratch: &mut Scratch, patience: Patience) -> Result<(), Errno> {
        let Some(Segment { payload: Payload::Text { bytes, at }, .. }) = self.outbox.front() else {
            return Ok(());
        };
        let taken = transport::send(self.socket(), &bytes[*at..], patience, false)?;
        let now = Instant::now();
        self.moved_at = now;
        if let Some(Segment { payload: Payload::Text { bytes, at }, .. }) = self.outbox.front_mut() {
            *at += taken;
            if *at == bytes.len() {
                self.finish_front(scratch, now);
            }
        }
        Ok(())
    }

    fn flush_file(
        &mut self,
        scratch: &mut Scratch,
        patience: Patience,
        bytes_left: &mut usize,
    ) -> Result<(), Errno> {
        let Some(Segment { payload: Payload::File { file, at, end }, .. }) = self.outbox.front() else {
            return Ok(());
        };
        let (offset, end) = (*at, *end);
        let mut most = usize::try_from(end - offset).unwrap_or(usize::MAX).min(BYTES_A_TURN);
        if patience == Patience::Never {
            most = most.min(*bytes_left);
        }
        let taken = match transport::send_file(self.socket(), file, offset, most) {
            // The file system cannot do it: copy through this process.
            Err(Errno::INVAL | Errno::NOSYS) => self.send_by_copy(file, offset, most, patience)?,
            other => other?,
        };
        if taken == 0 {
            // The file shrank, and the length was promised: only closing tells the client.
            return Err(Errno::IO);
        }
        *bytes_left = bytes_left.saturating_sub(taken);
        let now = Instant::now();
        self.moved_at = now;
        if let Some(Segment { payload: Payload::File { at, .. }, .. }) = self.outbox.front_mut() {
            *at += taken as u64;
            if *at == end {
                self.finish_front(scratch, now);
            }
        }
        Ok(())
    }

    fn send_by_copy(
        &self,
        file: &OwnedFd,
        offset: u64,
        most: usize,
        patience: Patience,
    ) -> Result<usize, Errno> {
        let mut bytes = vec![0; most.min(SMALL as usize)];
        let length = rustix::io::pread(file, &mut bytes[..], offset)?;
        if length == 0 { Ok(0) } else { transport::send(self.socket(), &bytes[..length], patience, false) }
    }

    /// Drops the front segment, whose last byte is gone, and counts the reply that ends with it.
    fn finish_front(&mut self, scratch: &Scratch, now: Instant) {
        let Some(Segment { ends: Some(ending), .. }) = self.outbox.pop_front() else {
            return;
        };
        let waited = scratch.queue_wait.unwrap_or_default();
        self.service.statistics.record(
            scratch.shard,
            &Answered {
                // A frame that could not be understood has no mode; it is counted with the commonest one.
                labels: Labels::new(self.transport, scratch.model, ending.mode.unwrap_or(Mode::FdPass)),
                status: ending.status,
                latency: now.saturating_duration_since(ending.complete_at) + waited,
                // Of what was served: how long a refusal had waited is nobody's wait.
                queue_wait: scratch.queue_wait.filter(|_| ending.status != Status::Unavailable),
                bytes: ending.content,
            },
        );
    }

    /// Reads and drops what a client sends after the last word to it.
    fn linger(&mut self, scratch: &mut Scratch, patience: Patience) -> Next {
        let End::Lingering(until) = self.ending else { return Next::Closed };
        loop {
            if Instant::now() >= until {
                return Next::Closed;
            }
            match transport::receive(self.socket(), &mut scratch.input, patience) {
                Ok(0) => return Next::Closed,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Next::Readable,
                Err(_) => return Next::Closed,
            }
        }
    }

    /// Looks at the clock; every model calls it for each of its sessions about once a second. True: drop the session.
    pub fn is_overdue(&mut self, now: Instant) -> bool {
        self.notice_reading();
        let settings = &self.service.settings;
        let still = now.saturating_duration_since(self.moved_at);
        let overdue = if let End::Lingering(until) = self.ending {
            return now >= until;
        } else if !self.outbox.is_empty() {
            still > settings.request_timeout
        } else if let Some(since) = self.frame_since {
            let overdue = now.saturating_duration_since(since) > settings.header_timeout;
            if overdue {
                // One try: whoever does not send does not deserve to be waited for.
                let mut bytes = Vec::new();
                protocol::encode_error(&mut bytes, Status::Timeout, &Error::TooSlow.to_string());
                let _ = transport::send(self.socket(), &bytes, Patience::Never, false);
            }
            overdue
        } else if !self.kept_input.is_empty() {
            // Complete requests that wait for the client to read its descriptors.
            still > settings.request_timeout
        } else {
            // An idle connection's end is nothing to count.
            return still > settings.idle_timeout;
        };
        if overdue {
            self.service.statistics.gauges(self.transport).timeouts_total.fetch_add(1, Relaxed);
        }
        overdue
    }

    /// Lets the client send nothing more: what has come is answered, then the session closes.
    pub fn stop_reading(&self) {
        let _ = rustix::net::shutdown(self.socket(), rustix::net::Shutdown::Read);
    }
}

/// The descriptor that a segment passes, lent.
fn as_descriptor(segment: &Segment) -> Option<BorrowedFd<'_>> {
    match &segment.payload {
        Payload::Descriptor(file) => Some(file.as_fd()),
        _ => None,
    }
}

/// `recv`, after trying for a while without sleeping where the manner says so.
fn receive(socket: &OwnedFd, buffer: &mut [u8], manner: Manner, service: &Service) -> Result<usize, Errno> {
    if manner.patience == Patience::Wait && !manner.spin.is_zero() {
        let spinners = service.spinners.fetch_add(1, Relaxed);
        let mut outcome = Err(Errno::AGAIN);
        if spinners < service.max_spinners {
            let until = Instant::now() + manner.spin;
            while outcome == Err(Errno::AGAIN) && Instant::now() < until {
                outcome = transport::receive(socket, buffer, Patience::Never);
                std::hint::spin_loop();
            }
        }
        service.spinners.fetch_sub(1, Relaxed);
        if outcome != Err(Errno::AGAIN) {
            return outcome;
        }
    }
    transport::receive(socket, buffer, manner.patience)
}

/// Appends head and content of a small file. Returns the content's length: what the file really has, up to `size`.
fn read_whole(file: &OwnedFd, size: usize, out: &mut Vec<u8>) -> Result<usize, Error> {
    let head = out.len();
    let start = head + protocol::CONTENT_HEAD;
    out.resize(start + size, 0);
    let mut length = 0;
    while length < size {
        match rustix::io::pread(file, &mut out[start + length..], length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(Errno::INTR) => {}
            Err(errno) => {
                out.truncate(head);
                return Err(Error::Storage(errno));
            }
        }
    }
    out.truncate(start + length);
    out[head..start].copy_from_slice(&protocol::content_head(length as u64));
    Ok(length)
}
