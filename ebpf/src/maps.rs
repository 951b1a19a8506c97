//! The maps, as `ebpf-abi` describes them, and the only ways in which programs touch the counters.
#![expect(
    unsafe_code,
    reason = "per-CPU values are written through raw pointers"
)]

use aya_ebpf::{
    macros::map,
    maps::{HashMap, LpmTrie, PerCpuArray, PerCpuHashMap, lpm_trie::Key},
};
use ebpf_abi::{Count, Direction, PeerCounters, PeerEntry, PeerIndex, total_slot};
use packet::Address;

#[map]
static PEER_HOSTS_V4: HashMap<[u8; 4], PeerEntry> = HashMap::with_max_entries(
    ebpf_abi::PEER_HOSTS_V4.max_entries,
    ebpf_abi::PEER_HOSTS_V4.flags,
);

#[map]
static PEER_HOSTS_V6: HashMap<[u8; 16], PeerEntry> = HashMap::with_max_entries(
    ebpf_abi::PEER_HOSTS_V6.max_entries,
    ebpf_abi::PEER_HOSTS_V6.flags,
);

#[map]
static PEERS_V4: LpmTrie<[u8; 4], PeerEntry> =
    LpmTrie::with_max_entries(ebpf_abi::PEERS_V4.max_entries, ebpf_abi::PEERS_V4.flags);

#[map]
static PEERS_V6: LpmTrie<[u8; 16], PeerEntry> =
    LpmTrie::with_max_entries(ebpf_abi::PEERS_V6.max_entries, ebpf_abi::PEERS_V6.flags);

#[map]
static PEER_COUNTS: PerCpuHashMap<PeerIndex, PeerCounters> = PerCpuHashMap::with_max_entries(
    ebpf_abi::PEER_COUNTS.max_entries,
    ebpf_abi::PEER_COUNTS.flags,
);

#[map]
static TOTALS: PerCpuArray<Count> =
    PerCpuArray::with_max_entries(ebpf_abi::TOTALS.max_entries, ebpf_abi::TOTALS.flags);

/// Returns whose is the longest prefix that holds `address`.
#[inline(always)]
pub(crate) fn peer(address: Address) -> Option<&'static PeerEntry> {
    // SAFETY: only the loader writes entries, each at once.
    unsafe {
        match address {
            Address::V4(address) => PEER_HOSTS_V4
                .get(address)
                .or_else(|| PEERS_V4.get(Key::new(32, address))),
            Address::V6(address) => PEER_HOSTS_V6
                .get(address)
                .or_else(|| PEERS_V6.get(Key::new(128, address))),
        }
    }
}

/// Adds `count` to the peer's counters of `direction`; `None` if the loader has made none.
#[inline(always)]
pub(crate) fn count_peer(peer: PeerIndex, direction: Direction, count: Count) -> Option<()> {
    let counters = PEER_COUNTS.get_ptr_mut(peer)?;
    // SAFETY: the map returned the pointer, to this CPU's own value; TC programs of one CPU do not
    // interrupt each other, and nobody else writes to it.
    let counters = unsafe { &mut *counters };
    match direction {
        Direction::In => {
            counters.rx_packets = counters.rx_packets.wrapping_add(count.packets);
            counters.rx_bytes = counters.rx_bytes.wrapping_add(count.bytes);
        }
        Direction::Out => {
            counters.tx_packets = counters.tx_packets.wrapping_add(count.packets);
            counters.tx_bytes = counters.tx_bytes.wrapping_add(count.bytes);
        }
    }
    Some(())
}

/// Adds `count` to the total of `direction` and the reason of this number.
#[inline(always)]
pub(crate) fn count_total(direction: Direction, number: u32, count: Count) {
    // The slot is within the array by its making: there is always a value.
    if let Some(total) = TOTALS.get_ptr_mut(total_slot(direction, number)) {
        // SAFETY: as in `count_peer`.
        unsafe { *total += count };
    }
}
