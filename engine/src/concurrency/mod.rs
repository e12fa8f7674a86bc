//! Which thread runs a session when, and nothing else. Every model is one file with one `serve` of the same shape.

mod conversation;
pub(crate) mod desks;
mod epoll;
pub(crate) mod hands;
mod later;
pub(crate) mod mailbox;
pub(crate) mod places;
pub(crate) mod poller;
mod reactor;
pub(crate) mod roster;
mod solo;
pub(crate) mod starting;
mod thread_per_connection;
mod thread_pool;
mod work_stealing;

use rustix::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::listener::Listener;
use crate::service::Service;
use crate::session::{Manner, Next, Scratch, Session};
use crate::transport::{Bell, Transport};

use starting::Begun;

/// Sessions are asked about their deadlines this often.
pub const TICK: Duration = Duration::from_secs(1);
/// While a thread runs one session, the others that it serves wait: after this time it is their turn.
const TURN: Duration = Duration::from_micros(500);
/// How long threads try before they sleep, where latency is what matters.
pub const SPIN: Duration = Duration::from_micros(100);

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

    /// Whether the model can serve a transport: without connections there are no threads for them.
    pub fn serves(self, transport: Transport) -> bool {
        transport != Transport::Udp || self != Model::ThreadPerConnection
    }

    /// Makes all that it needs, says through `begun` how that went, and serves until `shutdown` says otherwise and no session
    /// is left.
    pub fn serve(
        self,
        listener: &Arc<Listener>,
        service: &Arc<Service>,
        shutdown: &Arc<Shutdown>,
        begun: Begun,
    ) {
        match self {
            Model::ThreadPerConnection => thread_per_connection::serve(listener, service, shutdown, begun),
            Model::ThreadPool => thread_pool::serve(listener, service, shutdown, begun),
            Model::WorkStealing => work_stealing::serve(listener, service, shutdown, begun),
            Model::Epoll => epoll::serve(listener, service, shutdown, begun),
        }
    }
}

/// Runs a session. A panic in it ends this session and no other; it is counted, and reported on stderr by the runtime.
pub fn run(session: &mut Session, scratch: &mut Scratch, manner: Manner) -> Next {
    caught(session, scratch, |session, scratch| session.run(scratch, manner))
}

/// The same for [`Session::read_on`].
pub fn read_on(session: &mut Session, scratch: &mut Scratch, manner: Manner) -> Option<Next> {
    caught(session, scratch, |session, scratch| session.read_on(scratch, manner))
}

/// What `work` makes of a session; where it panics: that the session is over.
fn caught<T: From<Next>>(
    session: &mut Session,
    scratch: &mut Scratch,
    work: impl FnOnce(&mut Session, &mut Scratch) -> T,
) -> T {
    // The session is dropped and the scratch made anew: nothing that may be half done is used again.
    let result = catch_unwind(AssertUnwindSafe(|| work(session, scratch)));
    result.unwrap_or_else(|_| {
        session.count_panic();
        scratch.renew();
        T::from(Next::Closed)
    })
}

/// What a model is told to do, from weak to strong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Order {
    Serve,
    /// Another model takes over: accept nothing, hand every session over to the listener.
    HandOver,
    /// Accept nothing more, answer what has come, close.
    Drain,
    /// Close everything now.
    Stop,
}

/// How a model is told: an order, and a bell that is rung for each.
#[derive(Debug)]
pub struct Shutdown {
    order: AtomicU8,
    bell: Bell,
}

impl Shutdown {
    pub fn new() -> io::Result<Self> {
        Ok(Shutdown { order: AtomicU8::new(Order::Serve as u8), bell: Bell::new()? })
    }

    pub fn order(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            0 => Order::Serve,
            1 => Order::HandOver,
            2 => Order::Drain,
            _ => Order::Stop,
        }
    }

    /// Gives an order. A weaker one than the one in force changes nothing.
    pub fn give(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::AcqRel);
        self.bell.ring();
    }

    /// Rings once for every order that is given. Several threads may watch it, each for the edge (EPOLLET): a ring that no
    /// order came with, of a process that shares the descriptor, then costs each of them one look.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }
}

/// Starts a thread on which no signal handler runs: signals belong to the interpreter's main thread, and a SIGPIPE that
/// sendfile raises has nobody to disturb.
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
