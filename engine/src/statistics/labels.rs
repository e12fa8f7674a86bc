//! The labels of a figure, and the index of its cells.

use crate::model::Model;
use crate::net::transport::Transport;
use crate::protocol::{Operation, Status};

pub(super) const STATUSES: usize = Status::ALL.len();
const LABELS: usize = Transport::ALL.len() * Model::ALL.len() * Operation::ALL.len();
pub(super) const CELLS: usize = LABELS * STATUSES;

/// The labels of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    pub transport: Transport,
    pub model: Model,
    pub mode: ModeKey,
}

/// A mode or operation, as an ordered key.
pub type ModeKey = usize;

impl Labels {
    pub fn new(transport: Transport, model: Model, mode: Operation) -> Self {
        Labels { transport, model, mode: mode.index() }
    }

    fn index(self) -> usize {
        (self.transport.index() * Model::ALL.len() + self.model.index()) * Operation::ALL.len() + self.mode
    }

    /// The index in `CELLS` for requests with these labels and this status.
    pub(super) fn cell(self, status: Status) -> usize {
        self.index() * STATUSES + status.index()
    }

    pub(super) fn all() -> impl Iterator<Item = Labels> {
        Transport::ALL.into_iter().flat_map(|transport| {
            Model::ALL.into_iter().flat_map(move |model| {
                Operation::ALL.into_iter().map(move |mode| Labels::new(transport, model, mode))
            })
        })
    }
}
