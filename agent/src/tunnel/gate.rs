//! The packet filter of the embedded tunnel where there is no eBPF: [`Gate`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dataplane::{Count, Direction, DropReason, boot_clock};
use policy::filter::{Filter, Local, Peers, Rules, Verdict};

use crate::net::Reports;
use crate::net::filter::nanos;

/// What every packet of the embedded tunnel passes, in and out; cheap to clone.
///
/// Closed at first: until somebody else judges packets, or it was told how to, nothing passes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// eBPF programs on the device judge: what is asked with every packet.
    open: AtomicBool,
    state: Mutex<State>,
    reports: Reports,
}

#[derive(Debug, Default)]
struct State {
    judge: Judge,
    drops: BTreeMap<(Direction, DropReason), Count>,
}

#[derive(Debug, Default)]
enum Judge {
    /// Nobody yet, or somebody else.
    #[default]
    None,
    /// The reference model.
    Model(Box<Filter>),
}

impl Gate {
    /// A closed gate, which reports what it drops.
    pub(crate) fn new(reports: Reports) -> Self {
        Self(Arc::new(Inner {
            reports,
            ..Inner::default()
        }))
    }

    /// Lets everything pass: eBPF programs on the device judge it.
    pub(crate) fn open(&self) {
        self.lock().judge = Judge::None;
        self.0.open.store(true, Ordering::Release);
    }

    /// Lets nothing pass.
    pub(crate) fn close(&self) {
        self.0.open.store(false, Ordering::Release);
        self.lock().judge = Judge::None;
    }

    /// Judges here. What is known of flows stays known if it did so before.
    pub(crate) fn judge(&self, rules: Rules, local: Local, peers: Peers) {
        self.0.open.store(false, Ordering::Release);
        let mut state = self.lock();
        match &mut state.judge {
            Judge::Model(filter) => {
                filter.set_rules(rules);
                filter.set_local(local);
                filter.set_peers(peers);
            }
            judge => *judge = Judge::Model(Box::new(Filter::new(local, peers, rules))),
        }
    }

    /// Whether a packet may pass; it begins with its IP header.
    pub(crate) fn admits(&self, direction: Direction, packet: &[u8]) -> bool {
        if self.0.open.load(Ordering::Acquire) {
            return true;
        }
        let mut state = self.lock();
        let now = nanos(boot_clock());
        let reason = match &mut state.judge {
            Judge::None => DropReason::NoPolicy,
            Judge::Model(filter) => {
                let verdict = match direction {
                    Direction::In => filter.inbound(packet, now),
                    Direction::Out => filter.outbound(packet, now),
                };
                match verdict {
                    Verdict::Accept(_) => return true,
                    Verdict::Drop(reason) => reason,
                }
            }
        };
        if reason == DropReason::TsmpFromHost && self.0.reports.is_answer(packet) {
            return true;
        }
        let count = state.drops.entry((direction, reason)).or_default();
        *count += Count {
            packets: 1,
            bytes: packet.len() as u64,
        };
        drop(state);
        self.0.reports.tell(direction, reason, packet);
        false
    }

    /// What it dropped.
    pub(crate) fn drops(&self) -> BTreeMap<(Direction, DropReason), Count> {
        self.lock().drops.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A judge that panicked over a packet has not changed the rules.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl tunnel::Filter for Gate {
    fn admits(&self, direction: tunnel::Direction, packet: &[u8]) -> bool {
        let direction = match direction {
            tunnel::Direction::In => Direction::In,
            tunnel::Direction::Out => Direction::Out,
        };
        Gate::admits(self, direction, packet)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use control_proto::tailcfg::FilterRule;

    use super::*;

    /// An ICMP echo request from 100.64.0.2 to 100.64.0.1.
    fn ping() -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0];
        packet.extend([100, 64, 0, 2, 100, 64, 0, 1, 8, 0, 0, 0, 0, 1, 0, 1]);
        packet
    }

    #[test]
    fn nothing_passes_before_somebody_judges() {
        let gate = Gate::default();
        assert!(!gate.admits(Direction::In, &ping()));
        assert!(!gate.admits(Direction::Out, &ping()));
        gate.open();
        assert!(gate.admits(Direction::In, &ping()));
        gate.close();
        assert!(!gate.admits(Direction::In, &ping()));
        assert_eq!(
            gate.drops()[&(Direction::In, DropReason::NoPolicy)].packets,
            2
        );
    }

    #[test]
    fn the_model_judges_by_the_rules_and_counts_what_it_drops() {
        let gate = Gate::default();
        let address: IpAddr = "100.64.0.1".parse().unwrap();
        let local = || Local {
            addresses: vec![address],
            ..Local::default()
        };
        gate.judge(Rules::default(), local(), Peers::default());
        assert!(!gate.admits(Direction::In, &ping()));
        assert_eq!(
            gate.drops()[&(Direction::In, DropReason::NoRule)].packets,
            1
        );
        let rules = Rules::parse(&[FilterRule::allow_all()], |_| Vec::new(), &[]).unwrap();
        gate.judge(rules, local(), Peers::default());
        assert!(gate.admits(Direction::In, &ping()));
    }
}
