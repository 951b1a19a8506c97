//! From relays to WireGuard: sorts out disco, and gathers packets that can leave in one call.

use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::BytesMut;
use keys::NodePublic;
use node_core::RegionId;

use super::{MAX_DATAGRAM_LEN, Relayed};
use crate::net::peers::{Peer, Peers};
use crate::net::traffic::{self, RelayTally};
use crate::paths::{Event, Handle, Tally};

/// Where packets from relays go: to WireGuard or to disco.
#[derive(Clone, Debug)]
pub(crate) struct Inbound {
    /// The socket to WireGuard.
    pub(crate) relayed: Arc<Relayed>,
    /// Who may send.
    pub(crate) peers: Peers,
    /// Takes disco messages.
    pub(crate) paths: Handle,
    /// Counts what leads to nothing.
    pub(crate) junk: Tally,
}

impl Inbound {
    /// Hands a single WireGuard packet of a peer over, as [`Delivery`] does; the peer is named by its synthetic
    /// address.
    pub(crate) async fn hand_over(&self, peer: Ipv4Addr, packet: &[u8]) {
        let mut packets = vec![BytesMut::from(packet)];
        if let Err(error) = self.relayed.inject(peer, &mut packets).await {
            tracing::trace!(%error, "a packet on its detour not handed to WireGuard");
        }
    }

    /// Opens the way in for one relay connection.
    pub(crate) fn delivery(&self, region: RegionId) -> Delivery {
        Delivery {
            inbound: self.clone(),
            region,
            tally: self.peers.regions.of(region),
            peer: None,
            packets: Vec::new(),
        }
    }
}

/// Packets of one relay connection on their way to WireGuard, gathered while they are of one peer.
#[derive(Debug)]
pub(crate) struct Delivery {
    inbound: Inbound,
    region: RegionId,
    tally: Arc<RelayTally>,
    /// Whose they are.
    peer: Option<Arc<Peer>>,
    packets: Vec<BytesMut>,
}

impl Delivery {
    /// Takes one packet off the relay; true if it came from a peer whose home is another region. Follow a
    /// batch of packets with [`Self::flush`].
    pub(crate) async fn handle(&mut self, source: NodePublic, packet: BytesMut) -> bool {
        if self.peer.as_ref().is_none_or(|peer| peer.key != source) {
            self.flush().await;
            let table = self.inbound.peers.snapshot();
            self.peer = table.by_key(&source).cloned();
        }
        let Some(peer) = &self.peer else {
            self.inbound.junk.unknown_sender();
            return false;
        };
        if derp_proto::is_disco(&packet) {
            let event = Event::Relayed {
                region: self.region,
                from: source,
                datagram: packet.to_vec(),
            };
            if !self.inbound.paths.try_tell(event) {
                self.inbound.junk.overrun();
            }
        } else if is_wireguard(&packet) && packet.len() <= MAX_DATAGRAM_LEN {
            self.packets.push(packet);
        } else {
            self.inbound.junk.foreign();
        }
        peer.home != Some(self.region)
    }

    /// Hands over what is gathered.
    pub(crate) async fn flush(&mut self) {
        let Some(peer) = self.peer.take() else { return };
        if self.packets.is_empty() {
            return;
        }
        let packets = self.packets.iter().map(|packet| &packet[..]);
        traffic::note_received(&self.tally, &peer.relayed, packets);
        let relayed = &self.inbound.relayed;
        if let Err(error) = relayed.inject(peer.address, &mut self.packets).await {
            // As on any network, the packets are lost and sent again.
            tracing::trace!(%error, "packets from a relay not handed to WireGuard");
        }
        self.packets.clear();
    }
}

/// True if a packet has the shape of a WireGuard message: type 1–4 and a length that fits it.
pub(crate) fn is_wireguard(packet: &[u8]) -> bool {
    match packet.first_chunk::<4>() {
        Some([1, 0, 0, 0]) => packet.len() == 148,
        Some([2, 0, 0, 0]) => packet.len() == 92,
        Some([3, 0, 0, 0]) => packet.len() == 64,
        Some([4, 0, 0, 0]) => packet.len() >= 32,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
