//! The few: while a transport has no more connections than there are cores, each that is active has a thread that sleeps in
//! its socket, which saves the look at epoll for every request. In a crowd they go back to the event loops.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use super::conversation::converse;
use super::{Model, Order, Shutdown, spawn};
use crate::listener::Listener;
use crate::service::Service;
use crate::session::{Connection, Scratch, Session};
use crate::settings::cores;

const STACK: usize = 128 << 10;

/// Where a session goes that a thread of its own is no longer right for. It comes back where none takes it any more.
pub trait GiveBack: Send + Sync + std::fmt::Debug {
    fn give_back(&self, session: Box<Session>) -> Result<(), Box<Session>>;
}

#[derive(Debug)]
pub struct Solo {
    listener: Arc<Listener>,
    service: Arc<Service>,
    shutdown: Arc<Shutdown>,
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

impl Solo {
    pub fn new(listener: &Arc<Listener>, service: &Arc<Service>, shutdown: &Arc<Shutdown>) -> Self {
        Solo {
            listener: Arc::clone(listener),
            service: Arc::clone(service),
            shutdown: Arc::clone(shutdown),
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
        origin: &Arc<dyn GiveBack>,
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
        let (solo, origin) = (Arc::clone(self), Arc::clone(origin));
        match spawn("objmapper-solo", STACK, move || solo.thread(&*origin)) {
            Ok(thread) => state.threads.push(thread),
            // No thread to be had.
            Err(_) => return state.waiting.pop_back().map_or(Ok(()), Err),
        }
        Ok(())
    }

    fn thread(&self, origin: &dyn GiveBack) {
        let gauges = self.service.statistics.gauges(self.listener.transport);
        gauges.active_threads.fetch_add(1, Relaxed);
        let mut scratch = Scratch::new(&self.service, Model::Epoll);
        scratch.recalled = Some(Arc::clone(&self.crowded));
        while let Some(session) = self.next_session() {
            self.serve(session, &mut scratch, origin);
        }
        gauges.active_threads.fetch_sub(1, Relaxed);
    }

    /// Runs a session until it ends, or goes elsewhere.
    fn serve(&self, mut session: Box<Session>, scratch: &mut Scratch, origin: &dyn GiveBack) {
        while let Some(left) = converse(session, scratch, &self.service, &self.shutdown) {
            let gone = if self.shutdown.order() == Order::HandOver {
                self.count(false);
                // It comes back where a drain overtook the order: then it is drained here.
                self.listener.hand_over(left).inspect_err(|_| self.count(true))
            } else {
                origin.give_back(left)
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
    pub fn obey(&self, order: Order) {
        for connection in self.state().talking.iter().filter_map(Weak::upgrade) {
            match order {
                // Handing over is done by each at its next request, or within a second.
                Order::Serve | Order::HandOver => return,
                Order::Drain => connection.stop_reading(),
                Order::Stop => {
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
                self.obey(self.shutdown.order());
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            // A panic has been reported on stderr by the runtime.
            let _ = thread.join();
        }
    }
}
