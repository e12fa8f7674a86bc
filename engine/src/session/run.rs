//! The run of a session: answers the requests that have arrived, sends the replies, and says what the session needs
//! next.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::{CloseState, Next, ProtocolState, RunOptions, Session, ThreadBuffers};
use crate::net::socket;
use crate::net::transport::IoMode;
use crate::protocol::{self, RequestDecoder};
use crate::session::dispatch::{BYTES_PER_TURN, CONTENT_PER_TURN};
use crate::session::input::ReadOutcome;

/// Gathered bytes, and below segments, at which the session hands replies to the kernel.
pub(super) const GATHER_BYTES: usize = 256 << 10;
pub(super) const GATHER_SEGMENTS: usize = socket::MAX_FDS_PER_MESSAGE;
/// Requests that one turn of a session answers before other sessions run.
const REQUESTS_PER_TURN: usize = 64;
/// After its last message the server reads and drops the client's further bytes for this long, so that a reset does
/// not destroy the message.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// The outcome of the frame in front of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameOutcome {
    /// The session has answered it, or storage works on it.
    Done,
    /// The input ends inside it.
    More,
    /// It was the client's last frame.
    Last,
    /// The frame broke the protocol.
    Fatal,
}

pub(super) enum InputOutcome {
    /// Nothing complete is left in the input.
    Consumed,
    /// Enough replies have gathered: send them first.
    OutputFull,
    /// The client must read descriptors first.
    FdsUnread,
    /// Jobs in progress must be answered first.
    JobsPending,
}

impl Session {
    /// Does the work that can be done without waiting.
    pub fn run(&mut self, buffers: &mut ThreadBuffers, options: RunOptions) -> Next {
        self.with_buffers(buffers, |session, buffers, at, have, sent| {
            session.run_once(buffers, options, at, have, sent)
        })
    }

    /// Works on the session's kept bytes in a thread's buffers; keeps the rest afterwards. `work` gets the start and
    /// end of its input, and how much of the output has been sent.
    pub(super) fn with_buffers<R>(
        &mut self,
        buffers: &mut ThreadBuffers,
        work: impl FnOnce(&mut Self, &mut ThreadBuffers, &mut usize, &mut usize, &mut usize) -> R,
    ) -> R {
        let mut have = self.input_buffer.len();
        buffers.input[..have].copy_from_slice(&self.input_buffer);
        self.input_buffer.clear();
        // The thread's own output returns to the thread: idle sessions must not keep the capacity that it has grown
        // to.
        let lent = match self.output_buffer.is_empty() {
            true => None,
            false => Some(std::mem::replace(&mut buffers.out, std::mem::take(&mut self.output_buffer))),
        };
        if self.outbox.is_empty() {
            std::mem::swap(&mut buffers.segments, &mut self.outbox);
        }
        let mut at = 0;
        let mut sent = 0;
        let result = work(self, buffers, &mut at, &mut have, &mut sent);
        self.input_buffer.extend_from_slice(&buffers.input[at..have]);
        if at == have && self.input_buffer.capacity() > 0 {
            self.input_buffer = Vec::new();
        }
        self.keep_output(buffers, lent, sent);
        if self.outbox.is_empty() {
            std::mem::swap(&mut buffers.segments, &mut self.outbox);
        }
        result
    }

    fn run_once(
        &mut self,
        buffers: &mut ThreadBuffers,
        options: RunOptions,
        at: &mut usize,
        have: &mut usize,
        sent: &mut usize,
    ) -> Next {
        let mut requests_left = REQUESTS_PER_TURN;
        let turn_ends = options.time_budget.map(|time_budget| Instant::now() + time_budget);
        let mut bytes_left = BYTES_PER_TURN;
        let mut content_left = CONTENT_PER_TURN;
        // Whether the socket is known to hold nothing more.
        let mut emptied = false;
        loop {
            if self.jobs > 0 {
                self.collect_completions(buffers);
                if self.is_abandoned {
                    return Next::Closed;
                }
            }
            if let Some(next) = self.flush(buffers, options, sent, &mut bytes_left) {
                return next;
            }
            match self.close_state {
                CloseState::No => {}
                CloseState::AfterReplies if self.jobs > 0 => return Next::Waiting,
                CloseState::AfterReplies => {
                    let _ = rustix::net::shutdown(self.socket(), rustix::net::Shutdown::Write);
                    self.close_state = CloseState::Lingering(Instant::now() + LINGER_TIMEOUT);
                    *at = *have;
                    continue;
                }
                CloseState::Lingering(_) => return self.linger(buffers, options.io_mode),
            }
            let outcome = self.process_input(buffers, options, at, *have, &mut requests_left, turn_ends);
            if !self.outbox.is_empty() || self.close_state != CloseState::No {
                continue;
            }
            if !matches!(outcome, InputOutcome::Consumed) {
                self.frame_since = None;
            }
            match outcome {
                InputOutcome::FdsUnread => return self.backoff(),
                InputOutcome::JobsPending => return Next::Waiting,
                InputOutcome::OutputFull => return Next::Yield,
                InputOutcome::Consumed => {}
            }
            let is_over = turn_ends.is_some_and(|end| Instant::now() >= end);
            if requests_left == 0 || bytes_left == 0 || content_left == 0 || is_over {
                return Next::Yield;
            }
            if self.waits_for_writers() {
                return Next::Waiting;
            }
            // From here on the session waits for the client.
            if self.frame_since.is_none() && (*at < *have || self.is_skipping()) {
                self.frame_since = Some(Instant::now());
            }
            if emptied && options.io_mode == IoMode::NonBlocking {
                return Next::Readable;
            }
            match self.read(buffers, options, at, have) {
                Ok(ReadOutcome::Requests { filled }) => emptied = !filled,
                Ok(ReadOutcome::Content(length)) => content_left = content_left.saturating_sub(length),
                Err(next) => return next,
            }
        }
    }

    /// Answers the complete requests in the input, into the outbox.
    fn process_input(
        &mut self,
        buffers: &mut ThreadBuffers,
        options: RunOptions,
        at: &mut usize,
        have: usize,
        requests_left: &mut usize,
        turn_ends: Option<Instant>,
    ) -> InputOutcome {
        self.refresh_access();
        buffers.output_limit = self.output_allowance();
        // The input is borrowed apart from the rest of the thread buffers.
        let input = std::mem::take(&mut buffers.input);
        let mut rest = &input[*at..have];
        let outcome = loop {
            if self.outbox.len() >= GATHER_SEGMENTS || self.has_gathered(buffers) {
                break InputOutcome::OutputFull;
            }
            // A thread that has no other session to run answers all requests that came together.
            if *requests_left == 0 && !rest.is_empty() && options.io_mode == IoMode::NonBlocking {
                break InputOutcome::OutputFull;
            }
            if let ProtocolState::V2(state) = &self.protocol_state
                && state.is_receiving()
            {
                self.take_content(&mut rest);
                if rest.is_empty() {
                    break InputOutcome::Consumed;
                }
                continue;
            }
            if self.jobs > 0 && self.must_wait_for_jobs(rest) {
                break if self.outbox.is_empty() {
                    InputOutcome::JobsPending
                } else {
                    InputOutcome::OutputFull
                };
            }
            if let Some(outcome) = self.over_output_budget(rest) {
                break outcome;
            }
            if self.over_budget(rest) {
                break match (self.outbox.is_empty(), self.jobs) {
                    (false, _) => InputOutcome::OutputFull,
                    (true, 0) => InputOutcome::FdsUnread,
                    (true, _) => InputOutcome::JobsPending,
                };
            }
            let step = match (&self.protocol_state, rest.first()) {
                (_, None) => FrameOutcome::More,
                (ProtocolState::Unknown(_), Some(&protocol::v2::FIRST)) => self.handshake(buffers, &mut rest),
                (ProtocolState::Unknown(_), Some(_)) => {
                    self.protocol_state = ProtocolState::V1(RequestDecoder::default());
                    self.step_v1(buffers, options, &mut rest)
                }
                (ProtocolState::V1(_), _) => self.step_v1(buffers, options, &mut rest),
                (ProtocolState::V2(_), _) => self.step_v2(buffers, options, &mut rest),
            };
            match step {
                FrameOutcome::Done => {}
                FrameOutcome::More => break InputOutcome::Consumed,
                FrameOutcome::Last | FrameOutcome::Fatal => {
                    if step == FrameOutcome::Fatal {
                        let gauges = self.service.statistics.gauges(self.transport);
                        gauges.protocol_errors_total.fetch_add(1, Relaxed);
                    }
                    self.close_state = CloseState::AfterReplies;
                    rest = &[];
                    break InputOutcome::Consumed;
                }
            }
            self.frame_since = None;
            *requests_left = requests_left.saturating_sub(1);
            if turn_ends.is_some_and(|end| Instant::now() >= end) {
                *requests_left = 0;
            }
        };
        *at = have - rest.len();
        if matches!(outcome, InputOutcome::Consumed)
            && let ProtocolState::V2(state) = &mut self.protocol_state
        {
            state.mark_parsed(!rest.is_empty());
        }
        buffers.input = input;
        outcome
    }
}
