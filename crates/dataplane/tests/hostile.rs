//! Packets of hostile shapes through the overlay's and the forwarding programs: whatever comes, the
//! verdict is the model's, nothing but what has to be changed is changed, and nothing grows.
//!
//! `HOSTILE_PACKETS` sets how many packets, `HOSTILE_SEED` the first seed. A failure prints its seed.

mod common;
#[path = "hostile/expect.rs"]
mod expect;
#[path = "common/gateway.rs"]
mod gateway;
#[path = "common/random.rs"]
mod random;
#[path = "hostile/shapes.rs"]
mod shapes;

use std::{
    collections::BTreeMap,
    env, fs,
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use control_proto::tailcfg::{FilterRule, NetPortRange, PortRange};
use dataplane::{
    Direction, DropReason, Gso, Layer, Origin, PeerIndex, Program, Rule, Rules, Trial, TrialKind,
};
use ipnet::IpNet;
use packet::{
    SECOND,
    build::{Ip, fragments},
};
use policy::filter::{self, Filter, Local, Verdict};

use expect::{Expected, Table};
use gateway::{Flow, Gateway, OVERLAY_MTU, framed};
use random::Random;
use shapes::Shapes;

/// Packets that know of each other: what is remembered of one run is forgotten in the next.
const RUN: u64 = 2000;
/// Longer than any flow lives.
const BETWEEN_RUNS: u64 = 6 * 24 * 3600 * SECOND;
const THREADS: u64 = 2;
/// Flows at the end, more than the tables hold.
const FLOOD: u32 = 70_000;
/// Bytes of an Ethernet header, which the kernel wants of every frame for a run.
const ETHERNET: usize = 14;
/// By how much this process may grow between a tenth of the packets and the last.
const GROWTH_KIB: u64 = 16 << 10;

const NEXT: i32 = -1;
const DROP: i32 = 2;
const REDIRECT: i32 = 7;

#[test]
fn hostile_packets_are_judged_as_the_model_does_and_leave_nothing_behind() -> Result<()> {
    skip_without_bpf!();
    let number = |name, default| -> Result<u64> {
        env::var(name).map_or(Ok(default), |text| {
            text.parse().with_context(|| format!("{name}={text}"))
        })
    };
    let packets = number("HOSTILE_PACKETS", 20_000)?;
    let seed = number("HOSTILE_SEED", 1)?;
    let gateway = Gateway::new()?;
    let begin = Instant::now();
    let tally = gateway
        .namespace
        .enter(|| all(&gateway, seed, packets.div_ceil(RUN)))??;
    println!(
        "{} packets from seed {seed} in {:?}: {:?}",
        tally.packets,
        begin.elapsed(),
        tally.outcomes
    );
    println!("remembered at the end: {:?}", tally.remembered);
    if packets >= 20_000 {
        for outcome in ["untouched", "clamped", "leaves", "passes"] {
            let met = tally.outcomes.get(outcome).copied().unwrap_or_default();
            ensure!(met * 1000 >= tally.packets, "{outcome}: {met}");
        }
    }
    Ok(())
}

#[derive(Default)]
struct Tally {
    packets: u64,
    outcomes: BTreeMap<String, u64>,
    /// Entries of each table, of the fullest program.
    remembered: BTreeMap<&'static str, usize>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.packets += other.packets;
        for (outcome, count) in other.outcomes {
            *self.outcomes.entry(outcome).or_default() += count;
        }
        for (table, entries) in other.remembered {
            let most = self.remembered.entry(table).or_default();
            *most = entries.max(*most);
        }
    }
}

/// Shares the runs among threads, each with programs of its own.
fn all(gateway: &Gateway, seed: u64, runs: u64) -> Result<Tally> {
    let next = AtomicU64::new(0);
    let early = AtomicU64::new(0);
    let thread = || -> Result<Tally> {
        let mut bench = Bench::new(gateway)?;
        loop {
            let run = next.fetch_add(1, Ordering::Relaxed);
            if run == runs.div_ceil(10) {
                early.store(resident_kib()?, Ordering::Relaxed);
            }
            if run >= runs {
                return bench.end(RUN * runs / THREADS);
            }
            let replay = || format!("HOSTILE_SEED={} HOSTILE_PACKETS={RUN}", seed + run);
            if bench.run(seed + run, false).with_context(replay)? {
                continue;
            }
            // More or fewer were dropped for some reason than should have been: for which packet?
            bench.run(seed + run, true).with_context(replay)?;
            bail!("{}: the drops differ, once", replay());
        }
    };
    let mut tally = Tally::default();
    for part in common::on_threads(THREADS.min(runs), thread)? {
        tally.add(part);
    }
    let (early, late) = (early.into_inner(), resident_kib()?);
    ensure!(
        early == 0 || late < early + GROWTH_KIB,
        "from {early} to {late} KiB"
    );
    Ok(tally)
}

/// The memory of this process.
fn resident_kib() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("VmRSS")?.parse()?)
}

/// The programs, and what goes through them.
struct Bench<'a> {
    gateway: &'a Gateway,
    trial: Trial,
    flows: Vec<Flow>,
    /// When the next run may begin.
    end: u64,
    tally: Tally,
}

impl<'a> Bench<'a> {
    fn new(gateway: &'a Gateway) -> Result<Self> {
        let mut trial = Trial::load_as(TrialKind::FilterInVirtualTime)?;
        trial.enable_forwarding(OVERLAY_MTU)?;
        let any = ["0.0.0.0/0", "::/0"];
        let peers = any.map(|net| Ok((net.parse::<IpNet>()?, PeerIndex(1))));
        trial.set_peers(&peers.into_iter().collect::<Result<Vec<_>>>()?)?;
        Ok(Self {
            gateway,
            trial,
            flows: flows(),
            end: 0,
            tally: Tally::default(),
        })
    }

    /// One run. Returns whether as many packets were dropped for each reason as should have been;
    /// with `careful` it looks after each packet.
    fn run(&mut self, seed: u64, careful: bool) -> Result<bool> {
        let mut random = Random::new(seed);
        let setting = Setting::of(seed);
        self.trial.set_rules(&setting.rules)?;
        let mut model = Filter::new(
            setting.local,
            [].into_iter().collect(),
            filter::Rules::parse(&setting.texts, |_| Vec::new(), &[])?,
        );
        let mut now = self.end + BETWEEN_RUNS;
        let mut table = Table::default();
        self.offload(&mut table, now)?;
        let mut shapes = Shapes::new(self.flows.clone());
        let before = self.drops()?;
        let mut expected_drops = before.clone();
        let mut step = 0;
        while step < RUN {
            if random.one_in(8) {
                now += random.pause();
            }
            if random.one_in(25) {
                self.offload(&mut table, now)?;
            }
            let (direction, packet) = shapes.next(&mut random);
            let shot = Shot::new(&mut random, direction, packet);
            if !shot.can_run() {
                continue;
            }
            step += 1;
            self.trial.set_time(Duration::from_nanos(now))?;
            let dropped = self
                .shoot(&shot, &mut model, &mut table, now)
                .with_context(|| format!("packet {step}: {shot:02x?}"))?;
            if let Some((reason, packets)) = dropped {
                *expected_drops.entry((direction, reason)).or_default() += packets;
            }
            if careful {
                let drops = self.drops()?;
                ensure!(
                    drops == expected_drops,
                    "packet {step}: drops {drops:?} instead of {expected_drops:?}: {shot:02x?}"
                );
            }
        }
        self.end = now;
        Ok(self.drops()? == expected_drops)
    }

    /// Sends one through. Returns why the filter has to drop it, and as how many it counts.
    fn shoot(
        &mut self,
        shot: &Shot,
        model: &mut Filter,
        table: &mut Table,
        now: u64,
    ) -> Result<Option<(DropReason, u64)>> {
        let Shot {
            program,
            gso,
            ref frame,
            ..
        } = *shot;
        let verdict = match program {
            Program::Overlay(Direction::In) => model.inbound(frame, now),
            Program::Overlay(Direction::Out) => model.outbound(frame, now),
            _ => Verdict::Accept(filter::AcceptReason::Rule),
        };
        let device = match program {
            Program::Nic(_) => self.gateway.lan,
            _ => self.gateway.overlay,
        };
        let expected = match verdict {
            Verdict::Drop(_) => Expected::Untouched,
            Verdict::Accept(_) => shot.expected(table, now),
        };
        // A buffer that stands for several packets counts as those.
        let merged = match (program, verdict) {
            (Program::Overlay(direction), Verdict::Drop(reason)) if gso.size != 0 => {
                Some((direction, reason, self.trial.dropped(direction, reason)?))
            }
            _ => None,
        };
        let (result, out) = self.trial.transform(program, frame, gso, device)?;
        self.tally.packets += 1;
        if let Verdict::Drop(reason) = verdict {
            ensure!(
                result.verdict == DROP && out == *frame,
                "verdict {} instead of a drop: {reason:?}",
                result.verdict
            );
            *self.outcome(&format!("{reason:?}")) += 1;
            let packets = match merged {
                Some((direction, reason, before)) => {
                    let packets = self.trial.dropped(direction, reason)? - before;
                    ensure!(packets != 0, "{reason:?} was not counted");
                    packets
                }
                None => 1,
            };
            return Ok(Some((reason, packets)));
        }
        // A frame that leaves from the overlay has gained room for a link layer, one from a neighbour has
        // one of its own.
        let room = match program {
            Program::Nic(Layer::Ip) => 0,
            _ => ETHERNET,
        };
        let wanted = match expected {
            Expected::Leaves(_) => REDIRECT,
            Expected::Nonsense => result.verdict,
            _ => NEXT,
        };
        ensure!(
            result.verdict == wanted && [NEXT, DROP, REDIRECT].contains(&wanted),
            "verdict {}: {expected:?}",
            result.verdict
        );
        let name = match &expected {
            Expected::Untouched => {
                ensure!(out == *frame, "it was touched:\n{out:02x?}");
                if matches!(program, Program::Overlay(_)) {
                    "passes"
                } else {
                    "untouched"
                }
            }
            Expected::Clamped => {
                expect::check_clamped(frame, &out).with_context(|| format!("{out:02x?}"))?;
                "clamped"
            }
            Expected::Leaves(offload) => {
                let out = out.get(room..).context("too short")?;
                expect::check_leaves(shot.packet(), gso, offload, out)
                    .with_context(|| format!("{offload:?}\n{out:02x?}"))?;
                "leaves"
            }
            Expected::Nonsense => "nonsense",
        };
        *self.outcome(name) += 1;
        Ok(None)
    }

    fn outcome(&mut self, name: &str) -> &mut u64 {
        self.tally.outcomes.entry(name.to_owned()).or_default()
    }

    /// Has every flow go past the stack from `now` on.
    fn offload(&mut self, table: &mut Table, now: u64) -> Result<()> {
        for flow in &self.flows {
            let entries = [
                flow.outward(self.gateway.lan),
                flow.back(self.gateway.overlay),
            ];
            for entry in entries {
                self.trial.offload(&entry, Duration::from_nanos(now))?;
                table.insert(entry, now);
            }
        }
        Ok(())
    }

    fn drops(&self) -> Result<BTreeMap<(Direction, DropReason), u64>> {
        let drops = self.trial.drops()?.into_iter();
        Ok(drops
            .map(|(key, count)| (key, count.packets))
            .filter(|(_, packets)| *packets != 0)
            .collect())
    }

    /// Has every table of what is remembered filled from `flows` flows, half of them the peers' and half
    /// ours, and as many fragmented packets.
    fn flood(&mut self, flows: u32) -> Result<()> {
        self.trial.set_rules(&Setting::of(0).rules)?;
        for number in 0..flows {
            let [_, port, a, b] = number.to_be_bytes();
            let (port, group) = (1000 + u16::from(port), u16::from_be_bytes([a, b]));
            let peers: [IpAddr; 2] = [
                [100, 64, a, b].into(),
                [0xfd7a, 0x11, 0, 0, 0, 0, 0, group].into(),
            ];
            let hosts: [IpAddr; 2] = [[10, 77, 0, 2].into(), [0xfd77, 0, 0, 0, 0, 0, 0, 2].into()];
            for (peer, host) in peers.into_iter().zip(hosts) {
                let ip = Ip::new(peer, host).id(number);
                let whole = ip.udp(port, 53, &[0; 40]);
                let first = fragments(&whole, 32, number).swap_remove(0);
                let answer = ip.reversed().udp(54, port, &[0; 40]);
                for (direction, frame) in [
                    (Direction::In, whole),
                    (Direction::In, first),
                    (Direction::Out, answer),
                ] {
                    let program = Program::Overlay(direction);
                    let result = self.trial.run(program, &frame, Gso::default(), 1)?;
                    ensure!(result.verdict == NEXT, "verdict {}", result.verdict);
                }
            }
        }
        Ok(())
    }

    /// Looks at what is left: the programs make no entries in tables but those of bounded memory.
    fn end(mut self, packets: u64) -> Result<Tally> {
        // Beyond what the largest table holds, if there is time for it.
        let flows = u32::try_from(packets / 7).unwrap_or(u32::MAX).min(FLOOD);
        self.flood(flows)?;
        let offloaded = self.trial.offloaded()?.len();
        ensure!(
            offloaded <= 2 * self.flows.len(),
            "{offloaded} forwarded flows"
        );
        for (table, entries, most) in self.trial.remembered()? {
            ensure!(entries <= most as usize, "{entries} in {table}");
            let flooded = flows.min(most / 2) as usize;
            ensure!(entries >= flooded, "only {entries} in {table}");
            self.tally.remembered.insert(table, entries);
        }
        Ok(self.tally)
    }
}

/// Every kind of flow, each with and without translation, told apart by the peer's port.
fn flows() -> Vec<Flow> {
    (0..)
        .zip(Flow::all())
        .map(|(number, flow)| {
            let (mut peer, mut alias) = (flow.peer, flow.alias);
            peer.set_port(peer.port() + number);
            if alias == flow.peer {
                alias = peer;
            }
            Flow {
                peer,
                alias,
                ..flow
            }
        })
        .collect()
}

/// A frame on its way into a program.
#[derive(Debug)]
struct Shot {
    program: Program,
    gso: Gso,
    frame: Vec<u8>,
}

impl Shot {
    fn new(random: &mut Random, direction: Direction, packet: Vec<u8>) -> Self {
        let gso = Gso {
            size: if random.one_in(16) {
                random.pick(&[1, 536, 1000, 1220, 1400, 65_535])
            } else {
                0
            },
            segments: 0,
        };
        let kind = random.below(8);
        let (program, frame) = match direction {
            Direction::In if kind < 6 => (Program::Overlay(direction), packet),
            Direction::In => (Program::Forward(direction), packet),
            Direction::Out if kind < 3 => (Program::Overlay(direction), packet),
            Direction::Out if kind < 4 => (Program::Forward(direction), packet),
            Direction::Out if kind < 5 => (Program::Nic(Layer::Ip), packet),
            Direction::Out => {
                let mut frame = if packet.is_empty() {
                    Vec::new()
                } else {
                    framed(&packet)
                };
                if random.one_in(12) && !frame.is_empty() {
                    let at = random.below(ETHERNET);
                    frame[at] ^= 1 << random.below(8);
                }
                (Program::Nic(Layer::Ethernet), frame)
            }
        };
        Self {
            program,
            gso,
            frame,
        }
    }

    /// Whether the kernel takes it for a run: whatever program, it looks for the header of the type that
    /// Ethernet has there.
    fn can_run(&self) -> bool {
        let header = match self.frame.get(12..ETHERNET) {
            Some([0x08, 0x00]) => 20,
            Some([0x86, 0xdd]) => 40,
            Some(_) => 0,
            None => return false,
        };
        self.frame.len() >= ETHERNET + header
    }

    /// The packet in the frame.
    fn packet(&self) -> &[u8] {
        match self.program {
            Program::Nic(Layer::Ethernet) => &self.frame[ETHERNET..],
            _ => &self.frame,
        }
    }

    /// What has to become of it, once the filter lets it pass.
    fn expected(&self, table: &mut Table, now: u64) -> Expected {
        let packet = self.packet();
        match self.program {
            Program::Overlay(Direction::In) | Program::Forward(Direction::In) => {
                table.forward(packet, self.gso, Origin::Overlay, now)
            }
            Program::Overlay(Direction::Out) | Program::Forward(Direction::Out) => {
                if expect::may_be_clamped(packet, self.gso) {
                    Expected::Clamped
                } else {
                    Expected::Untouched
                }
            }
            Program::Nic(layer) => {
                let is_ours = layer == Layer::Ip || {
                    let (header, kind) = (&self.frame[..12], &self.frame[12..ETHERNET]);
                    let version = packet.first().map_or(0, |first| first >> 4);
                    let same = (kind == [0x08, 0x00] && version == 4)
                        || (kind == [0x86, 0xdd] && version == 6);
                    header[..6] == gateway::US && same
                };
                if is_ours {
                    table.forward(packet, self.gso, Origin::Lan, now)
                } else {
                    Expected::Untouched
                }
            }
            Program::Bare | Program::NextFlow => Expected::Untouched,
        }
    }
}

/// Sources, destinations, their ports, and protocols of a rule.
type Words<'a> = (&'a [&'a str], &'a [&'a str], PortRange, &'a [u8]);

/// Rules, in the words of both sides.
struct Setting {
    rules: Rules,
    local: Local,
    texts: Vec<FilterRule>,
}

impl Setting {
    /// Two that differ, so that nothing is known from one run to the next.
    fn of(seed: u64) -> Self {
        let ports = PortRange {
            first: 1000 + u16::from(seed % 2 == 1),
            last: 50_000,
        };
        let rules: [Words<'_>; 3] = [
            (
                &["100.64.0.0/10", "fd7a:11::/64"],
                &["10.77.0.0/24", "fd77::/64"],
                PortRange::ALL,
                &[1, 6, 17, 58],
            ),
            (&["100.64.0.0/28"], &["100.64.0.1/32"], ports, &[6, 17, 132]),
            (&["fd7a:11::/112"], &["fd7a:11::1/128"], ports, &[17, 47]),
        ];
        let nets = |texts: &[&str]| -> Vec<IpNet> {
            let nets = texts.iter().map(|text| text.parse().expect("a prefix"));
            nets.collect()
        };
        let addresses: Vec<IpAddr> = ["100.64.0.1", "fd7a:11::1"]
            .map(|text| text.parse().expect("an address"))
            .into();
        let routes = nets(&["10.77.0.0/24", "fd77::/64"]);
        Self {
            rules: Rules {
                rules: rules
                    .iter()
                    .map(|(sources, destinations, ports, protocols)| Rule {
                        sources: nets(sources).into(),
                        destinations: nets(destinations)
                            .into_iter()
                            .map(|net| {
                                let ports = dataplane::PortRange {
                                    first: ports.first,
                                    last: ports.last,
                                };
                                (net, ports)
                            })
                            .collect(),
                        protocols: protocols.to_vec(),
                        ..Rule::default()
                    })
                    .collect(),
                addresses: addresses.clone(),
                routes: routes.clone(),
                ..Rules::default()
            },
            local: Local {
                addresses,
                routes,
                ..Local::default()
            },
            texts: rules
                .iter()
                .map(|(sources, destinations, ports, protocols)| FilterRule {
                    src_ips: sources.iter().map(|net| (*net).to_owned()).collect(),
                    dst_ports: destinations
                        .iter()
                        .map(|net| NetPortRange {
                            ip: (*net).to_owned(),
                            ports: *ports,
                            ..NetPortRange::default()
                        })
                        .collect(),
                    ip_proto: protocols.iter().copied().map(i32::from).collect(),
                    ..FilterRule::default()
                })
                .collect(),
        }
    }
}
