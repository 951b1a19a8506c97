//! Messages of PCP (RFC 6887): what is asked of a router, and what it answers.

use std::net::{Ipv4Addr, Ipv6Addr};

/// First byte of every message.
pub(super) const VERSION: u8 = 2;
/// Longest message.
pub(super) const MAX_LEN: usize = 1100;

const OP_ANNOUNCE: u8 = 0;
const OP_MAP: u8 = 1;
/// Set in the operation of an answer.
const ANSWER: u8 = 0x80;
const UDP: u8 = 17;
/// Every message begins with this many bytes.
const HEADER_LEN: usize = 24;

/// Tells our mapping from everybody else's.
pub(super) type Nonce = [u8; 12];

/// What a router answered. Epochs are its seconds since it last forgot its mappings.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// It is there.
    Here {
        /// See above.
        epoch: u32,
    },
    /// A port is mapped, for so many seconds; none if it is so no longer.
    Mapped {
        /// See above.
        epoch: u32,
        /// That of the request.
        nonce: Nonce,
        /// Our port.
        internal: u16,
        /// Its port.
        external: u16,
        /// Its address; `None` if it says none that others could send to.
        address: Option<Ipv4Addr>,
        /// Seconds.
        lifetime: u32,
    },
    /// It will not do what the operation asks.
    Refused {
        /// A mapping was asked for.
        mapping: bool,
        /// RFC 6887 §7.4.
        code: u8,
    },
}

/// Asks whether the router speaks PCP. `own` is our address as it sees it.
pub(super) fn announce(own: Ipv4Addr) -> Vec<u8> {
    header(OP_ANNOUNCE, own, 0)
}

/// What is to be mapped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Map {
    /// Our address as the router sees it.
    pub(super) own: Ipv4Addr,
    /// Kept for as long as the mapping.
    pub(super) nonce: Nonce,
    /// Our port.
    pub(super) internal: u16,
    /// The port that the router would best take.
    pub(super) external: u16,
    /// Seconds; 0 ends the mapping.
    pub(super) lifetime: u32,
}

/// Asks for a mapping of a UDP port.
pub(super) fn map(map: Map) -> Vec<u8> {
    let mut message = header(OP_MAP, map.own, map.lifetime);
    message.extend(map.nonce);
    message.extend([UDP, 0, 0, 0]);
    message.extend(map.internal.to_be_bytes());
    message.extend(map.external.to_be_bytes());
    // Any address of the router's, but an IPv4 one.
    message.extend(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets());
    message
}

fn header(operation: u8, own: Ipv4Addr, lifetime: u32) -> Vec<u8> {
    let mut message = vec![VERSION, operation, 0, 0];
    message.extend(lifetime.to_be_bytes());
    message.extend(own.to_ipv6_mapped().octets());
    message
}

/// Reads an answer; `None` if it is none. Options after it are ignored.
pub(super) fn parse(datagram: &[u8]) -> Option<Answer> {
    // RFC 6887 §7: a multiple of four bytes, and no more than fits any link.
    if datagram.len() > MAX_LEN || !datagram.len().is_multiple_of(4) {
        return None;
    }
    let (header, rest) = datagram.split_first_chunk::<HEADER_LEN>()?;
    let [
        version,
        operation,
        _,
        code,
        l0,
        l1,
        l2,
        l3,
        e0,
        e1,
        e2,
        e3,
        ..,
    ] = *header;
    if version != VERSION || operation & ANSWER == 0 {
        return None;
    }
    let mapping = match operation & !ANSWER {
        OP_ANNOUNCE => false,
        OP_MAP => true,
        _ => return None,
    };
    if code != 0 {
        return Some(Answer::Refused { mapping, code });
    }
    let epoch = u32::from_be_bytes([e0, e1, e2, e3]);
    if !mapping {
        return Some(Answer::Here { epoch });
    }
    let (nonce, rest) = rest.split_first_chunk::<12>()?;
    let (ports, rest) = rest.split_first_chunk::<8>()?;
    let [protocol, _, _, _, i0, i1, x0, x1] = *ports;
    if protocol != UDP {
        return None;
    }
    let address = Ipv6Addr::from(*rest.first_chunk::<16>()?).to_ipv4_mapped();
    Some(Answer::Mapped {
        epoch,
        nonce: *nonce,
        internal: u16::from_be_bytes([i0, i1]),
        external: u16::from_be_bytes([x0, x1]),
        address: address.filter(|address| super::is_external(*address)),
        lifetime: u32::from_be_bytes([l0, l1, l2, l3]),
    })
}

/// A router's answer to [`map`], for tests.
#[cfg(test)]
pub(super) fn mapped(map: Map, address: Ipv4Addr, epoch: u32) -> Vec<u8> {
    let mut message = vec![VERSION, OP_MAP | ANSWER, 0, 0];
    message.extend(map.lifetime.to_be_bytes());
    message.extend(epoch.to_be_bytes());
    message.extend([0; 12]);
    message.extend(map.nonce);
    message.extend([UDP, 0, 0, 0]);
    message.extend(map.internal.to_be_bytes());
    message.extend(map.external.to_be_bytes());
    message.extend(address.to_ipv6_mapped().octets());
    message
}

/// A router's answer to [`announce`], for tests.
#[cfg(test)]
pub(super) fn here(epoch: u32) -> Vec<u8> {
    let mut message = vec![VERSION, OP_ANNOUNCE | ANSWER, 0, 0, 0, 0, 0, 0];
    message.extend(epoch.to_be_bytes());
    message.extend([0; 12]);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

    fn request() -> Map {
        Map {
            own: Ipv4Addr::new(192, 168, 1, 2),
            nonce: *b"twelve bytes",
            internal: 41641,
            external: 41642,
            lifetime: 7200,
        }
    }

    #[test]
    fn requests_are_as_long_as_the_rfc_says() {
        let own = request().own;
        assert_eq!(announce(own).len(), 24);
        assert_eq!(announce(own)[8..], own.to_ipv6_mapped().octets());
        assert_eq!(map(request()).len(), 60);
        assert_eq!(&map(request())[24..36], b"twelve bytes");
        assert_eq!(
            map(request())[36..44],
            [17, 0, 0, 0, 0xa2, 0xa9, 0xa2, 0xaa]
        );
    }

    #[test]
    fn answers_read_back() {
        assert_eq!(parse(&here(7)), Some(Answer::Here { epoch: 7 }));
        let expected = Answer::Mapped {
            epoch: 9,
            nonce: request().nonce,
            internal: 41641,
            external: 41642,
            address: Some(ROUTER),
            lifetime: 7200,
        };
        assert_eq!(parse(&mapped(request(), ROUTER, 9)), Some(expected));
        let mut refused = here(1);
        refused[3] = 2;
        let refused = parse(&refused);
        let expected = Answer::Refused {
            mapping: false,
            code: 2,
        };
        assert_eq!(refused, Some(expected));
    }

    #[test]
    fn what_is_no_answer_is_nothing() {
        let whole = mapped(request(), ROUTER, 9);
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len]), None, "{len} bytes");
        }
        assert_eq!(parse(&announce(ROUTER)), None);
        assert_eq!(parse(&map(request())), None);
        let mut huge = whole.clone();
        huge.resize(MAX_LEN + 4, 0);
        assert_eq!(parse(&huge), None);
        let mut tcp = whole.clone();
        tcp[36] = 6;
        assert_eq!(parse(&tcp), None);
        let mut peer = whole;
        peer[1] = 0x82;
        assert_eq!(parse(&peer), None);
    }

    #[test]
    fn an_address_that_nobody_can_send_to_is_none() {
        let addresses = [
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::LOCALHOST,
            Ipv4Addr::BROADCAST,
            Ipv4Addr::new(224, 0, 0, 1),
        ];
        for address in addresses {
            let answer = parse(&mapped(request(), address, 9));
            assert!(
                matches!(answer, Some(Answer::Mapped { address: None, .. })),
                "{address}"
            );
        }
    }
}
