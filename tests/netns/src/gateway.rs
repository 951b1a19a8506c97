//! A node, a gateway, and a network behind the gateway.

use anyhow::Result;
use testnet::tailnet::{Control, ControlOptions, Node};
use testnet::{Folder, Lab, Lan, Namespace};

use crate::CONNECT;

/// Everybody may reach everything, and the gateway's routes are approved by themselves.
pub const GATEWAY_POLICY: &str = r#"{
    "tagOwners": {"tag:gate": [], "tag:node": []},
    "autoApprovers": {
        "routes": {"10.77.0.0/16": ["tag:gate"], "fd77::/16": ["tag:gate"]},
        "exitNode": ["tag:gate"],
    },
    "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}],
}
"#;

/// `alice`, a node behind NAT, and `gate`, a gateway with a LAN, that reach each other.
///
/// ```text
/// alice ── NAT ── internet ── gate ── 10.77.1.0/24, fd77:1::/64 ── host ── 198.51.100.1, 2001:db8:77:1::9
/// ```
#[derive(Debug)]
pub struct Gateway {
    /// The node; it accepts routes.
    pub alice: Node,
    /// The gateway.
    pub gate: Node,
    /// The network behind it.
    pub lan: Lan,
    /// The coordination server.
    pub control: Control,
    /// The internet between them.
    pub lab: Lab,
}

impl Gateway {
    /// Starts all of it, with [`GATEWAY_POLICY`]; the gateway was told `flags` by `tailrace set`.
    ///
    /// # Errors
    ///
    /// When a daemon does not start or a node does not join.
    pub fn start(flags: &[&str]) -> Result<Gateway> {
        let mut lab = Lab::new()?;
        let control = Control::start(lab.server("control")?, ControlOptions::default())?;
        set_policy(&control, GATEWAY_POLICY)?;
        let gate = Node::start(lab.server("gate")?)?;
        let lan = Lan::behind(gate.host().namespace(), "lan", 1)?;
        gate.join(&control.url(), &control.auth_key(&["--tags", "tag:gate"])?)?;
        let alice = Node::start(lab.behind_nat("alice")?)?;
        alice.join(&control.url(), &control.auth_key(&["--tags", "tag:node"])?)?;
        alice.reach(gate.ip("-4")?, CONNECT)?;
        gate.cli(&[&["set"], flags].concat())?;
        alice.cli(&["set", "--accept-routes"])?;
        Ok(Gateway {
            alice,
            gate,
            lan,
            control,
            lab,
        })
    }

    /// Where alice's programs run.
    #[must_use]
    pub fn node(&self) -> &Namespace {
        self.alice.host().namespace()
    }

    /// Where the gateway's firewall is.
    #[must_use]
    pub fn router(&self) -> &Namespace {
        self.gate.host().namespace()
    }

    /// Puts a policy in force.
    ///
    /// # Errors
    ///
    /// When control refuses it.
    pub fn set_policy(&self, policy: &str) -> Result<()> {
        set_policy(&self.control, policy)
    }
}

/// Puts a policy in force.
///
/// # Errors
///
/// When control refuses it.
pub fn set_policy(control: &Control, policy: &str) -> Result<()> {
    let folder = Folder::new("policy")?;
    let file = folder.path().join("policy.hujson");
    std::fs::write(&file, policy)?;
    let mut command = control.admin_command()?;
    testnet::run(command.args(["policy", "set"]).arg(file)).map(drop)
}
