//! The part of a connection that other threads may use: its socket, the account of its descriptors, and the results
//! that storage has for it.

use crate::net::credentials;
use crate::net::socket;
use rustix::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError, Weak};

use crate::access::accounts::{ClientAccess, UserAccount};
use crate::fd::counted_connection::CountedConnection;
use crate::fd::unread::UnreadFds;
use crate::net::transport::Transport;
use crate::service::Service;
use crate::session::completions::CompletionQueue;
use crate::session::storage_job::Completion;
use crate::storage::pool::{Client, User};
use crate::sync::unpoisoned;

/// The number of the next connection.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Receives the notice that a session has work to do.
pub trait Wake: Send + Sync + std::fmt::Debug {
    /// `key` is the value that the model passed when it took the session in.
    fn wake(&self, key: u64);
}

#[derive(Debug)]
pub struct Connection {
    pub(super) socket: OwnedFd,
    /// Descriptors passed to this client that it has, as far as the server knows, not received: the count of
    /// `passed`, readable without its lock.
    unread: AtomicU32,
    /// The lock is also held while received or written descriptors leave the accounts; threads other than the
    /// session's may do that.
    passed: Mutex<UnreadFds>,
    /// The account of the client's user, if there are rules about it.
    account: OnceLock<Arc<UserAccount>>,
    /// Descriptors that its writes have open, or that it passed for puts. Changed under the lock of `passed`.
    writing: AtomicU32,
    /// Bytes of its answers in memory.
    output: AtomicUsize,
    /// The server accepts no further request from it.
    pub(super) is_stopped: AtomicBool,
    /// Its session is over: storage does no more work for it.
    is_over: AtomicBool,
    number: u64,
    /// Asked of the kernel when storage first works for it.
    client: OnceLock<Client>,
    finished: CompletionQueue<Completion>,
    /// Set when its session has ended: the user's count of connections drops with it.
    client_access: OnceLock<Box<ClientAccess>>,
    // Declared after the socket, so that it is dropped after it.
    counted: Counted,
}

/// A connection in the server's counts. It counts until its socket is closed, so keeping the socket keeps it counted.
#[derive(Debug)]
struct Counted {
    service: Arc<Service>,
    transport: Transport,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.service.connection_ended();
        self.service.statistics.gauges(self.transport).connections.fetch_sub(1, Relaxed);
    }
}

impl Connection {
    /// Takes a connection that [`Service::admit_connection`] has counted.
    pub(super) fn new(socket: OwnedFd, transport: Transport, service: &Arc<Service>) -> Self {
        let gauges = service.statistics.gauges(transport);
        gauges.connections.fetch_add(1, Relaxed);
        gauges.connections_total.fetch_add(1, Relaxed);
        Connection {
            socket,
            unread: AtomicU32::new(0),
            passed: Mutex::default(),
            account: OnceLock::new(),
            writing: AtomicU32::new(0),
            output: AtomicUsize::new(0),
            is_stopped: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            number: NEXT.fetch_add(1, Relaxed),
            client: OnceLock::new(),
            finished: CompletionQueue::new(),
            client_access: OnceLock::new(),
            counted: Counted { service: Arc::clone(service), transport },
        }
    }

    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Drops the results that storage has for the ended session. The connection counts for its user until the socket
    /// is closed.
    pub(super) fn end_session(&self, client_access: Option<Box<ClientAccess>>) {
        if let Some(client_access) = client_access {
            // A session ends once.
            let _ = self.client_access.set(client_access);
        }
        for completion in self.finished.end() {
            self.miss(completion);
        }
    }

    /// The client on whose turn storage works for this connection.
    pub(super) fn client(&self) -> Client {
        *self.client.get_or_init(|| {
            let user = match self.transport() {
                Transport::Unix => credentials::peer_uid(&self.socket).ok().map(User::Uid),
                _ => credentials::peer_address(&self.socket).map(User::Address),
            };
            Client { user: user.unwrap_or(User::Unknown), connection: self.number }
        })
    }

    /// The number of the connection in this server.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Marks the session as over.
    pub(super) fn end(&self) {
        self.is_over.store(true, Relaxed);
    }

    /// Whether no answer can reach the client any more.
    pub(super) fn is_gone(&self) -> bool {
        self.is_over.load(Relaxed) || socket::has_hung_up(&self.socket)
    }

    /// Stops reading from the client, whichever thread runs its session.
    pub fn stop_reading(&self) {
        self.is_stopped.store(true, Relaxed);
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Read);
    }

    /// Calls `wake` with this key from now on; calls it at once if a result has arrived already.
    pub fn set_wake(&self, wake: &Arc<dyn Wake>, key: u64) {
        self.finished.set_wake(wake, key);
    }

    /// Adds a result for the session, and makes the session run.
    pub(super) fn push_completion(&self, completion: Completion) {
        // An ended session does not run, and the thread that ends it may hold a lock that `wake` needs.
        if self.is_over.load(Relaxed) {
            return self.miss(completion);
        }
        if let Err(completion) = self.finished.add(completion) {
            self.miss(completion);
        }
    }

    /// Records the failure that an ended session would have answered.
    fn miss(&self, completion: Completion) {
        if let Completion::Reply { context, outcome: Err(error), .. } = completion {
            self.counted.service.note_failure(error, context.operation, &context.uri);
        }
    }

    pub(super) fn take_completions(&self) -> Vec<Completion> {
        self.finished.take()
    }

    pub(super) fn unread(&self) -> u32 {
        self.unread.load(Relaxed)
    }

    /// Records sent messages: how many, and the bytes and descriptors of each. The account is charged already.
    pub(super) fn count_sent(&self, messages: usize, bytes: usize, descriptors: u32) {
        // Without unread descriptors, plain bytes need no record; only the session's own thread adds descriptors.
        if descriptors > 0 || self.unread() > 0 {
            let mut passed = self.settling();
            passed.sent(messages, bytes, descriptors);
            self.unread.store(passed.descriptors(), Relaxed);
        }
    }

    fn settling(&self) -> MutexGuard<'_, UnreadFds> {
        unpoisoned(self.passed.lock())
    }

    /// Charges this client's descriptors, and the `open_fds` that are open for it, to its user's account; once.
    pub(super) fn attach_account(self: &Arc<Self>, account: &Arc<UserAccount>, open_fds: u32) {
        let _settling = self.settling();
        if self.account.set(Arc::clone(account)).is_ok() {
            account.take(open_fds + self.unread() + self.writing());
            let connection: Weak<Self> = Arc::downgrade(self);
            account.track(connection);
        }
    }

    /// Bytes of answers in memory for this client.
    pub(super) fn output(&self) -> usize {
        self.output.load(Relaxed)
    }

    pub(super) fn take_output(&self, bytes: usize) {
        self.output.fetch_add(bytes, Relaxed);
        self.counted.service.output.take(bytes);
    }

    pub(super) fn release_output(&self, bytes: usize) {
        self.output.fetch_sub(bytes, Relaxed);
        self.counted.service.output.release(bytes);
    }

    pub(super) fn writing(&self) -> u32 {
        self.writing.load(Relaxed)
    }

    /// Counts `count` further files as open for its writes.
    pub(super) fn take_for_write(&self, service: &Service, count: u32) {
        // Lock both updates, or attaching an account in between miscounts.
        let _settling = self.settling();
        self.writing.fetch_add(count, Relaxed);
        self.take(service, count);
    }

    pub(super) fn release_written(&self, service: &Service, count: u32) {
        let _settling = self.settling();
        self.writing.fetch_sub(count, Relaxed);
        self.release(service, count);
    }

    /// Counts `count` further files as open for this client.
    pub(super) fn take(&self, service: &Service, count: u32) {
        service.fd_budget.take(count);
        if let Some(account) = self.account.get() {
            account.take(count);
        }
    }

    pub(super) fn release(&self, service: &Service, count: u32) {
        service.fd_budget.release(count);
        if let Some(account) = self.account.get() {
            account.release(count);
        }
    }
}

impl CountedConnection for Connection {
    fn transport(&self) -> Transport {
        self.counted.transport
    }

    fn settle_unread(&self) {
        if self.unread() == 0 {
            return;
        }
        let mut passed = match self.passed.try_lock() {
            Ok(passed) => passed,
            Err(TryLockError::Poisoned(passed)) => passed.into_inner(),
            // Another thread settles at this moment.
            Err(TryLockError::WouldBlock) => return,
        };
        // A message sent meanwhile is counted afterwards: its memory keeps earlier descriptors counted, so the count
        // errs high.
        if let Ok(memory) = socket::unread_bytes(&self.socket) {
            let received = passed.settle(memory);
            self.unread.store(passed.descriptors(), Relaxed);
            self.release(&self.counted.service, received);
        }
    }

    fn has_unread_fds(&self) -> bool {
        self.unread() > 0 && matches!(socket::unread_bytes(&self.socket), Ok(queued) if queued > 0)
    }

    fn forget_unread(&self) {
        let mut passed = self.settling();
        self.unread.store(0, Relaxed);
        self.release(&self.counted.service, passed.clear());
    }
}
