//! Network interfaces: read one, create a WireGuard one, delete, bring up, set the MTU.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use netlink_packet_route::route::RouteMessage;
use netlink_sys::SocketAddr;
use rtnetlink::{LinkUnspec, LinkVeth, LinkWireguard, MulticastGroup};
use tokio::time::Instant;

use crate::{Error, Netlink, routes};

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
    /// It is `lo`.
    pub loopback: bool,
    /// The bridge or bond that it is part of.
    pub master: Option<u32>,
    /// What its packets begin with.
    pub layer: Layer,
}

/// What the packets of an interface begin with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Layer {
    /// An Ethernet header.
    Ethernet,
    /// Their IP header: PPP and tunnels.
    Ip,
    /// Anything else.
    Other,
}

/// What made an interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The kernel's WireGuard.
    WireGuard,
    /// A TUN or TAP device.
    Tun,
    /// A bridge.
    Bridge,
    /// One end of a pair of virtual interfaces.
    Veth,
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

/// Reads all interfaces.
///
/// # Errors
///
/// Whatever the kernel answered.
pub async fn dump(netlink: &Netlink) -> Result<Vec<Link>, Error> {
    let links = netlink.route.link().get().execute();
    let messages: Vec<LinkMessage> = links
        .try_collect()
        .await
        .map_err(|error| Error::from_route("RTM_GETLINK", "", error))?;
    let links = messages
        .iter()
        .map(|message| parse(name_of(message), message));
    Ok(links.collect())
}

fn name_of(message: &LinkMessage) -> &str {
    let mut attributes = message.attributes.iter();
    let name = attributes.find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    });
    name.unwrap_or_default()
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

/// Creates a pair of virtual interfaces, down: `name` here, `peer` in the network namespace of the process `pid`, to
/// which it is moved from here.
///
/// # Errors
///
/// Whatever the kernel refused: EEXIST if a name is taken here or there, ESRCH if there is no such process.
pub async fn create_veth(netlink: &Netlink, name: &str, peer: &str, pid: u32) -> Result<(), Error> {
    let link = netlink.route.link();
    let pair = LinkVeth::new(name, peer).build();
    let added = link.add(pair).execute().await;
    added.map_err(|error| Error::from_route("RTM_NEWLINK", name, error))?;
    let Some(other) = get(netlink, peer).await? else {
        return Ok(());
    };
    let moved = LinkUnspec::new_with_index(other.index).setns_by_pid(pid);
    set(netlink, peer, moved.build()).await
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
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        master: None,
        layer: match message.header.link_layer_type {
            LinkLayerType::Ether => Layer::Ethernet,
            LinkLayerType::None | LinkLayerType::Ppp | LinkLayerType::Rawip => Layer::Ip,
            _ => Layer::Other,
        },
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Wireguard) => link.kind = Kind::WireGuard,
                        LinkInfo::Kind(InfoKind::Tun) => link.kind = Kind::Tun,
                        LinkInfo::Kind(InfoKind::Bridge) => link.kind = Kind::Bridge,
                        LinkInfo::Kind(InfoKind::Veth) => link.kind = Kind::Veth,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

/// Changes this close together are told as one.
const DEBOUNCE: Duration = Duration::from_millis(250);

/// Tells when something changed that may concern the overlay: interfaces come, go, flap and are renamed,
/// addresses change, a default route comes or goes, our routes or any rules are taken away.
#[derive(Debug)]
pub struct Watcher {
    messages:
        futures_channel::mpsc::UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    task: tokio::task::AbortHandle,
    /// When to tell what was heard.
    due: Option<Instant>,
}

impl Watcher {
    /// Subscribes to changes in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] if the kernel gives no netlink socket.
    pub fn open() -> Result<Self, Error> {
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ])
        .map_err(|source| Error::from_io("bind(RTMGRP_LINK)", "", source))?;
        Ok(Self {
            messages,
            task: tokio::spawn(connection).abort_handle(),
            due: None,
        })
    }

    /// Waits for changes, and a moment for those that belong to them; false once the socket failed. May be
    /// called off at any time: what was heard is told by the next call.
    pub async fn changed(&mut self) -> bool {
        loop {
            let due = self.due.unwrap_or_else(Instant::now);
            tokio::select! {
                () = tokio::time::sleep_until(due), if self.due.is_some() => {
                    self.due = None;
                    return true;
                }
                message = self.messages.next() => match message {
                    Some((message, _)) => {
                        if concerns_us(&message) {
                            self.due.get_or_insert_with(|| Instant::now() + DEBOUNCE);
                        }
                    }
                    None => return false,
                },
            }
        }
    }
}

fn concerns_us(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    let message = match &message.payload {
        NetlinkPayload::InnerMessage(message) => message,
        // Something was lost, and nobody knows what.
        NetlinkPayload::Overrun(_) => return true,
        _ => return false,
    };
    match message {
        RouteNetlinkMessage::NewLink(_)
        | RouteNetlinkMessage::DelLink(_)
        | RouteNetlinkMessage::NewAddress(_)
        | RouteNetlinkMessage::DelAddress(_)
        | RouteNetlinkMessage::DelRule(_) => true,
        // A host may route for the whole Internet: what matters is what goes from our table, and which way
        // is the default.
        RouteNetlinkMessage::DelRoute(route) => {
            routes::is_in_table(route, routes::TABLE) || is_default(route)
        }
        RouteNetlinkMessage::NewRoute(route) => {
            !routes::is_in_table(route, routes::TABLE) && is_default(route)
        }
        _ => false,
    }
}

/// A route to everywhere, or to half of it: two of those take a default route's place.
fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length <= 1
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}
