//! The packet filter: may this packet pass? The rules S, I, O and R are those of
//! `policy::filter`, the model that this is compared with.

use ebpf_abi::{
    CLASS_NUMBER, CLASS_OWN, Class, Direction, DropReason, Nanos, PEER_JAILED, POLICY_SHIELDS_UP,
    Pair, PeerEntry, Policy, Side,
};
use packet::{
    Flow, SECOND,
    flat::{self, ECHO_REPLY, ECHO_REQUEST, ERROR, FIRST, Flat, LATER, OPENS, OTHER, PORTS},
    protocol,
};

use crate::{
    frame::Frame,
    tables::{self, Known, Tables},
};

/// Judges the packet and remembers what has to be. Returns whose packet it is; nobody's may pass too.
#[inline(always)]
pub(crate) fn judge(
    frame: &Frame<'_>,
    direction: Direction,
) -> Result<Option<&'static PeerEntry>, DropReason> {
    let policy = tables::policy().ok_or(DropReason::NoPolicy)?;
    match frame.read(|| flat::version(frame))? {
        4 => judge_family::<[u8; 4]>(frame, direction, policy),
        _ => judge_family::<[u8; 16]>(frame, direction, policy),
    }
}

#[inline(always)]
fn judge_family<A: Tables>(
    frame: &Frame<'_>,
    direction: Direction,
    policy: &Policy,
) -> Result<Option<&'static PeerEntry>, DropReason> {
    let scratch = A::scratch().ok_or(DropReason::NoPolicy)?;
    frame.read(|| {
        let packet = scratch.begin();
        packet.parse(frame)
    })?;
    let now = tables::now();
    let packet = scratch.get();
    let peer = peer(packet, direction, policy, now)?;
    let jailed = is_jailed(peer);
    Judge {
        policy,
        jailed,
        now,
    }
    .packet(packet, direction, frame)?;
    Ok(peer)
}

/// I3, I4, O3: the peer, if neither its key nor ours has expired.
#[inline(always)]
fn peer<A: Tables>(
    packet: &Flat<A>,
    direction: Direction,
    policy: &Policy,
    now: Nanos,
) -> Result<Option<&'static PeerEntry>, DropReason> {
    if now >= policy.expires {
        return Err(DropReason::KeyExpired);
    }
    let peer = match direction {
        Direction::In => packet.src.peer(),
        Direction::Out => packet.dst.peer(),
    };
    if let Some(PeerEntry { expires, .. }) = peer
        && *expires != 0
        && now >= *expires as Nanos * SECOND
    {
        return Err(DropReason::PeerExpired);
    }
    Ok(peer)
}

#[inline(always)]
fn is_jailed(peer: Option<&PeerEntry>) -> bool {
    peer.is_some_and(|peer| peer.flags & PEER_JAILED != 0)
}

/// What a packet is judged by.
struct Judge<'a> {
    policy: &'a Policy,
    jailed: bool,
    now: Nanos,
}

impl Judge<'_> {
    /// I5, O4, and then by direction.
    #[inline(always)]
    fn packet<A: Tables>(
        &self,
        packet: &Flat<A>,
        direction: Direction,
        frame: &Frame<'_>,
    ) -> Result<(), DropReason> {
        if packet.dst.is_multicast() {
            return Err(DropReason::Multicast);
        }
        if packet.dst.is_link_local() {
            return Err(DropReason::LinkLocal);
        }
        match direction {
            Direction::In => self.inbound(packet, frame),
            Direction::Out => self.outbound(packet),
        }
    }

    /// I6 to I15, and what an accepted first fragment leaves behind.
    #[inline(always)]
    fn inbound<A: Tables>(&self, packet: &Flat<A>, frame: &Frame<'_>) -> Result<(), DropReason> {
        if packet.fragment == LATER {
            // What is known in this generation is ours: I6 needs no look.
            let key = packet.fragment_key();
            if tables::knows_fragment(&key, self.now, self.policy.generation) {
                return Ok(());
            }
            self.destination(&packet.dst)?;
            return Err(DropReason::Fragment);
        }
        if packet.has_flow() && packet.protocol != protocol::TSMP {
            self.of_flow(packet)?;
        } else {
            self.of_no_flow(packet, frame)?;
        }
        if packet.fragment == FIRST {
            let key = packet.fragment_key();
            tables::remember_fragment(&key, self.now, self.policy.generation);
        }
        Ok(())
    }

    /// I8, I9, and I13 to I15 for ICMP without a flow.
    #[inline(always)]
    fn of_no_flow<A: Tables>(&self, packet: &Flat<A>, frame: &Frame<'_>) -> Result<(), DropReason> {
        let destination = self.destination(&packet.dst)?;
        if packet.protocol == protocol::TSMP {
            return Ok(());
        }
        if packet.kind == ERROR {
            frame.pull_headers();
            let mut flow = packet.flow(Direction::In);
            if packet.quoted(frame, &mut flow) && self.knows(&flow, destination) {
                return Ok(());
            }
            return Err(DropReason::IcmpError);
        }
        self.by_rules(packet.protocol, &packet.src, destination, 0)
    }

    /// I9: whether a flow that we sent a packet in is one that we know.
    #[inline(always)]
    fn knows<A: Tables>(&self, flow: &Flow<A>, destination: Class) -> bool {
        if tables::is_opened(flow, self.now) {
            return true;
        }
        let Some(generation) = tables::live_admitted(flow, self.now) else {
            return false;
        };
        if generation == self.policy.generation {
            return true;
        }
        // The error may come from a router on the way, which is another peer.
        let theirs = Self {
            jailed: is_jailed(flow.theirs.peer()),
            ..*self
        };
        let port = u16::from_be_bytes(flow.our_port);
        let admits = theirs.by_rules(flow.protocol, &flow.theirs, destination, port);
        admits.is_ok()
    }

    /// I10 to I15 for a packet of a flow.
    #[inline(always)]
    fn of_flow<A: Tables>(&self, packet: &Flat<A>) -> Result<(), DropReason> {
        let generation = self.policy.generation;
        let flow = packet.flow(Direction::In);
        if packet.kind == PORTS || packet.kind == ECHO_REPLY {
            let is_ours = || self.destination(&packet.dst).is_ok();
            match tables::refresh_opened(&flow, self.now, generation, is_ours) {
                Known::Yes => return Ok(()),
                Known::NotOurs => return Err(DropReason::NotLocal),
                Known::No => {}
            }
        }
        if packet.kind == ECHO_REPLY {
            self.destination(&packet.dst)?;
            return Err(DropReason::EchoReply);
        }
        if tables::admit_again(&flow, self.now, generation) {
            return Ok(());
        }
        let destination = self.destination(&packet.dst)?;
        let port = u16::from_be_bytes(flow.our_port);
        match self.by_rules(packet.protocol, &packet.src, destination, port) {
            Ok(()) => {
                tables::admit(&flow, self.now, generation);
                Ok(())
            }
            Err(DropReason::NoRule) if packet.kind == PORTS && packet.protocol == protocol::TCP => {
                Err(DropReason::NoFlow)
            }
            Err(reason) => Err(reason),
        }
    }

    /// I6: the class of the destination, if it is ours.
    #[inline(always)]
    fn destination<A: Tables>(&self, address: &A) -> Result<Class, DropReason> {
        address
            .class(self.policy.set, Side::Destination)
            .ok_or(DropReason::NotLocal)
    }

    /// I12 to I14.
    #[inline(always)]
    fn by_rules<A: Tables>(
        &self,
        number: u8,
        source: &A,
        destination: Class,
        port: u16,
    ) -> Result<(), DropReason> {
        let policy = self.policy;
        if number == protocol::TCP && destination & CLASS_OWN != 0 {
            let listens = if size_of::<A>() == 4 {
                policy.peer_api_v4
            } else {
                policy.peer_api_v6
            };
            if port != 0 && listens == port.to_be_bytes() {
                return Ok(());
            }
        }
        if policy.flags & POLICY_SHIELDS_UP != 0 {
            return Err(DropReason::ShieldsUp);
        }
        if self.jailed {
            return Err(DropReason::Jailed);
        }
        let source = source.class(policy.set, Side::Source);
        let pair = Pair {
            source: source.ok_or(DropReason::NoRule)?,
            destination: destination & CLASS_NUMBER,
            protocol: number as u32,
        };
        if tables::admits(policy.set, pair, port) {
            Ok(())
        } else {
            Err(DropReason::NoRule)
        }
    }

    /// O5 to O7.
    #[inline(always)]
    fn outbound<A: Tables>(&self, packet: &Flat<A>) -> Result<(), DropReason> {
        if packet.protocol == protocol::TSMP && packet.kind == OTHER {
            return Err(DropReason::TsmpFromHost);
        }
        if !packet.has_flow() {
            return Ok(());
        }
        let flow = packet.flow(Direction::Out);
        if tables::refresh_own(&flow, self.now) {
            return Ok(());
        }
        let opens = match packet.kind {
            OPENS | ECHO_REQUEST => true,
            ECHO_REPLY => false,
            _ if packet.protocol == protocol::TCP => false,
            _ => tables::live_admitted(&flow, self.now).is_none(),
        };
        if opens {
            tables::open(&flow, self.now);
        }
        Ok(())
    }
}
