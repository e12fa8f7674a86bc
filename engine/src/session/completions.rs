//! What storage has brought for a session and the session has not collected: any thread leaves a result, and the thread that
//! the session is with at that moment is woken.

use std::sync::Arc;

use super::Wake;
use crate::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
pub struct CompletionQueue<T> {
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    done: Vec<T>,
    /// The session has ended, and takes no more results.
    is_over: bool,
    wake: Option<(Arc<dyn Wake>, u64)>,
}

impl<T> CompletionQueue<T> {
    pub fn new() -> Self {
        CompletionQueue { state: Mutex::new(State { done: Vec::new(), is_over: false, wake: None }) }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on `wake` is called with this key; at once where a result has come already.
    pub fn set_wake(&self, wake: &Arc<dyn Wake>, key: u64) {
        let mut state = self.state();
        state.wake = Some((Arc::clone(wake), key));
        if !state.done.is_empty() {
            drop(state);
            wake.wake(key);
        }
    }

    /// Leaves a result and has the session run; the result comes back where the session has ended.
    pub fn add(&self, done: T) -> Result<(), T> {
        let mut state = self.state();
        if state.is_over {
            return Err(done);
        }
        state.done.push(done);
        let wake = state.wake.clone();
        drop(state);
        if let Some((wake, key)) = wake {
            wake.wake(key);
        }
        Ok(())
    }

    pub fn take(&self) -> Vec<T> {
        std::mem::take(&mut self.state().done)
    }

    /// Takes no more results; gives those that the session has not collected.
    pub fn end(&self) -> Vec<T> {
        let mut state = self.state();
        state.is_over = true;
        let (wake, left) = (state.wake.take(), std::mem::take(&mut state.done));
        drop(state);
        // The last reference to a model's part may go with it, outside of the lock.
        drop(wake);
        left
    }
}
