//! Results of storage that the session has not collected: any thread adds a result and wakes the thread that has the
//! session at that moment.

use std::sync::Arc;

use super::Wake;
use crate::sync::{Mutex, MutexGuard, unpoisoned};

#[derive(Debug)]
pub struct CompletionQueue<T> {
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    completed: Vec<T>,
    /// The session has ended, and takes no more results.
    is_over: bool,
    wake: Option<(Arc<dyn Wake>, u64)>,
}

impl<T> CompletionQueue<T> {
    pub fn new() -> Self {
        CompletionQueue { state: Mutex::new(State { completed: Vec::new(), is_over: false, wake: None }) }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        unpoisoned(self.state.lock())
    }

    /// Calls `wake` with this key from now on; calls it at once if a result has arrived already.
    pub fn set_wake(&self, wake: &Arc<dyn Wake>, key: u64) {
        let mut state = self.state();
        state.wake = Some((Arc::clone(wake), key));
        if !state.completed.is_empty() {
            drop(state);
            wake.wake(key);
        }
    }

    /// Adds a result and makes the session run; returns the result if the session has ended.
    pub fn add(&self, completed: T) -> Result<(), T> {
        let mut state = self.state();
        if state.is_over {
            return Err(completed);
        }
        state.completed.push(completed);
        let wake = state.wake.clone();
        drop(state);
        if let Some((wake, key)) = wake {
            wake.wake(key);
        }
        Ok(())
    }

    pub fn take(&self) -> Vec<T> {
        std::mem::take(&mut self.state().completed)
    }

    /// Takes no more results; returns those that the session has not collected.
    pub fn end(&self) -> Vec<T> {
        let mut state = self.state();
        state.is_over = true;
        let (wake, left) = (state.wake.take(), std::mem::take(&mut state.completed));
        drop(state);
        // Drop outside of the lock: this may be the last reference to a part of the model.
        drop(wake);
        left
    }
}
