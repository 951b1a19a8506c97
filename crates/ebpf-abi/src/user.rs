//! The loader's side: what may be copied through the map system calls.
#![expect(unsafe_code, reason = "`aya::Pod` is an unsafe marker trait")]

use crate::{Count, PeerCounters, PeerIndex};

// SAFETY: `IntoBytes` and `FromBytes` hold for the type: no padding, every bit pattern is valid.
unsafe impl aya::Pod for PeerIndex {}
// SAFETY: as above.
unsafe impl aya::Pod for PeerCounters {}
// SAFETY: as above.
unsafe impl aya::Pod for Count {}
