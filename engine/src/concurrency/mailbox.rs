//! How sessions get into an event loop from other threads, and how storage wakes those that it has.

use std::collections::VecDeque;

use crate::concurrency::slab::Key;
use crate::net::eventfd::EventFd;
use crate::session::{Session, Wake};
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering::Relaxed, PoisonError};

/// What an event loop sleeps on: it wakes while there is a ring that was not taken. An eventfd, or a model of one under
/// loom.
pub trait Ring: Send + Sync + std::fmt::Debug {
    fn notify(&self);

    /// Takes one ring; false where there is none.
    fn take(&self) -> bool;
}

impl Ring for EventFd {
    fn notify(&self) {
        EventFd::notify(self);
    }

    fn take(&self) -> bool {
        EventFd::take(self)
    }
}

/// The sessions that others have put there, until the loop takes them.
#[derive(Debug)]
pub struct Mailbox<T = Box<Session>, B = EventFd> {
    /// Those that the loop has, and those on their way to it: of many that come at once, it does not get all.
    pub sessions: AtomicUsize,
    /// None once the loop takes no more.
    arrived: Mutex<Option<VecDeque<T>>>,
    pub event_fd: B,
}

impl<T, B: Ring> Mailbox<T, B> {
    pub fn new(event_fd: B) -> Self {
        Mailbox { sessions: AtomicUsize::new(0), arrived: Mutex::new(Some(VecDeque::new())), event_fd }
    }

    fn arrived(&self) -> MutexGuard<'_, Option<VecDeque<T>>> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_open(&self) -> bool {
        self.arrived().is_some()
    }

    /// The mailbox of the loop that has the fewest sessions, of those that run; of equals, that of `own`.
    pub fn least_loaded(mailboxes: &[Self], own: usize) -> Option<(usize, &Self)> {
        let running = mailboxes.iter().enumerate().filter(|(_, mailbox)| mailbox.is_open());
        running.min_by_key(|(number, mailbox)| (mailbox.sessions.load(Relaxed), *number != own))
    }

    /// Gives a session to the loop that has the fewest; it comes back where no loop runs.
    pub fn put_into_least(mailboxes: &[Self], mut session: T) -> Result<(), T> {
        while let Some((_, mailbox)) = Self::least_loaded(mailboxes, 0) {
            match mailbox.push(session) {
                Ok(()) => return Ok(()),
                Err(back) => session = back,
            }
        }
        Err(session)
    }

    /// Gives the loop a session; it comes back where the loop takes no more.
    pub fn push(&self, session: T) -> Result<(), T> {
        let mut arrived = self.arrived();
        let Some(queue) = arrived.as_mut() else { return Err(session) };
        self.sessions.fetch_add(1, Relaxed);
        queue.push_back(session);
        drop(arrived);
        self.event_fd.notify();
        Ok(())
    }

    pub fn take(&self) -> Option<T> {
        // Whether or not it has rung: a ring too many is one look too many.
        self.event_fd.take();
        self.arrived().as_mut()?.pop_front()
    }

    /// Takes no more, whatever waits: that ends with the loop.
    pub fn end(&self) {
        *self.arrived() = None;
    }

    /// Takes no more, unless something waits; false then.
    pub fn close(&self) -> bool {
        let mut arrived = self.arrived();
        let is_empty = arrived.as_ref().is_none_or(VecDeque::is_empty);
        if is_empty {
            *arrived = None;
        }
        is_empty
    }
}

/// Sessions for which storage has something.
#[derive(Debug)]
pub struct WakeQueue<B = EventFd> {
    keys: Mutex<Vec<Key>>,
    pub event_fd: B,
}

impl<B: Ring> Wake for WakeQueue<B> {
    fn wake(&self, key: u64) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).push(Key::from_number(key));
        self.event_fd.notify();
    }
}

impl<B: Ring> WakeQueue<B> {
    pub fn new(event_fd: B) -> Self {
        WakeQueue { keys: Mutex::new(Vec::new()), event_fd }
    }

    /// Those that were woken since this was called before.
    pub fn take(&self) -> Vec<Key> {
        while self.event_fd.take() {}
        std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
