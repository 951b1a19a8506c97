//! The kernel's WireGuard: a device and its peers, dump → plan → apply.
//!
//! Source: `include/uapi/linux/wireguard.h`. Up to 256 peers and 500 allowed IPs go into one
//! message; a peer that the kernel splits over several messages of a dump is put together again.

mod plan;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::SystemTime;

use futures_util::{StreamExt, TryStreamExt};
use genetlink::GenetlinkError;
use ipnet::IpNet;
use keys::{NodePrivate, NodePublic};
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_generic::GenlMessage;
use netlink_packet_wireguard::{WireguardAttribute, WireguardCmd, WireguardMessage};

pub use plan::{Change, plan};

use crate::{Error, Netlink};

/// Configuration of a WireGuard device.
#[derive(Clone, Debug, Default)]
pub struct Device {
    /// Private key; the kernel shows it to CAP_NET_ADMIN only.
    pub private_key: Option<NodePrivate>,
    /// UDP port; 0 lets the kernel choose.
    pub listen_port: u16,
    /// Mark of outer packets; 0 is none.
    pub fwmark: u32,
    /// Peers by public key.
    pub peers: BTreeMap<NodePublic, Peer>,
}

/// Configuration of one peer.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Peer {
    /// Outer address that packets are sent to. WireGuard itself moves it when the peer roams.
    pub endpoint: Option<SocketAddr>,
    /// Inner addresses of the peer. In the kernel a prefix belongs to one peer only.
    pub allowed_ips: BTreeSet<IpNet>,
}

/// What the kernel counted for one peer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PeerStats {
    /// Bytes received, outer payload.
    pub rx_bytes: u64,
    /// Bytes sent, outer payload.
    pub tx_bytes: u64,
    /// Last completed handshake.
    pub last_handshake: Option<SystemTime>,
}

/// A device as the kernel has it.
#[derive(Clone, Debug, Default)]
pub struct Dump {
    /// Its configuration.
    pub device: Device,
    /// Counters by peer; the same keys as `device.peers`.
    pub stats: BTreeMap<NodePublic, PeerStats>,
}

/// Reads the device `name` with all its peers.
///
/// # Errors
///
/// [`Error::NoDevice`] if it does not exist, [`Error::NoWireGuard`] if the kernel has none.
pub async fn dump(netlink: &Netlink, name: &str) -> Result<Dump, Error> {
    const OPERATION: &str = "WG_CMD_GET_DEVICE";
    let failed = |error| Error::from_generic(OPERATION, name, error);
    let mut request = message(
        WireguardCmd::GetDevice,
        vec![WireguardAttribute::IfName(name.to_owned())],
    );
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut dump = Dump::default();
    let mut generic = resolved(netlink).await?;
    let mut answers = std::pin::pin!(generic.request(request).await.map_err(failed)?);
    while let Some(answer) = answers
        .try_next()
        .await
        .map_err(|error| failed(GenetlinkError::DecodeError(error)))?
    {
        match answer.payload {
            NetlinkPayload::InnerMessage(inner) => {
                wire::merge(&mut dump, &inner.payload.attributes);
            }
            NetlinkPayload::Error(error) if error.code.is_some() => {
                return Err(failed(error.into()));
            }
            _ => {}
        }
    }
    Ok(dump)
}

/// Makes the changes, in order and in as few messages as fit.
///
/// # Errors
///
/// The first refusal; what came before it is done, so dump and plan again.
pub async fn apply(netlink: &Netlink, name: &str, changes: &[Change]) -> Result<(), Error> {
    const OPERATION: &str = "WG_CMD_SET_DEVICE";
    if changes.is_empty() {
        return Ok(());
    }
    let port = changes.iter().find_map(|change| match change {
        Change::SetListenPort(port) => Some(*port),
        _ => None,
    });
    let failed = |error| Error::from_generic(OPERATION, name, error).about_port(port);
    let mut generic = resolved(netlink).await?;
    for attributes in wire::messages(name, changes) {
        let mut request = message(WireguardCmd::SetDevice, attributes);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        let mut answers = std::pin::pin!(generic.request(request).await.map_err(failed)?);
        while let Some(answer) = answers.next().await {
            let answer = answer.map_err(|error| failed(GenetlinkError::DecodeError(error)))?;
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(failed(error.into()));
            }
        }
    }
    Ok(())
}

/// Returns the generic netlink handle once the kernel told the number of the WireGuard family.
async fn resolved(netlink: &Netlink) -> Result<genetlink::GenetlinkHandle, Error> {
    netlink
        .generic
        .resolve_family::<WireguardMessage>()
        .await
        .map_err(|error| {
            Error::from_generic("CTRL_CMD_GETFAMILY", "wireguard", error).about_wireguard()
        })?;
    Ok(netlink.generic.clone())
}

fn message(
    cmd: WireguardCmd,
    attributes: Vec<WireguardAttribute>,
) -> NetlinkMessage<GenlMessage<WireguardMessage>> {
    NetlinkMessage::from(GenlMessage::from_payload(WireguardMessage {
        cmd,
        attributes,
    }))
}
