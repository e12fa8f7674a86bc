//! Which object leaves first: S3-FIFO with sizes (Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for
//! cache eviction", SOSP 2023).
//!
//! New objects enter a small queue, a tenth of the bytes. An object that is used again before it reaches that queue's
//! end moves to the main queue; another leaves, and a ghost queue remembers its id alone. An object that comes back
//! while its ghost is there enters the main queue at once. In the main queue an object that was used goes round once
//! more for each use. So a scan, which uses each object once, passes through the small queue alone.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;

/// The part of the bytes that the small queue may have, as a divisor.
const SMALL_PART: u64 = 10;

/// What the queues ask about an object.
pub trait Usage<K> {
    /// How often it was used since the last look, up to 3.
    fn uses(&self, id: &K) -> u8;
    /// Takes one off that count; false if it is zero.
    fn spend_use(&self, id: &K) -> bool;
    /// Whether it may leave now.
    fn may_leave(&self, id: &K) -> bool;
}

/// The order in which objects leave.
#[derive(Debug)]
pub struct EvictionQueue<K> {
    small: VecDeque<(K, u64)>,
    main: VecDeque<(K, u64)>,
    ghosts: VecDeque<K>,
    is_ghost: HashSet<K>,
    /// Each object's place. What a queue has of an object under another number has left it.
    objects: HashMap<K, Place>,
    small_bytes: u64,
    main_bytes: u64,
    /// Bytes of both queues when objects begin to leave.
    capacity: u64,
    /// The number of the next place.
    next: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    bytes: u64,
    is_main: bool,
    number: u64,
}

impl<K: Copy + Eq + Hash> EvictionQueue<K> {
    /// For `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        EvictionQueue {
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghosts: VecDeque::new(),
            is_ghost: HashSet::new(),
            objects: HashMap::new(),
            small_bytes: 0,
            main_bytes: 0,
            capacity,
            next: 0,
        }
    }

    /// Bytes of all objects.
    pub fn bytes(&self) -> u64 {
        self.small_bytes + self.main_bytes
    }

    pub fn len(&self) -> usize {
        self.objects.len()
    }

    pub fn contains(&self, id: &K) -> bool {
        self.objects.contains_key(id)
    }

    /// Adds an object, or replaces the one with this id.
    pub fn insert(&mut self, id: K, bytes: u64) {
        let before = self.remove(&id);
        let is_main = before.is_some_and(|place| place.is_main) || self.is_ghost.remove(&id);
        self.place(id, bytes, is_main);
    }

    /// Takes an object out, wherever it is.
    pub fn forget(&mut self, id: &K) -> Option<u64> {
        self.remove(id).map(|place| place.bytes)
    }

    /// The next object to leave, taken out, with its bytes. None if none may leave, or where more than `max_refusals`
    /// that should leave may not.
    pub fn evict(&mut self, usage: &impl Usage<K>, max_refusals: usize) -> Option<(K, u64)> {
        let mut refusals = 0;
        // Each object is looked at as often as it was used at most, and once more.
        let mut looks = 5 * (self.small.len() + self.main.len()) + 1;
        while looks > 0 {
            looks -= 1;
            // Where the main queue's objects may not leave, the small queue gives way beyond its share.
            let is_over = self.small_bytes * SMALL_PART > self.capacity;
            let from_small = is_over || self.main.is_empty() || refusals > 0 && self.small_bytes > 0;
            let next = if from_small { self.small.pop_front() } else { self.main.pop_front() };
            let (id, number) = next?;
            let Some(place) = self.objects.get(&id).copied().filter(|place| place.number == number) else {
                continue;
            };
            let is_used = if from_small { usage.uses(&id) > 1 } else { usage.spend_use(&id) };
            self.remove(&id);
            if is_used {
                self.place(id, place.bytes, true);
            } else if !usage.may_leave(&id) {
                self.place(id, place.bytes, true);
                refusals += 1;
                if refusals > max_refusals {
                    return None;
                }
            } else {
                if from_small {
                    self.remember(id);
                }
                return Some((id, place.bytes));
            }
        }
        None
    }

    fn place(&mut self, id: K, bytes: u64, is_main: bool) {
        let number = self.next;
        self.next += 1;
        self.objects.insert(id, Place { bytes, is_main, number });
        let queue = if is_main {
            self.main_bytes += bytes;
            &mut self.main
        } else {
            self.small_bytes += bytes;
            &mut self.small
        };
        queue.push_back((id, number));
        // Objects that left in other ways than by eviction are still in their queue.
        if queue.len() > 2 * self.objects.len() + 64 {
            queue.retain(|(id, number)| self.objects.get(id).is_some_and(|place| place.number == *number));
        }
    }

    fn remove(&mut self, id: &K) -> Option<Place> {
        let place = self.objects.remove(id)?;
        if place.is_main {
            self.main_bytes -= place.bytes;
        } else {
            self.small_bytes -= place.bytes;
        }
        Some(place)
    }

    fn remember(&mut self, id: K) {
        if self.is_ghost.insert(id) {
            self.ghosts.push_back(id);
        }
        // As many ghosts as there are objects in the main queue.
        while self.ghosts.len() > self.objects.len().max(16) {
            if let Some(oldest) = self.ghosts.pop_front() {
                self.is_ghost.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[derive(Default)]
    struct Uses {
        counts: RefCell<HashMap<u32, u8>>,
        pinned: HashSet<u32>,
    }

    impl Usage<u32> for Uses {
        fn uses(&self, id: &u32) -> u8 {
            self.counts.borrow().get(id).copied().unwrap_or(0)
        }

        fn spend_use(&self, id: &u32) -> bool {
            let mut counts = self.counts.borrow_mut();
            let count = counts.entry(*id).or_default();
            let had = *count > 0;
            *count = count.saturating_sub(1);
            had
        }

        fn may_leave(&self, id: &u32) -> bool {
            !self.pinned.contains(id)
        }
    }

    fn leave_in_order(queue: &mut EvictionQueue<u32>, usage: &Uses) -> Vec<u32> {
        std::iter::from_fn(|| queue.evict(usage, 100).map(|(id, _)| id)).collect()
    }

    #[test]
    fn unused_objects_leave_in_the_order_in_which_they_came() {
        let mut queue = EvictionQueue::new(100);
        for id in 0..5 {
            queue.insert(id, 20);
        }
        assert_eq!((queue.bytes(), queue.len()), (100, 5));
        assert_eq!(leave_in_order(&mut queue, &Uses::default()), [0, 1, 2, 3, 4]);
        assert_eq!((queue.bytes(), queue.len()), (0, 0));
    }

    #[test]
    fn a_used_object_outlives_a_scan() {
        let mut queue = EvictionQueue::new(100);
        let usage = Uses { counts: HashMap::from([(0, 2)]).into(), ..Uses::default() };
        queue.insert(0, 10);
        for id in 1..1000 {
            while queue.bytes() + 10 > 100 {
                assert_ne!(queue.evict(&usage, 100).unwrap().0, 0);
            }
            queue.insert(id, 10);
        }
    }

    #[test]
    fn an_object_that_comes_back_soon_is_kept_longer() {
        let mut queue = EvictionQueue::new(100);
        let usage = Uses::default();
        queue.insert(0, 10);
        queue.insert(1, 10);
        assert_eq!(queue.evict(&usage, 100).unwrap().0, 0);
        queue.insert(0, 10);
        for id in 2..9 {
            queue.insert(id, 10);
        }
        assert_eq!(leave_in_order(&mut queue, &usage)[..3], [1, 2, 3]);
    }

    #[test]
    fn an_object_that_may_not_leave_stays_and_does_not_hold_up_others() {
        let mut queue = EvictionQueue::new(100);
        let usage = Uses { pinned: HashSet::from([0, 1]), ..Uses::default() };
        for id in 0..4 {
            queue.insert(id, 10);
        }
        assert_eq!(leave_in_order(&mut queue, &usage), [2, 3]);
        assert_eq!((queue.bytes(), queue.evict(&usage, 100)), (20, None));
    }

    #[test]
    fn an_object_that_is_replaced_counts_once_and_leaves_once() {
        let mut queue = EvictionQueue::new(100);
        for bytes in 1..1000 {
            queue.insert(7, bytes);
        }
        assert_eq!((queue.bytes(), queue.len()), (999, 1));
        assert!(queue.small.len() < 100);
        assert_eq!(queue.forget(&7), Some(999));
        assert_eq!((queue.bytes(), queue.forget(&7), queue.evict(&Uses::default(), 100)), (0, None, None));
    }
}
