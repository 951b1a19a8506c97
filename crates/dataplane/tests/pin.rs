//! Pinning: what comes from a peer's relay address arrives with the source chosen for the peer.

mod common;

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::{Result, ensure};
use dataplane::{Attachment, Pinning};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use testnet::Namespace;

const WIREGUARD: u16 = 41_641;
const RELAY: u16 = 41_800;
const PEER: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 3);
const ENDPOINT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 9);

fn kinds() -> Vec<Attachment> {
    match Attachment::of_this_kernel() {
        Attachment::Tcx => vec![Attachment::Tcx, Attachment::Clsact],
        Attachment::Clsact => vec![Attachment::Clsact],
    }
}

/// What stands where WireGuard would.
fn wireguard(port: u16) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

/// Sends `payload` and returns the source with which it arrives.
fn source(from: &UdpSocket, to: &UdpSocket, payload: &[u8]) -> Result<SocketAddr> {
    from.send_to(payload, (Ipv4Addr::LOCALHOST, to.local_addr()?.port()))?;
    let mut received = [0; 2000];
    let (len, source) = to.recv_from(&mut received)?;
    ensure!(received[..len] == *payload, "the payload has changed");
    Ok(source)
}

/// Runs `test` once for each way of attaching, in a namespace of its own.
fn on_lo(test: impl Fn(Attachment) -> Result<()> + Sync) -> Result<()> {
    for kind in kinds() {
        // The strictest of hosts.
        let namespace = Namespace::new("pin")?;
        namespace.sysctl("net/ipv4/conf/all/rp_filter", "1")?;
        namespace.sysctl("net/ipv4/conf/lo/rp_filter", "1")?;
        namespace.enter(|| test(kind))??;
    }
    Ok(())
}

#[test]
fn relayed_packets_get_the_chosen_source_and_no_others_do() -> Result<()> {
    skip_without_bpf!();
    on_lo(|kind| {
        let wg = wireguard(WIREGUARD)?;
        let elsewhere = wireguard(WIREGUARD + 1)?;
        let peer = UdpSocket::bind((PEER, RELAY))?;
        let other = UdpSocket::bind((OTHER, RELAY))?;
        let unrelated = UdpSocket::bind((PEER, RELAY + 1))?;
        let local = UdpSocket::bind((Ipv4Addr::LOCALHOST, RELAY))?;
        let mut pinning = Pinning::attach_as(WIREGUARD, RELAY, kind)?;
        assert_eq!(source(&peer, &wg, b"before")?, peer.local_addr()?);

        pinning.set(PEER, Some(ENDPOINT))?;
        for len in [0, 1, 148, 1400] {
            let payload = vec![7; len];
            assert_eq!(source(&peer, &wg, &payload)?, ENDPOINT.into());
        }
        for (from, to) in [
            (&other, &wg),
            (&unrelated, &wg),
            (&local, &wg),
            (&peer, &elsewhere),
        ] {
            assert_eq!(source(from, to, b"hello")?, from.local_addr()?);
        }

        let moved = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 1), 10);
        pinning.set(PEER, Some(moved))?;
        assert_eq!(source(&peer, &wg, b"moved")?, moved.into());
        pinning.set(PEER, None)?;
        assert_eq!(source(&peer, &wg, b"free")?, peer.local_addr()?);
        pinning.set(PEER, None)?;

        pinning.set(PEER, Some(ENDPOINT))?;
        drop(pinning);
        assert_eq!(source(&peer, &wg, b"after")?, peer.local_addr()?);
        Ok(Pinning::remove_leftovers(WIREGUARD)?)
    })
}

#[test]
fn many_packets_in_one_buffer_all_get_it() -> Result<()> {
    skip_without_bpf!();
    on_lo(|kind| {
        let wg = wireguard(WIREGUARD)?;
        let peer = UdpSocket::bind((PEER, RELAY))?;
        let mut pinning = Pinning::attach_as(WIREGUARD, RELAY, kind)?;
        pinning.set(PEER, Some(ENDPOINT))?;
        setsockopt(&peer, UdpGsoSegment, &1000)?;
        let payload: Vec<u8> = (0..20_500).map(|i| (i / 100) as u8).collect();
        peer.send_to(&payload, (Ipv4Addr::LOCALHOST, WIREGUARD))?;
        for chunk in payload.chunks(1000) {
            let mut received = [0; 2000];
            let (len, source) = wg.recv_from(&mut received)?;
            ensure!(received[..len] == *chunk, "the payload has changed");
            assert_eq!(source, ENDPOINT.into());
        }
        Ok(())
    })
}

#[test]
fn two_agents_pin_on_one_loopback_device() -> Result<()> {
    skip_without_bpf!();
    on_lo(|kind| {
        let (one, two) = (wireguard(WIREGUARD)?, wireguard(WIREGUARD + 1)?);
        let peer = UdpSocket::bind((PEER, RELAY))?;
        let mut first = Pinning::attach_as(WIREGUARD, RELAY, kind)?;
        let mut second = Pinning::attach_as(WIREGUARD + 1, RELAY, kind)?;
        let other = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 1), 10);
        first.set(PEER, Some(ENDPOINT))?;
        second.set(PEER, Some(other))?;
        assert_eq!(source(&peer, &one, b"one")?, ENDPOINT.into());
        assert_eq!(source(&peer, &two, b"two")?, other.into());
        drop(first);
        assert_eq!(source(&peer, &one, b"one")?, peer.local_addr()?);
        assert_eq!(source(&peer, &two, b"two")?, other.into());
        Ok(())
    })
}
