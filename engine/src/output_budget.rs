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
pub const LEAST: usize = 16 << 10;

/// Memory goes back to the kernel when use has dropped by this many bytes.
const WORTH_A_TRIM: usize = 8 << 20;
/// A drop that lasts for this many checks, a second apart, counts as lasting.
const LOOKS: usize = 3;

#[derive(Debug)]
pub struct Output {
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
    last: [usize; LOOKS],
    most: usize,
}

impl Output {
    pub fn new(per_connection: usize, budget: usize) -> Self {
        Output {
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
        self.per_connection.min(free / SHARE).max(LEAST)
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
        seen.most = seen.most.max(recent);
        if seen.most - recent + self.freed.load(Relaxed) < WORTH_A_TRIM {
            return false;
        }
        seen.most = recent;
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
    fn hoarders_leave_room_for_others() {
        let output = Output::new(4 << 20, 256 << 20);
        assert_eq!(output.allowance(), 4 << 20);
        for _ in 0..1000 {
            let allowance = output.allowance();
            output.take(allowance);
        }
        assert!(output.taken() <= (256 << 20) + 1000 * LEAST, "{}", output.taken());
        assert_eq!(output.allowance(), LEAST);
    }

    #[test]
    fn memory_is_given_back_once_less_has_been_taken_for_a_while() {
        let output = Output::new(4 << 20, 256 << 20);
        let looks = |taken: &[usize]| {
            taken.iter().map(|&taken| output.is_worth_a_trim(taken << 20)).collect::<Vec<_>>()
        };
        assert_eq!(looks(&[0, 100, 100, 0, 100, 0, 0]), [false; 7]);
        assert_eq!(looks(&[0, 0, 0]), [true, false, false]);
        assert_eq!(looks(&[4, 0, 0, 0]), [false; 4]);
        output.note_freed(8 << 20);
        assert_eq!(looks(&[0, 0]), [true, false]);
    }

    #[test]
    fn what_is_released_can_be_taken_again() {
        let output = Output::new(4 << 20, 8 << 20);
        assert_eq!(output.allowance(), 1 << 20);
        output.take(4 << 20);
        assert_eq!(output.allowance(), 512 << 10);
        output.release(4 << 20);
        assert_eq!(output.allowance(), 1 << 20);
    }
}
