//! How sessions end: time limits, last words, and being told to.

use crate::net::socket;
use rustix::io::Errno;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::{CloseState, Next, ProtocolState, Session, ThreadBuffers};
use crate::errors::Error;
use crate::net::transport::IoMode;
use crate::protocol::{self, Operation, Status, v2};
use crate::request_log::UriTail;
use crate::session::dispatch::RequestContext;
use crate::session::reply::Framing;

/// So often a turn reads what a client still sends after the last word: it could go on for ever.
const DROPS_PER_TURN: usize = 16;
/// How long a client that has not read its descriptors is left alone before it is looked at again.
const MIN_BACKOFF: Duration = Duration::from_micros(100);
const MAX_BACKOFF: Duration = Duration::from_millis(16);

impl Session {
    pub(super) fn refuse_slow_frame(&mut self, buffers: &mut ThreadBuffers) {
        self.service.statistics.gauges(self.transport).timeouts_total.fetch_add(1, Relaxed);
        let framing = self.default_framing();
        let asked = RequestContext {
            framing,
            operation: Operation::FdPass,
            complete_at: self.complete_at,
            answered_at: None,
            uri: UriTail::of(""),
        };
        self.push_error(buffers, asked, Error::TooSlow);
        self.ending = CloseState::AfterReplies;
    }

    /// How to say what answers no request.
    fn default_framing(&self) -> Framing {
        match &self.protocol_state {
            ProtocolState::V2(two) => Framing::V2 { id: 0, extended: two.is_extended() },
            _ => Framing::V1,
        }
    }

    /// Whether the last word is out, and whatever comes is dropped.
    pub fn is_lingering(&self) -> bool {
        matches!(self.ending, CloseState::Lingering(_))
    }

    /// Reads and drops what a client sends after the last word to it.
    pub(super) fn linger(&mut self, buffers: &mut ThreadBuffers, io_mode: IoMode) -> Next {
        let CloseState::Lingering(until) = self.ending else { return Next::Closed };
        for _ in 0..DROPS_PER_TURN {
            if Instant::now() >= until {
                return Next::Closed;
            }
            match socket::receive(self.socket(), &mut buffers.input, io_mode) {
                Ok(0) => return Next::Closed,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Next::Readable,
                Err(_) => return Next::Closed,
            }
        }
        Next::Yield
    }

    /// The client must read first. It is left alone for a moment, a longer one the longer it does not, but not for ever.
    pub(super) fn backoff(&mut self) -> Next {
        let still = self.moved_at.elapsed();
        if still > self.service.settings.request_timeout {
            self.service.statistics.gauges(self.transport).timeouts_total.fetch_add(1, Relaxed);
            return Next::Closed;
        }
        Next::After((still / 4).clamp(MIN_BACKOFF, MAX_BACKOFF))
    }

    /// Looks at the clock; every model calls it for each of its sessions about once a second. True: drop the session.
    pub fn is_overdue(&mut self, now: Instant) -> bool {
        self.refresh_access();
        self.connection.settle_unread(&self.service);
        let settings = &self.service.settings;
        let still = now.saturating_duration_since(self.moved_at);
        let overdue = if let CloseState::Lingering(until) = self.ending {
            return now >= until;
        } else if !self.outbox.is_empty() {
            still > settings.request_timeout || self.receives_too_long(now)
        } else if let Some(since) = self.frame_since {
            let overdue = now.saturating_duration_since(since) > settings.header_timeout;
            if overdue {
                // One try: whoever does not send does not deserve to be waited for.
                let mut bytes = Vec::new();
                let text = Error::TooSlow.to_string();
                match self.default_framing() {
                    Framing::V1 => protocol::encode_error(&mut bytes, Status::Timeout, &text),
                    Framing::V2 { id, .. } => v2::encode_refusal(&mut bytes, id, Status::Timeout, &text),
                }
                let _ = socket::send(self.socket(), &bytes, IoMode::NonBlocking, false);
            }
            overdue
        } else if self.receives_too_slowly(now) {
            true
        } else if self.jobs > 0 {
            // Nothing is read from it meanwhile, so nothing else tells that it has gone.
            return socket::has_hung_up(self.socket());
        } else if matches!(&self.protocol_state, ProtocolState::V2(two) if two.is_receiving()) {
            // Its pace is right.
            false
        } else if !self.input_buffer.is_empty() {
            // Complete requests that wait for the client to read its descriptors.
            still > settings.request_timeout
        } else {
            // An idle connection's end is nothing to count.
            let is_idle = still > settings.idle_timeout;
            if is_idle {
                self.send_close(v2::CloseReason::IdleTimeout);
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
