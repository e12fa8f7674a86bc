//! The load generator behind `objmapper bench`: many clients in a few threads, closed loop or open loop.
//!
//! Closed loop: every client sends its next request when the last is answered. Open loop: requests have times at which they
//! are due, whatever the server does, and latency counts from then, so a server that stalls is charged for all that it kept
//! waiting ("coordinated omission": Tene, "How NOT to Measure Latency", 2015).
//!
//! Besides objmapper it speaks HTTP/1.1 and Redis's protocol, so that peers are measured by the same client.

mod dialects;
mod worker;

use histogram::Histogram;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use self::dialects::Dialect;
use self::worker::Worker;
use crate::statistics::Percentiles;

const STACK: usize = 512 << 10;
/// 2^-7: 0.8 %, up to 2^40 ns: 18 min.
const HISTOGRAM: (u8, u8) = (7, 40);

/// Whom to load.
#[derive(Debug, Clone)]
pub enum Target {
    Unix(PathBuf),
    Tcp(SocketAddr),
    /// Asked by datagrams: see `udp/load.rs`.
    Udp(SocketAddr),
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub target: Target,
    pub dialect: Dialect,
    /// Asked for in turn, each client beginning at another.
    pub uris: Vec<String>,
    pub clients: usize,
    pub threads: usize,
    /// Requests that each client keeps under way.
    pub pipeline: usize,
    pub duration: Duration,
    /// End after so many requests, 0: only after the duration.
    pub requests: u64,
    /// Requests a second of all clients together; None: closed loop.
    pub rate: Option<f64>,
    /// A new connection for every request.
    pub reconnect: bool,
}

/// What came of it.
#[derive(Debug)]
#[cfg_attr(feature = "python", derive(pyo3::IntoPyObject))]
pub struct Outcome {
    pub requests: u64,
    pub bytes: u64,
    /// Answers that refused for want of room.
    pub refused: u64,
    /// Other errors, and connections that broke.
    pub errors: u64,
    pub elapsed: f64,
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
    threads: Vec<JoinHandle<Tally>>,
    started: Instant,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) plan: Plan,
    frames: Vec<Vec<u8>>,
    answered: AtomicU64,
    stop: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct Tally {
    latency: Histogram,
    refusals: Histogram,
    requests: u64,
    pub(crate) bytes: u64,
    refused: u64,
    pub(crate) errors: u64,
    pub(crate) ended: Instant,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Tally {
            latency: new_histogram(),
            refusals: new_histogram(),
            requests: 0,
            bytes: 0,
            refused: 0,
            errors: 0,
            ended: Instant::now(),
        }
    }

    /// Counts one answer.
    pub(crate) fn count(&mut self, latency: Duration, refused: bool, failed: bool) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let nanoseconds = nanoseconds.min((1 << HISTOGRAM.1) - 1);
        // Fails only for a value out of range, which was cut off.
        if refused {
            self.refused += 1;
            let _ = self.refusals.increment(nanoseconds);
        } else {
            self.requests += 1;
            self.errors += u64::from(failed);
            let _ = self.latency.increment(nanoseconds);
        }
    }
}

impl Shared {
    /// Whether the load was stopped, or has come to its number of requests.
    pub(crate) fn is_over(&self) -> bool {
        let enough = self.plan.requests > 0 && self.answered.load(Relaxed) >= self.plan.requests;
        enough || self.stop.load(Relaxed)
    }

    pub(crate) fn count(&self, answers: u64) {
        self.answered.fetch_add(answers, Relaxed);
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
        let frames = plan.uris.iter().map(|uri| plan.dialect.frame(uri)).collect();
        let threads = plan.threads.clamp(1, plan.clients.max(1));
        let shared =
            Arc::new(Shared { plan, frames, answered: AtomicU64::new(0), stop: AtomicBool::new(false) });
        let started = Instant::now();
        let threads = (0..threads)
            .map(|number| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new().name("objmapper-load".into()).stack_size(STACK).spawn(move || {
                    match shared.plan.target {
                        Target::Udp(address) => crate::udp::load::run(&shared, address, number, threads),
                        _ => Worker::new(&shared, number, threads).run(),
                    }
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Load { shared, threads, started })
    }

    /// Requests answered so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Relaxed)
    }

    pub fn is_running(&self) -> bool {
        self.threads.iter().any(|thread| !thread.is_finished())
    }

    /// Ends it early.
    pub fn stop(&self) {
        self.shared.stop.store(true, Relaxed);
    }

    /// Waits for the end.
    pub fn finish(&mut self) -> Outcome {
        let mut sum = Tally::new();
        let mut ended = self.started;
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(tally) => {
                    add(&mut sum.latency, &tally.latency);
                    add(&mut sum.refusals, &tally.refusals);
                    sum.requests += tally.requests;
                    sum.bytes += tally.bytes;
                    sum.refused += tally.refused;
                    sum.errors += tally.errors;
                    ended = ended.max(tally.ended);
                }
                Err(_) => sum.errors += 1,
            }
        }
        Outcome {
            requests: sum.requests,
            bytes: sum.bytes,
            refused: sum.refused,
            errors: sum.errors,
            elapsed: ended.duration_since(self.started).as_secs_f64(),
            latency: Percentiles::of(&sum.latency),
            refusals: Percentiles::of(&sum.refusals),
            curve: curve(&sum.latency),
        }
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
