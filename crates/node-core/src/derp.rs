//! The DERP map as the agent holds it: parsed once, only regions and nodes that can be dialled.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use control_proto::tailcfg::{self, DerpNode};

/// Number of a DERP region, 1..=65535 (it travels as a port number, protocol/derp.md §12).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RegionId(pub u16);

impl std::fmt::Display for RegionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Every relay region this node may use.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DerpMap {
    /// Regions by number.
    pub regions: BTreeMap<RegionId, Region>,
    /// Latency multipliers in millionths, lower wins; a region not listed counts 1 000 000.
    pub scores: BTreeMap<RegionId, u64>,
}

impl DerpMap {
    /// Parses the wire form; what cannot be dialled (a number out of range, a bad pin or port) is left out.
    #[must_use]
    pub fn from_wire(wire: &tailcfg::DerpMap) -> Self {
        let mut map = Self::default();
        for (id, region) in wire.regions() {
            let Some(id) = parse_id(id) else { continue };
            let region = Region {
                id,
                code: region.region_code.clone(),
                name: region.region_name.clone(),
                never_home: region.avoid || region.no_measure_no_home,
                nodes: region.nodes.iter().filter_map(Node::from_wire).collect(),
            };
            map.regions.insert(id, region);
        }
        let scores = wire
            .home_params
            .as_ref()
            .and_then(|p| p.region_score.as_ref());
        for (id, score) in scores.into_iter().flatten() {
            if let Some(id) = parse_id(*id)
                && (1e-3..=1e3).contains(score)
            {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "between a thousand and a thousand million"
                )]
                map.scores.insert(id, (score * 1e6) as u64);
            }
        }
        map
    }

    /// Returns the code of a region (`fra`), or an empty string for an unknown one.
    #[must_use]
    pub fn code(&self, region: RegionId) -> &str {
        self.regions
            .get(&region)
            .map_or("", |region| region.code.as_str())
    }
}

/// One region: its nodes are interchangeable and tried in order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Region {
    /// Number of the region.
    pub id: RegionId,
    /// Short name, for example `fra`.
    pub code: String,
    /// Name for people.
    pub name: String,
    /// Never becomes the home and is not measured (`Avoid`, `NoMeasureNoHome`).
    pub never_home: bool,
    /// Nodes in dialling order.
    pub nodes: Vec<Node>,
}

/// One relay server of a region.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    /// Unique name in the map, for example `1a`.
    pub name: String,
    /// Host name for TLS and, without fixed addresses, for DNS.
    pub host: String,
    /// Where its IPv4 address comes from.
    pub ipv4: Address<Ipv4Addr>,
    /// Where its IPv6 address comes from.
    pub ipv6: Address<Ipv6Addr>,
    /// TCP port of DERP.
    pub derp_port: u16,
    /// Serves no DERP, only STUN.
    pub stun_only: bool,
    /// UDP port of STUN, if it serves STUN.
    pub stun_port: Option<u16>,
    /// Address to use for STUN instead of the node's own.
    pub stun_ip: Option<std::net::IpAddr>,
    /// Answers plain HTTP on port 80, for those who look for a captive portal.
    pub http: bool,
    /// How its certificate is verified.
    pub certificate: Certificate,
}

impl Node {
    fn from_wire(wire: &DerpNode) -> Option<Self> {
        let derp_port = match wire.derp_port() {
            Some(port) => port,
            None if wire.stun_only => 0,
            None => return None,
        };
        Some(Self {
            name: wire.name.clone(),
            host: wire.host_name.trim_end_matches('.').to_owned(),
            ipv4: Address::parse(&wire.ipv4),
            ipv6: Address::parse(&wire.ipv6),
            derp_port,
            stun_only: wire.stun_only,
            stun_port: wire.stun_port(),
            stun_ip: wire.stun_test_ip.parse().ok(),
            http: wire.can_port80,
            certificate: Certificate::parse(&wire.cert_name, wire.insecure_for_tests).ok()?,
        })
    }
}

fn parse_id(id: tailcfg::RegionId) -> Option<RegionId> {
    u16::try_from(id).ok().filter(|id| *id != 0).map(RegionId)
}

/// Where an address of one family comes from.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Address<A> {
    /// Fixed by the map.
    Fixed(A),
    /// The map says that this family is not to be used.
    Disabled,
    /// The map says nothing: resolve the host name.
    #[default]
    Resolve,
}

impl<A: FromStr> Address<A> {
    /// An invalid address falls back to DNS, as an empty one does.
    fn parse(text: &str) -> Self {
        match text {
            "none" => Self::Disabled,
            text => text.parse().map_or(Self::Resolve, Self::Fixed),
        }
    }
}

/// How a relay's TLS certificate is verified (protocol/derp.md §2).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Certificate {
    /// Against the trusted roots, for the host name.
    HostName,
    /// Against the trusted roots, for this other name.
    Name(String),
    /// SHA-256 of the leaf certificate in DER; no chain is needed.
    Pinned([u8; 32]),
    /// Not at all (`InsecureForTests`).
    Unverified,
}

impl Certificate {
    /// Parses `CertName` and `InsecureForTests` of a DERP node.
    ///
    /// # Errors
    ///
    /// [`BadPin`] if the name is a `sha256-raw:` pin without 64 hexadecimal digits.
    pub fn parse(cert_name: &str, insecure: bool) -> Result<Self, BadPin> {
        if let Some(pin) = cert_name.strip_prefix("sha256-raw:") {
            return parse_pin(pin).map(Self::Pinned).ok_or(BadPin);
        }
        Ok(match (insecure, cert_name) {
            (true, _) => Self::Unverified,
            (false, "") => Self::HostName,
            (false, name) => Self::Name(name.to_owned()),
        })
    }
}

/// A `sha256-raw:` certificate pin that is not 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a sha256-raw certificate pin needs 64 hexadecimal digits")]
pub struct BadPin;

fn parse_pin(text: &str) -> Option<[u8; 32]> {
    let text = text.as_bytes();
    if text.len() != 64 {
        return None;
    }
    let mut pin = [0; 32];
    for (byte, pair) in pin.iter_mut().zip(text.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(pin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_parsed_and_a_short_one_is_refused() {
        let pin = format!("sha256-raw:{}", "aB".repeat(32));
        assert_eq!(
            Certificate::parse(&pin, false),
            Ok(Certificate::Pinned([0xab; 32]))
        );
        assert_eq!(Certificate::parse("sha256-raw:00", false), Err(BadPin));
        assert_eq!(
            Certificate::parse(&format!("sha256-raw:{}", "zz".repeat(32)), true),
            Err(BadPin)
        );
    }

    #[test]
    fn a_region_keeps_what_can_be_dialled() {
        let node = |name: &str, port: i32, cert: &str| DerpNode {
            name: name.into(),
            host_name: "192.0.2.1".into(),
            ipv4: "192.0.2.1".into(),
            ipv6: "none".into(),
            derp_port: port,
            cert_name: cert.into(),
            ..DerpNode::default()
        };
        let region = tailcfg::DerpRegion {
            region_code: "here".into(),
            nodes: vec![
                node("a", 0, ""),
                node("b", 70_000, ""),
                node("c", 0, "sha256-raw:xyz"),
            ],
            ..tailcfg::DerpRegion::default()
        };
        let wire = tailcfg::DerpMap {
            regions: Some(BTreeMap::from([
                (900, Some(region.clone())),
                (70_000, Some(region)),
                (901, None),
            ])),
            ..tailcfg::DerpMap::default()
        };

        let map = DerpMap::from_wire(&wire);

        assert_eq!(
            map.regions.keys().copied().collect::<Vec<_>>(),
            [RegionId(900)]
        );
        assert_eq!(map.code(RegionId(900)), "here");
        let nodes = &map.regions[&RegionId(900)].nodes;
        assert_eq!(nodes.len(), 1);
        assert_eq!(nodes[0].ipv4, Address::Fixed(Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!(nodes[0].ipv6, Address::Disabled);
        assert_eq!((nodes[0].derp_port, nodes[0].stun_port), (443, Some(3478)));
    }

    #[test]
    fn an_empty_name_means_the_host_name() {
        assert_eq!(Certificate::parse("", false), Ok(Certificate::HostName));
        assert_eq!(Certificate::parse("", true), Ok(Certificate::Unverified));
        assert_eq!(
            Certificate::parse("other.example", false),
            Ok(Certificate::Name("other.example".into()))
        );
    }
}
