//! Two nodes that hand each other what they want to send: everything but sockets.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::BytesMut;
use keys::{NodePrivate, NodePublic};

use super::{V4, V6};
use crate::allowed::AllowedIps;
use crate::batch::Batch;
use crate::core::{Core, Identity, Table};
use crate::filter::{Direction, Filter};
use crate::inbound::Inbound;
use crate::outbound::Outbound;
use crate::peer::Peer;
use crate::vnet::VnetHeader;

/// A filter that admits all or nothing.
#[derive(Default)]
pub(crate) struct Gate {
    pub(crate) closed: AtomicBool,
}

impl Filter for Gate {
    fn admits(&self, _: Direction, _: &[u8]) -> bool {
        !self.closed.load(Ordering::Relaxed)
    }
}

/// One node, with one peer.
pub(crate) struct Node {
    #[cfg_attr(not(test), expect(dead_code, reason = "tests look"))]
    pub(crate) core: Arc<Core>,
    pub(crate) out: Outbound,
    pub(crate) inn: Inbound,
    #[cfg_attr(not(test), expect(dead_code, reason = "tests shut it"))]
    pub(crate) gate: Arc<Gate>,
    pub(crate) address: SocketAddr,
    pub(crate) peer: Arc<Peer>,
}

impl Node {
    /// A node at `address` whose peer has the addresses `allowed`.
    fn new(
        key: &NodePrivate,
        address: SocketAddr,
        peer: NodePublic,
        endpoint: Option<SocketAddr>,
        allowed: [IpAddr; 2],
    ) -> Node {
        let gate = Arc::new(Gate::default());
        let core = Arc::new(Core::new(1280, gate.clone(), Arc::default()));
        let peer = Arc::new(Peer::new(peer, endpoint));
        let mut routes = AllowedIps::default();
        for address in allowed {
            routes.insert(address.into(), Arc::clone(&peer));
        }
        core.publish(Table {
            identity: Some(Arc::new(Identity::new(key))),
            peers: [(peer.key, Arc::clone(&peer))].into(),
            routes,
        });
        Node {
            out: Outbound::new(Arc::clone(&core)),
            inn: Inbound::new(Arc::clone(&core)),
            core,
            gate,
            address,
            peer,
        }
    }

    /// The host sends a packet.
    pub(crate) fn send(&mut self, packet: &[u8]) -> Batch {
        let mut read = [&VnetHeader::PLAIN.bytes()[..], packet].concat();
        self.read(&mut read)
    }

    /// A read of the device gives this.
    pub(crate) fn read(&mut self, read: &mut [u8]) -> Batch {
        self.out.begin();
        self.out.take(read);
        std::mem::take(&mut self.out.wire)
    }

    /// Datagrams arrive; returns the answers.
    pub(crate) fn receive(&mut self, from: SocketAddr, batch: &Batch) -> Batch {
        self.inn.begin();
        let datagrams = batch.packets.iter();
        let datagrams = datagrams.map(|packet| BytesMut::from(&packet[..]));
        self.inn.take(from, datagrams);
        std::mem::take(&mut self.inn.replies)
    }

    /// What is written to the device: super-packets, each behind its `virtio_net_hdr`.
    pub(crate) fn written(&mut self) -> Vec<Vec<u8>> {
        let mut written = Vec::new();
        self.inn.joiner.flush(|parts, _| {
            written.push(parts.iter().flat_map(|part| part.to_vec()).collect());
        });
        written
    }
}

/// Hands over what one says, and the answers, until both are silent.
pub(crate) fn exchange(from: &mut Node, to: &mut Node, said: Batch) {
    let reply = to.receive(from.address, &said);
    if !reply.is_empty() {
        exchange(to, from, reply);
    }
}

/// Two nodes, each the other's peer; only the first knows where the other is.
pub(crate) fn pair() -> [Node; 2] {
    let [a, b] = [[21; 32], [22; 32]].map(NodePrivate::from_bytes);
    let [at_a, at_b] = [1, 2].map(|number| ([192, 0, 2, number], 51820).into());
    [
        Node::new(&a, at_a, b.public(), Some(at_b), [V4.to, V6.to]),
        Node::new(&b, at_b, a.public(), None, [V4.from, V6.from]),
    ]
}
