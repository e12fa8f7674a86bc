//! The files of one client: how many the server may have open for it, and those that it passed to be put.
//!
//! What is opened for a client, passed to it and not read, or passed by it, is on one account, `in_flight.rs`: a client may
//! hold a share of what is free. Without that, a few that never read would take every descriptor that the server may have.

use rustix::fd::OwnedFd;
use std::collections::VecDeque;
use std::sync::Arc;

use super::{Session, Speaks};
use crate::errors::Error;
use crate::protocol::{Operation, v2};
use crate::service::Service;
use crate::transport::Transport;

/// A file that a client passed. It is on the account until it is closed.
#[derive(Debug)]
pub(super) struct Source {
    pub file: OwnedFd,
    service: Arc<Service>,
}

impl Drop for Source {
    fn drop(&mut self) {
        self.service.in_flight.release(1);
    }
}

/// Files that a client passed and no put has taken, in the order in which they came. What was one too many was closed at
/// once and left its place, so that each put gets its own or none.
#[derive(Debug, Default)]
pub(super) struct Received(VecDeque<Option<Source>>);

impl Received {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes in what came; `may_hold` of it is kept.
    fn add(&mut self, files: impl Iterator<Item = OwnedFd>, service: &Arc<Service>, held: u32) {
        for file in files {
            let has_room = held + (self.0.len() as u32) < service.in_flight.allowance();
            self.0.push_back(has_room.then(|| {
                service.in_flight.take(1);
                Source { file, service: Arc::clone(service) }
            }));
        }
    }

    /// The file of the put in front.
    pub fn take(&mut self) -> Result<Source, Error> {
        let source = self.0.pop_front().ok_or(Error::BadDescriptor)?;
        source.ok_or(Error::Busy("clients pass more file descriptors than the server may hold, try again"))
    }

    /// Closes what no put can want any more, now that all is understood but, perhaps, a frame that has begun.
    pub fn close_spare(&mut self, has_begun: bool) {
        self.0.truncate(usize::from(has_begun));
    }
}

impl Session {
    /// Takes in what the client passed.
    pub(super) fn receive_files(&mut self, files: impl Iterator<Item = OwnedFd>) {
        let held = self.held + self.connection.unread();
        if let Speaks::Two(two) = &mut self.speaks {
            two.received.add(files, &self.service, held);
        }
    }

    /// Whether the request in front has to wait until the client has read, because of the files that it holds.
    pub(super) fn holds_too_much(&mut self, rest: &[u8]) -> bool {
        let mode = match &self.speaks {
            Speaks::Two(_) if rest.first() == Some(&v2::REQUEST) => rest.get(v2::MODE_AT),
            Speaks::Two(_) => None,
            _ => rest.first(),
        };
        match mode.and_then(|mode| Operation::from_byte(*mode)) {
            Some(Operation::FdPass) => self.transport == Transport::Unix && !self.may_hold_one_more(),
            // Without a file of its own it may always have the next: that is closed when it has been sent.
            Some(Operation::Copy | Operation::Splice) => self.held > 0 && !self.may_hold_one_more(),
            _ => false,
        }
    }

    fn may_hold_one_more(&mut self) -> bool {
        let allowance = self.service.in_flight.allowance();
        if self.held + self.connection.unread() < allowance {
            return true;
        }
        if self.outbox.is_empty() {
            self.connection.notice_reading(&self.service);
        }
        self.held + self.connection.unread() < allowance
    }

    /// A file is open for this client, or about to be.
    pub(super) fn hold(&mut self) {
        self.held += 1;
        self.connection.take(&self.service, 1);
    }

    /// It has been passed: it counts until the client has received it.
    pub(super) fn count_passed(&mut self, count: u32) {
        self.held -= count;
        self.connection.count_passed(count);
    }

    pub(super) fn release_held(&mut self, count: u32) {
        self.held -= count;
        self.connection.release(&self.service, count);
    }
}

/// Whether a file may be left open when the errand is done.
pub(super) fn brings_a_file(operation: Operation) -> bool {
    matches!(operation, Operation::FdPass | Operation::Copy | Operation::Splice)
}
