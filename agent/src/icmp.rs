//! Ordinary pings, over the overlay or past it: one ICMP echo and its reply.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::underlay::checksum::{fold, sum};

const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// Type, code, checksum, identifier, sequence.
const HEADER_LEN: usize = 8;
/// Bytes behind the header, as many as ping(8) sends.
const PAYLOAD_LEN: usize = 56;

/// Sends one echo request, which bears the firewall mark `mark`, and waits for its reply: the round trip, or `None`
/// after `timeout`. Blocks.
///
/// # Errors
///
/// What the socket answered; raw sockets need root.
pub(crate) fn ping(target: IpAddr, mark: u32, timeout: Duration) -> io::Result<Option<Duration>> {
    let (domain, protocol) = match target {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let mut socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    socket.connect(&SocketAddr::new(target, 0).into())?;
    let id: u16 = rand::random();
    let sequence: u16 = rand::random();
    let start = Instant::now();
    socket.send(&request(target, id, sequence))?;
    let mut buffer = [0; 1500];
    loop {
        let left = timeout.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut buffer) {
            Ok(len) if is_reply(target, &buffer[..len], id, sequence) => {
                return Ok(Some(start.elapsed()));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn request(target: IpAddr, id: u16, sequence: u16) -> [u8; HEADER_LEN + PAYLOAD_LEN] {
    let mut packet = [0; HEADER_LEN + PAYLOAD_LEN];
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    match target {
        IpAddr::V4(_) => {
            packet[0] = ECHO_REQUEST_V4;
            let checksum = !fold(sum(&packet));
            packet[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        // The kernel fills in the checksum of raw ICMPv6 sockets (RFC 3542 section 3.1).
        IpAddr::V6(_) => packet[0] = ECHO_REQUEST_V6,
    }
    packet
}

/// Raw IPv4 sockets deliver the IP header too, raw IPv6 sockets do not.
fn is_reply(target: IpAddr, packet: &[u8], id: u16, sequence: u16) -> bool {
    let (message, kind) = match target {
        IpAddr::V4(_) => {
            let header = packet.first().map_or(0, |byte| usize::from(byte & 15) * 4);
            (packet.get(header..).unwrap_or_default(), ECHO_REPLY_V4)
        }
        IpAddr::V6(_) => (packet, ECHO_REPLY_V6),
    };
    message.len() >= HEADER_LEN
        && message[0] == kind
        && message[4..6] == id.to_be_bytes()
        && message[6..8] == sequence.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_sums_to_zero() {
        let request = request("100.64.0.1".parse().unwrap(), 7, 9);
        assert_eq!(!fold(sum(&request)), 0);
    }

    #[test]
    fn only_the_reply_to_our_request_counts() {
        let target = "100.64.0.1".parse().unwrap();
        let mut packet = vec![0x45; 20];
        packet.extend_from_slice(&request(target, 7, 9));
        assert!(!is_reply(target, &packet, 7, 9), "a request is no reply");
        packet[20] = ECHO_REPLY_V4;
        assert!(is_reply(target, &packet, 7, 9));
        assert!(!is_reply(target, &packet, 7, 10));
        for len in 0..28 {
            assert!(!is_reply(target, &packet[..len], 7, 9), "{len} bytes");
        }
    }
}
