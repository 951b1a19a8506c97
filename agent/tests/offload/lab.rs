//! A gateway whose forwarded flows are offloaded, a peer on its overlay, a host on its LAN.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::DerefMut;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use agent::firewall::{self, Firewall};
use agent::offload::{self, Holder};
use anyhow::{Context, Result, ensure};
use dataplane::{Count, Dataplane, Forwarded, Origin, Peer, PeerIndex, PortRange, Rule, Rules};
use ipnet::IpNet;
use netlink::Netlink;
use netlink::routes::{self, Target};
use node_core::Desired;
use testnet::{Lan, Namespace, Tunnel, wait_until};
use tokio::sync::{Mutex, oneshot, watch};

pub(crate) const LIMIT: Duration = Duration::from_secs(15);
pub(crate) const PEER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(100, 64, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 2)),
];
const US: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(100, 64, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 1)),
];
const DEVICE: &str = "tailrace0";
const MTU: u16 = 1280;

/// The data plane, as the agent would hold it.
pub(crate) struct Plane(pub(crate) Dataplane);

impl Holder for Plane {
    fn dataplane(&mut self) -> Option<impl DerefMut<Target = Dataplane>> {
        Some(&mut self.0)
    }
}

/// ```text
/// peer ──tunnel── tailrace0 gateway lan0 ── eth0 host
/// ```
pub(crate) struct Lab {
    pub(crate) plane: Arc<Mutex<Plane>>,
    agent: Option<(oneshot::Sender<()>, thread::JoinHandle<()>)>,
    _tunnel: Tunnel,
    pub(crate) lan: Lan,
    pub(crate) gateway: Namespace,
    pub(crate) peer: Namespace,
}

impl Lab {
    /// Sets it up with an agent that offloads what it serves: the LAN, and with `exit` everything.
    pub(crate) fn new(masquerade: bool, exit: bool) -> Result<Self> {
        let (peer, gateway) = (Namespace::new("peer")?, Namespace::new("gateway")?);
        let lan = Lan::behind(&gateway, "host", 1)?;
        let tunnel = Tunnel::between((&peer, DEVICE), (&gateway, DEVICE))?;
        for (namespace, addresses) in [(&peer, PEER), (&gateway, US)] {
            namespace.ip(&format!("link set {DEVICE} mtu {MTU} up"))?;
            for (address, len) in addresses.into_iter().zip([32, 128]) {
                namespace.ip(&format!("addr add {address}/{len} dev {DEVICE} nodad"))?;
            }
        }
        for (family, route) in [("-4", "default"), ("-6", "default")] {
            peer.ip(&format!("{family} route add {route} dev {DEVICE}"))?;
        }
        gateway.sysctl("net/ipv4/ip_forward", "1")?;
        gateway.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let mut served: Vec<IpNet> = Vec::new();
        for prefix in lan.prefixes() {
            served.push(prefix.parse()?);
        }
        if exit {
            served.extend(["0.0.0.0/0".parse::<IpNet>()?, "::/0".parse()?]);
        }
        served.sort();
        let plane = gateway.enter(|| plane(&served))??;
        let plane = Arc::new(Mutex::new(Plane(plane)));
        let mut lab = Self {
            plane,
            agent: None,
            _tunnel: tunnel,
            lan,
            gateway,
            peer,
        };
        lab.start_agent(&served, masquerade)?;
        Ok(lab)
    }

    fn start_agent(&mut self, served: &[IpNet], masquerade: bool) -> Result<()> {
        let (ready, started) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let desired = Desired {
            addresses: US.map(IpNet::from).to_vec(),
            mtu: MTU,
            served_routes: served.to_vec(),
            ..Desired::default()
        };
        let (plane, served) = (self.plane.clone(), served.to_vec());
        let gateway = self.gateway.enter_detached(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                match agent(&plane, &desired, served, masquerade).await {
                    Ok(running) => {
                        let _ = ready.send(Ok(()));
                        tokio::select! {
                            () = running => {}
                            _ = stopped => {}
                        }
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                    }
                }
            });
        })?;
        started.recv().context("the agent ended")??;
        self.agent = Some((stop, gateway));
        // It listens to conntrack before it attaches.
        wait_until(LIMIT, "the agent offloads", || {
            let mut plane = self.plane.blocking_lock();
            ensure!(plane.0.forward().devices().next().is_some());
            Ok(())
        })
    }

    /// Ends the agent; the data plane stays.
    pub(crate) fn kill_agent(&mut self) {
        if let Some((stop, thread)) = self.agent.take() {
            let _ = stop.send(());
            let _ = thread.join();
        }
    }

    /// What became of packets of known flows.
    pub(crate) fn counts(&self) -> Result<BTreeMap<(Origin, Forwarded), Count>> {
        let mut plane = self.plane.blocking_lock();
        Ok(plane.0.forward().counts()?)
    }

    /// Packets that went past the stack, from the peer and to it.
    pub(crate) fn past(&self) -> Result<[u64; 2]> {
        let counts = self.counts()?;
        Ok(Origin::ALL.map(|origin| counts[&(origin, Forwarded::Past)].packets))
    }

    /// Waits until so many flows are offloaded.
    pub(crate) fn wait_for_flows(&self, flows: usize) -> Result<()> {
        wait_until(LIMIT, "the flows are offloaded", || {
            let table = self.plane.blocking_lock().0.forward().dump()?;
            ensure!(table.len() == 2 * flows, "{table:?}");
            Ok(())
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.kill_agent();
    }
}

/// Programs on the overlay device, and a filter that lets the peer reach everything.
fn plane(served: &[IpNet]) -> Result<Dataplane> {
    let mut plane = Dataplane::attach(DEVICE, None)?;
    let peers = PEER.map(|address| (IpNet::from(address), Peer::from(PeerIndex(1))));
    plane.set_peers(&peers)?;
    plane.set_rules(&rules(served))?;
    Ok(plane)
}

pub(crate) fn rules(served: &[IpNet]) -> Rules {
    Rules {
        rules: vec![Rule {
            sources: PEER.map(IpNet::from).to_vec().into(),
            destinations: served.iter().map(|net| (*net, PortRange::ALL)).collect(),
            protocols: vec![1, 6, 17, 58],
            ..Rule::default()
        }],
        addresses: US.to_vec(),
        routes: served.to_vec(),
        ..Rules::default()
    }
}

/// Routes, firewall and offloading, as the agent arranges them.
async fn agent(
    plane: &Arc<Mutex<Plane>>,
    desired: &Desired,
    served: Vec<IpNet>,
    masquerade: bool,
) -> Result<impl Future<Output = ()> + use<>> {
    let netlink = Netlink::open()?;
    let link = netlink::links::get(&netlink, DEVICE).await?;
    let overlay = link.context("no overlay device")?.index;
    for address in PEER {
        let change = routes::Change::Add(address.into(), Target::Interface(None));
        routes::apply(&netlink, routes::TABLE, overlay, change).await?;
    }
    let rules = netlink::rules::standard(&netlink::Family::BOTH);
    let actual = netlink::rules::dump(&netlink, &rules).await?;
    for change in netlink::rules::plan(&rules, &actual) {
        netlink::rules::apply(&netlink, change).await?;
    }
    let firewall = Firewall::new()?;
    firewall
        .apply(&firewall::Config {
            device: DEVICE.to_owned(),
            wireguard_port: 41641,
            divert: false,
            agent_port: None,
            detoured: Default::default(),
            forwards: true,
            uses_exit_node: false,
            masquerade,
            exit_node: served.iter().any(|net| net.prefix_len() == 0),
            served,
        })
        .await?;
    let forwards = offload::survey(&netlink, overlay, desired).await?;
    ensure!(forwards.nics.len() == 1, "{forwards:?}");
    let config = offload::Config {
        attachment: 1,
        forwards: Some(forwards),
    };
    let (sender, configs) = watch::channel(config);
    let running = tokio::spawn(offload::run(Arc::downgrade(plane), configs));
    Ok(async move {
        let _kept = (netlink, firewall, sender);
        let _ = running.await;
    })
}
