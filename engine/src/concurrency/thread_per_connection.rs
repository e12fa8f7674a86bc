//! A thread for every connection, `max_threads` of them at most; connections over that wait for one to end, in order.
//!
//! Threads are small (128 KiB of stack, of which a few pages are touched) and are used again: a finished one takes the
//! next connection rather than end, which saves its creation where clients connect for every request.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::conversation::converse;
use super::{Model, Order, Shutdown, spawn};
use crate::listener::{Accepted, Listener};
use crate::service::Service;
use crate::session::{Connection, Scratch, Session};

const STACK: usize = 128 << 10;
/// A thread without a connection ends after this time.
const IDLE_THREAD: Duration = Duration::from_secs(10);

/// The connections and the threads, and who waits for whom.
#[derive(Debug)]
struct Crew {
    listener: Arc<Listener>,
    service: Arc<Service>,
    shutdown: Arc<Shutdown>,
    state: Mutex<State>,
    work: Condvar,
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Connections that no thread serves yet, oldest first.
    waiting: VecDeque<Box<Session>>,
    idle: usize,
    threads: usize,
    /// The sockets that threads may be asleep in, to wake them with shutdown(2).
    served: HashMap<usize, Weak<Connection>>,
    next_number: usize,
    accepting_ended: bool,
}

pub fn serve(listener: &Arc<Listener>, service: &Arc<Service>, shutdown: &Arc<Shutdown>) {
    let crew = Arc::new(Crew {
        listener: Arc::clone(listener),
        service: Arc::clone(service),
        shutdown: Arc::clone(shutdown),
        state: Mutex::new(State::default()),
        work: Condvar::new(),
        done: Condvar::new(),
    });
    let mut obeyed = Order::Serve;
    while obeyed == Order::Serve {
        crew.accept();
        obeyed = shutdown.order();
    }
    if obeyed == Order::Drain {
        // Whoever was let in by the kernel before this moment is served.
        while let Accepted::Session(session) = listener.accept(service) {
            crew.add(session);
        }
        while let Some(session) = listener.take_over() {
            crew.add(session);
        }
        listener.close();
    }
    crew.wind_up(obeyed);
}

impl Crew {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts until there is nothing to accept, then sleeps until there is, or an order comes.
    fn accept(self: &Arc<Self>) {
        let mut pause = None;
        while let Some(session) = self.listener.take_over() {
            self.add(session);
        }
        loop {
            match self.listener.accept(&self.service) {
                Accepted::Session(session) => self.add(session),
                Accepted::Refused => {}
                Accepted::Nothing => break,
                Accepted::Exhausted(rest) => {
                    pause = Some(rest);
                    break;
                }
            }
            if self.shutdown.order() != Order::Serve {
                return;
            }
        }
        let mut sources = [
            PollFd::new(self.shutdown.bell(), PollFlags::IN),
            PollFd::new(self.listener.bell(), PollFlags::IN),
            PollFd::new(&*self.listener, PollFlags::IN),
        ];
        // An exhausted listener stays readable; only the bells may cut its rest short.
        let sources = if pause.is_some() { &mut sources[..2] } else { &mut sources[..] };
        let timeout = pause.and_then(|rest| Timespec::try_from(rest).ok());
        // EINTR and ENOMEM: go round once more.
        let _ = poll(sources, timeout.as_ref());
    }

    /// Gives a connection to a thread: an idle one, a new one, or — at the limit — the next that is free.
    fn add(self: &Arc<Self>, session: Box<Session>) {
        let limit = self.service.settings.max_threads;
        let mut state = self.state();
        state.waiting.push_back(session);
        if state.idle >= state.waiting.len() {
            self.work.notify_one();
            return;
        }
        if state.threads < limit {
            state.threads += 1;
            let crew = Arc::clone(self);
            drop(state);
            if spawn("objmapper-conn", STACK, move || crew.thread()).is_ok() {
                return;
            }
            // No thread to be had: the connection waits for one of those that there are.
            state = self.state();
            state.threads -= 1;
        }
        self.count_waiting(&state);
    }

    fn count_waiting(&self, state: &State) {
        let waiting = state.waiting.len().saturating_sub(state.idle);
        self.gauges().connections_waiting.store(waiting, Relaxed);
    }

    fn gauges(&self) -> &crate::statistics::Gauges {
        self.service.statistics.gauges(self.listener.transport)
    }

    /// A thread's life: one connection after the other.
    fn thread(&self) {
        self.gauges().active_threads.fetch_add(1, Relaxed);
        let mut scratch = Scratch::new(&self.service, Model::ThreadPerConnection);
        while let Some((number, session)) = self.next_session() {
            if let Some(session) = converse(session, &mut scratch, &self.service, &self.shutdown) {
                self.listener.hand_over(session);
            }
            self.state().served.remove(&number);
        }
        self.gauges().active_threads.fetch_sub(1, Relaxed);
        let mut state = self.state();
        state.threads -= 1;
        if state.threads == 0 {
            self.done.notify_all();
        }
    }

    /// The next connection, or None where the thread is of no more use.
    fn next_session(&self) -> Option<(usize, Box<Session>)> {
        let mut state = self.state();
        let until = Instant::now() + IDLE_THREAD;
        loop {
            if let Some(session) = state.waiting.pop_front() {
                self.count_waiting(&state);
                let number = state.next_number;
                state.next_number += 1;
                state.served.insert(number, Arc::downgrade(session.connection()));
                return Some((number, session));
            }
            let left = until.saturating_duration_since(Instant::now());
            if state.accepting_ended || left.is_zero() {
                return None;
            }
            state.idle += 1;
            state = self.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.idle -= 1;
        }
    }

    /// Sees to it that all sessions end as ordered, and returns when the last thread has.
    fn wind_up(&self, mut obeyed: Order) {
        loop {
            let mut state = self.state();
            state.accepting_ended = true;
            // Threads that sleep in their sockets wake of it. What has already come can still be read.
            match obeyed {
                Order::Serve => {}
                Order::HandOver => {
                    while let Some(session) = state.waiting.pop_front() {
                        self.listener.hand_over(session);
                    }
                }
                Order::Drain => {
                    state.served.values().filter_map(Weak::upgrade).for_each(|served| served.stop_reading())
                }
                Order::Stop => {
                    state.waiting.clear();
                    for connection in state.served.values().filter_map(Weak::upgrade) {
                        let _ = rustix::net::shutdown(connection.socket(), rustix::net::Shutdown::Both);
                    }
                }
            }
            self.count_waiting(&state);
            self.work.notify_all();
            while state.threads > 0 && self.shutdown.order() == obeyed {
                state = self
                    .done
                    .wait_timeout(state, Duration::from_millis(50))
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            if state.threads == 0 && state.waiting.is_empty() {
                return;
            }
            obeyed = self.shutdown.order();
        }
    }
}
