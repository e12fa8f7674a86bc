//! A deque for every worker, for work of any kind. New work goes to the worker with the least; its owner takes the
//! newest first, an idle worker steals the oldest of another, chosen at random. Park and unpark lose no wake-up: a
//! worker announces that it will sleep, looks once more, and only then sleeps, and `unpark` before `park` makes
//! `park` return at once.
//!
//! The deques are Chase and Lev's, "Dynamic Circular Work-Stealing Deque", 2005, from `crossbeam-deque`.

use crossbeam_deque::{Injector, Steal, Stealer, Worker};
use std::sync::Arc;

use crate::concurrency::poller::SpinWait;
use crate::statistics::Gauges;
use crate::sync::{AtomicBool, AtomicUsize, OnceLock, Ordering, Ordering::Relaxed, Thread, fence, thread};

/// How a worker spins before it sleeps.
pub trait Spin {
    /// Tries for a while; whether an attempt succeeded.
    fn until_true(&mut self, attempt: impl FnMut() -> bool) -> bool;
}

impl Spin for SpinWait {
    fn until_true(&mut self, attempt: impl FnMut() -> bool) -> bool {
        SpinWait::until_true(self, attempt)
    }
}

/// The stealing queues of all workers.
#[derive(Debug)]
pub struct StealingQueues<T> {
    queues: Vec<SharedQueue<T>>,
    /// Items that no worker has taken.
    depth: AtomicUsize,
    closed: AtomicBool,
}

/// The part of a worker's queue that others see.
#[derive(Debug)]
struct SharedQueue<T> {
    /// Work from outside: only its owner may push into a deque.
    arrived: Injector<T>,
    stealer: Stealer<T>,
    load: AtomicUsize,
    parked: AtomicBool,
    thread: OnceLock<Thread>,
}

/// A worker's own side of its queue.
#[derive(Debug)]
pub struct LocalQueue<T> {
    number: usize,
    deque: Worker<T>,
    random: u32,
}

impl<T> StealingQueues<T> {
    /// Makes `count` queues, and the owners' sides for the workers.
    pub fn new(count: usize) -> (Arc<Self>, Vec<LocalQueue<T>>) {
        let deques: Vec<Worker<T>> = (0..count).map(|_| Worker::new_lifo()).collect();
        let queue = |deque: &Worker<T>| SharedQueue {
            arrived: Injector::new(),
            stealer: deque.stealer(),
            load: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            thread: OnceLock::new(),
        };
        let queues = StealingQueues {
            queues: deques.iter().map(queue).collect(),
            depth: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        };
        let slots = deques.into_iter().enumerate();
        let slots =
            slots.map(|(number, deque)| LocalQueue { number, deque, random: number as u32 + 1 }).collect();
        (Arc::new(queues), slots)
    }

    /// Puts work into the queue with the fewest items.
    pub fn push(&self, work: T) {
        let Some(queue) = self.queues.iter().min_by_key(|queue| queue.load.load(Relaxed)) else { return };
        self.depth.fetch_add(1, Relaxed);
        queue.load.fetch_add(1, Relaxed);
        queue.arrived.push(work);
        // Wakes the owner if it sleeps, else another sleeping worker, which steals the item.
        if !queue.wake() {
            let _ = self.queues.iter().any(SharedQueue::wake);
        }
    }

    pub fn depth(&self) -> usize {
        self.depth.load(Relaxed)
    }

    pub fn count_depth(&self, gauges: &Gauges) {
        let depth = self.depth();
        gauges.queue_depth.store(depth, Relaxed);
        gauges.queue_depth_max.fetch_max(depth, Relaxed);
    }

    /// No further work arrives: workers finish what is queued and end.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        // Orders the flag before the look at the threads; pairs with a worker that names its thread before its last
        // look at the flag.
        fence(Ordering::SeqCst);
        for thread in self.queues.iter().filter_map(|queue| queue.thread.get()) {
            thread.unpark();
        }
    }

    /// The next work for this worker; sleeps until there is some. None once the queues are closed and empty.
    pub fn pop(&self, local: &mut LocalQueue<T>, spin: &mut impl Spin, gauges: &Gauges) -> Option<T> {
        let queue = self.queues.get(local.number)?;
        let _ = queue.thread.set(thread::current());
        loop {
            let mut next = self.try_pop(local, gauges);
            if next.is_none() {
                spin.until_true(|| {
                    next = self.try_pop(local, gauges);
                    next.is_some()
                });
            }
            if next.is_some() {
                return next;
            }
            queue.parked.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if let Some(work) = self.try_pop(local, gauges) {
                queue.parked.store(false, Relaxed);
                return Some(work);
            }
            if self.closed.load(Ordering::SeqCst) {
                // Work may have arrived after the look above and before the queues closed.
                return self.try_pop(local, gauges);
            }
            self.count_depth(gauges);
            gauges.parks_total.fetch_add(1, Relaxed);
            thread::park();
            queue.parked.store(false, Relaxed);
        }
    }

    /// The next work without waiting: the worker's own newest, else what has arrived, else the oldest of another
    /// worker.
    pub fn try_pop(&self, local: &mut LocalQueue<T>, gauges: &Gauges) -> Option<T> {
        let queue = self.queues.get(local.number)?;
        let own = local.deque.pop().or_else(|| retry(|| queue.arrived.steal_batch_and_pop(&local.deque)));
        if own.is_some() {
            queue.load.fetch_sub(1, Relaxed);
            self.depth.fetch_sub(1, Relaxed);
            return own;
        }
        // xorshift (Marsaglia 2003): pick the first victim.
        local.random ^= local.random << 13;
        local.random ^= local.random >> 17;
        local.random ^= local.random << 5;
        let count = self.queues.len();
        let start = local.random as usize % count;
        for victim in (0..count).map(|step| (start + step) % count).filter(|&victim| victim != local.number) {
            let victim = &self.queues[victim];
            let stolen = retry(|| victim.stealer.steal()).or_else(|| retry(|| victim.arrived.steal()));
            if stolen.is_some() {
                victim.load.fetch_sub(1, Relaxed);
                self.depth.fetch_sub(1, Relaxed);
                gauges.steals_total.fetch_add(1, Relaxed);
                return stolen;
            }
        }
        None
    }
}

impl<T> SharedQueue<T> {
    /// Wakes the owner; false if it is awake.
    fn wake(&self) -> bool {
        // Orders the push before the check of the flag; pairs with a worker that sets the flag before its last look
        // at the queues.
        fence(Ordering::SeqCst);
        if self.parked.load(Relaxed) && self.parked.swap(false, Ordering::AcqRel) {
            if let Some(thread) = self.thread.get() {
                thread.unpark();
            }
            return true;
        }
        false
    }
}

fn retry<T>(mut attempt: impl FnMut() -> Steal<T>) -> Option<T> {
    loop {
        match attempt() {
            Steal::Success(work) => return Some(work),
            Steal::Empty => return None,
            Steal::Retry => {}
        }
    }
}
