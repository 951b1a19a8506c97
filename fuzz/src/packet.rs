//! Targets of `packet`.

use ::packet::{Address, Direction, DropReason, Gso, Packet, count, parse, remote_address};

/// Packets of the overlay device, after 8 bytes of segmentation state: a peer is only named by a
/// whole header, no buffer counts as less than one packet of its own length, and what the filter
/// reads does not change when the packet is padded.
pub fn overlay_packet(data: &[u8]) {
    let Some((state, packet)) = data.split_first_chunk::<8>() else {
        return;
    };
    let [a, b, c, d, e, f, g, h] = *state;
    let gso = Gso {
        size: u32::from_le_bytes([a, b, c, d]),
        segments: u32::from_le_bytes([e, f, g, h]),
    };
    let counted = count(packet, gso);
    assert!(counted.packets >= 1 && counted.bytes >= packet.len() as u64);
    let mut padded = packet.to_vec();
    padded.extend([0xff; 64]);
    match parse(packet) {
        Ok(read) => {
            assert_eq!(parse(&padded[..]), Ok(read));
            match read {
                Packet::V4(ip) => assert_eq!(ip.quoted(packet), ip.quoted(&padded[..])),
                Packet::V6(ip) => assert_eq!(ip.quoted(packet), ip.quoted(&padded[..])),
            }
        }
        Err(reason) => assert!(reason as u32 <= DropReason::BadProtocol as u32),
    }
    for direction in Direction::ALL {
        match remote_address(packet, direction) {
            Ok(Address::V4(_)) => assert!(packet.len() >= 20),
            Ok(Address::V6(_)) => assert!(packet.len() >= 40),
            Err(_) => {}
        }
    }
}
