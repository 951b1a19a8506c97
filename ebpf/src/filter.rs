//! The packet filter: may this packet pass? The rules S, I, O and R are those of
//! `policy::filter`, the model that this is compared with.

use ebpf_abi::{
    CLASS_NUMBER, CLASS_OWN, Class, Direction, DropReason, KNOWN_PEER, KNOWN_RULE, Known, Nanos,
    PEER_JAILED, POLICY_SHIELDS_UP, Pair, PeerEntry, PeerIndex, Policy, Side,
};
use packet::{
    Flow, SECOND,
    flat::{self, ECHO_REPLY, ECHO_REQUEST, ERROR, FIRST, Flat, LATER, OPENS, OTHER, PORTS},
    protocol,
};

use crate::{
    events,
    frame::Frame,
    tables::{self, Entry, NO_RULE, Tables},
};

/// For whom a packet that passes is counted; the fields are those of [`Known`].
#[derive(Clone, Copy)]
pub(crate) struct Passed {
    pub(crate) peer: PeerIndex,
    pub(crate) flags: u32,
    pub(crate) rule: u32,
    pub(crate) rules: u32,
}

impl Passed {
    #[inline(always)]
    fn by(entry: &Entry) -> Self {
        Self {
            peer: entry.peer(),
            flags: entry.flags(),
            rule: entry.rule(),
            rules: entry.rules(),
        }
    }

    #[inline(always)]
    fn as_known(known: &Known) -> Self {
        Self {
            peer: known.peer,
            flags: known.flags,
            rule: known.rule,
            rules: known.rules,
        }
    }

    #[inline(always)]
    fn without_rule(self) -> Self {
        Self {
            flags: self.flags & !KNOWN_RULE,
            ..self
        }
    }
}

/// Judges the packet and remembers what has to be.
#[inline(always)]
pub(crate) fn judge(frame: &Frame<'_>, direction: Direction) -> Result<Passed, DropReason> {
    let generation = tables::generation();
    let version = match frame.read(|| flat::version(frame)) {
        Ok(version) => version,
        Err(reason) => {
            events::unread(direction, reason, generation);
            return Err(reason);
        }
    };
    match version {
        4 => judge_family::<[u8; 4]>(frame, direction, generation),
        _ => judge_family::<[u8; 16]>(frame, direction, generation),
    }
}

#[inline(always)]
fn judge_family<A: Tables>(
    frame: &Frame<'_>,
    direction: Direction,
    generation: u64,
) -> Result<Passed, DropReason> {
    if let Some(passed) = known::<A>(frame, direction, generation) {
        return Ok(passed);
    }
    let scratch = A::scratch().ok_or(DropReason::NoPolicy)?;
    let parsed = frame.read(|| {
        let packet = scratch.begin();
        packet.parse(frame)
    });
    let packet = scratch.get();
    let judged = match parsed {
        Ok(()) => judge_unknown(packet, frame, direction, generation),
        Err(reason) => Err(reason),
    };
    if let Err(reason) = judged {
        events::dropped(packet, direction, reason, generation);
    }
    judged
}

/// Judges ordinary packets of flows that are known, and in this generation: what the long way would
/// say of them without writing anything. `None` for all else.
#[inline(always)]
fn known<A: Tables>(frame: &Frame<'_>, direction: Direction, generation: u64) -> Option<Passed> {
    let flow = A::flow(frame, direction)?;
    let now = tables::now();
    let holds = |entry: &Entry| entry.generation() == generation && now < entry.expires();
    match direction {
        Direction::In => {
            // Whatever is admitted, the answer to an echo needs our question.
            let answers = flow.protocol == A::ICMP && !A::opens(frame, A::ICMP)?;
            if !answers
                && let Some(entry) = tables::find(A::admitted(), &flow)
                && holds(&entry)
            {
                return entry.is_fresh(now).then(|| Passed::by(&entry));
            }
            if A::opens(frame, flow.protocol)? {
                return None;
            }
            let entry = tables::find(A::opened(), &flow)?;
            (holds(&entry) && entry.is_fresh(now)).then(|| Passed::by(&entry))
        }
        Direction::Out => {
            if let Some(entry) = tables::find(A::opened(), &flow) {
                return (holds(&entry) && entry.is_fresh(now)).then(|| Passed::by(&entry));
            }
            // An answer. The far end may be anything that a rule has let in, O4 has not been asked.
            if flow.theirs.is_multicast() || flow.theirs.is_link_local() {
                return None;
            }
            if A::opens(frame, flow.protocol)? {
                return None;
            }
            let entry = tables::find_live(A::admitted(), &flow, now)?;
            holds(&entry).then(|| Passed::by(&entry).without_rule())
        }
    }
}

#[inline(always)]
fn judge_unknown<A: Tables>(
    packet: &Flat<A>,
    frame: &Frame<'_>,
    direction: Direction,
    generation: u64,
) -> Result<Passed, DropReason> {
    let policy = tables::policy().ok_or(DropReason::NoPolicy)?;
    let now = tables::now();
    let (peer, expires) = peer(packet, direction, policy, now)?;
    let mut known = Known {
        generation: policy.generation,
        seen: now,
        expires,
        peer: peer.map_or(PeerIndex(0), |peer| peer.index),
        flags: policy.set | if peer.is_some() { KNOWN_PEER } else { 0 },
        rule: 0,
        rules: policy.rules,
    };
    Judge {
        policy,
        jailed: is_jailed(peer),
        now,
        generation,
    }
    .packet(packet, direction, frame, &mut known)?;
    Ok(Passed::as_known(&known))
}

/// I3, I4, O3: the peer, if neither its key nor ours has expired; and when the first of them does.
#[inline(always)]
fn peer<A: Tables>(
    packet: &Flat<A>,
    direction: Direction,
    policy: &Policy,
    now: Nanos,
) -> Result<(Option<&'static PeerEntry>, Nanos), DropReason> {
    if now >= policy.expires {
        return Err(DropReason::KeyExpired);
    }
    let peer = match direction {
        Direction::In => packet.src.peer(),
        Direction::Out => packet.dst.peer(),
    };
    let theirs = match peer {
        Some(PeerEntry { expires, .. }) if *expires != 0 => *expires as Nanos * SECOND,
        _ => Nanos::MAX,
    };
    if now >= theirs {
        return Err(DropReason::PeerExpired);
    }
    Ok((peer, theirs.min(policy.expires)))
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
    /// Of what is remembered, only what is of this generation counts.
    generation: u64,
}

impl Judge<'_> {
    /// I5, O4, and then by direction. `known` is what to remember; the rule is added here.
    #[inline(always)]
    fn packet<A: Tables>(
        &self,
        packet: &Flat<A>,
        direction: Direction,
        frame: &Frame<'_>,
        known: &mut Known,
    ) -> Result<(), DropReason> {
        if packet.dst.is_multicast() {
            return Err(DropReason::Multicast);
        }
        if packet.dst.is_link_local() {
            return Err(DropReason::LinkLocal);
        }
        match direction {
            Direction::In => self.inbound(packet, frame, known),
            Direction::Out => self.outbound(packet, known),
        }
    }

    /// I6 to I15, and what an accepted first fragment leaves behind.
    #[inline(always)]
    fn inbound<A: Tables>(
        &self,
        packet: &Flat<A>,
        frame: &Frame<'_>,
        known: &mut Known,
    ) -> Result<(), DropReason> {
        if packet.fragment == LATER {
            // What is known in this generation is ours: I6 needs no look.
            let key = packet.fragment_key();
            if let Some(first) = tables::first_fragment(&key, self.now, self.generation) {
                known.flags |= first.flags() & KNOWN_RULE;
                known.rule = first.rule();
                return Ok(());
            }
            self.destination(&packet.dst)?;
            return Err(DropReason::Fragment);
        }
        if packet.has_flow() && packet.protocol != protocol::TSMP {
            self.of_flow(packet, known)?;
        } else {
            self.of_no_flow(packet, frame, known)?;
        }
        if packet.fragment == FIRST {
            tables::remember_fragment(&packet.fragment_key(), known);
        }
        Ok(())
    }

    /// I8, I9, and I13 to I15 for ICMP without a flow.
    #[inline(always)]
    fn of_no_flow<A: Tables>(
        &self,
        packet: &Flat<A>,
        frame: &Frame<'_>,
        known: &mut Known,
    ) -> Result<(), DropReason> {
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
        let rule = self.by_rules(packet.protocol, &packet.src, destination, 0)?;
        admit_by(rule, known);
        Ok(())
    }

    /// I9: whether a flow that we sent a packet in is one that we know.
    #[inline(always)]
    fn knows<A: Tables>(&self, flow: &Flow<A>, destination: Class) -> bool {
        if tables::find_live(A::opened(), flow, self.now).is_some() {
            return true;
        }
        let Some(entry) = tables::find_live(A::admitted(), flow, self.now) else {
            return false;
        };
        if entry.generation() == self.generation {
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
    fn of_flow<A: Tables>(&self, packet: &Flat<A>, known: &mut Known) -> Result<(), DropReason> {
        let flow = packet.flow(Direction::In);
        let may_answer = packet.kind == PORTS || packet.kind == ECHO_REPLY;
        if packet.kind != ECHO_REPLY
            && let Some(entry) = tables::find(A::admitted(), &flow)
            && entry.generation() == self.generation
        {
            known.flags |= entry.flags() & KNOWN_RULE;
            known.rule = entry.rule();
            if !entry.is_fresh(self.now) {
                entry.refresh(self.now);
                if may_answer && let Some(opened) = tables::find_live(A::opened(), &flow, self.now)
                {
                    opened.refresh(self.now);
                }
            }
            return Ok(());
        }
        if may_answer && let Some(entry) = tables::find_live(A::opened(), &flow, self.now) {
            if entry.generation() == self.generation {
                entry.refresh(self.now);
                return Ok(());
            }
            self.destination(&packet.dst)?;
            self.renew(&entry, &flow, known);
            return Ok(());
        }
        let destination = self.destination(&packet.dst)?;
        if packet.kind == ECHO_REPLY {
            return Err(DropReason::EchoReply);
        }
        let port = u16::from_be_bytes(flow.our_port);
        match self.by_rules(packet.protocol, &packet.src, destination, port) {
            Ok(rule) => {
                admit_by(rule, known);
                tables::remember(A::admitted(), &flow, known);
                Ok(())
            }
            Err(DropReason::NoRule) if packet.kind == PORTS && packet.protocol == protocol::TCP => {
                Err(DropReason::NoFlow)
            }
            Err(reason) => Err(reason),
        }
    }

    /// Writes what is known of a flow that we opened, which is ours in this generation too.
    #[inline(always)]
    fn renew<A: Tables>(&self, entry: &Entry, flow: &Flow<A>, known: &mut Known) {
        if entry.is_fresh(self.now) {
            known.seen = entry.seen();
        }
        tables::remember(A::opened(), flow, known);
        known.seen = self.now;
    }

    /// I6: the class of the destination, if it is ours.
    #[inline(always)]
    fn destination<A: Tables>(&self, address: &A) -> Result<Class, DropReason> {
        address
            .class(self.policy.set, Side::Destination)
            .ok_or(DropReason::NotLocal)
    }

    /// I12 to I14: the rule, or [`NO_RULE`] for PeerAPI.
    #[inline(always)]
    fn by_rules<A: Tables>(
        &self,
        number: u8,
        source: &A,
        destination: Class,
        port: u16,
    ) -> Result<u32, DropReason> {
        let policy = self.policy;
        if number == protocol::TCP && destination & CLASS_OWN != 0 {
            let listens = if size_of::<A>() == 4 {
                policy.peer_api_v4
            } else {
                policy.peer_api_v6
            };
            if port != 0 && listens == port.to_be_bytes() {
                return Ok(NO_RULE);
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
        match tables::admitting(policy, pair, port) {
            NO_RULE => Err(DropReason::NoRule),
            rule => Ok(rule),
        }
    }

    /// O5 to O7.
    #[inline(always)]
    fn outbound<A: Tables>(&self, packet: &Flat<A>, known: &mut Known) -> Result<(), DropReason> {
        if packet.protocol == protocol::TSMP && packet.kind == OTHER {
            return Err(DropReason::TsmpFromHost);
        }
        if !packet.has_flow() {
            return Ok(());
        }
        let flow = packet.flow(Direction::Out);
        if let Some(entry) = tables::find_live(A::opened(), &flow, self.now) {
            if entry.generation() != self.generation && self.is_ours(&packet.src) {
                self.renew(&entry, &flow, known);
            } else {
                entry.refresh(self.now);
            }
            return Ok(());
        }
        let opens = match packet.kind {
            OPENS | ECHO_REQUEST => true,
            ECHO_REPLY => false,
            _ if packet.protocol == protocol::TCP => false,
            _ => tables::find_live(A::admitted(), &flow, self.now).is_none(),
        };
        if opens {
            // Answers to what is not ours are dropped, by I5 or I6, which have to be asked then.
            if !self.is_ours(&packet.src) {
                known.generation = 0;
            }
            tables::remember(A::opened(), &flow, known);
        }
        Ok(())
    }

    /// Whether packets to the address pass I5 and I6.
    #[inline(always)]
    fn is_ours<A: Tables>(&self, address: &A) -> bool {
        !address.is_multicast() && !address.is_link_local() && self.destination(address).is_ok()
    }
}

#[inline(always)]
fn admit_by(rule: u32, known: &mut Known) {
    if rule != NO_RULE {
        known.flags |= KNOWN_RULE;
        known.rule = rule;
    }
}
