//! What the rules are: pure functions of the configuration.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use disco_proto::{disco, stun};
use ipnet::{IpNet, Ipv4Net};
use netlink::Family;
use netlink::nft::{Base, Chain, Expression as E, Hook, Kind, Layer, Port, Rule, Table, state};
use netlink::rules::{MARK_MASK, UNDERLAY_MARK};

use super::Config;

/// Mark of packets that came out of the overlay and are forwarded; upstream's.
pub const FORWARD_MARK: u32 = 0x4_0000;
/// Where iptables-nft, and with it ufw and Docker, has its filter.
pub(super) const FOREIGN_TABLE: &str = "filter";
/// Families of those tables.
pub(super) const FOREIGN_LAYERS: [Layer; 2] = [Layer::Ip(Family::V4), Layer::Ip(Family::V6)];

const UDP: u8 = 17;
/// Hardware type of WireGuard and TUN devices: none (`linux/if_arp.h`).
const ARPHRD_NONE: u16 = 0xfffe;
/// Addresses of peers; nobody outside the tunnel may use them.
const OVERLAY: Ipv4Net = net([100, 64, 0, 0], 10);
/// Part of it that ChromeOS gives its virtual machines.
const CHROME_OS: Ipv4Net = net([100, 115, 92, 0], 23);
/// First payload word of a UDP datagram, less what differs between WireGuard's message types 1 to 4
/// (a byte below 8, then three zeros): nothing of WireGuard's is left standing under this mask.
const NOT_WIREGUARD: E = E::TransportBits {
    offset: 8,
    mask: [0xf8, 0xff, 0xff, 0xff],
};
/// First payload bytes of disco (protocol/disco.md §1), and what follows STUN's type and length.
const DISCO: E = E::TransportBytes {
    offset: 8,
    bytes: &disco::MAGIC,
};
const STUN: E = E::TransportBytes {
    offset: 12,
    bytes: &stun::COOKIE,
};
// Priorities: after the host's own filters on the way in and before connection tracking on the way out, so
// that both see WireGuard's port only; elsewhere those of iptables' `filter`, `mangle`, `nat`.
const DEMUX_IN: i32 = 300;
const DEMUX_OUT: i32 = -300;
const MANGLE: i32 = -150;
const FILTER: i32 = 0;
const SOURCE_NAT: i32 = 100;

const SPOOF: &str = "spoof";
const SORT: &str = "sort";
/// Counts what led to nothing.
pub(super) const JUNK: &str = "junk";

const fn net(address: [u8; 4], len: u8) -> Ipv4Net {
    let [a, b, c, d] = address;
    Ipv4Net::new_assert(std::net::Ipv4Addr::new(a, b, c, d), len)
}

/// Name of our table: that of the device, so that two agents can share a host.
#[must_use]
pub fn table_name(device: &str) -> String {
    if device.starts_with("tailrace") {
        device.to_owned()
    } else {
        format!("tailrace-{device}")
    }
}

/// Comment of our rules in chains of others.
#[must_use]
pub fn marker(device: &str) -> String {
    format!("tailrace {device}")
}

/// Returns our table. Pure.
///
/// Rules that ask about connections have the kernel track every packet of the host, which costs a quarter
/// of what WireGuard does: they are there only where somebody needs them.
#[must_use]
pub fn table(config: &Config) -> Table {
    let mut chains = vec![
        spoof(config),
        chain(
            "input",
            Kind::Filter,
            Hook::Input,
            FILTER,
            vec![jump_spoof()],
        ),
    ];
    if config.forwards {
        chains.push(forward(config));
    }
    if config.uses_exit_node {
        chains.extend(keep_bypass());
    }
    if let Some(agent_port) = config.agent_port {
        chains.extend(demux(config.wireguard_port, agent_port, &config.detoured));
    }
    if config.masquerade && !config.served.is_empty() {
        let marked = E::Mark {
            value: FORWARD_MARK,
            mask: MARK_MASK,
        };
        let rules = vec![Rule::new([marked, E::Counter, E::Masquerade])];
        let (kind, hook) = (Kind::Nat, Hook::Postrouting);
        chains.push(chain("postrouting", kind, hook, SOURCE_NAT, rules));
    }
    Table {
        name: table_name(&config.device),
        chains,
    }
}

/// Returns the rules for chains `INPUT` and `FORWARD` of a host that drops by default: what passes them
/// still meets our table and the eBPF filter. Pure.
#[must_use]
pub fn foreign(config: &Config) -> Vec<(&'static str, Rule)> {
    let rule = |expressions: Vec<E>| Rule {
        expressions,
        comment: Some(marker(&config.device)),
    };
    let device = || config.device.clone();
    vec![
        (
            "INPUT",
            rule(vec![E::InputInterface(device()), E::Counter, E::Accept]),
        ),
        (
            "INPUT",
            rule(vec![
                E::TransportProtocol(UDP),
                E::Port(Port::Destination, config.wireguard_port),
                E::Counter,
                E::Accept,
            ]),
        ),
        (
            "FORWARD",
            rule(vec![E::InputInterface(device()), E::Counter, E::Accept]),
        ),
        (
            "FORWARD",
            rule(vec![E::OutputInterface(device()), E::Counter, E::Accept]),
        ),
    ]
}

/// Drops what claims to come from a peer and did not come out of a tunnel.
fn spoof(config: &Config) -> Chain {
    let rules = vec![
        Rule::new([E::InputInterface(config.device.clone()), E::Return]),
        // Tunnels of others: another agent on this host, an official client.
        Rule::new([E::InputType(ARPHRD_NONE), E::Return]),
        Rule::new([E::InputInterface("lo".to_owned()), E::Return]),
        Rule::new([E::Source(CHROME_OS.into()), E::Return]),
        Rule::new([E::Source(OVERLAY.into()), E::Counter, E::Drop]),
    ];
    plain(SPOOF, rules)
}

fn jump_spoof() -> Rule {
    Rule::new([E::Jump(SPOOF.to_owned())])
}

/// Lets into the overlay answers and calls from the prefixes we serve; lets out of it answers, calls to
/// those prefixes, to ports that the host publishes for its containers, and, as exit node, to the world.
/// What comes out is marked.
fn forward(config: &Config) -> Chain {
    let from = || E::InputInterface(config.device.clone());
    let to = || E::OutputInterface(config.device.clone());
    let answers = || E::ConnectionState(state::ESTABLISHED | state::RELATED);
    let mark = E::SetMark {
        value: FORWARD_MARK,
        mask: MARK_MASK,
    };
    let mut rules = vec![
        jump_spoof(),
        Rule::new([from(), mark]),
        Rule::new([to(), answers(), E::Accept]),
        Rule::new([to(), from(), E::Accept]),
    ];
    rules.extend(served(config).map(|net| Rule::new([to(), E::Source(*net), E::Accept])));
    rules.push(Rule::new([to(), E::Counter, E::Drop]));
    if !config.exit_node {
        rules.push(Rule::new([from(), answers(), E::Accept]));
        rules.push(Rule::new([from(), E::DestinationTranslated, E::Accept]));
        rules
            .extend(served(config).map(|net| Rule::new([from(), E::Destination(*net), E::Accept])));
        rules.push(Rule::new([from(), E::Counter, E::Drop]));
    }
    chain("forward", Kind::Filter, Hook::Forward, FILTER, rules)
}

/// The prefixes we serve. Default routes count for nothing here: an exit node serves the world to its
/// peers, but not its peers to the world.
fn served(config: &Config) -> impl Iterator<Item = &IpNet> {
    config.served.iter().filter(|net| net.prefix_len() != 0)
}

/// Gives answers to our own underlay traffic its mark, so that a strict reverse path filter looks up
/// the table that the traffic left by (with `src_valid_mark`).
fn keep_bypass() -> [Chain; 2] {
    let (value, mask) = (UNDERLAY_MARK, MARK_MASK);
    let restore = Rule::new([
        E::ConnectionState(state::ESTABLISHED | state::RELATED),
        E::ConnectionMark { value, mask },
        E::SetMark { value, mask },
    ]);
    // Not of new connections alone: they may be older than the rule.
    let save = Rule::new([
        E::Mark { value, mask },
        E::SetConnectionMark { value, mask },
    ]);
    let kind = Kind::Filter;
    [
        chain("prerouting", kind, Hook::Prerouting, MANGLE, vec![restore]),
        chain("output", kind, Hook::Output, MANGLE, vec![save]),
    ]
}

/// Shares WireGuard's port with the agent: disco and STUN go to the agent's socket, and what that sends leaves
/// from WireGuard's port. What is neither theirs nor WireGuard's is junk, and costs no more than to see that. From
/// `detoured` sources WireGuard's packets go to the agent as well. The agent's own port is closed to the outside.
fn demux(wireguard: u16, agent: u16, detoured: &BTreeSet<SocketAddr>) -> [Chain; 4] {
    let mut incoming = vec![
        Rule::new([
            E::TransportProtocol(UDP),
            E::Port(Port::Destination, agent),
            E::Counter,
            E::Drop,
        ]),
        Rule::new([
            E::TransportProtocol(UDP),
            E::Port(Port::Destination, wireguard),
            NOT_WIREGUARD,
            E::Jump(SORT.to_owned()),
        ]),
    ];
    if !detoured.is_empty() {
        // What has come back from its detour, under the source that the data plane gave it.
        incoming.push(Rule::new([E::InputInterface("lo".to_owned()), E::Return]));
    }
    incoming.extend(detoured.iter().map(|source| {
        Rule::new([
            E::TransportProtocol(UDP),
            E::Source(source.ip().into()),
            E::Port(Port::Source, source.port()),
            E::Port(Port::Destination, wireguard),
            E::Counter,
            E::SetUdpPort(Port::Destination, agent),
        ])
    }));
    let outgoing = vec![Rule::new([
        E::TransportProtocol(UDP),
        E::Port(Port::Source, agent),
        E::Counter,
        E::SetUdpPort(Port::Source, wireguard),
    ])];
    let to_agent = |looks: E| {
        Rule::new([
            looks,
            E::Counter,
            E::SetUdpPort(Port::Destination, agent),
            E::Return,
        ])
    };
    let kind = Kind::Filter;
    [
        plain(
            SORT,
            vec![
                to_agent(DISCO),
                to_agent(STUN),
                Rule::new([E::Jump(JUNK.to_owned())]),
            ],
        ),
        plain(JUNK, vec![Rule::new([E::Counter, E::Drop])]),
        chain("demux-in", kind, Hook::Input, DEMUX_IN, incoming),
        chain("demux-out", kind, Hook::Output, DEMUX_OUT, outgoing),
    ]
}

/// A chain that others jump to.
fn plain(name: &str, rules: Vec<Rule>) -> Chain {
    Chain {
        name: name.to_owned(),
        base: None,
        rules,
    }
}

fn chain(name: &str, kind: Kind, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain {
        name: name.to_owned(),
        base: Some(Base {
            kind,
            hook,
            priority,
        }),
        rules,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            device: "tailrace0".to_owned(),
            divert: true,
            wireguard_port: 41641,
            agent_port: Some(41700),
            detoured: BTreeSet::new(),
            forwards: true,
            uses_exit_node: true,
            masquerade: true,
            served: vec!["10.1.0.0/16".parse().unwrap(), "::/0".parse().unwrap()],
            exit_node: true,
        }
    }

    fn names(config: &Config) -> Vec<String> {
        let chains = table(config).chains.into_iter();
        chains.map(|chain| chain.name).collect()
    }

    #[test]
    fn chains_follow_the_configuration() {
        let whole = names(&config());
        assert!(
            whole.contains(&"demux-in".to_owned()) && whole.contains(&"postrouting".to_owned())
        );
        let small = names(&Config {
            agent_port: None,
            masquerade: false,
            ..config()
        });
        assert_eq!(small, ["spoof", "input", "forward", "prerouting", "output"]);
        let smallest = names(&Config {
            agent_port: None,
            forwards: false,
            uses_exit_node: false,
            served: Vec::new(),
            exit_node: false,
            ..config()
        });
        assert_eq!(
            smallest,
            ["spoof", "input"],
            "nothing that tracks connections"
        );
    }

    #[test]
    fn the_world_behind_an_exit_node_cannot_call_peers() {
        let forward = forward(&config());
        let sources: Vec<_> = forward
            .rules
            .iter()
            .flat_map(|rule| &rule.expressions)
            .filter_map(|expression| match expression {
                E::Source(net) => Some(net.to_string()),
                _ => None,
            })
            .collect();
        assert_eq!(sources, ["10.1.0.0/16"]);
        let last = forward.rules.last().unwrap();
        let device = "tailrace0".to_owned();
        assert_eq!(last.expressions[0], E::OutputInterface(device));
        assert_eq!(last.expressions.last(), Some(&E::Drop));
    }

    #[test]
    fn two_devices_have_two_names() {
        assert_eq!(table_name("tailrace0"), "tailrace0");
        assert_eq!(table_name("wg0"), "tailrace-wg0");
        assert_ne!(marker("tailrace0"), marker("tailrace1"));
    }
}
