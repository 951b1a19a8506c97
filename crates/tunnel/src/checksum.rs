//! The Internet checksum (RFC 1071).
//!
//! Sums are kept in native byte order: the sum does not depend on it, only the two bytes in the packet do,
//! and [`store`] writes them as they are.

/// Adds `data` to a sum that is not folded yet. Of an odd length may be only the last piece.
pub(crate) fn sum(data: &[u8], mut acc: u64) -> u64 {
    // Independent lanes of 32-bit words become vector additions.
    let mut lanes = [0u64; 8];
    let mut blocks = data.chunks_exact(32);
    for block in &mut blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    acc += lanes.iter().sum::<u64>();
    let (pairs, last) = blocks.remainder().as_chunks::<2>();
    for pair in pairs {
        acc += u64::from(u16::from_ne_bytes(*pair));
    }
    if let [last] = last {
        acc += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    acc
}

/// Folds a sum to 16 bits, without inverting it.
pub(crate) fn fold(mut acc: u64) -> u16 {
    while acc > 0xffff {
        acc = (acc & 0xffff) + (acc >> 16);
    }
    acc as u16
}

/// Sum of the pseudo header before `len` bytes of TCP or UDP in the IP packet that begins with `ip`.
pub(crate) fn pseudo(ip: &[u8], protocol: u8, len: usize) -> u64 {
    let addresses = if ip[0] >> 4 == 4 {
        &ip[12..20]
    } else {
        &ip[8..40]
    };
    let rest = u64::from(u16::from(protocol).to_be()) + u64::from((len as u16).to_be());
    sum(addresses, rest)
}

/// Writes a folded sum where `field` begins.
pub(crate) fn store(field: &mut [u8], value: u16) {
    field[..2].copy_from_slice(&value.to_ne_bytes());
}

/// Computes the checksum of an IPv4 header anew.
pub(crate) fn ipv4_header(ip: &mut [u8]) {
    ip[10..12].fill(0);
    let len = usize::from(ip[0] & 15) * 4;
    let value = !fold(sum(&ip[..len], 0));
    store(&mut ip[10..], value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&data, 0)).to_ne_bytes(), [0xdd, 0xf2]);
    }

    #[test]
    fn pieces_add_up() {
        let data: Vec<u8> = (0..=254).collect();
        for cut in (0..data.len()).step_by(2) {
            let (a, b) = data.split_at(cut);
            assert_eq!(fold(sum(b, sum(a, 0))), fold(sum(&data, 0)), "{cut}");
        }
    }
}
