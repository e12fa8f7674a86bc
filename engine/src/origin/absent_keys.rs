//! Keys that the store said it does not have, for a few seconds.

use crate::sync::unpoisoned;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Beyond this number the oldest are forgotten.
const MAX_KEYS: usize = 10_000;

#[derive(Debug)]
pub struct AbsentKeys {
    time_to_live: Duration,
    keys: Mutex<HashMap<Box<str>, Instant>>,
}

impl AbsentKeys {
    pub fn new(time_to_live: Duration) -> AbsentKeys {
        AbsentKeys { time_to_live, keys: Mutex::default() }
    }

    pub fn contains(&self, key: &str) -> bool {
        let keys = unpoisoned(self.keys.lock());
        keys.get(key).is_some_and(|since| since.elapsed() < self.time_to_live)
    }

    pub fn insert(&self, key: &str) {
        let mut keys = unpoisoned(self.keys.lock());
        if keys.len() >= MAX_KEYS {
            keys.retain(|_, since| since.elapsed() < self.time_to_live);
        }
        // Still full: all of them are young. One that is not remembered costs the store one question more.
        if keys.len() < MAX_KEYS && !self.time_to_live.is_zero() {
            keys.insert(key.into(), Instant::now());
        }
    }
}
