//! The filter's maps, as `ebpf-abi` describes them: rules, which only the loader writes, and what the
//! programs remember of flows.
#![expect(
    unsafe_code,
    reason = "values of hash tables are shared with other CPUs"
)]

use aya_ebpf::{
    btf_maps::{Array as InnerArray, ArrayOfMaps, HashMap, LpmTrie, lpm_trie::Key},
    helpers::bpf_ktime_get_boot_ns,
    macros::{btf_map, map},
    maps::{Array, LruHashMap, PerCpuArray},
};
use ebpf_abi::{
    Admitted, Class, FLOWS, FRAGMENTED, Nanos, Opened, Pair, PeerEntry, Policy, PortBits,
    PortBlock, Ports, SETS, Side, address_table,
};
use packet::{
    Address, FRAGMENT_AGE, Flow, FragmentKey, REFRESH,
    flat::{Flat, FlatFamily},
    idle,
};

use crate::maps;

/// `BPF_ANY` in `linux/bpf.h`: make the entry or replace it.
const ANY: u64 = 0;

/// Set by the loader, which replaces the map in it.
#[btf_map]
static POLICY: ArrayOfMaps<InnerArray<Policy, 1>, 1> = ArrayOfMaps::new();

/// The loader's own note.
#[map]
static POLICY_IDS: Array<u32> = Array::with_max_entries(SETS, 0);

/// Inner maps are as large as the loader makes them; the size here is that of the pattern.
const PATTERN: usize = 1;
const TABLES: usize = 2 * SETS as usize;

#[btf_map]
static HOSTS_V4: ArrayOfMaps<HashMap<[u8; 4], Class, PATTERN>, TABLES> = ArrayOfMaps::new();
#[btf_map]
static HOSTS_V6: ArrayOfMaps<HashMap<[u8; 16], Class, PATTERN>, TABLES> = ArrayOfMaps::new();
#[btf_map]
static NETS_V4: ArrayOfMaps<LpmTrie<[u8; 4], Class, PATTERN>, TABLES> = ArrayOfMaps::new();
#[btf_map]
static NETS_V6: ArrayOfMaps<LpmTrie<[u8; 16], Class, PATTERN>, TABLES> = ArrayOfMaps::new();
#[btf_map]
static PAIRS: ArrayOfMaps<HashMap<Pair, Ports, PATTERN>, { SETS as usize }> = ArrayOfMaps::new();
#[btf_map]
static PORT_LISTS: ArrayOfMaps<HashMap<PortBlock, PortBits, PATTERN>, { SETS as usize }> =
    ArrayOfMaps::new();

#[map]
static OPENED_V4: LruHashMap<Flow<[u8; 4]>, Opened> = LruHashMap::with_max_entries(FLOWS, 0);
#[map]
static OPENED_V6: LruHashMap<Flow<[u8; 16]>, Opened> = LruHashMap::with_max_entries(FLOWS, 0);
#[map]
static ADMITTED_V4: LruHashMap<Flow<[u8; 4]>, Admitted> = LruHashMap::with_max_entries(FLOWS, 0);
#[map]
static ADMITTED_V6: LruHashMap<Flow<[u8; 16]>, Admitted> = LruHashMap::with_max_entries(FLOWS, 0);
#[map]
static FRAGMENTS_V4: LruHashMap<FragmentKey<[u8; 4]>, Admitted> =
    LruHashMap::with_max_entries(FRAGMENTED, 0);
#[map]
static FRAGMENTS_V6: LruHashMap<FragmentKey<[u8; 16]>, Admitted> =
    LruHashMap::with_max_entries(FRAGMENTED, 0);

/// The packet at hand; of no meaning between packets.
#[map]
static SCRATCH_V4: PerCpuArray<Flat<[u8; 4]>> = PerCpuArray::with_max_entries(1, 0);
#[map]
static SCRATCH_V6: PerCpuArray<Flat<[u8; 16]>> = PerCpuArray::with_max_entries(1, 0);

#[map]
static CLOCK: Array<Nanos> = Array::with_max_entries(1, 0);

/// Addresses of a family, and the maps that it has for itself.
pub(crate) trait Tables: FlatFamily + 'static {
    /// Whose address it is.
    fn peer(&self) -> Option<&'static PeerEntry>;
    /// The class of this address at one end of a packet; `None` if no prefix holds it.
    fn class(&self, set: u32, side: Side) -> Option<Class>;
    /// Flows that our side opened.
    fn opened() -> &'static LruHashMap<Flow<Self>, Opened>;
    /// Flows that rules admitted.
    fn admitted() -> &'static LruHashMap<Flow<Self>, Admitted>;
    /// Packets whose first fragment was accepted.
    fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Admitted>;
    /// Where this CPU keeps what it reads of the packet at hand.
    fn scratch() -> Option<Scratch<Self>>;
}

/// The packet at hand, in a map's memory: the verifier does not follow values there, so that each way
/// to read a packet and each way to judge it are verified once, not every one with every other.
pub(crate) struct Scratch<A>(*mut Flat<A>);

impl<A: FlatFamily> Scratch<A> {
    /// Begins with no packet.
    #[inline(always)]
    #[expect(
        clippy::mut_from_ref,
        reason = "this CPU's own memory, used by one packet at a time"
    )]
    pub(crate) fn begin(&self) -> &mut Flat<A> {
        // SAFETY: the map returned the pointer, to this CPU's own value; TC programs of one CPU do not
        // interrupt each other, and a caller ends with what it has before it asks again.
        unsafe {
            *self.0 = Flat::new();
            &mut *self.0
        }
    }

    /// What was read.
    #[inline(always)]
    pub(crate) fn get(&self) -> &Flat<A> {
        // SAFETY: as in `begin`.
        unsafe { &*self.0 }
    }
}

macro_rules! tables {
    ($address:ty, $version:ident, $bits:literal, $hosts:ident, $nets:ident, $opened:ident, $admitted:ident, $fragments:ident, $scratch:ident) => {
        impl Tables for $address {
            #[inline(always)]
            fn peer(&self) -> Option<&'static PeerEntry> {
                maps::peer(Address::$version(*self))
            }

            #[inline(always)]
            fn class(&self, set: u32, side: Side) -> Option<Class> {
                let table = address_table(set, side);
                // SAFETY: only the loader makes entries, before the table can be found here.
                match unsafe { $hosts.get(table)?.get(self) } {
                    Some(class) => Some(*class),
                    None => $nets.get(table)?.get(&Key::new($bits, *self)).copied(),
                }
            }

            #[inline(always)]
            fn opened() -> &'static LruHashMap<Flow<Self>, Opened> {
                &$opened
            }

            #[inline(always)]
            fn admitted() -> &'static LruHashMap<Flow<Self>, Admitted> {
                &$admitted
            }

            #[inline(always)]
            fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Admitted> {
                &$fragments
            }

            #[inline(always)]
            fn scratch() -> Option<Scratch<Self>> {
                $scratch.get_ptr_mut(0).map(Scratch)
            }
        }
    };
}
tables!(
    [u8; 4],
    V4,
    32,
    HOSTS_V4,
    NETS_V4,
    OPENED_V4,
    ADMITTED_V4,
    FRAGMENTS_V4,
    SCRATCH_V4
);
tables!(
    [u8; 16],
    V6,
    128,
    HOSTS_V6,
    NETS_V6,
    OPENED_V6,
    ADMITTED_V6,
    FRAGMENTS_V6,
    SCRATCH_V6
);

/// An entry of [`Opened`] or [`Admitted`], which other CPUs may change meanwhile, field by field.
///
/// The kernel may give an entry's memory to another flow while it is read here, as with every hash
/// table that is filled in advance; what is read then is a moment of either flow, which at worst
/// lets one packet more pass, or one less.
struct Entry<V>(*mut V);

impl Entry<Opened> {
    #[inline(always)]
    fn seen(&self) -> Nanos {
        // SAFETY: the map returned the pointer, which is valid until the program ends.
        unsafe { (&raw const (*self.0).seen).read_volatile() }
    }

    #[inline(always)]
    fn set_seen(&self, now: Nanos) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).seen).write_volatile(now) }
    }

    #[inline(always)]
    fn ours(&self) -> u64 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).ours).read_volatile() }
    }

    #[inline(always)]
    fn set_ours(&self, generation: u64) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).ours).write_volatile(generation) }
    }
}

impl Entry<Admitted> {
    #[inline(always)]
    fn read(&self) -> Admitted {
        // SAFETY: as above.
        unsafe {
            Admitted {
                generation: (&raw const (*self.0).generation).read_volatile(),
                seen: (&raw const (*self.0).seen).read_volatile(),
            }
        }
    }

    #[inline(always)]
    fn set_seen(&self, now: Nanos) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).seen).write_volatile(now) }
    }
}

/// What is known of a flow.
pub(crate) enum Known {
    /// Our side opened it.
    Yes,
    /// Our side opened it, from an address that is no longer ours.
    NotOurs,
    /// Our side has not opened it, or it is dead.
    No,
}

/// Whether our side opened the flow and it is live; then it goes on to be. `is_ours` is asked where
/// that is not known for `generation`: whether our end of the flow is still ours.
#[inline(always)]
pub(crate) fn refresh_opened<A: Tables>(
    flow: &Flow<A>,
    now: Nanos,
    generation: u64,
    is_ours: impl FnOnce() -> bool,
) -> Known {
    let Some(entry) = live_opened(flow, now) else {
        return Known::No;
    };
    if entry.ours() != generation {
        if !is_ours() {
            return Known::NotOurs;
        }
        entry.set_ours(generation);
    }
    refresh(&entry, now);
    Known::Yes
}

/// As [`refresh_opened`] for what we send, of which we know that it is ours.
#[inline(always)]
pub(crate) fn refresh_own<A: Tables>(flow: &Flow<A>, now: Nanos) -> bool {
    let entry = live_opened(flow, now);
    entry.is_some_and(|entry| {
        refresh(&entry, now);
        true
    })
}

/// Whether our side opened the flow and it is live.
#[inline(always)]
pub(crate) fn is_opened<A: Tables>(flow: &Flow<A>, now: Nanos) -> bool {
    live_opened(flow, now).is_some()
}

/// Remembers that our side opened the flow.
#[inline(always)]
pub(crate) fn open<A: Tables>(flow: &Flow<A>, now: Nanos) {
    let opened = Opened { seen: now, ours: 0 };
    // Without memory for it the flow is not known: its answers need a rule.
    let _ = A::opened().insert(flow, &opened, ANY);
}

#[inline(always)]
fn live_opened<A: Tables>(flow: &Flow<A>, now: Nanos) -> Option<Entry<Opened>> {
    let entry = Entry(A::opened().get_ptr_mut(flow)?);
    is_live(flow, entry.seen(), now).then_some(entry)
}

#[inline(always)]
fn refresh(entry: &Entry<Opened>, now: Nanos) {
    if now.saturating_sub(entry.seen()) >= REFRESH {
        entry.set_seen(now);
    }
}

/// Whether the flow was admitted in this generation; then it is admitted again.
#[inline(always)]
pub(crate) fn admit_again<A: Tables>(flow: &Flow<A>, now: Nanos, generation: u64) -> bool {
    let Some(entry) = A::admitted().get_ptr_mut(flow).map(Entry) else {
        return false;
    };
    let admitted = entry.read();
    if admitted.generation != generation {
        return false;
    }
    if now.saturating_sub(admitted.seen) >= REFRESH {
        entry.set_seen(now);
    }
    true
}

/// The generation in which the flow was admitted, if it is live.
#[inline(always)]
pub(crate) fn live_admitted<A: Tables>(flow: &Flow<A>, now: Nanos) -> Option<u64> {
    let admitted = A::admitted().get_ptr_mut(flow).map(Entry)?.read();
    is_live(flow, admitted.seen, now).then_some(admitted.generation)
}

/// Remembers that the flow was admitted.
#[inline(always)]
pub(crate) fn admit<A: Tables>(flow: &Flow<A>, now: Nanos, generation: u64) {
    let seen = now;
    // Without memory for it the flow is judged anew with the next packet.
    let _ = A::admitted().insert(flow, &Admitted { generation, seen }, ANY);
}

/// Whether the first fragment was accepted, lately and in this generation.
#[inline(always)]
pub(crate) fn knows_fragment<A: Tables>(key: &FragmentKey<A>, now: Nanos, generation: u64) -> bool {
    let Some(entry) = A::fragments().get_ptr_mut(key).map(Entry) else {
        return false;
    };
    let first = entry.read();
    first.generation == generation && now.saturating_sub(first.seen) < FRAGMENT_AGE
}

/// Remembers that the first fragment was accepted.
#[inline(always)]
pub(crate) fn remember_fragment<A: Tables>(key: &FragmentKey<A>, now: Nanos, generation: u64) {
    let seen = now;
    // Without memory for it the later fragments are dropped, and the sender tries again.
    let _ = A::fragments().insert(key, &Admitted { generation, seen }, ANY);
}

#[inline(always)]
fn is_live<A>(flow: &Flow<A>, seen: Nanos, now: Nanos) -> bool {
    now.saturating_sub(seen) < idle(flow.protocol)
}

/// The policy in force.
#[inline(always)]
pub(crate) fn policy() -> Option<&'static Policy> {
    POLICY.get_value(0, &0)
}

/// Whether a rule of `set` admits `port` between the classes of `pair`.
#[inline(always)]
pub(crate) fn admits(set: u32, pair: Pair, port: u16) -> bool {
    let Some(pairs) = PAIRS.get(set) else {
        return false;
    };
    // SAFETY: as in `class`.
    let Some(ports) = (unsafe { pairs.get(pair) }) else {
        return false;
    };
    if ports.list != 0 {
        return in_list(set, ports.list, port);
    }
    ports
        .ranges
        .iter()
        .any(|range| range.first <= port && port <= range.last)
}

#[inline(always)]
fn in_list(set: u32, list: u32, port: u16) -> bool {
    let Some(lists) = PORT_LISTS.get(set) else {
        return false;
    };
    let key = PortBlock {
        list,
        block: port as u32 / 512,
    };
    // SAFETY: as in `class`.
    let Some(bits) = (unsafe { lists.get(key) }) else {
        return false;
    };
    bits[port as usize / 64 % 8] >> (port % 64) & 1 == 1
}

/// Set by the loader: 1 filters, 0 counts only. A constant to the verifier. Its value here is one of
/// its own: the compiler lets equal constants share a place, and the loader would change them all.
#[unsafe(no_mangle)]
static FILTER: u32 = 0x5f46_494c;

/// Set by the loader: 1 takes the time from `CLOCK`, 0 from the kernel. As [`FILTER`].
#[unsafe(no_mangle)]
static VIRTUAL_TIME: u32 = 0x5654_494d;

/// Whether packets are filtered.
#[inline(always)]
pub(crate) fn filters() -> bool {
    // SAFETY: a constant of the object; volatile, or the compiler would take its value for granted.
    unsafe { (&raw const FILTER).read_volatile() != 0 }
}

/// The present, by the clock of which [`Nanos`] are.
#[inline(always)]
pub(crate) fn now() -> Nanos {
    // SAFETY: as in `filters`.
    if unsafe { (&raw const VIRTUAL_TIME).read_volatile() } != 0 {
        return CLOCK.get(0).copied().unwrap_or_default();
    }
    // SAFETY: reads a clock.
    unsafe { bpf_ktime_get_boot_ns() }
}
