//! Storage failures: counted by errno, and one kept until the log takes it.

use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Mutex;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{AcqRel, Relaxed},
};

use crate::sync::unpoisoned;

/// Stands in for an errno: the file ended before the promised length.
pub const ENDED_EARLY: i32 = 0;
/// Linux has 133; higher numbers count as the last.
const ERRNOS: usize = 160;

/// One failure, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "python", derive(pyo3::IntoPyObject))]
pub struct Failure {
    pub errno: i32,
    pub operation: &'static str,
    pub uri: String,
    /// How many others there were since the last one taken.
    pub suppressed: u64,
}

#[derive(Debug)]
pub struct Failures {
    counts: [AtomicU64; ERRNOS],
    /// While one is kept, each further failure costs one addition.
    is_kept: AtomicBool,
    kept: Mutex<PendingReport>,
}

#[derive(Debug, Default)]
struct PendingReport {
    failure: Option<Failure>,
    /// The total of those taken or suppressed.
    taken: u64,
}

impl Default for Failures {
    fn default() -> Self {
        Failures {
            counts: [const { AtomicU64::new(0) }; ERRNOS],
            is_kept: AtomicBool::new(false),
            kept: Mutex::default(),
        }
    }
}

impl Failures {
    /// Counts a failure; `errno` is [`ENDED_EARLY`] or the kernel's.
    pub fn note(&self, errno: i32, operation: &'static str, uri: &impl Display) {
        let place = usize::try_from(errno).unwrap_or(0).min(ERRNOS - 1);
        self.counts[place].fetch_add(1, Relaxed);
        if !self.is_kept.swap(true, AcqRel) {
            let failure = Failure { errno, operation, uri: uri.to_string(), suppressed: 0 };
            unpoisoned(self.kept.lock()).failure = Some(failure);
        }
    }

    /// Failures since start, by errno; omits those without a failure.
    pub fn counts(&self) -> BTreeMap<i32, u64> {
        let counts = self.counts.iter().map(|count| count.load(Relaxed)).enumerate();
        counts.filter(|(_, count)| *count > 0).map(|(errno, count)| (errno as i32, count)).collect()
    }

    /// The first failure since the last call, if there was one.
    pub fn take(&self) -> Option<Failure> {
        let mut kept = unpoisoned(self.kept.lock());
        let mut failure = kept.failure.take()?;
        // Before the sum: the sum includes a failure that found one kept; the next call takes one that did not.
        self.is_kept.swap(false, AcqRel);
        let all: u64 = self.counts.iter().map(|count| count.load(Relaxed)).sum();
        let new = all - kept.taken;
        kept.taken = all;
        // It was counted, but not yet kept, when an earlier call took another: that call counted it as suppressed.
        failure.suppressed = new.checked_sub(1)?;
        Some(failure)
    }
}

/// Whether sendfile(2) failed because of the socket rather than the file. `is_cut` returns whether the connection is
/// gone.
pub fn is_of_socket(errno: Errno, is_cut: impl FnOnce() -> bool) -> bool {
    match errno {
        Errno::AGAIN | Errno::INTR | Errno::PIPE | Errno::CONNRESET | Errno::CONNABORTED => true,
        Errno::NOTCONN | Errno::NOBUFS | Errno::NOMEM | Errno::TOOMANYREFS | Errno::DESTADDRREQ => true,
        Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::NETDOWN | Errno::HOSTDOWN | Errno::NETRESET => true,
        // A packet filter may forbid sending; a disk and a network may both time out.
        Errno::ACCESS | Errno::PERM | Errno::TIMEDOUT => is_cut(),
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_errno_and_the_first_is_kept() {
        let failures = Failures::default();
        assert_eq!(failures.take(), None);
        for _ in 0..3 {
            failures.note(5, "copy", &"/object");
        }
        failures.note(ENDED_EARLY, "splice", &"/other");
        let taken = failures.take().expect("one");
        assert_eq!((taken.errno, taken.operation, &*taken.uri, taken.suppressed), (5, "copy", "/object", 3));
        assert_eq!(failures.take(), None);
        failures.note(1000, "copy", &"/object");
        assert_eq!(failures.take().map(|taken| taken.suppressed), Some(0));
        assert_eq!(failures.counts(), BTreeMap::from([(0, 1), (5, 3), (159, 1)]));
    }

    #[test]
    fn each_failure_is_counted_while_others_are_taken() {
        use std::sync::atomic::Ordering::SeqCst;
        let failures = Failures::default();
        let working = AtomicU64::new(4);
        let reported = |failures: &Failures| failures.take().map_or(0, |failure| failure.suppressed + 1);
        let mut all = std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..20_000).for_each(|_| failures.note(5, "copy", &"/object"));
                    working.fetch_sub(1, SeqCst);
                });
            }
            let mut all = 0;
            while working.load(SeqCst) > 0 {
                all += reported(&failures);
            }
            all
        });
        all += reported(&failures);
        assert_eq!(all, 80_000);
    }

    #[test]
    fn a_disk_and_a_socket_fail_differently() {
        assert!(!is_of_socket(Errno::IO, || true));
        assert!(is_of_socket(Errno::PIPE, || false));
        assert!(is_of_socket(Errno::TIMEDOUT, || true) && !is_of_socket(Errno::TIMEDOUT, || false));
    }
}
