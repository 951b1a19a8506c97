//! Tables, chains, rules and expressions in the kernel's attributes (`linux/netfilter/nf_tables.h`).

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Base, Chain, Expression, Hook, Kind, Layer, Port, Rule};
use crate::Family;
use crate::netfilter::wire::Writer;

// enum nft_table_attributes, nft_chain_attributes, nft_rule_attributes
pub(super) const TABLE_NAME: u16 = 1;
pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
pub(super) const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_HANDLE: u16 = 3;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const RULE_USER_DATA: u16 = 7;
pub(super) const LIST_ELEMENT: u16 = 1;
pub(super) const EXPRESSION_NAME: u16 = 1;
pub(super) const EXPRESSION_DATA: u16 = 2;
pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
pub(super) const VERDICT_CODE: u16 = 1;
pub(super) const VERDICT_CHAIN: u16 = 2;

pub(super) const REGISTER_VERDICT: u32 = 0;
/// 16 bytes: an interface name or an IPv6 address at most.
const REGISTER: u32 = 1;

// enum nft_meta_keys, nft_ct_keys
const META_MARK: u32 = 3;
pub(super) const META_INPUT_NAME: u32 = 6;
pub(super) const META_OUTPUT_NAME: u32 = 7;
const META_INPUT_TYPE: u32 = 8;
pub(super) const META_NETWORK_PROTOCOL: u32 = 15;
const META_TRANSPORT_PROTOCOL: u32 = 16;
pub(super) const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const CT_MARK: u32 = 3;
/// `IPS_DST_NAT`.
const STATUS_DESTINATION_NAT: u32 = 1 << 5;
// enum nft_cmp_ops
pub(super) const EQUAL: u32 = 0;
pub(super) const DIFFERENT: u32 = 1;
// enum nft_payload_bases
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// `NFT_PAYLOAD_L4CSUM_PSEUDOHDR`: the layer's checksum follows what is written. Unlike the plain kind it leaves a
/// datagram alone that has none, as IPv4 allows, instead of making up a wrong one.
const UPDATE_L4_CHECKSUM: u32 = 1;
// enum nft_verdicts, nf_inet_verdict
pub(super) const VERDICT_DROP: i32 = 0;
pub(super) const VERDICT_ACCEPT: i32 = 1;
pub(super) const VERDICT_JUMP: i32 = -3;
pub(super) const VERDICT_GOTO: i32 = -4;
pub(super) const VERDICT_RETURN: i32 = -5;
/// Of libnftnl: user data of a rule is a list of type, length, value; a comment is the first type.
const USER_DATA_COMMENT: u8 = 0;
const INTERFACE_NAME_LEN: usize = 16;

impl Layer {
    /// `NFPROTO_*`.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip(Family::V4) => 2,
            Self::Ip(Family::V6) => 10,
        }
    }

    pub(super) fn parse(number: u8) -> Option<Self> {
        [Self::Inet, Self::Ip(Family::V4), Self::Ip(Family::V6)]
            .into_iter()
            .find(|layer| layer.number() == number)
    }
}

impl Hook {
    pub(super) fn parse(number: u32) -> Option<Self> {
        [
            Self::Prerouting,
            Self::Input,
            Self::Forward,
            Self::Output,
            Self::Postrouting,
        ]
        .into_iter()
        .find(|hook| hook.number() == number)
    }

    fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

/// Writes what `NFT_MSG_NEWCHAIN` wants.
pub(super) fn chain(writer: &mut Writer, table: &str, chain: &Chain) {
    writer.put_text(CHAIN_TABLE, table);
    writer.put_text(CHAIN_NAME, &chain.name);
    if let Some(Base {
        kind,
        hook,
        priority,
    }) = chain.base
    {
        writer.nest(CHAIN_HOOK, |inner| {
            inner.put_u32(HOOK_NUMBER, hook.number());
            inner.put_u32(HOOK_PRIORITY, priority.cast_unsigned());
        });
        writer.put_u32(CHAIN_POLICY, VERDICT_ACCEPT.cast_unsigned());
        writer.put_text(CHAIN_TYPE, kind.name());
    }
}

/// Writes what `NFT_MSG_NEWRULE` wants.
pub(super) fn rule(writer: &mut Writer, table: &str, chain: &str, rule: &Rule) {
    writer.put_text(RULE_TABLE, table);
    writer.put_text(RULE_CHAIN, chain);
    writer.nest(RULE_EXPRESSIONS, |list| {
        for item in &rule.expressions {
            expression(list, item);
        }
    });
    if let Some(comment) = &rule.comment {
        writer.put(RULE_USER_DATA, &user_data(comment));
    }
}

/// The bytes by which a rule carries `comment`; at most 253 bytes of it.
pub(super) fn user_data(comment: &str) -> Vec<u8> {
    let text = &comment.as_bytes()[..comment.len().min(253)];
    let len = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let mut bytes = vec![USER_DATA_COMMENT, len];
    bytes.extend(text);
    bytes.push(0);
    bytes
}

fn expression(list: &mut Writer, item: &Expression) {
    match item {
        Expression::InputInterface(name) => {
            meta(list, META_INPUT_NAME);
            compare(list, EQUAL, &padded(name));
        }
        Expression::InputType(hardware) => {
            meta(list, META_INPUT_TYPE);
            compare(list, EQUAL, &hardware.to_ne_bytes());
        }
        Expression::OutputInterface(name) => {
            meta(list, META_OUTPUT_NAME);
            compare(list, EQUAL, &padded(name));
        }
        // Marks, like the connection's state, lie in registers in host order.
        &Expression::Mark { value, mask } => {
            meta(list, META_MARK);
            masked(list, &mask.to_ne_bytes(), &[0; 4]);
            compare(list, EQUAL, &value.to_ne_bytes());
        }
        &Expression::ConnectionMark { value, mask } => {
            connection(list, CT_MARK);
            masked(list, &mask.to_ne_bytes(), &[0; 4]);
            compare(list, EQUAL, &value.to_ne_bytes());
        }
        Expression::ConnectionState(states) => {
            connection(list, CT_STATE);
            masked(list, &states.to_ne_bytes(), &[0; 4]);
            compare(list, DIFFERENT, &[0; 4]);
        }
        Expression::DestinationTranslated => {
            connection(list, CT_STATUS);
            masked(list, &STATUS_DESTINATION_NAT.to_ne_bytes(), &[0; 4]);
            compare(list, DIFFERENT, &[0; 4]);
        }
        Expression::NetworkProtocol(family) => {
            meta(list, META_NETWORK_PROTOCOL);
            compare(list, EQUAL, &[Layer::Ip(*family).number()]);
        }
        Expression::TransportProtocol(protocol) => {
            meta(list, META_TRANSPORT_PROTOCOL);
            compare(list, EQUAL, &[*protocol]);
        }
        Expression::Port(port, number) => {
            payload(list, TRANSPORT_HEADER, port.offset(), 2);
            compare(list, EQUAL, &number.to_be_bytes());
        }
        Expression::TransportBits { offset, mask } => {
            payload(list, TRANSPORT_HEADER, *offset, 4);
            masked(list, mask, &[0; 4]);
            compare(list, DIFFERENT, &[0; 4]);
        }
        Expression::TransportBytes { offset, bytes } => {
            payload(list, TRANSPORT_HEADER, *offset, bytes.len());
            compare(list, EQUAL, bytes);
        }
        Expression::Source(net) => prefix(list, net, [12, 8]),
        Expression::Destination(net) => prefix(list, net, [16, 24]),
        Expression::Counter => named(list, "counter", |_| {}),
        &Expression::SetMark { value, mask } => {
            meta(list, META_MARK);
            masked(list, &(!mask).to_ne_bytes(), &(value & mask).to_ne_bytes());
            named(list, "meta", |data| {
                data.put_u32(2, META_MARK);
                data.put_u32(3, REGISTER);
            });
        }
        &Expression::SetConnectionMark { value, mask } => {
            connection(list, CT_MARK);
            masked(list, &(!mask).to_ne_bytes(), &(value & mask).to_ne_bytes());
            named(list, "ct", |data| {
                data.put_u32(2, CT_MARK);
                data.put_u32(4, REGISTER);
            });
        }
        Expression::SetUdpPort(port, number) => {
            named(list, "immediate", |data| {
                data.put_u32(1, REGISTER);
                data.nest(2, |inner| inner.put(DATA_VALUE, &number.to_be_bytes()));
            });
            named(list, "payload", |data| {
                data.put_u32(5, REGISTER);
                data.put_u32(2, TRANSPORT_HEADER);
                data.put_u32(3, port.offset());
                data.put_u32(4, 2);
                data.put_u32(8, UPDATE_L4_CHECKSUM);
            });
        }
        Expression::Masquerade => named(list, "masq", |_| {}),
        Expression::Accept => verdict(list, VERDICT_ACCEPT, None),
        Expression::Drop => verdict(list, VERDICT_DROP, None),
        Expression::Return => verdict(list, VERDICT_RETURN, None),
        Expression::Jump(chain) => verdict(list, VERDICT_JUMP, Some(chain)),
    }
}

impl Port {
    /// First byte in a TCP or UDP header.
    fn offset(self) -> u32 {
        match self {
            Self::Source => 0,
            Self::Destination => 2,
        }
    }
}

/// Matches an address of the network header, at the first or second offset by family.
fn prefix(list: &mut Writer, net: &IpNet, offsets: [u32; 2]) {
    let family = match net {
        IpNet::V4(_) => Family::V4,
        IpNet::V6(_) => Family::V6,
    };
    expression(list, &Expression::NetworkProtocol(family));
    if net.prefix_len() == 0 {
        return; // the family says it all, and the kernel takes no comparison of nothing
    }
    let (address, mask) = (octets(net.network()), octets(net.netmask()));
    let offset = offsets[usize::from(family == Family::V6)];
    payload(list, NETWORK_HEADER, offset, address.len());
    if net.prefix_len() != net.max_prefix_len() {
        masked(list, &mask, &vec![0; mask.len()]);
    }
    compare(list, EQUAL, &address);
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn padded(name: &str) -> [u8; INTERFACE_NAME_LEN] {
    let mut bytes = [0; INTERFACE_NAME_LEN];
    // The last byte stays zero, as in the kernel.
    for (byte, letter) in bytes
        .iter_mut()
        .zip(name.bytes().take(INTERFACE_NAME_LEN - 1))
    {
        *byte = letter;
    }
    bytes
}

fn named(list: &mut Writer, name: &str, data: impl FnOnce(&mut Writer)) {
    list.nest(LIST_ELEMENT, |element| {
        element.put_text(EXPRESSION_NAME, name);
        element.nest(EXPRESSION_DATA, data);
    });
}

fn meta(list: &mut Writer, key: u32) {
    named(list, "meta", |data| {
        data.put_u32(2, key);
        data.put_u32(1, REGISTER);
    });
}

fn connection(list: &mut Writer, key: u32) {
    named(list, "ct", |data| {
        data.put_u32(2, key);
        data.put_u32(1, REGISTER);
    });
}

fn payload(list: &mut Writer, base: u32, offset: u32, len: usize) {
    named(list, "payload", |data| {
        data.put_u32(1, REGISTER);
        data.put_u32(2, base);
        data.put_u32(3, offset);
        data.put_u32(4, u32::try_from(len).unwrap_or(u32::MAX));
    });
}

/// register = (register & mask) ^ xor
fn masked(list: &mut Writer, mask: &[u8], xor: &[u8]) {
    named(list, "bitwise", |data| {
        data.put_u32(1, REGISTER);
        data.put_u32(2, REGISTER);
        data.put_u32(3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
        data.nest(4, |inner| inner.put(DATA_VALUE, mask));
        data.nest(5, |inner| inner.put(DATA_VALUE, xor));
    });
}

fn compare(list: &mut Writer, operator: u32, value: &[u8]) {
    named(list, "cmp", |data| {
        data.put_u32(1, REGISTER);
        data.put_u32(2, operator);
        data.nest(3, |inner| inner.put(DATA_VALUE, value));
    });
}

fn verdict(list: &mut Writer, code: i32, chain: Option<&str>) {
    named(list, "immediate", |data| {
        data.put_u32(1, REGISTER_VERDICT);
        data.nest(2, |inner| {
            inner.nest(DATA_VERDICT, |verdict| {
                verdict.put_u32(VERDICT_CODE, code.cast_unsigned());
                if let Some(chain) = chain {
                    verdict.put_text(VERDICT_CHAIN, chain);
                }
            });
        });
    });
}
