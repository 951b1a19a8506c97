//! A NAT as RFC 4787 describes one: how it maps and whom it lets in.
//!
//! Knows neither sockets nor a clock; an owner carries the packets.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// What a decision looks at of the remote end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Dependence {
    /// Nothing: the same for every remote end.
    Independent,
    /// Its address.
    Address,
    /// Its address and its port.
    AddressAndPort,
}

impl Dependence {
    /// Every kind there is.
    pub(crate) const ALL: [Self; 3] = [Self::Independent, Self::Address, Self::AddressAndPort];

    fn of(self, remote: SocketAddr) -> Option<(IpAddr, Option<u16>)> {
        match self {
            Self::Independent => None,
            Self::Address => Some((remote.ip(), None)),
            Self::AddressAndPort => Some((remote.ip(), Some(remote.port()))),
        }
    }
}

/// How a NAT behaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Behaviour {
    /// What a mapping is for.
    pub(crate) mapping: Dependence,
    /// Who gets in through it.
    pub(crate) filtering: Dependence,
    /// How long a mapping lives after the last packet out.
    pub(crate) lifetime: Duration,
}

type Remote = Option<(IpAddr, Option<u16>)>;

#[derive(Debug)]
struct Mapping {
    inside: SocketAddr,
    remote: Remote,
    /// Whom packets went to, and when last.
    sent: BTreeMap<SocketAddr, Duration>,
    used: Duration,
}

/// One NAT with one outside address; mappings are by outside port.
#[derive(Debug)]
pub(crate) struct Nat {
    outside: IpAddr,
    behaviour: Behaviour,
    mappings: BTreeMap<u16, Mapping>,
    next_port: u16,
}

impl Nat {
    pub(crate) fn new(outside: IpAddr, behaviour: Behaviour) -> Self {
        Self {
            outside,
            behaviour,
            mappings: BTreeMap::new(),
            next_port: 20_000,
        }
    }

    pub(crate) fn outside(&self) -> IpAddr {
        self.outside
    }

    /// Translates the source of a packet on its way out.
    pub(crate) fn outbound(
        &mut self,
        now: Duration,
        from: SocketAddr,
        to: SocketAddr,
    ) -> SocketAddr {
        self.expire(now);
        let remote = self.behaviour.mapping.of(to);
        let known = self.mappings.iter();
        let known = known
            .filter(|(_, m)| m.inside == from && m.remote == remote)
            .map(|(port, _)| *port)
            .next();
        let port = known.unwrap_or_else(|| self.free_port());
        let mapping = self.mappings.entry(port).or_insert_with(|| Mapping {
            inside: from,
            remote,
            sent: BTreeMap::new(),
            used: now,
        });
        mapping.used = now;
        mapping.sent.insert(to, now);
        SocketAddr::new(self.outside, port)
    }

    /// Returns the inside address that a packet from outside is for; `None` drops it.
    pub(crate) fn inbound(
        &mut self,
        now: Duration,
        from: SocketAddr,
        port: u16,
    ) -> Option<SocketAddr> {
        self.expire(now);
        let mapping = self.mappings.get(&port)?;
        let filtering = self.behaviour.filtering;
        let admitted = filtering.of(from);
        let admitted = filtering == Dependence::Independent
            || mapping.sent.keys().any(|to| filtering.of(*to) == admitted);
        admitted.then_some(mapping.inside)
    }

    fn expire(&mut self, now: Duration) {
        let lifetime = self.behaviour.lifetime;
        let lives = |at: Duration| now.saturating_sub(at) < lifetime;
        self.mappings.retain(|_, mapping| {
            mapping.sent.retain(|_, at| lives(*at));
            lives(mapping.used)
        });
    }

    fn free_port(&mut self) -> u16 {
        while self.mappings.contains_key(&self.next_port) {
            self.next_port = self.next_port.wrapping_add(1).max(1024);
        }
        let port = self.next_port;
        self.next_port = self.next_port.wrapping_add(7).max(1024);
        port
    }
}
