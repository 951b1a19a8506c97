//! The filtering programs against the reference model of `policy`: random policies, random packets in
//! virtual time, the same verdict and the same reason for each.
//!
//! `FILTER_POLICIES` sets how many policies, `FILTER_PACKETS` how many packets for each, `FILTER_SEED` the
//! first seed; a failure prints its seed.

mod common;
#[path = "common/random.rs"]
mod random;

use std::{
    collections::BTreeMap,
    env,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use control_proto::tailcfg::{FilterRule, NetPortRange, PortRange};
use dataplane::{
    Direction, DropReason, Gso, Peer, PeerIndex, Program, Rule, Rules, Trial, TrialKind,
};
use ipnet::IpNet;
use packet::{
    Datagram, Family, Packet, SECOND,
    build::{ACK, FIN, Ip, RST, SYN, fragments},
    parse,
};
use policy::filter::{self, AcceptReason, Filter, Local, PeerApi, Verdict};
use random::{Random, v4, v6};

const PACKETS: u64 = 100;
const THREADS: u64 = 16;
/// Longer than any flow lives.
const BETWEEN_POLICIES: u64 = 6 * 24 * 3600 * SECOND;
/// The shortest frame that the kernel takes for a run.
const SHORTEST: usize = 14;

#[test]
fn programs_and_model_agree() -> Result<()> {
    skip_without_bpf!();
    let number = |name, default| -> Result<u64> {
        env::var(name).map_or(Ok(default), |text| {
            text.parse().with_context(|| format!("{name}={text}"))
        })
    };
    let policies = number("FILTER_POLICIES", 1000)?;
    let seed = number("FILTER_SEED", 1)?;
    let packets = number("FILTER_PACKETS", PACKETS)?;
    let next = AtomicU64::new(0);
    let threads = AtomicU64::new(0);
    // Each with programs of its own. To change rules waits for the kernel: many may wait at once.
    let run = || -> Result<Tally> {
        // Rule tables have two forms; every policy of a thread has the one or the other.
        let mut trial = Trial::load_as(TrialKind::FilterInVirtualTime)?;
        if threads.fetch_add(1, Ordering::Relaxed).is_multiple_of(4) {
            trial.limit_pairs(0);
        }
        let mut tally = Tally::default();
        let mut end = 0u64;
        loop {
            let policy = next.fetch_add(1, Ordering::Relaxed);
            if policy >= policies {
                return Ok(tally);
            }
            // Keys of peers expire at whole seconds.
            let begin = end.next_multiple_of(SECOND) + BETWEEN_POLICIES;
            end = compare(&mut trial, (seed + policy, packets), begin, &mut tally).with_context(
                || {
                    let seed = seed + policy;
                    format!("FILTER_SEED={seed} FILTER_POLICIES=1 FILTER_PACKETS={packets}")
                },
            )?;
        }
    };
    let mut tally = Tally::default();
    for part in common::on_threads(THREADS.min(policies), run)? {
        tally.add(part);
    }
    println!(
        "{policies} policies from seed {seed}: {} packets, {} accepted; dropped: {:?}",
        tally.packets, tally.accepted, tally.dropped
    );
    if policies >= 1000 {
        ensure!(tally.accepted * 10 >= tally.packets * 3, "too few accepted");
        for reason in DropReason::ALL {
            let met = tally.dropped.get(&reason).copied().unwrap_or_default();
            ensure!(met >= 100 || reason == DropReason::NoPolicy, "{reason:?}");
        }
    }
    Ok(())
}

/// Every form of packet, cut at every byte: the programs read what the model reads.
#[test]
fn programs_and_model_agree_on_packets_cut_anywhere() -> Result<()> {
    skip_without_bpf!();
    let any = |ip: &str| (ip.to_owned(), PortRange::ALL);
    let setting = Setting {
        texts: vec![Text {
            sources: vec!["*".to_owned()],
            capable: false,
            destinations: vec![any("*")],
            protocols: vec![1, 2, 6, 17, 47, 58, 132],
        }],
        local: Local {
            addresses: vec![OURS[0][0], OURS[1][0]],
            ..Local::default()
        },
        peers: Vec::new(),
    };
    let mut trial = Trial::load_as(TrialKind::FilterInVirtualTime)?;
    trial.set_rules(&setting.rules())?;
    let mut model = Filter::new(
        setting.local.clone(),
        [].into_iter().collect(),
        setting.model_rules()?,
    );
    let mut now = BETWEEN_POLICIES;
    let mut runs = 0;
    for family in 0..2 {
        for (direction, frame) in shapes(OURS[family][0], THEIRS[family][0]) {
            for end in (SHORTEST..=frame.len()).rev() {
                now += SECOND / 3;
                agree(&mut trial, &mut model, direction, &frame[..end], now)?;
                runs += 1;
            }
        }
    }
    println!("{runs} cut packets");
    Ok(())
}

/// Judges a frame by both.
fn agree(
    trial: &mut Trial,
    model: &mut Filter,
    direction: Direction,
    frame: &[u8],
    now: u64,
) -> Result<()> {
    let expected = match direction {
        Direction::In => model.inbound(frame, now),
        Direction::Out => model.outbound(frame, now),
    };
    trial.set_time(Duration::from_nanos(now))?;
    let before = trial.drops()?;
    let outcome = trial.run(Program::Overlay(direction), frame, Gso::default(), 1)?;
    let mut dropped = trial.drops()?;
    dropped.retain(|key, count| before[key] != *count);
    let dropped: Vec<_> = dropped.into_keys().collect();
    let agrees = match expected {
        Verdict::Accept(_) => outcome.verdict == -1 && dropped.is_empty(),
        Verdict::Drop(reason) => outcome.verdict == 2 && dropped == [(direction, reason)],
    };
    ensure!(
        agrees,
        "{direction:?}: model {expected:?}, program {}, {dropped:?}\n{frame:02x?}",
        outcome.verdict
    );
    Ok(())
}

/// Packets of every form that the filter tells from others, inbound and outbound.
fn shapes(ours: IpAddr, theirs: IpAddr) -> Vec<(Direction, Vec<u8>)> {
    let own_icmp = if ours.is_ipv4() { 1 } else { 58 };
    let mut shapes = Vec::new();
    for direction in Direction::ALL {
        let ip = || match direction {
            Direction::In => Ip::new(theirs, ours),
            Direction::Out => Ip::new(ours, theirs),
        };
        let long = || match ours {
            IpAddr::V4(_) => ip().options(&[1; 8]),
            IpAddr::V6(_) => ip().extension(60, &[0; 6]).extension(43, &[0; 14]),
        };
        let whole = ip().tcp(40_000, 22, SYN, &[0; 9]);
        let mut frames = vec![
            ip().tcp(40_000, 22, ACK, &[0; 9]),
            ip().udp(40_000, 53, &[0; 20]),
            ip().sctp(40_000, 53, &[0; 20]),
            ip().echo_request(7, 1, &[0; 9]),
            ip().echo_reply(7, 1, &[0; 9]),
            ip().icmp(13, 0, [0; 4], &[0; 9]),
            ip().unreachable(&whole, 48.min(whole.len())),
            ip().too_big(&whole, 1280),
            ip().raw(2, &[0; 12]),
            ip().raw(47, &[0; 12]),
            ip().raw(59 - own_icmp, &[0; 12]),
            ip().tsmp(&[b'A'; 12]),
            long().tcp(40_000, 23, SYN, &[0; 9]),
            long().udp(40_000, 54, &[0; 9]),
            whole,
        ];
        frames.extend(fragments(&ip().udp(1, 53, &[0; 300]), 128, 5));
        frames.extend(fragments(&ip().tcp(1, 22, SYN, &[0; 300]), 128, 6));
        shapes.extend(frames.into_iter().map(|frame| (direction, frame)));
    }
    shapes
}

#[derive(Default)]
struct Tally {
    packets: u64,
    accepted: u64,
    dropped: BTreeMap<DropReason, u64>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.accepted += other.accepted;
        for (reason, count) in other.dropped {
            *self.dropped.entry(reason).or_default() += count;
        }
    }
}

/// Runs one random policy and its packets through both. Returns the time of the last.
fn compare(
    trial: &mut Trial,
    (seed, packets): (u64, u64),
    begin: u64,
    tally: &mut Tally,
) -> Result<u64> {
    let mut random = Random::new(seed);
    let mut setting = Setting::random(&mut random, begin);
    let peers = setting.peers.clone();
    set_peers(trial, &peers)?;
    trial.set_expiry(setting.local.expires.map(Duration::from_nanos))?;
    trial.set_rules(&setting.rules())?;
    let mut model = Filter::new(
        setting.local.clone(),
        peers.iter().copied().collect(),
        setting.model_rules()?,
    );

    let mut now = begin;
    let mut traffic = Traffic::default();
    let mut hits = BTreeMap::new();
    // A policy changes as often, however many packets it judges: that takes longer than the packets.
    let change = 40 * packets.div_ceil(PACKETS) as usize;
    for step in 0..packets {
        if random.one_in(change) {
            let before = setting.rules();
            setting.change(&mut random);
            if setting.rules() != before {
                trial.set_rules(&setting.rules())?;
                hits.clear();
                model.set_rules(setting.model_rules()?);
                model.set_local(setting.local.clone());
            }
        }
        now += random.pause();
        let (direction, frame) = traffic.next(&mut random);
        if frame.len() < SHORTEST {
            continue;
        }
        let expected = match direction {
            Direction::In => model.inbound(&frame, now),
            Direction::Out => model.outbound(&frame, now),
        };
        let reason = match expected {
            Verdict::Accept(_) => None,
            Verdict::Drop(reason) => Some(reason),
        };
        trial.set_time(Duration::from_nanos(now))?;
        let counted = |trial: &Trial| reason.map(|reason| trial.dropped(direction, reason));
        let before = counted(trial).transpose()?;
        let program = Program::Overlay(direction);
        let outcome = trial.run(program, &frame, Gso::default(), 1)?;
        let after = counted(trial).transpose()?;
        let agrees = match (before, after) {
            (Some(before), Some(after)) => outcome.verdict == 2 && after == before + 1,
            _ => outcome.verdict == -1,
        };
        ensure!(
            agrees,
            "packet {step}, {direction:?} at {} ns: model {expected:?}, program {}, drops {:?}\n\
             {frame:02x?}\n{:?}",
            now - begin,
            outcome.verdict,
            trial
                .drops()?
                .into_iter()
                .filter(|(_, count)| count.packets != 0)
                .collect::<Vec<_>>(),
            setting,
        );
        check_hits(trial, &model, expected, &frame, &mut hits)
            .with_context(|| format!("packet {step}: {frame:02x?}\n{setting:?}"))?;
        tally.packets += 1;
        match reason {
            Some(reason) => *tally.dropped.entry(reason).or_default() += 1,
            None => tally.accepted += 1,
        }
    }
    Ok(now)
}

/// Checks that an accepted packet counts for the first rule of the model that admits it, if that is
/// why it passes, and that nothing else counts.
fn check_hits(
    trial: &Trial,
    model: &Filter,
    verdict: Verdict,
    frame: &[u8],
    hits: &mut BTreeMap<usize, u64>,
) -> Result<()> {
    let mut found: BTreeMap<usize, u64> = BTreeMap::new();
    for rule in trial.rule_hits()? {
        *found.entry(rule.id as usize).or_default() += rule.count.packets;
    }
    found.retain(|_, packets| *packets != 0);
    match verdict {
        // It counts for the first fragment's rule, which the model does not remember.
        Verdict::Accept(AcceptReason::Fragment) => hits.clone_from(&found),
        Verdict::Accept(AcceptReason::Rule) => {
            let rule = match parse(frame) {
                Ok(Packet::V4(datagram)) => first_rule(model, &datagram),
                Ok(Packet::V6(datagram)) => first_rule(model, &datagram),
                Err(reason) => bail!("{reason:?}"),
            };
            *hits.entry(rule.context("no rule admits it")?).or_default() += 1;
        }
        _ => {}
    }
    ensure!(found == *hits, "hits {found:?} instead of {hits:?}");
    Ok(())
}

fn first_rule<A: Family + Into<IpAddr>>(model: &Filter, datagram: &Datagram<A>) -> Option<usize> {
    let flow = datagram.flow(Direction::In);
    let port = flow.map_or(0, |flow| u16::from_be_bytes(flow.our_port));
    let (src, dst) = (datagram.src.into(), datagram.dst.into());
    model.rules().admitting(datagram.protocol, src, dst, port)
}

fn set_peers(trial: &mut Trial, peers: &[(IpNet, filter::Peer)]) -> Result<()> {
    let peers: Vec<_> = (1..)
        .zip(peers)
        .map(|(index, (net, peer))| {
            let peer = Peer {
                index: PeerIndex(index),
                jailed: peer.jailed,
                expires: peer.expires.map(Duration::from_nanos),
            };
            (*net, peer)
        })
        .collect();
    trial.set_peers(&peers)?;
    Ok(())
}

/// Addresses on our side: own, a service, behind us, not ours, and such as nobody may send to.
const OURS: [&[IpAddr]; 2] = [
    &[
        v4(100, 64, 0, 1),
        v4(100, 64, 0, 1),
        v4(100, 64, 0, 1),
        v4(100, 64, 0, 9),
        v4(10, 1, 2, 3),
        v4(10, 1, 200, 1),
        v4(192, 168, 7, 7),
        v4(10, 2, 0, 1),
        v4(224, 0, 0, 251),
        v4(169, 254, 1, 1),
        v4(169, 254, 169, 254),
    ],
    &[
        v6(1, 1),
        v6(1, 1),
        v6(1, 1),
        v6(1, 9),
        v6(2, 3),
        v6(2, 0x103),
        v6(3, 7),
        v6(4, 1),
        IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
        IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
    ],
];

/// Addresses on the other side; the last is nobody's.
const THEIRS: [&[IpAddr]; 2] = [
    &[
        v4(100, 64, 0, 2),
        v4(100, 64, 0, 3),
        v4(100, 64, 0, 4),
        v4(100, 64, 0, 18),
        v4(172, 16, 0, 5),
        v4(8, 8, 8, 8),
    ],
    &[
        v6(1, 2),
        v6(1, 3),
        v6(1, 4),
        v6(1, 0x12),
        v6(5, 5),
        v6(9, 8),
    ],
];

/// What rules name besides single addresses.
const NETS: [&str; 12] = [
    "*",
    "100.64.0.0/28",
    "100.64.0.0/16",
    "10.1.0.0/16",
    "10.0.0.0/8",
    "192.168.7.0/24",
    "172.16.0.0/24",
    "fd7a:1::/64",
    "fd7a:2::/112",
    "fd7a:2::/32",
    "fd7a::/16",
    "fd7a:5::/64",
];

const PORTS: [u16; 9] = [0, 22, 53, 80, 443, 5000, 40_000, 40_001, 65_535];
const PEER_API: PeerApi = PeerApi {
    v4: Some(5000),
    v6: Some(443),
};

/// A rule, before it is said in the words of either side.
#[derive(Clone, Debug)]
struct Text {
    sources: Vec<String>,
    capable: bool,
    destinations: Vec<(String, PortRange)>,
    protocols: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Setting {
    texts: Vec<Text>,
    local: Local,
    peers: Vec<(IpNet, filter::Peer)>,
}

/// Who has the capability that some rules name.
fn capable() -> Vec<IpAddr> {
    vec![THEIRS[0][1], THEIRS[1][1], THEIRS[0][4]]
}

impl Setting {
    fn random(random: &mut Random, begin: u64) -> Self {
        let count = random.below(9);
        let texts = (0..count).map(|_| Text::random(random)).collect();
        let mut routes = vec![
            "10.1.0.0/16",
            "192.168.7.0/24",
            "fd7a:2::/64",
            "fd7a:3::/64",
        ];
        routes.truncate(random.below(5));
        let routes = routes.into_iter().map(|net| net.parse().expect("a prefix"));
        let expires = |random: &mut Random, chance| {
            let after = random.below(400) as u64 * SECOND;
            random.one_in(chance).then_some(begin + after)
        };
        let local = Local {
            addresses: vec![OURS[0][0], OURS[1][0]],
            services: vec![OURS[0][3], OURS[1][3]],
            routes: routes.collect(),
            shields_up: random.one_in(20),
            peer_api: PEER_API,
            expires: expires(random, 20),
            ..Local::default()
        };
        let mut peers = Vec::new();
        for pair in THEIRS[0][..5].iter().zip(&THEIRS[1][..5]) {
            let peer = filter::Peer {
                jailed: random.one_in(12),
                expires: expires(random, 20),
            };
            peers.push((IpNet::from(*pair.0), peer));
            peers.push((IpNet::from(*pair.1), peer));
        }
        let subnet = filter::Peer {
            jailed: random.one_in(12),
            expires: None,
        };
        peers.push(("172.16.0.0/16".parse().expect("a prefix"), subnet));
        peers.push(("fd7a::/20".parse().expect("a prefix"), subnet));
        Self {
            texts,
            local,
            peers,
        }
    }

    /// Changes something that takes effect with the next packet.
    fn change(&mut self, random: &mut Random) {
        match random.below(4) {
            0 => self.local.shields_up ^= true,
            1 => self.texts.clear(),
            2 if !self.local.routes.is_empty() => {
                self.local.routes.pop();
            }
            _ => self.texts.push(Text::random(random)),
        }
    }

    fn model_rules(&self) -> Result<filter::Rules> {
        let rules: Vec<_> = self.texts.iter().map(Text::on_the_wire).collect();
        Ok(filter::Rules::parse(&rules, |_| capable(), &[])?)
    }

    fn rules(&self) -> Rules {
        let services = self.local.services.iter().map(|address| (*address).into());
        Rules {
            rules: (0..)
                .zip(&self.texts)
                .flat_map(|(id, text)| text.rules(id))
                .collect(),
            addresses: self.local.addresses.clone(),
            routes: self.local.routes.iter().copied().chain(services).collect(),
            shields_up: self.local.shields_up,
            peer_api: [PEER_API.v4, PEER_API.v6],
        }
    }
}

impl Text {
    fn random(random: &mut Random) -> Self {
        let address = |random: &mut Random, of: &[&[IpAddr]; 2]| match random.below(3) {
            0 => random.pick(&NETS).to_owned(),
            1 => random.pick(of[0]).to_string(),
            _ => random.pick(of[1]).to_string(),
        };
        let mut destinations = Vec::new();
        for _ in 0..1 + random.below(3) {
            let name = address(random, &OURS);
            // Now and then more ranges than stand beside each other.
            let ranges = if random.one_in(6) { 12 } else { 1 };
            for number in 0..ranges {
                let first = random.pick(&PORTS).saturating_add(number);
                let last = first.saturating_add(random.pick(&[0, 0, 1, 500]));
                let some = PortRange { first, last };
                let ports = if ranges == 1 {
                    random.pick(&[PortRange::ALL, some])
                } else {
                    some
                };
                destinations.push((name.clone(), ports));
            }
        }
        let lists: [&[u8]; 9] = [
            &[1, 6, 17, 58],
            &[1, 6, 17, 58],
            &[6],
            &[17],
            &[6, 17],
            &[132],
            &[47, 6],
            &[1],
            &[58, 47],
        ];
        Self {
            sources: (0..1 + random.below(3))
                .map(|_| address(random, &THEIRS))
                .collect(),
            capable: random.one_in(6),
            destinations,
            protocols: random.pick(&lists).to_vec(),
        }
    }

    fn on_the_wire(&self) -> FilterRule {
        let mut src_ips = self.sources.clone();
        if self.capable {
            src_ips.push("cap:example.com/some".to_owned());
        }
        let destinations = self.destinations.iter();
        FilterRule {
            src_ips,
            dst_ports: destinations
                .map(|(ip, ports)| NetPortRange {
                    ip: ip.clone(),
                    ports: *ports,
                    ..NetPortRange::default()
                })
                .collect(),
            ip_proto: self
                .protocols
                .iter()
                .map(|number| i32::from(*number))
                .collect(),
            ..FilterRule::default()
        }
    }

    /// The rule, and what a capability admits: nothing but ports and echoes.
    fn rules(&self, id: u32) -> Vec<Rule> {
        let nets = |text: &String| -> Vec<IpNet> {
            if text == "*" {
                return vec![
                    "0.0.0.0/0".parse().expect("a prefix"),
                    "::/0".parse().expect("a prefix"),
                ];
            }
            let address = text.parse::<IpAddr>().map(IpNet::from);
            vec![address.unwrap_or_else(|_| text.parse().expect("a prefix"))]
        };
        let mut destinations = Vec::new();
        for (text, ports) in &self.destinations {
            let ports = dataplane::PortRange {
                first: ports.first,
                last: ports.last,
            };
            destinations.extend(nets(text).into_iter().map(|net| (net, ports)));
        }
        let mut rules = vec![Rule {
            sources: self.sources.iter().flat_map(nets).collect(),
            destinations: destinations.clone(),
            protocols: self.protocols.clone(),
            id,
        }];
        if self.capable {
            let with_ports = self.protocols.iter().copied();
            let sources: Arc<[IpNet]> = capable().into_iter().map(IpNet::from).collect();
            rules.push(Rule {
                sources,
                destinations,
                protocols: with_ports
                    .filter(|number| [6, 17, 132].contains(number))
                    .collect(),
                id,
            });
        }
        rules
    }
}

/// Packets that have to do with each other.
#[derive(Default)]
struct Traffic {
    past: Vec<(Direction, Conversation, Vec<u8>)>,
    pending: Vec<(Direction, Vec<u8>)>,
}

/// Both ends and what they speak.
#[derive(Clone, Copy)]
struct Conversation {
    ours: IpAddr,
    theirs: IpAddr,
    our_port: u16,
    their_port: u16,
    protocol: u8,
}

impl Traffic {
    fn next(&mut self, random: &mut Random) -> (Direction, Vec<u8>) {
        if let Some(fragment) = self.pending.pop() {
            return fragment;
        }
        let (direction, frame) = self.whole(random);
        match random.below(24) {
            0 => {
                let mut parts =
                    fragments(&frame, random.pick(&[64, 96, 128]), random.below(3) as u32);
                if !parts.is_empty() && random.one_in(4) {
                    let lost = random.below(parts.len());
                    parts.remove(lost);
                }
                if random.one_in(6) {
                    parts.reverse();
                }
                self.pending = parts
                    .into_iter()
                    .rev()
                    .map(|part| (direction, part))
                    .collect();
                self.pending.pop().unwrap_or((direction, frame))
            }
            1 => {
                let mut frame = frame;
                // Often the first byte, which most depends on.
                let most = random.pick(&[1, 80, 80, 80]);
                let at = random.below(frame.len().min(most));
                frame[at] = random.below(256) as u8;
                (direction, frame)
            }
            2 => (direction, frame[..random.below(frame.len())].to_vec()),
            _ => (direction, frame),
        }
    }

    fn whole(&mut self, random: &mut Random) -> (Direction, Vec<u8>) {
        let known = !self.past.is_empty() && !random.one_in(3);
        let (before, conversation, frame) = if known {
            let index = random.below(self.past.len());
            let (direction, conversation, frame) = &self.past[index];
            (Some(*direction), *conversation, frame.clone())
        } else {
            (None, Conversation::random(random), Vec::new())
        };
        let direction = match before {
            Some(Direction::In) if !random.one_in(4) => Direction::Out,
            Some(Direction::Out) if !random.one_in(4) => Direction::In,
            Some(direction) => direction,
            None => random.pick(&[Direction::In, Direction::In, Direction::Out]),
        };
        let packet = match before {
            Some(_) if random.one_in(6) => error_about(random, direction, &conversation, &frame),
            _ => conversation.packet(random, direction),
        };
        self.past.push((direction, conversation, packet.clone()));
        (direction, packet)
    }
}

impl Conversation {
    fn random(random: &mut Random) -> Self {
        let family = random.below(2);
        let icmp = [1, 58][family];
        Self {
            ours: random.pick(OURS[family]),
            theirs: random.pick(THEIRS[family]),
            our_port: random.pick(&PORTS),
            their_port: random.pick(&PORTS),
            protocol: random.pick(&[6, 6, 6, 17, 17, 132, icmp, icmp, 47, 59 - icmp, 99, 2, 255]),
        }
    }

    fn header(&self, direction: Direction) -> Ip {
        match direction {
            Direction::In => Ip::new(self.theirs, self.ours),
            Direction::Out => Ip::new(self.ours, self.theirs),
        }
    }

    fn packet(&self, random: &mut Random, direction: Direction) -> Vec<u8> {
        let mut ip = self.header(direction);
        if random.one_in(12) {
            ip = match self.ours {
                IpAddr::V4(_) => ip.options(&[1; 8]),
                IpAddr::V6(_) => {
                    let body = random.pick(&[&[0; 6][..], &[0; 14], &[0; 126]]);
                    for _ in 0..random.below(6) {
                        ip = ip.extension(random.pick(&[60, 60, 60, 43, 0, 135]), body);
                    }
                    ip
                }
            };
        }
        let (src, dst) = match direction {
            Direction::In => (self.their_port, self.our_port),
            Direction::Out => (self.our_port, self.their_port),
        };
        let payload = [0; 200];
        let payload = &payload[..random.below(200)];
        match self.protocol {
            6 => {
                let flags = [SYN, SYN, ACK, ACK, SYN | ACK, RST, FIN | ACK, 0];
                ip.tcp(src, dst, random.pick(&flags), payload)
            }
            17 => ip.udp(src, dst, payload),
            132 => ip.sctp(src, dst, payload),
            1 | 58 if (self.protocol == 1) == self.ours.is_ipv4() => match random.below(8) {
                0..4 => ip.echo_request(self.our_port, 1, payload),
                4..7 => ip.echo_reply(self.our_port, 1, payload),
                _ => ip.icmp(random.pick(&[13, 5, 135, 130]), 0, [0; 4], payload),
            },
            99 => ip.tsmp(&[b'A'; 12]),
            number => ip.raw(number, payload),
        }
    }
}

/// An ICMP error, from anybody, about a packet that may have been sent.
fn error_about(
    random: &mut Random,
    direction: Direction,
    conversation: &Conversation,
    frame: &[u8],
) -> Vec<u8> {
    let family = usize::from(conversation.ours.is_ipv6());
    let from = Conversation {
        theirs: if random.one_in(2) {
            conversation.theirs
        } else {
            random.pick(THEIRS[family])
        },
        ..*conversation
    };
    let ip = from.header(direction);
    let quoted = random.pick(&[20, 28, 48, 64, 128, 1000]).min(frame.len());
    if random.one_in(2) {
        ip.unreachable(frame, quoted)
    } else {
        ip.too_big(&frame[..quoted], 1280)
    }
}
