//! Messages of NAT-PMP (RFC 6886): what is asked of a router, and what it answers.

use std::net::Ipv4Addr;

/// First byte of every message.
pub(super) const VERSION: u8 = 0;
/// A request for the router's public address.
pub(super) const PUBLIC_ADDRESS: [u8; 2] = [VERSION, OP_PUBLIC_ADDRESS];

const OP_PUBLIC_ADDRESS: u8 = 0;
const OP_MAP_UDP: u8 = 1;
/// Set in the operation of an answer.
const ANSWER: u8 = 0x80;
/// The router does not speak this version: so it answers PCP, too.
const UNSUPPORTED_VERSION: u16 = 1;

/// What a router answered. Epochs are its seconds since it last forgot its mappings.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// Its public address; `None` if it has none.
    PublicAddress {
        /// See above.
        epoch: u32,
        /// Never unspecified, loopback or multicast.
        address: Option<Ipv4Addr>,
    },
    /// A port is mapped, for so many seconds; none if it is so no longer.
    Mapped {
        /// See above.
        epoch: u32,
        /// Our port.
        internal: u16,
        /// Its port.
        external: u16,
        /// Seconds.
        lifetime: u32,
    },
    /// It will not do what the operation asks.
    Refused {
        /// A mapping was asked for, and not the public address.
        mapping: bool,
        /// RFC 6886 §3.5.
        code: u16,
    },
    /// It does not speak PCP.
    NotPcp,
}

/// Asks for `internal` to be mapped, if possible as `external`, for `lifetime` seconds; 0 ends the mapping.
pub(super) fn map(internal: u16, external: u16, lifetime: u32) -> Vec<u8> {
    let mut message = vec![VERSION, OP_MAP_UDP, 0, 0];
    message.extend(internal.to_be_bytes());
    message.extend(external.to_be_bytes());
    message.extend(lifetime.to_be_bytes());
    message
}

/// Reads an answer; `None` if it is none. Bytes after it are ignored.
pub(super) fn parse(datagram: &[u8]) -> Option<Answer> {
    let (head, rest) = datagram.split_first_chunk::<4>()?;
    let [version, operation, high, low] = *head;
    if version != VERSION || operation & ANSWER == 0 {
        return None;
    }
    let code = u16::from_be_bytes([high, low]);
    if code == UNSUPPORTED_VERSION {
        return Some(Answer::NotPcp);
    }
    let mapping = match operation & !ANSWER {
        OP_PUBLIC_ADDRESS => false,
        OP_MAP_UDP => true,
        _ => return None,
    };
    if code != 0 {
        return Some(Answer::Refused { mapping, code });
    }
    let (epoch, rest) = rest.split_first_chunk::<4>()?;
    let epoch = u32::from_be_bytes(*epoch);
    if mapping {
        let [a, b, c, d, lifetime @ ..] = *rest.first_chunk::<8>()?;
        return Some(Answer::Mapped {
            epoch,
            internal: u16::from_be_bytes([a, b]),
            external: u16::from_be_bytes([c, d]),
            lifetime: u32::from_be_bytes(lifetime),
        });
    }
    let address = Ipv4Addr::from(*rest.first_chunk::<4>()?);
    Some(Answer::PublicAddress {
        epoch,
        address: super::is_external(address).then_some(address),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLIC: [u8; 12] = [0, 128, 0, 0, 0, 0, 1, 0, 198, 51, 100, 7];
    const MAPPED: [u8; 16] = [
        0, 129, 0, 0, 0, 0, 0, 9, 0xa2, 0xa9, 0xa2, 0xaa, 0, 0, 0x1c, 0x20,
    ];

    #[test]
    fn answers_read_as_the_rfc_lays_them_out() {
        let address = Some(Ipv4Addr::new(198, 51, 100, 7));
        let public = Answer::PublicAddress {
            epoch: 256,
            address,
        };
        assert_eq!(parse(&PUBLIC), Some(public));
        let mapped = Answer::Mapped {
            epoch: 9,
            internal: 41641,
            external: 41642,
            lifetime: 7200,
        };
        assert_eq!(parse(&MAPPED), Some(mapped));
        let refused = Answer::Refused {
            mapping: true,
            code: 2,
        };
        assert_eq!(parse(&[0, 129, 0, 2]), Some(refused));
        assert_eq!(
            map(41641, 41642, 7200),
            [0, 1, 0, 0, 0xa2, 0xa9, 0xa2, 0xaa, 0, 0, 0x1c, 0x20]
        );
    }

    #[test]
    fn what_is_no_answer_is_nothing() {
        for len in 0..PUBLIC.len() {
            assert_eq!(parse(&PUBLIC[..len]), None, "{len} bytes");
        }
        for len in 0..MAPPED.len() {
            assert_eq!(parse(&MAPPED[..len]), None, "{len} bytes");
        }
        let mut request = PUBLIC;
        request[1] = 0;
        assert_eq!(parse(&request), None);
        let mut tcp = MAPPED;
        tcp[1] = 130;
        assert_eq!(parse(&tcp), None);
        let mut other = PUBLIC;
        other[0] = 1;
        assert_eq!(parse(&other), None);
    }

    #[test]
    fn a_router_without_an_address_has_none_to_give() {
        let mut none = PUBLIC;
        none[8..].fill(0);
        let none = parse(&none);
        assert!(matches!(
            none,
            Some(Answer::PublicAddress { address: None, .. })
        ));
    }

    #[test]
    fn a_router_that_knows_only_this_says_so_to_pcp() {
        assert_eq!(parse(&[0, 128, 0, 1, 0, 0, 0, 1]), Some(Answer::NotPcp));
    }
}
