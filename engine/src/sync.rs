//! The primitives of the protocols between threads that loom checks (`make models`): std's, or loom's in that build.

use std::sync::PoisonError;

#[cfg(not(model_check))]
pub use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(not(model_check))]
pub use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};
#[cfg(not(model_check))]
pub use std::thread::{self, Thread};

#[cfg(model_check)]
pub use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(model_check)]
pub use loom::sync::{Condvar, Mutex, MutexGuard};
#[cfg(model_check)]
pub use loom::thread::{self, Thread};

/// The value of a lock, even if a thread panicked while it held the lock: a panic ends one session, and the others go
/// on with the value. Takes the result of `std`'s locks and condition variables, and of loom's.
pub fn unpoisoned<T>(locked: Result<T, PoisonError<T>>) -> T {
    locked.unwrap_or_else(PoisonError::into_inner)
}

/// loom has no `OnceLock`. This one sets the value and then publishes it with the ordering of std's.
#[cfg(model_check)]
#[derive(Debug)]
pub struct OnceLock<T> {
    value: std::sync::OnceLock<T>,
    is_set: AtomicBool,
}

#[cfg(model_check)]
impl<T> OnceLock<T> {
    pub fn new() -> Self {
        OnceLock { value: std::sync::OnceLock::new(), is_set: AtomicBool::new(false) }
    }

    pub fn set(&self, value: T) -> Result<(), T> {
        self.value.set(value)?;
        self.is_set.store(true, Ordering::Release);
        Ok(())
    }

    pub fn get(&self) -> Option<&T> {
        if self.is_set.load(Ordering::Acquire) { self.value.get() } else { None }
    }
}
