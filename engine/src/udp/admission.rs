//! Which UDP requests the server answers: the rule that keeps attackers from using it to flood a third party.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use crate::net::network::Network;
use crate::udp::address_limits::{RateLimit, canonical};
use crate::udp::codec::{COOKIE, UdpRequest};
use crate::udp::cookie::Cookies;
use crate::udp::counts::Counts;

#[derive(Debug)]
pub struct Admission {
    pub counts: Counts,
    cookies: Cookies,
    limit: RateLimit,
    trusted: Vec<Network>,
}

/// The decision on a UDP request.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Serve,
    /// The client must first show this cookie, to prove its address.
    Retry([u8; COOKIE]),
    Drop,
}

impl Admission {
    /// `rate_limit` is in bytes a second towards one address; 0: no limit.
    pub fn new(trusted: Vec<Network>, rate_limit: u64) -> rustix::io::Result<Self> {
        Ok(Admission {
            counts: Counts::default(),
            cookies: Cookies::new()?,
            limit: RateLimit::new(rate_limit),
            trusted,
        })
    }

    /// Decides on a UDP request by its claimed source address, and counts it.
    ///
    /// Loopback is trusted: the kernel accepts no loopback source address from a network.
    pub fn evaluate(&self, request: &UdpRequest<'_>, from: SocketAddr, now: Instant) -> Verdict {
        let from = canonical(from);
        let counts = &self.counts;
        match request {
            UdpRequest::Noise => {
                counts.noise_received.fetch_add(1, Relaxed);
                Verdict::Drop
            }
            // The kernel cannot send to port 0.
            _ if from.port() == 0 => {
                counts.noise_received.fetch_add(1, Relaxed);
                Verdict::Drop
            }
            UdpRequest::Plain(_) => {
                counts.plain_received.fetch_add(1, Relaxed);
                let trusted = self.trusted.iter().any(|network| network.contains(from.ip()));
                if from.ip().is_loopback() || trusted {
                    return Verdict::Serve;
                }
                counts.untrusted_dropped.fetch_add(1, Relaxed);
                Verdict::Drop
            }
            UdpRequest::Pull(pull) => {
                counts.pull_received.fetch_add(1, Relaxed);
                let is_known = || pull.cookie.is_some_and(|cookie| self.cookies.verify(&cookie, from, now));
                if from.ip().is_loopback() || is_known() {
                    return Verdict::Serve;
                }
                Verdict::Retry(self.cookies.make(from, now))
            }
        }
    }

    /// Whether the server may send `bytes` more to an admitted address. Counts a refusal as dropped.
    pub fn may_send(&self, to: SocketAddr, bytes: usize, now: Instant) -> bool {
        let ip = canonical(to).ip();
        let may = ip.is_loopback() || self.limit.take(ip, bytes as u64, now);
        if !may {
            self.counts.limited_dropped.fetch_add(1, Relaxed);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::udp::codec::{MAX_REQUEST, PULL_HEAD, Pull, RETRY_LENGTH, encode_pull};
    use proptest::prelude::*;

    const PLAIN: &[u8] = b"2\0\x02/a";

    fn admission(trusted: &[&str], rate: u64) -> Admission {
        Admission::new(trusted.iter().map(|text| text.parse().unwrap()).collect(), rate).unwrap()
    }

    fn pull(cookie: Option<[u8; COOKIE]>) -> Vec<u8> {
        let mut out = Vec::new();
        let pull = Pull { request_id: 1, offset: 0, length: 1000, chunk: 1152, cookie, uri: Ok("/a") };
        encode_pull(&mut out, &pull, "/a");
        out
    }

    fn evaluate(admission: &Admission, datagram: &[u8], from: &str) -> Verdict {
        admission.evaluate(&UdpRequest::decode(datagram), from.parse().unwrap(), Instant::now())
    }

    #[test]
    fn loopback_is_served_without_a_cookie() {
        let admission = admission(&[], 0);
        for from in ["127.0.0.1:5", "127.9.9.9:5", "[::1]:5", "[::ffff:127.0.0.1]:5"] {
            assert_eq!(evaluate(&admission, PLAIN, from), Verdict::Serve, "{from}");
            assert_eq!(evaluate(&admission, &pull(None), from), Verdict::Serve, "{from}");
        }
    }

    #[test]
    fn plain_requests_are_served_to_trusted_networks_only() {
        let admission = admission(&["192.0.2.0/24", "2001:db8::/32"], 0);
        for from in ["192.0.2.9:5", "[2001:db8::9]:5", "[::ffff:192.0.2.9]:5"] {
            assert_eq!(evaluate(&admission, PLAIN, from), Verdict::Serve, "{from}");
        }
        for from in ["198.51.100.1:5", "[2001:db9::1]:5"] {
            assert_eq!(evaluate(&admission, PLAIN, from), Verdict::Drop, "{from}");
        }
        assert_eq!(admission.counts.untrusted_dropped.load(Relaxed), 2);
    }

    #[test]
    fn a_pull_from_elsewhere_must_show_its_cookie_even_where_the_network_is_trusted() {
        let admission = admission(&["192.0.2.0/24"], 0);
        for from in ["192.0.2.9:5", "198.51.100.1:5", "[2001:db8::9]:5"] {
            let Verdict::Retry(cookie) = evaluate(&admission, &pull(None), from) else { panic!("{from}") };
            assert_eq!(evaluate(&admission, &pull(Some(cookie)), from), Verdict::Serve, "{from}");
            assert_eq!(evaluate(&admission, &pull(Some(cookie)), "203.0.113.7:5"), {
                let other = admission.cookies.make("203.0.113.7:5".parse().unwrap(), Instant::now());
                Verdict::Retry(other)
            });
        }
    }

    #[test]
    fn nothing_is_sent_to_port_0() {
        let admission = admission(&[], 0);
        assert_eq!(evaluate(&admission, PLAIN, "127.0.0.1:0"), Verdict::Drop);
        assert_eq!(evaluate(&admission, &pull(None), "192.0.2.1:0"), Verdict::Drop);
    }

    #[test]
    fn loopback_has_no_rate_limit() {
        let admission = admission(&[], 1000);
        let now = Instant::now();
        for to in ["127.0.0.1:5", "[::1]:5"] {
            assert!((0..100).all(|_| admission.may_send(to.parse().unwrap(), 1_000_000, now)));
        }
        let far = "192.0.2.1:5".parse().unwrap();
        assert!(admission.may_send(far, 1_000_000, now));
        assert!(!admission.may_send(far, 1, now));
        assert_eq!(admission.counts.limited_dropped.load(Relaxed), 1);
    }

    proptest! {
        /// An address without a valid cookie gets 24 bytes for a request of at least 25, or nothing.
        #[test]
        fn without_a_cookie_a_reply_is_never_longer_than_the_request(
            mut datagram in prop::collection::vec(any::<u8>(), 0..MAX_REQUEST),
            begins_well in any::<bool>(),
        ) {
            if begins_well && datagram.len() > 4 {
                datagram[..3].copy_from_slice(b"U\x01\x00");
                datagram[3] = if datagram[3] & 1 == 0 { 0 } else { COOKIE as u8 };
            }
            match evaluate(&admission(&[], 0), &datagram, "198.51.100.1:5") {
                Verdict::Drop => {}
                Verdict::Retry(_) => prop_assert!(datagram.len() >= PULL_HEAD && PULL_HEAD >= RETRY_LENGTH),
                Verdict::Serve => prop_assert!(false, "served"),
            }
        }
    }
}
