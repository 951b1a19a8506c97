//! A port of the router that leads to WireGuard's: asked for by NAT-PMP, PCP or UPnP, kept while the network
//! is up, given back at its end.
//!
//! ```text
//! underlay's route ──► gateway ─┐                      ┌─► [State]: our endpoint, what the router speaks
//! port 5351, port 1900 ─────────┼─► [Machine] (sans-IO) ┤
//! UPnP's calls ─────────────────┘                      └─► datagrams, searches, calls
//! ```
//!
//! The messages of NAT-PMP and PCP are our own, and so are the sockets: they carry the underlay's mark, without
//! which an exit node in use would get what is meant for the router.
//!
//! Source: protocol/disco.md §10.

mod boot_time;
mod machine;
mod pcp;
mod pmp;
mod sockets;
mod upnp;

use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use netlink::Netlink;
use netlink::routes::{self, Gateway};
use rand::Rng;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::underlay::OUTSIDE;
use boot_time::BootTime;
use machine::{Action, Machine, Protocol, Site};
use sockets::Sockets;
use upnp::{Lease, Mapped, Order, Running, UpnpError};

/// Between looks at the way out; nothing is sent.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A probe ends sooner.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// For a mapping to be given back; the router forgets it anyway.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);
/// Ports that a router may have mapped, which are remembered to be given back.
const MAX_DOUBTFUL: usize = 8;
/// Wishes that may wait.
const MAX_REQUESTS: usize = 16;

/// What a router speaks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Services {
    /// UPnP, as an Internet gateway device.
    pub upnp: bool,
    /// NAT-PMP.
    pub pmp: bool,
    /// PCP.
    pub pcp: bool,
}

impl Services {
    fn set(&mut self, protocol: Protocol, there: bool) {
        match protocol {
            Protocol::NatPmp => self.pmp = there,
            Protocol::Pcp => self.pcp = there,
            Protocol::Upnp => self.upnp = there,
        }
    }
}

/// How it stands.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct State {
    /// What the router speaks; unknown if nobody asked it.
    pub services: Option<Services>,
    /// Address and port of the router that lead to ours.
    pub external: Option<SocketAddrV4>,
    /// Messages that made no sense.
    pub ignored: u64,
}

/// Asks the task; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    /// The operator has nothing against it.
    allowed: bool,
    requests: mpsc::Sender<Request>,
    wanted: watch::Sender<bool>,
    moved: Arc<Notify>,
    state: watch::Receiver<State>,
}

#[derive(Debug)]
enum Request {
    /// Ask the router anew; answered when that is done.
    Probe(oneshot::Sender<()>),
    /// Answered when what is not wanted is given back.
    Released(oneshot::Sender<()>),
}

impl Handle {
    /// How it stands now.
    pub(crate) fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Has a mapping asked for and kept, or given back.
    pub(crate) fn want(&self, wanted: bool) {
        let wanted = wanted && self.allowed;
        self.wanted.send_if_modified(|old| {
            let changed = *old != wanted;
            *old = wanted;
            changed
        });
    }

    /// Has it look where we are, since the host may have moved.
    pub(crate) fn look(&self) {
        self.moved.notify_one();
    }

    /// Asks the router what it speaks, which takes a quarter of a second at most; tells what is known.
    pub(crate) async fn probe(&self) -> State {
        self.ask(Request::Probe, PROBE_TIMEOUT).await;
        self.state()
    }

    /// Gives the mapping back, and waits for that, a second at most.
    pub(crate) async fn release(&self) {
        self.want(false);
        self.ask(Request::Released, RELEASE_TIMEOUT).await;
    }

    async fn ask(&self, request: impl FnOnce(oneshot::Sender<()>) -> Request, wait: Duration) {
        let (answer, answered) = oneshot::channel();
        let asking = async {
            // Without the task, or in time without an answer, there is nothing to wait for.
            if self.requests.send(request(answer)).await.is_ok() {
                let _gone = answered.await;
            }
        };
        if timeout(wait, asking).await.is_err() {
            tracing::debug!("the port mapper takes its time");
        }
    }
}

/// The task that keeps the mapping.
#[derive(Debug)]
pub(crate) struct Mapper {
    netlink: Netlink,
    restun: Arc<Notify>,
    requests: mpsc::Receiver<Request>,
    wanted: watch::Receiver<bool>,
    moved: Arc<Notify>,
    state: watch::Sender<State>,
    time: BootTime,
    machine: Machine,
    sockets: Option<Sockets>,
    /// The order under way.
    order: Option<Running>,
    /// What the last one may have mapped though it failed.
    doubtful: Vec<Lease>,
    /// Mappings that are being given back.
    farewells: JoinSet<()>,
    probing: Vec<oneshot::Sender<()>>,
}

impl Mapper {
    /// Maps `port`, WireGuard's, at the router; `restun` is told when the mapping changed. Nothing is asked
    /// until it is wanted, and never if it is not `allowed`.
    pub(crate) fn new(
        netlink: Netlink,
        port: u16,
        restun: &Arc<Notify>,
        allowed: bool,
    ) -> (Self, Handle) {
        let (request_sender, requests) = mpsc::channel(MAX_REQUESTS);
        let (wanted_sender, wanted) = watch::channel(false);
        let (state, state_receiver) = watch::channel(State::default());
        let moved = Arc::new(Notify::new());
        let time = BootTime::default();
        let mapper = Self {
            netlink,
            restun: Arc::clone(restun),
            requests,
            wanted,
            moved: Arc::clone(&moved),
            state,
            time,
            machine: Machine::new(port, rand::rng().random(), time.now()),
            sockets: None,
            order: None,
            doubtful: Vec::new(),
            farewells: JoinSet::new(),
            probing: Vec::new(),
        };
        let handle = Handle {
            allowed,
            requests: request_sender,
            wanted: wanted_sender,
            moved,
            state: state_receiver,
        };
        (mapper, handle)
    }

    /// Runs until all handles are gone.
    pub(crate) async fn run(mut self) {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut answer, mut news) = ([0; upnp::MAX_LEN], [0; upnp::MAX_LEN]);
        let mut found = [0; upnp::MAX_LEN];
        loop {
            // Timers stand still while the host is suspended; the next look notices.
            let due = self.machine.poll_timeout();
            let wait = due.map(|due| due.saturating_duration_since(self.time.now()));
            let sockets = self.sockets.as_ref();
            tokio::select! {
                _ = looks.tick() => self.look().await,
                () = self.moved.notified() => self.look().await,
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.look().await;
                }
                Some(request) = self.requests.recv() => self.handle_request(request).await,
                received = sockets::receive(sockets.map(Sockets::router), &mut answer) => {
                    self.handle_answer(received.map(|(len, _)| &answer[..len]));
                }
                received = sockets::receive(sockets.map(Sockets::search), &mut found) => {
                    self.handle_found(received.map(|(len, from)| (&found[..len], from)));
                }
                received = sockets::receive(sockets.and_then(Sockets::news), &mut news) => {
                    self.handle_news(received.map(|(len, from)| (&news[..len], from)));
                }
                ended = ended(&mut self.order) => {
                    self.end_order(ended);
                }
                Some(_) = self.farewells.join_next() => {}
                () = sleep(wait.unwrap_or_default()), if wait.is_some() => {
                    self.machine.handle_timeout(self.time.now());
                }
            }
            self.carry_out().await;
            self.publish();
        }
    }

    async fn handle_request(&mut self, request: Request) {
        match request {
            Request::Probe(answer) => {
                self.look().await;
                self.machine.start_probe(self.time.now());
                self.probing.push(answer);
            }
            Request::Released(answer) => {
                // What was wished before this has been heard, or is now.
                self.look().await;
                while self.farewells.join_next().await.is_some() {}
                let _gone = answer.send(());
            }
        }
    }

    /// Looks where we are.
    async fn look(&mut self) {
        let site = if *self.wanted.borrow_and_update() {
            match routes::gateway_to(&self.netlink, OUTSIDE.0).await {
                Ok(gateway) => gateway.and_then(home),
                Err(error) => {
                    tracing::debug!(%error, "the way out is not known");
                    return;
                }
            }
        } else {
            None
        };
        if self.sockets.as_ref().map(Sockets::site) == site {
            return;
        }
        let now = self.time.now();
        // The old router hears from us before the new one does.
        self.machine.handle_site(now, None);
        self.carry_out().await;
        // What is being asked for is not held yet.
        if self.order.is_some() || !self.doubtful.is_empty() {
            self.give_back(None);
        }
        self.sockets = None;
        let Some(site) = site else { return };
        match Sockets::open(site).await {
            Ok(sockets) => {
                self.sockets = Some(sockets);
                self.machine.handle_site(now, Some(site));
            }
            Err(error) => tracing::debug!(%error, "no socket towards the router"),
        }
    }

    fn handle_answer(&mut self, received: io::Result<&[u8]>) {
        match received {
            Ok(datagram) => self.machine.handle_datagram(self.time.now(), datagram),
            // As a rule an ICMP error: nobody listens there.
            Err(error) => tracing::trace!(%error, "no NAT-PMP or PCP"),
        }
    }

    fn handle_found(&mut self, received: io::Result<(&[u8], SocketAddr)>) {
        let Some(site) = self.sockets.as_ref().map(Sockets::site) else {
            return;
        };
        match received {
            // Others have nothing to say about the router.
            Ok((_, from)) if from.ip() != site.gateway => {}
            Ok((datagram, _)) => match upnp::parse(datagram) {
                Ok(None) => {}
                found => self
                    .machine
                    .handle_found(self.time.now(), found.ok().flatten()),
            },
            Err(error) => tracing::trace!(%error, "no UPnP"),
        }
    }

    fn handle_news(&mut self, received: io::Result<(&[u8], SocketAddr)>) {
        let gateway = self.sockets.as_ref().map(|sockets| sockets.site().gateway);
        match received {
            Ok((datagram, from)) if Some(from.ip()) == gateway.map(IpAddr::V4) => {
                self.machine.handle_news(self.time.now(), datagram);
            }
            Ok(_) => {}
            Err(error) => tracing::trace!(%error, "no announcement"),
        }
    }

    async fn carry_out(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match (action, &self.sockets) {
                (Action::Send(datagram), Some(sockets)) => {
                    if let Err(error) = sockets.router().send(&datagram).await {
                        tracing::trace!(%error, "no NAT-PMP or PCP");
                    }
                }
                (Action::Search, Some(sockets)) => sockets.search_all().await,
                (Action::Send(_) | Action::Search, None) => {}
                (Action::Upnp(order), _) => self.order(order),
            }
        }
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Map(map) => {
                if let Some(old) = self.order.replace(Running::start(map)) {
                    old.abort();
                    self.doubt(old.begun());
                }
            }
            Order::Unmap(lease) => self.give_back(Some(lease)),
        }
    }

    /// Takes the end of the order under way.
    fn end_order(&mut self, ended: Result<Mapped, UpnpError>) {
        let begun = self.order.take().map(|order| order.begun());
        self.doubt(begun.unwrap_or_default());
        let made = ended
            .as_ref()
            .ok()
            .map(|made| (made.lease(), made.external));
        self.machine.handle_upnp(self.time.now(), ended);
        if let Some((lease, external)) = made {
            self.doubtful.retain(|known| *known != lease);
            // It may have come too late.
            if self.machine.external() != Some(external) {
                self.doubt(vec![lease]);
            }
        }
    }

    /// Notes what may be mapped though nobody holds it; the newest if there is much.
    fn doubt(&mut self, leases: Vec<Lease>) {
        for lease in leases {
            self.doubtful.retain(|known| *known != lease);
            self.doubtful.push(lease);
        }
        let surplus = self.doubtful.len().saturating_sub(MAX_DOUBTFUL);
        self.doubtful.drain(..surplus);
    }

    /// Ends the order under way, and gives back what it maps and what is `held`.
    fn give_back(&mut self, held: Option<Lease>) {
        let (running, mut leases) = (self.order.take(), std::mem::take(&mut self.doubtful));
        self.farewells.spawn(async move {
            if let Some(running) = running {
                leases.extend(running.stop().await);
            }
            leases.retain(|lease| held.as_ref() != Some(lease));
            leases.dedup();
            for lease in held.into_iter().chain(leases) {
                if let Err(error) = upnp::unmap(&lease).await {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(error, "port mapping not given back");
                }
            }
        });
    }

    fn publish(&mut self) {
        let state = State {
            services: self.machine.services(),
            external: self.machine.external(),
            ignored: self.machine.ignored(),
        };
        let old = self.state.send_replace(state);
        if old.external != state.external {
            self.restun.notify_one();
        }
        if !self.machine.is_probing() {
            for answer in self.probing.drain(..) {
                let _gone = answer.send(());
            }
        }
    }
}

/// Waits for the end of the order; for ever if there is none.
async fn ended(order: &mut Option<Running>) -> Result<Mapped, UpnpError> {
    match order {
        Some(order) => order.ended().await,
        None => pending().await,
    }
}

/// Where `gateway` is asked: nobody maps ports at a router with a public address, as of a data centre.
fn home(gateway: Gateway) -> Option<Site> {
    gateway.address.is_private().then_some(Site {
        gateway: gateway.address,
        own: gateway.own,
    })
}

/// True for an address that others may send to.
fn is_external(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    // 0/8 is this network, 127/8 this host, from 224 on come groups and what is reserved.
    first != 0 && first != 127 && first < 224
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routers_of_private_networks_are_asked_and_no_others() {
        let is_asked = |address| {
            let own = Ipv4Addr::new(10, 0, 0, 2);
            home(Gateway { address, own }).is_some_and(|site| site.gateway == address)
        };
        let private = [
            [10, 0, 0, 1],
            [172, 16, 0, 1],
            [172, 31, 255, 254],
            [192, 168, 1, 1],
        ];
        for address in private.map(Ipv4Addr::from) {
            assert!(is_asked(address), "{address}");
        }
        let others = [
            [203, 0, 113, 1],
            [169, 254, 1, 1],
            [100, 64, 0, 1],
            [172, 32, 0, 1],
        ];
        for address in others.map(Ipv4Addr::from) {
            assert!(!is_asked(address), "{address}");
        }
    }

    #[tokio::test]
    async fn nothing_is_wanted_of_the_router_that_the_operator_forbids() {
        for allowed in [false, true] {
            let netlink = Netlink::open().unwrap();
            let (mapper, handle) = Mapper::new(netlink, 1, &Arc::default(), allowed);
            handle.want(true);
            assert_eq!(*mapper.wanted.borrow(), allowed);
        }
    }
}
