//! What the tests of this crate share: reasons to skip, and packets.
#![allow(dead_code, unused_macros, reason = "each test binary uses its part")]

use std::{panic::resume_unwind, thread};

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

/// Runs `work` on so many threads at once, and returns what each made of it.
pub(crate) fn on_threads<T: Send>(
    threads: u64,
    work: impl Fn() -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
        let ended = running.into_iter().map(|thread| {
            let result = thread.join();
            result.unwrap_or_else(|panicked| resume_unwind(panicked))
        });
        ended.collect()
    })
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

/// Rules of the kind that the ACL measurements use: one to three sources, mostly hosts, 64
/// destinations, of which the first is ours; one protocol; single ports, ranges, or any.
pub(crate) fn many_rules(count: usize) -> dataplane::Rules {
    use std::net::{IpAddr, Ipv4Addr};

    use dataplane::{PortRange, Rule, Rules};
    use ipnet::{IpNet, Ipv4Net};

    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |end: u32| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as u32 % end
    };
    let net = |address: u32, len: u8| -> IpNet {
        let net = Ipv4Net::new_assert(Ipv4Addr::from(address), len);
        IpNet::from(net.trunc())
    };
    let mut destinations = vec![IpNet::from(IpAddr::from(US4))];
    for _ in 1..count.clamp(1, 64) {
        let address = 0x0a00_0000 | random(1 << 24);
        destinations.push(net(address, [32, 24, 24, 16][random(4) as usize]));
    }
    let mut rule = |_| {
        let lens = [32, 32, 32, 32, 32, 32, 32, 28, 24, 16];
        let sources: Vec<IpNet> = (0..=random(3))
            .map(|_| net(0x6440_0000 | random(1 << 22), lens[random(10) as usize]))
            .collect();
        let first = random(60_000) as u16;
        let ports = match random(10) {
            0 => PortRange::ALL,
            1..=3 => PortRange {
                first,
                last: first + random(5000) as u16,
            },
            _ => PortRange { first, last: first },
        };
        let destination = destinations[random(destinations.len() as u32) as usize];
        Rule {
            sources: sources.into(),
            destinations: vec![(destination, ports)],
            protocols: vec![[6, 6, 17][random(3) as usize]],
            ..Rule::default()
        }
    };
    Rules {
        rules: (0..count).map(&mut rule).collect(),
        addresses: vec![US4.into()],
        routes: vec!["10.0.0.0/8".parse().expect("a prefix")],
        ..Rules::default()
    }
}
