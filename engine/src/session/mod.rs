//! One connection: bytes in, replies out, no opinion about threads.
//!
//! A session is a state machine over steps that need not wait. [`Session::run`] does what can be done now and says what
//! it needs next; which thread calls it, and whether the socket waits, is the business of `concurrency/`.
//!
//! Replies go out in the order of the requests. What one `recv` brought is answered together: small replies lie side by
//! side in one buffer and leave in one call, descriptors in one `sendmmsg`.

mod admission;
mod backlog;
mod connection;
mod copies;
mod descriptors;
mod endings;
mod errand;
pub(crate) mod finished;
mod jobs;
mod outbox;
mod pace;
mod reading;
mod replies;
mod scratch;
mod unread;
mod uploading;
mod version1;
mod version2;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

pub use self::connection::{Connection, Wake};
use self::descriptors::Received;
use self::outbox::Segment;
use self::reading::Came;
use self::replies::{BYTES_A_TURN, CONTENT_A_TURN};
pub use self::scratch::{Queued, Scratch};
use self::version2::Two;
use crate::concurrency::TICK;
use crate::peers::Guest;
use crate::protocol::{RequestDecoder, v2};
use crate::service::Service;
use crate::transport::{self, Patience, Transport};

/// Room for what one `recv` brings; the longest request of either version fits.
const INPUT: usize = 16 << 10;
/// Replies are handed to the kernel once so many bytes or segments have gathered.
const GATHER_BYTES: usize = 256 << 10;
const GATHER_SEGMENTS: usize = transport::MOST_AT_ONCE;
/// One turn of a session answers so many requests before others have theirs.
const REQUESTS_A_TURN: usize = 64;
/// After a last word, so long the client's further bytes are read and dropped, so that a reset does not destroy the word.
const LINGER: Duration = Duration::from_secs(2);

/// What a session needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Bytes from the client.
    Readable,
    /// Room for bytes to the client.
    Writable,
    /// What storage is doing for it: nothing until it is [woken](Connection::set_wake).
    Waiting,
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
    /// Whoever runs this never waits for storage: the storage pool does.
    pub storage_elsewhere: bool,
    /// After this time others have their turn, however few requests were answered.
    pub most: Option<Duration>,
}

/// Which version the client speaks.
#[derive(Debug)]
enum Speaks {
    /// It has not said anything; what it has passed already.
    Nothing(Received),
    One(RequestDecoder),
    Two(Box<Two>),
}

#[derive(Debug)]
pub struct Session {
    connection: Arc<Connection>,
    transport: Transport,
    service: Arc<Service>,
    /// What there is to know of the client; None while no rules concern it.
    guest: Option<Box<Guest>>,
    rules_seen: u64,
    speaks: Speaks,
    /// Bytes read and not yet understood.
    kept_input: Vec<u8>,
    /// Replies of which the kernel has not taken everything.
    outbox: VecDeque<Segment>,
    kept_out: Vec<u8>,
    /// What of it is on the account.
    kept_charge: usize,
    /// Descriptors opened for this client, or about to be, and not passed yet.
    held: u32,
    /// What the storage pool is doing for this session, and how much of it is listing.
    jobs: u32,
    listings: u32,
    has_listed: bool,
    /// The storage pool found that the client has gone, or lost what it was doing for it.
    is_abandoned: bool,
    /// The storage pool is reading on in the file in front.
    is_warming: bool,
    is_non_blocking: bool,
    /// When the input last became complete requests.
    complete_at: Instant,
    /// Since when the server waits for the rest of a frame.
    frame_since: Option<Instant>,
    /// When bytes last moved, either way.
    moved_at: Instant,
    ending: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    No,
    /// Close once everything is answered.
    AfterReplies,
    /// The last word is out: read and drop until then.
    Lingering(Instant),
}

impl Drop for Session {
    fn drop(&mut self) {
        self.outbox.clear();
        self.end_jobs();
        self.connection.end_session(self.guest.take());
        self.connection.release_output(self.kept_charge);
        self.connection.release(&self.service, self.held);
        let is_awaited = self.connection.is_awaited();
        if is_awaited || self.jobs > 0 {
            // The client sees the end of the stream, whoever else still holds the socket; what is queued in front of it stays
            // readable.
            let _ = rustix::net::shutdown(self.socket(), rustix::net::Shutdown::Both);
        }
        if is_awaited {
            self.service.keep_until_read(Arc::clone(&self.connection));
        } else {
            self.connection.write_off(&self.service);
        }
    }
}

/// What became of the frame in front of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It is answered, or being worked at.
    Done,
    /// The input ends inside it.
    More,
    /// It was the client's last.
    Last,
    /// It broke the protocol.
    Fatal,
}

enum Progress {
    /// Nothing complete is left in the input.
    All,
    /// Enough has gathered: hand it over first.
    Full,
    /// The client must read descriptors first.
    Unread,
    /// What is under way must be answered first.
    Held,
}

impl Session {
    /// Takes a connection that was judged by [`Peers::admit`](crate::peers::Peers::admit) and counted by
    /// [`Service::admit_connection`].
    pub fn new(
        socket: OwnedFd,
        transport: Transport,
        service: &Arc<Service>,
        guest: Option<Box<Guest>>,
    ) -> Self {
        let now = Instant::now();
        let mut session = Session {
            connection: Arc::new(Connection::new(socket, transport, service)),
            transport,
            service: Arc::clone(service),
            rules_seen: guest.as_ref().map_or(0, |guest| guest.generation),
            guest,
            speaks: Speaks::Nothing(Received::default()),
            kept_input: Vec::new(),
            outbox: VecDeque::new(),
            kept_out: Vec::new(),
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
            ending: End::No,
        };
        session.open_account();
        session
    }

    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// The socket, lent.
    pub fn socket(&self) -> &OwnedFd {
        &self.connection.socket
    }

    /// Fits the socket to a thread that sleeps in it, a second at most a call.
    pub fn prepare_to_sleep(&mut self) -> Result<(), Errno> {
        if self.is_non_blocking {
            transport::set_non_blocking(self.socket(), false)?;
            self.is_non_blocking = false;
        }
        transport::set_timeouts(self.socket(), TICK)
    }

    /// For sendfile, which cannot be told otherwise not to wait.
    fn make_non_blocking(&mut self) -> Result<(), Errno> {
        if !self.is_non_blocking {
            transport::set_non_blocking(self.socket(), true)?;
            self.is_non_blocking = true;
        }
        Ok(())
    }

    /// Whether it has something to do that no event tells of: replies to hand over, requests that came.
    pub fn wants_a_turn(&self) -> bool {
        !self.outbox.is_empty() || !self.kept_input.is_empty()
    }

    /// Does what can be done now.
    pub fn run(&mut self, scratch: &mut Scratch, manner: Manner) -> Next {
        self.with(scratch, |session, scratch, at, have, sent| session.turn(scratch, manner, at, have, sent))
    }

    /// Works with what the session has kept, in the buffers of a thread; keeps what is left then. `work` is told where its
    /// input begins and ends, and how much of the output has been sent.
    fn with<R>(
        &mut self,
        scratch: &mut Scratch,
        work: impl FnOnce(&mut Self, &mut Scratch, &mut usize, &mut usize, &mut usize) -> R,
    ) -> R {
        let mut have = self.kept_input.len();
        scratch.input[..have].copy_from_slice(&self.kept_input);
        self.kept_input.clear();
        // The thread's own output goes back to the thread: idle sessions must not keep what it has grown to.
        let lent = match self.kept_out.is_empty() {
            true => None,
            false => Some(std::mem::replace(&mut scratch.out, std::mem::take(&mut self.kept_out))),
        };
        if self.outbox.is_empty() {
            std::mem::swap(&mut scratch.segments, &mut self.outbox);
        }
        let mut at = 0;
        let mut sent = 0;
        let result = work(self, scratch, &mut at, &mut have, &mut sent);
        self.kept_input.extend_from_slice(&scratch.input[at..have]);
        if at == have && self.kept_input.capacity() > 0 {
            self.kept_input = Vec::new();
        }
        self.keep_output(scratch, lent, sent);
        if self.outbox.is_empty() {
            std::mem::swap(&mut scratch.segments, &mut self.outbox);
        }
        result
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
        let turn_ends = manner.most.map(|most| Instant::now() + most);
        let mut bytes_left = BYTES_A_TURN;
        let mut content_left = CONTENT_A_TURN;
        // Whether the socket is known to hold nothing more.
        let mut emptied = false;
        loop {
            if self.jobs > 0 {
                self.collect(scratch);
                if self.is_abandoned {
                    return Next::Closed;
                }
            }
            if let Some(next) = self.flush(scratch, manner, sent, &mut bytes_left) {
                return next;
            }
            match self.ending {
                End::No => {}
                End::AfterReplies if self.jobs > 0 => return Next::Waiting,
                End::AfterReplies => {
                    let _ = rustix::net::shutdown(self.socket(), rustix::net::Shutdown::Write);
                    self.ending = End::Lingering(Instant::now() + LINGER);
                    *at = *have;
                    continue;
                }
                End::Lingering(_) => return self.linger(scratch, manner.patience),
            }
            let progress = self.answer(scratch, manner, at, *have, &mut requests_left, turn_ends);
            if !self.outbox.is_empty() || self.ending != End::No {
                continue;
            }
            if !matches!(progress, Progress::All) {
                self.frame_since = None;
            }
            match progress {
                Progress::Unread => return self.pause(),
                Progress::Held => return Next::Waiting,
                Progress::Full => return Next::Again,
                Progress::All => {}
            }
            let is_over = turn_ends.is_some_and(|end| Instant::now() >= end);
            if requests_left == 0 || bytes_left == 0 || content_left == 0 || is_over {
                return Next::Again;
            }
            if self.waits_for_writers() {
                return Next::Waiting;
            }
            // Here it comes to waiting for the client.
            if self.frame_since.is_none() && (*at < *have || self.is_skipping()) {
                self.frame_since = Some(Instant::now());
            }
            if emptied && manner.patience == Patience::Never {
                return Next::Readable;
            }
            match self.read(scratch, manner, at, have) {
                Ok(Came::Requests { filled }) => emptied = !filled,
                Ok(Came::Content(length)) => content_left = content_left.saturating_sub(length),
                Err(next) => return next,
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
        turn_ends: Option<Instant>,
    ) -> Progress {
        self.heed_rules();
        scratch.room = self.room_for_output();
        // The input is borrowed apart from the rest of the scratch buffers.
        let input = std::mem::take(&mut scratch.input);
        let mut rest = &input[*at..have];
        let progress = loop {
            if self.outbox.len() >= GATHER_SEGMENTS || self.has_gathered(scratch) {
                break Progress::Full;
            }
            // A thread that has no other session to run does not break up what came together.
            if *requests_left == 0 && !rest.is_empty() && manner.patience == Patience::Never {
                break Progress::Full;
            }
            if let Speaks::Two(two) = &self.speaks
                && two.is_receiving()
            {
                self.take_content(&mut rest);
                if rest.is_empty() {
                    break Progress::All;
                }
                continue;
            }
            if self.jobs > 0 && self.must_wait_for_jobs(rest) {
                break if self.outbox.is_empty() { Progress::Held } else { Progress::Full };
            }
            if let Some(progress) = self.owes_too_much(rest) {
                break progress;
            }
            if self.holds_too_much(rest) {
                break match (self.outbox.is_empty(), self.jobs) {
                    (false, _) => Progress::Full,
                    (true, 0) => Progress::Unread,
                    (true, _) => Progress::Held,
                };
            }
            let step = match (&self.speaks, rest.first()) {
                (_, None) => Step::More,
                (Speaks::Nothing(_), Some(&v2::FIRST)) => self.greet(scratch, &mut rest),
                (Speaks::Nothing(_), Some(_)) => {
                    self.speaks = Speaks::One(RequestDecoder::default());
                    self.step_one(scratch, manner, &mut rest)
                }
                (Speaks::One(_), _) => self.step_one(scratch, manner, &mut rest),
                (Speaks::Two(_), _) => self.step_two(scratch, manner, &mut rest),
            };
            match step {
                Step::Done => {}
                Step::More => break Progress::All,
                Step::Last | Step::Fatal => {
                    if step == Step::Fatal {
                        let gauges = self.service.statistics.gauges(self.transport);
                        gauges.protocol_errors_total.fetch_add(1, Relaxed);
                    }
                    self.ending = End::AfterReplies;
                    rest = &[];
                    break Progress::All;
                }
            }
            self.frame_since = None;
            *requests_left = requests_left.saturating_sub(1);
            if turn_ends.is_some_and(|end| Instant::now() >= end) {
                *requests_left = 0;
            }
        };
        *at = have - rest.len();
        if matches!(progress, Progress::All)
            && let Speaks::Two(two) = &mut self.speaks
        {
            two.has_understood(!rest.is_empty());
        }
        scratch.input = input;
        progress
    }
}
