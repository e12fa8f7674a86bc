//! What other threads may touch of a connection: its socket, the account of its descriptors, and what storage has found
//! out for it.

use rustix::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::errand::Done;
use crate::service::Service;
use crate::transport;

/// Who is told that a session has something to do.
pub trait Wake: Send + Sync + std::fmt::Debug {
    /// `key` is what the model said when it took the session in.
    fn wake(&self, key: usize);
}

#[derive(Debug)]
pub struct Connection {
    pub(super) socket: OwnedFd,
    /// Descriptors passed to this client that it has, as far as is known, not received.
    unread: AtomicU32,
    /// Descriptors that its writes have open, or that it passed to be put.
    pub(super) writing: AtomicU32,
    /// The server wants no further request.
    pub(super) is_stopped: AtomicBool,
    finished: Mutex<Finished>,
}

#[derive(Debug, Default)]
struct Finished {
    done: Vec<Done>,
    wake: Option<(Arc<dyn Wake>, usize)>,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Connection {
            socket,
            unread: AtomicU32::new(0),
            writing: AtomicU32::new(0),
            is_stopped: AtomicBool::new(false),
            finished: Mutex::new(Finished::default()),
        }
    }

    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Lets the client send nothing more, whichever thread runs its session.
    pub fn stop_reading(&self) {
        self.is_stopped.store(true, Relaxed);
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Read);
    }

    /// From now on `wake` is told, with this key; at once where something has come meanwhile.
    pub fn set_wake(&self, wake: &Arc<dyn Wake>, key: usize) {
        let mut finished = self.finished();
        finished.wake = Some((Arc::clone(wake), key));
        if !finished.done.is_empty() {
            drop(finished);
            wake.wake(key);
        }
    }

    /// Leaves a result for the session, and has it run.
    pub(super) fn finish(&self, done: Done) {
        let mut finished = self.finished();
        finished.done.push(done);
        let wake = finished.wake.clone();
        drop(finished);
        if let Some((wake, key)) = wake {
            wake.wake(key);
        }
    }

    pub(super) fn take_done(&self) -> Vec<Done> {
        std::mem::take(&mut self.finished().done)
    }

    fn finished(&self) -> MutexGuard<'_, Finished> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn unread(&self) -> u32 {
        self.unread.load(Relaxed)
    }

    pub(super) fn count_passed(&self, count: u32) {
        self.unread.fetch_add(count, Relaxed);
    }

    /// Settles what the client has received.
    pub(super) fn notice_reading(&self, service: &Service) {
        // Read before the socket is asked: what is passed meanwhile stays counted.
        let unread = self.unread();
        if unread > 0 && matches!(transport::unread_by_peer(&self.socket), Ok(0)) {
            self.unread.fetch_sub(unread, Relaxed);
            service.in_flight.release(unread);
        }
    }

    /// Whether descriptors are still on their way to the client. They count against the user until it reads or closes.
    pub fn is_awaited(&self) -> bool {
        self.unread() > 0 && matches!(transport::unread_by_peer(&self.socket), Ok(queued) if queued > 0)
    }

    /// Takes the descriptors off the account, now that nobody will ask any more.
    pub fn write_off(&self, service: &Service) {
        service.in_flight.release(self.unread.swap(0, Relaxed));
    }
}
