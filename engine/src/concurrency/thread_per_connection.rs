//! A thread for every connection, at most `max_threads`; further connections wait in order for one to end.
//!
//! Threads are small (128 KiB of stack, of which a few pages are touched). A thread whose connection ended takes the
//! next one, which saves starting a thread where clients connect for every request.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use crate::concurrency::acceptor::{AcceptOutcome, Acceptor, Taker};
use crate::concurrency::blocking::run_session_blocking;
use crate::concurrency::control::{Command, Control};
use crate::concurrency::on_demand_threads::OnDemandThreads;
use crate::concurrency::start_gate::{StartReport, start_error};
use crate::model::Model;
use crate::service::Service;
use crate::session::{Connection, Session, ThreadBuffers};
use crate::spawn::spawn;
use crate::sync::unpoisoned;

const STACK: usize = 128 << 10;
/// A thread without a connection ends after this time, unless it is the last.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often to try again after a thread could not be started.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// The connections and the threads.
#[derive(Debug)]
struct ConnectionThreads {
    acceptor: Arc<Acceptor>,
    service: Arc<Service>,
    control: Arc<Control>,
    workers: OnDemandThreads<Box<Session>>,
    /// The sockets in which threads may sleep; shutdown(2) wakes them.
    served: Mutex<HashMap<usize, Weak<Connection>>>,
    next_number: AtomicUsize,
    is_short_of_threads: AtomicBool,
}

pub fn serve(acceptor: &Arc<Acceptor>, service: &Arc<Service>, control: &Arc<Control>, report: StartReport) {
    let threads = Arc::new(ConnectionThreads {
        acceptor: Arc::clone(acceptor),
        service: Arc::clone(service),
        control: Arc::clone(control),
        workers: OnDemandThreads::new(service.settings.max_threads),
        served: Mutex::default(),
        next_number: AtomicUsize::new(0),
        is_short_of_threads: AtomicBool::new(false),
    });
    // One thread stays for as long as the model serves, so that every connection is served eventually.
    if threads.workers.claim_first()
        && let Err(error) = threads.start_thread()
    {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
        return report.report_failure(start_error(errno, "start a thread", acceptor.address()));
    }
    let mut taker = acceptor.serve();
    report.report_success();
    let mut applied = Command::Serve;
    while applied == Command::Serve {
        threads.accept();
        applied = control.command();
    }
    if applied == Command::Drain {
        // Serve clients that the kernel let in before this moment.
        acceptor.accept_rest(service, |session| threads.add(session));
    }
    threads.shut_down(applied, &mut taker);
}

impl ConnectionThreads {
    fn served(&self) -> MutexGuard<'_, HashMap<usize, Weak<Connection>>> {
        unpoisoned(self.served.lock())
    }

    /// Accepts until no connection waits, then sleeps until one arrives or a command is issued.
    fn accept(self: &Arc<Self>) {
        let mut pause = None;
        while let Some(session) = self.acceptor.take_over() {
            self.add(session);
        }
        loop {
            match self.acceptor.accept(&self.service) {
                AcceptOutcome::Session(session) => self.add(session),
                AcceptOutcome::Refused => {}
                AcceptOutcome::Nothing => break,
                AcceptOutcome::Exhausted(retry_after) => {
                    pause = Some(retry_after);
                    break;
                }
            }
            if self.control.command() != Command::Serve {
                return;
            }
        }
        self.start_missing();
        let mut sources = [
            PollFd::new(self.control.event_fd(), PollFlags::IN),
            PollFd::new(self.acceptor.event_fd(), PollFlags::IN),
            PollFd::new(&*self.acceptor, PollFlags::IN),
        ];
        // An exhausted listener stays readable; only the eventfds may cut its pause short.
        let sources = if pause.is_some() { &mut sources[..2] } else { &mut sources[..] };
        let pause = pause.or_else(|| self.is_short_of_threads.load(Relaxed).then_some(RETRY_INTERVAL));
        let timeout = pause.and_then(|retry_after| Timespec::try_from(retry_after).ok());
        // EINTR and ENOMEM: the caller's loop tries again.
        let _ = poll(sources, timeout.as_ref());
        // The caller checks the command after this: a notification without a command must not wake this thread again
        // and again.
        self.control.event_fd().take();
    }

    /// Gives a connection to an idle thread, a new thread, or, at the limit, the next thread that becomes free.
    fn add(self: &Arc<Self>, session: Box<Session>) {
        if self.workers.add(session) {
            self.start_counted();
        }
        self.count_waiting();
    }

    /// Starts the threads that could not be started before.
    fn start_missing(self: &Arc<Self>) {
        while self.is_short_of_threads.load(Relaxed) {
            if !self.workers.wants_a_thread() {
                // Nothing waits any more, or the limit on threads is reached.
                self.is_short_of_threads.store(false, Relaxed);
            } else if !self.start_counted() {
                break;
            }
        }
        self.count_waiting();
    }

    /// Starts a thread that the roster counts already. False if the machine has none left: its connection then waits
    /// for another thread, or for the next try.
    fn start_counted(self: &Arc<Self>) -> bool {
        let started = self.start_thread();
        if let Err(error) = &started
            && !self.is_short_of_threads.swap(true, Relaxed)
        {
            eprintln!(
                "objmapper: {}: cannot start a thread for a connection, which waits: {error}; raise the limit on threads \
                 (ulimit -u, TasksMax=) or lower max_threads",
                self.acceptor.address()
            );
        }
        started.is_ok()
    }

    fn start_thread(self: &Arc<Self>) -> std::io::Result<()> {
        let threads = Arc::clone(self);
        let started = spawn("objmapper-conn", STACK, move || threads.worker_loop());
        if started.is_err() {
            self.workers.thread_failed();
        }
        started.map(|_| ())
    }

    fn count_waiting(&self) {
        self.gauges().connections_waiting.store(self.workers.waiting(), Relaxed);
    }

    fn gauges(&self) -> &crate::statistics::Gauges {
        self.service.statistics.gauges(self.acceptor.transport())
    }

    /// Serves one connection after the other on a thread.
    fn worker_loop(&self) {
        self.gauges().active_threads.fetch_add(1, Relaxed);
        let mut buffers = ThreadBuffers::new(&self.service, Model::ThreadPerConnection);
        while let Some(session) = self.workers.next(IDLE_TIMEOUT) {
            self.count_waiting();
            self.serve(session, &mut buffers);
        }
        self.gauges().active_threads.fetch_sub(1, Relaxed);
    }

    fn serve(&self, mut session: Box<Session>, buffers: &mut ThreadBuffers) {
        let number = self.next_number.fetch_add(1, Relaxed);
        self.served().insert(number, Arc::downgrade(session.connection()));
        while let Some(left) = run_session_blocking(session, buffers, &self.service, &self.control) {
            match self.acceptor.hand_over(left) {
                Ok(()) => break,
                // A drain overtook the handover: this thread drains the session.
                Err(left) => session = left,
            }
        }
        self.served().remove(&number);
    }

    /// Ends all sessions as commanded, and returns when the last thread has ended.
    fn shut_down(self: &Arc<Self>, mut applied: Command, taker: &mut Taker) {
        loop {
            match applied {
                Command::Serve | Command::Drain => {}
                Command::Handover => {
                    taker.withdraw();
                    for session in self.workers.take_waiting() {
                        if let Err(session) = self.acceptor.hand_over(session) {
                            self.add(session);
                        }
                    }
                }
                Command::Stop => {
                    taker.withdraw();
                    self.workers.take_waiting().clear();
                }
            }
            while taker.is_registered()
                && let Some(session) = self.acceptor.take_over()
            {
                self.add(session);
            }
            // shutdown(2) wakes threads that sleep in their sockets. Bytes that have already arrived can still be
            // read.
            for connection in self.served().values().filter_map(Weak::upgrade) {
                match applied {
                    Command::Serve | Command::Handover => break,
                    Command::Drain => connection.stop_reading(),
                    Command::Stop => {
                        let _ = rustix::net::shutdown(connection.socket(), rustix::net::Shutdown::Both);
                    }
                }
            }
            self.start_missing();
            self.workers.end();
            if self.workers.is_over(Duration::from_millis(50)) && taker.leave() {
                return;
            }
            applied = self.control.command();
        }
    }
}
