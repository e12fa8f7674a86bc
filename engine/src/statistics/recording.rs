//! The recording side: a serving thread makes a few relaxed additions in its own shard, without a lock.

use histogram::AtomicHistogram;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::protocol::Status;
use crate::statistics::histograms::{config, nanoseconds};
use crate::statistics::labels::{CELLS, Labels};

/// One answered request.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    pub labels: Labels,
    pub status: Status,
    /// From the complete request to the last byte passed to the kernel, including the wait in a queue.
    pub latency: Duration,
    /// None where the model has no queue.
    pub queue_wait: Option<Duration>,
    /// Bytes of content.
    pub bytes: u64,
}

/// The figures of one combination of labels and one status, in one shard. The histogram's count is the number
/// of requests.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) latency: AtomicHistogram,
    pub(super) queue_wait: AtomicHistogram,
    pub(super) bytes: AtomicU64,
}

impl Cell {
    fn new() -> Box<Self> {
        Box::new(Cell {
            latency: AtomicHistogram::with_config(config()),
            queue_wait: AtomicHistogram::with_config(config()),
            bytes: AtomicU64::new(0),
        })
    }
}

// Padded, so that two cores never write to one cache line (nor to its prefetched neighbour).
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Shard {
    pub(super) cache_hits: AtomicU64,
    pub(super) cache_misses: AtomicU64,
    // The cells of one combination of labels lie together, one for each status.
    cells: [OnceLock<Box<Cell>>; CELLS],
}

impl Shard {
    pub(super) fn new() -> Self {
        Shard {
            cache_hits: AtomicU64::new(0),
            cache_misses: AtomicU64::new(0),
            cells: [const { OnceLock::new() }; CELLS],
        }
    }

    pub(super) fn record(&self, answered: &Answered) {
        let at = answered.labels.cell(answered.status);
        let cell = self.cells[at].get_or_init(Cell::new);
        // Adding to a histogram fails only for a value over its range, and `nanoseconds` limits it.
        let _ = cell.latency.increment(nanoseconds(answered.latency));
        if let Some(wait) = answered.queue_wait {
            let _ = cell.queue_wait.increment(nanoseconds(wait));
        }
        if answered.bytes > 0 {
            cell.bytes.fetch_add(answered.bytes, Relaxed);
        }
    }

    pub(super) fn record_cache(&self, hit: bool) {
        if hit { &self.cache_hits } else { &self.cache_misses }.fetch_add(1, Relaxed);
    }

    /// None where this shard has recorded no such request.
    pub(super) fn cell(&self, labels: Labels, status: Status) -> Option<&Cell> {
        self.cells[labels.cell(status)].get().map(Box::as_ref)
    }
}
