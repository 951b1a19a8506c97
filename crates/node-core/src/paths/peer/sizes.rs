//! How long packets to a peer may be: what pings that fill a packet of the underlay have shown (protocol/disco.md §15).

use std::net::SocketAddr;
use std::time::Duration;

use disco_proto::disco::PING_LEN;

use super::super::Now;
use super::{Context, PING_INTERVAL, Peer, Via};
use crate::DEFAULT_MTU;

/// Lengths of the underlay's packets that are tried, in bytes.
const TRIED: [u16; 4] = [1400, 1500, 8000, 9000];
/// Between tries of a length.
const TRY_INTERVAL: Duration = Duration::from_secs(60);
/// For so long a length is good after it was last shown: two tries in a row may get lost.
const GOOD_FOR: Duration = Duration::from_secs(150);
/// What WireGuard adds to a packet, before the underlay's headers.
const WIREGUARD_LEN: u16 = 32;
/// WireGuard pads to a multiple of this.
const WIREGUARD_BLOCK: u16 = 16;

/// What is known of each length of [`TRIED`].
#[derive(Debug, Default)]
pub(super) struct Sizes {
    /// The way that our pings took; on another way they show nothing.
    address: Option<SocketAddr>,
    /// Our last ping of this length.
    tried: [Option<Now>; TRIED.len()],
    /// The last answer to one.
    answered: [Option<Now>; TRIED.len()],
    /// The peer's last ping of this length. It tells that the peer takes such packets: one that was never told to
    /// try them may not.
    heard: [Option<Now>; TRIED.len()],
}

impl Sizes {
    fn turn_to(&mut self, address: SocketAddr) {
        if self.address != Some(address) {
            *self = Self {
                address: Some(address),
                heard: self.heard,
                ..Self::default()
            };
        }
    }

    /// Which length was tried so long ago that it is time again.
    fn due(&self, now: Now) -> Vec<usize> {
        let due = |at: &Option<Now>| at.is_none_or(|at| now.since(at) >= TRY_INTERVAL);
        (0..TRIED.len())
            .filter(|which| due(&self.tried[*which]))
            .collect()
    }

    /// The longest length that both sides have shown.
    fn shown(&self, now: Now) -> Option<usize> {
        let good = |at: &Option<Now>| at.is_some_and(|at| now.since(at) < GOOD_FOR);
        let ours = self.answered.iter().rposition(good)?;
        let theirs = self.heard.iter().rposition(good)?;
        Some(ours.min(theirs))
    }

    /// Longest packet of the overlay, in bytes, on the way to `address`.
    pub(super) fn mtu(&self, now: Now, address: SocketAddr) -> u16 {
        let shown = self.shown(now).filter(|_| self.address == Some(address));
        shown.map_or(DEFAULT_MTU, |which| overlay_mtu(TRIED[which], address))
    }

    /// When something that was shown is not good any more.
    pub(super) fn until(&self, now: Now) -> Option<Now> {
        let known = self.answered.iter().chain(&self.heard).flatten();
        let ends = known.map(|at| *at + GOOD_FOR);
        ends.filter(|end| *end > now).min()
    }
}

/// Length of the underlay's headers on the way to `address`.
fn headers(address: SocketAddr) -> u16 {
    if address.is_ipv4() { 20 + 8 } else { 40 + 8 }
}

/// The longest packet that WireGuard, padding and all, puts into one of `length` bytes.
fn overlay_mtu(length: u16, address: SocketAddr) -> u16 {
    let room = length - headers(address) - WIREGUARD_LEN;
    (room - room % WIREGUARD_BLOCK).max(DEFAULT_MTU)
}

/// Padding with which a ping fills a packet of `length` bytes.
fn padding(length: u16, address: SocketAddr) -> u16 {
    length - headers(address) - PING_LEN
}

/// Which length a ping with this padding fills, if it is one that is tried.
fn which(padded: u16, address: SocketAddr) -> Option<usize> {
    TRIED
        .iter()
        .position(|length| padding(*length, address) == padded)
}

impl Peer {
    /// Tries the lengths that are due on a path that is trusted.
    pub(super) fn try_sizes(&mut self, context: &mut Context<'_>) {
        let Some(best) = self.trusted(context.now) else {
            return;
        };
        self.sizes.turn_to(best.address);
        for which in self.sizes.due(context.now) {
            self.try_size(context, which, best.address);
        }
    }

    fn try_size(&mut self, context: &mut Context<'_>, which: usize, address: SocketAddr) {
        self.sizes.tried[which] = Some(context.now);
        let padding = padding(TRIED[which], address);
        self.probe(context, Via::Udp(address), None, padding);
    }

    /// Notes an answer to a ping with this padding.
    pub(super) fn size_answered(&mut self, now: Now, address: SocketAddr, padding: u16) {
        if let Some(which) = which(padding, address)
            && self.sizes.address == Some(address)
        {
            self.sizes.answered[which] = Some(now);
        }
    }

    /// Notes a ping of the peer with this padding, and tries what the peer tries: it waits for us.
    pub(super) fn size_heard(
        &mut self,
        context: &mut Context<'_>,
        source: SocketAddr,
        padding: u16,
    ) {
        let Some(which) = which(padding, source) else {
            return;
        };
        let now = context.now;
        self.sizes.heard[which] = Some(now);
        let Some(best) = self.trusted(now) else {
            return;
        };
        self.sizes.turn_to(best.address);
        let within = |at: Option<Now>, time| at.is_some_and(|at| now.since(at) < time);
        let known = within(self.sizes.answered[which], TRY_INTERVAL);
        if !known && !within(self.sizes.tried[which], PING_INTERVAL) {
            self.try_size(context, which, best.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_and_a_packet_of_wireguard_fill_what_was_tried() {
        for (address, inner) in [
            ("192.0.2.1:1", [1328, 1440, 7936, 8928]),
            ("[2001:db8::1]:1", [1312, 1408, 7920, 8912]),
        ] {
            let address = address.parse().unwrap();
            for (number, length) in TRIED.into_iter().enumerate() {
                let padding = padding(length, address);
                assert_eq!(padding + PING_LEN + headers(address), length);
                assert_eq!(which(padding, address), Some(number));
                assert_eq!(overlay_mtu(length, address), inner[number]);
            }
            assert_eq!(which(padding(1400, address) + 1, address), None);
        }
    }
}
