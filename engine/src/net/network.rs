//! A network in CIDR form.

use std::net::IpAddr;
use std::str::FromStr;

/// All addresses with one prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Without its host bits.
    bits: u128,
    mask: u128,
    is_v4: bool,
}

impl Network {
    /// Whether the address, in its canonical form, lies within.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.is_v4 && bits_of(ip) & self.mask == self.bits
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ip, prefix) = text.split_once('/').unwrap_or((text, ""));
        let wrong = || format!("expected a network such as 10.0.0.0/8 (got {text:?})");
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        let width = if ip.is_ipv4() { 32 } else { 128 };
        let prefix: u32 = if text.contains('/') { prefix.parse().map_err(|_| wrong())? } else { width };
        if prefix > width {
            return Err(wrong());
        }
        let all = u128::MAX >> (128 - width);
        let mask = all & !all.checked_shr(prefix).unwrap_or(0);
        Ok(Network { bits: bits_of(ip) & mask, mask, is_v4: ip.is_ipv4() })
    }
}

fn bits_of(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
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
    fn a_network_contains_addresses_with_its_prefix() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
            ("192.0.2.128/25", "192.0.2.129", "192.0.2.127"),
            ("10.1.2.3/8", "10.9.9.9", "9.1.2.3"),
            ("0.0.0.0/0", "203.0.113.1", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("::/0", "2001:db8::1", "203.0.113.1"),
            ("::1/128", "::1", "::2"),
        ] {
            let network: Network = network.parse().unwrap();
            assert!(network.contains(ip(inside)), "{network:?} {inside}");
            assert!(!network.contains(ip(outside)), "{network:?} {outside}");
        }
    }

    #[test]
    fn invalid_networks_are_refused() {
        for text in ["", "/", "10.0.0.0/", "10.0.0.0/33", "10.0.0/8", "::/129", "host/8", "10.0.0.0/-1"] {
            assert!(text.parse::<Network>().is_err(), "{text:?}");
        }
    }
}
