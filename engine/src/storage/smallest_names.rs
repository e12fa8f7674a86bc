//! The smallest of many keys, found in short steps: sorts keys in portions as they come, and merges the
//! portions step by step.

use std::cmp::Ordering;

/// Keys that are sorted at a time.
const PORTION: usize = 2_048;
/// Keys that are merged between two checks of the clock.
const STEP: usize = 64;

/// The limits of one batch, whatever the size of the directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchLimits {
    pub names: usize,
    /// Bytes of all names.
    pub bytes: usize,
}

impl Default for BatchLimits {
    fn default() -> Self {
        BatchLimits { names: 262_144, bytes: 4 << 20 }
    }
}

/// Sorted keys, one behind the other, and where each ends.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    pub bytes: Vec<u8>,
    pub ends: Vec<u32>,
}

impl Keys {
    fn get(&self, at: usize) -> Option<&[u8]> {
        let end = *self.ends.get(at)? as usize;
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        Some(&self.bytes[start..end])
    }

    fn last(&self) -> Option<&[u8]> {
        self.get(self.ends.len().checked_sub(1)?)
    }

    fn push(&mut self, key: &[u8]) {
        self.bytes.extend_from_slice(key);
        self.ends.push(self.bytes.len() as u32);
    }
}

/// The smallest keys so far: at most twice as many as wanted, plus those of one getdents64(2) call; then a
/// merge drops the greater half.
#[derive(Debug)]
pub(crate) struct SmallestNames {
    limits: BatchLimits,
    /// The merged keys; during a merge, those merged so far.
    pub sorted: Keys,
    /// The next portion, in the order of arrival.
    next: Keys,
    portions: Vec<Keys>,
    /// Number of all keys held.
    count: usize,
    bytes: usize,
    /// The position in each portion during a merge, as a heap: the smallest key comes first.
    heap: Vec<Position>,
    /// The limit after keys were dropped: every key beyond this one is dropped, so that the batch has no gap.
    pub greatest: Option<Vec<u8>>,
}

/// The next key of a portion.
#[derive(Debug, Clone, Copy)]
struct Position {
    portion: u32,
    at: u32,
}

impl SmallestNames {
    pub fn new(limits: BatchLimits) -> SmallestNames {
        SmallestNames {
            limits,
            sorted: Keys::default(),
            next: Keys::default(),
            portions: Vec::new(),
            count: 0,
            bytes: 0,
            heap: Vec::new(),
            greatest: None,
        }
    }

    /// Adds a key, which may be a duplicate. Not during a merge.
    pub fn offer(&mut self, key: &[u8]) {
        if self.greatest.as_ref().is_some_and(|greatest| key >= &**greatest) {
            return;
        }
        self.next.push(key);
        self.count += 1;
        self.bytes += key.len();
        if self.next.ends.len() >= PORTION {
            self.sort_portion();
        }
    }

    /// Whether to merge now, which drops the greater half.
    pub fn has_too_many(&self) -> bool {
        self.count >= 2 * self.limits.names || self.bytes >= 2 * self.limits.bytes
    }

    /// Begins a merge, which [`merge_on`](Self::merge_on) continues.
    pub fn begin_merge(&mut self) {
        self.sort_portion();
        let sorted = std::mem::take(&mut self.sorted);
        if !sorted.ends.is_empty() {
            self.portions.push(sorted);
        }
        let (names, bytes) = (self.count.min(self.limits.names), self.bytes.min(self.limits.bytes));
        self.sorted = Keys { bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(names) };
        self.heap = (0..self.portions.len() as u32).map(|portion| Position { portion, at: 0 }).collect();
        for at in (0..self.heap.len() / 2).rev() {
            self.sink(at);
        }
    }

    /// Merges until all is done, or the turn is over: then false. Each call advances.
    pub fn merge_on(&mut self, is_over: &dyn Fn() -> bool) -> bool {
        if self.heap.is_empty() {
            return true;
        }
        let mut merged = 0;
        while let Some(position) = self.heap.first_mut() {
            let keys = &self.portions[position.portion as usize];
            let Some(key) = keys.get(position.at as usize) else { break };
            // Duplicates lie side by side.
            if self.sorted.last() != Some(key) {
                let is_full = self.sorted.ends.len() >= self.limits.names
                    || self.sorted.bytes.len() + key.len() > self.limits.bytes;
                if is_full && let Some(last) = self.sorted.last() {
                    self.greatest = Some(last.to_vec());
                    break;
                }
                self.sorted.push(key);
            }
            position.at += 1;
            if position.at as usize == keys.ends.len() {
                self.heap.swap_remove(0);
            }
            self.sink(0);
            merged += 1;
            if merged % STEP == 0 && is_over() {
                return false;
            }
        }
        self.heap = Vec::new();
        self.portions = Vec::new();
        (self.count, self.bytes) = (self.sorted.ends.len(), self.sorted.bytes.len());
        true
    }

    fn sort_portion(&mut self) {
        let next = std::mem::take(&mut self.next);
        if next.ends.is_empty() {
            return;
        }
        let mut starts = 0;
        let spans = next.ends.iter().map(|&end| std::mem::replace(&mut starts, end)..end);
        let mut keys: Vec<&[u8]> =
            spans.map(|span| &next.bytes[span.start as usize..span.end as usize]).collect();
        keys.sort_unstable();
        let mut sorted =
            Keys { bytes: Vec::with_capacity(next.bytes.len()), ends: Vec::with_capacity(keys.len()) };
        keys.into_iter().for_each(|key| sorted.push(key));
        self.portions.push(sorted);
    }

    /// Moves a heap entry down to its position.
    fn sink(&mut self, mut at: usize) {
        loop {
            let children = [2 * at + 1, 2 * at + 2].into_iter().filter(|&child| child < self.heap.len());
            let smallest = children.min_by(|&one, &other| self.compare(one, other));
            match smallest {
                Some(child) if self.compare(child, at) == Ordering::Less => {
                    self.heap.swap(child, at);
                    at = child;
                }
                _ => return,
            }
        }
    }

    fn compare(&self, one: usize, other: usize) -> Ordering {
        let key = |position: Position| self.portions[position.portion as usize].get(position.at as usize);
        key(self.heap[one]).cmp(&key(self.heap[other]))
    }
}

#[cfg(test)]
#[path = "smallest_names_tests.rs"]
mod tests;
