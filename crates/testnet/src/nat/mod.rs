//! Routers that translate addresses, of the kinds that home, office and carrier networks have.

pub mod model;
mod translator;

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use model::Behaviour;
use translator::Translator;

use crate::link::{Bridge, veth};
use crate::namespace::Namespace;

/// WireGuard's port, which some kinds treat by itself.
const PORT: u16 = 41641;

/// Most sites that have routes to each other over IPv6.
const SITES: u8 = 32;
const FIREWALL_V6: &str = "table ip6 guard {
    chain forward { type filter hook forward priority 0; policy drop
        iifname lan accept
        ct state established,related accept
        meta l4proto ipv6-icmp accept
    }
}
";
/// Beside its address each router has one of this network, with the same last byte: it is on no list of
/// private or documented ones, and a port mapper refuses to map anything at those. Nothing leaves the lab.
const SECOND: [u8; 3] = [192, 0, 3];

/// How a router maps and whom it lets in (RFC 4787).
///
/// nftables makes no endpoint-dependent mapping that lets in more than answers, nor one by address alone; the
/// lab's own NAT makes them all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NatKind {
    /// One mapping for every destination; lets in anybody.
    FullCone,
    /// One mapping; lets in whomever was sent to, from any of its ports.
    Restricted,
    /// One mapping; lets in whoever was sent to, by address and port: most home routers.
    PortRestricted,
    /// Another mapping for each destination; lets in answers only.
    Symmetric,
    /// As symmetric, but somebody forwarded WireGuard's port.
    Forwarded,
    /// A port-restricted router behind a carrier's of the same kind.
    Carrier,
    /// A port-restricted router behind a carrier's symmetric one.
    SymmetricCarrier,
    /// Symmetric, with IPv6 beside: addresses of its own for every host, and a firewall that lets in answers only.
    DualStack,
    /// IPv6 alone, behind a firewall that lets in answers only; it reaches nobody who has none.
    V6Only,
    /// Lets no UDP out.
    NoUdp,
    /// UDP as the model has it, by the lab itself; the rest as port-restricted.
    Modelled(Behaviour),
}

impl NatKind {
    /// Every kind that has IPv4 and that the kernel makes.
    pub const ALL: [Self; 9] = [
        Self::FullCone,
        Self::Restricted,
        Self::PortRestricted,
        Self::Symmetric,
        Self::Forwarded,
        Self::Carrier,
        Self::SymmetricCarrier,
        Self::DualStack,
        Self::NoUdp,
    ];

    /// The kind of the carrier's router, if there is one.
    fn outer(self) -> Option<Self> {
        match self {
            Self::Carrier => Some(Self::PortRestricted),
            Self::SymmetricCarrier => Some(Self::Symmetric),
            _ => None,
        }
    }

    /// Rules of a router before a host with the address `inside`. Inwards only answers pass, and what the
    /// kind lets in: without that, connection tracking would keep the early packet of a hole punch, and
    /// the late one would get another port.
    fn rules(self, inside: Ipv4Addr) -> String {
        let to_host = format!("dnat to {inside}:{PORT}");
        let (random, let_in, note, out) = match self {
            Self::FullCone => ("", format!("udp dport {PORT} {to_host}"), "", ""),
            Self::Forwarded => ("random", format!("udp dport {PORT} {to_host}"), "", ""),
            Self::Restricted => (
                "",
                format!("udp dport {PORT} ip saddr @heard {to_host}"),
                "oifname \"wan\" meta l4proto udp update @heard { ip daddr timeout 60s }",
                "",
            ),
            Self::PortRestricted | Self::Carrier | Self::SymmetricCarrier => {
                ("", String::new(), "", "")
            }
            Self::Symmetric | Self::DualStack | Self::V6Only => ("random", String::new(), "", ""),
            Self::NoUdp => ("", String::new(), "", "meta l4proto udp drop"),
            // To the translator, and from it.
            Self::Modelled(_) => ("", String::new(), "", translator::FORWARD),
        };
        let let_in = if let_in.is_empty() {
            let_in
        } else {
            format!("iifname \"wan\" {let_in}")
        };
        let untouched = match self {
            Self::Modelled(_) => "meta l4proto udp accept",
            _ => "",
        };
        format!(
            r#"
table ip nat {{
    set heard {{ type ipv4_addr; flags dynamic,timeout; timeout 60s; }}
    chain note {{ type filter hook postrouting priority 0; policy accept
        {note}
    }}
    chain prerouting {{ type nat hook prerouting priority -100; policy accept
        {let_in}
    }}
    chain postrouting {{ type nat hook postrouting priority 100; policy accept
        {untouched}
        oifname "wan" masquerade {random}
    }}
}}
table ip guard {{
    chain input {{ type filter hook input priority 0; policy accept
        iifname "wan" ct state established,related accept
        iifname "wan" drop
    }}
    chain forward {{ type filter hook forward priority 0; policy drop
        {out}
        iifname "lan*" accept
        iifname "wan" ct state established,related accept
        iifname "wan" ct status dnat accept
    }}
}}
"#
        )
    }
}

/// A router in a namespace of its own: `wan` on the internet, `lan` towards one host.
#[derive(Debug)]
pub struct Nat {
    namespace: Namespace,
    public: Ipv4Addr,
    /// The carrier's router before it.
    _carrier: Option<Namespace>,
    /// What translates UDP if the kernel does not.
    _translator: Option<Translator>,
}

impl Nat {
    /// Puts `host` behind a new router with the public address `public` (in a /24).
    ///
    /// The host's interface is `eth0` with `192.168.<site>.2/24`, the router its default gateway; behind a
    /// carrier the router itself has `10.64.<site>.2/24`.
    ///
    /// # Errors
    ///
    /// When `ip` or `nft` refuses.
    pub fn new(
        label: &str,
        internet: &mut Bridge,
        public: Ipv4Addr,
        host: &Namespace,
        (site, kind): (u8, NatKind),
    ) -> Result<Nat> {
        Self::on(FIRST_UPLINK, label, internet, public, host, (site, kind))
    }

    /// Gives `host` a second way out through a new router: its interface is `eth1`, and its default route is
    /// worse than the first one.
    ///
    /// # Errors
    ///
    /// When `ip` or `nft` refuses.
    pub fn second(
        label: &str,
        internet: &mut Bridge,
        public: Ipv4Addr,
        host: &Namespace,
        (site, kind): (u8, NatKind),
    ) -> Result<Nat> {
        Self::on(SECOND_UPLINK, label, internet, public, host, (site, kind))
    }

    fn on(
        uplink: Uplink,
        label: &str,
        internet: &mut Bridge,
        public: Ipv4Addr,
        host: &Namespace,
        (site, kind): (u8, NatKind),
    ) -> Result<Nat> {
        let namespace = Namespace::new(label)?;
        let carrier = match kind.outer() {
            None => {
                internet.plug(&namespace, "wan")?;
                connect(&namespace, "wan", public)?;
                namespace.ip(&format!("addr add {}/32 dev wan", second(public)))?;
                None
            }
            Some(outer) => {
                let carrier = Namespace::new(&format!("{label}-c"))?;
                internet.plug(&carrier, "wan")?;
                connect(&carrier, "wan", public)?;
                lay((&carrier, "lan"), (&namespace, WAN), [10, 64, site])?;
                route(&carrier, outer, Ipv4Addr::new(10, 64, site, 2))?;
                Some(carrier)
            }
        };
        lay((&namespace, "lan"), (host, uplink), [192, 168, site])?;
        if matches!(kind, NatKind::DualStack | NatKind::V6Only) {
            lay_v6(&namespace, host, site)?;
        }
        if kind == NatKind::V6Only {
            host.ip("-4 addr flush dev eth0")?;
        }
        route(&namespace, kind, Ipv4Addr::new(192, 168, site, 2))?;
        let translator = match kind {
            NatKind::Modelled(behaviour) => {
                Some(Translator::start(&namespace, public, behaviour, &["lan"])?)
            }
            _ => None,
        };
        Ok(Nat {
            namespace,
            public,
            _carrier: carrier,
            _translator: translator,
        })
    }

    /// Puts `host` behind a port-restricted router that is a customer of `carrier`.
    ///
    /// # Errors
    ///
    /// When `ip` or `nft` refuses.
    pub fn of_carrier(
        label: &str,
        carrier: &mut Carrier,
        host: &Namespace,
        site: u8,
    ) -> Result<Nat> {
        let namespace = Namespace::new(label)?;
        carrier.serve(&namespace, site)?;
        lay((&namespace, "lan"), (host, FIRST_UPLINK), [192, 168, site])?;
        let inside = Ipv4Addr::new(192, 168, site, 2);
        route(&namespace, NatKind::PortRestricted, inside)?;
        Ok(Nat {
            namespace,
            public: carrier.public,
            _carrier: None,
            _translator: None,
        })
    }

    /// The router's namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its public address to which [`PortMapper`](crate::PortMapper) maps; a carrier's customer has none.
    #[must_use]
    pub fn second_address(&self) -> Ipv4Addr {
        second(self.public)
    }
}

/// A carrier's router with one public address for all its customers, which translates UDP as the model has it.
#[derive(Debug)]
pub struct Carrier {
    namespace: Namespace,
    public: Ipv4Addr,
    translator: Translator,
}

impl Carrier {
    /// Connects it to the internet, without customers.
    ///
    /// # Errors
    ///
    /// When `ip` or `nft` refuses.
    pub fn new(
        label: &str,
        internet: &mut Bridge,
        public: Ipv4Addr,
        behaviour: Behaviour,
    ) -> Result<Carrier> {
        let namespace = Namespace::new(label)?;
        internet.plug(&namespace, "wan")?;
        connect(&namespace, "wan", public)?;
        route(
            &namespace,
            NatKind::Modelled(behaviour),
            Ipv4Addr::UNSPECIFIED,
        )?;
        let translator = Translator::start(&namespace, public, behaviour, &[])?;
        Ok(Carrier {
            namespace,
            public,
            translator,
        })
    }

    /// Lays a line to a customer's router: `10.64.<site>.2` on its `wan`.
    fn serve(&mut self, customer: &Namespace, site: u8) -> Result<()> {
        let line = format!("lan{site}");
        lay((&self.namespace, &line), (customer, WAN), [10, 64, site])?;
        self.translator.take_from(&self.namespace, &line)
    }
}

/// Gives `space` an address of the internet, and the way to the routers' second ones.
pub(crate) fn connect(space: &Namespace, interface: &str, address: Ipv4Addr) -> Result<()> {
    let [a, b, c] = SECOND;
    space.ip(&format!("addr add {address}/24 dev {interface}"))?;
    space.ip(&format!("route add {a}.{b}.{c}.0/24 dev {interface}"))?;
    Ok(())
}

fn second(address: Ipv4Addr) -> Ipv4Addr {
    let ([a, b, c], [.., d]) = (SECOND, address.octets());
    Ipv4Addr::new(a, b, c, d)
}

/// A way out: the interface, and the metric of the default route by it.
type Uplink = (&'static str, u32);
const FIRST_UPLINK: Uplink = ("eth0", 0);
const SECOND_UPLINK: Uplink = ("eth1", 100);
/// A router's.
const WAN: Uplink = ("wan", 0);

/// Lays a /24 between a router (.1) and what is behind it (.2), whose way out it is.
fn lay(
    (router, line): (&Namespace, &str),
    (inner, (name, metric)): (&Namespace, Uplink),
    net: [u8; 3],
) -> Result<()> {
    let [a, b, c] = net;
    veth((router, line), (inner, name))?;
    router.ip(&format!("addr add {a}.{b}.{c}.1/24 dev {line}"))?;
    inner.ip(&format!("addr add {a}.{b}.{c}.2/24 dev {name}"))?;
    inner.ip(&format!(
        "route add default via {a}.{b}.{c}.1 metric {metric}"
    ))?;
    Ok(())
}

/// Gives `space` an IPv6 address of the internet, and the way to every site.
pub(crate) fn connect_v6(space: &Namespace, interface: &str, address: Ipv6Addr) -> Result<()> {
    space.ip(&format!("addr add {address}/64 dev {interface} nodad"))?;
    for site in (1..=SITES).map(u16::from) {
        let via = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, site);
        if via != address {
            space.ip(&format!("route add 2001:db8:{site:x}::/64 via {via}"))?;
        }
    }
    Ok(())
}

/// Gives a site IPv6: a /64 of its own, routed to every other site's.
fn lay_v6(router: &Namespace, host: &Namespace, site: u8) -> Result<()> {
    router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    let outside = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, site.into());
    connect_v6(router, "wan", outside)?;
    router.ip(&format!("addr add 2001:db8:{site:x}::1/64 dev lan nodad"))?;
    host.ip(&format!("addr add 2001:db8:{site:x}::2/64 dev eth0 nodad"))?;
    host.ip(&format!("route add default via 2001:db8:{site:x}::1"))?;
    router.nft(FIREWALL_V6)
}

fn route(router: &Namespace, kind: NatKind, inside: Ipv4Addr) -> Result<()> {
    router.sysctl("net/ipv4/ip_forward", "1")?;
    router.nft(&kind.rules(inside))
}
