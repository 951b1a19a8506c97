//! The task that owns the path machine: events in, datagrams and orders out.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use disco_proto::disco::{self, TxId};
use keys::{DiscoPrivate, DiscoPublic, DiscoShared, NodePublic};
use node_core::DEFAULT_MTU;
use node_core::paths::{Command, Now, Paths, PeerPaths, Route, Sources, Via};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::{Event, NO_WAY, Order, Pong, Wire};
use crate::derp::Manager;
use crate::net::NetError;

/// What the task works with.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// Our disco key.
    pub(crate) disco: DiscoPrivate,
    /// Direct paths are wanted; without them disco goes over relays only.
    pub(crate) direct: bool,
    /// WireGuard's port.
    pub(crate) wire: Arc<Wire>,
    /// The relays.
    pub(crate) relays: Manager,
    /// Takes what the data plane has to do.
    pub(crate) orders: mpsc::UnboundedSender<Order>,
    /// Asks for our own endpoints.
    pub(crate) restun: Arc<Notify>,
}

impl Surroundings {
    async fn send(&self, via: Via, datagram: &[u8]) -> io::Result<()> {
        match via {
            Via::Udp(to) => {
                // No route there, most often: another candidate may have one.
                self.wire
                    .send(datagram, to)
                    .await
                    .inspect_err(|error| tracing::trace!(%to, %error, "disco message not sent"))
            }
            Via::Derp(region, peer) => {
                let sent = self.relays.send(&peer, Some(region), [datagram]);
                sent.map(drop).ok_or_else(|| {
                    tracing::debug!(%region, "no relay for a disco message");
                    io::ErrorKind::NotConnected.into()
                })
            }
        }
    }
}

/// A ping that somebody asked for, on its ways out.
#[derive(Debug)]
struct Leaving {
    ping: u64,
    padding: u16,
    left: bool,
    /// Why it did not leave, on any way.
    failed: Option<io::Error>,
}

impl Leaving {
    fn new(ping: u64, padding: u16) -> Self {
        Self {
            ping,
            padding,
            left: false,
            failed: None,
        }
    }

    /// Takes the outcome of a message that was sent with it.
    fn sent(&mut self, message: &disco::Message, sent: io::Result<()>) {
        match message {
            disco::Message::Ping { padding, .. } if *padding == self.padding => {}
            _ => return,
        }
        self.left |= sent.is_ok();
        self.failed = sent.err().filter(|_| !self.left);
    }
}

/// The task's state.
#[derive(Debug)]
pub(crate) struct Core {
    with: Surroundings,
    public: DiscoPublic,
    began: Instant,
    paths: Paths,
    /// One costs a curve multiplication.
    secrets: HashMap<DiscoPublic, DiscoShared>,
    pings: HashMap<u64, oneshot::Sender<Result<Pong, NetError>>>,
    last_ping: u64,
    /// The ping that was asked for just now, until it has left.
    leaving: Option<Leaving>,
}

impl Core {
    /// Starts without peers.
    pub(crate) fn new(with: Surroundings) -> Self {
        let nobody = NodePublic::from_bytes([0; 32]);
        Self {
            public: with.disco.public(),
            with,
            began: Instant::now(),
            paths: Paths::new(nobody, || TxId(rand::random())),
            secrets: HashMap::new(),
            pings: HashMap::new(),
            last_ping: 0,
            leaving: None,
        }
    }

    /// Runs until every [`super::Handle`] is gone.
    pub(crate) async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        loop {
            let due = self.paths.next_timeout().map(|at| self.began + at.0);
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.handle(event),
                    None => return,
                },
                () = sleep_until(due.unwrap_or(self.began)), if due.is_some() => {
                    let now = self.now();
                    self.paths.timeout(now);
                }
            }
            self.carry_out().await;
        }
    }

    fn now(&self) -> Now {
        Now(self.began.elapsed())
    }

    fn handle(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Peers { node, peers } => self.set_peers(now, node, peers),
            Event::Adopted(peer, address) if self.with.direct => {
                self.paths.adopt(now, peer, address);
            }
            Event::Datagram { from, datagram } if self.with.direct => {
                self.open(now, Via::Udp(from), &datagram);
            }
            Event::Relayed {
                region,
                from,
                datagram,
            } => self.open(now, Via::Derp(region, from), &datagram),
            Event::Sent(peer) if self.with.direct => self.paths.activity(now, peer, now),
            Event::DiscoKey(peer, key) => self.paths.disco_key_told(now, peer, key),
            Event::Unanswered(peer) => self.paths.unanswered(now, peer),
            Event::Active(answer) => {
                // Whoever asked may be gone.
                let _ = answer.send(self.paths.active().collect());
            }
            Event::Latencies(answer) => {
                let _ = answer.send(self.paths.latencies(now).collect());
            }
            Event::OwnEndpoints(endpoints) => self.paths.own_endpoints(now, endpoints),
            Event::UnderlayChanged => self.paths.underlay_changed(now),
            Event::Ping {
                peer,
                padding,
                answer,
            } => {
                self.last_ping += 1;
                self.pings.insert(self.last_ping, answer);
                self.paths.ping(now, peer, self.last_ping, padding);
                self.leaving = Some(Leaving::new(self.last_ping, padding));
            }
            Event::Adopted(..) | Event::Datagram { .. } | Event::Sent(_) => {}
        }
    }

    fn set_peers(&mut self, now: Now, node: NodePublic, peers: Vec<(NodePublic, PeerPaths)>) {
        self.paths.set_node(node);
        let present: HashSet<NodePublic> = peers.iter().map(|(key, _)| *key).collect();
        let gone: Vec<NodePublic> = self
            .paths
            .peers()
            .filter(|k| !present.contains(k))
            .collect();
        for key in gone {
            self.paths.remove_peer(key);
            // Should it come back, it begins anew: what was ordered before counts no more, however late it is
            // carried out.
            self.order(Order::Route(key, Route::Relayed));
            self.order(Order::Detour(key, Sources::default()));
            self.order(Order::Mtu(key, DEFAULT_MTU));
        }
        let known: HashSet<DiscoPublic> = peers.iter().filter_map(|(_, peer)| peer.disco).collect();
        self.secrets.retain(|key, _| known.contains(key));
        self.with.wire.set_known(known);
        for (key, peer) in peers {
            self.paths.set_peer(now, key, peer);
        }
    }

    fn open(&mut self, now: Now, via: Via, datagram: &[u8]) {
        let Some(envelope) = disco::parse_envelope(datagram) else {
            self.with.wire.junk.unopened();
            return;
        };
        let sender = envelope.sender;
        if !self.paths.knows(&sender) {
            tracing::debug!(?via, "disco message under a key that no peer has");
            self.with.wire.junk.unknown_sender();
            return;
        }
        match disco::open(envelope, self.secret(sender)) {
            Ok(message) => {
                self.paths.message(now, via, sender, message);
                self.with.wire.junk.set_ignored(self.paths.ignored());
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(?via, error, "disco message not understood");
                self.with.wire.junk.unopened();
            }
        }
    }

    fn secret(&mut self, theirs: DiscoPublic) -> &DiscoShared {
        let ours = &self.with.disco;
        self.secrets
            .entry(theirs)
            .or_insert_with(|| ours.shared(&theirs))
    }

    async fn carry_out(&mut self) {
        let public = self.public;
        while let Some(command) = self.paths.next_command() {
            match command {
                Command::Send {
                    via,
                    disco: theirs,
                    message,
                } => {
                    let is_call = matches!(message, disco::Message::CallMeMaybe { .. });
                    if !self.with.direct && (is_call || matches!(via, Via::Udp(_))) {
                        continue;
                    }
                    let datagram = disco::seal(&public, self.secret(theirs), &message);
                    let sent = self.with.send(via, &datagram).await;
                    if let Some(leaving) = &mut self.leaving {
                        leaving.sent(&message, sent);
                    }
                }
                Command::SetRoute { peer, route } => self.order(Order::Route(peer, route)),
                Command::SetMtu { peer, mtu } => self.order(Order::Mtu(peer, mtu)),
                Command::Detour { peer, sources } => self.order(Order::Detour(peer, sources)),
                Command::ResetSession(peer) => self.order(Order::Reset(peer)),
                Command::ReStun => self.with.restun.notify_one(),
                Command::PingAnswered {
                    ping, via, latency, ..
                } => self.answer(ping, Ok(Pong { via, latency })),
                Command::PingExpired { ping, .. } => self.answer(ping, Err(NO_WAY)),
            }
        }
        // All that it was sent with has been tried by now.
        if let Some(leaving) = self.leaving.take()
            && let Some(error) = leaving.failed
        {
            self.answer(leaving.ping, Err(NetError::PingNotSent(error)));
        }
    }

    fn order(&self, order: Order) {
        if self.with.orders.send(order).is_err() {
            tracing::trace!("no data plane to give orders to");
        }
    }

    fn answer(&mut self, ping: u64, pong: Result<Pong, NetError>) {
        if let Some(asker) = self.pings.remove(&ping) {
            // Whoever asked may have given up.
            let _ = asker.send(pong);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use disco_proto::disco::Message;

    use super::*;
    use crate::net::peers::Peers;
    use crate::paths::{Junk, Tally};
    use crate::relayed::{Inbound, Relayed};

    const PEER: NodePublic = NodePublic::from_bytes([2; 32]);

    /// A task with one peer, which has the disco key `theirs`.
    fn core(ours: &DiscoPrivate, theirs: DiscoPublic) -> (Core, mpsc::UnboundedReceiver<Order>) {
        let inbound = Inbound {
            relayed: Arc::new(Relayed::bind(None, 0, tunnel::Inlet::default()).unwrap()),
            peers: Peers::default(),
            paths: crate::paths::channel().0,
            junk: Tally::default(),
        };
        let (orders, ordered) = mpsc::unbounded_channel();
        let mut core = Core::new(Surroundings {
            disco: ours.clone(),
            direct: true,
            wire: Arc::new(Wire::open(0).unwrap()),
            relays: Manager::new(inbound).0,
            orders,
            restun: Arc::default(),
        });
        let peer = PeerPaths {
            disco: Some(theirs),
            home: None,
            endpoints: Vec::new(),
        };
        let node = NodePublic::from_bytes([1; 32]);
        core.set_peers(core.now(), node, vec![(PEER, peer)]);
        (core, ordered)
    }

    #[tokio::test]
    async fn what_a_peer_s_key_sends_and_leads_to_nothing_is_counted() {
        let (ours, theirs) = (DiscoPrivate::generate(), DiscoPrivate::generate());
        let (mut core, _ordered) = core(&ours, theirs.public());
        let shared = theirs.shared(&ours.public());
        let seal = |message| disco::seal(&theirs.public(), &shared, &message);
        let ping = seal(Message::Ping {
            id: TxId([7; 12]),
            node: Some(PEER),
            padding: 0,
        });
        let mut garbage = ping.clone();
        garbage[70..].fill(0x5a);
        let from = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        let pong = seal(Message::Pong {
            id: TxId([8; 12]),
            source: from,
        });
        let call = seal(Message::CallMeMaybe {
            endpoints: Vec::new(),
        });
        let cut = &ping[..ping.len() - 1];
        // A ping that is repeated is answered once.
        for datagram in [&ping, &ping, &garbage, cut, &pong, &pong, &pong, &call] {
            core.open(core.now(), Via::Udp(from), datagram);
        }
        let expected = Junk {
            unopened: 2,
            unmatched_pong: 3,
            repeated_ping: 1,
            misplaced: 1,
            ..Junk::default()
        };
        assert_eq!(core.with.wire.junk.read(), expected);
    }

    #[test]
    fn a_ping_has_failed_if_it_left_on_no_way() {
        let ping = |padding| Message::Ping {
            id: TxId([7; 12]),
            node: None,
            padding,
        };
        let too_long = || Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        let mut leaving = Leaving::new(1, 9000);
        leaving.sent(&ping(9000), too_long());
        // Looks for paths in passing.
        leaving.sent(&ping(0), Ok(()));
        assert_eq!(
            leaving.failed.as_ref().and_then(io::Error::raw_os_error),
            Some(libc::EMSGSIZE)
        );
        leaving.sent(&ping(9000), Ok(()));
        leaving.sent(&ping(9000), too_long());
        assert!(leaving.failed.is_none());
    }

    #[tokio::test]
    async fn a_peer_that_comes_back_begins_anew_whatever_was_ordered_before() {
        let ours = DiscoPrivate::generate();
        let (mut core, mut ordered) = core(&ours, DiscoPrivate::generate().public());
        let node = NodePublic::from_bytes([1; 32]);
        core.set_peers(core.now(), node, Vec::new());
        let orders: Vec<Order> = std::iter::from_fn(|| ordered.try_recv().ok()).collect();
        let expected = [
            Order::Route(PEER, Route::Relayed),
            Order::Detour(PEER, Sources::default()),
            Order::Mtu(PEER, DEFAULT_MTU),
        ];
        assert_eq!(orders, expected);
    }
}
