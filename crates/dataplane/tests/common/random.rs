//! Numbers that look random and come again with the same seed, and short forms of addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use packet::SECOND;

/// xorshift64*, so that a seed means the same everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }

    pub(crate) fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Time from one packet to the next: often none, now and then on either side of a deadline.
    pub(crate) fn pause(&mut self) -> u64 {
        match self.below(16) {
            0 => SECOND,
            1 => SECOND - 1,
            2 => 30 * SECOND,
            3 => 30 * SECOND - 1,
            4 if self.one_in(3) => 60 * SECOND - self.below(2) as u64,
            5 if self.one_in(3) => 200 * SECOND - self.below(2) as u64,
            6 if self.one_in(20) => 5 * 24 * 3600 * SECOND - self.below(2) as u64,
            _ => self.below(1_000_000) as u64,
        }
    }
}

pub(crate) const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

pub(crate) const fn v6(network: u16, host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd7a, network, 0, 0, 0, 0, 0, host))
}
