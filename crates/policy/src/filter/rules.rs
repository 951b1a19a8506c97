//! Filter rules as the wire has them, read once: what they admit, and the capabilities they grant.

use std::net::IpAddr;

use control_proto::tailcfg::{FilterRule, PortRange};
use ipnet::IpNet;
use packet::protocol;

use super::IpSet;
use super::capabilities::{Capabilities, Grant};

/// Protocols of a rule that lists none.
const DEFAULT_PROTOCOLS: [u8; 4] = [
    protocol::ICMP,
    protocol::TCP,
    protocol::UDP,
    protocol::ICMPV6,
];

/// Rules in force. There are none that deny, so their order does not matter.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    matches: Vec<Match>,
    grants: Vec<Grant>,
    invalid: Vec<InvalidEntry>,
}

/// A rule that admits packets.
#[derive(Clone, Debug)]
pub struct Match {
    /// Which of the rules on the wire it is, from 0.
    pub rule: usize,
    /// From where.
    pub sources: IpSet,
    /// From where besides: addresses of peers with a capability that the rule names.
    pub capable: IpSet,
    /// The protocols that it lists, or those that no list means.
    pub protocols: Vec<u8>,
    /// To where.
    pub destinations: Vec<Destination>,
}

/// Addresses and ports that a rule is about.
#[derive(Clone, Debug)]
pub struct Destination {
    /// Addresses.
    pub addresses: IpSet,
    /// Ports, both ends included.
    pub ports: PortRange,
}

/// An entry that is left out of its rule, which stays in force without it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("filter rule {rule}: `{text}` {problem}; this entry is ignored")]
pub struct InvalidEntry {
    /// Which of the rules on the wire it is in, from 0.
    pub rule: usize,
    /// The entry.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// Why no rule may be used at all. Use [`Rules::default`] then, which admits nothing, and say so.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RulesError {
    /// Prefix lengths beside their addresses, which no client has understood for years.
    #[error(
        "filter rule {rule} has {field}, a form out of use; nothing is admitted until the \
         coordination server sends rules without it"
    )]
    Deprecated {
        /// Which of the rules on the wire it is, from 0.
        rule: usize,
        /// The field's name on the wire.
        field: &'static str,
    },
    /// A rule for a peer that is not signed by the tailnet lock and may reach PeerAPI only.
    #[error(
        "filter rule {rule} admits {peer}, which tailnet lock has not signed; nothing is admitted \
         until the coordination server sends other rules"
    )]
    UnsignedPeer {
        /// Which of the rules on the wire it is, from 0.
        rule: usize,
        /// Allowed IP of the peer.
        peer: IpNet,
    },
}

impl Rules {
    /// Reads rules from the wire.
    ///
    /// `capable` tells the own addresses of the peers that have a node capability, for `cap:`
    /// sources; `unsigned` are the allowed IPs of peers that tailnet lock has not signed.
    ///
    /// # Errors
    ///
    /// If one rule spoils them all; see [`RulesError`].
    pub fn parse(
        rules: &[FilterRule],
        capable: impl Fn(&str) -> Vec<IpAddr>,
        unsigned: &[IpNet],
    ) -> Result<Self, RulesError> {
        let mut parsed = Self::default();
        for (number, rule) in rules.iter().enumerate() {
            parsed.add(number, rule, &capable, unsigned)?;
        }
        Ok(parsed)
    }

    fn add(
        &mut self,
        number: usize,
        rule: &FilterRule,
        capable: &impl Fn(&str) -> Vec<IpAddr>,
        unsigned: &[IpNet],
    ) -> Result<(), RulesError> {
        let deprecated = |field| RulesError::Deprecated {
            rule: number,
            field,
        };
        if !rule.src_bits.is_empty() {
            return Err(deprecated("SrcBits"));
        }
        if rule.dst_ports.iter().any(|port| port.bits.is_some()) {
            return Err(deprecated("Bits"));
        }
        let mut invalid = |text: &str, problem| {
            self.invalid.push(InvalidEntry {
                rule: number,
                text: text.to_owned(),
                problem,
            });
        };
        let mut sources = IpSet::default();
        let mut by_capability = IpSet::default();
        for text in &rule.src_ips {
            if let Some(name) = text.strip_prefix("cap:") {
                for address in capable(name) {
                    by_capability.add(address.into());
                }
                continue;
            }
            match addresses(text) {
                Ok(set) => sources.add_all(&set),
                Err(problem) => invalid(text, problem),
            }
        }
        let mut destinations = Vec::new();
        for destination in &rule.dst_ports {
            match addresses(&destination.ip) {
                Ok(addresses) => destinations.push(Destination {
                    addresses,
                    ports: destination.ports,
                }),
                Err(problem) => invalid(&destination.ip, problem),
            }
        }
        if !rule.cap_grant.is_empty() {
            self.grants.push(Grant::new(&sources, &rule.cap_grant));
        }
        if destinations.is_empty() {
            return Ok(());
        }
        if let Some(peer) = unsigned.iter().find(|peer| sources.overlaps(**peer)) {
            return Err(RulesError::UnsignedPeer {
                rule: number,
                peer: *peer,
            });
        }
        let protocols = if rule.ip_proto.is_empty() {
            DEFAULT_PROTOCOLS.to_vec()
        } else {
            let listed = rule.ip_proto.iter();
            listed
                .filter_map(|number| u8::try_from(*number).ok())
                .collect()
        };
        self.matches.push(Match {
            rule: number,
            sources,
            capable: by_capability,
            protocols,
            destinations,
        });
        Ok(())
    }

    /// The rules that admit packets.
    #[must_use]
    pub fn matches(&self) -> &[Match] {
        &self.matches
    }

    /// Entries that are ignored, to be told to the operator.
    #[must_use]
    pub fn invalid(&self) -> &[InvalidEntry] {
        &self.invalid
    }

    /// Whether some rule admits a packet; the port is 0 where there is none.
    #[must_use]
    pub fn admit(&self, number: u8, src: IpAddr, dst: IpAddr, port: u16) -> bool {
        self.admitting(number, src, dst, port).is_some()
    }

    /// The first rule that admits a packet: which it is on the wire, from 0.
    #[must_use]
    pub fn admitting(&self, number: u8, src: IpAddr, dst: IpAddr, port: u16) -> Option<usize> {
        let mut rules = self.matches.iter();
        let first = rules.find(|rule| rule.admits(number, src, dst, port));
        first.map(|rule| rule.rule)
    }

    /// Capabilities that the rules grant `peer` towards `address`.
    #[must_use]
    pub fn capabilities(&self, peer: IpAddr, address: IpAddr) -> Capabilities {
        let mut capabilities = Capabilities::new();
        for grant in &self.grants {
            grant.add_to(&mut capabilities, peer, address);
        }
        capabilities
    }
}

impl Match {
    /// Whether the rule admits a packet (R1 to R3 of the module above).
    #[must_use]
    pub fn admits(&self, number: u8, src: IpAddr, dst: IpAddr, port: u16) -> bool {
        let listed = self.protocols.contains(&number);
        let source = self.sources.contains(src);
        let source_or_capable = source || self.capable.contains(src);
        let own_icmp = match dst {
            IpAddr::V4(_) => protocol::ICMP,
            IpAddr::V6(_) => protocol::ICMPV6,
        };
        self.destinations
            .iter()
            .filter(|destination| destination.addresses.contains(dst))
            .any(|destination| match number {
                protocol::TCP | protocol::UDP | protocol::SCTP => {
                    let ports = destination.ports;
                    listed && source_or_capable && (ports.first..=ports.last).contains(&port)
                }
                number if number == own_icmp => source_or_capable,
                _ => listed && source && destination.ports == PortRange::ALL,
            })
    }
}

/// Reads `*`, an address, a prefix or a range.
fn addresses(text: &str) -> Result<IpSet, &'static str> {
    const UNREADABLE: &str = "is no address, prefix or range";
    if text == "*" {
        return Ok(IpSet::all());
    }
    let mut set = IpSet::default();
    if text.contains('/') {
        let prefix: IpNet = text.parse().map_err(|_| UNREADABLE)?;
        if prefix != prefix.trunc() {
            return Err("has bits set beyond the length of its prefix");
        }
        set.add(prefix);
    } else if let Some((first, last)) = text.split_once('-') {
        let first: IpAddr = first.parse().map_err(|_| UNREADABLE)?;
        let last: IpAddr = last.parse().map_err(|_| UNREADABLE)?;
        set.add_range(first, last);
        if set.is_empty() {
            return Err("does not end after it begins");
        }
    } else {
        let address: IpAddr = text.parse().map_err(|_| UNREADABLE)?;
        set.add(address.into());
    }
    Ok(set)
}
