//! What the object file contains: programs, maps and the version of this crate it was built from.

use crate::{Count, PeerCounters, PeerIndex, REASON_SLOTS};

/// Version of everything in this crate. The object carries it in its read-only data; pinned maps
/// stand in a folder named after it.
pub const ABI_VERSION: u32 = 1;
/// Read-only data section that holds nothing but the object's copy of [`ABI_VERSION`], a `u32` in
/// little endian.
pub const ABI_VERSION_SECTION: &str = ".rodata.abi";

/// Program on the ingress of the overlay device. Program names are at most 15 bytes: the kernel
/// keeps no more.
pub const PROGRAM_IN: &str = "overlay_in";
/// Program on the egress of the overlay device.
pub const PROGRAM_OUT: &str = "overlay_out";
/// Program that only passes: what a run costs by itself, the baseline of measurements.
pub const PROGRAM_BARE: &str = "bare";
/// Every program in the object.
pub const PROGRAMS: [&str; 3] = [PROGRAM_IN, PROGRAM_OUT, PROGRAM_BARE];

/// Kernel number of the map type, as in `linux/bpf.h`.
pub const BPF_MAP_TYPE_PERCPU_HASH: u32 = 5;
/// Kernel number of the map type, as in `linux/bpf.h`.
pub const BPF_MAP_TYPE_PERCPU_ARRAY: u32 = 6;
/// Kernel number of the map type, as in `linux/bpf.h`.
pub const BPF_MAP_TYPE_LPM_TRIE: u32 = 11;
/// Map flag of `linux/bpf.h`: memory is taken per entry. Tries insist on it; for the per-peer
/// counters it keeps small tailnets small on machines with many CPUs.
pub const BPF_F_NO_PREALLOC: u32 = 1;

/// A map of the object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MapSpec {
    /// Name in the object, in the kernel and of the pin; at most 15 bytes.
    pub name: &'static str,
    /// `BPF_MAP_TYPE_*`.
    pub map_type: u32,
    /// Size of a key in bytes.
    pub key_size: u32,
    /// Size of a value in bytes, for per-CPU maps of one CPU's.
    pub value_size: u32,
    /// Most entries the map can hold.
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
}

/// IPv4 prefix (prefix length `u32`, then the address in network order) to [`PeerIndex`].
pub const PEERS_V4: MapSpec = MapSpec {
    name: "PEERS_V4",
    map_type: BPF_MAP_TYPE_LPM_TRIE,
    key_size: 4 + 4,
    value_size: size_of::<PeerIndex>() as u32,
    max_entries: 1 << 16,
    flags: BPF_F_NO_PREALLOC,
};

/// IPv6 prefix (prefix length `u32`, then the address in network order) to [`PeerIndex`].
pub const PEERS_V6: MapSpec = MapSpec {
    name: "PEERS_V6",
    map_type: BPF_MAP_TYPE_LPM_TRIE,
    key_size: 4 + 16,
    value_size: size_of::<PeerIndex>() as u32,
    max_entries: 1 << 16,
    flags: BPF_F_NO_PREALLOC,
};

/// [`PeerIndex`] to [`PeerCounters`]. The loader makes the entries, the programs only add to them.
pub const PEER_COUNTS: MapSpec = MapSpec {
    name: "PEER_COUNTS",
    map_type: BPF_MAP_TYPE_PERCPU_HASH,
    key_size: size_of::<PeerIndex>() as u32,
    value_size: size_of::<PeerCounters>() as u32,
    max_entries: 1 << 16,
    flags: BPF_F_NO_PREALLOC,
};

/// [`total_slot`](crate::total_slot) to [`Count`].
pub const TOTALS: MapSpec = MapSpec {
    name: "TOTALS",
    map_type: BPF_MAP_TYPE_PERCPU_ARRAY,
    key_size: 4,
    value_size: size_of::<Count>() as u32,
    max_entries: 2 * REASON_SLOTS,
    flags: 0,
};

/// Every map in the object.
pub const MAPS: [MapSpec; 4] = [PEERS_V4, PEERS_V6, PEER_COUNTS, TOTALS];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_keeps_every_name_whole() {
        let maps = MAPS.map(|map| map.name);
        for name in PROGRAMS.iter().chain(&maps) {
            assert!(name.len() <= 15, "{name} is longer than 15 bytes");
        }
    }

    #[test]
    fn names_are_unique() {
        for (i, map) in MAPS.iter().enumerate() {
            assert!(MAPS[i + 1..].iter().all(|other| other.name != map.name));
        }
    }
}
