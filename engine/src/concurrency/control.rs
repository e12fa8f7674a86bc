//! Commands from the engine to a model: serve, hand over, drain, stop.

use crate::net::eventfd::EventFd;
use rustix::io;
use std::sync::atomic::{AtomicU8, Ordering};

/// Commands to a model, from weak to strong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Command {
    Serve,
    /// Another model takes over: accept nothing, hand every session over to the listener.
    Handover,
    /// Accept nothing more, answer what has arrived, close.
    Drain,
    /// Close everything now.
    Stop,
}

/// Sends commands to a model: the current command, and an eventfd notified on each change.
#[derive(Debug)]
pub struct Control {
    command: AtomicU8,
    event_fd: EventFd,
}

impl Control {
    pub fn new() -> io::Result<Self> {
        Ok(Control { command: AtomicU8::new(Command::Serve as u8), event_fd: EventFd::new()? })
    }

    pub fn command(&self) -> Command {
        match self.command.load(Ordering::Acquire) {
            0 => Command::Serve,
            1 => Command::Handover,
            2 => Command::Drain,
            _ => Command::Stop,
        }
    }

    /// Issues a command. A command weaker than the current one changes nothing.
    pub fn send(&self, command: Command) {
        self.command.fetch_max(command as u8, Ordering::AcqRel);
        self.event_fd.notify();
    }

    /// Notified once for every command. Several threads may watch it edge-triggered (EPOLLET): a notification without
    /// a command, from a process that shares the descriptor, costs each of them one look.
    pub fn event_fd(&self) -> &EventFd {
        &self.event_fd
    }
}
