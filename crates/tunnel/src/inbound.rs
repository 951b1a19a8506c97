//! From the underlay to the TUN device: [`Inbound`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::BytesMut;
use gotatun::noise::TunnResult;
use gotatun::noise::handshake::parse_handshake_anon;
use gotatun::packet::{Packet, WgKind};
use gotatun::tun::MtuWatcher;
use keys::NodePublic;

use crate::batch::Batch;
use crate::core::{Core, View, addresses, count};
use crate::filter::Direction;
use crate::join::{Joiner, ip_len};
use crate::offloads::Offload;
use crate::peer::{Peer, State};

/// Takes what the socket receives, and gathers what is to be written to the TUN device and what is to be sent.
pub(crate) struct Inbound {
    core: Arc<Core>,
    view: View,
    mtu: MtuWatcher,
    pub(crate) joiner: Joiner,
    /// Answers of WireGuard.
    pub(crate) replies: Batch,
}

impl Inbound {
    pub(crate) fn new(core: Arc<Core>) -> Inbound {
        Inbound {
            view: View::new(&core),
            mtu: MtuWatcher::new(u16::try_from(core.mtu).unwrap_or(u16::MAX)),
            core,
            joiner: Joiner::default(),
            replies: Batch::default(),
        }
    }

    /// Before a batch: takes note of what was configured, and of what the device refused, meanwhile.
    pub(crate) fn begin(&mut self) {
        self.core.refresh(&mut self.view);
        let on = |offload| self.core.switches.is_on(offload);
        self.joiner.join(on(Offload::TunTcp), on(Offload::TunUdp));
    }

    /// Takes datagrams that came from one address. What leads nowhere is counted.
    pub(crate) fn take(&mut self, from: SocketAddr, datagrams: impl Iterator<Item = BytesMut>) {
        let mut datagrams = datagrams.peekable();
        while let Some(datagram) = datagrams.next() {
            let Some(index) = session_index(&datagram) else {
                self.handshake(from, datagram);
                continue;
            };
            let Some(peer) = self.core.by_index(index) else {
                count(&self.core.counters.unknown, 1);
                continue;
            };
            // One lock for all that follows of this session.
            let mut state = peer.lock();
            let mut source = None;
            self.data(from, datagram, &peer, &mut state, &mut source);
            let alike = |next: &BytesMut| session_index(next) == Some(index);
            while let Some(datagram) = datagrams.next_if(alike) {
                self.data(from, datagram, &peer, &mut state, &mut source);
            }
        }
    }

    /// `admitted` is the inner source that was found to be the peer's last.
    fn data(
        &mut self,
        from: SocketAddr,
        datagram: BytesMut,
        peer: &Arc<Peer>,
        state: &mut State,
        admitted: &mut Option<IpAddr>,
    ) {
        let counters = &self.core.counters;
        let identity = self.view.table.identity.as_deref();
        let Some(tunn) = self.core.session(identity, peer, state) else {
            return count(&counters.unknown, 1);
        };
        let Ok(kind) = Packet::from_bytes(datagram).try_into_wg() else {
            return count(&counters.malformed, 1);
        };
        let mut packet = match tunn.handle_incoming_packet(kind) {
            TunnResult::WriteToTunnel(packet) => packet,
            _ => return count(&counters.refused, 1),
        };
        state.endpoint = Some(from);
        count(&counters.received, 1);
        if packet.is_empty() {
            // A keepalive.
            return;
        }
        // Behind it is padding.
        let len = ip_len(&packet);
        let Some((len, (source, _))) = len.zip(addresses(&packet)) else {
            return count(&counters.malformed, 1);
        };
        packet.truncate(len);
        if *admitted != Some(source) {
            let owner = self.view.table.routes.find(source);
            if owner.is_none_or(|owner| owner.key != peer.key) {
                return count(&counters.not_allowed, 1);
            }
            *admitted = Some(source);
        }
        if self.core.filter.admits(Direction::In, &packet) {
            self.joiner.push(packet);
        }
    }

    fn handshake(&mut self, from: SocketAddr, datagram: BytesMut) {
        let counters = &self.core.counters;
        let Some(identity) = self.view.table.identity.clone() else {
            return count(&counters.unknown, 1);
        };
        let message = match identity
            .limiter
            .verify_packet(from, Packet::from_bytes(datagram))
        {
            Ok(message) => message,
            // Says nothing about who asked: it moves no endpoint.
            Err(TunnResult::WriteToNetwork(cookie)) => {
                return self.replies.push(from, cookie.into());
            }
            Err(_) => return count(&counters.malformed, 1),
        };
        let peer = match &message {
            WgKind::HandshakeInit(message) => {
                parse_handshake_anon(&identity.secret, &identity.public, message)
                    .ok()
                    .and_then(|half| {
                        let key = NodePublic::from_bytes(half.peer_static_public);
                        self.view.table.peers.get(&key).cloned()
                    })
            }
            WgKind::HandshakeResp(message) => self.core.by_index(message.receiver_idx.get()),
            WgKind::CookieReply(message) => self.core.by_index(message.receiver_idx.get()),
            WgKind::Data(_) => None,
        };
        let Some(peer) = peer else {
            return count(&counters.unknown, 1);
        };
        let mut state = peer.lock();
        let Some(tunn) = self.core.session(Some(&identity), &peer, &mut state) else {
            return count(&counters.unknown, 1);
        };
        match tunn.handle_incoming_packet(message) {
            TunnResult::WriteToNetwork(reply) => {
                let queued: Vec<WgKind> = tunn.get_queued_packets(&mut self.mtu).collect();
                state.endpoint = Some(from);
                state.shook_hands();
                for message in [reply].into_iter().chain(queued) {
                    self.core.note(&peer, &mut state, &message);
                    self.core.count_sent(&message);
                    self.replies.push(from, message.into());
                }
            }
            // A cookie is used with the next handshake.
            TunnResult::Done => {}
            TunnResult::Err(error) => {
                tracing::trace!(?error, %from, "a handshake message");
                count(&counters.refused, 1);
            }
            // Data is not handled here.
            TunnResult::WriteToTunnel(_) => {}
        }
    }
}

/// The session that a transport data message belongs to (WireGuard, section 5.4.6); `None` if it is none.
fn session_index(datagram: &[u8]) -> Option<u32> {
    let (kind, rest) = datagram.split_first_chunk::<4>()?;
    let index = rest.first_chunk::<4>()?;
    (*kind == [4, 0, 0, 0] && datagram.len() >= 32).then(|| u32::from_le_bytes(*index))
}
