//! Protocols and ports as questions ask for them and answers name them (control.md 8.3).

use std::collections::BTreeMap;

use crate::file::{ProtoPorts, has_ports, protocol_name};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP_V6: u8 = 58;

/// What a rule without protocols is about.
const DEFAULT: [u8; 4] = [ICMP, TCP, UDP, ICMP_V6];

/// What somebody wants to send.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Query {
    /// `None`: TCP or UDP with a port, anything without.
    pub(super) protocol: Option<u8>,
    /// `None`: any. Protocols without ports have none.
    pub(super) port: Option<u16>,
}

impl Query {
    /// Does `allowed` let it through?
    pub(super) fn is_within(self, allowed: &ProtoPorts) -> bool {
        let protocols = protocols(allowed);
        let wanted = match (self.protocol, self.port) {
            (Some(protocol), _) => protocols.contains(&protocol),
            (None, Some(_)) => protocols.contains(&TCP) || protocols.contains(&UDP),
            (None, None) => true,
        };
        wanted
            && self
                .port
                .filter(|_| self.protocol.is_none_or(has_ports))
                .is_none_or(|port| (allowed.first..=allowed.last).contains(&port))
    }
}

fn protocols(ports: &ProtoPorts) -> &[u8] {
    if ports.protocols.is_empty() {
        &DEFAULT
    } else {
        &ports.protocols
    }
}

/// A set of protocols and ports: by protocol the ranges of ports, ascending and apart.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct PortSet(BTreeMap<u8, Vec<(u16, u16)>>);

impl PortSet {
    /// Adds what a rule allows. Protocols without ports are in it whole.
    pub(super) fn insert(&mut self, ports: &ProtoPorts) {
        for protocol in protocols(ports) {
            let range = if has_ports(*protocol) {
                (ports.first, ports.last)
            } else {
                (0, u16::MAX)
            };
            let ranges = self.0.entry(*protocol).or_default();
            ranges.push(range);
            normalise(ranges);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is in `self` and not in `other`.
    pub(super) fn without(&self, other: &Self) -> Self {
        let mut rest = BTreeMap::new();
        for (protocol, ranges) in &self.0 {
            let removed = other.0.get(protocol).map_or(&[][..], Vec::as_slice);
            let left = subtract(ranges, removed);
            if !left.is_empty() {
                rest.insert(*protocol, left);
            }
        }
        Self(rest)
    }

    /// `*`, or `22`, `80-443` (TCP and UDP), `tcp:22`, `gre`, ascending. ICMP comes with ports of
    /// the same rule and is only named where it stands alone.
    pub(super) fn names(&self) -> Vec<String> {
        let is_whole =
            |protocol: &u8| self.0.get(protocol).map(Vec::as_slice) == Some(&[(0, u16::MAX)]);
        if DEFAULT.iter().all(is_whole) {
            let others = self.0.keys().filter(|it| !DEFAULT.contains(it));
            let others = others.map(|protocol| protocol_name(*protocol));
            return std::iter::once("*".to_owned()).chain(others).collect();
        }
        let none = Vec::new();
        let of = |protocol| self.0.get(&protocol).unwrap_or(&none);
        let (tcp, udp) = (of(TCP), of(UDP));
        let in_both = intersect(tcp, udp);
        let mut names: Vec<String> = in_both.iter().map(range_name).collect();
        for (protocol, ranges) in &self.0 {
            let name = protocol_name(*protocol);
            match *protocol {
                TCP | UDP => {
                    let alone = subtract(ranges, &in_both);
                    names.extend(alone.iter().map(|it| format!("{name}:{}", range_name(it))));
                }
                ICMP | ICMP_V6 if !(tcp.is_empty() && udp.is_empty()) => {}
                _ if is_whole(protocol) => names.push(name),
                _ => names.extend(ranges.iter().map(|it| format!("{name}:{}", range_name(it)))),
            }
        }
        names
    }
}

impl FromIterator<ProtoPorts> for PortSet {
    fn from_iter<T: IntoIterator<Item = ProtoPorts>>(all: T) -> Self {
        let mut set = Self::default();
        for ports in all {
            set.insert(&ports);
        }
        set
    }
}

fn range_name((first, last): &(u16, u16)) -> String {
    match (*first, *last) {
        (0, u16::MAX) => "*".to_owned(),
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    }
}

/// Sorts ranges and joins those that touch.
fn normalise(ranges: &mut Vec<(u16, u16)>) {
    ranges.sort_unstable();
    let mut joined: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
    for &(first, last) in &*ranges {
        match joined.last_mut() {
            Some(before) if u32::from(first) <= u32::from(before.1) + 1 => {
                before.1 = before.1.max(last);
            }
            _ => joined.push((first, last)),
        }
    }
    *ranges = joined;
}

fn subtract(ranges: &[(u16, u16)], removed: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let mut rest = Vec::new();
    for &(first, last) in ranges {
        // One past the last port that is decided; u32, since that may be 65536.
        let mut next = u32::from(first);
        for &(from, to) in removed {
            if from > last || u32::from(to) < next {
                continue;
            }
            if let Ok(start) = u16::try_from(next)
                && start < from
            {
                rest.push((start, from - 1));
            }
            next = u32::from(to) + 1;
        }
        if let Ok(start) = u16::try_from(next)
            && start <= last
        {
            rest.push((start, last));
        }
    }
    rest
}

fn intersect(a: &[(u16, u16)], b: &[(u16, u16)]) -> Vec<(u16, u16)> {
    subtract(a, &subtract(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(protocols: &[u8], first: u16, last: u16) -> ProtoPorts {
        ProtoPorts {
            protocols: protocols.to_vec(),
            first,
            last,
        }
    }

    fn set(all: &[ProtoPorts]) -> PortSet {
        all.iter().cloned().collect()
    }

    #[test]
    fn a_difference_splits_ranges() {
        let all = set(&[ports(&[TCP], 0, u16::MAX)]);
        let ssh = set(&[ports(&[TCP], 22, 22)]);
        assert_eq!(all.without(&ssh).names(), ["tcp:0-21", "tcp:23-65535"]);
        assert!(ssh.without(&all).is_empty());
        let top = set(&[ports(&[TCP], 1000, u16::MAX)]);
        assert_eq!(all.without(&top).names(), ["tcp:0-999"]);
    }

    #[test]
    fn names_are_short_where_tcp_and_udp_agree() {
        assert_eq!(set(&[ports(&[], 0, u16::MAX)]).names(), ["*"]);
        assert_eq!(set(&[ports(&[], 22, 22)]).names(), ["22"]);
        let mixed = set(&[ports(&[], 53, 53), ports(&[TCP], 80, 90)]);
        assert_eq!(mixed.names(), ["53", "tcp:80-90"]);
        assert_eq!(
            set(&[ports(&[ICMP, 47], 0, u16::MAX)]).names(),
            ["icmp", "gre"]
        );
    }

    #[test]
    fn ranges_that_touch_are_one() {
        let touching = [ports(&[UDP], 10, 19), ports(&[UDP], 20, 29)];
        assert_eq!(set(&touching).names(), ["udp:10-29"]);
    }

    #[test]
    fn a_query_without_a_protocol_is_tcp_or_udp() {
        let query = |protocol, port| Query { protocol, port };
        assert!(query(None, Some(53)).is_within(&ports(&[UDP], 53, 53)));
        assert!(!query(None, Some(53)).is_within(&ports(&[ICMP], 0, u16::MAX)));
        assert!(!query(Some(TCP), Some(53)).is_within(&ports(&[UDP], 53, 53)));
        assert!(query(Some(ICMP), Some(53)).is_within(&ports(&[], 80, 80)));
        assert!(query(None, None).is_within(&ports(&[47], 0, u16::MAX)));
        assert!(!query(None, Some(54)).is_within(&ports(&[], 80, 443)));
    }
}
