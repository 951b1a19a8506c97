//! Programs on the overlay device: count each packet for the peer it comes from or goes to.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
#[cfg(feature = "log")]
use ebpf_abi::Count;
use ebpf_abi::{Direction, KNOWN_PEER, PeerIndex, Reason};
use packet::remote_address;

use crate::{
    filter::{self, Passed},
    forward,
    frame::Frame,
    maps, tables,
};

/// Ingress of the overlay device.
#[classifier]
fn overlay_in(ctx: TcContext) -> i32 {
    run(&ctx, Direction::In)
}

/// Egress of the overlay device.
#[classifier]
fn overlay_out(ctx: TcContext) -> i32 {
    run(&ctx, Direction::Out)
}

/// Does nothing: what every run costs.
#[classifier]
fn bare(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// As `overlay_in`, but each run over an IPv4 packet finds it with the next source port: first
/// packets of flows, for measurements.
#[classifier]
fn next_flow_in(ctx: TcContext) -> i32 {
    Frame::new(&ctx).next_source_port();
    run(&ctx, Direction::In)
}

/// The one exit: every packet is counted under one number, and goes on to the next program or ends.
#[inline(always)]
fn run(ctx: &TcContext, direction: Direction) -> i32 {
    let frame = Frame::new(ctx);
    let passed = passed(&frame, direction);
    // Not before: to judge may have brought headers into reach.
    let count = packet::count(&frame, frame.gso());
    let (number, verdict) = match passed {
        Ok(Passed {
            peer,
            flags,
            rule,
            rules,
        }) => {
            if matches!(direction, Direction::In) && tables::filters() {
                tables::count_rule(flags, rule, rules, count);
            }
            let is_peers = flags & KNOWN_PEER != 0;
            let counted = is_peers && maps::count_peer(peer, direction, count).is_some();
            let reason = if counted {
                Reason::Counted
            } else {
                Reason::UnknownPeer
            };
            (reason as u32, TC_ACT_UNSPEC)
        }
        Err(End { number, verdict }) => (number, verdict),
    };
    maps::count_total(direction, number, count);
    #[cfg(feature = "log")]
    log(ctx, direction, number, count);
    if verdict == TC_ACT_UNSPEC {
        forward::go_on(ctx, direction);
    }
    verdict
}

/// How a packet that could not be read or may not pass ends.
struct End {
    number: u32,
    verdict: i32,
}

/// For whom the packet is counted, if it may pass.
#[inline(always)]
fn passed(frame: &Frame<'_>, direction: Direction) -> Result<Passed, End> {
    if tables::filters() {
        return filter::judge(frame, direction).map_err(|reason| End {
            number: reason as u32,
            verdict: TC_ACT_SHOT,
        });
    }
    let peer = frame
        .read(|| remote_address(frame, direction))
        .map(maps::peer)
        .map_err(|reason| End {
            number: reason as u32,
            verdict: TC_ACT_UNSPEC,
        })?;
    Ok(Passed {
        peer: peer.map_or(PeerIndex(0), |peer| peer.index),
        flags: if peer.is_some() { KNOWN_PEER } else { 0 },
        rule: 0,
        rules: 0,
    })
}

#[cfg(feature = "log")]
#[inline(always)]
fn log(ctx: &TcContext, direction: Direction, number: u32, count: Count) {
    aya_log_ebpf::debug!(
        ctx,
        "{} {}: {} packets, {} bytes",
        direction.program(),
        number,
        count.packets,
        count.bytes
    );
}
