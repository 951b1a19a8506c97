//! `acl`: what the packet filter costs each packet, by the number of rules, beside nftables.
//!
//! - *hit*, *miss*: the program alone in the kernel (`BPF_PROG_TEST_RUN`), a packet of a known flow and
//!   a request that no rule admits, less the program that only counts. Each is the median of five
//!   differences; the two programs run in turn.
//! - *flow*, *nft*: frames written into a TUN device, 3 072 allowed flows in turn, on top of the same
//!   path without any filter. A TUN device rather than veth, since the overlay has no link layer. All
//!   packets end at a blackhole route behind the filters. nftables: one rule a rule, and one set of
//!   concatenated intervals, from which elements that overlap are left out, for it refuses them.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use dataplane::{
    Dataplane, Direction, Gso, PeerIndex, PortRange, Program, Rule, Rules, Trial, TrialKind,
};
use ipnet::Ipv4Net;
use packet::build::{ACK, Ip, SYN};
use serde_json::{Value, json};
use testnet::Namespace;

use crate::{
    figures::median,
    plot::{Lines, Series},
};

const ROUNDS: usize = 5;
/// Runs of a program in a round.
const REPEAT: u32 = 200_000;
const FLOWS: usize = 3072;
const DEVICE: &str = "overlay0";
/// Elements that nft takes in one go without running out of netlink's buffer.
const ELEMENTS: usize = 500;

/// Options of the bench.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Numbers of rules.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1000, 10_000])]
    rules: Vec<usize>,
    /// Where the plot goes.
    #[arg(long, default_value = "bench/results/acl.svg")]
    plot: PathBuf,
}

/// By the number of rules.
type Costs = BTreeMap<usize, f64>;

/// Nanoseconds a packet.
#[derive(Debug, Default)]
struct Figures {
    hit: Costs,
    miss: Costs,
    flow: Costs,
    nft_linear: Costs,
    nft_set: Costs,
    /// The path without a filter.
    path: f64,
    /// Elements that nft's set refuses.
    left_out: BTreeMap<usize, usize>,
}

/// One rule: TCP from one network to another.
#[derive(Clone, Copy, Debug)]
struct Plain {
    source: Ipv4Net,
    destination: Ipv4Net,
    ports: PortRange,
}

/// Measures everything and prints a table, or JSON.
///
/// # Errors
///
/// Without root, without the eBPF object, or if the kernel or `nft` refuses something.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut figures = Figures::default();
    for count in &args.rules {
        let rules = plain_rules(*count);
        let (hit, miss) = programs(&rules)?;
        figures.hit.insert(*count, hit);
        figures.miss.insert(*count, miss);
    }
    let namespace = Namespace::new("acl")?;
    namespace.enter(|| paths(&namespace, args, &mut figures))??;
    plot(&figures, &args.plot)?;
    if args.json {
        println!("{}", to_json(&figures));
    } else {
        print_table(&figures, &args.plot);
    }
    Ok(())
}

/// xorshift64, so that every run measures the same rules.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as u32 % end
    }
}

/// Sources mostly hosts of the overlay, 64 destinations behind us, single ports, ranges and any.
fn plain_rules(count: usize) -> Vec<Plain> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let net = |address: u32, len: u8| Ipv4Net::new_assert(Ipv4Addr::from(address), len).trunc();
    let destinations: Vec<Ipv4Net> = (0..count.clamp(1, 64))
        .map(|_| {
            let len = [32, 24, 24, 16][random.below(4) as usize];
            net(0x0a00_0000 | random.below(1 << 24), len)
        })
        .collect();
    let rule = |_| {
        let lens = [32, 32, 32, 32, 32, 32, 32, 28, 24, 16];
        let len = lens[random.below(10) as usize];
        let source = net(0x6440_0000 | random.below(1 << 22), len);
        let first = 1 + random.below(60_000) as u16;
        let last = match random.below(10) {
            0..3 => first + random.below(5000) as u16,
            _ => first,
        };
        Plain {
            source,
            destination: destinations[random.below(destinations.len() as u32) as usize],
            ports: PortRange { first, last },
        }
    };
    (0..count).map(rule).collect()
}

fn to_rules(rules: &[Plain]) -> Rules {
    let rules = rules.iter().map(|rule| Rule {
        sources: [rule.source.into()].into(),
        destinations: vec![(rule.destination.into(), rule.ports)],
        protocols: vec![6],
        ..Rule::default()
    });
    Rules {
        rules: rules.collect(),
        addresses: vec![IpAddr::from([100, 64, 0, 1])],
        routes: vec![Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8).into()],
        ..Rules::default()
    }
}

/// A packet that the rule admits, of one of its flows.
fn admitted(rule: &Plain, flow: u32) -> Vec<u8> {
    let inside = |net: Ipv4Net| {
        let spread = flow & u32::from(net.hostmask());
        Ipv4Addr::from(u32::from(net.network()) | spread)
    };
    let (src, dst) = (inside(rule.source), inside(rule.destination));
    let from = 10_000 + (flow % 50_000) as u16;
    Ip::new(IpAddr::from(src), IpAddr::from(dst)).tcp(from, rule.ports.first, ACK, &[0; 24])
}

/// Costs of a hit and of a miss.
fn programs(rules: &[Plain]) -> Result<(f64, f64)> {
    let peers = [("100.64.0.0/10".parse()?, PeerIndex(1))];
    let mut counting = Trial::load().context("loading the eBPF programs")?;
    counting.set_peers(&peers)?;
    let mut filtering = Trial::load_as(TrialKind::Filter)?;
    filtering.set_peers(&peers)?;
    filtering.set_rules(&to_rules(rules))?;
    let mut beyond = |frames: &[Vec<u8>], verdict| -> Result<f64> {
        let mut differences = Vec::new();
        for _ in 0..ROUNDS {
            let base = mean(&mut counting, frames, -1)?;
            differences.push(mean(&mut filtering, frames, verdict)? - base);
        }
        Ok(median(differences))
    };
    let some = || rules.iter().step_by(rules.len().div_ceil(8));
    let hits: Vec<Vec<u8>> = some().map(|rule| admitted(rule, 0)).collect();
    // Above the ports that the rules name.
    let misses: Vec<Vec<u8>> = some()
        .map(|rule| {
            let (src, dst) = (rule.source.addr(), rule.destination.addr());
            Ip::new(IpAddr::from(src), IpAddr::from(dst)).tcp(40_000, 65_500, SYN, &[0; 24])
        })
        .collect();
    Ok((beyond(&hits, -1)?, beyond(&misses, 2)?))
}

/// Nanoseconds of one run, over all frames.
fn mean(trial: &mut Trial, frames: &[Vec<u8>], verdict: i32) -> Result<f64> {
    let program = Program::Overlay(Direction::In);
    let runs = REPEAT / u32::try_from(frames.len())?;
    let mut sum = 0.0;
    for frame in frames {
        let outcome = trial.run(program, frame, Gso::default(), runs)?;
        ensure!(outcome.verdict == verdict, "verdict {}", outcome.verdict);
        sum += outcome.duration.as_nanos() as f64;
    }
    Ok(sum / frames.len() as f64)
}

/// Costs on a real path; runs inside the namespace.
fn paths(namespace: &Namespace, args: &Args, figures: &mut Figures) -> Result<()> {
    let tun = testnet::tun(DEVICE)?;
    namespace.ip(&format!("address add 100.64.0.1/10 dev {DEVICE}"))?;
    namespace.ip(&format!("link set {DEVICE} up"))?;
    namespace.ip("route add blackhole 10.0.0.0/8")?;
    for name in ["all", DEVICE] {
        namespace.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0")?;
    }
    namespace.sysctl("net/ipv4/ip_forward", "1")?;
    let mut bare = Vec::new();
    for count in &args.rules {
        let rules = plain_rules(*count);
        let frames = frames(&rules, |_| true);
        let base = cost(&tun, &frames, ROUNDS)?;
        bare.push(base);

        let mut filter = Dataplane::attach(DEVICE, None)?;
        filter.set_peers(&[(
            "100.64.0.0/10".parse()?,
            dataplane::Peer::from(PeerIndex(1)),
        )])?;
        filter.set_rules(&to_rules(&rules))?;
        let flow = cost(&tun, &frames, ROUNDS)?;
        let dropped: u64 = filter.drops()?.values().map(|count| count.packets).sum();
        ensure!(dropped == 0, "the filter dropped {dropped} packets");
        filter.remove()?;
        figures.flow.insert(*count, flow - base);

        namespace.nft(&linear(&rules))?;
        // A packet takes more than half a millisecond there.
        let rounds = if *count > 1000 { 1 } else { ROUNDS };
        figures
            .nft_linear
            .insert(*count, cost(&tun, &frames, rounds)? - base);
        namespace.nft("flush ruleset")?;

        let apart = apart(&rules);
        figures.left_out.insert(*count, rules.len() - apart.len());
        for ruleset in sets(&apart) {
            namespace.nft(&ruleset)?;
        }
        let kept = self::frames(&apart, |_| true);
        figures
            .nft_set
            .insert(*count, cost(&tun, &kept, ROUNDS)? - base);
        namespace.nft("flush ruleset")?;
    }
    figures.path = median(bare);
    Ok(())
}

/// Packets of allowed flows.
fn frames(rules: &[Plain], keep: impl Fn(&Plain) -> bool) -> Vec<Vec<u8>> {
    let rules = rules.iter().filter(|rule| keep(rule)).cycle();
    rules
        .zip(0..FLOWS as u32)
        .map(|(rule, flow)| admitted(rule, flow))
        .collect()
}

/// Nanoseconds a frame: the median round, after one that warms the caches.
fn cost(mut tun: &File, frames: &[Vec<u8>], rounds: usize) -> Result<f64> {
    let mut round = || -> Result<f64> {
        let begin = Instant::now();
        for frame in frames {
            tun.write_all(frame)?;
        }
        Ok(begin.elapsed().as_nanos() as f64 / frames.len() as f64)
    };
    if rounds > 1 {
        round()?;
    }
    Ok(median((0..rounds).map(|_| round()).collect::<Result<_>>()?))
}

const HOOK: &str = "type filter hook prerouting priority 0; policy drop;";

fn ports(rule: &Plain) -> String {
    let PortRange { first, last } = rule.ports;
    if first == last {
        first.to_string()
    } else {
        format!("{first}-{last}")
    }
}

fn linear(rules: &[Plain]) -> String {
    let mut ruleset = format!("table ip bench {{\nchain in {{ {HOOK}\n");
    for rule in rules {
        let (source, destination, ports) = (rule.source, rule.destination, ports(rule));
        // To write into a string does not fail.
        let _ = writeln!(
            ruleset,
            "ip saddr {source} ip daddr {destination} tcp dport {ports} accept"
        );
    }
    ruleset + "}\n}\n"
}

/// Rules without those that overlap one before them.
fn apart(rules: &[Plain]) -> Vec<Plain> {
    let meet = |a: Ipv4Net, b: Ipv4Net| a.contains(&b) || b.contains(&a);
    let mut apart: Vec<Plain> = Vec::new();
    for rule in rules {
        let overlaps = apart.iter().any(|other| {
            meet(rule.source, other.source)
                && meet(rule.destination, other.destination)
                && rule.ports.first <= other.ports.last
                && other.ports.first <= rule.ports.last
        });
        if !overlaps {
            apart.push(*rule);
        }
    }
    apart
}

/// One set with these elements, in several goes.
fn sets(rules: &[Plain]) -> Vec<String> {
    let mut rulesets = vec![format!(
        "table ip bench {{\n\
         set allowed {{ type ipv4_addr . ipv4_addr . inet_service; flags interval; }}\n\
         chain in {{ {HOOK}\nip saddr . ip daddr . tcp dport @allowed accept\n}}\n}}\n"
    )];
    rulesets.extend(rules.chunks(ELEMENTS).map(|chunk| {
        let element =
            |rule: &Plain| format!("{} . {} . {}", rule.source, rule.destination, ports(rule));
        let elements: Vec<String> = chunk.iter().map(element).collect();
        format!(
            "add element ip bench allowed {{ {} }}\n",
            elements.join(", ")
        )
    }));
    rulesets
}

fn plot(figures: &Figures, path: &Path) -> Result<()> {
    let series = |name, costs: &Costs| Series {
        name,
        points: costs
            .iter()
            .map(|(count, ns)| (*count as f64, *ns))
            .collect(),
    };
    Lines {
        title: "Packet filter: cost of a packet on top of the path without one",
        x_label: "rules",
        y_label: "ns",
        series: vec![
            series("known flow, program", &figures.hit),
            series("no rule, program", &figures.miss),
            series("3072 flows, TUN", &figures.flow),
            series("nft, one set", &figures.nft_set),
            series("nft, linear", &figures.nft_linear),
        ],
    }
    .write(path)
}

fn print_table(figures: &Figures, plot: &Path) {
    println!(
        "Path without a filter: {:.0} ns a packet. On top of it, ns:\n",
        figures.path
    );
    println!(
        "{:>7} {:>7} {:>7} {:>7} {:>12} {:>9}  left out of the set",
        "rules", "hit", "miss", "flow", "nft linear", "nft set"
    );
    for (count, hit) in &figures.hit {
        println!(
            "{count:>7} {hit:>7.0} {:>7.0} {:>7.0} {:>12.0} {:>9.0}  {}",
            figures.miss[count],
            figures.flow[count],
            figures.nft_linear[count],
            figures.nft_set[count],
            figures.left_out[count],
        );
    }
    println!("\nPlot: {}", plot.display());
}

fn to_json(figures: &Figures) -> Value {
    let costs = |costs: &Costs| -> Value {
        costs
            .iter()
            .map(|(count, ns)| (count.to_string(), json!(ns)))
            .collect()
    };
    json!({
        "bench": "acl",
        "hit_ns": median(figures.hit.values().copied().collect()),
        "hit_by_rules_ns": costs(&figures.hit),
        "miss_ns": costs(&figures.miss),
        "flow_ns": costs(&figures.flow),
        "nft_linear_ns": costs(&figures.nft_linear),
        "nft_set_ns": costs(&figures.nft_set),
        "nft_set_left_out": figures.left_out.iter().map(|(count, left)| (count.to_string(), json!(left))).collect::<Value>(),
        "path_ns": figures.path,
    })
}
