//! What [`super::Net`] does before it has anything: picks the engine, takes over, checks.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use keys::NodePublic;
use netlink::{Netlink, wireguard};
use node_core::DEFAULT_MTU;
use node_core::endpoints::Endpoints;

use super::{EngineChoice, NetError, Reports};
use crate::error_text::error_text;
use crate::tunnel::{Embedded, Gate, Kernel, Tunnel};
use crate::underlay;

/// Picks the engine and says why.
pub(super) async fn choose_engine(
    netlink: &Arc<Netlink>,
    device: &str,
    choice: EngineChoice,
    reports: &Reports,
) -> Result<(Box<dyn Tunnel>, String), NetError> {
    let kernel = || -> Box<dyn Tunnel> { Box::new(Kernel::new(netlink.clone(), device)) };
    let embedded = || -> Box<dyn Tunnel> {
        let gate = Gate::new(reports.clone());
        Box::new(Embedded::new(netlink.clone(), device, DEFAULT_MTU, gate))
    };
    if choice == EngineChoice::Embedded {
        return Ok((embedded(), "asked for by --wireguard embedded".to_owned()));
    }
    match (Kernel::probe(netlink, device).await, choice) {
        (Ok(()), EngineChoice::Kernel) => {
            Ok((kernel(), "asked for by --wireguard kernel".to_owned()))
        }
        (Ok(()), _) => match dataplane::probe() {
            Ok(()) => Ok((kernel(), "the kernel has WireGuard".to_owned())),
            // Only a tunnel of our own can be filtered without eBPF.
            Err(error) => Ok((embedded(), error_text(&error))),
        },
        (Err(error @ netlink::Error::NotPermitted { .. }), _) => Err(error.into()),
        (Err(error), EngineChoice::Kernel) => Err(NetError::NoKernelWireGuard(error)),
        (Err(error), _) => Ok((embedded(), error_text(&error))),
    }
}

/// Tells whether a former agent's device of the kernel is there, with its sessions.
pub(super) async fn outlived(device: &str) -> bool {
    let leftover = async {
        let netlink = Netlink::open()?;
        Kernel::leftover(&netlink, device).await
    };
    match leftover.await {
        Ok(device) => device.is_some(),
        Err(error) => {
            // Who may not ask cannot take anything over either.
            tracing::debug!(%error, "no device to take over");
            false
        }
    }
}

/// Takes over the endpoints of a running device: synthetic ones, whose shared port is returned, and
/// direct ones.
pub(super) fn adopt(
    device: &wireguard::Device,
    endpoints: &mut Endpoints,
    direct: &mut BTreeMap<NodePublic, SocketAddr>,
) -> Option<u16> {
    let mut port = None;
    for (key, peer) in &device.peers {
        match peer.endpoint {
            Some(SocketAddr::V4(relayed)) if relayed.ip().is_loopback() => {
                endpoints.adopt(*key, *relayed.ip());
                port = Some(relayed.port());
            }
            Some(endpoint) => {
                direct.insert(*key, endpoint);
            }
            None => {}
        }
    }
    port
}

/// A mark is what every socket of ours needs, and what only CAP_NET_ADMIN may set.
pub(super) fn check_permission() -> Result<(), NetError> {
    match underlay::open_udp_on(false, 0) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(NetError::NotPermitted)
        }
        Err(source) => Err(NetError::Socket {
            operation: "opening a UDP socket",
            source,
        }),
    }
}

/// Tells early, and in plain words, that the port cannot be had.
pub(super) fn check_port(port: u16) -> Result<(), NetError> {
    let any = [
        IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::from(Ipv6Addr::UNSPECIFIED),
    ];
    for ip in any {
        match UdpSocket::bind((ip, port)).map_err(|error| error.kind()) {
            Err(io::ErrorKind::AddrInUse) => return Err(NetError::PortInUse { port }),
            Err(io::ErrorKind::PermissionDenied) => return Err(NetError::PortRefused { port }),
            // A family that this host does not have.
            _ => {}
        }
    }
    Ok(())
}
