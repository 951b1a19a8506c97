//! A set of addresses, made of prefixes and ranges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A set of addresses of both families. Looking one up takes logarithmic time in the ranges.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct IpSet {
    v4: Ranges,
    v6: Ranges,
}

impl IpSet {
    /// Every address of both families.
    #[must_use]
    pub fn all() -> Self {
        Self {
            v4: Ranges(vec![(0, u128::from(u32::MAX))]),
            v6: Ranges(vec![(0, u128::MAX)]),
        }
    }

    /// Whether there is no address in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.0.is_empty() && self.v6.0.is_empty()
    }

    /// Whether the address is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (v4, number) = number(address);
        if v4 { &self.v4 } else { &self.v6 }.contains(number)
    }

    /// Whether some address of the prefix is in it.
    #[must_use]
    pub fn overlaps(&self, prefix: IpNet) -> bool {
        let (v4, first, last) = bounds(prefix);
        if v4 { &self.v4 } else { &self.v6 }.overlaps(first, last)
    }

    /// Adds a prefix; host bits are ignored.
    pub fn add(&mut self, prefix: IpNet) {
        let (v4, first, last) = bounds(prefix);
        self.family(v4).add(first, last);
    }

    /// Adds `first..=last`. Nothing if they are of two families or the wrong way round.
    pub fn add_range(&mut self, first: IpAddr, last: IpAddr) {
        let ((v4, first), (last_v4, last)) = (number(first), number(last));
        if v4 == last_v4 && first <= last {
            self.family(v4).add(first, last);
        }
    }

    /// Adds all of another set.
    pub fn add_all(&mut self, other: &Self) {
        for (first, last) in &other.v4.0 {
            self.v4.add(*first, *last);
        }
        for (first, last) in &other.v6.0 {
            self.v6.add(*first, *last);
        }
    }

    /// Removes a prefix; host bits are ignored.
    pub fn remove(&mut self, prefix: IpNet) {
        let (v4, first, last) = bounds(prefix);
        self.family(v4).remove(first, last);
    }

    /// The fewest prefixes that hold these addresses and no others, in rising order, IPv4 first.
    #[must_use]
    pub fn prefixes(&self) -> Vec<IpNet> {
        let v4 = self.v4.prefixes(32).map(|(first, len)| {
            let address = Ipv4Addr::from(u32::try_from(first).unwrap_or(u32::MAX));
            IpNet::V4(Ipv4Net::new_assert(address, len))
        });
        let v6 = self
            .v6
            .prefixes(128)
            .map(|(first, len)| IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from(first), len)));
        v4.chain(v6).collect()
    }

    fn family(&mut self, v4: bool) -> &mut Ranges {
        if v4 { &mut self.v4 } else { &mut self.v6 }
    }
}

impl FromIterator<IpNet> for IpSet {
    fn from_iter<I: IntoIterator<Item = IpNet>>(prefixes: I) -> Self {
        let mut set = Self::default();
        for prefix in prefixes {
            set.add(prefix);
        }
        set
    }
}

/// Disjoint ranges, both ends included, in rising order. Never adjacent, so that equal sets are
/// equal.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Ranges(Vec<(u128, u128)>);

impl Ranges {
    fn contains(&self, number: u128) -> bool {
        self.overlaps(number, number)
    }

    fn overlaps(&self, first: u128, last: u128) -> bool {
        let next = self.0.partition_point(|range| range.1 < first);
        self.0.get(next).is_some_and(|range| range.0 <= last)
    }

    /// First address and length of each prefix, of addresses of so many bits.
    fn prefixes(&self, bits: u8) -> impl Iterator<Item = (u128, u8)> {
        self.0.iter().flat_map(move |(first, last)| {
            let mut rest = Some(*first);
            std::iter::from_fn(move || {
                let first = rest.take_if(|first| *first <= *last)?;
                // As many host bits as the address ends in zeros, and as the range has room for.
                let zeros = first.trailing_zeros().min(bits.into());
                let room = match (*last - first).checked_add(1) {
                    Some(size) => size.ilog2(),
                    None => 128,
                };
                let host_bits = zeros.min(room);
                rest = 1u128
                    .checked_shl(host_bits)
                    .and_then(|size| first.checked_add(size));
                Some((first, bits - host_bits as u8))
            })
        })
    }

    fn add(&mut self, first: u128, last: u128) {
        // What touches the new range, adjacent ranges included, becomes one with it.
        let from = self
            .0
            .partition_point(|range| range.1 < first.saturating_sub(1));
        let to = self
            .0
            .partition_point(|range| range.0 <= last.saturating_add(1));
        let mut joined = (first, last);
        for range in self.0.drain(from..to) {
            joined = (joined.0.min(range.0), joined.1.max(range.1));
        }
        self.0.insert(from, joined);
    }

    fn remove(&mut self, first: u128, last: u128) {
        let from = self.0.partition_point(|range| range.1 < first);
        let to = self.0.partition_point(|range| range.0 <= last);
        let cut: Vec<_> = self.0.drain(from..to).collect();
        let mut rest = Vec::new();
        if let Some((begin, _)) = cut.first()
            && *begin < first
        {
            rest.push((*begin, first - 1));
        }
        if let Some((_, end)) = cut.last()
            && *end > last
        {
            rest.push((last + 1, *end));
        }
        self.0.splice(from..from, rest);
    }
}

fn number(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(address) => (true, u128::from(u32::from(address))),
        IpAddr::V6(address) => (false, u128::from(address)),
    }
}

fn bounds(prefix: IpNet) -> (bool, u128, u128) {
    let (v4, first) = number(prefix.network());
    let (_, last) = number(prefix.broadcast());
    (v4, first, last)
}

/// The address as the sets of this crate and packets tell it.
pub(crate) trait ToIp {
    fn to_ip(self) -> IpAddr;
}

impl ToIp for [u8; 4] {
    fn to_ip(self) -> IpAddr {
        self.into()
    }
}

impl ToIp for [u8; 16] {
    fn to_ip(self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from(self))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn families_do_not_mix() {
        let set: IpSet = ["0.0.0.0/0".parse().unwrap()].into_iter().collect();
        assert!(set.contains(ip("255.255.255.255")));
        assert!(!set.contains(ip("::")));
        assert!(!set.contains(ip("::ffff:1.2.3.4")));
    }

    #[test]
    fn the_ends_of_the_number_line_are_ordinary() {
        let mut set = IpSet::all();
        set.remove("0.0.0.0/32".parse().unwrap());
        set.remove("ffff::/16".parse().unwrap());
        assert!(!set.contains(ip("0.0.0.0")) && set.contains(ip("0.0.0.1")));
        assert!(!set.contains(ip("ffff::1")) && set.contains(ip("fffe::1")));
        set.add("0.0.0.0/0".parse().unwrap());
        set.add("::/0".parse().unwrap());
        assert_eq!(set, IpSet::all());
    }

    #[test]
    fn prefixes_hold_what_the_set_holds_and_are_few() {
        let texts = |set: &IpSet| -> Vec<String> {
            set.prefixes().iter().map(ToString::to_string).collect()
        };
        assert_eq!(texts(&IpSet::all()), ["0.0.0.0/0", "::/0"]);
        let mut set = IpSet::default();
        assert!(texts(&set).is_empty());
        set.add_range(ip("10.0.0.1"), ip("10.0.0.6"));
        set.add_range(ip("fe80::"), ip("fe80::ffff"));
        assert_eq!(
            texts(&set),
            [
                "10.0.0.1/32",
                "10.0.0.2/31",
                "10.0.0.4/31",
                "10.0.0.6/32",
                "fe80::/112"
            ]
        );
        let mut set = IpSet::all();
        set.remove("128.0.0.0/1".parse().unwrap());
        set.remove("::/0".parse().unwrap());
        set.add(IpNet::from(ip("255.255.255.255")));
        set.add(IpNet::from(ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")));
        let prefixes = set.prefixes();
        assert_eq!(prefixes.into_iter().collect::<IpSet>(), set);
    }

    #[test]
    fn a_range_backwards_or_across_families_adds_nothing() {
        let mut set = IpSet::default();
        set.add_range(ip("10.0.0.2"), ip("10.0.0.1"));
        set.add_range(ip("10.0.0.2"), ip("::1"));
        assert!(set.is_empty());
        set.add_range(ip("10.0.0.1"), ip("10.0.0.2"));
        assert!(set.contains(ip("10.0.0.1")) && set.contains(ip("10.0.0.2")));
        assert!(!set.contains(ip("10.0.0.0")) && !set.contains(ip("10.0.0.3")));
    }

    proptest! {
        #[test]
        fn ranges_agree_with_a_bitmap(
            steps in prop::collection::vec((any::<bool>(), 0u128..64, 0u128..64), 0..20),
        ) {
            let mut ranges = Ranges::default();
            let mut bitmap = 0u64;
            for (add, a, b) in steps {
                let (first, last) = (a.min(b), a.max(b));
                let bits = (first..=last).fold(0u64, |bits, bit| bits | 1 << bit);
                if add {
                    ranges.add(first, last);
                    bitmap |= bits;
                } else {
                    ranges.remove(first, last);
                    bitmap &= !bits;
                }
                prop_assert!(ranges.0.is_sorted() && ranges.0.iter().all(|range| range.0 <= range.1));
                prop_assert!(ranges.0.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
            }
            for number in 0..64 {
                prop_assert_eq!(ranges.contains(number), bitmap & (1 << number) != 0);
            }
            for first in 0..64 {
                let any = (first..64.min(first + 5)).any(|number| ranges.contains(number));
                prop_assert_eq!(ranges.overlaps(first, (first + 4).min(63)), any);
            }
        }
    }
}
