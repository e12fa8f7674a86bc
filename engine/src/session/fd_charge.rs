//! The files of one client: how many the server may have open for it, and those that it passed to be put.
//!
//! What is opened for a client, passed to it and not read, or passed by it, is on one account, `fd/budget.rs`: a client may
//! hold a share of what is free. Without that, a few that never read, or whose writes never end, would take every descriptor
//! that the server may have.

use rustix::fd::OwnedFd;
use std::collections::VecDeque;
use std::sync::Arc;

use super::{ProtocolState, Session};
use crate::errors::Error;
use crate::net::transport::Transport;
use crate::protocol::{Operation, v2};
use crate::service::Service;
use crate::session::connection::Connection;

/// What a content that comes in has open: the new file, and the directory that it is for.
pub(super) const FDS_PER_PUT: u32 = 2;

/// Descriptors, or their places, that a client may be ahead with its puts: twice as many as one message carries.
const MOST_PLACES: usize = 2 * 253;

/// Descriptors of a write, on the account of its client until this is dropped, by whichever thread.
#[derive(Debug)]
pub(super) struct FdCharge {
    connection: Arc<Connection>,
    service: Arc<Service>,
    count: u32,
}

impl FdCharge {
    fn new(connection: &Arc<Connection>, service: &Arc<Service>, count: u32) -> FdCharge {
        connection.take_for_write(service, count);
        FdCharge { connection: Arc::clone(connection), service: Arc::clone(service), count }
    }
}

impl Drop for FdCharge {
    fn drop(&mut self) {
        self.connection.release_written(&self.service, self.count);
    }
}

/// A file that a client passed. It is on the account until it is closed.
///
/// To close it may wait for its file system as long as that likes, so it is closed by a thread that may be stuck.
#[derive(Debug)]
pub(super) struct PassedFile(Option<(OwnedFd, FdCharge)>);

impl PassedFile {
    fn new(file: OwnedFd, hold: FdCharge) -> PassedFile {
        PassedFile(Some((file, hold)))
    }

    /// The file is the caller's to close, where that may take as long as it likes.
    pub fn into_parts(mut self) -> Option<(OwnedFd, FdCharge)> {
        self.0.take()
    }
}

impl Drop for PassedFile {
    fn drop(&mut self) {
        if let Some((file, hold)) = self.0.take() {
            let (connection, service) = (Arc::clone(&hold.connection), Arc::clone(&hold.service));
            service.copiers.dispose(connection.client(), (file, hold));
        }
    }
}

impl FdCharge {
    /// For what is open besides while it is copied.
    pub fn hold_for_copy(&self) -> FdCharge {
        FdCharge::new(&self.connection, &self.service, FDS_PER_PUT)
    }
}

/// Files that a client passed and no put has taken, in the order in which they came. What was one too many was closed at
/// once and left its place, so that each put gets its own or none.
#[derive(Debug, Default)]
pub(super) struct PassedFiles {
    places: VecDeque<Option<PassedFile>>,
    /// What was read last has been [checked](Received::check).
    is_checked: bool,
    /// The kernel drops what the client passes from now on, so no further put can have its own.
    takes_no_more: bool,
}

impl PassedFiles {
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Takes note that something has been read.
    pub fn has_read(&mut self) {
        self.is_checked = false;
    }

    /// Has so many puts by descriptor, which came together, refused where there are fewer descriptors: which of them lacks
    /// its own cannot be told, and none is to have another's.
    pub fn check(&mut self, puts: impl FnOnce() -> usize) {
        if !std::mem::replace(&mut self.is_checked, true) && puts() > self.places.len() {
            self.places.clear();
        }
    }

    /// More than any client has a use for.
    pub fn has_too_many(&self) -> bool {
        self.places.len() > MOST_PLACES
    }

    /// The file of the put in front.
    pub fn take(&mut self) -> Result<PassedFile, Error> {
        let source = self.places.pop_front().ok_or(match self.takes_no_more {
            true => Error::Busy(
                "too many files that this user passed are still being closed, which their file systems hold up: connect again \
                 later",
            ),
            false => Error::BadDescriptor,
        })?;
        source.ok_or(Error::Busy("clients pass more file descriptors than the server may hold, try again"))
    }

    /// Closes what no put can want any more, now that all is understood but, perhaps, a frame that has begun.
    pub fn close_spare(&mut self, has_begun: bool) {
        self.places.truncate(usize::from(has_begun));
    }
}

impl Session {
    /// Takes in what the client passed.
    pub(super) fn receive_files(&mut self, files: impl Iterator<Item = OwnedFd>) {
        for file in files {
            let has_room = self.holds() < self.service.in_flight.allowance()
                && self.service.has_fd_headroom(&file)
                && self.check_descriptors(1).is_ok();
            let source = match has_room {
                true => Some(PassedFile::new(file, FdCharge::new(&self.connection, &self.service, 1))),
                false => {
                    self.service.copiers.dispose(self.connection.client(), file);
                    None
                }
            };
            match &mut self.protocol_state {
                ProtocolState::Unknown(received) => received.places.push_back(source),
                ProtocolState::V2(two) => two.received.places.push_back(source),
                // Version 1 has no puts.
                ProtocolState::V1(_) => drop(source),
            }
        }
        match &mut self.protocol_state {
            ProtocolState::Unknown(received) => received.has_read(),
            ProtocolState::V2(two) => two.received.has_read(),
            ProtocolState::V1(_) => {}
        }
    }

    /// Has the kernel drop what the client passes, as long as this connection lasts: how many files were dropped is not known, and
    /// none is to be taken for another.
    pub(super) fn take_no_more_files(&mut self) {
        match &mut self.protocol_state {
            ProtocolState::Unknown(received) => received.takes_no_more = true,
            ProtocolState::V2(two) => two.received.takes_no_more = true,
            ProtocolState::V1(_) => {}
        }
    }

    pub(super) fn takes_no_more_files(&self) -> bool {
        match &self.protocol_state {
            ProtocolState::Unknown(received) => received.takes_no_more,
            ProtocolState::V2(two) => two.received.takes_no_more,
            ProtocolState::V1(_) => true,
        }
    }

    /// Whether it has passed more descriptors than any client has a use for.
    pub(super) fn has_passed_too_many(&self) -> bool {
        match &self.protocol_state {
            ProtocolState::Unknown(received) => received.has_too_many(),
            ProtocolState::V2(two) => two.received.has_too_many(),
            ProtocolState::V1(_) => false,
        }
    }

    /// Whether the request in front has to wait until the client has read, because of the files that it holds.
    pub(super) fn over_budget(&mut self, rest: &[u8]) -> bool {
        let mode = match &self.protocol_state {
            ProtocolState::V2(_) if rest.first() == Some(&v2::REQUEST) => rest.get(v2::MODE_AT),
            ProtocolState::V2(_) => None,
            _ => rest.first(),
        };
        match mode.and_then(|mode| Operation::from_byte(*mode)) {
            Some(Operation::FdPass) => self.transport == Transport::Unix && !self.may_hold_one_more(),
            // Without a file of its own it may always have the next: that is closed when it has been sent.
            Some(Operation::Copy | Operation::Splice) => self.held > 0 && !self.may_hold_one_more(),
            // The same, until one that is whole has been stored.
            Some(Operation::Put) => self.jobs > 0 && !self.may_hold_one_more(),
            _ => false,
        }
    }

    fn may_hold_one_more(&mut self) -> bool {
        let allowance = self.service.in_flight.allowance();
        if self.holds() < allowance {
            return true;
        }
        if self.outbox.is_empty() {
            self.connection.settle_unread(&self.service);
        }
        self.holds() < allowance
    }

    /// How many are on this client's account.
    fn holds(&self) -> u32 {
        self.held + self.connection.unread() + self.connection.writing()
    }

    /// For a content that comes in.
    pub(super) fn hold_for_put(&self) -> FdCharge {
        FdCharge::new(&self.connection, &self.service, FDS_PER_PUT)
    }

    /// A file is open for this client, or about to be.
    pub(super) fn hold(&mut self) {
        self.held += 1;
        self.connection.take(&self.service, 1);
    }

    /// So many messages were sent, each of so many bytes and with so many descriptors, which count until the client has
    /// received them.
    pub(super) fn count_sent(&mut self, messages: usize, bytes: usize, descriptors: u32) {
        self.held -= descriptors * messages as u32;
        self.connection.count_sent(messages, bytes, descriptors);
    }

    pub(super) fn release_held(&mut self, count: u32) {
        self.held -= count;
        self.connection.release(&self.service, count);
    }
}

/// Whether a file may be left open when the errand is done.
pub(super) fn opens_file(operation: Operation) -> bool {
    matches!(operation, Operation::FdPass | Operation::Copy | Operation::Splice)
}
