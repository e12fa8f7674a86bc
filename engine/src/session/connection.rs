//! What other threads may touch of a connection: its socket, the account of its descriptors, and what storage has found
//! out for it.

use crate::net::credentials;
use crate::net::socket;
use rustix::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

use crate::access::accounts::{ClientAccess, UserAccount};
use crate::fd::unread::UnreadFds;
use crate::net::transport::Transport;
use crate::service::Service;
use crate::session::completions::CompletionQueue;
use crate::session::storage_job::Completion;
use crate::storage::pool::{Client, User};

/// The number of the next connection.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Who is told that a session has something to do.
pub trait Wake: Send + Sync + std::fmt::Debug {
    /// `key` is what the model said when it took the session in.
    fn wake(&self, key: u64);
}

#[derive(Debug)]
pub struct Connection {
    pub(super) socket: OwnedFd,
    /// Descriptors passed to this client that it has, as far as is known, not received: those of `passed`, to be looked at
    /// without its lock.
    unread: AtomicU32,
    /// Held, too, while what was received or written is taken off the accounts, which others than the session may do.
    passed: Mutex<UnreadFds>,
    /// The account of the client's user, where there are rules about it.
    account: OnceLock<Arc<UserAccount>>,
    /// Descriptors that its writes have open, or that it passed to be put. Changed while settling.
    writing: AtomicU32,
    /// Bytes of its answers in memory.
    output: AtomicUsize,
    /// The server wants no further request.
    pub(super) is_stopped: AtomicBool,
    /// Its session is over: storage has nothing more to do for it.
    is_over: AtomicBool,
    number: u64,
    /// Asked of the kernel when storage first works for it.
    client: OnceLock<Client>,
    finished: CompletionQueue<Completion>,
    /// Set when its session has ended: its user's count of connections goes with it.
    client_access: OnceLock<Box<ClientAccess>>,
    // Behind the socket: it is dropped after it.
    counted: Counted,
}

/// A connection in the counts of the server, until its socket is closed: who keeps the socket keeps it counted.
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
    /// Takes a connection that was counted by [`Service::admit_connection`].
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

    pub fn transport(&self) -> Transport {
        self.counted.transport
    }

    /// Drops what storage has for its session, which has ended. The connection counts for its user until the socket is closed.
    pub(super) fn end_session(&self, client_access: Option<Box<ClientAccess>>) {
        if let Some(client_access) = client_access {
            // A session ends once.
            let _ = self.client_access.set(client_access);
        }
        for done in self.finished.end() {
            self.miss(done);
        }
    }

    /// On whose turn storage works for it.
    pub(super) fn client(&self) -> Client {
        *self.client.get_or_init(|| {
            let user = match self.transport() {
                Transport::Unix => credentials::peer_uid(&self.socket).ok().map(User::Uid),
                _ => credentials::peer_address(&self.socket).map(User::Address),
            };
            Client { user: user.unwrap_or(User::Unknown), connection: self.number }
        })
    }

    /// Which connection of this server it is.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The session is over.
    pub(super) fn end(&self) {
        self.is_over.store(true, Relaxed);
    }

    /// Whether no answer reaches the client any more.
    pub(super) fn is_gone(&self) -> bool {
        self.is_over.load(Relaxed) || socket::has_hung_up(&self.socket)
    }

    /// Lets the client send nothing more, whichever thread runs its session.
    pub fn stop_reading(&self) {
        self.is_stopped.store(true, Relaxed);
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Read);
    }

    /// From now on `wake` is told, with this key; at once where something has come meanwhile.
    pub fn set_wake(&self, wake: &Arc<dyn Wake>, key: u64) {
        self.finished.set_wake(wake, key);
    }

    /// Leaves a result for the session, and has it run.
    pub(super) fn push_completion(&self, done: Completion) {
        // Without a session there is nothing to run, and the thread that ends it may hold what `wake` needs.
        if self.is_over.load(Relaxed) {
            return self.miss(done);
        }
        if let Err(done) = self.finished.add(done) {
            self.miss(done);
        }
    }

    /// Takes note of what a session would have answered that is over.
    fn miss(&self, done: Completion) {
        if let Completion::Reply { asked, outcome: Err(error), .. } = done {
            self.counted.service.note_failure(error, asked.operation, &asked.uri);
        }
    }

    pub(super) fn take_completions(&self) -> Vec<Completion> {
        self.finished.take()
    }

    pub(super) fn unread(&self) -> u32 {
        self.unread.load(Relaxed)
    }

    /// So many messages were sent, each of so many bytes and with so many descriptors. They are on the account already.
    pub(super) fn count_sent(&self, messages: usize, bytes: usize, descriptors: u32) {
        // Where none is on its way, bytes alone are nothing to remember; only the session's own thread adds any.
        if descriptors > 0 || self.unread() > 0 {
            let mut passed = self.settling();
            passed.sent(messages, bytes, descriptors);
            self.unread.store(passed.descriptors(), Relaxed);
        }
    }

    fn settling(&self) -> MutexGuard<'_, UnreadFds> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts what this client has, and `held` that is open for it, on its user's account; once.
    pub(super) fn attach_account(self: &Arc<Self>, account: &Arc<UserAccount>, held: u32) {
        let _settling = self.settling();
        if self.account.set(Arc::clone(account)).is_ok() {
            account.take(held + self.unread() + self.writing());
            account.track(self);
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

    /// So many files more are open for its writes.
    pub(super) fn take_for_write(&self, service: &Service, count: u32) {
        // The account may come between two lines, and would count what is neither here nor there twice, or not at all.
        let _settling = self.settling();
        self.writing.fetch_add(count, Relaxed);
        self.take(service, count);
    }

    pub(super) fn release_written(&self, service: &Service, count: u32) {
        let _settling = self.settling();
        self.writing.fetch_sub(count, Relaxed);
        self.release(service, count);
    }

    /// One file more is open for this client.
    pub(super) fn take(&self, service: &Service, count: u32) {
        service.in_flight.take(count);
        if let Some(account) = self.account.get() {
            account.take(count);
        }
    }

    pub(super) fn release(&self, service: &Service, count: u32) {
        service.in_flight.release(count);
        if let Some(account) = self.account.get() {
            account.release(count);
        }
    }

    /// Settles what the client has received.
    pub fn settle_unread(&self, service: &Service) {
        if self.unread() == 0 {
            return;
        }
        let mut passed = match self.passed.try_lock() {
            Ok(passed) => passed,
            Err(TryLockError::Poisoned(passed)) => passed.into_inner(),
            // Somebody else does it.
            Err(TryLockError::WouldBlock) => return,
        };
        // What is sent meanwhile is counted afterwards: its memory makes others stay counted, no fewer.
        if let Ok(memory) = socket::unread_bytes(&self.socket) {
            let received = passed.settle(memory);
            self.unread.store(passed.descriptors(), Relaxed);
            self.release(service, received);
        }
    }

    /// Whether descriptors are still on their way to the client. They count against the user until it reads or closes.
    pub fn has_unread_fds(&self) -> bool {
        self.unread() > 0 && matches!(socket::unread_bytes(&self.socket), Ok(queued) if queued > 0)
    }

    /// Takes the descriptors off the account, now that nobody will ask any more.
    pub fn forget_unread(&self, service: &Service) {
        let mut passed = self.settling();
        self.unread.store(0, Relaxed);
        self.release(service, passed.clear());
    }
}
