//! The primitives of the protocols between threads that are checked under loom (`make models`): std's, or loom's there.

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
