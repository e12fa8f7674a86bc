//! A put by descriptor. A thread that the source may block copies in steps, while the client gets its answer in time.

use std::ffi::CString;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::errors::Error;
use crate::service::Service;
use crate::session::dispatch::RequestContext;
use crate::session::fd_charge::{FdCharge, PassedFile};
use crate::session::storage_job::{JobOutput, PendingCompletion};
use crate::storage::copier_threads::{Copy, Watched};
use crate::storage::pending_write::PendingWrite;
use crate::storage::pool::Progress;
use crate::storage::source_copy::{Copied, Copying};
use crate::storage::target::Conditions;
use crate::sync::unpoisoned;

/// The state of the copy, readable while a thread is blocked in it.
#[derive(Debug)]
pub(super) struct Ticket {
    service: Arc<Service>,
    context: RequestContext,
    deadline: Option<Instant>,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Taken by the thread that answers: before the object is put in its place, or when that has taken too long.
    completion: Option<PendingCompletion>,
    has_begun: bool,
    moved_at: Instant,
}

#[derive(Debug)]
pub(super) struct PutDescriptor {
    pub path: CString,
    pub make_parents: bool,
    pub conditions: Conditions,
    ticket: Arc<Ticket>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Passed(PassedFile),
    Copying { pending: PendingWrite, copying: Copying, _charges: (FdCharge, FdCharge) },
    Over,
}

impl PutDescriptor {
    /// Hands the copy to the copier threads.
    pub fn submit(
        service: &Arc<Service>,
        completion: PendingCompletion,
        context: RequestContext,
        deadline: Option<Instant>,
        source: PassedFile,
        to: (CString, bool, Conditions),
    ) {
        let now = Instant::now();
        let client = completion.client();
        let state = State { completion: Some(completion), has_begun: false, moved_at: now };
        let ticket = Arc::new(Ticket {
            service: Arc::clone(service),
            context,
            deadline,
            began: now,
            state: Mutex::new(state),
        });
        service.copiers.watch(&ticket);
        let (path, make_parents, conditions) = to;
        let stage = Stage::Passed(source);
        let copy = PutDescriptor { path, make_parents, conditions, ticket, stage };
        service.copiers.submit(client, Box::new(copy));
    }

    fn advance(&mut self) -> Result<Progress, Error> {
        let service = &self.ticket.service;
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Passed(source) => {
                let staging = service.staging.as_ref().ok_or(Error::NotWritable)?;
                let (file, fd_charge) = source.into_parts().ok_or(Error::BadDescriptor)?;
                let copy_charge = fd_charge.charge_for_copy();
                let copying = Copying::new(file, service.settings.max_object_size)?;
                let pending = staging.begin(&self.path, self.make_parents)?;
                self.stage = Stage::Copying { pending, copying, _charges: (fd_charge, copy_charge) };
                Ok(Progress::More)
            }
            Stage::Copying { mut pending, mut copying, _charges: charges } => {
                if copying.step(&mut pending)? == Copied::Part {
                    self.stage = Stage::Copying { pending, copying, _charges: charges };
                    return Ok(Progress::More);
                }
                // From here on the outcome of the commit is the answer.
                let finishing = service.copiers.finish();
                let Some(completion) = self.ticket.take() else { return Ok(Progress::Done) };
                let outcome = pending.commit(self.conditions).map(JobOutput::Metadata);
                // Release the account first: the client's next request must find it free. Closing the source may
                // block, so it happens after the answer, and at most one file per copier thread waits for it.
                drop(charges);
                self.ticket.complete(completion, outcome);
                drop(finishing);
                drop(copying);
                Ok(Progress::Done)
            }
            Stage::Over => Ok(Progress::Done),
        }
    }
}

impl Copy for PutDescriptor {
    fn step(&mut self) -> Progress {
        if let Err(error) = self.ticket.begin_step() {
            self.ticket.give_up(error);
            return Progress::Done;
        }
        if !self.ticket.is_wanted() {
            return Progress::Done;
        }
        match self.advance() {
            Ok(progress) => progress,
            Err(error) => {
                self.ticket.give_up(error);
                Progress::Done
            }
        }
    }
}

impl Ticket {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }

    fn take(&self) -> Option<PendingCompletion> {
        self.state().completion.take()
    }

    fn complete(&self, completion: PendingCompletion, outcome: Result<JobOutput, Error>) {
        let context = RequestContext { answered_at: Some(Instant::now()), ..self.context };
        completion.answer(context, outcome);
    }

    /// Answers if no answer was sent; counts an error of storage in any case.
    fn give_up(&self, error: Error) {
        match self.take() {
            Some(completion) => self.complete(completion, Err(error)),
            None => drop(self.service.note_failure(error, self.context.operation, &self.context.uri)),
        }
    }

    /// Records that the copy progresses; returns why it must not.
    fn begin_step(&self) -> Result<(), Error> {
        let now = Instant::now();
        let mut state = self.state();
        state.has_begun = true;
        state.moved_at = now;
        drop(state);
        self.check_time(now)
    }

    fn check_time(&self, now: Instant) -> Result<(), Error> {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            return Err(Error::DeadlinePassed);
        }
        if now.saturating_duration_since(self.began) > self.service.settings.upload_timeout {
            return Err(Error::UploadTooSlow);
        }
        Ok(())
    }

    /// Whether the client still waits: it is connected, has no answer, and the server is not stopping.
    fn is_wanted(&self) -> bool {
        let is_wanted =
            self.state().completion.as_ref().is_some_and(|completion| !completion.client_is_gone());
        is_wanted && !self.service.copiers.is_stopped()
    }
}

impl Watched for Ticket {
    fn tick(&self, now: Instant) {
        if self.state().completion.is_none() {
            return;
        }
        if let Err(error) = self.check_time(now) {
            return self.give_up(error);
        }
        let state = self.state();
        let still = now.saturating_duration_since(state.moved_at);
        let has_begun = state.has_begun;
        drop(state);
        if still > self.service.settings.request_timeout.get() {
            self.give_up(match has_begun {
                true => Error::SourceStuck,
                false => Error::Busy("other files that this user passed do not respond; try again"),
            });
        }
    }
}
