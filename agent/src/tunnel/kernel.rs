//! The kernel's WireGuard, configured through netlink.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use keys::NodePublic;
use netlink::links::Kind;
use netlink::wireguard::{self, Change, Device};
use netlink::{Error, Netlink, links};

use super::{Gate, PeerState, Tunnel};
use crate::net::{CarrierStatus, Engine, NetError};

/// A WireGuard device of the kernel. It outlives the agent.
#[derive(Debug)]
pub(crate) struct Kernel {
    netlink: Arc<Netlink>,
    device: String,
}

impl Kernel {
    /// Names the device; nothing is created yet.
    pub(crate) fn new(netlink: Arc<Netlink>, device: &str) -> Self {
        Self {
            netlink,
            device: device.to_owned(),
        }
    }

    /// Tells whether this kernel makes WireGuard devices, by making one and taking it away again.
    ///
    /// # Errors
    ///
    /// [`Error::NoWireGuard`] or [`Error::NotPermitted`].
    pub(crate) async fn probe(netlink: &Netlink, device: &str) -> Result<(), Error> {
        if links::get(netlink, device)
            .await?
            .is_some_and(|link| link.kind == Kind::WireGuard)
        {
            return Ok(());
        }
        let name = probe_name(device);
        match links::create_wireguard(netlink, &name).await {
            Err(error) if !error.is_exists() => Err(error),
            _ => links::delete(netlink, &name).await,
        }
    }

    /// Reads what a former agent left of the device; `None` if there is none.
    ///
    /// # Errors
    ///
    /// Whatever the kernel answered.
    pub(crate) async fn leftover(netlink: &Netlink, device: &str) -> Result<Option<Device>, Error> {
        match links::get(netlink, device).await? {
            Some(link) if link.kind == Kind::WireGuard => {
                let dump = wireguard::dump(netlink, device).await?;
                Ok(Some(dump.device))
            }
            _ => Ok(None),
        }
    }

    async fn ensure_device(&self) -> Result<(), NetError> {
        match links::get(&self.netlink, &self.device).await? {
            Some(link) if link.kind == Kind::WireGuard => Ok(()),
            Some(_) => Err(NetError::ForeignDevice {
                name: self.device.clone(),
            }),
            None => Ok(links::create_wireguard(&self.netlink, &self.device).await?),
        }
    }
}

/// A name of its own within the kernel's 15 bytes, so that probing never meets the real device.
fn probe_name(device: &str) -> String {
    let mut end = device.len().min(13);
    while !device.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}~p", &device[..end])
}

impl Tunnel for Kernel {
    fn engine(&self) -> Engine {
        Engine::Kernel
    }

    fn apply<'a>(&'a mut self, desired: &'a Device) -> BoxFuture<'a, Result<(), NetError>> {
        async move {
            self.ensure_device().await?;
            let actual = wireguard::dump(&self.netlink, &self.device).await?;
            let changes = wireguard::plan(desired, &actual.device);
            tracing::debug!(changes = changes.len(), "WireGuard device planned");
            wireguard::apply(&self.netlink, &self.device, &changes).await?;
            Ok(())
        }
        .boxed()
    }

    fn change(&mut self, changes: Vec<Change>) -> BoxFuture<'_, Result<(), NetError>> {
        async move {
            match wireguard::apply(&self.netlink, &self.device, &changes).await {
                Err(Error::NoDevice { .. }) => Ok(()),
                other => Ok(other?),
            }
        }
        .boxed()
    }

    fn peers(&self) -> BoxFuture<'_, Result<BTreeMap<NodePublic, PeerState>, NetError>> {
        async move {
            let dump = match wireguard::dump(&self.netlink, &self.device).await {
                Ok(dump) => dump,
                Err(Error::NoDevice { .. } | Error::NoWireGuard { .. }) => {
                    return Ok(BTreeMap::new());
                }
                Err(error) => return Err(error.into()),
            };
            let peers = dump.device.peers.into_iter();
            Ok(peers
                .map(|(key, peer)| {
                    let state = PeerState {
                        endpoint: peer.endpoint,
                        stats: dump.stats.get(&key).copied().unwrap_or_default(),
                    };
                    (key, state)
                })
                .collect())
        }
        .boxed()
    }

    fn remove(&mut self) -> BoxFuture<'_, Result<(), NetError>> {
        async move {
            match links::get(&self.netlink, &self.device).await? {
                Some(link) if link.kind == Kind::WireGuard => {
                    Ok(links::delete(&self.netlink, &self.device).await?)
                }
                _ => Ok(()),
            }
        }
        .boxed()
    }

    fn set_relaying(&mut self, _: tunnel::Relaying) {}

    fn carrier(&self) -> Option<CarrierStatus> {
        None
    }

    fn gate(&self) -> Option<&Gate> {
        None
    }

    fn detach(&mut self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}
