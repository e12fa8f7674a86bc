//! Known values in, known figures out.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::model::Model;
use crate::statistics::histograms::MAX_VALUE;
use crate::statistics::totals::WINDOW_SECONDS;

/// The relative error of one bucket.
const ERROR: f64 = 0.016;

fn any_labels() -> Labels {
    Labels::new(Transport::Unix, Model::ALL[0], Operation::FdPass)
}

fn answered(labels: Labels, latency: Duration) -> Answered {
    Answered { labels, status: Status::Ok, latency, queue_wait: None, bytes: 0 }
}

fn total(statistics: &Statistics) -> Figures {
    figures_of(statistics, None, None)
}

fn figures_of(statistics: &Statistics, transport: Option<Transport>, mode: Option<Operation>) -> Figures {
    let expected = (transport.map(Transport::name), None, mode.map(Operation::name));
    statistics
        .figures()
        .into_iter()
        .find(|figures| (figures.transport, figures.model, figures.mode) == expected)
        .expect("such figures are always there")
}

#[track_caller]
fn assert_near(actual: f64, expected: f64) {
    assert!((actual - expected).abs() <= expected * ERROR, "{actual} is not within 1.6 % of {expected}");
}

#[test]
fn empty_statistics_are_all_zero() {
    let figures = total(&Statistics::new());
    assert_eq!((figures.requests_total, figures.bytes_total), (0, 0));
    assert_eq!(figures.latency.count, 0);
    assert_eq!([figures.latency.p50_us, figures.latency.max_us], [0.0, 0.0]);
    assert!(figures.errors_total.is_empty());
}

#[test]
fn percentiles_of_known_values_are_within_a_bucket() {
    let statistics = Statistics::new();
    // 1 µs, 2 µs, … 10 ms: the rank is the value.
    for microseconds in 1..=10_000 {
        statistics.record(0, &answered(any_labels(), Duration::from_micros(microseconds)));
    }
    let latency = total(&statistics).latency_since_start;
    assert_eq!(latency.count, 10_000);
    assert_near(latency.p50_us, 5_000.0);
    assert_near(latency.p99_us, 9_900.0);
    assert_near(latency.p999_us, 9_990.0);
    assert_near(latency.max_us, 10_000.0);
    assert_near(latency.mean_us, 5_000.5);
}

#[test]
fn one_value_is_every_percentile() {
    for nanoseconds in [1, 63, 64, 1_000, 123_456, 1_000_000_000, 60_000_000_000] {
        let statistics = Statistics::new();
        statistics.record(0, &answered(any_labels(), Duration::from_nanos(nanoseconds)));
        let latency = total(&statistics).latency;
        for actual in [latency.p50_us, latency.p99_us, latency.p999_us, latency.max_us, latency.mean_us] {
            assert_near(actual, nanoseconds as f64 / 1000.0);
        }
    }
}

#[test]
fn a_time_beyond_the_range_counts_as_the_longest() {
    let statistics = Statistics::new();
    statistics.record(0, &answered(any_labels(), Duration::from_secs(3600)));
    statistics.record(0, &answered(any_labels(), Duration::MAX));
    let latency = total(&statistics).latency;
    assert_eq!(latency.count, 2);
    assert_near(latency.max_us, MAX_VALUE as f64 / 1000.0);
}

#[test]
fn a_rare_slow_request_shows_in_the_tail_and_nowhere_else() {
    let statistics = Statistics::new();
    for at in 0..1000 {
        let latency = if at % 500 == 0 { Duration::from_millis(50) } else { Duration::from_micros(10) };
        statistics.record(0, &answered(any_labels(), latency));
    }
    let latency = total(&statistics).latency;
    assert_near(latency.p50_us, 10.0);
    assert_near(latency.p99_us, 10.0);
    assert_near(latency.p999_us, 50_000.0);
}

#[test]
fn totals_are_kept_by_transport_and_mode() {
    let statistics = Statistics::new();
    let model = Model::ALL[0];
    let mut sent = 0;
    for (at, transport) in Transport::ALL.into_iter().enumerate() {
        for (by, mode) in [Operation::FdPass, Operation::Copy, Operation::Splice].into_iter().enumerate() {
            for _ in 0..=(at * 3 + by) {
                let labels = Labels::new(transport, model, mode);
                let bytes = 100;
                statistics.record(0, &Answered { bytes, ..answered(labels, Duration::from_micros(1)) });
                sent += 1;
            }
        }
    }
    assert_eq!(total(&statistics).requests_total, sent);
    assert_eq!(total(&statistics).bytes_total, sent * 100);
    assert_eq!(figures_of(&statistics, Some(Transport::Unix), None).requests_total, 1 + 2 + 3);
    assert_eq!(figures_of(&statistics, Some(Transport::Tcp), None).requests_total, 4 + 5 + 6);
    assert_eq!(figures_of(&statistics, None, Some(Operation::Copy)).requests_total, 2 + 5 + 8);
    assert_eq!(figures_of(&statistics, None, Some(Operation::Splice)).bytes_total, (3 + 6 + 9) * 100);
    let exact = statistics.figures().into_iter().find(|figures| {
        (figures.transport, figures.model, figures.mode) == (Some("tcp"), Some(model.name()), Some("splice"))
    });
    assert_eq!(exact.map(|figures| figures.requests_total), Some(6));
}

#[test]
fn errors_are_counted_by_status_and_successes_are_not_among_them() {
    let statistics = Statistics::new();
    for status in [Status::Ok, Status::NotFound, Status::NotFound, Status::Unavailable] {
        statistics.record(0, &Answered { status, ..answered(any_labels(), Duration::from_micros(1)) });
    }
    let figures = total(&statistics);
    assert_eq!(figures.requests_total, 4);
    assert_eq!(figures.errors_total, BTreeMap::from([(0x01, 2), (0x14, 1)]));
}

#[test]
fn queue_waits_are_counted_separately() {
    let statistics = Statistics::new();
    let queue_wait = Some(Duration::from_micros(300));
    statistics.record(0, &Answered { queue_wait, ..answered(any_labels(), Duration::from_micros(500)) });
    statistics.record(0, &answered(any_labels(), Duration::from_micros(500)));
    let figures = total(&statistics);
    assert_eq!((figures.latency.count, figures.queue_wait.count), (2, 1));
    assert_near(figures.queue_wait.p50_us, 300.0);
    assert_near(figures.queue_wait_since_start.p50_us, 300.0);
}

#[test]
fn the_window_ages_out_and_the_totals_stay() {
    let statistics = Statistics::new();
    statistics.record(0, &answered(any_labels(), Duration::from_micros(10)));
    statistics.tick(1);
    for _ in 0..WINDOW_SECONDS - 1 {
        assert_eq!(total(&statistics).latency.count, 1);
        statistics.tick(1);
    }
    // Its second is the oldest of sixty, and the next one evicts it.
    assert_eq!(total(&statistics).latency.count, 1);
    statistics.tick(1);
    let figures = total(&statistics);
    assert_eq!(figures.latency.count, 0);
    assert_eq!(figures.latency_since_start.count, 1);
    assert_eq!(figures.requests_total, 1);
}

#[test]
fn missed_seconds_keep_their_requests_in_the_window() {
    let statistics = Statistics::new();
    statistics.record(0, &answered(any_labels(), Duration::from_micros(10)));
    statistics.tick(1);
    // The process is stopped for longer than the window, and then answers the requests that came meanwhile.
    statistics.record(0, &answered(any_labels(), Duration::from_micros(10)));
    statistics.tick(3_000_000_000);
    assert_eq!(total(&statistics).latency.count, 1);
    for _ in 0..WINDOW_SECONDS - 1 {
        statistics.tick(1);
        assert_eq!(total(&statistics).latency.count, 1);
    }
    statistics.tick(1);
    assert_eq!(total(&statistics).latency.count, 0);
}

#[test]
fn a_missed_second_counts_as_empty() {
    let statistics = Statistics::new();
    for _ in 0..10 {
        statistics.record(0, &answered(any_labels(), Duration::from_micros(1)));
        statistics.tick(2);
    }
    assert_eq!(total(&statistics).requests_per_sec, 0.5);
}

#[test]
fn a_request_of_an_hour_counts_as_one() {
    let statistics = Statistics::new();
    statistics.record(0, &answered(any_labels(), Duration::from_secs(3600)));
    assert_near(total(&statistics).latency.max_us, 3600e6);
}

#[test]
fn the_window_includes_requests_since_the_last_tick() {
    let statistics = Statistics::new();
    for _ in 0..3 {
        statistics.record(0, &answered(any_labels(), Duration::from_micros(10)));
        statistics.tick(1);
    }
    statistics.record(0, &answered(any_labels(), Duration::from_micros(900)));
    let latency = total(&statistics).latency;
    assert_eq!(latency.count, 4);
    assert_near(latency.max_us, 900.0);
}

#[test]
fn rates_are_over_the_last_ten_seconds() {
    let statistics = Statistics::new();
    for second in 0..20 {
        for _ in 0..second {
            statistics.record(0, &Answered { bytes: 7, ..answered(any_labels(), Duration::from_micros(1)) });
        }
        statistics.tick(1);
    }
    let expected = (10..20).sum::<u64>() as f64 / 10.0;
    let figures = total(&statistics);
    assert_eq!((figures.requests_per_sec, figures.bytes_per_sec), (expected, expected * 7.0));
}

#[test]
fn threads_that_record_at_once_lose_nothing() {
    const THREADS: usize = 16;
    const EACH: usize = 5_000;
    let statistics = Statistics::new();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let shard = statistics.assign_shard();
                for at in 0..EACH {
                    let labels = Labels::new(Transport::ALL[at % 2], Model::ALL[0], Operation::ALL[at % 3]);
                    let one = Answered { bytes: 3, ..answered(labels, Duration::from_micros(at as u64)) };
                    statistics.record(shard, &one);
                }
            });
        }
        // A reader and the clock run at the same time: they must not change the count.
        for _ in 0..20 {
            statistics.tick(1);
            assert!(total(&statistics).requests_total <= (THREADS * EACH) as u64);
        }
    });
    let figures = total(&statistics);
    assert_eq!(figures.requests_total, (THREADS * EACH) as u64);
    assert_eq!(figures.bytes_total, (THREADS * EACH * 3) as u64);
    assert_eq!(figures.latency_since_start.count, (THREADS * EACH) as u64);
    assert_eq!(figures.latency.count, (THREADS * EACH) as u64);
}

#[test]
fn shards_are_assigned_in_turn_and_are_few() {
    let statistics = Statistics::new();
    let mut seen: Vec<_> = (0..1000).map(|_| statistics.assign_shard()).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), statistics.shards.len());
    assert!(seen.len() <= 16);
}

#[test]
fn times_are_counted_by_status_and_summed_over_shards() {
    let statistics = Statistics::new();
    let refused =
        Answered { status: Status::Unavailable, ..answered(any_labels(), Duration::from_micros(2)) };
    let waited = Some(Duration::from_micros(30));
    statistics.record(0, &answered(any_labels(), Duration::from_micros(50)));
    statistics.record(
        1 % statistics.shards.len(),
        &Answered { queue_wait: waited, ..answered(any_labels(), Duration::from_micros(500)) },
    );
    statistics.record(0, &refused);
    let counted = statistics.counted_up_to(&[10.0, 100.0]);
    let of =
        |status: Status| counted.iter().find(|each| each.status == status as u8).expect("it was counted");
    assert_eq!(counted.len(), 2);
    assert_eq!(of(Status::Ok).latency.counts, [0, 1, 2]);
    assert_eq!(of(Status::Ok).queue_wait.counts, [0, 1, 1]);
    assert_eq!(of(Status::Unavailable).latency.counts, [1, 1, 1]);
    assert_eq!(of(Status::Unavailable).queue_wait.counts, [0, 0, 0]);
    assert_eq!(total(&statistics).requests_total, 3);
    assert_eq!(total(&statistics).errors_total.values().sum::<u64>(), 1);
}
