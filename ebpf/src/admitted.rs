//! The flows that rules admitted: a table of the programs' own, for a stranger's first packet has to be
//! cheap, and to insert a flow into the kernel's LRU table costs more than all the rest of judging it.
//!
//! A bucket holds [`WAYS`] flows; a new one takes the place of the one that was silent for the longest
//! time. Nobody locks: words are read and written one by one, and `cache::check` tells a mixture of two
//! flows, which CPUs that write into one place may leave behind, from either.
#![expect(unsafe_code, reason = "buckets are shared with other CPUs")]

use core::{hint::black_box, ops::Deref};

use aya_ebpf::{macros::map, maps::Array};
use ebpf_abi::{BUCKETS, Bucket, Known, Nanos, PeerIndex, WAYS, Way};
use packet::{Flow, REFRESH, cache};

use crate::tables::{self, Tables};

#[map]
static ADMITTED_V4: Array<Bucket<[u64; 2]>> = Array::with_max_entries(BUCKETS, 0);
#[map]
static ADMITTED_V6: Array<Bucket<[u64; 5]>> = Array::with_max_entries(BUCKETS, 0);
#[map]
static SEED: Array<u64> = Array::with_max_entries(1, 0);

/// A flow as words, which are cheaper to hash and to compare than bytes.
pub(crate) trait Words: Tables {
    /// As many as its bytes come to.
    type Words: Copy;
    /// The flow's own bytes.
    fn words(flow: Flow<Self>) -> Self::Words;
    /// `cache::hash`.
    fn hash(words: &Self::Words, seed: u64) -> u64;
    /// Whether the same words are at `stored`.
    ///
    /// # Safety
    ///
    /// `stored` is in a value of a map.
    unsafe fn is_at(words: &Self::Words, stored: *const Self::Words) -> bool;
    /// Writes the words to `stored`.
    ///
    /// # Safety
    ///
    /// As of `is_at`.
    unsafe fn write_to(words: &Self::Words, stored: *mut Self::Words);
    /// The bucket of this number.
    fn bucket(number: u32) -> Option<*mut Bucket<Self::Words>>;
}

macro_rules! words {
    ($address:ty, $words:ty, $map:ident) => {
        impl Words for $address {
            type Words = $words;

            #[inline(always)]
            fn words(flow: Flow<Self>) -> $words {
                zerocopy::transmute!(flow)
            }

            #[inline(always)]
            fn hash(words: &$words, seed: u64) -> u64 {
                cache::hash(words, seed)
            }

            #[inline(always)]
            unsafe fn is_at(words: &$words, stored: *const $words) -> bool {
                let mut differ = 0;
                for (at, word) in words.iter().enumerate() {
                    // SAFETY: by the caller's promise.
                    differ |= word ^ unsafe { stored.cast::<u64>().add(at).read_volatile() };
                }
                differ == 0
            }

            #[inline(always)]
            unsafe fn write_to(words: &$words, stored: *mut $words) {
                for (at, word) in words.iter().enumerate() {
                    // SAFETY: by the caller's promise.
                    unsafe { stored.cast::<u64>().add(at).write_volatile(*word) };
                }
            }

            #[inline(always)]
            fn bucket(number: u32) -> Option<*mut Bucket<$words>> {
                $map.get_ptr_mut(number)
            }
        }
    };
}
words!([u8; 4], [u64; 2], ADMITTED_V4);
words!([u8; 16], [u64; 5], ADMITTED_V6);

/// A flow, laid out for look-ups.
pub(crate) struct Key<A: Words>(A::Words);

impl<A: Words> Key<A> {
    #[inline(always)]
    pub(crate) fn new(flow: Flow<A>) -> Self {
        Self(A::words(flow))
    }
}

impl<A: Words> Deref for Key<A> {
    type Target = Flow<A>;

    #[inline(always)]
    fn deref(&self) -> &Flow<A> {
        // SAFETY: the words are the flow's bytes, all of them, and it needs no alignment.
        unsafe { &*(&raw const self.0).cast() }
    }
}

/// Where a flow is in the table, or would be, and what was found there.
pub(crate) struct Place<A: Words> {
    bucket: *mut Bucket<A::Words>,
    hash: u64,
    /// Its way, or [`NOWHERE`].
    at: usize,
    /// What is known of it; nothing means anything if it is not there.
    known: Known,
}

/// No way of a bucket.
const NOWHERE: usize = WAYS;

impl<A: Words> Place<A> {
    /// Looks for the flow. `None` is for the compiler alone: every number has its bucket.
    #[inline(always)]
    pub(crate) fn of(key: &Key<A>) -> Option<Self> {
        let seed = SEED.get(0).copied().unwrap_or_default();
        let hash = A::hash(&key.0, seed);
        let bucket = A::bucket((hash >> (64 - BUCKETS.ilog2())) as u32)?;
        let mut place = Self {
            bucket,
            hash,
            at: NOWHERE,
            known: Known::default(),
        };
        for at in 0..WAYS {
            // SAFETY: the map returned the pointer, valid until the program ends.
            let found = unsafe { (&raw const (*bucket).hashes[at]).read_volatile() };
            if found == hash && place.read(key, at) {
                place.at = at;
                break;
            }
        }
        Some(place)
    }

    /// Reads what is known of the flow if it is there, whole.
    #[inline(always)]
    fn read(&mut self, key: &Key<A>, at: usize) -> bool {
        let bucket = self.bucket;
        // SAFETY: as in `of`.
        let way: *const Way<A::Words> = unsafe { &raw const (*bucket).ways[at] };
        // SAFETY: likewise; each word is read once.
        let check = unsafe {
            if !A::is_at(&key.0, &raw const (*way).flow) {
                return false;
            }
            let [peer, flags] = pair((&raw const (*way).peer).cast());
            let [rule, rules] = pair((&raw const (*way).rule).cast());
            self.known = Known {
                generation: (&raw const (*way).generation).read_volatile(),
                seen: (&raw const (*bucket).seen[at]).read_volatile(),
                expires: (&raw const (*way).expires).read_volatile(),
                peer: PeerIndex(peer),
                flags,
                rule,
                rules,
            };
            (&raw const (*way).check).read_volatile()
        };
        check == cache::check(self.hash, &self.known)
    }

    /// Has the verifier lose track of where the flow was found, if it was, by `tables::unknown_zero`.
    #[inline(always)]
    pub(crate) fn blur(&mut self, zero: u32) {
        self.at ^= zero as usize;
        self.known.generation ^= u64::from(zero);
        self.known.seen ^= u64::from(zero);
        self.known.flags ^= zero;
        self.known.rule ^= zero;
    }

    /// What is known of the flow.
    #[inline(always)]
    pub(crate) fn found(&self) -> Option<&Known> {
        (self.at != NOWHERE).then_some(&self.known)
    }

    /// What is known of the flow, if that is of this generation.
    #[inline(always)]
    pub(crate) fn found_of(&self, generation: u64) -> Option<&Known> {
        self.found().filter(|known| known.generation == generation)
    }

    /// Whether the flow is there and live.
    #[inline(always)]
    pub(crate) fn is_live(&self, key: &Key<A>, now: Nanos) -> bool {
        self.found()
            .is_some_and(|known| tables::is_live(key, known.seen, now))
    }

    /// Sets the time of the flow, which was found.
    #[inline(always)]
    pub(crate) fn refresh(&self, now: Nanos) {
        if self.at < WAYS {
            let at = within(self.at);
            // SAFETY: as in `of`. Another flow may have taken the place: it is kept a little longer.
            unsafe { (&raw mut (*self.bucket).seen[at]).write_volatile(now) };
        }
    }

    /// Writes what is known of the flow.
    #[inline(always)]
    pub(crate) fn remember(&self, key: &Key<A>, known: &Known) {
        let bucket = self.bucket;
        let mut at = self.at;
        if at >= WAYS {
            at = 0;
            let mut oldest = Nanos::MAX;
            for way in 0..WAYS {
                // SAFETY: as in `of`.
                let seen = unsafe { (&raw const (*bucket).seen[way]).read_volatile() };
                if seen < oldest {
                    (oldest, at) = (seen, way);
                }
            }
        }
        let at = within(at);
        let whose = u64::from(known.peer.0) | u64::from(known.flags) << 32;
        let rule = u64::from(known.rule) | u64::from(known.rules) << 32;
        // SAFETY: as in `of`; each word is written once.
        unsafe {
            let way: *mut Way<A::Words> = &raw mut (*bucket).ways[at];
            (&raw mut (*bucket).hashes[at]).write_volatile(self.hash);
            (&raw mut (*bucket).seen[at]).write_volatile(known.seen);
            A::write_to(&key.0, &raw mut (*way).flow);
            (&raw mut (*way).check).write_volatile(cache::check(self.hash, known));
            (&raw mut (*way).generation).write_volatile(known.generation);
            (&raw mut (*way).expires).write_volatile(known.expires);
            (&raw mut (*way).peer).cast::<u64>().write_volatile(whose);
            (&raw mut (*way).rule).cast::<u64>().write_volatile(rule);
        }
    }
}

/// Whether what is known was seen so lately that its time needs no refreshing.
#[inline(always)]
pub(crate) fn is_fresh(known: &Known, now: Nanos) -> bool {
    now.saturating_sub(known.seen) < REFRESH
}

/// The same way of a bucket, said aloud for verifiers before 6.7, which forget comparisons with what is
/// kept on the stack; the compiler, which does not, would leave it out.
#[inline(always)]
fn within(at: usize) -> usize {
    black_box(at) % WAYS
}

/// Two numbers that are one word.
///
/// # Safety
///
/// `word` is in a value of a map.
#[inline(always)]
unsafe fn pair(word: *const u64) -> [u32; 2] {
    // SAFETY: by the caller's promise.
    let word = unsafe { word.read_volatile() };
    [word as u32, (word >> 32) as u32]
}
