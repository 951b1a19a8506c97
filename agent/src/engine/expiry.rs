//! When the next node key expires, our own or a peer's: [`Expiry`]. Pure: times come from outside.

use std::time::{Duration, SystemTime};

use control_proto::netmap::NetMap;
use tokio::time::Instant;

/// Longest wait: hosts sleep and clocks are set, so the time left is worked out anew now and then.
const LONGEST: Duration = Duration::from_secs(3600);
/// After this the key has expired for sure.
const MARGIN: Duration = Duration::from_secs(1);

/// A timer for the moment at which what follows from the map changes without a new map.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Expiry(Option<Instant>);

impl Expiry {
    /// Sets the timer for the next key of the map; `time` is the present by the server's clock, `now` by ours.
    pub(super) fn arm(&mut self, map: &NetMap, time: SystemTime, now: Instant) {
        let left = std::iter::once(&map.node)
            .chain(map.peers.values())
            .filter_map(|node| {
                SystemTime::from(node.key_expiry()?)
                    .duration_since(time)
                    .ok()
            })
            .min();
        self.0 = left.map(|left| now + (left + MARGIN).min(LONGEST));
    }

    /// When the timer goes off.
    pub(super) fn at(&self) -> Option<Instant> {
        self.0
    }

    /// Says, once, that the timer went off.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.0.take_if(|at| *at <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use control_proto::Presence;
    use control_proto::Timestamp;
    use control_proto::tailcfg::{MapResponse, Node, NodeId};
    use keys::NodePublic;

    use super::*;

    const START: i64 = 1_800_000_000;

    /// A map of nodes that expire so many seconds after the start; the first is our own.
    fn map(expiries: &[i64]) -> NetMap {
        let key = |id: usize| NodePublic::from_bytes([id as u8 + 1; 32]);
        let node = |(id, after): (usize, &i64)| Node {
            id: NodeId(id as i64 + 1),
            key: key(id),
            key_expiry: Timestamp::from_unix_seconds(START + after),
            ..Node::default()
        };
        let mut nodes = expiries.iter().enumerate().map(node);
        let first = MapResponse {
            node: nodes.next(),
            peers: Presence::Value(nodes.collect()),
            ..MapResponse::default()
        };
        NetMap::first(key(0), first, Timestamp::from_unix_seconds(START))
            .unwrap()
            .0
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// The server's clock, so long after the start.
    fn time(after: u64) -> SystemTime {
        SystemTime::from(Timestamp::from_unix_seconds(START)) + seconds(after)
    }

    #[test]
    fn every_key_goes_off_once_although_others_expire_later() {
        let (map, begin) = (map(&[900, 60, 120]), Instant::now());
        let mut expiry = Expiry::default();
        let mut now = 0;
        for expires in [60, 120, 900] {
            expiry.arm(&map, time(now), begin + seconds(now));
            assert!(!expiry.take(begin + seconds(expires)));
            now = expires + 1;
            assert!(expiry.take(begin + seconds(now)), "{expires}");
            assert!(!expiry.take(begin + seconds(now)));
        }
        expiry.arm(&map, time(now), begin + seconds(now));
        assert_eq!(expiry.at(), None);
    }

    #[test]
    fn a_far_expiry_is_looked_at_every_hour() {
        let (map, begin) = (map(&[1_000_000]), Instant::now());
        let mut expiry = Expiry::default();
        expiry.arm(&map, time(0), begin);
        assert_eq!(expiry.at(), Some(begin + LONGEST));
    }
}
