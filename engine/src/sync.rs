//! The primitives of the protocols between threads that loom checks (`make models`): std's, or loom's in that build.

#[cfg(not(model_check))]
pub use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
#[cfg(not(model_check))]
pub use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[cfg(model_check)]
pub use loom::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
#[cfg(model_check)]
pub use loom::sync::{Condvar, Mutex, MutexGuard};
#[cfg(model_check)]
pub use std::sync::PoisonError;
