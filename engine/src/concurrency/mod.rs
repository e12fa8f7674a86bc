//! Decides which thread runs a session and when, and nothing else. Every model is one file with one `serve` of the
//! same shape.

mod blocking;
mod dedicated_threads;
mod epoll;
pub(crate) mod mailbox;
pub(crate) mod on_demand_threads;
pub(crate) mod poller;
mod reactor;
pub(crate) mod session_ownership;
pub(crate) mod slab;
pub(crate) mod start_gate;
pub(crate) mod stealing_queue;
mod thread_per_connection;
mod thread_pool;
mod timer_queue;
mod work_stealing;

use rustix::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::net::eventfd::EventFd;
use crate::net::listener::Listener;
use crate::net::transport::Transport;
use crate::service::Service;
use crate::session::{Next, RunOptions, Session, ThreadBuffers};

use crate::concurrency::start_gate::StartReport;

/// How often a model checks the deadlines of its sessions.
pub const TICK: Duration = Duration::from_secs(1);
/// The longest turn of a session: other sessions of the same thread wait meanwhile.
const TURN: Duration = Duration::from_micros(500);
/// How long a thread spins before it sleeps when the server optimizes for latency.
pub const SPIN_TIME: Duration = Duration::from_micros(100);

/// How the sessions of a transport share threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Model {
    ThreadPerConnection,
    ThreadPool,
    WorkStealing,
    Epoll,
}

impl Model {
    pub const ALL: [Model; 4] =
        [Model::ThreadPerConnection, Model::ThreadPool, Model::WorkStealing, Model::Epoll];

    pub fn index(self) -> usize {
        self as usize
    }

    pub fn name(self) -> &'static str {
        ["thread-per-connection", "thread-pool", "work-stealing", "epoll"][self.index()]
    }

    pub fn from_name(name: &str) -> Option<Model> {
        Model::ALL.into_iter().find(|model| model.name() == name)
    }

    /// Whether the model can serve a transport: thread-per-connection needs connections, which UDP lacks.
    pub fn serves(self, transport: Transport) -> bool {
        transport != Transport::Udp || self != Model::ThreadPerConnection
    }

    /// Sets up the model, reports success or failure through `begun`, and serves until `control` ends it and no
    /// session is left.
    pub fn serve(
        self,
        listener: &Arc<Listener>,
        service: &Arc<Service>,
        control: &Arc<Control>,
        begun: StartReport,
    ) {
        match self {
            Model::ThreadPerConnection => thread_per_connection::serve(listener, service, control, begun),
            Model::ThreadPool => thread_pool::serve(listener, service, control, begun),
            Model::WorkStealing => work_stealing::serve(listener, service, control, begun),
            Model::Epoll => epoll::serve(listener, service, control, begun),
        }
    }
}

/// Runs a session. A panic ends this session only; the server counts it, and the runtime reports it on stderr.
pub fn run(session: &mut Session, buffers: &mut ThreadBuffers, options: RunOptions) -> Next {
    catch_panic(session, buffers, |session, buffers| session.run(buffers, options))
}

/// The same for [`Session::read_on`].
pub fn read_on(session: &mut Session, buffers: &mut ThreadBuffers, options: RunOptions) -> Option<Next> {
    catch_panic(session, buffers, |session, buffers| session.read_on(buffers, options))
}

/// Runs `work` on a session; a panic counts as the end of the session.
fn catch_panic<T: From<Next>>(
    session: &mut Session,
    buffers: &mut ThreadBuffers,
    work: impl FnOnce(&mut Session, &mut ThreadBuffers) -> T,
) -> T {
    // The caller drops the session and this function renews the thread buffers: half-changed state is never used
    // again.
    let result = catch_unwind(AssertUnwindSafe(|| work(session, buffers)));
    result.unwrap_or_else(|_| {
        session.count_panic();
        buffers.renew();
        T::from(Next::Closed)
    })
}

/// Commands to a model, from weak to strong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Command {
    Serve,
    /// Another model takes over: accept nothing, hand every session over to the listener.
    Handover,
    /// Accept nothing more, answer what has arrived, close.
    Drain,
    /// Close everything now.
    Stop,
}

/// Sends commands to a model: the current command, and an eventfd notified on each change.
#[derive(Debug)]
pub struct Control {
    order: AtomicU8,
    event_fd: EventFd,
}

impl Control {
    pub fn new() -> io::Result<Self> {
        Ok(Control { order: AtomicU8::new(Command::Serve as u8), event_fd: EventFd::new()? })
    }

    pub fn order(&self) -> Command {
        match self.order.load(Ordering::Acquire) {
            0 => Command::Serve,
            1 => Command::Handover,
            2 => Command::Drain,
            _ => Command::Stop,
        }
    }

    /// Issues a command. A command weaker than the current one changes nothing.
    pub fn give(&self, order: Command) {
        self.order.fetch_max(order as u8, Ordering::AcqRel);
        self.event_fd.notify();
    }

    /// Notified once for every command. Several threads may watch it edge-triggered (EPOLLET): a notification without
    /// a command, from a process that shares the descriptor, costs each of them one look.
    pub fn event_fd(&self) -> &EventFd {
        &self.event_fd
    }
}

/// Starts a thread on which no signal handler runs: signals belong to the interpreter's main thread, and a SIGPIPE
/// that sendfile raises stays blocked.
pub fn spawn<T: Send + 'static>(
    name: &str,
    stack: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<T>> {
    // SAFETY: both sets are initialised by the calls before they are read.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        let mut before = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(stack).spawn(body);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        thread
    }
}
