//! `counters`: what counting costs each packet, in nanoseconds per program.
//!
//! Every program runs alone in the kernel (`BPF_PROG_TEST_RUN`) over one frame, [`REPEAT`] times a
//! round; figures are medians of [`ROUNDS`] rounds with their extremes, less the median of a
//! program that does nothing. No device, no tunnel, warm caches: the cost of the program itself.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use dataplane::{Direction, Gso, PeerIndex, Program, Trial};
use serde_json::{Value, json};

/// Runs per round: long enough beside the system call.
const REPEAT: u32 = 1_000_000;
const ROUNDS: usize = 9;
/// Sizes of the tailnet, in peers of one IPv4 and one IPv6 address each.
const PEERS: [u32; 2] = [3, 5_000];

/// Options of the bench.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Nanoseconds per run.
#[derive(Clone, Copy, Debug)]
struct Cost {
    median: u64,
    least: u64,
    most: u64,
}

/// One line of the table.
#[derive(Debug)]
struct Row {
    program: &'static str,
    frame: &'static str,
    peers: u32,
    cost: Cost,
}

/// Measures every program and prints a table, or JSON.
///
/// # Errors
///
/// Without root, without the eBPF object, or if the kernel refuses to run the programs.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut rows = Vec::new();
    let mut bare = None;
    for peers in PEERS {
        let mut trial = Trial::load().context("loading the eBPF programs")?;
        trial.set_peers(&tailnet(peers))?;
        if bare.is_none() {
            let frame = ipv4(address_v4(0), address_v4(1), 64);
            bare = Some(measure(&mut trial, Program::Bare, &frame, Gso::default())?);
        }
        for (program, direction) in [
            ("overlay_in", Direction::In),
            ("overlay_out", Direction::Out),
        ] {
            for (name, frame, gso) in frames(direction, peers) {
                let cost = measure(&mut trial, Program::Overlay(direction), &frame, gso)?;
                rows.push(Row {
                    program,
                    frame: name,
                    peers,
                    cost,
                });
            }
        }
    }
    let bare = bare.context("no round was measured")?;
    if args.json {
        println!("{}", to_json(bare, &rows));
    } else {
        print_table(bare, &rows);
    }
    Ok(())
}

fn measure(trial: &mut Trial, program: Program, frame: &[u8], gso: Gso) -> Result<Cost> {
    let mut rounds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let outcome = trial.run(program, frame, gso, REPEAT)?;
        rounds.push(u64::try_from(outcome.duration.as_nanos())?);
    }
    rounds.sort_unstable();
    ensure!(!rounds.is_empty(), "no rounds");
    Ok(Cost {
        median: rounds[ROUNDS / 2],
        least: rounds[0],
        most: rounds[ROUNDS - 1],
    })
}

/// The frames of one direction: name, bytes, segmentation.
fn frames(direction: Direction, peers: u32) -> Vec<(&'static str, Vec<u8>, Gso)> {
    // A peer from the middle of the tables; ourselves are peer 0, who is in none.
    let (us, peer) = (0, peers / 2 + 1);
    let (src, dst) = match direction {
        Direction::In => (peer, us),
        Direction::Out => (us, peer),
    };
    let merged = Gso {
        size: 1240,
        segments: 0,
    };
    let stranger = Ipv4Addr::new(192, 0, 2, 1);
    let plain = Gso::default();
    vec![
        ("IPv4", ipv4(address_v4(src), address_v4(dst), 64), plain),
        ("IPv6", ipv6(address_v6(src), address_v6(dst), 64), plain),
        (
            "IPv4, merged TCP",
            ipv4(address_v4(src), address_v4(dst), 2500),
            merged,
        ),
        ("unknown peer", ipv4(stranger, stranger, 64), plain),
    ]
}

fn tailnet(peers: u32) -> Vec<(ipnet::IpNet, PeerIndex)> {
    (1..=peers)
        .flat_map(|peer| {
            let v4 = ipnet::Ipv4Net::from(address_v4(peer)).into();
            let v6 = ipnet::Ipv6Net::from(address_v6(peer)).into();
            [(v4, PeerIndex(peer)), (v6, PeerIndex(peer))]
        })
        .collect()
}

fn address_v4(peer: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 1)) + peer)
}

fn address_v6(peer: u32) -> Ipv6Addr {
    Ipv6Addr::from(0xfd7a_115c_a1e0_0000_0000_0000_0000_0001 + u128::from(peer))
}

/// An IPv4 packet that carries a bare TCP header and zeros, `len` bytes in all.
fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, len: u16) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 6, 0, 0]);
    packet.extend(src.octets());
    packet.extend(dst.octets());
    packet.resize(usize::from(len), 0);
    packet[32] = 5 << 4;
    packet
}

/// As [`ipv4`].
fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, len: u16) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((len - 40).to_be_bytes());
    packet.extend([6, 64]);
    packet.extend(src.octets());
    packet.extend(dst.octets());
    packet.resize(usize::from(len), 0);
    packet[52] = 5 << 4;
    packet
}

fn print_table(bare: Cost, rows: &[Row]) {
    println!(
        "A program that does nothing: {} ns ({}–{}) a run.",
        bare.median, bare.least, bare.most
    );
    println!("On top of it, median of {ROUNDS} rounds of {REPEAT} runs (least–most):\n");
    println!(
        "{:<12} {:<18} {:>6}  {:>6}",
        "program", "frame", "peers", "ns"
    );
    for Row {
        program,
        frame,
        peers,
        cost,
    } in rows
    {
        let above = |ns: u64| ns.saturating_sub(bare.median);
        let (median, least, most) = (above(cost.median), above(cost.least), above(cost.most));
        println!("{program:<12} {frame:<18} {peers:>6}  {median:>6} ({least}–{most})");
    }
}

fn to_json(bare: Cost, rows: &[Row]) -> Value {
    let cost = |cost: Cost| json!({"median": cost.median, "least": cost.least, "most": cost.most});
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "program": row.program,
                "frame": row.frame,
                "peers": row.peers,
                "ns": cost(row.cost),
                "ns_above_bare": row.cost.median.saturating_sub(bare.median),
            })
        })
        .collect();
    json!({"bench": "counters", "repeat": REPEAT, "rounds": ROUNDS, "bare_ns": cost(bare), "rows": rows})
}
