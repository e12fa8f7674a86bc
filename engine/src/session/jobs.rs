//! What the storage pool does for a session: sent there, taken back, and dropped with the session.

use rustix::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use super::backlog::Charge;
use super::descriptors::brings_a_file;
use super::errand::{Brought, Done, Errand, ListWork, Owed, Rest};
use super::replies::Asked;
use super::{Manner, Scratch, Session, Speaks};
use crate::errors::Error;
use crate::protocol::Operation;
use crate::storage::pool::Kind;
use crate::transport;

impl Session {
    /// Whether the storage pool does something for it: then a thread must not sleep in its socket.
    pub fn has_jobs(&self) -> bool {
        self.jobs > 0
    }

    /// Whether this thread may wait for the disk. With a thread a connection it may, unless that holds up other requests of
    /// the same connection.
    pub(super) fn may_wait(&self, manner: Manner) -> bool {
        let is_multiplexed = matches!(self.speaks, Speaks::Two(_)) && self.service.settings.async_storage;
        !manner.storage_elsewhere && !is_multiplexed
    }

    pub(super) fn must_wait_for_jobs(&self, rest: &[u8]) -> bool {
        match &self.speaks {
            Speaks::Two(two) => two.must_wait(self.jobs, self.listings, rest),
            _ => true,
        }
    }

    /// Has an errand run by the storage pool; at once where there is none.
    pub(super) fn send_errand(
        &mut self,
        scratch: &mut Scratch,
        manner: Manner,
        asked: Asked,
        mut errand: Errand,
        has_priority: bool,
    ) -> Result<(), Error> {
        // Writes wait for the disk as long as they take, so they always go to the pool where there is one.
        let is_write = matches!(errand.operation, Operation::Put | Operation::Delete);
        let service = Arc::clone(&self.service);
        errand.room = errand.needs(scratch.room.saturating_sub(scratch.out.len()));
        scratch.room = scratch.room.saturating_sub(errand.room);
        let mut charge = Charge::new(&self.connection, errand.room);
        let pool = match is_write {
            true => service.write_pool.as_ref(),
            false => service.storage_pool.as_ref().filter(|_| !self.may_wait(manner)),
        };
        let Some(pool) = pool else {
            let brought = errand.run(&service)?;
            charge.shrink_to(brought.takes());
            return self.push_brought(scratch, asked, brought, charge);
        };
        if brings_a_file(errand.operation) {
            self.hold();
        }
        self.jobs += 1;
        let is_listing = errand.operation == Operation::List;
        self.listings += u32::from(is_listing);
        let owed = Owed::new(&self.connection, errand.operation);
        let on = Arc::clone(&service);
        let client = self.connection.client();
        if let Rest::List(wanted) = errand.rest {
            let work = ListWork::new(&service, owed, charge, asked, errand.deadline, wanted);
            pool.submit_work(client, Kind::Long, Box::new(work));
            return Ok(());
        }
        let kind = match (is_write, has_priority) {
            (true, _) => Kind::Write,
            (false, true) => Kind::Urgent,
            (false, false) => Kind::Short,
        };
        pool.submit(client, kind, move || {
            // A write that came as a whole is done, whether or not there is still a client to be answered.
            if is_write || !owed.client_is_gone() {
                let outcome = errand.run(&on);
                charge.shrink_to(outcome.as_ref().map_or(0, Brought::takes));
                let asked = Asked { answered_at: Some(Instant::now()), ..asked };
                owed.pay(Done::Reply { asked, outcome, charge });
            }
        });
        Ok(())
    }

    /// Has the storage pool bring a part of a file into memory.
    pub(super) fn warm(&mut self, file: Arc<OwnedFd>, at: u64, length: u64) {
        let Some(pool) = &self.service.storage_pool else { return };
        self.is_warming = true;
        self.jobs += 1;
        let owed = Owed::new(&self.connection, Operation::Stat);
        pool.submit(self.connection.client(), Kind::Short, move || {
            if !owed.client_is_gone() {
                // A failure shows again when the session sends from there.
                let _ = transport::touch(&file, at, length);
                drop(file);
                owed.pay(Done::Warmed);
            }
        });
    }

    /// Storage does nothing more for this session, but for writes that came as a whole.
    pub(super) fn end_jobs(&self) {
        self.connection.end();
        if self.jobs > 0 {
            self.service.leave_storage(self.connection.client());
        }
        if self.has_listed {
            self.service.listing.forget(self.connection.number());
        }
    }

    /// Takes back what errands brought.
    pub(super) fn collect(&mut self, scratch: &mut Scratch) {
        for done in self.connection.take_done() {
            self.jobs -= u32::from(!matches!(done, Done::HasRoom));
            match done {
                Done::Written | Done::HasRoom => {}
                Done::Warmed => self.is_warming = false,
                Done::Abandoned(operation) => {
                    self.is_abandoned = true;
                    self.listings -= u32::from(operation == Operation::List);
                    if brings_a_file(operation) {
                        self.release_held(1);
                    }
                }
                Done::Reply { asked, outcome, charge } => {
                    self.listings -= u32::from(asked.operation == Operation::List);
                    if brings_a_file(asked.operation) {
                        // Counted again by whoever pushes it.
                        self.release_held(1);
                    }
                    let pushed =
                        outcome.and_then(|brought| self.push_brought(scratch, asked, brought, charge));
                    if let Err(error) = pushed {
                        self.push_error(scratch, asked, error);
                    }
                }
            }
        }
    }
}
