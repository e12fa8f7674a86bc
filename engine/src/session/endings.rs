//! How sessions end: time limits, last words, and being told to.

use rustix::io::Errno;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::replies::{Asked, Framing};
use super::{End, Next, Scratch, Session, Speaks};
use crate::errors::Error;
use crate::journal::Note;
use crate::protocol::{self, Operation, Status, v2};
use crate::transport::{self, Patience};

/// So often a turn reads what a client still sends after the last word: it could go on for ever.
const DROPS_A_TURN: usize = 16;
/// How long a client that has not read its descriptors is left alone before it is looked at again.
const SHORTEST_PAUSE: Duration = Duration::from_micros(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(16);

impl Session {
    pub(super) fn refuse_slow_frame(&mut self, scratch: &mut Scratch) {
        self.service.statistics.gauges(self.transport).timeouts_total.fetch_add(1, Relaxed);
        let framing = self.unasked_framing();
        let asked = Asked {
            framing,
            operation: Operation::FdPass,
            complete_at: self.complete_at,
            answered_at: None,
            uri: Note::of(""),
        };
        self.push_error(scratch, asked, Error::TooSlow);
        self.ending = End::AfterReplies;
    }

    /// How to say what answers no request.
    fn unasked_framing(&self) -> Framing {
        match &self.speaks {
            Speaks::Two(two) => Framing::Two { id: 0, extended: two.is_extended() },
            _ => Framing::One,
        }
    }

    /// Whether the last word is out, and whatever comes is dropped.
    pub fn is_lingering(&self) -> bool {
        matches!(self.ending, End::Lingering(_))
    }

    /// Reads and drops what a client sends after the last word to it.
    pub(super) fn linger(&mut self, scratch: &mut Scratch, patience: Patience) -> Next {
        let End::Lingering(until) = self.ending else { return Next::Closed };
        for _ in 0..DROPS_A_TURN {
            if Instant::now() >= until {
                return Next::Closed;
            }
            match transport::receive(self.socket(), &mut scratch.input, patience) {
                Ok(0) => return Next::Closed,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Next::Readable,
                Err(_) => return Next::Closed,
            }
        }
        Next::Again
    }

    /// The client must read first. It is left alone for a moment, a longer one the longer it does not, but not for ever.
    pub(super) fn pause(&mut self) -> Next {
        let still = self.moved_at.elapsed();
        if still > self.service.settings.request_timeout {
            self.service.statistics.gauges(self.transport).timeouts_total.fetch_add(1, Relaxed);
            return Next::Closed;
        }
        Next::Later((still / 4).clamp(SHORTEST_PAUSE, LONGEST_PAUSE))
    }

    /// Looks at the clock; every model calls it for each of its sessions about once a second. True: drop the session.
    pub fn is_overdue(&mut self, now: Instant) -> bool {
        self.heed_rules();
        self.connection.notice_reading(&self.service);
        let settings = &self.service.settings;
        let still = now.saturating_duration_since(self.moved_at);
        let overdue = if let End::Lingering(until) = self.ending {
            return now >= until;
        } else if !self.outbox.is_empty() {
            still > settings.request_timeout || self.receives_too_long(now)
        } else if let Some(since) = self.frame_since {
            let overdue = now.saturating_duration_since(since) > settings.header_timeout;
            if overdue {
                // One try: whoever does not send does not deserve to be waited for.
                let mut bytes = Vec::new();
                let text = Error::TooSlow.to_string();
                match self.unasked_framing() {
                    Framing::One => protocol::encode_error(&mut bytes, Status::Timeout, &text),
                    Framing::Two { id, .. } => v2::encode_refusal(&mut bytes, id, Status::Timeout, &text),
                }
                let _ = transport::send(self.socket(), &bytes, Patience::Never, false);
            }
            overdue
        } else if self.receives_too_slowly(now) {
            true
        } else if self.jobs > 0 {
            // Nothing is read from it meanwhile, so nothing else tells that it has gone.
            return transport::has_hung_up(self.socket());
        } else if matches!(&self.speaks, Speaks::Two(two) if two.is_receiving()) {
            // Its pace is right.
            false
        } else if !self.kept_input.is_empty() {
            // Complete requests that wait for the client to read its descriptors.
            still > settings.request_timeout
        } else {
            // An idle connection's end is nothing to count.
            let is_idle = still > settings.idle_timeout;
            if is_idle {
                self.say_close(v2::CloseReason::IdleTimeout);
            }
            return is_idle;
        };
        if overdue {
            self.service.statistics.gauges(self.transport).timeouts_total.fetch_add(1, Relaxed);
        }
        overdue
    }

    /// Counts a request that is refused since the queue is full.
    pub(super) fn count_refusal(&self, error: &Error) {
        if error.is_queue_full() {
            self.service.statistics.gauges(self.transport).rejected_total.fetch_add(1, Relaxed);
        }
    }

    /// Takes note that a fault of the server's ends this session.
    pub fn count_panic(&self) {
        self.service.statistics.gauges(self.transport).panics_total.fetch_add(1, Relaxed);
    }

    /// Lets the client send nothing more: what has come is answered, then the session closes.
    pub fn stop_reading(&self) {
        self.connection.stop_reading();
    }
}
