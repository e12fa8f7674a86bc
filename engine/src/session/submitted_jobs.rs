//! Storage jobs of a session: submitted, collected, and dropped with the session.

use crate::storage::readahead;
use rustix::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use super::{ProtocolState, RunOptions, Session, ThreadBuffers};
use crate::errors::Error;
use crate::origin::OriginRequest;
use crate::protocol::Operation;
use crate::session::dispatch::RequestContext;
use crate::session::fd_charge::opens_file;
use crate::session::output_charge::Charge;
use crate::session::storage_job::{Completion, JobArgs, JobOutput, ListWork, PendingCompletion, StorageJob};
use crate::storage::pool::Kind;

impl Session {
    /// Whether the storage pool works for this session: then a thread must not sleep in its socket.
    pub fn has_jobs(&self) -> bool {
        self.jobs > 0
    }

    /// Whether this thread may wait for the disk. With thread-per-connection it may, unless that delays other
    /// requests of the same connection.
    pub(super) fn may_wait(&self, options: RunOptions) -> bool {
        let is_multiplexed =
            matches!(self.protocol_state, ProtocolState::V2(_)) && self.service.settings.async_storage;
        !options.offload_storage && !is_multiplexed
    }

    pub(super) fn must_wait_for_jobs(&self, args: &[u8]) -> bool {
        match &self.protocol_state {
            ProtocolState::V2(state) => state.is_blocked(self.jobs, self.listings, args),
            _ => true,
        }
    }

    /// Submits a storage job to the pool; runs it at once if there is no pool.
    pub(super) fn submit_job(
        &mut self,
        buffers: &mut ThreadBuffers,
        options: RunOptions,
        context: RequestContext,
        mut job: StorageJob,
        has_priority: bool,
    ) -> Result<(), Error> {
        // Writes block on the disk for any length of time, so they always go to the pool if there is one.
        let is_write = matches!(job.operation, Operation::Put | Operation::Delete);
        let service = Arc::clone(&self.service);
        job.reserved = job.needs(buffers.output_limit.saturating_sub(buffers.out.len()));
        buffers.output_limit = buffers.output_limit.saturating_sub(job.reserved);
        let mut charge = Charge::new(&self.connection, job.reserved);
        let is_listing = job.operation == Operation::List;
        if let (false, Some((mount, key))) = (is_listing, service.origins.find(&job.path)) {
            let (mount, key) = (Arc::clone(mount), key.to_owned());
            let user = self.connection.client().user;
            let request = OriginRequest { mount, key, user, deadline: job.deadline };
            self.submit_to_origin(context, job, charge, request);
            return Ok(());
        }
        let pool = match is_write {
            true => service.write_pool.as_ref(),
            false => service.storage_pool.as_ref().filter(|_| !self.may_wait(options)),
        };
        let Some(pool) = pool else {
            let output = job.run(&service)?;
            charge.shrink_to(output.memory());
            return self.push_output(buffers, context, output, charge);
        };
        if opens_file(job.operation) {
            self.count_open_fd();
        }
        self.jobs += 1;
        self.listings += u32::from(is_listing);
        let completion = PendingCompletion::new(&self.connection, job.operation);
        let worker_service = Arc::clone(&service);
        let client = self.connection.client();
        if let JobArgs::List(request) = job.args {
            let work = ListWork::new(&service, completion, charge, context, job.deadline, request);
            pool.submit_work(client, Kind::Long, Box::new(work));
            return Ok(());
        }
        let kind = match (is_write, has_priority) {
            (true, _) => Kind::Write,
            (false, true) => Kind::Urgent,
            (false, false) => Kind::Short,
        };
        pool.submit(client, kind, move || {
            // A write whose bytes have all arrived is carried out, even if its client has gone.
            if is_write || !completion.client_is_gone() {
                let outcome = job.run(&worker_service);
                charge.shrink_to(outcome.as_ref().map_or(0, JobOutput::memory));
                let context = RequestContext { answered_at: Some(Instant::now()), ..context };
                completion.complete(Completion::Reply { context, outcome, charge });
            }
        });
        Ok(())
    }

    /// Has an object of an origin fetched. The session waits as for a slow disk.
    fn submit_to_origin(
        &mut self,
        context: RequestContext,
        job: StorageJob,
        mut charge: Charge,
        request: OriginRequest,
    ) {
        if opens_file(job.operation) {
            self.count_open_fd();
        }
        self.jobs += 1;
        let completion = Arc::new(PendingCompletion::new(&self.connection, job.operation));
        let watched = Arc::downgrade(&completion);
        let is_gone = move || watched.upgrade().is_none_or(|completion| completion.client_is_gone());
        let finish = move |outcome: Result<JobOutput, Error>| {
            charge.shrink_to(outcome.as_ref().map_or(0, JobOutput::memory));
            let context = RequestContext { answered_at: Some(Instant::now()), ..context };
            if let Some(completion) = Arc::into_inner(completion) {
                completion.complete(Completion::Reply { context, outcome, charge });
            }
        };
        match job.operation {
            Operation::Stat => self.service.origins.head(request, is_gone, move |meta| {
                finish(meta.and_then(|meta| {
                    job.conditions.check_version(Some(&meta.version))?;
                    Ok(JobOutput::Metadata(meta))
                }));
            }),
            _ => self.service.origins.fetch(request, is_gone, move |opened| {
                finish(opened.and_then(|opened| job.deliver(opened, |_, _| ())));
            }),
        }
    }

    /// Makes the storage pool read a part of a file into memory.
    pub(super) fn prefetch(&mut self, file: Arc<OwnedFd>, at: u64, length: u64) {
        let Some(pool) = &self.service.storage_pool else { return };
        self.is_prefetching = true;
        self.jobs += 1;
        let completion = PendingCompletion::new(&self.connection, Operation::Stat);
        pool.submit(self.connection.client(), Kind::Short, move || {
            if !completion.client_is_gone() {
                // A failure shows again when the session sends from this offset.
                let _ = readahead::touch(&file, at, length);
                drop(file);
                completion.complete(Completion::Prefetched);
            }
        });
    }

    /// Ends storage work for this session, except writes whose bytes have all arrived.
    pub(super) fn end_jobs(&self) {
        self.connection.end();
        if self.jobs > 0 {
            self.service.cancel_storage(self.connection.client());
        }
        if self.has_listed {
            self.service.listing.forget(self.connection.number());
        }
    }

    /// Collects the results of storage jobs.
    pub(super) fn collect_completions(&mut self, buffers: &mut ThreadBuffers) {
        for completion in self.connection.take_completions() {
            self.jobs -= u32::from(!matches!(completion, Completion::HasCapacity));
            match completion {
                Completion::Written | Completion::HasCapacity => {}
                Completion::Prefetched => self.is_prefetching = false,
                Completion::Abandoned(operation) => {
                    self.is_abandoned = true;
                    self.listings -= u32::from(operation == Operation::List);
                    if opens_file(operation) {
                        self.release_open_fds(1);
                    }
                }
                Completion::Reply { context, outcome, charge } => {
                    self.listings -= u32::from(context.operation == Operation::List);
                    if opens_file(context.operation) {
                        // The push counts it again.
                        self.release_open_fds(1);
                    }
                    let pushed =
                        outcome.and_then(|output| self.push_output(buffers, context, output, charge));
                    if let Err(error) = pushed {
                        self.push_error(buffers, context, error);
                    }
                }
            }
        }
    }
}
