//! Host tests: every version, every cut, every kind of buffer.

extern crate alloc;
extern crate std;

use alloc::{vec, vec::Vec};

use ebpf_abi::{Count, Direction, Reason};
use proptest::prelude::*;

use crate::{Address, Gso, count, remote_address};

const SRC4: [u8; 4] = [100, 64, 0, 1];
const DST4: [u8; 4] = [100, 64, 0, 2];
const SRC6: [u8; 16] = [0xfd, 0x7a, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];
const DST6: [u8; 16] = [0xfd, 0x7a, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];

/// An IPv4 packet with `options` bytes of IP options.
fn ipv4(protocol: u8, options: usize, transport: &[u8]) -> Vec<u8> {
    let header_len = 20 + options;
    let total_len = (header_len + transport.len()) as u16;
    let mut packet = vec![0x40 | (header_len / 4) as u8, 0];
    packet.extend(total_len.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
    packet.extend(SRC4);
    packet.extend(DST4);
    packet.resize(header_len, 1);
    packet.extend(transport);
    packet
}

fn ipv6(protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((transport.len() as u16).to_be_bytes());
    packet.extend([protocol, 64]);
    packet.extend(SRC6);
    packet.extend(DST6);
    packet.extend(transport);
    packet
}

/// A TCP segment with `options` bytes of options and `payload` bytes of payload.
fn tcp(options: usize, payload: usize) -> Vec<u8> {
    let header_len = 20 + options;
    let mut segment = vec![0; header_len + payload];
    segment[12] = (header_len as u8 / 4) << 4;
    segment
}

fn udp(payload: usize) -> Vec<u8> {
    vec![0; 8 + payload]
}

fn remote(packet: &[u8], direction: Direction) -> Result<Address, Reason> {
    remote_address(packet, direction)
}

#[test]
fn the_source_names_the_peer_of_what_comes_in() {
    let remote = |packet: Vec<u8>| remote(&packet, Direction::In);
    assert_eq!(remote(ipv4(17, 0, &udp(5))), Ok(Address::V4(SRC4)));
    assert_eq!(remote(ipv6(17, &udp(5))), Ok(Address::V6(SRC6)));
}

#[test]
fn the_destination_names_the_peer_of_what_goes_out() {
    let remote = |packet: Vec<u8>| remote(&packet, Direction::Out);
    assert_eq!(remote(ipv4(17, 0, &udp(5))), Ok(Address::V4(DST4)));
    assert_eq!(remote(ipv6(17, &udp(5))), Ok(Address::V6(DST6)));
}

#[test]
fn ip_options_do_not_move_the_addresses() {
    for options in (0..=40).step_by(4) {
        let packet = ipv4(17, options, &udp(5));
        assert_eq!(remote(&packet, Direction::In), Ok(Address::V4(SRC4)));
        assert_eq!(remote(&packet, Direction::Out), Ok(Address::V4(DST4)));
    }
}

#[test]
fn a_packet_cut_anywhere_is_truncated() {
    let packets = [
        ipv4(17, 0, &udp(9)),
        ipv4(17, 40, &udp(9)),
        ipv4(6, 12, &tcp(12, 30)),
        ipv6(17, &udp(9)),
        ipv6(6, &tcp(12, 30)),
    ];
    for packet in packets {
        for direction in Direction::ALL {
            for end in 0..packet.len() {
                assert_eq!(
                    remote(&packet[..end], direction),
                    Err(Reason::Truncated),
                    "cut at {end} of {}",
                    packet.len()
                );
            }
            assert!(remote(&packet, direction).is_ok());
        }
    }
}

#[test]
fn options_that_run_past_the_end_are_truncated_though_the_length_field_agrees() {
    let mut packet = ipv4(17, 0, &[]);
    packet[0] = 0x4f;
    assert_eq!(remote(&packet, Direction::In), Err(Reason::Truncated));
}

#[test]
fn padding_after_the_packet_does_no_harm() {
    let mut packet = ipv4(17, 0, &udp(1));
    packet.resize(64, 0);
    assert_eq!(remote(&packet, Direction::In), Ok(Address::V4(SRC4)));
}

#[test]
fn a_length_field_of_zero_means_a_buffer_longer_than_it_can_say() {
    let mut packet = ipv4(6, 0, &tcp(0, 1000));
    packet[2..4].fill(0);
    assert_eq!(remote(&packet, Direction::In), Ok(Address::V4(SRC4)));
    let mut packet = ipv6(6, &tcp(0, 1000));
    packet[4..6].fill(0);
    assert_eq!(remote(&packet, Direction::In), Ok(Address::V6(SRC6)));
}

#[test]
fn what_is_not_ip_says_so() {
    for version in (0..=15).filter(|version| ![4, 6].contains(version)) {
        let packet = [version << 4; 60];
        assert_eq!(remote(&packet, Direction::In), Err(Reason::NotIp));
    }
    for words in 0..5 {
        let mut packet = ipv4(17, 0, &udp(1));
        packet[0] = 0x40 | words;
        assert_eq!(remote(&packet, Direction::In), Err(Reason::NotIp));
    }
}

fn counted(packet: &[u8], size: u32, segments: u32) -> (u64, u64) {
    let Count { packets, bytes } = count(packet, Gso { size, segments });
    (packets, bytes)
}

#[test]
fn a_plain_packet_counts_once_with_all_its_bytes() {
    assert_eq!(counted(&ipv4(17, 0, &udp(100)), 0, 0), (1, 128));
    assert_eq!(counted(&ipv6(6, &tcp(0, 40)), 0, 0), (1, 100));
    assert_eq!(counted(&[], 0, 0), (1, 0));
    // The kernel leaves gso_segs at 0 or 1 where there is nothing to segment.
    assert_eq!(counted(&ipv4(17, 0, &udp(100)), 0, 1), (1, 128));
}

#[test]
fn merged_packets_count_each_with_their_own_headers() {
    // 1000 bytes of payload at 300 are 3 full packets and one of 100.
    for segments in [0, 4] {
        let v4 = ipv4(6, 8, &tcp(12, 1000));
        assert_eq!(counted(&v4, 300, segments), (4, 1000 + 4 * (28 + 32)));
        let v6 = ipv6(6, &tcp(12, 1000));
        assert_eq!(counted(&v6, 300, segments), (4, 1000 + 4 * (40 + 32)));
        let datagrams = ipv6(17, &udp(1000));
        assert_eq!(counted(&datagrams, 300, segments), (4, 1000 + 4 * 48));
    }
}

#[test]
fn payload_that_fills_its_packets_makes_no_extra_one() {
    assert_eq!(counted(&ipv4(6, 0, &tcp(0, 900)), 300, 0), (3, 900 + 120));
    assert_eq!(counted(&ipv4(6, 0, &tcp(0, 901)), 300, 0), (4, 901 + 160));
    assert_eq!(counted(&ipv4(6, 0, &tcp(0, 1)), 300, 0), (1, 41));
    assert_eq!(counted(&ipv4(6, 0, &tcp(0, 0)), 300, 0), (1, 40));
}

#[test]
fn an_unreadable_transport_header_still_counts_by_lengths() {
    let packet = ipv4(6, 0, &tcp(0, 600));
    // The TCP header is cut off: the IP header alone is taken as repeated.
    let cut = &packet[..30];
    assert_eq!(counted(cut, 5, 0), (2, 30 + 20));
    assert_eq!(counted(&[], 5, 0), (1, 0));
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_fail(
        bytes in proptest::collection::vec(any::<u8>(), 0..120),
        size in any::<u32>(),
        segments in any::<u32>(),
    ) {
        let count = count(bytes.as_slice(), Gso { size, segments });
        prop_assert!(count.packets >= 1);
        prop_assert!(count.bytes >= bytes.len() as u64);
        for direction in Direction::ALL {
            match remote(&bytes, direction) {
                Ok(Address::V4(_)) => prop_assert!(bytes.len() >= 20),
                Ok(Address::V6(_)) => prop_assert!(bytes.len() >= 40),
                Err(reason) => prop_assert!([Reason::NotIp, Reason::Truncated].contains(&reason)),
            }
        }
    }
}
