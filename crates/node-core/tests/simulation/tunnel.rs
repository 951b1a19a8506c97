//! One peer of a node's WireGuard: where its endpoint is, and what the data plane counts.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use node_core::paths::Route;

/// Numbers that the replay window remembers.
const WINDOW: usize = 256;

/// A peer as kernel WireGuard and the data plane see it.
#[derive(Debug)]
pub(crate) struct Tunnel {
    /// As the path machine chose.
    route: Route,
    /// The kernel's endpoint, if it is not the synthetic one; packets may have moved it.
    endpoint: Option<SocketAddr>,
    /// Straight packets from here pass the agent, and do not move the endpoint.
    pub(crate) detoured: Vec<SocketAddr>,
    pub(crate) last_sent: Option<Duration>,
    /// Since when packets have gone out and none came in.
    pub(crate) unanswered: Option<Duration>,
    /// Since when packets have gone to an address that nobody chose.
    pub(crate) astray: Option<Duration>,
    seen: BTreeSet<u64>,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Way {
    pub(crate) straight: Option<SocketAddr>,
    pub(crate) relayed: bool,
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            route: Route::Relayed,
            endpoint: None,
            detoured: Vec::new(),
            last_sent: None,
            unanswered: None,
            astray: None,
            seen: BTreeSet::new(),
        }
    }
}

impl Tunnel {
    pub(crate) fn set_route(&mut self, route: Route) {
        self.route = route;
        self.endpoint = match route {
            Route::Direct(address) => Some(address),
            Route::Relayed | Route::Both(_) => None,
        };
    }

    /// Sends a packet; the agent sees only what goes to the synthetic endpoint.
    pub(crate) fn send(&mut self, now: Duration) -> Way {
        self.last_sent = Some(now);
        self.unanswered.get_or_insert(now);
        if self.endpoint.is_some() && self.route != Route::Direct(self.endpoint.unwrap()) {
            self.astray.get_or_insert(now);
        } else {
            self.astray = None;
        }
        match (self.endpoint, self.route) {
            (Some(address), _) => Way {
                straight: Some(address),
                relayed: false,
            },
            (None, Route::Both(address)) => Way {
                straight: Some(address),
                relayed: true,
            },
            (None, Route::Relayed | Route::Direct(_)) => Way {
                straight: None,
                relayed: true,
            },
        }
    }

    /// Takes an authenticated packet, which moves the endpoint to its source; from a relay, that is the
    /// chosen one. False if it came before: repetitions move nothing.
    pub(crate) fn receive(&mut self, number: u64, source: Option<SocketAddr>) -> bool {
        let full = self.seen.len() >= WINDOW;
        let too_old = full && self.seen.first().is_some_and(|first| number < *first);
        if too_old || !self.seen.insert(number) {
            return false;
        }
        if full {
            self.seen.pop_first();
        }
        self.unanswered = None;
        match source.filter(|source| !self.detoured.contains(source)) {
            Some(source) => self.endpoint = Some(source),
            None => self.set_route(self.route),
        }
        true
    }

    pub(crate) fn is_direct(&self) -> bool {
        matches!(self.route, Route::Direct(_))
    }

    /// What a new process of the agent finds in the kernel.
    pub(crate) fn inherit(&mut self) -> Option<SocketAddr> {
        let direct = self.endpoint.filter(|_| self.is_direct());
        self.route = Route::Relayed;
        if direct.is_none() {
            self.endpoint = None;
        }
        direct
    }
}
