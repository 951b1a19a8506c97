//! Carries out what the path machine decides, and watches the traffic of active peers for it.

use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::Duration;

use keys::NodePublic;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{MissedTickBehavior, interval};

use super::NetError;
use super::inner::Inner;
use super::tsmp::Adverts;
use crate::error_text::error_text;
use crate::paths::{Event, Handle, Order};

/// Between looks at the traffic of active peers.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Looks in a row with packets to a peer and none from it that make its path suspect.
const SUSPICIOUS: u32 = 2;
/// A path that proved itself is suspected again only so many looks later: traffic may go one way.
const PATIENCE: u32 = 6;
/// Looks between attempts to make up for what failed.
const RETRY: u32 = 6;
/// Orders that are carried out together.
const MAX_ORDERS: usize = 256;

/// Packets, or bytes, to and from one peer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Traffic {
    pub(super) sent: u64,
    pub(super) received: u64,
}

/// What one peer's traffic looked like lately.
#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    last: Traffic,
    /// Looks in a row with packets out and none in.
    silent: u32,
}

/// What a look tells of one peer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Seen {
    /// Something was sent.
    active: bool,
    /// And nothing came back, long enough.
    unanswered: bool,
}

impl Watched {
    fn look(&mut self, now: Traffic) -> Seen {
        let sent = now.sent > self.last.sent;
        let received = now.received > self.last.received;
        self.last = now;
        self.silent = match (sent, received) {
            (_, true) => 0,
            (true, false) => self.silent + 1,
            (false, false) => self.silent,
        };
        Seen {
            active: sent,
            unanswered: sent
                && self.silent >= SUSPICIOUS
                && (self.silent - SUSPICIOUS).is_multiple_of(PATIENCE),
        }
    }
}

/// Runs until the data plane is gone.
pub(super) async fn run(
    inner: Weak<Mutex<Inner>>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    paths: Handle,
) {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watched: BTreeMap<NodePublic, Watched> = BTreeMap::new();
    let mut adverts = Adverts::default();
    let (mut failed, mut owed) = (Told::default(), Told::default());
    let mut batch = Vec::new();
    let mut count = 0;
    loop {
        tokio::select! {
            count = orders.recv_many(&mut batch, MAX_ORDERS) => {
                let Some(inner) = inner.upgrade().filter(|_| count > 0) else { return };
                let problems = inner.lock().await.carry_out(&batch).await;
                failed.tell(&problems);
                batch.clear();
            }
            _ = looks.tick() => {
                let Some(inner) = inner.upgrade() else { return };
                let active = paths.active().await;
                let mut inner = inner.lock().await;
                count = (count + 1) % RETRY;
                if count == 0 {
                    owed.tell(&inner.make_up().await);
                }
                let hearers = inner.hearers(&mut adverts, &active);
                // Counting packets costs less than asking the tunnel, which has to be asked where nothing counts.
                let counts = active.is_empty() || inner.guard.is_ebpf();
                let states = match counts && hearers.is_empty() {
                    true => BTreeMap::new(),
                    false => inner.states().await,
                };
                inner.advertise(&mut adverts, hearers, &states);
                let traffic = inner.traffic(active, &states);
                drop(inner);
                watched.retain(|peer, _| traffic.contains_key(peer));
                for (peer, now) in traffic {
                    let Some(known) = watched.get_mut(&peer) else {
                        let first = Watched { last: now, silent: 0 };
                        watched.insert(peer, first);
                        continue;
                    };
                    let seen = known.look(now);
                    if seen.active {
                        paths.try_tell(Event::Sent(peer));
                    }
                    if seen.unanswered {
                        paths.try_tell(Event::Unanswered(peer));
                    }
                }
            }
        }
    }
}

/// What was told of last: what fails again and again is told once.
#[derive(Debug, Default)]
struct Told(Vec<String>);

impl Told {
    fn tell(&mut self, problems: &[NetError]) {
        let texts: Vec<String> = problems.iter().map(|error| error_text(error)).collect();
        if self.0 != texts {
            for problem in &texts {
                tracing::warn!(problem, "peers are not reached as they should be");
            }
            self.0 = texts;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(sent: u64, received: u64) -> Traffic {
        Traffic { sent, received }
    }

    #[test]
    fn a_second_of_packets_without_an_answer_is_suspicious_and_one_look_is_not() {
        let mut peer = Watched::default();
        assert!(!peer.look(traffic(1, 0)).unanswered);
        assert!(peer.look(traffic(2, 0)).unanswered);
    }

    #[test]
    fn traffic_in_one_direction_is_suspected_every_three_seconds_only() {
        let mut peer = Watched::default();
        let suspected = (1..=20).filter(|sent| peer.look(traffic(*sent, 0)).unanswered);
        assert_eq!(suspected.collect::<Vec<_>>(), [2, 8, 14, 20]);
    }

    #[test]
    fn an_answer_clears_it_and_silence_on_both_sides_says_nothing() {
        let mut peer = Watched::default();
        peer.look(traffic(1, 0));
        assert!(!peer.look(traffic(2, 1)).unanswered);
        assert!(!peer.look(traffic(3, 1)).unanswered);
        for _ in 0..10 {
            assert_eq!(peer.look(traffic(3, 1)), Seen::default());
        }
        assert!(peer.look(traffic(4, 1)).unanswered);
    }
}
