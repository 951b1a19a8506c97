//! Header images, byte for byte as on the wire.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

pub(crate) const PROTOCOL_TCP: u8 = 6;
pub(crate) const PROTOCOL_UDP: u8 = 17;
pub(crate) const UDP_LEN: u32 = 8;

/// First bytes of either IP version: the version in the upper half of the first.
///
/// Two of them, since a bounds check for one compiles to "start < end", from which the kernel's
/// verifier learns nothing.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Version {
    byte: u8,
    class: u8,
}

impl Version {
    #[inline(always)]
    pub(crate) fn number(&self) -> u8 {
        self.byte >> 4
    }
}

/// IPv4 header without options (RFC 791).
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Ipv4 {
    version_ihl: u8,
    tos: u8,
    total_len: [u8; 2],
    id: [u8; 2],
    fragment: [u8; 2],
    ttl: u8,
    pub(crate) protocol: u8,
    checksum: [u8; 2],
    pub(crate) src: [u8; 4],
    pub(crate) dst: [u8; 4],
}
const _: () = assert!(size_of::<Ipv4>() == 20);

impl Ipv4 {
    /// Header length in bytes, options included: 0 to 60.
    #[inline(always)]
    pub(crate) fn header_len(&self) -> u32 {
        (self.version_ihl as u32 & 0x0f) * 4
    }

    /// Length of the packet in bytes; 0 in buffers longer than the field can say (BIG TCP).
    #[inline(always)]
    pub(crate) fn total_len(&self) -> u32 {
        u16::from_be_bytes(self.total_len) as u32
    }
}

/// IPv6 header without extensions (RFC 8200).
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Ipv6 {
    version_class_flow: [u8; 4],
    payload_len: [u8; 2],
    pub(crate) next_header: u8,
    hop_limit: u8,
    pub(crate) src: [u8; 16],
    pub(crate) dst: [u8; 16],
}
const _: () = assert!(size_of::<Ipv6>() == 40);

impl Ipv6 {
    pub(crate) const LEN: u32 = 40;

    /// Length of the packet in bytes; of the header alone in buffers longer than the field can say
    /// (BIG TCP, jumbograms).
    #[inline(always)]
    pub(crate) fn total_len(&self) -> u32 {
        Self::LEN + u16::from_be_bytes(self.payload_len) as u32
    }
}

/// TCP header up to its data offset (RFC 9293).
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Tcp {
    ports: [u8; 4],
    sequence: [u8; 4],
    acknowledgement: [u8; 4],
    data_offset: u8,
}

impl Tcp {
    /// Header length in bytes, options included: 0 to 60.
    #[inline(always)]
    pub(crate) fn header_len(&self) -> u32 {
        (self.data_offset as u32 >> 4) * 4
    }
}
