//! The load generator behind `objmapper bench`: many clients in a few threads, closed loop or open loop.
//!
//! Closed loop: every client sends its next request after the last answer. Open loop: requests have due
//! times, whatever the server does, and latency counts from the due time. So a server that stalls is charged
//! for all requests that it delayed ("coordinated omission": Tene, "How NOT to Measure Latency", 2015).
//!
//! A request without an answer [`GRACE`] after the end is lost: pending requests, those of a broken
//! connection, and with a rate those that were due but could not be sent. Each counts with the time from its
//! due time to the end.
//!
//! Besides objmapper the load generator speaks HTTP/1.1 and Redis's protocol, so that the same client
//! measures other servers.

mod connect;
mod datagrams;
mod protocols;
mod worker;

use histogram::Histogram;
use rustix::process::{Pid, getpid};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use self::protocols::LoadProtocol;
use self::worker::Worker;
use crate::statistics::Percentiles;
use crate::sync::unpoisoned;

const STACK: usize = 512 << 10;
/// 2^-7: 0.8 %, up to 2^44 ns: 4.9 h.
const HISTOGRAM: (u8, u8) = (7, 44);
/// How long clients wait after the end for answers to pending requests.
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// The server to load.
#[derive(Debug, Clone)]
pub enum Target {
    Unix(PathBuf),
    Tcp(SocketAddr),
    /// Loaded by datagrams: see `load/datagrams.rs`.
    Udp(SocketAddr),
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub target: Target,
    pub protocol: LoadProtocol,
    /// Requested in turn; each client begins at another.
    pub uris: Vec<String>,
    pub clients: usize,
    pub threads: usize,
    /// Requests that each client keeps under way.
    pub pipeline: usize,
    pub duration: Duration,
    /// End after this number of requests; 0: only after the duration.
    pub requests: u64,
    /// With a rate: the time between two requests of one client; not 0. None: closed loop.
    pub interval: Option<Duration>,
    /// Open a new connection for every request.
    pub reconnect: bool,
}

/// The result of a load.
#[derive(Debug)]
#[cfg_attr(feature = "python", derive(pyo3::IntoPyObject))]
pub struct Outcome {
    pub requests: u64,
    pub bytes: u64,
    /// Answers by which the server refused because it was busy.
    pub refused: u64,
    /// Other errors, and connections that broke.
    pub errors: u64,
    /// Requests without an answer.
    pub lost: u64,
    pub elapsed: f64,
    /// Latency of answers other than refusals, and of lost requests.
    pub latency: Percentiles,
    /// Latency of refusals alone.
    pub refusals: Percentiles,
    /// (quantile, microseconds) pairs, for a curve.
    pub curve: Vec<(f64, f64)>,
}

/// A load that is running.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    /// The process that its threads run in.
    process: Pid,
    started: Instant,
    ending: Mutex<LoadEnd>,
}

#[derive(Debug)]
struct LoadEnd {
    threads: Vec<JoinHandle<Counters>>,
    sum: Counters,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) plan: Plan,
    frames: Vec<Vec<u8>>,
    answered: AtomicU64,
    stop: AtomicBool,
    /// Threads that are still running.
    running: AtomicUsize,
}

#[derive(Debug)]
pub(crate) struct Counters {
    latency: Histogram,
    refusals: Histogram,
    requests: u64,
    pub(crate) bytes: u64,
    refused: u64,
    pub(crate) errors: u64,
    lost: u64,
    /// The time of the last answer, or of the end of sending.
    ended: Instant,
}

impl Counters {
    pub(crate) fn new() -> Self {
        Counters {
            latency: new_histogram(),
            refusals: new_histogram(),
            requests: 0,
            bytes: 0,
            refused: 0,
            errors: 0,
            lost: 0,
            ended: Instant::now(),
        }
    }

    /// Counts one answer.
    pub(crate) fn count(&mut self, latency: Duration, refused: bool, failed: bool) {
        // Adding fails only for a value out of range, which is limited before.
        if refused {
            self.refused += 1;
            let _ = self.refusals.increment(nanoseconds(latency));
        } else {
            self.requests += 1;
            self.errors += u64::from(failed);
            let _ = self.latency.increment(nanoseconds(latency));
        }
    }

    /// Counts lost requests that have waited this long.
    pub(crate) fn lose(&mut self, waited: Duration, count: u64) {
        self.lost += count;
        let _ = self.latency.add(nanoseconds(waited), count);
    }

    /// Records a time at which the measurement was still running.
    pub(crate) fn end(&mut self, at: Instant) {
        self.ended = self.ended.max(at);
    }

    fn add(&mut self, other: &Counters) {
        add(&mut self.latency, &other.latency);
        add(&mut self.refusals, &other.refusals);
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.refused += other.refused;
        self.errors += other.errors;
        self.lost += other.lost;
        self.end(other.ended);
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).min((1 << HISTOGRAM.1) - 1)
}

impl Shared {
    /// Whether the load was stopped, or has reached its number of requests.
    pub(crate) fn is_over(&self) -> bool {
        let enough = self.plan.requests > 0 && self.answered.load(Relaxed) >= self.plan.requests;
        enough || self.stop.load(Relaxed)
    }

    pub(crate) fn count(&self, answers: u64) {
        self.answered.fetch_add(answers, Relaxed);
    }
}

/// Counts a thread as ended, also after a panic.
struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Release);
    }
}

fn new_histogram() -> Histogram {
    match Histogram::new(HISTOGRAM.0, HISTOGRAM.1) {
        Ok(histogram) => histogram,
        Err(error) => unreachable!("the constants are in range: {error}"),
    }
}

impl Load {
    pub fn start(plan: Plan) -> std::io::Result<Self> {
        let frames = plan.uris.iter().map(|uri| plan.protocol.frame(uri)).collect();
        let count = plan.threads.clamp(1, plan.clients.max(1));
        let shared = Arc::new(Shared {
            plan,
            frames,
            answered: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            running: AtomicUsize::new(count),
        });
        let load = Load {
            shared: Arc::clone(&shared),
            process: getpid(),
            started: Instant::now(),
            ending: Mutex::new(LoadEnd { threads: Vec::new(), sum: Counters::new() }),
        };
        for number in 0..count {
            let shared = Arc::clone(&shared);
            let body = move || {
                let _running = Running(&shared);
                match shared.plan.target {
                    Target::Udp(address) => datagrams::run(&shared, address, number, count),
                    _ => Worker::new(&shared, number, count).run(),
                }
            };
            // Where a thread cannot be started, dropping the load ends the others.
            load.ending().threads.push(crate::spawn::spawn("objmapper-load", STACK, body)?);
        }
        Ok(load)
    }

    fn ending(&self) -> MutexGuard<'_, LoadEnd> {
        unpoisoned(self.ending.lock())
    }

    /// The process that it runs in.
    pub fn process(&self) -> Pid {
        self.process
    }

    /// Requests answered so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Relaxed)
    }

    pub fn is_running(&self) -> bool {
        self.shared.running.load(Acquire) > 0
    }

    /// Ends the load early, within [`GRACE`] and a moment. Does not wait.
    pub fn stop(&self) {
        self.shared.stop.store(true, Relaxed);
    }

    /// Waits for the end.
    pub fn finish(&self) -> Outcome {
        let mut ending = self.ending();
        while let Some(thread) = ending.threads.pop() {
            match thread.join() {
                Ok(counters) => ending.sum.add(&counters),
                // The runtime has reported a panic on stderr.
                Err(_) => ending.sum.errors += 1,
            }
        }
        let sum = &ending.sum;
        Outcome {
            requests: sum.requests,
            bytes: sum.bytes,
            refused: sum.refused,
            errors: sum.errors,
            lost: sum.lost,
            elapsed: sum.ended.duration_since(self.started).as_secs_f64(),
            latency: Percentiles::from_histogram(&sum.latency),
            refusals: Percentiles::from_histogram(&sum.refusals),
            curve: curve(&sum.latency),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

fn add(sum: &mut Histogram, other: &Histogram) {
    for (mine, theirs) in sum.as_mut_slice().iter_mut().zip(other.as_slice()) {
        *mine += theirs;
    }
}

/// Latency by quantile, denser towards 1.
fn curve(histogram: &Histogram) -> Vec<(f64, f64)> {
    let total: u64 = histogram.as_slice().iter().sum();
    let mut points = Vec::new();
    let mut seen = 0;
    for bucket in histogram.iter().filter(|bucket| bucket.count() > 0) {
        seen += bucket.count();
        points.push((seen as f64 / total as f64, (bucket.start() + bucket.end()) as f64 / 2000.0));
    }
    points
}
