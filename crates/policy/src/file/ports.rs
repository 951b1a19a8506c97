//! Protocols and ports (control.md 8.3).

use super::Located;
use super::reader::{Reader, Text, nearest};
use crate::diagnostic::Cause;

/// Ports of protocols.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ProtoPorts {
    /// IP protocol numbers; empty = TCP, UDP, ICMP and ICMPv6.
    pub protocols: Vec<u8>,
    /// First port.
    pub first: u16,
    /// Last port, included. `0..=65535` = all.
    pub last: u16,
}

impl ProtoPorts {
    /// All ports?
    #[must_use]
    pub fn all_ports(&self) -> bool {
        (self.first, self.last) == ALL
    }
}

/// `*`
const ALL: (u16, u16) = (0, u16::MAX);

/// Protocols by name (Tailscale's `types/ipproto`, and `fc` of control.md 8.3).
const PROTOCOLS: &[(&str, u8)] = &[
    ("icmp", 1),
    ("icmpv4", 1),
    ("igmp", 2),
    ("ipv4", 4),
    ("ip-in-ip", 4),
    ("tcp", 6),
    ("egp", 8),
    ("igp", 9),
    ("udp", 17),
    ("dccp", 33),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ipv6-icmp", 58),
    ("icmpv6", 58),
    ("tsmp", 99),
    ("sctp", 132),
    ("fc", 133),
];

/// A protocol by name or by decimal number.
pub(crate) fn protocol_number(name: &str) -> Option<u8> {
    if let Some((_, number)) = PROTOCOLS
        .iter()
        .find(|(it, _)| it.eq_ignore_ascii_case(name))
    {
        return Some(*number);
    }
    let plain =
        name.bytes().all(|byte| byte.is_ascii_digit()) && (name == "0" || !name.starts_with('0'));
    if plain { name.parse().ok() } else { None }
}

/// What a protocol is called; its number, if it has no name.
pub(crate) fn protocol_name(number: u8) -> String {
    let known = PROTOCOLS.iter().find(|(_, it)| *it == number);
    known.map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}

/// Has this protocol ports?
pub(crate) fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 132)
}

/// Why a text is not a range of ports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum PortsError {
    /// Not `*`, `22` or `80-443`.
    Form,
    /// A number above 65535.
    TooLarge,
    /// Port 0.
    Zero,
    /// The first is above the last.
    Reversed,
}

/// `*`, `22` or `80-443`: first and last port.
pub(crate) fn parse_ports(text: &str) -> Result<(u16, u16), PortsError> {
    if text == "*" {
        return Ok(ALL);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if first == 0 {
        return Err(PortsError::Zero);
    }
    if first > last {
        Err(PortsError::Reversed)
    } else {
        Ok((first, last))
    }
}

fn port(text: &str) -> Result<u16, PortsError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(PortsError::Form);
    }
    text.parse().map_err(|_too_large| PortsError::TooLarge)
}

impl<'n> Reader<'n> {
    /// A protocol; empty = the default ones.
    pub(super) fn protocol(&mut self, text: &Text<'n>) -> Option<Vec<u8>> {
        if text.value.is_empty() {
            return Some(Vec::new());
        }
        if let Some(number) = protocol_number(text.value) {
            return Some(vec![number]);
        }
        let message = format!("{:?} is not a protocol", text.value);
        let near = nearest(text.value, PROTOCOLS.iter().map(|(name, _)| *name));
        let help = match near {
            Some(near) if !text.value.bytes().all(|byte| byte.is_ascii_digit()) => {
                format!("did you mean {near:?}?")
            }
            _ if text.value == "*" => "leave the protocol out: TCP, UDP and ICMP".to_owned(),
            _ => "names are tcp, udp, icmp, sctp, …; others go by number, 0 to 255 without leading zeros".to_owned(),
        };
        self.error_help(
            Cause::BadProtocol,
            &text.span,
            message,
            "expected a protocol",
            help,
        );
        None
    }

    /// One range of ports for these protocols.
    fn port_range(&mut self, text: &Text<'n>, protocols: &[u8]) -> Option<Located<ProtoPorts>> {
        let (first, last) = match parse_ports(text.value) {
            Ok(ports) => ports,
            Err(error) => {
                let (cause, message) = match error {
                    PortsError::Form => (
                        Cause::BadPorts,
                        format!("{:?} is not a port or range of ports", text.value),
                    ),
                    PortsError::TooLarge => (
                        Cause::BadPorts,
                        format!("{:?}: ports end at 65535", text.value),
                    ),
                    PortsError::Zero => (
                        Cause::PortZero,
                        format!("{:?}: there is no port 0", text.value),
                    ),
                    PortsError::Reversed => (
                        Cause::BadPorts,
                        format!("{:?}: the first port is above the last", text.value),
                    ),
                };
                let help = if protocol_number(text.value).is_some() && error == PortsError::Form {
                    format!("all of a protocol is \"{}:*\"", text.value)
                } else {
                    "ports are 22, 80-443 or * for all".to_owned()
                };
                self.error_help(cause, &text.span, message, "expected ports", help);
                return None;
            }
        };
        let ports = ProtoPorts {
            protocols: protocols.to_vec(),
            first,
            last,
        };
        if let Some(protocol) = protocols.iter().find(|it| !has_ports(**it))
            && !ports.all_ports()
        {
            let message = format!("protocol {protocol} has no ports");
            let help = "only tcp, udp and sctp have ports: write * for this one";
            self.error_help(
                Cause::PortsWithoutPorts,
                &text.span,
                message,
                "expected *",
                help,
            );
            return None;
        }
        Some(text.located(ports))
    }

    /// The ports of an ACL's destination: `*`, `22`, `80-443` and lists of them with commas.
    pub(super) fn port_list(
        &mut self,
        text: &Text<'n>,
        protocols: &[u8],
    ) -> Vec<Located<ProtoPorts>> {
        let parts: Vec<_> = text.split(',').collect();
        parts
            .iter()
            .filter_map(|part| self.port_range(&part.trim(), protocols))
            .collect()
    }

    /// An element of a grant's `ip`: `*`, `22`, `80-443`, `tcp:22`, `icmp:*`, `47:*`.
    pub(super) fn proto_ports(&mut self, text: &Text<'n>) -> Option<Located<ProtoPorts>> {
        let text = text.trim();
        if text.value.matches(':').count() > 1 {
            let message = format!("{:?} has more than one colon", text.value);
            let help = "write \"tcp:22\", \"udp:53\", \"443\", \"icmp:*\" or \"*\", one a string";
            self.error_help(
                Cause::BadPorts,
                &text.span,
                message,
                "expected protocol:ports",
                help,
            );
            return None;
        }
        let Some((protocol, ports)) = text.rsplit_once(':') else {
            return self.port_range(&text, &[]);
        };
        let protocols = match protocol.value {
            // Every protocol of the default ones, as Tailscale reads it.
            "*" => Vec::new(),
            "" => {
                let message = "a colon without protocol before it";
                self.error(
                    Cause::BadProtocol,
                    &text.span,
                    message,
                    "expected protocol:ports",
                );
                return None;
            }
            _ => self.protocol(&protocol)?,
        };
        let ports = self.port_range(&ports, &protocols)?;
        Some(text.located(ports.value))
    }
}
