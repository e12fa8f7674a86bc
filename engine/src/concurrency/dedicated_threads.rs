//! Dedicated threads: while a transport has no more connections than there are cores, each active session runs on a
//! thread that sleeps in the session's socket. This saves an epoll_wait for every request. With more connections the
//! sessions return to the event loops.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::thread::JoinHandle;

use crate::concurrency::acceptor::Acceptor;
use crate::concurrency::blocking::run_session_blocking;
use crate::concurrency::control::{Command, Control};
use crate::model::Model;
use crate::service::Service;
use crate::session::{Connection, Session, ThreadBuffers};
use crate::settings::cores;
use crate::spawn::spawn;
use crate::sync::unpoisoned;

const STACK: usize = 128 << 10;

/// Takes back a session that should no longer have its own thread. Returns the session when no loop accepts it.
pub trait ReturnToLoop: Send + Sync + std::fmt::Debug {
    fn return_session(&self, session: Box<Session>) -> Result<(), Box<Session>>;
}

#[derive(Debug)]
pub struct DedicatedThreads {
    acceptor: Arc<Acceptor>,
    service: Arc<Service>,
    control: Arc<Control>,
    /// Connections of this model, on dedicated threads and in the loops.
    connections: AtomicUsize,
    over_limit: Arc<AtomicBool>,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Box<Session>>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    active: Vec<Weak<Connection>>,
    ended: bool,
}

impl DedicatedThreads {
    pub fn new(acceptor: &Arc<Acceptor>, service: &Arc<Service>, control: &Arc<Control>) -> Self {
        DedicatedThreads {
            acceptor: Arc::clone(acceptor),
            service: Arc::clone(service),
            control: Arc::clone(control),
            connections: AtomicUsize::new(0),
            over_limit: Arc::new(AtomicBool::new(false)),
            state: Mutex::new(State::default()),
            work: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }

    /// Counts one connection more, or one fewer.
    pub fn count(&self, is_added: bool) {
        let count = match is_added {
            true => self.connections.fetch_add(1, Relaxed) + 1,
            false => self.connections.fetch_sub(1, Relaxed) - 1,
        };
        self.over_limit.store(count > cores(), Relaxed);
    }

    /// Whether the connections are few enough for each to have a thread.
    pub fn has_capacity(&self) -> bool {
        !self.over_limit.load(Relaxed)
    }

    /// Gives a session a thread. Returns the session when no thread can be started.
    pub fn take(
        self: &Arc<Self>,
        session: Box<Session>,
        origin: &Arc<dyn ReturnToLoop>,
    ) -> Result<(), Box<Session>> {
        let mut state = self.state();
        if state.ended {
            return Err(session);
        }
        state.waiting.push_back(session);
        if state.idle >= state.waiting.len() {
            self.work.notify_one();
            return Ok(());
        }
        let (dedicated, origin) = (Arc::clone(self), Arc::clone(origin));
        match spawn("objmapper-solo", STACK, move || dedicated.worker_loop(&*origin)) {
            Ok(thread) => state.threads.push(thread),
            // The kernel starts no further thread.
            Err(_) => return state.waiting.pop_back().map_or(Ok(()), Err),
        }
        Ok(())
    }

    fn worker_loop(&self, origin: &dyn ReturnToLoop) {
        let gauges = self.service.statistics.gauges(self.acceptor.transport());
        gauges.active_threads.fetch_add(1, Relaxed);
        let mut buffers = ThreadBuffers::new(&self.service, Model::Epoll);
        buffers.recalled = Some(Arc::clone(&self.over_limit));
        while let Some(session) = self.next_session() {
            self.serve(session, &mut buffers, origin);
        }
        gauges.active_threads.fetch_sub(1, Relaxed);
    }

    /// Runs a session until it ends or moves to another model or loop.
    fn serve(&self, mut session: Box<Session>, buffers: &mut ThreadBuffers, origin: &dyn ReturnToLoop) {
        while let Some(left) = run_session_blocking(session, buffers, &self.service, &self.control) {
            let result = if self.control.command() == Command::Handover {
                self.count(false);
                // A drain overtook the handover: this thread drains the session.
                self.acceptor.hand_over(left).inspect_err(|_| self.count(true))
            } else {
                origin.return_session(left)
            };
            match result {
                Ok(()) => return,
                Err(left) => session = left,
            }
        }
        self.count(false);
    }

    fn next_session(&self) -> Option<Box<Session>> {
        let mut state = self.state();
        loop {
            if let Some(session) = state.waiting.pop_front() {
                state.active.retain(|connection| connection.strong_count() > 0);
                state.active.push(Arc::downgrade(session.connection()));
                return Some(session);
            }
            if state.ended {
                return None;
            }
            state.idle += 1;
            state = unpoisoned(self.work.wait(state));
            state.idle -= 1;
        }
    }

    /// Makes the threads' sessions end as the command says; [`join`](Self::join) waits for them.
    pub fn apply(&self, command: Command) {
        for connection in self.state().active.iter().filter_map(Weak::upgrade) {
            match command {
                // Each thread hands its session over at its next request, or within a second.
                Command::Serve | Command::Handover => return,
                Command::Drain => connection.stop_reading(),
                Command::Stop => {
                    let _ = rustix::net::shutdown(connection.socket(), rustix::net::Shutdown::Both);
                }
            }
        }
    }

    /// Waits until the last thread has ended, and passes on stronger commands meanwhile.
    pub fn join(&self) {
        let threads = {
            let mut state = self.state();
            state.ended = true;
            std::mem::take(&mut state.threads)
        };
        self.work.notify_all();
        for thread in threads {
            while !thread.is_finished() {
                self.apply(self.control.command());
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            // The runtime has reported a panic on stderr.
            let _ = thread.join();
        }
    }
}
