//! Capability versions: one number per client release that promises all behaviours up to it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A promise of all protocol behaviours up to this number.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(transparent)]
pub struct CapabilityVersion(pub u16);

/// What our agent advertises everywhere: `/key?v=`, Noise prologue and message 1, register, map.
pub const CURRENT: CapabilityVersion = CapabilityVersion(117);

/// What our coordination server demands at least: v1.80, with `HomeDERP`, nil `AllowedIPs` and
/// named packet filters, so that no legacy form is needed.
pub const MINIMUM: CapabilityVersion = CapabilityVersion(113);

/// From here on a client expects that an early payload may precede HTTP/2.
pub const EARLY_PAYLOAD: CapabilityVersion = CapabilityVersion(49);

/// From here on a client honours `429` with `Retry-After` on register.
pub const RETRY_AFTER: CapabilityVersion = CapabilityVersion(137);

/// From here on a client takes a peer's disco key through the tunnel, after each handshake.
pub const TSMP_DISCO_KEY: CapabilityVersion = CapabilityVersion(144);

impl fmt::Display for CapabilityVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
