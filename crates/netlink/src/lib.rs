//! WireGuard, links, addresses, routes and rules through netlink: dump → plan → apply.
//!
//! Each module reads what the kernel has, computes the difference to what should be in a pure
//! function, and applies that difference; doing it twice changes nothing. Nothing else in the
//! workspace talks netlink.
#![forbid(unsafe_code)]

pub mod addresses;
pub mod conntrack;
mod error;
pub mod links;
mod netfilter;
pub mod nft;
pub mod routes;
pub mod rules;
pub mod wireguard;

use std::io;

use tokio::task::AbortHandle;

pub use error::Error;

/// Address family of a route or rule.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    fn version(self) -> rtnetlink::IpVersion {
        match self {
            Self::V4 => rtnetlink::IpVersion::V4,
            Self::V6 => rtnetlink::IpVersion::V6,
        }
    }
}

/// Open netlink sockets of one network namespace: that of the thread that opened them.
#[derive(Debug)]
pub struct Netlink {
    route: rtnetlink::Handle,
    generic: genetlink::GenetlinkHandle,
    tasks: [AbortHandle; 2],
}

impl Netlink {
    /// Opens the sockets and serves them on the current tokio runtime until the value is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] if the kernel gives no netlink socket.
    pub fn open() -> Result<Self, Error> {
        let failed = |source: io::Error| Error::Failed {
            operation: "socket(AF_NETLINK)",
            subject: String::new(),
            source,
        };
        // Strict checking lets the kernel filter dumps: a full routing table stays in the kernel.
        let (route_connection, route, _) =
            rtnetlink::new_connection_with_strict_check().map_err(failed)?;
        let (generic_connection, generic, _) = genetlink::new_connection().map_err(failed)?;
        Ok(Self {
            route,
            generic,
            tasks: [
                tokio::spawn(route_connection).abort_handle(),
                tokio::spawn(generic_connection).abort_handle(),
            ],
        })
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
