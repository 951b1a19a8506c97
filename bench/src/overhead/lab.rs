//! The network of the bench: two ends of a tunnel, and a LAN behind the nearer one.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use keys::{NodePrivate, NodePublic};
use netlink::wireguard::{self, Device, Peer};
use netlink::{Netlink, links};
use testnet::{Namespace, veth};

/// Inner MTU, as the agent sets it.
pub(super) const MTU: u16 = 1280;
/// UDP port of WireGuard.
pub(super) const PORT: u16 = 41641;
/// The LAN behind the nearer end.
pub(super) const LAN: &str = "10.0.0.0/24";
/// Addresses of both ends.
pub(super) const TAILNET: &str = "100.64.0.0/10";
/// The nearer end, on the LAN.
pub(super) const LAN_ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The host of the LAN.
pub(super) const LAN_HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// One end of the tunnel.
#[derive(Debug)]
pub(super) struct End {
    pub(super) namespace: Namespace,
    /// The tunnel's device.
    pub(super) device: &'static str,
    /// Outer address.
    underlay: Ipv4Addr,
    /// Inner address.
    pub(super) address: Ipv4Addr,
    key: NodePrivate,
}

impl End {
    fn new(label: &str, device: &'static str, host: u8) -> Result<End> {
        Ok(End {
            namespace: Namespace::new(label)?,
            device,
            underlay: Ipv4Addr::new(192, 0, 2, host),
            address: Ipv4Addr::new(100, 64, 0, host),
            key: NodePrivate::generate(),
        })
    }

    /// Its private key.
    pub(super) fn key(&self) -> &NodePrivate {
        &self.key
    }

    /// Its public key.
    pub(super) fn public(&self) -> NodePublic {
        self.key.public()
    }

    /// Where its tunnel listens.
    pub(super) fn endpoint(&self) -> SocketAddr {
        (self.underlay, PORT).into()
    }

    /// Sets what sysfs shows of the device.
    pub(super) fn set(&self, file: &str, value: u32) -> Result<()> {
        let path = format!("/sys/class/net/{}/{file}", self.device);
        self.namespace
            .enter(|| fs::write(&path, value.to_string()))?
            .context(path)
    }

    /// Gives the device its address and sends the tailnet there.
    fn open(&self) -> Result<()> {
        let Self {
            namespace,
            device,
            address,
            ..
        } = self;
        namespace.ip(&format!("address add {address}/32 dev {device}"))?;
        namespace.ip(&format!("link set {device} mtu {MTU} up"))?;
        namespace.ip(&format!("route add {TAILNET} dev {device}"))?;
        Ok(())
    }
}

/// Two ends and the cable between them. The nearer one has a LAN as well.
#[derive(Debug)]
pub(super) struct Lab {
    pub(super) near: End,
    pub(super) far: End,
    pub(super) host: Namespace,
}

impl Lab {
    /// Lays the cables; there is no tunnel yet.
    ///
    /// # Errors
    ///
    /// Without root, or when `ip` refuses.
    pub(super) fn new() -> Result<Lab> {
        let near = End::new("near", "wgnear", 1)?;
        let far = End::new("far", "wgfar", 2)?;
        let host = Namespace::new("host")?;
        veth((&near.namespace, "wan"), (&far.namespace, "wan"))?;
        for end in [&near, &far] {
            let address = end.underlay;
            end.namespace
                .ip(&format!("address add {address}/24 dev wan"))?;
        }
        veth((&near.namespace, "lan"), (&host, "lan"))?;
        near.namespace
            .ip(&format!("address add {LAN_ROUTER}/24 dev lan"))?;
        host.ip(&format!("address add {LAN_HOST}/24 dev lan"))?;
        near.namespace.sysctl("net/ipv4/ip_forward", "1")?;
        Ok(Lab { near, far, host })
    }

    /// Both ends.
    pub(super) fn ends(&self) -> [&End; 2] {
        [&self.near, &self.far]
    }

    /// Each end with the other one.
    pub(super) fn pairs(&self) -> [(&End, &End); 2] {
        [(&self.near, &self.far), (&self.far, &self.near)]
    }

    /// What of `end` the other end may send from: its address, and the LAN.
    pub(super) fn prefixes(&self, end: &End) -> Result<BTreeSet<IpNet>> {
        let mut prefixes = BTreeSet::from([IpNet::from(IpAddr::from(end.address))]);
        if end.device == self.near.device {
            prefixes.insert(LAN.parse()?);
        }
        Ok(prefixes)
    }

    /// Makes the tunnel of kernel devices.
    ///
    /// # Errors
    ///
    /// When the kernel has no WireGuard.
    pub(super) fn open_kernel(&self) -> Result<()> {
        for (end, other) in self.pairs() {
            let peer = Peer {
                endpoint: Some(other.endpoint()),
                allowed_ips: self.prefixes(other)?,
            };
            let device = Device {
                private_key: Some(end.key.clone()),
                listen_port: PORT,
                fwmark: 0,
                peers: [(other.public(), peer)].into(),
            };
            let name = end.device;
            end.namespace.enter(|| configure(name, &device))??;
        }
        self.open()
    }

    /// Addresses and routes of a tunnel whose devices are there.
    pub(super) fn open(&self) -> Result<()> {
        for end in self.ends() {
            end.open()?;
        }
        self.far
            .namespace
            .ip(&format!("route add {LAN} dev {}", self.far.device))?;
        Ok(())
    }

    /// Takes the tunnel's devices away, and what hangs on them.
    pub(super) fn close(&self) -> Result<()> {
        for end in self.ends() {
            end.namespace.ip(&format!("link del {}", end.device))?;
        }
        Ok(())
    }
}

/// Makes a kernel device in the current namespace.
fn configure(name: &str, device: &Device) -> Result<()> {
    block_on(async {
        let netlink = Netlink::open()?;
        links::create_wireguard(&netlink, name).await?;
        let actual = wireguard::dump(&netlink, name).await?.device;
        wireguard::apply(&netlink, name, &wireguard::plan(device, &actual))
            .await
            .with_context(|| format!("configuring {name}"))
    })
}

/// Runs `work` on the current thread, and so in its namespace.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(work)
}
