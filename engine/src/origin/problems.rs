//! Why a mount's store does not answer, for the log and the health check.

use crate::sync::unpoisoned;
use std::sync::Mutex;

#[derive(Debug, Default)]
pub struct Problems(Mutex<Option<String>>);

impl Problems {
    /// The store answers.
    pub fn clear(&self) {
        let mut current = unpoisoned(self.0.lock());
        if current.is_some() {
            *current = None;
        }
    }

    /// The store fails. The first reason stays until it answers again.
    pub fn note(&self, why: String) {
        unpoisoned(self.0.lock()).get_or_insert(why);
    }

    pub fn current(&self) -> Option<String> {
        unpoisoned(self.0.lock()).clone()
    }
}
