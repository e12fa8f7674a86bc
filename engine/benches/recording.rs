//! What counting one answered request costs: `make bench-recording`.
//!
//! One thread alone, then as many as there are cores, each in its own shard as in a server, and all in one shard, which is
//! what the shards avoid. Each figure is the median of the rounds, in nanoseconds of one thread's time.

use objmapper_engine::recording::{Answered, Labels, Model, Operation, Statistics, Status, Transport, cores};
use std::hint::black_box;
use std::time::{Duration, Instant};

const REQUESTS: u32 = 2_000_000;
const ROUNDS: usize = 9;

fn main() {
    for (name, threads, shared) in
        [("one thread", 1, false), ("a shard each", cores(), false), ("one shard for all", cores(), true)]
    {
        let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| nanoseconds_each(threads, shared)).collect();
        rounds.sort_by(f64::total_cmp);
        println!("{name:>18}, {threads} threads: {:5.1} ns a request", rounds[ROUNDS / 2]);
    }
}

fn nanoseconds_each(threads: usize, shared: bool) -> f64 {
    let statistics = Statistics::new();
    let shards: Vec<usize> = (0..threads).map(|_| statistics.assign_shard()).collect();
    let spent: Duration = std::thread::scope(|scope| {
        let statistics = &statistics;
        let running: Vec<_> = shards
            .iter()
            .map(|&shard| scope.spawn(move || record(statistics, if shared { 0 } else { shard })))
            .collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).sum()
    });
    spent.as_secs_f64() * 1e9 / f64::from(REQUESTS) / threads as f64
}

/// Latencies of 1 to 66 µs, so that buckets change from one request to the next.
fn record(statistics: &Statistics, shard: usize) -> Duration {
    let labels = Labels::new(Transport::Unix, Model::ALL[0], Operation::FdPass);
    let started = Instant::now();
    for number in 0..REQUESTS {
        let latency = Duration::from_nanos(1_000 + u64::from(number.wrapping_mul(40_503) & 0xffff));
        let queue_wait = Some(latency / 2);
        statistics.record(
            shard,
            black_box(&Answered { labels, status: Status::Ok, latency, queue_wait, bytes: 4096 }),
        );
    }
    started.elapsed()
}
