//! A router's UDP, translated by the [model](super::model) instead of the kernel: [`Translator`].
//!
//! ```text
//! lan ──► rule ──► TUN `udp` ──► model ──► TUN `udp` ──► wan      and back the same way
//! ```

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::model::{Behaviour, Nat, Outbound};
use crate::namespace::Namespace;
use crate::tun::tun;

/// Rules of the router's `forward` chain for what passes the device.
pub(super) const FORWARD: &str = "iifname \"udp\" accept
        oifname \"udp\" accept";

/// The table that leads to the device.
const TABLE: u32 = 51;
const PACKET: usize = 1 << 16;
/// How often the thread looks whether the router is still there.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};
const UDP: u8 = 17;

/// A thread that translates; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Translator {
    ended: Arc<AtomicBool>,
}

impl Translator {
    /// Takes over the UDP of a router with the address `public` on `wan`, from inside by `lines`.
    ///
    /// # Errors
    ///
    /// When `ip` refuses, or as [`tun`].
    pub(super) fn start(
        router: &Namespace,
        public: Ipv4Addr,
        behaviour: Behaviour,
        lines: &[&str],
    ) -> Result<Translator> {
        let device = router.enter(|| tun("udp"))??;
        router.ip("link set udp up")?;
        // What comes out of it bears the router's own address, or one that is reached by `wan`.
        router.sysctl("net/ipv4/conf/udp/accept_local", "1")?;
        for name in ["all", "udp"] {
            router.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0")?;
        }
        router.ip(&format!("route add default dev udp table {TABLE}"))?;
        // Before the router's own addresses: UDP for them is for the hosts behind.
        router.ip("rule add priority 100 lookup local")?;
        router.ip("rule del priority 0")?;
        router.ip(&format!(
            "rule add priority 1 iif wan ipproto udp lookup {TABLE}"
        ))?;
        let translator = Translator {
            ended: Arc::default(),
        };
        for line in lines {
            translator.take_from(router, line)?;
        }
        let nat = Nat::new(public.into(), behaviour);
        let ended = translator.ended.clone();
        thread::Builder::new()
            .name("nat".to_owned())
            .spawn(move || translate(device, nat, public, &ended))
            .context("starting the NAT")?;
        Ok(translator)
    }

    /// Takes what comes from inside by one more line.
    ///
    /// # Errors
    ///
    /// When `ip` refuses.
    pub(super) fn take_from(&self, router: &Namespace, line: &str) -> Result<()> {
        router.ip(&format!(
            "rule add priority 1 iif {line} ipproto udp lookup {TABLE}"
        ))?;
        Ok(())
    }
}

impl Drop for Translator {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Ends when told to, or when the device is gone.
fn translate(mut device: File, mut nat: Nat, public: Ipv4Addr, ended: &AtomicBool) {
    let begin = Instant::now();
    let mut buffer = vec![0; PACKET];
    while !ended.load(Ordering::Relaxed) {
        match device.read(&mut buffer) {
            Ok(len) => {
                let packet = &mut buffer[..len];
                let Some((from, to)) = ends(packet) else {
                    continue;
                };
                let now = begin.elapsed();
                // All that is inside has a private address here.
                let ends = if from.ip().is_private() {
                    match nat.outbound(now, from.into(), to.into()) {
                        Outbound::Leaves(source) => Some((source, to.into())),
                        Outbound::Hairpin { from, to } => Some((from, to)),
                        Outbound::Dropped => None,
                    }
                } else if *to.ip() == public {
                    let inside = nat.inbound(now, from.into(), to.port());
                    inside.map(|inside| (from.into(), inside))
                } else {
                    None
                };
                if let Some((from, to)) = ends {
                    rewrite(packet, from, to);
                    // A device that is down, or gone, takes nothing: lost, as on any wire.
                    let _ = device.write_all(packet);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let fd = device.as_fd();
                // Ended by a signal it is tried again, and a device that is gone fails the next read.
                let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&LOOK));
            }
            Err(_) => return,
        }
    }
}

/// Where the headers of UDP in an IPv4 packet begin, if it is whole.
fn udp_at(packet: &[u8]) -> Option<usize> {
    let at = usize::from(packet.first()? & 15) * 4;
    let whole = packet.len() >= at + 8 && packet[0] >> 4 == 4 && at >= 20;
    let unfragmented = whole && packet[6] & 0x3f == 0 && packet[7] == 0;
    (unfragmented && packet[9] == UDP).then_some(at)
}

/// Source and destination of a datagram; `None` for all else.
fn ends(packet: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4)> {
    let at = udp_at(packet)?;
    let end = |address: usize, port: usize| {
        let address: [u8; 4] = packet[address..].first_chunk().copied()?;
        let port: [u8; 2] = packet[port..].first_chunk().copied()?;
        Some(SocketAddrV4::new(address.into(), u16::from_be_bytes(port)))
    };
    Some((end(12, at)?, end(16, at + 2)?))
}

/// Gives a datagram other ends. It goes without a checksum of UDP's own, as IPv4 allows.
fn rewrite(packet: &mut [u8], from: SocketAddr, to: SocketAddr) {
    let Some(at) = udp_at(packet) else { return };
    for (end, address, port) in [(from, 12, at), (to, 16, at + 2)] {
        if let IpAddr::V4(ip) = end.ip() {
            packet[address..address + 4].copy_from_slice(&ip.octets());
        }
        packet[port..port + 2].copy_from_slice(&end.port().to_be_bytes());
    }
    packet[at + 6..at + 8].fill(0);
    packet[10..12].fill(0);
    let words = packet[..at].as_chunks::<2>().0;
    let mut sum: u32 = words
        .iter()
        .map(|word| u32::from(u16::from_be_bytes(*word)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}
