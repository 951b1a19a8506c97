//! What the overlay programs count, and under which numbers.

use core::ops::AddAssign;

use crate::DropReason;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Names a peer inside the maps: in the values of `PEERS_V4`/`PEERS_V6`, the key of `PEER_COUNTS`.
///
/// The loader's caller chooses the numbers. They may be sparse; they must mean the same peer for
/// as long as the maps live, which is longer than the agent's process.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    Eq,
    FromBytes,
    Hash,
    Immutable,
    IntoBytes,
    KnownLayout,
    Ord,
    PartialEq,
    PartialOrd,
)]
#[repr(transparent)]
pub struct PeerIndex(pub u32);

/// Traffic with one peer: the per-CPU value of `PEER_COUNTS`.
///
/// `rx` is what the peer sent to us (overlay ingress), `tx` what we sent to it (overlay egress).
/// Packets are packets of the overlay network, not kernel buffers: a GSO or GRO buffer counts as
/// the packets it stands for. Bytes are IP bytes of those packets, each with its own headers.
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, PartialEq,
)]
#[repr(C)]
pub struct PeerCounters {
    /// Packets received from the peer.
    pub rx_packets: u64,
    /// IP bytes received from the peer.
    pub rx_bytes: u64,
    /// Packets sent to the peer.
    pub tx_packets: u64,
    /// IP bytes sent to the peer.
    pub tx_bytes: u64,
}
const _: () = assert!(size_of::<PeerCounters>() == 32);

impl AddAssign for PeerCounters {
    fn add_assign(&mut self, other: Self) {
        self.rx_packets = self.rx_packets.wrapping_add(other.rx_packets);
        self.rx_bytes = self.rx_bytes.wrapping_add(other.rx_bytes);
        self.tx_packets = self.tx_packets.wrapping_add(other.tx_packets);
        self.tx_bytes = self.tx_bytes.wrapping_add(other.tx_bytes);
    }
}

/// Packets and their IP bytes: the per-CPU value of `TOTALS`.
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, PartialEq,
)]
#[repr(C)]
pub struct Count {
    /// Packets, a GSO or GRO buffer counted as the packets it stands for.
    pub packets: u64,
    /// IP bytes of those packets.
    pub bytes: u64,
}
const _: () = assert!(size_of::<Count>() == 16);

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.packets = self.packets.wrapping_add(other.packets);
        self.bytes = self.bytes.wrapping_add(other.bytes);
    }
}

/// Direction of a packet as this host sees it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u32)]
pub enum Direction {
    /// From a peer: ingress of the overlay device.
    In = 0,
    /// To a peer: egress of the overlay device.
    Out = 1,
}

impl Direction {
    /// Both directions.
    pub const ALL: [Self; 2] = [Self::In, Self::Out];

    /// The program that counts this direction.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::In => crate::PROGRAM_IN,
            Self::Out => crate::PROGRAM_OUT,
        }
    }
}

/// What became of a packet; each packet is counted under exactly one.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u32)]
pub enum Reason {
    /// Counted for its peer.
    Counted = 0,
    /// No peer has the address: source on ingress, destination on egress.
    UnknownPeer = 1,
    /// Neither an IPv4 nor an IPv6 header.
    NotIp = 2,
    /// Shorter than its IP header says.
    Truncated = 3,
}

impl Reason {
    /// Every reason, by number.
    pub const ALL: [Self; 4] = [
        Self::Counted,
        Self::UnknownPeer,
        Self::NotIp,
        Self::Truncated,
    ];

    /// The reason's name in metrics and in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counted => "counted",
            Self::UnknownPeer => "unknown_peer",
            Self::NotIp => "not_ip",
            Self::Truncated => "truncated",
        }
    }
}

/// Slots per direction in `TOTALS`; leaves room for reasons to come without a new layout.
pub const REASON_SLOTS: u32 = 32;
const _: () = assert!(Reason::ALL.len() + DropReason::ALL.len() <= REASON_SLOTS as usize);

/// Returns the index in `TOTALS` of packets in `direction` that ended with the [`Reason`] or
/// [`DropReason`] of this number.
#[inline(always)]
#[must_use]
pub const fn total_slot(direction: Direction, number: u32) -> u32 {
    direction as u32 * REASON_SLOTS + number % REASON_SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_direction_and_number_has_its_own_slot() {
        let mut seen = [false; (2 * REASON_SLOTS) as usize];
        for direction in Direction::ALL {
            for reason in 0..REASON_SLOTS {
                let slot = total_slot(direction, reason) as usize;
                assert!(!seen[slot], "slot {slot} is used twice");
                seen[slot] = true;
            }
        }
    }

    #[test]
    fn reasons_stand_at_their_numbers() {
        for (number, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
        }
    }

    #[test]
    fn values_are_laid_out_as_the_maps_hold_them() {
        let counters = PeerCounters {
            rx_packets: 1,
            rx_bytes: 2,
            tx_packets: 3,
            tx_bytes: 4,
        };
        let expected: [u64; 4] = [1, 2, 3, 4];
        assert_eq!(counters.as_bytes(), expected.as_bytes());

        let count = Count {
            packets: 5,
            bytes: 6,
        };
        let expected: [u64; 2] = [5, 6];
        assert_eq!(count.as_bytes(), expected.as_bytes());
        assert_eq!(PeerIndex(7).as_bytes(), 7u32.as_bytes());
    }
}
