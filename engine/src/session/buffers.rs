//! Buffers that a thread lends to the session that it runs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::INPUT;
use crate::model::Model;
use crate::service::Service;
use crate::session::outbox::Segment;
use crate::session::run::{GATHER_BYTES, GATHER_SEGMENTS};

/// A thread keeps at most this many bytes of output capacity, and this many while its only session is silent.
const MAX_KEPT: usize = 1 << 20;
const MAX_IDLE: usize = 16 << 10;

/// Buffers that a thread lends to each session that it runs, so that idle sessions need none.
#[derive(Debug)]
pub struct ThreadBuffers {
    pub(super) input: Box<[u8]>,
    /// For incoming contents; empty until there is one.
    pub(super) bulk: Box<[u8]>,
    pub(super) out: Vec<u8>,
    /// The length up to which the output may grow, of the memory that the client may have.
    pub(super) output_limit: usize,
    pub(super) path: Vec<u8>,
    pub(super) segments: VecDeque<Segment>,
    pub(super) shard: usize,
    pub(super) model: Model,
    /// When the session had assembled the replies that it is sending.
    pub(super) flush_began: Instant,
    /// How long the session that runs next has waited in a queue; None for a model without a queue.
    pub queued: Option<QueueWait>,
    /// Set by other threads: a thread that would sleep in the session's socket returns the session instead.
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
            output_limit: 0,
            path: Vec::new(),
            segments: VecDeque::new(),
            shard,
            model,
            flush_began: Instant::now(),
            queued: None,
            recalled: None,
        }
    }

    /// Replaces all buffers, and keeps the thread's shard, model and recall flag: a panic may have left the buffers
    /// in any state.
    pub fn renew(&mut self) {
        *self = ThreadBuffers { recalled: self.recalled.take(), ..Self::blank(self.shard, self.model) };
    }

    /// Empties the output, and keeps at most the capacity that many replies need.
    pub(super) fn clear_out(&mut self) {
        self.out.clear();
        if self.out.capacity() > MAX_KEPT {
            self.out.shrink_to(GATHER_BYTES);
        }
    }

    /// Frees what the last requests made the buffers grow to; a thread with one silent client calls this.
    pub fn trim(&mut self, service: &Service) {
        let before = self.bulk.len() + self.out.capacity();
        if before > MAX_IDLE {
            self.bulk = Box::default();
            self.out.shrink_to(MAX_IDLE);
            self.segments.shrink_to(GATHER_SEGMENTS);
            service.output.note_freed(before - self.out.capacity());
        }
    }

    pub fn is_reclaimed(&self) -> bool {
        self.recalled.as_ref().is_some_and(|recalled| recalled.load(Relaxed))
    }
}

/// How long a session waited in a queue, and when it left the queue.
#[derive(Debug, Clone, Copy)]
pub struct QueueWait {
    pub wait: Duration,
    pub until: Instant,
}
