//! The packet filter: may this packet pass? The rules S, I, O and R are those of
//! `policy::filter`, the model that this is compared with.

use ebpf_abi::{
    CLASS_NUMBER, CLASS_OWN, Class, Direction, DropReason, KNOWN_PEER, KNOWN_RULE, Known, Nanos,
    PEER_JAILED, POLICY_SHIELDS_UP, Pair, PeerEntry, PeerIndex, Policy, Side,
};
use packet::{
    SECOND,
    flat::{self, ECHO_REPLY, ECHO_REQUEST, ERROR, FIRST, Flat, LATER, OPENS, OTHER, PORTS},
    protocol,
};

use crate::{
    admitted::{Key, Place, Words, is_fresh},
    events::{self, Subject},
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
fn judge_family<A: Words>(
    frame: &Frame<'_>,
    direction: Direction,
    generation: u64,
) -> Result<Passed, DropReason> {
    if let Some(flow) = A::flow(frame, direction)
        && let Some(kind) = kind::<A>(frame, flow.protocol)
    {
        return ordinary(&Key::new(flow), kind, direction, generation);
    }
    let scratch = A::scratch().ok_or(DropReason::NoPolicy)?;
    let parsed = frame.read(|| {
        let packet = scratch.begin();
        packet.parse(frame)
    });
    let packet = scratch.get();
    let judged = match parsed {
        Ok(()) => any(packet, frame, direction, generation),
        Err(reason) => Err(reason),
    };
    if let Err(reason) = judged {
        events::dropped(&Subject::from(packet), direction, reason, generation);
    }
    judged
}

/// What an ordinary packet of protocol `number` is; `None` if that is out of reach.
#[inline(always)]
fn kind<A: Words>(frame: &Frame<'_>, number: u8) -> Option<u8> {
    let opens = A::opens(frame, number)?;
    Some(match (number == A::ICMP, opens) {
        (true, true) => ECHO_REQUEST,
        (true, false) => ECHO_REPLY,
        (false, true) => OPENS,
        (false, false) => PORTS,
    })
}

/// Judges an ordinary packet: by what is known of its flow, if that is of this generation and nothing
/// has to be written, else in full. What has been looked up is not looked up again.
#[inline(always)]
fn ordinary<A: Words>(
    key: &Key<A>,
    kind: u8,
    direction: Direction,
    generation: u64,
) -> Result<Passed, DropReason> {
    let now = tables::now();
    let holds = |entry: &Entry| entry.generation() == generation && now < entry.expires();
    let asks = kind == OPENS || kind == ECHO_REQUEST;
    let judged = match direction {
        Direction::In => {
            let mut place = Place::of(key).ok_or(DropReason::NoPolicy)?;
            // Whatever is admitted, the answer to an echo needs our question.
            let admitted = if kind == ECHO_REPLY {
                None
            } else {
                place.found_of(generation)
            };
            if let Some(known) = admitted
                && now < known.expires
                && is_fresh(known, now)
            {
                return Ok(Passed::as_known(known));
            }
            let opened = if asks { None } else { tables::opened(key) };
            if let Some(entry) = &opened
                && admitted.is_none()
                && holds(entry)
                && entry.is_fresh(now)
            {
                return Ok(Passed::by(entry));
            }
            let zero = tables::unknown_zero();
            place.blur(zero);
            first_in(key, kind ^ zero as u8, &place, opened, (generation, now))
        }
        Direction::Out => {
            let opened = tables::opened(key);
            if let Some(entry) = &opened {
                if holds(entry) && entry.is_fresh(now) {
                    return Ok(Passed::by(entry));
                }
            } else if !asks
                // An answer. The far end may be anything that a rule has let in, O4 has not been asked.
                && !key.theirs.is_multicast()
                && !key.theirs.is_link_local()
                && let Some(place) = Place::of(key)
                && place.is_live(key, now)
                && let Some(known) = place.found_of(generation)
                && now < known.expires
            {
                return Ok(Passed::as_known(known).without_rule());
            }
            first_out(key, kind, opened, (generation, now))
        }
    };
    if let Err(reason) = judged {
        let subject = Subject::of_flow(key, kind, direction);
        events::dropped(&subject, direction, reason, generation);
    }
    judged
}

/// Judges an ordinary inbound packet of a flow that has to be judged in full. (No closures here: compiler
/// and verifier would have them as functions, which share one stack of 512 bytes with their callers.)
#[inline(always)]
fn first_in<A: Words>(
    key: &Key<A>,
    kind: u8,
    place: &Place<A>,
    opened: Option<Entry>,
    at: (u64, Nanos),
) -> Result<Passed, DropReason> {
    let (judge, mut known) = in_full(&key.theirs, &key.ours, at)?;
    judge.of_flow(key, kind, place, opened, &mut known)?;
    Ok(Passed::as_known(&known))
}

/// As [`first_in`], outbound.
#[inline(always)]
fn first_out<A: Words>(
    key: &Key<A>,
    kind: u8,
    opened: Option<Entry>,
    at: (u64, Nanos),
) -> Result<Passed, DropReason> {
    let (judge, mut known) = in_full(&key.theirs, &key.theirs, at)?;
    judge.outbound_flow(key, kind, opened, &mut known)?;
    Ok(Passed::as_known(&known))
}

/// Judges any packet.
#[inline(always)]
fn any<A: Words>(
    packet: &Flat<A>,
    frame: &Frame<'_>,
    direction: Direction,
    generation: u64,
) -> Result<Passed, DropReason> {
    let remote = match direction {
        Direction::In => &packet.src,
        Direction::Out => &packet.dst,
    };
    let at = (generation, tables::now());
    let (judge, mut known) = in_full(remote, &packet.dst, at)?;
    match direction {
        Direction::In => judge.inbound(packet, frame, &mut known)?,
        Direction::Out => judge.outbound(packet, &mut known)?,
    }
    Ok(Passed::as_known(&known))
}

/// I3 to I5, O3 and O4; then by what to judge further, and what is to be remembered but for the rule.
#[inline(always)]
fn in_full<A: Words>(
    remote: &A,
    destination: &A,
    (generation, now): (u64, Nanos),
) -> Result<(Judge<'static>, Known), DropReason> {
    let policy = tables::policy().ok_or(DropReason::NoPolicy)?;
    let (peer, expires) = peer(remote, policy, now)?;
    if destination.is_multicast() {
        return Err(DropReason::Multicast);
    }
    if destination.is_link_local() {
        return Err(DropReason::LinkLocal);
    }
    let zero = tables::unknown_zero();
    let index = peer.map_or(0, |peer| peer.index.0);
    let flags = policy.set | if peer.is_some() { KNOWN_PEER } else { 0 };
    let known = Known {
        generation: policy.generation,
        seen: now,
        expires: expires ^ u64::from(zero),
        peer: PeerIndex(index ^ zero),
        flags: flags ^ zero,
        rule: 0,
        rules: policy.rules,
    };
    let judge = Judge {
        policy,
        jailed: u32::from(is_jailed(peer)) ^ zero != 0,
        now,
        generation,
    };
    Ok((judge, known))
}

/// I3, I4, O3: the peer, if neither its key nor ours has expired; and when the first of them does.
#[inline(always)]
fn peer<A: Tables>(
    remote: &A,
    policy: &Policy,
    now: Nanos,
) -> Result<(Option<&'static PeerEntry>, Nanos), DropReason> {
    if now >= policy.expires {
        return Err(DropReason::KeyExpired);
    }
    let peer = remote.peer();
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
    /// I6 to I15, and what an accepted first fragment leaves behind.
    #[inline(always)]
    fn inbound<A: Words>(
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
            let key = Key::new(packet.flow(Direction::In));
            let mut place = Place::of(&key).ok_or(DropReason::NoPolicy)?;
            place.blur(tables::unknown_zero());
            let may_answer = packet.kind == PORTS || packet.kind == ECHO_REPLY;
            let opened = if may_answer {
                tables::opened(&key)
            } else {
                None
            };
            self.of_flow(&key, packet.kind, &place, opened, known)?;
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
    fn of_no_flow<A: Words>(
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
            if packet.quoted(frame, &mut flow) && self.knows(&Key::new(flow), destination) {
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
    fn knows<A: Words>(&self, key: &Key<A>, destination: Class) -> bool {
        if self.live(key, tables::opened(key)).is_some() {
            return true;
        }
        let Some(mut place) = Place::of(key) else {
            return false;
        };
        place.blur(tables::unknown_zero());
        if !place.is_live(key, self.now) {
            return false;
        }
        if place.found_of(self.generation).is_some() {
            return true;
        }
        // The error may come from a router on the way, which is another peer.
        let theirs = Self {
            jailed: is_jailed(key.theirs.peer()),
            ..*self
        };
        let port = u16::from_be_bytes(key.our_port);
        let admits = theirs.by_rules(key.protocol, &key.theirs, destination, port);
        admits.is_ok()
    }

    /// What was found of a flow that we opened, if it is live.
    #[inline(always)]
    fn live<A: Words>(&self, key: &Key<A>, entry: Option<Entry>) -> Option<Entry> {
        entry.filter(|entry| tables::is_live(key, entry.seen(), self.now))
    }

    /// I10 to I15 for a packet of a flow. `opened` is what was found of it if the packet may answer.
    #[inline(always)]
    fn of_flow<A: Words>(
        &self,
        key: &Key<A>,
        kind: u8,
        place: &Place<A>,
        opened: Option<Entry>,
        known: &mut Known,
    ) -> Result<(), DropReason> {
        let opened = self.live(key, opened);
        if kind != ECHO_REPLY
            && let Some(admitted) = place.found_of(self.generation)
        {
            known.flags |= admitted.flags & KNOWN_RULE;
            known.rule = admitted.rule;
            if !is_fresh(admitted, self.now) {
                place.refresh(self.now);
                if let Some(opened) = opened {
                    opened.refresh(self.now);
                }
            }
            return Ok(());
        }
        if let Some(entry) = opened {
            if entry.generation() == self.generation {
                entry.refresh(self.now);
                return Ok(());
            }
            self.destination(&key.ours)?;
            self.renew(&entry, key, known);
            return Ok(());
        }
        let destination = self.destination(&key.ours)?;
        if kind == ECHO_REPLY {
            return Err(DropReason::EchoReply);
        }
        let port = u16::from_be_bytes(key.our_port);
        match self.by_rules(key.protocol, &key.theirs, destination, port) {
            Ok(rule) => {
                admit_by(rule, known);
                place.remember(key, known);
                Ok(())
            }
            Err(DropReason::NoRule) if kind == PORTS && key.protocol == protocol::TCP => {
                Err(DropReason::NoFlow)
            }
            Err(reason) => Err(reason),
        }
    }

    /// Writes what is known of a flow that we opened, which is ours in this generation too.
    #[inline(always)]
    fn renew<A: Words>(&self, entry: &Entry, key: &Key<A>, known: &mut Known) {
        if entry.is_fresh(self.now) {
            known.seen = entry.seen();
        }
        tables::remember_opened(key, known);
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
    fn outbound<A: Words>(&self, packet: &Flat<A>, known: &mut Known) -> Result<(), DropReason> {
        if packet.protocol == protocol::TSMP && packet.kind == OTHER {
            return Err(DropReason::TsmpFromHost);
        }
        if !packet.has_flow() {
            return Ok(());
        }
        let key = Key::new(packet.flow(Direction::Out));
        self.outbound_flow(&key, packet.kind, tables::opened(&key), known)
    }

    /// O6 and O7 for a packet of a flow. `opened` is what was found of it.
    #[inline(always)]
    fn outbound_flow<A: Words>(
        &self,
        key: &Key<A>,
        kind: u8,
        opened: Option<Entry>,
        known: &mut Known,
    ) -> Result<(), DropReason> {
        if let Some(entry) = self.live(key, opened) {
            if entry.generation() != self.generation && self.is_ours(&key.ours) {
                self.renew(&entry, key, known);
            } else {
                entry.refresh(self.now);
            }
            return Ok(());
        }
        let opens = match kind {
            OPENS | ECHO_REQUEST => true,
            ECHO_REPLY => false,
            _ if key.protocol == protocol::TCP => false,
            _ => !Place::of(key).is_some_and(|place| place.is_live(key, self.now)),
        };
        if opens {
            // Answers to what is not ours are dropped, by I5 or I6, which have to be asked then.
            if !self.is_ours(&key.ours) {
                known.generation = 0;
            }
            tables::remember_opened(key, known);
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
