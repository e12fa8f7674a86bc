//! The totals of one combination of labels: since start, and second by second for the last minute.

use histogram::{Histogram, SparseHistogram};
use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;

use crate::protocol::Status;
use crate::statistics::histograms::{add_histogram, add_sparse, config, difference};
use crate::statistics::labels::STATUSES;
use crate::statistics::recording::Cell;

pub(super) const WINDOW_SECONDS: usize = 60;
const RATE_SECONDS: usize = 10;

/// Cumulative figures, merged over the shards.
#[derive(Debug, Clone)]
pub(super) struct Totals {
    pub(super) latency: Histogram,
    pub(super) queue_wait: Histogram,
    pub(super) bytes: u64,
    pub(super) statuses: [u64; STATUSES],
}

impl Totals {
    pub(super) fn nothing() -> Self {
        Totals {
            latency: Histogram::with_config(config()),
            queue_wait: Histogram::with_config(config()),
            bytes: 0,
            statuses: [0; STATUSES],
        }
    }

    pub(super) fn from_cell(cell: &Cell, status: Status) -> Self {
        let mut totals = Totals {
            latency: cell.latency.load(),
            queue_wait: cell.queue_wait.load(),
            bytes: cell.bytes.load(Relaxed),
            statuses: [0; STATUSES],
        };
        totals.statuses[status.index()] = totals.latency.as_slice().iter().sum();
        totals
    }

    pub(super) fn requests(&self) -> u64 {
        self.statuses.iter().sum()
    }

    /// The sum of both.
    pub(super) fn and(mut self, other: Totals) -> Self {
        self.add(&other);
        self
    }

    fn add(&mut self, other: &Totals) {
        add_histogram(&mut self.latency, &other.latency);
        add_histogram(&mut self.queue_wait, &other.queue_wait);
        self.bytes += other.bytes;
        for (mine, theirs) in self.statuses.iter_mut().zip(other.statuses) {
            *mine += theirs;
        }
    }
}

/// The differences between one second and the next.
#[derive(Debug)]
pub(super) struct History {
    last: Totals,
    seconds: VecDeque<Second>,
}

#[derive(Debug)]
struct Second {
    latency: SparseHistogram,
    queue_wait: SparseHistogram,
    requests: u64,
    bytes: u64,
}

impl History {
    pub(super) fn new() -> Self {
        History { last: Totals::nothing(), seconds: VecDeque::with_capacity(WINDOW_SECONDS) }
    }

    /// Ends `seconds` seconds: all but the last count as empty, so that no request leaves the window early.
    pub(super) fn tick(&mut self, now: Totals, seconds: u64) {
        let missed = seconds.saturating_sub(1).min(WINDOW_SECONDS as u64);
        for _ in 0..missed {
            self.push(Second::default());
        }
        self.push(Second {
            latency: SparseHistogram::from(&difference(&now.latency, &self.last.latency)),
            queue_wait: SparseHistogram::from(&difference(&now.queue_wait, &self.last.queue_wait)),
            requests: now.requests() - self.last.requests(),
            bytes: now.bytes - self.last.bytes,
        });
        self.last = now;
    }

    fn push(&mut self, second: Second) {
        if self.seconds.len() == WINDOW_SECONDS {
            self.seconds.pop_front();
        }
        self.seconds.push_back(second);
    }
}

impl Default for Second {
    fn default() -> Self {
        let nothing = || SparseHistogram::from(&Histogram::with_config(config()));
        Second { latency: nothing(), queue_wait: nothing(), requests: 0, bytes: 0 }
    }
}

/// Totals since start beside those of the window.
pub(super) struct Sum {
    pub(super) since_start: Totals,
    pub(super) window: Totals,
    pub(super) recent_requests: u64,
    pub(super) recent_bytes: u64,
    pub(super) recent_seconds: usize,
}

impl Sum {
    pub(super) fn nothing() -> Self {
        Sum {
            since_start: Totals::nothing(),
            window: Totals::nothing(),
            recent_requests: 0,
            recent_bytes: 0,
            recent_seconds: 0,
        }
    }

    pub(super) fn new(now: Totals, history: Option<&History>) -> Self {
        let mut sum = Sum::nothing();
        match history {
            None => sum.window = now.clone(),
            Some(history) => {
                // The requests since the last tick, and the seconds before.
                add_histogram(&mut sum.window.latency, &difference(&now.latency, &history.last.latency));
                add_histogram(
                    &mut sum.window.queue_wait,
                    &difference(&now.queue_wait, &history.last.queue_wait),
                );
                for second in &history.seconds {
                    add_sparse(&mut sum.window.latency, &second.latency);
                    add_sparse(&mut sum.window.queue_wait, &second.queue_wait);
                }
                for second in history.seconds.iter().rev().take(RATE_SECONDS) {
                    sum.recent_requests += second.requests;
                    sum.recent_bytes += second.bytes;
                    sum.recent_seconds += 1;
                }
            }
        }
        sum.since_start = now;
        sum
    }

    pub(super) fn add(&mut self, other: &Sum) {
        self.since_start.add(&other.since_start);
        self.window.add(&other.window);
        self.recent_requests += other.recent_requests;
        self.recent_bytes += other.recent_bytes;
        self.recent_seconds = self.recent_seconds.max(other.recent_seconds);
    }
}
