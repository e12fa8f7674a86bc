//! How sessions end: time limits, last messages, and the server's stop.

use crate::net::socket;
use rustix::io::Errno;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::{CloseState, Next, ProtocolState, Session, ThreadBuffers};
use crate::errors::Error;
use crate::fd::counted_connection::CountedConnection;
use crate::net::transport::IoMode;
use crate::protocol::{self, Operation, Status, v2};
use crate::request_log::UriTail;
use crate::session::dispatch::RequestContext;
use crate::session::reply::Framing;

/// Reads per turn of what a client sends after the last message: it could send without end.
const DROPS_PER_TURN: usize = 16;
/// The shortest pause before the server checks again whether a client has read its descriptors.
const MIN_BACKOFF: Duration = Duration::from_micros(100);
const MAX_BACKOFF: Duration = Duration::from_millis(16);

impl Session {
    pub(super) fn refuse_slow_frame(&mut self, buffers: &mut ThreadBuffers) {
        self.service.statistics.gauges(self.transport).timeouts_total.fetch_add(1, Relaxed);
        let framing = self.default_framing();
        let context = RequestContext {
            framing,
            operation: Operation::FdPass,
            complete_at: self.complete_at,
            answered_at: None,
            uri: UriTail::from_uri(""),
        };
        self.push_error(buffers, context, Error::TooSlow);
        self.close_state = CloseState::AfterReplies;
    }

    /// The framing of a message that answers no request.
    fn default_framing(&self) -> Framing {
        match &self.protocol_state {
            ProtocolState::V2(state) => Framing::V2 { id: 0, extended: state.is_extended() },
            _ => Framing::V1,
        }
    }

    /// Whether the last message is sent, and the server drops further input.
    pub fn is_lingering(&self) -> bool {
        matches!(self.close_state, CloseState::Lingering(_))
    }

    /// Reads and drops what a client sends after the last message to it.
    pub(super) fn linger(&mut self, buffers: &mut ThreadBuffers, io_mode: IoMode) -> Next {
        let CloseState::Lingering(until) = self.close_state else { return Next::Closed };
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

    /// Waits until the client reads its descriptors. The pause grows the longer the client does not read, up to a
    /// limit.
    pub(super) fn backoff(&mut self) -> Next {
        let still = self.moved_at.elapsed();
        if still > self.service.settings.request_timeout {
            self.service.statistics.gauges(self.transport).timeouts_total.fetch_add(1, Relaxed);
            return Next::Closed;
        }
        Next::After((still / 4).clamp(MIN_BACKOFF, MAX_BACKOFF))
    }

    /// Checks the time limits; every model calls it for each of its sessions about once a second. True: drop the
    /// session.
    pub fn is_overdue(&mut self, now: Instant) -> bool {
        self.refresh_access();
        self.connection.settle_unread();
        let settings = &self.service.settings;
        let still = now.saturating_duration_since(self.moved_at);
        let overdue = if let CloseState::Lingering(until) = self.close_state {
            return now >= until;
        } else if !self.outbox.is_empty() {
            still > settings.request_timeout || self.receives_too_long(now)
        } else if let Some(since) = self.frame_since {
            let overdue = now.saturating_duration_since(since) > settings.header_timeout;
            if overdue {
                // Try once, without blocking.
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
            // The session reads nothing meanwhile, so only this call notices that the client has gone.
            return socket::has_hung_up(self.socket());
        } else if matches!(&self.protocol_state, ProtocolState::V2(state) if state.is_receiving()) {
            // The content arrives fast enough.
            false
        } else if !self.input_buffer.is_empty() {
            // Complete requests that wait for the client to read its descriptors.
            still > settings.request_timeout
        } else {
            // The end of an idle connection does not count as a timeout.
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

    /// Counts a request that is refused because the queue is full.
    pub(super) fn count_refusal(&self, error: &Error) {
        if error.is_queue_full() {
            self.service.statistics.gauges(self.transport).rejected_total.fetch_add(1, Relaxed);
        }
    }

    /// Records that a fault of the server ends this session.
    pub fn count_panic(&self) {
        self.service.statistics.gauges(self.transport).panics_total.fetch_add(1, Relaxed);
    }

    /// Stops reading from the client: the session answers the requests that have arrived, then closes.
    pub fn stop_reading(&self) {
        self.connection.stop_reading();
    }
}
