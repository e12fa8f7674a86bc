//! The figures that the server reports: of all requests, by label, and of each combination.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::Model;
use crate::net::transport::Transport;
use crate::protocol::{Operation, Status};
use crate::statistics::labels::{Labels, ModeKey};
use crate::statistics::percentiles::Percentiles;
use crate::statistics::totals::Sum;

/// The figures of all requests that carry the labels; None means "any".
#[derive(Debug, Clone)]
#[cfg_attr(feature = "python", derive(pyo3::IntoPyObject))]
pub struct Figures {
    pub transport: Option<&'static str>,
    pub model: Option<&'static str>,
    pub mode: Option<&'static str>,
    pub requests_total: u64,
    pub bytes_total: u64,
    /// Status byte → number of errors.
    pub errors_total: BTreeMap<u8, u64>,
    pub requests_per_sec: f64,
    pub bytes_per_sec: f64,
    pub latency: Percentiles,
    pub latency_since_start: Percentiles,
    pub queue_wait: Percentiles,
    pub queue_wait_since_start: Percentiles,
}

impl Figures {
    fn new(
        sum: &Sum,
        transport: Option<Transport>,
        model: Option<Model>,
        mode: Option<ModeKey>,
        uptime: Duration,
    ) -> Self {
        let totals = &sum.since_start;
        let rate = |recent: u64, total: u64| match sum.recent_seconds {
            // The server is up for less than one second.
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
            requests_per_sec: rate(sum.recent_requests, totals.requests()),
            bytes_per_sec: rate(sum.recent_bytes, totals.bytes),
            latency: Percentiles::from_histogram(&sum.window.latency),
            latency_since_start: Percentiles::from_histogram(&totals.latency),
            queue_wait: Percentiles::from_histogram(&sum.window.queue_wait),
            queue_wait_since_start: Percentiles::from_histogram(&totals.queue_wait),
        }
    }

    /// The total, by transport, by model, by mode, and each combination in use.
    pub(super) fn all(cells: &[(Labels, Sum)], uptime: Duration) -> Vec<Self> {
        let gather = |transport: Option<Transport>, model: Option<Model>, mode: Option<ModeKey>| {
            let mut sum = Sum::nothing();
            for (labels, cell) in cells {
                let fits = transport.is_none_or(|label| label == labels.transport)
                    && model.is_none_or(|label| label == labels.model)
                    && mode.is_none_or(|label| label == labels.mode);
                if fits {
                    sum.add(cell);
                }
            }
            Figures::new(&sum, transport, model, mode, uptime)
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
}
