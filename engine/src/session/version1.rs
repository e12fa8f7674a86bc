//! Version 1 in a session: one request, one reply, in order.

use super::replies::{Asked, Framing, Wanted};
use super::{Manner, Scratch, Session, Speaks, Step};
use crate::errors::Error;
use crate::journal::Note;
use crate::protocol::{Decoded, Operation, v2};

impl Session {
    /// Answers the request in front of `rest`.
    pub(super) fn step_one(&mut self, scratch: &mut Scratch, manner: Manner, rest: &mut &[u8]) -> Step {
        let Speaks::One(decoder) = &mut self.speaks else { return Step::More };
        let complete_at = self.complete_at;
        // A frame that could not be understood has no mode; it is counted with the commonest one.
        let asked = |operation, uri| Asked {
            framing: Framing::One,
            operation,
            complete_at,
            answered_at: None,
            uri: Note::of(uri),
        };
        match decoder.decode(rest) {
            Decoded::More => Step::More,
            Decoded::Request { mode, uri } => {
                let asked = asked(mode.into(), uri);
                let result = if manner.refuse {
                    Err(Error::QUEUE_FULL)
                } else {
                    let parameters = v2::Parameters::default();
                    let wanted = Wanted { asked, uri, parameters, has_priority: false, source: None };
                    self.attend(scratch, manner, wanted)
                };
                if let Err(error) = result {
                    self.push_error(scratch, asked, error);
                }
                Step::Done
            }
            Decoded::Refused(status) => {
                self.push_error(scratch, asked(Operation::FdPass, ""), Error::Refused(status));
                Step::Done
            }
            Decoded::Fatal(status) => {
                self.push_error(scratch, asked(Operation::FdPass, ""), Error::Refused(status));
                Step::Fatal
            }
        }
    }
}
