//! The loader's side: what may be copied through the map system calls.
#![expect(unsafe_code, reason = "`aya::Pod` is an unsafe marker trait")]

use crate::{
    Admitted, Count, Opened, Pair, PeerCounters, PeerEntry, PeerIndex, Policy, PortBlock,
    PortRange, Ports,
};

// SAFETY: `IntoBytes` and `FromBytes` hold for the type: no padding, every bit pattern is valid.
unsafe impl aya::Pod for PeerIndex {}
// SAFETY: as above.
unsafe impl aya::Pod for PeerCounters {}
// SAFETY: as above.
unsafe impl aya::Pod for Count {}
// SAFETY: as above.
unsafe impl aya::Pod for Admitted {}
// SAFETY: as above.
unsafe impl aya::Pod for Opened {}
// SAFETY: as above.
unsafe impl aya::Pod for Pair {}
// SAFETY: as above.
unsafe impl aya::Pod for Policy {}
// SAFETY: as above.
unsafe impl aya::Pod for PortBlock {}
// SAFETY: as above.
unsafe impl aya::Pod for PortRange {}
// SAFETY: as above.
unsafe impl aya::Pod for Ports {}
// SAFETY: as above.
unsafe impl aya::Pod for PeerEntry {}
