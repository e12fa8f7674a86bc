//! Histograms and counters: written by the threads that serve, merged by whoever reads.
//!
//! A fixed number of shards, not one a thread: a thousand threads must not cost a thousand histograms. Recording is a few
//! relaxed atomic additions in one's own shard, without a lock. The last minute is kept as 60 differences between
//! cumulative histograms, one a second, so that the serving threads never know of it.
//!
//! The histograms are base-2 log-linear (H2: <https://h2histogram.org>), a relative error of 1.6 %.

use histogram::{AtomicHistogram, Config, Histogram, SparseHistogram};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::buckets::{CountedUpTo, Cumulative};
use crate::concurrency::Model;
use crate::protocol::{Operation, Status};
use crate::transport::Transport;

/// 2^-6: 1.6 %.
const GROUPING_POWER: u8 = 6;
/// 2^36 ns: 68 s. What took longer counts as that.
const MAX_VALUE_POWER: u8 = 36;
const MAX_VALUE: u64 = (1 << MAX_VALUE_POWER) - 1;
const WINDOW_SECONDS: usize = 60;
const RATE_SECONDS: usize = 10;
const STATUSES: usize = Status::ALL.len();
const LABELS: usize = Transport::ALL.len() * Model::ALL.len() * Operation::ALL.len();
const CELLS: usize = LABELS * STATUSES;

/// Which requests a figure is about.
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

    fn all() -> impl Iterator<Item = Labels> {
        Transport::ALL.into_iter().flat_map(|transport| {
            Model::ALL.into_iter().flat_map(move |model| {
                Operation::ALL.into_iter().map(move |mode| Labels::new(transport, model, mode))
            })
        })
    }
}

/// One answered request.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    pub labels: Labels,
    pub status: Status,
    /// From the complete request to the last byte handed to the kernel, the wait in a queue included.
    pub latency: Duration,
    /// None where the model has no queue.
    pub queue_wait: Option<Duration>,
    /// Bytes of content.
    pub bytes: u64,
}

/// The figures of one combination of labels and one status, in one shard. How many there were is how many times there are.
#[derive(Debug)]
struct Cell {
    latency: AtomicHistogram,
    queue_wait: AtomicHistogram,
    bytes: AtomicU64,
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
struct Shard {
    cache_hits: AtomicU64,
    cache_misses: AtomicU64,
    // Those of one combination of labels lie together, a place for each status.
    cells: [OnceLock<Box<Cell>>; CELLS],
}

/// Gauges and counters of one transport that are not about single requests.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Gauges {
    pub connections: AtomicUsize,
    pub connections_total: AtomicU64,
    pub connections_waiting: AtomicUsize,
    pub active_threads: AtomicUsize,
    pub queue_depth: AtomicUsize,
    pub queue_depth_max: AtomicUsize,
    pub rejected_total: AtomicU64,
    pub accept_failures_total: AtomicU64,
    pub timeouts_total: AtomicU64,
    pub protocol_errors_total: AtomicU64,
    pub steals_total: AtomicU64,
    pub parks_total: AtomicU64,
}

#[derive(Debug)]
pub struct Statistics {
    started: Instant,
    shards: Box<[Shard]>,
    next_shard: AtomicUsize,
    gauges: [Gauges; Transport::ALL.len()],
    history: Mutex<BTreeMap<Labels, History>>,
}

/// What one combination of labels came to, second by second.
#[derive(Debug)]
struct History {
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

/// Cumulative figures, merged over the shards.
#[derive(Debug, Clone)]
struct Totals {
    latency: Histogram,
    queue_wait: Histogram,
    bytes: u64,
    statuses: [u64; STATUSES],
}

impl Totals {
    fn nothing() -> Self {
        Totals {
            latency: Histogram::with_config(config()),
            queue_wait: Histogram::with_config(config()),
            bytes: 0,
            statuses: [0; STATUSES],
        }
    }

    fn requests(&self) -> u64 {
        self.statuses.iter().sum()
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

/// A distribution in microseconds; all 0 where nothing was counted.
#[derive(Debug, Clone, Default)]
#[cfg_attr(feature = "python", derive(pyo3::IntoPyObject))]
pub struct Percentiles {
    pub count: u64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

/// The figures of all requests that carry the labels; None means "any".
#[derive(Debug, Clone)]
#[cfg_attr(feature = "python", derive(pyo3::IntoPyObject))]
pub struct Figures {
    pub transport: Option<&'static str>,
    pub model: Option<&'static str>,
    pub mode: Option<&'static str>,
    pub requests_total: u64,
    pub bytes_total: u64,
    /// Status byte → how many.
    pub errors_total: BTreeMap<u8, u64>,
    pub requests_per_sec: f64,
    pub bytes_per_sec: f64,
    pub latency: Percentiles,
    pub latency_since_start: Percentiles,
    pub queue_wait: Percentiles,
    pub queue_wait_since_start: Percentiles,
}

/// How often an object was in memory when it was asked for.
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
            shards: (0..shards)
                .map(|_| Shard {
                    cache_hits: AtomicU64::new(0),
                    cache_misses: AtomicU64::new(0),
                    cells: [const { OnceLock::new() }; CELLS],
                })
                .collect(),
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

    /// Counts one answered request. Lock-free.
    pub fn record(&self, shard: usize, answered: &Answered) {
        let at = answered.labels.index() * STATUSES + answered.status.index();
        let cell = self.shards[shard].cells[at].get_or_init(Cell::new);
        // Adding to a histogram fails only for a value over its range, and that is cut off first.
        let _ = cell.latency.increment(nanoseconds(answered.latency));
        if let Some(wait) = answered.queue_wait {
            let _ = cell.queue_wait.increment(nanoseconds(wait));
        }
        if answered.bytes > 0 {
            cell.bytes.fetch_add(answered.bytes, Relaxed);
        }
    }

    pub fn record_cache(&self, shard: usize, hit: bool) {
        let shard = &self.shards[shard];
        if hit { &shard.cache_hits } else { &shard.cache_misses }.fetch_add(1, Relaxed);
    }

    pub fn cache_counts(&self) -> CacheCounts {
        let sum = |counter: fn(&Shard) -> &AtomicU64| {
            self.shards.iter().map(|shard| counter(shard).load(Relaxed)).sum()
        };
        CacheCounts { hits: sum(|shard| &shard.cache_hits), misses: sum(|shard| &shard.cache_misses) }
    }

    /// Ends a second of the window. Called once a second, by one thread.
    pub fn tick(&self) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        for labels in Labels::all() {
            let Some(now) = self.totals(labels) else { continue };
            let entry = history.entry(labels).or_insert_with(|| History {
                last: Totals::nothing(),
                seconds: VecDeque::with_capacity(WINDOW_SECONDS),
            });
            if entry.seconds.len() == WINDOW_SECONDS {
                entry.seconds.pop_front();
            }
            entry.seconds.push_back(Second {
                latency: SparseHistogram::from(&difference(&now.latency, &entry.last.latency)),
                queue_wait: SparseHistogram::from(&difference(&now.queue_wait, &entry.last.queue_wait)),
                requests: now.requests() - entry.last.requests(),
                bytes: now.bytes - entry.last.bytes,
            });
            entry.last = now;
        }
    }

    /// All figures: the total, by transport, by model, by mode, and each combination that was used.
    pub fn figures(&self) -> Vec<Figures> {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let uptime = self.uptime();
        let cells: Vec<(Labels, Sum)> = Labels::all()
            .filter_map(|labels| {
                let now = self.totals(labels)?;
                Some((labels, Sum::of(now, history.get(&labels))))
            })
            .collect();
        drop(history);
        let gather = |transport: Option<Transport>, model: Option<Model>, mode: Option<usize>| {
            let mut sum = Sum::nothing();
            for (labels, cell) in &cells {
                let fits = transport.is_none_or(|wanted| wanted == labels.transport)
                    && model.is_none_or(|wanted| wanted == labels.model)
                    && mode.is_none_or(|wanted| wanted == labels.mode);
                if fits {
                    sum.add(cell);
                }
            }
            sum.figures(transport, model, mode, uptime)
        };
        let mut all = vec![gather(None, None, None)];
        all.extend(Transport::ALL.map(|transport| gather(Some(transport), None, None)));
        all.extend(Model::ALL.map(|model| gather(None, Some(model), None)));
        all.extend(Operation::ALL.map(|mode| gather(None, None, Some(mode.index()))));
        all.extend(
            cells
                .iter()
                .map(|(labels, _)| gather(Some(labels.transport), Some(labels.model), Some(labels.mode))),
        );
        all
    }

    /// The times of every combination of labels and status that was used, since start, counted up to each bound (in
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
                latency: Cumulative::of(&totals.latency, bounds_us),
                queue_wait: Cumulative::of(&totals.queue_wait, bounds_us),
            })
        })
        .collect()
    }

    /// The merged figures since start; None where no such request was ever answered.
    fn totals(&self, labels: Labels) -> Option<Totals> {
        let mut found = Status::ALL.into_iter().filter_map(|status| self.totals_with(labels, status));
        let first = found.next()?;
        Some(found.fold(first, |mut sum, each| {
            sum.add(&each);
            sum
        }))
    }

    fn totals_with(&self, labels: Labels, status: Status) -> Option<Totals> {
        let at = labels.index() * STATUSES + status.index();
        let mut sum: Option<Totals> = None;
        for cell in self.shards.iter().filter_map(|shard| shard.cells[at].get()) {
            let mut here = Totals {
                latency: cell.latency.load(),
                queue_wait: cell.queue_wait.load(),
                bytes: cell.bytes.load(Relaxed),
                statuses: [0; STATUSES],
            };
            here.statuses[status.index()] = here.latency.as_slice().iter().sum();
            match &mut sum {
                Some(sum) => sum.add(&here),
                None => sum = Some(here),
            }
        }
        sum
    }
}

impl Default for Statistics {
    fn default() -> Self {
        Self::new()
    }
}

/// Totals since start beside those of the window.
struct Sum {
    since_start: Totals,
    window: Totals,
    recent_requests: u64,
    recent_bytes: u64,
    recent_seconds: usize,
}

impl Sum {
    fn nothing() -> Self {
        Sum {
            since_start: Totals::nothing(),
            window: Totals::nothing(),
            recent_requests: 0,
            recent_bytes: 0,
            recent_seconds: 0,
        }
    }

    fn of(now: Totals, history: Option<&History>) -> Self {
        let mut sum = Sum::nothing();
        match history {
            None => sum.window = now.clone(),
            Some(history) => {
                // What came since the last tick, and the seconds before.
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

    fn add(&mut self, other: &Sum) {
        self.since_start.add(&other.since_start);
        self.window.add(&other.window);
        self.recent_requests += other.recent_requests;
        self.recent_bytes += other.recent_bytes;
        self.recent_seconds = self.recent_seconds.max(other.recent_seconds);
    }

    fn figures(
        &self,
        transport: Option<Transport>,
        model: Option<Model>,
        mode: Option<usize>,
        uptime: Duration,
    ) -> Figures {
        let totals = &self.since_start;
        let rate = |recent: u64, total: u64| match self.recent_seconds {
            // Not a whole second yet.
            0 => total as f64 / uptime.as_secs_f64().max(1e-3),
            seconds => recent as f64 / seconds as f64,
        };
        let errors_total = Status::ALL
            .into_iter()
            .filter(|&status| status != Status::Ok && totals.statuses[status.index()] > 0)
            .map(|status| (status as u8, totals.statuses[status.index()]))
            .collect();
        Figures {
            transport: transport.map(Transport::name),
            model: model.map(Model::name),
            mode: mode.map(|index| Operation::ALL[index].name()),
            requests_total: totals.requests(),
            bytes_total: totals.bytes,
            errors_total,
            requests_per_sec: rate(self.recent_requests, totals.requests()),
            bytes_per_sec: rate(self.recent_bytes, totals.bytes),
            latency: percentiles(&self.window.latency),
            latency_since_start: percentiles(&totals.latency),
            queue_wait: percentiles(&self.window.queue_wait),
            queue_wait_since_start: percentiles(&totals.queue_wait),
        }
    }
}

fn config() -> &'static Config {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    CONFIG.get_or_init(|| match Config::new(GROUPING_POWER, MAX_VALUE_POWER) {
        Ok(config) => config,
        Err(error) => unreachable!("the constants are in range: {error}"),
    })
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(MAX_VALUE).min(MAX_VALUE)
}

fn add_histogram(sum: &mut Histogram, other: &Histogram) {
    for (mine, theirs) in sum.as_mut_slice().iter_mut().zip(other.as_slice()) {
        *mine += theirs;
    }
}

fn add_sparse(sum: &mut Histogram, other: &SparseHistogram) {
    let counts = sum.as_mut_slice();
    for (&bucket, &count) in other.index().iter().zip(other.count()) {
        counts[bucket as usize] += count;
    }
}

/// `now` − `before`, never under 0: the shards are read one counter after the other, while they are written.
fn difference(now: &Histogram, before: &Histogram) -> Histogram {
    let mut difference = now.clone();
    for (mine, theirs) in difference.as_mut_slice().iter_mut().zip(before.as_slice()) {
        *mine = mine.saturating_sub(*theirs);
    }
    difference
}

/// The distribution in microseconds, each bucket counted as its middle.
pub fn percentiles(histogram: &Histogram) -> Percentiles {
    let ranks = [0.5, 0.99, 0.999, 1.0];
    let (mut at, mut seen, mut weighted) = ([0.0; 4], 0u64, 0.0);
    let total: u64 = histogram.as_slice().iter().sum();
    if total == 0 {
        return Percentiles::default();
    }
    for bucket in histogram.iter().filter(|bucket| bucket.count() > 0) {
        let middle = (bucket.start() + bucket.end()) as f64 / 2.0 / 1000.0;
        weighted += middle * bucket.count() as f64;
        let before = seen;
        seen += bucket.count();
        for (rank, value) in ranks.iter().zip(&mut at) {
            let wanted = (rank * total as f64).ceil().max(1.0) as u64;
            if before < wanted && wanted <= seen {
                *value = middle;
            }
        }
    }
    let [p50_us, p99_us, p999_us, max_us] = at;
    Percentiles { count: total, mean_us: weighted / total as f64, p50_us, p99_us, p999_us, max_us }
}

#[cfg(test)]
#[path = "statistics_tests.rs"]
mod tests;
