//! What came out of the kernel beside what went in: [`of_packets`], [`of_datagrams`]. Pure.

use crate::checksum::{fold, pseudo, sum};
use crate::split::TCP;

/// DF, in the byte that begins with the flags.
const DF: u8 = 0x40;

/// Tells the first difference between IP packets of TCP or UDP, if there is one: but for what a router changes (TTL)
/// and a sender is free to choose (ID and DF), and with checksums that are right rather than equal.
pub(super) fn of_packets(sent: &[Vec<u8>], got: &[Vec<u8>]) -> Option<String> {
    first(sent, got, packet)
}

/// The same of what datagrams hold.
pub(super) fn of_datagrams(sent: &[Vec<u8>], got: &[Vec<u8>]) -> Option<String> {
    first(sent, got, |sent, got| {
        (sent != got).then_some("other bytes")
    })
}

fn first(
    sent: &[Vec<u8>],
    got: &[Vec<u8>],
    differs: impl Fn(&[u8], &[u8]) -> Option<&'static str>,
) -> Option<String> {
    let count = sent.len();
    if got.len() != count {
        return Some(format!("{} packets instead of {count}", got.len()));
    }
    sent.iter()
        .zip(got)
        .enumerate()
        .find_map(|(number, (sent, got))| {
            let number = number + 1;
            if sent.len() != got.len() {
                let (sent, got) = (sent.len(), got.len());
                return Some(format!(
                    "packet {number} of {count} has {got} bytes instead of {sent}"
                ));
            }
            let what = differs(sent, got)?;
            Some(format!("packet {number} of {count} has {what}"))
        })
}

/// Of packets of one length.
fn packet(sent: &[u8], got: &[u8]) -> Option<&'static str> {
    let v4 = sent[0] >> 4 == 4;
    let (l4, protocol) = if v4 { (20, sent[9]) } else { (40, sent[6]) };
    let same = |from: usize, to: usize| sent[from..to] == got[from..to];
    let same_ip = if v4 {
        same(0, 4) && sent[6] | DF == got[6] | DF && sent[7] == got[7] && sent[9] == got[9]
    } else {
        same(0, 7)
    };
    // Where the checksum is, and where the payload.
    let (csum, headers) = if protocol == TCP { (16, 20) } else { (6, 8) };
    let l4_sum = sum(&got[l4..], pseudo(got, protocol, got.len() - l4));
    let tcp = protocol == TCP;
    let differs = [
        (!same_ip, "another IP header"),
        (
            v4 && fold(sum(&got[..l4], 0)) != 0xffff,
            "a wrong IP checksum",
        ),
        (!same(if v4 { 12 } else { 8 }, l4), "other addresses"),
        (!same(l4, l4 + 4), "other ports"),
        (tcp && !same(l4 + 4, l4 + 8), "another sequence number"),
        (tcp && !same(l4 + 12, l4 + 14), "other TCP flags"),
        (!same(l4 + 4, l4 + csum), "another header"),
        (!same(l4 + csum + 2, l4 + headers), "another header"),
        (!same(l4 + headers, sent.len()), "another payload"),
        (fold(l4_sum) != 0xffff, "a wrong checksum"),
    ];
    differs.iter().find(|(is, _)| *is).map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::{ipv4_header, store};
    use crate::testing::{V4, V6, tcp, udp};

    const ACK: u8 = 0x10;

    fn train(v4: bool, is_tcp: bool) -> Vec<Vec<u8>> {
        let flow = if v4 { V4 } else { V6 };
        let packet = |number: u32| {
            let payload = vec![number as u8; if number == 3 { 70 } else { 100 }];
            if is_tcp {
                tcp(flow, ACK, 5000 + number * 100, &payload)
            } else {
                udp(flow, &payload)
            }
        };
        (0..4).map(packet).collect()
    }

    /// Makes the checksums of a packet right.
    fn sealed(packet: &mut [u8]) {
        let (l4, protocol) = match packet[0] >> 4 {
            4 => (20, packet[9]),
            _ => (40, packet[6]),
        };
        if l4 == 20 {
            ipv4_header(packet);
        }
        let at = l4 + if protocol == TCP { 16 } else { 6 };
        packet[at..at + 2].fill(0);
        let value = !fold(sum(
            &packet[l4..],
            pseudo(packet, protocol, packet.len() - l4),
        ));
        store(&mut packet[at..], value);
    }

    fn all() -> impl Iterator<Item = (bool, bool, Vec<Vec<u8>>)> {
        [(true, true), (true, false), (false, true), (false, false)]
            .into_iter()
            .map(|(v4, is_tcp)| (v4, is_tcp, train(v4, is_tcp)))
    }

    #[test]
    fn what_a_router_does_is_no_difference() {
        for (v4, _, sent) in all() {
            let mut got = sent.clone();
            for (number, packet) in got.iter_mut().enumerate() {
                if v4 {
                    packet[4..6].copy_from_slice(&[9, number as u8]);
                    packet[6] &= !DF;
                    packet[8] -= 1;
                } else {
                    packet[7] -= 1;
                }
                sealed(packet);
            }
            assert_eq!(of_packets(&sent, &got), None);
        }
    }

    #[test]
    fn a_packet_that_is_missing_doubled_out_of_order_or_of_another_length_is_told() {
        for (_, is_tcp, sent) in all() {
            let mut got = sent.clone();
            got.remove(1);
            let told = of_packets(&sent, &got);
            assert_eq!(told.as_deref(), Some("3 packets instead of 4"));
            got.insert(1, sent[1].clone());
            got.push(sent[3].clone());
            let told = of_packets(&sent, &got);
            assert_eq!(told.as_deref(), Some("5 packets instead of 4"));

            let mut got = sent.clone();
            got.swap(1, 2);
            let what = if is_tcp {
                "another sequence number"
            } else {
                "another payload"
            };
            let expected = format!("packet 2 of 4 has {what}");
            assert_eq!(of_packets(&sent, &got), Some(expected));

            let mut got = sent.clone();
            got[3].push(0);
            let len = sent[3].len();
            let expected = format!("packet 4 of 4 has {} bytes instead of {len}", len + 1);
            assert_eq!(of_packets(&sent, &got), Some(expected));
        }
        // All in one, as if nobody had cut it.
        let sent = train(true, false);
        let whole = vec![udp(V4, &[0; 370])];
        assert_eq!(
            of_packets(&sent, &whole).as_deref(),
            Some("1 packets instead of 4")
        );
        assert_eq!(
            of_packets(&sent, &[]).as_deref(),
            Some("0 packets instead of 4")
        );
    }

    #[test]
    fn every_byte_that_differs_is_told_whether_checksums_are_right_or_not() {
        for (v4, is_tcp, sent) in all() {
            let l4 = if v4 { 20 } else { 40 };
            let csum = l4 + if is_tcp { 16 } else { 6 };
            for at in 0..sent[1].len() {
                let free = if v4 { matches!(at, 4..6 | 8) } else { at == 7 };
                let own_sum = v4 && (10..12).contains(&at) || (csum..csum + 2).contains(&at);
                let mut got = sent.clone();
                got[1][at] ^= 1;
                if !free || v4 {
                    assert!(
                        of_packets(&sent, &got).is_some(),
                        "{v4} {is_tcp}: byte {at}"
                    );
                }
                sealed(&mut got[1]);
                let told = of_packets(&sent, &got);
                assert_eq!(told.is_none(), free || own_sum, "{v4} {is_tcp}: byte {at}");
            }
        }
    }

    #[test]
    fn what_differs_has_a_name() {
        let sent = train(true, true);
        for (at, what) in [
            (1, "another IP header"),
            (11, "a wrong IP checksum"),
            (19, "other addresses"),
            (21, "other ports"),
            (24, "another sequence number"),
            (28, "another header"),
            (33, "other TCP flags"),
            (37, "a wrong checksum"),
            (50, "another payload"),
        ] {
            let mut got = sent.clone();
            got[1][at] ^= 1;
            if at == 19 {
                ipv4_header(&mut got[1]);
            }
            let expected = format!("packet 2 of 4 has {what}");
            assert_eq!(of_packets(&sent, &got), Some(expected));
        }
    }

    #[test]
    fn datagrams_are_whole_and_in_order_or_it_is_told() {
        let sent = vec![vec![1; 10], vec![2; 10], vec![3; 4]];
        assert_eq!(of_datagrams(&sent, &sent), None);
        let mut got = sent.clone();
        got.swap(0, 1);
        let told = of_datagrams(&sent, &got);
        assert_eq!(told.as_deref(), Some("packet 1 of 3 has other bytes"));
        // As one, or cut elsewhere.
        assert!(of_datagrams(&sent, &[sent.concat()]).is_some());
        let got: Vec<_> = sent.concat().chunks(8).map(<[u8]>::to_vec).collect();
        assert_eq!(
            of_datagrams(&sent, &got).as_deref(),
            Some("packet 1 of 3 has 8 bytes instead of 10")
        );
    }
}
