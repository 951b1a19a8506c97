//! The filter's maps, as `ebpf-abi` describes them: rules, which only the loader writes, and what the
//! programs remember of flows.
#![expect(
    unsafe_code,
    reason = "values of hash tables are shared with other CPUs"
)]

use core::ffi::c_void;

use aya_ebpf::{
    btf_maps::{Array as InnerArray, ArrayOfMaps, HashMap, LpmTrie, lpm_trie::Key},
    helpers::{
        bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_boot_ns, generated::bpf_loop,
    },
    macros::{btf_map, map},
    maps::{Array, LruHashMap, PerCpuArray},
};
use ebpf_abi::{
    BPF_F_INNER_MAP, Class, Count, FLOWS, FRAGMENTED, KNOWN_RULE, KNOWN_SET, Known, ListedEnd,
    MAX_LISTED_ENDS, Nanos, POLICY_LINEAR, Pair, PeerEntry, PeerIndex, Policy, Ports, RulePorts,
    SETS, Side, address_table, member_bit, rule_slot,
};
use packet::{
    Address, FRAGMENT_AGE, Flow, FragmentKey, Quick, REFRESH,
    flat::{Flat, FlatFamily},
    idle,
};
use zerocopy::transmute_ref;

use crate::maps;

/// `BPF_ANY` in `linux/bpf.h`: make the entry or replace it.
const ANY: u64 = 0;

/// A value of type `V` in a map inside a map, as words.
///
/// A map goes into an array of maps if it is like the pattern that the array was made of. Kernels before
/// 6.2 count among that what they looked for in the type of values, a timer: "none" of a structure,
/// "not asked" of all other types and of maps that come without types, as the loader's do.
macro_rules! words {
    ($value:ty, $word:ty) => {
        [$word; size_of::<$value>() / size_of::<$word>()]
    };
}

/// Set by the loader, which replaces the map in it.
#[btf_map]
static POLICY: ArrayOfMaps<InnerArray<words!(Policy, u64), 1>, 1> = ArrayOfMaps::new();

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
static PAIRS: ArrayOfMaps<HashMap<Pair, words!(Ports, u32), PATTERN>, { SETS as usize }> =
    ArrayOfMaps::new();
const ANY_SIZE: usize = BPF_F_INNER_MAP as usize;
type Lists<V> = ArrayOfMaps<InnerArray<V, PATTERN, ANY_SIZE>, { SETS as usize }>;

#[btf_map]
static PORT_LISTS: Lists<words!(RulePorts, u32)> = ArrayOfMaps::new();
#[btf_map]
static ENDS: Lists<words!(ListedEnd, u32)> = ArrayOfMaps::new();
#[btf_map]
static MEMBERS: Lists<u64> = ArrayOfMaps::new();
#[btf_map]
static RULE_HITS: Lists<words!(Count, u64)> = ArrayOfMaps::new();

#[map]
static GENERATION: Array<u64> = Array::with_max_entries(1, 0);

#[map]
static OPENED_V4: LruHashMap<Flow<[u8; 4]>, Known> = LruHashMap::with_max_entries(FLOWS, 0);
#[map]
static OPENED_V6: LruHashMap<Flow<[u8; 16]>, Known> = LruHashMap::with_max_entries(FLOWS, 0);
#[map]
static FRAGMENTS_V4: LruHashMap<FragmentKey<[u8; 4]>, Known> =
    LruHashMap::with_max_entries(FRAGMENTED, 0);
#[map]
static FRAGMENTS_V6: LruHashMap<FragmentKey<[u8; 16]>, Known> =
    LruHashMap::with_max_entries(FRAGMENTED, 0);

/// The packet at hand; of no meaning between packets.
#[map]
static SCRATCH_V4: PerCpuArray<Flat<[u8; 4]>> = PerCpuArray::with_max_entries(1, 0);
#[map]
static SCRATCH_V6: PerCpuArray<Flat<[u8; 16]>> = PerCpuArray::with_max_entries(1, 0);

#[map]
static CLOCK: Array<Nanos> = Array::with_max_entries(1, 0);

/// Holds 0, which nobody changes.
#[map]
static ZERO: Array<u32> = Array::with_max_entries(1, 0);

/// What a CPU last took for the present, and at which of the kernel's ticks.
#[derive(Clone, Copy)]
#[repr(C)]
struct Tick {
    jiffies: u64,
    now: Nanos,
}

#[map]
static TICKS: PerCpuArray<Tick> = PerCpuArray::with_max_entries(1, 0);

/// Addresses of a family, and the maps that it has for itself.
pub(crate) trait Tables: FlatFamily + Quick + 'static {
    /// Whose address it is.
    fn peer(&self) -> Option<&'static PeerEntry>;
    /// The address, and zeros.
    fn padded(&self) -> [u8; 16];
    /// The class of this address at one end of a packet; `None` if no prefix holds it.
    fn class(&self, set: u32, side: Side) -> Option<Class>;
    /// Flows that our side opened.
    fn opened() -> &'static LruHashMap<Flow<Self>, Known>;
    /// Packets whose first fragment was accepted.
    fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Known>;
    /// Where this CPU keeps what it reads of the packet at hand.
    fn scratch() -> Option<Scratch<Self>>;
}

/// The packet at hand, in a map's memory: the verifier does not follow values there, so that each way
/// to read a packet and each way to judge it are verified once, not every one with every other.
pub(crate) struct Scratch<A>(*mut Flat<A>);
const _: () = assert!(size_of::<Flat<[u8; 4]>>() % 4 == 0 && size_of::<Flat<[u8; 16]>>() % 4 == 0);
const _: () = assert!(align_of::<Flat<[u8; 4]>>() == 4 && align_of::<Flat<[u8; 16]>>() == 4);

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
        // In words: the compiler's `memset` goes byte by byte.
        unsafe {
            for word in 0..size_of::<Flat<A>>() / size_of::<u32>() {
                self.0.cast::<u32>().add(word).write_volatile(0);
            }
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
    ($address:ty, $version:ident, $bits:literal, $hosts:ident, $nets:ident, $opened:ident, $fragments:ident, $scratch:ident) => {
        impl Tables for $address {
            #[inline(always)]
            fn peer(&self) -> Option<&'static PeerEntry> {
                maps::peer(Address::$version(*self))
            }

            #[inline(always)]
            fn padded(&self) -> [u8; 16] {
                let mut padded = [0; 16];
                padded[..size_of::<Self>()].copy_from_slice(self);
                padded
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
            fn opened() -> &'static LruHashMap<Flow<Self>, Known> {
                &$opened
            }

            #[inline(always)]
            fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Known> {
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
    FRAGMENTS_V6,
    SCRATCH_V6
);

/// What is remembered, which other CPUs may change meanwhile, field by field.
///
/// The kernel may give an entry's memory to another flow while it is read here, as with every hash
/// table that is filled in advance; what is read then is a moment of either flow, which at worst
/// lets one packet more pass, or one less.
pub(crate) struct Entry(*mut Known);

macro_rules! fields {
    ($($field:ident: $type:ty),*) => {
        $(
            #[inline(always)]
            pub(crate) fn $field(&self) -> $type {
                // SAFETY: the map returned the pointer, which is valid until the program ends.
                unsafe { (&raw const (*self.0).$field).read_volatile() }
            }
        )*
    };
}

impl Entry {
    fields!(generation: u64, seen: Nanos, expires: Nanos, peer: PeerIndex, flags: u32, rule: u32, rules: u32);

    /// Whether it was seen so lately that its time needs no refreshing.
    #[inline(always)]
    pub(crate) fn is_fresh(&self, now: Nanos) -> bool {
        now.saturating_sub(self.seen()) < REFRESH
    }

    /// Sets its time, unless it is fresh.
    #[inline(always)]
    pub(crate) fn refresh(&self, now: Nanos) {
        if !self.is_fresh(now) {
            // SAFETY: as in `fields`.
            unsafe { (&raw mut (*self.0).seen).write_volatile(now) }
        }
    }
}

/// The flow, if our side opened it, dead or live.
#[inline(always)]
pub(crate) fn opened<A: Tables>(flow: &Flow<A>) -> Option<Entry> {
    A::opened().get_ptr_mut(flow).map(Entry)
}

/// Writes what is known of a flow that our side opened.
#[inline(always)]
pub(crate) fn remember_opened<A: Tables>(flow: &Flow<A>, known: &Known) {
    // Without memory for it the answers need a rule.
    let _ = A::opened().insert(flow, known, ANY);
}

/// The first fragment, if it was accepted lately and in this generation.
#[inline(always)]
pub(crate) fn first_fragment<A: Tables>(
    key: &FragmentKey<A>,
    now: Nanos,
    generation: u64,
) -> Option<Entry> {
    let entry = A::fragments().get_ptr_mut(key).map(Entry)?;
    let lately = now.saturating_sub(entry.seen()) < FRAGMENT_AGE;
    (entry.generation() == generation && lately).then_some(entry)
}

/// Remembers that the first fragment was accepted.
#[inline(always)]
pub(crate) fn remember_fragment<A: Tables>(key: &FragmentKey<A>, known: &Known) {
    // Without memory for it the later fragments are dropped, and the sender tries again.
    let _ = A::fragments().insert(key, known, ANY);
}

#[inline(always)]
pub(crate) fn is_live<A>(flow: &Flow<A>, seen: Nanos, now: Nanos) -> bool {
    now.saturating_sub(seen) < idle(flow.protocol)
}

/// 0, which neither compiler nor verifier knows: a number that this is added to is any to them, so that
/// what follows is verified once, not once for every value that the number may have.
#[inline(always)]
pub(crate) fn unknown_zero() -> u32 {
    // SAFETY: the map's own value.
    ZERO.get_ptr(0)
        .map_or(0, |zero| unsafe { zero.read_volatile() })
}

/// The number that what is remembered has to have, or one that nothing has.
#[inline(always)]
pub(crate) fn generation() -> u64 {
    let Some(generation) = GENERATION.get_ptr(0) else {
        return u64::MAX;
    };
    // SAFETY: the map's own value; a word, which the loader writes at once.
    match unsafe { generation.read_volatile() } {
        0 => u64::MAX,
        generation => generation,
    }
}

/// The policy in force.
#[inline(always)]
pub(crate) fn policy() -> Option<&'static Policy> {
    let policy = POLICY.get_value(0, &0)?;
    Some(transmute_ref!(policy))
}

/// No rule, as the number of one.
pub(crate) const NO_RULE: u32 = u32::MAX;

/// The first rule that admits `port` between the classes of `pair`, or [`NO_RULE`].
#[inline(always)]
pub(crate) fn admitting(policy: &Policy, pair: Pair, port: u16) -> u32 {
    let linear = policy.flags & POLICY_LINEAR != 0;
    let key = Pair {
        source: if linear { 0 } else { pair.source },
        ..pair
    };
    let Some(pairs) = PAIRS.get(policy.set) else {
        return NO_RULE;
    };
    // SAFETY: as in `class`.
    let Some(ports) = (unsafe { pairs.get(key) }) else {
        return NO_RULE;
    };
    let ports: &Ports = transmute_ref!(ports);
    if linear {
        return in_ends(policy, ports, pair.source, port);
    }
    if ports.len != 0 {
        return in_list(policy.set, ports, port);
    }
    for RulePorts { ports, rule } in ports.ranges {
        if ports.first <= port && port <= ports.last {
            return rule;
        }
    }
    NO_RULE
}

/// Halves of the longest list, which has no more ranges than there are ports.
const HALVES: u32 = 17;

#[inline(always)]
fn in_list(set: u32, ports: &Ports, port: u16) -> u32 {
    let Some(lists) = PORT_LISTS.get(set) else {
        return NO_RULE;
    };
    let (mut begin, mut end) = (ports.first, ports.first.wrapping_add(ports.len));
    for _ in 0..HALVES {
        if begin >= end {
            break;
        }
        let middle = begin + (end - begin) / 2;
        let Some(listed) = lists.get(middle) else {
            break;
        };
        let RulePorts { ports, rule } = transmute_ref!(listed);
        if port < ports.first {
            end = middle;
        } else if port > ports.last {
            begin = middle + 1;
        } else {
            return *rule;
        }
    }
    NO_RULE
}

/// What is looked for in a list of `ENDS`, and found.
struct Search {
    set: u32,
    first: u32,
    source: Class,
    member_words: u32,
    port: u32,
    rule: u32,
}

#[inline(always)]
fn in_ends(policy: &Policy, ports: &Ports, source: Class, port: u16) -> u32 {
    let mut search = Search {
        set: policy.set,
        first: ports.first,
        source,
        member_words: policy.member_words,
        port: port.into(),
        rule: NO_RULE,
    };
    let len = ports.len.min(MAX_LISTED_ENDS);
    // SAFETY: the kernel calls the function with the pointer, which lives through the call.
    unsafe {
        let step: unsafe extern "C" fn(u64, *mut Search) -> i64 = try_end;
        bpf_loop(
            len,
            step as *mut c_void,
            (&raw mut search).cast::<c_void>(),
            0,
        );
    }
    search.rule
}

/// Tries one end of a list. Returns 1 if it admits the packet.
#[inline(never)]
unsafe extern "C" fn try_end(index: u64, search: *mut Search) -> i64 {
    // SAFETY: by `in_ends`, nobody else uses it meanwhile.
    let search = unsafe { &mut *search };
    let (Some(ends), Some(members)) = (ENDS.get(search.set), MEMBERS.get(search.set)) else {
        return 1;
    };
    let Some(end) = ends.get(search.first.wrapping_add(index as u32)) else {
        return 1;
    };
    let end: &ListedEnd = transmute_ref!(end);
    if search.port < end.ports.first.into() || search.port > end.ports.last.into() {
        return 0;
    }
    let (word, bit) = member_bit(search.source, end.sources, search.member_words);
    let Some(word) = members.get(word) else {
        return 0;
    };
    if word >> bit & 1 == 0 {
        return 0;
    }
    search.rule = end.rule;
    1
}

/// Counts packets for the rule that admits them, if one does.
#[inline(always)]
pub(crate) fn count_rule(flags: u32, rule: u32, rules: u32, count: Count) {
    if flags & KNOWN_RULE == 0 {
        return;
    }
    let Some(hits) = RULE_HITS.get(flags & KNOWN_SET) else {
        return;
    };
    // SAFETY: asks for a number.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    if let Some(hits) = hits.get_ptr_mut(rule_slot(cpu, rule, rules)) {
        // SAFETY: the map returned the pointer; programs of one CPU do not interrupt each other, and
        // nobody else writes to this CPU's values.
        unsafe { *hits.cast::<Count>() += count };
    }
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
    // SAFETY: reads a clock, as below.
    let jiffies = unsafe { bpf_jiffies64() };
    let Some(tick) = TICKS.get_ptr_mut(0) else {
        return unsafe { bpf_ktime_get_boot_ns() };
    };
    // SAFETY: this CPU's own value, used by one packet at a time. To ask the clock costs more than the
    // rest of judging a packet of a known flow, and flows are counted in seconds.
    unsafe {
        if (*tick).jiffies != jiffies {
            (*tick).now = bpf_ktime_get_boot_ns();
            (*tick).jiffies = jiffies;
        }
        (*tick).now
    }
}
