//! Cookies: a client proves that it receives what the server sends to its address. The server keeps no record
//! of the cookies it has given.
//!
//! A cookie is HMAC-SHA-256 over address, port and a bucket of 30 s, cut to 16 bytes (RFC 2104 allows half).
//! It is valid in its own bucket and the next. Secrets live for an hour. Each of two neighbouring buckets is
//! checked with the secret of its own hour, so a change of the secret rejects no valid cookie.

use hmac::{Hmac, KeyInit, Mac};
use rustix::io;
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::Sha256;
use std::net::{IpAddr, SocketAddr};
use std::sync::RwLock;
use std::time::{Duration, Instant};

use crate::sync::unpoisoned;
use crate::udp::codec::COOKIE;

const BUCKET: Duration = Duration::from_secs(30);
const BUCKETS_OF_A_SECRET: u64 = 120;

/// Makes cookies and verifies them.
#[derive(Debug)]
pub struct Cookies {
    started: Instant,
    secrets: RwLock<Secrets>,
}

/// The secrets of this hour and of the hour before.
#[derive(Clone)]
struct Secrets {
    hour: u64,
    current: Hmac<Sha256>,
    previous: Hmac<Sha256>,
}

// Keeps secrets out of logs.
impl std::fmt::Debug for Secrets {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Secrets of hour {}", self.hour)
    }
}

impl Cookies {
    /// Starts with new secrets. Fails where the kernel has no random bytes.
    pub fn new() -> io::Result<Self> {
        let secrets = Secrets { hour: 0, current: new_secret()?, previous: new_secret()? };
        Ok(Cookies { started: Instant::now(), secrets: RwLock::new(secrets) })
    }

    /// The cookie for this address, for the next 30 to 60 s.
    pub fn make(&self, to: SocketAddr, now: Instant) -> [u8; COOKIE] {
        let bucket = self.bucket(now);
        let mut cookie = [0; COOKIE];
        let whole = mac(self.secrets(bucket).for_bucket(bucket), to, bucket).finalize().into_bytes();
        cookie.copy_from_slice(&whole[..COOKIE]);
        cookie
    }

    /// Whether the server gave this cookie to this address lately. Takes the same time for every wrong cookie.
    pub fn verify(&self, cookie: &[u8; COOKIE], from: SocketAddr, now: Instant) -> bool {
        let bucket = self.bucket(now);
        let secrets = self.secrets(bucket);
        let buckets = [Some(bucket), bucket.checked_sub(1)];
        buckets
            .into_iter()
            .flatten()
            .any(|bucket| mac(secrets.for_bucket(bucket), from, bucket).verify_truncated_left(cookie).is_ok())
    }

    fn bucket(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_secs() / BUCKET.as_secs()
    }

    /// The secrets of the bucket's hour; makes them where the hour has just begun.
    fn secrets(&self, bucket: u64) -> Secrets {
        let hour = bucket / BUCKETS_OF_A_SECRET;
        let secrets = unpoisoned(self.secrets.read());
        if secrets.hour >= hour {
            return secrets.clone();
        }
        drop(secrets);
        let mut secrets = unpoisoned(self.secrets.write());
        // The kernel gave random bytes at the start and keeps giving them; otherwise the old secret stays in use.
        if secrets.hour < hour
            && let Ok(fresh) = new_secret()
        {
            // After a pause of more than an hour the previous secret verifies no cookie, and keeping it is harmless.
            secrets.previous = std::mem::replace(&mut secrets.current, fresh);
            secrets.hour = hour;
        }
        secrets.clone()
    }
}

impl Secrets {
    fn for_bucket(&self, bucket: u64) -> &Hmac<Sha256> {
        if bucket / BUCKETS_OF_A_SECRET >= self.hour { &self.current } else { &self.previous }
    }
}

fn new_secret() -> io::Result<Hmac<Sha256>> {
    let mut secret = [0u8; 32];
    let mut filled = 0;
    while filled < secret.len() {
        filled += getrandom(&mut secret[filled..], GetRandomFlags::empty())?;
    }
    match Hmac::new_from_slice(&secret) {
        Ok(keyed) => Ok(keyed),
        Err(error) => unreachable!("HMAC takes keys of every length: {error}"),
    }
}

fn mac(secret: &Hmac<Sha256>, address: SocketAddr, bucket: u64) -> Hmac<Sha256> {
    let mut mac = secret.clone();
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    mac.update(&ip.octets());
    mac.update(&address.port().to_be_bytes());
    mac.update(&bucket.to_be_bytes());
    mac
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn after(cookies: &Cookies, seconds: u64) -> Instant {
        cookies.started + Duration::from_secs(seconds)
    }

    #[test]
    fn a_cookie_is_good_for_its_own_address_and_port_alone() {
        let cookies = Cookies::new().unwrap();
        let now = after(&cookies, 1);
        let cookie = cookies.make(at("192.0.2.1:5000"), now);
        assert!(cookies.verify(&cookie, at("192.0.2.1:5000"), now));
        for other in ["192.0.2.1:5001", "192.0.2.2:5000", "[2001:db8::1]:5000"] {
            assert!(!cookies.verify(&cookie, at(other), now), "{other}");
        }
        assert!(!Cookies::new().unwrap().verify(&cookie, at("192.0.2.1:5000"), now), "another server's");
    }

    #[test]
    fn a_cookie_with_one_wrong_bit_is_rejected() {
        let cookies = Cookies::new().unwrap();
        let (peer, now) = (at("[2001:db8::1]:5000"), after(&cookies, 1));
        let cookie = cookies.make(peer, now);
        for bit in 0..8 * COOKIE {
            let mut forged = cookie;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(!cookies.verify(&forged, peer, now), "bit {bit}");
        }
    }

    #[test]
    fn a_cookie_lives_for_thirty_seconds_and_never_for_a_minute() {
        let peer = at("192.0.2.1:5000");
        for given in [0, 1, 29, 30, 59, 3590, 3599, 3600, 7199, 7200] {
            let cookies = Cookies::new().unwrap();
            let cookie = cookies.make(peer, after(&cookies, given));
            for age in [0, 1, 29, 30] {
                assert!(cookies.verify(&cookie, peer, after(&cookies, given + age)), "{given} + {age}");
            }
            for age in [60, 61, 3600, 7200] {
                assert!(!cookies.verify(&cookie, peer, after(&cookies, given + age)), "{given} + {age}");
            }
        }
    }

    #[test]
    fn a_server_that_slept_for_hours_still_makes_valid_cookies() {
        let cookies = Cookies::new().unwrap();
        let peer = at("192.0.2.1:5000");
        let cookie = cookies.make(peer, after(&cookies, 100_000));
        assert!(cookies.verify(&cookie, peer, after(&cookies, 100_010)));
    }
}
