//! Datagrams by kind: received, sent, and dropped with the reason.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters that all threads of the transport share.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counts {
    pub plain_received: AtomicU64,
    pub pull_received: AtomicU64,
    /// Invalid datagrams, which the server never answers.
    pub noise_received: AtomicU64,
    pub reply_sent: AtomicU64,
    pub data_sent: AtomicU64,
    pub retry_sent: AtomicU64,
    pub error_sent: AtomicU64,
    /// Plain requests from addresses that are neither loopback nor trusted.
    pub untrusted_dropped: AtomicU64,
    /// UDP requests dropped by their address's rate limit.
    pub limited_dropped: AtomicU64,
    /// Replies that the kernel did not accept.
    pub unsendable_dropped: AtomicU64,
    pub bytes_received: AtomicU64,
    pub bytes_sent: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Default)]
#[cfg_attr(feature = "python", derive(pyo3::IntoPyObject))]
pub struct DatagramCounts {
    pub plain_received_total: u64,
    pub pull_received_total: u64,
    pub noise_received_total: u64,
    pub reply_sent_total: u64,
    pub data_sent_total: u64,
    pub retry_sent_total: u64,
    pub error_sent_total: u64,
    pub untrusted_dropped_total: u64,
    pub limited_dropped_total: u64,
    pub unsendable_dropped_total: u64,
    /// Datagrams dropped because the socket's receive buffer was full.
    pub overflow_dropped_total: u64,
    pub bytes_received_total: u64,
    pub bytes_sent_total: u64,
}

impl Counts {
    pub fn read(&self, overflow_dropped_total: u64) -> DatagramCounts {
        DatagramCounts {
            plain_received_total: self.plain_received.load(Relaxed),
            pull_received_total: self.pull_received.load(Relaxed),
            noise_received_total: self.noise_received.load(Relaxed),
            reply_sent_total: self.reply_sent.load(Relaxed),
            data_sent_total: self.data_sent.load(Relaxed),
            retry_sent_total: self.retry_sent.load(Relaxed),
            error_sent_total: self.error_sent.load(Relaxed),
            untrusted_dropped_total: self.untrusted_dropped.load(Relaxed),
            limited_dropped_total: self.limited_dropped.load(Relaxed),
            unsendable_dropped_total: self.unsendable_dropped.load(Relaxed),
            overflow_dropped_total,
            bytes_received_total: self.bytes_received.load(Relaxed),
            bytes_sent_total: self.bytes_sent.load(Relaxed),
        }
    }
}
