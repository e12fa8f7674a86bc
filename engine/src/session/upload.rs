//! The incoming content of a put: from the client's socket to a writer thread, through a bounded window.
//!
//! The session appends arriving bytes; a writer takes all of them, writes them, and returns for more. The writers
//! create the file and its directories, reserve disk space, write, and close; the session never waits for any of
//! that.

use std::ffi::CString;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use crate::errors::Error;
use crate::service::Service;
use crate::session::connection::Connection;
use crate::session::dispatch::RequestContext;
use crate::session::fd_charge::FdCharge;
use crate::session::storage_job::{Completion, JobOutput, PendingCompletion};
use crate::storage::mapping::ObjectMeta;
use crate::storage::pending_write::PendingWrite;
use crate::storage::pool::{Client, Kind};
use crate::storage::target::Conditions;
use crate::sync::unpoisoned;
use crate::uploads::{Upload, Uploads};

/// Bytes of one content that may wait for a writer; as many may be in writing.
const WINDOW: usize = 1 << 20;
/// While all contents together exceed the bytes that may wait, a content with none waiting may still have this many.
const NARROW: usize = 16 << 10;
/// The server reserves disk space in steps of at least this many bytes if it does not reserve all at once.
const RESERVE_STEP: u64 = 1 << 20;

/// The object to store, and the request to answer.
#[derive(Debug)]
pub(super) struct PutRequest {
    pub path: CString,
    pub make_parents: bool,
    /// The announced length in bytes.
    pub length: u64,
    pub context: RequestContext,
    pub conditions: Conditions,
    pub deadline: Option<Instant>,
}

/// The session's half of an upload.
#[derive(Debug)]
pub(super) struct Uploading(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    request: PutRequest,
    client: Client,
    connection: Arc<Connection>,
    service: Arc<Service>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes that have arrived and no writer has taken.
    arrived: Vec<u8>,
    /// When the last byte arrived.
    whole_at: Option<Instant>,
    /// A writer has the content, or the content waits for one.
    is_running: bool,
    /// The client has the error answer; the server drops what it still sends.
    has_failed: bool,
    /// The session waits for capacity before it reads on.
    session_waits: bool,
    /// None while a writer has it, and when it is over.
    writer: Option<Box<Writer>>,
}

/// The part that the writers pass on to each other.
#[derive(Debug)]
struct Writer {
    pending: Option<PendingWrite>,
    upload: Upload,
    fd_charge: FdCharge,
    /// An empty buffer to exchange for the arrived bytes.
    spare: Vec<u8>,
}

impl Uploading {
    /// The caller must [start](Self::start) a writer for it.
    pub fn new(
        service: &Arc<Service>,
        connection: &Arc<Connection>,
        client: Client,
        request: PutRequest,
        upload: Upload,
        fd_charge: FdCharge,
    ) -> Uploading {
        let writer = Writer { pending: None, upload, fd_charge, spare: Vec::new() };
        let state = State { is_running: true, writer: Some(Box::new(writer)), ..State::default() };
        Uploading(Arc::new(Shared {
            request,
            client,
            connection: Arc::clone(connection),
            service: Arc::clone(service),
            state: Mutex::new(state),
        }))
    }

    pub fn context(&self) -> &RequestContext {
        &self.0.request.context
    }

    /// Whether the client has the error answer.
    pub fn has_failed(&self) -> bool {
        self.0.state().has_failed
    }

    /// Submits a writer for the bytes that are there; its result is one more that the session waits for.
    pub fn start(&self) {
        submit(
            Arc::clone(&self.0),
            PendingCompletion::new(&self.0.connection, self.0.request.context.operation),
        );
    }

    /// How many bytes may arrive now; 0: none until the session is woken.
    pub fn capacity(&self) -> usize {
        let mut state = self.0.state();
        if state.has_failed {
            return WINDOW;
        }
        let capacity = match self.0.service.uploads.may_buffer() {
            true => WINDOW.saturating_sub(state.arrived.len()),
            false if state.arrived.is_empty() => NARROW,
            false => 0,
        };
        state.session_waits = capacity == 0;
        capacity
    }

    /// Appends arrived bytes. True: the caller must [start](Self::start) a writer for them.
    pub fn push(&self, content: &[u8], is_whole: bool) -> bool {
        let mut state = self.0.state();
        if state.has_failed {
            return false;
        }
        self.0.service.uploads.buffer(content.len());
        state.arrived.extend_from_slice(content);
        if is_whole {
            state.whole_at = Some(Instant::now());
        }
        !std::mem::replace(&mut state.is_running, true)
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        let mut state = self.0.state();
        // A put whose bytes have all arrived continues without the session.
        let writer = if state.whole_at.is_none() { state.writer.take() } else { None };
        drop(state);
        if let (Some(writer), Some(pool)) = (writer, &self.0.service.write_pool) {
            // Closing a large file may take long.
            pool.submit(self.0.client, Kind::Write, move || drop(writer));
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }

    /// One turn of a writer.
    fn write_turn(self: Arc<Self>, completion: PendingCompletion) {
        let mut state = self.state();
        if state.whole_at.is_none() && completion.client_is_gone() {
            return;
        }
        let Some(mut writer) = state.writer.take() else { return };
        let bytes = std::mem::replace(&mut state.arrived, std::mem::take(&mut writer.spare));
        let session_waits = std::mem::take(&mut state.session_waits);
        drop(state);
        if session_waits {
            self.connection.push_completion(Completion::HasCapacity);
        }
        let buffered = Buffered { uploads: &self.service.uploads, bytes: bytes.len() };
        let written = writer.write(&self, &bytes);
        drop(buffered);
        if let Err(error) = written {
            // Drop first: a client that gets the error must find its share and the disk space free again.
            drop(writer);
            return self.fail(completion, error);
        }
        let mut state = self.state();
        if state.arrived.is_empty() && state.whole_at.is_some() {
            drop(state);
            return self.commit(*writer, completion);
        }
        writer.spare = bytes;
        writer.spare.clear();
        if state.arrived.is_empty() {
            // The client is slow: free the buffers for others.
            (writer.spare, state.arrived) = (Vec::new(), Vec::new());
            state.is_running = false;
            state.writer = Some(writer);
            drop(state);
            return completion.complete(Completion::Written);
        }
        state.writer = Some(writer);
        drop(state);
        submit(self, completion);
    }

    fn commit(&self, writer: Writer, completion: PendingCompletion) {
        // The time that the content took to arrive does not count as the server's.
        let complete_at = self.state().whole_at.unwrap_or_else(Instant::now);
        let outcome = writer.commit(&self.request);
        let context =
            RequestContext { complete_at, answered_at: Some(Instant::now()), ..self.request.context };
        completion.answer(context, outcome.map(JobOutput::Metadata));
    }

    /// Ends the upload with an error.
    fn fail(&self, completion: PendingCompletion, error: Error) {
        let mut state = self.state();
        state.has_failed = true;
        let dropped = std::mem::take(&mut state.arrived);
        let session_waits = std::mem::take(&mut state.session_waits);
        drop(state);
        self.service.uploads.unbuffer(dropped.len());
        if session_waits {
            self.connection.push_completion(Completion::HasCapacity);
        }
        let context = RequestContext { answered_at: Some(Instant::now()), ..self.request.context };
        completion.answer(context, Err(error));
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let left = self.state().arrived.len();
        self.service.uploads.unbuffer(left);
    }
}

/// Bytes that count as waiting for a writer until this is dropped, by a panic too.
struct Buffered<'a> {
    uploads: &'a Uploads,
    bytes: usize,
}

impl Drop for Buffered<'_> {
    fn drop(&mut self) {
        self.uploads.unbuffer(self.bytes);
    }
}

impl Writer {
    fn write(&mut self, shared: &Shared, bytes: &[u8]) -> Result<(), Error> {
        let length = shared.request.length;
        let pending = match &mut self.pending {
            Some(pending) => pending,
            none => {
                shared.request.check_deadline()?;
                let staging = shared.service.staging.as_ref().ok_or(Error::NotWritable)?;
                let mut pending = staging.begin(&shared.request.path, shared.request.make_parents)?;
                if !shared.service.has_fd_headroom(pending.file()) {
                    return Err(Error::Busy("the server has no file descriptors for more writes; try again"));
                }
                pending.check_space(length)?;
                pending.reserve(self.upload.reserve(length))?;
                none.insert(pending)
            }
        };
        pending.write(bytes)?;
        // Release the reservation of the written bytes. Reserve a step ahead if the user may not reserve all at once.
        let (written, reserved) = (pending.size(), pending.reserved());
        if reserved < length && reserved.saturating_sub(written) < RESERVE_STEP {
            pending.reserve(written + self.upload.reserve(length - written))?;
        }
        // Zero on a file system that cannot reserve.
        self.upload.reserve(pending.reserved().saturating_sub(written));
        Ok(())
    }

    fn commit(self, request: &PutRequest) -> Result<ObjectMeta, Error> {
        let Writer { pending, upload, fd_charge, .. } = self;
        request.check_deadline()?;
        let meta = pending.ok_or(Error::StagingGone)?.commit(request.conditions);
        drop((upload, fd_charge));
        meta
    }
}

impl PutRequest {
    fn check_deadline(&self) -> Result<(), Error> {
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Error::DeadlinePassed),
            _ => Ok(()),
        }
    }
}

/// Submit as a write even before all bytes have arrived: the content may be complete when a writer takes it, and is
/// then stored even if the client has gone.
fn submit(shared: Arc<Shared>, completion: PendingCompletion) {
    let service = Arc::clone(&shared.service);
    if let Some(pool) = &service.write_pool {
        pool.submit(shared.client, Kind::Write, move || shared.write_turn(completion));
    }
}
