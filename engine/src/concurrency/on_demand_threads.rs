//! Up to `max_threads` threads that take one item of work after the other. An idle thread takes an added item, or a new
//! thread, or the next thread that finishes. A thread that ends is removed from the count under the same lock as its
//! last look at the queue, so that no item waits for it.

use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;

use crate::sync::{Condvar, Mutex, MutexGuard, unpoisoned};

#[derive(Debug)]
pub struct OnDemandThreads<T> {
    state: Mutex<State<T>>,
    work: Condvar,
    done: Condvar,
    max_threads: usize,
}

#[derive(Debug)]
struct State<T> {
    /// Items that no thread has taken, oldest first.
    waiting: VecDeque<T>,
    idle: usize,
    threads: usize,
    ended: bool,
}

impl<T> OnDemandThreads<T> {
    pub fn new(max_threads: usize) -> Self {
        let state = State { waiting: VecDeque::new(), idle: 0, threads: 0, ended: false };
        OnDemandThreads {
            state: Mutex::new(state),
            work: Condvar::new(),
            done: Condvar::new(),
            max_threads: max_threads.max(1),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        unpoisoned(self.state.lock())
    }

    /// Adds an item of work; true if the caller must start a thread, which is counted already.
    pub fn add(&self, item: T) -> bool {
        let mut state = self.state();
        state.waiting.push_back(item);
        if state.idle >= state.waiting.len() {
            drop(state);
            self.work.notify_one();
            return false;
        }
        state.claim(self.max_threads)
    }

    /// Counts the first thread, before there is work; the caller starts it.
    pub fn claim_first(&self) -> bool {
        self.state().claim(1)
    }

    /// Whether the caller must start a thread because an earlier start failed; it is counted already.
    pub fn wants_a_thread(&self) -> bool {
        let mut state = self.state();
        state.waiting.len() > state.idle && state.claim(self.max_threads)
    }

    /// Takes back the count of a thread that could not be started: its work waits for the running threads.
    pub fn thread_failed(&self) {
        self.state().threads -= 1;
    }

    /// The next item. None after the thread was idle for `idle`, or after `end` when nothing waits; the thread is no
    /// longer counted then. The last thread stays as long as work may arrive.
    pub fn next(&self, idle: Duration) -> Option<T> {
        let until = Instant::now() + idle;
        let mut state = self.state();
        loop {
            if let Some(item) = state.waiting.pop_front() {
                return Some(item);
            }
            let left = until.saturating_duration_since(Instant::now());
            if state.ended || (left.is_zero() && state.threads > 1) {
                state.threads -= 1;
                if state.threads == 0 {
                    self.done.notify_all();
                }
                return None;
            }
            state.idle += 1;
            let wait = if left.is_zero() { idle.max(Duration::from_millis(1)) } else { left };
            state = unpoisoned(self.work.wait_timeout(state, wait)).0;
            state.idle -= 1;
        }
    }

    /// Items that no idle thread is about to take.
    pub fn waiting(&self) -> usize {
        let state = self.state();
        state.waiting.len().saturating_sub(state.idle)
    }

    /// From here on threads end when nothing waits.
    pub fn end(&self) {
        self.state().ended = true;
        self.work.notify_all();
    }

    /// Takes the waiting items out; no thread gets them any more.
    pub fn take_waiting(&self) -> VecDeque<T> {
        std::mem::take(&mut self.state().waiting)
    }

    /// Waits up to `timeout` for all threads to end; true if none is left and nothing waits.
    pub fn is_over(&self, timeout: Duration) -> bool {
        let mut state = self.state();
        if state.threads > 0 || !state.waiting.is_empty() {
            state = unpoisoned(self.done.wait_timeout(state, timeout)).0;
        }
        state.threads == 0 && state.waiting.is_empty()
    }

    #[cfg(all(test, model_check))]
    pub fn threads(&self) -> usize {
        self.state().threads
    }
}

impl<T> State<T> {
    fn claim(&mut self, max_threads: usize) -> bool {
        let claimed = self.threads < max_threads;
        self.threads += usize::from(claimed);
        claimed
    }
}
