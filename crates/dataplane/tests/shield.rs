//! The shield of WireGuard's port: single frames with the time under control, then real packets.

mod common;

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::Path,
    time::Duration,
};

use anyhow::{Result, ensure};
use dataplane::{
    Attachment, DataplaneError, Gso, Program, Shield, ShieldKind, ShieldLimits, ShieldProgram,
    ShieldReason, ShieldTrial, Trial, Trusted, pin_folder,
};
use packet::build::{Ip, fragments};
use testnet::{Namespace, veth, wait_until};

const PORT: u16 = 41_641;
const LIMITS: ShieldLimits = ShieldLimits {
    flood: 3,
    rate: 10,
    burst: 2,
};
const PROGRAMS: [ShieldProgram; 2] = [ShieldProgram::Tcx, ShieldProgram::Xdp];
/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;

const US4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const US6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const FLOODER4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);
const FLOODER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x66, 0, 0, 0, 0, 1);
const PEER4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const PEER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 1);

/// A flooder, a peer and us, by family.
const FAMILIES: [[IpAddr; 3]; 2] = [
    [IpAddr::V4(FLOODER4), IpAddr::V4(PEER4), IpAddr::V4(US4)],
    [IpAddr::V6(FLOODER6), IpAddr::V6(PEER6), IpAddr::V6(US6)],
];

fn message(kind: u8, len: usize) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.resize(len, 7);
    message
}

fn initiation() -> Vec<u8> {
    message(1, 148)
}

/// An Ethernet frame with this packet in it.
fn frame(packet: &[u8]) -> Vec<u8> {
    let ether_type: [u8; 2] = if packet[0] >> 4 == 4 {
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    };
    [&[2; 12][..], &ether_type, packet].concat()
}

fn from(src: IpAddr, dst: IpAddr) -> Vec<u8> {
    frame(&Ip::new(src, dst).udp(9, PORT, &initiation()))
}

/// One trial of the programs, at a time at which nothing has happened yet.
struct Run {
    trial: ShieldTrial,
    program: ShieldProgram,
    now: Duration,
}

impl Run {
    fn new(program: ShieldProgram, limits: ShieldLimits) -> Result<Self> {
        let mut run = Self {
            trial: ShieldTrial::load(PORT, ETHERNET, limits)?,
            program,
            now: Duration::from_secs(1000),
        };
        run.wait(Duration::ZERO)?;
        Ok(run)
    }

    fn wait(&mut self, time: Duration) -> Result<()> {
        self.now += time;
        Ok(self.trial.set_time(self.now)?)
    }

    fn passes(&mut self, frame: &[u8]) -> Result<bool> {
        let (passes, _) = self.trial.run(self.program, frame, 1)?;
        Ok(passes)
    }

    /// What has been counted, without zeros, since `before`.
    fn counted(&self) -> Result<BTreeMap<ShieldReason, u64>> {
        let mut counts = self.trial.counts()?;
        counts.retain(|_, count| *count != 0);
        Ok(counts)
    }

    /// Begins a flood, and takes what is in the bucket.
    fn flood(&mut self, src: IpAddr, us: IpAddr) -> Result<()> {
        for _ in 0..LIMITS.flood + LIMITS.burst {
            ensure!(self.passes(&from(src, us))?);
        }
        ensure!(!self.passes(&from(src, us))?);
        Ok(())
    }
}

/// Runs `test` with each program and address family.
fn each(test: impl Fn(Run, [IpAddr; 3]) -> Result<()>) -> Result<()> {
    for program in PROGRAMS {
        for ends in FAMILIES {
            test(Run::new(program, LIMITS)?, ends)?;
        }
    }
    Ok(())
}

#[test]
fn few_initiations_all_pass() -> Result<()> {
    skip_without_bpf!();
    each(|mut run, [flooder, _, us]| {
        for _ in 0..5 {
            for _ in 0..LIMITS.flood {
                ensure!(run.passes(&from(flooder, us))?);
            }
            run.wait(Duration::from_secs(1))?;
        }
        assert_eq!(run.counted()?, BTreeMap::from([(ShieldReason::Calm, 15)]));
        Ok(())
    })
}

#[test]
fn of_a_flood_a_few_pass_and_the_rest_is_dropped() -> Result<()> {
    skip_without_bpf!();
    each(|mut run, [flooder, _, us]| {
        run.flood(flooder, us)?;
        // A token comes each 100 ms.
        run.wait(Duration::from_millis(99))?;
        ensure!(!run.passes(&from(flooder, us))?);
        run.wait(Duration::from_millis(1))?;
        ensure!(run.passes(&from(flooder, us))?);
        ensure!(!run.passes(&from(flooder, us))?);
        // No more of them are kept than fit.
        run.wait(Duration::from_millis(800))?;
        for _ in 0..LIMITS.burst {
            ensure!(run.passes(&from(flooder, us))?);
        }
        ensure!(!run.passes(&from(flooder, us))?);
        let expected = [
            (ShieldReason::Calm, 3),
            (ShieldReason::Spared, 2 + 1 + 2),
            (ShieldReason::Dropped, 4),
        ];
        assert_eq!(run.counted()?, BTreeMap::from(expected));
        Ok(())
    })
}

#[test]
fn a_flood_is_over_two_seconds_after_the_last_initiation_too_many() -> Result<()> {
    skip_without_bpf!();
    each(|mut run, [flooder, _, us]| {
        run.flood(flooder, us)?;
        run.wait(Duration::from_millis(1999))?;
        for _ in 0..LIMITS.burst {
            ensure!(run.passes(&from(flooder, us))?);
        }
        ensure!(!run.passes(&from(flooder, us))?, "it is a flood still");
        run.wait(Duration::from_millis(1001))?;
        for _ in 0..LIMITS.flood {
            ensure!(run.passes(&from(flooder, us))?);
        }
        assert_eq!(run.counted()?[&ShieldReason::Calm], 6);
        Ok(())
    })
}

#[test]
fn trusted_sources_pass_in_a_flood() -> Result<()> {
    skip_without_bpf!();
    each(|mut run, [flooder, peer, us]| {
        run.flood(flooder, us)?;
        ensure!(!run.passes(&from(peer, us))?);

        run.trial.set_trusted(&[SocketAddr::new(peer, 9).into()])?;
        ensure!(run.passes(&from(peer, us))?);
        ensure!(!run.passes(&from(flooder, us))?);

        run.trial.set_trusted(&[SocketAddr::new(peer, 10).into()])?;
        ensure!(!run.passes(&from(peer, us))?, "another port");

        run.trial.set_trusted(&[Trusted::Address(peer)])?;
        ensure!(run.passes(&from(peer, us))?);

        run.trial.set_trusted(&[])?;
        ensure!(!run.passes(&from(peer, us))?);
        assert_eq!(run.counted()?[&ShieldReason::Trusted], 2);
        Ok(())
    })
}

#[test]
fn what_is_no_plain_initiation_to_the_port_is_never_dropped_nor_counted() -> Result<()> {
    skip_without_bpf!();
    each(|mut run, [flooder, _, us]| {
        run.flood(flooder, us)?;
        let before = run.counted()?;
        let ip = Ip::new(flooder, us);
        let plain = ip.udp(9, PORT, &initiation());
        let mut others = vec![
            frame(&ip.udp(9, PORT + 1, &initiation())),
            frame(&ip.udp(PORT, 9, &initiation())),
            frame(&ip.udp(9, PORT, &message(1, 147))),
            frame(&ip.udp(9, PORT, &message(1, 149))),
            // Response, cookie, data.
            frame(&ip.udp(9, PORT, &message(2, 92))),
            frame(&ip.udp(9, PORT, &message(3, 64))),
            frame(&ip.udp(9, PORT, &message(4, 148))),
            frame(&ip.udp(9, PORT, &message(2, 148))),
            frame(&ip.tcp(9, PORT, 0, &initiation())),
            // An ARP request, by its type.
            [&[2; 12][..], &[0x08, 0x06], &plain].concat(),
            // A VLAN tag.
            [&[2; 12][..], &[0x81, 0x00, 0, 7], &frame(&plain)[12..]].concat(),
        ];
        if us.is_ipv4() {
            others.push(frame(&ip.clone().options(&[1; 4]).udp(
                9,
                PORT,
                &initiation(),
            )));
        } else {
            let extension = ip.clone().extension(60, &[]);
            others.push(frame(&extension.udp(9, PORT, &initiation())));
        }
        others.extend(fragments(&plain, 80, 7).iter().map(|it| frame(it)));
        // Shorter than its own header says; the kernel takes whole IP headers only for a run.
        let header = if us.is_ipv4() { 20 } else { 40 };
        others.extend((ETHERNET as usize + header..plain.len() + 14).map(|end| {
            let mut cut = frame(&plain);
            cut.truncate(end);
            cut
        }));
        for other in others {
            ensure!(run.passes(&other)?, "{other:x?}");
        }
        ensure!(!run.passes(&frame(&plain))?);
        let mut after = run.counted()?;
        *after.entry(ShieldReason::Dropped).or_default() -= 1;
        assert_eq!(after, before);
        Ok(())
    })
}

#[test]
fn devices_without_a_link_layer_are_guarded_too() -> Result<()> {
    skip_without_bpf!();
    let limits = ShieldLimits {
        flood: 0,
        burst: 0,
        ..LIMITS
    };
    let mut trial = ShieldTrial::load(PORT, 0, limits)?;
    for [flooder, _, us] in FAMILIES {
        let packet = Ip::new(flooder, us).udp(9, PORT, &initiation());
        let (passes, _) = trial.run(ShieldProgram::Tcx, &packet, 1)?;
        ensure!(!passes);
        let (passes, _) = trial.run(ShieldProgram::Tcx, &frame(&packet), 1)?;
        ensure!(passes);
    }
    Ok(())
}

#[test]
fn what_a_router_sends_on_is_not_for_its_wireguard() -> Result<()> {
    skip_without_bpf!();
    let router = Namespace::new("router")?;
    for command in [
        "link add wan type veth peer name far",
        "link set far up",
        "addr add 192.0.2.1/24 dev wan",
        "addr add 2001:db8::1/64 dev wan",
        "link set wan up",
        "route add default dev wan",
        "-6 route add default dev wan",
    ] {
        router.ip(command)?;
    }
    let inside: [IpAddr; 2] = [
        Ipv4Addr::new(198, 51, 100, 1).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1).into(),
    ];
    for (forwarding, kept) in [("0", false), ("1", true)] {
        router.sysctl("net/ipv4/ip_forward", forwarding)?;
        router.sysctl("net/ipv6/conf/all/forwarding", forwarding)?;
        router.enter(|| {
            each(|mut run, [flooder, _, us]| {
                run.flood(flooder, us)?;
                let inside = inside[usize::from(us.is_ipv6())];
                ensure!(run.passes(&from(flooder, inside))? == kept);
                ensure!(!run.passes(&from(flooder, us))?);
                let forwarded = run.counted()?.get(&ShieldReason::Forwarded).copied();
                assert_eq!(forwarded, kept.then_some(1));
                Ok(())
            })
        })??;
    }
    Ok(())
}

#[test]
fn the_shield_costs_little() -> Result<()> {
    skip_without_bpf!();
    const REPEAT: u32 = 200_000;
    let mut bare = Trial::load()?;
    let frame_of_tcp = frame(&Ip::new(PEER4, US4).tcp(9, 443, 0, &[0; 1000]));
    let run = bare.run(Program::Bare, &frame_of_tcp, Gso::default(), REPEAT)?;
    println!("an empty program: {} ns", run.duration.as_nanos());
    for program in PROGRAMS {
        for [flooder, peer, us] in FAMILIES {
            let mut run = Run::new(program, LIMITS)?;
            let cost = |name: &str, frame: &[u8], run: &mut Run| -> Result<()> {
                let mut times = Vec::new();
                for _ in 0..5 {
                    times.push(run.trial.run(program, frame, REPEAT)?.1);
                }
                times.sort();
                let family = if us.is_ipv4() { "IPv4" } else { "IPv6" };
                println!("{program:?} {family} {name}: {} ns", times[2].as_nanos());
                Ok(())
            };
            let ip = Ip::new(flooder, us);
            cost(
                "other TCP",
                &frame(&ip.tcp(9, 443, 0, &[0; 1000])),
                &mut run,
            )?;
            cost(
                "WireGuard data",
                &frame(&ip.udp(9, PORT, &message(4, 1000))),
                &mut run,
            )?;
            let verified = run.trial.verified_instructions(program)?;

            let endless = ShieldLimits {
                flood: u32::MAX,
                ..LIMITS
            };
            let mut calm = Run::new(program, endless)?;
            cost("initiation, calm", &from(flooder, us), &mut calm)?;
            let generous = ShieldLimits {
                flood: 0,
                rate: 1_000_000_000,
                burst: u32::MAX,
            };
            let mut spared = Run::new(program, generous)?;
            cost("initiation, spared", &from(flooder, us), &mut spared)?;
            run.flood(flooder, us)?;
            cost("initiation, dropped", &from(flooder, us), &mut run)?;
            run.trial.set_trusted(&[SocketAddr::new(peer, 9).into()])?;
            cost("initiation, trusted", &from(peer, us), &mut run)?;
            println!("{program:?}: {verified:?} instructions verified");
            ensure!(verified.is_none_or(|count| count < 10_000), "{verified:?}");
        }
    }
    Ok(())
}

const DEADLINE: Duration = Duration::from_secs(5);

/// Every way of attaching that this kernel knows.
fn kinds() -> Vec<ShieldKind> {
    let mut kinds = vec![ShieldKind::Tcx(Attachment::Clsact), ShieldKind::Native];
    if Attachment::of_this_kernel() == Attachment::Tcx {
        kinds.push(ShieldKind::Tcx(Attachment::Tcx));
    }
    kinds
}

/// A host, and a neighbour that is flooder and peer.
struct Street {
    host: Namespace,
    neighbour: Namespace,
}

impl Street {
    fn new() -> Result<Self> {
        let (host, neighbour) = (Namespace::new("host")?, Namespace::new("neighbour")?);
        veth((&host, "eth0"), (&neighbour, "eth0"))?;
        for (namespace, addresses) in [
            (&host, vec!["192.0.2.1/24", "2001:db8::1/64"]),
            (
                &neighbour,
                vec![
                    "192.0.2.66/24",
                    "192.0.2.7/24",
                    "2001:db8::66/64",
                    "2001:db8::7/64",
                ],
            ),
        ] {
            for address in addresses {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                namespace.ip(&format!("addr add {address} dev eth0 {nodad}"))?;
            }
        }
        Ok(Self { host, neighbour })
    }

    /// A flooder, a peer and the host, by family.
    fn ends() -> [[IpAddr; 3]; 2] {
        [
            ["192.0.2.66", "192.0.2.7", "192.0.2.1"],
            ["2001:db8::66", "2001:db8::7", "2001:db8::1"],
        ]
        .map(|ends| ends.map(|end| end.parse().expect("an address")))
    }

    /// Sends `count` initiations.
    fn initiate(&self, src: IpAddr, dst: SocketAddr, count: usize) -> Result<()> {
        self.neighbour.enter(|| {
            let socket = UdpSocket::bind((src, 0))?;
            for _ in 0..count {
                socket.send_to(&initiation(), dst)?;
            }
            Ok(())
        })?
    }
}

/// What stands where WireGuard would.
struct Server(UdpSocket);

impl Server {
    /// Listens in the calling thread's network namespace.
    fn bind(port: u16) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// Waits for so many datagrams; no more may come meanwhile.
    fn hears(&self, count: usize) -> Result<()> {
        let mut heard = 0;
        wait_until(DEADLINE, "the datagrams arrive", || {
            heard += self.received()?;
            ensure!(heard == count, "{heard} of {count}");
            Ok(())
        })
    }

    /// How many datagrams have come since the last time.
    fn received(&self) -> Result<usize> {
        let mut count = 0;
        loop {
            match self.0.recv(&mut [0; 200]) {
                Ok(_) => count += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(count),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Waits until the shield has judged so many initiations: what arrives does so in a soft interrupt.
fn judged(shield: &Shield, count: u64) -> Result<BTreeMap<ShieldReason, u64>> {
    wait_until(DEADLINE, "the initiations arrive", || {
        let counts = shield.counts()?;
        ensure!(
            counts.values().sum::<u64>() == count,
            "{counts:?} instead of {count}"
        );
        Ok(counts)
    })
}

#[test]
fn in_a_real_flood_the_server_hears_its_peers() -> Result<()> {
    skip_without_bpf!();
    for kind in kinds() {
        for [flooder, peer, us] in Street::ends() {
            let street = Street::new()?;
            street.host.enter(|| -> Result<()> {
                let server = Server::bind(PORT)?;
                let limits = ShieldLimits {
                    flood: 10,
                    rate: 1,
                    burst: 5,
                };
                let mut shield = Shield::attach("eth0", kind, PORT, limits, None)?;
                shield.set_trusted(&[peer.into()])?;
                ensure!(!shield.is_flooded()?);

                street.initiate(flooder, (us, PORT).into(), 1000)?;
                let counts = judged(&shield, 1000)?;
                ensure!(shield.is_flooded()?);
                street.initiate(peer, (us, PORT).into(), 20)?;
                let after = judged(&shield, 1020)?;
                assert_eq!(after[&ShieldReason::Trusted], 20, "{after:?}");
                let passed = 1020 - after[&ShieldReason::Dropped] as usize;
                assert_eq!(server.received()?, passed, "{after:?}");
                ensure!(counts[&ShieldReason::Dropped] > 900, "{counts:?}");

                drop(shield);
                wait_until(DEADLINE, "the shield is gone", || {
                    street.initiate(flooder, (us, PORT).into(), 1)?;
                    ensure!(server.received()? > 0);
                    Ok(())
                })
            })??;
        }
    }
    Ok(())
}

#[test]
fn a_pinned_shield_outlives_its_agent_and_is_taken_over() -> Result<()> {
    skip_without_bpf!();
    let [[flooder, peer, us], _] = Street::ends();
    let limits = ShieldLimits {
        flood: 0,
        rate: 1,
        burst: 0,
    };
    for first in kinds() {
        for second in kinds() {
            let street = Street::new()?;
            street.host.enter(|| -> Result<()> {
                let server = Server::bind(PORT)?;
                let pins = pin_folder("tailrace0.shield", Path::new("/nonexistent"))?;
                let mut shield = Shield::attach("eth0", first, PORT, limits, Some(&pins))?;
                shield.set_trusted(&[peer.into()])?;
                drop(shield);
                street.initiate(flooder, (us, PORT).into(), 10)?;
                street.initiate(peer, (us, PORT).into(), 1)?;
                // The last to be sent is the last to be judged.
                server.hears(1)?;

                let shield = Shield::attach("eth0", second, PORT, limits, Some(&pins))?;
                let counts = judged(&shield, 11)?;
                assert_eq!(counts[&ShieldReason::Dropped], 10, "{first}, {second}");
                assert_eq!(counts[&ShieldReason::Trusted], 1, "{first}, {second}");
                // A command that another test starts holds its copy of the first link until it executes.
                wait_until(3 * DEADLINE, "the first program is gone", || {
                    let before: u64 = shield.counts()?.values().sum();
                    street.initiate(flooder, (us, PORT).into(), 1)?;
                    judged(&shield, before + 1).map(drop)
                })?;
                let before: u64 = shield.counts()?.values().sum();
                street.initiate(flooder, (us, PORT).into(), 10)?;
                street.initiate(peer, (us, PORT).into(), 1)?;
                judged(&shield, before + 11)?;
                server.hears(1)?;

                drop(shield);
                Shield::remove_all(&pins)?;
                ensure!(!pins.exists(), "{} is left", pins.display());
                // The kernel lets go of it soon after.
                wait_until(DEADLINE, "the shield is gone", || {
                    street.initiate(flooder, (us, PORT).into(), 1)?;
                    ensure!(server.received()? > 0, "{first}, {second}");
                    Ok(())
                })?;
                Ok(Shield::remove_all(&pins)?)
            })??;
        }
    }
    Ok(())
}

#[test]
fn shields_of_two_ports_guard_one_device() -> Result<()> {
    skip_without_bpf!();
    let [[flooder, _, us], _] = Street::ends();
    let limits = ShieldLimits {
        flood: 0,
        rate: 1,
        burst: 0,
    };
    for kind in kinds() {
        let ShieldKind::Tcx(attachment) = kind else {
            continue;
        };
        let street = Street::new()?;
        street.host.enter(|| -> Result<()> {
            let attach = |port| Shield::attach("eth0", kind, port, limits, None);
            let (one, two) = (attach(PORT)?, attach(PORT + 1)?);
            street.initiate(flooder, (us, PORT).into(), 3)?;
            street.initiate(flooder, (us, PORT + 1).into(), 4)?;
            judged(&one, 3)?;
            judged(&two, 4)?;
            drop(two);
            street.initiate(flooder, (us, PORT).into(), 1)?;
            judged(&one, 4)?;
            ensure!(one.kind() == ShieldKind::Tcx(attachment));
            Ok(())
        })??;
    }
    Ok(())
}

#[test]
fn a_device_with_another_xdp_program_is_refused_with_what_to_do() -> Result<()> {
    skip_without_bpf!();
    let street = Street::new()?;
    street.host.enter(|| -> Result<()> {
        let attach = |port, kind| Shield::attach("eth0", kind, port, ShieldLimits::default(), None);
        let _other = attach(PORT, ShieldKind::Native)?;
        let error = attach(PORT + 1, ShieldKind::Native).map(drop).unwrap_err();
        ensure!(matches!(error, DataplaneError::XdpTaken(_)), "{error:?}");
        ensure!(error.to_string().contains("--shield tcx"), "{error}");
        drop(attach(PORT + 1, ShieldKind::tcx())?);

        let lo = Shield::attach(
            "lo",
            ShieldKind::Native,
            PORT,
            ShieldLimits::default(),
            None,
        );
        let error = lo.map(drop).unwrap_err();
        ensure!(
            matches!(error, DataplaneError::NoNativeXdp { .. }),
            "{error:?}"
        );
        let none = Shield::attach(
            "eth9",
            ShieldKind::tcx(),
            PORT,
            ShieldLimits::default(),
            None,
        );
        let error = none.map(drop).unwrap_err();
        ensure!(matches!(error, DataplaneError::NoInterface(_)), "{error:?}");
        Ok(())
    })?
}
