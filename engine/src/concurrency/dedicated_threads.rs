//! The few: while a transport has no more connections than there are cores, each that is active has a thread that sleeps in
//! its socket, which saves the look at epoll for every request. In a crowd they go back to the event loops.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use super::{Command, Control, Model, spawn};
use crate::concurrency::blocking::run_session_blocking;
use crate::net::listener::Listener;
use crate::service::Service;
use crate::session::{Connection, Session, ThreadBuffers};
use crate::settings::cores;

const STACK: usize = 128 << 10;

/// Where a session goes that a thread of its own is no longer right for. It comes back where none takes it any more.
pub trait ReturnToLoop: Send + Sync + std::fmt::Debug {
    fn return_session(&self, session: Box<Session>) -> Result<(), Box<Session>>;
}

#[derive(Debug)]
pub struct DedicatedThreads {
    listener: Arc<Listener>,
    service: Arc<Service>,
    control: Arc<Control>,
    /// Connections of this model, here and in the loops.
    connections: AtomicUsize,
    crowded: Arc<AtomicBool>,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Box<Session>>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    talking: Vec<Weak<Connection>>,
    ended: bool,
}

impl DedicatedThreads {
    pub fn new(listener: &Arc<Listener>, service: &Arc<Service>, control: &Arc<Control>) -> Self {
        DedicatedThreads {
            listener: Arc::clone(listener),
            service: Arc::clone(service),
            control: Arc::clone(control),
            connections: AtomicUsize::new(0),
            crowded: Arc::new(AtomicBool::new(false)),
            state: Mutex::new(State::default()),
            work: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One connection more, or one fewer.
    pub fn count(&self, comes: bool) {
        let count = match comes {
            true => self.connections.fetch_add(1, Relaxed) + 1,
            false => self.connections.fetch_sub(1, Relaxed) - 1,
        };
        self.crowded.store(count > cores(), Relaxed);
    }

    /// Whether there are so few that each may have a thread.
    pub fn has_room(&self) -> bool {
        !self.crowded.load(Relaxed)
    }

    /// Gives a session a thread. It comes back where there is none to be had.
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
            // No thread to be had.
            Err(_) => return state.waiting.pop_back().map_or(Ok(()), Err),
        }
        Ok(())
    }

    fn worker_loop(&self, origin: &dyn ReturnToLoop) {
        let gauges = self.service.statistics.gauges(self.listener.transport);
        gauges.active_threads.fetch_add(1, Relaxed);
        let mut buffers = ThreadBuffers::new(&self.service, Model::Epoll);
        buffers.recalled = Some(Arc::clone(&self.crowded));
        while let Some(session) = self.next_session() {
            self.serve(session, &mut buffers, origin);
        }
        gauges.active_threads.fetch_sub(1, Relaxed);
    }

    /// Runs a session until it ends, or goes elsewhere.
    fn serve(&self, mut session: Box<Session>, buffers: &mut ThreadBuffers, origin: &dyn ReturnToLoop) {
        while let Some(left) = run_session_blocking(session, buffers, &self.service, &self.control) {
            let gone = if self.control.order() == Command::Handover {
                self.count(false);
                // It comes back where a drain overtook the order: then it is drained here.
                self.listener.hand_over(left).inspect_err(|_| self.count(true))
            } else {
                origin.return_session(left)
            };
            match gone {
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
                state.talking.retain(|connection| connection.strong_count() > 0);
                state.talking.push(Arc::downgrade(session.connection()));
                return Some(session);
            }
            if state.ended {
                return None;
            }
            state.idle += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// Has the threads' sessions end as ordered; they are waited for by [`join`](Self::join).
    pub fn apply(&self, order: Command) {
        for connection in self.state().talking.iter().filter_map(Weak::upgrade) {
            match order {
                // Handing over is done by each at its next request, or within a second.
                Command::Serve | Command::Handover => return,
                Command::Drain => connection.stop_reading(),
                Command::Stop => {
                    let _ = rustix::net::shutdown(connection.socket(), rustix::net::Shutdown::Both);
                }
            }
        }
    }

    /// Waits until the last thread has ended, while orders may still get stronger.
    pub fn join(&self) {
        let threads = {
            let mut state = self.state();
            state.ended = true;
            std::mem::take(&mut state.threads)
        };
        self.work.notify_all();
        for thread in threads {
            while !thread.is_finished() {
                self.apply(self.control.order());
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            // A panic has been reported on stderr by the runtime.
            let _ = thread.join();
        }
    }
}
