//! A NAT as RFC 4787 describes one: how it maps and whom it lets in.
//!
//! Knows neither sockets nor a clock; an owner carries the packets and says what time it is: the simulation of
//! `node-core`, and a router of the lab ([`NatKind::Modelled`](super::NatKind)).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// What a decision looks at of the remote end.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Dependence {
    /// Nothing: the same for every remote end.
    Independent,
    /// Its address.
    Address,
    /// Its address and its port.
    AddressAndPort,
}

impl Dependence {
    /// Every kind there is.
    pub const ALL: [Self; 3] = [Self::Independent, Self::Address, Self::AddressAndPort];

    fn of(self, remote: SocketAddr) -> Remote {
        match self {
            Self::Independent => None,
            Self::Address => Some((remote.ip(), None)),
            Self::AddressAndPort => Some((remote.ip(), Some(remote.port()))),
        }
    }
}

/// How a NAT behaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Behaviour {
    /// What a mapping is for.
    pub mapping: Dependence,
    /// Who gets in through it.
    pub filtering: Dependence,
    /// How long a mapping lives after the last packet out.
    pub lifetime: Duration,
    /// Packets from inside to the outside address come back in.
    pub hairpin: bool,
}

/// What becomes of a packet from inside.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outbound {
    /// It leaves with this source.
    Leaves(SocketAddr),
    /// It turns around: a host inside gets it.
    Hairpin {
        /// Its source, as the receiver sees it.
        from: SocketAddr,
        /// The receiver.
        to: SocketAddr,
    },
    /// It was for the outside address, and nobody inside may have it.
    Dropped,
}

/// Says whether a ping of `a` to the address that STUN told `b` comes back as a pong; `None` has no NAT.
fn answers(a: Option<Behaviour>, b: Option<Behaviour>) -> bool {
    use Dependence::{Address, AddressAndPort, Independent};
    let stable = |side: Option<Behaviour>| side.is_none_or(|side| side.mapping == Independent);
    let arrives = match b {
        None => true,
        Some(b) if b.filtering == Independent => true,
        Some(b) if b.mapping != Independent => false,
        Some(b) => b.filtering == Address || stable(a),
    };
    arrives && (a.is_none_or(|a| a.filtering != AddressAndPort) || stable(b))
}

/// Says whether two nodes behind such NATs find a direct path; `None` has no NAT.
#[must_use]
pub fn are_direct(a: Option<Behaviour>, b: Option<Behaviour>) -> bool {
    answers(a, b) || answers(b, a)
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

/// One NAT with one outside address.
#[derive(Debug)]
pub struct Nat {
    outside: IpAddr,
    behaviour: Behaviour,
    /// By outside port.
    mappings: BTreeMap<u16, Mapping>,
    next_port: u16,
}

impl Nat {
    /// A NAT with this outside address, without mappings.
    #[must_use]
    pub fn new(outside: IpAddr, behaviour: Behaviour) -> Self {
        Self {
            outside,
            behaviour,
            mappings: BTreeMap::new(),
            next_port: 20_000,
        }
    }

    /// How it behaves.
    #[must_use]
    pub fn behaviour(&self) -> Behaviour {
        self.behaviour
    }

    /// Takes a packet from inside.
    pub fn outbound(&mut self, now: Duration, from: SocketAddr, to: SocketAddr) -> Outbound {
        let turns = to.ip() == self.outside;
        if turns && !self.behaviour.hairpin {
            return Outbound::Dropped;
        }
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
        let source = SocketAddr::new(self.outside, port);
        if !turns {
            return Outbound::Leaves(source);
        }
        match self.inbound(now, source, to.port()) {
            Some(to) => Outbound::Hairpin { from: source, to },
            None => Outbound::Dropped,
        }
    }

    /// Returns the inside address that a packet from outside is for; `None` drops it.
    pub fn inbound(&mut self, now: Duration, from: SocketAddr, port: u16) -> Option<SocketAddr> {
        self.expire(now);
        let mapping = self.mappings.get(&port)?;
        let filtering = self.behaviour.filtering;
        let admitted = filtering.of(from);
        let admitted = filtering == Dependence::Independent
            || mapping.sent.keys().any(|to| filtering.of(*to) == admitted);
        admitted.then_some(mapping.inside)
    }

    /// Loses every mapping, as by a power cut; later ones get other ports.
    pub fn reboot(&mut self) {
        self.mappings.clear();
        self.next_port = self.next_port.wrapping_add(1013).max(1024);
    }

    /// Gives every port to another host, as by a power cut after which they ask in another order.
    pub fn exchange(&mut self) {
        let mut insides: Vec<SocketAddr> = self.mappings.values().map(|m| m.inside).collect();
        insides.sort_unstable();
        insides.dedup();
        let next = |inside| {
            let at = insides.iter().position(|other| *other == inside)?;
            Some(insides[(at + 1) % insides.len()])
        };
        for mapping in self.mappings.values_mut() {
            mapping.inside = next(mapping.inside).unwrap_or(mapping.inside);
            mapping.sent.clear();
        }
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
