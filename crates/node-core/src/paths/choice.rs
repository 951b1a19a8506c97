//! Which of two proved addresses is better (protocol/disco.md §6).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// An address that answered, and how quickly.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Proved {
    pub(super) address: SocketAddr,
    pub(super) latency: Duration,
}

/// Says whether `a` is worth leaving `b` for.
pub(super) fn better(a: Proved, b: Proved) -> bool {
    if a.address == b.address {
        return false;
    }
    let (mut points_a, mut points_b) = (bonus(a.address.ip()), bonus(b.address.ip()));
    if a.latency < b.latency {
        points_a += percent_faster(a.latency, b.latency);
    } else {
        points_b += percent_faster(b.latency, a.latency);
    }
    // Hysteresis: one point alone is jitter.
    (points_a > 1 || points_b > 0) && points_a > points_b
}

fn percent_faster(fast: Duration, slow: Duration) -> u128 {
    match slow.as_nanos() {
        0 => 0,
        slow => 100 - fast.as_nanos() * 100 / slow,
    }
}

fn bonus(ip: IpAddr) -> u128 {
    let (scope, family) = match ip {
        IpAddr::V4(ip) if ip.is_loopback() => (50, 0),
        IpAddr::V4(ip) if ip.is_link_local() => (30, 0),
        IpAddr::V4(ip) if ip.is_private() => (20, 0),
        IpAddr::V4(_) => (0, 0),
        IpAddr::V6(ip) if ip.is_loopback() => (50, 10),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => (30, 10),
        IpAddr::V6(ip) if ip.is_unique_local() => (20, 10),
        IpAddr::V6(_) => (0, 10),
    };
    scope + family
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proved(address: &str, micros: u64) -> Proved {
        Proved {
            address: address.parse().unwrap(),
            latency: Duration::from_micros(micros),
        }
    }

    #[test]
    fn one_per_cent_is_jitter_and_two_are_not() {
        let old = proved("192.0.2.1:1", 100_000);
        assert!(!better(proved("192.0.2.2:1", 99_000), old));
        assert!(better(proved("192.0.2.2:1", 98_000), old));
        assert!(!better(proved("192.0.2.2:1", 100_000), old));
    }

    #[test]
    fn ipv6_is_worth_ten_per_cent_and_a_lan_twenty() {
        let old = proved("192.0.2.1:1", 100_000);
        assert!(better(proved("[2001:db8::1]:1", 105_000), old));
        assert!(!better(proved("[2001:db8::1]:1", 120_000), old));
        assert!(better(proved("10.0.0.1:1", 120_000), old));
        assert!(!better(proved("10.0.0.1:1", 140_000), old));
        // Carrier-grade NAT is not a LAN.
        assert!(!better(proved("100.64.0.1:1", 105_000), old));
    }

    #[test]
    fn no_two_addresses_are_each_better_than_the_other() {
        let all: Vec<Proved> = [
            "192.0.2.1:1",
            "10.0.0.1:1",
            "[fd00::1]:1",
            "[2001:db8::1]:1",
        ]
        .iter()
        .flat_map(|a| [0, 1, 99, 100, 1000].map(|latency| proved(a, latency)))
        .collect();
        for a in &all {
            for b in &all {
                assert!(!(better(*a, *b) && better(*b, *a)), "{a:?} {b:?}");
            }
        }
    }
}
