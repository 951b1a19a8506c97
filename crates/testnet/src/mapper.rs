//! Debian's miniupnpd on a home router: it maps ports for hosts behind it, by NAT-PMP, PCP and UPnP.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::firewalls::firewalls_tree;
use crate::folder::Folder;
use crate::nat::Nat;
use crate::process::Process;

const START: Duration = Duration::from_secs(10);

/// What it speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Speaks {
    /// NAT-PMP, PCP and UPnP.
    All,
    /// NAT-PMP and PCP.
    NatPmp,
    /// UPnP.
    Upnp,
}

/// miniupnpd, running on a router.
#[derive(Debug)]
pub struct PortMapper {
    daemon: Process,
    started: Instant,
    folder: Folder,
}

impl PortMapper {
    /// Starts it on `nat`, which tells hosts behind it that its address is [`Nat::second_address`].
    ///
    /// # Errors
    ///
    /// When it is not unpacked, `nft` refuses, or it does not start.
    pub fn start(nat: &Nat, speaks: Speaks) -> Result<Self> {
        let folder = Folder::new("mapper")?;
        fs::write(
            folder.path().join("conf"),
            config(nat.second_address(), speaks),
        )?;
        Ok(Self {
            daemon: spawn(nat, &folder)?,
            started: Instant::now(),
            folder,
        })
    }

    /// Starts it anew, as a router does that lost its power: mappings are forgotten.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn restart(&mut self, nat: &Nat) -> Result<()> {
        self.daemon.kill()?;
        self.daemon = spawn(nat, &self.folder)?;
        self.started = Instant::now();
        Ok(())
    }

    /// How long it runs.
    #[must_use]
    pub fn up_for(&self) -> Duration {
        self.started.elapsed()
    }

    /// The rules by which it maps on `nat`, one a line.
    ///
    /// # Errors
    ///
    /// When `nft` refuses.
    pub fn mappings(&self, nat: &Nat) -> Result<Vec<String>> {
        let words = [
            "nft",
            "list",
            "chain",
            "inet",
            "upnp",
            "prerouting_miniupnpd",
        ];
        let text = nat.namespace().exec(&words)?;
        let rules = text.lines().filter(|line| line.contains("dnat"));
        Ok(rules.map(|line| line.trim().to_owned()).collect())
    }

    /// What it printed.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.daemon.log()
    }
}

fn spawn(nat: &Nat, folder: &Folder) -> Result<Process> {
    let space = nat.namespace();
    let tree = firewalls_tree().context("no cache folder: set TAILRACE_CACHE or HOME")?;
    space.nft(&rules(nat.second_address()))?;
    let mut command = space.command(tree.join("usr/sbin/miniupnpd"));
    command
        .arg("-d")
        .arg("-f")
        .arg(folder.path().join("conf"))
        .arg("-P")
        .arg(folder.path().join("pid"));
    let mut daemon = Process::spawn("miniupnpd", command)?;
    daemon.wait_for_line("starting", START)?;
    Ok(daemon)
}

/// The table of its rules, from scratch. What it lets in passes the router's own rules as being translated.
///
/// Its rules name no destination, so the chain does: what it maps is a port of `external` and of no
/// other address, or the port that a node guesses at the router's first one would be mapped too.
fn rules(external: Ipv4Addr) -> String {
    format!(
        "
table inet upnp
delete table inet upnp
table inet upnp {{
    chain miniupnpd {{}}
    chain prerouting_miniupnpd {{}}
    chain postrouting_miniupnpd {{}}
    chain forward {{ type filter hook forward priority -10; policy accept; jump miniupnpd; }}
    chain prerouting {{
        type nat hook prerouting priority -110; policy accept;
        ip daddr {external} jump prerouting_miniupnpd;
    }}
    chain postrouting {{ type nat hook postrouting priority 90; policy accept; jump postrouting_miniupnpd; }}
}}
"
    )
}

fn config(external: Ipv4Addr, speaks: Speaks) -> String {
    let yes = |is: bool| if is { "yes" } else { "no" };
    format!(
        "ext_ifname=wan\next_ip={external}\nlistening_ip=lan\n\
         enable_natpmp={}\nenable_upnp={}\n\
         upnp_table_name=upnp\nupnp_nat_table_name=upnp\nupnp_forward_chain=miniupnpd\n\
         upnp_nat_chain=prerouting_miniupnpd\n\
         upnp_nat_postrouting_chain=postrouting_miniupnpd\n\
         secure_mode=yes\nsystem_uptime=no\nuuid=00000000-0000-0000-0000-000000000001\n\
         allow 1024-65535 0.0.0.0/0 1024-65535\n",
        yes(speaks != Speaks::Upnp),
        yes(speaks != Speaks::NatPmp),
    )
}
