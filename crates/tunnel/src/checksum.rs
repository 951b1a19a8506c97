//! The Internet checksum (RFC 1071).
//!
//! Sums are kept in native byte order: the sum does not depend on it, only the two bytes in the packet do,
//! and [`store`] writes them as they are.

/// Adds `data` to a sum that is not folded yet. Of an odd length may be only the last piece.
pub(crate) fn sum(data: &[u8], mut acc: u64) -> u64 {
    // Each byte of bulk traffic passes here. Four sums that do not wait for each other, written out: quick even where
    // the compiler was told to be brief.
    let (blocks, rest) = data.as_chunks::<32>();
    let [mut a, mut b, mut c, mut d] = [0; 4];
    for block in blocks {
        let words = block.as_chunks::<8>().0;
        let word = |at: usize| u64::from_ne_bytes(words[at]);
        (a, b) = (add(a, word(0)), add(b, word(1)));
        (c, d) = (add(c, word(2)), add(d, word(3)));
    }
    let all = add(add(a, b), add(c, d));
    acc += (all & u64::from(u32::MAX)) + (all >> 32);
    let (pairs, last) = rest.as_chunks::<2>();
    for pair in pairs {
        acc += u64::from(u16::from_ne_bytes(*pair));
    }
    if let [last] = last {
        acc += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    acc
}

/// Adds with what is carried out of the top (RFC 1071 section 2, C): 2⁶⁴ is 1, as 2¹⁶ is.
fn add(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
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
    fn words_of_any_size_give_what_the_rfc_adds_two_by_two() {
        let data: Vec<u8> = (0..200u32).map(|n| (n * n + 251) as u8).collect();
        for (from, fill) in [(0, None), (3, None), (0, Some(0xff)), (5, Some(0))] {
            for len in 0..=data.len() - from {
                let mut part = data[from..from + len].to_vec();
                part.iter_mut()
                    .for_each(|byte| *byte = fill.unwrap_or(*byte));
                let pairs = part.chunks(2);
                let pairs = pairs.map(|pair| [pair[0], pair.get(1).copied().unwrap_or(0)]);
                let slow = pairs.map(|pair| u64::from(u16::from_ne_bytes(pair))).sum();
                assert_eq!(fold(sum(&part, 0)), fold(slow), "{from} {len} {fill:?}");
            }
        }
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
