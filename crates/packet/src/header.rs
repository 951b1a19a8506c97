//! Header images, byte for byte as on the wire.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

pub(crate) const UDP_LEN: u32 = 8;

/// Protocol numbers (IANA), as far as they matter here.
pub mod protocol {
    #![allow(missing_docs, reason = "the names are the registry's")]
    pub const ICMP: u8 = 1;
    pub const IGMP: u8 = 2;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const TSMP: u8 = 99;
    pub const SCTP: u8 = 132;
    /// Reserved.
    pub const RESERVED: u8 = 255;

    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const DESTINATION_OPTIONS: u8 = 60;
    pub const MOBILITY: u8 = 135;
    pub const HIP: u8 = 139;
    pub const SHIM6: u8 = 140;
    pub const EXPERIMENT_1: u8 = 253;
    pub const EXPERIMENT_2: u8 = 254;
}

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
    #[inline(always)]
    pub(crate) fn version(&self) -> u8 {
        self.version_ihl >> 4
    }

    /// Header length in bytes, options included: 0 to 60.
    #[inline(always)]
    pub(crate) fn header_len(&self) -> u32 {
        (self.version_ihl as u32 & 0x0f) * 4
    }

    /// Identification, as wide as that of IPv6.
    #[inline(always)]
    pub(crate) fn id(&self) -> u32 {
        u16::from_be_bytes(self.id) as u32
    }

    /// Where in the whole packet's payload this one's begins, in units of 8 bytes.
    #[inline(always)]
    pub(crate) fn fragment_offset(&self) -> u16 {
        u16::from_be_bytes(self.fragment) & 0x1fff
    }

    /// Whether more fragments follow.
    #[inline(always)]
    pub(crate) fn more_fragments(&self) -> bool {
        self.fragment[0] & 0x20 != 0
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

    #[inline(always)]
    pub(crate) fn version(&self) -> u8 {
        self.version_class_flow[0] >> 4
    }

    /// Length of the packet in bytes; of the header alone in buffers longer than the field can say
    /// (BIG TCP, jumbograms).
    #[inline(always)]
    pub(crate) fn total_len(&self) -> u32 {
        Self::LEN + u16::from_be_bytes(self.payload_len) as u32
    }
}

/// First 8 bytes of an IPv6 extension header that may be walked: destination options and routes
/// (RFC 8200 sections 4.4, 4.6).
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Extension {
    pub(crate) next_header: u8,
    len: u8,
    kind: u8,
    /// Of routes only.
    pub(crate) segments_left: u8,
    rest: [u8; 4],
}

impl Extension {
    /// Length in bytes: 8 to 2048.
    #[inline(always)]
    pub(crate) fn len(&self) -> u32 {
        (self.len as u32 + 1) * 8
    }
}

/// IPv6 fragment header (RFC 8200 section 4.5).
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct FragmentHeader {
    pub(crate) next_header: u8,
    reserved: u8,
    offset: [u8; 2],
    id: [u8; 4],
}
const _: () = assert!(size_of::<FragmentHeader>() == 8);

impl FragmentHeader {
    pub(crate) const LEN: u32 = 8;

    #[inline(always)]
    pub(crate) fn id(&self) -> u32 {
        u32::from_be_bytes(self.id)
    }

    /// In units of 8 bytes.
    #[inline(always)]
    pub(crate) fn offset(&self) -> u16 {
        u16::from_be_bytes(self.offset) >> 3
    }

    #[inline(always)]
    pub(crate) fn more(&self) -> bool {
        self.offset[1] & 1 != 0
    }
}

/// What TCP, UDP and SCTP begin with.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Ports {
    src: [u8; 2],
    dst: [u8; 2],
}

impl Ports {
    #[inline(always)]
    pub(crate) fn src(&self) -> u16 {
        u16::from_be_bytes(self.src)
    }

    #[inline(always)]
    pub(crate) fn dst(&self) -> u16 {
        u16::from_be_bytes(self.dst)
    }
}

/// What ICMP and ICMPv6 begin with (RFC 792, RFC 4443).
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Icmp {
    pub(crate) kind: u8,
    code: u8,
    checksum: [u8; 2],
}

/// ICMP and ICMPv6 echo, request and reply.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Echo {
    icmp: Icmp,
    id: [u8; 2],
    sequence: [u8; 2],
}

impl Echo {
    #[inline(always)]
    pub(crate) fn id(&self) -> u16 {
        u16::from_be_bytes(self.id)
    }
}

/// TCP header up to its flags (RFC 9293).
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Tcp {
    pub(crate) ports: Ports,
    sequence: [u8; 4],
    acknowledgement: [u8; 4],
    data_offset: u8,
    flags: u8,
}

impl Tcp {
    /// Header length in bytes, options included: 0 to 60.
    #[inline(always)]
    pub(crate) fn header_len(&self) -> u32 {
        (self.data_offset as u32 >> 4) * 4
    }

    /// Whether it asks for a connection: SYN without ACK.
    #[inline(always)]
    pub(crate) fn opens(&self) -> bool {
        const SYN: u8 = 0x02;
        const ACK: u8 = 0x10;
        self.flags & (SYN | ACK) == SYN
    }
}
