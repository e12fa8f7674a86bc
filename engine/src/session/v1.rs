//! Version 1 in a session: one request, one reply, in order.

use super::{ProtocolState, RunOptions, Session, ThreadBuffers};
use crate::errors::Error;
use crate::protocol::{Decoded, Operation, v2};
use crate::request_log::UriTail;
use crate::session::dispatch::{ParsedRequest, RequestContext};
use crate::session::reply::Framing;
use crate::session::run::FrameOutcome;

impl Session {
    /// Answers the request in front of `rest`.
    pub(super) fn step_v1(
        &mut self,
        buffers: &mut ThreadBuffers,
        options: RunOptions,
        rest: &mut &[u8],
    ) -> FrameOutcome {
        let ProtocolState::V1(decoder) = &mut self.protocol_state else { return FrameOutcome::More };
        let complete_at = self.complete_at;
        // A frame that the decoder cannot understand has no mode; it counts under the most common one.
        let context = |operation, uri| RequestContext {
            framing: Framing::V1,
            operation,
            complete_at,
            answered_at: None,
            uri: UriTail::from_uri(uri),
        };
        match decoder.decode(rest) {
            Decoded::More => FrameOutcome::More,
            Decoded::Request { mode, uri } => {
                let context = context(mode.into(), uri);
                let result = if options.reject {
                    Err(Error::QUEUE_FULL)
                } else {
                    let parameters = v2::Parameters::default();
                    let request =
                        ParsedRequest { context, uri, parameters, has_priority: false, source: None };
                    self.handle(buffers, options, request)
                };
                if let Err(error) = result {
                    self.push_error(buffers, context, error);
                }
                FrameOutcome::Done
            }
            Decoded::Refused(status) => {
                self.push_error(buffers, context(Operation::FdPass, ""), Error::Refused(status));
                FrameOutcome::Done
            }
            Decoded::Fatal(status) => {
                self.push_error(buffers, context(Operation::FdPass, ""), Error::Refused(status));
                FrameOutcome::Fatal
            }
        }
    }
}
