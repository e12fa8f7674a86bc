//! A histogram as the percentiles that people compare.

use histogram::Histogram;

/// A distribution in microseconds; all 0 where the histogram is empty.
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

impl Percentiles {
    /// Reads a histogram of nanoseconds, with each bucket counted at its middle.
    pub fn from_histogram(histogram: &Histogram) -> Self {
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
                let target = (rank * total as f64).ceil().max(1.0) as u64;
                if before < target && target <= seen {
                    *value = middle;
                }
            }
        }
        let [p50_us, p99_us, p999_us, max_us] = at;
        Percentiles { count: total, mean_us: weighted / total as f64, p50_us, p99_us, p999_us, max_us }
    }
}
