//! Changes → netlink attributes, in messages that fit; dump attributes → device.

use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};

use ipnet::IpNet;
use keys::{NodePrivate, NodePublic};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute,
    WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};

use super::{Change, Dump};

/// Peers in one message.
const MAX_PEERS: usize = 256;
/// Allowed IPs of one peer entry: 500 × 40 bytes.
const MAX_ALLOWED_IPS: usize = 500;
/// Allowed IPs in one message: WGDEVICE_A_PEERS is one attribute, so at most 64 KiB.
const MAX_MESSAGE_ALLOWED_IPS: usize = 600;

/// Returns the attributes of the WG_CMD_SET_DEVICE messages that make `changes`, in order.
pub(super) fn messages(name: &str, changes: &[Change]) -> Vec<Vec<WireguardAttribute>> {
    let mut messages = Vec::new();
    let mut batch = Batch::new(name);
    for change in changes {
        match change {
            Change::SetPrivateKey(key) => {
                batch.set(
                    WireguardAttribute::PrivateKey(*key.as_bytes()),
                    &mut messages,
                );
            }
            Change::SetListenPort(port) => {
                batch.set(WireguardAttribute::ListenPort(*port), &mut messages);
            }
            Change::SetFwmark(mark) => {
                batch.set(WireguardAttribute::Fwmark(*mark), &mut messages);
            }
            Change::RemovePeer(key) => {
                let flags = WireguardPeerFlags::RemoveMe | WireguardPeerFlags::UpdateOnly;
                batch.peer(entry(*key, flags, None), &[], &mut messages);
            }
            Change::AddPeer(key, peer) => {
                let ips: Vec<IpNet> = peer.allowed_ips.iter().copied().collect();
                let flags = WireguardPeerFlags::ReplaceAllowedIps;
                batch.split(entry(*key, flags, peer.endpoint), &ips, *key, &mut messages);
            }
            Change::SetEndpoint(key, endpoint) => {
                let flags = WireguardPeerFlags::UpdateOnly;
                batch.peer(entry(*key, flags, Some(*endpoint)), &[], &mut messages);
            }
            Change::AddAllowedIps(key, ips) => {
                let ips: Vec<IpNet> = ips.iter().copied().collect();
                let flags = WireguardPeerFlags::UpdateOnly;
                batch.split(entry(*key, flags, None), &ips, *key, &mut messages);
            }
            Change::ReplaceAllowedIps(key, ips) => {
                let ips: Vec<IpNet> = ips.iter().copied().collect();
                let flags = WireguardPeerFlags::UpdateOnly | WireguardPeerFlags::ReplaceAllowedIps;
                batch.split(entry(*key, flags, None), &ips, *key, &mut messages);
            }
        }
    }
    batch.flush(&mut messages);
    messages
}

/// A message under construction: device attributes, then peers.
struct Batch<'a> {
    name: &'a str,
    device: Vec<WireguardAttribute>,
    peers: Vec<WireguardPeer>,
    allowed_ips: usize,
}

impl<'a> Batch<'a> {
    fn new(name: &'a str) -> Self {
        Self {
            name,
            device: Vec::new(),
            peers: Vec::new(),
            allowed_ips: 0,
        }
    }

    /// Adds a device attribute. The kernel handles these before the peers of the same message.
    fn set(&mut self, attribute: WireguardAttribute, messages: &mut Vec<Vec<WireguardAttribute>>) {
        if !self.peers.is_empty() {
            self.flush(messages);
        }
        self.device.push(attribute);
    }

    fn peer(
        &mut self,
        mut attributes: Vec<WireguardPeerAttribute>,
        ips: &[IpNet],
        messages: &mut Vec<Vec<WireguardAttribute>>,
    ) {
        if self.peers.len() == MAX_PEERS || self.allowed_ips + ips.len() > MAX_MESSAGE_ALLOWED_IPS {
            self.flush(messages);
        }
        if !ips.is_empty() {
            attributes.push(WireguardPeerAttribute::AllowedIps(
                ips.iter().map(allowed_ip).collect(),
            ));
        }
        self.allowed_ips += ips.len();
        self.peers.push(WireguardPeer(attributes));
    }

    /// Adds a peer with any number of allowed IPs; continuations only ever add to it.
    fn split(
        &mut self,
        first: Vec<WireguardPeerAttribute>,
        ips: &[IpNet],
        key: NodePublic,
        messages: &mut Vec<Vec<WireguardAttribute>>,
    ) {
        let (head, tail) = ips.split_at(ips.len().min(MAX_ALLOWED_IPS));
        self.peer(first, head, messages);
        for chunk in tail.chunks(MAX_ALLOWED_IPS) {
            self.peer(
                entry(key, WireguardPeerFlags::UpdateOnly, None),
                chunk,
                messages,
            );
        }
    }

    fn flush(&mut self, messages: &mut Vec<Vec<WireguardAttribute>>) {
        if self.device.is_empty() && self.peers.is_empty() {
            return;
        }
        let mut attributes = vec![WireguardAttribute::IfName(self.name.to_owned())];
        attributes.append(&mut self.device);
        if !self.peers.is_empty() {
            attributes.push(WireguardAttribute::Peers(std::mem::take(&mut self.peers)));
        }
        self.allowed_ips = 0;
        messages.push(attributes);
    }
}

fn entry(
    key: NodePublic,
    flags: WireguardPeerFlags,
    endpoint: Option<std::net::SocketAddr>,
) -> Vec<WireguardPeerAttribute> {
    let mut attributes = vec![
        WireguardPeerAttribute::PublicKey(*key.as_bytes()),
        WireguardPeerAttribute::Flags(flags),
    ];
    attributes.extend(endpoint.map(WireguardPeerAttribute::Endpoint));
    attributes
}

fn allowed_ip(net: &IpNet) -> WireguardAllowedIp {
    let family = match net {
        IpNet::V4(_) => WireguardAddressFamily::Ipv4,
        IpNet::V6(_) => WireguardAddressFamily::Ipv6,
    };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(net.addr()),
        WireguardAllowedIpAttr::Cidr(net.prefix_len()),
    ])
}

/// Adds one message of a dump. A peer that does not fit into one comes again, with more allowed IPs.
pub(super) fn merge(dump: &mut Dump, attributes: &[WireguardAttribute]) {
    for attribute in attributes {
        match attribute {
            WireguardAttribute::PrivateKey(key) if *key != [0; 32] => {
                dump.device.private_key = Some(NodePrivate::from_bytes(*key));
            }
            WireguardAttribute::ListenPort(port) => dump.device.listen_port = *port,
            WireguardAttribute::Fwmark(mark) => dump.device.fwmark = *mark,
            WireguardAttribute::Peers(peers) => {
                for peer in peers {
                    merge_peer(dump, peer);
                }
            }
            _ => {}
        }
    }
}

fn merge_peer(dump: &mut Dump, attributes: &[WireguardPeerAttribute]) {
    let Some(key) = attributes.iter().find_map(|attribute| match attribute {
        WireguardPeerAttribute::PublicKey(key) => Some(NodePublic::from_bytes(*key)),
        _ => None,
    }) else {
        return;
    };
    let peer = dump.device.peers.entry(key).or_default();
    let stats = dump.stats.entry(key).or_default();
    for attribute in attributes {
        match attribute {
            WireguardPeerAttribute::Endpoint(endpoint) => peer.endpoint = Some(*endpoint),
            WireguardPeerAttribute::RxBytes(bytes) => stats.rx_bytes = *bytes,
            WireguardPeerAttribute::TxBytes(bytes) => stats.tx_bytes = *bytes,
            WireguardPeerAttribute::LastHandshake(at) => {
                let seconds = u64::try_from(at.seconds).unwrap_or(0);
                let nanos = u32::try_from(at.nano_seconds).unwrap_or(0);
                stats.last_handshake = ((seconds, nanos) != (0, 0))
                    .then(|| UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)))
                    .flatten();
            }
            WireguardPeerAttribute::AllowedIps(ips) => {
                peer.allowed_ips
                    .extend(ips.iter().filter_map(|ip| parse_allowed_ip(ip)));
            }
            _ => {}
        }
    }
}

fn parse_allowed_ip(attributes: &[WireguardAllowedIpAttr]) -> Option<IpNet> {
    let mut address: Option<IpAddr> = None;
    let mut prefix = None;
    for attribute in attributes {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(value) => address = Some(*value),
            WireguardAllowedIpAttr::Cidr(value) => prefix = Some(*value),
            _ => {}
        }
    }
    IpNet::new(address?, prefix?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wireguard::{Device, Peer, plan};
    use netlink_packet_core::Nla;

    fn key(number: u32) -> NodePublic {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        NodePublic::from_bytes(bytes)
    }

    /// A device whose peers have the given numbers of allowed IPs.
    fn device(sizes: &[u32]) -> Device {
        let mut next = 0u32;
        let mut device = Device {
            listen_port: 41641,
            fwmark: 0x80000,
            private_key: Some(NodePrivate::from_bytes([9; 32])),
            ..Device::default()
        };
        for (number, size) in (1..).zip(sizes) {
            let allowed_ips = (next..next + size)
                .map(|host| IpNet::from(IpAddr::from((0x0a00_0000 + host).to_be_bytes())))
                .collect();
            next += size;
            let endpoint = Some(std::net::SocketAddr::from(([127, 64, 0, 2], 41642)));
            device.peers.insert(
                key(number),
                Peer {
                    endpoint,
                    allowed_ips,
                },
            );
        }
        device
    }

    #[test]
    fn five_thousand_peers_take_twenty_messages() {
        let desired = device(&[2; 5_000]);
        let messages = messages("wg0", &plan(&desired, &Device::default()));
        assert_eq!(messages.len(), 20);
    }

    #[test]
    fn no_message_outgrows_a_netlink_attribute() {
        let desired = device(&[2_000, 1, 499, 500, 501, 0, 2]);
        for message in messages("wg0", &plan(&desired, &Device::default())) {
            for attribute in &message {
                assert!(attribute.value_len() < usize::from(u16::MAX) - 4);
            }
        }
    }

    #[test]
    fn what_was_sent_merges_into_the_same_device() {
        let desired = device(&[2_000, 3, 0]);
        let mut dump = Dump::default();
        for message in messages("wg0", &plan(&desired, &Device::default())) {
            merge(&mut dump, &message);
        }
        assert_eq!(dump.device.peers, desired.peers);
        assert!(plan(&desired, &dump.device).is_empty());
    }

    #[test]
    fn only_new_peers_may_be_created() {
        let actual = device(&[2, 2]);
        let mut desired = device(&[1, 3]);
        desired.peers.remove(&key(2));
        for message in messages("wg0", &plan(&desired, &actual)) {
            for attribute in message {
                let WireguardAttribute::Peers(peers) = attribute else {
                    continue;
                };
                for peer in peers {
                    assert!(peer.iter().any(|attribute| matches!(
                        attribute,
                        WireguardPeerAttribute::Flags(flags)
                            if flags.contains(WireguardPeerFlags::UpdateOnly)
                    )));
                }
            }
        }
    }
}
