//! Packets of every kind, and what no packet may be.

extern crate alloc;
extern crate std;

use alloc::{vec, vec::Vec};
use core::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::{
    MAX_EXTENSION_BYTES, MAX_EXTENSIONS,
    build::{ACK, Ip, SYN, fragments},
    protocol,
};

const A4: [u8; 4] = [100, 64, 0, 1];
const B4: [u8; 4] = [100, 64, 0, 2];
const A6: [u8; 16] = [0xfd, 0x7a, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 1];
const B6: [u8; 16] = [0xfd, 0x7a, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 2];

/// Packets from A to B.
fn families() -> [Ip; 2] {
    [Ip::new(IpAddr::from(A4), IpAddr::from(B4)), v6()]
}

fn v6() -> Ip {
    Ip::new(IpAddr::from(A6), IpAddr::from(B6))
}

/// What is the same in both families.
#[derive(Debug, Eq, PartialEq)]
struct Seen {
    protocol: u8,
    fragment: Fragment,
    content: Content,
}

fn seen(packet: &[u8]) -> Result<Seen, DropReason> {
    let seen = |protocol, fragment, content| Seen {
        protocol,
        fragment,
        content,
    };
    Ok(match parse(packet)? {
        Packet::V4(ip) => {
            assert_eq!((ip.src, ip.dst), (A4, B4));
            seen(ip.protocol, ip.fragment, ip.content)
        }
        Packet::V6(ip) => {
            assert_eq!((ip.src, ip.dst), (A6, B6));
            seen(ip.protocol, ip.fragment, ip.content)
        }
    })
}

fn content(packet: &[u8]) -> Content {
    seen(packet).unwrap().content
}

fn ports(src: u16, dst: u16, opens: bool) -> Content {
    Content::Ports { src, dst, opens }
}

#[test]
fn tcp_udp_and_sctp_have_ports_and_tcp_may_open() {
    for ip in families() {
        for flags in 0..=u8::MAX {
            let opens = flags & SYN != 0 && flags & ACK == 0;
            assert_eq!(
                content(&ip.tcp(1000, 22, flags, b"")),
                ports(1000, 22, opens)
            );
        }
        assert_eq!(content(&ip.udp(1000, 53, b"x")), ports(1000, 53, false));
        assert_eq!(content(&ip.sctp(1000, 53, b"x")), ports(1000, 53, false));
    }
}

#[test]
fn icmp_is_echo_error_or_neither() {
    for ip in families() {
        let echo = |id, reply| Content::Echo { id, reply };
        assert_eq!(content(&ip.echo_request(7, 1, b"")), echo(7, false));
        assert_eq!(content(&ip.echo_reply(7, 1, b"")), echo(7, true));
    }
    for (ip, errors, at) in [
        (&families()[0], &[3, 11, 12][..], 28),
        (&v6(), &[1, 2, 3, 4], 48),
    ] {
        for kind in 0..=u8::MAX {
            let packet = ip.icmp(kind, 0, [0, 7, 0, 1], &[0; 30]);
            let end = packet.len() as u32;
            match content(&packet) {
                Content::Error { at: a, end: e } => {
                    assert!(errors.contains(&kind), "type {kind}");
                    assert_eq!((a, e), (at, end));
                }
                Content::Echo { .. } => assert!([0, 8, 128, 129].contains(&kind)),
                other => {
                    assert_eq!(other, Content::Icmp);
                    assert!(!errors.contains(&kind), "type {kind}");
                }
            }
        }
    }
}

#[test]
fn icmp_of_the_other_family_is_just_a_protocol() {
    assert_eq!(
        content(&families()[0].raw(protocol::ICMPV6, &[128; 8])),
        Content::Other
    );
    assert_eq!(content(&v6().raw(protocol::ICMP, &[8; 8])), Content::Other);
}

#[test]
fn echo_and_errors_need_eight_bytes_and_other_icmp_four() {
    for (ip, number, kinds) in [
        (&families()[0], protocol::ICMP, [8, 0, 3, 13]),
        (&v6(), protocol::ICMPV6, [128, 129, 1, 135]),
    ] {
        for kind in kinds {
            let least = if [13, 135].contains(&kind) { 4 } else { 8 };
            for len in 0..12 {
                let mut message = vec![0; len];
                message.iter_mut().take(1).for_each(|first| *first = kind);
                let whole = seen(&ip.raw(number, &message)).is_ok();
                assert_eq!(whole, len >= least, "type {kind}, {len} bytes");
            }
        }
    }
}

#[test]
fn fragments_tell_their_place_and_identification() {
    for ip in families() {
        let parts = fragments(&ip.udp(1, 2, &[0; 200]), 104, 0x1234);
        let first = seen(&parts[0]).unwrap();
        assert_eq!(first.fragment, Fragment::First(0x1234));
        assert_eq!(first.content, ports(1, 2, false));
        let later = seen(&parts[1]).unwrap();
        assert_eq!(later.fragment, Fragment::Later(0x1234));
        assert_eq!(later.content, Content::Later);
    }
    let wide = fragments(&v6().udp(1, 2, &[0; 200]), 104, 0x1234_5678);
    assert_eq!(
        seen(&wide[1]).unwrap().fragment,
        Fragment::Later(0x1234_5678)
    );
}

#[test]
fn later_fragments_begin_at_eighty_bytes_or_not_at_all() {
    for ip in families() {
        for units in 1..20_u8 {
            let part = &fragments(&ip.udp(1, 2, &[0; 300]), usize::from(units) * 8, 7)[1];
            let expected = if units < 10 {
                Some(DropReason::FragmentTiny)
            } else {
                None
            };
            assert_eq!(seen(part).err(), expected, "offset {units}");
        }
    }
}

#[test]
fn ipv6_headers_are_walked() {
    let walked = ports(1, 2, false);
    let routing = [4, 0, 0, 0, 0, 0];
    let ip = v6()
        .extension(60, &[])
        .extension(43, &routing)
        .fragment_header(0, false);
    assert_eq!(content(&ip.clone().udp(1, 2, b"")), walked);
    let whole = seen(&ip.extension(60, &[1; 14]).udp(1, 2, b"")).unwrap();
    assert_eq!((whole.protocol, whole.fragment), (17, Fragment::Whole));
    assert_eq!(whole.content, walked);
    // Encryption, authentication and "nothing follows" are protocols of their own.
    for number in [50, 51, 59] {
        let seen = seen(&v6().extension(60, &[]).raw(number, &[0; 16])).unwrap();
        assert_eq!((seen.protocol, seen.content), (number, Content::Other));
    }
}

#[test]
fn ipv6_headers_that_are_unknown_or_lead_elsewhere_are_refused() {
    let refused = |ip: Ip| assert_eq!(seen(&ip.udp(1, 2, b"")), Err(DropReason::ExtensionHeader));
    for number in [0, 135, 139, 140, 253, 254] {
        refused(v6().extension(number, &[]));
        refused(v6().extension(60, &[]).extension(number, &[]));
    }
    refused(v6().extension(43, &[4, 1]));
    refused(v6().fragment_header(0, false).fragment_header(0, false));
}

#[test]
fn ipv6_headers_are_walked_within_bounds() {
    let chain = |count| {
        (0..count)
            .fold(v6(), |ip, _| ip.extension(60, &[]))
            .udp(1, 2, b"")
    };
    assert!(seen(&chain(MAX_EXTENSIONS)).is_ok());
    assert_eq!(
        seen(&chain(MAX_EXTENSIONS + 1)),
        Err(DropReason::ExtensionHeader)
    );
    let long = |len| v6().extension(60, &vec![0; len - 2]).udp(1, 2, b"");
    let most = MAX_EXTENSION_BYTES as usize;
    assert!(seen(&long(most)).is_ok());
    assert_eq!(seen(&long(most + 8)), Err(DropReason::ExtensionHeader));
}

#[test]
fn nothing_stands_between_a_first_fragment_and_its_transport_header() {
    let ip = v6().fragment_header(0, true).extension(60, &[1; 78]);
    assert_eq!(
        seen(&ip.tcp(1, 2, ACK, b"")),
        Err(DropReason::ExtensionHeader)
    );
}

#[test]
fn lengths_of_zero_are_of_buffers_beyond_what_the_field_can_say() {
    for (ip, field) in [(&families()[0], 2), (&v6(), 4)] {
        let mut packet = ip.udp(1, 2, &[0; 100]);
        packet[field..field + 2].fill(0);
        assert!(seen(&packet).is_err());
        packet.resize(0x1_0000 + 40, 0);
        assert_eq!(content(&packet), ports(1, 2, false));
    }
}

#[test]
fn an_ipv4_header_is_five_words_at_least_and_ends_within_the_packet() {
    for words in 0..5 {
        let mut packet = families()[0].udp(1, 2, b"");
        packet[0] = 0x40 | words;
        assert_eq!(seen(&packet), Err(DropReason::NotIp));
    }
    let mut packet = families()[0].udp(1, 2, b"");
    packet[0] = 0x4f;
    assert_eq!(seen(&packet), Err(DropReason::Truncated));
}

#[test]
fn both_directions_of_a_flow_have_one_name() {
    for ip in families() {
        let back = ip.reversed();
        let pairs = [
            (ip.tcp(1, 2, SYN, b""), back.tcp(2, 1, SYN | ACK, b"")),
            (ip.udp(1, 2, b""), back.udp(2, 1, b"")),
            (ip.echo_request(7, 1, b""), back.echo_reply(7, 1, b"")),
            (ip.raw(47, b""), back.raw(47, b"")),
        ];
        for (out, answer) in &pairs {
            match (parse(&out[..]).unwrap(), parse(&answer[..]).unwrap()) {
                (Packet::V4(out), Packet::V4(answer)) => {
                    assert!(out.flow(Direction::Out).is_some());
                    assert_eq!(out.flow(Direction::Out), answer.flow(Direction::In));
                    assert_ne!(out.flow(Direction::Out), answer.flow(Direction::Out));
                }
                (Packet::V6(out), Packet::V6(answer)) => {
                    assert!(out.flow(Direction::Out).is_some());
                    assert_eq!(out.flow(Direction::Out), answer.flow(Direction::In));
                    assert_ne!(out.flow(Direction::Out), answer.flow(Direction::Out));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn pings_of_both_sides_with_one_identifier_are_two_flows() {
    let [ip, _] = families();
    let Ok(Packet::V4(ours)) = parse(&ip.echo_request(7, 1, b"")[..]) else {
        panic!()
    };
    let Ok(Packet::V4(theirs)) = parse(&ip.reversed().echo_request(7, 1, b"")[..]) else {
        panic!()
    };
    assert_ne!(ours.flow(Direction::Out), theirs.flow(Direction::In));
}

/// The flow that an error quotes, and the one that the quoted packet has on its way out.
fn quoted_and_sent(sent: &[u8], error: &[u8]) -> (bool, bool) {
    match (parse(sent).unwrap(), parse(error).unwrap()) {
        (Packet::V4(sent), Packet::V4(ip)) => {
            let quoted = ip.quoted(error);
            (quoted.is_some(), quoted == sent.flow(Direction::Out))
        }
        (Packet::V6(sent), Packet::V6(ip)) => {
            let quoted = ip.quoted(error);
            (quoted.is_some(), quoted == sent.flow(Direction::Out))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn errors_quote_the_flow_of_the_packet_they_are_about() {
    for ip in families() {
        let back = ip.reversed();
        for sent in [
            back.tcp(1000, 80, ACK, &[0; 600]),
            back.udp(1000, 53, &[0; 600]),
            back.sctp(1000, 53, &[0; 600]),
            back.echo_request(7, 1, &[0; 600]),
            back.echo_reply(7, 1, &[0; 600]),
            back.raw(47, &[0; 600]),
            fragments(&back.udp(1000, 53, &[0; 600]), 104, 7).remove(0),
        ] {
            for error in [ip.unreachable(&sent, 64), ip.too_big(&sent, 1280)] {
                assert_eq!(quoted_and_sent(&sent, &error), (true, true));
            }
        }
    }
    let sent = v6().reversed().extension(60, &[]).udp(1000, 53, &[0; 600]);
    assert_eq!(
        quoted_and_sent(&sent, &v6().unreachable(&sent, 100)),
        (true, true)
    );
}

#[test]
fn errors_quote_nothing_of_later_fragments_other_icmp_and_other_senders() {
    for ip in families() {
        let back = ip.reversed();
        let ping = back.echo_request(7, 1, b"");
        for sent in [
            fragments(&back.udp(1000, 53, &[0; 600]), 104, 7).remove(1),
            back.icmp(13, 0, [0; 4], &[0; 12]),
            back.unreachable(&ping, 64),
            ip.udp(1000, 53, b"data"),
            vec![0; 60],
            vec![0x45; 60],
            vec![0x60; 60],
        ] {
            let error = ip.unreachable(&sent, 576);
            let quoted = match parse(&error[..]).unwrap() {
                Packet::V4(ip) => ip.quoted(&error[..]).is_some(),
                Packet::V6(ip) => ip.quoted(&error[..]).is_some(),
            };
            assert!(!quoted, "{sent:?}");
        }
    }
}

#[test]
fn quotes_end_where_the_packet_does() {
    let ip = &families()[0];
    let sent = ip.reversed().udp(1000, 53, &[0; 40]);
    let mut error = ip.unreachable(&sent, 20);
    error.extend(&sent[20..]);
    let Ok(Packet::V4(datagram)) = parse(&error[..]) else {
        panic!()
    };
    assert_eq!(datagram.quoted(&error[..]), None);
}

#[test]
fn checksums_are_those_of_real_packets() {
    use crate::build::checksums_hold;
    // A widely used example of an IPv4 header has 0xb861; it also has the DF flag, 0x4000.
    let (src, dst) = (
        IpAddr::from([192, 168, 0, 1]),
        IpAddr::from([192, 168, 0, 199]),
    );
    let built = Ip::new(src, dst).raw(17, &[0; 0x73 - 20]);
    assert_eq!(built[10..12], [0xb8 + 0x40, 0x61]);
    for ip in families() {
        let packets = [
            ip.tcp(1, 2, SYN, b"odd"),
            ip.udp(1, 2, b"odd"),
            ip.echo_request(7, 1, b"odd"),
            ip.unreachable(&ip.udp(1, 2, b""), 99),
        ];
        for packet in packets {
            assert!(checksums_hold(&packet));
            for place in 8..packet.len() {
                let mut damaged = packet.clone();
                damaged[place] ^= 0x10;
                // Of IPv6 the hop limit is in no checksum; lengths and protocols move the rest.
                if packet[0] >> 4 == 4 && place != 9 {
                    assert!(!checksums_hold(&damaged), "byte {place}");
                }
            }
        }
    }
}

/// Bytes that look like a packet more often than noise does.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let noise = prop::collection::vec(any::<u8>(), 0..200);
    let number = prop_oneof![
        prop::sample::select(vec![0u8, 1, 2, 6, 17, 43, 44, 58, 60, 99, 132, 255]),
        any::<u8>()
    ];
    (
        noise,
        prop_oneof![Just(4u8), Just(6)],
        number,
        any::<bool>(),
    )
        .prop_map(|(mut bytes, version, number, fits)| {
            let len = bytes.len();
            if len >= 40 {
                bytes[0] = version << 4 | 5;
                let (place, stated, next) = if version == 4 {
                    (2, len, 9)
                } else {
                    (4, len - 40, 6)
                };
                bytes[next] = number;
                if fits {
                    bytes[place..place + 2].copy_from_slice(&(stated as u16).to_be_bytes());
                }
            }
            bytes
        })
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_fail_and_nothing_is_read_beyond_the_end(bytes in bytes()) {
        match parse(&bytes[..]) {
            Ok(Packet::V4(ip)) => {
                ip.quoted(&bytes[..]);
                prop_assert_eq!(ip.fragment_key().is_some(), ip.fragment != Fragment::Whole);
            }
            Ok(Packet::V6(ip)) => {
                ip.quoted(&bytes[..]);
                prop_assert_eq!(ip.fragment_key().is_some(), ip.fragment != Fragment::Whole);
            }
            Err(reason) => prop_assert!(reason as u32 <= DropReason::BadProtocol as u32),
        }
        // Padding changes nothing.
        let mut padded = bytes.clone();
        padded.extend([0xff; 40]);
        if let Ok(packet) = parse(&bytes[..]) {
            prop_assert_eq!(parse(&padded[..]), Ok(packet));
        }
    }
}
