//! Histograms and counters: serving threads write them, and a reader merges them.
//!
//! The number of shards is fixed, so that a thousand threads do not cost a thousand histograms. To record, a
//! thread makes a few relaxed atomic additions in its own shard, without a lock. The last minute is 60
//! differences between cumulative histograms, one a second, so that it costs the serving threads nothing.

mod buckets;
mod figures;
mod gauges;
mod histograms;
mod labels;
mod percentiles;
mod recording;
mod totals;

pub use buckets::{CountedUpTo, Cumulative};
pub use figures::Figures;
pub use gauges::Gauges;
pub use labels::Labels;
pub use percentiles::Percentiles;
pub use recording::Answered;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::net::transport::Transport;
use crate::protocol::{Operation, Status};
use crate::sync::unpoisoned;
use recording::Shard;
use totals::{History, Sum, Totals};

#[derive(Debug)]
pub struct Statistics {
    started: Instant,
    shards: Box<[Shard]>,
    next_shard: AtomicUsize,
    gauges: [Gauges; Transport::ALL.len()],
    history: Mutex<BTreeMap<Labels, History>>,
}

/// How often a requested object was in memory.
#[derive(Debug, Clone, Copy)]
pub struct CacheCounts {
    pub hits: u64,
    pub misses: u64,
}

impl Statistics {
    pub fn new() -> Self {
        let shards = crate::settings::cores().next_power_of_two().min(16);
        Statistics {
            started: Instant::now(),
            shards: (0..shards).map(|_| Shard::new()).collect(),
            next_shard: AtomicUsize::new(0),
            gauges: Default::default(),
            history: Mutex::new(BTreeMap::new()),
        }
    }

    pub fn gauges(&self, transport: Transport) -> &Gauges {
        &self.gauges[transport.index()]
    }

    /// The shard that a new thread records in.
    pub fn assign_shard(&self) -> usize {
        self.next_shard.fetch_add(1, Relaxed) % self.shards.len()
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Counts one answered request, without a lock.
    pub fn record(&self, shard: usize, answered: &Answered) {
        self.shards[shard].record(answered);
    }

    pub fn record_cache(&self, shard: usize, hit: bool) {
        self.shards[shard].record_cache(hit);
    }

    pub fn cache_counts(&self) -> CacheCounts {
        let sum = |counter: fn(&Shard) -> &AtomicU64| {
            self.shards.iter().map(|shard| counter(shard).load(Relaxed)).sum()
        };
        CacheCounts { hits: sum(|shard| &shard.cache_hits), misses: sum(|shard| &shard.cache_misses) }
    }

    /// Ends a second of the window, or several where the clock's thread was delayed for as long: their
    /// requests count for the last of them. One thread calls this once a second.
    pub fn tick(&self, seconds: u64) {
        let mut history = unpoisoned(self.history.lock());
        for labels in Labels::all() {
            if let Some(now) = self.totals(labels) {
                history.entry(labels).or_insert_with(History::new).tick(now, seconds);
            }
        }
    }

    /// All figures: the total, by transport, by model, by mode, and each combination in use.
    pub fn figures(&self) -> Vec<Figures> {
        let history = unpoisoned(self.history.lock());
        let uptime = self.uptime();
        let cells: Vec<(Labels, Sum)> = Labels::all()
            .filter_map(|labels| {
                let now = self.totals(labels)?;
                Some((labels, Sum::new(now, history.get(&labels))))
            })
            .collect();
        drop(history);
        Figures::all(&cells, uptime)
    }

    /// The times since start of every combination of labels and status in use, counted up to each bound (in
    /// microseconds, ascending).
    pub fn counted_up_to(&self, bounds_us: &[f64]) -> Vec<CountedUpTo> {
        let all =
            Labels::all().flat_map(|labels| Status::ALL.into_iter().map(move |status| (labels, status)));
        all.filter_map(|(labels, status)| {
            let totals = self.totals_with(labels, status)?;
            Some(CountedUpTo {
                transport: labels.transport.name(),
                model: labels.model.name(),
                mode: Operation::ALL[labels.mode].name(),
                status: status as u8,
                bytes: totals.bytes,
                latency: Cumulative::from_histogram(&totals.latency, bounds_us),
                queue_wait: Cumulative::from_histogram(&totals.queue_wait, bounds_us),
            })
        })
        .collect()
    }

    /// The merged figures since start; None where the server has answered no such request.
    fn totals(&self, labels: Labels) -> Option<Totals> {
        let all = Status::ALL.into_iter().filter_map(|status| self.totals_with(labels, status));
        all.reduce(Totals::and)
    }

    fn totals_with(&self, labels: Labels, status: Status) -> Option<Totals> {
        let cells = self.shards.iter().filter_map(|shard| shard.cell(labels, status));
        cells.map(|cell| Totals::from_cell(cell, status)).reduce(Totals::and)
    }
}

impl Default for Statistics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
#[path = "statistics_tests.rs"]
mod tests;
