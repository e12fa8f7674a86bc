//! The files of one client: how many the server may have open for it, and those that it passed for puts.
//!
//! One account, `fd/budget.rs`, covers the files opened for a client, passed to it and unread, or passed by it: a
//! client may hold a share of the free ones. Without that, a few clients that never read, or whose writes never end,
//! would take every descriptor of the server.

use rustix::fd::OwnedFd;
use std::collections::VecDeque;
use std::sync::Arc;

use super::{ProtocolState, Session};
use crate::errors::Error;
use crate::fd::counted_connection::CountedConnection;
use crate::net::transport::Transport;
use crate::protocol::{Operation, v2};
use crate::service::Service;
use crate::session::connection::Connection;

/// Descriptors that an incoming content holds open: the new file, and its directory.
pub(super) const FDS_PER_PUT: u32 = 2;

/// Descriptors, or their slots, by which a client may be ahead of its puts: twice as many as one message carries.
const MAX_PASSED_FILES: usize = 2 * 253;

/// Descriptors of a write, charged to its client until any thread drops this.
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

/// A file that a client passed. It stays charged until it is closed.
///
/// Closing it may block in its file system, so a thread that may block closes it.
#[derive(Debug)]
pub(super) struct PassedFile(Option<(OwnedFd, FdCharge)>);

impl PassedFile {
    fn new(file: OwnedFd, fd_charge: FdCharge) -> PassedFile {
        PassedFile(Some((file, fd_charge)))
    }

    /// The caller closes the file, on a thread that may block as long as it takes.
    pub fn into_parts(mut self) -> Option<(OwnedFd, FdCharge)> {
        self.0.take()
    }
}

impl Drop for PassedFile {
    fn drop(&mut self) {
        if let Some((file, fd_charge)) = self.0.take() {
            let (connection, service) = (Arc::clone(&fd_charge.connection), Arc::clone(&fd_charge.service));
            service.copiers.dispose(connection.client(), (file, fd_charge));
        }
    }
}

impl FdCharge {
    /// The charge for the files that a copy opens in addition.
    pub fn charge_for_copy(&self) -> FdCharge {
        FdCharge::new(&self.connection, &self.service, FDS_PER_PUT)
    }
}

/// Files that a client passed and no put has taken, in the order of arrival. A surplus file is closed at once and
/// leaves an empty slot, so that each put gets its own file or none.
#[derive(Debug, Default)]
pub(super) struct PassedFiles {
    slots: VecDeque<Option<PassedFile>>,
    /// The bytes read last have been [checked](PassedFiles::check).
    is_checked: bool,
    /// The kernel drops the files that the client passes from now on, so no further put can have its own.
    takes_no_more: bool,
}

impl PassedFiles {
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Records that bytes have been read.
    pub fn has_read(&mut self) {
        self.is_checked = false;
    }

    /// Refuses `puts` that came together if fewer descriptors came with them: the server cannot tell which put lacks
    /// its own, and none may get another's.
    pub fn check(&mut self, puts: impl FnOnce() -> usize) {
        if !std::mem::replace(&mut self.is_checked, true) && puts() > self.slots.len() {
            self.slots.clear();
        }
    }

    /// Whether the client passed more files than a client can need.
    pub fn has_too_many(&self) -> bool {
        self.slots.len() > MAX_PASSED_FILES
    }

    /// The file of the put in front.
    pub fn take(&mut self) -> Result<PassedFile, Error> {
        let source = self.slots.pop_front().ok_or(match self.takes_no_more {
            true => Error::Busy(
                "too many files that this user passed are still being closed, which their file systems hold up: connect again \
                 later",
            ),
            false => Error::BadDescriptor,
        })?;
        source.ok_or(Error::Busy("clients pass more file descriptors than the server can hold; try again"))
    }

    /// Closes the files that no put can take any more. All complete frames are understood; `has_begun` says that a
    /// part of one is left.
    pub fn close_spare(&mut self, has_begun: bool) {
        self.slots.truncate(usize::from(has_begun));
    }
}

impl Session {
    /// Takes in the files that the client passed.
    pub(super) fn receive_files(&mut self, files: impl Iterator<Item = OwnedFd>) {
        for file in files {
            let is_within_limits = self.charged_fds() < self.service.fd_budget.allowance()
                && self.service.has_fd_headroom(&file)
                && self.check_descriptors(1).is_ok();
            let source = match is_within_limits {
                true => Some(PassedFile::new(file, FdCharge::new(&self.connection, &self.service, 1))),
                false => {
                    self.service.copiers.dispose(self.connection.client(), file);
                    None
                }
            };
            match &mut self.protocol_state {
                ProtocolState::Unknown(passed_files) => passed_files.slots.push_back(source),
                ProtocolState::V2(state) => state.passed_files.slots.push_back(source),
                // Version 1 has no puts.
                ProtocolState::V1(_) => drop(source),
            }
        }
        match &mut self.protocol_state {
            ProtocolState::Unknown(passed_files) => passed_files.has_read(),
            ProtocolState::V2(state) => state.passed_files.has_read(),
            ProtocolState::V1(_) => {}
        }
    }

    /// Makes the kernel drop the files that the client passes for the rest of this connection: the number of dropped
    /// files is unknown, and no put may get another's file.
    pub(super) fn take_no_more_files(&mut self) {
        match &mut self.protocol_state {
            ProtocolState::Unknown(passed_files) => passed_files.takes_no_more = true,
            ProtocolState::V2(state) => state.passed_files.takes_no_more = true,
            ProtocolState::V1(_) => {}
        }
    }

    pub(super) fn takes_no_more_files(&self) -> bool {
        match &self.protocol_state {
            ProtocolState::Unknown(passed_files) => passed_files.takes_no_more,
            ProtocolState::V2(state) => state.passed_files.takes_no_more,
            ProtocolState::V1(_) => true,
        }
    }

    /// Whether the client passed more descriptors than a client can need.
    pub(super) fn has_passed_too_many(&self) -> bool {
        match &self.protocol_state {
            ProtocolState::Unknown(passed_files) => passed_files.has_too_many(),
            ProtocolState::V2(state) => state.passed_files.has_too_many(),
            ProtocolState::V1(_) => false,
        }
    }

    /// Whether the request in front must wait until the client reads, because of the files that the client holds.
    pub(super) fn over_budget(&mut self, rest: &[u8]) -> bool {
        let mode = match &self.protocol_state {
            ProtocolState::V2(_) if rest.first() == Some(&v2::REQUEST) => rest.get(v2::MODE_AT),
            ProtocolState::V2(_) => None,
            _ => rest.first(),
        };
        match mode.and_then(|mode| Operation::from_byte(*mode)) {
            Some(Operation::FdPass) => self.transport == Transport::Unix && !self.may_open_one_more(),
            // A client without an open file may always have the next: the server closes it when it has sent it.
            Some(Operation::Copy | Operation::Splice) => self.open_fds > 0 && !self.may_open_one_more(),
            // The same, until the server has stored a whole one.
            Some(Operation::Put) => self.jobs > 0 && !self.may_open_one_more(),
            _ => false,
        }
    }

    fn may_open_one_more(&mut self) -> bool {
        let allowance = self.service.fd_budget.allowance();
        if self.charged_fds() < allowance {
            return true;
        }
        if self.outbox.is_empty() {
            self.connection.settle_unread();
        }
        self.charged_fds() < allowance
    }

    /// How many files are charged to this client.
    fn charged_fds(&self) -> u32 {
        self.open_fds + self.connection.unread() + self.connection.writing()
    }

    /// The charge for an incoming content.
    pub(super) fn charge_for_put(&self) -> FdCharge {
        FdCharge::new(&self.connection, &self.service, FDS_PER_PUT)
    }

    /// Counts a file that is open for this client, or about to be.
    pub(super) fn count_open_fd(&mut self) {
        self.open_fds += 1;
        self.connection.take(&self.service, 1);
    }

    /// Records sent messages: how many, and the bytes and descriptors of each. The descriptors count until the client
    /// has received them.
    pub(super) fn count_sent(&mut self, messages: usize, bytes: usize, descriptors: u32) {
        self.open_fds -= descriptors * messages as u32;
        self.connection.count_sent(messages, bytes, descriptors);
    }

    pub(super) fn release_open_fds(&mut self, count: u32) {
        self.open_fds -= count;
        self.connection.release(&self.service, count);
    }
}

/// Whether the storage job may leave a file open when it is done.
pub(super) fn opens_file(operation: Operation) -> bool {
    matches!(operation, Operation::FdPass | Operation::Copy | Operation::Splice)
}
