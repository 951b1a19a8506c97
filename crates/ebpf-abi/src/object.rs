//! What the object file contains: programs, maps and the version of this crate it was built from.

use crate::{
    BUCKETS, Bucket, COUNTED_ROUTES, Class, Count, FORWARDED_SLOTS, Forward, ForwardKey, Known,
    ListedEnd, Nanos, Pair, PeerCounters, PeerEntry, PeerIndex, Policy, Ports, REASON_SLOTS,
    RulePorts, SETS,
};

/// Version of everything in this crate. The object carries it in its read-only data; pinned maps
/// stand in a folder named after it.
pub const ABI_VERSION: u32 = 6;
/// Read-only data section that holds nothing but the object's copy of [`ABI_VERSION`], a `u32` in
/// little endian.
pub const ABI_VERSION_SECTION: &str = ".rodata.abi";

/// Constant of the object that the loader sets before loading: 0 to count only, 1 to filter too.
/// The kernel drops what a constant of 0 makes unreachable, so that counting alone costs no more
/// than if there were no filter.
pub const GLOBAL_FILTER: &str = "FILTER";
/// Constant of the object: 0 for the kernel's clock, 1 for the time in `CLOCK`, which tests set.
pub const GLOBAL_VIRTUAL_TIME: &str = "VIRTUAL_TIME";

/// Program on the ingress of the overlay device. Program names are at most 15 bytes: the kernel
/// keeps no more.
pub const PROGRAM_IN: &str = "overlay_in";
/// Program on the egress of the overlay device.
pub const PROGRAM_OUT: &str = "overlay_out";
/// Program that only passes: what a run costs by itself, the baseline of measurements.
pub const PROGRAM_BARE: &str = "bare";
/// As [`PROGRAM_IN`], but each run finds an IPv4 packet with the next source port: for measurements.
pub const PROGRAM_NEXT_FLOW: &str = "next_flow_in";
/// Program that [`PROGRAM_IN`] ends with on nodes that forward: packets from peers, past the stack.
pub const PROGRAM_FORWARD_IN: &str = "forward_in";
/// Program that [`PROGRAM_OUT`] ends with on nodes that forward: segment sizes that fit the overlay.
pub const PROGRAM_FORWARD_OUT: &str = "forward_out";
/// Program on the ingress of Ethernet devices of nodes that forward: packets for peers, past the stack.
pub const PROGRAM_NIC_IN: &str = "nic_in";
/// The same for devices without a link layer.
pub const PROGRAM_NIC_IN_IP: &str = "nic_in_ip";
/// Every program in the object.
pub const PROGRAMS: [&str; 8] = [
    PROGRAM_IN,
    PROGRAM_OUT,
    PROGRAM_BARE,
    PROGRAM_NEXT_FLOW,
    PROGRAM_FORWARD_IN,
    PROGRAM_FORWARD_OUT,
    PROGRAM_NIC_IN,
    PROGRAM_NIC_IN_IP,
];

/// Kernel number of the map type, as in `linux/bpf.h`.
pub const BPF_MAP_TYPE_HASH: u32 = 1;
/// Kernel number of the map type, as in `linux/bpf.h`.
pub const BPF_MAP_TYPE_ARRAY: u32 = 2;
/// Kernel number of the map type, as in `linux/bpf.h`.
pub const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
/// Kernel number of the map type, as in `linux/bpf.h`.
pub const BPF_MAP_TYPE_PERCPU_HASH: u32 = 5;
/// Kernel number of the map type, as in `linux/bpf.h`.
pub const BPF_MAP_TYPE_PERCPU_ARRAY: u32 = 6;
/// Kernel number of the map type, as in `linux/bpf.h`.
pub const BPF_MAP_TYPE_LPM_TRIE: u32 = 11;
/// Kernel number of the map type, as in `linux/bpf.h`.
pub const BPF_MAP_TYPE_LRU_HASH: u32 = 9;
/// Kernel number of the map type, as in `linux/bpf.h`.
pub const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
/// Kernel number of the map type, as in `linux/bpf.h`.
pub const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
/// Kernel number of the map type, as in `linux/bpf.h`.
pub const BPF_MAP_TYPE_RINGBUF: u32 = 27;
/// Map flag of `linux/bpf.h`: the array may be of any size in a map of maps.
pub const BPF_F_INNER_MAP: u32 = 1 << 12;
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
    /// What the entries are, of a map of maps.
    pub inner: Option<InnerMapSpec>,
}

/// A map inside a map of maps. The loader makes them, each as large as it has to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct InnerMapSpec {
    /// `BPF_MAP_TYPE_*`.
    pub map_type: u32,
    /// Size of a key in bytes.
    pub key_size: u32,
    /// Size of a value in bytes.
    pub value_size: u32,
    /// `BPF_F_*`.
    pub flags: u32,
}

const fn map_of_maps(name: &'static str, max_entries: u32, inner: InnerMapSpec) -> MapSpec {
    MapSpec {
        name,
        map_type: BPF_MAP_TYPE_ARRAY_OF_MAPS,
        key_size: 4,
        value_size: 4,
        max_entries,
        flags: 0,
        inner: Some(inner),
    }
}

const fn hash_of<K, V>() -> InnerMapSpec {
    InnerMapSpec {
        map_type: BPF_MAP_TYPE_HASH,
        key_size: size_of::<K>() as u32,
        value_size: size_of::<V>() as u32,
        flags: 0,
    }
}

/// Prefixes of addresses `A`: prefix length `u32`, then the address in network order.
const fn trie_of<A, V>() -> InnerMapSpec {
    InnerMapSpec {
        map_type: BPF_MAP_TYPE_LPM_TRIE,
        key_size: 4 + size_of::<A>() as u32,
        value_size: size_of::<V>() as u32,
        flags: BPF_F_NO_PREALLOC,
    }
}

/// As many values as the loader likes.
const fn array_of<V>() -> InnerMapSpec {
    InnerMapSpec {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: size_of::<V>() as u32,
        flags: BPF_F_INNER_MAP,
    }
}

const fn lru(name: &'static str, key_size: usize, value_size: usize, max_entries: u32) -> MapSpec {
    MapSpec {
        name,
        map_type: BPF_MAP_TYPE_LRU_HASH,
        key_size: key_size as u32,
        value_size: value_size as u32,
        max_entries,
        flags: 0,
        inner: None,
    }
}

const fn array(name: &'static str, value_size: usize, max_entries: u32) -> MapSpec {
    MapSpec {
        name,
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: value_size as u32,
        max_entries,
        flags: 0,
        inner: None,
    }
}

/// IPv4 address to [`PeerEntry`].
pub const PEER_HOSTS_V4: MapSpec = MapSpec {
    name: "PEER_HOSTS_V4",
    map_type: BPF_MAP_TYPE_HASH,
    key_size: 4,
    value_size: size_of::<PeerEntry>() as u32,
    max_entries: 1 << 16,
    flags: BPF_F_NO_PREALLOC,
    inner: None,
};

/// IPv6 address to [`PeerEntry`].
pub const PEER_HOSTS_V6: MapSpec = MapSpec {
    name: "PEER_HOSTS_V6",
    key_size: 16,
    ..PEER_HOSTS_V4
};

/// IPv4 prefix (prefix length `u32`, then the address in network order) to [`PeerEntry`], for what is
/// not in [`PEER_HOSTS_V4`].
pub const PEERS_V4: MapSpec = MapSpec {
    name: "PEERS_V4",
    map_type: BPF_MAP_TYPE_LPM_TRIE,
    key_size: 4 + 4,
    value_size: size_of::<PeerEntry>() as u32,
    max_entries: 1 << 16,
    flags: BPF_F_NO_PREALLOC,
    inner: None,
};

/// IPv6 prefix (prefix length `u32`, then the address in network order) to [`PeerEntry`], for what is
/// not in [`PEER_HOSTS_V6`].
pub const PEERS_V6: MapSpec = MapSpec {
    name: "PEERS_V6",
    map_type: BPF_MAP_TYPE_LPM_TRIE,
    key_size: 4 + 16,
    value_size: size_of::<PeerEntry>() as u32,
    max_entries: 1 << 16,
    flags: BPF_F_NO_PREALLOC,
    inner: None,
};

/// [`PeerIndex`] to [`PeerCounters`]. The loader makes the entries, the programs only add to them.
pub const PEER_COUNTS: MapSpec = MapSpec {
    name: "PEER_COUNTS",
    map_type: BPF_MAP_TYPE_PERCPU_HASH,
    key_size: size_of::<PeerIndex>() as u32,
    value_size: size_of::<PeerCounters>() as u32,
    max_entries: 1 << 16,
    flags: BPF_F_NO_PREALLOC,
    inner: None,
};

/// [`total_slot`](crate::total_slot) to [`Count`].
pub const TOTALS: MapSpec = MapSpec {
    name: "TOTALS",
    map_type: BPF_MAP_TYPE_PERCPU_ARRAY,
    key_size: 4,
    value_size: size_of::<Count>() as u32,
    max_entries: 2 * REASON_SLOTS,
    flags: 0,
    inner: None,
};

/// The [`Policy`] in force, in a map of one entry; nothing is in force until the loader put one there.
pub const POLICY: MapSpec = map_of_maps(
    "POLICY",
    1,
    InnerMapSpec {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: size_of::<Policy>() as u32,
        flags: 0,
    },
);

/// By set of rule tables: the kernel's number of the map that was last put into [`POLICY`] for it.
/// The loader's own note, by which the next one finds out which set is in force.
pub const POLICY_IDS: MapSpec = array("POLICY_IDS", size_of::<u32>(), SETS);

/// By [`address_table`](crate::address_table): IPv4 address to [`Class`].
pub const HOSTS_V4: MapSpec = map_of_maps("HOSTS_V4", 2 * SETS, hash_of::<[u8; 4], Class>());
/// By [`address_table`](crate::address_table): IPv6 address to [`Class`].
pub const HOSTS_V6: MapSpec = map_of_maps("HOSTS_V6", 2 * SETS, hash_of::<[u8; 16], Class>());
/// By [`address_table`](crate::address_table): IPv4 prefix to [`Class`], for what is not in [`HOSTS_V4`].
pub const NETS_V4: MapSpec = map_of_maps("NETS_V4", 2 * SETS, trie_of::<[u8; 4], Class>());
/// By [`address_table`](crate::address_table): IPv6 prefix to [`Class`], for what is not in [`HOSTS_V6`].
pub const NETS_V6: MapSpec = map_of_maps("NETS_V6", 2 * SETS, trie_of::<[u8; 16], Class>());
/// By set: [`Pair`] to [`Ports`].
pub const PAIRS: MapSpec = map_of_maps("PAIRS", SETS, hash_of::<Pair, Ports>());
/// By set: lists of [`RulePorts`], one after the other, each in ascending order.
pub const PORT_LISTS: MapSpec = map_of_maps("PORT_LISTS", SETS, array_of::<RulePorts>());
/// By set: lists of [`ListedEnd`], one after the other, each in the order of rules.
pub const ENDS: MapSpec = map_of_maps("ENDS", SETS, array_of::<ListedEnd>());
/// By set: which classes of sources are in which source lists, in words of 64 bits; see
/// [`member_bit`](crate::member_bit).
pub const MEMBERS: MapSpec = map_of_maps("MEMBERS", SETS, array_of::<u64>());
/// By set: the [`Count`] of packets that each rule admitted, for each CPU; see
/// [`rule_slot`](crate::rule_slot).
pub const RULE_HITS: MapSpec = map_of_maps("RULE_HITS", SETS, array_of::<Count>());

/// [`Policy::generation`] for which flows may be remembered; 0 for none.
pub const GENERATION: MapSpec = array("GENERATION", size_of::<u64>(), 1);

/// Ring buffer of [`DropEvent`](crate::DropEvent), for one reader.
pub const DROPS: MapSpec = MapSpec {
    name: "DROPS",
    map_type: BPF_MAP_TYPE_RINGBUF,
    key_size: 0,
    value_size: 0,
    max_entries: 1 << 17,
    flags: 0,
    inner: None,
};
/// Not 0: every dropped packet is reported in [`DROPS`].
pub const DROPS_WANTED: MapSpec = array("DROPS_WANTED", size_of::<u32>(), 1);
/// How many reports did not fit into [`DROPS`], for each CPU.
pub const DROPS_LOST: MapSpec = MapSpec {
    name: "DROPS_LOST",
    map_type: BPF_MAP_TYPE_PERCPU_ARRAY,
    ..array("DROPS_LOST", size_of::<u64>(), 1)
};

/// Bytes of a flow or fragment key (`packet::Flow`, `packet::FragmentKey`) over IPv4.
pub const KEY_V4: usize = 16;
/// Bytes of a flow or fragment key over IPv6.
pub const KEY_V6: usize = 40;
/// Flows of a family that are remembered, for each of the two tables. Of those that were admitted the
/// [`WAYS`](crate::WAYS) that meet in a bucket drive each other out before that.
pub const FLOWS: u32 = 1 << 16;
/// Fragmented packets of a family that are remembered.
pub const FRAGMENTED: u32 = 1 << 12;

/// IPv4 flows that our side opened, to [`Known`]. Only what we send makes entries.
pub const OPENED_V4: MapSpec = lru("OPENED_V4", KEY_V4, size_of::<Known>(), FLOWS);
/// IPv6 flows that our side opened, to [`Known`]. Only what we send makes entries.
pub const OPENED_V6: MapSpec = lru("OPENED_V6", KEY_V6, size_of::<Known>(), FLOWS);
/// IPv4 flows that rules admitted: a [`Bucket`] for each of the values that the top bits of a flow's
/// hash can have. An array, since to write into the kernel's own tables costs several times what all
/// rules cost.
pub const ADMITTED_V4: MapSpec = array("ADMITTED_V4", size_of::<Bucket<[u8; KEY_V4]>>(), BUCKETS);
/// IPv6 flows that rules admitted, as [`ADMITTED_V4`].
pub const ADMITTED_V6: MapSpec = array("ADMITTED_V6", size_of::<Bucket<[u8; KEY_V6]>>(), BUCKETS);
/// What flows are hashed with; 0 until the first loader drew it by lot.
pub const SEED: MapSpec = array("SEED", size_of::<u64>(), 1);
/// IPv4 packets whose first fragment was accepted, to [`Known`].
pub const FRAGMENTS_V4: MapSpec = lru("FRAGMENTS_V4", KEY_V4, size_of::<Known>(), FRAGMENTED);
/// IPv6 packets whose first fragment was accepted, to [`Known`].
pub const FRAGMENTS_V6: MapSpec = lru("FRAGMENTS_V6", KEY_V6, size_of::<Known>(), FRAGMENTED);

/// The time that programs take for the present under [`GLOBAL_VIRTUAL_TIME`]: one [`Nanos`].
pub const CLOCK: MapSpec = array("CLOCK", size_of::<Nanos>(), 1);

/// By [`Direction`](crate::Direction): the program that the overlay programs end with, on nodes that
/// forward. Where there is none they go on, which costs nothing.
pub const FORWARDERS: MapSpec = MapSpec {
    map_type: BPF_MAP_TYPE_PROG_ARRAY,
    ..array("FORWARDERS", size_of::<u32>(), 2)
};
/// Bytes that an IP packet may have on the overlay device, or 0: what TCP is told to keep to.
pub const OVERLAY_MTU: MapSpec = array("OVERLAY_MTU", size_of::<u32>(), 1);
/// [`forwarded_slot`](crate::forwarded_slot) to [`Count`].
pub const FORWARDED: MapSpec = MapSpec {
    map_type: BPF_MAP_TYPE_PERCPU_ARRAY,
    ..array("FORWARDED", size_of::<Count>(), 2 * FORWARDED_SLOTS)
};
/// [`route_slot`](crate::route_slot) to [`Count`].
pub const ROUTE_COUNTS: MapSpec = MapSpec {
    map_type: BPF_MAP_TYPE_PERCPU_ARRAY,
    ..array("ROUTE_COUNTS", size_of::<Count>(), 2 * COUNTED_ROUTES)
};
/// Entries of a family in the forward table; a flow takes two.
pub const FORWARDS: u32 = 1 << 16;
/// [`ForwardKey`] to [`Forward`], for IPv4. Only the loader makes entries, which take memory one by one:
/// a node that does not forward has none.
pub const FORWARD_V4: MapSpec = MapSpec {
    name: "FORWARD_V4",
    map_type: BPF_MAP_TYPE_HASH,
    key_size: size_of::<ForwardKey<[u8; 4]>>() as u32,
    value_size: size_of::<Forward<[u8; 4]>>() as u32,
    max_entries: FORWARDS,
    flags: BPF_F_NO_PREALLOC,
    inner: None,
};
/// As [`FORWARD_V4`], for IPv6.
pub const FORWARD_V6: MapSpec = MapSpec {
    name: "FORWARD_V6",
    key_size: size_of::<ForwardKey<[u8; 16]>>() as u32,
    value_size: size_of::<Forward<[u8; 16]>>() as u32,
    ..FORWARD_V4
};

/// Every map that programs and loader share; what only programs use is not here and is not pinned.
pub const MAPS: [MapSpec; 35] = [
    PEER_HOSTS_V4,
    PEER_HOSTS_V6,
    PEERS_V4,
    PEERS_V6,
    PEER_COUNTS,
    TOTALS,
    POLICY,
    POLICY_IDS,
    HOSTS_V4,
    HOSTS_V6,
    NETS_V4,
    NETS_V6,
    PAIRS,
    PORT_LISTS,
    ENDS,
    MEMBERS,
    RULE_HITS,
    GENERATION,
    DROPS,
    DROPS_WANTED,
    DROPS_LOST,
    OPENED_V4,
    OPENED_V6,
    ADMITTED_V4,
    ADMITTED_V6,
    SEED,
    FRAGMENTS_V4,
    FRAGMENTS_V6,
    CLOCK,
    FORWARDERS,
    OVERLAY_MTU,
    FORWARDED,
    ROUTE_COUNTS,
    FORWARD_V4,
    FORWARD_V6,
];

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
