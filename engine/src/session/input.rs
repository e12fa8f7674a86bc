//! Bytes in: reads requests, contents and descriptors.

use crate::net::socket;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::{CloseState, INPUT, Next, ProtocolState, RunOptions, Session, ThreadBuffers};
use crate::net::transport::IoMode;
use crate::protocol::{self, v2};
use crate::service::Service;

/// The result of one read.
pub(super) enum ReadOutcome {
    /// Bytes of requests; `filled` says that more may wait.
    Requests { filled: bool },
    /// This many bytes of a content; more may wait.
    Content(usize),
}

impl Session {
    /// Reads the bytes that have arrived.
    pub(super) fn read(
        &mut self,
        buffers: &mut ThreadBuffers,
        options: RunOptions,
        at: &mut usize,
        have: &mut usize,
    ) -> Result<ReadOutcome, Next> {
        if *at > 0 {
            buffers.input.copy_within(*at..*have, 0);
            *have -= *at;
            *at = 0;
        }
        let may_sleep = options.io_mode == IoMode::Blocking && self.jobs == 0 && !buffers.is_reclaimed();
        let options =
            RunOptions { io_mode: if may_sleep { IoMode::Blocking } else { IoMode::NonBlocking }, ..options };
        let is_content =
            *have == 0 && matches!(&self.protocol_state, ProtocolState::V2(state) if state.is_receiving());
        let capacity = INPUT - *have;
        let result = if is_content {
            self.receive_content(buffers, options)
        } else {
            self.receive(&mut buffers.input[*have..], options)
        };
        if self.has_passed_too_many() {
            self.service.statistics.gauges(self.transport).protocol_errors_total.fetch_add(1, Relaxed);
            return Err(Next::Closed);
        }
        match result {
            Ok(0) => Err(self.on_eof()),
            Ok(length) => {
                self.complete_at = Instant::now();
                self.moved_at = self.complete_at;
                if is_content {
                    return Ok(ReadOutcome::Content(length));
                }
                *have += length;
                let unanswered = self.jobs;
                if let ProtocolState::V2(state) = &mut self.protocol_state {
                    state.begin_window(unanswered);
                    state.has_read_all = length < capacity;
                }
                if self
                    .frame_since
                    .is_some_and(|since| self.complete_at - since > self.service.settings.header_timeout)
                {
                    self.refuse_slow_frame(buffers);
                }
                Ok(ReadOutcome::Requests { filled: length == capacity })
            }
            Err(Errno::INTR) => Ok(ReadOutcome::Requests { filled: true }),
            Err(Errno::AGAIN) => Err(Next::Readable),
            Err(_) => Err(Next::Closed),
        }
    }

    /// Reads the bytes that have arrived, with the files that the client passed along. This starts at the first byte
    /// and includes contents: a call without room for descriptors makes the kernel drop them, and the next put would
    /// get the file of the one after it.
    pub(super) fn receive(&mut self, buffer: &mut [u8], options: RunOptions) -> Result<usize, Errno> {
        if matches!(self.protocol_state, ProtocolState::V1(_))
            || !self.service.takes_descriptors(self.transport)
        {
            return receive(&self.connection.socket, buffer, options, &self.service);
        }
        if self.service.copiers.has_too_many(|| self.connection.client()) {
            // Let the kernel drop the files: that does not call their file systems, which could block.
            self.take_no_more_files();
        }
        if self.takes_no_more_files() {
            return socket::receive(&self.connection.socket, buffer, options.io_mode);
        }
        let mut files = VecDeque::new();
        let result = socket::recv_with_fds(&self.connection.socket, buffer, options.io_mode, &mut files);
        self.receive_files(files.into_iter());
        result
    }

    /// Whether the server waits for the rest of a request that has begun, and for nothing else.
    pub fn is_inside_a_frame(&self) -> bool {
        self.frame_since.is_some() && !self.input_buffer.is_empty() && self.awaits_request()
    }

    /// Whether the server waits for a request of which no byte has arrived.
    pub fn is_between_requests(&self) -> bool {
        self.input_buffer.is_empty() && !self.is_skipping() && self.awaits_request()
    }

    fn awaits_request(&self) -> bool {
        let is_receiving = matches!(&self.protocol_state, ProtocolState::V2(state) if state.is_receiving());
        !is_receiving && self.outbox.is_empty() && self.jobs == 0 && self.close_state == CloseState::No
    }

    /// Reads the bytes of a request that have arrived, and answers nothing. None: there is something to answer now.
    pub fn read_on(&mut self, buffers: &mut ThreadBuffers, options: RunOptions) -> Option<Next> {
        let result = self
            .with_buffers(buffers, |session, buffers, at, have, _| session.read(buffers, options, at, have));
        match result {
            Err(next) => Some(next),
            // Only the error message is left to send.
            Ok(_) if self.close_state != CloseState::No => Some(self.run(buffers, options)),
            Ok(_) if self.has_complete_request() => None,
            Ok(_) => {
                self.frame_since.get_or_insert(self.complete_at);
                if let ProtocolState::V2(state) = &mut self.protocol_state {
                    state.mark_parsed(true);
                }
                Some(Next::Readable)
            }
        }
    }

    fn has_complete_request(&self) -> bool {
        let mut input = &self.input_buffer[..];
        match &self.protocol_state {
            ProtocolState::Unknown(_) if input.first() == Some(&v2::FIRST) => {
                v2::decode_hello(&mut input) != v2::DecodedHello::More
            }
            ProtocolState::V2(state) => state.has_complete_request(input),
            other => {
                let mut decoder = match other {
                    ProtocolState::V1(decoder) => decoder.clone(),
                    _ => protocol::RequestDecoder::default(),
                };
                decoder.decode(&mut input) != protocol::Decoded::More || decoder.is_skipping()
            }
        }
    }

    /// Whether the decoder has skipped the front of a frame and waits for its end.
    pub(super) fn is_skipping(&self) -> bool {
        match &self.protocol_state {
            ProtocolState::Unknown(_) => false,
            ProtocolState::V1(decoder) => decoder.is_skipping(),
            ProtocolState::V2(state) => state.is_skipping(),
        }
    }

    /// The client sends nothing more, or the server has stopped reading: requests that have arrived still get
    /// answers.
    fn on_eof(&mut self) -> Next {
        self.frame_since = None;
        if self.jobs > 0 {
            self.close_state = CloseState::AfterReplies;
            return Next::Waiting;
        }
        if self.connection.is_stopped.load(Relaxed) {
            self.send_close(v2::CloseReason::ShuttingDown);
        }
        Next::Closed
    }
}

/// `recv` on a connection that passes no descriptors; spins first if the run options say so.
fn receive(
    socket: &OwnedFd,
    buffer: &mut [u8],
    options: RunOptions,
    service: &Service,
) -> Result<usize, Errno> {
    if options.io_mode == IoMode::Blocking && !options.spin.is_zero() {
        let spinners = service.spinners.fetch_add(1, Relaxed);
        let mut outcome = Err(Errno::AGAIN);
        if spinners < service.max_spinners {
            let until = Instant::now() + options.spin;
            while outcome == Err(Errno::AGAIN) && Instant::now() < until {
                outcome = socket::receive(socket, buffer, IoMode::NonBlocking);
                std::hint::spin_loop();
            }
        }
        service.spinners.fetch_sub(1, Relaxed);
        if outcome != Err(Errno::AGAIN) {
            return outcome;
        }
    }
    socket::receive(socket, buffer, options.io_mode)
}
