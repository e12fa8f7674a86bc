//! One connection: bytes in, replies out, independent of threads.
//!
//! A session is a state machine over steps that need not wait. [`Session::run`] does what can be done now and says
//! what it needs next; `concurrency/` decides which thread calls it, and whether the socket blocks.
//!
//! Replies leave in the order of the requests. The session answers all requests of one `recv` together: small replies
//! lie side by side in one buffer and leave in one call, descriptors in one `sendmmsg`.

mod access;
mod buffers;
pub(crate) mod completions;
mod connection;
mod dispatch;
mod fd_charge;
mod input;
mod outbox;
mod output_charge;
mod pace;
mod put_by_descriptor;
mod reply;
mod storage_job;
mod submitted_jobs;
mod timeouts;
mod upload;
mod v1;
mod v2;

use crate::net::socket;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

pub use self::buffers::{QueueWait, ThreadBuffers};
pub use self::connection::{Connection, Wake};
use self::dispatch::{BYTES_PER_TURN, CONTENT_PER_TURN};
use self::fd_charge::PassedFiles;
use self::input::ReadOutcome;
use self::outbox::Segment;
use self::v2::V2State;
use crate::access::accounts::ClientAccess;
use crate::fd::counted_connection::CountedConnection;
use crate::model::TICK;
use crate::net::transport::{IoMode, Transport};
use crate::protocol::{self, RequestDecoder};
use crate::service::Service;

/// Room for the bytes of one `recv`; the longest request of either version fits.
const INPUT: usize = 16 << 10;
/// Gathered bytes, and below segments, at which the session hands replies to the kernel.
const GATHER_BYTES: usize = 256 << 10;
const GATHER_SEGMENTS: usize = socket::MAX_FDS_PER_MESSAGE;
/// Requests that one turn of a session answers before other sessions run.
const REQUESTS_PER_TURN: usize = 64;
/// After its last message the server reads and drops the client's further bytes for this long, so that a reset does
/// not destroy the message.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// What a session needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Bytes from the client.
    Readable,
    /// Room for bytes to the client.
    Writable,
    /// The result of a storage job: nothing to do until the session is [woken](Connection::set_wake).
    Waiting,
    /// Nothing: other sessions should run, then this one again.
    Yield,
    /// Run again after this time.
    After(Duration),
    /// The session is over: drop it.
    Closed,
}

/// How a model runs sessions.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    pub io_mode: IoMode,
    /// With `IoMode::Blocking`: how long the thread spins before it sleeps.
    pub spin: Duration,
    /// Answer every request with UNAVAILABLE, before any work.
    pub refuse: bool,
    /// The calling thread never waits for storage: the storage pool does.
    pub offload_storage: bool,
    /// After this time other sessions run, however few requests were answered.
    pub most: Option<Duration>,
}

/// Which version the client speaks.
#[derive(Debug)]
enum ProtocolState {
    /// The client has sent no byte yet; the files that it has passed already.
    Unknown(PassedFiles),
    V1(RequestDecoder),
    V2(Box<V2State>),
}

#[derive(Debug)]
pub struct Session {
    connection: Arc<Connection>,
    transport: Transport,
    service: Arc<Service>,
    /// The client's access rights; None while no rules concern it.
    client_access: Option<Box<ClientAccess>>,
    rules_seen: u64,
    protocol_state: ProtocolState,
    /// Bytes read and not yet decoded.
    input_buffer: Vec<u8>,
    /// Replies that the kernel has not taken completely.
    outbox: VecDeque<Segment>,
    output_buffer: Vec<u8>,
    /// The part of it that is charged to the client.
    kept_charge: usize,
    /// Descriptors opened for this client, or about to be, and not passed yet.
    held: u32,
    /// Jobs that storage runs for this session, and how many of them are listings.
    jobs: u32,
    listings: u32,
    has_listed: bool,
    /// The storage pool found that the client has gone, or lost a job of this session.
    is_abandoned: bool,
    /// The storage pool is reading ahead in the file in front.
    is_warming: bool,
    is_non_blocking: bool,
    /// When the input last completed a request.
    complete_at: Instant,
    /// Since when the server waits for the rest of a frame.
    frame_since: Option<Instant>,
    /// When bytes last moved, either way.
    moved_at: Instant,
    ending: CloseState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CloseState {
    No,
    /// Close once everything is answered.
    AfterReplies,
    /// The last message is sent: read and drop until then.
    Lingering(Instant),
}

impl Drop for Session {
    fn drop(&mut self) {
        self.outbox.clear();
        self.end_jobs();
        self.connection.end_session(self.client_access.take());
        self.connection.release_output(self.kept_charge);
        self.connection.release(&self.service, self.held);
        let has_unread_fds = self.connection.has_unread_fds();
        if has_unread_fds || self.jobs > 0 {
            // The client sees the end of the stream even if others still hold the socket; bytes queued before the end
            // stay readable.
            let _ = rustix::net::shutdown(self.socket(), rustix::net::Shutdown::Both);
        }
        if has_unread_fds {
            let connection: Arc<Connection> = Arc::clone(&self.connection);
            self.service.track_unread(connection);
        } else {
            self.connection.forget_unread();
        }
    }
}

/// The outcome of the frame in front of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FrameOutcome {
    /// The session has answered it, or storage works on it.
    Done,
    /// The input ends inside it.
    More,
    /// It was the client's last frame.
    Last,
    /// The frame broke the protocol.
    Fatal,
}

enum InputOutcome {
    /// Nothing complete is left in the input.
    Consumed,
    /// Enough replies have gathered: send them first.
    OutputFull,
    /// The client must read descriptors first.
    FdsUnread,
    /// Jobs in progress must be answered first.
    JobsPending,
}

impl Session {
    /// Takes a connection that [`Clients::admit`](crate::access::accounts::Clients::admit) has admitted and
    /// [`Service::admit_connection`] has counted.
    pub fn new(
        socket: OwnedFd,
        transport: Transport,
        service: &Arc<Service>,
        client_access: Option<Box<ClientAccess>>,
    ) -> Self {
        let now = Instant::now();
        let mut session = Session {
            connection: Arc::new(Connection::new(socket, transport, service)),
            transport,
            service: Arc::clone(service),
            rules_seen: client_access.as_ref().map_or(0, |client_access| client_access.generation),
            client_access,
            protocol_state: ProtocolState::Unknown(PassedFiles::default()),
            input_buffer: Vec::new(),
            outbox: VecDeque::new(),
            output_buffer: Vec::new(),
            kept_charge: 0,
            held: 0,
            jobs: 0,
            listings: 0,
            has_listed: false,
            is_abandoned: false,
            is_warming: false,
            is_non_blocking: false,
            complete_at: now,
            frame_since: None,
            moved_at: now,
            ending: CloseState::No,
        };
        session.open_access();
        session
    }

    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// The socket, borrowed.
    pub fn socket(&self) -> &OwnedFd {
        &self.connection.socket
    }

    /// Prepares the socket for a thread that sleeps in it, for at most a second per call.
    pub fn prepare_to_sleep(&mut self) -> Result<(), Errno> {
        if self.is_non_blocking {
            socket::set_non_blocking(self.socket(), false)?;
            self.is_non_blocking = false;
        }
        socket::set_timeouts(self.socket(), TICK)
    }

    /// Sets O_NONBLOCK for sendfile, which has no flag for that.
    fn make_non_blocking(&mut self) -> Result<(), Errno> {
        if !self.is_non_blocking {
            socket::set_non_blocking(self.socket(), true)?;
            self.is_non_blocking = true;
        }
        Ok(())
    }

    /// Whether the session has work that no event announces: unsent replies, unread requests.
    pub fn has_pending_work(&self) -> bool {
        !self.outbox.is_empty() || !self.input_buffer.is_empty()
    }

    /// Does the work that can be done without waiting.
    pub fn run(&mut self, buffers: &mut ThreadBuffers, options: RunOptions) -> Next {
        self.with_buffers(buffers, |session, buffers, at, have, sent| {
            session.run_once(buffers, options, at, have, sent)
        })
    }

    /// Works on the session's kept bytes in a thread's buffers; keeps the rest afterwards. `work` gets the start and
    /// end of its input, and how much of the output has been sent.
    fn with_buffers<R>(
        &mut self,
        buffers: &mut ThreadBuffers,
        work: impl FnOnce(&mut Self, &mut ThreadBuffers, &mut usize, &mut usize, &mut usize) -> R,
    ) -> R {
        let mut have = self.input_buffer.len();
        buffers.input[..have].copy_from_slice(&self.input_buffer);
        self.input_buffer.clear();
        // The thread's own output returns to the thread: idle sessions must not keep the capacity that it has grown
        // to.
        let lent = match self.output_buffer.is_empty() {
            true => None,
            false => Some(std::mem::replace(&mut buffers.out, std::mem::take(&mut self.output_buffer))),
        };
        if self.outbox.is_empty() {
            std::mem::swap(&mut buffers.segments, &mut self.outbox);
        }
        let mut at = 0;
        let mut sent = 0;
        let result = work(self, buffers, &mut at, &mut have, &mut sent);
        self.input_buffer.extend_from_slice(&buffers.input[at..have]);
        if at == have && self.input_buffer.capacity() > 0 {
            self.input_buffer = Vec::new();
        }
        self.keep_output(buffers, lent, sent);
        if self.outbox.is_empty() {
            std::mem::swap(&mut buffers.segments, &mut self.outbox);
        }
        result
    }

    fn run_once(
        &mut self,
        buffers: &mut ThreadBuffers,
        options: RunOptions,
        at: &mut usize,
        have: &mut usize,
        sent: &mut usize,
    ) -> Next {
        let mut requests_left = REQUESTS_PER_TURN;
        let turn_ends = options.most.map(|most| Instant::now() + most);
        let mut bytes_left = BYTES_PER_TURN;
        let mut content_left = CONTENT_PER_TURN;
        // Whether the socket is known to hold nothing more.
        let mut emptied = false;
        loop {
            if self.jobs > 0 {
                self.collect_completions(buffers);
                if self.is_abandoned {
                    return Next::Closed;
                }
            }
            if let Some(next) = self.flush(buffers, options, sent, &mut bytes_left) {
                return next;
            }
            match self.ending {
                CloseState::No => {}
                CloseState::AfterReplies if self.jobs > 0 => return Next::Waiting,
                CloseState::AfterReplies => {
                    let _ = rustix::net::shutdown(self.socket(), rustix::net::Shutdown::Write);
                    self.ending = CloseState::Lingering(Instant::now() + LINGER_TIMEOUT);
                    *at = *have;
                    continue;
                }
                CloseState::Lingering(_) => return self.linger(buffers, options.io_mode),
            }
            let progress = self.process_input(buffers, options, at, *have, &mut requests_left, turn_ends);
            if !self.outbox.is_empty() || self.ending != CloseState::No {
                continue;
            }
            if !matches!(progress, InputOutcome::Consumed) {
                self.frame_since = None;
            }
            match progress {
                InputOutcome::FdsUnread => return self.backoff(),
                InputOutcome::JobsPending => return Next::Waiting,
                InputOutcome::OutputFull => return Next::Yield,
                InputOutcome::Consumed => {}
            }
            let is_over = turn_ends.is_some_and(|end| Instant::now() >= end);
            if requests_left == 0 || bytes_left == 0 || content_left == 0 || is_over {
                return Next::Yield;
            }
            if self.waits_for_writers() {
                return Next::Waiting;
            }
            // From here on the session waits for the client.
            if self.frame_since.is_none() && (*at < *have || self.is_skipping()) {
                self.frame_since = Some(Instant::now());
            }
            if emptied && options.io_mode == IoMode::NonBlocking {
                return Next::Readable;
            }
            match self.read(buffers, options, at, have) {
                Ok(ReadOutcome::Requests { filled }) => emptied = !filled,
                Ok(ReadOutcome::Content(length)) => content_left = content_left.saturating_sub(length),
                Err(next) => return next,
            }
        }
    }

    /// Answers the complete requests in the input, into the outbox.
    fn process_input(
        &mut self,
        buffers: &mut ThreadBuffers,
        options: RunOptions,
        at: &mut usize,
        have: usize,
        requests_left: &mut usize,
        turn_ends: Option<Instant>,
    ) -> InputOutcome {
        self.refresh_access();
        buffers.room = self.room_for_output();
        // The input is borrowed apart from the rest of the thread buffers.
        let input = std::mem::take(&mut buffers.input);
        let mut rest = &input[*at..have];
        let progress = loop {
            if self.outbox.len() >= GATHER_SEGMENTS || self.has_gathered(buffers) {
                break InputOutcome::OutputFull;
            }
            // A thread that has no other session to run answers all requests that came together.
            if *requests_left == 0 && !rest.is_empty() && options.io_mode == IoMode::NonBlocking {
                break InputOutcome::OutputFull;
            }
            if let ProtocolState::V2(two) = &self.protocol_state
                && two.is_receiving()
            {
                self.take_content(&mut rest);
                if rest.is_empty() {
                    break InputOutcome::Consumed;
                }
                continue;
            }
            if self.jobs > 0 && self.must_wait_for_jobs(rest) {
                break if self.outbox.is_empty() {
                    InputOutcome::JobsPending
                } else {
                    InputOutcome::OutputFull
                };
            }
            if let Some(progress) = self.owes_too_much(rest) {
                break progress;
            }
            if self.over_budget(rest) {
                break match (self.outbox.is_empty(), self.jobs) {
                    (false, _) => InputOutcome::OutputFull,
                    (true, 0) => InputOutcome::FdsUnread,
                    (true, _) => InputOutcome::JobsPending,
                };
            }
            let step = match (&self.protocol_state, rest.first()) {
                (_, None) => FrameOutcome::More,
                (ProtocolState::Unknown(_), Some(&protocol::v2::FIRST)) => self.handshake(buffers, &mut rest),
                (ProtocolState::Unknown(_), Some(_)) => {
                    self.protocol_state = ProtocolState::V1(RequestDecoder::default());
                    self.step_v1(buffers, options, &mut rest)
                }
                (ProtocolState::V1(_), _) => self.step_v1(buffers, options, &mut rest),
                (ProtocolState::V2(_), _) => self.step_v2(buffers, options, &mut rest),
            };
            match step {
                FrameOutcome::Done => {}
                FrameOutcome::More => break InputOutcome::Consumed,
                FrameOutcome::Last | FrameOutcome::Fatal => {
                    if step == FrameOutcome::Fatal {
                        let gauges = self.service.statistics.gauges(self.transport);
                        gauges.protocol_errors_total.fetch_add(1, Relaxed);
                    }
                    self.ending = CloseState::AfterReplies;
                    rest = &[];
                    break InputOutcome::Consumed;
                }
            }
            self.frame_since = None;
            *requests_left = requests_left.saturating_sub(1);
            if turn_ends.is_some_and(|end| Instant::now() >= end) {
                *requests_left = 0;
            }
        };
        *at = have - rest.len();
        if matches!(progress, InputOutcome::Consumed)
            && let ProtocolState::V2(two) = &mut self.protocol_state
        {
            two.mark_parsed(!rest.is_empty());
        }
        buffers.input = input;
        progress
    }
}
