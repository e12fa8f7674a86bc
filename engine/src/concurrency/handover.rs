//! Sessions on their way from one model to the next. None is left behind: a giver gets its session back once no taker
//! is left, and the last taker leaves only when nothing waits.

use std::collections::VecDeque;

use crate::sync::{Mutex, MutexGuard, unpoisoned};

#[derive(Debug)]
pub struct Handover<T> {
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    waiting: VecDeque<T>,
    takers: usize,
}

impl<T> Handover<T> {
    pub fn new() -> Self {
        Handover { state: Mutex::new(State { waiting: VecDeque::new(), takers: 0 }) }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        unpoisoned(self.state.lock())
    }

    /// From here on the caller takes sessions that others give, until it leaves.
    pub fn register(&self) {
        self.state().takers += 1;
    }

    /// Gives an item; returns it if no taker is left.
    pub fn offer(&self, item: T) -> Result<(), T> {
        let mut state = self.state();
        if state.takers == 0 {
            return Err(item);
        }
        state.waiting.push_back(item);
        Ok(())
    }

    pub fn take(&self) -> Option<T> {
        self.state().waiting.pop_front()
    }

    /// Leaves, unless the caller is the last taker and something waits; returns false then.
    pub fn leave(&self) -> bool {
        let mut state = self.state();
        if state.takers == 1 && !state.waiting.is_empty() {
            return false;
        }
        state.takers -= 1;
        true
    }

    /// Leaves even if something waits: another taker exists, or the server stops.
    pub fn withdraw(&self) {
        self.state().takers -= 1;
    }
}
