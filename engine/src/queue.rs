//! The bounded queue between those who find work and those who do it: its refusal, its wait time, its controlled delay.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use crate::sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, PoisonError};

/// The least wait over an interval may be this before the queue counts as overloaded.
const TARGET: Duration = Duration::from_millis(5);
const INTERVAL: Duration = Duration::from_millis(100);
/// While overloaded, what has waited longer than this is refused.
const PATIENCE: Duration = Duration::from_millis(10);

/// Controlled delay: tells a queue that is busy from one that only grows old, by the least wait of an interval.
///
/// Refusing empties a queue of sessions in bursts, which makes the least wait of the next interval short although the load
/// is the same. So an interval in which nine of ten waits were too long counts as overloaded too, and what is overloaded
/// stays so until an interval has passed in which nothing waited too long. After Nichols and Jacobson, "Controlling Queue Delay", 2012, in the form for request servers: Maurer, "Fail at Scale",
/// 2015 (least wait over 100 ms against 5 ms).
#[derive(Debug)]
pub struct ControlledDelay {
    started: Instant,
    interval_ends: AtomicU64,
    least: AtomicU64,
    /// Waits of this interval, and how many of them were too long.
    waits: AtomicU64,
    late: AtomicU64,
    overloaded: AtomicBool,
}

impl ControlledDelay {
    pub fn new() -> Self {
        ControlledDelay {
            started: Instant::now(),
            interval_ends: AtomicU64::new(0),
            least: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            late: AtomicU64::new(0),
            overloaded: AtomicBool::new(false),
        }
    }

    /// Takes note of a wait that ended `now`; true where that request is to be refused rather than served.
    pub fn is_too_late(&self, wait: Duration, now: Instant) -> bool {
        let now = now.saturating_duration_since(self.started).as_nanos() as u64;
        let wait_ns = wait.as_nanos() as u64;
        let ends = self.interval_ends.load(Ordering::Relaxed);
        let next = now + INTERVAL.as_nanos() as u64;
        if now >= ends
            && self.interval_ends.compare_exchange(ends, next, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            let least = self.least.swap(wait_ns, Ordering::AcqRel);
            let (waits, late) = (self.waits.swap(1, Ordering::AcqRel), self.late.swap(0, Ordering::AcqRel));
            // An interval that ended long ago says nothing of today.
            let recent = now - ends < INTERVAL.as_nanos() as u64;
            let standing = least > TARGET.as_nanos() as u64 || late * 10 > waits * 9;
            let persists = self.overloaded.load(Ordering::Acquire) && late > 0;
            let is_overloaded = recent && (standing || persists);
            self.overloaded.store(is_overloaded, Ordering::Release);
            self.late.fetch_add(u64::from(wait > PATIENCE), Ordering::AcqRel);
            return is_overloaded && wait > PATIENCE;
        }
        self.least.fetch_min(wait_ns, Ordering::AcqRel);
        self.waits.fetch_add(1, Ordering::AcqRel);
        self.late.fetch_add(u64::from(wait > PATIENCE), Ordering::AcqRel);
        self.overloaded.load(Ordering::Acquire) && wait > PATIENCE
    }
}

impl Default for ControlledDelay {
    fn default() -> Self {
        Self::new()
    }
}

/// First in, first out, at most so many.
#[derive(Debug)]
pub struct Queue<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
    most: usize,
    depth: AtomicUsize,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    sleepers: usize,
    closed: bool,
}

impl<T> Queue<T> {
    pub fn new(most: usize) -> Self {
        let state = State { items: VecDeque::new(), sleepers: 0, closed: false };
        Queue { state: Mutex::new(state), filled: Condvar::new(), most, depth: AtomicUsize::new(0) }
    }

    /// Appends what there is room for and takes it from `items`; the rest stays with the caller. Wakes as many sleepers as
    /// there is new work.
    pub fn push_all(&self, items: &mut VecDeque<T>) {
        let mut state = self.state();
        let room = self.most.saturating_sub(state.items.len()).min(items.len());
        state.items.extend(items.drain(..room));
        self.depth.store(state.items.len(), Ordering::Relaxed);
        let wake = state.sleepers.min(room);
        drop(state);
        for _ in 0..wake {
            self.filled.notify_one();
        }
    }

    /// Appends one that was in the queue before and may come back whatever the bound.
    pub fn push_back_again(&self, item: T) {
        let mut state = self.state();
        state.items.push_back(item);
        self.depth.store(state.items.len(), Ordering::Relaxed);
        let wake = state.sleepers > 0;
        drop(state);
        if wake {
            self.filled.notify_one();
        }
    }

    /// The oldest, without waiting.
    pub fn try_pop(&self) -> Option<T> {
        if self.depth.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut state = self.state();
        let item = state.items.pop_front();
        self.depth.store(state.items.len(), Ordering::Relaxed);
        item
    }

    /// The oldest; waits for one. None once the queue is closed and empty.
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
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.sleepers -= 1;
        }
    }

    pub fn depth(&self) -> usize {
        self.depth.load(Ordering::Relaxed)
    }

    /// Nobody waits any more: `pop` gives what is left, then None.
    pub fn close(&self) {
        self.state().closed = true;
        self.filled.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_stays_with_the_caller() {
        let queue = Queue::new(2);
        let mut items = VecDeque::from([1, 2, 3]);
        queue.push_all(&mut items);
        assert_eq!(items, [3]);
        assert_eq!((queue.try_pop(), queue.try_pop(), queue.try_pop()), (Some(1), Some(2), None));
    }

    #[test]
    fn a_closed_queue_gives_what_is_left_and_then_none() {
        let queue = Queue::new(2);
        queue.push_all(&mut VecDeque::from([1]));
        queue.close();
        assert_eq!((queue.pop(), queue.pop()), (Some(1), None));
    }

    #[test]
    fn short_waits_never_count_as_overload() {
        let delay = ControlledDelay::new();
        let start = Instant::now();
        for step in 0..1000u64 {
            assert!(!delay.is_too_late(Duration::from_millis(4), start + Duration::from_millis(step)));
        }
    }

    #[test]
    fn standing_waits_are_refused_until_the_queue_is_short_again() {
        let delay = ControlledDelay::new();
        let start = Instant::now();
        let at = |step| start + Duration::from_millis(step);
        let refused = (0..500).filter(|&step| delay.is_too_late(Duration::from_millis(20), at(step))).count();
        assert!(refused > 250, "{refused}");
        for step in 500..800 {
            delay.is_too_late(Duration::from_millis(1), at(step));
        }
        assert!(!delay.is_too_late(Duration::from_millis(20), at(801)));
    }
}
