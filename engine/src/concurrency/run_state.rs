//! Whose a session is: epoll's (armed), a worker's (taken), or a worker's who must run it once more (woken).

use crate::sync::{AtomicU8, Ordering};

const ARMED: u8 = 0;
const RUNNING: u8 = 1;
/// Taken, and to be run once more: storage had something while it was run.
const RERUN: u8 = 2;

#[derive(Debug)]
pub struct RunState(AtomicU8);

impl RunState {
    /// Of a session that nobody has.
    pub fn idle() -> Self {
        RunState(AtomicU8::new(ARMED))
    }

    pub fn take(&self) -> bool {
        self.0.compare_exchange(ARMED, RUNNING, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Gives it out of one's hands; false where it must be run once more first.
    pub fn release(&self) -> bool {
        // Acquire on failure as well: what storage brought before it said so is seen by the run that follows.
        let released = self.0.compare_exchange(RUNNING, ARMED, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if !released {
            self.0.store(RUNNING, Ordering::Release);
        }
        released
    }

    /// Whether the caller must see to it that the session is run; else the worker that has it runs it once more.
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
