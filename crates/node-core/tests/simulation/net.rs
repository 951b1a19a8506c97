//! Who is where: the internet, networks behind NATs, and NATs behind NATs.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use testnet::nat_model::{Behaviour, Nat, Outbound};

/// A network in which addresses mean something; those of different homes are often the same.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Realm {
    Internet,
    /// Behind the NAT of this number.
    Behind(usize),
}

#[derive(Clone, Copy, Debug)]
enum Owner {
    Node(usize),
    Nat(usize),
}

#[derive(Debug)]
struct Gateway {
    nat: Nat,
    /// Where its outside is.
    outside: Realm,
    hosts: u16,
}

/// A datagram between the networks of its sender and of its receiver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    realm: Realm,
    /// Its source, as seen where it is now.
    pub(crate) from: SocketAddr,
    to: SocketAddr,
}

/// Everything between the nodes.
#[derive(Debug, Default)]
pub(crate) struct Net {
    gateways: Vec<Gateway>,
    owners: BTreeMap<(Realm, IpAddr), Owner>,
    public: u16,
}

impl Net {
    /// Puts a new NAT into a network.
    pub(crate) fn gateway(&mut self, outside: Realm, behaviour: Behaviour) -> Realm {
        let number = self.gateways.len();
        let address = self.address(outside);
        let nat = Nat::new(address, behaviour);
        self.owners.insert((outside, address), Owner::Nat(number));
        let hosts = 0;
        self.gateways.push(Gateway {
            nat,
            outside,
            hosts,
        });
        Realm::Behind(number)
    }

    /// Gives a node an IPv4 address in a network.
    pub(crate) fn join(&mut self, realm: Realm, node: usize) -> SocketAddr {
        let address = self.address(realm);
        self.owners.insert((realm, address), Owner::Node(node));
        SocketAddr::new(address, 41641)
    }

    /// Gives a node an IPv6 address, which no NAT is in the way of.
    pub(crate) fn join_v6(&mut self, node: usize) -> SocketAddr {
        self.public += 1;
        let address = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, self.public]);
        let owner = Owner::Node(node);
        self.owners.insert((Realm::Internet, address), owner);
        SocketAddr::new(address, 41641)
    }

    pub(crate) fn leave(&mut self, realm: Realm, address: SocketAddr) {
        self.owners.remove(&(realm, address.ip()));
    }

    /// Lets the NAT of a network forget its mappings.
    pub(crate) fn reboot(&mut self, realm: Realm) {
        if let Realm::Behind(number) = realm {
            self.gateways[number].nat.reboot();
        }
    }

    /// Lets the NAT of a network give each port to another host.
    pub(crate) fn exchange(&mut self, realm: Realm) {
        if let Realm::Behind(number) = realm {
            self.gateways[number].nat.exchange();
        }
    }

    /// Takes a datagram as far up as it has to go; `None` if a NAT drops it.
    pub(crate) fn send(
        &mut self,
        now: Duration,
        mut realm: Realm,
        mut from: SocketAddr,
        to: SocketAddr,
    ) -> Option<Flight> {
        while let Realm::Behind(number) = realm
            && !self.owners.contains_key(&(realm, to.ip()))
        {
            let gateway = &mut self.gateways[number];
            match gateway.nat.outbound(now, from, to) {
                Outbound::Leaves(source) => (realm, from) = (gateway.outside, source),
                Outbound::Hairpin { from, to } => return Some(Flight { realm, from, to }),
                Outbound::Dropped => return None,
            }
        }
        Some(Flight { realm, from, to })
    }

    /// Takes it down again, to the node that gets it.
    pub(crate) fn arrive(&mut self, now: Duration, flight: Flight) -> Option<usize> {
        let Flight {
            mut realm,
            from,
            mut to,
        } = flight;
        loop {
            match *self.owners.get(&(realm, to.ip()))? {
                Owner::Node(node) => return (to.port() == 41641).then_some(node),
                Owner::Nat(number) => {
                    to = self.gateways[number].nat.inbound(now, from, to.port())?;
                    realm = Realm::Behind(number);
                }
            }
        }
    }

    /// The NATs between a network and the internet, inmost first.
    pub(crate) fn way_out(&self, realm: Realm) -> Vec<(usize, Behaviour)> {
        let mut way = Vec::new();
        let mut at = realm;
        while let Realm::Behind(number) = at {
            way.push((number, self.gateways[number].nat.behaviour()));
            at = self.gateways[number].outside;
        }
        way
    }

    fn address(&mut self, realm: Realm) -> IpAddr {
        match realm {
            Realm::Internet => {
                self.public += 1;
                let [high, low] = self.public.to_be_bytes();
                IpAddr::from([198, 18, high, low])
            }
            Realm::Behind(number) => {
                let gateway = &mut self.gateways[number];
                gateway.hosts += 1;
                let [high, low] = gateway.hosts.to_be_bytes();
                IpAddr::from([10, 0, high, low])
            }
        }
    }
}
