//! Where a peer's packets come from straight, and which of these addresses are its own.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::super::candidates::{MAX_DETOURED, MAX_OWN};
use super::super::{Command, Now, Route, Sources};
use super::{Context, Peer, TRUST};

impl Peer {
    /// Tells where packets come from, if that has changed: while there is traffic. Asked when a route changes and
    /// with each heartbeat, not when an address is first heard from, since most are proved a round trip later.
    pub(super) fn detour(&mut self, context: &mut Context<'_>) {
        let now = context.now;
        let mut sources = Sources::default();
        if self.heartbeat.is_some() {
            if let Route::Both(address) = self.route {
                sources.unproved.push(address);
            }
            let best = self.best.map(|best| best.address);
            let unproved = self.candidates.unproved(now).into_iter();
            let unproved = unproved.filter(|address| Some(*address) != best);
            sources.unproved.extend(unproved);
            sources.unproved.truncate(MAX_DETOURED);
            sources.own = self.own(now);
        }
        if sources != self.detoured {
            self.detoured.clone_from(&sources);
            context.commands.push_back(Command::Detour {
                peer: self.key,
                sources,
            });
        }
    }

    /// An address that takes a detour and may be probed again.
    pub(super) fn unproved_due(&self, now: Now) -> Option<SocketAddr> {
        let mut unproved = self.detoured.unproved.iter().copied();
        unproved.find(|address| self.candidates.is_due(now, *address))
    }

    /// Addresses that are the peer's, as far as can be told, those with the latest evidence. What its route leads to is
    /// known to be.
    fn own(&self, now: Now) -> BTreeSet<SocketAddr> {
        let best = self.best.map(|best| best.address);
        let answers = self.answers.iter().copied();
        let answers = answers.filter(|(_, at)| now.since(*at) < TRUST);
        let all = self.candidates.own(now).chain(answers);
        let mut all: Vec<(SocketAddr, Now)> = all.filter(|(a, _)| Some(*a) != best).collect();
        all.sort_unstable_by_key(|(_, at)| Reverse(*at));
        let mut own = BTreeSet::new();
        for (address, _) in all {
            if own.len() < MAX_OWN {
                own.insert(address);
            }
        }
        own
    }
}
