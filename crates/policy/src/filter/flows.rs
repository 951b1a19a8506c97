//! What a filter remembers of one address family.

use std::hash::Hash;

use packet::{Datagram, FRAGMENT_AGE, Family, Flow, FragmentKey, REFRESH, idle};

use super::lru::Lru;

/// Capacity of each of the two tables of flows of a family.
pub(super) const FLOWS: usize = 1 << 16;
/// Capacity of the table of fragmented packets of a family.
pub(super) const FRAGMENTED: usize = 1 << 12;

/// The tables of one address family; the module above says what they mean.
#[derive(Clone, Debug)]
pub(super) struct Flows<A> {
    /// Flows that our side opened, to when they were last seen.
    opened: Lru<Flow<A>, u64>,
    /// Flows that were admitted.
    admitted: Lru<Flow<A>, Admitted>,
    /// Packets whose first fragment was accepted.
    fragments: Lru<FragmentKey<A>, Admitted>,
}

#[derive(Clone, Copy, Debug)]
struct Admitted {
    generation: u64,
    seen: u64,
}

impl<A: Family + Hash> Flows<A> {
    pub(super) fn new(flows: usize, fragmented: usize) -> Self {
        Self {
            opened: Lru::new(flows),
            admitted: Lru::new(flows),
            fragments: Lru::new(fragmented),
        }
    }

    /// Whether our side opened the flow and it still lives.
    pub(super) fn is_opened(&self, flow: &Flow<A>, now: u64) -> bool {
        self.opened
            .peek(flow)
            .is_some_and(|seen| is_live(flow, *seen, now))
    }

    /// As [`Flows::is_opened`]; a flow that lives goes on to do so.
    pub(super) fn refresh_opened(&mut self, flow: &Flow<A>, now: u64) -> bool {
        let Some(seen) = self.opened.get_mut(flow) else {
            return false;
        };
        if !is_live(flow, *seen, now) {
            return false;
        }
        if age(*seen, now) >= REFRESH {
            *seen = now;
        }
        true
    }

    /// Remembers that our side opened the flow.
    pub(super) fn open(&mut self, flow: Flow<A>, now: u64) {
        self.opened.put(flow, now);
    }

    /// Whether the flow was admitted, under whatever rules, and still lives.
    pub(super) fn is_admitted(&self, flow: &Flow<A>, now: u64) -> bool {
        self.admitted
            .peek(flow)
            .is_some_and(|admitted| is_live(flow, admitted.seen, now))
    }

    /// Whether the flow was admitted in this generation, live or not.
    pub(super) fn was_admitted(&self, flow: &Flow<A>, generation: u64) -> bool {
        self.admitted
            .peek(flow)
            .is_some_and(|admitted| admitted.generation == generation)
    }

    /// Whether the flow was admitted in this generation; then it is once more. `answers`: the packet
    /// may also be an answer to what our side opened.
    pub(super) fn admit_again(
        &mut self,
        flow: &Flow<A>,
        generation: u64,
        answers: bool,
        now: u64,
    ) -> bool {
        let Some(admitted) = self.admitted.get_mut(flow) else {
            return false;
        };
        if admitted.generation != generation {
            return false;
        }
        if age(admitted.seen, now) >= REFRESH {
            admitted.seen = now;
            if answers {
                self.refresh_opened(flow, now);
            }
        }
        true
    }

    /// Remembers that the flow was admitted.
    pub(super) fn admit(&mut self, flow: Flow<A>, generation: u64, now: u64) {
        // Used, even if nothing is written.
        if let Some(admitted) = self.admitted.get_mut(&flow)
            && admitted.generation == generation
            && age(admitted.seen, now) < REFRESH
        {
            return;
        }
        let seen = now;
        self.admitted.put(flow, Admitted { generation, seen });
    }

    /// Remembers that the first fragment was accepted.
    pub(super) fn remember_fragment(&mut self, first: &Datagram<A>, generation: u64, now: u64) {
        if let Some(key) = first.fragment_key() {
            let seen = now;
            self.fragments.put(key, Admitted { generation, seen });
        }
    }

    /// Whether the first fragment was accepted, lately and in this generation.
    pub(super) fn fragment_is_known(&self, later: &Datagram<A>, generation: u64, now: u64) -> bool {
        later
            .fragment_key()
            .and_then(|key| self.fragments.peek(&key))
            .is_some_and(|first| {
                first.generation == generation && age(first.seen, now) < FRAGMENT_AGE
            })
    }
}

fn is_live<A>(flow: &Flow<A>, seen: u64, now: u64) -> bool {
    age(seen, now) < idle(flow.protocol)
}

/// Several CPUs, several clocks: a time before the one remembered is the same instant.
fn age(seen: u64, now: u64) -> u64 {
    now.saturating_sub(seen)
}

#[cfg(test)]
mod tests {
    use packet::{Direction, SECOND, protocol};

    use super::*;

    fn flow(port: u16) -> Flow<[u8; 4]> {
        let (us, peer) = ([100, 64, 0, 1], [100, 64, 0, 2]);
        Flow::new(protocol::UDP, (us, port), (peer, 53), Direction::Out)
    }

    #[test]
    fn what_is_admitted_never_displaces_what_we_opened() {
        let mut flows = Flows::new(4, 4);
        flows.open(flow(1), 0);
        for port in 2..1000 {
            flows.admit(flow(port), 1, 0);
        }
        assert!(flows.is_opened(&flow(1), 0));
        assert!(flows.is_admitted(&flow(999), 0) && !flows.is_admitted(&flow(2), 0));
    }

    #[test]
    fn a_full_table_forgets_the_flow_that_is_silent_longest() {
        let mut flows = Flows::new(2, 1);
        flows.open(flow(1), 0);
        flows.open(flow(2), 1);
        assert!(flows.refresh_opened(&flow(1), 2));
        flows.open(flow(3), 3);
        assert!(flows.is_opened(&flow(1), 3) && flows.is_opened(&flow(3), 3));
        assert!(!flows.is_opened(&flow(2), 3));
    }

    #[test]
    fn a_clock_that_lags_behind_finds_the_flow_alive() {
        let mut flows = Flows::new(2, 1);
        flows.open(flow(1), 1000 * SECOND);
        assert!(flows.refresh_opened(&flow(1), 0));
        assert!(flows.is_opened(&flow(1), 1100 * SECOND));
    }
}
