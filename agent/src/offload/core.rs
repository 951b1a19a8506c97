//! Which flows go past the network stack: [`Core`], conntrack's events in, commands out.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use dataplane::{Offload, OffloadKey, Origin};
use ipnet::IpNet;
use netlink::conntrack::{Event, Flow, Tuple};
use packet::protocol;

/// Flows that are offloaded at most: each takes two of the 65 536 entries of a family.
const MAX_FLOWS: usize = 30_000;
/// `TCP_CONNTRACK_ESTABLISHED` in the kernel's `nf_conntrack_tcp.h`.
const ESTABLISHED: u8 = 3;
/// Conntrack's timeouts are counted from packets on the stack, which follow each other by up to
/// [`dataplane::STACK_INTERVAL`]; and a moment for the difference of clocks.
const MARGIN: Duration = Duration::from_secs(6);

/// What of the host decides about flows.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Places {
    /// Number of the overlay device.
    pub overlay: u32,
    /// Bytes that a packet may have there.
    pub mtu: u16,
    /// Destinations that are routed into it.
    pub routes: Vec<IpNet>,
    /// Destinations that are kept out of it though a wider one of `routes` holds them.
    pub kept_out: Vec<IpNet>,
    /// Destinations that this host forwards for peers.
    pub served: Vec<IpNet>,
    /// This host's own addresses, and the number of the device that has each.
    pub addresses: BTreeMap<IpAddr, u32>,
    /// For how long conntrack remembers flows.
    pub timeouts: Timeouts,
}

/// For how long conntrack remembers a flow without a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timeouts {
    /// TCP that is established.
    pub tcp: Duration,
    /// UDP that has been answered.
    pub udp: Duration,
    /// UDP with traffic both ways for some time.
    pub udp_stream: Duration,
    /// ICMP echo.
    pub icmp: Duration,
    /// ICMPv6 echo.
    pub icmpv6: Duration,
}

impl Default for Timeouts {
    /// The kernel's own defaults.
    fn default() -> Self {
        Self {
            tcp: Duration::from_secs(5 * 24 * 3600),
            udp: Duration::from_secs(30),
            udp_stream: Duration::from_secs(120),
            icmp: Duration::from_secs(30),
            icmpv6: Duration::from_secs(30),
        }
    }
}

/// What to do to the forward table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Command {
    /// Have conntrack tell of a flow by an event, if it makes any.
    Announce(Box<Flow>),
    /// Make or replace the entries of a flow. Of TCP, conntrack has to be told first to accept any
    /// sequence number: it would take what it sees after a gap for invalid, and not translate it.
    Offload(Box<Flow>, Box<[Offload; 2]>),
    /// Remove an entry.
    Remove(OffloadKey),
}

/// Where an address is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Side {
    /// Behind the overlay.
    Overlay,
    /// Where this host forwards for peers.
    Served,
    /// This host, or elsewhere.
    Neither,
}

/// The flows that are offloaded.
#[derive(Debug, Default)]
pub struct Core {
    places: Places,
    flows: HashMap<Tuple, Known>,
}

#[derive(Debug)]
struct Known {
    id: u32,
    entries: [Offload; 2],
}

impl Core {
    /// Begins with no flows; [`resync`](Self::resync) brings in those that there are.
    #[must_use]
    pub fn new(places: Places) -> Self {
        Self {
            places,
            flows: HashMap::new(),
        }
    }

    /// How many flows are offloaded.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether no flow is offloaded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Returns what an event changes.
    pub fn handle(&mut self, event: &Event) -> Vec<Command> {
        match event {
            Event::Destroyed(flow) => self.forget(flow),
            Event::New(flow) | Event::Updated(flow) => match self.entries(flow) {
                Some(entries) => self.offload(flow, entries),
                None => self.forget(flow),
            },
        }
    }

    /// Takes `flows` for all that there are, and `table` for what the forward table holds; returns what
    /// it should not hold, and of what it lacks a question.
    ///
    /// The kernel makes no events for a flow that began while nobody listened: its end would not be
    /// noticed. So only a flow that has made one is offloaded; the others take the stack.
    pub fn resync(&mut self, flows: &[Flow], table: &[Offload]) -> Vec<Command> {
        self.flows.clear();
        let mut present: HashMap<OffloadKey, &Offload> =
            table.iter().map(|entry| (entry.key, entry)).collect();
        let mut lacking = Vec::new();
        for flow in flows {
            let Some(entries) = self.entries(flow) else {
                continue;
            };
            let holds = |entry: &Offload| present.get(&entry.key).is_some_and(|e| **e == *entry);
            if entries.iter().all(holds) {
                // What TCP needs has been done by whoever made the entries.
                self.flows.insert(
                    flow.original,
                    Known {
                        id: flow.id,
                        entries,
                    },
                );
                entries.iter().for_each(|entry| {
                    present.remove(&entry.key);
                });
            } else if flow.original.protocol != protocol::ICMP
                && flow.original.protocol != protocol::ICMPV6
            {
                lacking.push(Command::Announce(Box::new(*flow)));
            }
        }
        let stale = present.into_keys().map(Command::Remove);
        stale.chain(lacking).collect()
    }

    /// A command could not be carried out: the flow is as if it had not been offloaded.
    pub fn give_up(&mut self, flow: &Flow) {
        self.flows.remove(&flow.original);
    }

    fn offload(&mut self, flow: &Flow, entries: [Offload; 2]) -> Vec<Command> {
        let known = self.flows.get(&flow.original);
        if known.is_some_and(|known| known.id == flow.id && known.entries == entries) {
            return Vec::new();
        }
        // The stack takes what is too much, as before.
        if known.is_none() && self.flows.len() >= MAX_FLOWS {
            return Vec::new();
        }
        let mut commands = Vec::new();
        if let Some(known) = known {
            let outdated = known.entries.iter().map(|entry| entry.key);
            let kept = entries.map(|entry| entry.key);
            let outdated = outdated.filter(|key| !kept.contains(key));
            commands.extend(outdated.map(Command::Remove));
        }
        let known = Known {
            id: flow.id,
            entries,
        };
        self.flows.insert(flow.original, known);
        commands.push(Command::Offload(Box::new(*flow), Box::new(entries)));
        commands
    }

    fn forget(&mut self, flow: &Flow) -> Vec<Command> {
        // The end of a flow may be told after the beginning of the next with the same addresses.
        match self.flows.get(&flow.original) {
            Some(known) if known.id == flow.id => {}
            _ => return Vec::new(),
        }
        let known = self.flows.remove(&flow.original);
        let entries = known.into_iter().flat_map(|known| known.entries);
        entries.map(|entry| Command::Remove(entry.key)).collect()
    }

    /// The entries for a flow, if it is one that may go past the stack, in the present state.
    fn entries(&self, flow: &Flow) -> Option<[Offload; 2]> {
        let idle = self.idle(flow)?;
        if flow.zone != 0 || flow.is_dying() {
            return None;
        }
        let (original, reply) = (ends(&flow.original, true)?, ends(&flow.reply, false)?);
        let asks_from = self.side(original.0.ip());
        // Where its packets go in the end: what the reply comes from.
        let goes_to = self.side(reply.0.ip());
        let origins = match (asks_from, goes_to) {
            (Side::Overlay, Side::Served) => [Origin::Overlay, Origin::Lan],
            (Side::Served, Side::Overlay) => [Origin::Lan, Origin::Overlay],
            _ => return None,
        };
        let entry =
            |origin, (src, dst): (SocketAddr, SocketAddr), new: (SocketAddr, SocketAddr)| {
                let (out, mtu) = match origin {
                    Origin::Overlay => (self.way_out(src.ip(), new.0.ip())?, 0),
                    Origin::Lan => (self.places.overlay, self.places.mtu),
                };
                Some(Offload {
                    key: OffloadKey {
                        origin,
                        protocol: flow.original.protocol,
                        src,
                        dst,
                    },
                    src: new.0,
                    dst: new.1,
                    out,
                    mtu,
                    idle,
                })
            };
        Some([
            entry(origins[0], original, (reply.1, reply.0))?,
            entry(origins[1], reply, (original.1, original.0))?,
        ])
    }

    /// The device on which a packet with this source has to leave; 0 for any. A source that was
    /// translated is good for one device only: the one that has it.
    fn way_out(&self, from: IpAddr, leaves_as: IpAddr) -> Option<u32> {
        if from == leaves_as {
            return Some(0);
        }
        match self.places.addresses.get(&leaves_as) {
            Some(index) if *index != self.places.overlay => Some(*index),
            Some(_) | None => None,
        }
    }

    fn side(&self, address: IpAddr) -> Side {
        if self.places.addresses.contains_key(&address) {
            return Side::Neither;
        }
        let longest = |nets: &[IpNet]| {
            let nets = nets.iter().filter(|net| net.contains(&address));
            nets.map(IpNet::prefix_len).max()
        };
        let Places {
            routes,
            kept_out,
            served,
            ..
        } = &self.places;
        let (route, kept_out, served) = (longest(routes), longest(kept_out), longest(served));
        // Where both are equal, somebody else serves what we serve too: ours is at hand.
        if route > kept_out && route > served {
            Side::Overlay
        } else if served.is_some() {
            Side::Served
        } else {
            Side::Neither
        }
    }

    /// For how long the flow is good without a packet on the stack; `None` if it has to take the stack.
    fn idle(&self, flow: &Flow) -> Option<Duration> {
        let timeouts = &self.places.timeouts;
        let seen = flow.has_seen_reply();
        let timeout = match flow.original.protocol {
            protocol::TCP => {
                let lasts = flow.tcp_state == Some(ESTABLISHED) && flow.is_assured();
                lasts.then_some(timeouts.tcp)?
            }
            protocol::UDP if flow.is_assured() => timeouts.udp_stream,
            protocol::UDP => seen.then_some(timeouts.udp)?,
            protocol::ICMP => seen.then_some(timeouts.icmp)?,
            protocol::ICMPV6 => seen.then_some(timeouts.icmpv6)?,
            _ => return None,
        };
        let idle = timeout.saturating_sub(MARGIN);
        (idle > MARGIN).then_some(idle)
    }
}

/// Source and destination; of an echo, the side that asks has the identifier for a port.
fn ends(tuple: &Tuple, asks: bool) -> Option<(SocketAddr, SocketAddr)> {
    let (mut src, mut dst) = (tuple.src, tuple.dst);
    if src.is_ipv4() != dst.is_ipv4() {
        return None;
    }
    if matches!(tuple.protocol, protocol::ICMP | protocol::ICMPV6) {
        let id = src.port();
        src.set_port(if asks { id } else { 0 });
        dst.set_port(if asks { 0 } else { id });
    }
    Some((src, dst))
}
