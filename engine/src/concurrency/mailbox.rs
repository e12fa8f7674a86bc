//! How other threads hand sessions to an event loop, and how storage wakes the sessions of a loop.

use std::collections::VecDeque;

use crate::concurrency::slab::Key;
use crate::net::eventfd::EventFd;
use crate::session::{Session, Wake};
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering::Relaxed, unpoisoned};

/// What an event loop sleeps on: the loop wakes while a notification is pending. An eventfd, or a model of one under
/// loom.
pub trait Notify: Send + Sync + std::fmt::Debug {
    fn notify(&self);

    /// Consumes one notification; false if none is pending.
    fn take(&self) -> bool;
}

impl Notify for EventFd {
    fn notify(&self) {
        EventFd::notify(self);
    }

    fn take(&self) -> bool {
        EventFd::take(self)
    }
}

/// Sessions that other threads have handed over and the loop has not taken yet.
#[derive(Debug)]
pub struct Mailbox<T = Box<Session>, B = EventFd> {
    /// Sessions of the loop and those on their way to it. Counting both keeps one loop from getting a whole burst of
    /// new connections.
    pub sessions: AtomicUsize,
    /// None once the loop takes no more sessions.
    arrived: Mutex<Option<VecDeque<T>>>,
    pub event_fd: B,
}

impl<T, B: Notify> Mailbox<T, B> {
    pub fn new(event_fd: B) -> Self {
        Mailbox { sessions: AtomicUsize::new(0), arrived: Mutex::new(Some(VecDeque::new())), event_fd }
    }

    fn arrived(&self) -> MutexGuard<'_, Option<VecDeque<T>>> {
        unpoisoned(self.arrived.lock())
    }

    fn is_open(&self) -> bool {
        self.arrived().is_some()
    }

    /// The mailbox of the running loop with the fewest sessions; among equals, that of `own`.
    pub fn least_loaded(mailboxes: &[Self], own: usize) -> Option<(usize, &Self)> {
        let running = mailboxes.iter().enumerate().filter(|(_, mailbox)| mailbox.is_open());
        running.min_by_key(|(number, mailbox)| (mailbox.sessions.load(Relaxed), *number != own))
    }

    /// Gives a session to the loop with the fewest; returns the session if no loop runs.
    pub fn push_to_least_loaded(mailboxes: &[Self], mut session: T) -> Result<(), T> {
        while let Some((_, mailbox)) = Self::least_loaded(mailboxes, 0) {
            match mailbox.push(session) {
                Ok(()) => return Ok(()),
                Err(back) => session = back,
            }
        }
        Err(session)
    }

    /// Gives the loop a session; returns the session if the loop takes no more.
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
        // Looks into the queue with or without a notification: a spare notification costs one extra look.
        self.event_fd.take();
        self.arrived().as_mut()?.pop_front()
    }

    /// Takes no more sessions; those that wait end with the loop.
    pub fn end(&self) {
        *self.arrived() = None;
    }

    /// Takes no more sessions, unless one waits; returns false then.
    pub fn close(&self) -> bool {
        let mut arrived = self.arrived();
        let is_empty = arrived.as_ref().is_none_or(VecDeque::is_empty);
        if is_empty {
            *arrived = None;
        }
        is_empty
    }
}

/// Sessions for which storage has results.
#[derive(Debug)]
pub struct WakeQueue<B = EventFd> {
    keys: Mutex<Vec<Key>>,
    pub event_fd: B,
}

impl<B: Notify> Wake for WakeQueue<B> {
    fn wake(&self, key: u64) {
        unpoisoned(self.keys.lock()).push(Key::from_number(key));
        self.event_fd.notify();
    }
}

impl<B: Notify> WakeQueue<B> {
    pub fn new(event_fd: B) -> Self {
        WakeQueue { keys: Mutex::new(Vec::new()), event_fd }
    }

    /// Takes the sessions woken since the last call.
    pub fn take(&self) -> Vec<Key> {
        while self.event_fd.take() {}
        std::mem::take(&mut *unpoisoned(self.keys.lock()))
    }
}
