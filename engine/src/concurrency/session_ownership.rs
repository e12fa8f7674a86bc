//! Which part owns a session: epoll (armed), a worker (running), or a worker that must run it once more (rerun).

use crate::sync::{AtomicU8, Ordering};

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
/// Running, and to be run once more: storage delivered a result meanwhile.
const RERUN: u8 = 2;

#[derive(Debug)]
pub struct RunState(AtomicU8);

impl RunState {
    /// The state of a session that no worker has.
    pub fn idle() -> Self {
        RunState(AtomicU8::new(IDLE))
    }

    pub fn take(&self) -> bool {
        self.0.compare_exchange(IDLE, RUNNING, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Releases the session; false if it must run once more first.
    pub fn release(&self) -> bool {
        // Acquire on failure as well: the next run must see what storage wrote before it marked the session.
        let released = self.0.compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if !released {
            self.0.store(RUNNING, Ordering::Release);
        }
        released
    }

    /// Whether the caller must run the session; otherwise the worker that has it runs it once more.
    pub fn mark_woken(&self) -> bool {
        loop {
            if self.take() {
                return true;
            }
            match self.0.compare_exchange(RUNNING, RERUN, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) | Err(RERUN) => return false,
                Err(_) => {}
            }
        }
    }
}
