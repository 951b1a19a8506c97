//! What came for the agent and led to nothing: [`Junk`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use node_core::paths::Ignored;

/// Datagrams that came to WireGuard's port or over a relay, are not WireGuard's, and led to nothing, by reason.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Junk {
    /// Neither STUN nor disco.
    pub foreign: u64,
    /// STUN that nobody asked for, or that makes no sense.
    pub stun: u64,
    /// Disco from a key that no peer has, or over a relay from a node that is none.
    pub unknown_sender: u64,
    /// Disco of a peer that does not open, or is cut off: sealed for another key, damaged, forged.
    pub unopened: u64,
    /// Disco of a type that is unknown here.
    pub unknown_type: u64,
    /// A pong that no ping waits for: late, repeated or forged.
    pub unmatched_pong: u64,
    /// A ping that came from the same address before.
    pub repeated_ping: u64,
    /// A call for a path that did not come by a relay from the peer itself.
    pub misplaced: u64,
    /// More than could be handled.
    pub overrun: u64,
}

impl Junk {
    /// How many there were by reason, each with its word in metrics and one for people.
    #[must_use]
    pub fn reasons(self) -> [(&'static str, &'static str, u64); 9] {
        let Self {
            foreign,
            stun,
            unknown_sender,
            unopened,
            unknown_type,
            unmatched_pong,
            repeated_ping,
            misplaced,
            overrun,
        } = self;
        [
            ("foreign", "neither WireGuard's nor STUN nor disco", foreign),
            ("stun", "STUN that nobody asked for", stun),
            (
                "unknown_sender",
                "disco of a key that no peer has",
                unknown_sender,
            ),
            ("unopened", "disco that does not open", unopened),
            ("unknown_type", "disco of an unknown type", unknown_type),
            (
                "unmatched_pong",
                "a pong that no ping waits for",
                unmatched_pong,
            ),
            ("repeated_ping", "a ping that came before", repeated_ping),
            (
                "misplaced",
                "a call for a path, not by the peer's relay",
                misplaced,
            ),
            ("overrun", "more than could be handled", overrun),
        ]
    }
}

/// Counts junk; cheap to clone, all count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    foreign: AtomicU64,
    stun: AtomicU64,
    unknown_sender: AtomicU64,
    unopened: AtomicU64,
    overrun: AtomicU64,
    /// What the path machine has counted.
    ignored: [AtomicU64; 5],
}

impl Tally {
    pub(crate) fn foreign(&self) {
        add(&self.0.foreign);
    }

    pub(crate) fn stun(&self) {
        add(&self.0.stun);
    }

    pub(crate) fn unknown_sender(&self) {
        add(&self.0.unknown_sender);
    }

    pub(crate) fn unopened(&self) {
        add(&self.0.unopened);
    }

    pub(crate) fn overrun(&self) {
        add(&self.0.overrun);
    }

    /// Takes over what the path machine has counted so far.
    pub(super) fn set_ignored(&self, ignored: Ignored) {
        let Ignored {
            unknown_sender,
            unmatched_pong,
            repeated_ping,
            misplaced,
            unknown_type,
        } = ignored;
        let counted = [
            unknown_sender,
            unmatched_pong,
            repeated_ping,
            misplaced,
            unknown_type,
        ];
        for (counter, count) in self.0.ignored.iter().zip(counted) {
            counter.store(count, Ordering::Relaxed);
        }
    }

    /// What there was so far.
    pub(crate) fn read(&self) -> Junk {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters {
            foreign,
            stun,
            unknown_sender,
            unopened,
            overrun,
            ignored,
        } = &*self.0;
        let [
            unknown_node,
            unmatched_pong,
            repeated_ping,
            misplaced,
            unknown_type,
        ] = ignored.each_ref().map(read);
        Junk {
            foreign: read(foreign),
            stun: read(stun),
            unknown_sender: read(unknown_sender) + unknown_node,
            unopened: read(unopened),
            unknown_type,
            unmatched_pong,
            repeated_ping,
            misplaced,
            overrun: read(overrun),
        }
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
