//! From the TUN device to the underlay: [`Outbound`].

use std::net::IpAddr;
use std::sync::Arc;

use bytes::BytesMut;
use gotatun::packet::Packet;

use crate::batch::Batch;
use crate::core::{Core, View, addresses, count};
use crate::filter::Direction;
use crate::peer::Peer;
use crate::split::split;
use crate::vnet::VnetHeader;

/// Takes what the TUN device hands over, and gathers what is to be sent.
pub(crate) struct Outbound {
    core: Arc<Core>,
    view: View,
    /// Whom the last packet went to: so does the next, most likely.
    last: Option<(IpAddr, Arc<Peer>)>,
    /// Packets are put together here, one after another.
    plain: BytesMut,
    pub(crate) wire: Batch,
}

impl Outbound {
    pub(crate) fn new(core: Arc<Core>) -> Outbound {
        Outbound {
            view: View::new(&core),
            core,
            last: None,
            plain: BytesMut::new(),
            wire: Batch::default(),
        }
    }

    /// Before a batch: takes note of what was configured meanwhile.
    pub(crate) fn begin(&mut self) {
        self.core.refresh(&mut self.view);
        self.last = None;
    }

    /// Takes what one read of the device gave: a `virtio_net_hdr` and what it describes. What leads nowhere is
    /// counted.
    pub(crate) fn take(&mut self, read: &mut [u8]) {
        let Self {
            core,
            view,
            last,
            plain,
            wire,
        } = self;
        let counters = &core.counters;
        let Some((vnet, packet)) = read.split_first_chunk_mut::<{ VnetHeader::LEN }>() else {
            return count(&counters.malformed, 1);
        };
        let Some((vnet, (_, to))) = VnetHeader::parse(vnet).zip(addresses(packet)) else {
            return count(&counters.malformed, 1);
        };
        if last.as_ref().is_none_or(|(last, _)| *last != to) {
            let found = view.table.routes.find(to);
            *last = found.map(|peer| (to, Arc::clone(peer)));
        }
        let Some((_, peer)) = last else {
            return count(&counters.no_peer, 1);
        };
        let mut state = peer.lock();
        let Some(endpoint) = state.endpoint else {
            return count(&counters.no_endpoint, 1);
        };
        let identity = view.table.identity.as_deref();
        let mut sent = 0;
        let done = split(vnet, packet, |headers, payload| {
            assemble(plain, [headers, payload]);
            if !core.filter.admits(Direction::Out, plain) {
                plain.clear();
                return;
            }
            // To a multiple of 16, but not beyond what the path carries.
            let len = plain.len();
            let padded = len.next_multiple_of(16).min(core.mtu).max(len);
            plain.resize(padded, 0);
            let packet = Packet::from_bytes(plain.split());
            let Some(tunn) = core.session(identity, peer, &mut state) else {
                return;
            };
            match tunn.encapsulate_with_session(packet) {
                Ok(data) => {
                    sent += 1;
                    wire.push(endpoint, data.into());
                }
                // Without a session it waits for one.
                Err(packet) => {
                    if let Some(message) = tunn.handle_outgoing_packet(packet, None) {
                        core.note(peer, &mut state, &message);
                        wire.push(endpoint, message.into());
                    }
                }
            }
        });
        if done.is_err() {
            return count(&counters.malformed, 1);
        }
        count(&counters.read, 1);
        count(&counters.sent, sent);
    }
}

/// Room for one packet, header and tag, and what padding adds.
const ROOM: usize = 2048;

/// Puts a packet together in `plain`.
fn assemble(plain: &mut BytesMut, parts: [&[u8]; 2]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    plain.clear();
    if !plain.try_reclaim(len + 16) {
        *plain = BytesMut::with_capacity(ROOM.max(len + 16));
    }
    for part in parts {
        plain.extend_from_slice(part);
    }
}
