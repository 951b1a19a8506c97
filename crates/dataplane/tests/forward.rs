//! Single frames through the forwarding programs (`BPF_PROG_TEST_RUN`): what goes past the stack and
//! how it is rewritten, and what takes the stack, untouched.

mod common;
#[path = "common/gateway.rs"]
mod gateway;

use std::time::Duration;

use anyhow::{Result, ensure};
use dataplane::{
    Direction, Forwarded, Gso, Layer, Origin, PeerIndex, PortRange, Program, Rule, Rules,
    STACK_INTERVAL, Trial, TrialKind,
};
use packet::build::{ACK, FIN, Ip, RST, SYN, checksums_hold, fragments};

use gateway::{Flow, Gateway, ICMP, ICMPV6, IDLE, OVERLAY_MTU, STACKED, TCP, UDP, framed};

const NEXT: i32 = -1;
const DROP: i32 = 2;
const REDIRECT: i32 = 7;

/// A little later than when flows were last seen by the stack.
const NOW: Duration = Duration::from_secs(101);
const PLAIN: Gso = Gso {
    size: 0,
    segments: 0,
};

/// Runs `test` with the programs loaded, on a thread inside a gateway.
fn in_gateway(test: impl FnOnce(&Gateway, &mut Trial) -> Result<()> + Send) -> Result<()> {
    let gateway = Gateway::new()?;
    gateway.namespace.enter(|| {
        let mut trial = Trial::load_as(TrialKind::FilterInVirtualTime)?;
        trial.set_time(NOW)?;
        test(&gateway, &mut trial)
    })?
}

fn packets(trial: &Trial, origin: Origin, outcome: Forwarded) -> Result<u64> {
    Ok(trial.forwarded()?[&(origin, outcome)].packets)
}

/// The frame takes the stack as it is, and counts as `outcome`, if its flow is known.
fn stays(
    trial: &mut Trial,
    (program, origin): (Program, Origin),
    (frame, gso): (&[u8], Gso),
    device: u32,
    outcome: Option<Forwarded>,
) -> Result<()> {
    let before = trial.forwarded()?;
    let (result, out) = trial.transform(program, frame, gso, device)?;
    ensure!(result.verdict == NEXT, "verdict {}", result.verdict);
    ensure!(out == frame, "the frame was touched");
    for (slot, count) in trial.forwarded()? {
        let grown = count.packets > before[&slot].packets;
        let expected = outcome.is_some_and(|outcome| slot == (origin, outcome));
        ensure!(
            grown == expected,
            "{slot:?}: {count:?} after {:?}",
            before[&slot]
        );
    }
    Ok(())
}

const IN: (Program, Origin) = (Program::Forward(Direction::In), Origin::Overlay);
const NIC: (Program, Origin) = (Program::Nic(Layer::Ethernet), Origin::Lan);

#[test]
fn packets_from_peers_leave_as_conntrack_has_it() -> Result<()> {
    skip_without_bpf!();
    in_gateway(|gateway, trial| {
        for flow in Flow::all() {
            flow.install(trial, gateway)?;
            for len in [0, 1, 2, 3, 64, 1101, 1200] {
                let payload: Vec<u8> = (0..len).map(|at| at as u8 ^ 0x5a).collect();
                let (result, out) =
                    trial.transform(IN.0, &flow.sent(64, &payload), PLAIN, gateway.overlay)?;
                ensure!(result.verdict == REDIRECT, "{flow:?}: {}", result.verdict);
                let expected = flow.leaving(63, &payload);
                ensure!(
                    out[14..] == expected,
                    "{flow:?}, {len}:\n{out:02x?}\n{expected:02x?}"
                );
            }
        }
        Ok(())
    })
}

#[test]
fn answers_come_back_to_the_peer() -> Result<()> {
    skip_without_bpf!();
    in_gateway(|gateway, trial| {
        for flow in Flow::all() {
            flow.install(trial, gateway)?;
            for len in [0, 1, 2, 3, 64, 1101, 1200] {
                let payload: Vec<u8> = (0..len).map(|at| at as u8 ^ 0xa5).collect();
                let packet = flow.answer(flow.alias, 128, ACK, &payload);
                let expected = flow.answer(flow.peer, 127, ACK, &payload);
                let frame = framed(&packet);
                let (result, out) = trial.transform(NIC.0, &frame, PLAIN, gateway.lan)?;
                ensure!(result.verdict == REDIRECT, "{flow:?}: {}", result.verdict);
                ensure!(out[14..] == expected, "{flow:?}, {len}");

                // A short frame is filled up by Ethernet; that is not part of the packet.
                let padded = [frame.as_slice(), &[0xee; 9]].concat();
                let (result, out) = trial.transform(NIC.0, &padded, PLAIN, gateway.lan)?;
                ensure!(result.verdict == REDIRECT, "{flow:?}: {}", result.verdict);
                ensure!(out[14..] == expected, "{flow:?}, padded");

                let layer = Program::Nic(Layer::Ip);
                let (result, out) = trial.transform(layer, &packet, PLAIN, gateway.lan)?;
                ensure!(result.verdict == REDIRECT, "{flow:?}: {}", result.verdict);
                ensure!(out == expected, "{flow:?}, no link layer");
            }
        }
        Ok(())
    })
}

#[test]
fn checksums_hold_whatever_the_ports() -> Result<()> {
    skip_without_bpf!();
    in_gateway(|gateway, trial| {
        let mut state = 1_u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as u16
        };
        for base in Flow::all() {
            for _ in 0..500 {
                let mut flow = base;
                flow.peer.set_port(random() | 1);
                if flow.alias.ip() != flow.peer.ip() {
                    flow.alias.set_port(random() | 1);
                } else {
                    flow.alias = flow.peer;
                }
                flow.install(trial, gateway)?;
                let payload = random().to_be_bytes();
                let packet = flow.sent(9, &payload);
                let (_, out) = trial.transform(IN.0, &packet, PLAIN, gateway.overlay)?;
                ensure!(out[14..] == flow.leaving(8, &payload), "{flow:?}");
                ensure!(checksums_hold(&out[14..]), "{flow:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn an_absent_udp_checksum_stays_absent() -> Result<()> {
    skip_without_bpf!();
    in_gateway(|gateway, trial| {
        let flow = Flow::new(UDP, false, true);
        flow.install(trial, gateway)?;
        let mut packet = flow.sent(64, b"hello");
        packet[26..28].fill(0);
        let mut expected = flow.leaving(63, b"hello");
        expected[26..28].fill(0);
        let (result, out) = trial.transform(IN.0, &packet, PLAIN, gateway.overlay)?;
        ensure!(result.verdict == REDIRECT, "verdict {}", result.verdict);
        ensure!(out[14..] == expected, "{out:02x?}");
        Ok(())
    })
}

#[test]
fn what_changes_a_connection_takes_the_stack_and_ends_the_flow_in_both_directions() -> Result<()> {
    skip_without_bpf!();
    in_gateway(|gateway, trial| {
        for v6 in [false, true] {
            let flow = Flow::new(TCP, v6, true);
            for flags in [SYN, SYN | ACK, FIN | ACK, RST, RST | ACK] {
                let theirs = flow.packet(flow.peer, 64, flags, b"");
                let answer = framed(&flow.answer(flow.alias, 64, flags, b""));
                for (side, frame, device) in
                    [(IN, theirs, gateway.overlay), (NIC, answer, gateway.lan)]
                {
                    flow.install(trial, gateway)?;
                    assert_eq!(trial.offloaded()?.len() % 2, 0);
                    stays(
                        trial,
                        side,
                        (&frame, PLAIN),
                        device,
                        Some(Forwarded::Control),
                    )?;

                    let data = flow.sent(64, b"data");
                    let ended = Some(Forwarded::Ended);
                    stays(trial, IN, (&data, PLAIN), gateway.overlay, ended)?;
                    let data = framed(&flow.answer(flow.alias, 64, ACK, b"data"));
                    stays(trial, NIC, (&data, PLAIN), gateway.lan, ended)?;
                    ensure!(trial.offloaded()?.is_empty(), "{:?}", trial.offloaded()?);
                }
            }
        }
        Ok(())
    })
}

#[test]
fn one_packet_every_interval_takes_the_stack() -> Result<()> {
    skip_without_bpf!();
    in_gateway(|gateway, trial| {
        for flow in Flow::all() {
            flow.install(trial, gateway)?;
            let sides = [
                (IN, flow.sent(64, b"data"), gateway.overlay),
                (
                    NIC,
                    framed(&flow.answer(flow.alias, 64, ACK, b"data")),
                    gateway.lan,
                ),
            ];
            for (side, frame, device) in sides {
                let mut at = STACKED;
                for _ in 0..3 {
                    at += Duration::from_nanos(STACK_INTERVAL);
                    trial.set_time(at - Duration::from_millis(1))?;
                    let (result, _) = trial.transform(side.0, &frame, PLAIN, device)?;
                    ensure!(result.verdict == REDIRECT, "{flow:?}");
                    trial.set_time(at)?;
                    stays(trial, side, (&frame, PLAIN), device, Some(Forwarded::Turn))?;
                    let (result, _) = trial.transform(side.0, &frame, PLAIN, device)?;
                    ensure!(result.verdict == REDIRECT, "{flow:?}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_flow_that_conntrack_may_have_forgotten_has_ended() -> Result<()> {
    skip_without_bpf!();
    in_gateway(|gateway, trial| {
        let flow = Flow::new(UDP, false, true);
        flow.install(trial, gateway)?;
        trial.set_time(STACKED + IDLE)?;
        let packet = flow.sent(64, b"late");
        let ended = Some(Forwarded::Ended);
        stays(trial, IN, (&packet, PLAIN), gateway.overlay, ended)?;
        let answer = framed(&flow.answer(flow.alias, 64, ACK, b"late"));
        stays(trial, NIC, (&answer, PLAIN), gateway.lan, ended)
    })
}

#[test]
fn at_the_end_of_its_hop_limit_a_packet_takes_the_stack() -> Result<()> {
    skip_without_bpf!();
    in_gateway(|gateway, trial| {
        for flow in Flow::all() {
            flow.install(trial, gateway)?;
            for ttl in [0, 1] {
                let outcome = Some(Forwarded::HopLimit);
                let packet = flow.sent(ttl, b"trace");
                stays(trial, IN, (&packet, PLAIN), gateway.overlay, outcome)?;
                let answer = framed(&flow.answer(flow.alias, ttl, ACK, b"trace"));
                stays(trial, NIC, (&answer, PLAIN), gateway.lan, outcome)?;
            }
        }
        Ok(())
    })
}

#[test]
fn what_is_larger_than_the_way_out_takes_the_stack() -> Result<()> {
    skip_without_bpf!();
    in_gateway(|gateway, trial| {
        gateway.namespace.ip("link set lan0 mtu 1300")?;
        for flow in Flow::all().filter(|flow| flow.protocol != ICMP && flow.protocol != ICMPV6) {
            flow.install(trial, gateway)?;
            let headers = flow.sent(64, b"").len();
            let outcome = Some(Forwarded::TooLarge);
            for (side, most, device) in [(IN, 1300, gateway.overlay), (NIC, 1280, gateway.lan)] {
                let frame = |len: usize| {
                    let payload = vec![0; len];
                    if side == IN {
                        flow.sent(64, &payload)
                    } else {
                        framed(&flow.answer(flow.alias, 64, ACK, &payload))
                    }
                };
                let fits = frame(most - headers);
                let (result, _) = trial.transform(side.0, &fits, PLAIN, device)?;
                ensure!(result.verdict == REDIRECT, "{flow:?} {side:?}");
                let large = frame(most - headers + 1);
                stays(trial, side, (&large, PLAIN), device, outcome)?;

                // A buffer that stands for several: each of them counts.
                let merged = frame(3000);
                let gso = |size: usize| Gso {
                    size: size as u32,
                    segments: 0,
                };
                let (result, _) = trial.transform(side.0, &merged, gso(most - headers), device)?;
                ensure!(result.verdict == REDIRECT, "{flow:?} {side:?}");
                let large = gso(most - headers + 1);
                stays(trial, side, (&merged, large), device, outcome)?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_buffer_counts_as_the_packets_it_stands_for() -> Result<()> {
    skip_without_bpf!();
    in_gateway(|gateway, trial| {
        let flow = Flow::new(TCP, false, true);
        flow.install(trial, gateway)?;
        let gso = Gso {
            size: 1000,
            segments: 0,
        };
        trial.transform(IN.0, &flow.sent(64, &[0; 2500]), gso, gateway.overlay)?;
        let counts = trial.forwarded()?;
        let count = counts[&(Origin::Overlay, Forwarded::Past)];
        ensure!(
            (count.packets, count.bytes) == (3, 2500 + 3 * 40),
            "{count:?}"
        );
        Ok(())
    })
}

#[test]
fn what_is_no_whole_tcp_udp_or_echo_takes_the_stack() -> Result<()> {
    skip_without_bpf!();
    in_gateway(|gateway, trial| {
        for flow in Flow::all() {
            flow.install(trial, gateway)?;
            let from_peer = Ip::new(flow.peer.ip(), flow.host.ip());
            let whole = flow.sent(64, &[1; 600]);
            let mut odd = fragments(&whole, 304, 77);
            odd.push(from_peer.unreachable(&flow.answer(flow.peer, 64, ACK, b"?"), 28));
            odd.push(from_peer.too_big(&flow.answer(flow.peer, 64, ACK, b"?"), 1280));
            odd.push(from_peer.sctp(flow.peer.port(), flow.host.port(), b"chunk"));
            odd.push(from_peer.raw(47, &[0; 24]));
            if flow.peer.is_ipv4() {
                let with_options = from_peer.clone().options(&[1, 1, 1, 0]);
                odd.push(with_options.udp(flow.peer.port(), flow.host.port(), b"options"));
            } else {
                let extended = from_peer.clone().extension(0, &[1, 4, 0, 0, 0, 0]);
                odd.push(extended.udp(flow.peer.port(), flow.host.port(), b"extended"));
            }
            for packet in odd {
                stays(trial, IN, (&packet, PLAIN), gateway.overlay, None)?;
            }
            // Not all there: cut anywhere, or longer by its header than it is.
            let small = flow.sent(64, b"cut");
            for end in 14..small.len() {
                stays(trial, IN, (&small[..end], PLAIN), gateway.overlay, None)?;
            }
        }
        Ok(())
    })
}

#[test]
fn frames_that_are_not_for_us_take_the_stack() -> Result<()> {
    skip_without_bpf!();
    in_gateway(|gateway, trial| {
        let flow = Flow::new(UDP, false, true);
        flow.install(trial, gateway)?;
        let frame = framed(&flow.answer(flow.alias, 64, ACK, b"data"));
        let mut for_another = frame.clone();
        for_another[..6].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
        let mut broadcast = frame.clone();
        broadcast[..6].fill(0xff);
        let vlan = [&frame[..12], &[0x81, 0x00, 0, 5], &frame[12..]].concat();
        for frame in [for_another, broadcast, vlan] {
            stays(trial, NIC, (&frame, PLAIN), gateway.lan, None)?;
        }
        let unknown = framed(&flow.answer(flow.peer, 64, ACK, b"data"));
        stays(trial, NIC, (&unknown, PLAIN), gateway.lan, None)
    })
}

#[test]
fn the_routes_have_the_last_word() -> Result<()> {
    skip_without_bpf!();
    in_gateway(|gateway, trial| {
        for v6 in [false, true] {
            let flow = Flow::new(UDP, v6, false);
            let packet = flow.sent(64, b"data");
            let mut offload = flow.outward(0);
            trial.offload(&offload, STACKED)?;
            let (result, _) = trial.transform(IN.0, &packet, PLAIN, gateway.overlay)?;
            ensure!(result.verdict == REDIRECT, "any device");

            offload.out = gateway.overlay + 1000;
            trial.offload(&offload, STACKED)?;
            let other = Some(Forwarded::OtherWay);
            stays(trial, IN, (&packet, PLAIN), gateway.overlay, other)?;

            let host = flow.host.ip();
            gateway
                .namespace
                .ip(&format!("route add {host} dev overlay0"))?;
            trial.offload(&flow.outward(0), STACKED)?;
            stays(trial, IN, (&packet, PLAIN), gateway.overlay, other)?;
            gateway
                .namespace
                .ip(&format!("route del {host} dev overlay0"))?;

            gateway
                .namespace
                .ip(&format!("route add unreachable {host}"))?;
            let none = Some(Forwarded::NoRoute);
            stays(trial, IN, (&packet, PLAIN), gateway.overlay, none)?;
            gateway
                .namespace
                .ip(&format!("route del unreachable {host}"))?;
        }
        let flow = Flow::new(UDP, false, false);
        gateway.namespace.sysctl("net/ipv4/ip_forward", "0")?;
        let packet = flow.sent(64, b"data");
        let none = Some(Forwarded::NoRoute);
        stays(trial, IN, (&packet, PLAIN), gateway.overlay, none)
    })
}

/// A SYN with these TCP options.
fn syn(v6: bool, options: &[u8]) -> Vec<u8> {
    let flow = Flow::new(TCP, v6, false);
    let mut packet = flow.packet(flow.peer, 64, SYN, options);
    let header = if v6 { 40 } else { 20 };
    let words = (20 + options.len() / 4 * 4) / 4;
    let (old, new) = (packet[header + 12], (words as u8) << 4);
    packet[header + 12] = new;
    // The word of data offset and flags has changed.
    let flags = packet[header + 13];
    let sum = u16::from_be_bytes([packet[header + 16], packet[header + 17]]);
    let mut total = u32::from(!sum)
        + u32::from(!u16::from_be_bytes([old, flags]))
        + u32::from(u16::from_be_bytes([new, flags]));
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    packet[header + 16..header + 18].copy_from_slice(&(!(total as u16)).to_be_bytes());
    assert!(checksums_hold(&packet));
    packet
}

#[test]
fn segments_are_made_to_fit_the_overlay_in_both_directions() -> Result<()> {
    skip_without_bpf!();
    in_gateway(|gateway, trial| {
        trial.enable_forwarding(OVERLAY_MTU)?;
        for v6 in [false, true] {
            let most: u16 = if v6 { 1280 - 60 } else { 1280 - 40 };
            let mss = |value: u16| {
                let [high, low] = value.to_be_bytes();
                [2, 4, high, low]
            };
            let layouts = |value| {
                [
                    mss(value).to_vec(),
                    [&mss(value)[..], &[1, 3, 3, 7, 4, 2, 1, 1]].concat(),
                    [&[1][..], &mss(value), &[1, 1, 0]].concat(),
                    [&[3, 3, 7][..], &mss(value), &[0]].concat(),
                    [&[1, 1, 1][..], &mss(value), &[0]].concat(),
                ]
            };
            for program in [
                Program::Forward(Direction::In),
                Program::Forward(Direction::Out),
                Program::Overlay(Direction::Out),
            ] {
                if matches!(program, Program::Overlay(_)) {
                    trial.set_peers(&[
                        ("0.0.0.0/0".parse()?, PeerIndex(1)),
                        ("::/0".parse()?, PeerIndex(1)),
                    ])?;
                    trial.set_rules(&Rules::default())?;
                }
                for value in [1460, 9000, 65_535, most + 1, most, 536] {
                    for (given, wanted) in layouts(value).into_iter().zip(layouts(value.min(most)))
                    {
                        let frame = syn(v6, &given);
                        let (result, out) =
                            trial.transform(program, &frame, PLAIN, gateway.overlay)?;
                        ensure!(result.verdict == NEXT, "verdict {}", result.verdict);
                        ensure!(out == syn(v6, &wanted), "{program:?} {value} {given:?}");
                    }
                }
                // Nothing to lower, or nothing that can be read.
                for options in [
                    &[1, 1, 4, 2][..],
                    &[0, 2, 4, 255],
                    &[3, 0, 0, 0],
                    &[5, 200, 2, 4],
                    &[1, 1, 2, 4],
                ] {
                    let frame = syn(v6, options);
                    let (_, out) = trial.transform(program, &frame, PLAIN, gateway.overlay)?;
                    ensure!(out == frame, "{program:?} {options:?}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn the_filter_judges_every_packet_first() -> Result<()> {
    skip_without_bpf!();
    in_gateway(|gateway, trial| {
        let program = Program::Overlay(Direction::In);
        let flow = Flow::new(UDP, false, true);
        let rules = Rules {
            rules: vec![Rule {
                sources: ["100.64.0.2/32".parse()?].into(),
                destinations: vec![("10.77.0.0/24".parse()?, PortRange::ALL)],
                protocols: vec![UDP],
                ..Rule::default()
            }],
            addresses: vec!["100.64.0.1".parse()?],
            routes: vec!["10.77.0.0/24".parse()?],
            ..Rules::default()
        };
        trial.set_peers(&[("100.64.0.2/32".parse()?, PeerIndex(1))])?;
        trial.set_rules(&rules)?;
        flow.install(trial, gateway)?;
        let packet = flow.sent(64, b"data");
        let run = |trial: &mut Trial| -> Result<i32> {
            let (result, _) = trial.transform(program, &packet, PLAIN, gateway.overlay)?;
            Ok(result.verdict)
        };

        assert_eq!(run(trial)?, NEXT, "a node that does not forward");
        trial.enable_forwarding(OVERLAY_MTU)?;
        assert_eq!(run(trial)?, REDIRECT);
        assert_eq!(run(trial)?, REDIRECT, "by the filter's memory");
        assert_eq!(trial.read()?[&PeerIndex(1)].rx_packets, 3);
        trial.set_rules(&Rules {
            rules: Vec::new(),
            ..rules
        })?;
        assert_eq!(run(trial)?, DROP);
        assert_eq!(packets(trial, Origin::Overlay, Forwarded::Past)?, 2);
        Ok(())
    })
}

#[test]
fn the_programs_stay_small_for_the_verifier_and_their_cost_is_told() -> Result<()> {
    skip_without_bpf!();
    in_gateway(|gateway, trial| {
        const RUNS: u32 = 200_000;
        let program = Program::Forward(Direction::In);
        for program in [IN.0, Program::Forward(Direction::Out), NIC.0] {
            let instructions = trial.verified_instructions(program)?;
            println!("{program:?}: {instructions:?} instructions verified");
            ensure!(
                instructions.is_none_or(|count| count < 50_000),
                "{program:?}"
            );
        }
        let bare = trial.run(Program::Bare, &[0; 64], PLAIN, RUNS)?.duration;
        for v6 in [false, true] {
            // A hit would not be one the second time: measured up to its turn on the stack.
            let flow = Flow::new(UDP, v6, true);
            let packet = flow.sent(64, &[0; 64]);
            let cost = |trial: &mut Trial| -> Result<u128> {
                let run = trial.run(program, &packet, PLAIN, RUNS)?;
                ensure!(run.verdict == NEXT, "verdict {}", run.verdict);
                Ok(run.duration.saturating_sub(bare).as_nanos())
            };
            let miss = cost(trial)?;
            let mut elsewhere = flow.outward(gateway.lan);
            elsewhere.mtu = 1;
            trial.offload(&elsewhere, STACKED)?;
            let hit = cost(trial)?;
            println!("IPv6 {v6}: a miss {miss} ns, a hit before the routes are asked {hit} ns");
        }
        Ok(())
    })
}
