//! Single requests kept for inspection: the slowest of the last minute, those slower than a watcher's limit, and a
//! sample of all.
//!
//! A request that is not kept costs the serving thread two comparisons; a kept one costs a lock and an allocation.

use crate::net::credentials;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use std::net::SocketAddr;

use rustix::fd::OwnedFd;

use crate::net::transport::Transport;
use crate::sync::unpoisoned;

/// The slowest requests are kept in BUCKETS buckets of SLOWEST each; together they cover a minute.
const SLOWEST: usize = 32;
const BUCKET: Duration = Duration::from_secs(10);
const BUCKETS: usize = 6;
/// Records that wait for a reader; older ones are lost.
const MAX_KEPT: usize = 8192;
/// Counters for the sample: up to this many threads count without sharing one.
const COUNTERS: usize = 16;
/// How many bytes of a URI's end are kept.
const TAIL: usize = 95;

/// The end of a URI, held without an allocation.
#[derive(Clone, Copy)]
pub struct UriTail {
    length: u8,
    is_cut: bool,
    tail: [u8; TAIL],
}

impl UriTail {
    pub fn from_uri(uri: &str) -> Self {
        let mut start = uri.len().saturating_sub(TAIL);
        while !uri.is_char_boundary(start) {
            start += 1;
        }
        let kept = &uri.as_bytes()[start..];
        let mut tail = [0; TAIL];
        tail[..kept.len()].copy_from_slice(kept);
        UriTail { length: kept.len() as u8, is_cut: start > 0, tail }
    }

    fn text(&self) -> String {
        let kept = String::from_utf8_lossy(&self.tail[..usize::from(self.length)]);
        if self.is_cut { format!("…{kept}") } else { kept.into_owned() }
    }
}

impl std::fmt::Display for UriTail {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.text())
    }
}

impl std::fmt::Debug for UriTail {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.text().fmt(out)
    }
}

/// The peer that sent the request; formatted only if the request is kept.
#[derive(Debug, Clone, Copy)]
pub enum PeerRef<'a> {
    Connection(&'a OwnedFd),
    Address(SocketAddr),
}

/// An answered request, and how its time divided.
#[derive(Debug)]
pub struct CompletedRequest<'a> {
    /// The thread's shard, as in the statistics.
    pub shard: usize,
    pub uri: &'a UriTail,
    pub from: PeerRef<'a>,
    pub transport: Transport,
    pub operation: &'static str,
    pub model: &'static str,
    pub status: u8,
    pub bytes: u64,
    /// Time in a queue; in finding the object, including the wait for the disk; in handing the answer to the kernel.
    pub queue: Duration,
    pub storage: Duration,
    pub send: Duration,
}

impl CompletedRequest<'_> {
    fn total(&self) -> Duration {
        self.queue + self.storage + self.send
    }
}

/// The same, in a form that can be kept.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "python", derive(pyo3::IntoPyObject))]
pub struct Record {
    /// Rises by one with each record that clients fetch by number; 0 for the slowest.
    pub number: u64,
    /// The time of the answer, in seconds since 1970.
    pub at: f64,
    pub uri: String,
    pub peer: String,
    pub transport: &'static str,
    pub mode: &'static str,
    pub model: &'static str,
    pub status: u8,
    pub bytes: u64,
    pub total_us: f64,
    pub queue_us: f64,
    pub storage_us: f64,
    pub send_us: f64,
}

impl Record {
    fn from_request(request: &CompletedRequest<'_>) -> Self {
        let microseconds = |time: Duration| time.as_nanos() as f64 / 1000.0;
        Record {
            number: 0,
            at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            uri: request.uri.text(),
            peer: match request.from {
                PeerRef::Connection(socket) => credentials::peer(socket, request.transport),
                PeerRef::Address(address) => address.to_string(),
            },
            transport: request.transport.name(),
            mode: request.operation,
            model: request.model,
            status: request.status,
            bytes: request.bytes,
            total_us: microseconds(request.total()),
            queue_us: microseconds(request.queue),
            storage_us: microseconds(request.storage),
            send_us: microseconds(request.send),
        }
    }
}

#[derive(Debug)]
pub struct RequestLog {
    /// Nanoseconds: faster requests are not among the slowest of this bucket.
    slow_floor: AtomicU64,
    slowest: Mutex<Slowest>,
    /// Nanoseconds: slower requests are recorded.
    watch_floor: AtomicU64,
    watched_until: Mutex<Instant>,
    /// One request out of this many is recorded; 0: none.
    sample: AtomicU64,
    counted: [Counter; COUNTERS],
    records: Mutex<Records>,
}

/// Aligned to a cache line of its own: threads that write to a shared line slow each other down.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Counter(AtomicU64);

#[derive(Debug)]
struct Slowest {
    buckets: VecDeque<Vec<Record>>,
    began: Instant,
}

#[derive(Debug, Default)]
struct Records {
    kept: VecDeque<Record>,
    last: u64,
}

impl Default for RequestLog {
    fn default() -> Self {
        let now = Instant::now();
        RequestLog {
            slow_floor: AtomicU64::new(0),
            slowest: Mutex::new(Slowest { buckets: VecDeque::from([Vec::new()]), began: now }),
            watch_floor: AtomicU64::new(u64::MAX),
            watched_until: Mutex::new(now),
            sample: AtomicU64::new(0),
            counted: Default::default(),
            records: Mutex::new(Records::default()),
        }
    }
}

impl RequestLog {
    /// Records a request if it is slow, watched or sampled.
    pub fn record(&self, request: &CompletedRequest<'_>) {
        let total = u64::try_from(request.total().as_nanos()).unwrap_or(u64::MAX);
        if total >= self.slow_floor.load(Relaxed) {
            self.record_slow(request, total);
        }
        let sample = self.sample.load(Relaxed);
        let counted = &self.counted[request.shard % COUNTERS].0;
        let is_sampled = sample > 0 && counted.fetch_add(1, Relaxed).is_multiple_of(sample);
        if is_sampled || total >= self.watch_floor.load(Relaxed) {
            let mut record = Record::from_request(request);
            let mut records = unpoisoned(self.records.lock());
            records.last += 1;
            record.number = records.last;
            if records.kept.len() == MAX_KEPT {
                records.kept.pop_front();
            }
            records.kept.push_back(record);
        }
    }

    fn record_slow(&self, request: &CompletedRequest<'_>, total: u64) {
        let record = Record::from_request(request);
        let mut slowest = unpoisoned(self.slowest.lock());
        let Some(bucket) = slowest.buckets.back_mut() else { return };
        let at = bucket.partition_point(|other| other.total_us >= record.total_us);
        bucket.insert(at, record);
        bucket.truncate(SLOWEST);
        if let (SLOWEST.., Some(last)) = (bucket.len(), bucket.last()) {
            self.slow_floor.store(((last.total_us * 1000.0) as u64).min(total), Relaxed);
        }
    }

    /// The slowest of the last minute, slowest first.
    pub fn slowest(&self) -> Vec<Record> {
        let mut all: Vec<Record> =
            unpoisoned(self.slowest.lock()).buckets.iter().flatten().cloned().collect();
        all.sort_by(|a, b| b.total_us.total_cmp(&a.total_us));
        all.truncate(SLOWEST);
        all
    }

    /// Records requests slower than this, for `time`; a lower limit of another watcher stays in force.
    pub fn watch(&self, slower_than: Duration, time: Duration) {
        let floor = u64::try_from(slower_than.as_nanos()).unwrap_or(u64::MAX);
        let mut until = unpoisoned(self.watched_until.lock());
        *until = (*until).max(Instant::now() + time);
        self.watch_floor.fetch_min(floor, Relaxed);
    }

    /// Records one out of `one_of` requests per counter; 0: none.
    pub fn sample(&self, one_of: u64) {
        self.sample.store(one_of, Relaxed);
    }

    /// The records after this number, and the number of the last one.
    pub fn records(&self, after: u64) -> (u64, Vec<Record>) {
        let records = unpoisoned(self.records.lock());
        let known = records.kept.partition_point(|record| record.number <= after);
        (records.last, records.kept.range(known..).cloned().collect())
    }

    /// Called once a second.
    pub fn tick(&self) {
        let now = Instant::now();
        if *unpoisoned(self.watched_until.lock()) < now {
            self.watch_floor.store(u64::MAX, Relaxed);
        }
        let mut slowest = unpoisoned(self.slowest.lock());
        // Several buckets pass at once if the timer's thread was delayed.
        let elapsed = now.duration_since(slowest.began).as_secs() / BUCKET.as_secs();
        if elapsed > 0 {
            slowest.began = now;
            for _ in 0..elapsed.min(BUCKETS as u64) {
                slowest.buckets.push_back(Vec::new());
            }
            let old = slowest.buckets.len().saturating_sub(BUCKETS);
            slowest.buckets.drain(..old);
            self.slow_floor.store(0, Relaxed);
        }
    }
}

#[cfg(test)]
#[path = "request_log_tests.rs"]
mod tests;
