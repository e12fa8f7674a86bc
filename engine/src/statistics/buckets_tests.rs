//! Counts up to a bound.
#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

fn histogram(microseconds: &[u64]) -> Histogram {
    let mut histogram = Histogram::new(6, 36).unwrap();
    for &time in microseconds {
        histogram.increment(time * 1000).unwrap();
    }
    histogram
}

#[test]
fn each_bound_counts_the_times_up_to_it() {
    let counted =
        Cumulative::from_histogram(&histogram(&[3, 3, 7, 60, 2000]), &[1.0, 5.0, 10.0, 100.0, 1000.0]);
    assert_eq!(counted.counts, [0, 2, 3, 4, 4, 5]);
    assert!((counted.sum_us - 2073.0).abs() < 2073.0 * 0.016, "{}", counted.sum_us);
}

#[test]
fn an_empty_histogram_counts_zero_at_every_bound() {
    let counted = Cumulative::from_histogram(&histogram(&[]), &[1.0, 2.0]);
    assert_eq!(counted, Cumulative { counts: vec![0, 0, 0], sum_us: 0.0 });
}

#[test]
fn without_bounds_only_the_total_is_counted() {
    assert_eq!(Cumulative::from_histogram(&histogram(&[1, 2, 3]), &[]).counts, [3]);
}

proptest! {
    #[test]
    fn counts_never_fall_and_end_with_all(times in proptest::collection::vec(0u64..10_000_000, 0..50)) {
        let bounds = [5.0, 10.0, 1e3, 1e4, 1e6];
        let counts = Cumulative::from_histogram(&histogram(&times), &bounds).counts;
        prop_assert!(counts.is_sorted());
        prop_assert_eq!(*counts.last().unwrap(), times.len() as u64);
        for (&bound, &count) in bounds.iter().zip(&counts) {
            // The bucket around the bound may fall to either side.
            let surely = |limit: f64| times.iter().filter(|&&time| time as f64 <= limit).count() as u64;
            prop_assert!(surely(bound * 0.98) <= count && count <= surely(bound * 1.02));
        }
    }
}
