//! Splits what the TUN device hands over into the packets it stands for: [`split`].

use crate::checksum::{fold, ipv4_header, pseudo, store, sum};
use crate::vnet::{Gso, NEEDS_CSUM, VnetHeader};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
/// IPv6 with extension headers, and TCP with all its options, stay below it.
const MAX_HEADERS: usize = 256;

/// A packet that contradicts what the device says of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Malformed;

/// Calls `emit` with the headers and the payload of every packet that `packet` stands for, in order, each with its
/// checksums computed. `packet` begins with its IP header.
///
/// # Errors
///
/// [`Malformed`]; nothing was emitted then.
pub(crate) fn split(
    vnet: VnetHeader,
    packet: &mut [u8],
    mut emit: impl FnMut(&[u8], &[u8]),
) -> Result<(), Malformed> {
    let l4 = usize::from(vnet.csum_start);
    let (protocol, l4_len, csum_at) = match vnet.gso {
        Gso::None => {
            if vnet.flags & NEEDS_CSUM != 0 {
                complete(packet, l4, l4 + usize::from(vnet.csum_offset)).ok_or(Malformed)?;
            }
            emit(packet, &[]);
            return Ok(());
        }
        Gso::Tcp4 | Gso::Tcp6 => {
            let offset = packet.get(l4 + 12).ok_or(Malformed)?;
            (TCP, usize::from(offset >> 4) * 4, l4 + 16)
        }
        Gso::Udp => (UDP, 8, l4 + 6),
    };
    // The kernel's length of the headers is that of a buffer, which can be the whole first packet.
    let headers_len = l4 + l4_len;
    let (headers, payload) = packet.split_at_checked(headers_len).ok_or(Malformed)?;
    let v4 = headers.first().is_some_and(|byte| byte >> 4 == 4);
    let ip_len = if v4 { 20 } else { 40 };
    let l4_min = if protocol == TCP { 20 } else { 8 };
    if l4 < ip_len || l4_len < l4_min || payload.is_empty() || vnet.gso_size == 0 {
        return Err(Malformed);
    }
    let mut copy = [0; MAX_HEADERS];
    let copy = copy.get_mut(..headers_len).ok_or(Malformed)?;
    copy.copy_from_slice(headers);
    let headers = copy;
    if v4 && usize::from(headers[0] & 15) * 4 > l4 {
        return Err(Malformed);
    }

    let id = u16::from_be_bytes([headers[4], headers[5]]);
    let sequence = headers[l4 + 4..].first_chunk().copied();
    let sequence = u32::from_be_bytes(sequence.ok_or(Malformed)?);
    let flags = if protocol == TCP { headers[l4 + 13] } else { 0 };
    let size = usize::from(vnet.gso_size);
    let last = payload.len().div_ceil(size) - 1;
    for (number, part) in payload.chunks(size).enumerate() {
        let l4_total = l4_len + part.len();
        let total = l4 + l4_total;
        if v4 {
            headers[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            headers[4..6].copy_from_slice(&id.wrapping_add(number as u16).to_be_bytes());
            ipv4_header(headers);
        } else {
            headers[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
        }
        if protocol == TCP {
            let sequence = sequence.wrapping_add((number * size) as u32);
            headers[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
            // Both belong to the last byte only.
            headers[l4 + 13] = if number == last {
                flags
            } else {
                flags & !(FIN | PSH)
            };
        } else {
            headers[l4 + 4..l4 + 6].copy_from_slice(&(l4_total as u16).to_be_bytes());
        }
        headers[csum_at..csum_at + 2].fill(0);
        let acc = sum(&headers[l4..], pseudo(headers, protocol, l4_total));
        store(&mut headers[csum_at..], not_zero(!fold(sum(part, acc))));
        emit(headers, part);
    }
    Ok(())
}

/// Computes a checksum whose field holds the pseudo header's sum, which takes part as it stands.
fn complete(packet: &mut [u8], start: usize, at: usize) -> Option<()> {
    let value = !fold(sum(packet.get(start..)?, 0));
    store(packet.get_mut(at..at + 2)?, not_zero(value));
    Some(())
}

/// To UDP a sum of zero means that there is none; to TCP both zeros are the same.
fn not_zero(sum: u16) -> u16 {
    if sum == 0 { 0xffff } else { sum }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{V4, udp};

    #[test]
    fn a_checksum_that_is_left_to_the_device_is_computed() {
        let whole = udp(V4, b"hello");
        let mut partial = whole.clone();
        let sum = fold(pseudo(&partial, UDP, partial.len() - 20));
        store(&mut partial[26..], sum);
        let vnet = VnetHeader {
            flags: NEEDS_CSUM,
            csum_start: 20,
            csum_offset: 6,
            ..VnetHeader::PLAIN
        };
        let mut emitted = Vec::new();
        split(vnet, &mut partial, |headers, payload| {
            emitted.push([headers, payload].concat());
        })
        .unwrap();
        assert_eq!(emitted, [whole]);
    }

    proptest! {
        #[test]
        fn no_super_packet_makes_it_panic(
            vnet in any::<[u8; VnetHeader::LEN]>(),
            kind in 0usize..4,
            start in 0u16..90,
            mut packet in proptest::collection::vec(any::<u8>(), 0..3000),
        ) {
            let mut vnet = vnet;
            vnet[1] = [0, 1, 4, 5][kind];
            if let Some(mut vnet) = VnetHeader::parse(&vnet) {
                vnet.csum_start = start;
                let mut total = 0;
                let len = packet.len();
                let split = split(vnet, &mut packet, |_, payload| total += payload.len());
                // Whatever it is, nothing is made up.
                prop_assert!(total <= len);
                prop_assert!(split.is_ok() || total == 0);
            }
        }
    }
}
