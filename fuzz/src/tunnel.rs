//! Targets of `tunnel`.

use ::tunnel::testing::Pair;

/// Datagrams from the address of a peer, each after a byte that says what it is (bits 0 and 1) and two with its
/// length: 0 is as it stands; 1 begins as a message of the session; 2 is an inner packet that the peer itself sealed;
/// 3 answers a handshake, or is a cookie for one. Nothing comes out but packets of the peer's own addresses, and the
/// session still carries.
pub fn outer_datagrams(data: &[u8]) {
    let mut pair = Pair::connected();
    let index = pair.index().to_le_bytes();
    let mut rest = data;
    while let Some(([kind, high, low], tail)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let (bytes, tail) = tail.split_at(tail.len().min(len));
        rest = tail;
        let datagram = match kind & 3 {
            0 => bytes.to_vec(),
            1 => [&[4, 0, 0, 0], &index[..], bytes].concat(),
            2 => match pair.seal(bytes) {
                Some(datagram) => datagram,
                None => continue,
            },
            _ => {
                let mut answer = bytes.to_vec();
                // The receiver's index: after the sender's in an answer, instead of it in a cookie.
                let at = if bytes.first() == Some(&2) { 8 } else { 4 };
                if let Some(to) = answer.get_mut(at..at + 4) {
                    to.copy_from_slice(&index);
                }
                answer
            }
        };
        pair.arrives(&datagram);
    }
    drop(pair.delivered());
    pair.carries();
}

/// What reads of the TUN device give: a `virtio_net_hdr` and a packet or super-packet, each after two bytes with their
/// length. Nothing comes out on the other side that did not go in, and the session still carries.
pub fn super_packets(data: &[u8]) {
    let mut pair = Pair::connected();
    let (mut sent, mut bytes) = (0, 0);
    let mut rest = data;
    while let Some((len, tail)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_be_bytes(*len));
        let (read, tail) = tail.split_at(tail.len().min(len));
        rest = tail;
        let mut read = read.to_vec();
        bytes += read.len();
        let count = pair.device_gives(&mut read);
        // Each holds a byte of payload at least.
        assert!(count <= read.len(), "{count} of {} bytes", read.len());
        sent += count;
    }
    let delivered = pair.delivered();
    assert!(delivered.len() <= sent);
    let longest = delivered.iter().map(Vec::len).max().unwrap_or(0);
    assert!(longest <= bytes, "{longest} bytes of {bytes}");
    pair.carries();
}
