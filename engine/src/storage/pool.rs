//! Threads that may wait for a disk, so that serving threads never do. Used where `async_storage` is on, and
//! for writes.
//!
//! Each storage job belongs to a connection. Connections take turns, see `turns.rs`. The end of a connection
//! drops its waiting jobs, except for writes that have arrived completely.
//!
//! A disk may never answer. So a connection and a user have shares of the threads. Where jobs wait while
//! threads are stuck, the pool starts replacements: at most as many again.

use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::errors::StartError;
use crate::settings::cores;
use crate::spawn::spawn;
pub use crate::storage::turns::{Client, Kind, User};
use crate::storage::turns::{LongLimits, Place, Shares, Taken, Turns};
use crate::sync::unpoisoned;

const STACK: usize = 256 << 10;
/// A long job yields its thread after this CPU time, or that time on the clock, and continues at its next turn.
const TURN: Duration = Duration::from_millis(1);
const MAX_TURN: Duration = Duration::from_millis(8);
/// A thread that works on one job for this long is stuck.
const STUCK: Duration = Duration::from_secs(1);
/// Long jobs that hold data read so far, for all clients together.
const MAX_BEGUN: usize = 16;

/// A job that may take several turns.
pub trait Work: Send {
    /// Works until the job is done or its turn is over.
    fn run(&mut self, turn: &Turn) -> Progress;

    /// Ends early, where the partial result is worth a reply. Called while other jobs wait for its place.
    fn finish_early(&mut self) -> Progress {
        Progress::More
    }

    /// Releases what the job holds; the next turn starts again.
    fn release_memory(&mut self) {}
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    Done,
    /// Wants another turn.
    More,
}

/// How long a job may run: by CPU time, since a thread that waits for a CPU has not had its turn; and by a
/// longer time on the clock, since a thread that waits for a disk is missing for others.
#[derive(Debug)]
pub struct Turn {
    /// When to check the CPU time; None for a turn that ends with the job.
    check_at: Option<Cell<Instant>>,
    ends_at: Instant,
    processor_ends_at: Duration,
}

impl Turn {
    fn endless() -> Turn {
        Turn { check_at: None, ends_at: Instant::now(), processor_ends_at: Duration::ZERO }
    }

    fn long(began: Instant) -> Turn {
        Turn {
            check_at: Some(Cell::new(began + TURN)),
            ends_at: began + MAX_TURN,
            processor_ends_at: processor_time() + TURN,
        }
    }

    pub fn is_over(&self) -> bool {
        let Some(check_at) = &self.check_at else { return false };
        let now = Instant::now();
        if now < check_at.get() {
            return false;
        }
        let left = self.processor_ends_at.saturating_sub(processor_time());
        check_at.set((now + left).min(self.ends_at));
        left.is_zero() || now >= self.ends_at
    }
}

/// The CPU time of this thread.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

struct Once<F>(Option<F>);

impl<F: FnOnce() + Send> Work for Once<F> {
    fn run(&mut self, _: &Turn) -> Progress {
        if let Some(work) = self.0.take() {
            work();
        }
        Progress::Done
    }
}

struct Job {
    work: Box<dyn Work>,
    pending: Arc<AtomicUsize>,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.pending.fetch_sub(1, Relaxed);
    }
}

pub struct StoragePool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    filled: Condvar,
    ended: Condvar,
    pending: Arc<AtomicUsize>,
    /// The name of its threads.
    name: &'static str,
    /// Number of threads while none is stuck.
    size: usize,
}

struct State {
    turns: Turns<Job>,
    sleepers: usize,
    threads: usize,
    /// When each busy thread began its present job, by thread number.
    busy: HashMap<usize, Instant>,
    next_number: usize,
    is_closed: bool,
}

impl State {
    /// Sets the number of threads.
    fn count_threads(&mut self, threads: usize, size: usize) {
        self.threads = threads;
        self.turns.set_shares(Shares::new(size, threads.saturating_sub(size)));
    }

    /// Number of threads that are not stuck.
    fn not_stuck(&self) -> usize {
        let stuck = self.busy.values().filter(|since| since.elapsed() >= STUCK).count();
        self.threads - stuck
    }
}

impl std::fmt::Debug for StoragePool {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "StoragePool({} pending)", self.pending())
    }
}

impl StoragePool {
    pub fn start(name: &'static str, size: usize) -> Result<Self, StartError> {
        let size = size.max(1);
        // A long job mostly reads memory: long jobs take at most half of the cores and half of the threads.
        let limits = LongLimits { threads: (size / 2).min(cores() / 2).max(1), begun: MAX_BEGUN };
        let turns = Turns::new(limits, Shares::new(size, 0));
        let busy = HashMap::new();
        let state = State { turns, sleepers: 0, threads: 0, busy, next_number: 0, is_closed: false };
        let pool = StoragePool {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                filled: Condvar::new(),
                ended: Condvar::new(),
                pending: Arc::default(),
                name,
                size,
            }),
            threads: Mutex::default(),
        };
        for _ in 0..size {
            if let Err(error) = pool.start_thread() {
                pool.stop(Instant::now());
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
                return Err(StartError::new(errno, "cannot start a storage thread", "storage_pool_size"));
            }
        }
        Ok(pool)
    }

    fn start_thread(&self) -> std::io::Result<()> {
        let mut state = self.shared.state();
        let number = state.next_number;
        state.next_number += 1;
        let threads = state.threads + 1;
        state.count_threads(threads, self.shared.size);
        drop(state);
        let shared = Arc::clone(&self.shared);
        match spawn(self.shared.name, STACK, move || shared.work(number)) {
            Ok(thread) => {
                let mut threads = unpoisoned(self.threads.lock());
                threads.retain(|thread| !thread.is_finished());
                threads.push(thread);
                Ok(())
            }
            Err(error) => {
                let mut state = self.shared.state();
                let threads = state.threads - 1;
                state.count_threads(threads, self.shared.size);
                Err(error)
            }
        }
    }

    /// Starts replacements for stuck threads, where jobs wait. Called once a second.
    pub fn replace_stuck(&self) {
        let size = self.shared.size;
        loop {
            let state = self.shared.state();
            let is_short = state.not_stuck() < size && state.threads < 2 * size && !state.is_closed;
            if !is_short || !state.turns.has_waiting() {
                return;
            }
            drop(state);
            // Where no thread can be started, the next second tries again.
            if self.start_thread().is_err() {
                return;
            }
        }
    }

    /// Runs the job for a client on a thread that may wait. A session has a bounded number of jobs, so the
    /// limit of connections bounds them all. Drops the job after a stop.
    pub fn submit(&self, client: Client, kind: Kind, work: impl FnOnce() + Send + 'static) {
        self.submit_work(client, kind, Box::new(Once(Some(work))));
    }

    /// The same for a job that may take several turns.
    pub fn submit_work(&self, client: Client, kind: Kind, work: Box<dyn Work>) {
        self.shared.pending.fetch_add(1, Relaxed);
        let job = Job { work, pending: Arc::clone(&self.shared.pending) };
        let mut state = self.shared.state();
        if state.is_closed {
            drop(state);
            // The job may hold values whose drop takes locks.
            return drop(job);
        }
        state.turns.push(client, kind, job);
        let wake = state.sleepers > 0;
        drop(state);
        if wake {
            self.shared.filled.notify_one();
        }
    }

    /// Drops the waiting jobs of a connection that has ended, except writes.
    pub fn cancel(&self, client: Client) {
        let left = self.shared.state().turns.cancel(client);
        drop(left);
    }

    /// Number of jobs that are not done.
    pub fn pending(&self) -> usize {
        self.shared.pending.load(Relaxed)
    }

    /// Drops the waiting jobs, does the waiting writes, and ends the threads; leaves behind what is not done
    /// by `until`. False where it leaves a thread.
    pub fn stop(&self, until: Instant) -> bool {
        let mut state = self.shared.state();
        state.is_closed = true;
        let left = state.turns.clear(false);
        drop(state);
        drop(left);
        self.shared.filled.notify_all();
        let mut state = self.shared.state();
        while state.threads > 0 {
            let wait = until.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                break;
            }
            state = unpoisoned(self.shared.ended.wait_timeout(state, wait)).0;
        }
        let have_ended = state.threads == 0;
        let left = state.turns.clear(true);
        drop(state);
        drop(left);
        for thread in unpoisoned(self.threads.lock()).drain(..) {
            if have_ended || thread.is_finished() {
                // The runtime has reported a panic on stderr.
                let _ = thread.join();
            }
        }
        have_ended
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        unpoisoned(self.state.lock())
    }

    /// The loop of one thread.
    fn work(&self, number: usize) {
        let mut state = self.state();
        loop {
            // This thread replaced one that is no longer stuck.
            if state.threads > self.size && state.not_stuck() > self.size {
                break;
            }
            let Some(taken) = state.turns.pop() else {
                if state.is_closed {
                    break;
                }
                state.sleepers += 1;
                state = unpoisoned(self.filled.wait(state));
                state.sleepers -= 1;
                continue;
            };
            // The end of one turn can make more jobs ready than this thread takes.
            let wake = state.sleepers > 0 && state.turns.has_next();
            state.busy.insert(number, Instant::now());
            drop(state);
            if wake {
                self.filled.notify_one();
            }
            state = self.run(taken);
            state.busy.remove(&number);
        }
        let threads = state.threads - 1;
        state.count_threads(threads, self.size);
        let wake = state.sleepers > 0 && state.turns.has_next();
        drop(state);
        self.ended.notify_all();
        if wake {
            self.filled.notify_one();
        }
    }

    fn run(&self, mut taken: Taken<Job>) -> MutexGuard<'_, State> {
        let began = Instant::now();
        let turn = if taken.kind == Kind::Long { Turn::long(began) } else { Turn::endless() };
        // The runtime has reported a panic on stderr; the dropped job answers its client.
        let progress = catch_unwind(AssertUnwindSafe(|| taken.job.work.run(&turn))).unwrap_or(Progress::Done);
        let mut state = self.state();
        if progress == Progress::Done || state.is_closed {
            return self.end(state, taken, began);
        }
        let place = state.turns.place(&mut taken);
        if place != Place::Kept {
            drop(state);
            let progress = taken.job.work.finish_early();
            if progress == Progress::More && place == Place::Refused {
                taken.job.work.release_memory();
            }
            state = self.state();
            if progress == Progress::Done {
                return self.end(state, taken, began);
            }
        }
        state.turns.put_back(taken, began.elapsed());
        state
    }

    fn end<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        taken: Taken<Job>,
        began: Instant,
    ) -> MutexGuard<'a, State> {
        state.turns.end(&taken, began.elapsed());
        drop(state);
        // The job may hold values whose drop takes locks.
        drop(taken);
        self.state()
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
