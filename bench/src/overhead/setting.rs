//! What is measured: the settings, and what each puts on the tunnel.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::applied::{Applied, Part};
use super::lab::Lab;

/// Rules of [`Setting::Ours`] and of forwarding.
const RULES: u32 = 1000;

/// A setting of the path between two ends; both are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Setting {
    /// Kernel WireGuard.
    Bare,
    /// What arrives goes up by a kernel thread of the peer's, not in softirqs.
    Threaded,
    /// Chains at both places of `Demux` with no rule in them.
    Hooks,
    /// Of the agent's table, what shares WireGuard's port with it.
    Demux,
    /// The agent's whole table.
    Firewall,
    /// The counting programs.
    Counters,
    /// The filtering programs, which count as well, with 10 rules.
    Acl10,
    /// The same with 1 000 rules.
    Acl1000,
    /// Port sharing, filter with 1 000 rules, counters.
    Ours,
    /// The same with the agent's whole table.
    Agent,
    /// wireguard-go instead of the kernel's WireGuard.
    WireguardGo,
}

impl Setting {
    /// All on kernel WireGuard.
    pub(super) const ON_KERNEL: [Self; 10] = [
        Self::Bare,
        Self::Threaded,
        Self::Hooks,
        Self::Demux,
        Self::Firewall,
        Self::Counters,
        Self::Acl10,
        Self::Acl1000,
        Self::Ours,
        Self::Agent,
    ];

    /// As the table calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bare => "kernel WireGuard",
            Self::Threaded => "+ threaded NAPI",
            Self::Hooks => "+ empty nft chains, input and output",
            Self::Demux => "+ demux",
            Self::Firewall => "+ the agent's whole table",
            Self::Counters => "+ counters",
            Self::Acl10 => "+ counters + ACL, 10 rules",
            Self::Acl1000 => "+ counters + ACL, 1 000 rules",
            Self::Ours => "ours: demux + counters + ACL",
            Self::Agent => "ours with the agent's whole table",
            Self::WireguardGo => "wireguard-go (Debian)",
        }
    }

    /// Puts it on both ends.
    pub(super) fn apply<'a>(self, lab: &'a Lab) -> Result<Applied<'a>> {
        let mut applied = Applied::default();
        for (end, other) in lab.pairs() {
            match self {
                Self::Hooks => applied.hooks(end)?,
                Self::Threaded => applied.threaded(end)?,
                Self::Demux | Self::Ours => applied.firewall(end, Part::Demux)?,
                Self::Firewall | Self::Agent => applied.firewall(end, Part::Whole)?,
                _ => {}
            }
            match self {
                Self::Bare
                | Self::Threaded
                | Self::Hooks
                | Self::Demux
                | Self::Firewall
                | Self::WireguardGo => {}
                Self::Counters => applied.count(lab, end, other)?,
                Self::Acl10 => applied.filter(lab, end, other, 10)?,
                Self::Acl1000 | Self::Ours | Self::Agent => {
                    applied.filter(lab, end, other, RULES)?;
                }
            }
        }
        Ok(applied)
    }
}

/// Where junk to WireGuard's port ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Junk {
    /// Where the device hands it over: what it costs to send it and carry it there.
    Ingress,
    /// In the agent's table.
    Demux,
}

impl Junk {
    pub(super) const ALL: [Self; 2] = [Self::Ingress, Self::Demux];

    /// As the table calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ingress => "dropped as it comes in",
            Self::Demux => "dropped by the agent's demux",
        }
    }

    /// Puts it on the far end.
    pub(super) fn apply<'a>(self, lab: &'a Lab) -> Result<Applied<'a>> {
        let mut applied = Applied::default();
        match self {
            Self::Ingress => applied.ingress(&lab.far)?,
            Self::Demux => applied.firewall(&lab.far, Part::Demux)?,
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
    /// nft masquerades, with our filter, and known flows pass the stack by in our programs.
    Offload,
    /// The agent's whole table masquerades, with our filter.
    Agent,
    /// The same, and known flows pass the stack by in our programs.
    AgentOffload,
}

impl Forwarding {
    pub(super) const ALL: [Self; 9] = [
        Self::Kernel,
        Self::KernelAcl,
        Self::Masquerade,
        Self::MasqueradeAcl,
        Self::Flowtable,
        Self::FlowtableAcl,
        Self::Offload,
        Self::Agent,
        Self::AgentOffload,
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
            Self::Offload => "nft masquerade + eBPF offload + our ACL",
            Self::Agent => "the agent's whole table + ACL",
            Self::AgentOffload => "the same + eBPF offload",
        }
    }

    /// Puts it on the router.
    pub(super) fn apply<'a>(self, lab: &'a Lab) -> Result<Applied<'a>> {
        let mut applied = Applied::default();
        let router = &lab.near;
        match self {
            Self::Kernel | Self::KernelAcl => applied.way_back(&lab.host)?,
            Self::Masquerade | Self::MasqueradeAcl | Self::Offload => {
                applied.masquerade(router)?;
            }
            Self::Flowtable | Self::FlowtableAcl => {
                applied.masquerade(router)?;
                applied.flowtable(router)?;
            }
            Self::Agent | Self::AgentOffload => applied.firewall(router, Part::Whole)?,
        }
        match self {
            Self::Kernel | Self::Masquerade | Self::Flowtable => {}
            Self::KernelAcl | Self::MasqueradeAcl | Self::FlowtableAcl | Self::Agent => {
                applied.filter(lab, router, &lab.far, RULES)?;
            }
            Self::Offload | Self::AgentOffload => {
                applied.filter(lab, router, &lab.far, RULES)?;
                applied.offload(router)?;
            }
        }
        Ok(applied)
    }
}
