//! How sessions get into an event loop from other threads, and how storage wakes those that it has.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::places::Key;
use crate::session::{Session, Wake};
use crate::transport::Bell;

/// The sessions that others have put there, until the loop takes them.
#[derive(Debug)]
pub struct Mailbox {
    /// Those that the loop has, and those on their way to it: of many that come at once, it does not get all.
    pub sessions: AtomicUsize,
    /// None once the loop takes no more.
    arrived: Mutex<Option<VecDeque<Box<Session>>>>,
    pub bell: Bell,
}

impl Mailbox {
    pub fn new() -> rustix::io::Result<Self> {
        let arrived = Mutex::new(Some(VecDeque::new()));
        Ok(Mailbox { sessions: AtomicUsize::new(0), arrived, bell: Bell::new()? })
    }

    fn arrived(&self) -> MutexGuard<'_, Option<VecDeque<Box<Session>>>> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_open(&self) -> bool {
        self.arrived().is_some()
    }

    /// Gives the loop a session; it comes back where the loop takes no more.
    pub fn put(&self, session: Box<Session>) -> Result<(), Box<Session>> {
        let mut arrived = self.arrived();
        let Some(queue) = arrived.as_mut() else { return Err(session) };
        self.sessions.fetch_add(1, Relaxed);
        queue.push_back(session);
        drop(arrived);
        self.bell.ring();
        Ok(())
    }

    pub fn take(&self) -> Option<Box<Session>> {
        // Whether or not it has rung: a ring too many is one look too many.
        self.bell.take();
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
pub struct Woken {
    keys: Mutex<Vec<Key>>,
    pub bell: Bell,
}

impl Wake for Woken {
    fn wake(&self, key: u64) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).push(Key::from_number(key));
        self.bell.ring();
    }
}

impl Woken {
    pub fn new() -> rustix::io::Result<Self> {
        Ok(Woken { keys: Mutex::new(Vec::new()), bell: Bell::new()? })
    }

    /// Those that were woken since this was called before.
    pub fn take(&self) -> Vec<Key> {
        while self.bell.take() {}
        std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
