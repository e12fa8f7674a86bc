//! A deque for every worker. New work goes to the worker with the least; its owner takes the newest first, an idle worker
//! steals the oldest of another, chosen at random. Park and unpark lose no wake-up: a worker says that it will sleep, looks
//! once more, and only then sleeps, and `unpark` before `park` makes `park` return at once.
//!
//! The deques are Chase and Lev's, "Dynamic Circular Work-Stealing Deque", 2005, from `crossbeam-deque`.

use crossbeam_deque::{Injector, Steal, Stealer, Worker};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use super::poller::Spin;
use super::reactor::{Dispatch, Reactor, Ready};
use super::{Model, Shutdown, spawn};
use crate::listener::Listener;
use crate::service::Service;
use crate::session::Scratch;
use crate::transport::Transport;

const STACK: usize = 256 << 10;

#[derive(Debug)]
struct Pool {
    desks: Vec<Desk>,
    service: Arc<Service>,
    transport: Transport,
    /// Ready sessions that no worker has taken.
    depth: AtomicUsize,
    closed: AtomicBool,
}

/// What others see of a worker.
#[derive(Debug)]
struct Desk {
    /// Work from outside: only its owner may push into a deque.
    arrived: Injector<Ready>,
    stealer: Stealer<Ready>,
    load: AtomicUsize,
    parked: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Pool {
    fn put(&self, ready: Ready) {
        let Some(desk) = self.desks.iter().min_by_key(|desk| desk.load.load(Relaxed)) else { return };
        self.depth.fetch_add(1, Relaxed);
        desk.load.fetch_add(1, Relaxed);
        desk.arrived.push(ready);
        // Its owner if that sleeps, else some sleeper, who will steal it.
        if !desk.wake() {
            let _ = self.desks.iter().any(Desk::wake);
        }
    }

    fn count_depth(&self) {
        let depth = self.depth.load(Relaxed);
        let gauges = self.service.statistics.gauges(self.transport);
        gauges.queue_depth.store(depth, Relaxed);
        gauges.queue_depth_max.fetch_max(depth, Relaxed);
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for thread in self.desks.iter().filter_map(|desk| desk.thread.get()) {
            thread.unpark();
        }
    }
}

impl Desk {
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

impl Dispatch for Pool {
    fn dispatch(&self, ready: &mut VecDeque<Ready>) {
        let room = self.service.settings.max_queue_depth.saturating_sub(self.depth.load(Relaxed));
        for ready in ready.drain(..room.min(ready.len())) {
            self.put(ready);
        }
        self.count_depth();
    }

    fn dispatch_again(&self, ready: Ready) {
        self.put(ready);
    }
}

pub fn serve(listener: &Arc<Listener>, service: &Arc<Service>, shutdown: &Arc<Shutdown>) {
    let reactor = match Reactor::new(Model::WorkStealing, listener, service, shutdown) {
        Ok(reactor) => reactor,
        Err(errno) => return eprintln!("objmapper: the work-stealing pool could not start: {errno}"),
    };
    let deques: Vec<Worker<Ready>> = (0..service.settings.workers()).map(|_| Worker::new_lifo()).collect();
    let desk = |deque: &Worker<Ready>| Desk {
        arrived: Injector::new(),
        stealer: deque.stealer(),
        load: AtomicUsize::new(0),
        parked: AtomicBool::new(false),
        thread: OnceLock::new(),
    };
    let pool = Arc::new(Pool {
        desks: deques.iter().map(desk).collect(),
        service: Arc::clone(service),
        transport: listener.transport,
        depth: AtomicUsize::new(0),
        closed: AtomicBool::new(false),
    });
    let workers: Vec<_> = deques
        .into_iter()
        .enumerate()
        .filter_map(|(number, deque)| {
            let (reactor, pool) = (Arc::clone(&reactor), Arc::clone(&pool));
            spawn("objmapper-worker", STACK, move || work(&reactor, &pool, number, &deque)).ok()
        })
        .collect();
    reactor.run_reactor(&pool);
    pool.close();
    for worker in workers {
        // A panic has been reported on stderr by the runtime.
        let _ = worker.join();
    }
}

fn work(reactor: &Arc<Reactor>, pool: &Arc<Pool>, number: usize, deque: &Worker<Ready>) {
    let gauges = reactor.service.statistics.gauges(reactor.listener.transport);
    let desk = &pool.desks[number];
    let _ = desk.thread.set(std::thread::current());
    gauges.active_threads.fetch_add(1, Relaxed);
    let mut scratch = Scratch::new(&reactor.service, Model::WorkStealing);
    let mut spin = Spin::new(&reactor.service);
    let mut random = number as u32 + 1;
    loop {
        let mut next = find(pool, number, deque, &mut random);
        if next.is_none() {
            spin.until_true(|| {
                next = find(pool, number, deque, &mut random);
                next.is_some()
            });
        }
        if let Some(ready) = next {
            pool.depth.fetch_sub(1, Relaxed);
            reactor.work(ready, &mut scratch, pool);
            continue;
        }
        desk.parked.store(true, Ordering::SeqCst);
        std::sync::atomic::fence(Ordering::SeqCst);
        if let Some(ready) = find(pool, number, deque, &mut random) {
            desk.parked.store(false, Relaxed);
            pool.depth.fetch_sub(1, Relaxed);
            reactor.work(ready, &mut scratch, pool);
            continue;
        }
        if pool.closed.load(Ordering::SeqCst) {
            break;
        }
        pool.count_depth();
        gauges.parks_total.fetch_add(1, Relaxed);
        std::thread::park();
        desk.parked.store(false, Relaxed);
    }
    gauges.active_threads.fetch_sub(1, Relaxed);
}

/// Work: one's own newest, else what has arrived, else the oldest of somebody else.
fn find(pool: &Pool, number: usize, deque: &Worker<Ready>, random: &mut u32) -> Option<Ready> {
    let desk = &pool.desks[number];
    let mine = deque.pop().or_else(|| retry(|| desk.arrived.steal_batch_and_pop(deque)));
    if mine.is_some() {
        desk.load.fetch_sub(1, Relaxed);
        return mine;
    }
    // xorshift (Marsaglia 2003): whom to rob first.
    *random ^= *random << 13;
    *random ^= *random >> 17;
    *random ^= *random << 5;
    let count = pool.desks.len();
    let start = *random as usize % count;
    for victim in (0..count).map(|step| (start + step) % count).filter(|&victim| victim != number) {
        let victim = &pool.desks[victim];
        let stolen = retry(|| victim.stealer.steal()).or_else(|| retry(|| victim.arrived.steal()));
        if stolen.is_some() {
            victim.load.fetch_sub(1, Relaxed);
            pool.service.statistics.gauges(pool.transport).steals_total.fetch_add(1, Relaxed);
            return stolen;
        }
    }
    None
}

fn retry(mut attempt: impl FnMut() -> Steal<Ready>) -> Option<Ready> {
    loop {
        match attempt() {
            Steal::Success(ready) => return Some(ready),
            Steal::Empty => return None,
            Steal::Retry => {}
        }
    }
}
