//! The standard topology: public hosts and hosts behind NAT on one internet.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};

use crate::cable::Line;
use crate::link::Bridge;
use crate::namespace::Namespace;
use crate::nat::model::Behaviour;
use crate::nat::{Carrier, Nat, NatKind, connect, connect_v6};
use crate::sweep::sweep;

/// The internet's prefix: 203.0.113.0/24 is reserved for documentation (RFC 5737).
const PUBLIC: [u8; 3] = [203, 0, 113];
/// Host part of the first server.
const FIRST_SERVER: u8 = 10;
/// Host part of the first router.
const FIRST_ROUTER: u8 = 100;

/// An internet, empty at first.
///
/// Keep it until the hosts that were made from it are gone.
#[derive(Debug)]
pub struct Lab {
    internet: Bridge,
    servers: u8,
    sites: u8,
}

/// A machine of the lab.
#[derive(Debug)]
pub struct Host {
    namespace: Namespace,
    address: Ipv4Addr,
    /// The only one it has, if there is one.
    address_v6: Option<Ipv6Addr>,
    nat: Option<Nat>,
}

impl Lab {
    /// Makes the internet, after sweeping up what dead processes left.
    ///
    /// # Errors
    ///
    /// As [`Namespace::new`].
    pub fn new() -> Result<Lab> {
        sweep()?;
        Ok(Lab {
            internet: Bridge::new("internet")?,
            servers: 0,
            sites: 0,
        })
    }

    /// Adds a host with a public address: 203.0.113.10 and up.
    ///
    /// # Errors
    ///
    /// When `ip` refuses.
    pub fn server(&mut self, label: &str) -> Result<Host> {
        let address = public(FIRST_SERVER, self.servers)?;
        self.servers += 1;
        let namespace = Namespace::new(label)?;
        self.internet.plug(&namespace, "eth0")?;
        connect(&namespace, "eth0", address)?;
        Ok(Host {
            namespace,
            address,
            address_v6: None,
            nat: None,
        })
    }

    /// Adds a host with a public IPv6 address, and no other: 2001:db8:ffff::1:0 and up.
    ///
    /// # Errors
    ///
    /// When `ip` refuses.
    pub fn server_v6(&mut self, label: &str) -> Result<Host> {
        let address = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 1, self.servers.into());
        self.servers += 1;
        let namespace = Namespace::new(label)?;
        self.internet.plug(&namespace, "eth0")?;
        connect_v6(&namespace, "eth0", address)?;
        Ok(Host {
            namespace,
            address: Ipv4Addr::UNSPECIFIED,
            address_v6: Some(address),
            nat: None,
        })
    }

    /// Adds a host behind a home router of its own: 192.168.1.2 and up.
    ///
    /// # Errors
    ///
    /// When `ip` or `nft` refuses.
    pub fn behind_nat(&mut self, label: &str) -> Result<Host> {
        self.behind(label, NatKind::PortRestricted)
    }

    /// As [`behind_nat`](Self::behind_nat), behind a router of this kind.
    ///
    /// # Errors
    ///
    /// When `ip` or `nft` refuses.
    pub fn behind(&mut self, label: &str, kind: NatKind) -> Result<Host> {
        let outside = public(FIRST_ROUTER, self.sites)?;
        self.sites += 1;
        let namespace = Namespace::new(label)?;
        let router = format!("{label}-router");
        let nat = Nat::new(
            &router,
            &mut self.internet,
            outside,
            &namespace,
            (self.sites, kind),
        )?;
        let address = Ipv4Addr::new(192, 168, self.sites, 2);
        Ok(Host {
            namespace,
            address,
            address_v6: None,
            nat: Some(nat),
        })
    }

    /// Gives a host a second way out, through a router of this kind: `eth1`, worse than what it has.
    ///
    /// # Errors
    ///
    /// When `ip` or `nft` refuses.
    pub fn second_uplink(&mut self, label: &str, host: &Host, kind: NatKind) -> Result<Nat> {
        let outside = public(FIRST_ROUTER, self.sites)?;
        self.sites += 1;
        let site = (self.sites, kind);
        Nat::second(label, &mut self.internet, outside, &host.namespace, site)
    }

    /// Adds a carrier with one public address for all its customers.
    ///
    /// # Errors
    ///
    /// When `ip` or `nft` refuses.
    pub fn carrier(&mut self, label: &str, behaviour: Behaviour) -> Result<Carrier> {
        let outside = public(FIRST_ROUTER, self.sites)?;
        self.sites += 1;
        Carrier::new(label, &mut self.internet, outside, behaviour)
    }

    /// Adds a host behind a home router that is a customer of `carrier`.
    ///
    /// # Errors
    ///
    /// When `ip` or `nft` refuses.
    pub fn customer(&mut self, label: &str, carrier: &mut Carrier) -> Result<Host> {
        self.sites += 1;
        let namespace = Namespace::new(label)?;
        let router = format!("{label}-router");
        let nat = Nat::of_carrier(&router, carrier, &namespace, self.sites)?;
        Ok(Host {
            namespace,
            address: Ipv4Addr::new(192, 168, self.sites, 2),
            address_v6: None,
            nat: Some(nat),
        })
    }

    /// Gives hosts and sites that are added from now on a cable to the internet on which frames fare so, each way.
    pub fn lay(&mut self, line: Line) {
        self.internet.lay(line);
    }

    /// The switch that all are plugged into.
    #[must_use]
    pub fn internet(&self) -> &Bridge {
        &self.internet
    }
}

impl Host {
    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Where others reach it on port `port`: if it is public.
    #[must_use]
    pub fn reached_at(&self, port: u16) -> SocketAddr {
        match self.address_v6 {
            Some(address) => (address, port).into(),
            None => (self.address, port).into(),
        }
    }

    /// Its own IPv4 address: public for a server, private behind NAT.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The router before it, if any.
    #[must_use]
    pub fn nat(&self) -> Option<&Nat> {
        self.nat.as_ref()
    }
}

fn public(first: u8, taken: u8) -> Result<Ipv4Addr> {
    let [a, b, c] = PUBLIC;
    let d = first.checked_add(taken).context("the lab's /24 is full")?;
    Ok(Ipv4Addr::new(a, b, c, d))
}
