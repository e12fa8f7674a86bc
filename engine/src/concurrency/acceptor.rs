//! Accepts the connections of one transport: admits or refuses each, makes its session, and passes sessions from one
//! model to the next.

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::concurrency::handover::Handover;
use crate::errors::{Error, StartError};
use crate::net::eventfd::EventFd;
use crate::net::listener::{BACKLOG, Listener};
use crate::net::socket;
use crate::net::transport::{IoMode, Transport};
use crate::protocol::{self, Status};
use crate::service::Service;
use crate::session::Session;

/// The pause in accepting when no descriptor is left: accepting fails ten times a second at most.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// The outcome of an attempt to accept.
#[derive(Debug)]
pub enum AcceptOutcome {
    Session(Box<Session>),
    /// The server refused the connection with an error message, or the client had left.
    Refused,
    /// No connection waits.
    Nothing,
    /// No descriptor or memory is left: try again after this time.
    Exhausted(Duration),
}

/// The source of a model's sessions: new connections, and sessions that another model hands over.
#[derive(Debug)]
pub struct Acceptor {
    listener: Listener,
    handed_over: Handover<Box<Session>>,
    event_fd: EventFd,
}

impl Acceptor {
    pub fn new(listener: Listener) -> Result<Self, StartError> {
        let event_fd = EventFd::new()
            .map_err(|errno| StartError::new(errno, "cannot make an eventfd", &listener.address))?;
        Ok(Acceptor { listener, handed_over: Handover::new(), event_fd })
    }

    pub fn transport(&self) -> Transport {
        self.listener.transport
    }

    /// The address as clients write it.
    pub fn address(&self) -> &str {
        &self.listener.address
    }

    /// Accepts one connection, without waiting.
    pub fn accept(&self, service: &Arc<Service>) -> AcceptOutcome {
        let gauges = service.statistics.gauges(self.transport());
        let socket = match self.listener.accept() {
            Ok(socket) => socket,
            Err(Errno::AGAIN) => return AcceptOutcome::Nothing,
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                gauges.accept_failures_total.fetch_add(1, Relaxed);
                return AcceptOutcome::Exhausted(RETRY_INTERVAL);
            }
            // shutdown(2) has ended the listener, at the end of a drain.
            Err(Errno::INVAL) => return AcceptOutcome::Nothing,
            // ECONNABORTED, EPROTO, ENETDOWN and the like concern only this one connection, which is gone.
            Err(_) => return AcceptOutcome::Refused,
        };
        let error = match self.admit(socket, service) {
            Ok(session) => return AcceptOutcome::Session(session),
            Err((socket, error)) => {
                refuse(&socket, &error);
                error
            }
        };
        if error.status() == Status::Unavailable {
            gauges.rejected_total.fetch_add(1, Relaxed);
        }
        AcceptOutcome::Refused
    }

    /// Makes the session of an accepted connection, unless the limits or the access rules forbid it.
    fn admit(&self, socket: OwnedFd, service: &Arc<Service>) -> Result<Box<Session>, (OwnedFd, Error)> {
        let full = Error::Busy("the server has reached its limit of connections; try again");
        if socket.as_raw_fd() as u64 >= service.descriptor_limit {
            return Err((socket, full));
        }
        match service.clients.admit(&socket, self.transport()) {
            Ok(client_access) if service.admit_connection() => {
                Ok(Box::new(Session::new(socket, self.transport(), service, client_access)))
            }
            Ok(_) => Err((socket, full)),
            Err(error) => Err((socket, error)),
        }
    }

    /// Accepts the connections in the backlog, skips refused ones, and ends listening.
    pub fn accept_rest(&self, service: &Arc<Service>, mut take: impl FnMut(Box<Session>)) {
        // The bound keeps clients that connect meanwhile from prolonging this without end.
        for _ in 0..=BACKLOG {
            match self.accept(service) {
                AcceptOutcome::Session(session) => take(session),
                AcceptOutcome::Refused => {}
                AcceptOutcome::Nothing | AcceptOutcome::Exhausted(_) => break,
            }
        }
        self.listener.stop_listening();
    }

    /// Gives a session to the model that serves this transport next. Returns it if no model takes over, which happens
    /// only while all drain or stop.
    pub fn hand_over(&self, session: Box<Session>) -> Result<(), Box<Session>> {
        self.handed_over.offer(session)?;
        self.event_fd.notify();
        Ok(())
    }

    /// Takes in a session that another model handed over. Call only after [`serve`](Self::serve).
    pub fn take_over(&self) -> Option<Box<Session>> {
        // Looks into the queue with or without a notification: a spare notification costs one extra look.
        self.event_fd.take();
        self.handed_over.take()
    }

    /// Registers the calling thread as a taker of sessions, for as long as it keeps the returned value.
    pub fn serve(self: &Arc<Self>) -> Taker {
        self.handed_over.register();
        Taker { acceptor: Arc::clone(self), is_registered: true }
    }

    /// Readable while sessions wait for a taker.
    pub fn event_fd(&self) -> &EventFd {
        &self.event_fd
    }
}

/// Sends the reason to a client that is not admitted.
fn refuse(socket: &OwnedFd, error: &Error) {
    let mut message = Vec::new();
    protocol::encode_error(&mut message, error.status(), &error.to_string());
    // The message fits a fresh socket's buffer. The client may be gone; ignore errors.
    let _ = socket::send(socket, &message, IoMode::NonBlocking, false);
}

impl AsFd for Acceptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// The duty to take over sessions.
#[derive(Debug)]
pub struct Taker {
    acceptor: Arc<Acceptor>,
    is_registered: bool,
}

impl Taker {
    pub fn is_registered(&self) -> bool {
        self.is_registered
    }

    /// Ends the duty, unless a session waits that no other taker would take; returns false then.
    pub fn leave(&mut self) -> bool {
        if self.is_registered && !self.acceptor.handed_over.leave() {
            return false;
        }
        self.is_registered = false;
        true
    }

    /// Ends the duty and leaves waiting sessions to the model that takes over.
    pub fn withdraw(&mut self) {
        if std::mem::take(&mut self.is_registered) {
            self.acceptor.handed_over.withdraw();
        }
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.withdraw();
    }
}
