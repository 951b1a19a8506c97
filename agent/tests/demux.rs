//! The raw form of the port demux, in a network namespace beside a socket that holds the port as WireGuard's does.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use agent::firewall::demux::{Demux, Raw};
use disco_proto::{disco, stun};
use nix::sched::{CloneFlags, unshare};
use tokio::net::UdpSocket;
use tokio::time::timeout;

const PORT: u16 = 41_641;
const MTU: usize = 1500;
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn raw_sockets_take_disco_and_stun_and_answer_from_its_port() {
    let test = std::thread::spawn(|| {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            println!("\nSKIP raw demux: no network namespace ({error})");
            return;
        }
        // An MTU of Ethernet's: long datagrams arrive in fragments.
        let up = std::process::Command::new("ip")
            .args(["link", "set", "lo", "up", "mtu", &MTU.to_string()])
            .status();
        assert!(up.unwrap().success());
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(async {
                exchange(Ipv4Addr::LOCALHOST.into()).await;
                exchange(Ipv6Addr::LOCALHOST.into()).await;
            });
    });
    if let Err(panic) = test.join() {
        std::panic::resume_unwind(panic);
    }
}

async fn exchange(host: IpAddr) {
    let holder = UdpSocket::bind((host, PORT)).await.unwrap();
    let elsewhere = UdpSocket::bind((host, 0)).await.unwrap();
    let peer = UdpSocket::bind((host, 0)).await.unwrap();
    let address = peer.local_addr().unwrap();
    let demux = Demux::Raw(Raw::open(PORT, 0).unwrap());
    let here = SocketAddr::new(host, PORT);

    // None of these is the agent's: WireGuard's four types, too short, junk, another port. Order holds on loopback, so
    // what arrives first proves that they did not.
    for kind in 1..=4 {
        peer.send_to(&[kind, 0, 0, 0, 9, 9], here).await.unwrap();
    }
    for junk in [&[0xff; 3][..], b"TS odd!", &[0; 40], &[4, 0, 0, 1]] {
        peer.send_to(junk, here).await.unwrap();
    }
    let other = elsewhere.local_addr().unwrap();
    peer.send_to(&disco::MAGIC, other).await.unwrap();

    let mut long = vec![0x54; 5_000];
    long[..disco::MAGIC.len()].copy_from_slice(&disco::MAGIC);
    let asked = [&[0, 1, 0, 0][..], &stun::COOKIE, &[7; 12]].concat();
    let mut buffer = [0; 9_000];
    for payload in [&disco::MAGIC[..], &asked, &long] {
        peer.send_to(payload, here).await.unwrap();
        let (length, from) = timeout(PATIENCE, demux.receive(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!((&buffer[..length], from), (payload, address));

        // A long one is to show what the path carries: it leaves whole or not at all.
        if payload.len() > MTU {
            let refused = demux.send(payload, address).await.unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EMSGSIZE));
            continue;
        }
        // The kernel drops a datagram whose checksum is wrong.
        demux.send(payload, address).await.unwrap();
        let (length, from) = timeout(PATIENCE, peer.recv_from(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!((&buffer[..length], from), (payload, here));
    }

    // WireGuard's socket misses nothing of its own.
    for kind in 1..=4 {
        let (length, _) = timeout(PATIENCE, holder.recv_from(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(buffer[..length], [kind, 0, 0, 0, 9, 9]);
    }
}
