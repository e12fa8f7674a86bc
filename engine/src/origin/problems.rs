//! Why a mount's store does not answer, for the log and the health check.

use std::sync::{Mutex, PoisonError};

#[derive(Debug, Default)]
pub struct Problems(Mutex<Option<String>>);

impl Problems {
    /// The store answers.
    pub fn clear(&self) {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if current.is_some() {
            *current = None;
        }
    }

    pub fn note(&self, why: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    pub fn current(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
