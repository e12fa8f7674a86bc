//! Bytes of answers that the server holds in memory for its clients: reserved for what storage reads, read and not
//! sent yet, or left over because the client's socket was full.
//!
//! A client that requests and does not read would make them grow. So a connection may have a fixed number of them,
//! and at most a share of the free part of the total budget: the dynamic threshold of `fd/budget.rs`. While a
//! connection is at its limit, the server answers no further request of it and reads nothing from it. A connection
//! may always have the few bytes of one small answer; larger contents then go from file to socket, and pages of
//! listings are short.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::sync::unpoisoned;

/// One connection may take this fraction of the free budget.
const SHARE: usize = 8;
/// The bytes that a connection may have in any case.
pub const MIN_ALLOWANCE: usize = 16 << 10;

/// Memory goes back to the kernel when use has dropped by this many bytes.
const MIN_TRIM: usize = 8 << 20;
/// A drop that lasts for this many checks, a second apart, counts as lasting.
const CHECKS: usize = 3;

#[derive(Debug)]
pub struct OutputBudget {
    per_connection: usize,
    budget: usize,
    taken: AtomicUsize,
    /// Bytes of buffers that threads have freed since memory last went back to the kernel.
    freed: AtomicUsize,
    seen: Mutex<Seen>,
}

/// The bytes taken at the last checks, a second apart, and the maximum since memory last went back to the kernel.
#[derive(Debug, Default)]
struct Seen {
    last: [usize; CHECKS],
    max: usize,
}

impl OutputBudget {
    pub fn new(per_connection: usize, budget: usize) -> Self {
        OutputBudget {
            per_connection,
            budget,
            taken: AtomicUsize::new(0),
            freed: AtomicUsize::new(0),
            seen: Mutex::default(),
        }
    }

    /// How many bytes one connection may have now.
    pub fn allowance(&self) -> usize {
        let free = self.budget.saturating_sub(self.taken());
        self.per_connection.min(free / SHARE).max(MIN_ALLOWANCE)
    }

    pub fn take(&self, bytes: usize) {
        self.taken.fetch_add(bytes, Relaxed);
    }

    pub fn release(&self, bytes: usize) {
        self.taken.fetch_sub(bytes, Relaxed);
    }

    pub fn taken(&self) -> usize {
        self.taken.load(Relaxed)
    }

    /// Records that a thread has freed a buffer of `bytes` bytes and will not need it soon.
    pub fn note_freed(&self, bytes: usize) {
        self.freed.fetch_add(bytes, Relaxed);
    }

    /// Checks once a second how much is taken. If use has dropped for LOOKS checks, much of the freed memory stays
    /// with the allocator, scattered between live blocks: return it to the kernel.
    pub fn tick(&self) {
        if self.is_worth_a_trim(self.taken()) {
            give_memory_back();
        }
    }

    fn is_worth_a_trim(&self, taken: usize) -> bool {
        let mut seen = unpoisoned(self.seen.lock());
        seen.last.rotate_right(1);
        seen.last[0] = taken;
        let recent = seen.last.into_iter().max().unwrap_or(0);
        seen.max = seen.max.max(recent);
        if seen.max - recent + self.freed.load(Relaxed) < MIN_TRIM {
            return false;
        }
        seen.max = recent;
        self.freed.store(0, Relaxed);
        true
    }
}

/// Makes glibc return the free memory of all its arenas; other allocators return it by themselves.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the allocator's own locks, and touches no memory that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_that_never_read_leave_memory_to_others() {
        let output = OutputBudget::new(4 << 20, 256 << 20);
        assert_eq!(output.allowance(), 4 << 20);
        for _ in 0..1000 {
            let allowance = output.allowance();
            output.take(allowance);
        }
        assert!(output.taken() <= (256 << 20) + 1000 * MIN_ALLOWANCE, "{}", output.taken());
        assert_eq!(output.allowance(), MIN_ALLOWANCE);
    }

    #[test]
    fn memory_is_returned_once_use_has_dropped_for_a_while() {
        let output = OutputBudget::new(4 << 20, 256 << 20);
        let checks = |taken: &[usize]| {
            taken.iter().map(|&taken| output.is_worth_a_trim(taken << 20)).collect::<Vec<_>>()
        };
        assert_eq!(checks(&[0, 100, 100, 0, 100, 0, 0]), [false; 7]);
        assert_eq!(checks(&[0, 0, 0]), [true, false, false]);
        assert_eq!(checks(&[4, 0, 0, 0]), [false; 4]);
        output.note_freed(8 << 20);
        assert_eq!(checks(&[0, 0]), [true, false]);
    }

    #[test]
    fn released_shares_can_be_taken_again() {
        let output = OutputBudget::new(4 << 20, 8 << 20);
        assert_eq!(output.allowance(), 1 << 20);
        output.take(4 << 20);
        assert_eq!(output.allowance(), 512 << 10);
        output.release(4 << 20);
        assert_eq!(output.allowance(), 1 << 20);
    }
}
