//! Disco messages, STUN and TSMP, sans-IO: how nodes find paths to each other.
//!
//! [`disco`] messages travel between nodes, boxed to their disco keys, over UDP and over DERP.
//! [`stun`] tells a node under which address others see it. [`tsmp`] messages go through the tunnel
//! itself. What to send when is decided elsewhere.
#![forbid(unsafe_code)]

pub mod disco;
pub mod stun;
pub mod tsmp;
