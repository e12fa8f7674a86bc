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
mod run;
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
use std::time::{Duration, Instant};

pub use self::buffers::{QueueWait, ThreadBuffers};
pub use self::connection::{Connection, Wake};
use self::fd_charge::PassedFiles;
use self::outbox::Segment;
use self::v2::V2State;
use crate::access::accounts::ClientAccess;
use crate::fd::counted_connection::CountedConnection;
use crate::model::TICK;
use crate::net::transport::{IoMode, Transport};
use crate::protocol::RequestDecoder;
use crate::service::Service;

/// Room for the bytes of one `recv`; the longest request of either version fits.
const INPUT: usize = 16 << 10;
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
    pub reject: bool,
    /// The calling thread never waits for storage: the storage pool does.
    pub offload_storage: bool,
    /// After this time other sessions run, however few requests were answered.
    pub time_budget: Option<Duration>,
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
    open_fds: u32,
    /// Jobs that storage runs for this session, and how many of them are listings.
    jobs: u32,
    listings: u32,
    has_listed: bool,
    /// The storage pool found that the client has gone, or lost a job of this session.
    is_abandoned: bool,
    /// The storage pool is reading ahead in the file in front.
    is_prefetching: bool,
    is_non_blocking: bool,
    /// When the input last completed a request.
    complete_at: Instant,
    /// Since when the server waits for the rest of a frame.
    frame_since: Option<Instant>,
    /// When bytes last moved, either way.
    moved_at: Instant,
    close_state: CloseState,
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
        self.connection.release(&self.service, self.open_fds);
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
            open_fds: 0,
            jobs: 0,
            listings: 0,
            has_listed: false,
            is_abandoned: false,
            is_prefetching: false,
            is_non_blocking: false,
            complete_at: now,
            frame_since: None,
            moved_at: now,
            close_state: CloseState::No,
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
}
