//! A histogram as counts up to given bounds: the form in which monitoring systems read times.

use histogram::Histogram;

/// `counts[i]` is the number of times up to the i-th bound. `counts` has one entry more than there are
/// bounds: the last counts all.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "python", derive(pyo3::IntoPyObject))]
pub struct Cumulative {
    pub counts: Vec<u64>,
    /// Microseconds, with each time at the middle of its bucket.
    pub sum_us: f64,
}

/// The times of one combination of labels and status, since start.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "python", derive(pyo3::IntoPyObject))]
pub struct CountedUpTo {
    pub transport: &'static str,
    pub model: &'static str,
    pub mode: &'static str,
    pub status: u8,
    /// Bytes of content.
    pub bytes: u64,
    pub latency: Cumulative,
    pub queue_wait: Cumulative,
}

impl Cumulative {
    /// Reads a histogram of nanoseconds. A bucket that a bound cuts counts by its middle, so that a count is
    /// off by no more than the histogram itself.
    pub fn from_histogram(histogram: &Histogram, bounds_us: &[f64]) -> Self {
        let mut counts = Vec::with_capacity(bounds_us.len() + 1);
        let (mut seen, mut sum_us) = (0, 0.0);
        for bucket in histogram.iter().filter(|bucket| bucket.count() > 0) {
            let middle = (bucket.start() + bucket.end()) as f64 / 2.0 / 1000.0;
            while bounds_us.get(counts.len()).is_some_and(|&bound| middle > bound) {
                counts.push(seen);
            }
            seen += bucket.count();
            sum_us += middle * bucket.count() as f64;
        }
        counts.resize(bounds_us.len() + 1, seen);
        Cumulative { counts, sum_us }
    }
}

#[cfg(test)]
#[path = "buckets_tests.rs"]
mod tests;
