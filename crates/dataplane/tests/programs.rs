//! Single frames through the programs: frame in, verdict and counters out (`BPF_PROG_TEST_RUN`).

mod common;

use std::collections::BTreeMap;

use anyhow::Result;
use dataplane::{Count, Direction, Gso, PeerCounters, PeerIndex, Program, Reason, Trial};

use common::{PEER4, PEER6, TCP, UDP, US4, US6, ipv4, ipv6, tcp, udp};

const PEER: PeerIndex = PeerIndex(7);
const GATEWAY: PeerIndex = PeerIndex(8);

/// `TC_ACT_UNSPEC`: the next program decides.
const NEXT: i32 = -1;
/// The shortest frame that the kernel takes for a run.
const SHORTEST: usize = 14;

fn loaded() -> Result<Trial> {
    let mut trial = Trial::load()?;
    trial.set_peers(&[
        ("100.64.0.2/32".parse()?, PEER),
        ("fd7a:11::2/128".parse()?, PEER),
        ("10.0.0.0/8".parse()?, GATEWAY),
        ("fd00::/8".parse()?, GATEWAY),
    ])?;
    Ok(trial)
}

/// Runs one frame and checks that it passes on.
fn pass(trial: &mut Trial, direction: Direction, frame: &[u8], gso: Gso) -> Result<()> {
    let outcome = trial.run(Program::Overlay(direction), frame, gso, 1)?;
    assert_eq!(outcome.verdict, NEXT);
    Ok(())
}

/// The totals without the zeros.
fn totals(trial: &Trial) -> Result<BTreeMap<(Direction, Reason), Count>> {
    let mut totals = trial.totals()?;
    totals.retain(|_, count| *count != Count::default());
    Ok(totals)
}

fn count(packets: u64, bytes: u64) -> Count {
    Count { packets, bytes }
}

#[test]
fn packets_are_counted_for_the_peer_at_the_other_end() -> Result<()> {
    skip_without_bpf!();
    let mut trial = loaded()?;
    let plain = Gso::default();

    pass(
        &mut trial,
        Direction::In,
        &ipv4(PEER4, US4, UDP, &udp(72)),
        plain,
    )?;
    pass(
        &mut trial,
        Direction::In,
        &ipv6(PEER6, US6, UDP, &udp(52)),
        plain,
    )?;
    pass(
        &mut trial,
        Direction::Out,
        &ipv4(US4, PEER4, TCP, &tcp(148)),
        plain,
    )?;
    pass(
        &mut trial,
        Direction::Out,
        &ipv6(US6, PEER6, TCP, &tcp(228)),
        plain,
    )?;
    pass(
        &mut trial,
        Direction::Out,
        &ipv6(US6, PEER6, TCP, &tcp(228)),
        plain,
    )?;

    let expected = PeerCounters {
        rx_packets: 2,
        rx_bytes: 100 + 100,
        tx_packets: 3,
        tx_bytes: 200 + 300 + 300,
    };
    assert_eq!(trial.read()?[&PEER], expected);
    assert_eq!(trial.read()?[&GATEWAY], PeerCounters::default());
    assert_eq!(
        totals(&trial)?,
        BTreeMap::from([
            ((Direction::In, Reason::Counted), count(2, 200)),
            ((Direction::Out, Reason::Counted), count(3, 800)),
        ])
    );
    Ok(())
}

#[test]
fn the_longest_prefix_wins() -> Result<()> {
    skip_without_bpf!();
    let mut trial = loaded()?;
    let plain = Gso::default();
    let inner = [10, 1, 2, 3];

    pass(
        &mut trial,
        Direction::In,
        &ipv4(inner, US4, UDP, &udp(0)),
        plain,
    )?;
    assert_eq!(trial.read()?[&GATEWAY].rx_packets, 1);

    trial.set_peers(&[
        ("10.0.0.0/8".parse()?, GATEWAY),
        ("10.1.2.0/24".parse()?, PEER),
        ("0.0.0.0/0".parse()?, GATEWAY),
    ])?;
    pass(
        &mut trial,
        Direction::In,
        &ipv4(inner, US4, UDP, &udp(0)),
        plain,
    )?;
    pass(
        &mut trial,
        Direction::In,
        &ipv4([9, 9, 9, 9], US4, UDP, &udp(0)),
        plain,
    )?;
    assert_eq!(trial.read()?[&PEER].rx_packets, 1);
    assert_eq!(trial.read()?[&GATEWAY].rx_packets, 2);
    Ok(())
}

#[test]
fn addresses_that_no_peer_has_are_counted_as_unknown() -> Result<()> {
    skip_without_bpf!();
    let mut trial = loaded()?;
    let plain = Gso::default();
    let nobody6 = [0x20; 16];

    // Our own address is no peer's: direction decides which address is looked up.
    pass(
        &mut trial,
        Direction::In,
        &ipv4(US4, PEER4, UDP, &udp(2)),
        plain,
    )?;
    pass(
        &mut trial,
        Direction::Out,
        &ipv4(PEER4, US4, UDP, &udp(2)),
        plain,
    )?;
    pass(
        &mut trial,
        Direction::In,
        &ipv6(nobody6, US6, UDP, &udp(2)),
        plain,
    )?;

    assert_eq!(
        totals(&trial)?,
        BTreeMap::from([
            ((Direction::In, Reason::UnknownPeer), count(2, 30 + 50)),
            ((Direction::Out, Reason::UnknownPeer), count(1, 30)),
        ])
    );
    assert!(
        trial
            .read()?
            .values()
            .all(|peer| *peer == PeerCounters::default())
    );
    Ok(())
}

#[test]
fn a_frame_cut_anywhere_is_counted_as_truncated() -> Result<()> {
    skip_without_bpf!();
    for whole in [
        ipv4(PEER4, US4, TCP, &tcp(40)),
        ipv6(PEER6, US6, TCP, &tcp(40)),
    ] {
        for direction in Direction::ALL {
            let mut trial = loaded()?;
            let mut bytes = 0;
            for end in SHORTEST..whole.len() {
                pass(&mut trial, direction, &whole[..end], Gso::default())?;
                bytes += end as u64;
            }
            let cuts = (whole.len() - SHORTEST) as u64;
            let expected = BTreeMap::from([((direction, Reason::Truncated), count(cuts, bytes))]);
            assert_eq!(totals(&trial)?, expected);
        }
    }
    Ok(())
}

#[test]
fn what_is_not_ip_is_counted_as_such() -> Result<()> {
    skip_without_bpf!();
    let mut trial = loaded()?;
    // An ARP frame with its Ethernet header, as a layer 2 device would show it.
    let mut arp = [0; 42];
    arp[12..14].copy_from_slice(&[8, 6]);

    pass(&mut trial, Direction::In, &arp, Gso::default())?;
    pass(&mut trial, Direction::Out, &arp, Gso::default())?;

    assert_eq!(
        totals(&trial)?,
        BTreeMap::from([
            ((Direction::In, Reason::NotIp), count(1, 42)),
            ((Direction::Out, Reason::NotIp), count(1, 42)),
        ])
    );
    Ok(())
}

#[test]
fn merged_buffers_count_as_the_packets_they_stand_for() -> Result<()> {
    skip_without_bpf!();
    // 1000 bytes of payload at 300 make 4 packets, whether or not the kernel has counted them.
    for segments in [4, 0] {
        let mut trial = loaded()?;
        let gso = Gso {
            size: 300,
            segments,
        };
        pass(
            &mut trial,
            Direction::In,
            &ipv4(PEER4, US4, TCP, &tcp(1000)),
            gso,
        )?;
        pass(
            &mut trial,
            Direction::Out,
            &ipv6(US6, PEER6, UDP, &udp(1000)),
            gso,
        )?;

        let expected = PeerCounters {
            rx_packets: 4,
            rx_bytes: 1000 + 4 * (20 + 32),
            tx_packets: 4,
            tx_bytes: 1000 + 4 * (40 + 8),
        };
        assert_eq!(trial.read()?[&PEER], expected, "gso_segs {segments}");
    }
    Ok(())
}

#[test]
fn every_packet_is_counted_once() -> Result<()> {
    skip_without_bpf!();
    const RUNS: u32 = 1000;
    let mut trial = loaded()?;
    let frames = [
        ipv4(PEER4, US4, UDP, &udp(10)),
        ipv4([10, 0, 0, 1], US4, UDP, &udp(10)),
        ipv4([1, 1, 1, 1], US4, UDP, &udp(10)),
        ipv6(PEER6, US6, UDP, &udp(10)),
        ipv6(PEER6, US6, UDP, &udp(10))[..30].to_vec(),
        vec![0; 60],
    ];
    let mut bytes = 0;
    for frame in &frames {
        let program = Program::Overlay(Direction::In);
        trial.run(program, frame, Gso::default(), RUNS)?;
        bytes += frame.len() as u64 * u64::from(RUNS);
    }

    let mut all = Count::default();
    trial.totals()?.values().for_each(|total| all += *total);
    assert_eq!(all, count(frames.len() as u64 * u64::from(RUNS), bytes));

    let mut peers = Count::default();
    for peer in trial.read()?.values() {
        peers += count(peer.rx_packets, peer.rx_bytes);
    }
    assert_eq!(peers, trial.totals()?[&(Direction::In, Reason::Counted)]);
    Ok(())
}

#[test]
fn a_peer_that_left_is_unknown_and_starts_at_zero_when_it_returns() -> Result<()> {
    skip_without_bpf!();
    let mut trial = loaded()?;
    let frame = ipv4(PEER4, US4, UDP, &udp(0));
    let prefix = "100.64.0.2/32".parse()?;

    pass(&mut trial, Direction::In, &frame, Gso::default())?;
    trial.set_peers::<PeerIndex>(&[])?;
    assert_eq!(trial.read()?, BTreeMap::new());
    pass(&mut trial, Direction::In, &frame, Gso::default())?;
    let unknown = trial.totals()?[&(Direction::In, Reason::UnknownPeer)];
    assert_eq!(unknown.packets, 1);

    trial.set_peers(&[(prefix, PEER)])?;
    pass(&mut trial, Direction::In, &frame, Gso::default())?;
    assert_eq!(trial.read()?[&PEER].rx_packets, 1);
    Ok(())
}

#[test]
fn setting_the_same_peers_again_keeps_their_counts() -> Result<()> {
    skip_without_bpf!();
    let mut trial = loaded()?;
    let frame = ipv4(PEER4, US4, UDP, &udp(0));
    let peers = [("100.64.0.2/32".parse()?, PEER)];

    trial.set_peers(&peers)?;
    pass(&mut trial, Direction::In, &frame, Gso::default())?;
    trial.set_peers(&peers)?;
    pass(&mut trial, Direction::In, &frame, Gso::default())?;
    assert_eq!(trial.read()?[&PEER].rx_packets, 2);
    Ok(())
}

#[test]
fn a_full_table_says_its_size_and_keeps_what_it_holds() -> Result<()> {
    skip_without_bpf!();
    let mut trial = Trial::load()?;
    let host = |i: u32| ipnet::Ipv4Net::from(std::net::Ipv4Addr::from(0x6440_0000 + i)).into();
    let peers: Vec<_> = (0..65_537).map(|i| (host(i), PEER)).collect();

    let error = trial.set_peers(&peers).unwrap_err();
    assert_eq!(
        error.to_string(),
        "table PEER_HOSTS_V4 is full: it holds 65536 entries"
    );

    trial.set_peers(&peers[..1])?;
    pass(
        &mut trial,
        Direction::In,
        &ipv4([100, 64, 0, 0], US4, UDP, &udp(0)),
        Gso::default(),
    )?;
    assert_eq!(trial.read()?[&PEER].rx_packets, 1);
    Ok(())
}

#[test]
fn large_tailnets_are_set_in_one_go() -> Result<()> {
    skip_without_bpf!();
    // Several at once, since a burst of entries can find the kernel's pools empty.
    let mut trials = [Trial::load()?, Trial::load()?, Trial::load()?];
    let peers: Vec<_> = (0..5_000)
        .map(|i| {
            let address = std::net::Ipv4Addr::from(0x6440_0000 + i);
            (ipnet::Ipv4Net::from(address).into(), PeerIndex(i))
        })
        .collect();
    for trial in &mut trials {
        trial.set_peers(&peers)?;
        assert_eq!(trial.read()?.len(), peers.len());
    }
    Ok(())
}
