//! The shape of the histograms, their sums and differences.
//!
//! Base-2 log-linear (H2: <https://h2histogram.org>), a relative error of 1.6 %.

use histogram::{Config, Histogram, SparseHistogram};
use std::sync::OnceLock;
use std::time::Duration;

/// 2^-6: 1.6 %.
const GROUPING_POWER: u8 = 6;
/// 2^44 ns: 4.9 h. A longer time counts as this.
const MAX_VALUE_POWER: u8 = 44;
pub(super) const MAX_VALUE: u64 = (1 << MAX_VALUE_POWER) - 1;

pub(super) fn config() -> &'static Config {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    CONFIG.get_or_init(|| match Config::new(GROUPING_POWER, MAX_VALUE_POWER) {
        Ok(config) => config,
        Err(error) => unreachable!("the constants are in range: {error}"),
    })
}

/// The value counted for a duration, limited to the range of the histograms.
pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(MAX_VALUE).min(MAX_VALUE)
}

pub(super) fn add_histogram(sum: &mut Histogram, other: &Histogram) {
    for (mine, theirs) in sum.as_mut_slice().iter_mut().zip(other.as_slice()) {
        *mine += theirs;
    }
}

pub(super) fn add_sparse(sum: &mut Histogram, other: &SparseHistogram) {
    let counts = sum.as_mut_slice();
    for (&bucket, &count) in other.index().iter().zip(other.count()) {
        counts[bucket as usize] += count;
    }
}

/// `now` − `before`, never below 0: the reader reads one counter of a shard after the other, while threads write them.
pub(super) fn difference(now: &Histogram, before: &Histogram) -> Histogram {
    let mut difference = now.clone();
    for (mine, theirs) in difference.as_mut_slice().iter_mut().zip(before.as_slice()) {
        *mine = mine.saturating_sub(*theirs);
    }
    difference
}
