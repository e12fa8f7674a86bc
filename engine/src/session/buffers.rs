//! What a thread lends to the session that it runs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::{GATHER_BYTES, GATHER_SEGMENTS, INPUT};
use crate::concurrency::Model;
use crate::service::Service;
use crate::session::outbox::Segment;

/// Bytes of output that a thread keeps room for: at most, and while its only session is silent.
const MOST_KEPT: usize = 1 << 20;
const MOST_IDLE: usize = 16 << 10;

/// Buffers that a thread lends to whichever session it runs, so that idle sessions need none.
#[derive(Debug)]
pub struct ThreadBuffers {
    pub(super) input: Box<[u8]>,
    /// For contents that come in; empty until there is one.
    pub(super) bulk: Box<[u8]>,
    pub(super) out: Vec<u8>,
    /// How long the output may get, of what its client may have in memory.
    pub(super) room: usize,
    pub(super) path: Vec<u8>,
    pub(super) segments: VecDeque<Segment>,
    pub(super) shard: usize,
    pub(super) model: Model,
    /// When the replies that are being handed over had been put together.
    pub(super) flush_began: Instant,
    /// The time in a queue that the session that is run next has behind it; None where the model has none.
    pub queued: Option<QueueWait>,
    /// Set by others: a thread that would sleep in the session's socket gives the session back instead.
    pub recalled: Option<Arc<AtomicBool>>,
}

impl ThreadBuffers {
    pub fn new(service: &Service, model: Model) -> Self {
        Self::blank(service.statistics.assign_shard(), model)
    }

    fn blank(shard: usize, model: Model) -> Self {
        ThreadBuffers {
            input: vec![0; INPUT].into_boxed_slice(),
            bulk: Box::default(),
            out: Vec::new(),
            room: 0,
            path: Vec::new(),
            segments: VecDeque::new(),
            shard,
            model,
            flush_began: Instant::now(),
            queued: None,
            recalled: None,
        }
    }

    /// Makes everything anew but what it was made for: a panic may have left it in any state.
    pub fn renew(&mut self) {
        *self = ThreadBuffers { recalled: self.recalled.take(), ..Self::blank(self.shard, self.model) };
    }

    /// Empties the output, and keeps no more room for it than many replies need.
    pub(super) fn clear_out(&mut self) {
        self.out.clear();
        if self.out.capacity() > MOST_KEPT {
            self.out.shrink_to(GATHER_BYTES);
        }
    }

    /// Frees what the last requests made the buffers grow to, for a thread that keeps them for one silent client.
    pub fn trim(&mut self, service: &Service) {
        let before = self.bulk.len() + self.out.capacity();
        if before > MOST_IDLE {
            self.bulk = Box::default();
            self.out.shrink_to(MOST_IDLE);
            self.segments.shrink_to(GATHER_SEGMENTS);
            service.output.note_freed(before - self.out.capacity());
        }
    }

    pub fn is_reclaimed(&self) -> bool {
        self.recalled.as_ref().is_some_and(|recalled| recalled.load(Relaxed))
    }
}

/// How long a session has waited in a queue, and when it came out of it.
#[derive(Debug, Clone, Copy)]
pub struct QueueWait {
    pub wait: Duration,
    pub until: Instant,
}
