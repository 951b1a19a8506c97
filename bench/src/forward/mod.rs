//! `forward`: what a gateway's forwarding costs each packet, by who does it.
//!
//! Peers are frames written into a TUN device, `to LAN`; a host behind the gateway sends to them, `to
//! peers`. The write, or the send, returns once the packet is where it goes, so its time holds all that
//! the gateway does, and what the host and the system call take, which is the same in each setting. All
//! settings stand side by side and are measured in turn; figures are medians of five rounds.

mod gateway;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::figures::median;
use crate::plot::{Bars, Group};
use gateway::Gateway;

const ROUNDS: usize = 5;

/// Options of the bench.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Where the plot goes.
    #[arg(long, default_value = "bench/results/forward.svg")]
    plot: PathBuf,
}

/// Who forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setting {
    /// The kernel, without translation.
    Kernel,
    /// nft masquerades.
    Masquerade,
    /// The same behind a host firewall of 200 rules.
    MasqueradeFirewall,
    /// nft masquerades, known flows are in a flowtable.
    Flowtable,
    /// The same under our filter.
    FlowtableAcl,
    /// The agent's table and filter; every packet takes the stack.
    Stack,
    /// The agent as it is: known flows go past the stack.
    Ours,
    /// The same behind a host firewall of 200 rules.
    OursFirewall,
}

impl Setting {
    const ALL: [Self; 8] = [
        Self::Kernel,
        Self::Masquerade,
        Self::MasqueradeFirewall,
        Self::Flowtable,
        Self::FlowtableAcl,
        Self::Stack,
        Self::Ours,
        Self::OursFirewall,
    ];

    /// As the table calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel forward, no NAT",
            Self::Masquerade => "nft masquerade",
            Self::MasqueradeFirewall => "nft masquerade, host firewall of 200 rules",
            Self::Flowtable => "nft masquerade + flowtable",
            Self::FlowtableAcl => "nft masquerade + flowtable + our ACL",
            Self::Stack => "our ACL and table, on the stack",
            Self::Ours => "ours: past the stack",
            Self::OursFirewall => "ours, host firewall of 200 rules",
        }
    }

    /// Its name in JSON.
    fn key(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Masquerade => "masquerade",
            Self::MasqueradeFirewall => "masquerade_firewall",
            Self::Flowtable => "flowtable",
            Self::FlowtableAcl => "flowtable_acl",
            Self::Stack => "stack",
            Self::Ours => "ours",
            Self::OursFirewall => "ours_firewall",
        }
    }
}

/// Nanoseconds a packet, each way; `None` where this kernel cannot.
struct Figure {
    setting: Setting,
    cost: Option<[f64; 2]>,
}

/// Measures everything and prints a table, or JSON.
///
/// # Errors
///
/// Without root, without the eBPF object, or if the kernel or `nft` refuses something.
pub(crate) fn run(args: &Args) -> Result<()> {
    let has_flowtable = gateway::has_flowtable()?;
    let mut gateways = Vec::new();
    for setting in Setting::ALL {
        let needs = matches!(setting, Setting::Flowtable | Setting::FlowtableAcl);
        if needs && !has_flowtable {
            eprintln!("{}: this kernel has no flowtable", setting.name());
            continue;
        }
        let gateway = Gateway::new(setting).with_context(|| setting.name())?;
        gateways.push((setting, gateway, Vec::new()));
    }
    for round in 0..=ROUNDS {
        for (setting, gateway, costs) in &mut gateways {
            let cost = gateway.measure().with_context(|| setting.name())?;
            // The first one warms the caches.
            if round > 0 {
                costs.push(cost);
            }
        }
    }
    let mut figures = Vec::new();
    for setting in Setting::ALL {
        let measured = gateways.iter().find(|(known, ..)| *known == setting);
        let cost = measured.map(|(_, _, costs)| {
            [0, 1].map(|way| median(costs.iter().map(|cost| cost[way]).collect()))
        });
        figures.push(Figure { setting, cost });
    }
    for (setting, gateway, _) in gateways {
        gateway.close().with_context(|| setting.name())?;
    }
    plot(&figures, &args.plot)?;
    if args.json {
        println!("{}", to_json(&figures));
    } else {
        print_table(&figures, &args.plot)?;
    }
    Ok(())
}

fn plot(figures: &[Figure], path: &Path) -> Result<()> {
    let group = |name, way: usize| Group {
        name,
        bars: figures
            .iter()
            .filter_map(|figure| Some((figure.setting.name(), figure.cost?[way])))
            .map(|(setting, cost)| (setting, cost, format!("{cost:.0} ns")))
            .collect(),
    };
    Bars {
        title: "A gateway's forwarding: cost of a packet",
        groups: vec![group("to the LAN", 0), group("to peers", 1)],
    }
    .write(path)
}

fn print_table(figures: &[Figure], plot: &Path) -> Result<()> {
    let both = |setting| {
        let figure = figures.iter().find(|figure| figure.setting == setting);
        figure
            .and_then(|figure| figure.cost)
            .map(|[to, from]| to + from)
    };
    let base = both(Setting::Masquerade).context("the baseline was not measured")?;
    ensure!(base > 0.0);
    println!("UDP of 100 bytes, 64 flows; ns a packet, with what host and system call take:\n");
    println!(
        "{:<45} {:>7} {:>9} {:>6} {:>14}",
        "", "to LAN", "to peers", "both", "of masquerade"
    );
    for Figure { setting, cost } in figures {
        let name = setting.name();
        match cost {
            Some([to, from]) => println!(
                "{name:<45} {to:>7.0} {from:>9.0} {:>6.0} {:>14.2}",
                to + from,
                (to + from) / base
            ),
            None => println!("{name:<45} not in this kernel"),
        }
    }
    println!("\nPlot: {}", plot.display());
    Ok(())
}

fn to_json(figures: &[Figure]) -> Value {
    let costs = |way: Option<usize>| -> Value {
        figures
            .iter()
            .map(|Figure { setting, cost }| {
                let cost = cost.map(|cost| match way {
                    Some(way) => cost[way],
                    None => cost[0] + cost[1],
                });
                (setting.key().to_owned(), json!(cost))
            })
            .collect()
    };
    json!({
        "bench": "forward",
        "both_ns": costs(None),
        "to_lan_ns": costs(Some(0)),
        "to_peers_ns": costs(Some(1)),
    })
}
