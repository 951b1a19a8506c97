//! The lab: a relay with a public address, two nodes behind NATs, and what the map would tell them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use agent::net::{
    EngineChoice, Net, NetConfig, NetError, NetEvent, NetStatus, Netfilter, PacketFilter,
    PingReply, ShieldMode,
};
use anyhow::{Context, Result, ensure};
use control_proto::tailcfg::FilterRule;
use ipnet::IpNet;
use keys::{DiscoPrivate, DiscoPublic, NodePrivate, NodePublic};
use node_core::derp::{Address, Certificate, DerpMap, Node as RelayNode, Region, RegionId};
use node_core::{DEFAULT_MTU, Desired, DesiredPeer};
use policy::filter::{Local, Rules};
use testnet::{Host, Lab, wait_until};
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// Index of the first node.
pub(crate) const ALICE: usize = 0;
/// Index of the second node.
pub(crate) const BOB: usize = 1;
/// Time to come up.
pub(crate) const START: Duration = Duration::from_secs(20);

const REGION: RegionId = RegionId(900);
const DERP_PORT: u16 = 3340;
const STUN_PORT: u16 = 3478;

/// A relay and two nodes.
pub(crate) struct Overlay {
    nodes: Vec<Node>,
    relay: Relay,
    /// Nodes want to be told disco keys through the tunnel.
    hear_disco_keys: bool,
    // Last, so that it goes last.
    _lab: Lab,
}

/// A node: a host and its data plane.
pub(crate) struct Node {
    host: Host,
    engine: EngineChoice,
    key: NodePrivate,
    disco: DiscoPrivate,
    direct: bool,
    addresses: Vec<IpNet>,
    net: Option<Net>,
    events: Option<mpsc::Receiver<NetEvent>>,
    runtime: Runtime,
}

struct Relay {
    host: Host,
    key: NodePrivate,
    state: tempfile::TempDir,
    certificate: Certificate,
    runtime: Option<Runtime>,
}

impl Overlay {
    /// Builds the lab and starts everything but the nodes' tunnels.
    pub(crate) fn new(engine: EngineChoice) -> Result<Self> {
        Self::build(engine, false)
    }

    /// As [`new`](Self::new), but nodes look for direct paths, and tell each other their disco keys.
    pub(crate) fn direct(engine: EngineChoice) -> Result<Self> {
        Self::build(engine, true)
    }

    fn build(engine: EngineChoice, direct: bool) -> Result<Self> {
        let mut lab = Lab::new()?;
        let host = lab.server("relay")?;
        let state = tempfile::tempdir()?;
        let identity =
            relay::tls::Identity::self_signed(state.path(), &host.address().to_string())?;
        let certificate = Certificate::parse(&identity.pin(), false)?;
        let relay = Relay {
            host,
            key: NodePrivate::generate(),
            state,
            certificate,
            runtime: None,
        };
        let nodes = [("alice", 1u8), ("bob", 2)]
            .into_iter()
            .map(|(name, number)| Node::new(lab.behind_nat(name)?, number, (engine, direct)))
            .collect::<Result<Vec<Node>>>()?;
        let mut overlay = Self {
            nodes,
            relay,
            hear_disco_keys: direct,
            _lab: lab,
        };
        overlay.start_relay()?;
        Ok(overlay)
    }

    /// Starts both nodes and waits until they are connected to the relay.
    pub(crate) fn join(&mut self) -> Result<()> {
        for index in [ALICE, BOB] {
            self.nodes[index].start()?;
            self.apply(index)?;
        }
        for index in [ALICE, BOB] {
            wait_until(START, "the node has a home relay", || {
                let status = self.status(index)?;
                ensure!(status.home.is_some(), "{:?}", status.relays);
                ensure!(
                    status.relays.iter().any(|relay| relay.connected),
                    "{:?}",
                    status.relays
                );
                Ok(())
            })?;
            self.nodes[index].expect_net_info()?;
        }
        Ok(())
    }

    /// Applies what the network map would say.
    pub(crate) fn apply(&mut self, index: usize) -> Result<()> {
        let peers = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != index);
        let peers: BTreeMap<NodePublic, DesiredPeer> = peers
            .map(|(id, node)| {
                let peer = DesiredPeer {
                    id: i64::try_from(id).unwrap_or(0),
                    name: String::new(),
                    allowed_ips: node.addresses.clone(),
                    routes: Vec::new(),
                    disco: Some(node.disco.public()),
                    home_derp: Some(REGION),
                    endpoints: Vec::new(),
                    hears_disco_key: node
                        .addresses
                        .first()
                        .filter(|_| self.hear_disco_keys)
                        .map(IpNet::addr),
                };
                (node.key.public(), peer)
            })
            .collect();
        let desired = Desired {
            addresses: self.nodes[index].addresses.clone(),
            mtu: DEFAULT_MTU,
            routes: peers
                .values()
                .flat_map(|peer| peer.allowed_ips.clone())
                .collect(),
            peers,
            derp_map: self.derp_map(),
            ..Desired::default()
        };
        let Node {
            host,
            net,
            runtime,
            key,
            ..
        } = &mut self.nodes[index];
        let net = net.as_mut().context("not started")?;
        let filter = PacketFilter {
            rules: Rules::parse(&[FilterRule::allow_all()], |_| Vec::new(), &[])?,
            local: Local {
                addresses: desired.addresses.iter().map(IpNet::addr).collect(),
                ..Local::default()
            },
            ..PacketFilter::default()
        };
        Ok(inside(
            host,
            runtime,
            net.apply(key, &desired, filter, Netfilter::default()),
        )??)
    }

    /// Gives a node another key and tells both.
    pub(crate) fn rotate(&mut self, index: usize) -> Result<()> {
        self.nodes[index].key = NodePrivate::generate();
        self.apply(ALICE)?;
        self.apply(BOB)
    }

    /// Lets go of a node's data plane as SIGTERM does, and starts it anew.
    pub(crate) fn restart(&mut self, index: usize) -> Result<()> {
        let node = &mut self.nodes[index];
        let net = node.net.take().context("not started")?;
        inside(&node.host, &node.runtime, net.detach())?;
        node.start()?;
        self.apply(index)
    }

    /// As [`restart`](Self::restart), with another disco key, of which nobody else hears.
    pub(crate) fn restart_with_new_disco_key(&mut self, index: usize) -> Result<DiscoPublic> {
        let disco = DiscoPrivate::generate();
        let key = disco.public();
        self.nodes[index].disco = disco;
        self.restart(index)?;
        Ok(key)
    }

    /// Waits until a node's data plane tells of a peer's disco key.
    pub(crate) fn expect_disco_key(&mut self, index: usize, of: NodePublic) -> Result<DiscoPublic> {
        let events = self.nodes[index].events.as_mut().context("not started")?;
        wait_until(START, "a disco key is told", || {
            match events.try_recv()? {
                NetEvent::DiscoKey { peer, key } if peer == of => Ok(key),
                other => anyhow::bail!("another event: {other:?}"),
            }
        })
    }

    /// Has a node take a peer's disco key over, as its engine does.
    pub(crate) fn take_disco_key(
        &self,
        index: usize,
        of: NodePublic,
        key: DiscoPublic,
    ) -> Result<()> {
        let Node {
            host, net, runtime, ..
        } = &self.nodes[index];
        let net = net.as_ref().context("not started")?;
        inside(host, runtime, net.take_disco_key(of, key))
    }

    pub(crate) fn idle(&mut self, index: usize) -> Result<()> {
        let Node {
            host, net, runtime, ..
        } = &mut self.nodes[index];
        let net = net.as_mut().context("not started")?;
        Ok(inside(host, runtime, net.idle())??)
    }

    pub(crate) fn down(&mut self, index: usize) -> Result<()> {
        let Node {
            host, net, runtime, ..
        } = &mut self.nodes[index];
        let net = net.take().context("not started")?;
        Ok(inside(host, runtime, net.down())??)
    }

    pub(crate) fn status(&self, index: usize) -> Result<NetStatus> {
        let Node {
            host, net, runtime, ..
        } = &self.nodes[index];
        let net = net.as_ref().context("not started")?;
        inside(host, runtime, net.status())
    }

    pub(crate) fn disco_ping(&self, from: usize, to: usize) -> Result<PingReply> {
        let Node {
            host, net, runtime, ..
        } = &self.nodes[from];
        let key = self.key(to);
        let net = net.as_ref().context("not started")?;
        Ok(inside(
            host,
            runtime,
            net.ping(&key, Duration::from_secs(5)),
        )??)
    }

    pub(crate) fn key(&self, index: usize) -> NodePublic {
        self.nodes[index].key.public()
    }

    pub(crate) fn node(&self, index: usize) -> &Host {
        &self.nodes[index].host
    }

    /// Pings over both families until it works.
    pub(crate) fn ping(&self, from: usize, to: usize) -> Result<()> {
        wait_until(START, "pings are answered", || self.ping_once(from, to))
    }

    /// Sends one ping over each family.
    pub(crate) fn ping_once(&self, from: usize, to: usize) -> Result<()> {
        for address in &self.nodes[to].addresses {
            let address = address.addr().to_string();
            let words = ["ping", "-n", "-c", "1", "-W", "1", &address];
            self.node(from).namespace().exec(&words)?;
        }
        Ok(())
    }

    pub(crate) fn device_number(&self, index: usize) -> Result<String> {
        let text = self
            .node(index)
            .namespace()
            .ip("-o link show dev tailrace0")?;
        Ok(text.split(':').next().unwrap_or_default().to_owned())
    }

    /// Everything that a node leaves on its host: links, addresses, rules, routes of all tables.
    pub(crate) fn traces(&self, index: usize) -> Result<Vec<String>> {
        let shows = [
            "-br link",
            "-br addr",
            "rule",
            "-6 rule",
            "route show table all",
            "-6 route show table all",
        ];
        let namespace = self.node(index).namespace();
        shows.iter().map(|show| namespace.ip(show)).collect()
    }

    pub(crate) fn stop_relay(&mut self) {
        self.relay.runtime = None;
    }

    pub(crate) fn start_relay(&mut self) -> Result<()> {
        let relay = &mut self.relay;
        let address = IpAddr::from(relay.host.address());
        let identity = relay::tls::Identity::self_signed(relay.state.path(), &address.to_string())?;
        let server = relay::Server::new(relay.key.clone(), relay::ServerConfig::default());
        let tls = identity.server_config(&server.public_key())?;
        let runtime = runtime_in(&relay.host)?;
        inside(&relay.host, &runtime, async {
            let listener = TcpListener::bind((address, DERP_PORT)).await?;
            let stun = UdpSocket::bind((address, STUN_PORT)).await?;
            let metrics = server.metrics().clone();
            tokio::spawn(relay::http::listen(listener, Some(tls), server));
            tokio::spawn(async move { relay::stun::serve(stun, &metrics).await });
            anyhow::Ok(())
        })??;
        relay.runtime = Some(runtime);
        Ok(())
    }

    fn derp_map(&self) -> DerpMap {
        let node = RelayNode {
            name: "900a".into(),
            host: self.relay.host.address().to_string(),
            ipv4: Address::Fixed(self.relay.host.address()),
            ipv6: Address::Disabled,
            derp_port: DERP_PORT,
            stun_only: false,
            stun_port: Some(STUN_PORT),
            stun_ip: None,
            http: false,
            certificate: self.relay.certificate.clone(),
        };
        let region = Region {
            id: REGION,
            code: "lab".into(),
            name: "Lab".into(),
            never_home: false,
            nodes: vec![node],
        };
        DerpMap {
            regions: BTreeMap::from([(REGION, region)]),
            scores: BTreeMap::new(),
        }
    }
}

impl Node {
    fn new(host: Host, number: u8, (engine, direct): (EngineChoice, bool)) -> Result<Self> {
        let addresses = [
            format!("100.64.0.{number}/32"),
            format!("fd7a:115c:a1e0::{number}/128"),
        ];
        Ok(Self {
            runtime: runtime_in(&host)?,
            host,
            engine,
            key: NodePrivate::generate(),
            disco: DiscoPrivate::generate(),
            direct,
            addresses: addresses
                .iter()
                .map(|a| a.parse())
                .collect::<Result<_, _>>()?,
            net: None,
            events: None,
        })
    }

    fn start(&mut self) -> Result<()> {
        let config = NetConfig {
            direct: self.direct,
            ..config(self.disco.clone(), self.engine)
        };
        let (net, events) = inside(&self.host, &self.runtime, Net::start(config))??;
        self.net = Some(net);
        self.events = Some(events);
        Ok(())
    }

    /// Waits for the event that tells control about the home relay.
    fn expect_net_info(&mut self) -> Result<()> {
        let events = self.events.as_mut().context("not started")?;
        wait_until(START, "the home relay is told", || {
            match events.try_recv()? {
                NetEvent::NetInfo(info) => {
                    ensure!(info.preferred_derp == i32::from(REGION.0), "{info:?}");
                    ensure!(info.working_udp == Some(true), "{info:?}");
                    ensure!(!info.derp_latency.is_empty(), "{info:?}");
                    Ok(())
                }
                other => anyhow::bail!("another event: {other:?}"),
            }
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(net) = self.net.take()
            && let Err(error) = inside(&self.host, &self.runtime, net.down())
        {
            println!("node not taken down: {error:#}");
        }
    }
}

/// Starts a data plane that is expected to fail.
pub(crate) fn start(host: &Host, engine: EngineChoice) -> Result<Net, NetError> {
    let started = runtime_in(host).and_then(|runtime| {
        let config = config(DiscoPrivate::generate(), engine);
        inside(host, &runtime, Net::start(config))
    });
    match started {
        Ok(result) => result.map(|(net, _)| net),
        Err(error) => panic!("{error:#}"),
    }
}

fn config(disco: DiscoPrivate, engine: EngineChoice) -> NetConfig {
    NetConfig {
        device: "tailrace0".into(),
        port: 41641,
        engine,
        shield: ShieldMode::default(),
        state_dir: std::env::temp_dir(),
        disco,
        // What is relayed is what is looked at here.
        direct: false,
        port_mapping: false,
        endpoints: Vec::new(),
        control: tokio::sync::watch::Sender::new(true).subscribe(),
        home: None,
    }
}

/// A runtime whose threads live in the host's namespace.
fn runtime_in(host: &Host) -> Result<Runtime> {
    let build = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().build()
    };
    Ok(host.namespace().enter(build)??)
}

/// Runs a future to its end, on a thread in the host's namespace.
fn inside<T: Send>(
    host: &Host,
    runtime: &Runtime,
    future: impl Future<Output = T> + Send,
) -> Result<T> {
    host.namespace().enter(|| runtime.block_on(future))
}
