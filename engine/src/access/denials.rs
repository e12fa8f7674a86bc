//! Denials by the access rules: counted, and one kept until the log takes it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::net::credentials::Credentials;
use crate::sync::unpoisoned;

/// The kind of denial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Connecting at all.
    User,
    /// Using a path below a prefix.
    Prefix,
    /// One more connection.
    Connections,
    /// One more unread descriptor.
    Descriptors,
}

impl Reason {
    pub const ALL: [Reason; 4] = [Reason::User, Reason::Prefix, Reason::Connections, Reason::Descriptors];

    pub fn name(self) -> &'static str {
        ["user", "prefix", "connections", "descriptors"][self as usize]
    }
}

/// One denial, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "python", derive(pyo3::IntoPyObject))]
pub struct Refusal {
    pub reason: &'static str,
    /// None over a transport without users.
    pub uid: Option<u32>,
    /// 0 for a process in a namespace that the server cannot see.
    pub pid: Option<i32>,
    /// The requested path; empty if the denial does not concern one object.
    pub uri: String,
    /// How many others there were since the last one taken.
    pub suppressed: u64,
}

#[derive(Debug, Default)]
pub struct Denials {
    counts: [AtomicU64; Reason::ALL.len()],
    /// While one is kept, each further denial costs one addition: a client that floods the server causes no more
    /// work.
    is_kept: AtomicBool,
    kept: Mutex<PendingReport>,
}

#[derive(Debug, Default)]
struct PendingReport {
    refusal: Option<Refusal>,
    /// The total of those taken or suppressed.
    reported: u64,
}

impl Denials {
    pub fn note(&self, reason: Reason, peer: Option<&Credentials>, path: &[u8]) {
        self.counts[reason as usize].fetch_add(1, Relaxed);
        if self.is_kept.swap(true, Relaxed) {
            return;
        }
        let uri = if path.is_empty() { String::new() } else { format!("/{}", String::from_utf8_lossy(path)) };
        let (uid, pid) = (peer.map(|peer| peer.uid), peer.map(|peer| peer.pid));
        let refusal = Refusal { reason: reason.name(), uid, pid, uri, suppressed: 0 };
        unpoisoned(self.kept.lock()).refusal = Some(refusal);
    }

    /// Denials since start, by reason.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Reason::ALL.into_iter().map(|reason| (reason.name(), self.counts[reason as usize].load(Relaxed)))
    }

    /// The first denial since the last call, if there was one.
    pub fn take(&self) -> Option<Refusal> {
        let mut kept = unpoisoned(self.kept.lock());
        let mut refusal = kept.refusal.take()?;
        let all: u64 = self.counts().map(|(_, count)| count).sum();
        let new = all - kept.reported;
        kept.reported = all;
        self.is_kept.store(false, Relaxed);
        // It was counted, but not yet kept, when an earlier call took another: that call counted it as suppressed.
        refusal.suppressed = new.checked_sub(1)?;
        Some(refusal)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn the_first_denial_is_kept_and_the_others_are_counted() {
        let denials = Denials::default();
        assert_eq!(denials.take(), None);
        let peer = Credentials { pid: 7, uid: 1000, gids: vec![1000] };
        denials.note(Reason::Prefix, Some(&peer), b"a/b");
        for _ in 0..4 {
            denials.note(Reason::User, None, b"");
        }
        let reported = denials.take().expect("one");
        assert_eq!(
            (reported.reason, reported.uid, reported.pid, reported.suppressed),
            ("prefix", Some(1000), Some(7), 4)
        );
        assert_eq!(reported.uri, "/a/b");
        assert_eq!(denials.take(), None);
        denials.note(Reason::User, None, b"");
        assert_eq!(denials.take().map(|reported| (reported.uid, reported.suppressed)), Some((None, 0)));
        let counts: Vec<_> = denials.counts().collect();
        assert_eq!(counts, [("user", 5), ("prefix", 1), ("connections", 0), ("descriptors", 0)]);
    }
}
