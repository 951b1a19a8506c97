//! A world with a virtual clock: nodes behind NATs, a relay, a STUN server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use disco_proto::disco::{Message, TxId};
use keys::{DiscoPublic, NodePublic};
use node_core::RegionId;
use node_core::paths::{Command, Now, Paths, PeerPaths, Route, Via};

use crate::nat::{Behaviour, Nat};

const RELAY: RegionId = RegionId(1);
/// One way, straight and through the relay.
const DELAY: Duration = Duration::from_millis(10);
const RELAY_DELAY: Duration = Duration::from_millis(25);

enum Event {
    Udp {
        from: SocketAddr,
        to: SocketAddr,
        sender: usize,
        message: Message,
    },
    Relayed {
        from: usize,
        to: usize,
        message: Message,
    },
    Stun {
        node: usize,
    },
}

struct Node {
    paths: Paths,
    inside: SocketAddr,
    nat: Option<Nat>,
    udp_blocked: bool,
}

/// Everything that exists; node `n` has the keys `[n + 1; 32]`.
pub(crate) struct World {
    now: Duration,
    count: u64,
    nodes: Vec<Node>,
    events: BTreeMap<(Duration, u64), Event>,
}

fn node_key(index: usize) -> NodePublic {
    NodePublic::from_bytes([u8::try_from(index + 1).unwrap(); 32])
}

fn disco_key(index: usize) -> DiscoPublic {
    DiscoPublic::from_bytes([u8::try_from(index + 101).unwrap(); 32])
}

fn index(key: NodePublic) -> usize {
    usize::from(key.as_bytes()[0]) - 1
}

impl World {
    /// One node per entry: behind a NAT of this behaviour, or on the open network.
    pub(crate) fn new(behaviours: &[Option<Behaviour>]) -> Self {
        let mut nodes = Vec::new();
        for (number, behaviour) in behaviours.iter().enumerate() {
            let octet = u8::try_from(number + 1).unwrap();
            let outside = [198, 51, 100, octet];
            let inside = if behaviour.is_some() {
                [10, octet, 0, 2]
            } else {
                outside
            };
            let mut count = 0u32;
            let ids = move || {
                count += 1;
                let mut id = [octet; 12];
                id[..4].copy_from_slice(&count.to_be_bytes());
                TxId(id)
            };
            nodes.push(Node {
                paths: Paths::new(node_key(number), ids),
                inside: SocketAddr::from((inside, 41641)),
                nat: behaviour.map(|behaviour| Nat::new(outside.into(), behaviour)),
                udp_blocked: false,
            });
        }
        let all = nodes.len();
        for (number, node) in nodes.iter_mut().enumerate() {
            for other in (0..all).filter(|other| *other != number) {
                let peer = PeerPaths {
                    disco: Some(disco_key(other)),
                    home: Some(RELAY),
                    endpoints: Vec::new(),
                    expired: false,
                };
                node.paths.set_peer(Now::default(), node_key(other), peer);
            }
        }
        Self {
            now: Duration::ZERO,
            count: 0,
            nodes,
            events: BTreeMap::new(),
        }
    }

    pub(crate) fn block_udp(&mut self, node: usize, blocked: bool) {
        self.nodes[node].udp_blocked = blocked;
    }

    pub(crate) fn route(&self, from: usize, to: usize) -> Route {
        self.nodes[from].paths.route(&node_key(to)).unwrap()
    }

    /// WireGuard sends from one node to the other, now.
    pub(crate) fn traffic(&mut self, from: usize, to: usize) {
        let now = Now(self.now);
        self.nodes[from].paths.activity(now, node_key(to), now);
        self.carry_out(from);
    }

    /// The data plane reports packets without an answer.
    pub(crate) fn unanswered(&mut self, from: usize, to: usize) {
        self.nodes[from]
            .paths
            .unanswered(Now(self.now), node_key(to));
        self.carry_out(from);
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let timer = self
                .nodes
                .iter()
                .filter_map(|n| n.paths.next_timeout())
                .min();
            let event = self.events.keys().next().map(|(at, _)| *at);
            let next = timer.map(|at| at.0).into_iter().chain(event).min();
            let Some(next) = next.filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(next);
            while let Some(entry) = self.events.first_entry() {
                if entry.key().0 > self.now {
                    break;
                }
                let event = entry.remove();
                self.deliver(event);
            }
            for number in 0..self.nodes.len() {
                self.nodes[number].paths.timeout(Now(self.now));
                self.carry_out(number);
            }
        }
        self.now = end;
    }

    fn later(&mut self, delay: Duration, event: Event) {
        self.count += 1;
        self.events.insert((self.now + delay, self.count), event);
    }

    fn deliver(&mut self, event: Event) {
        let now = Now(self.now);
        match event {
            Event::Udp {
                from,
                to,
                sender,
                message,
            } => {
                let receiver = self.nodes.iter_mut().position(|node| match &mut node.nat {
                    None => node.inside == to,
                    Some(nat) if nat.outside() == to.ip() => {
                        nat.inbound(now.0, from, to.port()).is_some()
                    }
                    Some(_) => false,
                });
                let Some(receiver) = receiver.filter(|r| !self.nodes[*r].udp_blocked) else {
                    return;
                };
                let paths = &mut self.nodes[receiver].paths;
                paths.message(now, Via::Udp(from), disco_key(sender), message);
                self.carry_out(receiver);
            }
            Event::Relayed { from, to, message } => {
                let via = Via::Derp(RELAY, node_key(from));
                self.nodes[to]
                    .paths
                    .message(now, via, disco_key(from), message);
                self.carry_out(to);
            }
            Event::Stun { node: number } => {
                let node = &mut self.nodes[number];
                let mut endpoints = vec![node.inside];
                if let Some(nat) = &mut node.nat
                    && !node.udp_blocked
                {
                    let server = SocketAddr::from(([203, 0, 113, 1], 3478));
                    endpoints.insert(0, nat.outbound(now.0, node.inside, server));
                }
                node.paths.own_endpoints(now, endpoints);
                self.carry_out(number);
            }
        }
    }

    fn carry_out(&mut self, number: usize) {
        while let Some(command) = self.nodes[number].paths.next_command() {
            match command {
                Command::Send {
                    via: Via::Udp(to),
                    message,
                    ..
                } => {
                    let node = &mut self.nodes[number];
                    if node.udp_blocked {
                        continue;
                    }
                    let from = match &mut node.nat {
                        Some(nat) => nat.outbound(self.now, node.inside, to),
                        None => node.inside,
                    };
                    self.later(
                        DELAY,
                        Event::Udp {
                            from,
                            to,
                            sender: number,
                            message,
                        },
                    );
                }
                Command::Send {
                    via: Via::Derp(_, to),
                    message,
                    ..
                } => {
                    let event = Event::Relayed {
                        from: number,
                        to: index(to),
                        message,
                    };
                    self.later(RELAY_DELAY, event);
                }
                Command::ReStun => self.later(DELAY * 2, Event::Stun { node: number }),
                _ => {}
            }
        }
    }
}
