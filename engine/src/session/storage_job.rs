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
use crate::session::dispatch::{MAX_INLINE, MAX_PREFETCH, RequestContext};
use crate::session::fd_charge::FdCharge;
use crate::session::output_charge::{Charge, HEAD};
use crate::storage::listing::{Page, PageRequest, Paging};
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
    pub reserved: usize,
    pub args: JobArgs,
}

/// Arguments that only some operations need.
#[derive(Debug)]
pub(super) enum JobArgs {
    Nothing,
    List(PageRequest),
    /// All bytes came with the request: the server opens nothing for them until it writes them.
    Content {
        bytes: Box<[u8]>,
        make_parents: bool,
        fds: FdCharge,
    },
}

/// The result of a storage job.
#[derive(Debug)]
pub(super) enum JobOutput {
    Descriptor(OpenObject),
    /// A content, or the requested part of it.
    Bytes {
        meta: ObjectMeta,
        bytes: Box<[u8]>,
    },
    /// The requested part of a file; its beginning is in memory.
    File {
        opened: OpenObject,
        at: u64,
        end: u64,
    },
    Metadata(ObjectMeta),
    Page(Page),
    Nothing,
}

/// A result of the storage pool on its way back to the session.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there are few at a time, and nearly all are replies")]
pub(super) enum Completion {
    Reply {
        context: RequestContext,
        outcome: Result<JobOutput, Error>,
        charge: Charge,
    },
    /// The next part of the file being sent is in memory.
    Prefetched,
    /// All bytes of a content that have arrived are written, and more are to come.
    Written,
    /// More of a content may arrive. This ends no job that the session waits for.
    HasCapacity,
    /// The operation has no result: the client has gone, or the work broke off. The session ends.
    Abandoned(Operation),
}

/// A result that a session waits for. Dropping it without a result ends the session.
#[derive(Debug)]
pub(super) struct PendingCompletion {
    connection: Arc<Connection>,
    operation: Operation,
    is_completed: bool,
}

impl PendingCompletion {
    pub fn new(connection: &Arc<Connection>, operation: Operation) -> PendingCompletion {
        PendingCompletion { connection: Arc::clone(connection), operation, is_completed: false }
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
    pub fn answer(self, context: RequestContext, outcome: Result<JobOutput, Error>) {
        let charge = Charge::new(&self.connection, HEAD);
        self.complete(Completion::Reply { context, outcome, charge });
    }

    pub fn complete(mut self, completion: Completion) {
        self.is_completed = true;
        self.connection.push_completion(completion);
    }
}

impl Drop for PendingCompletion {
    fn drop(&mut self) {
        if !self.is_completed {
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
        if matches!(self.operation, Operation::FdPass | Operation::Copy | Operation::Splice) {
            let seen = SystemTime::now();
            let opened = service.mapping.open(&self.path)?;
            return self
                .deliver(opened, |opened, bytes| service.cache_object(&self.path, opened, bytes, seen));
        }
        let staging = service.staging.as_ref().ok_or(Error::NotWritable);
        match (self.operation, self.args) {
            (Operation::Stat, _) => {
                let meta = service.mapping.stat(&self.path)?;
                self.conditions.check_version(Some(&meta.version))?;
                Ok(JobOutput::Metadata(meta))
            }
            (Operation::List, JobArgs::List(request)) => {
                let mut paging = service.listing.begin(request, self.reserved)?;
                loop {
                    if let Some(page) = service.listing.advance(&service.mapping, &mut paging, &|| false)? {
                        return Ok(JobOutput::Page(page));
                    }
                }
            }
            (Operation::Put, JobArgs::Content { bytes, make_parents, fds }) => {
                let mut pending = staging?.begin(&self.path, make_parents)?;
                pending.check_space(bytes.len() as u64)?;
                pending.reserve(bytes.len() as u64)?;
                pending.write(&bytes)?;
                let meta = pending.commit(self.conditions)?;
                drop(fds);
                Ok(JobOutput::Metadata(meta))
            }
            (Operation::Delete, _) => {
                staging?.delete(&self.path, self.conditions.if_match)?;
                Ok(JobOutput::Nothing)
            }
            (_, _) => {
                unreachable!("a storage job has the arguments of its operation")
            }
        }
    }
}

impl StorageJob {
    /// The output of a read, whose object is open. `keep` gets the bytes of a copied object that is small and whole.
    pub fn deliver(
        &self,
        opened: OpenObject,
        keep: impl FnOnce(&OpenObject, &[u8]),
    ) -> Result<JobOutput, Error> {
        self.conditions.check_version(Some(&opened.version))?;
        if self.operation == Operation::FdPass {
            return Ok(JobOutput::Descriptor(opened));
        }
        let (at, end) = clamp_range(opened.size, self.offset, self.length);
        let is_splice = self.operation == Operation::Splice;
        if end - at > MAX_INLINE.min(self.reserved as u64) || (is_splice && end > at) {
            readahead::touch(&opened.file, at, (end - at).min(MAX_PREFETCH)).map_err(Error::Storage)?;
            return Ok(JobOutput::File { opened, at, end });
        }
        let bytes = read_part(&opened.file, at, end)?;
        if !is_splice && at == 0 && end == opened.size && bytes.len() as u64 == end {
            keep(&opened, &bytes);
        }
        Ok(JobOutput::Bytes { meta: opened.meta(), bytes: bytes.into() })
    }
}

/// A list, in several turns if necessary.
#[derive(Debug)]
pub(super) struct ListWork {
    service: Arc<Service>,
    context: RequestContext,
    deadline: Option<Instant>,
    request: PageRequest,
    /// The part of the page assembled so far.
    paging: Option<Paging>,
    /// The listing of a page that was begun and given up.
    abandoned: Option<u64>,
    /// Bytes reserved for the page.
    reserved: usize,
    /// With the charge for these bytes; None once the client has its answer.
    completion: Option<(PendingCompletion, Charge)>,
}

impl ListWork {
    pub fn new(
        service: &Arc<Service>,
        completion: PendingCompletion,
        charge: Charge,
        context: RequestContext,
        deadline: Option<Instant>,
        request: PageRequest,
    ) -> Self {
        let (service, reserved) = (Arc::clone(service), charge.bytes());
        ListWork {
            service,
            context,
            deadline,
            request,
            paging: None,
            abandoned: None,
            reserved,
            completion: Some((completion, charge)),
        }
    }

    fn advance(&mut self, turn: &Turn) -> Result<Option<Page>, Error> {
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(Error::DeadlinePassed);
        }
        let Service { listing, mapping, .. } = &*self.service;
        let paging = match &mut self.paging {
            Some(paging) => paging,
            None => {
                let started = listing.begin(self.request.clone(), self.reserved)?;
                self.paging.insert(match self.abandoned {
                    Some(before) => started.with_listing(before),
                    None => started,
                })
            }
        };
        listing.advance(mapping, paging, &|| turn.is_over())
    }

    fn answer(&mut self, outcome: Result<JobOutput, Error>) {
        if let Some((completion, mut charge)) = self.completion.take() {
            charge.shrink_to(outcome.as_ref().map_or(0, JobOutput::memory));
            let context = RequestContext { answered_at: Some(Instant::now()), ..self.context };
            completion.complete(Completion::Reply { context, outcome, charge });
        }
    }
}

impl Work for ListWork {
    fn run(&mut self, turn: &Turn) -> Progress {
        if self.completion.as_ref().is_none_or(|(completion, _)| completion.client_is_gone()) {
            return Progress::Done;
        }
        let outcome = match self.advance(turn) {
            Ok(None) => return Progress::More,
            Ok(Some(page)) => Ok(JobOutput::Page(page)),
            Err(error) => Err(error),
        };
        self.answer(outcome);
        Progress::Done
    }

    fn finish_early(&mut self) -> Progress {
        let page = self.paging.as_mut().and_then(|paging| self.service.listing.cut(paging));
        let Some(page) = page else { return Progress::More };
        self.answer(Ok(JobOutput::Page(page)));
        Progress::Done
    }

    fn release_memory(&mut self) {
        if let Some(mut paging) = self.paging.take() {
            self.service.listing.save_batches(&mut paging);
            self.abandoned = Some(paging.listing());
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
