//! The Internet checksum (RFC 1071), for packets that this process writes now and then.

/// Adds up the words of `bytes`; the last one of an odd length counts as if a zero followed.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let word = |pair: &[u8]| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
    bytes.chunks(2).map(|pair| u64::from(word(pair))).sum()
}

/// Folds a sum to 16 bits; the checksum is its complement.
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
