//! Reports of dropped packets, as the programs write them and [`Drops`] reads them.

mod common;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use dataplane::{
    Direction, DropReason, Dropped, Drops, Gso, Peer, PeerIndex, Program, Rules, Trial, TrialKind,
};
use packet::build::{ACK, Ip, SYN};

use common::{PEER4, PEER6, TCP, UDP, US4, US6};

const PEER: PeerIndex = PeerIndex(7);
/// Most reports about requests for connections from a CPU in a second.
const SYNS_A_SECOND: u32 = 64;

/// Programs with a peer and no rule, and their reports.
fn trial() -> Result<(Trial, Drops)> {
    let mut trial = Trial::load_as(TrialKind::FilterInVirtualTime)?;
    let peer = Peer::from(PEER);
    trial.set_peers(&[
        ("100.64.0.2/32".parse()?, peer),
        ("fd7a:11::2/128".parse()?, peer),
    ])?;
    trial.set_rules(&Rules {
        addresses: vec![US4.into(), US6.into()],
        ..Rules::default()
    })?;
    let drops = trial.drops_stream().context("nobody has them yet")?;
    Ok((trial, drops))
}

fn drop_of(
    trial: &mut Trial,
    drops: &mut Drops,
    direction: Direction,
    frame: &[u8],
) -> Result<Option<Dropped>> {
    let outcome = trial.run(Program::Overlay(direction), frame, Gso::default(), 1)?;
    ensure!(outcome.verdict == 2, "verdict {}", outcome.verdict);
    let report = drops.try_next();
    ensure!(drops.try_next().is_none(), "two reports of one packet");
    Ok(report)
}

fn ends(src: SocketAddr, dst: SocketAddr) -> Option<[SocketAddr; 2]> {
    Some([src, dst])
}

#[test]
fn a_report_says_when_why_whose_and_from_where_to_where() -> Result<()> {
    skip_without_bpf!();
    let (mut trial, mut drops) = trial()?;
    drops.want_all(true)?;
    let now = Duration::from_nanos(12_345_678_901);
    trial.set_time(now)?;
    let (input, output) = (Direction::In, Direction::Out);
    let peer4 = SocketAddr::from((PEER4, 40_000));
    let us4 = SocketAddr::from((US4, 22));
    let peer6 = SocketAddr::from((PEER6, 40_000));
    let us6 = SocketAddr::from((US6, 53));
    let portless = |address: SocketAddr| SocketAddr::new(address.ip(), 0);
    let (ip4, ip6) = (|| Ip::new(PEER4, US4), || Ip::new(PEER6, US6));
    let stranger = Ip::new([100, 64, 0, 9], US4).tcp(1, 22, SYN, b"");
    let nobody = SocketAddr::from(([100, 64, 0, 9], 1));
    let elsewhere = Ip::new(PEER4, [10, 0, 0, 1]).udp(40_000, 22, b"");
    let not_ours = SocketAddr::from(([10, 0, 0, 1], 22));
    let multicast = Ip::new(US4, [224, 0, 0, 251]).udp(22, 5353, b"");
    let group = SocketAddr::from(([224, 0, 0, 251], 5353));
    let own = Some(PEER);
    // (direction, frame, why, ends, protocol, asks for a connection, peer): read the quick way, and the
    // long one.
    let cases = [
        (
            input,
            ip4().tcp(40_000, 22, SYN, b""),
            DropReason::NoRule,
            ends(peer4, us4),
            TCP,
            true,
            own,
        ),
        (
            input,
            ip4().tcp(40_000, 22, ACK, b""),
            DropReason::NoFlow,
            ends(peer4, us4),
            TCP,
            false,
            own,
        ),
        (
            input,
            ip6().udp(40_000, 53, b"x"),
            DropReason::NoRule,
            ends(peer6, us6),
            UDP,
            false,
            own,
        ),
        (
            input,
            stranger,
            DropReason::NoRule,
            ends(nobody, us4),
            TCP,
            true,
            None,
        ),
        (
            input,
            elsewhere,
            DropReason::NotLocal,
            ends(peer4, not_ours),
            UDP,
            false,
            own,
        ),
        (
            output,
            multicast,
            DropReason::Multicast,
            ends(us4, group),
            UDP,
            false,
            None,
        ),
        (
            input,
            ip4().options(&[1; 8]).udp(40_000, 22, b""),
            DropReason::NoRule,
            ends(peer4, us4),
            UDP,
            false,
            own,
        ),
        (
            input,
            ip4().echo_reply(7, 1, b""),
            DropReason::EchoReply,
            // The identifier is the port of the side that has asked.
            ends(portless(peer4), SocketAddr::from((US4, 7))),
            1,
            false,
            own,
        ),
        (
            input,
            ip4().raw(47, &[0; 8]),
            DropReason::NoRule,
            ends(portless(peer4), portless(us4)),
            47,
            false,
            own,
        ),
        (
            input,
            vec![0x20; 40],
            DropReason::NotIp,
            None,
            0,
            false,
            None,
        ),
    ];
    let mut generations = Vec::new();
    for (direction, frame, reason, addresses, protocol, opens, peer) in cases {
        let found = drop_of(&mut trial, &mut drops, direction, &frame)?;
        let found = found.with_context(|| format!("{reason:?} is not reported"))?;
        generations.push(found.generation);
        let expected = Dropped {
            at: now,
            generation: found.generation,
            direction,
            reason,
            addresses,
            protocol,
            opens,
            peer,
        };
        ensure!(found == expected, "{found:?}\ninstead of\n{expected:?}");
        ensure!(!found.why().is_empty());
    }
    ensure!(generations[0] != 0 && generations.iter().all(|number| *number == generations[0]));
    // Other rules, another number.
    trial.set_rules(&Rules::default())?;
    let frame = ip4().tcp(40_000, 22, SYN, b"");
    let found = drop_of(&mut trial, &mut drops, input, &frame)?.context("no report")?;
    ensure!(
        found.generation > generations[0] && found.reason == DropReason::NotLocal,
        "{found:?}"
    );
    ensure!(drops.lost()? == 0);
    Ok(())
}

#[test]
fn unasked_only_requests_for_connections_are_reported_and_not_too_many() -> Result<()> {
    skip_without_bpf!();
    let (mut trial, mut drops) = trial()?;
    let input = Direction::In;
    let request = Ip::new(PEER4, US4).tcp(40_000, 22, SYN, b"");
    let data = Ip::new(PEER4, US4).tcp(40_000, 22, ACK, b"");
    let request6 = Ip::new(PEER6, US6).tcp(40_000, 22, SYN, b"");
    let out = Ip::new(US4, [224, 0, 0, 251]).tcp(1, 2, SYN, b"");
    for second in 5..8 {
        trial.set_time(Duration::from_secs(second))?;
        // In one run, on one CPU.
        trial.run(
            Program::Overlay(input),
            &request,
            Gso::default(),
            3 * SYNS_A_SECOND,
        )?;
        let reports = std::iter::from_fn(|| drops.try_next()).count();
        ensure!(reports == SYNS_A_SECOND as usize, "{reports} reports");
    }
    trial.set_time(Duration::from_secs(9))?;
    ensure!(drop_of(&mut trial, &mut drops, input, &data)?.is_none());
    ensure!(drop_of(&mut trial, &mut drops, input, &request6)?.is_none());
    ensure!(drop_of(&mut trial, &mut drops, Direction::Out, &out)?.is_none());
    ensure!(drop_of(&mut trial, &mut drops, input, &request)?.is_some());
    ensure!(drops.lost()? == 0);
    Ok(())
}

#[test]
fn what_nobody_reads_is_counted_as_lost() -> Result<()> {
    const PACKETS: u32 = 5000;
    skip_without_bpf!();
    let (mut trial, mut drops) = trial()?;
    drops.want_all(true)?;
    let data = Ip::new(PEER4, US4).tcp(40_000, 22, ACK, b"");
    trial.run(
        Program::Overlay(Direction::In),
        &data,
        Gso::default(),
        PACKETS,
    )?;
    let lost = drops.lost()?;
    let read = std::iter::from_fn(|| drops.try_next()).count() as u64;
    ensure!(lost > 0 && read > 0, "{read} read, {lost} lost");
    ensure!(
        read + lost == u64::from(PACKETS),
        "{read} read, {lost} lost"
    );
    Ok(())
}
