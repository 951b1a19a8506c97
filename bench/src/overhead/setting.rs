//! What is measured: programs and tables that are put on the tunnel, and taken off again.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result, ensure};
use dataplane::{Counters, Dataplane, PeerIndex, PortRange, Rule, Rules};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use testnet::Namespace;

use super::lab::{End, LAN, Lab, PORT};

/// Where the agent's own UDP socket would be.
const AGENT_PORT: u16 = 41700;
/// Rules of [`Setting::Ours`] and of forwarding.
const RULES: u32 = 1000;

/// A setting of the path between two ends; both are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Setting {
    /// Kernel WireGuard.
    Bare,
    /// The table that shares WireGuard's port with the agent.
    Demux,
    /// The counting programs.
    Counters,
    /// The filtering programs, which count as well, with 10 rules.
    Acl10,
    /// The same with 1 000 rules.
    Acl1000,
    /// All of it: port sharing, filter with 1 000 rules, counters.
    Ours,
    /// wireguard-go instead of the kernel's WireGuard.
    WireguardGo,
}

impl Setting {
    /// All on kernel WireGuard.
    pub(super) const ON_KERNEL: [Self; 6] = [
        Self::Bare,
        Self::Demux,
        Self::Counters,
        Self::Acl10,
        Self::Acl1000,
        Self::Ours,
    ];

    /// As the table calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bare => "kernel WireGuard",
            Self::Demux => "+ demux",
            Self::Counters => "+ counters",
            Self::Acl10 => "+ counters + ACL, 10 rules",
            Self::Acl1000 => "+ counters + ACL, 1 000 rules",
            Self::Ours => "ours: demux + counters + ACL",
            Self::WireguardGo => "wireguard-go (Debian)",
        }
    }

    /// Puts it on both ends.
    pub(super) fn apply<'a>(self, lab: &'a Lab) -> Result<Applied<'a>> {
        let mut applied = Applied::default();
        for (end, other) in lab.pairs() {
            if matches!(self, Self::Demux | Self::Ours) {
                applied.table(&end.namespace, &demux())?;
            }
            match self {
                Self::Bare | Self::Demux | Self::WireguardGo => {}
                Self::Counters => applied.count(lab, end, other)?,
                Self::Acl10 => applied.filter(lab, end, other, 10)?,
                Self::Acl1000 | Self::Ours => applied.filter(lab, end, other, RULES)?,
            }
        }
        Ok(applied)
    }
}

/// What the router between the tunnel and the LAN does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Forwarding {
    /// The kernel forwards; the LAN host knows the way back.
    Kernel,
    /// The same with our filter.
    KernelAcl,
    /// nft masquerades.
    Masquerade,
    /// The same with our filter.
    MasqueradeAcl,
    /// nft masquerades, known flows are in a flowtable.
    Flowtable,
    /// The same with our filter.
    FlowtableAcl,
}

impl Forwarding {
    pub(super) const ALL: [Self; 6] = [
        Self::Kernel,
        Self::KernelAcl,
        Self::Masquerade,
        Self::MasqueradeAcl,
        Self::Flowtable,
        Self::FlowtableAcl,
    ];

    /// As the table calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel forward, no NAT",
            Self::KernelAcl => "kernel forward, no NAT + our ACL",
            Self::Masquerade => "nft masquerade",
            Self::MasqueradeAcl => "nft masquerade + our ACL",
            Self::Flowtable => "nft masquerade + flowtable",
            Self::FlowtableAcl => "nft masquerade + flowtable + our ACL",
        }
    }

    /// Whether the flows of this setting must not be seen by the forward chain.
    pub(super) fn is_offloaded(self) -> bool {
        matches!(self, Self::Flowtable | Self::FlowtableAcl)
    }

    /// Puts it on the router.
    pub(super) fn apply<'a>(self, lab: &'a Lab) -> Result<Applied<'a>> {
        let mut applied = Applied::default();
        let router = &lab.near;
        match self {
            Self::Kernel | Self::KernelAcl => applied.way_back(&lab.host)?,
            Self::Masquerade | Self::MasqueradeAcl => {
                applied.table(&router.namespace, MASQUERADE)?;
            }
            Self::Flowtable | Self::FlowtableAcl => {
                applied.table(&router.namespace, MASQUERADE)?;
                applied.table(&router.namespace, &flowtable(router.device))?;
            }
        }
        if matches!(
            self,
            Self::KernelAcl | Self::MasqueradeAcl | Self::FlowtableAcl
        ) {
            applied.filter(lab, router, &lab.far, RULES)?;
        }
        Ok(applied)
    }
}

/// What is in force until [`remove`](Self::remove).
#[derive(Debug, Default)]
pub(super) struct Applied<'a> {
    counters: Vec<Counters>,
    planes: Vec<Dataplane>,
    tables: Vec<&'a Namespace>,
    way_back: Option<&'a Namespace>,
}

impl<'a> Applied<'a> {
    fn table(&mut self, namespace: &'a Namespace, ruleset: &str) -> Result<()> {
        namespace.nft(ruleset)?;
        self.tables.push(namespace);
        Ok(())
    }

    fn way_back(&mut self, host: &'a Namespace) -> Result<()> {
        host.ip("route add 100.64.0.0/10 via 10.0.0.1")?;
        self.way_back = Some(host);
        Ok(())
    }

    fn count(&mut self, lab: &Lab, end: &End, other: &End) -> Result<()> {
        let device = end.device;
        let mut counters = end.namespace.enter(|| Counters::attach(device, None))??;
        counters.set_peers(&peers(lab, other)?)?;
        self.counters.push(counters);
        Ok(())
    }

    fn filter(&mut self, lab: &Lab, end: &End, other: &End, rules: u32) -> Result<()> {
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

    /// Checks that everything was counted, or judged, and that nothing was dropped.
    pub(super) fn check(&self, packets: u64) -> Result<()> {
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
        Ok(())
    }

    /// Takes everything off again.
    pub(super) fn remove(self) -> Result<()> {
        for namespace in self.tables {
            namespace.nft("flush ruleset\n")?;
        }
        if let Some(host) = self.way_back {
            host.ip("route del 100.64.0.0/10 via 10.0.0.1")?;
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

/// Shares WireGuard's port: what is not WireGuard goes to the agent, whose own port is closed.
fn demux() -> String {
    format!(
        "table inet tailrace-demux {{
            chain in {{
                type filter hook input priority 300; policy accept;
                udp dport {AGENT_PORT} counter drop
                udp dport {PORT} @th,64,32 & 0xf8ffffff != 0 counter udp dport set {AGENT_PORT}
            }}
            chain out {{
                type filter hook output priority -300; policy accept;
                udp sport {AGENT_PORT} counter udp sport set {PORT}
            }}
        }}\n"
    )
}

const MASQUERADE: &str = r#"table ip bench-nat {
    chain post { type nat hook postrouting priority 100; oifname "lan" masquerade; }
}
"#;

/// Table of [`flowtable`].
const FLOWS: &str = "bench-flows";

fn flowtable(tunnel: &str) -> String {
    format!(
        "table inet {FLOWS} {{
            flowtable known {{ hook ingress priority 0; devices = {{ {tunnel}, lan }}; }}
            chain forwarded {{
                type filter hook forward priority 0;
                meta l4proto {{ tcp, udp }} flow add @known
                counter
            }}
        }}\n"
    )
}

/// Packets that the forward chain beside the flowtable saw: those that were not offloaded.
pub(super) fn seen_by_forward_chain(router: &Namespace) -> Result<u64> {
    let text = router.exec(&["nft", "list", "table", "inet", FLOWS])?;
    let after = text.split("counter packets ").nth(1);
    let number = after.and_then(|text| text.split(' ').next());
    number
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("no counter in {LAN}'s table: {text}"))
}
