//! Why the host could not be measured: [`BenchError`].

use std::io;

/// Why the host could not be measured. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// Namespaces and devices take privileges.
    #[error(
        "measuring takes network namespaces and devices of its own, and root: start it with sudo"
    )]
    NotRoot,
    /// The kernel has no WireGuard.
    #[error("{0}")]
    NoWireGuard(String),
    /// A process of the measurement did not do its part.
    #[error("{part} of the measurement failed: {said}")]
    Part {
        /// Which.
        part: &'static str,
        /// What it said last.
        said: String,
    },
    /// Nothing passed the tunnel.
    #[error("nothing passes the {engine} tunnel between two namespaces of this host")]
    Silent {
        /// Which tunnel.
        engine: &'static str,
    },
    /// The system refused something.
    #[error("{operation} failed")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What it answered.
        source: io::Error,
    },
    /// `/proc` did not tell what was used.
    #[error(transparent)]
    Usage(#[from] io::Error),
}
