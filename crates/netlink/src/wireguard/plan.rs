//! The difference between two WireGuard devices: [`plan`].

use std::collections::BTreeSet;
use std::net::SocketAddr;

use ipnet::IpNet;
use keys::{NodePrivate, NodePublic};

use super::{Device, Peer};

/// One change to a device.
#[derive(Clone, Debug)]
pub enum Change {
    /// Removes a peer with its session.
    RemovePeer(NodePublic),
    /// Sets the private key; ends all sessions.
    SetPrivateKey(NodePrivate),
    /// Moves the socket to another UDP port.
    SetListenPort(u16),
    /// Marks outer packets.
    SetFwmark(u32),
    /// Adds a peer.
    AddPeer(NodePublic, Peer),
    /// Moves an existing peer to another outer address; never creates it.
    SetEndpoint(NodePublic, SocketAddr),
    /// Adds inner addresses to an existing peer.
    AddAllowedIps(NodePublic, BTreeSet<IpNet>),
    /// Replaces the inner addresses of an existing peer.
    ReplaceAllowedIps(NodePublic, BTreeSet<IpNet>),
}

/// Returns the changes that turn `actual` into `desired`, removals first. Pure.
///
/// An endpoint that is `None` in `desired` is left as it is. The private key and the mark are only
/// set when they differ, because setting them ends sessions or forgets source addresses.
#[must_use]
pub fn plan(desired: &Device, actual: &Device) -> Vec<Change> {
    let mut changes: Vec<Change> = actual
        .peers
        .keys()
        .filter(|key| !desired.peers.contains_key(key))
        .map(|key| Change::RemovePeer(*key))
        .collect();
    plan_device(desired, actual, &mut changes);
    for (key, peer) in &desired.peers {
        match actual.peers.get(key) {
            None => changes.push(Change::AddPeer(*key, peer.clone())),
            Some(old) => plan_peer(*key, peer, old, &mut changes),
        }
    }
    changes
}

fn plan_device(desired: &Device, actual: &Device, changes: &mut Vec<Change>) {
    let old = actual.private_key.as_ref().map(NodePrivate::as_bytes);
    if let Some(key) = &desired.private_key
        && Some(key.as_bytes()) != old
    {
        changes.push(Change::SetPrivateKey(key.clone()));
    }
    if desired.listen_port != actual.listen_port {
        changes.push(Change::SetListenPort(desired.listen_port));
    }
    if desired.fwmark != actual.fwmark {
        changes.push(Change::SetFwmark(desired.fwmark));
    }
}

fn plan_peer(key: NodePublic, desired: &Peer, actual: &Peer, changes: &mut Vec<Change>) {
    if let Some(endpoint) = desired.endpoint
        && actual.endpoint != Some(endpoint)
    {
        changes.push(Change::SetEndpoint(key, endpoint));
    }
    if actual.allowed_ips.is_subset(&desired.allowed_ips) {
        let fresh: BTreeSet<IpNet> = desired
            .allowed_ips
            .difference(&actual.allowed_ips)
            .copied()
            .collect();
        if !fresh.is_empty() {
            changes.push(Change::AddAllowedIps(key, fresh));
        }
    } else {
        changes.push(Change::ReplaceAllowedIps(key, desired.allowed_ips.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn key(number: u8) -> NodePublic {
        NodePublic::from_bytes([number; 32])
    }

    fn peer(endpoint: &str, ips: &[&str]) -> Peer {
        Peer {
            endpoint: Some(endpoint.parse().unwrap()),
            allowed_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        }
    }

    fn device(peers: &[(u8, Peer)]) -> Device {
        Device {
            peers: peers.iter().map(|(n, p)| (key(*n), p.clone())).collect(),
            ..Device::default()
        }
    }

    #[test]
    fn removals_come_first_and_equal_peers_are_left_alone() {
        let same = peer("127.64.0.2:1", &["100.64.0.2/32"]);
        let actual = device(&[(1, same.clone()), (3, peer("127.64.0.3:1", &[]))]);
        let desired = device(&[(1, same), (2, peer("127.64.0.4:1", &["100.64.0.3/32"]))]);

        let changes = plan(&desired, &actual);

        assert!(matches!(&changes[..], [
            Change::RemovePeer(gone), Change::AddPeer(new, _)
        ] if *gone == key(3) && *new == key(2)));
    }

    #[test]
    fn a_moved_endpoint_touches_nothing_else() {
        let actual = device(&[(1, peer("127.64.0.2:1", &["100.64.0.2/32"]))]);
        let desired = device(&[(1, peer("192.0.2.1:41641", &["100.64.0.2/32"]))]);

        let changes = plan(&desired, &actual);

        assert!(matches!(&changes[..], [Change::SetEndpoint(k, _)] if *k == key(1)));
    }

    #[test]
    fn an_unchanged_private_key_is_not_set_again() {
        let mut desired = device(&[]);
        desired.private_key = Some(NodePrivate::from_bytes([7; 32]));
        let mut actual = desired.clone();
        assert!(plan(&desired, &actual).is_empty());

        actual.private_key = Some(NodePrivate::from_bytes([8; 32]));
        assert!(matches!(
            &plan(&desired, &actual)[..],
            [Change::SetPrivateKey(_)]
        ));
    }

    /// What the kernel does with a change; a prefix moves to the peer that was given it last.
    fn execute(device: &mut Device, change: &Change) {
        let give = |device: &mut Device, key: NodePublic, ips: &BTreeSet<IpNet>| {
            for peer in device.peers.values_mut() {
                peer.allowed_ips.retain(|ip| !ips.contains(ip));
            }
            if let Some(peer) = device.peers.get_mut(&key) {
                peer.allowed_ips.extend(ips);
            }
        };
        match change {
            Change::RemovePeer(key) => {
                device.peers.remove(key);
            }
            Change::SetPrivateKey(key) => device.private_key = Some(key.clone()),
            Change::SetListenPort(port) => device.listen_port = *port,
            Change::SetFwmark(mark) => device.fwmark = *mark,
            Change::AddPeer(key, peer) => {
                let ips = peer.allowed_ips.clone();
                device.peers.insert(
                    *key,
                    Peer {
                        endpoint: peer.endpoint,
                        ..Peer::default()
                    },
                );
                give(device, *key, &ips);
            }
            Change::SetEndpoint(key, endpoint) => {
                if let Some(peer) = device.peers.get_mut(key) {
                    peer.endpoint = Some(*endpoint);
                }
            }
            Change::AddAllowedIps(key, ips) => give(device, *key, ips),
            Change::ReplaceAllowedIps(key, ips) => {
                if let Some(peer) = device.peers.get_mut(key) {
                    peer.allowed_ips.clear();
                }
                give(device, *key, ips);
            }
        }
    }

    /// Any device; each of the prefixes belongs to one peer or to none.
    fn any_device() -> impl Strategy<Value = Device> {
        (
            proptest::collection::btree_map(0u8..6, 0u8..4, 0..6),
            proptest::collection::vec(proptest::option::of(0u8..6), 8),
            0u16..3,
        )
            .prop_map(|(peers, owners, port)| {
                let mut device = Device {
                    listen_port: port,
                    peers: peers
                        .iter()
                        .map(|(number, host)| {
                            let endpoint = SocketAddr::from(([127, 64, 0, *host], 1));
                            let peer = Peer {
                                endpoint: Some(endpoint),
                                ..Peer::default()
                            };
                            (key(*number), peer)
                        })
                        .collect::<BTreeMap<_, _>>(),
                    ..Device::default()
                };
                for (index, owner) in owners.iter().enumerate() {
                    let ip: IpNet = format!("100.64.0.{index}/32").parse().unwrap();
                    if let Some(peer) = owner.and_then(|owner| device.peers.get_mut(&key(owner))) {
                        peer.allowed_ips.insert(ip);
                    }
                }
                device
            })
    }

    proptest! {
        #[test]
        fn a_plan_reaches_what_is_desired_and_a_second_one_is_empty(
            desired in any_device(),
            mut actual in any_device(),
        ) {
            for change in plan(&desired, &actual) {
                execute(&mut actual, &change);
            }
            prop_assert_eq!(&actual.peers, &desired.peers);
            prop_assert_eq!(actual.listen_port, desired.listen_port);
            prop_assert!(plan(&desired, &actual).is_empty());
        }
    }
}
