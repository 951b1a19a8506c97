//! What a setting puts on the tunnel, and how it is taken off again.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dataplane::{
    Counters, Dataplane, Forwarded, Layer, Nic, Offload, OffloadKey, Origin, PeerIndex, PortRange,
    Rule, Rules,
};
use ipnet::IpNet;
use netlink::Family;
use netlink::conntrack::{Conntrack, Flow};
use testnet::Namespace;

use super::lab::{self, End, LAN, LAN_ROUTER, Lab, MTU, TAILNET};
use super::tables;
use crate::figures::counted;

/// For how long conntrack remembers UDP that has been answered, less a margin, as the agent has it.
const IDLE: Duration = Duration::from_secs(24);
const UDP: u8 = 17;
/// Of packets that could go past the stack, so many at most may take it.
const ON_THE_STACK: u64 = 10;

/// How much of the agent's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The chains that share WireGuard's port.
    Demux,
    /// All of it, as on a subnet router.
    Whole,
}

/// What is in force until [`remove`](Self::remove).
#[derive(Debug, Default)]
pub(super) struct Applied<'a> {
    counters: Vec<Counters>,
    planes: Vec<Dataplane>,
    tables: Vec<&'a Namespace>,
    way_back: Option<&'a Namespace>,
    threaded: Vec<&'a End>,
    /// The router whose flows must not take the stack, and by whose doing.
    offloads: Option<(&'a End, Offloads)>,
}

/// Who takes known flows past the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offloads {
    Flowtable,
    Programs,
}

impl<'a> Applied<'a> {
    fn table(&mut self, namespace: &'a Namespace, ruleset: &str) -> Result<()> {
        namespace.nft(ruleset)?;
        self.tables.push(namespace);
        Ok(())
    }

    /// Puts chains without rules there.
    pub(super) fn hooks(&mut self, end: &'a End) -> Result<()> {
        self.table(&end.namespace, tables::HOOKS)
    }

    /// Has a kernel thread carry up what arrives.
    pub(super) fn threaded(&mut self, end: &'a End) -> Result<()> {
        end.set("threaded", 1)?;
        self.threaded.push(end);
        Ok(())
    }

    /// Puts the agent's table there.
    pub(super) fn firewall(&mut self, end: &'a End, part: Part) -> Result<()> {
        let table = match part {
            Part::Demux => tables::demux(),
            Part::Whole => tables::whole(end.device),
        };
        self.table(&end.namespace, &table)
    }

    /// Drops there what the underlay brings.
    pub(super) fn ingress(&mut self, end: &'a End) -> Result<()> {
        self.table(&end.namespace, tables::INGRESS)
    }

    /// Has nft masquerade what goes to the LAN.
    pub(super) fn masquerade(&mut self, router: &'a End) -> Result<()> {
        self.table(&router.namespace, tables::MASQUERADE)
    }

    /// Has the kernel's flowtable take known flows.
    pub(super) fn flowtable(&mut self, router: &'a End) -> Result<()> {
        self.table(&router.namespace, &tables::flowtable(router.device))?;
        self.offloads = Some((router, Offloads::Flowtable));
        Ok(())
    }

    /// Has our programs take known flows; [`learn`](Self::learn) says which those are.
    pub(super) fn offload(&mut self, router: &'a End) -> Result<()> {
        let nic = Nic {
            name: "lan".to_owned(),
            layer: Layer::Ethernet,
        };
        let plane = self.planes.last_mut().context("no filter to go on from")?;
        router
            .namespace
            .enter(|| plane.forward().enable(MTU, &[nic]))??;
        self.offloads = Some((router, Offloads::Programs));
        Ok(())
    }

    /// Does what the agent does with conntrack's events: UDP flows to the LAN are written into the
    /// forward table.
    pub(super) fn learn(&mut self) -> Result<()> {
        let Some((router, Offloads::Programs)) = self.offloads else {
            return Ok(());
        };
        let plane = self.planes.last_mut().context("no programs")?;
        router.namespace.enter(|| -> Result<()> {
            let flows = lab::block_on(async { Ok(Conntrack::open()?.dump(Family::V4).await?) })?;
            let lan: IpNet = LAN.parse()?;
            let to_lan = |flow: &&Flow| {
                flow.original.protocol == UDP && lan.contains(&flow.original.dst.ip())
            };
            let mut forward = plane.forward();
            let mut found = 0;
            for flow in flows.iter().filter(to_lan) {
                for entry in entries(flow, index(router.device)?, index("lan")?) {
                    forward.offload(&entry)?;
                }
                found += 1;
            }
            ensure!(found != 0, "no flow to offload among {flows:?}");
            Ok(())
        })?
    }

    pub(super) fn way_back(&mut self, host: &'a Namespace) -> Result<()> {
        host.ip(&format!("route add {TAILNET} via {LAN_ROUTER}"))?;
        self.way_back = Some(host);
        Ok(())
    }

    pub(super) fn count(&mut self, lab: &Lab, end: &End, other: &End) -> Result<()> {
        let device = end.device;
        let mut counters = end.namespace.enter(|| Counters::attach(device, None))??;
        counters.set_peers(&peers(lab, other)?)?;
        self.counters.push(counters);
        Ok(())
    }

    pub(super) fn filter(&mut self, lab: &Lab, end: &End, other: &End, rules: u32) -> Result<()> {
        let device = end.device;
        let mut plane = end.namespace.enter(|| Dataplane::attach(device, None))??;
        let peers: Vec<_> = peers(lab, other)?
            .into_iter()
            .map(|(prefix, index)| (prefix, index.into()))
            .collect();
        plane.set_peers(&peers)?;
        plane.set_rules(&admitting(lab, end, other, rules)?)?;
        self.planes.push(plane);
        Ok(())
    }

    /// Checks that everything was counted, or judged, that nothing was dropped, and that nearly
    /// everything that could went past the stack.
    pub(super) fn check(&mut self, packets: u64) -> Result<()> {
        for counters in self
            .counters
            .iter()
            .chain(self.planes.iter().map(Dataplane::counters))
        {
            let found: u64 = counters
                .read()?
                .values()
                .map(|peer| peer.rx_packets.min(peer.tx_packets))
                .sum();
            ensure!(found >= packets, "{found} of {packets} packets counted");
        }
        for plane in &self.planes {
            let dropped: u64 = plane.drops()?.values().map(|count| count.packets).sum();
            ensure!(dropped == 0, "dropped: {:?}", plane.drops()?);
        }
        let few = packets / ON_THE_STACK;
        match self.offloads {
            None => {}
            Some((router, Offloads::Flowtable)) => {
                let seen = seen_by_forward_chain(&router.namespace)?;
                ensure!(seen < few, "{seen} packets were not offloaded");
            }
            Some((_, Offloads::Programs)) => {
                for plane in &mut self.planes {
                    let counts = plane.forward().counts()?;
                    for origin in Origin::ALL {
                        let past = counts[&(origin, Forwarded::Past)].packets;
                        ensure!(past > packets - few, "past the stack: {counts:?}");
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes everything off again.
    pub(super) fn remove(self) -> Result<()> {
        for namespace in self.tables {
            namespace.nft("flush ruleset\n")?;
        }
        if let Some(host) = self.way_back {
            host.ip(&format!("route del {TAILNET}"))?;
        }
        for end in self.threaded {
            end.set("threaded", 0)?;
        }
        for counters in self.counters {
            counters.remove()?;
        }
        for plane in self.planes {
            plane.remove()?;
        }
        Ok(())
    }
}

/// Who is at the other end.
fn peers(lab: &Lab, other: &End) -> Result<Vec<(IpNet, PeerIndex)>> {
    let prefixes = lab.prefixes(other)?;
    Ok(prefixes
        .into_iter()
        .map(|prefix| (prefix, PeerIndex(1)))
        .collect())
}

/// `count` rules for `end`; the last of them admits the other end.
fn admitting(lab: &Lab, end: &End, other: &End, count: u32) -> Result<Rules> {
    let own = IpNet::from(IpAddr::from(end.address));
    let stranger = u32::from(Ipv4Addr::new(100, 65, 0, 1));
    let mut rules: Vec<Rule> = (1..count)
        .map(|number| {
            let port = u16::try_from(number % 60_000).unwrap_or_default();
            let ports = PortRange {
                first: port,
                last: port,
            };
            Rule {
                id: 0,
                sources: [IpAddr::from(Ipv4Addr::from(stranger + number)).into()].into(),
                destinations: vec![(own, ports)],
                protocols: vec![6],
            }
        })
        .collect();
    let theirs: Vec<IpNet> = lab.prefixes(other)?.into_iter().collect();
    let ours = lab.prefixes(end)?;
    rules.push(Rule {
        id: 0,
        sources: theirs.into(),
        destinations: ours
            .iter()
            .map(|prefix| (*prefix, PortRange::ALL))
            .collect(),
        protocols: vec![1, 6, 17],
    });
    Ok(Rules {
        rules,
        addresses: vec![end.address.into()],
        routes: ours.into_iter().filter(|prefix| *prefix != own).collect(),
        ..Rules::default()
    })
}

/// Both directions of a flow that is masqueraded towards the LAN.
fn entries(flow: &Flow, overlay: u32, lan: u32) -> [Offload; 2] {
    let (client, alias) = (flow.original.src, flow.reply.dst);
    let (host, protocol) = (flow.original.dst, flow.original.protocol);
    let key = |origin, src, dst| OffloadKey {
        origin,
        protocol,
        src,
        dst,
    };
    [
        Offload {
            key: key(Origin::Overlay, client, host),
            src: alias,
            dst: host,
            out: lan,
            mtu: 0,
            idle: IDLE,
        },
        Offload {
            key: key(Origin::Lan, host, alias),
            src: host,
            dst: client,
            out: overlay,
            mtu: MTU,
            idle: IDLE,
        },
    ]
}

/// Number of a device of the current namespace.
fn index(device: &str) -> Result<u32> {
    let path = Path::new("/sys/class/net").join(device).join("ifindex");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text.trim().parse()?)
}

/// Packets that the forward chain beside the flowtable saw: those that were not offloaded.
fn seen_by_forward_chain(router: &Namespace) -> Result<u64> {
    counted(&router.exec(&["nft", "list", "table", "inet", tables::FLOWS])?)
}
