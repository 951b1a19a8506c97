//! One peer's path: its probes, what they proved, and for how long that is trusted.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use disco_proto::disco::{Message, TxId};
use keys::{DiscoPublic, NodePublic};

use super::candidates::{Candidates, MAX_OWN, usable};
use super::choice::{Proved, better};
use super::{Command, ENDPOINTS_FRESH, Now, Own, PeerPaths, RESTUN_PATIENCE, Route, Sources, Via};
use crate::{DEFAULT_MTU, RegionId};

mod sizes;
mod sources;

use sizes::Sizes;

/// Sending nothing for longer than this makes a peer idle.
const ACTIVE: Duration = Duration::from_secs(45);
const HEARTBEAT: Duration = Duration::from_secs(3);
const TRUST: Duration = Duration::from_millis(6500);
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(5);
const PING_INTERVAL: Duration = Duration::from_secs(5);
const ROUND_INTERVAL: Duration = Duration::from_secs(60);
/// A path this quick is not worth looking for a better one.
const GOOD_ENOUGH: Duration = Duration::from_millis(5);
/// How long a ping that somebody asked for may take.
const ASKED_TIMEOUT: Duration = Duration::from_secs(10);
/// Trust left to a path that is sent to without an answer: three round trips, within these bounds; of
/// a slow path the upper one is two.
const SUSPICION: (Duration, Duration) = (Duration::from_millis(400), Duration::from_secs(1));
/// A round trip over a relay is told for so long: nothing measures it again by itself.
const RELAYED_FRESH: Duration = Duration::from_secs(60);
/// Most pings of one peer on their way; each has a record here.
const MAX_SENT: usize = 256;
/// Most pings of one peer that somebody waits for.
const MAX_ASKED: usize = 16;

/// What a peer needs of its surroundings.
pub(super) struct Context<'a> {
    pub(super) now: Now,
    pub(super) node: NodePublic,
    pub(super) ids: &'a mut (dyn FnMut() -> TxId + Send),
    pub(super) own: &'a mut Own,
    pub(super) commands: &'a mut VecDeque<Command>,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    via: Via,
    at: Now,
    /// Somebody waits for the answer.
    asked: Option<u64>,
    /// Bytes that make it longer. A long ping that gets lost says nothing of the path but that.
    padding: u16,
}

/// Round trips of the last answers.
#[derive(Clone, Copy, Debug, Default)]
struct Answered {
    direct: Option<Proved>,
    relayed: Option<(Now, Duration)>,
}

#[derive(Debug)]
pub(super) struct Peer {
    key: NodePublic,
    disco: Option<DiscoPublic>,
    home: Option<RegionId>,
    candidates: Candidates,
    best: Option<Proved>,
    trust_until: Now,
    last_round: Option<Now>,
    last_call: Option<Now>,
    /// When WireGuard last sent, as far as we were told.
    last_sent: Option<Now>,
    heartbeat: Option<Now>,
    /// When a suspected path is probed once more.
    reprobe: Option<Now>,
    /// It pings us, so its packets may have moved WireGuard's endpoint, and ours go by unseen until
    /// somebody counts them: worth it up to then.
    counted: Option<Now>,
    sent: BTreeMap<TxId, Sent>,
    asked: BTreeMap<u64, Now>,
    /// The last answers, straight from [`Self::best`] and over a relay.
    answered: Answered,
    pub(super) route: Route,
    sizes: Sizes,
    /// Longest packet of the overlay, as last told.
    mtu: u16,
    /// Where it answered from lately, the latest first.
    answers: Vec<(SocketAddr, Now)>,
    /// Where its packets come from, as last told.
    detoured: Sources,
    /// The timer that [`super::Paths`] keeps for this peer.
    pub(super) armed: Option<Now>,
}

impl Peer {
    pub(super) fn new(key: NodePublic) -> Self {
        Self {
            key,
            disco: None,
            home: None,
            candidates: Candidates::default(),
            best: None,
            trust_until: Now::default(),
            last_round: None,
            last_call: None,
            last_sent: None,
            heartbeat: None,
            reprobe: None,
            counted: None,
            sent: BTreeMap::new(),
            asked: BTreeMap::new(),
            answered: Answered::default(),
            route: Route::Relayed,
            sizes: Sizes::default(),
            mtu: DEFAULT_MTU,
            answers: Vec::new(),
            detoured: Sources::default(),
            armed: None,
        }
    }

    pub(super) fn disco(&self) -> Option<DiscoPublic> {
        self.disco
    }

    pub(super) fn asked(&self, id: TxId) -> bool {
        self.sent.contains_key(&id)
    }

    /// The pings that somebody waits for.
    pub(super) fn pings_asked(&self) -> impl Iterator<Item = u64> {
        self.asked.keys().copied()
    }

    /// The round trip of the last answer on the way in use; `None` if none was measured there.
    pub(super) fn latency(&self, now: Now) -> Option<Duration> {
        match self.trusted(now) {
            // A path that was adopted has not answered yet.
            Some(best) => self
                .answered
                .direct
                .filter(|answer| answer.address == best.address)
                .map(|answer| answer.latency),
            None => self
                .answered
                .relayed
                .filter(|(at, _)| now.since(*at) < RELAYED_FRESH)
                .map(|(_, latency)| latency),
        }
    }

    /// How many candidates it has, and how many pings are on their way.
    pub(super) fn load(&self) -> (usize, usize) {
        (self.candidates.len(), self.sent.len())
    }

    pub(super) fn configure(&mut self, context: &mut Context<'_>, peer: PeerPaths) {
        self.home = peer.home;
        self.change_candidates(context, |all| all.set_map(&peer.endpoints));
        self.set_disco(context, peer.disco);
    }

    pub(super) fn set_disco(&mut self, context: &mut Context<'_>, disco: Option<DiscoPublic>) {
        if self.disco != disco {
            self.disco = disco;
            self.restart(context);
        }
    }

    /// Forgets what was proved; an active peer starts looking at once.
    pub(super) fn restart(&mut self, context: &mut Context<'_>) {
        self.forget();
        if self.heartbeat.is_some() {
            self.round(context, true);
        }
    }

    fn forget(&mut self) {
        self.best = None;
        self.trust_until = Now::default();
        self.last_round = None;
        self.reprobe = None;
        self.sent.clear();
        self.answered = Answered::default();
        self.sizes = Sizes::default();
        self.answers.clear();
        self.candidates.forget_measurements();
    }

    pub(super) fn active(&mut self, context: &mut Context<'_>, sent: Now) {
        self.last_sent = self.last_sent.max(Some(sent));
        if self.heartbeat.is_some() || context.now.since(sent) > ACTIVE {
            return;
        }
        self.heartbeat = Some(context.now + HEARTBEAT);
        if self.trusted(context.now).is_none() {
            self.round(context, true);
        }
    }

    pub(super) fn suspect(&mut self, context: &mut Context<'_>) {
        let Some(best) = self.trusted(context.now) else {
            return;
        };
        // Nobody waits for packets from an idle peer.
        if self.heartbeat.is_none() || self.reprobe.is_some() {
            return;
        }
        // An answer must have had the time to come.
        let longest = SUSPICION.1.max(best.latency * 2);
        let grace = (best.latency * 3).clamp(SUSPICION.0, longest);
        self.trust_until = self.trust_until.min(context.now + grace);
        // Twice, so that one lost probe does not condemn the path.
        self.reprobe = Some(context.now + grace / 2);
        self.probe(context, Via::Udp(best.address), None, 0);
    }

    pub(super) fn adopt(&mut self, context: &mut Context<'_>, address: SocketAddr) {
        if self.disco.is_none() || !usable(address) {
            return;
        }
        self.candidates.heard(context.now, address, None);
        self.best = Some(Proved {
            address,
            latency: GOOD_ENOUGH,
        });
        self.trust_until = context.now + TRUST;
        self.heartbeat = Some(context.now + HEARTBEAT);
        self.last_sent = Some(context.now);
        self.round(context, true);
    }

    pub(super) fn is_active(&self) -> bool {
        self.heartbeat.is_some() || self.counted.is_some()
    }

    /// Says whether this ping came from there before.
    pub(super) fn was_pinged(&self, source: SocketAddr, id: TxId) -> bool {
        self.candidates.was_heard(source, id)
    }

    pub(super) fn is_detoured(&self) -> bool {
        self.detoured != Sources::default()
    }

    pub(super) fn pinged(
        &mut self,
        context: &mut Context<'_>,
        source: SocketAddr,
        (id, padding): (TxId, u16),
        is_it: bool,
    ) {
        if is_it {
            self.counted = Some(context.now + ACTIVE);
        }
        if self.candidates.heard(context.now, source, Some(id)) && is_it {
            self.answer_probe(context, source);
            self.size_heard(context, source, padding);
        }
    }

    /// Probes an address that the peer was heard from, if we need a path: the peer's NAT is open to us
    /// right now, and a heartbeat may come too late. What went there before may have found it closed.
    fn answer_probe(&mut self, context: &mut Context<'_>, address: SocketAddr) {
        if self.heartbeat.is_none() || self.trusted(context.now).is_some() {
            return;
        }
        let now = context.now;
        let Some(candidate) = self.candidates.get_mut(address) else {
            return;
        };
        let recent = |at| now.since(at) < PING_INTERVAL;
        if !candidate.pinged_back.is_some_and(recent) {
            candidate.pinged_back = Some(now);
            self.probe(context, Via::Udp(address), None, 0);
        }
    }

    /// Trusts the best address no more if the change removes it: the peer has left it out, and does not ping from
    /// there. It is used beside the relay then, and trusted again if it answers once more.
    fn change_candidates(&mut self, context: &Context<'_>, change: impl FnOnce(&mut Candidates)) {
        let address = self.best.map(|best| best.address);
        let is_known = |all: &Candidates| address.is_some_and(|best| all.contains(best));
        let was_known = is_known(&self.candidates);
        change(&mut self.candidates);
        if was_known && !is_known(&self.candidates) {
            self.trust_until = self.trust_until.min(context.now);
        }
    }

    pub(super) fn called(&mut self, context: &mut Context<'_>, endpoints: &[SocketAddr]) {
        let now = context.now;
        self.change_candidates(context, |all| all.set_called(now, endpoints));
        // Who calls may have moved: our packets would go nowhere while its own arrive over the relay.
        self.suspect(context);
        self.round(context, false);
    }

    pub(super) fn pong(&mut self, context: &mut Context<'_>, id: TxId, via: Via) {
        let Some(sent) = self.sent.remove(&id) else {
            return;
        };
        let latency = context.now.since(sent.at);
        if let Some(ping) = sent.asked
            && self.asked.remove(&ping).is_some()
        {
            context.commands.push_back(Command::PingAnswered {
                ping,
                peer: self.key,
                via: sent.via,
                latency,
            });
        }
        if let (Via::Derp(..), Via::Derp(..)) = (sent.via, via) {
            self.answered.relayed = Some((context.now, latency));
        }
        // The address that was pinged is proved, whatever address the pong came from; over a relay
        // nothing is.
        let (Via::Udp(address), Via::Udp(source)) = (sent.via, via) else {
            return;
        };
        self.answers.retain(|(known, _)| *known != source);
        self.answers.insert(0, (source, context.now));
        self.answers.truncate(MAX_OWN);
        if sent.padding > 0 {
            self.size_answered(context.now, address, sent.padding);
        }
        match self.candidates.get_mut(address) {
            Some(candidate) => candidate.answers(context.now),
            None if self.best.is_some_and(|best| best.address == address) => {}
            // It was removed since.
            None => return,
        }
        let proved = Proved { address, latency };
        let current = self.best.filter(|best| {
            best.address != address && self.trusted(context.now).is_some() && !better(proved, *best)
        });
        if current.is_none() {
            self.best = Some(proved);
            self.answered.direct = Some(proved);
            self.trust_until = context.now + TRUST;
            self.reprobe = None;
        }
        if self.detoured.unproved.contains(&address) {
            self.detour(context);
        }
    }

    pub(super) fn ping_asked(&mut self, context: &mut Context<'_>, ping: u64, size: u16) {
        if self.disco.is_none() || self.asked.len() >= MAX_ASKED {
            let peer = self.key;
            context
                .commands
                .push_back(Command::PingExpired { ping, peer });
            return;
        }
        self.asked.insert(ping, context.now + ASKED_TIMEOUT);
        if let Some(best) = self.trusted(context.now) {
            self.probe(context, Via::Udp(best.address), Some(ping), size);
        } else {
            if let Some(home) = self.home {
                self.probe(context, Via::Derp(home, self.key), Some(ping), size);
            }
            for address in self.candidates.due(context.now, Duration::ZERO) {
                self.probe(context, Via::Udp(address), Some(ping), size);
            }
            self.call_me_maybe(context);
        }
        self.active(context, context.now);
    }

    pub(super) fn timeout(&mut self, context: &mut Context<'_>) {
        let now = context.now;
        let trusted = self.trusted(now).is_some();
        let best = self.best.map(|best| Via::Udp(best.address));
        let mut best_lost = false;
        self.sent.retain(|_, sent| {
            let lost = now.since(sent.at) >= PING_TIMEOUT;
            best_lost |= lost && sent.padding == 0 && Some(sent.via) == best;
            !lost
        });
        // A ping from before the last answer says nothing: it found the peer's NAT still closed.
        let may_answer = |best: &Proved| self.candidates.is_proved(now, best.address);
        if best_lost && !trusted {
            self.best = self.best.filter(may_answer);
        }
        let peer = self.key;
        self.asked.retain(|&ping, until| {
            let over = *until <= now;
            if over {
                context
                    .commands
                    .push_back(Command::PingExpired { ping, peer });
            }
            !over
        });
        if self.counted.is_some_and(|until| until <= now) {
            self.counted = None;
            if self.heartbeat.is_none() {
                // No heartbeat has moved the endpoint back from where the peer's packets came from, and what
                // goes there is not seen any more.
                self.say_route(context);
            }
        }
        if self.reprobe.is_some_and(|at| at <= now) {
            self.reprobe = None;
            if let Some(best) = self.trusted(now) {
                self.probe(context, Via::Udp(best.address), None, 0);
            }
        }
        if self.heartbeat.is_some_and(|at| at <= now) {
            self.beat(context);
        }
    }

    fn beat(&mut self, context: &mut Context<'_>) {
        let now = context.now;
        let quiet = self.last_sent.map_or(Duration::MAX, |at| now.since(at));
        if quiet > ACTIVE {
            self.heartbeat = None;
            // What is sent next is seen, and takes both ways.
            self.trust_until = self.trust_until.min(now);
            self.detour(context);
            if !matches!(self.route, Route::Direct(_)) {
                self.say_route(context);
            }
            return;
        }
        self.heartbeat = Some(now + HEARTBEAT);
        self.detour(context);
        self.say_route(context);
        if let Some(best) = self.best {
            self.probe(context, Via::Udp(best.address), None, 0);
        }
        self.try_sizes(context);
        let wanted = match (self.trusted(now), self.last_round) {
            (None, _) | (_, None) => true,
            (Some(best), _) if best.latency <= GOOD_ENOUGH => false,
            (_, Some(at)) => now.since(at) >= ROUND_INTERVAL,
        };
        if wanted {
            self.round(context, true);
        } else if let Some(address) = self.unproved_due(now) {
            // Its packets need no detour once it is proved. One at a time: to a NAT that maps by port each of
            // our probes looks like another address, which is probed in turn.
            self.probe(context, Via::Udp(address), None, 0);
        }
    }

    /// Pings every candidate that was not pinged lately; our pings leave before the CallMeMaybe, so
    /// that our NAT is open when the peer answers it.
    fn round(&mut self, context: &mut Context<'_>, call: bool) {
        if self.disco.is_none() {
            return;
        }
        let now = context.now;
        self.change_candidates(context, |all| all.expire(now));
        self.last_round = Some(now);
        let due = self.candidates.due(now, PING_INTERVAL);
        for address in &due {
            self.probe(context, Via::Udp(*address), None, 0);
        }
        // Also if there is nothing to ping: nobody told us an address of the peer, or it calls so often that
        // we always pinged only just now. It may not know any of ours.
        let overdue = self.trusted(now).is_none()
            && self
                .last_call
                .is_none_or(|at| now.since(at) >= PING_INTERVAL);
        if call && (!due.is_empty() || overdue) {
            self.call_me_maybe(context);
        }
    }

    /// Offers our endpoints to the peer, after a re-STUN if they are not fresh.
    pub(super) fn call_me_maybe(&mut self, context: &mut Context<'_>) {
        let (Some(home), Some(disco)) = (self.home, self.disco) else {
            return;
        };
        let now = context.now;
        self.last_call = Some(now);
        let own = &mut *context.own;
        if own.learned.is_none_or(|at| now.since(at) > ENDPOINTS_FRESH) {
            own.waiting.insert(self.key);
            if own.asked.is_none_or(|at| now.since(at) >= RESTUN_PATIENCE) {
                own.asked = Some(now);
                context.commands.push_back(Command::ReStun);
            }
            return;
        }
        context.commands.push_back(Command::Send {
            via: Via::Derp(home, self.key),
            disco,
            message: Message::CallMeMaybe {
                endpoints: own.endpoints.clone(),
            },
        });
    }

    fn probe(&mut self, context: &mut Context<'_>, via: Via, asked: Option<u64>, padding: u16) {
        let Some(disco) = self.disco else { return };
        if self.sent.len() >= MAX_SENT {
            return;
        }
        if let Via::Udp(address) = via {
            if !usable(address) {
                return;
            }
            if let Some(candidate) = self.candidates.get_mut(address)
                && padding == 0
            {
                candidate.pinged(context.now);
            }
        }
        let id = (context.ids)();
        let at = context.now;
        let sent = Sent {
            via,
            at,
            asked,
            padding,
        };
        self.sent.insert(id, sent);
        context.commands.push_back(Command::Send {
            via,
            disco,
            message: Message::Ping {
                id,
                node: Some(context.node),
                padding,
            },
        });
    }

    fn trusted(&self, now: Now) -> Option<Proved> {
        self.best.filter(|_| now < self.trust_until)
    }

    /// Tells the shell if the peer is to be reached another way from now on.
    pub(super) fn settle(&mut self, context: &mut Context<'_>) {
        let route = match self.best {
            None => Route::Relayed,
            Some(best) if context.now < self.trust_until => Route::Direct(best.address),
            Some(best) => Route::Both(best.address),
        };
        if route != self.route {
            let lapsed = matches!((self.route, route), (Route::Direct(_), Route::Both(_)));
            if lapsed && self.heartbeat.is_some() {
                // The peer may trust a path that is as dead, and answer by it: called, it puts it to the
                // proof.
                self.round(context, false);
                self.call_me_maybe(context);
            }
            self.route = route;
            self.detour(context);
            self.say_route(context);
        }
        // What goes by a relay beside fits there too.
        let mtu = match route {
            Route::Relayed => DEFAULT_MTU,
            Route::Direct(address) | Route::Both(address) => self.sizes.mtu(context.now, address),
        };
        if mtu != self.mtu {
            self.mtu = mtu;
            context.commands.push_back(Command::SetMtu {
                peer: self.key,
                mtu,
            });
        }
    }

    fn say_route(&self, context: &mut Context<'_>) {
        context.commands.push_back(Command::SetRoute {
            peer: self.key,
            route: self.route,
        });
    }

    /// When something is to be done next.
    pub(super) fn due(&self, now: Now) -> Option<Now> {
        let lapse = matches!(self.route, Route::Direct(_)).then_some(self.trust_until);
        let lost = self.sent.values().map(|sent| sent.at + PING_TIMEOUT).min();
        let over = self.asked.values().min().copied();
        // An idle peer needs no timer: it is looked at when there is something to send.
        let shrinks = self.mtu > DEFAULT_MTU && self.heartbeat.is_some();
        let smaller = shrinks.then(|| self.sizes.until(now)).flatten();
        let all = [
            lapse,
            smaller,
            lost,
            over,
            self.heartbeat,
            self.reprobe,
            self.counted,
        ];
        all.into_iter().flatten().min()
    }
}
