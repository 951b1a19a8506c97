//! A world with a virtual clock and seeded weather: nodes, relays, a control plane, and data.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use disco_proto::disco::{Message, TxId};
use keys::{DiscoPublic, NodePublic};
use node_core::RegionId;
use node_core::paths::{Command, MAX_CANDIDATES, Now, Paths, PeerPaths, Route, Via};

use crate::flow::Flow;
use crate::net::{Flight, Net, Realm};
use crate::predict::wavering;
use crate::random::Random;
use crate::thief::Thief;
use crate::tunnel::Tunnels;
use crate::watch::Watch;

const SECOND: Duration = Duration::from_secs(1);
/// One way through a relay, besides the links of both nodes.
const RELAY_DELAY: Duration = Duration::from_millis(15);
const LAN_DELAY: Duration = Duration::from_millis(1);
/// The agent learns its endpoints anew so often while it has something to send.
const RESTUN: Duration = Duration::from_secs(23);
const STUN_SERVER: ([u8; 4], u16) = ([203, 0, 113, 1], 3478);

/// What happens to datagrams on the internet.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    /// Of a thousand.
    pub(crate) lost: u32,
    /// Of a thousand.
    pub(crate) doubled: u32,
    /// Added at random, so that packets overtake each other.
    pub(crate) jitter_ms: u32,
}

#[derive(Clone, Debug)]
enum Payload {
    Disco {
        sender: DiscoPublic,
        to: DiscoPublic,
        message: Message,
    },
    /// A packet of a flow, authenticated by WireGuard.
    Data {
        from: usize,
        to: usize,
        number: u64,
        flow: usize,
        reply: bool,
    },
}

enum Event {
    Udp(Flight, Payload),
    Relayed {
        region: RegionId,
        from: usize,
        to: usize,
        payload: Payload,
    },
    Stun {
        node: usize,
        life: u32,
    },
    /// The network map has caught up with this node.
    Map(usize),
    /// A peer's disco key comes through a live session.
    Told {
        to: usize,
        of: usize,
    },
    /// The data plane's counters are read.
    Tick(usize),
    Flow(usize),
    /// The agent's process is back.
    Back(usize),
}

pub(crate) struct Node {
    pub(crate) paths: Paths,
    disco: DiscoPublic,
    /// How often the process started.
    life: u32,
    pub(crate) running: bool,
    pub(crate) realm: Realm,
    v4: SocketAddr,
    pub(crate) v6: Option<SocketAddr>,
    home: RegionId,
    delay: Duration,
    pub(crate) udp_blocked: bool,
    endpoints: Vec<SocketAddr>,
    last_stun: Duration,
    tunnels: Tunnels,
    watch: Watch,
    armed: Option<Duration>,
}

/// Everything that exists.
pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) random: Random,
    pub(crate) net: Net,
    pub(crate) weather: Weather,
    pub(crate) thief: Thief,
    pub(crate) nodes: Vec<Node>,
    pub(crate) flows: Vec<Flow>,
    relays_down: BTreeSet<RegionId>,
    /// The network map tells nobody's endpoints.
    pub(crate) silent_map: bool,
    map: Vec<PeerPaths>,
    count: u64,
    events: BTreeMap<(Duration, u64), Event>,
    timers: BTreeSet<(Duration, usize)>,
}

fn key_bytes(index: usize, kind: u8, life: u32) -> [u8; 32] {
    let mut bytes = [kind; 32];
    bytes[..4].copy_from_slice(&u32::try_from(index).unwrap().to_be_bytes());
    bytes[4..8].copy_from_slice(&life.to_be_bytes());
    bytes
}

pub(crate) fn node_key(index: usize) -> NodePublic {
    NodePublic::from_bytes(key_bytes(index, 1, 0))
}

fn disco_key(index: usize, life: u32) -> DiscoPublic {
    DiscoPublic::from_bytes(key_bytes(index, 2, life))
}

fn index(bytes: &[u8; 32]) -> usize {
    u32::from_be_bytes(*bytes.first_chunk().unwrap()) as usize
}

fn new_paths(node: usize, life: u32) -> Paths {
    let mut count = 0u32;
    Paths::new(node_key(node), move || {
        count += 1;
        let mut id = [0; 12];
        id[..4].copy_from_slice(&u32::try_from(node).unwrap().to_be_bytes());
        id[4..8].copy_from_slice(&life.to_be_bytes());
        id[8..].copy_from_slice(&count.to_be_bytes());
        TxId(id)
    })
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: Duration::ZERO,
            random: Random::new(seed),
            net: Net::default(),
            weather: Weather::default(),
            thief: Thief::default(),
            nodes: Vec::new(),
            flows: Vec::new(),
            relays_down: BTreeSet::new(),
            silent_map: false,
            map: Vec::new(),
            count: 0,
            events: BTreeMap::new(),
            timers: BTreeSet::new(),
        }
    }

    /// Adds a node; `delay` is one way from it to the middle of the internet.
    pub(crate) fn node(&mut self, realm: Realm, delay: Duration) -> usize {
        let number = self.nodes.len();
        let disco = disco_key(number, 0);
        let home = RegionId(u16::try_from(number % 2 + 1).unwrap());
        self.nodes.push(Node {
            paths: new_paths(number, 0),
            disco,
            life: 0,
            running: true,
            realm,
            v4: self.net.join(realm, number),
            v6: None,
            home,
            delay,
            udp_blocked: false,
            endpoints: Vec::new(),
            last_stun: Duration::ZERO,
            tunnels: Tunnels::default(),
            watch: Watch::default(),
            armed: None,
        });
        self.map.push(PeerPaths {
            disco: Some(disco),
            home: Some(home),
            endpoints: Vec::new(),
        });
        self.later(SECOND + Duration::from_millis(3), Event::Tick(number));
        number
    }

    pub(crate) fn give_v6(&mut self, node: usize) {
        self.nodes[node].v6 = Some(self.net.join_v6(node));
    }

    /// Tells every node of every other.
    pub(crate) fn introduce(&mut self) {
        for number in 0..self.nodes.len() {
            self.read_map(number);
        }
    }

    /// Starts a flow, one packet each `interval`, until [`World::set_flow`] says otherwise.
    pub(crate) fn flow(&mut self, from: usize, to: usize, interval: Duration) -> usize {
        let number = self.flows.len();
        self.flows.push(Flow::new(self.now, from, to, interval));
        let first = self.random.millis(0, 50);
        self.later(first, Event::Flow(number));
        number
    }

    pub(crate) fn set_flow(&mut self, flow: usize, running: bool) {
        if running && !self.flows[flow].running {
            self.flows[flow].resume(self.now);
            self.later(Duration::ZERO, Event::Flow(flow));
        }
        self.flows[flow].running = running;
    }

    pub(crate) fn block_udp(&mut self, node: usize, blocked: bool) {
        self.nodes[node].udp_blocked = blocked;
    }

    pub(crate) fn set_relay(&mut self, region: RegionId, up: bool) {
        if up {
            self.relays_down.remove(&region);
        } else {
            self.relays_down.insert(region);
        }
    }

    pub(crate) fn relays_up(&self) -> bool {
        self.relays_down.is_empty()
    }

    /// No silence up to then counts of flows that begin or end at this node.
    pub(crate) fn excuse(&mut self, node: usize, until: Duration) {
        for flow in &mut self.flows {
            if flow.from == node || flow.to == node {
                flow.excuse(self.now, until);
            }
        }
    }

    /// No silence up to then counts of flows that have nothing but a relay that is down.
    pub(crate) fn excuse_cut_off(&mut self, until: Duration) {
        for number in 0..self.flows.len() {
            let (from, to) = (self.flows[number].from, self.flows[number].to);
            if self.is_cut_off(from, to) || self.is_cut_off(to, from) {
                self.flows[number].excuse(self.now, until);
            }
        }
    }

    fn is_cut_off(&self, from: usize, to: usize) -> bool {
        self.relays_down.contains(&self.nodes[to].home) && !self.is_direct(from, to)
    }

    /// Moves a node into another network, or to another address of its own.
    pub(crate) fn roam(&mut self, number: usize, realm: Realm) {
        let node = &mut self.nodes[number];
        self.net.leave(node.realm, node.v4);
        node.realm = realm;
        node.v4 = self.net.join(realm, number);
        if node.v6.is_some() {
            self.net.leave(Realm::Internet, node.v6.unwrap());
            node.v6 = Some(self.net.join_v6(number));
        }
        if node.running {
            node.watch.forget_all();
            node.paths.underlay_changed(Now(self.now));
            self.carry_out(number);
        }
    }

    /// Ends a node's process and starts another one later; the kernel's WireGuard stays.
    pub(crate) fn restart(&mut self, number: usize, away: Duration, keeps_key: bool) {
        let node = &mut self.nodes[number];
        if !node.running {
            return;
        }
        node.running = false;
        node.life += 1;
        if !keeps_key {
            node.disco = disco_key(number, node.life);
        }
        node.paths = new_paths(number, node.life);
        node.watch.forget_all();
        node.tunnels.end_detours();
        self.arm(number);
        self.later(away, Event::Back(number));
    }

    pub(crate) fn route(&self, from: usize, to: usize) -> Route {
        self.nodes[from].paths.route(&node_key(to)).unwrap()
    }

    pub(crate) fn is_direct(&self, from: usize, to: usize) -> bool {
        let route = self.nodes[from].paths.route(&node_key(to));
        matches!(route, Some(Route::Direct(_)))
    }

    /// How many pings a node sent.
    pub(crate) fn pings(&self, node: usize) -> u64 {
        self.nodes[node].watch.pings
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let event = self.events.keys().next().map(|(at, _)| *at);
            let timer = self.timers.first().map(|(at, _)| *at);
            let next = event.into_iter().chain(timer).min();
            let Some(next) = next.filter(|at| *at <= end) else {
                break;
            };
            self.now = next;
            if timer == Some(next) {
                let (_, number) = self.timers.pop_first().unwrap();
                let node = &mut self.nodes[number];
                node.armed = None;
                node.paths.timeout(Now(next));
                let again = node.paths.next_timeout();
                assert!(again.is_none_or(|at| at.0 > next), "time stands still");
                self.carry_out(number);
            } else if let Some((_, event)) = self.events.pop_first() {
                self.handle(event);
            }
        }
        self.now = end;
    }

    fn later(&mut self, delay: Duration, event: Event) {
        self.count += 1;
        self.events.insert((self.now + delay, self.count), event);
    }

    fn handle(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Udp(flight, payload) => {
                if let Some(node) = self.net.arrive(now, flight)
                    && !self.nodes[node].udp_blocked
                {
                    self.receive(node, Via::Udp(flight.from), payload);
                }
            }
            Event::Relayed {
                region,
                from,
                to,
                payload,
            } => {
                let up = !self.relays_down.contains(&region) && self.nodes[to].running;
                if up {
                    self.receive(to, Via::Derp(region, node_key(from)), payload);
                }
            }
            Event::Stun { node, life } => self.stun(node, life),
            Event::Map(node) => self.publish(node),
            Event::Told { to, of } => {
                let disco = self.nodes[of].disco;
                if self.nodes[to].running && self.nodes[of].running {
                    self.nodes[to].watch_key(of, disco);
                    let paths = &mut self.nodes[to].paths;
                    paths.disco_key_told(Now(now), node_key(of), disco);
                    self.carry_out(to);
                }
            }
            Event::Tick(node) => self.tick(node),
            Event::Flow(flow) => self.request(flow),
            Event::Back(node) => self.back(node),
        }
    }

    fn receive(&mut self, node: usize, via: Via, payload: Payload) {
        match payload {
            Payload::Disco {
                sender,
                to,
                message,
            } => {
                let receiver = &mut self.nodes[node];
                if !receiver.running || receiver.disco != to || !receiver.paths.knows(&sender) {
                    return;
                }
                let peer = index(sender.as_bytes());
                receiver.watch.heard(self.now, peer);
                match message {
                    Message::Pong { id, .. } => receiver.watch.pong(self.now, id, peer),
                    Message::CallMeMaybe { .. } => receiver.watch.called(self.now, peer),
                    _ => {}
                }
                receiver.paths.message(Now(self.now), via, sender, message);
                self.carry_out(node);
            }
            Payload::Data {
                from,
                to,
                number,
                flow,
                reply,
            } => {
                if to != node {
                    return;
                }
                let source = match via {
                    Via::Udp(source) => Some(source),
                    Via::Derp(..) => None,
                };
                let tunnels = &mut self.nodes[node].tunnels;
                if !tunnels.receive(from, number, source) {
                    return;
                }
                if reply {
                    self.replied(flow);
                } else {
                    self.data(to, from, flow, true);
                }
            }
        }
    }

    fn replied(&mut self, number: usize) {
        let direct = {
            let flow = &self.flows[number];
            self.is_direct(flow.from, flow.to) && self.is_direct(flow.to, flow.from)
        };
        self.flows[number].replied(self.now, direct);
    }

    /// Counts the silence that has not ended.
    pub(crate) fn settle_silence(&mut self) {
        for flow in &mut self.flows {
            flow.settle(self.now);
        }
    }

    fn request(&mut self, number: usize) {
        let flow = &mut self.flows[number];
        if !flow.running {
            return;
        }
        flow.requests += 1;
        let (from, to, interval) = (flow.from, flow.to, flow.interval);
        self.later(interval, Event::Flow(number));
        self.data(from, to, number, false);
    }

    /// WireGuard sends a packet.
    fn data(&mut self, from: usize, to: usize, flow: usize, reply: bool) {
        self.count += 1;
        let payload = Payload::Data {
            from,
            to,
            number: self.count,
            flow,
            reply,
        };
        let now = self.now;
        let walks = wavering(&self.net, &self.nodes[from], &self.nodes[to]);
        let node = &mut self.nodes[from];
        let way = node.tunnels.send(now, to);
        // Two NATs by port give each packet that is answered another port: nobody pings from all of them.
        if node.running && !(way.strays && walks) {
            node.watch.sent(now, to, way, self.thief.patience());
        }
        // What takes a synthetic endpoint goes through the agent.
        let agent = way.relayed.filter(|_| node.running);
        if let Some(peer) = agent {
            node.paths.activity(Now(now), node_key(peer), Now(now));
        }
        if let Some(address) = way.straight
            && agent == way.relayed
        {
            self.udp(from, address, payload.clone());
        }
        if let Some(peer) = agent {
            self.relay(from, peer, payload);
            self.carry_out(from);
        }
    }

    fn udp(&mut self, from: usize, to: SocketAddr, payload: Payload) {
        let node = &self.nodes[from];
        let source = if to.is_ipv4() { Some(node.v4) } else { node.v6 };
        let realm = if to.is_ipv4() {
            node.realm
        } else {
            Realm::Internet
        };
        let Some(source) = source.filter(|_| !node.udp_blocked) else {
            return;
        };
        let delay = node.delay;
        let Some(flight) = self.net.send(self.now, realm, source, to) else {
            return;
        };
        // At home there is no weather.
        let copies = match self.random.per_mille(self.weather.doubled) {
            _ if flight.from == source && realm != Realm::Internet => {
                self.later(LAN_DELAY, Event::Udp(flight, payload));
                return;
            }
            true => 2,
            false => 1,
        };
        if matches!(payload, Payload::Disco { .. })
            && let Some((kept, again)) = self.thief.sees(&mut self.random, flight)
        {
            self.later(delay + kept, Event::Udp(again, payload.clone()));
        }
        for _ in 0..copies {
            if !self.random.per_mille(self.weather.lost) {
                let jitter = self.random.millis(0, self.weather.jitter_ms + 1);
                let far = LAN_DELAY * 8;
                self.later(delay + far + jitter, Event::Udp(flight, payload.clone()));
            }
        }
    }

    /// Relays are spoken to by TCP: they lose nothing while they are up, and ignore blocked UDP.
    fn relay(&mut self, from: usize, to: usize, payload: Payload) {
        let region = self.nodes[to].home;
        if self.relays_down.contains(&region) {
            return;
        }
        let delay = RELAY_DELAY + self.nodes[from].delay + self.nodes[to].delay;
        let event = Event::Relayed {
            region,
            from,
            to,
            payload,
        };
        self.later(delay, event);
    }

    fn stun(&mut self, number: usize, life: u32) {
        let node = &mut self.nodes[number];
        if node.life != life || !node.running {
            return;
        }
        node.last_stun = self.now;
        let mut endpoints = vec![node.v4];
        endpoints.extend(node.v6);
        if !node.udp_blocked {
            let server = SocketAddr::from(STUN_SERVER);
            let seen = self.net.send(self.now, node.realm, node.v4, server);
            endpoints.insert(0, seen.unwrap().from);
            endpoints.dedup();
        }
        if endpoints != node.endpoints {
            node.endpoints.clone_from(&endpoints);
            let lag = self.random.millis(200, 3000);
            self.later(lag, Event::Map(number));
        }
        let paths = &mut self.nodes[number].paths;
        paths.own_endpoints(Now(self.now), endpoints);
        self.carry_out(number);
    }

    fn publish(&mut self, number: usize) {
        let node = &self.nodes[number];
        let told = node.endpoints.iter().filter(|_| !self.silent_map);
        self.map[number] = PeerPaths {
            disco: Some(node.disco),
            home: Some(node.home),
            endpoints: told.copied().collect(),
        };
        for other in 0..self.nodes.len() {
            if other != number && self.nodes[other].running {
                self.tell(other, number);
                self.carry_out(other);
            }
        }
    }

    fn read_map(&mut self, number: usize) {
        for other in 0..self.nodes.len() {
            if other != number {
                self.tell(number, other);
            }
        }
        self.carry_out(number);
    }

    fn tell(&mut self, to: usize, of: usize) {
        let peer = self.map[of].clone();
        let node = &mut self.nodes[to];
        node.watch_key(of, peer.disco.unwrap());
        node.paths.set_peer(Now(self.now), node_key(of), peer);
    }

    fn back(&mut self, number: usize) {
        self.nodes[number].running = true;
        self.read_map(number);
        let node = &mut self.nodes[number];
        for (peer, address) in node.tunnels.inherit() {
            node.watch.adopted(self.now, peer, address);
            let paths = &mut node.paths;
            paths.adopt(Now(self.now), node_key(peer), address);
        }
        let life = node.life;
        let peers: Vec<usize> = node.tunnels.iter().map(|(peer, _)| peer).collect();
        self.later(LAN_DELAY * 40, Event::Stun { node: number, life });
        let lag = self.random.millis(200, 5000);
        self.later(lag, Event::Map(number));
        for to in peers {
            if self.random.per_mille(500) {
                self.later(LAN_DELAY * 100, Event::Told { to, of: number });
            }
        }
        self.carry_out(number);
    }

    fn tick(&mut self, number: usize) {
        self.later(SECOND, Event::Tick(number));
        let now = self.now;
        let node = &mut self.nodes[number];
        if !node.running {
            return;
        }
        let active: Vec<NodePublic> = node.paths.active().collect();
        for key in &active {
            let peer = index(key.as_bytes());
            let tunnel = node.tunnels.of(peer);
            if let Some(sent) = tunnel.last_sent
                && now - sent < SECOND
            {
                node.paths.activity(Now(now), *key, Now(sent));
            }
            let silent = tunnel.unanswered.is_some_and(|at| now - at >= SECOND);
            if tunnel.is_direct() && silent {
                node.paths.unanswered(Now(now), *key);
            }
            if let Some(Route::Direct(address)) = node.paths.route(key) {
                node.watch.direct(now, peer, address);
            }
        }
        if now.as_secs().is_multiple_of(10) {
            let load = node.paths.load();
            let bounded = load.candidates <= MAX_CANDIDATES && load.pings <= 256;
            let last_sent = |peer| node.tunnels.get(peer).and_then(|t| t.last_sent);
            let busy = |peer: &usize| node.watch.is_busy(now, *peer, last_sent(*peer));
            let busy = (0..self.map.len()).filter(busy).count();
            assert!(bounded && load.timers <= busy, "{busy} busy, {load:?}");
        }
        if !active.is_empty() && now - node.last_stun > RESTUN {
            let life = node.life;
            node.last_stun = now;
            self.later(LAN_DELAY * 40, Event::Stun { node: number, life });
        }
        self.carry_out(number);
    }

    fn carry_out(&mut self, number: usize) {
        let now = self.now;
        while let Some(command) = self.nodes[number].paths.next_command() {
            let node = &mut self.nodes[number];
            match command {
                Command::Send {
                    via,
                    disco,
                    message,
                } => {
                    let peer = index(disco.as_bytes());
                    if let (Message::Ping { id, .. }, Via::Udp(address)) = (&message, via) {
                        let last_sent = node.tunnels.get(peer).and_then(|t| t.last_sent);
                        node.watch.ping(now, (*id, peer, address), last_sent);
                    }
                    let sender = node.disco;
                    let payload = Payload::Disco {
                        sender,
                        to: disco,
                        message,
                    };
                    match via {
                        Via::Udp(to) => self.udp(number, to, payload),
                        Via::Derp(_, to) => self.relay(number, index(to.as_bytes()), payload),
                    }
                }
                Command::SetRoute { peer, route } => {
                    let peer = index(peer.as_bytes());
                    if let Route::Direct(address) = route {
                        node.watch.direct(now, peer, address);
                    }
                    node.tunnels.set_route(peer, route);
                }
                Command::Detour { peer, sources } => {
                    let peer = index(peer.as_bytes());
                    node.tunnels.set_detours(peer, sources);
                }
                Command::ReStun => {
                    let life = node.life;
                    let round_trip = (node.delay + LAN_DELAY * 8) * 2;
                    self.later(round_trip, Event::Stun { node: number, life });
                }
                // Links here carry whatever fits a datagram.
                Command::SetMtu { .. }
                | Command::ResetSession(_)
                | Command::PingAnswered { .. }
                | Command::PingExpired { .. } => {}
            }
        }
        self.arm(number);
    }

    fn arm(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let due = node.paths.next_timeout().map(|at| at.0.max(self.now));
        if due != node.armed {
            if let Some(at) = node.armed {
                self.timers.remove(&(at, number));
            }
            if let Some(at) = due {
                self.timers.insert((at, number));
            }
            node.armed = due;
        }
    }
}

impl Node {
    /// A new disco key of a peer makes what was proved of it void.
    fn watch_key(&mut self, peer: usize, disco: DiscoPublic) {
        if !self.paths.knows(&disco) {
            self.watch.forget(peer);
        }
    }
}
