//! Network interfaces: read one, create a WireGuard one, delete, bring up, set the MTU.

use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_sys::SocketAddr;
use rtnetlink::{LinkUnspec, LinkWireguard, MulticastGroup};

use crate::{Error, Netlink};

/// One network interface as the kernel has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// Interface number.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// What made it.
    pub kind: Kind,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
}

/// What made an interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The kernel's WireGuard.
    WireGuard,
    /// A TUN or TAP device.
    Tun,
    /// Anything else.
    Other,
}

/// Reads an interface by name; `None` if there is none.
///
/// # Errors
///
/// Any answer but ENODEV.
pub async fn get(netlink: &Netlink, name: &str) -> Result<Option<Link>, Error> {
    let mut links = std::pin::pin!(
        netlink
            .route
            .link()
            .get()
            .match_name(name.to_owned())
            .execute()
    );
    match links.try_next().await {
        Ok(message) => Ok(message.map(|message| parse(name, &message))),
        Err(error) => match Error::from_route("RTM_GETLINK", name, error) {
            Error::NoDevice { .. } => Ok(None),
            other => Err(other),
        },
    }
}

/// Creates a WireGuard interface, down and without configuration.
///
/// # Errors
///
/// [`Error::NoWireGuard`], [`Error::NotPermitted`], EEXIST if the name is taken.
pub async fn create_wireguard(netlink: &Netlink, name: &str) -> Result<(), Error> {
    netlink
        .route
        .link()
        .add(LinkWireguard::new(name).build())
        .execute()
        .await
        .map_err(|error| Error::from_route("RTM_NEWLINK", name, error).about_wireguard())
}

/// Deletes an interface; one that is gone already is fine.
///
/// # Errors
///
/// Whatever the kernel refused.
pub async fn delete(netlink: &Netlink, name: &str) -> Result<(), Error> {
    let Some(link) = get(netlink, name).await? else {
        return Ok(());
    };
    match netlink.route.link().del(link.index).execute().await {
        Ok(()) => Ok(()),
        Err(error) => match Error::from_route("RTM_DELLINK", name, error) {
            Error::NoDevice { .. } => Ok(()),
            other => Err(other),
        },
    }
}

/// Brings an interface up with the given MTU in bytes; does nothing if it is so already.
///
/// # Errors
///
/// Whatever the kernel refused.
pub async fn ensure_up(netlink: &Netlink, link: &Link, mtu: u32) -> Result<(), Error> {
    if link.up && link.mtu == mtu {
        return Ok(());
    }
    set(
        netlink,
        &link.name,
        LinkUnspec::new_with_index(link.index).mtu(mtu).up().build(),
    )
    .await
}

async fn set(netlink: &Netlink, name: &str, message: LinkMessage) -> Result<(), Error> {
    netlink
        .route
        .link()
        .set(message)
        .execute()
        .await
        .map_err(|error| Error::from_route("RTM_SETLINK", name, error))
}

fn parse(name: &str, message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: name.to_owned(),
        kind: Kind::Other,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Wireguard) => link.kind = Kind::WireGuard,
                        LinkInfo::Kind(InfoKind::Tun) => link.kind = Kind::Tun,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

/// Tells which interfaces disappear, as it happens.
#[derive(Debug)]
pub struct Watcher {
    messages:
        futures_channel::mpsc::UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    task: tokio::task::AbortHandle,
}

impl Watcher {
    /// Subscribes to interface changes in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] if the kernel gives no netlink socket.
    pub fn open() -> Result<Self, Error> {
        let (connection, _, messages) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link])
                .map_err(|source| Error::from_io("bind(RTMGRP_LINK)", "", source))?;
        Ok(Self {
            messages,
            task: tokio::spawn(connection).abort_handle(),
        })
    }

    /// Waits for an interface to disappear and returns its name; `None` once the socket failed.
    pub async fn next_removed(&mut self) -> Option<String> {
        loop {
            let (message, _) = self.messages.next().await?;
            if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) =
                message.payload
            {
                let name = link
                    .attributes
                    .into_iter()
                    .find_map(|attribute| match attribute {
                        LinkAttribute::IfName(name) => Some(name),
                        _ => None,
                    });
                if name.is_some() {
                    return name;
                }
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}
