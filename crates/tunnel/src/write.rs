//! Writes to the TUN device what was joined, and apart what it does not take joined: [`write`].

use std::io::{self, IoSlice};

use crate::offloads::Offload;
use crate::split::split;
use crate::vnet::{Gso, VnetHeader};

/// What became of one write.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// Packets that the device did not take.
    pub(crate) lost: usize,
    /// Why, or why they were not taken as one.
    pub(crate) error: Option<io::Error>,
    /// The device takes packets of this kind one by one only.
    pub(crate) refused: Option<Offload>,
}

/// Writes a packet or super-packet of so many `packets`, its `virtio_net_hdr` first. Kernels that cannot make sense of
/// a super-packet answer EINVAL; then its packets are written one by one.
pub(crate) fn write(
    parts: &[IoSlice<'_>],
    packets: u32,
    mut device: impl FnMut(&[IoSlice<'_>]) -> io::Result<()>,
) -> Written {
    let Err(error) = device(parts) else {
        return Written::default();
    };
    let mut written = Written {
        lost: packets as usize,
        error: None,
        refused: None,
    };
    if packets > 1 && error.raw_os_error() == Some(libc::EINVAL) {
        apart(parts, &mut written, device);
    }
    written.error = Some(error);
    written
}

/// Writes the packets of a super-packet one by one. If all are taken it is the kind that the device refused, and
/// nothing about these.
fn apart(
    parts: &[IoSlice<'_>],
    written: &mut Written,
    mut device: impl FnMut(&[IoSlice<'_>]) -> io::Result<()>,
) {
    let mut whole: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
    let Some((vnet, packet)) = whole.split_first_chunk_mut() else {
        return;
    };
    let Some(vnet) = VnetHeader::parse(vnet) else {
        return;
    };
    let plain = VnetHeader::PLAIN.bytes();
    let lost = &mut written.lost;
    let done = split(vnet, packet, |headers, payload| {
        let parts = [&plain, headers, payload].map(IoSlice::new);
        if device(&parts).is_ok() {
            *lost = lost.saturating_sub(1);
        }
    });
    if done.is_ok() && written.lost == 0 {
        written.refused = match vnet.gso {
            Gso::None => None,
            Gso::Tcp4 | Gso::Tcp6 => Some(Offload::TunTcp),
            Gso::Udp => Some(Offload::TunUdp),
        };
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use gotatun::packet::Packet;

    use super::*;
    use crate::join::Joiner;
    use crate::testing::{V4, V6, tcp, udp, without_id};

    const ACK: u8 = 0x10;

    /// Hands `packets` to a device that answers as `refuses` says to each write; returns what it took, and what
    /// became of each write.
    fn through(
        packets: &[Vec<u8>],
        refuses: impl Fn(&VnetHeader) -> Option<i32>,
    ) -> (Vec<Vec<u8>>, Vec<Written>) {
        let mut joiner = Joiner::default();
        joiner.join(true, true);
        for packet in packets {
            joiner.push(Packet::from_bytes(BytesMut::from(&packet[..])));
        }
        let (mut taken, mut outcomes) = (Vec::new(), Vec::new());
        joiner.flush(|parts, count| {
            outcomes.push(write(parts, count, |parts| {
                let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
                let (vnet, packet) = bytes.split_first_chunk().unwrap();
                match refuses(&VnetHeader::parse(vnet).unwrap()) {
                    Some(code) => return Err(io::Error::from_raw_os_error(code)),
                    None => taken.push(without_id(packet)),
                }
                Ok(())
            }));
        });
        (taken, outcomes)
    }

    fn packets() -> Vec<Vec<u8>> {
        let mut packets: Vec<_> = (0..4)
            .map(|number| tcp(V4, ACK, 1000 + number * 300, &[number as u8; 300]))
            .collect();
        packets.extend((0..3).map(|number| udp(V6, &[number; 200])));
        packets
    }

    fn without_ids(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        packets.iter().map(|packet| without_id(packet)).collect()
    }

    #[test]
    fn super_packets_that_are_refused_are_written_apart_and_their_kind_is_told() {
        let (taken, outcomes) = through(&packets(), |vnet| {
            (vnet.gso == Gso::Tcp4).then_some(libc::EINVAL)
        });
        assert_eq!(outcomes.len(), 2);
        assert_eq!(outcomes[0].refused, Some(Offload::TunTcp));
        assert_eq!((outcomes[0].lost, outcomes[1].lost), (0, 0));
        assert!(outcomes[1].refused.is_none() && outcomes[1].error.is_none());
        assert_eq!(taken[..4], without_ids(&packets()[..4]));

        let (taken, outcomes) = through(&packets(), |vnet| {
            (vnet.gso == Gso::Udp).then_some(libc::EINVAL)
        });
        assert_eq!(outcomes[1].refused, Some(Offload::TunUdp));
        assert_eq!(taken[1..], without_ids(&packets()[4..]));
    }

    #[test]
    fn what_is_refused_one_by_one_too_says_nothing_about_its_kind() {
        let (taken, outcomes) = through(&packets(), |_| Some(libc::EINVAL));
        assert!(taken.is_empty());
        for (outcome, lost) in outcomes.iter().zip([4, 3]) {
            assert_eq!((outcome.lost, outcome.refused), (lost, None));
        }
    }

    #[test]
    fn a_device_that_is_down_loses_packets_and_no_offload() {
        let (taken, outcomes) = through(&packets(), |_| Some(libc::EIO));
        assert!(taken.is_empty());
        for (outcome, lost) in outcomes.iter().zip([4, 3]) {
            assert_eq!((outcome.lost, outcome.refused), (lost, None));
        }
    }
}
