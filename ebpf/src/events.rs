//! Reports of dropped packets, to whoever wants them.
#![expect(
    unsafe_code,
    reason = "per-CPU values are written through raw pointers"
)]

use aya_ebpf::{
    macros::map,
    maps::{Array, PerCpuArray, RingBuf},
};
use ebpf_abi::{Direction, DropEvent, DropReason, NOBODY, SYNS_A_SECOND};
use packet::{
    Flow, SECOND,
    flat::{Flat, OPENS},
};

use crate::tables::{self, Tables};

#[map]
static DROPS: RingBuf = RingBuf::with_byte_size(ebpf_abi::DROPS.max_entries, 0);
#[map]
static DROPS_WANTED: Array<u32> = Array::with_max_entries(1, 0);
#[map]
static DROPS_LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Reports about requests for connections in a second.
#[derive(Clone, Copy)]
#[repr(C)]
struct Told {
    second: u64,
    times: u64,
}

#[map]
static TOLD: PerCpuArray<Told> = PerCpuArray::with_max_entries(1, 0);

/// A packet of no known family was dropped.
#[inline(always)]
pub(crate) fn unread(direction: Direction, reason: DropReason, generation: u64) {
    if is_wanted() {
        report(event(direction, reason, generation));
    }
}

/// What is reported of a packet.
pub(crate) struct Subject<A> {
    src: A,
    dst: A,
    src_port: u16,
    dst_port: u16,
    protocol: u8,
    opens: bool,
}

impl<A: Tables> From<&Flat<A>> for Subject<A> {
    /// Of a packet that was read as far as that was possible.
    #[inline(always)]
    fn from(packet: &Flat<A>) -> Self {
        Self {
            src: packet.src,
            dst: packet.dst,
            src_port: packet.src_port,
            dst_port: packet.dst_port,
            protocol: packet.protocol,
            opens: packet.kind == OPENS,
        }
    }
}

impl<A: Tables> Subject<A> {
    /// Of an ordinary packet, by its flow.
    #[inline(always)]
    pub(crate) fn of_flow(flow: &Flow<A>, kind: u8, direction: Direction) -> Self {
        let ours = (flow.ours, u16::from_be_bytes(flow.our_port));
        let theirs = (flow.theirs, u16::from_be_bytes(flow.their_port));
        let ((src, src_port), (dst, dst_port)) = match direction {
            Direction::In => (theirs, ours),
            Direction::Out => (ours, theirs),
        };
        Self {
            src,
            dst,
            src_port,
            dst_port,
            protocol: flow.protocol,
            opens: kind == OPENS,
        }
    }
}

/// A packet was dropped.
#[inline(always)]
pub(crate) fn dropped<A: Tables>(
    packet: &Subject<A>,
    direction: Direction,
    reason: DropReason,
    generation: u64,
) {
    let told = packet.opens && size_of::<A>() == 4 && matches!(direction, Direction::In);
    if !is_wanted() && !(told && may_tell()) {
        return;
    }
    let remote = match direction {
        Direction::In => packet.src,
        Direction::Out => packet.dst,
    };
    report(DropEvent {
        src: packet.src.padded(),
        dst: packet.dst.padded(),
        peer: remote.peer().map_or(NOBODY, |peer| peer.index),
        src_port: packet.src_port,
        dst_port: packet.dst_port,
        version: if size_of::<A>() == 4 { 4 } else { 6 },
        protocol: packet.protocol,
        opens: packet.opens.into(),
        ..event(direction, reason, generation)
    });
}

#[inline(always)]
fn event(direction: Direction, reason: DropReason, generation: u64) -> DropEvent {
    DropEvent {
        time: tables::now(),
        generation,
        src: [0; 16],
        dst: [0; 16],
        peer: NOBODY,
        src_port: 0,
        dst_port: 0,
        direction: direction as u8,
        reason: reason as u8,
        version: 0,
        protocol: 0,
        opens: 0,
        padding: [0; 3],
    }
}

#[inline(always)]
fn is_wanted() -> bool {
    DROPS_WANTED.get(0).is_some_and(|wanted| *wanted != 0)
}

/// Whether this CPU may report one more request for a connection in this second.
#[inline(always)]
fn may_tell() -> bool {
    let Some(told) = TOLD.get_ptr_mut(0) else {
        return false;
    };
    let second = tables::now() / SECOND;
    // SAFETY: this CPU's own value, used by one packet at a time.
    unsafe {
        if (*told).second != second {
            *told = Told { second, times: 0 };
        }
        (*told).times += 1;
        (*told).times <= SYNS_A_SECOND as u64
    }
}

#[inline(always)]
fn report(event: DropEvent) {
    if let Some(mut entry) = DROPS.reserve::<DropEvent>(0) {
        entry.write(event);
        entry.submit(0);
    } else if let Some(lost) = DROPS_LOST.get_ptr_mut(0) {
        // SAFETY: as in `may_tell`.
        unsafe { *lost += 1 };
    }
}
