//! The shield of WireGuard's port: what it trusts, remembers and counts.
//!
//! It looks at WireGuard's handshake initiations to our port and at nothing else. As long as few
//! arrive all pass. When more than [`ShieldConfig::flood`] have arrived within a [`SHIELD_WINDOW`]
//! there is a flood, until [`SHIELD_HOLD`] after the last such window. In a flood, those pass that come
//! from a source in `SHIELD_TRUST`; of the rest as many as a token bucket admits, and those which this
//! host would forward.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    BPF_F_NO_PREALLOC, BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_PERCPU_ARRAY, MapSpec,
    Nanos,
};

/// The shield on the ingress of a device, for tcx and clsact.
pub const PROGRAM_SHIELD_TCX: &str = "shield_tcx";
/// The shield in the driver of a device, for XDP.
pub const PROGRAM_SHIELD_XDP: &str = "shield_xdp";

/// Constant of the object that holds the [`ShieldConfig`].
pub const GLOBAL_SHIELD: &str = "SHIELD";

/// How long initiations are counted together, in nanoseconds: a second.
pub const SHIELD_WINDOW: Nanos = 1_000_000_000;
/// How long a flood is taken to last after the last initiation too many, in nanoseconds.
pub const SHIELD_HOLD: Nanos = 2_000_000_000;

/// What the shield guards, and its limits.
#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct ShieldConfig {
    /// The UDP port, host order.
    pub port: u32,
    /// Bytes before the IP header: 14 with an Ethernet header, 0 without a link layer.
    pub link_header: u32,
    /// Initiations that may arrive in a window before it is a flood.
    pub flood: u64,
    /// Nanoseconds for a token to come into the bucket; 0 if none ever does.
    pub interval: Nanos,
    /// Nanoseconds for all tokens but one that the bucket holds to come.
    pub tolerance: Nanos,
}
const _: () = assert!(size_of::<ShieldConfig>() == 32);

/// Key of `SHIELD_TRUST`: where initiations are welcome from.
#[derive(
    Clone,
    Copy,
    Debug,
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
#[repr(C)]
pub struct ShieldSource {
    /// The address, network order; of IPv4 the first four bytes.
    pub address: [u8; 16],
    /// The UDP port, network order; 0 for any.
    pub port: [u8; 2],
    /// 4 or 6.
    pub version: u8,
    /// Zero.
    pub padding: u8,
}
const _: () = assert!(size_of::<ShieldSource>() == 20);

impl ShieldSource {
    /// An IPv4 source.
    #[inline(always)]
    #[must_use]
    pub const fn v4([a, b, c, d]: [u8; 4], port: [u8; 2]) -> Self {
        Self {
            address: [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            port,
            version: 4,
            padding: 0,
        }
    }

    /// An IPv6 source.
    #[inline(always)]
    #[must_use]
    pub const fn v6(address: [u8; 16], port: [u8; 2]) -> Self {
        Self {
            address,
            port,
            version: 6,
            padding: 0,
        }
    }
}

/// What the shield remembers, shared by all CPUs.
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq,
)]
#[repr(C)]
pub struct ShieldState {
    /// When the window began.
    pub window: Nanos,
    /// Initiations in the window.
    pub arrived: u64,
    /// When the flood is over; in the past if there is none.
    pub flood_until: Nanos,
    /// When the bucket will be full again; in the past if it is.
    pub full_at: Nanos,
}
const _: () = assert!(size_of::<ShieldState>() == 32);

/// What became of a handshake initiation.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u32)]
pub enum ShieldReason {
    /// Passed: there was no flood.
    Calm = 0,
    /// Passed in a flood: its source is trusted.
    Trusted = 1,
    /// Passed in a flood: the bucket had a token for it.
    Spared = 2,
    /// Passed in a flood: it was not for this host.
    Forwarded = 3,
    /// Dropped in a flood.
    Dropped = 4,
}

impl ShieldReason {
    /// Every reason, by number.
    pub const ALL: [Self; 5] = [
        Self::Calm,
        Self::Trusted,
        Self::Spared,
        Self::Forwarded,
        Self::Dropped,
    ];

    /// The reason's name in metrics and in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Trusted => "trusted",
            Self::Spared => "spared",
            Self::Forwarded => "forwarded",
            Self::Dropped => "dropped",
        }
    }
}

/// [`ShieldSource`] to a byte that means nothing.
pub const SHIELD_TRUST: MapSpec = MapSpec {
    name: "SHIELD_TRUST",
    map_type: BPF_MAP_TYPE_HASH,
    key_size: size_of::<ShieldSource>() as u32,
    value_size: 1,
    max_entries: 1 << 16,
    flags: BPF_F_NO_PREALLOC,
    inner: None,
};

/// The one [`ShieldState`].
pub const SHIELD_STATE: MapSpec = MapSpec {
    name: "SHIELD_STATE",
    map_type: BPF_MAP_TYPE_ARRAY,
    key_size: 4,
    value_size: size_of::<ShieldState>() as u32,
    max_entries: 1,
    flags: 0,
    inner: None,
};

/// [`ShieldReason`] to a number of initiations, with room for reasons to come.
pub const SHIELD_COUNTS: MapSpec = MapSpec {
    name: "SHIELD_COUNTS",
    map_type: BPF_MAP_TYPE_PERCPU_ARRAY,
    key_size: 4,
    value_size: size_of::<u64>() as u32,
    max_entries: 8,
    flags: 0,
    inner: None,
};
const _: () = assert!(ShieldReason::ALL.len() <= SHIELD_COUNTS.max_entries as usize);
