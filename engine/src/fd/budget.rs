//! Descriptors passed and, as far as the server knows, not yet received, and those open for requests.
//!
//! The kernel counts unread descriptors per user against RLIMIT_NOFILE, over all sockets of that user: a few clients
//! that never read would exhaust the limit for all clients (`sendmsg` then fails with ETOOMANYREFS). So a connection
//! may have at most a share of the free budget — the dynamic threshold of Choudhury and Hahne, "Dynamic queue length
//! thresholds for shared-memory packet switches", 1998 — and a connection whose client has read everything may always
//! have one.

use crate::sync::{AtomicU32, Ordering::Relaxed};

/// One connection may take this fraction of the free budget.
const SHARE: u32 = 8;

#[derive(Debug)]
pub struct FdBudget {
    budget: u32,
    taken: AtomicU32,
}

impl FdBudget {
    pub fn new(budget: u32) -> Self {
        FdBudget { budget, taken: AtomicU32::new(0) }
    }

    /// How many unread descriptors one connection may have now. At least one.
    pub fn allowance(&self) -> u32 {
        (self.budget.saturating_sub(self.taken.load(Relaxed)) / SHARE).max(1)
    }

    pub fn take(&self, count: u32) {
        self.taken.fetch_add(count, Relaxed);
    }

    pub fn release(&self, count: u32) {
        self.taken.fetch_sub(count, Relaxed);
    }

    pub fn taken(&self) -> u32 {
        self.taken.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_clients_that_never_read_leave_descriptors_to_the_next() {
        let budget = FdBudget::new(256);
        for _ in 0..100 {
            let mut taken = 0;
            while taken < budget.allowance() && taken < 1000 {
                budget.take(1);
                taken += 1;
            }
        }
        // The budget, plus the one that each client may always have.
        assert!(budget.taken() <= 256 + 100, "{}", budget.taken());
        assert!(budget.allowance() >= 1);
    }

    #[test]
    fn released_shares_can_be_taken_again() {
        let budget = FdBudget::new(800);
        let before = budget.allowance();
        budget.take(400);
        assert!(budget.allowance() < before);
        budget.release(400);
        assert_eq!(budget.allowance(), before);
    }
}
