//! A gateway between the overlay and a LAN, and the flows through it.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use dataplane::{Offload, OffloadKey, Origin, Trial};
use packet::build::{ACK, Ip};
use testnet::Namespace;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

/// When flows were last seen by the stack.
pub(crate) const STACKED: Duration = Duration::from_secs(100);
pub(crate) const IDLE: Duration = Duration::from_secs(120);
pub(crate) const OVERLAY_MTU: u16 = 1280;

/// A gateway's namespace: `overlay0` (a TUN device) and `lan0`.
pub(crate) struct Gateway {
    pub(crate) namespace: Namespace,
    pub(crate) overlay: u32,
    pub(crate) lan: u32,
    _tun: std::fs::File,
}

impl Gateway {
    pub(crate) fn new() -> Result<Self> {
        let namespace = Namespace::new("forward")?;
        let tun = namespace.enter(|| testnet::tun("overlay0"))??;
        for command in [
            "addr add 100.64.0.1/10 dev overlay0",
            "addr add fd7a:11::1/48 dev overlay0 nodad",
            "link set overlay0 up mtu 1280",
            "link add lan0 type veth peer name far0",
            "link set far0 up",
            "link set lan0 up address 02:00:00:00:00:01",
            "addr add 10.77.0.1/24 dev lan0",
            "addr add fd77::1/64 dev lan0 nodad",
        ] {
            namespace.ip(command)?;
        }
        namespace.sysctl("net/ipv4/ip_forward", "1")?;
        namespace.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let index = |name: &str| -> Result<u32> {
            let text = namespace
                .enter(|| std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex")))??;
            Ok(text.trim().parse()?)
        };
        let (overlay, lan) = (index("overlay0")?, index("lan0")?);
        Ok(Self {
            namespace,
            overlay,
            lan,
            _tun: tun,
        })
    }
}

/// A flow from a peer to a host of the LAN, with or without translation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) protocol: u8,
    /// The peer, and who it is for the host.
    pub(crate) peer: SocketAddr,
    pub(crate) alias: SocketAddr,
    pub(crate) host: SocketAddr,
}

impl Flow {
    pub(crate) fn new(protocol: u8, v6: bool, translated: bool) -> Self {
        let pick = |v4: &str, v6_text: &str| -> IpAddr {
            let text = if v6 { v6_text } else { v4 };
            text.parse().expect("an address")
        };
        let echo = protocol == ICMP || protocol == ICMPV6;
        let peer = SocketAddr::new(pick("100.64.0.2", "fd7a:11::2"), 40_001);
        let alias = if translated {
            SocketAddr::new(pick("10.77.0.1", "fd77::1"), 61_234)
        } else {
            peer
        };
        let port = if echo { 0 } else { 443 };
        Self {
            protocol,
            peer,
            alias,
            host: SocketAddr::new(pick("10.77.0.2", "fd77::2"), port),
        }
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let kinds = [
            (TCP, false),
            (UDP, false),
            (ICMP, false),
            (TCP, true),
            (UDP, true),
            (ICMPV6, true),
        ];
        kinds.into_iter().flat_map(|(protocol, v6)| {
            [true, false].map(|translated| Self::new(protocol, v6, translated))
        })
    }

    pub(crate) fn outward(&self, out: u32) -> Offload {
        Offload {
            key: OffloadKey {
                origin: Origin::Overlay,
                protocol: self.protocol,
                src: self.peer,
                dst: self.host,
            },
            src: self.alias,
            dst: self.host,
            out,
            mtu: 0,
            idle: IDLE,
        }
    }

    pub(crate) fn back(&self, overlay: u32) -> Offload {
        Offload {
            key: OffloadKey {
                origin: Origin::Lan,
                protocol: self.protocol,
                src: self.host,
                dst: self.alias,
            },
            src: self.host,
            dst: self.peer,
            out: overlay,
            mtu: OVERLAY_MTU,
            idle: IDLE,
        }
    }

    pub(crate) fn install(&self, trial: &mut Trial, gateway: &Gateway) -> Result<()> {
        trial.offload(&self.outward(gateway.lan), STACKED)?;
        trial.offload(&self.back(gateway.overlay), STACKED)?;
        Ok(())
    }

    /// A packet from the peer as it comes in, or as it leaves.
    pub(crate) fn sent(&self, ttl: u8, payload: &[u8]) -> Vec<u8> {
        self.packet(self.peer, ttl, ACK, payload)
    }

    pub(crate) fn leaving(&self, ttl: u8, payload: &[u8]) -> Vec<u8> {
        self.packet(self.alias, ttl, ACK, payload)
    }

    pub(crate) fn packet(&self, from: SocketAddr, ttl: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let ip = Ip::new(from.ip(), self.host.ip()).ttl(ttl);
        match self.protocol {
            TCP => ip.tcp(from.port(), self.host.port(), flags, payload),
            UDP => ip.udp(from.port(), self.host.port(), payload),
            _ => ip.echo_request(from.port(), 7, payload),
        }
    }

    /// The host's answer to `to`.
    pub(crate) fn answer(&self, to: SocketAddr, ttl: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let ip = Ip::new(self.host.ip(), to.ip()).ttl(ttl);
        match self.protocol {
            TCP => ip.tcp(self.host.port(), to.port(), flags, payload),
            UDP => ip.udp(self.host.port(), to.port(), payload),
            _ => ip.echo_reply(to.port(), 7, payload),
        }
    }
}

/// The link address of `lan0`.
pub(crate) const US: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The packet in a frame that is for us.
pub(crate) fn framed(packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if packet[0] >> 4 == 4 {
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    };
    [&US[..], &[2, 0, 0, 0, 0, 9], &kind, packet].concat()
}
