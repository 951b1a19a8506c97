//! `acl`: what the packet filter costs each packet, by the number of rules, beside nftables.
//!
//! - *hit*, *miss*, *first*: the program alone in the kernel (`BPF_PROG_TEST_RUN`), less the program that
//!   only counts. A hit is a packet of a known flow; a miss is a request for a connection that no rule
//!   admits, so that each run looks for the flow and judges it in full; a first packet asks for one that no
//!   run before has asked for, from a million: it is judged, admitted and remembered, in memory that no
//!   cache holds. Each is the median of five rounds, and a round the median of many short runs, each paired
//!   with one of the counting program right before it.
//! - *flow*, *nft*: frames written into TUN devices, 3 072 allowed flows in turn, on top of the same path
//!   without any filter; *beyond counting*, on top of the path whose packets are only counted. TUN rather
//!   than veth, since the overlay has no link layer. All packets end at a blackhole route behind the
//!   filters. Each ruleset has a namespace and a device of its own, and every round writes all frames into
//!   two in turn: figures are medians of the differences in a round. nftables: a chain without rules, one
//!   rule a rule, and one set of concatenated intervals, from which elements that overlap are left out, for
//!   it refuses them.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::{Path as FsPath, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use dataplane::{
    Counters, Dataplane, Direction, Gso, PeerIndex, PortRange, Program, Rule, Rules, Trial,
    TrialKind,
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
/// Pairs of runs in a round.
const PAIRS: u32 = 48;
/// Packets in a run: less than the kernel lets a process work without a break.
const REPEAT: u32 = 4096;
const FLOWS: usize = 3072;
/// Rounds on a real path.
const PATH_ROUNDS: usize = 41;
/// The same where a packet takes more than ten microseconds.
const SLOW_ROUNDS: usize = 11;
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
    /// Leave out what takes nftables and real paths.
    #[arg(long)]
    programs: bool,
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
    first: Costs,
    flow: Costs,
    /// Of flow, what filtering adds to counting.
    filter: Costs,
    nft_empty: Costs,
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
        programs(*count, &mut figures)?;
        if !args.programs {
            paths(*count, &mut figures)?;
        }
    }
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

/// A request for a connection from this port to another, from the first address of the rule's source
/// to that of its destination.
fn request(rule: &Plain, from: u16, to: u16) -> Vec<u8> {
    let (src, dst) = (rule.source.addr(), rule.destination.addr());
    Ip::new(IpAddr::from(src), IpAddr::from(dst)).tcp(from, to, SYN, &[0; 24])
}

/// `TC_ACT_UNSPEC`, `TC_ACT_SHOT`.
const NEXT: i32 = -1;
const SHOT: i32 = 2;

/// Costs of the programs alone.
fn programs(count: usize, figures: &mut Figures) -> Result<()> {
    let rules = plain_rules(count);
    let peers = [("100.64.0.0/10".parse()?, PeerIndex(1))];
    let mut counting = Trial::load().context("loading the eBPF programs")?;
    counting.set_peers(&peers)?;
    let mut filtering = Trial::load_as(TrialKind::Filter)?;
    filtering.set_peers(&peers)?;
    filtering.set_rules(&to_rules(&rules))?;
    let some: Vec<Plain> = rules
        .iter()
        .step_by(rules.len().div_ceil(8))
        .copied()
        .collect();
    // Each run begins where the one before on the same rule has ended: no flow comes again before the
    // table is full of others.
    let turn = |run: u32| {
        let rule = &some[run as usize % some.len()];
        let from = (run / some.len() as u32).wrapping_mul(REPEAT) as u16;
        (rule, from)
    };
    let known = |run| admitted(turn(run).0, 0);
    // Above the ports that the rules name.
    let strange = |run| request(turn(run).0, 40_000, 65_500);
    let new = |run| request(turn(run).0, turn(run).1, turn(run).0.ports.first);
    let input = Program::Overlay(Direction::In);
    let mut cost = |program, frame: &dyn Fn(u32) -> Vec<u8>, verdict| {
        let mut rounds = Vec::new();
        for round in 0..ROUNDS as u32 {
            let mut differences = Vec::new();
            for pair in 0..PAIRS {
                let frame = frame(round * PAIRS + pair);
                let base = run_once(&mut counting, program, &frame, NEXT)?;
                differences.push(run_once(&mut filtering, program, &frame, verdict)? - base);
            }
            rounds.push(median(differences));
        }
        Ok::<_, anyhow::Error>(median(rounds))
    };
    figures.hit.insert(count, cost(input, &known, NEXT)?);
    figures.miss.insert(count, cost(input, &strange, SHOT)?);
    let first = cost(Program::NextFlow, &new, NEXT)?;
    figures.first.insert(count, first);
    Ok(())
}

/// Nanoseconds that a packet takes.
fn run_once(trial: &mut Trial, program: Program, frame: &[u8], verdict: i32) -> Result<f64> {
    let outcome = trial.run(program, frame, Gso::default(), REPEAT)?;
    ensure!(outcome.verdict == verdict, "verdict {}", outcome.verdict);
    Ok(outcome.duration.as_nanos() as f64)
}

/// A device whose packets go through one ruleset.
struct Path {
    tun: File,
    namespace: Namespace,
}

impl Path {
    fn new() -> Result<Self> {
        let namespace = Namespace::new("acl")?;
        let tun = namespace.enter(|| testnet::tun(DEVICE))??;
        namespace.ip(&format!("address add 100.64.0.1/10 dev {DEVICE}"))?;
        namespace.ip(&format!("link set {DEVICE} up"))?;
        namespace.ip("route add blackhole 10.0.0.0/8")?;
        for name in ["all", DEVICE] {
            namespace.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0")?;
        }
        namespace.sysctl("net/ipv4/ip_forward", "1")?;
        Ok(Self { tun, namespace })
    }

    /// Nanoseconds a frame.
    fn round(&self, frames: &[Vec<u8>]) -> Result<f64> {
        let mut tun = &self.tun;
        let begin = Instant::now();
        for frame in frames {
            tun.write_all(frame)?;
        }
        Ok(begin.elapsed().as_nanos() as f64 / frames.len() as f64)
    }
}

/// Costs on real paths.
fn paths(count: usize, figures: &mut Figures) -> Result<()> {
    let rules = plain_rules(count);
    let all = frames(&rules);
    let bare = Path::new()?;

    let peer = dataplane::Peer::from(PeerIndex(1));
    let peers = [("100.64.0.0/10".parse()?, peer)];
    let counting = Path::new()?;
    let mut counters = counting
        .namespace
        .enter(|| Counters::attach(DEVICE, None))??;
    counters.set_peers(&peers)?;
    let ours = Path::new()?;
    let mut filter = ours.namespace.enter(|| Dataplane::attach(DEVICE, None))??;
    filter.set_peers(&peers)?;
    filter.set_rules(&to_rules(&rules))?;

    let empty = Path::new()?;
    empty.namespace.nft(EMPTY)?;
    let linear = Path::new()?;
    linear.namespace.nft(&self::linear(&rules))?;
    let set = Path::new()?;
    let apart = apart(&rules);
    figures.left_out.insert(count, rules.len() - apart.len());
    for ruleset in sets(&apart) {
        set.namespace.nft(&ruleset)?;
    }
    let kept = frames(&apart);

    let rounds = if count > 1000 {
        SLOW_ROUNDS
    } else {
        PATH_ROUNDS
    };
    let others = [
        (&bare, &ours, &all, &mut figures.flow),
        (&counting, &ours, &all, &mut figures.filter),
        (&bare, &empty, &all, &mut figures.nft_empty),
        (&bare, &linear, &all, &mut figures.nft_linear),
        (&bare, &set, &kept, &mut figures.nft_set),
    ];
    let mut bases = Vec::new();
    for (baseline, path, frames, costs) in others {
        let mut differences = Vec::new();
        // The first round warms the caches.
        for round in 0..=rounds {
            let base = baseline.round(&all)?;
            let cost = path.round(frames)?;
            if round > 0 {
                if std::ptr::eq(baseline, &bare) {
                    bases.push(base);
                }
                differences.push(cost - base);
            }
        }
        costs.insert(count, median(differences));
    }
    figures.path = median(bases);
    // What the host itself sends, it may drop: solicitations of IPv6.
    let dropped: u64 = (filter.drops()?.into_iter())
        .filter(|((direction, _), _)| *direction == Direction::In)
        .map(|(_, count)| count.packets)
        .sum();
    ensure!(dropped == 0, "the filter dropped {dropped} packets");
    // A device goes with its namespace, and what is attached to it too.
    counting.namespace.enter(|| counters.remove())??;
    ours.namespace.enter(|| filter.remove())??;
    Ok(())
}

/// Packets of allowed flows.
fn frames(rules: &[Plain]) -> Vec<Vec<u8>> {
    let rules = rules.iter().cycle();
    rules
        .zip(0..FLOWS as u32)
        .map(|(rule, flow)| admitted(rule, flow))
        .collect()
}

const HOOK: &str = "type filter hook prerouting priority 0; policy drop;";
const EMPTY: &str =
    "table ip bench {\nchain in { type filter hook prerouting priority 0; policy accept; }\n}\n";

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

fn plot(figures: &Figures, path: &FsPath) -> Result<()> {
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
            series("first packet, program", &figures.first),
            series("3072 flows, TUN", &figures.flow),
            series("nft, one set", &figures.nft_set),
            series("nft, linear", &figures.nft_linear),
        ],
    }
    .write(path)
}

fn print_table(figures: &Figures, plot: &FsPath) {
    println!("The program, beyond counting, ns a packet:\n");
    println!(
        "{:>7} {:>7} {:>7} {:>13}",
        "rules", "hit", "miss", "first packet"
    );
    for (count, hit) in &figures.hit {
        println!(
            "{count:>7} {hit:>7.0} {:>7.0} {:>13.0}",
            figures.miss[count], figures.first[count]
        );
    }
    if !figures.flow.is_empty() {
        println!(
            "\nA path through a TUN device without a filter: {:.0} ns a packet. On top of it:\n",
            figures.path
        );
        println!(
            "{:>7} {:>7} {:>16} {:>10} {:>12} {:>9}  left out of the set",
            "rules", "flow", "beyond counting", "nft empty", "nft linear", "nft set"
        );
    }
    for (count, flow) in &figures.flow {
        println!(
            "{count:>7} {flow:>7.0} {:>16.0} {:>10.0} {:>12.0} {:>9.0}  {}",
            figures.filter[count],
            figures.nft_empty[count],
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
        "first_ns": costs(&figures.first),
        "flow_ns": costs(&figures.flow),
        "flow_beyond_counting_ns": costs(&figures.filter),
        "nft_empty_ns": costs(&figures.nft_empty),
        "nft_linear_ns": costs(&figures.nft_linear),
        "nft_set_ns": costs(&figures.nft_set),
        "nft_set_left_out": figures.left_out.iter().map(|(count, left)| (count.to_string(), json!(left))).collect::<Value>(),
        "path_ns": figures.path,
    })
}
