//! CoDel, controlled delay (RFC 8289): decides whether a queue's waits have been too long for a while.

use crate::sync::Ordering;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

/// A queue counts as overloaded if the shortest wait of an interval exceeds this.
const TARGET: Duration = Duration::from_millis(5);

const INTERVAL: Duration = Duration::from_millis(100);

/// While overloaded, the server refuses requests that have waited longer than this.
const OVERLOAD_TIMEOUT: Duration = Duration::from_millis(10);

/// Controlled delay: the shortest wait of an interval distinguishes a busy queue from one whose backlog stays.
///
/// Refusing empties a queue of sessions in bursts, which makes the shortest wait of the next interval small although
/// the load is the same. So an interval in which nine of ten waits were too long counts as overloaded too, and an
/// overloaded queue stays so until an interval has passed in which no wait was too long. After Nichols and Jacobson,
/// "Controlling Queue Delay", 2012, in the form for request servers: Maurer, "Fail at Scale", 2015 (shortest wait
/// over 100 ms against 5 ms).
#[derive(Debug)]
pub struct CoDel {
    started: Instant,
    interval_ends: AtomicU64,
    min_wait: AtomicU64,
    /// Waits of this interval, and how many of them were too long.
    waits: AtomicU64,
    late: AtomicU64,
    overloaded: AtomicBool,
}

impl CoDel {
    pub fn new() -> Self {
        CoDel {
            started: Instant::now(),
            interval_ends: AtomicU64::new(0),
            min_wait: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            late: AtomicU64::new(0),
            overloaded: AtomicBool::new(false),
        }
    }

    /// Records a wait that ended `now`; true if the caller must refuse that request.
    pub fn should_reject(&self, wait: Duration, now: Instant) -> bool {
        let now = now.saturating_duration_since(self.started).as_nanos() as u64;
        let wait_ns = wait.as_nanos() as u64;
        let ends = self.interval_ends.load(Ordering::Relaxed);
        let next = now + INTERVAL.as_nanos() as u64;
        if now >= ends
            && self.interval_ends.compare_exchange(ends, next, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            let min_wait = self.min_wait.swap(wait_ns, Ordering::AcqRel);
            let (waits, late) = (self.waits.swap(1, Ordering::AcqRel), self.late.swap(0, Ordering::AcqRel));
            // An interval that ended long ago is not evidence of overload now.
            let recent = now - ends < INTERVAL.as_nanos() as u64;
            let standing = min_wait > TARGET.as_nanos() as u64 || late * 10 > waits * 9;
            let persists = self.overloaded.load(Ordering::Acquire) && late > 0;
            let is_overloaded = recent && (standing || persists);
            self.overloaded.store(is_overloaded, Ordering::Release);
            self.late.fetch_add(u64::from(wait > OVERLOAD_TIMEOUT), Ordering::AcqRel);
            return is_overloaded && wait > OVERLOAD_TIMEOUT;
        }
        self.min_wait.fetch_min(wait_ns, Ordering::AcqRel);
        self.waits.fetch_add(1, Ordering::AcqRel);
        self.late.fetch_add(u64::from(wait > OVERLOAD_TIMEOUT), Ordering::AcqRel);
        self.overloaded.load(Ordering::Acquire) && wait > OVERLOAD_TIMEOUT
    }
}

impl Default for CoDel {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_waits_never_count_as_overload() {
        let delay = CoDel::new();
        let start = Instant::now();
        for step in 0..1000u64 {
            assert!(!delay.should_reject(Duration::from_millis(4), start + Duration::from_millis(step)));
        }
    }

    #[test]
    fn standing_waits_are_refused_until_the_queue_is_short_again() {
        let delay = CoDel::new();
        let start = Instant::now();
        let at = |step| start + Duration::from_millis(step);
        let refused =
            (0..500).filter(|&step| delay.should_reject(Duration::from_millis(20), at(step))).count();
        assert!(refused > 250, "{refused}");
        for step in 500..800 {
            delay.should_reject(Duration::from_millis(1), at(step));
        }
        assert!(!delay.should_reject(Duration::from_millis(20), at(801)));
    }
}
