//! Programs on the overlay device: count each packet for the peer it comes from or goes to.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use ebpf_abi::{Count, Direction, Reason};
use packet::remote_address;

use crate::{frame::Frame, maps};

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

/// The one exit: every packet is counted under one reason, and goes on to the next program.
#[inline(always)]
fn run(ctx: &TcContext, direction: Direction) -> i32 {
    let frame = Frame::new(ctx);
    let mut outcome = try_run(&frame, direction);
    if let Err(Reason::Truncated) = outcome.1
        && frame.pull_headers()
    {
        outcome = try_run(&frame, direction);
    }
    let (count, result) = outcome;
    let reason = result.err().unwrap_or(Reason::Counted);
    maps::count_total(direction, reason, count);
    #[cfg(feature = "log")]
    log(ctx, direction, reason, count);
    TC_ACT_UNSPEC
}

/// Counts the packet for its peer.
#[inline(always)]
fn try_run(frame: &Frame<'_>, direction: Direction) -> (Count, Result<(), Reason>) {
    let count = packet::count(frame, frame.gso());
    let result = remote_address(frame, direction).and_then(|address| {
        maps::peer(address)
            .and_then(|peer| maps::count_peer(peer, direction, count))
            .ok_or(Reason::UnknownPeer)
    });
    (count, result)
}

#[cfg(feature = "log")]
#[inline(always)]
fn log(ctx: &TcContext, direction: Direction, reason: Reason, count: Count) {
    aya_log_ebpf::debug!(
        ctx,
        "{} {}: {} packets, {} bytes",
        direction.program(),
        reason.name(),
        count.packets,
        count.bytes
    );
}
