//! Two nodes with a session, one of which is told whatever somebody likes: [`Pair`].

use bytes::BytesMut;
use gotatun::packet::Packet;

use super::node::{Node, exchange, pair};
use super::{V4, V6, udp};
use crate::batch::Batch;
use crate::core::addresses;
use crate::split::split;
use crate::vnet::VnetHeader;

/// Two nodes with a session, without sockets. Their keys are always the same.
pub struct Pair {
    a: Node,
    b: Node,
}

impl Default for Pair {
    fn default() -> Self {
        Pair::connected()
    }
}

impl Pair {
    /// Two that have shaken hands.
    #[must_use]
    pub fn connected() -> Pair {
        let [mut a, mut b] = pair();
        let said = a.send(&udp(V4, b"hello"));
        exchange(&mut a, &mut b, said);
        let mut pair = Pair { a, b };
        assert_eq!(pair.delivered().len(), 1, "the first packet arrives");
        pair
    }

    /// The first message of a handshake that the first node would begin.
    #[must_use]
    pub fn initiation() -> Vec<u8> {
        let [mut a, _] = pair();
        let said = a.send(&udp(V4, b"hello"));
        said.packets[0].to_vec()
    }

    /// The session index by which the first node speaks to the second.
    #[must_use]
    pub fn index(&self) -> u32 {
        let state = self.b.peer.lock();
        state.indices.back().copied().unwrap_or_default()
    }

    /// `inner` in a message of the session, as a peer sends it that does not mean well; `None` without a session.
    #[must_use]
    pub fn seal(&mut self, inner: &[u8]) -> Option<Vec<u8>> {
        let mut state = self.a.peer.lock();
        let packet = Packet::from_bytes(BytesMut::from(inner));
        let sealed = state.tunn.as_mut()?.encapsulate_with_session(packet);
        let sealed: Packet = sealed.ok()?.into();
        Some(sealed.to_vec())
    }

    /// The second node receives a datagram from the first one's address.
    pub fn arrives(&mut self, datagram: &[u8]) {
        let mut batch = Batch::default();
        let packet = Packet::from_bytes(BytesMut::from(datagram));
        batch.push(self.b.address, packet);
        self.b.receive(self.a.address, &batch);
    }

    /// The first node's device gives `read`; what leaves reaches the second. Returns the number of datagrams.
    pub fn device_gives(&mut self, read: &mut [u8]) -> usize {
        let said = self.a.read(read);
        let count = said.len();
        exchange(&mut self.a, &mut self.b, said);
        count
    }

    /// The packets that the second node's host has received meanwhile, once its kernel has split them.
    ///
    /// # Panics
    ///
    /// If the kernel could not, or one comes from an address that is not the peer's.
    #[must_use]
    pub fn delivered(&mut self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        for mut frame in self.b.written() {
            let (vnet, packet) = frame
                .split_first_chunk_mut()
                .expect("a frame has a virtio_net_hdr");
            let (source, _) = addresses(packet).expect("a frame has an IP packet");
            assert!([V4.from, V6.from].contains(&source), "{source}");
            assert!(packet.len() <= 65_535 + 40, "{} bytes", packet.len());
            let vnet = VnetHeader::parse(vnet).expect("of a kind that there is");
            split(vnet, packet, |headers, payload| {
                packets.push([headers, payload].concat());
            })
            .expect("what was joined comes apart");
        }
        packets
    }

    /// Sends one more packet.
    ///
    /// # Panics
    ///
    /// If it does not arrive whole and alone.
    pub fn carries(&mut self) {
        let packet = udp(V6, b"still there?");
        let said = self.a.send(&packet);
        exchange(&mut self.a, &mut self.b, said);
        assert_eq!(self.delivered(), [packet]);
    }
}
