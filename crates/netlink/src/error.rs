//! Why the kernel refused or failed: [`Error`].

use std::io;

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EOPNOTSUPP: i32 = 95;
const EAFNOSUPPORT: i32 = 97;
const EADDRINUSE: i32 = 98;
const EADDRNOTAVAIL: i32 = 99;

/// Why the kernel refused or failed. `operation` is the netlink command in the kernel's spelling.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The process lacks the capability.
    #[error("{operation} was refused: CAP_NET_ADMIN is needed, run as root")]
    NotPermitted {
        /// What was tried.
        operation: &'static str,
        /// EPERM.
        source: io::Error,
    },
    /// The interface is absent: not created yet, or deleted under us.
    #[error("network interface {name} does not exist")]
    NoDevice {
        /// Name of the interface.
        name: String,
        /// ENODEV.
        source: io::Error,
    },
    /// The kernel cannot make WireGuard devices.
    #[error("this kernel has no WireGuard: load the module `wireguard`")]
    NoWireGuard {
        /// EOPNOTSUPP, or ENOENT for the netlink family.
        source: io::Error,
    },
    /// The UDP port that WireGuard should listen on is taken.
    #[error("UDP port {port} is in use by another program")]
    PortInUse {
        /// The port.
        port: u16,
        /// EADDRINUSE.
        source: io::Error,
    },
    /// Notifications came faster than they were read, and the kernel dropped some: dump again.
    #[error("{operation}: the kernel dropped notifications, some are lost")]
    Overrun {
        /// What was listened for.
        operation: &'static str,
        /// ENOBUFS.
        source: io::Error,
    },
    /// Any other answer.
    #[error("{operation} {subject} failed")]
    Failed {
        /// What was tried.
        operation: &'static str,
        /// The address, route, rule or device it was about.
        subject: String,
        /// What the socket answered.
        source: io::Error,
    },
}

impl Error {
    /// Returns the errno behind the failure, if the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::NotPermitted { source, .. }
            | Self::NoDevice { source, .. }
            | Self::NoWireGuard { source }
            | Self::PortInUse { source, .. }
            | Self::Overrun { source, .. }
            | Self::Failed { source, .. } => source.raw_os_error(),
        }
    }

    /// True if the thing is there already (EEXIST).
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(EEXIST)
    }

    /// True if the thing is gone already (ENOENT, ESRCH, ENODEV, EADDRNOTAVAIL).
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self.errno(), Some(ENOENT | ESRCH | ENODEV | EADDRNOTAVAIL))
    }

    /// True if the host does not speak this address family (EAFNOSUPPORT, EOPNOTSUPP).
    #[must_use]
    pub fn is_family_missing(&self) -> bool {
        matches!(self.errno(), Some(EAFNOSUPPORT | EOPNOTSUPP))
    }

    pub(crate) fn from_io(operation: &'static str, subject: &str, source: io::Error) -> Self {
        let subject = subject.to_owned();
        match source.raw_os_error() {
            Some(EPERM) => Self::NotPermitted { operation, source },
            Some(ENODEV) => Self::NoDevice {
                name: subject,
                source,
            },
            _ => Self::Failed {
                operation,
                subject,
                source,
            },
        }
    }

    pub(crate) fn from_route(
        operation: &'static str,
        subject: &str,
        error: rtnetlink::Error,
    ) -> Self {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        };
        Self::from_io(operation, subject, source)
    }

    pub(crate) fn from_generic(
        operation: &'static str,
        subject: &str,
        error: genetlink::GenetlinkError,
    ) -> Self {
        let source = match error {
            genetlink::GenetlinkError::NetlinkError(source) => source,
            other => io::Error::other(other),
        };
        Self::from_io(operation, subject, source)
    }

    /// Gives the answers of a link creation and of the WireGuard family their own meaning.
    pub(crate) fn about_wireguard(self) -> Self {
        match self {
            Self::Failed { source, .. }
                if matches!(source.raw_os_error(), Some(EOPNOTSUPP | ENOENT)) =>
            {
                Self::NoWireGuard { source }
            }
            other => other,
        }
    }

    /// Gives EADDRINUSE of a port change its own meaning.
    pub(crate) fn about_port(self, port: Option<u16>) -> Self {
        match (self, port) {
            (Self::Failed { source, .. }, Some(port))
                if source.raw_os_error() == Some(EADDRINUSE) =>
            {
                Self::PortInUse { port, source }
            }
            (other, _) => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_errno_is_kept_and_named() {
        let refused = Error::from_io("RTM_NEWLINK", "x0", io::Error::from_raw_os_error(EPERM));
        assert!(matches!(refused, Error::NotPermitted { .. }));
        assert_eq!(refused.errno(), Some(EPERM));
        assert!(refused.to_string().contains("CAP_NET_ADMIN"));

        let missing = Error::from_io(
            "RTM_NEWLINK",
            "x0",
            io::Error::from_raw_os_error(EOPNOTSUPP),
        );
        assert!(matches!(
            missing.about_wireguard(),
            Error::NoWireGuard { .. }
        ));

        let busy = Error::from_io(
            "WG_CMD_SET_DEVICE",
            "x0",
            io::Error::from_raw_os_error(EADDRINUSE),
        );
        assert!(matches!(
            busy.about_port(Some(41641)),
            Error::PortInUse { port: 41641, .. }
        ));
    }
}
