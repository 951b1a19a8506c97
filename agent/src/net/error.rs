//! Why the data plane could not do what it was asked: [`NetError`].

use std::time::Duration;

use rustix::io::Errno;

/// A failure of the data plane. The message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The process may not configure the network.
    #[error("configuring the network needs root (CAP_NET_ADMIN); run the daemon as root")]
    NotPermitted,
    /// The UDP port is taken.
    #[error("UDP port {port} is in use; choose another with --port")]
    PortInUse {
        /// The port that was asked for.
        port: u16,
    },
    /// The UDP port is one that this process may not open.
    #[error("UDP port {port} takes CAP_NET_BIND_SERVICE; choose one above 1023 with --port")]
    PortRefused {
        /// The port that was asked for.
        port: u16,
    },
    /// Kernel WireGuard was demanded and is not there.
    #[error("this kernel has no WireGuard; load the module, or use --wireguard embedded")]
    NoKernelWireGuard(#[source] netlink::Error),
    /// A device of that name exists that is not ours.
    #[error(
        "device {name} exists and is not a WireGuard device; remove it, or choose another with --device"
    )]
    ForeignDevice {
        /// The device.
        name: String,
    },
    /// The kernel refused a change.
    #[error(transparent)]
    Netlink(netlink::Error),
    /// The embedded tunnel failed.
    #[error("embedded tunnel: {operation} failed")]
    Embedded {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The eBPF programs could not be removed.
    #[error("removing the eBPF programs failed")]
    Programs(#[source] dataplane::DataplaneError),
    /// Kernel WireGuard cannot be guarded.
    #[error(
        "the packet filter cannot be put in force, and without it the overlay stays down; where the \
         kernel permits no eBPF use --wireguard embedded, which can filter by itself"
    )]
    NoFilter(#[source] dataplane::DataplaneError),
    /// A socket of the agent failed.
    #[error("{operation} failed")]
    Socket {
        /// What was tried.
        operation: &'static str,
        /// What the system answered.
        source: std::io::Error,
    },
    /// There are more peers than addresses for them.
    #[error(transparent)]
    TooManyPeers(#[from] node_core::endpoints::Exhausted),
    /// No such peer in the network map.
    #[error("no such peer in the network map")]
    UnknownPeer,
    /// There is no way to the peer for a ping.
    #[error("{0}")]
    Unreachable(&'static str),
    /// A ping did not leave.
    #[error("the ping was not sent{}", too_long(.0))]
    PingNotSent(#[source] std::io::Error),
    /// No pong in time.
    #[error("no answer within {0:?}; the peer may be offline, or its relay unreachable")]
    PingTimeout(Duration),
    /// The network is not configured: logged out or idle.
    #[error("the overlay is down; bring it up first")]
    Down,
}

/// What to do about a ping that no packet of the way to the peer holds.
fn too_long(error: &std::io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::MSGSIZE) => {
            ", being longer than the way to the peer carries: give a smaller --size"
        }
        _ => "",
    }
}

impl From<netlink::Error> for NetError {
    fn from(error: netlink::Error) -> Self {
        match error {
            netlink::Error::NotPermitted { .. } => Self::NotPermitted,
            netlink::Error::PortInUse { port, .. } => Self::PortInUse { port },
            other => Self::Netlink(other),
        }
    }
}
