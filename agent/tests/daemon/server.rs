//! A coordination server in the test's own process: [`Server`], scripted through [`Tailnet`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Result;
use control_proto::tailcfg::{
    DerpMap, DerpNode, DerpRegion, FilterRule, MapResponse, NetPortRange, Node, NodeId, PortRange,
    StableNodeId,
};
use control_proto::{Presence, Timestamp};
use keys::{DiscoPublic, MachinePrivate, NodePrivate, NodePublic};
use testnet::Host;
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::protocol::Front;

/// Port of the server.
const PORT: u16 = 8080;
const DERP_PORT: u16 = 3340;
const STUN_PORT: u16 = 3478;
const REGION: i32 = 900;

/// What the server says; every change reaches every open map stream at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tailnet {
    /// The packet filter that every node gets.
    pub(crate) filter: Vec<FilterRule>,
    /// An administrator has to approve new devices.
    pub(crate) unapproved: bool,
    /// Keys that are good no more.
    pub(crate) expired: BTreeSet<NodePublic>,
    /// Nodes in the order in which they came; a rotated key stays the same node.
    pub(crate) nodes: Vec<Member>,
    relays: Option<DerpMap>,
}

/// A node that registered.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// Its present key.
    pub(crate) key: NodePublic,
    /// Its machine.
    pub(crate) machine: keys::MachinePublic,
    /// Known once it streams.
    pub(crate) disco: DiscoPublic,
}

/// A server on a host of the lab.
pub(crate) struct Server<'a> {
    host: &'a Host,
    options: Options,
    noise_key: MachinePrivate,
    tailnet: watch::Sender<Tailnet>,
    runtime: Option<Runtime>,
}

/// How the server runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Certificate chain and key, in PEM; plain HTTP without.
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
    /// Folder of an embedded relay; none without.
    pub(crate) relay: Option<PathBuf>,
}

impl<'a> Server<'a> {
    /// Starts it with an allow-all filter.
    pub(crate) fn start(host: &'a Host, options: Options) -> Result<Self> {
        let (tailnet, _) = watch::channel(Tailnet {
            filter: vec![FilterRule::allow_all()],
            ..Tailnet::default()
        });
        let mut server = Self {
            host,
            options,
            noise_key: MachinePrivate::generate(),
            tailnet,
            runtime: None,
        };
        server.start_again()?;
        Ok(server)
    }

    /// Ends it and every connection.
    pub(crate) fn stop(&mut self) {
        self.runtime = None;
    }

    /// Starts it again with what it knew.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        let build = || {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(1).enable_all().build()
        };
        let runtime = self.host.namespace().enter(build)??;
        let address = IpAddr::from(self.host.address());
        let (options, tailnet) = (self.options.clone(), self.tailnet.clone());
        let noise_key = self.noise_key.clone();
        let started = self.host.namespace().enter(|| {
            runtime.block_on(async {
                if let Some(folder) = &options.relay {
                    let relays = relay(address, folder.clone()).await?;
                    tailnet.send_modify(|tailnet| tailnet.relays = Some(relays));
                }
                let tls = match &options.tls {
                    Some((cert, key)) => Some(control::http::tls::acceptor(cert, key)?),
                    None => None,
                };
                let listener = TcpListener::bind((address, PORT)).await?;
                let front = Arc::new(Front { noise_key, tailnet });
                tokio::spawn(front.serve(listener, tls));
                anyhow::Ok(())
            })
        })?;
        started?;
        self.runtime = Some(runtime);
        Ok(())
    }

    /// What nodes are told to join.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.options.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!(
            "{scheme}://{}",
            SocketAddr::from((self.host.address(), PORT))
        )
    }

    /// Changes what the server says.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Tailnet)) {
        self.tailnet.send_modify(change);
    }

    /// Admits everything, or one port only.
    pub(crate) fn set_open(&self, open: bool) {
        self.change(|tailnet| {
            tailnet.filter = vec![if open {
                FilterRule::allow_all()
            } else {
                ssh_only()
            }];
        });
    }

    /// Present key of the node that registered first.
    pub(crate) fn first_key(&self) -> Option<NodePublic> {
        self.tailnet.borrow().nodes.first().map(|node| node.key)
    }
}

/// A rule that no allow-all filter has: one port of ours.
pub(crate) fn ssh_only() -> FilterRule {
    FilterRule {
        src_ips: vec!["*".to_owned()],
        dst_ports: vec![NetPortRange {
            ip: "*".to_owned(),
            bits: None,
            ports: PortRange {
                first: 22,
                last: 22,
            },
        }],
        ..FilterRule::default()
    }
}

impl Tailnet {
    /// Takes a registration: a known key or machine stays what it is.
    pub(crate) fn register(&mut self, machine: keys::MachinePublic, key: NodePublic) {
        match self.nodes.iter_mut().find(|node| node.machine == machine) {
            Some(node) => node.key = key,
            None => self.nodes.push(Member {
                key,
                machine,
                disco: DiscoPublic::default(),
            }),
        }
    }

    /// Everything that the node with `key` may know, as a first frame or as a delta.
    pub(crate) fn frame(&self, key: &NodePublic, first: bool) -> Option<MapResponse> {
        let own = self.nodes.iter().position(|node| node.key == *key)?;
        let others = (0..self.nodes.len()).filter(|index| *index != own);
        Some(MapResponse {
            node: Some(self.node(own)),
            peers: Presence::Value(others.map(|index| self.node(index)).collect()),
            derp_map: first.then(|| self.relays.clone()).flatten(),
            domain: "lab.test".to_owned(),
            packet_filters: Presence::Value(BTreeMap::from([(
                "base".to_owned(),
                Some(self.filter.clone()),
            )])),
            control_time: Some(Timestamp::from(SystemTime::now())),
            ..MapResponse::default()
        })
    }

    fn node(&self, index: usize) -> Node {
        let member = &self.nodes[index];
        let number = index + 1;
        let addresses = [
            format!("100.64.0.{number}/32"),
            format!("fd7a:115c:a1e0::{number}/128"),
        ];
        Node {
            id: NodeId(number as i64),
            stable_id: StableNodeId(format!("n{number}")),
            name: format!("node{number}.lab.test."),
            key: member.key,
            disco_key: member.disco,
            addresses: addresses
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect(),
            home_derp: if self.relays.is_some() { REGION } else { 0 },
            online: Some(true),
            machine_authorized: !self.unapproved,
            key_expiry: if self.expired.contains(&member.key) {
                Timestamp::from_unix_seconds(1_000_000_000)
            } else {
                Timestamp::ZERO
            },
            ..Node::default()
        }
    }
}

/// Starts a relay that admits everybody.
async fn relay(address: IpAddr, folder: PathBuf) -> Result<DerpMap> {
    let identity = relay::tls::Identity::self_signed(&folder, &address.to_string())?;
    let server = relay::Server::new(NodePrivate::generate(), relay::ServerConfig::default());
    let tls = identity.server_config(&server.public_key())?;
    let listener = TcpListener::bind((address, DERP_PORT)).await?;
    let stun = UdpSocket::bind((address, STUN_PORT)).await?;
    let metrics = server.metrics().clone();
    tokio::spawn(relay::http::listen(listener, Some(tls), server));
    tokio::spawn(async move { relay::stun::serve(stun, &metrics).await });
    let node = DerpNode {
        name: "900a".to_owned(),
        region_id: REGION,
        host_name: address.to_string(),
        cert_name: identity.pin(),
        ipv4: address.to_string(),
        ipv6: "none".to_owned(),
        derp_port: DERP_PORT.into(),
        stun_port: STUN_PORT.into(),
        ..DerpNode::default()
    };
    let region = DerpRegion {
        region_id: REGION,
        region_code: "lab".to_owned(),
        region_name: "Lab".to_owned(),
        nodes: vec![node],
        ..DerpRegion::default()
    };
    Ok(DerpMap {
        regions: Some(BTreeMap::from([(REGION, Some(region))])),
        omit_default_regions: true,
        ..DerpMap::default()
    })
}
