//! TSMP rejects: a peer whose request for a connection the filter dropped is told so, through the tunnel
//! (protocol/disco.md §14, protocol/filter.md §11), and need not wait for a time-out to know.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use dataplane::{Direct, Direction, DropReason, Dropped};
use packet::protocol;

use tokio::sync::broadcast::error::RecvError;

use super::Reports;

/// IPv4 header without options.
const HEADER: usize = 20;
const LENGTH: usize = HEADER + 7;
const KIND: u8 = b'!';
const BY_RULES: u8 = b'A';
const BY_SHIELDS: u8 = b'S';
/// Rejects in a second: as many as one CPU's programs report.
const A_SECOND: u32 = 64;
/// At most one line in the log for so long.
const QUIET: Duration = Duration::from_secs(60);

/// Answers what `reports` tells of connections that were refused, on `device`. Ends with the reports.
pub(super) async fn run(device: String, reports: Reports) {
    let mut refused = reports.listen_to_refused();
    let mut socket = None;
    let mut rate = Rate::default();
    let mut complained: Option<Instant> = None;
    loop {
        let dropped = match refused.recv().await {
            Ok(dropped) => dropped,
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        let now = Instant::now();
        let Some(packet) = reject(&dropped).filter(|_| rate.allows(now)) else {
            continue;
        };
        let sent = send(&mut socket, &device, &reports, &packet);
        if let Err(error) = sent
            && complained.is_none_or(|at| now.duration_since(at) >= QUIET)
        {
            complained = Some(now);
            tracing::warn!(%error, "a peer is not told that it was refused");
        }
    }
}

/// Sends on the device that is there now: it may have been made anew.
fn send(
    socket: &mut Option<Direct>,
    device: &str,
    reports: &Reports,
    packet: &[u8; LENGTH],
) -> io::Result<()> {
    reports.will_answer(packet);
    if let Some(open) = socket
        && open.send_v4(packet).is_ok()
    {
        return Ok(());
    }
    socket.insert(Direct::open(device)?).send_v4(packet)
}

/// What to tell the sender of a dropped packet: something only for IPv4 TCP that asks for a connection, as the
/// official client does. Pure.
fn reject(dropped: &Dropped) -> Option<[u8; LENGTH]> {
    let Some([SocketAddr::V4(source), SocketAddr::V4(destination)]) = dropped.addresses else {
        return None;
    };
    let asks = dropped.opens && dropped.protocol == protocol::TCP;
    if !asks || dropped.direction != Direction::In {
        return None;
    }
    let reason = match dropped.reason {
        DropReason::ShieldsUp | DropReason::Jailed => BY_SHIELDS,
        _ => BY_RULES,
    };
    let mut packet = [0; LENGTH];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(LENGTH as u16).to_be_bytes());
    packet[8] = 64;
    packet[9] = protocol::TSMP;
    packet[12..16].copy_from_slice(&octets(*destination.ip()));
    packet[16..20].copy_from_slice(&octets(*source.ip()));
    let sum = checksum(&packet[..HEADER]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[HEADER..HEADER + 3].copy_from_slice(&[KIND, protocol::TCP, reason]);
    packet[HEADER + 3..HEADER + 5].copy_from_slice(&source.port().to_be_bytes());
    packet[HEADER + 5..].copy_from_slice(&destination.port().to_be_bytes());
    Some(packet)
}

fn octets(address: Ipv4Addr) -> [u8; 4] {
    address.octets()
}

/// RFC 1071, over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let mut sum: u32 = words
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// So many in each second, and no more.
#[derive(Debug, Default)]
struct Rate {
    began: Option<Instant>,
    used: u32,
}

impl Rate {
    fn allows(&mut self, now: Instant) -> bool {
        let fresh = |began: Instant| now.duration_since(began) < Duration::from_secs(1);
        if !self.began.is_some_and(fresh) {
            self.began = Some(now);
            self.used = 0;
        }
        self.used += 1;
        self.used <= A_SECOND
    }
}

#[cfg(test)]
mod tests {
    use dataplane::boot_clock;

    use super::*;

    fn dropped(source: &str, destination: &str, reason: DropReason) -> Dropped {
        Dropped {
            at: boot_clock(),
            generation: 1,
            direction: Direction::In,
            reason,
            addresses: Some([source, destination].map(|end| end.parse().unwrap())),
            protocol: protocol::TCP,
            opens: true,
            peer: None,
        }
    }

    #[test]
    fn a_refused_connection_is_answered_from_its_destination() {
        let told = dropped("100.64.0.2:40000", "100.64.0.1:22", DropReason::NoRule);
        let packet = reject(&told).unwrap();
        assert_eq!(checksum(&packet[..HEADER]), 0);
        assert_eq!(packet[9], 99);
        assert_eq!(packet[12..20], [100, 64, 0, 1, 100, 64, 0, 2]);
        assert_eq!(packet[20..], [b'!', 6, b'A', 0x9c, 0x40, 0, 22]);
        let told = dropped("100.64.0.2:40000", "100.64.0.1:22", DropReason::ShieldsUp);
        assert_eq!(reject(&told).unwrap()[22], b'S');
    }

    #[test]
    fn nothing_else_is_answered() {
        let told = dropped("100.64.0.2:1", "100.64.0.1:22", DropReason::NoRule);
        let cases = [
            dropped("[fd7a::2]:1", "[fd7a::1]:22", DropReason::NoRule),
            Dropped {
                direction: Direction::Out,
                ..told
            },
            Dropped {
                opens: false,
                ..told
            },
            Dropped {
                protocol: 17,
                ..told
            },
        ];
        for told in cases {
            assert_eq!(reject(&told), None, "{told:?}");
        }
    }

    #[test]
    fn a_flood_is_answered_at_a_bounded_rate() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let allowed = |rate: &mut Rate, at| (0..1000).filter(|_| rate.allows(at)).count();
        assert_eq!(allowed(&mut rate, start), 64);
        assert_eq!(allowed(&mut rate, start + Duration::from_secs(1)), 64);
    }
}
