//! Limits by address: the bytes a second that the server sends to one.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::sync::unpoisoned;

/// Addresses remembered at once, and how many of them share a set in the table.
const SETS: usize = 1024;
const WAYS: usize = 4;

/// The IPv4 address where an IPv6 socket shows it as mapped, else the address itself.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Bytes a second towards each address: one token bucket each, which holds one second's bytes.
///
/// Only trusted addresses and those with a valid cookie are looked up, so forged addresses cannot fill the
/// table. Its size is fixed. A new address evicts the one of its set that owes least; an evicted address
/// starts again with a full bucket.
#[derive(Debug)]
pub struct RateLimit {
    /// Bytes a second; 0: no limit.
    rate: u64,
    started: Instant,
    hasher: RandomState,
    sets: Box<[Mutex<[Bucket; WAYS]>]>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// None for a free place.
    owner: Option<u128>,
    /// Bytes; negative after an overdraft, since the last reply goes out whole.
    tokens: i64,
    filled_at: Duration,
}

const FREE: Bucket = Bucket { owner: None, tokens: i64::MAX, filled_at: Duration::ZERO };

impl RateLimit {
    pub fn new(rate: u64) -> Self {
        let rate = rate.min(i64::MAX as u64);
        let sets = if rate == 0 { 0 } else { SETS };
        RateLimit {
            rate,
            started: Instant::now(),
            hasher: RandomState::new(),
            sets: (0..sets).map(|_| Mutex::new([FREE; WAYS])).collect(),
        }
    }

    /// Whether the server may send `bytes` more to this address now; if so, counts them.
    pub fn take(&self, ip: IpAddr, bytes: u64, now: Instant) -> bool {
        if self.rate == 0 {
            return true;
        }
        let owner = owner_of(ip);
        let now = now.saturating_duration_since(self.started);
        let set = &self.sets[self.hasher.hash_one(owner) as usize % SETS];
        let mut set = unpoisoned(set.lock());
        for bucket in set.iter_mut().filter(|bucket| bucket.owner.is_some()) {
            bucket.fill(self.rate, now);
        }
        // The address's own bucket, else a free one, else the one that owes least.
        let Some(bucket) = set.iter_mut().max_by_key(|bucket| (bucket.owner == Some(owner), bucket.tokens))
        else {
            return true;
        };
        if bucket.owner != Some(owner) {
            *bucket = Bucket { owner: Some(owner), tokens: self.rate as i64, filled_at: now };
        }
        if bucket.tokens <= 0 {
            return false;
        }
        bucket.tokens = bucket.tokens.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        true
    }
}

impl Bucket {
    fn fill(&mut self, rate: u64, now: Duration) {
        let elapsed = now.saturating_sub(self.filled_at).as_nanos().min(1 << 40);
        let earned = elapsed * u128::from(rate) / 1_000_000_000;
        if earned > 0 {
            let earned = i64::try_from(earned).unwrap_or(i64::MAX);
            self.tokens = self.tokens.saturating_add(earned).min(rate as i64);
            self.filled_at = now;
        }
    }
}

/// One subscriber of IPv6 has a /64 and all of its addresses.
fn owner_of(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits() & !u128::from(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_mapped_address_is_the_address_that_it_maps() {
        assert_eq!(canonical("[::ffff:127.0.0.1]:5".parse().unwrap()), "127.0.0.1:5".parse().unwrap());
        assert_eq!(canonical("[2001:db8::1]:5".parse().unwrap()), "[2001:db8::1]:5".parse().unwrap());
    }

    #[test]
    fn over_time_an_address_gets_at_most_its_rate() {
        let limit = RateLimit::new(10_000);
        let mut sent = 0;
        // 1,000 bytes every millisecond for ten seconds: a hundred times the rate.
        for step in 0..10_000 {
            if limit.take(ip("192.0.2.1"), 1000, limit.started + Duration::from_millis(step)) {
                sent += 1000;
            }
        }
        // The full bucket at first, and one reply that goes out whole.
        assert!((100_000..=111_000).contains(&sent), "{sent}");
    }

    #[test]
    fn addresses_have_separate_limits() {
        let limit = RateLimit::new(1000);
        let now = limit.started;
        assert!(limit.take(ip("192.0.2.1"), 5000, now));
        assert!(!limit.take(ip("192.0.2.1"), 1, now));
        assert!(limit.take(ip("192.0.2.2"), 1, now));
        assert!(limit.take(ip("2001:db8::1"), 5000, now));
        assert!(!limit.take(ip("2001:db8::2"), 1, now), "the same /64");
        assert!(limit.take(ip("2001:db8:0:1::1"), 1, now));
    }

    #[test]
    fn the_table_keeps_its_size_whatever_the_number_of_addresses() {
        let limit = RateLimit::new(1000);
        let debtor = ip("198.51.100.1");
        assert!(limit.take(debtor, 1_000_000, limit.started));
        for number in 0..100_000u32 {
            assert!(limit.take(IpAddr::V4(number.into()), 100, limit.started), "{number}");
        }
        assert_eq!(limit.sets.len() * WAYS, 4096);
        assert!(!limit.take(debtor, 1, limit.started), "who owes most keeps its place");
    }

    #[test]
    fn without_a_rate_there_is_neither_limit_nor_table() {
        let limit = RateLimit::new(0);
        assert!((0..100).all(|_| limit.take(ip("192.0.2.1"), u64::MAX, limit.started)));
        assert!(limit.sets.is_empty());
    }
}
