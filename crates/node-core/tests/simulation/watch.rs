//! What must hold at every moment, whatever happens to the world.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use disco_proto::disco::TxId;

use crate::tunnel::Way;

/// A peer that was sent nothing for longer is idle: 45 s, and a heartbeat until it shows.
const IDLE: Duration = Duration::from_secs(48);
const TRUST: Duration = Duration::from_millis(6500);
/// Pings outstanding longer than this are forgotten.
const PATIENCE: Duration = Duration::from_secs(5);

/// WireGuard's endpoint, which packets move, is set again with each heartbeat. At the first of them the address that
/// they come from may not have pinged yet, so that there is no detour.
const ASTRAY: Duration = Duration::from_secs(3 + 3);

/// What one node did and was told, kept apart from the machine that is watched.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    asked: BTreeMap<TxId, (usize, SocketAddr, Duration)>,
    order: VecDeque<TxId>,
    /// When a peer's address was proved last.
    proved: BTreeMap<(usize, SocketAddr), Duration>,
    adopted: BTreeMap<(usize, SocketAddr), Duration>,
    /// When a path to a peer was adopted, whose heartbeats go on though the path be forgotten.
    roused: BTreeMap<usize, Duration>,
    called: BTreeMap<usize, Duration>,
    heard: BTreeMap<usize, Duration>,
    /// To whom packets go where nobody chose and nothing was proved: since when, and when last.
    astray: BTreeMap<usize, (Duration, Duration)>,
    pub(crate) pings: u64,
}

impl Watch {
    pub(crate) fn called(&mut self, now: Duration, peer: usize) {
        self.called.insert(peer, now);
    }

    pub(crate) fn heard(&mut self, now: Duration, peer: usize) {
        self.heard.insert(peer, now);
    }

    /// Says whether there may be something to do for a peer to which data went last at `last_sent`.
    pub(crate) fn is_busy(&self, now: Duration, peer: usize, last_sent: Option<Duration>) -> bool {
        let roused = self.roused.get(&peer).copied();
        let all = [last_sent, roused, self.heard.get(&peer).copied()];
        all.into_iter()
            .flatten()
            .any(|at| now.saturating_sub(at) <= IDLE + PATIENCE)
    }

    pub(crate) fn adopted(&mut self, now: Duration, peer: usize, address: SocketAddr) {
        self.adopted.insert((peer, address), now);
        self.roused.insert(peer, now);
    }

    /// A ping leaves for an address of `peer`, to which data went last at `last_sent`.
    pub(crate) fn ping(
        &mut self,
        now: Duration,
        (id, peer, address): (TxId, usize, SocketAddr),
        last_sent: Option<Duration>,
    ) {
        self.pings += 1;
        let recent = |at: Duration| now.saturating_sub(at) <= IDLE;
        let adopted = self.roused.get(&peer).is_some_and(|at| recent(*at));
        let answers = self.called.get(&peer) == Some(&now);
        assert!(
            last_sent.is_some_and(recent) || adopted || answers,
            "a ping to peer {peer}, idle since {last_sent:?}"
        );
        self.asked.insert(id, (peer, address, now));
        self.order.push_back(id);
        while let Some(id) = self.order.front()
            && self.asked.get(id).is_none_or(|a| now - a.2 > PATIENCE)
        {
            self.asked.remove(id);
            self.order.pop_front();
        }
    }

    pub(crate) fn pong(&mut self, now: Duration, id: TxId, by: usize) {
        if let Some((peer, address, at)) = self.asked.get(&id)
            && *peer == by
            && now - *at <= PATIENCE
        {
            self.proved.insert((by, *address), now);
        }
    }

    /// Packets for `peer` go straight to `address` from now on, or still do.
    pub(crate) fn direct(&self, now: Duration, peer: usize, address: SocketAddr) {
        let proved = self.proved.get(&(peer, address)).copied();
        let last = proved.max(self.adopted.get(&(peer, address)).copied());
        let age = last.map(|at| now - at);
        assert!(
            age.is_some_and(|age| age <= TRUST),
            "direct to {address} of peer {peer}, proved {age:?} ago"
        );
    }

    /// A packet for `peer` leaves. The way that was chosen was proved; one to which packets moved the endpoint
    /// need not be, for a moment, and `longer` if somebody meddles.
    pub(crate) fn sent(&mut self, now: Duration, peer: usize, way: Way, longer: Duration) {
        let Way {
            straight, strays, ..
        } = way;
        let known = straight
            .map(|address| (peer, address))
            .map(|key| self.proved.contains_key(&key) || self.adopted.contains_key(&key));
        if !strays {
            assert!(
                known != Some(false),
                "{straight:?} of peer {peer} never answered"
            );
        }
        if !strays || known == Some(true) {
            self.astray.remove(&peer);
            return;
        }
        let (since, last) = self.astray.entry(peer).or_insert((now, now));
        if now - *last > ASTRAY {
            *since = now;
        }
        *last = now;
        let time = now - *since;
        assert!(
            time <= ASTRAY + longer,
            "packets for peer {peer} go astray for {time:?}"
        );
    }

    /// What was proved of a peer means nothing any longer.
    pub(crate) fn forget(&mut self, peer: usize) {
        self.asked.retain(|_, asked| asked.0 != peer);
        self.proved.retain(|key, _| key.0 != peer);
        self.adopted.retain(|key, _| key.0 != peer);
    }

    /// Nothing that was proved means anything any longer.
    pub(crate) fn forget_all(&mut self) {
        self.asked.clear();
        self.order.clear();
        self.proved.clear();
        self.astray.clear();
        self.adopted.clear();
    }
}
