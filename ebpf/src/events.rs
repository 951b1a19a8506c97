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
    SECOND,
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

/// A packet was dropped, which has been read as far as that was possible.
#[inline(always)]
pub(crate) fn dropped<A: Tables>(
    packet: &Flat<A>,
    direction: Direction,
    reason: DropReason,
    generation: u64,
) {
    let opens = packet.kind == OPENS;
    let told = opens && size_of::<A>() == 4 && matches!(direction, Direction::In);
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
        opens: opens.into(),
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
