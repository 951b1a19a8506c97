//! Overlay addresses: which may be given out, and which comes next.

use std::net::{Ipv4Addr, Ipv6Addr};

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
}
