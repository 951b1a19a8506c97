//! Packets of every kind, whole and cut at every byte.

use packet::build::{ACK, SYN, fragments};

use super::*;

/// One packet of every kind from `ip`.
fn kinds(net: Net, ip: &Ip) -> Vec<(&'static str, Vec<u8>)> {
    let ours = ip.reversed().udp(40_000, 53, &[0; 64]);
    let mut kinds = vec![
        ("tcp syn", ip.tcp(40_000, 22, SYN, b"")),
        ("tcp data", ip.tcp(40_000, 22, ACK, b"data")),
        ("udp", ip.udp(40_000, 22, b"data")),
        ("sctp", ip.sctp(40_000, 22, &[1, 0, 0, 20])),
        ("echo request", ip.echo_request(7, 1, b"data")),
        ("echo reply", ip.echo_reply(7, 1, b"data")),
        ("icmp", ip.icmp(13, 0, [0; 4], &[0; 12])),
        ("unreachable", ip.unreachable(&ours, 576)),
        ("too big", ip.too_big(&ours, 1280)),
        ("tsmp", ip.tsmp(&[0; 7])),
        ("gre", ip.raw(47, &[0; 16])),
        ("igmp", ip.raw(2, &[0; 8])),
        (
            "first fragment",
            fragments(&ip.udp(40_000, 22, &[0; 200]), 104, 7).remove(0),
        ),
        (
            "later fragment",
            fragments(&ip.udp(40_000, 22, &[0; 200]), 104, 7).remove(1),
        ),
    ];
    if net.us.is_ipv4() {
        kinds.push((
            "options",
            ip.clone().options(&[1; 12]).udp(40_000, 22, b"data"),
        ));
    } else {
        let extended = ip.clone().extension(60, &[1; 14]).extension(43, &[4, 0]);
        kinds.push(("extension headers", extended.udp(40_000, 22, b"data")));
        let atomic = ip.clone().fragment_header(0, false);
        kinds.push(("atomic fragment", atomic.udp(40_000, 22, b"data")));
    }
    kinds
}

/// Cuts the packet and makes its header tell the new length, as a sender could.
fn shortened(packet: &[u8], len: usize) -> Vec<u8> {
    let mut short = packet[..len].to_vec();
    if packet[0] >> 4 == 4 && len >= 20 {
        short[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    } else if packet[0] >> 4 == 6 && len >= 40 {
        short[4..6].copy_from_slice(&(len as u16 - 40).to_be_bytes());
    }
    short
}

/// Filters that differ in what they let in.
fn filters(net: Net) -> Vec<Filter> {
    let ports = [6, 17, 132, 1, 58, 2, 47];
    let mut open = filter(&[net.allow(0, 65535, &ports)]);
    open.outbound(&net.outbound().udp(40_000, 53, &[0; 64]), NOW);
    open.outbound(&net.outbound().echo_request(7, 1, b""), NOW);
    vec![filter(&[]), filter(&[net.allow(22, 22, &[6])]), open]
}

#[test]
fn a_packet_cut_anywhere_is_dropped() {
    for net in NETS {
        for (kind, packet) in kinds(net, &net.inbound()) {
            for mut filter in filters(net) {
                for len in 1..packet.len() {
                    let verdict = filter.inbound(&packet[..len], NOW);
                    assert_eq!(
                        verdict,
                        dropped(DropReason::Truncated),
                        "{kind} cut at {len}"
                    );
                    let verdict = filter.outbound(&packet[..len], NOW);
                    assert_eq!(
                        verdict,
                        dropped(DropReason::Truncated),
                        "{kind} cut at {len}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_packet_made_shorter_is_never_accepted_where_the_whole_is_dropped() {
    for net in NETS {
        for (kind, packet) in kinds(net, &net.inbound()) {
            for filter in filters(net) {
                let whole = filter.clone().inbound(&packet, NOW);
                for len in 1..packet.len() {
                    let verdict = filter.clone().inbound(&shortened(&packet, len), NOW);
                    if let (Verdict::Drop(_), Verdict::Accept(reason)) = (whole, verdict) {
                        panic!("{kind} of {len} bytes: {reason:?}, whole: {whole:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_transport_header_has_to_be_there_whole() {
    for net in NETS {
        let header = if net.us.is_ipv4() { 20 } else { 40 };
        let icmp = if net.us.is_ipv4() { 1 } else { 58 };
        for (number, least) in [
            (6, 20),
            (17, 8),
            (132, 12),
            (2, 8),
            (99, 7),
            (icmp, 4),
            (47, 0),
        ] {
            let mut filter = filter(&[net.allow(0, 65535, &[6, 17, 132, 2, 47])]);
            for len in 0..24 {
                // ICMP of type 13: neither echo nor error.
                let packet = net.inbound().raw(number, &[13; 24][..len]);
                assert_eq!(packet.len(), header + len);
                let verdict = filter.inbound(&packet, NOW);
                if len < least {
                    let cut = dropped(DropReason::TransportCut);
                    assert_eq!(verdict, cut, "{len} bytes of protocol {number}");
                } else {
                    let accepted = matches!(verdict, Verdict::Accept(_));
                    assert!(accepted, "{len} bytes of protocol {number}: {verdict:?}");
                }
            }
        }
    }
}

#[test]
fn bytes_behind_the_stated_end_are_not_the_packets() {
    for net in NETS {
        let mut filter = filter(&[net.allow(0, 65535, &[])]);
        let mut padded = net.inbound().udp(40_000, 22, b"data");
        padded.resize(padded.len() + 20, 0);
        assert_eq!(filter.inbound(&padded, NOW), ACL);
        // A header that would be whole only with them.
        let mut cut = net.inbound().raw(17, &[0; 7]);
        cut.push(0);
        assert_eq!(filter.inbound(&cut, NOW), dropped(DropReason::TransportCut));
    }
}

#[test]
fn reserved_protocols_never_pass() {
    let all: Vec<i32> = (0..256).collect();
    for net in NETS {
        let mut filter = filter(&[net.allow(0, 65535, &all)]);
        let raw = |number| net.inbound().raw(number, &[0; 32]);
        assert_eq!(
            filter.inbound(&raw(255), NOW),
            dropped(DropReason::BadProtocol)
        );
        let zero = if net.us.is_ipv4() {
            DropReason::BadProtocol
        } else {
            DropReason::ExtensionHeader
        };
        assert_eq!(filter.inbound(&raw(0), NOW), dropped(zero));
    }
}

#[test]
fn what_is_not_ip_is_dropped() {
    let mut filter = filter(&[]);
    for version in (0..16).filter(|version| ![4, 6].contains(version)) {
        let packet = [version << 4 | 5; 60];
        assert_eq!(filter.inbound(&packet, NOW), dropped(DropReason::NotIp));
    }
}
