//! UDP requests that the storage pool works on: the limits per port, per address and in all.
//!
//! Each port and address may take a part of the free places (the dynamic threshold of Choudhury and Hahne,
//! see `fd/budget.rs`), so a client with many requests leaves places for the next one. Taking a place costs a
//! lock; only a request that must wait for a disk takes one.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::sync::unpoisoned;
use crate::udp::address_limits::canonical;

/// Waiting UDP requests of one port, however many places there are.
const MAX_PER_PORT: usize = 64;

#[derive(Debug)]
pub struct Deferred {
    capacity: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    of_address: HashMap<IpAddr, usize>,
    of_port: HashMap<SocketAddr, usize>,
}

/// The place of one waiting UDP request.
#[derive(Debug)]
pub struct Permit {
    deferred: Arc<Deferred>,
    from: SocketAddr,
}

impl Deferred {
    /// Allows `capacity` in all.
    pub fn new(capacity: usize) -> Arc<Deferred> {
        Arc::new(Deferred { capacity, counts: Mutex::default() })
    }

    /// Number of waiting requests.
    pub fn count(&self) -> usize {
        self.counts().all
    }

    /// A place for one more UDP request; None where the client has its share. A port may take half of the
    /// free places, and an address, over all its ports, half as well.
    pub fn take(self: &Arc<Self>, from: SocketAddr) -> Option<Permit> {
        let from = canonical(from);
        let mut counts = self.counts();
        let free = self.capacity.saturating_sub(counts.all);
        let of_port = counts.of_port.get(&from).copied().unwrap_or(0);
        let of_address = counts.of_address.get(&from.ip()).copied().unwrap_or(0);
        let has_share = of_port < (free / 2).clamp(1, MAX_PER_PORT) && of_address < free.max(1);
        if free == 0 || !has_share {
            return None;
        }
        counts.all += 1;
        *counts.of_port.entry(from).or_default() += 1;
        *counts.of_address.entry(from.ip()).or_default() += 1;
        Some(Permit { deferred: Arc::clone(self), from })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        unpoisoned(self.counts.lock())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.deferred.counts();
        counts.all -= 1;
        count_out(&mut counts.of_port, &self.from);
        count_out(&mut counts.of_address, &self.from.ip());
    }
}

/// Counts one fewer; removes the entry at 0.
fn count_out<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// Takes free places until `take` refuses one.
    fn take_all(deferred: &Arc<Deferred>, from: SocketAddr) -> Vec<Permit> {
        std::iter::from_fn(|| deferred.take(from)).collect()
    }

    #[test]
    fn ports_and_addresses_leave_permits_to_each_other() {
        let deferred = Deferred::new(100);
        let mut permits = take_all(&deferred, address("192.0.2.1:1"));
        assert_eq!(permits.len(), 33, "a third: half of what is free then");
        permits.extend(
            (2..1000)
                .flat_map(|port| take_all(&deferred, SocketAddr::new(address("192.0.2.1:1").ip(), port))),
        );
        assert_eq!(permits.len(), 50, "half, over all ports");
        let other = take_all(&deferred, address("192.0.2.2:1"));
        assert_eq!(other.len(), 17, "a third of what is left");
        assert_eq!(deferred.take(address("[::ffff:192.0.2.1]:2000")).map(drop), None, "the same address");
        for number in 0..200u8 {
            permits.extend(deferred.take(SocketAddr::new([198, 51, 100, number].into(), 1)));
        }
        assert_eq!(deferred.count(), 100, "and not one more");
        drop((permits, other));
        let counts = deferred.counts();
        assert!(counts.all == 0 && counts.of_address.is_empty() && counts.of_port.is_empty(), "{counts:?}");
    }

    #[test]
    fn a_port_is_capped_and_a_single_permit_goes_to_any_client() {
        assert_eq!(take_all(&Deferred::new(10_000), address("192.0.2.1:1")).len(), MAX_PER_PORT);
        assert_eq!(take_all(&Deferred::new(1), address("192.0.2.1:1")).len(), 1);
        assert_eq!(take_all(&Deferred::new(0), address("192.0.2.1:1")).len(), 0);
    }
}
