//! Threads that may wait for a disk, so that those that serve need not. Used where `async_storage` is on, and for writes.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::io::Errno;

use crate::concurrency::spawn;
use crate::errors::StartError;
use crate::queue::Queue;

const STACK: usize = 256 << 10;

type Work = Box<dyn FnOnce() + Send>;

pub struct StoragePool {
    queue: Arc<Queue<Work>>,
    pending: Arc<AtomicUsize>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for StoragePool {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "StoragePool({} pending)", self.pending())
    }
}

impl StoragePool {
    pub fn start(size: usize) -> Result<Self, StartError> {
        let queue: Arc<Queue<Work>> = Arc::new(Queue::new(usize::MAX));
        let pending = Arc::new(AtomicUsize::new(0));
        let mut threads = Vec::new();
        for _ in 0..size.max(1) {
            let (queue, pending) = (Arc::clone(&queue), Arc::clone(&pending));
            let body = move || {
                while let Some(work) = queue.pop() {
                    work();
                    pending.fetch_sub(1, Relaxed);
                }
            };
            threads.push(spawn("objmapper-storage", STACK, body).map_err(|error| {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
                StartError::new(errno, "cannot start a storage thread", "storage_pool_size")
            })?);
        }
        Ok(StoragePool { queue, pending, threads: Mutex::new(threads) })
    }

    /// Has the work done by a thread that may wait. A session has a bounded number under way, so connections bound them.
    pub fn submit(&self, work: impl FnOnce() + Send + 'static) {
        self.pending.fetch_add(1, Relaxed);
        self.queue.push_back_again(Box::new(work));
    }

    /// The same, before all that waits.
    pub fn submit_first(&self, work: impl FnOnce() + Send + 'static) {
        self.pending.fetch_add(1, Relaxed);
        self.queue.push_front(Box::new(work));
    }

    /// Pieces of work that are not done.
    pub fn pending(&self) -> usize {
        self.pending.load(Relaxed)
    }

    /// Does what was submitted, then ends the threads.
    pub fn stop(&self) {
        self.queue.close();
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // A panic has been reported on stderr by the runtime.
            let _ = thread.join();
        }
    }
}
