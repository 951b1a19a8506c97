//! Filter reference model: rules, packet and flow state to verdict (design.md 3.5, filter.md).
//!
//! The oracle of the eBPF programs, and the filter of the embedded tunnel where there is no BPF.
//! Time is nanoseconds from any origin that stays; the caller tells it with every packet.
//!
//! # Semantics
//!
//! The first line that applies decides. What is not in this list does not matter to the verdict.
//! Reasons to drop are [`DropReason`]s; `parse`, [`Flow`], `idle` and the other constants are those
//! of `packet`, which programs and model share.
//!
//! **State.** A *generation*, changed by every change of rules, peers or of what is ours. Per
//! address family three tables:
//!
//! | Table | Key | Value | Entries |
//! |---|---|---|---|
//! | `OPENED` | `Flow` | `seen` | 65 536 |
//! | `ADMITTED` | `Flow` | `generation`, `seen` | 65 536 |
//! | `FRAGMENTS` | `FragmentKey` | `generation`, `seen` | 4 096 |
//!
//! - S1. *Age* is `now - seen`, 0 if that were negative. A flow is *live* while its age is below
//!   `idle(protocol)`; at that age it is dead. Dead entries count as absent.
//! - S2. *Refreshing* an entry of `OPENED` sets `seen` to now if its age is at least `REFRESH`
//!   (1 s); otherwise nothing is written.
//! - S3. *Admitting* a flow writes (generation, now) to `ADMITTED` if the entry is absent or dead, of
//!   another generation, or of an age of at least `REFRESH`.
//! - S4. Only [`Filter::outbound`] adds to `OPENED`, so no peer can push anything out of it.
//! - S5. A full table forgets the entry used least recently. The kernel's tables do so roughly, and the
//!   programs' `ADMITTED` has four places for each of 16 384 parts of all hashes, of which the flow
//!   that was silent for longest makes room. So comparisons of the two keep to far fewer flows than the
//!   capacities in one run; nothing else in this list may differ. A flow that `ADMITTED` has forgotten is
//!   judged anew.
//!
//! **The peer** of an address is the one with the longest prefix that holds it; it may be nobody.
//!
//! **Inbound**, from a peer
//!
//! - I1. No bytes (a keepalive): accept, `Empty`.
//! - I2. `parse` fails: drop, for its reason.
//! - I3. Now is our key's expiry or later: drop, `KeyExpired`.
//! - I4. Now is the expiry of the source's peer or later: drop, `PeerExpired`.
//! - I5. Destination multicast: drop, `Multicast`. Link-local, but for 169.254.169.254: `LinkLocal`.
//! - I6. Destination not ours ([`Local::destinations`]): drop, `NotLocal`.
//! - I7. Later fragment: accept, `Fragment`, if `FRAGMENTS` has its key with the present generation
//!   and of an age below `FRAGMENT_AGE` (30 s); otherwise drop, `Fragment`. Nothing is written.
//! - I8. TSMP: accept, `Tsmp`.
//! - I9. ICMP error: with `flow` the one that it quotes. Accept, `IcmpError`, if `flow` is live in
//!   `OPENED`; or live in `ADMITTED` and either of the present generation or admitted now by I12 to
//!   I14. Otherwise, or if it quotes none: drop, `IcmpError`. Nothing is written.
//! - I10. Echo reply: if its flow is live in `OPENED`, refresh it and accept, `Opened`. Otherwise
//!   drop, `EchoReply`.
//! - I11. `ADMITTED` has the flow with the present generation, dead or live: accept, `PeerApi` or
//!   `Rule` as it would be by I12 or I14. If the age of the entry is at least `REFRESH`, set its `seen`
//!   to now and, of the kinds that the next sentence names, refresh the flow in `OPENED` if it is live
//!   there. Otherwise TCP but for SYN without ACK; UDP; SCTP: if the flow is live in `OPENED`, refresh
//!   it and accept, `Opened`.
//! - I12. TCP to one of our own addresses and the PeerAPI port of its family: admit the flow and
//!   accept, `PeerApi`.
//! - I13. Shields are up: drop, `ShieldsUp`. The source's peer is jailed: drop, `Jailed`.
//! - I14. Some rule admits the packet (below): admit its flow, if it has one, and accept, `Rule`.
//!   It counts for the first such rule in the order of the wire, as does what I11 accepts.
//! - I15. Drop: TCP but for SYN without ACK as `NoFlow`, anything else as `NoRule`.
//!
//! An accepted first fragment, whatever line accepted it, writes (generation, now) under its key to
//! `FRAGMENTS`.
//!
//! **Outbound**, to a peer
//!
//! - O1. No bytes: accept, `Empty`.
//! - O2. `parse` fails: drop, for its reason.
//! - O3. Our key, then that of the destination's peer, as I3 and I4.
//! - O4. Destination multicast or link-local, as I5.
//! - O5. TSMP: drop, `TsmpFromHost`. What the agent itself sends is not shown to the filter.
//! - O6. If the flow is live in `OPENED`: refresh it. Otherwise write it with now if the packet
//!   *opens* it: TCP with SYN and without ACK, and echo requests always; UDP, SCTP and protocols
//!   without ports unless the flow is live in `ADMITTED` (of any generation), for then it answers.
//!   Nothing else opens: no other TCP, no echo reply, no later fragment.
//! - O7. Accept, `Outbound`.
//!
//! **Rules.** A rule admits a packet if its sources hold the source address and one of its
//! destinations the destination address, and
//!
//! - R1. TCP, UDP, SCTP: the rule lists the protocol, and that same destination holds the
//!   destination port. No list stands for TCP, UDP, ICMP, ICMPv6.
//! - R2. ICMP of the packet's family: nothing more. Who may reach any port may ping, and the list of
//!   protocols does not matter.
//! - R3. Others, ICMP of the other family among them: the rule lists the protocol, that destination
//!   is for ports 0 to 65535 in one piece, and the source is not the rule's by a capability (`cap:`)
//!   alone.
//!
//! # Decisions
//!
//! Stricter than the official client, which accepts any TCP without SYN, any ICMP error, any echo
//! reply, any later fragment, and remembers UDP without end: design.md 3.5. Also stricter, where
//! filter.md leaves the choice: a rule with a `cap:` source looks at the destination in R2 too. Less strict: IPv6
//! destination options, and routes that end here, are walked instead of judged as protocols.
//! Raising the shields keeps `OPENED`: what our side opened goes on, over UDP as over TCP.

mod capabilities;
mod flows;
mod ip_set;
mod local;
mod lru;
mod peers;
mod rules;
#[cfg(test)]
mod tests;

use std::hash::Hash;
use std::net::IpAddr;

pub use packet::DropReason;
use packet::{Content, Datagram, Direction, Family, Flow, Fragment, Packet, parse, protocol};

use flows::Flows;
use ip_set::ToIp;

pub use capabilities::Capabilities;
pub use ip_set::IpSet;
pub use local::{Local, PeerApi};
pub use peers::{Peer, Peers};
pub use rules::{Destination, InvalidEntry, Match, Rules, RulesError};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Verdict {
    /// It passes.
    Accept(AcceptReason),
    /// It does not.
    Drop(DropReason),
}

/// Why a packet passes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum AcceptReason {
    /// A keepalive.
    Empty,
    /// Our side opened the flow.
    Opened,
    /// A rule admits it.
    Rule,
    /// PeerAPI, which decides for itself.
    PeerApi,
    /// The first fragment was accepted.
    Fragment,
    /// An error about a flow that we know.
    IcmpError,
    /// TSMP.
    Tsmp,
    /// Outbound: the receiver decides.
    Outbound,
}

/// What the sender of a dropped packet is told (TSMP; filter.md section 11).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Reject {
    /// The rules do not admit it.
    Acl = b'A',
    /// Our shields are up, or the peer is jailed.
    ShieldsUp = b'S',
}

/// The packet filter of one node.
#[derive(Clone, Debug)]
pub struct Filter {
    policy: Policy,
    v4: Flows<[u8; 4]>,
    v6: Flows<[u8; 16]>,
}

/// All that is set from outside.
#[derive(Clone, Debug)]
struct Policy {
    rules: Rules,
    local: Local,
    /// `local.destinations()`.
    destinations: IpSet,
    peers: Peers,
    generation: u64,
}

impl Filter {
    /// A filter that remembers no flow.
    #[must_use]
    pub fn new(local: Local, peers: Peers, rules: Rules) -> Self {
        Self {
            policy: Policy {
                rules,
                destinations: local.destinations(),
                local,
                peers,
                generation: 1,
            },
            v4: Flows::new(flows::FLOWS, flows::FRAGMENTED),
            v6: Flows::new(flows::FLOWS, flows::FRAGMENTED),
        }
    }

    /// Replaces the rules, from the next packet on.
    pub fn set_rules(&mut self, rules: Rules) {
        self.policy.rules = rules;
        self.policy.generation += 1;
    }

    /// Replaces what is ours, from the next packet on.
    pub fn set_local(&mut self, local: Local) {
        self.policy.destinations = local.destinations();
        self.policy.local = local;
        self.policy.generation += 1;
    }

    /// Replaces the peers, from the next packet on. Rules with `cap:` sources name peers too: parse
    /// them anew.
    pub fn set_peers(&mut self, peers: Peers) {
        self.policy.peers = peers;
        self.policy.generation += 1;
    }

    /// The rules in force.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.policy.rules
    }

    /// What is ours.
    #[must_use]
    pub fn local(&self) -> &Local {
        &self.policy.local
    }

    /// Judges a packet that came out of the tunnel; it begins with its IP header.
    pub fn inbound(&mut self, packet: &[u8], now: u64) -> Verdict {
        if packet.is_empty() {
            return Verdict::Accept(AcceptReason::Empty);
        }
        let judged = match parse(packet) {
            Ok(Packet::V4(datagram)) => {
                let quoted = || datagram.quoted(packet);
                self.policy.inbound(&mut self.v4, &datagram, quoted, now)
            }
            Ok(Packet::V6(datagram)) => {
                let quoted = || datagram.quoted(packet);
                self.policy.inbound(&mut self.v6, &datagram, quoted, now)
            }
            Err(reason) => Err(reason),
        };
        judged.into()
    }

    /// Judges a packet that is to go into the tunnel, and remembers what it opens.
    pub fn outbound(&mut self, packet: &[u8], now: u64) -> Verdict {
        if packet.is_empty() {
            return Verdict::Accept(AcceptReason::Empty);
        }
        let judged = match parse(packet) {
            Ok(Packet::V4(datagram)) => self.policy.outbound(&mut self.v4, &datagram, now),
            Ok(Packet::V6(datagram)) => self.policy.outbound(&mut self.v6, &datagram, now),
            Err(reason) => Err(reason),
        };
        judged.into()
    }

    /// What to tell the sender of an inbound packet that was dropped: something only for IPv4 TCP
    /// that asks for a connection, as the official client does.
    #[must_use]
    pub fn reject(&self, packet: &[u8], reason: DropReason) -> Option<Reject> {
        let Ok(Packet::V4(Datagram {
            content: Content::Ports { opens: true, .. },
            ..
        })) = parse(packet)
        else {
            return None;
        };
        Some(match reason {
            DropReason::ShieldsUp | DropReason::Jailed => Reject::ShieldsUp,
            _ => Reject::Acl,
        })
    }

    /// Capabilities that `peer` has on this node at `address`: our first of the peer's family, or
    /// that of a service (filter.md section 8). Shields up, nobody has any.
    #[must_use]
    pub fn capabilities(&self, peer: IpAddr, address: IpAddr) -> Capabilities {
        if self.policy.local.shields_up {
            return Capabilities::new();
        }
        self.policy.rules.capabilities(peer, address)
    }
}

impl From<Result<AcceptReason, DropReason>> for Verdict {
    fn from(judged: Result<AcceptReason, DropReason>) -> Self {
        match judged {
            Ok(reason) => Self::Accept(reason),
            Err(reason) => Self::Drop(reason),
        }
    }
}

impl Policy {
    /// I3 to I15.
    fn inbound<A: Family + Hash + ToIp>(
        &self,
        flows: &mut Flows<A>,
        datagram: &Datagram<A>,
        quoted: impl FnOnce() -> Option<Flow<A>>,
        now: u64,
    ) -> Result<AcceptReason, DropReason> {
        self.check_expiry(datagram.src.to_ip(), now)?;
        check_destination(datagram.dst)?;
        if !self.destinations.contains(datagram.dst.to_ip()) {
            return Err(DropReason::NotLocal);
        }
        if let Content::Later = datagram.content {
            return if flows.fragment_is_known(datagram, self.generation, now) {
                Ok(AcceptReason::Fragment)
            } else {
                Err(DropReason::Fragment)
            };
        }
        let reason = self.inbound_content(flows, datagram, quoted, now)?;
        if let Fragment::First(_) = datagram.fragment {
            flows.remember_fragment(datagram, self.generation, now);
        }
        Ok(reason)
    }

    /// I8 to I15.
    fn inbound_content<A: Family + Hash + ToIp>(
        &self,
        flows: &mut Flows<A>,
        datagram: &Datagram<A>,
        quoted: impl FnOnce() -> Option<Flow<A>>,
        now: u64,
    ) -> Result<AcceptReason, DropReason> {
        if datagram.protocol == protocol::TSMP {
            return Ok(AcceptReason::Tsmp);
        }
        if let Content::Error { .. } = datagram.content {
            return match quoted() {
                Some(flow) if self.knows(flows, &flow, now) => Ok(AcceptReason::IcmpError),
                _ => Err(DropReason::IcmpError),
            };
        }
        let flow = datagram.flow(Direction::In);
        if let Some(flow) = flow
            && !matches!(datagram.content, Content::Echo { reply: true, .. })
            && flows.admit_again(&flow, self.generation, may_answer(datagram), now)
        {
            let port = u16::from_be_bytes(flow.our_port);
            return Ok(if self.is_peer_api(flow.protocol, flow.ours, port) {
                AcceptReason::PeerApi
            } else {
                AcceptReason::Rule
            });
        }
        if let Some(flow) = flow
            && may_answer(datagram)
            && flows.refresh_opened(&flow, now)
        {
            return Ok(AcceptReason::Opened);
        }
        if let Content::Echo { reply: true, .. } = datagram.content {
            return Err(DropReason::EchoReply);
        }
        let admitted = match flow {
            Some(flow) => {
                let port = u16::from_be_bytes(flow.our_port);
                let admitted = self.admits(flow.protocol, flow.theirs, flow.ours, port);
                if admitted.is_ok() {
                    flows.admit(flow, self.generation, now);
                }
                admitted
            }
            None => self.admits(datagram.protocol, datagram.src, datagram.dst, 0),
        };
        match (admitted, &datagram.content) {
            (Err(DropReason::NoRule), Content::Ports { opens: false, .. })
                if datagram.protocol == protocol::TCP =>
            {
                Err(DropReason::NoFlow)
            }
            (admitted, _) => admitted,
        }
    }

    /// I9: whether a flow that we sent a packet in is one that we know.
    fn knows<A: Family + Hash + ToIp>(&self, flows: &Flows<A>, flow: &Flow<A>, now: u64) -> bool {
        flows.is_opened(flow, now)
            || flows.is_admitted(flow, now) && self.admits_flow(flows, flow).is_ok()
    }

    /// I12 to I14 for a flow.
    fn admits_flow<A: Family + Hash + ToIp>(
        &self,
        flows: &Flows<A>,
        flow: &Flow<A>,
    ) -> Result<AcceptReason, DropReason> {
        let port = u16::from_be_bytes(flow.our_port);
        if flows.was_admitted(flow, self.generation)
            && !self.is_peer_api(flow.protocol, flow.ours, port)
        {
            return Ok(AcceptReason::Rule);
        }
        self.admits(flow.protocol, flow.theirs, flow.ours, port)
    }

    /// I12 to I14.
    fn admits<A: Family + ToIp>(
        &self,
        number: u8,
        src: A,
        dst: A,
        port: u16,
    ) -> Result<AcceptReason, DropReason> {
        if self.is_peer_api(number, dst, port) {
            return Ok(AcceptReason::PeerApi);
        }
        if self.local.shields_up {
            return Err(DropReason::ShieldsUp);
        }
        if self.peers.of(src.to_ip()).is_some_and(|peer| peer.jailed) {
            return Err(DropReason::Jailed);
        }
        if self.rules.admit(number, src.to_ip(), dst.to_ip(), port) {
            return Ok(AcceptReason::Rule);
        }
        Err(DropReason::NoRule)
    }

    fn is_peer_api<A: ToIp>(&self, number: u8, dst: A, port: u16) -> bool {
        number == protocol::TCP && self.local.is_peer_api(dst.to_ip(), port)
    }

    /// O3 to O7.
    fn outbound<A: Family + Hash + ToIp>(
        &self,
        flows: &mut Flows<A>,
        datagram: &Datagram<A>,
        now: u64,
    ) -> Result<AcceptReason, DropReason> {
        self.check_expiry(datagram.dst.to_ip(), now)?;
        check_destination(datagram.dst)?;
        if datagram.protocol == protocol::TSMP && datagram.content == Content::Other {
            return Err(DropReason::TsmpFromHost);
        }
        if let Some(flow) = datagram.flow(Direction::Out)
            && !flows.refresh_opened(&flow, now)
        {
            let opens = match datagram.content {
                Content::Ports { opens: true, .. } | Content::Echo { reply: false, .. } => true,
                Content::Ports { opens: false, .. } if datagram.protocol == protocol::TCP => false,
                Content::Ports { opens: false, .. } | Content::Other => {
                    !flows.is_admitted(&flow, now)
                }
                Content::Echo { reply: true, .. }
                | Content::Icmp
                | Content::Error { .. }
                | Content::Later => false,
            };
            if opens {
                flows.open(flow, now);
            }
        }
        Ok(AcceptReason::Outbound)
    }

    /// I3, I4, O3.
    fn check_expiry(&self, remote: IpAddr, now: u64) -> Result<(), DropReason> {
        let expired = |expires: Option<u64>| expires.is_some_and(|expires| now >= expires);
        if expired(self.local.expires) {
            return Err(DropReason::KeyExpired);
        }
        if expired(self.peers.of(remote).and_then(|peer| peer.expires)) {
            return Err(DropReason::PeerExpired);
        }
        Ok(())
    }
}

/// I5, O4.
fn check_destination<A: Family>(dst: A) -> Result<(), DropReason> {
    if dst.is_multicast() {
        return Err(DropReason::Multicast);
    }
    if dst.is_link_local() {
        return Err(DropReason::LinkLocal);
    }
    Ok(())
}

/// I10, I11: whether the packet may answer one of ours, as far as it tells itself.
fn may_answer<A>(datagram: &Datagram<A>) -> bool {
    match datagram.content {
        Content::Ports { opens, .. } => !opens,
        Content::Echo { reply, .. } => reply,
        Content::Icmp | Content::Other | Content::Error { .. } | Content::Later => false,
    }
}
