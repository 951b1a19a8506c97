//! The start of [`Net`]: picks the engine, takes over, checks, and puts the parts together.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use keys::NodePublic;
use netlink::{Netlink, links, wireguard};
use node_core::DEFAULT_MTU;
use node_core::endpoints::Endpoints;
use node_core::paths::Route;
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tunnel::{Inlet, Relaying};

use super::claims::{Arrangement, Claims};
use super::direct::Pins;
use super::filter::Guard;
use super::host::Host;
use super::inner::Inner;
use super::measure::Censuses;
use super::numbers::Numbers;
use super::owed::Owed;
use super::peers::Peers;
use super::steward::{self, Steward};
use super::traffic::Accounts;
use super::tsmp::{self, Tsmp};
use super::{
    Engine, EngineChoice, MAX_EVENTS, Net, NetConfig, NetError, NetEvent, Reports, rejects, repair,
    reroute,
};
use crate::derp::Manager;
use crate::error_text::error_text;
use crate::firewall::Firewall;
use crate::offload;
use crate::paths::{self, Core, Surroundings, Wire};
use crate::portmap::Mapper;
use crate::relayed::{InProcess, Inbound, Outbound, Relayed};
use crate::router::Mtus;
use crate::shield::Shields;
use crate::tunnel::{Embedded, Gate, Kernel, Tunnel};
use crate::underlay;

impl Net {
    /// Picks the engine and starts the tasks. The overlay device appears with the first [`Net::apply`].
    ///
    /// A WireGuard device that a former agent left is taken over with its sessions.
    ///
    /// # Errors
    ///
    /// [`NetError::NotPermitted`] without root; [`NetError::NoKernelWireGuard`] if demanded and
    /// missing; [`NetError::PortInUse`].
    pub async fn start(config: NetConfig) -> Result<(Self, mpsc::Receiver<NetEvent>), NetError> {
        check_permission()?;
        let netlink = Arc::new(Netlink::open()?);
        let reports = Reports::default();
        let (mut tunnel, engine_reason) =
            choose_engine(&netlink, &config.device, config.engine, &reports).await?;
        let former = Former::take_over(&netlink, tunnel.engine(), &config).await?;
        let inlet = Inlet::default();
        let relayed = Relayed::bind(former.relay_port, config.port, inlet.clone());
        let relayed = Arc::new(relayed.map_err(opening("opening the relay socket on lo"))?);
        let wire = Wire::open(config.port).map_err(opening("opening the agent's UDP sockets"))?;
        let wire = Arc::new(wire);
        let peers = Peers::default();
        let (paths, path_events) = paths::channel();
        let inbound = Inbound {
            relayed: relayed.clone(),
            peers: peers.clone(),
            paths: paths.clone(),
            junk: wire.junk.clone(),
        };
        let (relays, notices) = Manager::new(inbound.clone());
        let device = config.device.clone();
        let tsmp = Tsmp::new(device, config.disco.public(), reports.clone());
        let (orders, order_receiver) = mpsc::unbounded_channel();
        let restun = Arc::new(Notify::new());
        let allowed = config.direct && config.port_mapping;
        let (mapper, portmap) = Mapper::new(Netlink::open()?, config.port, &restun, allowed);
        let core = Core::new(Surroundings {
            disco: config.disco,
            direct: config.direct,
            wire: wire.clone(),
            relays: relays.clone(),
            orders,
            restun: restun.clone(),
        });
        let outbound = Outbound {
            peers: peers.clone(),
            relays: relays.clone(),
            paths: paths.clone(),
            wire: wire.clone(),
        };
        let relaying = Relaying {
            relay: Arc::new(InProcess {
                relayed: relayed.clone(),
                outbound: outbound.clone(),
            }),
            inlet,
        };
        tunnel.set_relaying(relaying.clone());
        let (events_sender, events) = mpsc::channel(MAX_EVENTS);
        let (assignment, assignments) = watch::channel(None);
        let firewall = open_firewall();
        let trouble = firewall.as_ref().map(Firewall::trouble);
        let (offload, offloads) = watch::channel(offload::Config::default());
        let obstacles = firewall.as_ref().map(Firewall::obstacles);
        let steward = Steward::new(steward::Surroundings {
            relays: relays.clone(),
            events: events_sender.clone(),
            wire: wire.clone(),
            port: config.port,
            direct: config.direct,
            explicit: config.endpoints,
            paths: paths.clone(),
            restun: restun.clone(),
            portmap: portmap.clone(),
            control: config.control,
            home: config.home,
        });
        let watcher = links::Watcher::open()?;
        let host = Host::look(&netlink, &config.device).await;
        let host = host.unwrap_or_else(|error| {
            let reason = error_text(&error);
            tracing::warn!(reason, "this host's way out is not known yet");
            Host::default()
        });
        let inner = Arc::new(Mutex::new(Inner {
            netlink,
            tunnel,
            engine_reason,
            device: config.device.clone(),
            port: config.port,
            state_dir: config.state_dir,
            endpoints: former.endpoints,
            numbers: Numbers::default(),
            direct: BTreeMap::new(),
            routes: former.routes,
            mtus: Mtus::default(),
            outgrown: BTreeSet::new(),
            claims: Claims::default(),
            detoured: Arrangement::default(),
            owed: Owed::default(),
            adopted: former.adopted,
            wants_direct: config.direct,
            pinning: Pins::Untried,
            relaying,
            paths: paths.clone(),
            wire: wire.clone(),
            peers: peers.clone(),
            relayed: relayed.clone(),
            relays: relays.clone(),
            portmap: portmap.clone(),
            guard: Guard::default(),
            shields: Shields::new(config.shield, config.port),
            reports: reports.clone(),
            tsmp: tsmp.clone(),
            firewall,
            filter_serial: 0,
            filter_problem: None,
            offload,
            accounts: Accounts::new(former.has_device),
            offloaded: 0,
            applied: None,
        }));
        let (host, hosts) = watch::channel(host);
        let tasks = [
            tokio::spawn(tell("firewall", trouble, events_sender.clone())),
            tokio::spawn(rejects::run(tsmp.clone(), reports.clone())),
            tokio::spawn(tsmp::run(tsmp, peers.clone(), events_sender.clone())),
            tokio::spawn(tell("host-firewall", obstacles, events_sender.clone())),
            tokio::spawn(steward.run(assignments, notices, hosts)),
            tokio::spawn(carry(relayed, outbound)),
            tokio::spawn(core.run(path_events)),
            tokio::spawn(mapper.run()),
            tokio::spawn(async move { wire.listen(inbound).await }),
            tokio::spawn(reroute::run(
                Arc::downgrade(&inner),
                order_receiver,
                paths.clone(),
            )),
            tokio::spawn(repair::run(
                Arc::downgrade(&inner),
                watcher,
                events_sender,
                host,
            )),
            tokio::spawn(offload::run(Arc::downgrade(&inner), offloads)),
        ];
        let net = Self {
            inner,
            relays,
            peers,
            reports,
            paths,
            portmap,
            assignment,
            censuses: Censuses::default(),
            checks: Arc::default(),
            tasks: tasks.map(|task| task.abort_handle()).into(),
        };
        Ok((net, events))
    }
}

/// What a former agent left, and goes on.
#[derive(Debug, Default)]
struct Former {
    /// A device of the kernel, with its sessions.
    has_device: bool,
    endpoints: Endpoints,
    /// The port on `lo` by which its relayed peers are reached.
    relay_port: Option<u16>,
    /// Ways to peers, until the path machine has its own.
    routes: BTreeMap<NodePublic, Route>,
    /// Direct paths that it has to prove anew.
    adopted: BTreeMap<NodePublic, SocketAddr>,
}

impl Former {
    /// Takes over a kernel's device for the kernel's engine, and removes it for another. Without one WireGuard's
    /// port has to be free.
    async fn take_over(
        netlink: &Netlink,
        engine: Engine,
        config: &NetConfig,
    ) -> Result<Self, NetError> {
        let leftover = Kernel::leftover(netlink, &config.device).await?;
        let mut former = Self::default();
        match &leftover {
            Some(device) if engine == Engine::Kernel => {
                former.adopt(device, config.direct);
                tracing::info!(
                    device = config.device,
                    peers = device.peers.len(),
                    "device taken over"
                );
            }
            // The operator changed the engine: the kernel's device stands in the way.
            Some(_) => links::delete(netlink, &config.device).await?,
            None => {}
        }
        if leftover.is_none_or(|device| device.listen_port != config.port) {
            check_port(config.port)?;
        }
        Ok(former)
    }

    /// Takes over the endpoints of a running device: synthetic ones, which share a port, and direct ones if those
    /// are wanted.
    fn adopt(&mut self, device: &wireguard::Device, direct: bool) {
        self.has_device = true;
        for (key, peer) in &device.peers {
            match peer.endpoint {
                Some(SocketAddr::V4(relayed)) if relayed.ip().is_loopback() => {
                    self.endpoints.adopt(*key, *relayed.ip());
                    self.relay_port = Some(relayed.port());
                }
                Some(endpoint) if direct => {
                    self.routes.insert(*key, Route::Direct(endpoint));
                    self.adopted.insert(*key, endpoint);
                }
                // Without a search for paths nobody would notice that it is dead.
                Some(_) | None => {}
            }
        }
    }
}

fn opening(operation: &'static str) -> impl FnOnce(io::Error) -> NetError {
    move |source| NetError::Socket { operation, source }
}

/// The host's netfilter, if it can be used.
fn open_firewall() -> Option<Firewall> {
    Firewall::new()
        .inspect_err(|error| {
            let reason = error_text(error);
            tracing::warn!(
                reason,
                "the host's netfilter cannot be used: no masquerading"
            );
        })
        .ok()
}

/// Picks the engine and says why.
pub(super) async fn choose_engine(
    netlink: &Arc<Netlink>,
    device: &str,
    choice: EngineChoice,
    reports: &Reports,
) -> Result<(Box<dyn Tunnel>, String), NetError> {
    let kernel = || -> Box<dyn Tunnel> { Box::new(Kernel::new(netlink.clone(), device)) };
    let embedded = || -> Box<dyn Tunnel> {
        let gate = Gate::new(reports.clone());
        Box::new(Embedded::new(netlink.clone(), device, DEFAULT_MTU, gate))
    };
    if choice == EngineChoice::Embedded {
        return Ok((embedded(), "asked for by --wireguard embedded".to_owned()));
    }
    match (Kernel::probe(netlink, device).await, choice) {
        (Ok(()), EngineChoice::Kernel) => {
            Ok((kernel(), "asked for by --wireguard kernel".to_owned()))
        }
        (Ok(()), _) => match dataplane::probe() {
            Ok(()) => Ok((kernel(), "the kernel has WireGuard".to_owned())),
            // Only a tunnel of our own can be filtered without eBPF.
            Err(error) => Ok((embedded(), error_text(&error))),
        },
        (Err(error @ netlink::Error::NotPermitted { .. }), _) => Err(error.into()),
        (Err(error), EngineChoice::Kernel) => Err(NetError::NoKernelWireGuard(error)),
        (Err(error), _) => Ok((embedded(), error_text(&error))),
    }
}

/// Tells whether a former agent's device of the kernel is there, with its sessions.
pub(super) async fn outlived(device: &str) -> bool {
    let leftover = async {
        let netlink = Netlink::open()?;
        Kernel::leftover(&netlink, device).await
    };
    match leftover.await {
        Ok(device) => device.is_some(),
        Err(error) => {
            // Who may not ask cannot take anything over either.
            tracing::debug!(%error, "no device to take over");
            false
        }
    }
}

/// A mark is what every socket of ours needs, and what only CAP_NET_ADMIN may set.
pub(super) fn check_permission() -> Result<(), NetError> {
    match underlay::open_udp_on(false, 0) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(NetError::NotPermitted)
        }
        Err(source) => Err(NetError::Socket {
            operation: "opening a UDP socket",
            source,
        }),
    }
}

/// Tells early, and in plain words, that the port cannot be had.
pub(super) fn check_port(port: u16) -> Result<(), NetError> {
    let any = [
        IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::from(Ipv6Addr::UNSPECIFIED),
    ];
    for ip in any {
        match UdpSocket::bind((ip, port)).map_err(|error| error.kind()) {
            Err(io::ErrorKind::AddrInUse) => return Err(NetError::PortInUse { port }),
            Err(io::ErrorKind::PermissionDenied) => return Err(NetError::PortRefused { port }),
            // A family that this host does not have.
            _ => {}
        }
    }
    Ok(())
}

/// Carries packets between WireGuard and the relays, whatever happens to the socket.
async fn carry(relayed: Arc<Relayed>, to: Outbound) {
    loop {
        let error = relayed.serve(&to).await;
        tracing::warn!(%error, "relay socket failed, going on");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Tells of what is wrong with the firewall, and that it is no more.
async fn tell(
    key: &'static str,
    trouble: Option<watch::Receiver<Option<String>>>,
    events: mpsc::Sender<NetEvent>,
) {
    let Some(mut trouble) = trouble else { return };
    while trouble.changed().await.is_ok() {
        let text = trouble.borrow_and_update().clone();
        if events.send(NetEvent::Health { key, text }).await.is_err() {
            return;
        }
    }
}
