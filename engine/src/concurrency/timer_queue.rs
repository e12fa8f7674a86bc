//! Sessions to run at a time, without an event: any thread adds one, one thread takes those that are due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use crate::concurrency::slab::Key;
use crate::sync::unpoisoned;

#[derive(Debug, Default)]
pub struct TimerQueue(Mutex<BinaryHeap<Reverse<(Instant, Key)>>>);

impl TimerQueue {
    pub fn add(&self, due: Instant, key: Key) {
        self.heap().push(Reverse((due, key)));
    }

    /// When the first session is due.
    pub fn next(&self) -> Option<Instant> {
        self.heap().peek().map(|Reverse((due, _))| *due)
    }

    /// Takes out the sessions that are due, the soonest first.
    pub fn take_due(&self, now: Instant) -> Vec<Key> {
        let mut heap = self.heap();
        let mut keys = Vec::new();
        while let Some(Reverse((due, key))) = heap.peek()
            && *due <= now
        {
            keys.push(*key);
            heap.pop();
        }
        keys
    }

    fn heap(&self) -> MutexGuard<'_, BinaryHeap<Reverse<(Instant, Key)>>> {
        unpoisoned(self.0.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn due_sessions_are_taken_once_and_in_order() {
        let (timers, start) = (TimerQueue::default(), Instant::now());
        for number in [3u8, 1, 2, 4] {
            timers.add(start + Duration::from_secs(number.into()), Key::from_number(number.into()));
        }
        assert_eq!(timers.next(), Some(start + Duration::from_secs(1)));
        assert_eq!(timers.take_due(start), []);
        let taken = timers.take_due(start + Duration::from_secs(3));
        assert_eq!(taken, [1, 2, 3].map(Key::from_number));
        assert_eq!(timers.next(), Some(start + Duration::from_secs(4)));
    }
}
