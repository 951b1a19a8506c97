//! WireGuard behind one trait: the kernel's, or the embedded one on a TUN device of the same name.
//!
//! Both take the whole desired device, compare it with what they have ([`wireguard::plan`]) and make
//! the difference, so that one peer's change never disturbs another and a restart finds its sessions.

mod embedded;
mod gate;
mod kernel;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use futures_util::future::BoxFuture;
use keys::NodePublic;
use netlink::wireguard::{Change, Device, PeerStats};

pub(crate) use embedded::Embedded;
pub(crate) use gate::Gate;
pub(crate) use kernel::Kernel;

use crate::net::{CarrierStatus, Engine, NetError};

/// Where outer packets go and what was counted, for one peer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct PeerState {
    /// Outer address in use.
    pub(crate) endpoint: Option<SocketAddr>,
    /// Counters.
    pub(crate) stats: PeerStats,
}

/// One WireGuard device.
pub(crate) trait Tunnel: fmt::Debug + Send + Sync {
    /// Which engine this is.
    fn engine(&self) -> Engine;

    /// Creates the device if it is not there and makes it what `desired` says.
    ///
    /// # Errors
    ///
    /// The first refusal; apply again to do the rest.
    fn apply<'a>(&'a mut self, desired: &'a Device) -> BoxFuture<'a, Result<(), NetError>>;

    /// Makes single changes without looking at the rest; peers that the device does not have are passed
    /// over, and so is a device that is not there.
    ///
    /// # Errors
    ///
    /// Whatever the kernel refused.
    fn change(&mut self, changes: Vec<Change>) -> BoxFuture<'_, Result<(), NetError>>;

    /// Returns the state of every peer; nothing if there is no device.
    ///
    /// # Errors
    ///
    /// Whatever the kernel answered.
    fn peers(&self) -> BoxFuture<'_, Result<BTreeMap<NodePublic, PeerState>, NetError>>;

    /// Removes the device and its sessions; again is fine.
    ///
    /// # Errors
    ///
    /// Whatever the kernel refused.
    fn remove(&mut self) -> BoxFuture<'_, Result<(), NetError>>;

    /// Has the datagrams of relayed peers take this way, if this process carries them, from the first
    /// [`Self::apply`] on; the kernel's go by the socket on `lo`.
    fn set_relaying(&mut self, relaying: tunnel::Relaying);

    /// How this process carries packets itself; `None` where the kernel does, and while there is no device.
    fn carrier(&self) -> Option<CarrierStatus>;

    /// What every packet passes that this process carries itself; `None` where the kernel does.
    fn gate(&self) -> Option<&Gate>;

    /// Lets go: the kernel's device goes on by itself, the embedded one ends.
    fn detach(&mut self) -> BoxFuture<'_, ()>;
}
