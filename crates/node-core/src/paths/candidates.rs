//! Addresses at which a peer may be reached, and why we think so (protocol/disco.md §5.6).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use disco_proto::disco::TxId;

use super::Now;
use super::peer::PING_TIMEOUT;

/// Most candidates kept of one peer.
pub const MAX_CANDIDATES: usize = 100;
/// Most unproved addresses of one peer whose packets take a detour.
pub const MAX_DETOURED: usize = 4;
/// Most addresses of one peer that are kept from being taken for another's.
pub const MAX_OWN: usize = 8;
/// How long an address learned from a ping alone is kept after the last such ping.
const PING_LEARNED: Duration = Duration::from_secs(45);

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Candidate {
    /// Listed by the network map, or configured.
    in_map: bool,
    called: Option<Now>,
    got_ping: Option<(Now, Option<TxId>)>,
    last_ping: Option<Now>,
    /// When a ping from there was answered with one of ours.
    pub(super) pinged_back: Option<Now>,
    answered: Option<Now>,
    /// The first ping since that answer, or ever.
    unanswered: Option<Now>,
}

impl Candidate {
    fn stays(&self, now: Now) -> bool {
        self.is_listed() || self.heard(now).is_some()
    }

    /// When it was pinged from last, if that was lately.
    fn heard(&self, now: Now) -> Option<Now> {
        let at = self.got_ping.map(|(at, _)| at);
        at.filter(|at| now.since(*at) <= PING_LEARNED)
    }

    /// The peer itself, or who configured it, says that it is there.
    fn is_listed(&self) -> bool {
        self.in_map || self.called.is_some()
    }

    fn is_due(&self, now: Now, interval: Duration) -> bool {
        self.last_ping.is_none_or(|at| now.since(at) >= interval)
    }

    /// It answered once, and every ping since, but for those that it may still answer.
    fn is_proved(&self, now: Now) -> bool {
        let may_be = |at| now.since(at) < PING_TIMEOUT;
        self.answered.is_some() && self.unanswered.is_none_or(may_be)
    }

    pub(super) fn pinged(&mut self, now: Now) {
        self.last_ping = Some(now);
        self.unanswered.get_or_insert(now);
    }

    pub(super) fn answers(&mut self, now: Now) {
        self.answered = Some(now);
        self.unanswered = None;
    }

    /// The least is evicted first: never answered, then longest unheard of.
    fn worth(&self) -> (Option<Now>, Option<Now>) {
        let heard = self.called.max(self.got_ping.map(|(at, _)| at));
        (self.answered, heard)
    }
}

/// The candidates of one peer, at most [`MAX_CANDIDATES`].
#[derive(Debug, Default)]
pub(super) struct Candidates(BTreeMap<SocketAddr, Candidate>);

impl Candidates {
    pub(super) fn set_map(&mut self, addresses: &[SocketAddr]) {
        for candidate in self.0.values_mut() {
            candidate.in_map = false;
        }
        for address in addresses
            .iter()
            .filter(|a| usable(**a))
            .take(MAX_CANDIDATES)
        {
            if let Some(candidate) = self.admit(*address) {
                candidate.in_map = true;
            }
        }
        self.0
            .retain(|_, c| c.in_map || c.called.is_some() || c.got_ping.is_some());
    }

    /// Takes over a CallMeMaybe's list; every candidate may be pinged again at once.
    pub(super) fn set_called(&mut self, now: Now, addresses: &[SocketAddr]) {
        for candidate in self.0.values_mut() {
            candidate.called = None;
            candidate.last_ping = None;
        }
        self.0
            .retain(|address, c| c.stays(now) || addresses.contains(address));
        for address in addresses.iter().filter(|a| usable(**a)) {
            if let Some(candidate) = self.admit(*address) {
                candidate.called = Some(now);
            }
        }
    }

    /// Notes that the peer was heard from `address`; false if this is a repetition of one ping.
    pub(super) fn heard(&mut self, now: Now, address: SocketAddr, id: Option<TxId>) -> bool {
        if !usable(address) {
            return false;
        }
        let Some(candidate) = self.admit(address) else {
            return false;
        };
        let repeated = id.is_some() && candidate.got_ping.is_some_and(|(_, last)| last == id);
        if !repeated {
            candidate.got_ping = Some((now, id));
        }
        !repeated
    }

    /// Says whether this ping was heard from there already.
    pub(super) fn was_heard(&self, address: SocketAddr, id: TxId) -> bool {
        let heard = self.0.get(&address).and_then(|c| c.got_ping);
        heard.is_some_and(|(_, last)| last == Some(id))
    }

    pub(super) fn contains(&self, address: SocketAddr) -> bool {
        self.0.contains_key(&address)
    }

    pub(super) fn expire(&mut self, now: Now) {
        self.0.retain(|_, c| c.stays(now));
    }

    /// Forgets what was measured, on another network it means nothing.
    pub(super) fn forget_measurements(&mut self) {
        for candidate in self.0.values_mut() {
            candidate.last_ping = None;
            candidate.pinged_back = None;
            candidate.answered = None;
            candidate.unanswered = None;
        }
    }

    pub(super) fn get_mut(&mut self, address: SocketAddr) -> Option<&mut Candidate> {
        self.0.get_mut(&address)
    }

    /// Addresses that were not pinged within `interval`.
    pub(super) fn due(&self, now: Now, interval: Duration) -> Vec<SocketAddr> {
        self.0
            .iter()
            .filter(|(_, c)| c.is_due(now, interval))
            .map(|(a, _)| *a)
            .collect()
    }

    /// Addresses that the peer pinged from lately and that did not answer us: those that it lists, then others, which
    /// may be anybody's who repeats its pings, the latest first.
    pub(super) fn unproved(&self, now: Now) -> Vec<SocketAddr> {
        let heard = self.0.iter().filter(|(_, c)| !c.is_proved(now));
        let heard = heard.filter_map(|(address, c)| Some((c.is_listed(), c.heard(now)?, *address)));
        let mut unproved: Vec<(bool, Now, SocketAddr)> = heard.collect();
        unproved.sort_unstable_by(|a, b| b.cmp(a));
        unproved
            .into_iter()
            .map(|(_, _, address)| address)
            .collect()
    }

    /// Addresses that the peer pinged from lately, and that it lists or was reached at, with when it pinged: most
    /// likely they are no one else's.
    pub(super) fn own(&self, now: Now) -> impl Iterator<Item = (SocketAddr, Now)> {
        let own = self.0.iter();
        let own = own.filter(move |(_, c)| c.is_listed() || c.is_proved(now));
        own.filter_map(move |(address, c)| Some((*address, c.heard(now)?)))
    }

    pub(super) fn is_proved(&self, now: Now, address: SocketAddr) -> bool {
        self.0.get(&address).is_some_and(|c| c.is_proved(now))
    }

    pub(super) fn is_due(&self, now: Now, address: SocketAddr) -> bool {
        let candidate = self.0.get(&address);
        candidate.is_some_and(|c| c.is_due(now, PING_TIMEOUT))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn admit(&mut self, address: SocketAddr) -> Option<&mut Candidate> {
        if !self.0.contains_key(&address) && self.0.len() >= MAX_CANDIDATES {
            let least = self.0.iter().filter(|(_, c)| !c.in_map);
            let (least, _) = least.min_by_key(|(_, c)| c.worth())?;
            let least = *least;
            self.0.remove(&least);
        }
        Some(self.0.entry(address).or_default())
    }
}

/// Refuses what no peer can be behind: our own synthetic endpoints (127.64.0.0/10) among them, a
/// peer that names one would make us talk to ourselves.
pub(super) fn usable(address: SocketAddr) -> bool {
    let ip = address.ip();
    let fits = match ip {
        IpAddr::V4(ip) => !ip.is_broadcast() && ip.to_bits() >> 22 != (127 << 2 | 1),
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    };
    fits && address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
}
