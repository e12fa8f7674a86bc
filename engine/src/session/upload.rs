//! The content of a put on its way in: from the client's socket to a thread that writes, by way of a bounded window.
//!
//! The session appends what comes; a writer takes all that is there, writes it, and comes back for more. Making the file,
//! its directories, its room on the disk, writing, and letting go of it are the writers'; the session never waits for any.

use std::ffi::CString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use crate::uploads::{Upload, Uploads};

/// Bytes of one content that wait for a writer; as many are being written.
const WINDOW: usize = 1 << 20;
/// Where all contents together have more than may wait, one that has none waiting may have so many.
const NARROW: usize = 16 << 10;
/// The disk's room for a content is taken in steps of at least so many bytes where it is not taken at once.
const RESERVE_STEP: u64 = 1 << 20;

/// What is to be stored, and who is to be told.
#[derive(Debug)]
pub(super) struct Wish {
    pub path: CString,
    pub make_parents: bool,
    /// Bytes that were announced.
    pub length: u64,
    pub asked: RequestContext,
    pub conditions: Conditions,
    pub deadline: Option<Instant>,
}

/// The session's half.
#[derive(Debug)]
pub(super) struct Uploading(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    wish: Wish,
    client: Client,
    connection: Arc<Connection>,
    service: Arc<Service>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What has come and no writer has taken.
    came: Vec<u8>,
    /// When the last byte had come.
    whole_at: Option<Instant>,
    /// A writer has it, or it waits for one.
    is_running: bool,
    /// The client has been told why nothing comes of it; what it still sends is dropped.
    has_failed: bool,
    /// The session reads on when there is room.
    has_unread_fds: bool,
    /// None while a writer has it, and when it is over.
    file: Option<Box<File>>,
}

/// What the writers hand to each other.
#[derive(Debug)]
struct File {
    incoming: Option<PendingWrite>,
    upload: Upload,
    hold: FdCharge,
    /// Taken in exchange for what came.
    spare: Vec<u8>,
}

impl Uploading {
    /// Whoever calls it has a writer [start](Self::start).
    pub fn new(
        service: &Arc<Service>,
        connection: &Arc<Connection>,
        client: Client,
        wish: Wish,
        upload: Upload,
        hold: FdCharge,
    ) -> Uploading {
        let file = File { incoming: None, upload, hold, spare: Vec::new() };
        let state = State { is_running: true, file: Some(Box::new(file)), ..State::default() };
        Uploading(Arc::new(Shared {
            wish,
            client,
            connection: Arc::clone(connection),
            service: Arc::clone(service),
            state: Mutex::new(state),
        }))
    }

    pub fn asked(&self) -> &RequestContext {
        &self.0.wish.asked
    }

    /// Whether the client has heard why nothing comes of it.
    pub fn has_failed(&self) -> bool {
        self.0.state().has_failed
    }

    /// Has a writer come for what is there; its result is one more that the session waits for.
    pub fn start(&self) {
        submit(Arc::clone(&self.0), PendingCompletion::new(&self.0.connection, self.0.wish.asked.operation));
    }

    /// How many bytes may come now; 0: none until the session is woken.
    pub fn room(&self) -> usize {
        let mut state = self.0.state();
        if state.has_failed {
            return WINDOW;
        }
        let room = match self.0.service.uploads.may_buffer() {
            true => WINDOW.saturating_sub(state.came.len()),
            false if state.came.is_empty() => NARROW,
            false => 0,
        };
        state.has_unread_fds = room == 0;
        room
    }

    /// Appends what came. True: a writer has to be [started](Self::start) for it.
    pub fn push(&self, content: &[u8], is_whole: bool) -> bool {
        let mut state = self.0.state();
        if state.has_failed {
            return false;
        }
        self.0.service.uploads.buffer(content.len());
        state.came.extend_from_slice(content);
        if is_whole {
            state.whole_at = Some(Instant::now());
        }
        !std::mem::replace(&mut state.is_running, true)
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        let mut state = self.0.state();
        // A put that is whole goes on without the session.
        let file = if state.whole_at.is_none() { state.file.take() } else { None };
        drop(state);
        if let (Some(file), Some(pool)) = (file, &self.0.service.write_pool) {
            // To let go of a large file takes its time.
            pool.submit(self.0.client, Kind::Write, move || drop(file));
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A writer's turn.
    fn turn(self: Arc<Self>, completion: PendingCompletion) {
        let mut state = self.state();
        if state.whole_at.is_none() && completion.client_is_gone() {
            return;
        }
        let Some(mut file) = state.file.take() else { return };
        let bytes = std::mem::replace(&mut state.came, std::mem::take(&mut file.spare));
        let has_unread_fds = std::mem::take(&mut state.has_unread_fds);
        drop(state);
        if has_unread_fds {
            self.connection.push_completion(Completion::HasRoom);
        }
        let buffered = Buffered { uploads: &self.service.uploads, bytes: bytes.len() };
        let written = file.write(&self, &bytes);
        drop(buffered);
        if let Err(error) = written {
            // A client that hears of it finds its share and the disk's room free again.
            drop(file);
            return self.fail(completion, error);
        }
        let mut state = self.state();
        if state.came.is_empty() && state.whole_at.is_some() {
            drop(state);
            return self.commit(*file, completion);
        }
        file.spare = bytes;
        file.spare.clear();
        if state.came.is_empty() {
            // The client is slow: its buffers are for others.
            (file.spare, state.came) = (Vec::new(), Vec::new());
            state.is_running = false;
            state.file = Some(file);
            drop(state);
            return completion.complete(Completion::Written);
        }
        state.file = Some(file);
        drop(state);
        submit(self, completion);
    }

    fn commit(&self, file: File, completion: PendingCompletion) {
        // How long the content took to come is the client's affair.
        let complete_at = self.state().whole_at.unwrap_or_else(Instant::now);
        let outcome = file.commit(&self.wish);
        let asked = RequestContext { complete_at, answered_at: Some(Instant::now()), ..self.wish.asked };
        completion.answer(asked, outcome.map(JobOutput::Known));
    }

    /// Nothing comes of it.
    fn fail(&self, completion: PendingCompletion, error: Error) {
        let mut state = self.state();
        state.has_failed = true;
        let dropped = std::mem::take(&mut state.came);
        let has_unread_fds = std::mem::take(&mut state.has_unread_fds);
        drop(state);
        self.service.uploads.unbuffer(dropped.len());
        if has_unread_fds {
            self.connection.push_completion(Completion::HasRoom);
        }
        let asked = RequestContext { answered_at: Some(Instant::now()), ..self.wish.asked };
        completion.answer(asked, Err(error));
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let left = self.state().came.len();
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

impl File {
    fn write(&mut self, of: &Shared, bytes: &[u8]) -> Result<(), Error> {
        let length = of.wish.length;
        let incoming = match &mut self.incoming {
            Some(incoming) => incoming,
            none => {
                of.wish.check_deadline()?;
                let staging = of.service.staging.as_ref().ok_or(Error::NotWritable)?;
                let mut incoming = staging.begin(&of.wish.path, of.wish.make_parents)?;
                if !of.service.has_fd_headroom(incoming.file()) {
                    return Err(Error::Busy("the server has no descriptors for more writes, try again"));
                }
                incoming.check_room(length)?;
                incoming.reserve(self.upload.reserve(length))?;
                none.insert(incoming)
            }
        };
        incoming.write(bytes)?;
        // What was written is reserved no more. Where the user may not have all at once, a step further is.
        let (written, reserved) = (incoming.size(), incoming.reserved());
        if reserved < length && reserved.saturating_sub(written) < RESERVE_STEP {
            incoming.reserve(written + self.upload.reserve(length - written))?;
        }
        // Nothing, on a file system that cannot reserve.
        self.upload.reserve(incoming.reserved().saturating_sub(written));
        Ok(())
    }

    fn commit(self, wish: &Wish) -> Result<ObjectMeta, Error> {
        let File { incoming, upload, hold, .. } = self;
        wish.check_deadline()?;
        let found = incoming.ok_or(Error::StagingGone)?.commit(wish.conditions);
        drop((upload, hold));
        found
    }
}

impl Wish {
    fn check_deadline(&self) -> Result<(), Error> {
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Error::DeadlinePassed),
            _ => Ok(()),
        }
    }
}

/// A write even before all has come: the content may be whole when a writer comes to it, and is stored then, though the client
/// has gone.
fn submit(shared: Arc<Shared>, completion: PendingCompletion) {
    let service = Arc::clone(&shared.service);
    if let Some(pool) = &service.write_pool {
        pool.submit(shared.client, Kind::Write, move || shared.turn(completion));
    }
}
