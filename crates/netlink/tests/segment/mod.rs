//! TCP segments far outside the window, past the stack that would never send them.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket};

const LIMIT: Duration = Duration::from_secs(10);
const HEADER_LEN: u16 = 20;
const ACK: u8 = 0x10;
/// Beyond any window, scaled or not.
const FAR: u32 = 0x4000_0000;

/// Sees a copy of every TCP segment that comes in.
pub(crate) struct Tap {
    raw: OwnedFd,
}

/// What a connection will send next.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    sequence: u32,
    acknowledged: u32,
}

impl Tap {
    pub(crate) fn open() -> Result<Self> {
        let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::TCP))?;
        set_socket_timeout(&raw, Timeout::Recv, Some(LIMIT))?;
        Ok(Self { raw })
    }

    /// Waits for the segment from `port` that carries `payload`.
    pub(crate) fn place_after(&self, port: u16, payload: &[u8]) -> Result<Place> {
        let mut buffer = [0; 2048];
        loop {
            let (len, _) = recv(&self.raw, &mut buffer, RecvFlags::empty())?;
            let header_len = usize::from(buffer[0] & 15) * 4;
            let tcp = buffer.get(header_len..len).context("torn packet")?;
            let word =
                |at: usize| -> Result<u32> { Ok(u32::from_be_bytes(tcp[at..at + 4].try_into()?)) };
            let data = tcp
                .get(usize::from(tcp[12] >> 4) * 4..)
                .context("torn segment")?;
            if tcp[..2] == port.to_be_bytes() && data == payload {
                return Ok(Place {
                    sequence: word(8)?,
                    acknowledged: word(4)?.wrapping_add(u32::try_from(payload.len())?),
                });
            }
        }
    }
}

/// Sends an acknowledgement with a sequence number far beyond the window.
pub(crate) fn send_stray(src: SocketAddrV4, dst: SocketAddrV4, place: Place) -> Result<()> {
    let mut tcp = Vec::new();
    tcp.extend(src.port().to_be_bytes());
    tcp.extend(dst.port().to_be_bytes());
    tcp.extend(place.sequence.wrapping_add(FAR).to_be_bytes());
    tcp.extend(place.acknowledged.to_be_bytes());
    tcp.extend([0x50, ACK, 0x10, 0, 0, 0, 0, 0]); // 20 bytes long, window, no checksum yet
    let mut pseudo = Vec::new();
    pseudo.extend(src.ip().octets());
    pseudo.extend(dst.ip().octets());
    pseudo.extend([0, 6]);
    pseudo.extend(HEADER_LEN.to_be_bytes());
    pseudo.extend(&tcp);
    tcp[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());

    // The kernel fills in length, identification and checksum.
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0];
    packet.extend(src.ip().octets());
    packet.extend(dst.ip().octets());
    packet.extend(tcp);
    let raw = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW))?;
    let host = SocketAddrV4::new(*dst.ip(), 0);
    let sent = sendto(&raw, &packet, SendFlags::empty(), &host)?;
    ensure!(sent == packet.len());
    Ok(())
}

fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or(u16::MAX)
}
