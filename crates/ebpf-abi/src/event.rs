//! Dropped packets as the programs report them, one by one.

use crate::{Nanos, PeerIndex};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A dropped packet: what `DROPS` holds. Fields that could not be read are 0.
#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct DropEvent {
    /// When.
    pub time: Nanos,
    /// [`Policy::generation`](crate::Policy::generation) of the rules that judged it.
    pub generation: u64,
    /// Source address; of IPv4 the first four bytes.
    pub src: [u8; 16],
    /// Destination address; of IPv4 the first four bytes.
    pub dst: [u8; 16],
    /// Whose packet it was, or [`NOBODY`].
    pub peer: PeerIndex,
    /// Source port, host order.
    pub src_port: u16,
    /// Destination port, host order.
    pub dst_port: u16,
    /// [`Direction`](crate::Direction).
    pub direction: u8,
    /// [`DropReason`](crate::DropReason).
    pub reason: u8,
    /// 4, 6, or 0 for what is no IP packet.
    pub version: u8,
    /// IP protocol.
    pub protocol: u8,
    /// 1 for TCP with SYN and without ACK.
    pub opens: u8,
    /// Zero.
    pub padding: [u8; 3],
}
const _: () = assert!(size_of::<DropEvent>() == 64);

impl DropEvent {
    /// Reads what a program wrote, and perhaps the kernel's padding behind it.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (event, _) = Self::read_from_prefix(bytes).ok()?;
        Some(event)
    }
}

/// [`DropEvent::peer`] of a packet that is no peer's.
pub const NOBODY: PeerIndex = PeerIndex(u32::MAX);

/// Requests for IPv4 TCP connections that are reported in a second by each CPU though nobody listens:
/// their senders are told, and no faster than that.
pub const SYNS_A_SECOND: u32 = 64;
