//! The bounded queue between the threads that find work and the threads that do it: a full queue refuses work, an
//! empty one lets threads sleep.

use std::collections::VecDeque;

use crate::sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, unpoisoned};

/// A first-in-first-out queue with at most `capacity` items.
#[derive(Debug)]
pub struct BoundedQueue<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
    capacity: usize,
    depth: AtomicUsize,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    sleepers: usize,
    closed: bool,
}

impl<T> BoundedQueue<T> {
    pub fn new(capacity: usize) -> Self {
        let state = State { items: VecDeque::new(), sleepers: 0, closed: false };
        BoundedQueue {
            state: Mutex::new(state),
            filled: Condvar::new(),
            capacity,
            depth: AtomicUsize::new(0),
        }
    }

    /// Moves items from `items` into the queue as far as there is room; the rest stays with the caller. Wakes one
    /// sleeping thread per added item.
    pub fn push_all(&self, items: &mut VecDeque<T>) {
        let mut state = self.state();
        let accepted = self.capacity.saturating_sub(state.items.len()).min(items.len());
        state.items.extend(items.drain(..accepted));
        self.depth.store(state.items.len(), Ordering::Relaxed);
        let wake = state.sleepers.min(accepted);
        drop(state);
        for _ in 0..wake {
            self.filled.notify_one();
        }
    }

    /// Appends an item that was in the queue before; the bound does not apply to it.
    pub fn requeue(&self, item: T) {
        let mut state = self.state();
        state.items.push_back(item);
        self.depth.store(state.items.len(), Ordering::Relaxed);
        let wake = state.sleepers > 0;
        drop(state);
        if wake {
            self.filled.notify_one();
        }
    }

    /// The oldest item, without waiting.
    pub fn try_pop(&self) -> Option<T> {
        if self.depth.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut state = self.state();
        let item = state.items.pop_front();
        self.depth.store(state.items.len(), Ordering::Relaxed);
        item
    }

    /// The oldest item; waits for one. None once the queue is closed and empty.
    pub fn pop(&self) -> Option<T> {
        let mut state = self.state();
        loop {
            if let Some(item) = state.items.pop_front() {
                self.depth.store(state.items.len(), Ordering::Relaxed);
                return Some(item);
            }
            if state.closed {
                return None;
            }
            state.sleepers += 1;
            state = unpoisoned(self.filled.wait(state));
            state.sleepers -= 1;
        }
    }

    pub fn depth(&self) -> usize {
        self.depth.load(Ordering::Relaxed)
    }

    /// Ends all waiting: `pop` returns the remaining items, then None.
    pub fn close(&self) {
        self.state().closed = true;
        self.filled.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        unpoisoned(self.state.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_beyond_the_capacity_stay_with_the_caller() {
        let queue = BoundedQueue::new(2);
        let mut items = VecDeque::from([1, 2, 3]);
        queue.push_all(&mut items);
        assert_eq!(items, [3]);
        assert_eq!((queue.try_pop(), queue.try_pop(), queue.try_pop()), (Some(1), Some(2), None));
    }

    #[test]
    fn a_closed_queue_returns_the_rest_and_then_none() {
        let queue = BoundedQueue::new(2);
        queue.push_all(&mut VecDeque::from([1]));
        queue.close();
        assert_eq!((queue.pop(), queue.pop()), (Some(1), None));
    }
}
