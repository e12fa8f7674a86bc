//! Bytes of answers that the server has in memory for its clients: set aside for what storage reads, read and not sent yet,
//! or left over where the client's socket was full.
//!
//! A client that asks and does not read would make them grow. So a connection may have a fixed number of them, and no more
//! than a share of what is still free of the number for all: the dynamic threshold of `fd/budget.rs`. While a connection has
//! as many as it may have, the server answers no further request of it and reads nothing from it. A connection may always
//! have the few that one small answer takes; larger contents then go from file to socket, and pages of listings are short.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// The part of the free budget that one connection may take.
const SHARE: usize = 8;
/// What a connection may have in any case.
pub const LEAST: usize = 16 << 10;

/// Memory is given back where so many bytes less are in use than there were.
const WORTH_A_TRIM: usize = 8 << 20;
/// What has been less for so many seconds stays so.
const LOOKS: usize = 3;

#[derive(Debug)]
pub struct Output {
    per_connection: usize,
    budget: usize,
    taken: AtomicUsize,
    /// Bytes of buffers that threads have freed since memory was last given back.
    freed: AtomicUsize,
    seen: Mutex<Seen>,
}

/// What was taken at the last looks, a second apart, and the most since memory was last given back.
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

    /// A thread has freed a buffer of so many bytes, and will not need it soon.
    pub fn note_freed(&self, bytes: usize) {
        self.freed.fetch_add(bytes, Relaxed);
    }

    /// Looks once a second how much is taken. Where it has been less than before for some looks, much of the memory is
    /// free and stays with the allocator, between what is in use: then the kernel gets it back.
    pub fn tick(&self) {
        if self.is_worth_a_trim(self.taken()) {
            give_memory_back();
        }
    }

    fn is_worth_a_trim(&self, taken: usize) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
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

/// Has glibc return free memory of all its arenas; others return it by themselves.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks, and touches nothing that is in use.
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
