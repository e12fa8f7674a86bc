//! A request's work on storage, in a form that a thread that may block can run.

use crate::storage::readahead;
use rustix::fd::OwnedFd;
use std::ffi::CString;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::errors::Error;
use crate::protocol::Operation;
use crate::service::Service;
use crate::session::connection::Connection;
use crate::session::dispatch::{MAX_BYTES_AHEAD, RequestContext, SMALL};
use crate::session::fd_charge::FdCharge;
use crate::session::output_charge::{Charge, HEAD};
use crate::storage::listing::{Page, Paging, WantedPage};
use crate::storage::mapping::{ObjectMeta, OpenObject};
use crate::storage::pool::{Client, Progress, Turn, Work};
use crate::storage::target::Conditions;

#[derive(Debug)]
pub(super) struct StorageJob {
    pub operation: Operation,
    pub path: CString,
    pub offset: u64,
    pub length: Option<u64>,
    pub conditions: Conditions,
    /// When the client gives up.
    pub deadline: Option<Instant>,
    /// Bytes reserved for the result.
    pub room: usize,
    pub rest: JobArgs,
}

/// Arguments that only some operations need.
#[derive(Debug)]
pub(super) enum JobArgs {
    Nothing,
    List(WantedPage),
    /// The request brought all bytes: the server opens nothing for them until it writes them.
    Content {
        bytes: Box<[u8]>,
        make_parents: bool,
        hold: FdCharge,
    },
}

/// The result of a storage job.
#[derive(Debug)]
pub(super) enum JobOutput {
    Descriptor(OpenObject),
    /// A content, or the requested part of it.
    Bytes {
        found: ObjectMeta,
        bytes: Box<[u8]>,
    },
    /// The requested part of a file; its beginning is in memory.
    File {
        opened: OpenObject,
        at: u64,
        end: u64,
    },
    Known(ObjectMeta),
    Page(Page),
    Nothing,
}

/// A result of the storage pool on its way back to the session.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there are few at a time, and nearly all are replies")]
pub(super) enum Completion {
    Reply {
        asked: RequestContext,
        outcome: Result<JobOutput, Error>,
        charge: Charge,
    },
    /// The next part of the file being sent is in memory.
    Warmed,
    /// All bytes of a content that have arrived are written, and more are to come.
    Written,
    /// More of a content may arrive. This ends no job that the session waits for.
    HasRoom,
    /// The operation has no result: the client has gone, or the work broke off. The session ends.
    Abandoned(Operation),
}

/// A result that a session waits for. Dropping it without a result ends the session.
#[derive(Debug)]
pub(super) struct PendingCompletion {
    connection: Arc<Connection>,
    operation: Operation,
    is_paid: bool,
}

impl PendingCompletion {
    pub fn new(connection: &Arc<Connection>, operation: Operation) -> PendingCompletion {
        PendingCompletion { connection: Arc::clone(connection), operation, is_paid: false }
    }

    /// The client on whose turn storage works for this job.
    pub fn client(&self) -> Client {
        self.connection.client()
    }

    /// Whether the client has gone.
    pub fn client_is_gone(&self) -> bool {
        self.connection.is_gone()
    }

    /// Answers with the outcome of a write.
    pub fn answer(self, asked: RequestContext, outcome: Result<JobOutput, Error>) {
        let charge = Charge::new(&self.connection, HEAD);
        self.complete(Completion::Reply { asked, outcome, charge });
    }

    pub fn complete(mut self, done: Completion) {
        self.is_paid = true;
        self.connection.push_completion(done);
    }
}

impl Drop for PendingCompletion {
    fn drop(&mut self) {
        if !self.is_paid {
            self.connection.push_completion(Completion::Abandoned(self.operation));
        }
    }
}

impl StorageJob {
    /// Runs the job; may wait for the disk.
    pub fn run(self, service: &Service) -> Result<JobOutput, Error> {
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(Error::DeadlinePassed);
        }
        let staging = service.staging.as_ref().ok_or(Error::NotWritable);
        match (self.operation, self.rest) {
            (Operation::FdPass, _) => {
                let opened = service.mapping.open(&self.path)?;
                self.conditions.check_version(Some(&opened.version))?;
                Ok(JobOutput::Descriptor(opened))
            }
            (Operation::Copy | Operation::Splice, _) => {
                let seen = SystemTime::now();
                let opened = service.mapping.open(&self.path)?;
                self.conditions.check_version(Some(&opened.version))?;
                let (at, end) = clamp_range(opened.size, self.offset, self.length);
                if end - at > SMALL.min(self.room as u64) || (self.operation == Operation::Splice && end > at)
                {
                    readahead::touch(&opened.file, at, (end - at).min(MAX_BYTES_AHEAD))
                        .map_err(Error::Storage)?;
                    return Ok(JobOutput::File { opened, at, end });
                }
                let bytes = read_part(&opened.file, at, end)?;
                let is_whole = at == 0 && end == opened.size && bytes.len() as u64 == end;
                if self.operation == Operation::Copy && is_whole {
                    service.keep(&self.path, &opened, &bytes, seen);
                }
                Ok(JobOutput::Bytes { found: opened.found(), bytes: bytes.into() })
            }
            (Operation::Stat, _) => {
                let found = service.mapping.stat(&self.path)?;
                self.conditions.check_version(Some(&found.version))?;
                Ok(JobOutput::Known(found))
            }
            (Operation::List, JobArgs::List(wanted)) => {
                let mut paging = service.listing.begin(wanted, self.room)?;
                loop {
                    if let Some(page) = service.listing.go_on(&service.mapping, &mut paging, &|| false)? {
                        return Ok(JobOutput::Page(page));
                    }
                }
            }
            (Operation::Put, JobArgs::Content { bytes, make_parents, hold }) => {
                let mut incoming = staging?.begin(&self.path, make_parents)?;
                incoming.check_room(bytes.len() as u64)?;
                incoming.reserve(bytes.len() as u64)?;
                incoming.write(&bytes)?;
                let found = incoming.commit(self.conditions)?;
                drop(hold);
                Ok(JobOutput::Known(found))
            }
            (Operation::Delete, _) => {
                staging?.delete(&self.path, self.conditions.if_match)?;
                Ok(JobOutput::Nothing)
            }
            (Operation::List | Operation::Put | Operation::PutDescriptor, _) => {
                unreachable!("an errand carries what its operation needs")
            }
        }
    }
}

/// A list, in several turns if necessary.
#[derive(Debug)]
pub(super) struct ListWork {
    service: Arc<Service>,
    asked: RequestContext,
    deadline: Option<Instant>,
    wanted: WantedPage,
    /// The part of the page assembled so far.
    paging: Option<Paging>,
    /// The listing of a page that was begun and given up.
    given_up: Option<u64>,
    /// Bytes reserved for the page.
    room: usize,
    /// With the charge for these bytes; None once the client has its answer.
    completion: Option<(PendingCompletion, Charge)>,
}

impl ListWork {
    pub fn new(
        service: &Arc<Service>,
        completion: PendingCompletion,
        charge: Charge,
        asked: RequestContext,
        deadline: Option<Instant>,
        wanted: WantedPage,
    ) -> Self {
        let (service, room) = (Arc::clone(service), charge.bytes());
        ListWork {
            service,
            asked,
            deadline,
            wanted,
            paging: None,
            given_up: None,
            room,
            completion: Some((completion, charge)),
        }
    }

    fn go_on(&mut self, turn: &Turn) -> Result<Option<Page>, Error> {
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(Error::DeadlinePassed);
        }
        let Service { listing, mapping, .. } = &*self.service;
        let paging = match &mut self.paging {
            Some(paging) => paging,
            None => {
                let begun = listing.begin(self.wanted.clone(), self.room)?;
                self.paging.insert(match self.given_up {
                    Some(before) => begun.of(before),
                    None => begun,
                })
            }
        };
        listing.go_on(mapping, paging, &|| turn.is_over())
    }

    fn answer(&mut self, outcome: Result<JobOutput, Error>) {
        if let Some((completion, mut charge)) = self.completion.take() {
            charge.shrink_to(outcome.as_ref().map_or(0, JobOutput::takes));
            let asked = RequestContext { answered_at: Some(Instant::now()), ..self.asked };
            completion.complete(Completion::Reply { asked, outcome, charge });
        }
    }
}

impl Work for ListWork {
    fn run(&mut self, turn: &Turn) -> Progress {
        if self.completion.as_ref().is_none_or(|(completion, _)| completion.client_is_gone()) {
            return Progress::Done;
        }
        let outcome = match self.go_on(turn) {
            Ok(None) => return Progress::More,
            Ok(Some(page)) => Ok(JobOutput::Page(page)),
            Err(error) => Err(error),
        };
        self.answer(outcome);
        Progress::Done
    }

    fn wrap_up(&mut self) -> Progress {
        let page = self.paging.as_mut().and_then(|paging| self.service.listing.cut(paging));
        let Some(page) = page else { return Progress::More };
        self.answer(Ok(JobOutput::Page(page)));
        Progress::Done
    }

    fn give_up(&mut self) {
        if let Some(mut paging) = self.paging.take() {
            self.service.listing.keep_runs(&mut paging);
            self.given_up = Some(paging.listing());
        }
    }
}

/// The range to send of an object of this size.
pub(super) fn clamp_range(size: u64, offset: u64, length: Option<u64>) -> (u64, u64) {
    let at = offset.min(size);
    (at, length.map_or(size, |length| at.saturating_add(length).min(size)))
}

fn read_part(file: &OwnedFd, at: u64, end: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; (end - at) as usize];
    let mut have = 0;
    while have < bytes.len() {
        match rustix::io::pread(file, &mut bytes[have..], at + have as u64) {
            Ok(0) => break,
            Ok(read) => have += read,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::Storage(errno)),
        }
    }
    bytes.truncate(have);
    Ok(bytes)
}
