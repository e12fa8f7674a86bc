//! Measures how fast a content arrives, as far as that is up to the client.

use std::time::{Duration, Instant};

use crate::settings::Settings;

#[derive(Debug)]
pub(super) struct Pace {
    began: Instant,
    /// When bytes last arrived.
    moved_at: Instant,
    bytes: u64,
    /// How long the client could not send because the server had no room, and since when it cannot.
    blocked: Duration,
    blocked_since: Option<Instant>,
}

/// The pace that the server requires of a client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed {
    /// The longest pause between two pieces.
    pub pause: Duration,
    /// Bytes a second; 0: any.
    pub rate: u64,
    pub total: Duration,
}

impl Allowed {
    pub fn from_settings(settings: &Settings) -> Allowed {
        Allowed {
            pause: settings.request_timeout.get(),
            rate: settings.min_upload_rate,
            total: settings.upload_timeout,
        }
    }
}

impl Pace {
    pub fn new(now: Instant) -> Pace {
        Pace { began: now, moved_at: now, bytes: 0, blocked: Duration::ZERO, blocked_since: None }
    }

    /// Counts arrived bytes.
    pub fn add_bytes(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.moved_at = Instant::now();
    }

    /// Records whether the server keeps the client from sending.
    pub fn waits(&mut self, is_blocked: bool, now: Instant) {
        match (is_blocked, self.blocked_since) {
            (true, None) => self.blocked_since = Some(now),
            (false, Some(since)) => {
                self.blocked += now.saturating_duration_since(since);
                self.blocked_since = None;
                self.moved_at = now;
            }
            _ => {}
        }
    }

    /// Whether the total time is used up.
    pub fn is_over(&self, now: Instant, total: Duration) -> bool {
        now.saturating_duration_since(self.began) > total
    }

    /// Whether the client exceeds its time: `pause` between two pieces; for the whole content `pause` once plus a
    /// second per `rate` bytes; and the total.
    pub fn is_too_slow(&self, now: Instant, allowed: Allowed) -> bool {
        let since = |then: Instant| now.saturating_duration_since(then);
        if self.is_over(now, allowed.total) {
            return true;
        }
        if self.blocked_since.is_some() {
            return false;
        }
        let earned = self.bytes.checked_div(allowed.rate).map_or(Duration::MAX, Duration::from_secs);
        since(self.moved_at) > allowed.pause
            || since(self.began).saturating_sub(self.blocked) > allowed.pause.saturating_add(earned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: Allowed =
        Allowed { pause: Duration::from_secs(10), rate: 100, total: Duration::from_secs(1000) };
    const AT_ANY_RATE: Allowed = Allowed { rate: 0, ..ALLOWED };

    #[test]
    fn a_trickling_content_is_too_slow() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut pace = Pace::new(began);
        for second in 1..=100 {
            pace.bytes += 50;
            pace.moved_at = at(second);
            let is_too_slow = pace.is_too_slow(at(second), ALLOWED);
            // 10 s, plus half of the elapsed time for the bytes that arrived meanwhile.
            assert_eq!(is_too_slow, second > 20, "after {second} s");
        }
        assert!(!pace.is_too_slow(at(100), AT_ANY_RATE));
        assert!(pace.is_too_slow(at(111), AT_ANY_RATE), "nothing for 11 s");
        pace.moved_at = at(1001);
        assert!(pace.is_too_slow(at(1001), AT_ANY_RATE), "the whole time");
    }

    #[test]
    fn time_without_room_in_the_server_is_not_charged_to_the_client() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut pace = Pace::new(began);
        pace.waits(true, at(1));
        assert!(!pace.is_too_slow(at(500), ALLOWED));
        pace.waits(false, at(500));
        assert!(!pace.is_too_slow(at(509), ALLOWED));
        assert!(pace.is_too_slow(at(511), ALLOWED));
    }
}
