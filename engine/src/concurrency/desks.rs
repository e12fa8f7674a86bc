//! A deque for every worker, for work of any kind. New work goes to the worker with the least; its owner takes the newest
//! first, an idle worker steals the oldest of another, chosen at random. Park and unpark lose no wake-up: a worker says that
//! it will sleep, looks once more, and only then sleeps, and `unpark` before `park` makes `park` return at once.
//!
//! The deques are Chase and Lev's, "Dynamic Circular Work-Stealing Deque", 2005, from `crossbeam-deque`.

use crossbeam_deque::{Injector, Steal, Stealer, Worker};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use super::poller::Spin;
use crate::statistics::Gauges;

/// The desks of all workers.
#[derive(Debug)]
pub struct Desks<T> {
    desks: Vec<Desk<T>>,
    /// What no worker has taken.
    depth: AtomicUsize,
    closed: AtomicBool,
}

/// What others see of a worker.
#[derive(Debug)]
struct Desk<T> {
    /// Work from outside: only its owner may push into a deque.
    arrived: Injector<T>,
    stealer: Stealer<T>,
    load: AtomicUsize,
    parked: AtomicBool,
    thread: OnceLock<Thread>,
}

/// A worker's own side of its desk.
#[derive(Debug)]
pub struct Seat<T> {
    number: usize,
    deque: Worker<T>,
    random: u32,
}

impl<T> Desks<T> {
    /// So many desks, and the seats for those who will work at them.
    pub fn new(count: usize) -> (Arc<Self>, Vec<Seat<T>>) {
        let deques: Vec<Worker<T>> = (0..count).map(|_| Worker::new_lifo()).collect();
        let desk = |deque: &Worker<T>| Desk {
            arrived: Injector::new(),
            stealer: deque.stealer(),
            load: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            thread: OnceLock::new(),
        };
        let desks = Desks {
            desks: deques.iter().map(desk).collect(),
            depth: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        };
        let seats = deques.into_iter().enumerate();
        let seats = seats.map(|(number, deque)| Seat { number, deque, random: number as u32 + 1 }).collect();
        (Arc::new(desks), seats)
    }

    /// Puts work on the desk that has least of it.
    pub fn put(&self, work: T) {
        let Some(desk) = self.desks.iter().min_by_key(|desk| desk.load.load(Relaxed)) else { return };
        self.depth.fetch_add(1, Relaxed);
        desk.load.fetch_add(1, Relaxed);
        desk.arrived.push(work);
        // Its owner if that sleeps, else some sleeper, who will steal it.
        if !desk.wake() {
            let _ = self.desks.iter().any(Desk::wake);
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

    /// Nothing comes any more: workers do what there is and end.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for thread in self.desks.iter().filter_map(|desk| desk.thread.get()) {
            thread.unpark();
        }
    }

    /// The next work for this worker; sleeps until there is some. None once the desks are closed and empty.
    pub fn next(&self, seat: &mut Seat<T>, spin: &mut Spin, gauges: &Gauges) -> Option<T> {
        let desk = self.desks.get(seat.number)?;
        let _ = desk.thread.set(std::thread::current());
        loop {
            let mut next = self.try_next(seat, gauges);
            if next.is_none() {
                spin.until_true(|| {
                    next = self.try_next(seat, gauges);
                    next.is_some()
                });
            }
            if next.is_some() {
                return next;
            }
            desk.parked.store(true, Ordering::SeqCst);
            std::sync::atomic::fence(Ordering::SeqCst);
            if let Some(work) = self.try_next(seat, gauges) {
                desk.parked.store(false, Relaxed);
                return Some(work);
            }
            if self.closed.load(Ordering::SeqCst) {
                return None;
            }
            self.count_depth(gauges);
            gauges.parks_total.fetch_add(1, Relaxed);
            std::thread::park();
            desk.parked.store(false, Relaxed);
        }
    }

    /// The next work without waiting: one's own newest, else what has arrived, else the oldest of somebody else.
    pub fn try_next(&self, seat: &mut Seat<T>, gauges: &Gauges) -> Option<T> {
        let desk = self.desks.get(seat.number)?;
        let mine = seat.deque.pop().or_else(|| retry(|| desk.arrived.steal_batch_and_pop(&seat.deque)));
        if mine.is_some() {
            desk.load.fetch_sub(1, Relaxed);
            self.depth.fetch_sub(1, Relaxed);
            return mine;
        }
        // xorshift (Marsaglia 2003): whom to rob first.
        seat.random ^= seat.random << 13;
        seat.random ^= seat.random >> 17;
        seat.random ^= seat.random << 5;
        let count = self.desks.len();
        let start = seat.random as usize % count;
        for victim in (0..count).map(|step| (start + step) % count).filter(|&victim| victim != seat.number) {
            let victim = &self.desks[victim];
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

impl<T> Desk<T> {
    /// Wakes the owner; false where it is awake.
    fn wake(&self) -> bool {
        // Orders the push before the look at the flag, against the flag before the last look at the queues.
        std::sync::atomic::fence(Ordering::SeqCst);
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
