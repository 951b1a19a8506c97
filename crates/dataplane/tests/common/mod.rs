//! What the tests of this crate share: reasons to skip, and packets.
#![allow(dead_code, unused_macros, reason = "each test binary uses its part")]

/// Ends the test early, counted as skipped, where the programs are not built or BPF is refused.
#[macro_export]
macro_rules! skip_without_bpf {
    () => {
        if let Some(reason) = $crate::common::bpf_unavailable() {
            fn here() {}
            let name = ::std::any::type_name_of_val(&here);
            // The test harness's own output may stand on the line: begin a new one.
            println!("\nSKIP {}: {reason}", name.trim_end_matches("::here"));
            return Ok(());
        }
    };
}

/// Why the programs cannot be loaded here, or `None`.
pub(crate) fn bpf_unavailable() -> Option<String> {
    if !dataplane::is_embedded() {
        return Some("no eBPF object; run `cargo xtask build-ebpf`".to_owned());
    }
    if !nix::unistd::geteuid().is_root() {
        return Some("loading eBPF programs needs root".to_owned());
    }
    match dataplane::Trial::load() {
        Err(error @ dataplane::DataplaneError::NotPermitted { .. }) => Some(error.to_string()),
        Ok(_) | Err(_) => None,
    }
}

/// Addresses of this host and of its peers.
pub(crate) const US4: [u8; 4] = [100, 64, 0, 1];
pub(crate) const PEER4: [u8; 4] = [100, 64, 0, 2];
pub(crate) const US6: [u8; 16] = [0xfd, 0x7a, 0, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
pub(crate) const PEER6: [u8; 16] = [0xfd, 0x7a, 0, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

pub(crate) fn ipv4(src: [u8; 4], dst: [u8; 4], protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + transport.len() as u16).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
    packet.extend(src);
    packet.extend(dst);
    let checksum = !sum(&packet);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(transport);
    packet
}

pub(crate) fn ipv6(src: [u8; 16], dst: [u8; 16], protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((transport.len() as u16).to_be_bytes());
    packet.extend([protocol, 64]);
    packet.extend(src);
    packet.extend(dst);
    packet.extend(transport);
    packet
}

/// A UDP datagram to port 9; its checksum is absent, which IPv4 permits.
pub(crate) fn udp(payload: usize) -> Vec<u8> {
    let mut datagram = vec![0x30, 0x39, 0, 9];
    datagram.extend((8 + payload as u16).to_be_bytes());
    datagram.resize(8 + payload, 0);
    datagram
}

/// A TCP segment to port 9 with 12 bytes of options; its checksum is left to the receiver.
pub(crate) fn tcp(payload: usize) -> Vec<u8> {
    let mut segment = vec![0; 32 + payload];
    segment[..4].copy_from_slice(&[0x30, 0x39, 0, 9]);
    segment[12] = 8 << 4;
    segment[13] = 0x10;
    segment[20..32].fill(1);
    segment
}

/// One's complement sum (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
