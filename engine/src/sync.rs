//! The primitives of the protocols between threads that are checked under loom (`make models`): std's, or loom's there.

#[cfg(not(model_check))]
pub use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, atomic::AtomicU8, atomic::Ordering};

#[cfg(model_check)]
pub use loom::sync::{Condvar, Mutex, MutexGuard, atomic::AtomicU8, atomic::Ordering};
#[cfg(model_check)]
pub use std::sync::PoisonError;
