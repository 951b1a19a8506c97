//! Overlay addresses: which may be given out, and which comes next.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4AddrRange, Ipv4Net};

/// First address of 100.64.0.0/10, the only IPv4 range that clients treat as overlay.
const BASE: u32 = u32::from_be_bytes([100, 64, 0, 0]);
/// Number of addresses in 100.64.0.0/10.
pub const SPAN: u32 = 1 << 22;
/// fd7a:115c:a1e0::/48, the only IPv6 range that clients treat as overlay.
const BASE_V6: [u16; 3] = [0xfd7a, 0x115c, 0xa1e0];

/// The addresses of one node: one of each family, for the node's whole life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Addresses {
    /// Inside 100.64.0.0/10, outside the reserved ranges.
    pub v4: Ipv4Addr,
    /// `fd7a:115c:a1e0::` with the IPv4 address in its last 32 bits.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// The pair at `offset` (0..[`SPAN`]) of the range, or `None` where no node may live.
    #[must_use]
    pub fn at(offset: u32) -> Option<Self> {
        if offset >= SPAN {
            return None;
        }
        let v4 = Ipv4Addr::from(BASE + offset);
        if is_reserved(v4) {
            return None;
        }
        let [a, b, c, d] = v4.octets();
        let [p0, p1, p2] = BASE_V6;
        let v6 = Ipv6Addr::new(
            p0,
            p1,
            p2,
            0,
            0,
            0,
            u16::from_be_bytes([a, b]),
            u16::from_be_bytes([c, d]),
        );
        Some(Self { v4, v6 })
    }

    /// The pair with this IPv4 address, or `None` where no node may live.
    #[must_use]
    pub fn with_v4(v4: Ipv4Addr) -> Option<Self> {
        Self::at(u32::from(v4).checked_sub(BASE)?)
    }

    /// Seeks the first free pair in `pools`, of which `cursor` says how many addresses to pass over
    /// first; wraps once around. Returns the pair and the new cursor.
    #[must_use]
    pub fn next_in(
        pools: &[Ipv4Net],
        cursor: u32,
        taken: impl Fn(Ipv4Addr) -> bool,
    ) -> Option<(Self, u32)> {
        let free = |v4| Self::with_v4(v4).filter(|pair| !taken(pair.v4));
        let addresses = || {
            let all = pools
                .iter()
                .flat_map(|pool| Ipv4AddrRange::new(pool.network(), pool.broadcast()));
            (0..SPAN).zip(all)
        };
        let after = addresses().filter(|(index, _)| *index > cursor);
        let before = addresses().filter(|(index, _)| *index <= cursor);
        let mut seek = after.chain(before);
        seek.find_map(|(index, v4)| Some((free(v4)?, index)))
    }

    /// Seeks the first free pair after `cursor`, wrapping once around the range.
    ///
    /// Going forward from the last one given out keeps a freed address unused for as long as
    /// possible: peers may still have it cached. Returns the pair and the new cursor.
    #[must_use]
    pub fn next(cursor: u32, taken: impl Fn(Ipv4Addr) -> bool) -> Option<(Self, u32)> {
        (1..=SPAN)
            .map(|step| (cursor % SPAN + step) % SPAN)
            .find_map(|offset| {
                Addresses::at(offset)
                    .filter(|pair| !taken(pair.v4))
                    .map(|pair| (pair, offset))
            })
    }
}

/// Ranges inside 100.64.0.0/10 that no node may have (protocol digest section 9).
fn is_reserved(address: Ipv4Addr) -> bool {
    let [a, b, c, d] = address.octets();
    let quad100 = (a, b, c) == (100, 100, 100);
    // ChromeOS puts its containers into 100.115.92.0/23.
    let chrome_os = (a, b) == (100, 115) && (c == 92 || c == 93);
    quad100 || chrome_os || d == 0 || d == 255
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_node_gets_the_first_usable_address() {
        let (pair, cursor) = Addresses::next(0, |_| false).unwrap();
        assert_eq!(pair.v4, Ipv4Addr::new(100, 64, 0, 1));
        assert_eq!(
            pair.v6,
            "fd7a:115c:a1e0::6440:1".parse::<Ipv6Addr>().unwrap()
        );
        assert_eq!(cursor, 1);
    }

    #[test]
    fn reserved_ranges_are_never_given_out() {
        let mut cursor = u32::from_be_bytes([100, 100, 99, 250]) - BASE;
        for _ in 0..20 {
            let (pair, next) = Addresses::next(cursor, |_| false).unwrap();
            assert!(!is_reserved(pair.v4));
            assert_ne!(pair.v4.octets()[..3], [100, 100, 100]);
            cursor = next;
        }
        let before = u32::from_be_bytes([100, 115, 91, 254]) - BASE;
        let (pair, _) = Addresses::next(before, |_| false).unwrap();
        assert_eq!(pair.v4, Ipv4Addr::new(100, 115, 94, 1));
    }

    #[test]
    fn a_freed_address_is_not_given_out_again_at_once() {
        let (first, cursor) = Addresses::next(0, |_| false).unwrap();
        let (second, _) = Addresses::next(cursor, |_| false).unwrap();
        assert_ne!(first, second);
    }

    #[test]
    fn the_search_wraps_around_and_ends_when_all_is_taken() {
        let free = Ipv4Addr::new(100, 64, 3, 7);
        let (pair, _) = Addresses::next(SPAN - 2, |v4| v4 != free).unwrap();
        assert_eq!(pair.v4, free);
        assert!(Addresses::next(0, |_| true).is_none());
    }

    #[test]
    fn a_pool_gives_its_own_addresses_only_and_a_freed_one_not_at_once() {
        let pools: [Ipv4Net; 2] = [
            "100.80.0.0/30".parse().unwrap(),
            "100.90.0.4/32".parse().unwrap(),
        ];
        let mut taken = Vec::new();
        let mut cursor = 0;
        while let Some((pair, next)) = Addresses::next_in(&pools, cursor, |v4| taken.contains(&v4))
        {
            taken.push(pair.v4);
            cursor = next;
        }
        let expected = ["100.80.0.1", "100.80.0.2", "100.80.0.3", "100.90.0.4"];
        assert_eq!(
            taken.iter().map(ToString::to_string).collect::<Vec<_>>(),
            expected
        );
        let (again, _) = Addresses::next_in(&pools, 1, |_| false).unwrap();
        assert_eq!(
            again.v4.to_string(),
            "100.80.0.2",
            "after the last one given out"
        );
        assert!(Addresses::next_in(&["192.0.2.0/24".parse().unwrap()], 0, |_| false).is_none());
    }
}
