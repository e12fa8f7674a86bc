//! Bytes in: what one call brings, of requests, of contents, of descriptors.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::{End, INPUT, Manner, Next, Scratch, Session, Speaks};
use crate::protocol::{self, v2};
use crate::service::Service;
use crate::transport::{self, Patience};

/// What a call has read.
pub(super) enum Came {
    /// Of requests; `filled` says that there may be more.
    Requests { filled: bool },
    /// So many bytes of a content, and there may be more.
    Content(usize),
}

impl Session {
    /// Reads what has come.
    pub(super) fn read(
        &mut self,
        scratch: &mut Scratch,
        manner: Manner,
        at: &mut usize,
        have: &mut usize,
    ) -> Result<Came, Next> {
        if *at > 0 {
            scratch.input.copy_within(*at..*have, 0);
            *have -= *at;
            *at = 0;
        }
        let may_sleep = manner.patience == Patience::Wait && self.jobs == 0 && !scratch.is_recalled();
        let manner = Manner { patience: if may_sleep { Patience::Wait } else { Patience::Never }, ..manner };
        let is_content = *have == 0 && matches!(&self.speaks, Speaks::Two(two) if two.is_receiving());
        let room = INPUT - *have;
        let came = if is_content {
            self.receive_content(scratch, manner)
        } else {
            self.receive(&mut scratch.input[*have..], manner)
        };
        if self.has_passed_too_many() {
            self.service.statistics.gauges(self.transport).protocol_errors_total.fetch_add(1, Relaxed);
            return Err(Next::Closed);
        }
        match came {
            Ok(0) => Err(self.at_end()),
            Ok(length) => {
                self.complete_at = Instant::now();
                self.moved_at = self.complete_at;
                if is_content {
                    return Ok(Came::Content(length));
                }
                *have += length;
                let unanswered = self.jobs;
                if let Speaks::Two(two) = &mut self.speaks {
                    two.begin_window(unanswered);
                    two.has_read_all = length < room;
                }
                if self
                    .frame_since
                    .is_some_and(|since| self.complete_at - since > self.service.settings.header_timeout)
                {
                    self.refuse_slow_frame(scratch);
                }
                Ok(Came::Requests { filled: length == room })
            }
            Err(Errno::INTR) => Ok(Came::Requests { filled: true }),
            Err(Errno::AGAIN) => Err(Next::Readable),
            Err(_) => Err(Next::Closed),
        }
    }

    /// Reads what has come, with what a client passed along. From the first byte on, and beside contents too: a call that takes
    /// no descriptors has the kernel drop them, and the next put would get those of the one after.
    pub(super) fn receive(&mut self, buffer: &mut [u8], manner: Manner) -> Result<usize, Errno> {
        if matches!(self.speaks, Speaks::One(_)) || !self.service.takes_descriptors(self.transport) {
            return receive(&self.connection.socket, buffer, manner, &self.service);
        }
        if self.service.copiers.has_too_many(|| self.connection.client()) {
            // The kernel drops what it is not asked for, and its file system hears nothing of that.
            self.take_no_more_files();
        }
        if self.takes_no_more_files() {
            return transport::receive(&self.connection.socket, buffer, manner.patience);
        }
        let mut files = VecDeque::new();
        let came = transport::receive_carried(&self.connection.socket, buffer, manner.patience, &mut files);
        self.receive_files(files.into_iter());
        came
    }

    /// Whether the server waits for the rest of a request that has begun, and for nothing else.
    pub fn is_inside_a_frame(&self) -> bool {
        self.frame_since.is_some() && !self.kept_input.is_empty() && self.waits_for_a_request()
    }

    /// Whether it waits for a request of which nothing has come.
    pub fn is_between_requests(&self) -> bool {
        self.kept_input.is_empty() && !self.is_skipping() && self.waits_for_a_request()
    }

    fn waits_for_a_request(&self) -> bool {
        let is_receiving = matches!(&self.speaks, Speaks::Two(two) if two.is_receiving());
        !is_receiving && self.outbox.is_empty() && self.jobs == 0 && self.ending == End::No
    }

    /// Reads what has come of a request, and answers nothing. None: there is something to answer now.
    pub fn read_on(&mut self, scratch: &mut Scratch, manner: Manner) -> Option<Next> {
        let came =
            self.with(scratch, |session, scratch, at, have, _| session.read(scratch, manner, at, have));
        match came {
            Err(next) => Some(next),
            // All that is left is to say why.
            Ok(_) if self.ending != End::No => Some(self.run(scratch, manner)),
            Ok(_) if self.has_something_to_answer() => None,
            Ok(_) => {
                self.frame_since.get_or_insert(self.complete_at);
                if let Speaks::Two(two) = &mut self.speaks {
                    two.has_understood(true);
                }
                Some(Next::Readable)
            }
        }
    }

    fn has_something_to_answer(&self) -> bool {
        let mut input = &self.kept_input[..];
        match &self.speaks {
            Speaks::Nothing(_) if input.first() == Some(&v2::FIRST) => {
                v2::decode_hello(&mut input) != v2::DecodedHello::More
            }
            Speaks::Two(two) => two.has_something_to_answer(input),
            one => {
                let mut decoder = match one {
                    Speaks::One(decoder) => decoder.clone(),
                    _ => protocol::RequestDecoder::default(),
                };
                decoder.decode(&mut input) != protocol::Decoded::More || decoder.is_skipping()
            }
        }
    }

    /// Whether the front of a frame has been skipped, and its end is still to come.
    pub(super) fn is_skipping(&self) -> bool {
        match &self.speaks {
            Speaks::Nothing(_) => false,
            Speaks::One(decoder) => decoder.is_skipping(),
            Speaks::Two(two) => two.is_skipping(),
        }
    }

    /// The client sends nothing more, or has been kept from it: what it asked for is still answered.
    fn at_end(&mut self) -> Next {
        self.frame_since = None;
        if self.jobs > 0 {
            self.ending = End::AfterReplies;
            return Next::Waiting;
        }
        if self.connection.is_stopped.load(Relaxed) {
            self.say_close(v2::CloseReason::ShuttingDown);
        }
        Next::Closed
    }
}

/// `recv` on a connection that passes no descriptors, after trying for a while without sleeping where the manner says so.
fn receive(socket: &OwnedFd, buffer: &mut [u8], manner: Manner, service: &Service) -> Result<usize, Errno> {
    if manner.patience == Patience::Wait && !manner.spin.is_zero() {
        let spinners = service.spinners.fetch_add(1, Relaxed);
        let mut outcome = Err(Errno::AGAIN);
        if spinners < service.max_spinners {
            let until = Instant::now() + manner.spin;
            while outcome == Err(Errno::AGAIN) && Instant::now() < until {
                outcome = transport::receive(socket, buffer, Patience::Never);
                std::hint::spin_loop();
            }
        }
        service.spinners.fetch_sub(1, Relaxed);
        if outcome != Err(Errno::AGAIN) {
            return outcome;
        }
    }
    transport::receive(socket, buffer, manner.patience)
}
