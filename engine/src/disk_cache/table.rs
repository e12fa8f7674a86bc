//! The entries of one mount by key: many shards, so that requests do not meet at one lock.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::disk_cache::entry::Entry;
use crate::sync::unpoisoned;

const SHARDS: usize = 64;

type Shard = HashMap<Box<str>, Arc<Entry>>;

#[derive(Debug)]
pub struct Table {
    hasher: RandomState,
    shards: [RwLock<Shard>; SHARDS],
}

impl Default for Table {
    fn default() -> Self {
        Table { hasher: RandomState::new(), shards: std::array::from_fn(|_| RwLock::default()) }
    }
}

impl Table {
    pub fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.read(key).get(key).map(Arc::clone)
    }

    /// Puts an entry in; returns the one that it replaces.
    pub fn insert(&self, entry: &Arc<Entry>) -> Option<Arc<Entry>> {
        let key = &*entry.record.key;
        self.write(key).insert(key.into(), Arc::clone(entry))
    }

    /// Removes this entry, if it is still the one under its key.
    pub fn remove(&self, entry: &Entry) {
        let key = &*entry.record.key;
        let mut shard = self.write(key);
        if shard.get(key).is_some_and(|found| std::ptr::eq(Arc::as_ptr(found), entry)) {
            shard.remove(key);
        }
    }

    fn shard(&self, key: &str) -> &RwLock<Shard> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    fn read(&self, key: &str) -> RwLockReadGuard<'_, Shard> {
        unpoisoned(self.shard(key).read())
    }

    fn write(&self, key: &str) -> RwLockWriteGuard<'_, Shard> {
        unpoisoned(self.shard(key).write())
    }
}
