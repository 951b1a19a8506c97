//! One gateway with its LAN, its peers and a setting.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::ops::DerefMut;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent::firewall::{self, Firewall};
use agent::offload::{self, Holder};
use anyhow::{Context as _, Result, ensure};
use dataplane::{Dataplane, Forwarded, Origin, Peer, PeerIndex, PortRange, Rule, Rules};
use ipnet::IpNet;
use netlink::routes::{self, Target};
use netlink::{Family, Netlink};
use node_core::Desired;
use packet::build::Ip;
use testnet::{Lan, Namespace, wait_until};
use tokio::sync::{Mutex, oneshot, watch};

use super::Setting;
use crate::figures::counted;

const DEVICE: &str = "tailrace0";
const US: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
const MTU: u16 = 1280;
const FLOWS: u16 = 64;
/// Port of a flow's peer: this, and its number. The host's are these less 10 000.
const FIRST_PORT: u16 = 40_000;
/// Packets of a round, each way.
const PACKETS: usize = 64 * 512;
/// Packets between two looks at the TUN device's queue, which holds 500.
const BATCH: usize = 256;
const PAYLOAD: [u8; 100] = [7; 100];
const LIMIT: Duration = Duration::from_secs(10);
/// Rules of the tailnet's policy.
const RULES: u16 = 1000;

/// A setting, ready to be measured.
pub(super) struct Gateway {
    setting: Setting,
    tun: File,
    frames: Vec<Vec<u8>>,
    /// One for each flow, of the host, connected to the peer as the host sees it.
    sockets: Vec<UdpSocket>,
    agent: Option<Agent>,
    lan: Lan,
    gateway: Namespace,
}

impl Gateway {
    pub(super) fn new(setting: Setting) -> Result<Self> {
        let gateway = Namespace::new("gateway")?;
        let lan = Lan::behind(&gateway, "host", 1)?;
        let tun = gateway.enter(|| testnet::tun(DEVICE))??;
        gateway.ip(&format!("link set {DEVICE} mtu {MTU} up"))?;
        gateway.ip(&format!("address add {US}/10 dev {DEVICE}"))?;
        gateway.sysctl("net/ipv4/ip_forward", "1")?;
        // Flows of one setting are idle while the others are measured.
        for name in ["udp_timeout", "udp_timeout_stream"] {
            gateway.sysctl(&format!("net/netfilter/nf_conntrack_{name}"), "3600")?;
        }
        for name in ["all", DEVICE] {
            gateway.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0")?;
        }
        let agent = arrange(setting, &gateway, &lan)?;
        let IpAddr::V4(host) = lan.addresses()[0] else {
            anyhow::bail!("the LAN's first address is not IPv4");
        };
        let ports = (0..FLOWS).map(|flow| FIRST_PORT + flow);
        let frames = ports
            .clone()
            .map(|port| {
                Ip::new(IpAddr::from(PEER), IpAddr::from(host)).udp(port, port - 10_000, &PAYLOAD)
            })
            .collect();
        let sockets = lan.host().enter(|| -> Result<Vec<UdpSocket>> {
            ports
                .map(|port| Ok(UdpSocket::bind((host, port - 10_000))?))
                .collect()
        })??;
        let mut gateway = Self {
            setting,
            tun,
            frames,
            sockets,
            agent,
            lan,
            gateway,
        };
        gateway.open_flows()?;
        Ok(gateway)
    }

    /// Has each flow be answered, and waits until whoever offloads has taken it.
    fn open_flows(&mut self) -> Result<()> {
        let mut buffer = [0; 2048];
        for (frame, socket) in self.frames.iter().zip(&self.sockets) {
            (&self.tun).write_all(frame)?;
            socket.set_read_timeout(Some(LIMIT))?;
            let (_, peer) = socket.recv_from(&mut buffer).context("the first packet")?;
            socket.connect(peer)?;
            socket.send(&PAYLOAD)?;
            self.drain()?;
        }
        // What comes from here on is counted and goes no further.
        self.lan.host().nft(
            "table ip sink { chain in {
                type filter hook prerouting priority -300;
                udp dport >= 30000 counter drop
            }
            }",
        )?;
        if let (Some(agent), Setting::Ours | Setting::OursFirewall) = (&self.agent, self.setting) {
            wait_until(LIMIT, "the flows go past the stack", || {
                let table = agent.plane.blocking_lock().0.forward().dump()?;
                ensure!(table.len() == 2 * usize::from(FLOWS), "{}", table.len());
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Nanoseconds of a packet to the LAN, and of one to a peer.
    pub(super) fn measure(&mut self) -> Result<[f64; 2]> {
        let before = self.arrived()?;
        let begin = Instant::now();
        for frame in self.frames.iter().cycle().take(PACKETS) {
            self.tun.write_all(frame)?;
        }
        let to_lan = begin.elapsed();
        let arrived = self.arrived()? - before;
        ensure!(arrived == PACKETS, "{arrived} of {PACKETS} arrived");

        let mut to_peers = Duration::ZERO;
        let mut drained = 0;
        for _ in 0..PACKETS / BATCH {
            let begin = Instant::now();
            for socket in self.sockets.iter().cycle().take(BATCH) {
                socket.send(&PAYLOAD)?;
            }
            to_peers += begin.elapsed();
            drained += self.drain()?;
        }
        ensure!(drained == PACKETS, "{drained} of {PACKETS} came to peers");
        if let (Some(agent), Setting::Ours | Setting::OursFirewall) = (&self.agent, self.setting) {
            agent.ensure_past()?;
        }
        Ok([to_lan, to_peers].map(|took| took.as_nanos() as f64 / PACKETS as f64))
    }

    /// Packets that came to the host.
    fn arrived(&self) -> Result<usize> {
        let view = ["nft", "list", "table", "ip", "sink"];
        Ok(usize::try_from(counted(&self.lan.host().exec(&view)?)?)?)
    }

    /// Takes from the TUN device what is for peers; returns how many of ours there were.
    fn drain(&self) -> Result<usize> {
        let mut buffer = [0; 2048];
        let mut found = 0;
        loop {
            match (&self.tun).read(&mut buffer) {
                Ok(len) if len == self.frames[0].len() && buffer[0] >> 4 == 4 => found += 1,
                // Router solicitations and the like.
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(found),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Ends what runs there.
    pub(super) fn close(self) -> Result<()> {
        if let Some(agent) = self.agent {
            agent.stop()?;
        }
        drop(self.gateway);
        Ok(())
    }
}

/// Whether this kernel has flowtables.
pub(super) fn has_flowtable() -> Result<bool> {
    let namespace = Namespace::new("flowtable")?;
    let made = namespace.nft(
        "table inet probe { flowtable known { hook ingress priority 0; devices = { lo }; }
}",
    );
    Ok(made.is_ok())
}

/// Puts the setting on the gateway.
fn arrange(setting: Setting, gateway: &Namespace, lan: &Lan) -> Result<Option<Agent>> {
    let masquerade = "table ip bench { chain post {
        type nat hook postrouting priority srcnat;
        oifname lan0 masquerade
    }
    }";
    match setting {
        Setting::Kernel => {
            lan.host()
                .ip(&format!("route add {PEER}/32 via 10.77.1.1"))?;
        }
        Setting::Masquerade
        | Setting::MasqueradeFirewall
        | Setting::Flowtable
        | Setting::FlowtableAcl => gateway.nft(masquerade)?,
        Setting::Stack | Setting::Ours | Setting::OursFirewall => {}
    }
    match setting {
        Setting::MasqueradeFirewall | Setting::OursFirewall => gateway.nft(&host_firewall())?,
        Setting::Flowtable | Setting::FlowtableAcl => gateway.nft(&format!(
            "table inet flows {{
                flowtable known {{ hook ingress priority 0; devices = {{ {DEVICE}, lan0 }}; }}
                chain forward {{
                    type filter hook forward priority 0;
                    meta l4proto {{ tcp, udp }} flow add @known
                }}
            }}"
        ))?,
        _ => {}
    }
    let duties = match setting {
        Setting::Kernel
        | Setting::Masquerade
        | Setting::MasqueradeFirewall
        | Setting::Flowtable => return Ok(None),
        Setting::FlowtableAcl => Duties::Filter,
        Setting::Stack => Duties::Table,
        Setting::Ours | Setting::OursFirewall => Duties::Offload,
    };
    let served: Vec<IpNet> = vec![lan.prefixes()[0].parse()?];
    Agent::start(gateway, served, duties).map(Some)
}

/// What a host's own firewall may look like: connections that it knows pass after 200 rules.
fn host_firewall() -> String {
    let mut rules = String::new();
    for number in 0..200 {
        let (net, port) = (number % 250, 1000 + number);
        rules += &format!("ip saddr 192.0.2.{net} tcp dport {port} drop\n");
    }
    format!(
        "table inet host {{ chain forward {{
            type filter hook forward priority 10; policy drop;
            {rules}
            ct state established,related accept
            iifname {DEVICE} accept
        }}
        }}"
    )
}

/// How much of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Duties {
    /// The filter.
    Filter,
    /// The filter, and its table of the host's netfilter.
    Table,
    /// These, and flows past the stack.
    Offload,
}

/// The data plane, as the agent would hold it.
struct Plane(Dataplane);

impl Holder for Plane {
    fn dataplane(&mut self) -> Option<impl DerefMut<Target = Dataplane>> {
        Some(&mut self.0)
    }
}

/// Those parts of the agent that forward.
struct Agent {
    plane: Arc<Mutex<Plane>>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Agent {
    fn start(gateway: &Namespace, served: Vec<IpNet>, duties: Duties) -> Result<Self> {
        let plane = gateway.enter(|| plane(&served))??;
        let plane = Arc::new(Mutex::new(Plane(plane)));
        let (ready, started) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let held = plane.clone();
        let thread = gateway.enter_detached(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let result = runtime.map(|runtime| {
                runtime.block_on(async {
                    let kept = serve(&held, served, duties).await;
                    let started = kept
                        .as_ref()
                        .map(drop)
                        .map_err(|error| format!("{error:#}"));
                    // The bench is gone, or waits for the word to end.
                    let _ = ready.send(started);
                    let _ = stopped.await;
                });
            });
            if let Err(error) = result {
                eprintln!("no runtime: {error}");
            }
        })?;
        let agent = Self {
            plane,
            stop,
            thread,
        };
        let result = started.recv().context("the agent's thread ended")?;
        result.map_err(anyhow::Error::msg)?;
        if duties == Duties::Offload {
            // It listens to conntrack before it attaches.
            wait_until(LIMIT, "the agent offloads", || {
                let mut plane = agent.plane.blocking_lock();
                ensure!(plane.0.forward().devices().next().is_some());
                Ok(())
            })?;
        }
        Ok(agent)
    }

    /// Nearly everything has gone past the stack.
    fn ensure_past(&self) -> Result<()> {
        let counts = self.plane.blocking_lock().0.forward().counts()?;
        for origin in Origin::ALL {
            let (mut all, mut past) = (0, 0);
            for ((from, outcome), count) in &counts {
                if *from == origin {
                    all += count.packets;
                    past += count.packets * u64::from(*outcome == Forwarded::Past);
                }
            }
            ensure!(past * 10 > all * 9 && past > 0, "{counts:?}");
        }
        Ok(())
    }

    fn stop(self) -> Result<()> {
        // Its thread may have ended by itself.
        let _ = self.stop.send(());
        let ended = self.thread.join();
        ended.map_err(|_| anyhow::anyhow!("the agent's thread panicked"))
    }
}

/// Programs on the overlay device, and a filter whose last rule lets the peer reach everything.
fn plane(served: &[IpNet]) -> Result<Dataplane> {
    let mut plane = Dataplane::attach(DEVICE, None)?;
    plane.set_peers(&[(IpNet::from(IpAddr::from(PEER)), Peer::from(PeerIndex(1)))])?;
    let mut rules: Vec<Rule> = (1..RULES).map(|number| rule(number, served)).collect();
    rules.push(Rule {
        sources: [IpAddr::from(PEER).into()].into(),
        destinations: served.iter().map(|net| (*net, PortRange::ALL)).collect(),
        protocols: vec![1, 6, 17],
        ..Rule::default()
    });
    plane.set_rules(&Rules {
        rules,
        addresses: vec![US.into()],
        routes: served.to_vec(),
        ..Rules::default()
    })?;
    Ok(plane)
}

/// A rule for somebody else.
fn rule(number: u16, served: &[IpNet]) -> Rule {
    let stranger = Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 65, 0, 1)) + u32::from(number));
    let ports = PortRange {
        first: number,
        last: number,
    };
    Rule {
        sources: [IpAddr::from(stranger).into()].into(),
        destinations: served.iter().map(|net| (*net, ports)).collect(),
        protocols: vec![6],
        ..Rule::default()
    }
}

/// What lives as long as the agent.
struct Kept {
    _firewall: Option<Firewall>,
    _configs: Option<watch::Sender<offload::Config>>,
}

async fn serve(plane: &Arc<Mutex<Plane>>, served: Vec<IpNet>, duties: Duties) -> Result<Kept> {
    if duties == Duties::Filter {
        return Ok(Kept {
            _firewall: None,
            _configs: None,
        });
    }
    let netlink = Netlink::open()?;
    let link = netlink::links::get(&netlink, DEVICE).await?;
    let overlay = link.context("no overlay device")?.index;
    let route = routes::Change::Add(IpAddr::from(PEER).into(), Target::Interface(None));
    routes::apply(&netlink, routes::TABLE, overlay, route).await?;
    let rules = netlink::rules::standard(&Family::BOTH);
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
            masquerade: true,
            exit_node: false,
            served: served.clone(),
        })
        .await?;
    let configs = if duties == Duties::Offload {
        let desired = Desired {
            addresses: vec![IpAddr::from(US).into()],
            mtu: MTU,
            served_routes: served,
            ..Desired::default()
        };
        let forwards = offload::survey(&netlink, overlay, &desired).await?;
        let (sender, configs) = watch::channel(offload::Config {
            attachment: 1,
            forwards: Some(forwards),
        });
        tokio::spawn(offload::run(Arc::downgrade(plane), configs));
        Some(sender)
    } else {
        None
    };
    Ok(Kept {
        _firewall: Some(firewall),
        _configs: configs,
    })
}
